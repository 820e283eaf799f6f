"""A segmenter of a few thousand values, and pixels for it."""

from __future__ import annotations

from dataclasses import replace

import torch

from napari_hrsam.modeling.configs import HRSAMConfig, PromptDecoderConfig
from napari_hrsam.modeling.efficientnet import STEM_CHANNELS
from napari_hrsam.modeling.models import ModelConfig
from napari_hrsam.modeling.segmenter import Segmenter

ENCODER = HRSAMConfig(
    embed_dim=16,
    depth=2,
    num_heads=2,
    window_size=4,
    state_dim=3,
    stage_ends=(1,),
    out_channels=16,
    pos_grid=0,
)
CONFIG = ModelConfig(
    name="small",
    description="for tests",
    image_encoder=ENCODER,
    decoder=PromptDecoderConfig(embed_dim=16, num_heads=2, mlp_dim=24, iou_head_dim=12),
    tile_px=64,
)
STEM_CONFIG = replace(
    CONFIG,
    image_encoder=replace(ENCODER, stem="efficientnet-lite0"),
    decoder=replace(CONFIG.decoder, skip_channels=(STEM_CHANNELS[8], STEM_CHANNELS[4])),
    dense_head=True,
)


def build(config: ModelConfig = CONFIG, seed: int = 0) -> Segmenter:
    torch.manual_seed(seed)
    return Segmenter(config).eval()


def pixels(height: int = 64, width: int = 48, batch: int = 1) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (batch, 3, height, width), generator=g).float()
