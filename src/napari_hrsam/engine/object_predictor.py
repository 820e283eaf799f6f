"""One object seen by the model: in the tile that holds it, whatever its size."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label as label_components

from napari_hrsam.engine.click_correction import CONFIDENCE, enforce_prompts, to_low_res
from napari_hrsam.engine.local_correction import anchored, changed_at
from napari_hrsam.engine.multiscale_mask import MultiscaleMask
from napari_hrsam.engine.predictor import Embedding, Predictor, TilePrediction
from napari_hrsam.engine.tile_cache import CachedTile, TileCache
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
from napari_hrsam.storage.images.tile_source import PyramidImage

KEPT_SHARES = 1 / 16, 0.8
"""An object with several prompts stays in its tile while its share lies between these."""

ROOMY_SHARE = 0.5
"""An object moves on to a finer tile if it takes at most this share of the tile's side."""

MARGIN_PX = 8
"""Pixels of its level between an object and the border of the tile that is chosen for it."""

MAX_LOOKS = 8
"""Tiles that one prompt may look at in search of the right level; the next one may go on.

Few prompts take more than two. From level 0 to an object of tens of thousands of pixels it is six.
"""

DOUBTFUL_IOU = 0.5
"""Below this prediction of its own IoU, the model is asked again further away."""

MAX_READ_PX = 2**25
"""Stored pixels read for a coarser tile at most: images that lack coarse levels have many there."""

