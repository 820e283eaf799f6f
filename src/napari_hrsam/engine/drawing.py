"""One object seen by the model: in the tile that holds it, whatever its size."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label as label_components

from napari_hrsam.engine.fields import LogitField
from napari_hrsam.engine.obedience import CONFIDENCE, obey, to_low_res
from napari_hrsam.engine.predictor import Embedding, Predictor, TilePrediction
from napari_hrsam.engine.tile_cache import SeenTile, TileCache
from napari_hrsam.geometry import (
    BEST_SHARES,
    Box,
    Tile,
    TileGrid,
    best_level,
    coarsest_level,
    downsample,
)
from napari_hrsam.prompts import Prompts
from napari_hrsam.storage.tile_source import PyramidImage

KEPT_SHARES = 1 / 16, 0.8
"""An object with several prompts stays in its tile while its share lies between these."""

ROOMY_SHARE = 0.5
"""An object moves on to a finer tile if it takes at most this share of the tile's side."""

MARGIN_PX = 8
"""Pixels of its level between an object and the border of the tile that is chosen for it."""

MAX_LOOKS = 5
"""Tiles that one prompt may look at in search of the right level; the next one may go on."""

DOUBTFUL_IOU = 0.5
"""Below this prediction of its own IoU, the model is asked again further away."""

MAX_READ_PX = 2**25
"""Stored pixels read for a coarser tile at most: images that lack coarse levels have many there."""

