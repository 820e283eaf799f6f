"""How far a job is, and how it is given up."""

from __future__ import annotations

import pytest

from napari_hrsam.plugin.session.progress import Cancelled, Progress


def test_progress_is_thinned_out_but_the_end_is_told() -> None:
    told: list[tuple[int, int]] = []
    loading = Progress(lambda *numbers: told.append(numbers))
    for done in range(1001):
        loading(done, 1000)
    assert told[0] == (0, 1000)
    assert told[-1] == (1000, 1000)
    assert len(told) < 100


def test_a_cancelled_loading_ends_at_its_next_block_and_is_not_finished() -> None:
    loading = Progress()
    assert loading.cancel()
    with pytest.raises(Cancelled):
        loading(1, 2)
    assert not loading.finish()


def test_a_finished_loading_cannot_be_cancelled() -> None:
    loading = Progress()
    assert loading.finish()
    assert not loading.cancel()
    assert not loading.is_cancelled