MIN_CONTACT_PX = 2
"""Low-resolution pixels along a tile's border from which on an object counts as going on there."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TileResult:
    """What the model says of an object in one tile.

    Attributes
    ----------
    tile : Tile
    logits : (size, size) float32
        At tile resolution, clicks enforced; above 0 is object. Not above 0 where the image lacks
        pixels.
    low_res : (size / 4, size / 4) float32
        To be fed back with the next prompt.
    iou : float
        The model's own estimate.
    focused : Embedding or None
        The tile's embedding refined for the object, if that is done.
    encode_s, refine_s, decode_s : float
        Seconds taken; ``decode_s`` holds ``refine_s``.
    known : (size / 4, size / 4) bool, optional
        Where an object that was taken up lay before: what touches it is the object, clicked or not.
    changed : (size, size) bool, optional
        Where an object that was taken up was corrected.
    """

    tile: Tile
    logits: NDArray[np.float32]
    low_res: NDArray[np.float32]
    iou: float
    focused: Embedding | None
    encode_s: float
    refine_s: float
    decode_s: float
    known: NDArray[np.bool_] | None = None
    changed: NDArray[np.bool_] | None = None


class ObjectPredictor:
    """Looks at an object's prompts in tiles of one image.

    Parameters
    ----------
    image : PyramidImage
        What is annotated.
    predictor : Predictor
        The model.
    tiles : TileCache
        Its embeddings of the image.
    enforce_clicks : bool
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
        enforce_clicks: bool,
        before_look: Callable[[], None] | None = None,
    ) -> None:
        self._image = image
        self.shape_yx = image.shape_yx
        self.predictor = predictor
        self.tiles = tiles
        self.enforce_clicks = enforce_clicks
        self.before_look = before_look

    def grid(self, tile: Tile, level: int) -> TileGrid:
        """Return the grid of a level, on the plane of a tile."""
        return TileGrid(self.shape_yx, tile.size_px, level, tile.plane)

    def predict_tile(
        self,
        tile: Tile,
        prompts: Prompts,
        prior: NDArray[np.float32] | None = None,
        focused: Embedding | None = None,
        *,
        may_focus: bool = True,
    ) -> TileResult:
        """Ask the model in one tile.

        Parameters
        ----------
        tile : Tile
        prompts : Prompts
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
        seen = self.tiles.get(tile)
        told, refine_s = prompts.as_clicks(), 0.0
        if focused is not None and focused.tile != tile:
            focused = None
        if focused is None and may_focus and self.predictor.refines and len(prompts) > 1:
            started = time.perf_counter()
            focused = self.predictor.refine_embedding(seen.embedding, told, prior)
            refine_s = time.perf_counter() - started
        answer = self.predictor.decode(focused or seen.embedding, told, prior)
        return self._result(answer, prompts, seen, focused, refine_s)

    def candidates(
        self,
        tile: Tile,
        prompts: Prompts,
        prior: NDArray[np.float32] | None,
        focused: Embedding | None,
    ) -> list[TileResult]:
        """Ask the model in one tile for the masks that the prompts may mean, likeliest first.

        Parameters and errors are those of `predict_tile`.
        """
        seen = self.tiles.get(tile)
        embedding = seen.embedding if focused is None else focused
        return [
            self._result(answer, prompts, seen, focused, 0.0)
            for answer in self.predictor.candidates(embedding, prompts.as_clicks(), prior)
        ]

    def _result(
        self,
        answer: TilePrediction,
        prompts: Prompts,
        seen: CachedTile,
        focused: Embedding | None,
        refine_s: float,
    ) -> TileResult:
        logits, low_res = self._corrected_logits(answer, prompts, seen)
        if seen.present is not None and not seen.present.all():
            logits = np.where(seen.present, logits, np.minimum(logits, -CONFIDENCE))
        return TileResult(
            tile=seen.embedding.tile,
            logits=logits,
            low_res=low_res,
            iou=answer.iou,
            focused=focused,
            encode_s=seen.encode_s,
            refine_s=refine_s,
            decode_s=refine_s + answer.decode_s,
        )

    def predict(
        self,
        tile: Tile,
        prompts: Prompts,
        prior: NDArray[np.float32] | None,
        focused: Embedding | None,
        finest: int,
    ) -> tuple[TileResult, list[TileResult]]:
        """TileResult at an object at the level that shows it best, whatever level was asked for.

        A new object that is small or large on its tile is looked at again where it takes
        `BEST_SHARES` of it. One of which the model is not sure, with no mask of it in this tile, is
        looked at from further away. The look that the model itself rates highest counts. An object
        with more prompts stays in its tile unless it has outgrown it or is lost in it. Then the
        mask serves as prior for a look one level finer, where that was asked for: outlines get
        better so, but not beyond level 0.

        Parameters
        ----------
        tile, prompts, prior, focused
            As in `predict_tile`; the tile holds all prompts.
        finest : int
            Level that was asked for.

        Returns
        -------
        best : TileResult
            The one that counts.
        results : list of TileResult
            All of them.
        """
        results = [self.predict_tile(tile, prompts, prior, focused)]
        is_new = prior is None and len(prompts) == 1
        # A box says how far the object goes, and the tile was chosen for it.
        while prompts.box is None and len(results) < MAX_LOOKS:
            other = self._better_tile(results, prompts, is_new=is_new, may_be_part=prior is None)
            if other is None:
                break
            # The prior stays behind: it knows nothing of what lies outside its tile, and at a
            # first click masks are better without.
            results.append(self.predict_tile(other, prompts))
        best = max(
            results,
            key=lambda result: (
                not self._goes_on(result, prompts),
                result.iou,
            ),
        )
        finer = self._finer(best, prompts) if best.tile.level > max(finest, 0) else None
        if finer is not None:
            finer_prior = to_low_res(self.resampled(best.tile, best.logits, finer))
            results.append(self.predict_tile(finer, prompts, finer_prior))
            if not self.is_cut(results[-1], prompts):
                best = results[-1]
        return best, results

    def correct(
        self,
        tile: Tile,
        prompts: Prompts,
        new: Prompts | None,
        mask: MultiscaleMask,
        focused: Embedding | None,
        box: Box,
    ) -> tuple[TileResult, list[TileResult]]:
        """Correct an object that was there before: its mask is the prior, in whatever tile.

        The model's answer counts where it differs from the mask around the new prompts. Elsewhere
        the mask stays: most of the other differences would make it worse. While the object
        reaches beyond the tile it is looked at again in a coarser one.

        Parameters
        ----------
        tile, prompts, focused
            As in `predict_tile`; the tile holds all prompts, and the box.
        new : Prompts or None
            The clicks and scribbles that are newer than the mask; None to take the whole answer.
        mask : MultiscaleMask
            The object so far.
        box : Box
            Of the object as it was taken up.

        Returns
        -------
        best, results
            As of `predict`.
        """
        results: list[TileResult] = []
        while True:
            old = self.resampled(mask.tile, mask.logits, tile)
            prior = to_low_res(old)
            told = prompts if new is None else anchored(prompts, prior, tile)
            result = self.predict_tile(tile, told, prior, focused)
            changed = np.ones(old.shape, np.bool_)
            if new is not None:
                changed = changed_at(old > 0, result.logits > 0, new, tile)
            logits = np.where(changed, result.logits, old)
            results.append(
                replace(
                    result,
                    logits=logits,
                    low_res=to_low_res(logits),
                    known=prior > 0,
                    changed=changed,
                )
            )
            if len(results) == MAX_LOOKS or not self._goes_on(results[-1], prompts):
                break
            # Its extent reaches to the border: with a margin, a larger tile holds it.
            extent = _extent(results[-1], prompts).union(box)
            corners = self._inside(_corners(extent.expand(math.ceil(MARGIN_PX * tile.downsample))))
            grid = self.grid(tile, tile.level + 1)
            coarser = grid.smallest_holding(np.concatenate([prompts.extent_yx(), corners]))
            if self._image.num_stored_px(coarser) > MAX_READ_PX:
                break
            tile, focused = coarser, None
        return results[-1], results

    def obey(self, result: TileResult, prompts: Prompts) -> TileResult:
        """Return a result of which every pixel of the scribbles is on its side."""
        if not (self.enforce_clicks and prompts.scribbles):
            return result
        seen = self.tiles.get(result.tile)
        logits = enforce_prompts(result.logits, seen.pixels, result.tile, prompts)
        if seen.present is not None:
            logits = np.where(seen.present, logits, np.minimum(logits, result.logits))
        changed = result.changed
        if changed is not None:
            changed = changed | (logits != result.logits)
        low_res = result.low_res + to_low_res(logits - result.logits)
        return replace(result, logits=logits, low_res=low_res, changed=changed)

    def _fits(self, result: TileResult, prompts: Prompts, shares: tuple[float, float]) -> bool:
        """Whether the object takes a share of the tile's side between two, and ends in the tile."""
        low, high = (share * result.tile.size_px * result.tile.downsample for share in shares)
        return low < max(_extent(result, prompts).shape_yx) <= high and not self._goes_on(
            result, prompts
        )

    def _better_tile(
        self, results: list[TileResult], prompts: Prompts, *, is_new: bool, may_be_part: bool
    ) -> Tile | None:
        """Return the tile in which the object should be looked at next, if in another one."""
        result, seen = results[-1], [result.tile.level for result in results]
        extent, size_px = _extent(result, prompts), result.tile.size_px
        coarsest = coarsest_level(self.shape_yx, size_px)
        level = result.tile.level
        if not self._fits(result, prompts, BEST_SHARES if is_new else KEPT_SHARES):
            level = best_level(max(extent.shape_yx), self.shape_yx, size_px)
            if self._goes_on(result, prompts):
                level = min(max(level, result.tile.level + 1), coarsest)
        if level in seen and may_be_part and result.iou < DOUBTFUL_IOU:
            # What it sees may be a part, or texture, of something much larger. Where a mask was
            # known before, it told how large the object is.
            level = min(max(seen) + 2, coarsest)
        if level in seen:
            return None
        tile = self._around(result, prompts, level)
        if tile is None and level > result.tile.level:
            points = np.concatenate([prompts.extent_yx(), self._inside(_corners(extent))])
            tile = self.grid(result.tile, level).smallest_holding(points)
        is_cheap = tile is not None and self._image.num_stored_px(tile) <= MAX_READ_PX
        return tile if is_cheap else None

    def resampled(self, seen: Tile, logits: NDArray[np.float32], tile: Tile) -> NDArray[np.float32]:
        """Give the logits of one tile as those of another tile."""
        if seen == tile:
            return logits
        box = Box(tile.y0, tile.x0, tile.y0 + tile.size_px, tile.x0 + tile.size_px)
        return MultiscaleMask(seen, logits, self.shape_yx).sample(tile.level, box)

    def _finer(self, result: TileResult, prompts: Prompts) -> Tile | None:
        """Return the tile of the next finer level, if it has room for the object."""
        extent = _extent(result, prompts)
        room = ROOMY_SHARE * result.tile.size_px * result.tile.downsample / 2
        if extent.area == 0 or max(extent.shape_yx) > room:
            return None
        return self._around(result, prompts, result.tile.level - 1)

    def _around(self, result: TileResult, prompts: Prompts, level: int) -> Tile | None:
        """Return a tile of a level that holds the object and its prompts, if there is one.

        The one nearest to the prompts if it will do: it is the same whatever was seen of the
        object at other levels.
        """
        grid = self.grid(result.tile, level)
        # What touches the border of a tile counts as going on there.
        margin = math.ceil(MARGIN_PX * downsample(level))
        extent = _extent(result, prompts)
        corners = self._inside(_corners(extent.expand(margin) if extent.area else extent))
        tile = grid.holding(prompts.extent_yx())
        if tile is not None and all(tile.box0.contains((y, x)) for y, x in corners):
            return tile
        return grid.holding(np.concatenate([prompts.extent_yx(), corners]))

    def _inside(self, points_yx: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.clip(points_yx, 0, np.array(self.shape_yx) - 1.0)

    def is_cut(self, result: TileResult, prompts: Prompts) -> bool:
        """Whether the object reaches beyond the tile."""
        return prompts.box is None and self._goes_on(result, prompts)

    def _goes_on(self, result: TileResult, prompts: Prompts) -> bool:
        """Whether the object touches a border of its tile beyond which there is image."""
        mask = _clicked_part(result, prompts)
        box, (height, width) = result.tile.box0, self.shape_yx
        borders = [
            (box.y0 > 0, mask[0]),
            (box.x0 > 0, mask[:, 0]),
            (box.y1 < height, mask[-1]),
            (box.x1 < width, mask[:, -1]),
        ]
        return any(goes_on and edge.sum() >= MIN_CONTACT_PX for goes_on, edge in borders)

    def _corrected_logits(
        self, answer: TilePrediction, prompts: Prompts, seen: CachedTile
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Correct the logits at tile and at low resolution around contradicted prompts."""
        if not self.enforce_clicks:
            return answer.logits, answer.low_res_logits
        # What strokes say counts in the end, see `obey`: until then it shows where they are wrong.
        tile = seen.embedding.tile
        logits = enforce_prompts(answer.logits, seen.pixels, tile, prompts.as_clicks())
        if logits is answer.logits:
            return answer.logits, answer.low_res_logits
        return logits, answer.low_res_logits + to_low_res(logits - answer.logits)


def _clicked_part(result: TileResult, prompts: Prompts) -> NDArray[np.bool_]:
    """Return the parts of the low-resolution mask that were clicked on or known; all if none is."""
    mask: NDArray[np.bool_] = to_low_res(result.logits) > 0
    parts, _ = label_components(mask)
    last = mask.shape[0] - 1
    clicks = prompts.as_clicks()
    points = [
        tuple(int(place) for place in np.clip(result.tile.to_tile(point) // 4, 0, last))
        for point, positive in zip(clicks.points_yx, clicks.labels, strict=True)
        if positive
    ]
    clicked = {int(parts[place]) for place in points} - {0}
    if result.known is not None:
        clicked |= set(np.unique(parts[result.known]).tolist()) - {0}
    return np.isin(parts, list(clicked)) if clicked else mask


def _extent(result: TileResult, prompts: Prompts) -> Box:
    """Return the box of the object in level-0 pixels."""
    box, scale = Box.around(_clicked_part(result, prompts)), 4 * result.tile.downsample
    y0, x0 = result.tile.box0.y0, result.tile.box0.x0
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
