"""The form *Verify labels*."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import napari.layers

from napari_hrsam.errors import LabelsError
from napari_hrsam.plugin.forms.form import Form
from napari_hrsam.plugin.forms.jobs import Job, Progress, at_once
from napari_hrsam.plugin.forms.labels_of import labels_on_disk
from napari_hrsam.storage.labels.check import LabelsReport, verify_labels
from napari_hrsam.storage.labels.report import problem_cells, summary

if TYPE_CHECKING:
    import napari.viewer

MAX_SHOWN = 200
"""Problems that are listed; `napari-hrsam labels verify --json` lists all."""


def prepare_verify(
    labels: napari.layers.Labels | None = None,
    folder: Path | None = None,
    name: str = "",
    repair: bool = False,
) -> Job[LabelsReport]:
    """Check a label image on disk: metadata, chunks, levels and journal.

    Parameters
    ----------
    labels : Labels layer, optional
        One that shows a label image on disk; or:
    folder, name
        An OME-Zarr image or a folder of labels, and the name of the label image in it.
    repair : bool
        Complete what a crash left half done, and write coarser levels anew where they differ from
        the finer ones; full size is never changed. Not while the labels are open for drawing.

    Raises
    ------
    LabelsError
        If the labels are not on disk; see `napari_hrsam.verify_labels`.
    """
    place = labels_on_disk(labels, folder, name)
    if place is None:
        assert labels is not None
        raise LabelsError(
            f"expected labels on disk, got the layer '{labels.name}', which is in memory; there is "
            "nothing to verify in it, or choose the folder of a label image"
        )

    def run(progress: Progress) -> LabelsReport:
        return verify_labels(place.path, place.name, repair=repair, progress=progress)

    return run


verify_layer = at_once(prepare_verify)


class VerifyForm(Form):
    """The dock: what to verify, and what was found."""

    def __init__(self, napari_viewer: napari.viewer.Viewer) -> None:
        super().__init__(
            napari_viewer,
            prepare_verify,
            action="Verify",
            options={
                "labels": {"label": "Labels"},
                "folder": {"label": "or folder", "mode": "d"},
                "name": {"label": "its labels", "hint": "the only ones"},
                "repair": {"label": "Repair"},
            },
        )
        self.fields.changed.connect(self.show_labels_fields)
        self.show_labels_fields()

    def describe(self, result: LabelsReport) -> str:
        """Say what was found: a line, then the problems and the notes."""
        lines = [summary(result)]
        for problem in result.problems[:MAX_SHOWN]:
            kind, level, place, text = problem_cells(problem)
            head = f"Level {level}" if level else kind.capitalize()
            lines.append(f"{head}{f' at {place}' if place else ''}: {text}")
        if len(result.problems) > MAX_SHOWN:
            lines.append(f"and {len(result.problems) - MAX_SHOWN} more")
        return "\n\n".join([*lines, *(f"note: {note}" for note in result.notes)])
