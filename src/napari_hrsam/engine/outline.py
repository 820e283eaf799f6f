"""The outline of an object that is larger than a tile, at a finer level: tile by tile, no seams.

The object was found at a coarse level, where a tile holds it. Its outline there is right to a few
coarse pixels. From level to level, at most `STEP` at a time, the tiles that the outline crosses
are looked at with the coarser mask as prior, by a network made for just this; its answers count
near the outline, fade out towards the borders of the tiles, and so join without seams and whatever
the order of work.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from napari_hrsam.engine.click_correction import enforce_prompts
from napari_hrsam.engine.embed import Progress
from napari_hrsam.engine.multiscale_mask import MultiscaleMask, OutlineLayer, to_block
from napari_hrsam.geometry import Box, Grid, Tile, TileGrid, level_shape
from napari_hrsam.prompts import Prompts
from napari_hrsam.storage.images.tile_source import TileSource

STEP = 2
"""Levels that the outline is refined by at once: one coarse pixel becomes 4 x 4."""

PATCH_SHARE = 1 / 8
"""Side of the patches, as a share of a tile, in which the outline is looked for. Every crossed
patch lies in a tile that has at least as much around it where the image goes on."""

BAND_PX = 3
"""Up to this many pixels of the coarser level the network's answer counts; at twice as many not.

Further out it rather finds other things.
"""

FULL_WEIGHT = 0.02
"""Sum of tile weights from which on the prior has no say; the least that a crossed patch has."""

Place = tuple[int, int]


class Refiner(Protocol):
    """A network that draws the outline of an object anew."""

    def __call__(
        self, pixels: NDArray[np.uint8], prior: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Return (H, W) logits for (H, W, 3) pixels and the (H, W) logits known so far."""


def refine_outline(
    image: TileSource,
    refiner: Refiner,
    mask: MultiscaleMask,
    prompts: Prompts,
    level: int,
    progress: Progress | None = None,
) -> MultiscaleMask:
    """Look at an object's outline again at a finer level.

    Parameters
    ----------
    image : TileSource
        Where pixels are read.
    refiner : Refiner
        The network.
    mask : MultiscaleMask
        The object as it was found, not touching the border of its tile.
    prompts : Prompts
        Of the object; they are enforced.
    level : int
        Where the outline is wanted, 0 or more.
    progress : callable of (done, total), optional
        Called before every tile and at the end. ``total`` is an estimate until the last level.
        What it raises ends the work.

    Returns
    -------
    MultiscaleMask
        The same mask with finer layers.

    Raises
    ------
    ImageReadError, SessionError
        If a tile cannot be read, or the model fails.
    """
    num_done = 0
    levels = list(_levels(mask.level, level))
    for number, here in enumerate(levels):
        step = _Step(image, refiner, mask, prompts, here)
        # The outline is twice as long, in pixels, a level further.
        num_left = sum(len(step.places) * 2 ** (here - later) for later in levels[number:])
        mask = mask.with_layer(step.layer(num_done, num_done + num_left, progress))
        num_done += len(step.places)
    if progress is not None:
        progress(num_done, num_done)
    return mask


def _levels(coarse: int, fine: int) -> Iterator[int]:
    while coarse > fine:
        coarse = max(fine, coarse - STEP)
        yield coarse


