"""Tiles encoded, and objects drawn again, by several processes and in shards: as by one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from auto_runs import model, squares

from napari_hrsam.engine.embed import EmbedReport
from napari_hrsam.engine.encodes_ahead import EmbedJob
from napari_hrsam.engine.predictor import Predictor, one_thread
from napari_hrsam.engine.replay import ReplayJob, replay
from napari_hrsam.engine.session import Session
from napari_hrsam.engine.tasks import EndOfRunError, fingerprints_of
from napari_hrsam.errors import ConfigError, SessionError
from napari_hrsam.storage.embeddings.store import EmbeddingStore
from napari_hrsam.storage.images.opening import open_image
from napari_hrsam.storage.label_image import create_labels, open_labels


def embed(folder: Path, max_bytes: int = 10**8, **options: Any) -> EmbedReport:
    store = EmbeddingStore(folder, max_bytes=max_bytes)
    with one_thread(), Session(model(), squares(), embeddings=store) as session:
        return session.embed(0, **options)


def tiles_of(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("c.*")
        if not file.name.endswith(".partial")
    }


@pytest.mark.slow
def test_two_processes_encode_what_one_does(tmp_path: Path) -> None:
    alone = embed(tmp_path / "a")
    told: list[tuple[int, int]] = []
    both = embed(tmp_path / "b", workers=2, progress=lambda *num: told.append(num))
    assert tiles_of(tmp_path / "a") == tiles_of(tmp_path / "b")
    assert both.num_encoded == alone.num_encoded == len(tiles_of(tmp_path / "a")) > 20
    assert told[0] == (0, both.num_tiles)
    assert told[-1] == (both.num_tiles,) * 2
    assert embed(tmp_path / "b", workers=2).num_at_hand == alone.num_tiles


def test_three_shards_encode_what_one_call_does(tmp_path: Path) -> None:
    whole = embed(tmp_path / "a")
    parts = [embed(tmp_path / "b", shard=(part, 3)) for part in (2, 0, 1)]
    assert sum(part.num_encoded for part in parts) == whole.num_encoded
    assert tiles_of(tmp_path / "a") == tiles_of(tmp_path / "b")
    assert embed(tmp_path / "b", shard=(0, 10**6)).num_tiles == 0


def test_a_shard_wants_room_for_all_tiles(tmp_path: Path) -> None:
    with pytest.raises(SessionError, match="expected room for .* tiles"):
        embed(tmp_path, max_bytes=60_000, shard=(0, 12))


def test_several_workers_need_a_store() -> None:
    with (
        Session(model(), squares()) as session,
        pytest.raises(ConfigError, match="a store on disk"),
    ):
        session.embed(0, workers=2)


@pytest.mark.parametrize("kind", ["image", "model"])
def test_workers_refuse_other_images_and_models(tmp_path: Path, kind: str) -> None:
    image = open_image(squares())
    told = list(fingerprints_of(image, Predictor(model())))
    told[("image", "model").index(kind)] = "other"
    one: dict[str, Any] = {"image": image, "model": model(), "fingerprints": tuple(told)}
    jobs = [
        EmbedJob(folder=str(tmp_path), skip_blank=False, num_in_all=1, **one),
        ReplayJob(path=str(tmp_path), name="cells", **one),
    ]
    for job in jobs:
        begin: Callable[..., Any] = job.open
        with one_thread(), pytest.raises(EndOfRunError, match=f"the {kind} other that was asked"):
            begin(lambda: None)


@pytest.mark.slow
def test_objects_are_drawn_again_by_two_processes_and_in_shards_as_by_one(tmp_path: Path) -> None:
    with (
        one_thread(),
        create_labels(tmp_path, "cells", squares().shape[:2]) as labels,
        Session(model(), squares(), labels) as session,
    ):
        for y, x in np.random.default_rng(0).integers(20, 180, (5, 2)).tolist():
            session.click((y, x))
            if session.prediction:
                session.commit()
            session.cancel()
    labels = open_labels(tmp_path, "cells", mode="r")
    with one_thread():
        alone = replay(labels, squares(), model())
        parts = [replay(labels, squares(), model(), shard=(part, 2)) for part in range(2)]
    both = replay(labels, squares(), model(), workers=2)
    assert len(alone.ious) >= 2
    assert both.ious == alone.ious
    assert [one.label for one in both.objects] == [one.label for one in alone.objects]
    assert parts[0].ious + parts[1].ious == alone.ious
    with (
        open_labels(tmp_path, "cells") as writer,
        pytest.raises(ConfigError, match="expected one worker to write"),
    ):
        replay(writer, squares(), model(), workers=2, write=True)
