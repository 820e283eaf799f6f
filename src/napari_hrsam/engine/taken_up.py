"""An object of a label image taken up again: its mask, exact, and as a prior for the model."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter

from napari_hrsam.engine.click_correction import to_low_res
from napari_hrsam.engine.multiscale_mask import MultiscaleMask, OutlineLayer
from napari_hrsam.engine.object_predictor import MARGIN_PX
from napari_hrsam.engine.outline import outline_distance
from napari_hrsam.engine.prediction import Prediction
from napari_hrsam.errors import LabelsError
from napari_hrsam.geometry import (
    Box,
    BoxLike,
    Tile,
    TileGrid,
    as_box,
    best_level,
    downsample,
    pixel_of,
)
from napari_hrsam.masks import BlockMask, RegionMask
from napari_hrsam.prompts import Prompts
from napari_hrsam.storage.labels.edits import Edit
from napari_hrsam.storage.labels.store import LabelStore

PRIOR_SLOPE = 0.5
"""Rise of the prior's logits per tile pixel away from the outline."""

MAX_PRIOR = 8.0
"""Largest logit of the prior, either way."""

READ_PX = 1024
"""Side of the blocks in which a mask is made coarser."""

BOX_SLACK = 1 / 8
"""An object may reach beyond the box that it was drawn with by this share of the longer side."""


class StoredMask(MultiscaleMask):
    """A mask that is exact at level 0, but where it was corrected, and logits of it for the model.

    Parameters
    ----------
    tile, logits, shape_yx, clicks, layers
        As of a `MultiscaleMask`; of the mask as it was corrected.
    stored : BlockMask
        The mask before, inside the tile.
    changed : (tile.size_px, tile.size_px) bool, optional
        Where it was corrected: there, the logits count.
    """

    def __init__(
        self,
        tile: Tile,
        logits: NDArray[np.float32],
        shape_yx: tuple[int, int],
        clicks: Sequence[tuple[tuple[float, float], bool]] = (),
        layers: Sequence[OutlineLayer] = (),
        *,
        stored: BlockMask,
        changed: NDArray[np.bool_] | None = None,
    ) -> None:
        super().__init__(tile, logits, shape_yx, clicks, layers)
        self._stored = stored
        self._changed = changed if changed is not None and changed.any() else None

    @property
    def level(self) -> int:
        """The finest level at which all of the outline is known."""
        return 0 if self._changed is None else super().level

    def is_exact(self, box: Box) -> bool:
        """Whether nothing was corrected in a level-0 box."""
        return self._changed is None or not self._changed_in(box).any()

    def with_layer(self, layer: OutlineLayer) -> StoredMask:
        """Return the mask with one more, finer, layer."""
        return StoredMask(
            self.tile,
            self.logits,
            self._shape_yx,
            list(self._clicks.items()),
            (*self.layers, layer),
            stored=self._stored,
            changed=self._changed,
        )

    def corrected(
        self,
        tile: Tile,
        logits: NDArray[np.float32],
        clicks: Sequence[tuple[tuple[float, float], bool]],
        changed: NDArray[np.bool_],
    ) -> StoredMask:
        """Return the mask with a correction.

        Parameters
        ----------
        tile, logits, clicks
            Of all of it.
        changed : (size, size) bool
            Where it is corrected now.
        """
        if self._changed is not None:
            before = self._changed
            if tile != self.tile:
                # Places beside what was corrected may hold some of it in coarser pixels.
                before = maximum_filter(self._changed_in(tile.box0, tile.size_px), 3)
            changed = changed | before
        return StoredMask(
            tile, logits, self._shape_yx, clicks, stored=self._stored, changed=changed
        )

    def read(self, box: BoxLike) -> NDArray[np.bool_]:
        """Return the mask over a box of level-0 pixels."""
        box = as_box(box)
        mask = self._stored.read(box)
        if not self.is_exact(box):
            changed = self._changed_in(box)
            mask[changed] = super().read(box)[changed]
        for y, x, label in self.clicked:
            if box.contains((y, x)):
                mask[y - box.y0, x - box.x0] = label
        return mask

    def fills(self, box: Box) -> bool | None:
        """Tell what is known of a box without reading it."""
        is_clicked = any(box.contains((y, x)) for y, x, _ in self.clicked)
        return self._stored.fills(box) if self.is_exact(box) and not is_clicked else None

    def _changed_in(self, box: Box, num: int = 0) -> NDArray[np.bool_]:
        """Return where the mask was corrected, at each pixel of a level-0 box, or of a tile."""
        assert self._changed is not None
        along = []
        for start, size, corner in (
            (box.y0, box.height, self.tile.box0.y0),
            (box.x0, box.width, self.tile.box0.x0),
        ):
            centres = start - corner + (np.arange(num or size) + 0.5) * size / (num or size)
            along.append(np.floor(centres / self.tile.downsample).astype(np.intp))
        rows, columns = (np.clip(places, -1, self.tile.size_px) for places in along)
        # Nothing is corrected outside of the tile.
        framed = np.pad(self._changed, 1)
        return framed[np.ix_(rows + 1, columns + 1)]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TakenUp:
    """An object of the label image that is drawn on.

    Attributes
    ----------
    label : int
        Its id.
    box : Box
        The smallest that held its pixels when it was taken up, in level-0 pixels.
    prompts : Prompts
        Those of its last commit, if the label image knows them and the mask agrees with all of
        them; else none.
    """

    label: int
    box: Box
    prompts: Prompts


