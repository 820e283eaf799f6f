from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from napari_hrsam.errors import LabelsError
from napari_hrsam.geometry import Box
from napari_hrsam.prompts import Prompts
from napari_hrsam.storage.labels.blocks import Block, _zstd
from napari_hrsam.storage.labels.edits import DrawnAs, History
from napari_hrsam.storage.labels.journal import Journal, JournalEdit

U4 = np.dtype("u4")
PROMPTS = Prompts().with_click((3.25, 4), True).with_click((1, 2), False).with_box((0, 1, 9, 8.5))


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal.create(tmp_path / "journal.sqlite", U4, 1, 0)
    yield opened
    opened.close()


CHANGED = np.random.default_rng(0).random((4, 5)) < 0.5


def block(y0: int = 0) -> Block:
    return Block(Box(y0, 2, y0 + 4, 7), CHANGED)


def record(journal: Journal, label: int, *blocks: Block) -> JournalEdit:
    edit = journal.record(
        blocks or (block(),),
        label=label,
        plane=(3, 1),
        drawn=DrawnAs(prompts=PROMPTS, model="tiny"),
    )
    assert edit is not None
    return edit


def test_an_edit_comes_back_as_it_was_also_after_opening_again(journal: Journal) -> None:
    before = np.arange(20, dtype=U4).reshape(4, 5)
    over = Block(Box(9, 2, 13, 7), CHANGED, before)
    whole = Block(Box(20, 0, 3000, 5000))
    edit = record(journal, 7, block(), over, whole)
    assert edit.box == Box(0, 0, 3000, 5000)
    journal.mark_applied(edit, is_done=True)
    journal.close()
    again = Journal(journal.path, U4)
    (found,) = again.history().done
    for name in ("label", "box", "prompts", "model", "time", "plane", "number", "journal"):
        assert getattr(found, name) == getattr(edit, name)
    blocks = again.blocks(found)  # type: ignore[arg-type]
    assert blocks.boxes == [block().box, over.box, whole.box]
    for index, expected in enumerate((block(), over, whole)):
        got = blocks.read(index)
        assert got.box == expected.box
        np.testing.assert_array_equal(got.changed, expected.changed)
        np.testing.assert_array_equal(got.before, expected.before)
    again.close()


def test_a_block_that_is_wholly_changed_takes_no_bytes(journal: Journal) -> None:
    record(journal, 1, Block(Box(0, 0, 512, 30_000)))
    database = sqlite3.connect(journal.path)
    assert database.execute("SELECT changed, before FROM blocks").fetchall() == [(None, None)]
    database.close()


def test_the_next_label_is_above_every_recorded_one_and_never_falls(journal: Journal) -> None:
    assert journal.next_label() == 1
    edit = record(journal, 41)
    assert journal.next_label() == 42
    record(journal, 3)
    journal.forget(edit)
    assert journal.next_label() == 42
    journal.note_look(99, 7)
    assert journal.next_label() == 100
    journal.note_look(50, 8)
    assert (journal.next_label(), journal.looked_ns()) == (100, 8)


def test_an_edit_is_pending_and_counts_as_before_until_it_is_applied(journal: Journal) -> None:
    def pending() -> list[tuple[int, bool, bool]]:
        return [(one.edit.number, one.is_done, one.is_new) for one in journal.pending()]

    edit = record(journal, 1)
    assert pending() == [(edit.number, False, True)]
    assert (journal.newest_done(), journal.oldest_undone()) == (None, None)
    assert journal.history() == History()
    journal.mark_applied(edit, is_done=True)
    assert pending() == []
    for is_done in (False, True):
        journal.mark_pending(edit, was_done=not is_done)
        assert pending() == [(edit.number, not is_done, False)]
        journal.mark_applied(edit, is_done=is_done)
        assert pending() == []
        assert [one.label for one in journal.history().done] == [1] * is_done


def test_an_edit_that_never_was_done_leaves_what_was_undone(journal: Journal) -> None:
    undone = record(journal, 1)
    journal.mark_applied(undone, is_done=False)
    refused = record(journal, 2)
    journal.forget(refused)
    assert [edit.label for edit in journal.history().undone] == [1]
    # Interrupted right after it was applied.
    refused = record(journal, 2)
    journal.mark_applied(refused, is_done=True)
    journal.mark_pending(refused, was_done=False, is_new=True)
    assert journal.history() == History()
    (pending,) = journal.pending()
    assert (pending.is_done, pending.is_new) == (False, True)


@pytest.mark.parametrize("label", [1, 2**63 - 1, 2**63, 2**64 - 1])
def test_ids_up_to_the_last_of_uint64_come_back(tmp_path: Path, label: int) -> None:
    with closing(Journal.create(tmp_path / "a.sqlite", np.dtype("uint64"), 1, 0)) as journal:
        journal.mark_applied(record(journal, label), is_done=True)
        assert [edit.label for edit in journal.history().done] == [label]
        assert journal.next_label() == label + 1
        record(journal, 5)
        assert journal.next_label() == max(label, 5) + 1


@pytest.mark.parametrize("label", [7, 2**63 + 7])
def test_a_fact_that_was_set_back_gives_no_id_twice(tmp_path: Path, label: int) -> None:
    """As in a journal that is in part an older copy."""
    path, dtype = tmp_path / "a.sqlite", np.dtype("uint64")
    with closing(Journal.create(path, dtype, 1, 0)) as journal:
        for one in (label, 3):
            journal.mark_applied(record(journal, one), is_done=True)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE facts SET value = 2 WHERE name = 'next_label'")
    with closing(Journal(path, dtype)) as journal:
        assert journal.next_label() == label + 1


