"""One object seen by the model: in the tile that holds it, whatever its size."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label as label_components

from napari_hrsam.engine.fields import LogitField
from napari_hrsam.engine.obedience import CONFIDENCE, obey, to_low_res
from napari_hrsam.engine.predictor import Embedding, Predictor, TilePrediction
from napari_hrsam.engine.tile_cache import SeenTile, TileCache
from napari_hrsam.geometry import Box, Tile, TileGrid, coarsest_level
from napari_hrsam.prompts import Prompts
from napari_hrsam.storage.tile_source import PyramidImage

ROOMY_SHARE = 0.8
"""An object moves back to a finer tile if it takes at most this share of the tile's side."""

MAX_COARSER = 3
"""Levels that one prompt may move an object up; the next one may move it further."""

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
    """

    def __init__(
        self,
        image: PyramidImage,
        predictor: Predictor,
        tiles: TileCache,
        *,
        obey_clicks: bool,
    ) -> None:
        self._image = image
        self.shape_yx = image.shape_yx
        self.predictor = predictor
        self.tiles = tiles
        self.obey_clicks = obey_clicks

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
        """Look at an object in the finest tile that holds it.

        An object that reaches the tile's border where the image goes on is looked at again in a
        coarser tile, until it has room; then, if it fits there, in a finer tile centred on it.

        Parameters
        ----------
        tile, obeyed, prior, focused
            As in `look`; the tile holds all prompts.
        finest : int
            Level that the object is not looked at below.

        Returns
        -------
        look : Look
            The one that counts.
        looks : list of Look
            All of them.
        """
        looks = [self.look(tile, obeyed, prior, focused)]
        if obeyed.box is not None:
            # The box says how far the object goes, and the tile holds the box.
            return looks[0], looks
        while self._goes_on(looks[-1], obeyed):
            coarser = self._coarser(looks[-1], obeyed, tile.level + MAX_COARSER)
            if coarser is None:
                break
            # The prior stays behind: it knows nothing of what lies outside its tile.
            looks.append(self.look(coarser, obeyed))
        for level in range(finest, looks[-1].tile.level):
            finer = self._finer(looks[-1], obeyed, level)
            if finer is not None and all(look.tile != finer for look in looks):
                looks.append(self.look(finer, obeyed, self.resampled(looks[-1], finer)))
                if not self._goes_on(looks[-1], obeyed):
                    return looks[-1], looks
                return looks[-2], looks
        return looks[-1], looks

    def resampled(self, look: Look, tile: Tile) -> NDArray[np.float32]:
        """Give the logits of a look as low-resolution logits of another tile."""
        field = LogitField(look.tile, look.logits, self.shape_yx)
        box = Box(tile.y0, tile.x0, tile.y0 + tile.size_px, tile.x0 + tile.size_px)
        return to_low_res(field.sample(tile.level, box))

    def _coarser(self, look: Look, obeyed: Prompts, last: int) -> Tile | None:
        """Return the tile of the next level around the object, if it may be looked at there."""
        level = look.tile.level + 1
        if level > min(last, coarsest_level(self.shape_yx, look.tile.size_px)):
            return None
        corners = _corners(_extent(look, obeyed))
        points = np.concatenate([obeyed.extent_yx(), self._inside(corners)])
        tile = self.grid(look.tile, level).smallest_holding(points)
        return tile if self._image.num_stored_px(tile) <= MAX_READ_PX else None

    def _finer(self, look: Look, obeyed: Prompts, level: int) -> Tile | None:
        """Return the tile of a finer level that has room for the object, if there is one."""
        extent = _extent(look, obeyed)
        room = ROOMY_SHARE * look.tile.size_px * 2.0**level
        if extent.area == 0 or max(extent.shape_yx) > room:
            return None
        points = np.concatenate([obeyed.extent_yx(), self._inside(_corners(extent))])
        return self.grid(look.tile, level).holding(points)

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
