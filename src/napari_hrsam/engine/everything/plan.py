"""What a run is to do, written down before it begins, and what it has found so far."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_hrsam.engine.everything.field import CELL_PX, Field
from napari_hrsam.engine.everything.found import Found, cell0_px, load_found
from napari_hrsam.engine.everything.growing import Rules
from napari_hrsam.engine.everything.strokes import WantedClass
from napari_hrsam.errors import ConfigError, DataError, SessionError
from napari_hrsam.geometry import Box, Grid
from napari_hrsam.storage.files.safe_files import force, write_once
from napari_hrsam.storage.images.fingerprint import identify
from napari_hrsam.storage.images.tile_source import PyramidImage

if TYPE_CHECKING:
    from napari_hrsam.engine.predictor import Predictor

VERSION = 1
"""Of how objects are found: raised when the same image and model would give other ones."""

BLOCK_PX = 4096
"""Side of a block in level pixels."""

PLAN_FILE = "plan.json"

Place = tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a run is to do.

    Attributes
    ----------
    version : int
        `VERSION`.
    image, model : str
        Fingerprints of both.
    model_name : str
    level : int
    plane : tuple of int
    box : tuple of int
        Where seeds may begin: y0, x0, y1, x1 in cells.
    rules : dict
        The fields of `Rules`.
    skip_blank : bool
    wanted : dict or None
        `strokes.WantedClass.as_dict`, if only objects of a class are looked for.
    block : int
        Side of a block in cells. What is found does not depend on it.
    """

    version: int
    image: str
    model: str
    model_name: str
    level: int
    plane: tuple[int, ...]
    box: tuple[int, int, int, int]
    rules: dict[str, Any]
    skip_blank: bool
    block: int
    wanted: dict[str, Any] | None = None

    @property
    def run(self) -> str:
        """Tell this run from all that would find other objects: 16 hex digits."""
        told = {key: value for key, value in asdict(self).items() if key != "block"}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def region(self) -> Box:
        """Where seeds may begin, in cells."""
        return Box(*self.box)

    def places(self) -> list[Place]:
        """Return row and column of every block, row by row."""
        return list(Grid((self.block, self.block)).places(self.region))

    def places_near(self, box: Box, margin: int) -> list[Place]:
        """Return the blocks that lie less than a margin from some cells."""
        around = box.expand(margin).intersection(self.region)
        return list(Grid((self.block, self.block)).places(around))

    def core(self, place: Place) -> Box:
        """Return the cells that belong to a block."""
        return Grid((self.block, self.block)).box(place).intersection(self.region)


def plan_for(
    image: PyramidImage, predictor: Predictor, field: Field, box0: Box, rules: Rules, **more: Any
) -> Plan:
    """Make the plan of a run over a level-0 box of an image."""
    cell = cell0_px(field.level)
    region = Box(box0.y0 // cell, box0.x0 // cell, -(-box0.y1 // cell), -(-box0.x1 // cell))
    region = region.clip(field.shape)
    block_px = more.pop("block_px", BLOCK_PX)
    return Plan(
        version=VERSION,
        image=identify(image, predictor.fill).digest,
        model=predictor.fingerprint,
        model_name=predictor.name,
        level=field.level,
        plane=field.plane,
        box=(region.y0, region.x0, region.y1, region.x1),
        rules=asdict(rules),
        block=block_px // CELL_PX,
        **more,
    )


class Records:
    """The folder of a run: its plan, and a file of objects per block that is done.

    Parameters
    ----------
    folder : Path
        Made if there is none.
    plan : Plan
        One that is there already must find the same objects; its blocks are kept to.

    Attributes
    ----------
    folder : Path
    plan : Plan

    Raises
    ------
    SessionError
        If the folder is that of another run, or its plan is damaged.
    OSError
        If it cannot be written to.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder = folder
        self._files = folder / "records"
        file = folder / PLAN_FILE
        if not file.exists():
            self._files.mkdir(parents=True, exist_ok=True)
            # Of several that begin at once, the plan of one counts.
            write_once(file, json.dumps(asdict(plan), indent=1).encode())
            force([self._files, folder, folder.parent])
        self.plan = _same_run(read_plan(folder), plan, folder)

    def missing(self, places: Sequence[Place]) -> list[Place]:
        """Return the blocks that are not done."""
        try:
            # One question, which file systems of a cluster answer afresh, not one for each block.
            there = {entry.name for entry in self._files.iterdir()}
        except FileNotFoundError:
            there = set()
        return [place for place in places if self._file(place).name not in there]

    def holds(self, place: Place) -> bool:
        """Whether a block is done."""
        return self._file(place).exists()

    def save(self, place: Place, found: Found) -> None:
        """Write down what a block holds; raises OSError when the disk fails."""
        found.save(self._file(place), self.plan.run)

    def load(self, place: Place) -> Found:
        """Read what a block holds; raises `DataError` if the file is damaged."""
        return load_found(self._file(place), self.plan.run)

    def drop(self, place: Place) -> None:
        """Have a block done again."""
        self._file(place).unlink(missing_ok=True)

    def copy_to(self, folder: Path) -> None:
        """Copy the plan and what was found into a new folder."""
        (folder / "records").mkdir(parents=True)
        shutil.copyfile(self.folder / PLAN_FILE, folder / PLAN_FILE)
        for place in self.plan.places():
            shutil.copyfile(self._file(place), folder / "records" / self._file(place).name)

    def _file(self, place: Place) -> Path:
        return self._files / f"{place[0]}_{place[1]}.npz"


def read_plan(folder: Path) -> Plan:
    """Read the plan of a run.

    Raises
    ------
    SessionError
        If it is damaged.
    """
    file = folder / PLAN_FILE
    try:
        told = json.loads(file.read_bytes())
        told["plane"], told["box"] = tuple(told["plane"]), tuple(told["box"])
        Rules(**told["rules"])
        if told.get("wanted") is not None:
            WantedClass.from_dict(told["wanted"])
        return Plan(**told)
    except (OSError, ValueError, TypeError, KeyError, DataError, ConfigError) as error:
        raise SessionError(
            f"expected the plan of a run at {file}, got something else ({error}); delete the "
            f"folder {folder} to begin anew, or choose another name for the labels"
        ) from error


def _same_run(there: Plan, wanted: Plan, folder: Path) -> Plan:
    if there.run == wanted.run:
        return there
    one, other = asdict(there), asdict(wanted)
    differing = [key for key in one if key != "block" and one[key] != other[key]]
    raise SessionError(
        f"expected to go on with the run at {folder}, which has another "
        f"{', another '.join(differing).replace('_', ' ')} than was asked for now; ask for the "
        "same as before, or choose another name for the labels, or delete the folder"
    )
