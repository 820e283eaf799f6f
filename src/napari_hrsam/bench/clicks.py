"""Clicks on a large image that nobody encoded before, and encoding ahead."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from functools import partial
from typing import Any

from napari_hrsam.bench.measure import peak_bytes, percentile, summary, timed
from napari_hrsam.bench.settings import Settings
from napari_hrsam.engine.session import Session
from napari_hrsam.geometry import Box, Tile
from napari_hrsam.modeling.checkpoints import load_model
from napari_hrsam.modeling.segmenter import Segmenter
from napari_hrsam.sample import Sample
from napari_hrsam.sample.scene.scene import SceneObject
from napari_hrsam.storage.opening import open_image
from napari_hrsam.storage.tile_source import PyramidImage

OBJECT_PX = 100
"""How large an object appears at the level that is chosen for it."""


def level_for_object(found: SceneObject) -> int:
    """Choose the level at which an object is about `OBJECT_PX` pixels large."""
    return max(-2, round(math.log2(max(found.box.shape_yx) / OBJECT_PX)))


def measure_clicks(sample: Sample, settings: Settings) -> dict[str, Any]:
    """Time clicks: the first of a process, those of new sessions, and those on a warm tile.

    Returns
    -------
    dict
        Seconds unless told otherwise. ``open_s``: the image is opened. ``first_click_s``: image
        and session are opened and the first object is clicked, the first thing after the model is
        loaded. ``cold``: new sessions on other objects. ``overview``: the same, on the largest
        object at a coarse level. ``warm_p50_s``, ``warm_p95_s``: clicks on a tile that is encoded.
        ``read_s``: what reading one tile takes of a cold click.
    """
    started = time.perf_counter()
    model = load_model(settings.model, device=settings.device)
    load_s = time.perf_counter() - started
    chosen = _small_objects(sample, settings.rounds + 2)
    first, warm, *others = chosen

    def cold(image: PyramidImage, found: SceneObject) -> None:
        with Session(model, image) as session:
            session.click(found.centre_yx, level=level_for_object(found))

    first_s = timed(lambda: cold(open_image(sample.path), first))[0]
    image = open_image(sample.path)
    giant = sample.objects[0]
    overview = [timed(partial(cold, image, giant)) for _ in range(settings.rounds)]
    seconds = _warm(model, image, warm, settings.num_warm)
    return {
        "load_model_s": load_s,
        "open_s": timed(lambda: open_image(sample.path))[0],
        "first_click_s": first_s,
        "cold": summary([timed(partial(cold, image, found)) for found in others]),
        "overview": summary(overview),
        "overview_level": level_for_object(giant),
        "read_s": _read_s(sample, model.config.tile_px, settings.rounds),
        "warm_p50_s": statistics.median(seconds),
        "warm_p95_s": percentile(seconds, 0.95),
        "num_warm": len(seconds),
        "peak_bytes": peak_bytes(),
    }


def _small_objects(sample: Sample, num: int) -> list[SceneObject]:
    """Objects seen at level 0 or near it, far apart from each other."""
    small = [found for found in sample.objects if found.kind == "nucleus"]
    return [small[place * len(small) // num] for place in range(num)]


def _warm(model: Segmenter, image: PyramidImage, found: SceneObject, num: int) -> list[float]:
    """Time clicks on one tile that is encoded: first and second ones in turns."""
    y, x = found.centre_yx
    level, apart = level_for_object(found), 0.1 * found.diameter_px
    points = itertools.cycle([(y, x), (y + apart, x), (y, x - apart), (y - apart, x + apart)])
    seconds: list[float] = []
    with Session(model, image) as session:
        session.click((y, x), level=level)
        for number, point in zip(range(num), points, strict=False):
            if number % 2 == 0:
                session.cancel()
            started = time.perf_counter()
            prediction = session.click(point, level=level)
            seconds.append(time.perf_counter() - started)
            # A click that had to encode would not be a warm one.
            assert prediction.seconds["encode_s"] == 0
    return seconds


def _read_s(sample: Sample, tile_px: int, rounds: int) -> float:
    """Time the reading of level-0 tiles that were not read before, from an image just opened."""
    image, stride = open_image(sample.path), tile_px // 2
    size = sample.recipe.size_px
    turns = []
    for number in range(rounds):
        place = (number + 1) * size // (rounds + 2) // stride * stride
        tile = Tile(0, place, size // 2 // stride * stride, tile_px)
        turns.append(timed(partial(image.read, tile))[0])
    return statistics.median(turns)


def measure_embedding(sample: Sample, settings: Settings) -> dict[str, Any]:
    """Time encoding ahead of a part of level 0.

    Returns
    -------
    dict
        ``image_mpx_per_s`` counts every pixel of the part once; ``encoded_mpx_per_s`` counts the
        pixels of all tiles, which overlap by half.
    """
    model = load_model(settings.model, device=settings.device)
    size, side = sample.recipe.size_px, min(settings.embed_px, sample.recipe.size_px)
    start = (size - side) // 2
    box = Box(start, start, start + side, start + side)
    with Session(model, open_image(sample.path), max_embeddings=4096) as session:
        # The first click warms up what torch makes at its first call.
        session.click((1.0, 1.0), level=0)
        session.cancel()
        reports = []
        wall, cpu = timed(lambda: reports.append(session.embed(0, box)))
    report = reports[0]
    return {
        "embed_px": side,
        "num_tiles": report.num_encoded,
        "seconds": wall,
        "cpu_s": cpu,
        "image_mpx_per_s": box.area / 1e6 / wall,
        "encoded_mpx_per_s": report.num_encoded * report.tile_px**2 / 1e6 / wall,
        "peak_bytes": peak_bytes(),
    }