def take_up(labels: LabelStore, label: int, plane: tuple[int, ...]) -> tuple[TakenUp, BlockMask]:
    """Read an object, whatever its size; only blocks that its outline crosses are kept.

    Returns
    -------
    taken : TakenUp
    mask : BlockMask
        Its pixels.

    Raises
    ------
    LabelsError
        If there is no such object or plane, or the labels cannot be read.
    """
    whole = labels.find(label, plane)
    mask = BlockMask(whole, lambda part: labels.read(part, plane=plane) == label)
    box = _extent(mask)
    if box.area == 0:
        raise LabelsError(
            f"expected the object {label} at full size too, got it at coarser levels only; make "
            "these anew with verify_labels(..., repair=True)"
        )
    edit = labels.newest_of(label, plane)
    prompts = edit.prompts if edit is not None and _agrees(edit, mask, box) else Prompts()
    return TakenUp(label=label, box=box, prompts=prompts), mask


def prediction_of(
    mask: BlockMask,
    box: Box,
    prompts: Prompts,
    grid: TileGrid,
    finest: int,
) -> Prediction:
    """Return a stored mask as what a model would have predicted.

    Parameters
    ----------
    mask : BlockMask
        The object.
    box : Box
        The smallest that holds it.
    prompts : Prompts
        The tile holds them, too.
    grid : TileGrid
        Of the image and the plane, at any level.
    finest : int
        Level that was asked for; the tile is not a level finer than shows the object best
        otherwise.

    Returns
    -------
    Prediction
        Its region is exactly the mask; its tile the smallest that holds the object at its level.
    """
    started = time.perf_counter()
    shape = grid.shape_yx
    level = best_level(max(box.shape_yx), shape, grid.tile_px)
    # As `ObjectPredictor.predict` ends one level finer.
    level -= level > max(finest, 0)
    around = box.expand(math.ceil(MARGIN_PX * downsample(level))).clip(shape)
    corners = [(around.y0, around.x0), (around.y1 - 1, around.x1 - 1)]
    tile = TileGrid(shape, grid.tile_px, level, grid.plane).smallest_holding(
        np.concatenate([prompts.extent_yx(), corners])
    )
    logits = as_logits(at_tile(mask, box, tile))
    return Prediction(
        multiscale=StoredMask(tile, logits, shape, stored=mask),
        iou=1.0,
        logits=to_low_res(logits),
        is_cut=False,
        seconds={
            "encode_s": 0.0,
            "decode_s": 0.0,
            "refine_s": 0.0,
            "total_s": time.perf_counter() - started,
        },
    )


def _agrees(edit: Edit, mask: BlockMask, box: Box) -> bool:
    """Whether what was said when an object was drawn still holds of its mask."""
    if edit.prompts.box is not None:
        y0, x0, y1, x1 = edit.prompts.box
        slack = BOX_SLACK * max(y1 - y0, x1 - x0)
        if min(box.y0 - y0, box.x0 - x0) < -slack or max(box.y1 - y1, box.x1 - x1) > slack:
            return False
    said = edit.prompts.consistent().as_clicks()
    pixels = [pixel_of(point) for point in said.points_yx]
    return all(
        bool(mask.read(Box(y, x, y + 1, x + 1)).item()) == label
        for (y, x), label in zip(pixels, said.labels, strict=True)
    )


def _blocks(box: Box) -> list[Box]:
    corners = itertools.product(range(box.y0, box.y1, READ_PX), range(box.x0, box.x1, READ_PX))
    return [Box(y, x, y + READ_PX, x + READ_PX).intersection(box) for y, x in corners]


def _extent(mask: BlockMask) -> Box:
    """Return the smallest box that holds a mask."""
    found = Box(0, 0, 0, 0)
    for part in _blocks(mask.box):
        known = mask.fills(part)
        if known is None:
            found = found.union(Box.around(mask.read(part)).shifted(part.y0, part.x0))
        elif known:
            found = found.union(part)
    return found


def at_tile(mask: RegionMask, box: Box, tile: Tile) -> NDArray[np.bool_]:
    """Return a mask in pixels of a tile: those that it covers at least by half.

    Where that would lose most of it, as of a thin line, those that it touches.
    """
    if tile.level <= 0:
        inside = mask.read(tile.box0)
        times = int(1 / tile.downsample)
        return inside.repeat(times, axis=0).repeat(times, axis=1)
    step, origin = int(tile.downsample), tile.box0
    covered = np.zeros((tile.size_px, tile.size_px), np.float32)
    for part in _blocks(box):
        if mask.fills(part) is False:
            continue
        place = part.shifted(-origin.y0, -origin.x0)
        rows, columns = (
            np.unique(np.maximum(np.arange(low // step * step, high, step), low) - low)
            for low, high in ((place.y0, place.y1), (place.x0, place.x1))
        )
        sums = np.add.reduceat(mask.read(part), rows, axis=0, dtype=np.float32)
        sums = np.add.reduceat(sums, columns, axis=1)
        y, x = place.y0 // step, place.x0 // step
        covered[y : y + sums.shape[0], x : x + sums.shape[1]] += sums / step**2
    inside = covered >= 0.5
    return inside if inside.sum() >= 0.5 * covered.sum() else covered > 0


def as_logits(inside: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return logits that rise with the distance from the outline; their sign is the mask."""
    distance = np.minimum((outline_distance(inside) - 0.5) * PRIOR_SLOPE, MAX_PRIOR)
    logits: NDArray[np.float32] = np.where(inside, distance, -distance).astype(np.float32)
    return logits
