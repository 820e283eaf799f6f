"""SAM prompt encoder, for embeddings of any size.

Shape letters: N prompts, P points, C channels, h x w embedding grid.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_hrsam.errors import ShapeError
from napari_hrsam.modeling.configs import PromptDecoderConfig, height_width
from napari_hrsam.modeling.layers import LayerNorm2d


class RandomPositionCode(nn.Module):
    """Random Fourier position code (buffer ``positional_encoding_gaussian_matrix``)."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, num_features))

    def forward(self, points_xy: Tensor) -> Tensor:
        """Code (..., 2) coordinates in [0, 1] as (..., 2 features): sines, then cosines."""
        matrix = self.get_buffer("positional_encoding_gaussian_matrix")
        # Half precision would move a point by whole pixels.
        with torch.autocast(points_xy.device.type, enabled=False):
            phase = 2 * math.pi * ((2 * points_xy - 1) @ matrix)
        return torch.cat([phase.sin(), phase.cos()], dim=-1)

    def grid(self, grid_hw: tuple[int, int]) -> Tensor:
        """Code of the cell centres of a grid: (1, 2 features, h, w)."""
        matrix = self.get_buffer("positional_encoding_gaussian_matrix")
        centres = (
            (torch.arange(n, device=matrix.device, dtype=matrix.dtype) + 0.5) / n for n in grid_hw
        )
        y, x = torch.meshgrid(*centres, indexing="ij")
        code: Tensor = self(torch.stack([x, y], dim=-1))
        return code.permute(2, 0, 1)[None]


class PromptEncoder(nn.Module):
    """Points, boxes and prior masks to sparse tokens and a dense map.

    Parameters
    ----------
    config : PromptDecoderConfig

    References
    ----------
    Kirillov et al., "Segment Anything", arXiv 2304.02643, section 3 and appendix A.
    """

    def __init__(self, config: PromptDecoderConfig) -> None:
        super().__init__()
        dim, inner = config.embed_dim, config.mask_in_channels
        self.pe_grid_hw = height_width(config.pe_grid, "pe_grid")
        self.pe_layer = RandomPositionCode(dim // 2)
        # 0 background, 1 foreground, 2 and 3 the corners of a box.
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, dim) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, dim)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, inner // 4, 2, stride=2),
            LayerNorm2d(inner // 4),
            nn.GELU(),
            nn.Conv2d(inner // 4, inner, 2, stride=2),
            LayerNorm2d(inner),
            nn.GELU(),
            nn.Conv2d(inner, dim, 1),
        )
        self.no_mask_embed = nn.Embedding(1, dim)

    def dense_position(self, grid_hw: tuple[int, int]) -> Tensor:
        """Position code of the image tokens, (1, C, h, w).

        Computed at ``pe_grid`` and resized: HRSAM keeps the code of the 64 x 64
        grid that the decoder was trained with (hrsam.md, section 10 of the model facts).
        """
        code = self.pe_layer.grid(self.pe_grid_hw)
        if grid_hw == self.pe_grid_hw:
            return code
        return F.interpolate(code, grid_hw, mode="bilinear", align_corners=False)

    def forward(
        self,
        *,
        grid_hw: tuple[int, int],
        image_hw: tuple[int, int],
        point_coords_xy: Tensor | None = None,
        point_labels: Tensor | None = None,
        boxes_xyxy: Tensor | None = None,
        mask_logits: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Encode the prompts of N objects.

        Parameters
        ----------
        grid_hw, image_hw : tuple of int
            Embedding grid (cells) and encoded image (pixels).
        point_coords_xy : (N, P, 2) float, optional
            Pixels of the encoded image, pixel centres at integers.
        point_labels : (N, P) int, optional
            1 foreground, 0 background, -1 padding.
        boxes_xyxy : (N, 4) float, optional
            Corners, pixels of the encoded image.
        mask_logits : (N, 1, 4 h, 4 w) float, optional
            Logits of an earlier prediction.

        Returns
        -------
        sparse : (N, T, C) float
        dense : (N, C, h, w) float

        Raises
        ------
        ShapeError
            If nothing prompts, or shapes do not belong together.
        """
        given = [x for x in (point_coords_xy, boxes_xyxy, mask_logits) if x is not None]
        if not given:
            raise ShapeError("a prompt needs points, a box or a mask, got none of them")
        num = given[0].shape[0]
        if any(x.shape[0] != num for x in given):
            raise ShapeError(
                "points, boxes and masks must belong to the same number of objects, got "
                f"{[x.shape[0] for x in given]}"
            )
        tokens = []
        if point_coords_xy is not None:
            if point_labels is None or point_labels.shape != point_coords_xy.shape[:2]:
                shape = None if point_labels is None else tuple(point_labels.shape)
                raise ShapeError(
                    f"point_labels must be {tuple(point_coords_xy.shape[:2])} like the points, "
                    f"got {shape}"
                )
            tokens.append(
                self._points(point_coords_xy, point_labels, image_hw, pad=boxes_xyxy is None)
            )
        if boxes_xyxy is not None:
            tokens.append(self._boxes(boxes_xyxy, image_hw))
        weight = self.no_mask_embed.weight
        sparse = torch.cat(tokens, dim=1) if tokens else weight.new_zeros(num, 0, weight.shape[1])
        return sparse, self._dense(mask_logits, num, grid_hw)

    def _code(self, points_xy: Tensor, image_hw: tuple[int, int]) -> Tensor:
        # Axis by axis: a tensor made of the sizes would be copied to the device, and waited for.
        x, y = (points_xy[..., 0] + 0.5) / image_hw[1], (points_xy[..., 1] + 0.5) / image_hw[0]
        code: Tensor = self.pe_layer(torch.stack([x, y], dim=-1))
        return code

    def _kind(self, index: int) -> Tensor:
        """Learned vector (1, C) of one kind of point."""
        return self.get_parameter(f"point_embeddings.{index}.weight")

    def _points(
        self, coords: Tensor, labels: Tensor, image_hw: tuple[int, int], *, pad: bool
    ) -> Tensor:
        if pad:
            coords = F.pad(coords, (0, 0, 0, 1))
            labels = F.pad(labels, (0, 1), value=-1)
        labels = labels[..., None]
        background, foreground = self._kind(0), self._kind(1)
        code = self._code(coords, image_hw) + torch.where(labels == 1, foreground, background)
        return torch.where(labels == -1, self.not_a_point_embed.weight, code)

    def _boxes(self, boxes: Tensor, image_hw: tuple[int, int]) -> Tensor:
        corners = self._code(boxes.reshape(-1, 2, 2), image_hw)
        kinds = torch.cat([self._kind(2), self._kind(3)])
        return corners + kinds

    def _dense(self, mask_logits: Tensor | None, num: int, grid_hw: tuple[int, int]) -> Tensor:
        if mask_logits is None:
            return self.no_mask_embed.weight[:, :, None, None].expand(num, -1, *grid_hw)
        dense: Tensor = self.mask_downscaling(mask_logits)
        if dense.shape[2:] != grid_hw:
            dense = F.interpolate(dense, grid_hw, mode="bilinear", align_corners=False)
        return dense
