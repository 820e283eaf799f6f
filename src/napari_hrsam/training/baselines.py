"""Classical methods that take the same clicks, as a yardstick for the models.

A baseline stands in the place of the network: the session reads the same tile, keeps the same
clicks, and brings the quarter-resolution answer to level 0 in the same way. The random walker and
the geodesic distance are scikit-image's; GrabCut needs OpenCV (extra `baselines`).

References
----------
Grady, Random walks for image segmentation, IEEE TPAMI 28:1768 (2006). Rother, Kolmogorov and
Blake, "GrabCut": interactive foreground extraction using iterated graph cuts, SIGGRAPH 2004.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from skimage.graph import MCP_Geometric
from skimage.segmentation import random_walker
from torch import Tensor

from napari_hrsam._optional import require
from napari_hrsam.engine.session import Session
from napari_hrsam.modeling.segmenter import ImageFeatures

if TYPE_CHECKING:
    from napari_hrsam.modeling.segmenter import Segmenter
    from napari_hrsam.training.evaluate import Evaluated

Map = NDArray[np.float32]
Mask = NDArray[np.bool_]

TILE_PX = 512
"""Side of a baseline's tiles: that of the shipped model, so that both see the same pixels."""

STRIDE = 4
"""A baseline works, like the model's mask decoder, on pixels of 4 x 4 tile pixels."""

OUTSIDE_RGB = (255, 0, 254)
"""Colour that the session gives to pixels outside the image, so that they can be told apart."""

LOGIT_RANGE = 8.0
"""Difference of the logits of the probabilities 0 and 1."""

SEED_RADIUS_PX = 2.0
FIRST_SEED_RADIUS_PX = 4.0
"""Radius of the seed of a lone click: it stands for more of the object than a correction does."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What a method is given.

    Attributes
    ----------
    colours : (H, W, 3) float32, 0..255
        The tile's part of the image, averaged over 4 x 4 tile pixels.
    points_yx : (N, 2) float
        Clicks in these pixels, pixel centres at integers.
    positive : (N,) bool
        Signs of the clicks.
    """

    colours: Map
    points_yx: NDArray[np.float64]
    positive: Mask

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        return self.colours.shape[0], self.colours.shape[1]

    def seeds(self, radius_px: float) -> tuple[Mask, Mask]:
        """Draw discs (H, W) around the positive and around the negative clicks; the newest wins."""
        rows, columns = np.ogrid[: self.shape[0], : self.shape[1]]
        inside, outside = np.zeros(self.shape, bool), np.zeros(self.shape, bool)
        for (y, x), positive in zip(self.points_yx, self.positive, strict=True):
            disc = (rows - y) ** 2 + (columns - x) ** 2 <= radius_px**2
            inside[disc], outside[disc] = positive, not positive
        return inside, outside

    def border(self) -> Mask:
        """Mark the outermost pixels (H, W), background where no click says otherwise."""
        border = np.ones(self.shape, bool)
        border[1:-1, 1:-1] = False
        return border


Method = Callable[[Scene], Map]
"""A classical method: scene -> probability of the object, (H, W) float32 in 0..1."""


def random_walk(scene: Scene, *, beta: float = 1000.0, tolerance: float = 1e-2) -> Map:
    """Probability that a random walker from a pixel meets the object's seeds first.

    Parameters
    ----------
    scene : Scene
    beta : float
        How hard it is to cross an edge.
    tolerance : float
        Of the conjugate gradients.

    Returns
    -------
    (H, W) float32, 0..1
    """
    radius = FIRST_SEED_RADIUS_PX if len(scene.positive) == 1 else SEED_RADIUS_PX
    inside, outside = scene.seeds(radius)
    outside |= scene.border() & ~inside
    if not inside.any() or (inside | outside).all():
        return inside.astype(np.float32)
    if np.ptp(scene.colours) == 0:
        # The walker's step lengths are relative to the contrast, and there is none.
        return geodesic(scene)
    labels = np.where(inside, 1, np.where(outside, 2, 0))
    with warnings.catch_warnings():
        # The solver stops at `tolerance`, so that a probability may overshoot by as much.
        warnings.filterwarnings("ignore", message="The probability range is outside")
        found = random_walker(
            scene.colours / 255,
            labels,
            beta=beta,
            mode=_walk_solver(),
            tol=tolerance,
            return_full_prob=True,
            channel_axis=-1,
        )
    probability: Map = np.clip(found[0], 0, 1).astype(np.float32)
    return probability


