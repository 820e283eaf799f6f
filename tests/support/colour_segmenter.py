"""A model that finds pixels of the clicked colour, so that the right mask is known."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from napari_hrsam.geometry import BEST_SHARES
from napari_hrsam.modeling.segmenter import ImageFeatures


@dataclass(frozen=True)
class ColourConfig:
    name: str = "colour"
    tile_px: int = 64
    pixel_mean: tuple[float, float, float] = (10.0, 20.0, 30.0)
    channel_order: str = "rgb"
    focus: None = None


def colour_logits(
    colours: Tensor,
    point_coords_xy: Tensor | None,
    point_labels: Tensor | None,
    boxes_xyxy: Tensor | None,
) -> Tensor:
    """Logits, 3 or -3, of what has the colour of a positive click and lies in the box."""
    logits = torch.full(colours.shape[1:], 3.0 if point_coords_xy is None else -3.0)
    if point_coords_xy is not None and point_labels is not None:
        for xy, label in zip(point_coords_xy[0], point_labels[0], strict=True):
            column, row = ((xy + 0.5) / 4).floor().long().tolist()
            distance = (colours - colours[:, row, column, None, None]).abs().sum(0)
            logits = torch.where(distance < 0.2, 3.0 if label == 1 else -3.0, logits)
    if boxes_xyxy is not None:
        x0, y0, x1, y1 = ((boxes_xyxy[0] + 0.5) / 4).tolist()
        rows = torch.arange(logits.shape[0])[:, None] + 0.5
        columns = torch.arange(logits.shape[1])[None] + 0.5
        inside = (rows > y0) & (rows < y1) & (columns > x0) & (columns < x1)
        logits = torch.where(inside, logits, -3.0)
    return logits


class ColourSegmenter(nn.Module):
    """Object: the colour of a positive click, inside the box, unlike any negative click.

    The prior logits are added with a weight of 0.01, so that tests see whether they arrive.
    """

    fingerprint = "colour-1"

    def __init__(self) -> None:
        super().__init__()
        self.config = ColourConfig()
        self.anchor = nn.Parameter(torch.zeros(1))
        self.num_encoded = 0
        self.priors: list[Tensor | None] = []
        self.nums_points: list[int] = []
        self.predicted_iou = 0.9

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def device(self) -> torch.device:
        return self.anchor.device

    def encode(self, image: Tensor) -> ImageFeatures:
        assert not torch.is_grad_enabled()
        self.num_encoded += 1
        small = image / 255
        return ImageFeatures(embedding=avg_pool2d(small, 16), stride4=avg_pool2d(small, 4))

    def decode(
        self,
        features: ImageFeatures,
        *,
        point_coords_xy: Tensor | None = None,
        point_labels: Tensor | None = None,
        boxes_xyxy: Tensor | None = None,
        mask_logits: Tensor | None = None,
        multimask: bool = False,
    ) -> tuple[Tensor, Tensor]:
        assert features.stride4 is not None
        colours = features.stride4[0]
        self.priors.append(mask_logits)
        self.nums_points.append(0 if point_labels is None else point_labels.shape[1])
        logits = colour_logits(colours, point_coords_xy, point_labels, boxes_xyxy)
        if mask_logits is not None:
            logits = logits + 0.01 * mask_logits[0, 0]
        if not multimask:
            return logits[None, None], torch.tensor([[self.predicted_iou]])
        # Candidates: everything, the object, nothing.
        three = torch.stack([torch.full_like(logits, 3.0), logits, torch.full_like(logits, -3.0)])
        return three[None], torch.tensor([[0.5, self.predicted_iou, 0.1]])


class SizedSegmenter(ColourSegmenter):
    """`ColourSegmenter` that is sure of its mask where the object has its best size."""

    def __init__(self) -> None:
        super().__init__()
        self.config = ColourConfig(tile_px=256)

    def decode(self, features: ImageFeatures, **given: Tensor | None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        logits, _ = super().decode(features, **given)  # type: ignore[arg-type]
        share = (logits > 0).sum().sqrt() / logits.shape[-1]
        low, high = BEST_SHARES
        return logits, torch.tensor([[0.9 if low < share <= high else 0.6]])


@dataclass(frozen=True)
class FocusedConfig(ColourConfig):
    focus: str = "yes"  # type: ignore[assignment]


class FocusedSegmenter(ColourSegmenter):
    """`ColourSegmenter` whose refiner adds the number of its run to the embedding.

    The masks do not depend on that; what was refined and decoded is kept for tests.
    """

    def __init__(self) -> None:
        super().__init__()
        self.config = FocusedConfig()
        self.refined: list[tuple[ImageFeatures, dict[str, Tensor | None]]] = []
        self.decoded: list[tuple[ImageFeatures, dict[str, Tensor | None]]] = []

    def refine(self, features: ImageFeatures, **given: Tensor | None) -> ImageFeatures:
        assert not torch.is_grad_enabled()
        self.refined.append((features, given))
        return replace(features, embedding=features.embedding + len(self.refined))

    def decode(self, features: ImageFeatures, **given: Tensor | None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        self.decoded.append((features, given))
        return super().decode(features, **given)  # type: ignore[arg-type]