def test_an_id_beyond_the_dtype_is_damage(journal: Journal) -> None:
    journal.mark_applied(record(journal, 2**32), is_done=True)
    with pytest.raises(LabelsError, match=r"the id 4294967296 in labels of uint32"):
        journal.history()


def test_the_chunks_that_we_wrote_are_known_by_their_stamps(journal: Journal) -> None:
    journal.mark_applied(record(journal, 1), is_done=True, seen=[("c/0/0", 5), ("c/0/1", 6)])
    journal.mark_applied(record(journal, 2), is_done=True, seen=[("c/0/1", 9)])
    seen = [("c/0/0", 5), ("c/0/0", 6), ("c/0/1", 6), ("c/0/1", 9), ("c/1/1", 9)]
    assert [journal.is_seen(*one) for one in seen] == [True, False, False, True, False]
    journal.note_look(3, 7)
    assert [journal.is_seen(*one) for one in seen] == [False, False, False, True, False]


def test_the_history_is_the_order_of_undo_and_a_new_edit_ends_redo(journal: Journal) -> None:
    edits = [record(journal, label) for label in (1, 2, 3, 4)]
    for edit in edits:
        journal.mark_applied(edit, is_done=True)
    for edit in (edits[3], edits[2]):
        journal.mark_applied(edit, is_done=False)
    history = journal.history()
    assert [edit.label for edit in history.done] == [1, 2]
    assert [edit.label for edit in history.undone] == [4, 3]
    done, undone = journal.newest_done(), journal.oldest_undone()
    assert done is not None
    assert undone is not None
    assert (done.number, undone.number) == (edits[1].number, edits[2].number)
    newer = record(journal, 5)
    journal.mark_applied(newer, is_done=True)
    assert newer.number > edits[3].number
    assert [edit.label for edit in journal.history().done] == [1, 2, 5]
    assert journal.history().undone == ()
    assert journal.blocks(edits[3]).boxes == []


def test_the_history_is_long_but_not_endless(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("napari_hrsam.storage.labels.journal.UNDO_DEPTH", 3)
    for label in range(1, 6):
        journal.mark_applied(record(journal, label), is_done=True)
    assert [edit.label for edit in journal.history().done] == [3, 4, 5]


def test_a_failure_while_blocks_are_made_leaves_nothing(journal: Journal) -> None:
    undone = record(journal, 1)
    journal.mark_applied(undone, is_done=False)

    def failing() -> Iterator[Block]:
        yield block()
        raise LabelsError("damaged chunk")

    with pytest.raises(LabelsError, match="damaged chunk"):
        journal.record(failing(), label=9, plane=())
    assert journal.record((), label=9, plane=()) is None
    assert [edit.label for edit in journal.history().undone] == [1]
    assert journal.next_label() == 2


def test_a_damaged_file_is_reported_with_a_way_out_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    path.write_bytes(b"no database at all " * 100)
    with pytest.raises(LabelsError, match="expected an intact journal.*Move the folder .* away"):
        Journal(path, U4)
    assert path.read_bytes() == b"no database at all " * 100


def test_damage_inside_is_reported_too(journal: Journal) -> None:
    # Noise is stored as it is: a wrong bit makes another label, which only a checksum shows.
    noise = np.random.default_rng(1).integers(1, 2**32, (4, 5), U4)
    edit = record(journal, 1, block(), Block(block(9).box, CHANGED, noise))
    journal.mark_applied(edit, is_done=True)
    journal.close()
    database = sqlite3.connect(journal.path)
    (good,) = database.execute("SELECT before FROM blocks WHERE before IS NOT NULL").fetchone()
    cut = bytes([*good[:40], good[40] ^ 1, *good[41:]])
    database.execute("UPDATE blocks SET changed = x'00112233' WHERE before IS NULL")
    database.execute("UPDATE blocks SET before = ? WHERE before IS NOT NULL", [cut])
    database.execute("UPDATE edits SET prompts = 'nonsense'")
    database.commit()
    database.close()
    opened = Journal(journal.path, U4)
    for index in range(2):
        with pytest.raises(LabelsError, match="expected an intact journal, got damage"):
            opened.blocks(edit).read(index)
    # Whole in itself, but of another block.
    opened._database.execute("UPDATE blocks SET changed = ?", [_zstd(np.zeros(9, np.uint8))])
    with pytest.raises(LabelsError, match="bytes were expected when it is decoded"):
        opened.blocks(edit).read(0)
    with pytest.raises(LabelsError, match="JSONDecodeError"):
        opened.history()
    opened.close()


@pytest.mark.parametrize(
    ("version", "way_out"), [(3, "update napari-hrsam"), (1, "Move the folder .* away and open")]
)
def test_another_version_is_refused_with_a_way_out(
    journal: Journal, version: int, way_out: str
) -> None:
    journal.close()
    database = sqlite3.connect(journal.path)
    database.execute(f"PRAGMA user_version = {version}")
    database.close()
    with pytest.raises(LabelsError, match=f"journal of version 2 .* got {version}.* {way_out}"):
        Journal(journal.path, U4)


def test_every_note_is_forced_onto_the_disk(tmp_path: Path, journal: Journal) -> None:
    journal.close()
    opened = Journal(tmp_path / "journal.sqlite", U4)
    assert opened._database.execute("PRAGMA synchronous").fetchone() == (2,)
    opened.close()


def test_a_half_made_journal_is_no_journal(tmp_path: Path) -> None:
    (tmp_path / "journal.sqlite.partial").write_bytes(b"killed here")
    opened = Journal.create(tmp_path / "journal.sqlite", U4, 5, 0)
    assert opened.next_label() == 5
    opened.close()
    assert not (tmp_path / "journal.sqlite.partial").exists()