def geodesic(scene: Scene, *, edge_cost: float = 8.0, smoothing_px: float = 0.7) -> Map:
    """How much nearer the object's seeds are than the background's, when edges are long ways.

    Parameters
    ----------
    scene : Scene
    edge_cost : float
        Extra length of a step over a pixel whose gradient is the mean gradient.
    smoothing_px : float
        Standard deviation of the Gaussian before the gradient.

    Returns
    -------
    (H, W) float32, 0..1
    """
    inside, outside = scene.seeds(1.0)
    outside |= scene.border() & ~inside
    if not inside.any() or not outside.any():
        return inside.astype(np.float32)
    smooth = ndimage.gaussian_filter(scene.colours, (smoothing_px, smoothing_px, 0))
    squares = [ndimage.sobel(smooth, axis) ** 2 for axis in (0, 1)]
    gradient = np.sqrt(np.sum(squares, axis=(0, 3)))
    relative = gradient / max(float(gradient.mean()), 1e-3)
    costs = 1 + edge_cost * np.minimum(relative, 8)
    to_inside, to_outside = (
        MCP_Geometric(costs).find_costs(np.argwhere(seeds))[0] for seeds in (inside, outside)
    )
    share: Map = to_outside / np.maximum(to_inside + to_outside, 1e-6)
    return share.astype(np.float32)


