"""Coarse masks with the errors that coarse masks have, made from exact ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter

from napari_hrsam.errors import ConfigError, ShapeError

_FARTHEST_PX = 20.0
_STRONGEST = 8.0


@dataclass(frozen=True, kw_only=True, slots=True)
class PriorErrors:
    """What is wrong with a coarse mask. Lengths are in coarse pixels.

    Attributes
    ----------
    displacement_px : float
        Standard deviation of the outline's displacement, which varies smoothly along it.
    reach_px : float
        Over what length it varies.
    shift_px : float
        Displacement outwards of the whole outline.
    smoothing_px : float
        Corners are rounded by a Gaussian of this width.
    blobs : int
        Pieces that are missing, or too much.
    gain : float
        Logits are the signed distance times this, up to 8 either way.
    doubt : float
        Logits are weaker where the outline is displaced: divided by 1 + this per coarse pixel.
    exact : bool
        The distance is that from the outline itself, as confident logits tell it, rather than from
        an outline that runs between coarse pixels.
    """

    displacement_px: float = 1.2
    reach_px: float = 5.0
    shift_px: float = 0.0
    smoothing_px: float = 0.7
    blobs: int = 0
    gain: float = 1.0
    doubt: float = 0.0
    exact: bool = False

    def __post_init__(self) -> None:
        """Check the values."""
        least = min(self.displacement_px, self.smoothing_px, self.blobs, self.doubt)
        if least < 0 or self.reach_px <= 0 or self.gain <= 0:
            raise ConfigError(f"errors must not be negative, reach and gain above 0, got {self}")

    @classmethod
    def draw(cls, rng: np.random.Generator) -> PriorErrors:
        """Draw errors for training: from none, which must be left alone, to far too large."""
        kind = rng.random()
        if kind < 0.2:
            size = rng.uniform(0, 0.15)
        elif kind < 0.87:
            size = rng.uniform(0.15, 2.0)
        else:
            size = rng.uniform(2.0, 3.5)
        return cls(
            displacement_px=size,
            reach_px=float(np.exp(rng.uniform(np.log(1.5), np.log(10)))),
            shift_px=float(rng.normal(0, 0.4 * size)),
            smoothing_px=float(rng.uniform(0, 2) * rng.random()),
            blobs=int(rng.integers(1, 4)) if rng.random() < 0.3 else 0,
            gain=float(np.exp(rng.uniform(np.log(0.4), np.log(4)))),
            doubt=float(rng.uniform(0, 2)) if rng.random() < 0.5 else 0.0,
            exact=bool(rng.random() < 0.6),
        )


def coarse_prior(
    mask: NDArray[np.bool_], factor: int, errors: PriorErrors, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Make logits as a coarser level of a pyramid would give them, interpolated to full size.

    Parameters
    ----------
    mask : (H, W) bool
        Exact.
    factor : int
        Between the levels; H and W are multiples of it.
    errors : PriorErrors
    rng : Generator

    Returns
    -------
    (H, W) float32
        Above 0 is object, if the errors leave it so.

    Raises
    ------
    ShapeError
        If the sides are no multiples of ``factor``.
    """
    height, width = mask.shape
    if height % factor or width % factor or not mask.size:
        raise ShapeError(
            f"mask must have sides that are positive multiples of {factor}, got {height} x "
            f"{width}; pad or crop it"
        )
    depth = _coarse_depth(mask, factor, exact=errors.exact)
    if errors.smoothing_px:
        depth = gaussian_filter(depth, errors.smoothing_px)
    change = np.full_like(depth, errors.shift_px)
    if errors.displacement_px:
        noise = _smooth_noise(depth.shape, errors.reach_px, rng)
        change += np.float32(errors.displacement_px) * noise
    depth += change
    for _ in range(errors.blobs):
        depth += _blob(depth, rng)
    gain = np.float32(errors.gain) / (1 + np.float32(errors.doubt) * np.abs(change))
    logits = np.clip(depth * gain, -_STRONGEST, _STRONGEST)
    return enlarge(logits.astype(np.float32), factor)


def enlarge(coarse: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    """Interpolate bilinearly at the centres of finer pixels, as `MultiscaleMask.sample` does.

    Parameters
    ----------
    coarse : (H, W) float32
    factor : int

    Returns
    -------
    (H * factor, W * factor) float32
    """
    fine: NDArray[np.float32] = F.interpolate(
        torch.from_numpy(coarse)[None, None],
        scale_factor=float(factor),
        mode="bilinear",
        align_corners=False,
    )[0, 0].numpy()
    return fine


def _coarse_depth(mask: NDArray[np.bool_], factor: int, *, exact: bool) -> NDArray[np.float32]:
    """Signed distance to the outline in coarse pixels, above 0 inside."""
    blocks = (mask.shape[0] // factor, factor, mask.shape[1] // factor, factor)
    if exact:
        depth = _depth(mask).reshape(blocks).mean((1, 3)) / np.float32(factor)
    else:
        depth = _depth(mask.reshape(blocks).mean((1, 3), dtype=np.float32) > 0.5)
    clipped: NDArray[np.float32] = np.clip(depth, -_FARTHEST_PX, _FARTHEST_PX)
    return clipped


def _depth(inside: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Signed distance to the outline in pixels, above 0 inside."""
    if inside.all() or not inside.any():
        far = np.float32(sum(inside.shape))
        return np.full(inside.shape, far if inside.all() else -far, np.float32)
    # The outline lies half a pixel from the centres at either side of it.
    depth: NDArray[np.float32] = distance_transform_edt(inside).astype(np.float32)
    depth -= distance_transform_edt(~inside)
    return depth - np.where(inside, np.float32(0.5), np.float32(-0.5))


def _smooth_noise(
    shape: tuple[int, ...], reach_px: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Noise of standard deviation 1 in which points nearer than the reach are alike."""
    noise = gaussian_filter(rng.standard_normal(shape, np.float32), reach_px, mode="wrap")
    # What a Gaussian filter leaves of white noise, which a small crop alone would not tell.
    left: NDArray[np.float32] = noise * np.float32(2 * np.sqrt(np.pi) * reach_px)
    return left


def _blob(depth: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Make a bump, or a dent, near the outline."""
    near = np.argwhere(np.abs(depth) < 6)
    if not len(near):
        return np.zeros_like(depth)
    y, x = near[rng.integers(len(near))]
    rows, columns = np.ogrid[: depth.shape[0], : depth.shape[1]]
    radius = rng.uniform(1, 4)
    height = rng.choice((-1, 1)) * rng.uniform(2, 8)
    squared = (rows - y) ** 2 + (columns - x) ** 2
    bump: NDArray[np.float32] = (height * np.exp(squared / (-2 * radius**2))).astype(np.float32)
    return bump
