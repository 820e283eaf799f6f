"""The object that is being drawn is kept beside the commits."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from napari_hrsam.errors import LabelsError
from napari_hrsam.geometry import Box
from napari_hrsam.prompts import Prompts
from napari_hrsam.storage.label_image import create_labels, open_labels
from napari_hrsam.storage.labels.journal_facts import JOURNAL_FILE
from napari_hrsam.storage.labels.unfinished import Unfinished

BEGUN = Prompts().with_click((4, 5), True)
OBJECTS = (
    Unfinished(prompts=BEGUN, level=-1),
    Unfinished(
        prompts=BEGUN.with_box((1, 2, 30, 40)).with_scribble([(3, 3), (9, 9.5)], positive=False),
        level=3,
        plane=(0, 7),
        label=12,
        carried=(3, (0, 6)),
        begun_with=BEGUN,
        model="m",
    ),
)


@pytest.mark.parametrize("left", OBJECTS)
def test_it_is_found_by_the_next_session_until_it_is_committed(
    tmp_path: Path, left: Unfinished
) -> None:
    with create_labels(tmp_path / "a", "cells", (60, 80)) as labels:
        assert labels.unfinished is None
        labels.keep_unfinished(OBJECTS[0])
        labels.keep_unfinished(left)
        # A class says nothing of the object that is being drawn.
        labels.set_class(1, "nucleus")
    with open_labels(tmp_path / "a", "cells") as labels:
        assert labels.unfinished == left
        labels.write(Box(0, 0, 5, 5), np.ones((5, 5), bool), 1)
        assert labels.unfinished is None
        labels.keep_unfinished(left)
        labels.keep_unfinished(None)
        assert labels.unfinished is None


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"points_yx": 3}', OBJECTS[0].text().replace("-1", '"x"'), 7]
)
def test_what_is_none_of_ours_is_refused(tmp_path: Path, text: object) -> None:
    with create_labels(tmp_path / "a", "cells", (60, 80)) as labels:
        folder = labels.folder
    with closing(sqlite3.connect(folder / JOURNAL_FILE)) as database, database:
        database.execute("INSERT INTO facts VALUES ('unfinished', ?)", [text])
    with open_labels(tmp_path / "a", "cells") as labels:
        with pytest.raises(LabelsError, match="intact journal"):
            _ = labels.unfinished
        labels.keep_unfinished(None)
        assert labels.unfinished is None
