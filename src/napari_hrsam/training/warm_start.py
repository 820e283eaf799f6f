"""Start a model from the weights of a related one: equal layers are copied, new ones stay new."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from napari_hrsam.errors import CheckpointError
from napari_hrsam.modeling.checkpoints import read_state
from napari_hrsam.modeling.focus_refiner import FocusRefiner
from napari_hrsam.modeling.models import ModelConfig
from napari_hrsam.modeling.segmenter import Segmenter
from napari_hrsam.modeling.weight_files import check_state

logger = logging.getLogger(__name__)

_ENCODER = "image_encoder."


@dataclass(frozen=True, kw_only=True, slots=True)
class WarmStart:
    """What `warm_start` did.

    Attributes
    ----------
    copied : tuple of str
        Tensors of the model that were taken over, some widened with zeros.
    new : tuple of str
        Tensors that keep the values they had.
    """

    copied: tuple[str, ...]
    new: tuple[str, ...]


@torch.no_grad()
def warm_start(model: Segmenter, source: Mapping[str, Tensor]) -> WarmStart:
    """Copy what fits from the weights of another model.

    An HRSAM++ model starts from an HRSAM one as nearly the same function: the scan over each map is
    the old scan, the scan over all maps begins as the identity (its output projection is zero), and
    the fusion begins with weight zero on the anchor maps.

    Parameters
    ----------
    model : Segmenter
        Changed in place.
    source : mapping of str to Tensor
        State of the other model.

    Returns
    -------
    WarmStart

    Raises
    ------
    CheckpointError
        If nothing fits.
    """
    renamed = _as_plusplus(source) if _is_plusplus(model) else dict(source)
    copied, new = [], []
    for key, target in model.state_dict().items():
        value = renamed.get(key)
        if value is not None and _fits(key, value, target):
            target.zero_()
            target[tuple(slice(0, n) for n in value.shape)] = value.to(target)
            copied.append(key)
        else:
            new.append(key)
    if not copied:
        raise CheckpointError(
            f"no tensor of the given weights has a name and shape of {model.name!r}; "
            "start from weights of a related model"
        )
    if _is_plusplus(model) and not _is_plusplus_state(source):
        for key, target in model.state_dict().items():
            if re.search(r"ms_mamba_blocks\.\d+\.out_proj\.", key):
                target.zero_()
    return WarmStart(copied=tuple(copied), new=tuple(new))


def take_decoder(student: Segmenter, teacher: Segmenter) -> None:
    """Give a student the prompt encoder and mask decoder of its teacher, where they are alike.

    Parameters
    ----------
    student, teacher : Segmenter
        The student is changed if both have the same decoder configuration; else its decoder stays
        new and is taught afterwards, from clicks. A stem that both have is taken as well, because
        the decoder reads its fine maps.
    """
    if student.config.decoder != teacher.config.decoder:
        return
    student.prompt_encoder.load_state_dict(teacher.prompt_encoder.state_dict())
    student.mask_decoder.load_state_dict(teacher.mask_decoder.state_dict())
    mine, theirs = (getattr(m.image_encoder, "stem", None) for m in (student, teacher))
    if mine is not None and theirs is not None:
        mine.load_state_dict(theirs.state_dict())


@torch.no_grad()
def start_near_identity(refiner: FocusRefiner) -> None:
    """Let a new refiner begin as almost no change of the embedding.

    The refiner has no skip connection, so that with usual initial values training would first have
    to find the embedding again. Its projection starts as the identity and both residual branches
    of every image block with a weight of 0.01. This is our choice: the released values are 1.
    """
    projection = refiner.embed_proj
    projection.weight.copy_(torch.eye(projection.weight.shape[0])[:, :, None, None])
    assert projection.bias is not None
    projection.bias.zero_()
    for name, parameter in refiner.named_parameters():
        if name.endswith(("cls2img.gamma1", "cls2img.gamma2")):
            parameter.fill_(0.01)


def _is_plusplus(model: Segmenter) -> bool:
    return hasattr(model.image_encoder, "ms_mamba_blocks")


def _is_plusplus_state(source: Mapping[str, Tensor]) -> bool:
    return any(key.startswith(f"{_ENCODER}ms_mamba_blocks.") for key in source)


def _as_plusplus(source: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Call the one scan of a stage the scan over each map."""
    old, new = f"{_ENCODER}mamba_blocks.", f"{_ENCODER}ss_mamba_blocks."
    return {new + k.removeprefix(old) if k.startswith(old) else k: v for k, v in source.items()}


def _fits(key: str, value: Tensor, target: Tensor) -> bool:
    if value.shape == target.shape:
        return True
    # [main | anchors]: the main map's columns come first.
    return (
        re.search(r"lateral_convs\.\d+\.0\.weight$", key) is not None
        and value.shape[0] == target.shape[0]
        and value.shape[1] < target.shape[1]
    )


def start_model(config: ModelConfig, init: Sequence[str], *, partly: bool = False) -> Segmenter:
    """Make a model, from weights of its own or of a related model where some are given.

    Parameters
    ----------
    config : ModelConfig
    init : sequence of str
        Weight files, later ones over earlier ones.
    partly : bool
        Take what fits of a file that names this model and does not fit it.

    Raises
    ------
    CheckpointError
        If a file is unreadable, names this model and does not fit it, or has nothing of it.
    """
    model = Segmenter(config)
    if model.focus_refiner is not None:
        start_near_identity(model.focus_refiner)
    new = set(model.state_dict())
    for source in init:
        state, name = read_state(Path(source))
        is_refiner = all(key.startswith("focus_refiner.") for key in state)
        if name == config.name and not is_refiner and not partly:
            check_state(state, model.state_dict(), source, config.name)
        new -= set(warm_start(model, state).copied)
    if init and new:
        logger.info("%d tensors of %s start from new values", len(new), config.name)
    return model
