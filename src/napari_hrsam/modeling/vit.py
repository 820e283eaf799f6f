"""SAM's ViT image encoder, for images of any size, with BA-SAM's changes on request.

Shape letters: B batch, C channels, H x W token grid, K side of a relative-position table, d head
dim. Maps are channels-last (B, H, W, C) inside.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_hrsam.modeling.attention import AttentionBackend
from napari_hrsam.modeling.biased_attention import QueryPart, biased_attention
from napari_hrsam.modeling.configs import BASAMConfig, Size, ViTConfig, height_width
from napari_hrsam.modeling.efficientnet import PretrainedStem
from napari_hrsam.modeling.layers import (
    PatchEmbed,
    check_image,
    merge_windows,
    sam_neck,
    split_windows,
)
from napari_hrsam.modeling.length_scaling import (
    distance_bias,
    distance_slopes,
    initial_coefficient,
    length_factor,
)


def relative_table(table: Tensor, size: int) -> Tensor:
    """Relative-position vectors of all pairs of ``size`` cells in a row.

    Parameters
    ----------
    table : (2 K - 1, d) float
        Vectors of the offsets -(K - 1) .. K - 1; resized by linear interpolation when K is not
        ``size``.
    size : int
        Cells in a row.

    Returns
    -------
    (size, size, d) float
        Entry (i, k) belongs to the offset i - k of query i and key k.
    """
    length = 2 * size - 1
    if table.shape[0] != length:
        resized = F.interpolate(table.T[None], length, mode="linear", align_corners=False)
        table = resized[0].T
    cells = torch.arange(size, device=table.device)
    return table[cells[:, None] - cells + size - 1]


class RelativeAttention(nn.Module):
    """Attention over a whole map with SAM's decomposed relative positions.

    The term of query (i, j) and key (k, l) is ``q . Rh[i - k] + q . Rw[j - l]`` with the query
    before its scaling.

    Parameters
    ----------
    dim, num_heads : int
    table_side : int or pair of int
        K, side (or height and width) of the map that the tables are for; other maps get them
        interpolated.
    ba : BASAMConfig or None
        Adds ``coefficient`` and the distance bias where they are on. The scaling factor comes with
        the call, since it depends on the map.
    """

    coefficient: nn.Parameter | None

    def __init__(
        self, dim: int, num_heads: int, table_side: Size, ba: BASAMConfig | None = None
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.slope = 0.0 if ba is None else ba.distance_slope
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        height, width = height_width(table_side, "table_side")
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * height - 1, dim // num_heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * width - 1, dim // num_heads))
        self.coefficient = None
        if ba is not None and ba.coefficient:
            self.coefficient = nn.Parameter(torch.full((1,), initial_coefficient(ba)))

    def forward(self, x: Tensor, factor: float = 1.0, backend: AttentionBackend = "auto") -> Tensor:
        """Map (B, H, W, C) to (B, H, W, C), logits scaled by ``factor / sqrt(d)``."""
        batch, height, width, dim = x.shape
        head_dim = dim // self.num_heads
        qkv = self.qkv(x).reshape(batch, height, width, 3, self.num_heads, head_dim)
        query, key, value = qkv.permute(3, 0, 4, 1, 2, 5)
        rows = relative_table(self.rel_pos_h, height)
        columns = relative_table(self.rel_pos_w, width)
        if self.coefficient is not None:
            rows, columns = rows * self.coefficient, columns * self.coefficient
        slopes = distance_slopes(self.num_heads, self.slope).to(x.device) if self.slope else None

        def bias(q: Tensor, part: QueryPart) -> Tensor:
            by_row = torch.einsum("bnijd,ikd->bnijk", q, rows[part.rows].to(q.dtype))
            by_column = torch.einsum("bnijd,jkd->bnijk", q, columns[part.columns].to(q.dtype))
            term = by_row[..., :, None] + by_column[..., None, :]
            term = term.flatten(4).flatten(2, 3)
            if slopes is not None:
                term = term + distance_bias(slopes, (height, width), part.rows, part.columns)
            return term

        attended = biased_attention(
            query,
            key.flatten(2, 3),
            value.flatten(2, 3),
            bias,
            scale=factor * head_dim**-0.5,
            backend=backend,
        )
        out: Tensor = self.proj(attended.permute(0, 2, 3, 1, 4).reshape(x.shape))
        return out


class ViTMlp(nn.Module):
    """Linear - GELU (erf) - linear (keys ``lin1``, ``lin2`` as in SAM)."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(dim, hidden_dim)
        self.lin2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., dim) to (..., dim)."""
        out: Tensor = self.lin2(F.gelu(self.lin1(x)))
        return out


class ViTBlock(nn.Module):
    """Pre-norm transformer block over windows or over the whole map.

    Parameters
    ----------
    config : ViTConfig
    is_global : bool
        Attend over the whole map. Windows are zero-padded on the right and bottom behind the
        LayerNorm, and the padding takes part, as in SAM. BA-SAM's scaling factor and distance bias
        are for global blocks only.
    """

    def __init__(self, config: ViTConfig, *, is_global: bool) -> None:
        super().__init__()
        dim, ba = config.embed_dim, config.ba
        self.window_size = 0 if is_global else config.window_size
        self.norm1 = nn.LayerNorm(dim, eps=config.norm_eps)
        side = config.pos_grid if is_global else config.window_size
        self.attn = RelativeAttention(dim, config.num_heads, side, ba)
        if not is_global:
            self.attn.slope = 0.0
        self.norm2 = nn.LayerNorm(dim, eps=config.norm_eps)
        self.mlp = ViTMlp(dim, int(dim * config.mlp_ratio))

    def forward(self, x: Tensor, factor: float = 1.0, backend: AttentionBackend = "auto") -> Tensor:
        """Map (B, H, W, C) to (B, H, W, C); ``factor`` is for global blocks."""
        normed = self.norm1(x)
        if self.window_size:
            size = (x.shape[1], x.shape[2])
            windows = split_windows(normed, self.window_size)
            attended = merge_windows(self.attn(windows, backend=backend), size)
        else:
            attended = self.attn(normed, factor, backend)
        x = x + attended
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class ViTEncoder(nn.Module):
    """SAM's image encoder.

    Parameters
    ----------
    config : ViTConfig

    Attributes
    ----------
    attention_backend : str
        See `biased_attention.biased_attention`.

    References
    ----------
    Kirillov et al., "Segment Anything", arXiv 2304.02643; key names of the released checkpoints.
    BA-SAM: arXiv 2401.02317, see `length_scaling`.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.attention_backend: AttentionBackend = "auto"
        dim, grid = config.embed_dim, config.pos_grid
        if config.stem == "efficientnet-lite0":
            self.stem = PretrainedStem(dim, config.stem_stride)
        else:
            self.patch_embed = PatchEmbed(config.patch_size, 3, dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, grid, grid, dim))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.blocks = nn.ModuleList(
            ViTBlock(config, is_global=index in config.global_blocks)
            for index in range(config.depth)
        )
        self.neck = sam_neck(dim, config.out_channels)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Embed normalized images.

        Parameters
        ----------
        image : (B, 3, H, W) float
            H and W multiples of the patch size.

        Returns
        -------
        embedding : (B, out_channels, H / patch, W / patch) float
        stride8, stride4 : (B, c, H / 8, W / 8) and (B, c, H / 4, W / 4) float, or None
            Maps of the convolutional stem.

        Raises
        ------
        ShapeError
            If the shape is not (B, 3, H, W) with H and W multiples of the patch size.
        """
        check_image(image, self.config.patch_size)
        x, stride8, stride4 = self._tokens(image)
        side = self.config.pos_grid
        factor = length_factor(
            self.config.ba,
            (x.shape[1], x.shape[2]),
            training_side=side,
            training_tokens=side**2,
        )
        for block in self.blocks:
            x = block(x, factor, self.attention_backend)
        return self.neck(x.permute(0, 3, 1, 2)), stride8, stride4

    def _tokens(self, image: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Patch embedding plus position map: (B, H, W, C) and the stem's finer maps."""
        stride8 = stride4 = None
        if self.config.stem == "efficientnet-lite0":
            x, stride8, stride4 = self.stem(image)
        else:
            x = self.patch_embed(image)
        position = self.pos_embed.permute(0, 3, 1, 2)
        if position.shape[2:] != x.shape[2:]:
            position = F.interpolate(position, x.shape[2:], mode="bilinear", align_corners=False)
        return (x + position).permute(0, 2, 3, 1), stride8, stride4
