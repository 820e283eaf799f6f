"""SAM mask decoder and its two-way transformer, with optional stem features and dense prompts.

Shape letters: N prompts, T tokens, L image tokens, C channels, M masks, h x w embedding grid.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_hrsam.modeling.configs import PromptDecoderConfig
from napari_hrsam.modeling.layers import LayerNorm2d, ResidualConv

DENSE_PROMPT_CHANNELS = 6
FINE_CHANNELS = (24, 48, 96)


class TokenAttention(nn.Module):
    """Multi-head attention with an inner width of ``dim / downsample``."""

    def __init__(self, dim: int, num_heads: int, downsample: int = 1) -> None:
        super().__init__()
        inner = dim // downsample
        self.num_heads = num_heads
        self.q_proj = nn.Linear(dim, inner)
        self.k_proj = nn.Linear(dim, inner)
        self.v_proj = nn.Linear(dim, inner)
        self.out_proj = nn.Linear(inner, dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend from (N, Lq, C) to (N, Lk, C)."""
        q, k, v = (
            proj(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for proj, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))
        )
        # One side is a handful of tokens: the plain product is faster than a fused kernel.
        weights = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1)
        out: Tensor = self.out_proj((weights @ v).transpose(1, 2).flatten(2))
        return out


class _ReluMlp(nn.Module):
    """Two-layer MLP of the transformer (keys ``lin1``, ``lin2``)."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(dim, hidden_dim)
        self.lin2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.lin2(F.relu(self.lin1(x)))
        return out


class TwoWayBlock(nn.Module):
    """Tokens attend to themselves and the image, then the image to the tokens (post-norm)."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, *, first: bool) -> None:
        super().__init__()
        self.self_attn = TokenAttention(dim, num_heads)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn_token_to_image = TokenAttention(dim, num_heads, downsample=2)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = _ReluMlp(dim, mlp_dim)
        self.norm3 = nn.LayerNorm(dim)
        self.norm4 = nn.LayerNorm(dim)
        self.cross_attn_image_to_token = TokenAttention(dim, num_heads, downsample=2)
        self.first = first

    def forward(
        self, tokens: Tensor, image: Tensor, token_pe: Tensor, image_pe: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Update tokens (N, T, C) and image (N, L, C)."""
        if self.first:
            # SAM: the first self-attention has neither residual nor position code.
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            q = tokens + token_pe
            tokens = tokens + self.self_attn(q, q, tokens)
        tokens = self.norm1(tokens)
        keys = image + image_pe
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(tokens + token_pe, keys, image))
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = self.norm4(image + self.cross_attn_image_to_token(keys, tokens + token_pe, tokens))
        return tokens, image


class TwoWayTransformer(nn.Module):
    """Stack of `TwoWayBlock` with a last attention from tokens to image."""

    def __init__(self, config: PromptDecoderConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.layers = nn.ModuleList(
            TwoWayBlock(dim, config.num_heads, config.mlp_dim, first=i == 0)
            for i in range(config.depth)
        )
        self.final_attn_token_to_image = TokenAttention(dim, config.num_heads, downsample=2)
        self.norm_final_attn = nn.LayerNorm(dim)

    def forward(self, image: Tensor, image_pe: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Run on image (N, L, C) and tokens (N, T, C); the tokens are their own position code."""
        token_pe = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, token_pe, image_pe)
        attended = self.final_attn_token_to_image(tokens + token_pe, image + image_pe, image)
        return self.norm_final_attn(tokens + attended), image


class HeadMlp(nn.Module):
    """ReLU MLP with ``depth`` layers (keys ``layers.i``)."""

    def __init__(self, dim: int, hidden_dim: int, out_dim: int, depth: int) -> None:
        super().__init__()
        dims = [dim, *[hidden_dim] * (depth - 1), out_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(dims))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., dim) to (..., out_dim)."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        out: Tensor = self.layers[-1](x)
        return out


def _conv_norm(inner: int, outer: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inner, outer, 3, stride=stride, padding=1), LayerNorm2d(outer), nn.GELU()
    )