def grab_cut(scene: Scene, *, place_weight: float = 0.3, num_iterations: int = 1) -> Map:
    """Colour mixtures and a graph cut, started from the random walk.

    A cut by colour alone leaks into everything of the object's colour, and a disc around the
    clicks starts it worse. So the random walk starts the cut, and is one of its three channels;
    the others are the two main colour axes, or brightness and smoothed brightness in a grey image.
    Only pieces that hold a positive click are kept, and holes without a negative one are filled.

    Parameters
    ----------
    scene : Scene
    place_weight : float, 0..1
        Weight of the walker's probability beside the colours.
    num_iterations : int
        Of GrabCut.

    Returns
    -------
    (H, W) float32, 0..1

    Raises
    ------
    MissingExtraError
        If OpenCV is not installed.
    """
    cv2: Any = require("cv2", extra="baselines")
    inside, outside = scene.seeds(1.0)
    place = random_walk(scene)
    trimap = np.where(place > 0.5, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    trimap[outside], trimap[inside] = cv2.GC_BGD, cv2.GC_FGD
    is_object = (trimap == cv2.GC_FGD) | (trimap == cv2.GC_PR_FGD)
    if not inside.any() or not (~is_object).any():
        return inside.astype(np.float32)
    channels = np.dstack([*_colour_axes(scene.colours), place * (255 * place_weight)])
    trimap, _, _ = cv2.grabCut(
        np.ascontiguousarray(channels.astype(np.uint8)),
        np.ascontiguousarray(trimap),
        None,
        np.zeros((1, 65)),
        np.zeros((1, 65)),
        num_iterations,
        cv2.GC_INIT_WITH_MASK,
    )
    found = (trimap == cv2.GC_FGD) | (trimap == cv2.GC_PR_FGD)
    pieces, _ = ndimage.label(found)
    found = np.isin(pieces, np.setdiff1d(pieces[inside], 0))
    holes, _ = ndimage.label(ndimage.binary_fill_holes(found) & ~found)
    found |= (holes > 0) & ~np.isin(holes, holes[outside])
    # A soft edge, so that enlarging it draws no stairs.
    soft: Map = ndimage.gaussian_filter(found.astype(np.float32), 0.7)
    return soft


@dataclass(frozen=True, kw_only=True, slots=True)
class BaselineConfig:
    """What a session asks of a model's configuration; `pixel_mean` fills pixels off the image."""

    name: str
    tile_px: int = TILE_PX
    pixel_mean: tuple[float, float, float] = OUTSIDE_RGB
    channel_order: str = "rgb"
    focus: None = None


class ClassicalSegmenter:
    """A classical method in the shape of a `Segmenter`: its embedding is the tile itself.

    Parameters
    ----------
    name : str
        Name in the table.
    method : Method
        What finds the object.
    """

    device = torch.device("cpu")

    def __init__(self, name: str, method: Method) -> None:
        self.config = BaselineConfig(name=name)
        self.fingerprint = name
        self._method = method

    def eval(self) -> ClassicalSegmenter:
        """Return itself: there is nothing to train."""
        return self

    def encode(self, image: Tensor) -> ImageFeatures:
        """Keep the (1, 3, H, W) pixels, which float16 holds exactly, as embedding."""
        return ImageFeatures(embedding=image)

    def decode(
        self,
        features: ImageFeatures,
        *,
        point_coords_xy: Tensor,
        point_labels: Tensor,
        **_: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Find one object from its clicks.

        Parameters
        ----------
        features : ImageFeatures
            From `encode`.
        point_coords_xy : (1, P, 2) float
            Tile pixels, pixel centres at integers.
        point_labels : (1, P) int
            1 foreground, 0 background.

        Returns
        -------
        low_res_logits : (1, 1, H / 4, W / 4) float32
        iou : (1, 1) float32
            0.5: a baseline does not know.
        """
        pixels = features.embedding[0].permute(1, 2, 0).numpy()
        shown = pixels[tuple(map(slice, _image_part(pixels)))]
        points_yx = point_coords_xy[0].numpy()[:, ::-1].astype(np.float64)
        scene = Scene(
            _block_mean(shown), (points_yx + 0.5) / STRIDE - 0.5, point_labels[0].numpy() == 1
        )
        probability = np.zeros((pixels.shape[0] // STRIDE, pixels.shape[1] // STRIDE), np.float32)
        probability[: scene.shape[0], : scene.shape[1]] = self._method(scene)
        logits = torch.from_numpy((probability - 0.5) * LOGIT_RANGE)
        return logits[None, None], torch.tensor([[0.5]])


@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline:
    """A classical method under test; its clicks go through the session like a model's.

    Attributes
    ----------
    name : str
        Name in the table.
    method : Method
        What finds the object.
    """

    name: str
    method: Method

    @property
    def tile_px(self) -> int:
        """Side of its tiles in pixels."""
        return TILE_PX

    def open_session(self, image: NDArray[np.uint8]) -> Session:
        """Start to work on an image.

        Parameters
        ----------
        image : (H, W) or (H, W, 3) uint8
        """
        # The session uses only what a ClassicalSegmenter has.
        return Session(cast("Segmenter", ClassicalSegmenter(self.name, self.method)), image)


def _grab_cut_baseline() -> Baseline:
    require("cv2", extra="baselines")
    return Baseline(name="grabcut", method=grab_cut)


BASELINES: dict[str, Callable[[], Evaluated]] = {
    "random-walker": partial(Baseline, name="random-walker", method=random_walk),
    "geodesic": partial(Baseline, name="geodesic", method=geodesic),
    "grabcut": _grab_cut_baseline,
}
"""Names on the command line, and what makes the baseline."""


def _walk_solver() -> str:
    """Multigrid where pyamg is installed: the same result, several times faster."""
    return "cg_mg" if find_spec("pyamg") else "cg_j"


def _image_part(pixels: NDArray[Any]) -> tuple[int, int]:
    """Height and width of the part of a tile that shows image: the rest is at its end."""
    is_image = (pixels != np.array(OUTSIDE_RGB)).any(axis=-1)
    rows, columns = is_image.any(axis=1), is_image.any(axis=0)
    return int(np.flatnonzero(rows)[-1]) + 1, int(np.flatnonzero(columns)[-1]) + 1


def _block_mean(pixels: NDArray[Any]) -> Map:
    """Average (H, W, 3) over 4 x 4 pixels; what is missing at the end repeats the last row."""
    missing = [(0, -length % STRIDE) for length in pixels.shape[:2]]
    whole = np.pad(pixels, [*missing, (0, 0)], mode="edge").astype(np.float32)
    height, width = whole.shape[0] // STRIDE, whole.shape[1] // STRIDE
    mean: Map = whole.reshape(height, STRIDE, width, STRIDE, 3).mean(axis=(1, 3))
    return mean


def _colour_axes(colours: Map) -> list[Map]:
    """Two maps 0..255: the main axes of the colours, or a grey image and its smoothed copy."""
    centred = colours.reshape(-1, 3) - colours.reshape(-1, 3).mean(axis=0)
    variances, axes = np.linalg.eigh(centred.T @ centred)
    first, second = ((centred @ axes[:, i]).reshape(colours.shape[:2]) for i in (2, 1))
    if variances[1] <= 0.01 * variances[2]:
        second = ndimage.gaussian_filter(first, 2)
    return [_stretched(first), _stretched(second)]


def _stretched(values: NDArray[Any]) -> Map:
    low, high = np.percentile(values, (0.5, 99.5))
    stretched: Map = np.clip((values - low) / max(high - low, 1e-6) * 255, 0, 255)
    return stretched
