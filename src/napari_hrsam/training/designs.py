"""Designs of hrsam-tiny that are trained beside one another, and the choice between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from napari_hrsam.errors import ConfigError
from napari_hrsam.modeling.configs import HRSAMConfig
from napari_hrsam.modeling.models import (
    HRSAM_TINY,
    TINY_NO_TRUNK,
    TINY_WIDE_STEM,
    TINY_WIDE_STEM_NO_TRUNK,
    ModelConfig,
)

SAME_QUALITY = 0.005
"""Designs whose qualities differ by no more count as equal."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Design:
    """One network and how it is taught.

    Attributes
    ----------
    config : ModelConfig
    stem_weight : float
        See `click_rounds.ClickConfig`.
    """

    config: ModelConfig
    stem_weight: float = 0.0

    @property
    def has_trunk(self) -> bool:
        """Whether the encoder has blocks of its own behind the stem."""
        return _encoder(self.config).depth > 0

    @property
    def cost(self) -> tuple[int, int]:
        """The smaller, the cheaper a click: where the stem ends, levels of the decoder."""
        return _encoder(self.config).stem_stride, self.config.decoder.context_levels


def _encoder(config: ModelConfig) -> HRSAMConfig:
    assert isinstance(config.image_encoder, HRSAMConfig)
    return config.image_encoder


DESIGNS: dict[str, Design] = {
    # The stem's stride-32 map joins the tokens, as in the prototype.
    "wide-stem": Design(config=TINY_WIDE_STEM),
    "wide-stem-no-trunk": Design(config=TINY_WIDE_STEM_NO_TRUNK),
    # The trunk is the only source of wider context in the encoder.
    "trunk": Design(config=HRSAM_TINY),
    # The same, and it is taught the stem's stride-32 map in the first half of the time.
    "trunk-taught": Design(config=HRSAM_TINY, stem_weight=0.5),
    "no-trunk": Design(config=TINY_NO_TRUNK, stem_weight=0.5),
}


def choose_design(qualities: Mapping[str, float]) -> str:
    """Choose the best design with a trunk; of equal ones the cheapest, then the best.

    Parameters
    ----------
    qualities : mapping of str to float
        By names of `DESIGNS`.

    Raises
    ------
    ConfigError
        If no design with a trunk is among them.
    """
    found = {name: q for name, q in qualities.items() if DESIGNS[name].has_trunk}
    if not found:
        raise ConfigError(f"a design with a trunk must be among the scored ones, got {qualities}")
    near = [name for name, q in found.items() if q >= max(found.values()) - SAME_QUALITY]
    return min(near, key=lambda name: (DESIGNS[name].cost, -found[name]))
