"""Prompts drawn at stride 4, likeness to the clicks, and both on the grid of the embedding."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from napari_hrsam.modeling.drawn_prompts import (
    DRAWN_CHANNELS,
    LIKENESS_HEADS,
    PromptMap,
    draw_prompts,
    match_clicks,
)


def draw(like: torch.Tensor | None = None, **prompts) -> torch.Tensor:
    given = dict.fromkeys(("point_coords_xy", "point_labels", "boxes_xyxy", "mask_logits"))
    like = torch.zeros(1) if like is None else like
    return draw_prompts(map_hw=(12, 16), num=1, like=like, **{**given, **prompts})


def click(x: float, y: float, label: int) -> dict[str, torch.Tensor]:
    return {"point_coords_xy": torch.tensor([[[x, y]]]), "point_labels": torch.tensor([[label]])}


def test_click_is_drawn_on_the_cell_of_its_pixel() -> None:
    # Cell (5, 9) covers rows 20..23 and columns 36..39; its centre is pixel (21.5, 37.5).
    maps = draw(**click(37.5, 21.5, 1))[0]
    peak = torch.tensor(divmod(int(maps[0].argmax()), 16))
    assert peak.tolist() == [5, 9]
    assert float(maps[0].max()) == 1.0
    for channel, sigma in ((0, 2), (1, 8)):
        y, x = torch.meshgrid(torch.arange(12), torch.arange(16), indexing="ij")
        bump = torch.exp(-((y - 5) ** 2 + (x - 9) ** 2) / (2 * sigma**2))
        torch.testing.assert_close(maps[channel], bump)
    assert not maps[2:].any()


def test_negative_click_has_channels_of_its_own_and_padding_none() -> None:
    maps = draw(**click(37.5, 21.5, 0))[0]
    assert not maps[[0, 1, 4, 5]].any()
    torch.testing.assert_close(maps[2:4], draw(**click(37.5, 21.5, 1))[0, :2])
    assert not draw(**click(37.5, 21.5, -1)).any()


def test_several_clicks_are_joined_by_their_maximum() -> None:
    coords = torch.tensor([[[9.5, 9.5], [37.5, 21.5]]])
    both = draw(point_coords_xy=coords, point_labels=torch.tensor([[1, 1]]))
    single = [draw(**click(x, y, 1)) for x, y in coords[0].tolist()]
    torch.testing.assert_close(both, torch.maximum(*single))


def test_box_fills_the_cells_it_touches() -> None:
    # Columns 8..15 are cells 2 and 3; rows 4..19 are cells 1 to 4.
    maps = draw(boxes_xyxy=torch.tensor([[8.0, 4.0, 15.0, 19.0]]))[0]
    expected = torch.zeros(12, 16)
    expected[1:5, 2:4] = 1
    assert torch.equal(maps[4], expected)
    assert not maps[[0, 1, 2, 3, 5]].any()


def test_prior_logits_are_squashed() -> None:
    logits = torch.randn(1, 1, 12, 16) * 20
    maps = draw(mask_logits=logits)[0]
    torch.testing.assert_close(maps[5], torch.tanh(logits[0, 0] / 4))
    assert not maps[:5].any()
    assert math.isclose(
        float(draw(mask_logits=torch.full_like(logits, 4))[0, 5, 0, 0]), math.tanh(1), rel_tol=1e-6
    )


def test_prior_logits_of_another_size_are_resized_like_the_dense_prompt() -> None:
    prior = torch.full((1, 1, 6, 8), 2.0)
    drawn = draw(mask_logits=prior)
    assert torch.allclose(drawn[:, 5], torch.full((1, 12, 16), math.tanh(0.5)))


def test_an_empty_list_of_clicks_draws_nothing() -> None:
    drawn = draw(point_coords_xy=torch.zeros(1, 0, 2), point_labels=torch.zeros(1, 0))
    assert not drawn.any()


def test_beside_a_bfloat16_embedding_prompts_are_drawn_where_they_were_made() -> None:
    # In bfloat16 pixel 2049.5 would be 2048; the bump would move by almost half a cell.
    shape = {"map_hw": (4, 1024), "num": 1, "boxes_xyxy": None, "mask_logits": None}
    given = shape | click(2049.5, 5.5, 1)
    low = draw_prompts(like=torch.zeros(1, dtype=torch.bfloat16), **given)
    assert low.dtype == torch.float32
    assert torch.equal(low, draw_prompts(like=torch.zeros(1), **given))
    assert float(low[0, 0, 1, 512]) == 1.0
    assert draw(torch.zeros(1, dtype=torch.float64), **click(1, 1, 1)).dtype == torch.float64


# ------------------------------------------------------------------------------------- likeness
def kinds_map() -> tuple[torch.Tensor, torch.Tensor]:
    """A map of three kinds of cells, and which cell is of which kind."""
    kinds = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    which = torch.tensor([[0, 1, 2, 0], [1, 1, 2, 0]])
    return kinds[which].permute(2, 0, 1)[None], which


def test_clicks_match_the_cells_that_look_like_theirs() -> None:
    x, which = kinds_map()
    # Centres of the cells (0, 1) and (1, 0), both of kind 1, and of cell (0, 3).
    coords = torch.tensor([[[5.5, 1.5], [1.5, 5.5], [13.5, 1.5]]])
    positive, negative = match_clicks(x, coords, torch.tensor([[1, 1, 0]]), stride=4)[0]
    assert torch.allclose(positive[which == 1], torch.ones(3), atol=1e-4)
    assert (positive[which != 1] < 0.999).all()
    assert torch.allclose(negative[which == 0], torch.ones(3), atol=1e-4)
    other = match_clicks(x, coords, torch.tensor([[1, -1, -1]]), stride=4)[0]
    torch.testing.assert_close(other[0], positive)
    assert not other[1].any()


def test_without_clicks_nothing_matches() -> None:
    x = torch.randn(2, 8, 3, 4)
    assert not match_clicks(x, None, None, stride=4).any()
    none = match_clicks(x, torch.zeros(2, 0, 2), torch.zeros(2, 0), stride=4, heads=2)
    assert none.shape == (2, 4, 3, 4)
    assert not none.any()


def test_the_map_is_sampled_between_cell_centres_as_pixels_lie() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 6, 3, 4, dtype=torch.float64)
    # At stride 8, pixel (9.5, 5.5) is a quarter of the way from column 0 (its centre is pixel 3.5)
    # to column 1 counted from column 1, and a quarter of the way from row 0 to row 1.
    coords = torch.tensor([[[9.5, 5.5]]], dtype=torch.float64)
    rows = 0.75 * x[..., 0, :] + 0.25 * x[..., 1, :]
    place = (0.25 * rows[..., 0] + 0.75 * rows[..., 1])[0]
    cells = x[0].flatten(1).t()
    expected = (F.layer_norm(cells, (6,)) @ F.layer_norm(place, (6,)) / 6).reshape(3, 4)
    positive = match_clicks(x, coords, torch.ones(1, 1), stride=8)[0, 0]
    torch.testing.assert_close(positive, expected, rtol=1e-9, atol=1e-9)


def test_a_click_near_the_border_sees_the_outermost_cell() -> None:
    x, _ = kinds_map()
    corner, centre = (
        match_clicks(x, torch.tensor([[place]]), torch.ones(1, 1), stride=4)
        for place in ([15.4, 7.4], [13.5, 5.5])
    )
    torch.testing.assert_close(corner, centre)


def test_heads_compare_groups_of_channels_each_for_itself() -> None:
    torch.manual_seed(0)
    x, coords = torch.randn(2, 12, 3, 4), torch.rand(2, 3, 2) * 12
    labels = torch.tensor([[1, 0, 1], [0, 0, -1]])
    joined = match_clicks(x, coords, labels, stride=4, heads=3)
    assert joined.shape == (2, 6, 3, 4)
    for head in range(3):
        alone = match_clicks(x[:, 4 * head : 4 * head + 4], coords, labels, stride=4)
        torch.testing.assert_close(joined[:, [head, 3 + head]], alone)
    # The second object has no positive click.
    assert not joined[1, :3].any()
    assert joined[1, 3:].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_likeness_to_a_map_in_half_precision_is_computed_in_float32(dtype) -> None:
    torch.manual_seed(0)
    # In bfloat16 pixel 1029.5 would be 1032, a cell of stride 4 further.
    x, coords = torch.randn(1, 8, 2, 512).to(dtype), torch.tensor([[[1029.5, 1.5]]])
    low = match_clicks(x, coords, torch.ones(1, 1), stride=4)
    assert low.dtype == torch.float32
    assert torch.equal(low, match_clicks(x.float(), coords, torch.ones(1, 1), stride=4))
    assert divmod(int(low[0, 0].argmax()), 512) == (0, 257)


# ------------------------------------------------------------------------- on the embedding grid
def prompt_map(dim: int = 16) -> PromptMap:
    torch.manual_seed(0)
    return PromptMap(dim)


def test_marks_and_likeness_are_joined_on_the_grid() -> None:
    module, embedding = prompt_map(), torch.randn(1, 16, 3, 4)
    coords, labels = torch.tensor([[[20.0, 30.0]], [[50.0, 10.0]]]), torch.tensor([[1], [0]])
    drawn = torch.randn(2, DRAWN_CHANNELS, 12, 16)
    likeness = match_clicks(
        module.match_proj(embedding).repeat(2, 1, 1, 1), coords, labels, stride=16, heads=4
    )
    joined = torch.cat([module.draw16(drawn), likeness], 1)
    expected = module.to_dense(F.gelu(module.join(joined)))
    assert expected.shape == (2, 16, 3, 4)
    torch.testing.assert_close(module(embedding, drawn, coords, labels), expected)


def test_likeness_has_four_heads_and_a_sign_each() -> None:
    assert LIKENESS_HEADS == 4
    assert prompt_map().join.in_channels == 32 + 2 * 4


def test_a_click_marks_the_cell_it_is_in() -> None:
    module = prompt_map()
    embedding = torch.zeros(1, 16, 12, 12)
    given = click(7 * 16 + 5, 4 * 16 + 9, 1)
    draw_at = {"map_hw": (48, 48), "num": 1, "boxes_xyxy": None, "mask_logits": None}
    drawn = draw_prompts(like=embedding, **draw_at, **given)
    # Without the wide bump, which reaches over the whole grid.
    drawn[:, 1] = 0
    nothing = torch.zeros_like(drawn)
    with torch.no_grad():
        marked = module(embedding, drawn, None, None) - module(embedding, nothing, None, None)
    strength = marked.abs().sum(1)[0]
    y, x = divmod(int(strength.argmax()), 12)
    assert abs(y - 4) <= 1
    assert abs(x - 7) <= 1
    assert float(strength[:, 0].max()) < 1e-3 * float(strength.max())


def test_marks_keep_the_dtype_of_the_network_beside_float32_likeness() -> None:
    module = prompt_map().bfloat16()
    embedding = torch.randn(1, 16, 3, 4, dtype=torch.bfloat16)
    drawn = torch.randn(1, DRAWN_CHANNELS, 12, 16, dtype=torch.bfloat16)
    assert module(embedding, drawn, **click(20, 30, 1)).dtype == torch.bfloat16


def test_every_weight_of_the_marks_learns() -> None:
    module = prompt_map()
    drawn = torch.randn(1, DRAWN_CHANNELS, 12, 16)
    module(torch.randn(1, 16, 3, 4), drawn, **click(20, 30, 1)).square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in module.parameters())
