"""SAM mask decoder and its two-way transformer; ours draws the prompts and corrects the mask.

Shape letters: N prompts, T tokens, L image tokens, C channels, M masks, h x w embedding grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_hrsam.modeling.configs import PromptDecoderConfig
from napari_hrsam.modeling.drawn_prompts import PromptMap
from napari_hrsam.modeling.layers import LayerNorm2d
from napari_hrsam.modeling.mask_correction import FINE_CHANNELS, FineCorrection, Surroundings


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
        # One side is a handful of tokens: the plain product is faster than a fused kernel, and with
        # the long side last, so is the softmax.
        scale = q.shape[-1] ** -0.5
        if q.shape[2] > k.shape[2]:
            weights = torch.softmax(k @ q.transpose(-1, -2) * scale, dim=-2).transpose(-1, -2)
        else:
            weights = torch.softmax(q @ k.transpose(-1, -2) * scale, dim=-1)
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoded:
    """What the decoder says of N prompts.

    Attributes
    ----------
    masks : (N, M, 4 h, 4 w) float
        Logits; mask 0 is the single mask, 1.. the multimask output, where that was wanted.
    coarse : (N, M, 4 h, 4 w) float
        The same from the embedding and the prompts alone, before the fine path corrects them;
        SAM's decoder has no fine path and corrects nothing.
    iou : (N, M) float
    mask_tokens : (N, M, C) float
        The tokens that the masks were made from, as they leave the transformer.
    """

    masks: Tensor
    coarse: Tensor
    iou: Tensor
    mask_tokens: Tensor


class MaskDecoder(nn.Module):
    """Image embedding and prompt embeddings to masks and predicted IoU.

    Parameters
    ----------
    config : PromptDecoderConfig
        With ``skip_channels`` the decoder has three parts more than SAM's: `PromptMap` in front
        of the transformer, `Surroundings` behind it, and `FineCorrection` at the end.

    References
    ----------
    Kirillov et al., "Segment Anything", arXiv 2304.02643, appendix A. Stem features behind the
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
        self.fine: FineCorrection | None = None
        if config.skip_channels is not None:
            self.prompt_map = PromptMap(dim)
            self.surroundings = Surroundings(dim, config.context_levels)
            self.fine = FineCorrection(dim // 8, config.skip_channels)
            self.fine_hypernetworks_mlps = nn.ModuleList(
                HeadMlp(dim, dim, FINE_CHANNELS[0], 2) for _ in range(num_masks)
            )

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
        candidates: bool = True,
    ) -> Decoded:
        """Decode the masks of N prompts.

        Parameters
        ----------
        image_embedding : (1 or N, C, h, w) float
        image_pe : (1, C, h, w) float
        sparse : (N, T, C) float
        dense : (N, C, h, w) float
        stride8, stride4 : (1 or N, c, 2 h, 2 w) and (1 or N, c, 4 h, 4 w) float, optional
            Stem maps, already projected by `project_stem`.
        drawn_prompts : (N, 6, 4 h, 4 w) float, optional
            From `draw_prompts`. This and the stem maps are needed by a decoder with
            ``skip_channels`` and not looked at by SAM's.
        point_coords_xy, point_labels : (N, P, 2) float and (N, P) int, optional
            The clicks, for `match_clicks`.
        candidates : bool
            Whether the multimask output is wanted beside the single mask.

        Returns
        -------
        Decoded
        """
        num, (height, width) = sparse.shape[0], image_embedding.shape[2:]
        outputs = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([outputs.expand(num, -1, -1), sparse], dim=1)
        if self.fine is not None:
            assert drawn_prompts is not None
            marked = self.prompt_map(image_embedding, drawn_prompts, point_coords_xy, point_labels)
            dense = dense + marked
        # Turned over once, not in every projection.
        image = (image_embedding + dense).flatten(2).transpose(1, 2).contiguous()
        tokens, image = self.transformer(image, image_pe.flatten(2).transpose(1, 2), tokens)
        image = image.transpose(1, 2).unflatten(2, (height, width))
        if self.fine is not None:
            image = self.surroundings(image + marked)
        upscaled = self.output_upscaling(image)
        num_masks = len(self.mask_tokens.weight) if candidates else 1
        mask_tokens = tokens[:, 1 : 1 + num_masks]
        coarse = masks = _mix(self.output_hypernetworks_mlps, mask_tokens, upscaled)
        if self.fine is not None:
            assert stride8 is not None
            assert stride4 is not None
            fine = self.fine(
                upscaled,
                stride8,
                stride4,
                drawn_prompts,
                coarse[:, :1].detach(),
                point_coords_xy,
                point_labels,
            )
            masks = coarse + _mix(self.fine_hypernetworks_mlps, mask_tokens, fine)
        return Decoded(
            masks=masks,
            coarse=coarse,
            iou=self.iou_prediction_head(tokens[:, 0])[:, :num_masks],
            mask_tokens=mask_tokens,
        )

    def project_stem(self, stride8: Tensor, stride4: Tensor) -> tuple[Tensor, Tensor]:
        """Project the stem maps once per image instead of once per click.

        Parameters
        ----------
        stride8, stride4 : (B, c, H / 8, W / 8) and (B, c, H / 4, W / 4) float

        Returns
        -------
        (B, 32, H / 8, W / 8) and (B, 16, H / 4, W / 4) float
        """
        assert self.fine is not None
        return self.fine.skip8(stride8), self.fine.skip4(stride4)


def _mix(heads: nn.ModuleList, mask_tokens: Tensor, maps: Tensor) -> Tensor:
    """Weigh the channels of (N, C, H, W) by what each head makes of its token: (N, M, H, W).

    Of M tokens (N, M, C), which may be fewer than there are heads.
    """
    tokens = mask_tokens.unbind(1)
    weights = torch.stack([mlp(x) for mlp, x in zip(heads, tokens, strict=False)], dim=1)
    out: Tensor = (weights @ maps.flatten(2)).unflatten(2, maps.shape[2:])
    return out
