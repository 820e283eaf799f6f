"""The blocks of a run as tasks: each finds the objects of one, and writes one file."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from napari_hrsam.engine.everything.field import Field
from napari_hrsam.engine.everything.found import find_objects
from napari_hrsam.engine.everything.growing import Rules
from napari_hrsam.engine.everything.plan import Place, Records, read_plan
from napari_hrsam.engine.everything.strokes import WantedClass, field_of
from napari_hrsam.engine.tasks import EndOfRunError, require_same_work
from napari_hrsam.errors import SessionError

if TYPE_CHECKING:
    from napari_hrsam.modeling.segmenter import Segmenter
    from napari_hrsam.storage.images.tile_source import PyramidImage

_OF_ALL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT}
"""Errors in writing that every other block would meet, too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """What a block took.

    Attributes
    ----------
    seconds : dict of str to float
        Of the processor, by what was done.
    num_tiles, num_blank : int
        Tiles encoded, and left out because they show nothing.
    mpx : float
        Millions of level pixels that were looked at.
    """

    seconds: Mapping[str, float]
    num_tiles: int = 0
    num_blank: int = 0
    mpx: float = 0.0


def block_task(
    field: Field, records: Records, step: Callable[[], None] | None = None
) -> Callable[[Place], Done]:
    """Return what finds the objects of a block, and writes them down if they are not there."""
    plan, rules = records.plan, Rules(**records.plan.rules)

    def do(place: Place) -> Done:
        if records.holds(place):
            return Done(seconds={})
        before = dict(field.seconds), field.num_tiles, field.num_blank
        core = plan.core(place)
        found = find_objects(field, core, rules, step=step)
        started = time.process_time()
        try:
            records.save(place, found)
        except OSError as error:
            if error.errno not in _OF_ALL:
                raise
            raise EndOfRunError(
                f"expected to write to {records.folder}, got {error}; check the space on the disk "
                "and the rights of the folder, and run the same again to go on from there"
            ) from error
        field.seconds["write"] += time.process_time() - started
        return Done(
            seconds={key: value - before[0].get(key, 0.0) for key, value in field.seconds.items()},
            num_tiles=field.num_tiles - before[1],
            num_blank=field.num_blank - before[2],
            mpx=core.area * 4 / 1e6,
        )

    return do


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockJob:
    """The blocks of a run, for another process or machine.

    Attributes
    ----------
    image : PyramidImage
    model : Segmenter
    folder : str
        Of the run, under the same path everywhere.
    run : str
        `Plan.run`.
    """

    image: PyramidImage
    model: Segmenter
    folder: str
    run: str

    def open(self, step: Callable[[], None]) -> Callable[[Place], Done]:
        """Return what does a block.

        Raises
        ------
        SessionError
            If the plan is not there, or is one of another image or model.
        """
        from napari_hrsam.engine.predictor import Predictor, use_one_thread

        use_one_thread()
        plan = read_plan(Path(self.folder))
        records = Records(Path(self.folder), plan)
        predictor = Predictor(self.model)
        if plan.run != self.run:
            raise SessionError(
                f"expected the plan of the run {self.run} at {self.folder}, got that of "
                f"{plan.run}; see that the folder is the same on all machines"
            )
        require_same_work(self.image, predictor, (plan.image, plan.model))
        wanted = None if plan.wanted is None else WantedClass.from_dict(plan.wanted)
        field = field_of(
            self.image,
            predictor,
            plan.level,
            plan.plane,
            skip_blank=plan.skip_blank,
            wanted=wanted,
        )
        return block_task(field, records, step)
