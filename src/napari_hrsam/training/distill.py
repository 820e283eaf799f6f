"""Distillation: a teacher's embeddings, computed once, are what a student's encoder learns."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from napari_hrsam.atomic_path import atomic_path
from napari_hrsam.errors import CheckpointError
from napari_hrsam.modeling.segmenter import Segmenter
from napari_hrsam.training.batches import CropSampler
from napari_hrsam.training.settings import DistillConfig

logger = logging.getLogger(__name__)


class TeacherCache:
    """The teacher's embeddings of a fixed set of batches, in a folder.

    Batches are drawn from a seed, so that only embeddings are stored: one float16 file a batch. A
    partial set is completed; a folder made by another teacher, data or settings is refused.

    Parameters
    ----------
    folder : Path
    config : DistillConfig
    teacher : Segmenter
        Loaded, in eval mode.
    sampler : CropSampler
        Source of the crops.
    seed : int
    """

    def __init__(
        self,
        folder: Path,
        config: DistillConfig,
        teacher: Segmenter,
        sampler: CropSampler,
        seed: int,
    ) -> None:
        self.folder, self.config, self.teacher = folder, config, teacher
        self.sampler, self.seed = sampler, seed

    @property
    def channels(self) -> int:
        """Channels of the teacher's embedding."""
        return self.teacher.config.image_encoder.out_channels

    def crops(self, index: int) -> NDArray[np.uint8]:
        """Draw the crops of a batch again: (B, H, W, 3)."""
        return self.sampler.batch(np.random.default_rng([self.seed, index, 2])).images

    def complete(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Compute what is missing.

        Parameters
        ----------
        progress : callable, optional
            Called with batches done and batches in all.

        Raises
        ------
        CheckpointError
            If the folder holds the embeddings of something else.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        made_of = self.folder / "made_of.json"
        stamp = json.dumps(self._stamp(), indent=1)
        if made_of.exists() and made_of.read_text() != stamp:
            raise CheckpointError(
                f"{self.folder} holds embeddings of another teacher or of other crops; delete it, "
                "or choose another output folder"
            )
        made_of.write_text(stamp)
        for index in range(self.config.num_batches):
            path = self._path(index)
            if not path.exists():
                with atomic_path(path) as partial, partial.open("wb") as stream:
                    np.save(stream, self._embed(self.crops(index)))
            if progress is not None:
                progress(index + 1, self.config.num_batches)

    def read(self, index: int) -> tuple[NDArray[np.uint8], Tensor]:
        """Give a batch: crops (B, H, W, 3) and the teacher's embedding (B, C, h, w) float32."""
        try:
            stored = np.load(self._path(index), allow_pickle=False)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{self._path(index)} cannot be read ({error}); delete it and start again, it is "
                "then computed again"
            ) from error
        return self.crops(index), torch.from_numpy(stored).float()

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:06d}.npy"

    def _stamp(self) -> dict[str, object]:
        first = hashlib.sha256(np.ascontiguousarray(self.crops(0)).tobytes()).hexdigest()
        return {
            "teacher": self.teacher.fingerprint,
            "teacher_px": self.config.teacher_px,
            "crops": asdict(self.sampler.config),
            "seed": self.seed,
            "first_batch": first,
        }

    @torch.inference_mode()
    def _embed(self, crops: NDArray[np.uint8]) -> NDArray[np.float16]:
        image = torch.from_numpy(crops).to(self.teacher.device).permute(0, 3, 1, 2).float()
        grid = (image.shape[2] // 16, image.shape[3] // 16)
        if self.config.teacher_px:
            size = (self.config.teacher_px, self.config.teacher_px)
            image = F.interpolate(image, size, mode="bilinear", align_corners=False)
        embedding = self.teacher.encode(image).embedding
        if embedding.shape[2:] != grid:
            embedding = F.adaptive_avg_pool2d(embedding, grid)
        stored: NDArray[np.float16] = embedding.half().cpu().numpy()
        return stored
