"""The observable state of the controller."""

from __future__ import annotations

import pytest

from napari_hrsam.errors import PromptError
from napari_hrsam.plugin.session.messages import HINT_START
from napari_hrsam.plugin.session.state import ControllerState, Phase


@pytest.fixture
def state() -> ControllerState:
    return ControllerState()


def test_several_changes_are_one_and_none_is_none(state: ControllerState) -> None:
    seen: list[tuple[Phase, str]] = []
    state.changed.connect(lambda: seen.append((state.phase, state.message)))
    state.update(phase=Phase.READY, message="Click.")
    state.update(message="Click.")
    assert seen == [(Phase.READY, "Click.")]


def test_a_reset_keeps_the_settings_and_what_was_reported(state: ControllerState) -> None:
    state.report(PromptError("expected a point inside the image"))
    state.update(model="hrsam-tiny", pinned_level=2, reads_ahead=False, num_committed=3)
    state.reset(HINT_START)
    assert (state.model, state.pinned_level, state.reads_ahead) == ("hrsam-tiny", 2, False)
    assert state.is_level_pinned
    assert (state.num_committed, state.message, state.is_error) == (0, HINT_START, False)
    with pytest.raises(PromptError):
        state.raise_reported()
    state.raise_reported()


def test_an_error_of_the_user_is_reported_and_a_bug_is_raised(state: ControllerState) -> None:
    errors: list[BaseException] = []
    state.failed.connect(errors.append)

    def fail(error: Exception) -> None:
        raise error

    state.guard(fail, PromptError("expected a point inside the image"))
    assert len(errors) == 1
    assert state.is_error
    assert state.message == "Expected a point inside the image"
    with pytest.raises(ZeroDivisionError):
        state.guard(fail, ZeroDivisionError())
