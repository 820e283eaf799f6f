"""OutlineRefiner: move a coarse outline onto the edge that the image shows, pixel by pixel.

A small convolutional network for one step of a pyramid, from a mask known at 1/2 or 1/4 of the
size to full size. It knows no kinds of objects: the prior says what is meant, the image where it
ends. It sees `OutlineRefiner.MARGIN_PX` pixels around a pixel and has no statistics of the whole,
so that an outline of any length can be worked through in crops without seams.

Shape letters: B batch, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_hrsam.errors import CheckpointError, ConfigError, ShapeError, WeightsNotFoundError
from napari_hrsam.modeling.configs import OUTLINE_STRIDE
from napari_hrsam.modeling.devices import choose_device
from napari_hrsam.modeling.layers import LayerNorm2d
from napari_hrsam.modeling.registry import WEIGHTS_VARIABLE, weight_folders
from napari_hrsam.modeling.weight_files import check_state, open_weight_file, save_tensors

PRIOR_LIMIT = 6.0
"""The prior is clipped to this strength, either way."""

OUTLINE_WEIGHTS = "outline.safetensors"
"""Name of the shipped weights."""

_MODEL = "outline"
_NUM_BLOCKS = 4
_KERNEL = 5
_MIDDLE, _SPREAD = 127.5, 64.0
_IN_CHANNELS = 5  # RGB, the prior, and its sign made soft


@dataclass(frozen=True, kw_only=True, slots=True)
class OutlineConfig:
    """Size of the network.

    Attributes
    ----------
    half_channels, quarter_channels : int
        Width at a half and at a quarter of the resolution.
    """

    half_channels: int = 24
    quarter_channels: int = 64

    def __post_init__(self) -> None:
        """Check the values."""
        if self.half_channels < 1 or self.quarter_channels < 1:
            raise ConfigError(
                "half_channels and quarter_channels must be at least 1, got "
                f"{self.half_channels} and {self.quarter_channels}"
            )


class OutlineRefiner(nn.Module):
    """Refine the outline of one object.

    A new one returns the prior: its last layer is zero.

    Parameters
    ----------
    config : OutlineConfig, optional

    Attributes
    ----------
    config : OutlineConfig
    """

    STRIDE: ClassVar[int] = OUTLINE_STRIDE
    """Crops must begin at multiples of this, and have sides that are multiples of it."""

    MARGIN_PX: ClassVar[int] = 44
    """Pixels at least this far from the border of what is given do not depend on what lies
    beyond it: two convolutions of radius 1 at half resolution before and after four of radius 2
    at a quarter of it are 40, and the blocks of 4 pixels that belong together add up to 3."""

    def __init__(self, config: OutlineConfig | None = None) -> None:
        super().__init__()
        self.config = config or OutlineConfig()
        half, quarter = self.config.half_channels, self.config.quarter_channels
        self.stem = nn.Conv2d(4 * _IN_CHANNELS, half, 3, padding=1)
        self.edges = nn.Conv2d(half, half, 3, padding=1)
        self.down = nn.Conv2d(4 * half, quarter, 1)
        self.blocks = nn.Sequential(*(_Block(quarter) for _ in range(_NUM_BLOCKS)))
        self.up = nn.Conv2d(quarter, 4 * half, 1)
        self.join = nn.Conv2d(2 * half, half, 3, padding=1)
        self.change = nn.Conv2d(half, 4, 3, padding=1)
        nn.init.zeros_(self.change.weight)
        nn.init.zeros_(self.change.bias)  # type: ignore[arg-type]
        # Convolutions over interleaved channels take a third less time on a CPU.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, image: Tensor, prior_logits: Tensor) -> Tensor:
        """Move the outline.

        Parameters
        ----------
        image : (B, 3, H, W) float32, 0..255
            RGB at the level of the result; H and W multiples of `STRIDE`.
        prior_logits : (B, 1, H, W) float32
            The coarse mask interpolated to the same pixels; above 0 is object.

        Returns
        -------
        (B, 1, H, W) float32
            Logits: the prior, clipped to `PRIOR_LIMIT` either way, and what is added to it.

        Raises
        ------
        ShapeError
            If the shapes are others, or do not belong together.
        """
        _check_shapes(image, prior_logits, self.STRIDE)
        prior = prior_logits.clamp(-PRIOR_LIMIT, PRIOR_LIMIT)
        # Priors come in all strengths: the second channel tells the side of weak ones.
        seen = torch.cat(
            [(image - _MIDDLE) / _SPREAD, prior * (3 / PRIOR_LIMIT), torch.tanh(2 * prior)], dim=1
        )
        x = F.pixel_unshuffle(seen, 2).contiguous(memory_format=torch.channels_last)
        edges = F.relu(self.edges(F.relu(self.stem(x))))
        context = self.blocks(self.down(F.pixel_unshuffle(edges, 2)))
        told = F.pixel_shuffle(self.up(context), 2)
        joined = F.relu(self.join(torch.cat([edges, told], dim=1)))
        return prior + F.pixel_shuffle(self.change(joined), 2)


class _Block(nn.Module):
    """Mix places, then channels, and add (ConvNeXt)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(channels, channels, _KERNEL, padding=_KERNEL // 2, groups=channels)
        self.norm = LayerNorm2d(channels)
        self.widen = nn.Conv2d(channels, 2 * channels, 1)
        self.narrow = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        # Depthwise convolutions have no fast bfloat16 gradient on CPUs: all else may be halved.
        with torch.autocast(x.device.type, enabled=False):
            mixed = self.mix(x.float())
        added: Tensor = self.narrow(F.gelu(self.widen(self.norm(mixed))))
        return x + added


def load_outline_refiner(device: str = "cpu", *, path: Path | None = None) -> OutlineRefiner:
    """Load the shipped refiner, or one from a file; read anew at every call.

    Parameters
    ----------
    device : str
        ``"cpu"``, ``"cuda"``, ``"auto"``, ...
    path : Path, optional
        A file of `save_outline_refiner`. By default `OUTLINE_WEIGHTS` is looked for where the
        weights of models are: the folder named by ``NAPARI_HRSAM_WEIGHTS``, the shipped ones, the
        downloads.

    Returns
    -------
    OutlineRefiner
        In float32, without gradients.

    Raises
    ------
    WeightsNotFoundError
        If the file is not there.
    CheckpointError
        If it is damaged, or holds something else.
    ConfigError
        If there is no such device.
    """
    place = choose_device(device)
    found = path or _find()
    file = open_weight_file(found)
    config = _told_config(file.metadata, found)
    with torch.device("meta"):
        expected = OutlineRefiner(config).state_dict()
    check_state(file.tensors, expected, str(found), _MODEL)
    refiner = OutlineRefiner(config)
    refiner.load_state_dict(dict(file.tensors))
    return refiner.to(place).eval().requires_grad_(False)


def save_outline_refiner(
    refiner: OutlineRefiner,
    path: Path,
    *,
    trained_on: str = "",
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write a refiner as safetensors, atomically.

    Parameters
    ----------
    refiner : OutlineRefiner
    path : Path
        Replaced if it exists.
    trained_on : str
        One line on the data.
    dtype : torch.dtype
        Of the stored values.
    """
    sizes = {name: str(value) for name, value in asdict(refiner.config).items()}
    save_tensors(
        {name: value.to(dtype) for name, value in refiner.state_dict().items()},
        path,
        {"format": "pt", "model": _MODEL, "trained_on": trained_on, **sizes},
    )


def _find() -> Path:
    folders = weight_folders()
    for folder in folders:
        if (folder / OUTLINE_WEIGHTS).is_file():
            return folder / OUTLINE_WEIGHTS
    raise WeightsNotFoundError(
        f"there is no {OUTLINE_WEIGHTS} on this machine; it comes with napari-hrsam or from "
        "`napari-hrsam train --stage outline`: install again, or put the file into the folder "
        f"named by {WEIGHTS_VARIABLE} (looked in {', '.join(map(str, folders))})"
    )


def _told_config(metadata: Mapping[str, str], path: Path) -> OutlineConfig:
    told = metadata.get("model", "nothing told")
    if told != _MODEL:
        raise CheckpointError(
            f"{path} is not an outline refiner: expected a safetensors file of the model "
            f"{_MODEL!r}, got {told!r}; give a file that `napari-hrsam train` wrote"
        )
    names = ("half_channels", "quarter_channels")
    try:
        return OutlineConfig(**{name: int(metadata[name]) for name in names})
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path}: expected {' and '.join(names)} of the refiner in its metadata, got "
            f"{dict(metadata)} ({error}); fetch or train the file again"
        ) from error


def _check_shapes(image: Tensor, prior: Tensor, stride: int) -> None:
    if image.ndim != 4 or image.shape[1] != 3 or prior.shape != (len(image), 1, *image.shape[2:]):
        raise ShapeError(
            "expected image (B, 3, H, W) and prior_logits (B, 1, H, W), got "
            f"{tuple(image.shape)} and {tuple(prior.shape)}; give both the same batch and size"
        )
    if image.shape[2] % stride or image.shape[3] % stride or not image.numel():
        raise ShapeError(
            f"height and width must be positive multiples of {stride}, got {image.shape[2]} x "
            f"{image.shape[3]}; read a larger crop"
        )
