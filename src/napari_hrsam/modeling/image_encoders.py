"""The one door to the image encoders: a configuration in, a network out."""

from __future__ import annotations

from napari_hrsam.modeling.configs import EncoderConfig, HRSAMConfig, TinyViTConfig
from napari_hrsam.modeling.hrsam import HRSAMEncoder
from napari_hrsam.modeling.tiny_vit import TinyViTEncoder
from napari_hrsam.modeling.vit import ViTEncoder

ImageEncoder = HRSAMEncoder | ViTEncoder | TinyViTEncoder
"""Each maps normalized (B, 3, H, W) to (embedding, stride-8 map or None, stride-4 map or None)."""


def build_encoder(config: EncoderConfig) -> ImageEncoder:
    """Make the encoder that a configuration describes, with new weights."""
    if isinstance(config, HRSAMConfig):
        return HRSAMEncoder(config)
    if isinstance(config, TinyViTConfig):
        return TinyViTEncoder(config)
    return ViTEncoder(config)