class FineRefinement(nn.Module):
    """Stem features in the upscaling, and a small pyramid that sees the drawn prompts.

    The pyramid goes down from stride 4 to 16 and back, so that what is drawn by a click can grow
    to the border of an object; the transformer's image tokens join it at stride 16. Not part of
    SAM; see `PromptDecoderConfig.skip_channels` and ``dense_prompts``.
    """

    def __init__(self, config: PromptDecoderConfig, skip_channels: tuple[int, int]) -> None:
        super().__init__()
        c16, c8, c4 = config.embed_dim, config.embed_dim // 4, config.embed_dim // 8
        p4, p8, p16 = FINE_CHANNELS
        self.skip8 = nn.Conv2d(skip_channels[0], c8, 1)
        self.skip4 = nn.Conv2d(skip_channels[1], c4, 1)
        extra = DENSE_PROMPT_CHANNELS if config.dense_prompts else 0
        matches = 2 if config.dense_prompts else 0
        self.enter4 = _conv_norm(c4 + extra + matches, p4)
        self.down8 = _conv_norm(p4, p8, stride=2)
        self.join8 = nn.Conv2d(c8 + matches, p8, 1)
        self.down16 = _conv_norm(p8, p16, stride=2)
        self.join16 = nn.Conv2d(c16 + matches, p16, 1)
        self.deep16 = nn.Sequential(ResidualConv(p16), ResidualConv(p16))
        self.up8 = nn.Conv2d(p16, p8, 1)
        self.deep8 = ResidualConv(p8)
        self.up4 = nn.Conv2d(p8, p4, 1)
        self.leave4 = nn.Conv2d(p4, c4, 3, padding=1)

    def forward(
        self,
        image16: Tensor,
        image8: Tensor,
        image4: Tensor,
        prompts: Tensor | None,
        point_coords_xy: Tensor | None,
        point_labels: Tensor | None,
    ) -> Tensor:
        """Refine the upscaled map.

        Parameters
        ----------
        image16, image8, image4 : (N, C, h, w), (N, C / 4, 2 h, 2 w), (N, C / 8, 4 h, 4 w) float
        prompts : (N, 6, 4 h, 4 w) float, optional
            From `draw_prompts`; None for a decoder without ``dense_prompts``.
        point_coords_xy, point_labels : (N, P, 2) float and (N, P) int, optional

        Returns
        -------
        (N, C / 8, 4 h, 4 w) float
        """
        x4, x8, x16 = image4, image8, image16
        if prompts is not None:
            x4, x8, x16 = (
                torch.cat([x, match_clicks(x, point_coords_xy, point_labels, stride)], dim=1)
                for x, stride in ((image4, 4), (image8, 8), (image16, 16))
            )
            x4 = torch.cat([x4, prompts.to(x4.dtype)], dim=1)
        x4 = self.enter4(x4)
        x8 = self.down8(x4) + self.join8(x8)
        x16 = self.deep16(self.down16(x8) + self.join16(x16))
        x8 = self.deep8(x8 + self.up8(_twice(x16)))
        x4 = F.gelu(x4 + self.up4(_twice(x8)))
        out: Tensor = image4 + self.leave4(x4)
        return out


def match_clicks(
    x: Tensor, point_coords_xy: Tensor | None, point_labels: Tensor | None, stride: int
) -> Tensor:
    """Correlate every cell of a map with the cells that were clicked.

    What looks like a clicked place is the first guess at the object; the two-way transformer can
    express it too, but takes far longer to learn it.

    Parameters
    ----------
    x : (N, C, h, w) float
    point_coords_xy : (N, P, 2) float, optional
        Image pixels.
    point_labels : (N, P) int, optional
        1 foreground, 0 background, -1 padding.
    stride : int
        Image pixels per cell.

    Returns
    -------
    (N, 2, h, w) float, -1..1
        Highest correlation over the channels with a positive click, and with a negative one; 0
        where there is no such click.
    """
    num, channels, height, width = x.shape
    if point_coords_xy is None or point_labels is None or not point_coords_xy.shape[1]:
        return x.new_zeros(num, 2, height, width)
    cells = F.layer_norm(x.permute(0, 2, 3, 1), (channels,)).flatten(1, 2)  # (N, h w, C)
    place = ((point_coords_xy + 0.5) / stride).floor().long()
    row, column = place[..., 1].clamp(0, height - 1), place[..., 0].clamp(0, width - 1)
    index = (row * width + column)[..., None].expand(-1, -1, channels)
    likeness: Tensor = (cells.gather(1, index) @ cells.transpose(1, 2) / channels).to(x.dtype)
    matches: list[Tensor] = []
    for sign in (1, 0):
        is_sign = (point_labels == sign)[..., None]
        best: Tensor = likeness.masked_fill(~is_sign, -1.0).amax(1)
        matches.append(best * is_sign.any(1))
    joined: Tensor = torch.stack(matches, dim=1).unflatten(2, (height, width))
    return joined


