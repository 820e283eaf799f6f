"""FocSAM's focus refiner: rewrite an image embedding around one object.

Shape letters: B samples, C channels, h x w embedding grid, N windows, L cells of a window.

References
----------
Huang et al., "FocSAM: Delving Deeply into Focused Objects in Segmenting Anything", arXiv
2405.18706. Where the paper and the released code differ, the released code is followed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_hrsam.errors import ShapeError
from napari_hrsam.modeling.configs import FocusConfig
from napari_hrsam.modeling.deformable import ModulatedDeformConv
from napari_hrsam.modeling.focus_windows import (
    box_map,
    expand_boxes,
    foreground_boxes,
    join_windows,
    select_windows,
    window_cells,
)

MIN_FRACTION = 0.01
"""Least share of selected windows that the token's re-scaling reckons with."""


class ZeroSlotAttention(nn.Module):
    """Multi-head attention that may also attend to nothing.

    A zero key and a zero value follow the projected ones, so the softmax has one more entry whose
    logit is 0. There is no position code.

    Parameters
    ----------
    dim, num_heads : int
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, query: Tensor, source: Tensor) -> Tensor:
        """Attend from (N, Lq, C) to (N, Lk, C)."""
        q = self._heads(self.q_proj(query))
        k = F.pad(self._heads(self.k_proj(source)), (0, 0, 0, 1))
        v = F.pad(self._heads(self.v_proj(source)), (0, 0, 0, 1))
        attended = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return out

    def _heads(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return heads


class PDyReLU(nn.Module):
    """Pixel-wise dynamic ReLU: the larger of two lines whose coefficients depend on the input.

    One line has coefficients for every pixel, from its likeness to the token; the other has them
    for the whole window, from the mean of its pixels.

    Parameters
    ----------
    dim : int
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.pixel_mlp = _tanh_mlp(1, dim)
        self.channel_mlp = _tanh_mlp(dim, dim)
        self.pixel_scale = nn.Parameter(torch.zeros(2 * dim))
        self.pixel_bias = nn.Parameter(torch.zeros(2 * dim))
        self.channel_scale = nn.Parameter(torch.zeros(2 * dim))
        self.channel_bias = nn.Parameter(torch.zeros(2 * dim))

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        """Activate (N, L, C) beside a token (N, 1, C)."""
        likeness = x @ token.transpose(1, 2)
        pixel = self.pixel_mlp(likeness) * self.pixel_scale.exp() + self.pixel_bias
        channel = self.channel_mlp(x.mean(1, keepdim=True)) * self.channel_scale.exp()
        slope, intercept = pixel.chunk(2, dim=-1)
        window_slope, window_intercept = (channel + self.channel_bias).chunk(2, dim=-1)
        return torch.maximum(slope * x + intercept, window_slope * x + window_intercept)


def _tanh_mlp(in_dim: int, dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_dim, dim), nn.ReLU(), nn.Linear(dim, 2 * dim), nn.Tanh())


class TokenBlock(nn.Module):
    """The token of a window learns from its cells: attention and MLP, both residual."""

    def __init__(self, config: FocusConfig) -> None:
        super().__init__()
        dim, hidden = config.embed_dim, int(config.embed_dim * config.mlp_ratio)
        self.norm_q = nn.LayerNorm(dim)
        self.norm_kv = nn.LayerNorm(dim)
        self.attn = ZeroSlotAttention(dim, config.num_heads)
        self.norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, dim))
        self.gamma1 = nn.Parameter(torch.ones(dim))
        self.gamma2 = nn.Parameter(torch.ones(dim))

    def forward(self, token: Tensor, x: Tensor) -> Tensor:
        """Update tokens (N, 1, C) from cells (N, L, C)."""
        token = token + self.gamma1 * self.attn(self.norm_q(token), self.norm_kv(x))
        out: Tensor = token + self.gamma2 * self.mlp(self.norm(token))
        return out


