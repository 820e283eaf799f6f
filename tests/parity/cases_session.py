"""End-to-end parity: the evaluation loop of HRSAM on one image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from cases_decoder import check_masks, neck_head_config, resize, sam_names
from cases_encoder import Backends, encoder_config
from parity_folders import ErrorTable, ParityFolder, plain_size
from torch import Tensor

from napari_hrsam.modeling.configs import height_width
from napari_hrsam.modeling.models import ModelConfig
from napari_hrsam.modeling.segmenter import Segmenter
from napari_hrsam.training.clicks import click_candidates
from napari_hrsam.training.metrics import mask_iou

TOLERANCE = 1e-4


@dataclass(frozen=True)
class EvaluationGeometry:
    """From an image padded to a multiple of 32 to the encoder's square, and back.

    Attributes
    ----------
    padded_hw : tuple of int
        Size of the normalized image after zero padding: the reference size.
    original_hw : tuple of int
    target_sizes : tuple of int
        Squares the encoder may see; the smallest one that holds the longer side is taken.
    """

    padded_hw: tuple[int, int]
    original_hw: tuple[int, int]
    target_sizes: tuple[int, ...]

    @cached_property
    def side(self) -> int:
        fitting = [size for size in self.target_sizes if size >= max(self.padded_hw)]
        return min(fitting) if fitting else max(self.target_sizes)

    @cached_property
    def resized_hw(self) -> tuple[int, int]:
        scale = self.side / max(self.padded_hw)
        height, width = (int(scale * n + 0.5) for n in self.padded_hw)
        return height, width

    def to_square(self, image: Tensor) -> Tensor:
        """Resize and zero-pad a normalized image (1, 3, h0, w0) to (1, 3, T, T)."""
        image = resize(image, self.resized_hw)
        right, bottom = self.side - image.shape[3], self.side - image.shape[2]
        return F.pad(image, (0, right, 0, bottom))

    def points(self, points_yx: np.ndarray) -> Tensor:
        """Pixels of the original image (P, 2) to the square, (1, P, 2) as (x, y)."""
        factor = np.array(self.resized_hw) / np.array(self.padded_hw)
        scaled = (points_yx * factor)[:, ::-1]
        return torch.tensor(scaled.copy(), dtype=torch.float32)[None]

    def to_image(self, logits: Tensor) -> Tensor:
        """Low-resolution logits (1, 1, h, w) to logits of the original image."""
        square = resize(logits, (self.side, self.side), list(self.resized_hw))
        return resize(square, self.padded_hw, list(self.original_hw))


def check_patch(neck: dict[str, Any], patch_size: int) -> None:
    """The prompt encoder must scale clicks by the encoder's patch, as ours does."""
    cells_hw, pixels_hw = (
        height_width(plain_size(neck[name])) for name in ("image_embed_size", "input_image_size")
    )
    for cells, pixels in zip(cells_hw, pixels_hw, strict=True):
        assert pixels == cells * patch_size, (
            f"input_image_size must be {patch_size} (the patch) times image_embed_size, "
            f"got {pixels} and {cells}"
        )


def build_segmenter(folder: ParityFolder, backends: Backends) -> Segmenter:
    config = folder.config
    encoder = encoder_config(config["backbone"])
    check_patch(config["neck"], encoder.patch_size)
    # The recorded image is normalized already: mean 0 and deviation 1 leave it alone.
    segmenter = Segmenter(
        ModelConfig(
            name=folder.name,
            description="parity",
            image_encoder=encoder,
            decoder=neck_head_config(config["neck"], config["decode_head"]),
            pixel_mean=(0.0, 0.0, 0.0),
            pixel_std=(1.0, 1.0, 1.0),
        )
    )
    segmenter.load_state_dict(sam_names(folder.weights))
    segmenter.image_encoder.attention_backend = backends.attention
    segmenter.image_encoder.scan_backend = backends.scan
    return segmenter.eval()


@torch.inference_mode()
def check_session(folder: ParityFolder, table: ErrorTable, backends: Backends) -> None:
    """Replay the recorded session: every click, with the recorded logits fed back."""
    config = folder.config
    target = config["target_size"]
    geometry = EvaluationGeometry(
        padded_hw=tuple(config["padded_hw"]),
        original_hw=tuple(config["original_hw"]),
        target_sizes=(target,) if isinstance(target, int) else tuple(target),
    )
    normalized = folder.tensor("input_normalised")
    assert tuple(normalized.shape[2:]) == geometry.padded_hw
    segmenter = build_segmenter(folder, backends)
    features = segmenter.encode(geometry.to_square(normalized))
    table.close(
        folder, "embedding", features.embedding, folder.tensor("image_embedding"), TOLERANCE
    )
    clicks, previous = folder.io["clicks_yx_pos"], None
    for step in range(config["num_clicks"]):
        # After a perfect mask there is no new click: the old ones are used again.
        num_clicks = folder.io[f"step{step}.labels"].shape[1]
        points = geometry.points(clicks[:num_clicks, :2])
        theirs = folder.tensor(f"step{step}.points_xy_input")
        table.close(folder, "clicks in the square", points, theirs, TOLERANCE)
        logits, _ = segmenter.decode(
            features,
            point_coords_xy=points,
            point_labels=torch.from_numpy(clicks[:num_clicks, 2])[None],
            mask_logits=previous,
        )
        recorded = folder.tensor(f"step{step}.low_res_logits")[None, None]
        table.close(folder, "low_res_logits", logits, recorded, TOLERANCE)
        mask = folder.tensor(f"step{step}.mask")[None, None]
        check_masks(folder, geometry.to_image(logits), mask, table, TOLERANCE)
        previous = recorded


def check_session_clicks(folder: ParityFolder, table: ErrorTable) -> None:
    """Compare the clicks the recorded masks call for, and the IoU after each of them."""
    clicks = [(int(y), int(x), bool(p)) for y, x, p in folder.io["clicks_yx_pos"]]
    gt = folder.io["gt"][0] > 0
    pred = np.zeros_like(gt)
    for step, click in enumerate(clicks):
        found = click_candidates(pred, gt, [(y, x) for y, x, _ in clicks[:step]])
        pixels = np.argwhere(found.mask)
        table.close(folder, "click candidates", len(pixels), folder.io["num_candidates"][step], 0.0)
        # The recording took the middle one of equal candidates.
        y, x = pixels[len(pixels) // 2]
        table.close(folder, "clicks", (y, x, found.positive), click, 0.0)
        pred = folder.io[f"step{step}.mask"] > 0
        iou = mask_iou(pred, gt)
        table.close(folder, "IoU per click", iou, folder.io["iou_per_click"][step], 1e-6)
