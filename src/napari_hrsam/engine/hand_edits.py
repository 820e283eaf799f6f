"""What a user painted on a predicted mask, laid over the mask itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.errors import ShapeError
from napari_hrsam.geometry import Box, BoxLike, as_box
from napari_hrsam.masks import RegionMask

if TYPE_CHECKING:
    from napari_hrsam.engine.prediction import Prediction


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class HandEdits:
    """Pixels of a mask that a user changed.

    Attributes
    ----------
    box : Box
        Where the mask lies, in level-0 pixels.
    downsample : int
        Level-0 pixels per mask pixel along y and x.
    changed, values : (H, W) bool
        Which mask pixels were changed, and the mask after it.
    """

    box: Box
    downsample: int
    changed: NDArray[np.bool_]
    values: NDArray[np.bool_]

    @property
    def any_left(self) -> bool:
        """Whether the edited mask has a pixel."""
        return bool(self.values.any())

    def on(self, region: RegionMask) -> RegionMask:
        """Return a mask with the edits on it; the mask itself where nothing was changed."""
        return EditedMask(region, self) if self.changed.any() else region


class EditedMask:
    """A mask with a user's edits on it; a `RegionMask`.

    Parameters
    ----------
    region : RegionMask
        What was edited.
    edits : HandEdits
        Those pixels are taken from it.
    """

    def __init__(self, region: RegionMask, edits: HandEdits) -> None:
        self._region = region
        self._edits = edits

    @property
    def box(self) -> Box:
        """Where pixels may be set."""
        return self._edits.box

    def read(self, box: BoxLike) -> NDArray[np.bool_]:
        """Return the edited mask over a box of level-0 pixels; False outside its own."""
        box = as_box(box)
        mask = self._region.read(box).copy()
        common, rows, columns = self._places(box)
        if common.area:
            inside = mask[common.shifted(-box.y0, -box.x0).slices]
            changed = self._edits.changed[np.ix_(rows, columns)]
            inside[changed] = self._edits.values[np.ix_(rows, columns)][changed]
        return mask

    def fills(self, box: Box) -> bool | None:
        """Tell what the mask below tells, where nothing was changed."""
        common, rows, columns = self._places(box)
        if (
            common.area
            and self._edits.changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].any()
        ):
            return None
        return self._region.fills(box)

    def _places(self, box: Box) -> tuple[Box, NDArray[np.intp], NDArray[np.intp]]:
        """Return the part of a box that may be edited, and the mask pixels of its rows, columns."""
        common, step = box.intersection(self._edits.box), self._edits.downsample
        rows = (np.arange(common.y0, common.y1) - self._edits.box.y0) // step
        columns = (np.arange(common.x0, common.x1) - self._edits.box.x0) // step
        return common, rows, columns


def edits_of(mask: NDArray[Any], prediction: Prediction) -> HandEdits:
    """Compare a mask that a user edited with what was predicted.

    Parameters
    ----------
    mask : bool or integer array
        Of the shape of ``prediction.mask`` or of ``prediction.level_mask``.
    prediction : Prediction

    Raises
    ------
    ShapeError
        If it has neither shape, or another dtype.
    """
    mask = np.asarray(mask)
    if mask.dtype.kind not in "biu":
        raise ShapeError(
            f"expected a mask of bool or integers, got {mask.dtype}; "
            "threshold it first, e.g. mask > 0.5"
        )
    values = mask.astype(np.bool_)
    if mask.shape == prediction.level_mask.shape:
        predicted, step = prediction.level_mask, prediction.level_downsample
    elif mask.shape == prediction.box.shape_yx:
        predicted, step = prediction.mask, 1
    else:
        raise ShapeError(
            f"expected a mask over prediction.box of shape {prediction.box.shape_yx}, or "
            f"{prediction.level_mask.shape} as prediction.level_mask, got {mask.shape}; edit a "
            "copy of one of them"
        )
    return HandEdits(
        box=prediction.box, downsample=step, changed=values != predicted, values=values
    )
