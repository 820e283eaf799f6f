"""HRSAM and HRSAM++ image encoder.

Shape letters: B batch, C channels, H x W token grid, L tokens of all maps of a sample.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_hrsam.modeling.attention import AttentionBackend, leading_padding, window_attention
from napari_hrsam.modeling.configs import HRSAMConfig, ScanBackend, Size, height_width
from napari_hrsam.modeling.efficientnet import PretrainedStem
from napari_hrsam.modeling.layers import (
    Mlp,
    PatchEmbed,
    TokenDropPath,
    check_image,
    rotary_frequencies,
)
from napari_hrsam.modeling.selective_scan import cycle_scan

Sizes = tuple[tuple[int, int], ...]


class WindowAttention(nn.Module):
    """Window attention with a learned padding token (keys ``padding``, ``qkv``, ``proj``).

    The padding token enters behind the block's LayerNorm and before the qkv projection.
    """

    def __init__(self, dim: int, num_heads: int, window_size: int, *, shift: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window_size = window_size
        self.shift = window_size // 2 if shift else 0
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.padding = nn.Parameter(torch.zeros(1, dim))

    def forward(
        self,
        x: Tensor,
        sizes: Sizes,
        freqs: Tensor,
        *,
        shift_small: bool,
        backend: AttentionBackend,
    ) -> Tensor:
        """Attend within the windows of each map of (B, L, C); the maps follow one another in L."""
        batch, _, dim = x.shape
        heads = self.num_heads
        qkv = self.qkv(x)
        pad_kv = self.qkv(self.padding)[0].reshape(3, heads, dim // heads)[1:]
        outputs = []
        for size, part in zip(sizes, qkv.split([h * w for h, w in sizes], dim=1), strict=True):
            attended = window_attention(
                part.reshape(batch, *size, 3, heads, dim // heads),
                pad_kv,
                freqs,
                window=self.window_size,
                padding=leading_padding(size, self.window_size, self.shift, shift_small),
                backend=backend,
            )
            outputs.append(attended.reshape(batch, size[0] * size[1], dim))
        joined = torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0]
        out: Tensor = self.proj(joined)
        return out


class Block(nn.Module):
    """Pre-norm transformer block with window attention."""

    def __init__(
        self,
        config: HRSAMConfig,
        *,
        shift: bool,
        drop_path: float,
    ) -> None:
        super().__init__()
        dim = config.embed_dim
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, config.num_heads, config.window_size, shift=shift)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * config.mlp_ratio))
        self.drop_path = TokenDropPath(drop_path)
        self.shift_small = config.shift_small

    def forward(self, x: Tensor, sizes: Sizes, freqs: Tensor, backend: AttentionBackend) -> Tensor:
        """Map tokens (B, L, C) to (B, L, C)."""
        attended = self.attn(
            self.norm1(x), sizes, freqs, shift_small=self.shift_small, backend=backend
        )
        x = x + self.drop_path(attended)
        out: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return out


class CycleScanBlock(nn.Module):
    """State-space block: gated cycle scan over the raster order of the tokens.

    References
    ----------
    Gu and Dao, "Mamba", arXiv 2312.00752; cycle scan: arXiv 2407.02109.
    """

    def __init__(self, dim: int, state_dim: int, num_cycles: int) -> None:
        super().__init__()
        self.dim, self.state_dim = dim, state_dim
        self.in_norm = nn.LayerNorm(dim)
        self.in_proj = nn.Sequential(nn.Linear(dim, 2 * dim), nn.SiLU())
        self.ssm_proj = nn.Linear(dim, dim + 2 * state_dim)
        self.ssm_proj_bias = nn.Parameter(torch.empty(dim))
        # On the CPU whatever the default: see `layouts.expected_state`.
        states = torch.arange(1.0, state_dim + 1, device="cpu")
        self.As_log = nn.Parameter(states.log().repeat(dim, 1))
        self.Ds = nn.Parameter(torch.ones(dim))
        self.gamma = nn.Parameter(torch.ones(dim, num_cycles, 1))
        self.out_norm = nn.LayerNorm(dim)
        self.out_proj = nn.Linear(dim, dim)
        self._init_steps()

    @torch.no_grad()
    def _init_steps(self) -> None:
        """Start with step sizes log-uniform in [0.001, 0.1] (their softplus inverse as bias)."""
        nn.init.uniform_(self.ssm_proj.weight[: self.dim], -(self.dim**-0.5), self.dim**-0.5)
        nn.init.zeros_(self.ssm_proj.bias)
        step = torch.empty(self.dim, device="cpu").uniform_(math.log(1e-3), math.log(1e-1)).exp()
        self.ssm_proj_bias.copy_(step + torch.log(-torch.expm1(-step)))

    def forward(self, x: Tensor, backend: ScanBackend) -> Tensor:
        """Map (B, L, C) to (B, L, C); the scan itself runs in float32 whatever the autocast."""
        u, z = self.in_proj(self.in_norm(x)).chunk(2, dim=-1)
        with torch.autocast(x.device.type, enabled=False):
            precise = torch.promote_types(torch.float32, self.Ds.dtype)
            u32 = u.to(precise)
            params = F.linear(u32, self.ssm_proj.weight, self.ssm_proj.bias)
            raw, B, C = params.split([self.dim, self.state_dim, self.state_dim], dim=-1)
            y = cycle_scan(
                u32,
                F.softplus(raw + self.ssm_proj_bias),
                -torch.exp(self.As_log),
                B,
                C,
                self.Ds,
                self.gamma.squeeze(-1),
                backend=backend,
            )
        out: Tensor = x + self.out_proj(z * self.out_norm(y.to(z.dtype)))
        return out


class _ToChannelsLast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


class HRSAMEncoder(nn.Module):
    """HRSAM image encoder; HRSAM++ when the configuration names anchor sizes.

    Parameters
    ----------
    config : HRSAMConfig

    Attributes
    ----------
    attention_backend : str
        See `attention.window_attention`.
    scan_backend : str
        See `selective_scan.cycle_scan`.

    References
    ----------
    Huang et al., arXiv 2407.02109, and the released code of July 2024 (key names).
    """

    mamba_blocks: nn.ModuleList
    ss_mamba_blocks: nn.ModuleList
    ms_mamba_blocks: nn.ModuleList

    def __init__(self, config: HRSAMConfig) -> None:
        super().__init__()
        self.config = config
        self.attention_backend: AttentionBackend = "auto"
        self.scan_backend: ScanBackend = "auto"
        dim, num_maps = config.embed_dim, 1 + len(config.anchor_sizes)
        if config.stem == "efficientnet-lite0":
            self.stem = PretrainedStem(dim, config.stem_stride)
        else:
            self.patch_embed = PatchEmbed(config.patch_size, 3, dim)
        if config.pos_grid:
            # Entry 0 is MAE's class token; it is stored and never used.
            self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.pos_grid**2, dim))
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.rope = nn.Module()
        self.rope.register_buffer("freqs", rotary_frequencies(dim // config.num_heads))
        rates = [config.drop_path * i / max(1, config.depth - 1) for i in range(config.depth)]
        self.blocks = nn.ModuleList(
            Block(config, shift=bool(i % 2), drop_path=rates[i]) for i in range(config.depth)
        )
        self._build_scans()
        if num_maps > 1:
            self.multi_scale_fusion = nn.ModuleList(
                nn.Sequential(nn.LayerNorm(dim)) for _ in config.stage_ends
            )
        self.lateral_convs = nn.ModuleList(
            nn.Sequential(
                nn.Linear(dim * num_maps, config.out_channels, bias=False),
                nn.LayerNorm(config.out_channels),
            )
            for _ in config.stage_ends or ("stem",)
        )
        channels = config.out_channels
        self.out_conv = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
            _ToChannelsLast(),
            nn.LayerNorm(channels),
        )

    def _build_scans(self) -> None:
        config = self.config
        if not config.state_dim:
            return
        names = ("ss_mamba_blocks", "ms_mamba_blocks") if config.anchor_sizes else ("mamba_blocks",)
        for name in names:
            blocks = (
                CycleScanBlock(config.embed_dim, config.state_dim, config.num_cycles)
                for _ in config.stage_ends
            )
            setattr(self, name, nn.ModuleList(blocks))

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
        main, stride8, stride4 = self._tokens(image)
        maps = [main, *(self._tokens(self._anchor(image, size))[0] for size in self._anchors())]
        sizes: Sizes = tuple((m.shape[2], m.shape[3]) for m in maps)
        x = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], dim=1)
        return self._stages(x, sizes), stride8, stride4

    def _anchors(self) -> tuple[Size, ...]:
        return self.config.anchor_sizes

    def _anchor(self, image: Tensor, size: Size) -> Tensor:
        """Resize the image to an anchor map: of that size, or with that longer side."""
        height, width = height_width(size)
        if self.config.anchor_keep_aspect and isinstance(size, int):
            patch, ratio = self.config.patch_size, max(image.shape[2:]) / size
            height, width = (
                size if n == max(image.shape[2:]) else -(-int(n / ratio) // patch) * patch
                for n in image.shape[2:]
            )
        return F.interpolate(image, (height, width), mode="bilinear", align_corners=False)

    def _tokens(self, image: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Patch embedding plus position map: (B, C, H, W) and the stem's finer maps."""
        stride8 = stride4 = None
        if self.config.stem == "efficientnet-lite0":
            x, stride8, stride4 = self.stem(image)
        else:
            x = self.patch_embed(image)
        grid = self.config.pos_grid
        if grid:
            pos = self.pos_embed[:, 1:].transpose(1, 2).unflatten(2, (grid, grid))
            if x.shape[2:] != (grid, grid):
                pos = F.interpolate(pos, x.shape[2:], mode="bilinear", align_corners=False)
            x = x + pos
        return x, stride8, stride4

    def _stages(self, x: Tensor, sizes: Sizes) -> Tensor:
        config, freqs = self.config, self.rope.freqs
        fused = None if config.depth else self._lateral(x, sizes, 0)
        for index, block in enumerate(self.blocks):
            stage = config.stage_ends.index(index) if index in config.stage_ends else None
            if stage is not None and config.state_dim:
                x = self._scan_before(x, sizes, stage)
            x = block(x, sizes, freqs, self.attention_backend)
            if stage is None:
                continue
            if config.state_dim and config.anchor_sizes:
                x = self.ms_mamba_blocks[stage](x, self.scan_backend)
            lateral = self._lateral(x, sizes, stage)
            fused = lateral if fused is None else fused + lateral
        out: Tensor = self.out_conv(fused)
        return out.permute(0, 3, 1, 2)

    def _lateral(self, x: Tensor, sizes: Sizes, stage: int) -> Tensor:
        """Project the tokens (B, L, C) that leave a stage: (B, out_channels, H, W)."""
        projected: Tensor = self.lateral_convs[stage](self._merge_maps(x, sizes, stage))
        out: Tensor = projected.transpose(1, 2).unflatten(2, sizes[0])
        return out

    def _scan_before(self, x: Tensor, sizes: Sizes, stage: int) -> Tensor:
        if not self.config.anchor_sizes:
            out: Tensor = self.mamba_blocks[stage](x, self.scan_backend)
            return out
        parts = x.split([h * w for h, w in sizes], dim=1)
        # Each map on its own: the state starts from zero in every map.
        return torch.cat([self.ss_mamba_blocks[stage](p, self.scan_backend) for p in parts], dim=1)

    def _merge_maps(self, x: Tensor, sizes: Sizes, stage: int) -> Tensor:
        """Bring anchor maps to the main grid and join channels: (B, H W, C (1 + anchors))."""
        if len(sizes) == 1:
            return x
        norm = self.multi_scale_fusion[stage]
        parts = list(x.split([h * w for h, w in sizes], dim=1))
        for k in range(1, len(sizes)):
            anchor = parts[k].transpose(1, 2).unflatten(2, sizes[k])
            anchor = F.interpolate(anchor, sizes[0], mode="bilinear", align_corners=False)
            parts[k] = anchor.flatten(2).transpose(1, 2)
        return torch.cat([norm(p) for p in parts], dim=-1)