def _twice(x: Tensor) -> Tensor:
    doubled: Tensor = F.interpolate(x, scale_factor=2.0, mode="nearest")
    return doubled


def draw_prompts(
    *,
    map_hw: tuple[int, int],
    num: int,
    point_coords_xy: Tensor | None,
    point_labels: Tensor | None,
    boxes_xyxy: Tensor | None,
    mask_logits: Tensor | None,
    like: Tensor,
) -> Tensor:
    """Draw the prompts of N objects on the stride-4 map.

    Returns
    -------
    (N, 6, 4 h, 4 w) float
        Gaussian bumps (maximum over the clicks) of 2 and 8 cells for positive clicks, the same
        for negative ones, the inside of the box, and the squashed prior logits.
    """
    height, width = map_hw
    maps = like.new_zeros(num, DENSE_PROMPT_CHANNELS, height, width)
    if point_coords_xy is not None and point_labels is not None and point_coords_xy.shape[1]:
        # Cell i of a stride-4 map covers pixels 4 i .. 4 i + 3, its centre is at 4 i + 1.5.
        cells = (point_coords_xy.to(like.dtype) - 1.5) / 4
        y = torch.arange(height, device=like.device, dtype=like.dtype)
        x = torch.arange(width, device=like.device, dtype=like.dtype)
        for sign, first in ((1, 0), (0, 2)):
            weight = (point_labels == sign).to(like.dtype)[:, :, None, None]
            for offset, sigma in enumerate((2.0, 8.0)):
                # A Gaussian is separable: rows times columns, one product a click.
                gy = torch.exp(-((y - cells[..., 1:]) ** 2) / (2 * sigma**2))
                gx = torch.exp(-((x - cells[..., :1]) ** 2) / (2 * sigma**2))
                bumps = gy[..., :, None] * gx[..., None, :] * weight
                maps[:, first + offset] = bumps.amax(1)
    if boxes_xyxy is not None:
        edges = (boxes_xyxy.to(like.dtype) - 1.5) / 4
        y = torch.arange(height, device=like.device, dtype=like.dtype)
        x = torch.arange(width, device=like.device, dtype=like.dtype)
        rows = (y >= edges[:, 1:2] - 0.5) & (y <= edges[:, 3:4] + 0.5)
        cols = (x >= edges[:, :1] - 0.5) & (x <= edges[:, 2:3] + 0.5)
        maps[:, 4] = (rows[:, :, None] & cols[:, None, :]).to(like.dtype)
    if mask_logits is not None:
        prior = mask_logits.to(like.dtype)
        if prior.shape[2:] != map_hw:
            prior = F.interpolate(prior, map_hw, mode="bilinear", align_corners=False)
        maps[:, 5] = torch.tanh(prior[:, 0] / 4)
    return maps


