"""Only the part of an answer that a prompt lies at changes a mask."""

from __future__ import annotations

import numpy as np

from napari_hrsam.engine.local_correction import anchored, changed_at
from napari_hrsam.geometry import Tile
from napari_hrsam.prompts import Prompts

TILE = Tile(1, 32, 16, 128)


def at(y: float, x: float) -> tuple[float, float]:
    """The level-0 place of a tile pixel."""
    return (y + 32 + 0.5) * 2 - 0.5, (x + 16 + 0.5) * 2 - 0.5


def test_the_part_at_a_prompt_changes_and_rims_and_other_parts_stay() -> None:
    old = np.zeros((128, 128), bool)
    old[40:80, 40:80] = True
    answer = np.zeros((128, 128), bool)
    answer[38:82, 38:82] = True  # a rim all around
    answer[50:65, 82:110] = True  # a part to the right, joined by the rim
    answer[10:30, 50:70] = True  # another part
    answer[70:80, 40:50] = False  # and one that is gone
    right = Prompts().with_click(at(57, 95), True)
    changed = changed_at(old, answer, right, TILE)
    assert changed[50:65, 86:110].mean() > 0.95, "its corners are rounded"
    assert not changed[:46].any()
    assert not changed[:, :70].any()
    gone = Prompts().with_click(at(75, 45), False)
    changed = changed_at(old, answer, gone, TILE)
    assert 90 < changed[70:80, 40:50].sum() == changed.sum()
    both = gone.with_scribble([at(20, 55), at(20, 65)], True)
    changed = changed_at(old, answer, both, TILE)
    assert changed[10:30, 50:70].mean() > 0.95
    assert changed[70:80, 40:50].mean() > 0.9
    assert not changed[:, 90:].any()
    elsewhere = Prompts().with_click(at(120, 120), True)
    assert not changed_at(old, answer, elsewhere, TILE).any()
    assert not changed_at(old, old, right, TILE).any()


def test_a_prompt_at_a_thin_difference_takes_it() -> None:
    old = np.zeros((128, 128), bool)
    answer = old.copy()
    answer[60, 20:100] = True
    changed = changed_at(old, answer, Prompts().with_click(at(60, 50), True), TILE)
    np.testing.assert_array_equal(changed, answer)


def test_the_model_is_told_a_click_deep_inside_away_from_negative_ones() -> None:
    prior = np.full((32, 32), -3, np.float32)
    prior[8:17, 4:25] = 3
    told = anchored(Prompts().with_click(at(50, 20), False), prior, TILE)
    assert told.labels == (True, False)
    row, column = TILE.to_tile(told.points_yx[0]) // 4
    assert (row, 8 <= column <= 20) == (12, True)
    middle = Prompts().with_click(at(50, 58), False).with_scribble([at(50, 60)], False)
    told = anchored(middle, prior, TILE)
    column = TILE.to_tile(told.points_yx[0])[1] // 4
    assert not 11 <= column <= 17
    assert told.scribbles[0].num_clicks == 2
    nothing = np.full((32, 32), -3, np.float32)
    assert anchored(middle, nothing, TILE) == middle
