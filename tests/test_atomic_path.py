"""Files that are there as a whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from napari_hrsam import atomic_path as atomic_path_module
from napari_hrsam.atomic_path import atomic_path, patiently


def test_the_file_takes_its_place_when_it_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_text("old")
    with atomic_path(file) as partial:
        partial.write_text("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new"
    assert list(tmp_path.iterdir()) == [file]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_text("old")

    def fail() -> None:
        with atomic_path(file) as partial:
            partial.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_link_in_the_way_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / ".a.partial").symlink_to(tmp_path / "precious")
    with atomic_path(tmp_path / "a") as partial:
        partial.write_text("new")
    assert (tmp_path / "precious").read_text() == "mine"
    assert (tmp_path / "a").read_text() == "new"


class Held:
    """Something that is refused a number of times, as files are that another program holds."""

    def __init__(self, times: int) -> None:
        self.times, self.tries = times, 0

    def __call__(self) -> None:
        self.tries += 1
        if self.tries <= self.times:
            raise PermissionError(13, "in use by another process")


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Waiting as on Windows, without the time that it takes."""
    pauses: list[float] = []
    monkeypatch.setattr(atomic_path_module, "IS_WINDOWS", True)
    monkeypatch.setattr(atomic_path_module.time, "sleep", pauses.append)
    return pauses


def test_file_that_is_held_for_a_moment_is_tried_again(pauses: list[float]) -> None:
    held = Held(3)
    patiently(held)
    assert held.tries == 4
    assert pauses == [0.01, 0.02, 0.04]


def test_file_that_stays_held_is_an_error_after_some_seconds(pauses: list[float]) -> None:
    with pytest.raises(PermissionError, match="in use"):
        patiently(Held(1000))
    assert 2 < sum(pauses) < 3


def test_other_errors_are_not_waited_for(pauses: list[float]) -> None:
    with pytest.raises(FileNotFoundError):
        patiently(lambda: Path("/nowhere/at/all").unlink())
    assert pauses == []


def test_elsewhere_a_refusal_is_final(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic_path_module, "IS_WINDOWS", False)
    held = Held(1)
    with pytest.raises(PermissionError):
        patiently(held)
    assert held.tries == 1
