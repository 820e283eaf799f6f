"""Killed at any moment: commits that returned stay, none is half there, embeddings are right."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from discs import Disc
from kill_loop import EMBED_LEVEL, SHAPE, ColourSegmenter, class_name, pixels, scene
from label_checks import require_consistent_levels
from numpy.typing import NDArray

from napari_hrsam.engine.embed import tiles_for
from napari_hrsam.engine.predictor import Predictor
from napari_hrsam.geometry import Box, Tile, TileGrid
from napari_hrsam.storage.embeddings.store import EmbeddingKey, EmbeddingStore
from napari_hrsam.storage.images.fingerprint import identify
from napari_hrsam.storage.images.opening import open_image
from napari_hrsam.storage.label_image import (
    LabelWriter,
    create_labels,
    open_labels,
)

KILLS = int(os.environ.get("NAPARI_HRSAM_KILLS", "20"))
LONGEST_S = 0.6
CHUNK_PX = 64

logger = logging.getLogger(__name__)

Done = tuple[str, int, int, Box]
"""What was done with which object; whether it is a disc, or the class's number; its box."""


@dataclass
class Truth:
    """What must be there, from what the programs said."""

    done: list[Done] = field(default_factory=list)
    undone: list[Done] = field(default_factory=list)
    embedded: list[Box] = field(default_factory=list)
    cut: Counter[str] = field(default_factory=Counter)

    def take(self, lines: list[str]) -> list[str]:
        """Follow what has returned; return the step that was cut, if any."""
        begun: list[str] = []
        for line in lines:
            if line.startswith("begin"):
                begun = line.split()[1:]
            elif line == "returned":
                self.follow(begun)
                begun = []
        if begun:
            self.cut[begun[0]] += 1
        return begun

    def follow(self, step: list[str]) -> None:
        """Take over one step."""
        if step[0] == "undo":
            self.undone.append(self.done.pop())
        elif step[0] == "redo":
            self.done.append(self.undone.pop())
        elif step[0] == "embed":
            self.embedded.append(Box(*map(int, step[1:])))
        elif step[0] != "nothing":
            label, number, *ends = map(int, step[1:])
            self.done.append((step[0], label, number, Box(*ends)))
            self.undone = []

    def image(self) -> NDArray[np.uint32]:
        """Return the labels."""
        image = np.zeros(SHAPE, np.uint32)
        for kind, label, is_huge, box in self.done:
            if kind == "class":
                continue
            if kind != "commit":
                image[image == label] = 0
            if kind == "delete":
                continue
            radius = box.height // 2
            disc = Disc((box.y0 + radius, box.x0 + radius), radius)
            image[box.slices][disc.read(box) if is_huge else ...] = label
        return image

    def classes(self) -> dict[int, str]:
        """Return the class of every object that was given one."""
        return {
            label: class_name(number) for kind, label, number, _ in self.done if kind == "class"
        }

    def is_so(self, labels: LabelWriter) -> bool:
        """Whether pixels and classes are what they must be."""
        told = {
            label: labels.properties.of(label).object_class
            for _, label, *_ in (*self.done, *self.undone)
        }
        given = {label: name for label, name in told.items() if name}
        return np.array_equal(pixels(labels), self.image()) and given == self.classes()

    def require(self, labels: LabelWriter, cut: list[str]) -> None:
        """The labels hold every step that returned, and the one that was cut wholly or not."""
        assert labels._journal.pending() == []
        if cut and cut[0] not in ("embed", "nothing") and not self.is_so(labels):
            self.follow(cut)
        assert self.is_so(labels)
        require_consistent_levels(labels)
        history = labels.history()
        assert [edit.label for edit in history.done] == [label for _, label, *_ in self.done]
        assert [edit.label for edit in history.undone] == [label for _, label, *_ in self.undone]
        assert labels.next_label() > max((label for _, label, *_ in self.done), default=0)


class Embeddings:
    """What the stored embeddings must be."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.image = open_image(scene())
        self.predictor = Predictor(ColourSegmenter())  # type: ignore[arg-type]
        identity = identify(self.image, self.predictor.fill)
        self.key = EmbeddingKey(identity, self.predictor.fingerprint)
        self.grid = TileGrid(SHAPE, self.predictor.tile_px, EMBED_LEVEL)
        self.expected = cache(self._expected)

    def _expected(self, tile: Tile) -> Any:
        pixels = self.image.read(tile, self.predictor.fill)
        return self.predictor.encode(pixels, tile).arrays

    def require(self, embedded: list[Box]) -> int:
        """What was embedded is there, and nothing that is there is wrong; return how many."""
        store = EmbeddingStore(self.folder)
        said = {tile for box in embedded for tile in tiles_for(self.grid, box)}
        there = [tile for tile in self.grid if store.holds(self.key, tile)]
        assert said <= set(there)
        for tile in there:
            maps = store.read(self.key, tile)
            assert maps is not None
            for name, array in self.expected(tile).items():
                np.testing.assert_array_equal(maps[name], array)
        return len(there)


@pytest.fixture
def starter(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    program = Path(__file__).parents[1] / "support" / "kill_loop.py"
    paths = [str(program.parent), *sys.path]
    with subprocess.Popen(
        [sys.executable, str(program), str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def run_and_kill(starter: subprocess.Popen[str], seed: int, said: Path, wait_s: float) -> list[str]:
    """Run a program for some time after it is ready; return what it said."""
    assert starter.stdin is not None
    assert starter.stdout is not None
    said.write_text("")
    print(seed, said, file=starter.stdin, flush=True)
    number = int(starter.stdout.readline())
    until = time.monotonic() + 60
    while said.stat().st_size == 0:
        assert time.monotonic() < until
        time.sleep(0.005)
    time.sleep(wait_s)
    os.kill(number, signal.SIGKILL)
    assert starter.stdout.readline() == "gone\n"
    return said.read_text().split("\n")[:-1]


@pytest.mark.slow
def test_a_process_killed_at_any_moment_loses_nothing_and_leaves_nothing_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, starter: subprocess.Popen[str]
) -> None:
    # Small chunks: a disc lies on several hundred of them, as a huge object on large ones.
    monkeypatch.setattr("napari_hrsam.storage.labels.making.CHUNK_PX", CHUNK_PX)
    create_labels(tmp_path / "labels", "cells", SHAPE).close()
    embeddings = Embeddings(tmp_path / "embeddings")
    truth, chance, num_steps = Truth(), np.random.default_rng(0), 0
    for turn in range(KILLS):
        wait_s = chance.uniform(0.0, LONGEST_S)
        lines = run_and_kill(starter, turn, tmp_path / "said.txt", wait_s)
        num_steps += lines.count("returned")
        cut = truth.take(lines)
        with open_labels(tmp_path / "labels", "cells") as labels:
            truth.require(labels, cut)
        num_stored = embeddings.require(truth.embedded)
    told = f"{KILLS} kills, {num_steps} steps, cut in {dict(truth.cut)}, {num_stored} embeddings"
    logger.warning(told)
    assert truth.cut.total() > KILLS / 4
    assert truth.cut["commit"] > 0
    assert num_stored > 0