class MaskDecoder(nn.Module):
    """Image embedding and prompt embeddings to masks and predicted IoU.

    Parameters
    ----------
    config : PromptDecoderConfig

    References
    ----------
    Kirillov et al., "Segment Anything", arXiv 2304.02643, appendix A. Stem features in the
    upscaling: Ravi et al., "SAM 2", arXiv 2408.00714, section 4.
    """

    def __init__(self, config: PromptDecoderConfig) -> None:
        super().__init__()
        dim, num_masks = config.embed_dim, config.num_multimask + 1
        self.transformer = TwoWayTransformer(config)
        self.iou_token = nn.Embedding(1, dim)
        self.mask_tokens = nn.Embedding(num_masks, dim)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(dim, dim // 4, 2, stride=2),
            LayerNorm2d(dim // 4),
            nn.GELU(),
            nn.ConvTranspose2d(dim // 4, dim // 8, 2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(
            HeadMlp(dim, dim, dim // 8, 3) for _ in range(num_masks)
        )
        self.iou_prediction_head = HeadMlp(
            dim, config.iou_head_dim, num_masks, config.iou_head_depth
        )
        self.fine = FineRefinement(config, config.skip_channels) if config.skip_channels else None

    def forward(
        self,
        image_embedding: Tensor,
        image_pe: Tensor,
        sparse: Tensor,
        dense: Tensor,
        *,
        stride8: Tensor | None = None,
        stride4: Tensor | None = None,
        drawn_prompts: Tensor | None = None,
        point_coords_xy: Tensor | None = None,
        point_labels: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Decode all masks of N prompts.

        Parameters
        ----------
        image_embedding : (1 or N, C, h, w) float
        image_pe : (1, C, h, w) float
        sparse : (N, T, C) float
        dense : (N, C, h, w) float
        stride8, stride4 : (1 or N, c, 2 h, 2 w) and (1 or N, c, 4 h, 4 w) float, optional
            Stem maps, already projected by `project_stem`.
        drawn_prompts : (N, 6, 4 h, 4 w) float, optional
            From `draw_prompts`.
        point_coords_xy, point_labels : (N, P, 2) float and (N, P) int, optional
            The clicks, for `match_clicks`; not needed without ``drawn_prompts``.

        Returns
        -------
        masks : (N, M, 4 h, 4 w) float
            Logits; mask 0 is the single mask, 1.. the multimask output.
        iou : (N, M) float
        mask_tokens : (N, M, C) float
            The tokens that the masks were made from, as they leave the transformer.
        """
        num, (height, width) = sparse.shape[0], image_embedding.shape[2:]
        outputs = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([outputs.expand(num, -1, -1), sparse], dim=1)
        image = (image_embedding + dense).flatten(2).transpose(1, 2)
        tokens, image = self.transformer(image, image_pe.flatten(2).transpose(1, 2), tokens)
        image = image.transpose(1, 2).unflatten(2, (height, width))
        image8, image4 = self._upscale(image, stride8, stride4)
        upscaled = image4
        if self.fine is not None:
            upscaled = self.fine(
                image, image8, image4, drawn_prompts, point_coords_xy, point_labels
            )
        mask_tokens = tokens[:, 1 : outputs.shape[0]]
        weights = torch.stack(
            [mlp(mask_tokens[:, i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)], dim=1
        )
        masks = (weights @ upscaled.flatten(2)).unflatten(2, upscaled.shape[2:])
        return masks, self.iou_prediction_head(tokens[:, 0]), mask_tokens

    def project_stem(self, stride8: Tensor, stride4: Tensor) -> tuple[Tensor, Tensor]:
        """Project the stem maps once per image instead of once per click.

        Parameters
        ----------
        stride8, stride4 : (B, c, H / 8, W / 8) and (B, c, H / 4, W / 4) float

        Returns
        -------
        (B, C / 4, H / 8, W / 8) and (B, C / 8, H / 4, W / 4) float
        """
        assert self.fine is not None
        return self.fine.skip8(stride8), self.fine.skip4(stride4)

    def _upscale(
        self, image: Tensor, stride8: Tensor | None, stride4: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Upscale (N, C, h, w) to (N, C / 4, 2 h, 2 w) and (N, C / 8, 4 h, 4 w)."""
        up1, norm, act1, up2, act2 = self.output_upscaling
        image8 = up1(image)
        if stride8 is not None:
            image8 = image8 + stride8
        image8 = act1(norm(image8))
        image4 = up2(image8)
        if stride4 is not None:
            image4 = image4 + stride4
        return image8, act2(image4)
