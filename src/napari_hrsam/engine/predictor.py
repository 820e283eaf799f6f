"""A model seen from outside: NumPy in, NumPy out, one tile at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypedDict, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from napari_hrsam.errors import SessionError, ShapeError
from napari_hrsam.geometry import Tile
from napari_hrsam.modeling.segmenter import ImageFeatures
from napari_hrsam.prompts import Prompts

if TYPE_CHECKING:
    from napari_hrsam.modeling.segmenter import Segmenter

logger = logging.getLogger(__name__)
Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Embedding:
    """What the encoder knows of one tile.

    Attributes
    ----------
    arrays : dict of str to (1, C, h, w) float16
        The maps of `ImageFeatures` that the model has; `Predictor.refine` rewrites the first.
    fingerprint : str
        Of the model that made them.
    tile : Tile
        Where they were made.
    encode_s : float
        Seconds that the encoder took, or reading from disk.
    has_seams : bool
        Whether it was made in four quarters, for lack of memory.
    """

    arrays: dict[str, NDArray[np.float16]]
    fingerprint: str
    tile: Tile
    encode_s: float
    has_seams: bool = False


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TilePrediction:
    """The model's answer in one tile.

    Attributes
    ----------
    logits : (size, size) float32
        At tile resolution; above 0 is object.
    low_res_logits : (size / 4, size / 4) float32
        As the model gave them, to be fed back with the next prompt.
    iou : float
        The model's own estimate of its IoU.
    decode_s : float
        Seconds that the decoder took.
    """

    logits: NDArray[np.float32]
    low_res_logits: NDArray[np.float32]
    iou: float
    decode_s: float


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DenseMaps:
    """What a dense head says of a tile.

    Attributes
    ----------
    maps : (3, size / 2, size / 2) float32, 0..1
        See `dense_head.DENSE_MAPS`; enlarged, as small objects that touch grow together at the
        head's own stride of 4.
    features : (32, size / 4, size / 4) float16
        What they were read off.
    """

    maps: NDArray[np.float32]
    features: NDArray[np.float16]


class _Given(TypedDict):
    """Prompts of one object as `Segmenter.decode` takes them."""

    point_coords_xy: Tensor | None
    point_labels: Tensor | None
    boxes_xyxy: Tensor | None
    mask_logits: Tensor | None


class Predictor:
    """Run a segmenter on tiles without gradients.

    When the accelerator runs out of memory, a tile is encoded in four quarters; when that does not
    help, the model moves to the CPU and stays there. Both are logged as warnings.

    Parameters
    ----------
    segmenter : Segmenter
        Put into evaluation mode.
    """

    def __init__(self, segmenter: Segmenter) -> None:
        self.segmenter = segmenter.eval()

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.segmenter.name

    @property
    def fingerprint(self) -> str:
        """Of the model: two with the same one give the same embeddings."""
        return self.segmenter.fingerprint

    @property
    def tile_px(self) -> int:
        """Side of the tiles that the model takes."""
        return self.segmenter.config.tile_px

    @property
    def refines(self) -> bool:
        """Whether the model has a focus refiner, so that `refine` can be called."""
        return self.segmenter.config.focus is not None

    @property
    def fill(self) -> tuple[int, int, int]:
        """The RGB colour that the model normalises to about 0, for pixels outside the image."""
        mean = self.segmenter.config.pixel_mean
        if self.segmenter.config.channel_order == "bgr":
            mean = mean[2], mean[1], mean[0]
        return round(mean[0]), round(mean[1]), round(mean[2])

    @property
    def map_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the maps that `encode` makes of a tile of `tile_px`."""
        return self.segmenter.map_shapes(self.tile_px)

    def encode(self, pixels: NDArray[np.uint8], tile: Tile) -> Embedding:
        """Embed the pixels of one tile.

        Parameters
        ----------
        pixels : (h, w, 3) uint8
            RGB; h and w multiples of 16.
        tile : Tile
            Where they come from; kept in the embedding.

        Raises
        ------
        ShapeError
            If the pixels are not (h, w, 3) uint8.
        SessionError
            If the model computes NaN or infinity, or memory runs out on the CPU too.
        """
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
            raise ShapeError(
                f"expected pixels as (h, w, 3) uint8, got {pixels.shape} {pixels.dtype}; "
                "read them with TileSource.read(tile)"
            )
        started = time.perf_counter()
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        can_be_cut = all(side % 32 == 0 for side in pixels.shape[:2])
        arrays, has_seams = self._run(
            lambda: (self._encoded(image), False),
            (lambda: (self._encoded_in_quarters(image), True)) if can_be_cut else None,
        )
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise self._not_finite("embedding")
        return Embedding(
            arrays=arrays,
            fingerprint=self.fingerprint,
            tile=tile,
            encode_s=time.perf_counter() - started,
            has_seams=has_seams,
        )

    def decode(
        self, embedding: Embedding, prompts: Prompts, prior_logits: NDArray[np.float32] | None
    ) -> TilePrediction:
        """Predict the mask of one object.

        Parameters
        ----------
        embedding : Embedding
        prompts : Prompts
            In level-0 pixels; at least one.
        prior_logits : (size / 4, size / 4) float32 or None
            Low-resolution logits of the object's earlier prediction in this tile.

        Raises
        ------
        SessionError
            If the model computes NaN or infinity, or memory runs out on the CPU too.
        """
        [single] = self._predictions(embedding, prompts, prior_logits, multimask=False)
        return single

    def candidates(
        self, embedding: Embedding, prompts: Prompts, prior_logits: NDArray[np.float32] | None
    ) -> list[TilePrediction]:
        """Predict the masks that the prompts may mean: a part, the object, what holds it.

        Parameters and errors are those of `decode`.

        Returns
        -------
        list of TilePrediction
            Three, the one with the highest predicted IoU first.
        """
        found = self._predictions(embedding, prompts, prior_logits, multimask=True)
        return sorted(found, key=lambda prediction: -prediction.iou)

    def _predictions(
        self,
        embedding: Embedding,
        prompts: Prompts,
        prior_logits: NDArray[np.float32] | None,
        *,
        multimask: bool,
    ) -> list[TilePrediction]:
        started = time.perf_counter()
        low_res, ious = self._run(
            lambda: self._decoded(embedding, prompts, prior_logits, multimask=multimask)
        )
        if not torch.isfinite(low_res).all():
            raise self._not_finite("mask")
        logits = interpolate(low_res[None], scale_factor=4.0, mode="bilinear")[0]
        decode_s = time.perf_counter() - started
        return [
            TilePrediction(
                logits=logits[index].numpy(),
                low_res_logits=low_res[index].numpy(),
                iou=iou,
                decode_s=decode_s,
            )
            for index, iou in enumerate(ious)
        ]

    def refine_embedding(
        self, embedding: Embedding, prompts: Prompts, prior_logits: NDArray[np.float32] | None
    ) -> Embedding:
        """Rewrite the embedding of a tile for one object; the one given stays as it is.

        Parameters
        ----------
        embedding : Embedding
            From `encode`.
        prompts, prior_logits
            As in `decode`, which takes the result with the same prompts and logits.

        Raises
        ------
        ConfigError
            If the model has no focus refiner.
        SessionError
            As in `decode`.
        """
        refined = self._run(lambda: self._refined(embedding, prompts, prior_logits))
        if not np.isfinite(refined).all():
            raise self._not_finite("refined embedding")
        # The other maps are shared, not copied: the refiner does not change them.
        return replace(embedding, arrays={**embedding.arrays, "embedding": refined})

    def require_dense_head(self) -> None:
        """Raise `ConfigError` unless the model finds all objects at once."""
        self.segmenter.require_dense_head()

    def dense_maps(self, embedding: Embedding) -> DenseMaps:
        """Predict three maps of all objects of a tile.

        Parameters
        ----------
        embedding : Embedding
            From `encode`.

        Raises
        ------
        ConfigError
            If the model has no dense head.
        SessionError
            As in `decode`.
        """

        def predicted() -> tuple[Tensor, Tensor]:
            small, found = self.segmenter.dense_maps_and_features(self._features(embedding))
            maps = interpolate(small, scale_factor=2.0, mode="bilinear")
            return maps[0].float().cpu(), found[0].to(torch.float16).cpu()

        maps, features = self._run(predicted)
        if not (torch.isfinite(maps).all() and torch.isfinite(features).all()):
            raise self._not_finite("maps of all objects")
        return DenseMaps(maps=maps.numpy(), features=features.numpy())

    def _encoded(self, image: Tensor) -> dict[str, NDArray[np.float16]]:
        features = self.segmenter.encode(image.to(self.segmenter.device).float())
        return {
            name: values.to(torch.float16).cpu().numpy()
            for name, values in features.items()
            if values is not None
        }

    def _encoded_in_quarters(self, image: Tensor) -> dict[str, NDArray[np.float16]]:
        """Encode the quarters one by one and join their maps; attention stops at the seams."""
        height, width = (side // 2 for side in image.shape[2:])
        rows = []
        for top in (slice(0, height), slice(height, None)):
            parts = [
                self._encoded(image[:, :, top, left])
                for left in (slice(0, width), slice(width, None))
            ]
            rows.append({name: np.concatenate([p[name] for p in parts], 3) for name in parts[0]})
        return {name: np.concatenate([row[name] for row in rows], 2) for name in rows[0]}

    def _decoded(
        self,
        embedding: Embedding,
        prompts: Prompts,
        prior_logits: NDArray[np.float32] | None,
        *,
        multimask: bool,
    ) -> tuple[Tensor, list[float]]:
        features, given = self._given(embedding, prompts, prior_logits)
        low_res, iou = self.segmenter.decode(features, **given, multimask=multimask)
        return low_res[0].float().cpu(), iou[0].tolist()

    def _refined(
        self, embedding: Embedding, prompts: Prompts, prior_logits: NDArray[np.float32] | None
    ) -> NDArray[np.float16]:
        features, given = self._given(embedding, prompts, prior_logits)
        refined = self.segmenter.refine(features, **given)
        return refined.embedding.to(torch.float16).cpu().numpy()

    def _given(
        self, embedding: Embedding, prompts: Prompts, prior_logits: NDArray[np.float32] | None
    ) -> tuple[ImageFeatures, _Given]:
        """Put embedding and prompts as the segmenter takes them, on its device."""
        device = self.segmenter.device
        prior = None if prior_logits is None else torch.from_numpy(prior_logits)[None, None]
        coords, labels = _points(prompts, embedding.tile, device)
        return self._features(embedding), {
            "point_coords_xy": coords,
            "point_labels": labels,
            "boxes_xyxy": _boxes(prompts, embedding.tile, device),
            "mask_logits": None if prior is None else prior.to(device),
        }

    def _features(self, embedding: Embedding) -> ImageFeatures:
        # One layout, wherever the maps come from: another would round otherwise.
        maps = {
            name: torch.from_numpy(array).contiguous(memory_format=torch.channels_last)
            for name, array in embedding.arrays.items()
        }
        return ImageFeatures(**maps).to(device=self.segmenter.device, dtype=torch.float32)

    def _run(
        self, work: Callable[[], Answer], smaller: Callable[[], Answer] | None = None
    ) -> Answer:
        """Do the work without gradients; when memory is full, in smaller parts or on the CPU."""
        attempts = [work] if smaller is None else [work, smaller]
        for attempt in attempts:
            if attempt is smaller:
                logger.warning(
                    "out of memory on %s: %s encodes this %d px tile in four quarters, whose seams "
                    "may show; close other programs on the device",
                    self.segmenter.device,
                    self.name,
                    self.tile_px,
                )
            try:
                with torch.inference_mode():
                    return attempt()
            except torch.OutOfMemoryError as error:
                if self.segmenter.device.type == "cpu":
                    raise SessionError(
                        f"expected memory for one {self.tile_px} px tile, got out-of-memory on "
                        "the CPU too; close other programs or choose a smaller model"
                    ) from error
        logger.warning(
            "out of memory on %s: %s runs on the CPU from now on, more slowly; close other "
            "programs on the device and load the model again to go back",
            self.segmenter.device,
            self.name,
        )
        self.segmenter.to("cpu")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        with torch.inference_mode():
            return work()

    def _not_finite(self, what: str) -> SessionError:
        return SessionError(
            f"expected finite numbers, got NaN or infinity in the {what} that {self.name} "
            'computed; load the model with precision="float32", or check its weights'
        )


def use_one_thread() -> None:
    """Compute on one core of the CPU: sums over several are rounded in their order."""
    torch.set_num_threads(1)


@contextmanager
def one_thread() -> Iterator[None]:
    """`use_one_thread` meanwhile."""
    before = torch.get_num_threads()
    use_one_thread()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _points(
    prompts: Prompts, tile: Tile, device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    if not prompts.points_yx:
        return None, None
    points_xy = np.ascontiguousarray(tile.to_tile(prompts.points_yx)[:, ::-1], np.float32)
    labels = torch.tensor(prompts.labels, dtype=torch.int64)
    return torch.from_numpy(points_xy).to(device)[None], labels.to(device)[None]


def _boxes(prompts: Prompts, tile: Tile, device: torch.device) -> Tensor | None:
    if prompts.box is None:
        return None
    # A box counts pixel edges, the model's corners are points with pixel centres at integers.
    corners_yx = tile.to_tile(np.reshape(prompts.box, (2, 2)) - 0.5)
    corners_xy = np.ascontiguousarray(corners_yx[:, ::-1], np.float32).reshape(1, 4)
    return torch.from_numpy(corners_xy).to(device)
