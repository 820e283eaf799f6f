"""One object in one call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.engine.prediction import MAX_DENSE_PX
from napari_hrsam.engine.session import Session
from napari_hrsam.errors import ImageError
from napari_hrsam.geometry import Box
from napari_hrsam.prompts import given_prompts
from napari_hrsam.storage.opening import open_image

if TYPE_CHECKING:
    from napari_hrsam.modeling.segmenter import Segmenter
    from napari_hrsam.storage.embedding_store import EmbeddingStore


def segment(
    array: Any,
    points: Sequence[Sequence[float]] | NDArray[Any] | None = None,
    point_labels: Sequence[bool | int] | NDArray[Any] | None = None,
    box: Sequence[float] | None = None,
    model: Segmenter | str = "hrsam-tiny",
    *,
    level: int | None = None,
    embeddings: EmbeddingStore | None = None,
) -> NDArray[np.bool_]:
    """Segment one object, as a session would draw it from the same prompts one by one.

    Parameters
    ----------
    array : (H, W) or (H, W, 3 or 4) array, PyramidImage, or anything that `open_image` takes
        The image; only the part around the prompts is looked at.
    points : sequence of (y, x), optional
        Clicks in level-0 pixels, in the order in which they are made.
    point_labels : sequence of bool or int, optional
        1 (inside) or 0 (outside) per point; by default all are inside.
    box : (y0, x0, y1, x1), optional
        Half-open box around the object, given before the points.
    model : Segmenter or str
        A loaded model, or a name for `load_model`; the last one that was named is kept in memory
        for the next call.
    level : int, optional
        Level at which to look: 1 halves the image, -1 doubles it. By default full size, or the
        enlargement at which a small image fills the model's tile.
    embeddings : EmbeddingStore, optional
        Where embeddings are taken from and kept. By default they are not kept.

    Returns
    -------
    (H, W) bool

    Raises
    ------
    PromptError
        If there is no prompt, or one is malformed or outside the image.
    ImageError
        If the image is unusable, a stack, or has more than 2**28 pixels.
    """
    image = open_image(array)
    if not set(image.plane_shape) <= {1}:
        raise ImageError(
            f"expected a 2-D image, got one with planes of shape {image.plane_shape}; take a 2-D "
            "slice of the stack, e.g. image[t], or use a Session and name the plane"
        )
    if math.prod(image.shape_yx) > MAX_DENSE_PX:
        raise ImageError(
            f"expected an image of at most {MAX_DENSE_PX:,} pixels for a mask in one array, got "
            f"shape {image.shape_yx}; use a Session, whose predictions are read in parts"
        )
    prompts = given_prompts(points, point_labels, box, image.shape_yx)
    with Session(_kept(model), image, embeddings=embeddings) as session:
        if prompts.box is not None:
            prediction = session.box(prompts.box, level)
        for point, label in zip(prompts.points_yx, prompts.labels, strict=True):
            prediction = session.click(point, label, level)
        prediction = session.refine_outline()
    return prediction.region.read(Box.of_shape(image.shape_yx))


def _kept(model: Segmenter | str) -> Segmenter:
    if not isinstance(model, str):
        return model
    from napari_hrsam.modeling.kept_model import kept_model

    return kept_model(model)