class _Step:
    """One level of the refinement."""

    def __init__(
        self,
        image: TileSource,
        refiner: Refiner,
        mask: MultiscaleMask,
        prompts: Prompts,
        level: int,
    ) -> None:
        self.level = level
        self._image = image
        self._refiner = refiner
        self._mask = mask
        self._prompts = prompts
        self._grid = TileGrid(image.shape_yx, mask.tile.size_px, level, mask.tile.plane)
        self._patch_px = int(mask.tile.size_px * PATCH_SHARE)
        self._ratio = 2 ** (mask.level - level)
        self.places = self._chosen(self._crossed())

    def layer(self, num_done: int, num_all: int, progress: Progress | None) -> OutlineLayer:
        """Look at all tiles and join them."""
        waiting = defaultdict(list)
        for row, column in self.places:
            for dy, dx in itertools.product((0, 1), repeat=2):
                waiting[row + dy, column + dx].append((row, column))
        answers: dict[Place, NDArray[np.float32]] = {}
        blocks: dict[Place, NDArray[np.int8]] = {}
        # Row by row, so that few answers are kept at a time.
        for block in sorted(waiting):
            for place in waiting[block]:
                if place not in answers:
                    if progress is not None:
                        progress(num_done, num_all)
                    answers[place] = self._answer(self._grid.tile(*place))
                    num_done += 1
            blocks[block] = to_block(self._joined(block, waiting[block], answers))
            for place in [place for place in answers if place[0] < block[0] - 1]:
                del answers[place]
        return OutlineLayer(self.level, self._grid.stride_px, blocks)

    def _crossed(self) -> set[Place]:
        """Find the patches of this level that the outline crosses, or may come to."""
        # Whole tiles of the coarser level are searched, where its own outline blocks lie.
        shape = level_shape(self._image.shape_yx, self.level)
        scale = 2.0**self.level
        box = self._mask.box
        edges = (box.y0 / scale, box.x0 / scale, box.y1 / scale, box.x1 / scale)
        whole = Box(*(math.floor(edge) for edge in edges[:2]), *(math.ceil(e) for e in edges[2:]))
        found: set[Place] = set()
        # The coarser logits are enough to see where the outline is: one in 2 ** STEP pixels.
        ratio = self._ratio
        patch = max(1, self._patch_px // ratio)
        for area in self._areas(whole.clip(shape)):
            coarse = Box(
                *(math.floor(edge / ratio) for edge in (area.y0, area.x0)),
                *(math.ceil(edge / ratio) for edge in (area.y1, area.x1)),
            )
            if self._mask.is_exact(_level0(area, scale, self._image.shape_yx)) or (
                self._mask.fills(
                    _level0(area.expand(2 * BAND_PX * ratio), scale, self._image.shape_yx)
                )
                is not None
            ):
                continue
            inside = self._mask.sample(self._mask.level, coarse.expand(2 * BAND_PX)) > 0
            for y, x in itertools.product(
                range(0, coarse.height, patch), range(0, coarse.width, patch)
            ):
                part = inside[y : y + patch + 4 * BAND_PX, x : x + patch + 4 * BAND_PX]
                if part.any() and not part.all():
                    found.add(
                        (
                            (coarse.y0 + y) * ratio // self._patch_px,
                            (coarse.x0 + x) * ratio // self._patch_px,
                        )
                    )
        return found

    def _areas(self, whole: Box) -> Iterator[Box]:
        side = 8 * self._patch_px
        for part in Grid((side, side)).parts(whole):
            # Patches begin on their grid, whatever the object's box.
            yield Box(
                part.y0 // self._patch_px * self._patch_px,
                part.x0 // self._patch_px * self._patch_px,
                part.y1,
                part.x1,
            )

    def _chosen(self, patches: Iterable[Place]) -> list[Place]:
        """Choose few tiles such that each patch lies well inside one of them."""
        holders = {patch: self._holders(patch) for patch in sorted(patches)}
        held: dict[Place, set[Place]] = defaultdict(set)
        for patch, places in holders.items():
            for place in places:
                held[place].add(patch)
        chosen: list[Place] = []
        left = set(holders)
        while left:
            # The tile that holds most of what is left; of equal ones the first.
            best = max(held, key=lambda place: (len(held[place]), (-place[0], -place[1])))
            chosen.append(best)
            done = held.pop(best)
            left -= done
            for patch in done:
                for place in holders[patch]:
                    if place in held:
                        held[place].discard(patch)
        return sorted(chosen)

    def _holders(self, patch: Place) -> list[Place]:
        """Return the tiles that hold a patch with a margin of its own size."""
        shape = level_shape(self._image.shape_yx, self.level)
        size, stride = self._grid.tile_px, self._grid.stride_px
        along: list[range] = []
        for number, length, num in zip(patch, shape, self._grid.num_tiles_yx, strict=True):
            start, end = number * self._patch_px, min((number + 1) * self._patch_px, length)
            if end == length:
                along.append(range(num - 1, num))
                continue
            # The first tile needs no margin at the image's border: there is nothing beyond.
            low = max(0, math.ceil((end + self._patch_px - size) / stride))
            high = min(num - 1, max(0, (start - self._patch_px) // stride))
            along.append(range(low, high + 1))
        return [(row, column) for row in along[0] for column in along[1]]

    def _answer(self, tile: Tile) -> NDArray[np.float32]:
        """Give a tile's logits, the prior's where the outline cannot have moved to."""
        whole = Box(tile.y0, tile.x0, tile.y0 + tile.size_px, tile.x0 + tile.size_px)
        prior = self._mask.sample(self.level, whole)
        pixels = self._image.read(tile)
        refined = self._refiner(pixels, prior)
        refined = enforce_prompts(refined, pixels, tile, self._prompts, only_inside=True)
        distance = outline_distance(prior > 0) / (BAND_PX * self._ratio)
        share = np.clip(2 - distance, 0, 1)
        joined: NDArray[np.float32] = share * refined + (1 - share) * prior
        return joined

    def _joined(
        self, block: Place, places: list[Place], answers: dict[Place, NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        """Join what the tiles over a block say."""
        side = self._grid.stride_px
        y0, x0 = block[0] * side, block[1] * side
        prior = self._mask.sample(self.level, Box(y0, x0, y0 + side, x0 + side))
        total = np.zeros((side, side), np.float32)
        weights = np.zeros((side, side), np.float32)
        for place in places:
            dy, dx = (block[0] - place[0]) * side, (block[1] - place[1]) * side
            weight = self._weight(place)[dy : dy + side, dx : dx + side]
            total += weight * answers[place][dy : dy + side, dx : dx + side]
            weights += weight
        share = np.minimum(weights / FULL_WEIGHT, 1)
        joined: NDArray[np.float32] = share * total / np.maximum(weights, 1e-12)
        joined += (1 - share) * prior
        return joined

    def _weight(self, place: Place) -> NDArray[np.float32]:
        """Weight of a tile's pixels: 1 in the middle, 0 at borders where the image goes on."""
        along = []
        shape = level_shape(self._image.shape_yx, self.level)
        for number, length in zip(place, shape, strict=True):
            size = self._grid.tile_px
            hann = np.sin(np.pi * (np.arange(size) + 0.5) / size) ** 2
            if number == 0:
                hann[: size // 2] = 1
            if number * self._grid.stride_px + size >= length:
                hann[size // 2 :] = 1
            along.append(hann.astype(np.float32))
        weight: NDArray[np.float32] = along[0][:, None] * along[1]
        return weight


def outline_distance(inside: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Distance of every pixel to the nearest of the other kind; the diagonal where there is none.

    Returns
    -------
    (H, W) float32, pixels
    """
    if inside.all() or not inside.any():
        return np.full(inside.shape, math.hypot(*inside.shape), np.float32)
    distance: NDArray[np.float32] = distance_transform_edt(inside).astype(np.float32)
    distance += distance_transform_edt(~inside)
    return distance


def _level0(box: Box, scale: float, shape_yx: tuple[int, int]) -> Box:
    edges = (
        math.floor(box.y0 * scale),
        math.floor(box.x0 * scale),
        math.ceil(box.y1 * scale),
        math.ceil(box.x1 * scale),
    )
    return Box(*edges).clip(shape_yx)
