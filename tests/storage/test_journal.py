from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from napari_hrsam.errors import LabelsError
from napari_hrsam.geometry import Box
from napari_hrsam.prompts import Prompts
from napari_hrsam.storage.journal import Block, Journal, JournalEdit

U4 = np.dtype("u4")
PROMPTS = Prompts().with_click((3.25, 4), True).with_click((1, 2), False).with_box((0, 1, 9, 8.5))


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal.create(tmp_path / "journal.sqlite", U4, 1)
    yield opened
    opened.close()


def block(value: int, y0: int = 0) -> Block:
    after = np.full((4, 5), value, U4)
    return Block(Box(y0, 2, y0 + 4, 7), np.zeros_like(after), after)


def record(journal: Journal, label: int, *blocks: Block) -> JournalEdit:
    edit = journal.record(
        blocks or (block(label),), label=label, plane=(3, 1), prompts=PROMPTS, model="tiny"
    )
    assert edit is not None
    return edit


def test_an_edit_comes_back_as_it_was_also_after_opening_again(journal: Journal) -> None:
    before = np.arange(20, dtype=U4).reshape(4, 5)
    full = Block(Box(9, 2, 13, 7), before, before + 1)
    edit = record(journal, 7, block(7), full)
    assert edit.box == Box(0, 2, 13, 7)
    journal.settle(edit, is_done=True)
    journal.close()
    again = Journal(journal.path, U4)
    (found,) = again.history().done
    for name in ("label", "box", "prompts", "model", "time", "plane", "number", "journal"):
        assert getattr(found, name) == getattr(edit, name)
    first, second = again.blocks(found)  # type: ignore[arg-type]
    assert not first.before.any()
    assert (first.after == 7).all()
    assert second.box == full.box
    np.testing.assert_array_equal(second.before, before)
    np.testing.assert_array_equal(second.after, before + 1)
    again.close()


def test_the_next_label_is_above_every_recorded_one_and_never_falls(journal: Journal) -> None:
    assert journal.next_label() == 1
    edit = record(journal, 41)
    assert journal.next_label() == 42
    record(journal, 3)
    journal.forget(edit)
    assert journal.next_label() == 42
    journal.raise_next_label(100)
    assert journal.next_label() == 100


def test_an_edit_is_pending_until_it_is_settled(journal: Journal) -> None:
    edit = record(journal, 1)
    (pending,) = journal.pending()
    assert (pending.edit.number, pending.is_done) == (edit.number, True)
    journal.settle(edit, is_done=True)
    assert journal.pending() == []
    journal.intend(edit, is_done=False)
    (pending,) = journal.pending()
    assert (pending.edit.number, pending.is_done) == (edit.number, False)


def test_the_history_is_the_order_of_undo_and_a_new_edit_ends_redo(journal: Journal) -> None:
    edits = [record(journal, label) for label in (1, 2, 3, 4)]
    for edit in edits:
        journal.settle(edit, is_done=True)
    for edit in (edits[3], edits[2]):
        journal.settle(edit, is_done=False)
    history = journal.history()
    assert [edit.label for edit in history.done] == [1, 2]
    assert [edit.label for edit in history.undone] == [4, 3]
    assert (journal.newest_done(), journal.oldest_undone()) == (edits[1].number, edits[2].number)
    newer = record(journal, 5)
    assert newer.number > edits[3].number
    assert [edit.label for edit in journal.history().done] == [1, 2, 5]
    assert journal.history().undone == ()
    assert list(journal.blocks(edits[3])) == []


def test_the_history_is_long_but_not_endless(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("napari_hrsam.storage.journal.UNDO_DEPTH", 3)
    for label in range(1, 6):
        record(journal, label)
    assert [edit.label for edit in journal.history().done] == [3, 4, 5]


def test_a_failure_while_blocks_are_made_leaves_nothing(journal: Journal) -> None:
    undone = record(journal, 1)
    journal.settle(undone, is_done=False)

    def failing() -> Iterator[Block]:
        yield block(9)
        raise LabelsError("damaged chunk")

    with pytest.raises(LabelsError, match="damaged chunk"):
        journal.record(failing(), label=9, plane=(), prompts=Prompts(), model="")
    assert journal.record((), label=9, plane=(), prompts=Prompts(), model="") is None
    assert [edit.label for edit in journal.history().undone] == [1]
    assert journal.next_label() == 2


def test_a_damaged_file_is_reported_with_a_way_out_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    path.write_bytes(b"no database at all " * 100)
    with pytest.raises(LabelsError, match="expected an intact journal.*Move the folder .* away"):
        Journal(path, U4)
    assert path.read_bytes() == b"no database at all " * 100


def test_damage_inside_is_reported_too(journal: Journal) -> None:
    edit = record(journal, 1)
    journal.close()
    database = sqlite3.connect(journal.path)
    database.execute("UPDATE blocks SET after = x'00112233'")
    database.execute("UPDATE edits SET prompts = 'nonsense'")
    database.commit()
    database.close()
    opened = Journal(journal.path, U4)
    with pytest.raises(LabelsError, match="expected an intact journal, got damage"):
        next(opened.blocks(edit))
    with pytest.raises(LabelsError, match="JSONDecodeError"):
        opened.history()
    opened.close()


def test_a_newer_version_is_refused(journal: Journal) -> None:
    journal.close()
    database = sqlite3.connect(journal.path)
    database.execute("PRAGMA user_version = 2")
    database.close()
    with pytest.raises(LabelsError, match="journal of version 1 .* got 2; update napari-hrsam"):
        Journal(journal.path, U4)


def test_a_half_made_journal_is_no_journal(tmp_path: Path) -> None:
    (tmp_path / "journal.sqlite.partial").write_bytes(b"killed here")
    opened = Journal.create(tmp_path / "journal.sqlite", U4, 5)
    assert opened.next_label() == 5
    opened.close()
    assert not (tmp_path / "journal.sqlite.partial").exists()
