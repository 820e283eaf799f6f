"""SAM's prompt encoder."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from napari_hrsam.errors import ConfigError, ShapeError
from napari_hrsam.modeling.configs import PromptDecoderConfig
from napari_hrsam.modeling.layers import LayerNorm2d
from napari_hrsam.modeling.prompt_encoder import PromptEncoder

CONFIG = PromptDecoderConfig(embed_dim=16, pe_grid=6, mask_in_channels=8, num_heads=2)
SIZES = {"grid_hw": (6, 6), "image_hw": (96, 96)}


@pytest.fixture
def encoder() -> PromptEncoder:
    torch.manual_seed(0)
    return PromptEncoder(CONFIG).eval()


def code(encoder: PromptEncoder, x: float, y: float) -> torch.Tensor:
    """Fourier code of a place in the unit square, written out."""
    matrix = encoder.pe_layer.positional_encoding_gaussian_matrix
    phase = 2 * math.pi * ((2 * x - 1) * matrix[0] + (2 * y - 1) * matrix[1])
    return torch.cat([torch.sin(phase), torch.cos(phase)])


def points(*rows: tuple[float, float, int]) -> dict[str, torch.Tensor]:
    table = torch.tensor(rows)
    return {"point_coords_xy": table[None, :, :2], "point_labels": table[None, :, 2].int()}


def test_points_are_coded_at_their_pixel_centres_by_image_size(encoder) -> None:
    sparse, _ = encoder(grid_hw=(6, 12), image_hw=(96, 192), **points((10, 20, 1), (3, 4, 0)))
    positive = code(encoder, 10.5 / 192, 20.5 / 96) + encoder.point_embeddings[1].weight[0]
    negative = code(encoder, 3.5 / 192, 4.5 / 96) + encoder.point_embeddings[0].weight[0]
    torch.testing.assert_close(sparse[0, :2], torch.stack([positive, negative]))


def test_label_minus_one_erases_the_place(encoder) -> None:
    sparse, _ = encoder(**SIZES, **points((10, 20, -1), (50, 60, -1)))
    vector = encoder.not_a_point_embed.weight[0]
    assert torch.equal(sparse[0], vector.expand(3, -1))


def test_a_padding_point_is_added_unless_there_is_a_box(encoder) -> None:
    click, box = points((10, 20, 1)), torch.tensor([[8.0, 16.0, 40.0, 48.0]])
    alone, _ = encoder(**SIZES, **click)
    assert alone.shape[1] == 2
    assert torch.equal(alone[0, 1], encoder.not_a_point_embed.weight[0])
    with_box, _ = encoder(**SIZES, **click, boxes_xyxy=box)
    assert with_box.shape[1] == 3
    assert torch.equal(with_box[0, 0], alone[0, 0])
    corners = [
        code(encoder, 8.5 / 96, 16.5 / 96) + encoder.point_embeddings[2].weight[0],
        code(encoder, 40.5 / 96, 48.5 / 96) + encoder.point_embeddings[3].weight[0],
    ]
    torch.testing.assert_close(with_box[0, 1:], torch.stack(corners))


def test_dense_position_is_coded_at_cell_centres_x_first(encoder) -> None:
    dense = encoder.dense_position((6, 6))
    torch.testing.assert_close(dense[0, :, 1, 4], code(encoder, 4.5 / 6, 1.5 / 6))


def test_dense_position_of_another_grid_is_resized_and_not_computed_anew(encoder) -> None:
    dense = encoder.dense_position((12, 9))
    expected = F.interpolate(
        encoder.dense_position((6, 6)), (12, 9), mode="bilinear", align_corners=False
    )
    torch.testing.assert_close(dense, expected, rtol=0, atol=0)
    exact = code(encoder, 4.5 / 9, 1.5 / 12)
    assert (dense[0, :, 1, 4] - exact).abs().max() > 0.01


def test_without_a_mask_every_cell_holds_the_no_mask_vector(encoder) -> None:
    _, dense = encoder(**SIZES, **points((1, 2, 1)))
    assert dense.shape == (1, 16, 6, 6)
    assert torch.equal(dense, encoder.no_mask_embed.weight[0].view(1, -1, 1, 1).expand_as(dense))


def test_mask_prompt_is_four_times_the_grid_and_resized_otherwise(encoder) -> None:
    logits = torch.randn(2, 1, 24, 24)
    sparse, dense = encoder(**SIZES, mask_logits=logits)
    assert sparse.shape == (2, 0, 16)
    torch.testing.assert_close(dense, encoder.mask_downscaling(logits))
    _, resized = encoder(grid_hw=(12, 9), image_hw=(192, 144), mask_logits=logits)
    expected = F.interpolate(dense, (12, 9), mode="bilinear", align_corners=False)
    torch.testing.assert_close(resized, expected)


def test_objects_do_not_meet(encoder) -> None:
    coords, labels = torch.rand(3, 2, 2) * 90, torch.tensor([[1, 0], [0, 1], [1, -1]])
    whole, _ = encoder(**SIZES, point_coords_xy=coords, point_labels=labels)
    alone, _ = encoder(**SIZES, point_coords_xy=coords[1:2], point_labels=labels[1:2])
    torch.testing.assert_close(whole[1:2], alone)


def test_channel_norms_have_eps_1e_6(encoder) -> None:
    norms = [m.eps for m in encoder.modules() if isinstance(m, LayerNorm2d)]
    assert norms == [1e-6, 1e-6]


def test_prompts_that_do_not_belong_together_are_refused(encoder) -> None:
    with pytest.raises(ShapeError, match="needs points, a box or a mask, got none"):
        encoder(**SIZES)
    with pytest.raises(ShapeError, match=r"same number of objects, got \[1, 2\]"):
        encoder(**SIZES, **points((1, 2, 1)), boxes_xyxy=torch.zeros(2, 4))
    with pytest.raises(ShapeError, match=r"point_labels must be \(1, 2\).*got None"):
        encoder(**SIZES, point_coords_xy=torch.zeros(1, 2, 2))
    with pytest.raises(ShapeError, match=r"point_labels must be \(1, 2\).*got \(1, 3\)"):
        encoder(**SIZES, point_coords_xy=torch.zeros(1, 2, 2), point_labels=torch.zeros(1, 3))


def test_widths_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"multiple of 8 and of 2 \* num_heads, got 20"):
        PromptDecoderConfig(embed_dim=20)
    with pytest.raises(ConfigError, match="context_levels must be 0 or more, got -1"):
        PromptDecoderConfig(context_levels=-1)
