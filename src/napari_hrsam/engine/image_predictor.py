"""A picture encoded once and decoded with prompts: NumPy in, NumPy out, without a session."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.engine.multiscale_mask import MultiscaleMask
from napari_hrsam.engine.prediction import MAX_DENSE_PX
from napari_hrsam.engine.predictor import Embedding, Predictor
from napari_hrsam.errors import ImageError, SessionError, ShapeError
from napari_hrsam.geometry import Box, TileGrid, coarsest_level, filling_level
from napari_hrsam.prompts import given_prompts
from napari_hrsam.storage.opening import open_image

if TYPE_CHECKING:
    from napari_hrsam.modeling.segmenter import Segmenter


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class EncodedImage:
    """What a model knows of a picture.

    Attributes
    ----------
    embedding : Embedding
        Of one tile that holds the whole picture, enlarged or made smaller to fit; its ``arrays``
        are (1, C, h, w) float16.
    shape_yx : (int, int)
        Of the picture.
    """

    embedding: Embedding
    shape_yx: tuple[int, int]

    def __repr__(self) -> str:
        """Tell size and level in one line."""
        height, width = self.shape_yx
        return f"EncodedImage({height} x {width} px, level {self.embedding.tile.level})"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DecodedMasks:
    """Masks of one object.

    Attributes
    ----------
    masks : (N, H, W) bool
        In pixels of the picture; N is 1, or 3 candidates, the likeliest first.
    iou : (N,) float32
        The IoU that the model predicts of each, about 0..1.
    logits : (N, tile_px / 4, tile_px / 4) float32
        Over the whole tile, above 0 is object; one of them is the ``prior`` of a next call.
    """

    masks: NDArray[np.bool_]
    iou: NDArray[np.float32]
    logits: NDArray[np.float32]

    def __repr__(self) -> str:
        """Tell numbers and sizes in one line."""
        return f"DecodedMasks({self.masks.shape} bool, predicted IoU {self.iou.round(2).tolist()})"


class ImagePredictor:
    """Encode pictures and decode masks, for scripts that keep the state themselves.

    A `Session` does more: it finds the level that shows an object best, corrects masks that
    contradict clicks, and commits. This is the model alone, as SAM's own predictor.

    Parameters
    ----------
    model : Segmenter or str
        A loaded model, or a name for `load_model`.

    Examples
    --------
    >>> predictor = ImagePredictor("hrsam-tiny")  # doctest: +SKIP
    >>> encoded = predictor.encode(picture)
    >>> found = predictor.decode(encoded, points=[(120, 80)], multimask=True)
    >>> better = predictor.decode(
    ...     encoded, points=[(120, 80), (9, 9)], point_labels=[1, 0], prior=found.logits[0]
    ... )
    """

    def __init__(self, model: Segmenter | str) -> None:
        if isinstance(model, str):
            from napari_hrsam.modeling.checkpoints import load_model

            model = load_model(model)
        self._predictor = Predictor(model)

    def encode(self, image: Any) -> EncodedImage:
        """Embed a whole picture.

        Parameters
        ----------
        image : (H, W) or (H, W, 3 or 4) array, or anything that `open_image` takes
            Flat, of at most 2**28 pixels. Brightness is mapped as in a session.

        Raises
        ------
        ImageError
            If it is unusable, a stack, or larger.
        ImageReadError, SessionError
            If it cannot be read, or the model fails.
        """
        opened = open_image(image)
        shape_yx, tile_px = opened.shape_yx, self._predictor.tile_px
        if not set(opened.plane_shape) <= {1} or math.prod(shape_yx) > MAX_DENSE_PX:
            raise ImageError(
                f"expected a flat image of at most {MAX_DENSE_PX:,} pixels, got the shape "
                f"{(*opened.plane_shape, *shape_yx)}; use a Session, or give one plane or a part"
            )
        level = coarsest_level(shape_yx, tile_px) or filling_level(shape_yx, tile_px)
        tile = TileGrid(shape_yx, tile_px, level, ()).tile(0, 0)
        pixels = opened.read(tile, self._predictor.fill)
        return EncodedImage(embedding=self._predictor.encode(pixels, tile), shape_yx=shape_yx)

    def decode(
        self,
        encoded: EncodedImage,
        points: Sequence[Sequence[float]] | NDArray[Any] | None = None,
        point_labels: Sequence[bool | int] | NDArray[Any] | None = None,
        box: Sequence[float] | None = None,
        *,
        prior: NDArray[np.float32] | None = None,
        multimask: bool = False,
    ) -> DecodedMasks:
        """Predict the mask of one object.

        Parameters
        ----------
        encoded : EncodedImage
            From `encode` of the same model.
        points : sequence of (y, x), optional
            In pixels of the picture, pixel centres at integers.
        point_labels : sequence of bool or int, optional
            1 (inside) or 0 (outside) per point; by default all are inside.
        box : (y0, x0, y1, x1), optional
            Half-open box around the object.
        prior : (tile_px / 4, tile_px / 4) float32, optional
            Logits of an earlier answer, which the prompts correct.
        multimask : bool
            Three candidates in place of the single mask.

        Raises
        ------
        PromptError
            If there is no prompt, or one is malformed or outside.
        ShapeError
            If the prior has another shape.
        SessionError
            If the embedding is of another model, or the model fails.
        """
        prompts = given_prompts(points, point_labels, box, encoded.shape_yx)
        tile, shape_yx = encoded.embedding.tile, encoded.shape_yx
        side = tile.size_px // 4
        if prior is not None and prior.shape != (side, side):
            raise ShapeError(
                f"expected a prior of shape {(side, side)}, one of the logits that decode gave, "
                f"got {prior.shape}"
            )
        if encoded.embedding.fingerprint != self._predictor.fingerprint:
            raise SessionError(
                f"expected an image that {self._predictor.name} encoded, got one of another model; "
                "encode it again with this one"
            )
        consistent = prompts.consistent()
        if multimask:
            found = self._predictor.candidates(encoded.embedding, consistent, prior)
        else:
            found = [self._predictor.decode(encoded.embedding, consistent, prior)]
        whole = Box.of_shape(shape_yx)
        masks = [MultiscaleMask(tile, answer.logits, shape_yx).read(whole) for answer in found]
        return DecodedMasks(
            masks=np.stack(masks),
            iou=np.array([answer.iou for answer in found], np.float32),
            logits=np.stack([answer.low_res_logits for answer in found]),
        )
