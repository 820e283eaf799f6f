"""Designs of hrsam-tiny that are trained beside one another, and the choice between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from napari_hrsam.errors import ConfigError
from napari_hrsam.modeling.configs import HRSAMConfig
from napari_hrsam.modeling.models import HRSAM_TINY, ModelConfig

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
    has_trunk : bool
        Whether the encoder has blocks of its own behind the stem.
    cost : tuple of int
        The smaller, the cheaper a click: where the encoder's stem ends, levels of the decoder.
    """

    config: ModelConfig
    stem_weight: float
    has_trunk: bool
    cost: tuple[int, int]


def _design(
    *, depth: int = 6, stem_stride: int = 16, levels: int = 2, stem_weight: float = 0.0
) -> Design:
    encoder = HRSAM_TINY.image_encoder
    assert isinstance(encoder, HRSAMConfig)
    encoder = replace(
        encoder,
        depth=depth,
        stage_ends=tuple(range(2, depth, 3)),
        stem_stride=stem_stride,
    )
    decoder = replace(HRSAM_TINY.decoder, context_levels=levels)
    return Design(
        config=replace(HRSAM_TINY, image_encoder=encoder, decoder=decoder),
        stem_weight=stem_weight,
        has_trunk=depth > 0,
        cost=(stem_stride, levels),
    )


DESIGNS: dict[str, Design] = {
    # The stem's stride-32 map joins the tokens, as in the prototype.
    "wide-stem": _design(stem_stride=32),
    "wide-stem-no-trunk": _design(stem_stride=32, depth=0),
    # The trunk is the only source of wider context in the encoder.
    "trunk": _design(),
    # The same, and it is taught the stem's stride-32 map in the first half of the time.
    "trunk-taught": _design(stem_weight=0.5),
    "no-trunk": _design(depth=0, stem_weight=0.5),
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
