"""The output folder of a run on a lent machine: few files, whole at any moment."""

from __future__ import annotations

import csv
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from napari_hrsam.atomic_path import atomic_path

_RESULT, _LOG, _STEPS = "result.json", "train.log", "steps.csv"


class RunOutput:
    """``result.json`` with all facts, ``train.log`` with all that was said, ``steps.csv``.

    With the weights that is all: a lent machine gives 8 files back.

    Parameters
    ----------
    folder : Path
        Made where there is none; files of an earlier run are written over.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.facts: dict[str, Any] = {}
        self._start = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _LOG).write_text("")
        (folder / _STEPS).write_text("")
        self.put()

    def put(self, **facts: Any) -> None:
        """Add to ``result.json``."""
        self.facts.update(facts)
        with atomic_path(self.folder / _RESULT) as part:
            part.write_text(json.dumps(self.facts, indent=1))

    def say(self, text: str) -> None:
        """Print and log one line at once."""
        line = f"{time.monotonic() - self._start:6.1f} s  {text}\n"
        sys.stdout.write(line)
        sys.stdout.flush()
        with (self.folder / _LOG).open("a") as stream:
            stream.write(line)

    def row(self, *values: Any) -> None:
        """Add a row to ``steps.csv``."""
        with (self.folder / _STEPS).open("a", newline="") as stream:
            csv.writer(stream).writerow(values)

    def join(self, folders: Sequence[Path]) -> dict[str, Any]:
        """Add logs and rows of other runs to one's own; their facts by name of the folder.

        Parameters
        ----------
        folders : sequence of Path
            A run that has written nothing is left out.
        """
        facts = {}
        for folder in folders:
            for name in (_LOG, _STEPS):
                if (folder / name).exists():
                    with (self.folder / name).open("a") as stream:
                        stream.write((folder / name).read_text())
            if (folder / _RESULT).exists():
                facts[folder.name] = json.loads((folder / _RESULT).read_text())
        return facts
