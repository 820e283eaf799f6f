"""Touching objects whose true outlines are known, and a network that answers a little differently
in each tile."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from napari_hrsam.engine.predictor import DenseMaps, Embedding
from napari_hrsam.geometry import Tile
from napari_hrsam.modeling.configs import DENSE_FEATURES


def touching_discs(cells: tuple[int, int], seed: int = 0, pitch: int = 22) -> NDArray[np.int32]:
    """Labels of discs of 12 to 34 cells across, most of which touch their neighbours."""
    rng = np.random.default_rng(seed)
    rows, columns = cells[0] // pitch, cells[1] // pitch
    centres = (np.indices((rows, columns)).reshape(2, -1).T + 0.5) * pitch
    centres += rng.uniform(-5, 5, centres.shape)
    radii = rng.uniform(6, 17, len(centres))
    y, x = np.indices(cells)
    labels, best = np.zeros(cells, np.int32), np.ones(cells)
    for number, ((cy, cx), radius) in enumerate(zip(centres, radii, strict=True), 1):
        top, left = max(0, int(cy) - 20), max(0, int(cx) - 20)
        part = slice(top, top + 40), slice(left, left + 40)
        distance = np.hypot(y[part] - cy, x[part] - cx) / radius
        nearer = distance < best[part]
        labels[part][nearer] = number
        best[part][nearer] = distance[nearer]
    return labels


def perfect_maps(labels: NDArray[np.int32]) -> NDArray[np.float32]:
    """The three maps of a dense head that knows the labels."""
    maps = np.zeros((3, *labels.shape), np.float32)
    maps[0], maps[1] = labels > 0, 1
    for number, where in enumerate(ndimage.find_objects(labels), 1):
        if where is None:
            continue
        mask = np.pad(labels[where] == number, 1)
        depth = ndimage.distance_transform_edt(mask)[1:-1, 1:-1]
        mask = mask[1:-1, 1:-1]
        centre = np.unravel_index(depth.argmax(), depth.shape)
        y, x = np.indices(depth.shape)
        away = np.hypot(y - centre[0], x - centre[1])
        maps[1][where][mask] = (away / max(away[mask].max(), 1))[mask]
        maps[2][where][mask] = (depth / depth.max())[mask]
    return maps


class DrawnPredictor:
    """Stands for `Predictor`: its maps are those of known labels, with noise of each tile's own."""

    name, fingerprint, fill = "drawn", "drawn-1", (0, 0, 0)

    def __init__(self, labels: NDArray[np.int32], *, tile_px: int = 128, noise: float = 0.1):
        self._maps, self.tile_px, self._noise = perfect_maps(labels), tile_px, noise
        self.num_encoded = 0

    def require_dense_head(self) -> None:
        """It has one."""

    def encode(self, pixels: NDArray[np.uint8], tile: Tile) -> Embedding:
        self.num_encoded += 1
        side = self.tile_px // 16
        means = pixels.reshape(side, 16, side, 16, 3).mean(axis=(1, 3)).transpose(2, 0, 1)
        arrays = {"embedding": means[None].astype(np.float16)}
        return Embedding(arrays=arrays, fingerprint=self.fingerprint, tile=tile, encode_s=0.0)

    def dense_maps(self, embedding: Embedding) -> DenseMaps:
        tile, side = embedding.tile, self.tile_px // 2
        y, x = tile.y0 // 2, tile.x0 // 2
        maps = np.zeros((3, side, side), np.float32)
        maps[1] = 1
        inside = self._maps[:, y : y + side, x : x + side]
        maps[:, : inside.shape[1], : inside.shape[2]] = inside
        rng = np.random.default_rng([y, x])
        noise = ndimage.gaussian_filter(rng.normal(0, 1, maps.shape), (0, 1, 1))
        found: NDArray[np.float32] = np.clip(maps + noise / noise.std() * self._noise, 0, 1).astype(
            np.float32
        )
        # As for the features: the shape of the real ones, and the colours of the embedding.
        colours = embedding.arrays["embedding"][0].repeat(4, axis=1).repeat(4, axis=2)
        features = np.resize(colours, (DENSE_FEATURES, *colours.shape[1:]))
        return DenseMaps(maps=found, features=features)
