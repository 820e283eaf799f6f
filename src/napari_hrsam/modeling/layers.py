"""Small layers shared by the encoders and the decoder.

Shape letters: B batch, C channels, H x W token grid, L tokens (= H W), d head dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_hrsam.errors import ShapeError
from napari_hrsam.modeling.configs import Size, height_width


def check_image(image: Tensor, patch: int) -> None:
    """Check the input of an image encoder.

    Parameters
    ----------
    image : (B, 3, H, W) float
    patch : int
        H and W must be positive multiples of it.

    Raises
    ------
    ShapeError
        If the shape does not fit.
    """
    if image.ndim != 4 or image.shape[1] != 3:
        raise ShapeError(
            f"image must be (B, 3, H, W), got {tuple(image.shape)}; "
            "add a batch axis with image[None]"
        )
    if image.shape[2] % patch or image.shape[3] % patch or not image.numel():
        raise ShapeError(
            f"image height and width must be positive multiples of {patch}, got "
            f"{image.shape[2]} x {image.shape[3]}; pad the image on the right and bottom"
        )


class LayerNorm2d(nn.Module):
    """LayerNorm over the channel axis of a (B, C, H, W) map.

    Parameters
    ----------
    channels : int
        Number of channels C.
    eps : float
        Added to the variance; SAM uses 1e-6.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (B, C, H, W) over C; shape and dtype are kept."""
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, (x.shape[-1],), self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


def sam_neck(in_channels: int, out_channels: int) -> nn.Sequential:
    """Build the neck of SAM's encoders, (B, in, H, W) to (B, out, H, W) (keys ``0`` .. ``3``)."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        LayerNorm2d(out_channels),
        nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        LayerNorm2d(out_channels),
    )


def split_windows(x: Tensor, window: Size) -> Tensor:
    """Cut maps into windows, padded with zeros on the right and bottom.

    Parameters
    ----------
    x : (B, H, W, C) float
    window : int or pair of int
        Side of a window in cells, or height and width.

    Returns
    -------
    (B * windows, h, w, C)
        Row-major within each map.
    """
    height, width, channels = x.shape[1:]
    rows, columns = height_width(window)
    x = F.pad(x, (0, 0, 0, -width % columns, 0, -height % rows))
    x = x.unflatten(2, (-1, columns)).unflatten(1, (-1, rows))
    return x.transpose(2, 3).reshape(-1, rows, columns, channels)


def merge_windows(windows: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Undo `split_windows`: maps (B, H, W, C) of the given size, without the padding."""
    height, width = size_hw
    grid = (-(-height // windows.shape[1]), -(-width // windows.shape[2]))
    x = windows.unflatten(0, (-1, *grid)).transpose(2, 3)
    merged: Tensor = x.flatten(3, 4).flatten(1, 2)
    return merged[:, :height, :width]


class Mlp(nn.Module):
    """Linear - GELU (erf) - linear on the last axis (keys ``fc1``, ``fc2`` as in MAE)."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., dim) to (..., dim)."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class TokenDropPath(nn.Module):
    """Stochastic depth that drops single tokens, as the released HRSAM does.

    Parameters
    ----------
    rate : float
        Probability in [0, 1) that the residual branch of one token is dropped in training.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Scale the kept tokens of (B, L, C) by 1 / (1 - rate); identity in eval mode."""
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        mask = torch.empty(*x.shape[:-1], 1, dtype=x.dtype, device=x.device).bernoulli_(keep)
        return x * (mask / keep)


class PatchEmbed(nn.Module):
    """Linear patch projection stored as a convolution (key ``proj``)."""

    def __init__(self, patch_size: int, in_channels: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, embed_dim, patch_size, stride=patch_size)

    def forward(self, image: Tensor) -> Tensor:
        """Map (B, 3, H p, W p) to (B, C, H, W)."""
        out: Tensor = self.proj(image)
        return out


class ResidualConv(nn.Module):
    """Two 3 x 3 convolutions added to their input, starting near the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = LayerNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        # Starts as the identity so that depth costs nothing early in training.
        self.scale = nn.Parameter(torch.full((1, channels, 1, 1), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W)."""
        return torch.addcmul(x, self.scale, self.conv2(F.gelu(self.norm(self.conv1(x)))))


def rotary_frequencies(head_dim: int) -> Tensor:
    """Frequencies of the 2-D rotary embedding, ``10000 ** (-2k / m)`` with m = head_dim / 2.

    Parameters
    ----------
    head_dim : int
        Channels of one head, a multiple of 4 (half for the row, half for the column, in pairs).

    Returns
    -------
    (head_dim / 4,) float32
    """
    half = head_dim // 2
    # On the CPU whatever the default: see `layouts.expected_state`.
    steps = torch.arange(0, half, 2, dtype=torch.float64, device="cpu")
    return 10000.0 ** (-steps / half).float()


def rotary_phases(size_hw: tuple[int, int], freqs: Tensor) -> Tensor:
    """Compute unit complex rotations for every cell of a grid.

    The position unit is half a cell whatever the image size, and the rotation is by the negative
    angle: the released weights were trained with ``y[2k] = x[2k] cos a + x[2k+1] sin a``.

    Parameters
    ----------
    size_hw : tuple of int
        Grid height and width in cells.
    freqs : (d / 4,) float
        From `rotary_frequencies`.

    Returns
    -------
    (H, W, d / 2) complex64 (complex128 for float64 frequencies)
        Row phases first, then column phases.
    """
    height, width = size_hw
    freqs = freqs.to(torch.promote_types(freqs.dtype, torch.float32))
    rows = 0.5 * torch.arange(height, device=freqs.device)[:, None] * freqs
    cols = 0.5 * torch.arange(width, device=freqs.device)[:, None] * freqs
    angle = torch.cat(
        [
            rows[:, None].expand(height, width, -1),
            cols[None].expand(height, width, -1),
        ],
        dim=-1,
    )
    return torch.polar(torch.ones_like(angle), -angle)


def rotate(x: Tensor, phases: Tensor) -> Tensor:
    """Rotate channel pairs (2k, 2k + 1) of a map of heads.

    Parameters
    ----------
    x : (B, H, W, heads, d) float
    phases : (H, W, d / 2) complex

    Returns
    -------
    (B, H, W, heads, d)
        In the dtype of ``x``; computed in float32 or better.
    """
    precise = x.to(torch.promote_types(x.dtype, torch.float32))
    pairs = torch.view_as_complex(precise.reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * phases[:, :, None]).flatten(-2).to(x.dtype)