MIN_CONTACT_PX = 2
"""Low-resolution pixels along a tile's border from which on an object counts as going on there."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Look:
    """What the model says of an object in one tile.

    Attributes
    ----------
    tile : Tile
    logits : (size, size) float32
        At tile resolution, clicks obeyed; above 0 is object. Not above 0 where the image lacks
        pixels.
    low_res : (size / 4, size / 4) float32
        To be fed back with the next prompt.
    iou : float
        The model's own estimate.
    focused : Embedding or None
        The tile's embedding refined for the object, if that is done.
    encode_s, refine_s, decode_s : float
        Seconds taken; ``decode_s`` holds ``refine_s``.
    """

    tile: Tile
    logits: NDArray[np.float32]
    low_res: NDArray[np.float32]
    iou: float
    focused: Embedding | None
    encode_s: float
    refine_s: float
    decode_s: float


class Drawer:
    """Looks at an object's prompts in tiles of one image.

    Parameters
    ----------
    image : PyramidImage
        What is annotated.
    predictor : Predictor
        The model.
    tiles : TileCache
        Its embeddings of the image.
    obey_clicks : bool
        Whether logits that contradict a click are corrected around it.
    before_look : callable, optional
        Called before each look; what it raises ends the drawing.
    """

    def __init__(
        self,
        image: PyramidImage,
        predictor: Predictor,
        tiles: TileCache,
        *,
        obey_clicks: bool,
        before_look: Callable[[], None] | None = None,
    ) -> None:
        self._image = image
        self.shape_yx = image.shape_yx
        self.predictor = predictor
        self.tiles = tiles
        self.obey_clicks = obey_clicks
        self.before_look = before_look

    def grid(self, tile: Tile, level: int) -> TileGrid:
        """Return the grid of a level, on the plane of a tile."""
        return TileGrid(self.shape_yx, tile.size_px, level, tile.plane)

    def look(
        self,
        tile: Tile,
        obeyed: Prompts,
        prior: NDArray[np.float32] | None = None,
        focused: Embedding | None = None,
        *,
        may_focus: bool = True,
    ) -> Look:
        """Ask the model in one tile.

        Parameters
        ----------
        tile : Tile
        obeyed : Prompts
            Without contradictions; in or near the tile.
        prior : (size / 4, size / 4) float32, optional
            Low-resolution logits of the object in this tile.
        focused : Embedding, optional
            What the refiner made of the tile for this object earlier.
        may_focus : bool
            Whether a model with a refiner may run it, at the object's second prompt.

        Raises
        ------
        ImageReadError, SessionError
            If the tile cannot be read, or the model fails.
        """
        if self.before_look is not None:
            self.before_look()
        seen = self.tiles.see(tile)
        refine_s = 0.0
        if focused is not None and focused.tile != tile:
            focused = None
        if focused is None and may_focus and self.predictor.refines and len(obeyed) > 1:
            started = time.perf_counter()
            focused = self.predictor.refine(seen.embedding, obeyed, prior)
            refine_s = time.perf_counter() - started
        answer = self.predictor.decode(focused or seen.embedding, obeyed, prior)
        logits, low_res = self._obeyed_logits(answer, obeyed, seen)
        if seen.present is not None and not seen.present.all():
            logits = np.where(seen.present, logits, np.minimum(logits, -CONFIDENCE))
        return Look(
            tile=tile,
            logits=logits,
            low_res=low_res,
            iou=answer.iou,
            focused=focused,
            encode_s=seen.encode_s,
            refine_s=refine_s,
            decode_s=refine_s + answer.decode_s,
        )

    def draw(
        self,
        tile: Tile,
        obeyed: Prompts,
        prior: NDArray[np.float32] | None,
        focused: Embedding | None,
        finest: int,
    ) -> tuple[Look, list[Look]]:
        """Look at an object at the level that shows it best, whatever level was asked for.

        A new object that is small or large on its tile is looked at again where it takes
        `BEST_SHARES` of it, and one of which the model is not sure from further away; the look
        that the model itself rates highest counts. An object with more prompts stays in its tile
        unless it has outgrown it or is lost in it. Then the mask serves as prior for a look one
        level finer, where that was asked for: outlines get better so, but not beyond level 0.

        Parameters
        ----------
        tile, obeyed, prior, focused
            As in `look`; the tile holds all prompts.
        finest : int
            Level that was asked for.

        Returns
        -------
        look : Look
            The one that counts.
        looks : list of Look
            All of them.
        """
        looks = [self.look(tile, obeyed, prior, focused)]
        is_new = prior is None and len(obeyed) == 1
        # A box says how far the object goes, and the tile was chosen for it.
        while obeyed.box is None and len(looks) < MAX_LOOKS:
            other = self._better_tile(looks, obeyed, is_new=is_new)
            if other is None:
                break
            # The prior stays behind: it knows nothing of what lies outside its tile, and at a
            # first click masks are better without.
            looks.append(self.look(other, obeyed))
        best = max(looks, key=lambda look: (not self._goes_on(look, obeyed), look.iou))
        finer = self._finer(best, obeyed) if best.tile.level > max(finest, 0) else None
        if finer is not None:
            looks.append(self.look(finer, obeyed, self.resampled(best, finer)))
            if not self.is_cut(looks[-1], obeyed):
                best = looks[-1]
        return best, looks

    def _fits(self, look: Look, obeyed: Prompts, shares: tuple[float, float]) -> bool:
        """Whether the object takes a share of the tile's side between two, and ends in the tile."""
        low, high = (share * look.tile.size_px * look.tile.downsample for share in shares)
        return low < max(_extent(look, obeyed).shape_yx) <= high and not self._goes_on(look, obeyed)

    def _better_tile(self, looks: list[Look], obeyed: Prompts, *, is_new: bool) -> Tile | None:
        """Return the tile in which the object should be looked at next, if in another one."""
        look, seen = looks[-1], [look.tile.level for look in looks]
        extent, size_px = _extent(look, obeyed), look.tile.size_px
        coarsest = coarsest_level(self.shape_yx, size_px)
        level = look.tile.level
        if not self._fits(look, obeyed, BEST_SHARES if is_new else KEPT_SHARES):
            level = best_level(max(extent.shape_yx), self.shape_yx, size_px)
            if self._goes_on(look, obeyed):
                level = min(max(level, look.tile.level + 1), coarsest)
        if level in seen and is_new and look.iou < DOUBTFUL_IOU:
            # What it sees may be a part, or texture, of something much larger.
            level = min(max(seen) + 2, coarsest)
        if level in seen:
            return None
        tile = self._around(look, obeyed, level)
        if tile is None and level > look.tile.level:
            points = np.concatenate([obeyed.extent_yx(), self._inside(_corners(extent))])
            tile = self.grid(look.tile, level).smallest_holding(points)
        is_cheap = tile is not None and self._image.num_stored_px(tile) <= MAX_READ_PX
        return tile if is_cheap else None

    def resampled(self, look: Look, tile: Tile) -> NDArray[np.float32]:
        """Give the logits of a look as low-resolution logits of another tile."""
        field = LogitField(look.tile, look.logits, self.shape_yx)
        box = Box(tile.y0, tile.x0, tile.y0 + tile.size_px, tile.x0 + tile.size_px)
        return to_low_res(field.sample(tile.level, box))

    def _finer(self, look: Look, obeyed: Prompts) -> Tile | None:
        """Return the tile of the next finer level, if it has room for the object."""
        extent = _extent(look, obeyed)
        room = ROOMY_SHARE * look.tile.size_px * look.tile.downsample / 2
        if extent.area == 0 or max(extent.shape_yx) > room:
            return None
        return self._around(look, obeyed, look.tile.level - 1)

    def _around(self, look: Look, obeyed: Prompts, level: int) -> Tile | None:
        """Return a tile of a level that holds the object and its prompts, if there is one.

        The one nearest to the prompts if it will do: it is the same whatever was seen of the
        object at other levels.
        """
        grid = self.grid(look.tile, level)
        # What touches the border of a tile counts as going on there.
        margin = math.ceil(MARGIN_PX * downsample(level))
        extent = _extent(look, obeyed)
        corners = self._inside(_corners(extent.expand(margin) if extent.area else extent))
        tile = grid.holding(obeyed.extent_yx())
        if tile is not None and all(tile.box0.contains((y, x)) for y, x in corners):
            return tile
        return grid.holding(np.concatenate([obeyed.extent_yx(), corners]))

    def _inside(self, points_yx: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.clip(points_yx, 0, np.array(self.shape_yx) - 1.0)

    def is_cut(self, look: Look, obeyed: Prompts) -> bool:
        """Whether the object reaches beyond the tile."""
        return obeyed.box is None and self._goes_on(look, obeyed)

    def _goes_on(self, look: Look, obeyed: Prompts) -> bool:
        """Whether the object touches a border of its tile beyond which there is image."""
        mask = _clicked_part(look, obeyed)
        box, (height, width) = look.tile.box0, self.shape_yx
        borders = [
            (box.y0 > 0, mask[0]),
            (box.x0 > 0, mask[:, 0]),
            (box.y1 < height, mask[-1]),
            (box.x1 < width, mask[:, -1]),
        ]
        return any(goes_on and edge.sum() >= MIN_CONTACT_PX for goes_on, edge in borders)

    def _obeyed_logits(
        self, answer: TilePrediction, obeyed: Prompts, seen: SeenTile
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Correct the logits at tile and at low resolution around contradicted clicks."""
        if not self.obey_clicks or not obeyed.points_yx:
            return answer.logits, answer.low_res_logits
        points = seen.embedding.tile.to_tile(obeyed.points_yx)
        logits = obey(answer.logits, seen.pixels, points, np.array(obeyed.labels))
        if logits is answer.logits:
            return answer.logits, answer.low_res_logits
        return logits, answer.low_res_logits + to_low_res(logits - answer.logits)


def _clicked_part(look: Look, obeyed: Prompts) -> NDArray[np.bool_]:
    """Return the parts of the low-resolution mask that were clicked on; all if none was."""
    mask: NDArray[np.bool_] = to_low_res(look.logits) > 0
    parts, _ = label_components(mask)
    last = mask.shape[0] - 1
    points = [
        tuple(int(place) for place in np.clip(look.tile.to_tile(point) // 4, 0, last))
        for point, positive in zip(obeyed.points_yx, obeyed.labels, strict=True)
        if positive
    ]
    clicked = {int(parts[place]) for place in points} - {0}
    return np.isin(parts, list(clicked)) if clicked else mask


def _extent(look: Look, obeyed: Prompts) -> Box:
    """Return the box of the object in level-0 pixels."""
    box, scale = Box.around(_clicked_part(look, obeyed)), 4 * look.tile.downsample
    y0, x0 = look.tile.box0.y0, look.tile.box0.x0
    return Box(
        int(y0 + box.y0 * scale),
        int(x0 + box.x0 * scale),
        int(y0 + box.y1 * scale),
        int(x0 + box.x1 * scale),
    )


def _corners(box: Box) -> NDArray[np.float64]:
    if box.area == 0:
        return np.zeros((0, 2))
    return np.array([(box.y0, box.x0), (box.y1 - 1, box.x1 - 1)], np.float64)
