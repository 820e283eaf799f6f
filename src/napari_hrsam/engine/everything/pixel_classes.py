"""Classes of pixels from a few strokes: what looks like the pixels that were stroked.

Shape letters: F features, K classes, N stroked pixels, h x w cells.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, optimize

from napari_hrsam.atomic_path import atomic_path
from napari_hrsam.errors import DataError, PromptError, ShapeError

SIGMAS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Scales of the filter bank, in cells."""

BANK_FEATURES = 7 * len(SIGMAS)
_RADII = tuple(int(4 * sigma + 0.5) for sigma in SIGMAS)

BANK_REACH = max(_RADII) + 2
"""Cells around a cell that its filters look at."""

_PENALTY = 6.0
"""Of the squared weights: chosen with `benchmarks/strokes.py`; a few strokes show few pixels."""

_FORMAT = "napari-hrsam pixel classes 1"


def filter_bank(rgb: NDArray[Any]) -> NDArray[np.float32]:
    """Compute colours, edges, curvatures and texture at several scales.

    A value depends on the cells within `BANK_REACH` alone: a part with that margin has the values
    of the whole.

    Parameters
    ----------
    rgb : (h, w, 3) array, 0..255
        Colours of the cells.

    Returns
    -------
    (35, h, w) float32
        For each of `SIGMAS`, of the smoothed image: the three colours; of their mean the length of
        the gradient, the two eigenvalues of the Hessian, and the standard deviation around it.
    """
    if rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ShapeError(f"expected colours as (h, w, 3), got {rgb.shape}")
    colours = np.moveaxis(np.asarray(rgb, np.float32) / 255, 2, 0)
    grey = colours.mean(axis=0)
    out = np.empty((BANK_FEATURES, *grey.shape), np.float32)

    def smooth(values: NDArray[np.float32], sigma: float, radius: int) -> NDArray[np.float32]:
        smoothed: NDArray[np.float32] = ndimage.gaussian_filter(
            values, sigma, mode="nearest", radius=radius
        )
        return smoothed

    def slope(values: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
        # The same everywhere, also at the border, unlike numpy's gradient.
        difference: NDArray[np.float32] = ndimage.correlate1d(
            values, (-0.5, 0.0, 0.5), axis, mode="nearest"
        )
        return difference

    for index, (sigma, radius) in enumerate(zip(SIGMAS, _RADII, strict=True)):
        maps = out[7 * index : 7 * index + 7]
        for colour in range(3):
            maps[colour] = smooth(colours[colour], sigma, radius)
        smoothed = smooth(grey, sigma, radius)
        by_y, by_x = slope(smoothed, 0), slope(smoothed, 1)
        yy, xx, yx = slope(by_y, 0), slope(by_x, 1), slope(by_y, 1)
        spread = np.sqrt((yy - xx) ** 2 + 4 * yx**2)
        maps[3] = np.hypot(by_y, by_x)
        maps[4], maps[5] = (yy + xx + spread) / 2, (yy + xx - spread) / 2
        maps[6] = np.sqrt(np.maximum(smooth(grey * grey, sigma, radius) - smoothed**2, 0))
    return out


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PixelClassifier:
    """Logistic regression from the features of a pixel to its class.

    Attributes
    ----------
    names : tuple of str
        Of the K classes.
    weights : (K, F) float32
    bias : (K,) float32
    made_from : str
        What the features are: the fingerprint of the model that gave them.
    level : int
        Level of the pixels that were stroked.
    """

    names: tuple[str, ...]
    weights: NDArray[np.float32]
    bias: NDArray[np.float32]
    made_from: str = ""
    level: int = 0

    def probabilities(self, features: NDArray[Any]) -> NDArray[np.float32]:
        """Compute how probable each class is.

        Parameters
        ----------
        features : (F, ...) array

        Returns
        -------
        (K, ...) float32, 0..1
            Adds up to 1 over the classes.

        Raises
        ------
        ShapeError
            If the number of features is not the classifier's.
        """
        if len(features) != self.weights.shape[1]:
            raise ShapeError(
                f"expected {self.weights.shape[1]} features of every pixel, got {len(features)}; "
                "compute them with the model that the classifier was made with"
            )
        flat = np.asarray(features, np.float32).reshape(len(features), -1)
        scores = self.weights @ flat + self.bias[:, None]
        scores -= scores.max(axis=0)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=0)
        return scores.reshape(-1, *features.shape[1:])

    def save(self, path: str | Path) -> Path:
        """Write a JSON file that `load` reads; an existing one is replaced whole.

        Returns
        -------
        Path
        """
        path = Path(path)
        with atomic_path(path) as partial:
            partial.write_text(json.dumps(self.as_dict()))
        return path

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as JSON can hold it."""
        return {
            "format": _FORMAT,
            "names": list(self.names),
            "level": self.level,
            "made_from": self.made_from,
            "bias": [float(value) for value in self.bias],
            "weights": [[float(value) for value in row] for row in self.weights],
        }

    @classmethod
    def load(cls, path: str | Path) -> PixelClassifier:
        """Read a file written by `save`.

        Raises
        ------
        DataError
            If it cannot be read or is no such file.
        """
        try:
            content = json.loads(Path(path).read_text())
        except (OSError, ValueError) as error:
            raise DataError(
                f"expected {path} to be a file of pixel classes ({_FORMAT}), got "
                f"{type(error).__name__}: {error}; save one with PixelClassifier.save"
            ) from error
        return cls.from_dict(content, str(path))

    @classmethod
    def from_dict(cls, content: Any, place: str = "this") -> PixelClassifier:
        """Take what `as_dict` gave.

        Raises
        ------
        DataError
            If it is something else; it names ``place``.
        """
        try:
            found = cls(
                names=tuple(str(name) for name in content["names"]),
                weights=np.array(content["weights"], np.float32),
                bias=np.array(content["bias"], np.float32),
                made_from=str(content["made_from"]),
                level=int(content["level"]),
            )
            problem = found._problem(str(content["format"]))
        except (ValueError, KeyError, TypeError) as error:
            problem = f"{type(error).__name__}: {error}"
        if problem:
            raise DataError(
                f"expected {place} to be a file of pixel classes ({_FORMAT}), got {problem}; "
                "save one with PixelClassifier.save"
            )
        return found

    def _problem(self, format_name: str) -> str:
        """Tell what is wrong with what a file holds; empty if nothing is."""
        num = len(self.names)
        if format_name != _FORMAT:
            return f"the format {format_name!r}"
        if num < 2 or self.weights.ndim != 2 or {len(self.weights), self.bias.size} != {num}:
            return f"{num} names, weights {self.weights.shape} and bias {self.bias.shape}"
        if not (np.isfinite(self.weights).all() and np.isfinite(self.bias).all()):
            return "weights that are not finite"
        return ""


def fit_pixel_classes(
    features: NDArray[Any],
    classes: NDArray[Any],
    names: Sequence[str],
    *,
    made_from: str = "",
    level: int = 0,
) -> PixelClassifier:
    """Learn classes from stroked pixels; a few milliseconds for some hundred pixels.

    The classes count alike, however long their strokes are.

    Parameters
    ----------
    features : (F, N) float
    classes : (N,) int, 0..K-1
        Index into `names` of every stroked pixel.
    names : sequence of str
        At least two.
    made_from, level
        Kept in the classifier.

    Raises
    ------
    ShapeError
        If features and classes do not belong together.
    PromptError
        If a class has no pixel, or there are fewer than two classes.
    DataError
        If a feature is not finite.
    """
    features, classes = np.asarray(features, np.float64), np.asarray(classes)
    if features.ndim != 2 or classes.shape != features.shape[1:]:
        raise ShapeError(
            f"expected features (F, N) and classes (N,), got {features.shape} and {classes.shape}"
        )
    counts = np.bincount(classes, minlength=len(names)) if classes.size else np.zeros(len(names))
    if len(names) < 2 or len(counts) != len(names) or not counts.all():
        missing = [name for name, count in zip(names, counts, strict=False) if not count]
        raise PromptError(
            f"expected strokes in two classes or more, got none in {missing or list(names)}; "
            "draw at least one stroke in each class"
        )
    if not np.isfinite(features).all():
        raise DataError("features must be finite, got NaN or infinite values")
    mean = features.mean(axis=1)
    # A feature that hardly differs between the strokes must not be blown up.
    spread = features.std(axis=1) + 1e-3 * np.abs(features).max(axis=1) + 1e-6
    table = ((features - mean[:, None]) / spread[:, None]).T
    weight = (1 / (len(names) * counts))[classes]
    is_class = np.eye(len(names))[classes]
    shape = (len(names), table.shape[1] + 1)

    def loss(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        guess = flat.reshape(shape)
        scores = table @ guess[:, :-1].T + guess[:, -1]
        scores -= scores.max(axis=1, keepdims=True)
        log_sum = np.log(np.exp(scores).sum(axis=1))
        entropy = log_sum - (scores * is_class).sum(axis=1)
        off = weight[:, None] * (np.exp(scores - log_sum[:, None]) - is_class)
        gradient = np.concatenate([off.T @ table, off.sum(axis=0)[:, None]], axis=1)
        gradient[:, :-1] += _PENALTY * guess[:, :-1]
        value = float(weight @ entropy + _PENALTY / 2 * (guess[:, :-1] ** 2).sum())
        return value, gradient.ravel()

    found = optimize.minimize(
        loss, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 200}
    )
    weights = found.x.reshape(shape)[:, :-1] / spread
    bias = found.x.reshape(shape)[:, -1] - weights @ mean
    return PixelClassifier(
        names=tuple(names),
        weights=weights.astype(np.float32),
        bias=bias.astype(np.float32),
        made_from=made_from,
        level=level,
    )