class ImageBlock(nn.Module):
    """The cells of a window learn from each other and its token."""

    def __init__(self, config: FocusConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.attn = ZeroSlotAttention(dim, config.num_heads)
        self.norm1 = nn.LayerNorm(dim)
        self.cls_proj = nn.Sequential(nn.Linear(dim, dim), nn.LayerNorm(dim))
        self.relu1 = PDyReLU(dim)
        self.conv2 = ModulatedDeformConv(dim)
        self.norm2 = nn.GroupNorm(1, dim)
        # Shaped for maps, as in the released checkpoints.
        self.gamma1 = nn.Parameter(torch.ones(1, dim, 1, 1))
        self.gamma2 = nn.Parameter(torch.ones(1, dim, 1, 1))

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        """Update windows (N, C, h, w) from their tokens (N, 1, C)."""
        cells = x.flatten(2).transpose(1, 2)
        mixed = self.relu1(self.norm1(self.attn(cells, cells)), self.cls_proj(token))
        out = x + self.gamma1 * mixed.transpose(1, 2).unflatten(2, x.shape[2:])
        # Both residuals start from x: the first one only shapes what is convolved.
        out = F.relu(self.norm2(self.conv2(out)))
        return x + self.gamma2 * out


class FocusBlock(nn.Module):
    """One round of the refiner over the selected windows.

    Parameters
    ----------
    config : FocusConfig
    is_shifted : bool
        Move the windows by half a window, without a mask at the seam.
    is_last : bool
        The token of the last block is not used any more, so it is not re-scaled.
    """

    def __init__(self, config: FocusConfig, *, is_shifted: bool, is_last: bool) -> None:
        super().__init__()
        self.window_size = config.window_size
        self.shift = config.window_size // 2 if is_shifted else 0
        self.img2cls = TokenBlock(config)
        self.cls2img = ImageBlock(config)
        self.cls_scale_proj = None if is_last else nn.Linear(1, 1)
        if self.cls_scale_proj is not None:
            nn.init.ones_(self.cls_scale_proj.weight)
            nn.init.zeros_(self.cls_scale_proj.bias)

    def forward(self, x: Tensor, token: Tensor, focus: Tensor) -> tuple[Tensor, Tensor]:
        """Update embedding and token.

        Parameters
        ----------
        x : (B, C, h, w) float
        token : (B, 1, C) float
        focus : (B, h, w) bool
            Cells of the box; a window with any of them is selected.

        Returns
        -------
        (B, C, h, w) and (B, 1, C) float
        """
        windows = window_cells(x, self.window_size, self.shift)
        is_selected = select_windows(focus, self.window_size, self.shift)
        per_sample = is_selected.shape[1]
        chosen = is_selected.flatten().nonzero()[:, 0]
        tokens = token.repeat_interleave(per_sample, dim=0)
        new_tokens = self.img2cls(tokens[chosen], windows[chosen].flatten(2).transpose(1, 2))
        new_windows = self.cls2img(windows[chosen], new_tokens)
        windows = windows.index_copy(0, chosen, new_windows.to(windows.dtype))
        tokens = tokens.index_copy(0, chosen, new_tokens.to(tokens.dtype))
        # Unselected windows count with the old token.
        mean = tokens.unflatten(0, (-1, per_sample)).mean(1)
        if self.cls_scale_proj is not None:
            mean = token + self._stretch(is_selected) * (mean - token)
        return join_windows(windows, x.shape[2:], self.shift), mean

    def _stretch(self, is_selected: Tensor) -> Tensor:
        """Factor (B, 1, 1) against the dilution of the mean by unselected windows."""
        assert self.cls_scale_proj is not None
        with torch.autocast(is_selected.device.type, enabled=False):
            weight = self.cls_scale_proj.weight
            fraction = is_selected.to(weight.dtype).mean(1).clamp(min=MIN_FRACTION)
            stretch: Tensor = self.cls_scale_proj(-fraction.log()[:, None, None]).exp()
        return stretch


class FocusRefiner(nn.Module):
    """Rewrite the embedding of an image for one object, in windows around its prediction.

    Parameters
    ----------
    config : FocusConfig
    """

    def __init__(self, config: FocusConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_proj = nn.Conv2d(config.embed_dim, config.embed_dim, 1)
        self.token_proj = nn.Linear(config.embed_dim, config.embed_dim)
        self.blocks = nn.ModuleList(
            FocusBlock(config, is_shifted=i % 2 == 1, is_last=i == config.depth - 1)
            for i in range(config.depth)
        )

    def forward(
        self,
        embedding: Tensor,
        token: Tensor,
        coarse_logits: Tensor,
        image_hw: tuple[int, int],
        box_expansion: tuple[float, float] | None = None,
    ) -> Tensor:
        """Refine the embeddings of B objects; nothing given is changed.

        Parameters
        ----------
        embedding : (B, C, h, w) float
            One per object.
        token : (B, 1, C) float
            The decoder's mask token of the coarse prediction.
        coarse_logits : (B, 1, H / 4, W / 4) float
            The coarse prediction; above 0 is object.
        image_hw : (int, int)
            Height and width of the encoded image in pixels.
        box_expansion : (float, float), optional
            Factors on height and width of the box; ``config.box_expansion`` by default.

        Returns
        -------
        (B, C, h, w) float

        Raises
        ------
        ShapeError
            If the shapes do not belong together.
        """
        self._check(embedding, token, coarse_logits)
        expansion = box_expansion or (self.config.box_expansion, self.config.box_expansion)
        boxes = expand_boxes(foreground_boxes(coarse_logits, image_hw), image_hw, expansion)
        height, width = embedding.shape[2:]
        focus = box_map(boxes, image_hw, (height, width)).to(embedding.device)
        x: Tensor = self.embed_proj(embedding)
        t: Tensor = self.token_proj(token)
        for block in self.blocks:
            x, t = block(x, t, focus)
        return x

    def _check(self, embedding: Tensor, token: Tensor, logits: Tensor) -> None:
        num, dim = embedding.shape[0], self.config.embed_dim
        expected: Sequence[tuple[int, ...]] = ((num, dim), (num, 1, dim), (num, 1))
        got = (tuple(embedding.shape[:2]), tuple(token.shape), tuple(logits.shape[:2]))
        if tuple(expected) != got or embedding.ndim != 4 or logits.ndim != 4:
            raise ShapeError(
                f"expected embedding ({num}, {dim}, h, w), token ({num}, 1, {dim}) and logits "
                f"({num}, 1, H / 4, W / 4), got {tuple(embedding.shape)}, {tuple(token.shape)} "
                f"and {tuple(logits.shape)}; give one embedding per object"
            )
