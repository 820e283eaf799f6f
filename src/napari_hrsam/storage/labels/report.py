"""What verifying labels found, in words."""

from __future__ import annotations

from napari_hrsam.geometry import Box
from napari_hrsam.storage.labels.check import LabelsReport
from napari_hrsam.storage.labels.check_levels import Problem


def summary(report: LabelsReport) -> str:
    """Say in one line what is there and whether it is sound."""
    left = sum(not problem.is_repaired for problem in report.problems)
    return (
        f"{report.num_levels} levels, {report.num_chunks} chunks, {report.num_objects} objects, "
        f"highest label {report.highest_label}: "
        + ("sound" if report.is_sound else f"{left} problem" + "s" * (left != 1))
        + (f", {len(report.problems) - left} repaired" if left < len(report.problems) else "")
    )


def problem_cells(problem: Problem) -> list[str]:
    """Return the kind of a problem, its level, its place, and what it is."""
    place = "" if problem.box is None else ",".join(map(str, ends(problem.box)))
    if problem.plane:
        place += f" of plane {','.join(map(str, problem.plane))}"
    level = "" if problem.level is None else str(problem.level)
    return [problem.kind, level, place, problem.text + " (repaired)" * problem.is_repaired]


def ends(box: Box) -> tuple[int, int, int, int]:
    """Return y0, x0, y1, x1."""
    return box.y0, box.x0, box.y1, box.x1
