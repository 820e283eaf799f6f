"""Several objects drawn and committed one after the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import napari_hrsam as hrsam
from napari_hrsam.errors import SessionError
from napari_hrsam.prompts import Prompts

FIRST, SECOND = (slice(20, 50), slice(20, 50)), (slice(90, 130), slice(70, 120))


@pytest.fixture
def image() -> NDArray[np.uint8]:
    image = np.full((200, 160, 3), (0, 120, 0), np.uint8)
    image[FIRST] = (230, 10, 10)
    image[SECOND] = (10, 10, 230)
    return image


def click(*place: float) -> Prompts:
    return Prompts().with_click(place, True)


def test_each_is_committed_and_those_that_cannot_be_are_told(
    model: Any, image: NDArray[np.uint8]
) -> None:
    session = hrsam.Session(model, image)
    several = [
        click(30, 30),
        click(500, 30),
        Prompts().with_box((85, 65, 135, 125)).with_click((100, 100), True),
        click(35, 35),
    ]
    calls: list[tuple[int, int]] = []
    told: list[int] = []
    drawn = session.draw_each(
        several,
        object_class="cell",
        progress=lambda *n: calls.append(n),
        on_commit=lambda edit: told.append(edit.label),
    )
    assert [edit.label for edit in drawn.edits] == told == [1, 2]
    assert [number for number, _ in drawn.skipped] == [1, 3]
    assert "got (y, x) = (500, 30)" in drawn.skipped[0][1]
    assert calls == [(number, 4) for number in range(4)]
    labels = session.labels.read()
    assert (labels[FIRST] == 1).mean() > 0.8
    assert (labels[SECOND] == 2).mean() > 0.8
    assert session.labels.properties.of(2).object_class == "cell"
    assert session.prediction is None
    session.undo()
    assert not (session.labels.read() == 2).any()
    assert (session.labels.read() == 1).any()


def test_it_needs_the_hands_free_and_can_be_stopped(model: Any, image: NDArray[np.uint8]) -> None:
    session = hrsam.Session(model, image)
    session.click((30, 30))
    with pytest.raises(SessionError, match="commit or cancel it before you draw others"):
        session.draw_each([click(100, 100)])
    with pytest.raises(SessionError, match="draw others"):
        session.draw_each([])
    session.cancel()

    def stop(done: int, _total: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session.draw_each([click(30, 30), click(100, 100)], progress=stop)
    assert set(np.unique(session.labels.read())) == {0, 1}
    assert session.prediction is None
