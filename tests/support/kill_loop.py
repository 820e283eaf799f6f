"""Programs that commit, replace, delete, class, undo, redo and embed at random until killed.

Run as ``python kill_loop.py FOLDER``. Each line ``seed file`` on the standard input starts one, a
copy of this process, so that the imports are paid for once; its number is printed. Each says in its
file what it begins and what has returned.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from colour_segmenter import ColourSegmenter
from discs import Disc
from numpy.typing import NDArray

from napari_hrsam.engine.session import Session
from napari_hrsam.geometry import Box
from napari_hrsam.masks import ArrayMask
from napari_hrsam.storage.embeddings.store import EmbeddingStore
from napari_hrsam.storage.label_image import LabelWriter, open_labels

SHAPE = (1300, 1400)
EMBED_LEVEL = 2


def scene() -> NDArray[np.uint8]:
    """An image of coloured squares."""
    squares = np.random.default_rng(0).integers(0, 256, (26, 28, 3), np.uint8)
    return squares.repeat(50, axis=0).repeat(50, axis=1)


class Loop:
    """One program: takes steps at random, and says so."""

    def __init__(self, folder: Path, seed: int, said: Path) -> None:
        self.rng = np.random.default_rng(seed)
        self.said = os.open(said, os.O_WRONLY)
        self.labels = open_labels(folder / "labels", "cells")
        store = EmbeddingStore(folder / "embeddings")
        self.session = Session(ColourSegmenter(), scene(), self.labels, embeddings=store)  # type: ignore[arg-type]
        history = self.labels.history()
        self.done, self.undone = list(history.done), list(history.undone)
        self.say("open")

    def say(self, *words: object) -> None:
        os.write(self.said, (" ".join(map(str, words)) + "\n").encode())

    def step(self) -> None:
        """Take one step."""
        kind = self.rng.random()
        if kind < 0.15 and self.done:
            self.say("begin undo")
            self.labels.revert(self.done[-1])
            self.undone.append(self.done.pop())
        elif kind < 0.25 and self.undone:
            self.say("begin redo")
            self.labels.apply(self.undone[-1])
            self.done.append(self.undone.pop())
        elif kind < 0.45:
            box = self.place(*self.rng.integers(1, 600, 2))
            self.say("begin embed", box.y0, box.x0, box.y1, box.x1)
            self.session.embed(EMBED_LEVEL, box)
        elif kind < 0.6 and self.done:
            self.change(is_deleted=kind < 0.5)
        elif kind < 0.72 and self.done:
            self.give_class()
        else:
            self.commit(is_huge=kind > 0.87)
        self.say("returned")

    def change(self, *, is_deleted: bool) -> None:
        """Replace an object that is there by a rectangle, or delete it."""
        label = int(self.rng.choice(np.unique(pixels(self.labels))))
        if label == 0:
            self.say("begin nothing")
            return
        box = self.place(*self.rng.integers(5, 300, 2))
        self.say(
            "begin", "delete" if is_deleted else "replace", label, 0, box.y0, box.x0, box.y1, box.x1
        )
        mask = None if is_deleted else ArrayMask(box, np.ones(box.shape_yx, bool))
        edit = self.labels.replace(label, self.labels.find(label), mask, overwrite=True)
        assert edit is not None
        self.done.append(edit)
        self.undone = []

    def give_class(self) -> None:
        """Give an object that is there one of a few classes."""
        label = int(self.rng.choice(np.unique(pixels(self.labels))))
        number = int(self.rng.integers(1, 6))
        name = class_name(number)
        if label == 0 or self.labels.properties.of(label).object_class == name:
            self.say("begin nothing")
            return
        self.say("begin", "class", label, number, 0, 0, 0, 0)
        edit = self.labels.set_class(label, name)
        assert edit is not None
        self.done.append(edit)
        self.undone = []

    def commit(self, *, is_huge: bool) -> None:
        """Write a rectangle of pixels, or a disc over several hundred chunks."""
        label = self.labels.next_label()
        mask: Any
        if is_huge:
            radius = int(self.rng.integers(350, 640))
            box = self.place(2 * radius, 2 * radius)
            mask = Disc((box.y0 + radius, box.x0 + radius), radius)
        else:
            box = self.place(*self.rng.integers(5, 300, 2))
            mask = np.ones(box.shape_yx, bool)
        self.say("begin commit", label, int(is_huge), box.y0, box.x0, box.y1, box.x1)
        self.done.append(self.labels.write(box, mask, label, overwrite=True))
        self.undone = []

    def place(self, height: int, width: int) -> Box:
        """Choose where a rectangle lies."""
        y, x = (int(self.rng.integers(0, n)) for n in np.subtract(SHAPE, (height, width)))
        return Box(y, x, y + int(height), x + int(width))


def class_name(number: int) -> str:
    """Name of a class."""
    return f"class {number}"


def pixels(labels: LabelWriter) -> NDArray[Any]:
    """All of level 0."""
    return labels.read(Box.of_shape(SHAPE))


def say(word: object) -> None:
    """Tell the test."""
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


def main() -> None:
    """Start one program after the other."""
    folder = Path(sys.argv[1])
    for line in sys.stdin:
        seed, said = line.split()
        number = os.fork()
        if number == 0:
            loop = Loop(folder, int(seed), Path(said))
            while True:
                loop.step()
        say(number)
        os.waitpid(number, 0)
        say("gone")


if __name__ == "__main__":
    main()
