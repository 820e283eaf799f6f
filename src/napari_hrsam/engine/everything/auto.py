"""Every object of a level, block by block, into a label image of its own."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.engine.embed import box_on
from napari_hrsam.engine.everything.blocks import BlockJob, Done, block_task
from napari_hrsam.engine.everything.field import Field
from napari_hrsam.engine.everything.found import Found, cell0_px, rules_for
from napari_hrsam.engine.everything.growing import Rules
from napari_hrsam.engine.everything.plan import (
    BLOCK_PX,
    Place,
    Plan,
    Records,
    plan_for,
    read_plan,
)
from napari_hrsam.engine.everything.strokes import WantedClass, field_of
from napari_hrsam.engine.tasks import (
    Crew,
    Shard,
    StoppedError,
    Tally,
    do_by_others,
    do_one_by_one,
    part_of,
)
from napari_hrsam.errors import ConfigError, DataError, LabelsError, SessionError
from napari_hrsam.geometry import Box
from napari_hrsam.lru import LRU
from napari_hrsam.storage.files.safe_files import discard, write_anew
from napari_hrsam.storage.files.writer_lock import one_at_a_time
from napari_hrsam.storage.images.opening import open_image
from napari_hrsam.storage.images.tile_source import PyramidImage
from napari_hrsam.storage.labels.making import run_folder
from napari_hrsam.storage.labels.names import local_folder, require_new_name
from napari_hrsam.storage.labels.painted import REGIONS, make_painted_labels

if TYPE_CHECKING:
    from napari_hrsam.modeling.segmenter import Segmenter

RUN_FOLDER = ".auto"
"""Inside the label image: the plan, what was found, and the table."""

TABLE_FILE = "objects.csv"

FAILED_FILE = "failed{}.json"
"""In the folder of a run: the blocks that were given up; of a shard, with its number."""

MAX_FOUND_BYTES = 128 * 2**20
"""Memory for what was found in blocks, while their labels are painted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoReport:
    """What a run came to.

    Attributes
    ----------
    path, name : str
        The folder and the name of the label image, as `open_labels` takes them.
    table : str
        A CSV file with a row per object.
    run : str
        Tells it from runs that would find other objects.
    level : int
    num_objects : int
    num_too_large : int
        Objects that were left out because they are too large for the level: a coarser one finds
        them.
    num_blocks, num_at_hand : int
        Blocks in all, and those that an earlier call had done.
    num_missing : int
        Blocks that other shards have still to do: none, unless ``shard`` was given. Until then
        there is no label image and no table, and no object is counted.
    num_tiles, num_blank : int
        Tiles that were encoded just now, and those that were left out because they show nothing.
    mpx : float
        Millions of level pixels that were looked at just now, blocks without what is around them.
    seconds : float
        From beginning to end.
    split : mapping of str to float
        Seconds of one core for "read", "encode", "head", "watershed" and "write".
    """

    path: str
    name: str
    table: str
    run: str
    level: int
    num_objects: int
    num_too_large: int
    num_blocks: int
    num_at_hand: int
    num_missing: int
    num_tiles: int
    num_blank: int
    mpx: float
    seconds: float
    split: Mapping[str, float]

    @property
    def mpx_per_core_s(self) -> float:
        """Millions of level pixels per second of one core."""
        return self.mpx / max(sum(self.split.values()), 1e-9)


def auto(
    image: Any,
    labels: str = "auto-1",
    level: int = 0,
    box: Sequence[float] | Box | None = None,
    *,
    path: str | PathLike[str] | None = None,
    plane: tuple[int, ...] = (),
    model: Segmenter | str = "hrsam-tiny",
    smallest_px: float | None = None,
    largest_px: float | None = None,
    skip_blank: bool = False,
    wanted: WantedClass | None = None,
    workers: int | Crew = 1,
    shard: Shard | None = None,
    progress: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    block_px: int = BLOCK_PX,
) -> AutoReport:
    """Find every object of a level, of any size, and make a label image of them.

    What is found is written down block by block; a call that was stopped or killed goes on from
    there when it is made again. The label image is there as a whole or not at all, and no other one
    is touched. It does not depend on the size of the blocks, the number of workers or their order.

    Parameters
    ----------
    image : path, URL, array, or anything that `open_image` takes
    labels : str
        Name of the label image to be made.
    level : int
        Level at which objects are looked for: 0 full size, 1 half of it. One at which they are 20
        to 150 pixels long is best.
    box : (y0, x0, y1, x1), optional
        Only objects that begin in it, in level-0 pixels.
    path : path, optional
        Folder for the labels, as in `create_labels`: by default the image, where that is a local
        OME-Zarr.
    plane : tuple of int
        Index over the axes before y and x.
    model : Segmenter or str
        With a dense head.
    smallest_px : float, optional
        Smallest area of an object, in level pixels; by default 160.
    largest_px : float, optional
        Longest side of an object in level pixels; by default half a tile. Larger ones are left out
        and counted.
    skip_blank : bool
        Leave out tiles that show one colour and noise.
    wanted : WantedClass, optional
        Only objects of this class, which was learned from strokes at this level (`learn_classes`).
    workers : int or Crew
        Processes, of one thread each. One that is killed is replaced. Or a
        cluster: `napari_hrsam.cluster.crew.DaskCrew`.
    shard : (int, int), optional
        Which part of the work to do, of how many, counted from 0: ``(0, 3)``, ``(1, 3)`` and
        ``(2, 3)`` by three programs, at once or not, are one run. The last of them makes the label
        image.
    progress : callable, optional
        Told how many blocks are done, and how many there are; of a shard, its own.
    should_stop : callable, optional
        Asked often; True ends the work, and what was found is kept.
    block_px : int
        Side of a block in level pixels, a multiple of 16.

    Returns
    -------
    AutoReport

    Raises
    ------
    ConfigError
        If the model has no dense head, there is no such level, or a number is out of range.
    LabelsError
        If the name is taken by labels of another run, or there is no place for them.
    SessionError
        If it was stopped, the run begun under this name is another one, or some blocks could not
        be done after several tries: the others are, and a file names those.
    ImageReadError
        If pixels cannot be read.
    """
    started = time.perf_counter()
    opened = open_image(image)
    folder = _folder(opened, path)
    require_new_name(labels)
    if (isinstance(workers, int) and workers < 1) or block_px < 64 or block_px % 16:
        raise ConfigError(
            "expected one worker or more and blocks of a multiple of 16 px, 64 or more, got "
            f"{workers} and {block_px}"
        )
    part_of([], shard)
    from napari_hrsam.engine.predictor import Predictor, one_thread

    segmenter = loaded(model)
    predictor = Predictor(segmenter)
    field = field_of(opened, predictor, level, plane, skip_blank=skip_blank, wanted=wanted)
    plan = plan_for(
        opened,
        predictor,
        field,
        box_on(opened.shape_yx, box),
        rules_for(predictor.tile_px, smallest_px, largest_px),
        skip_blank=skip_blank,
        wanted=None if wanted is None else wanted.as_dict(),
        block_px=block_px,
    )
    run = _Run(opened, folder, labels, plan, shard, progress, should_stop)
    if run.is_made():
        return run.report(started)
    run.records = Records(run_folder(folder, labels), plan)
    try:
        with one_thread():
            run.find(field, segmenter, workers)
        if not run.may_be_made():
            return run.report(started)
        run.make()
    except StoppedError:
        num, all_of_it = run.count()
        raise SessionError(
            f"stopped after {num} of {all_of_it} blocks, which are kept in "
            f"{run.records.folder}; run the same again to go on from there"
        ) from None
    except (SessionError, LabelsError):
        # Another program may have done the same meanwhile, and taken the folder away.
        if not run.is_made():
            raise
    return run.report(started)


def loaded(model: Segmenter | str) -> Segmenter:
    """Return a model that was given as one or by its name."""
    if not isinstance(model, str):
        return model
    from napari_hrsam.modeling.kept_model import kept_model

    return kept_model(model)


def _folder(image: PyramidImage, path: str | PathLike[str] | None) -> Path:
    if path is not None:
        return local_folder(path)
    if image.ome is None or (
        not (Path(image.ome.path) / "zarr.json").is_file()
        and not (Path(image.ome.path) / ".zgroup").is_file()
    ):
        raise LabelsError(
            f"expected a folder for the labels of {image!r}, which is no OME-Zarr on this "
            "computer; say path=... (--out on the command line)"
        )
    return local_folder(image.ome.path)


class _Run:
    """A run: what is found, then the label image."""

    def __init__(
        self,
        image: PyramidImage,
        folder: Path,
        name: str,
        plan: Plan,
        shard: Shard | None,
        progress: Callable[[int, int], None] | None,
        should_stop: Callable[[], bool] | None,
    ) -> None:
        self._image, self._folder, self._name = image, folder, name
        self._progress = progress
        self._should_stop = should_stop or (lambda: False)
        self.plan, self._shard = plan, shard
        self.records: Records | None = None
        self._made = folder / "labels" / name
        self._num_at_hand = self._num_missing = 0
        self._done: list[Done] = []
        self._making_s = 0.0

    def is_made(self) -> bool:
        """Whether the label image is there, made by the same run."""
        if not self._made.exists():
            return False
        inside = self._made / RUN_FOLDER
        if inside.is_dir() and read_plan(inside).run == self.plan.run:
            discard(run_folder(self._folder, self._name))
            return True
        raise LabelsError(
            f"expected a new name for the labels of this run, got {self._name!r}, which is taken "
            f"({self._made}); choose another name"
        )

    def find(self, field: Field, model: Segmenter, workers: int | Crew) -> None:
        """Find the objects of all blocks, or of those of the shard.

        Raises
        ------
        SessionError
            If some could not be done.
        """
        records, places = self._records, self._places()
        # What a power cut has left of a file is found before it is needed.
        for place in places:
            self._require_whole(place)
        missing = records.missing(places)
        self._num_at_hand = len(places) - len(missing)
        told = -1

        def tell() -> None:
            nonlocal told
            num, all_of_it = self.count()
            if self._progress is not None and num != told:
                told = num
                self._progress(num, all_of_it)

        tell()
        if not missing:
            return
        tally = Tally(missing)
        try:
            self._do(field, model, workers, tally, tell)
        finally:
            self._done = list(tally.values.values())
            told_failed = self._tell_failed(tally)
        if told_failed:
            raise SessionError(told_failed)

    def _do(
        self,
        field: Field,
        model: Segmenter,
        workers: int | Crew,
        tally: Tally[Place],
        tell: Callable[[], None],
    ) -> None:
        records, should_stop = self._records, self._should_stop

        def step() -> None:
            if should_stop():
                raise StoppedError

        if isinstance(workers, int) and min(workers, len(tally.left)) == 1:
            do_one_by_one(block_task(field, records, step), tally, tell)
            return
        job = BlockJob(
            image=self._image,
            model=model,
            folder=str(records.folder.resolve()),
            run=records.plan.run,
        )
        do_by_others(workers, job, tally, should_stop=should_stop, done=tell)

    def _tell_failed(self, tally: Tally[Place]) -> str:
        """Write down which blocks could not be done; return a message if there are any."""
        which = "" if self._shard is None else "-{}-of-{}".format(*self._shard)
        file = self._records.folder / FAILED_FILE.format(which)
        if not tally.failed:
            file.unlink(missing_ok=True)
            return ""
        plan, cell = self._records.plan, cell0_px(self.plan.level)
        failed = [
            {
                "block": place,
                "box": astuple(_box0(plan.core(place), cell)),
                "error": problem.error,
                "traceback": problem.trace,
            }
            for place, problem in sorted(tally.failed.items())
        ]
        write_anew(file, json.dumps({"run": plan.run, "failed": failed}, indent=1).encode())
        return (
            f"expected to do all blocks, but {len(failed)} of {len(self._places())} failed several "
            f"times, the first at (y0, x0, y1, x1) = {failed[0]['box']} by {failed[0]['error']}; "
            f"{file} names all of them; the others are kept: mend the cause and run the same "
            "again to go on from there"
        )

    def _places(self) -> list[Place]:
        """Return the blocks of the shard."""
        return part_of(self._records.plan.places(), self._shard)

    def count(self) -> tuple[int, int]:
        """Return how many blocks are done, and how many there are."""
        places = self._places()
        return len(places) - len(self._records.missing(places)), len(places)

    def may_be_made(self) -> bool:
        """Whether no other shard has work left."""
        self._num_missing = len(self._records.missing(self._records.plan.places()))
        if self._num_missing and self.is_made():
            # By the last shard, which then took the folder away.
            self._num_missing = 0
        return not self._num_missing

    def make(self) -> None:
        """Make the label image, unless another program was faster."""
        started = time.process_time()
        with one_at_a_time(self._records.folder / "making.lock"):
            if not self._made.exists():
                self._make()
        self._making_s = time.process_time() - started
        self.is_made()

    def _make(self) -> None:
        rows = self._numbered()

        def step() -> None:
            if self._should_stop():
                raise StoppedError

        make_painted_labels(
            self._folder,
            self._name,
            self._image,
            self._painted(rows),
            self.plan.plane,
            also=lambda folder: self._put_into(folder, rows),
            step=step,
        )

    def report(self, started: float) -> AutoReport:
        """Tell what came of it."""
        inside = self._made / RUN_FOLDER
        found: list[Found] = []
        places = self.plan.places() if self.records is None else self.records.plan.places()
        if not self._num_missing:
            records = Records(inside, self.plan)
            places = records.plan.places()
            found = [records.load(place) for place in places]
        kinds = {kind for done in self._done for kind in done.seconds}
        split = {kind: sum(done.seconds.get(kind, 0.0) for done in self._done) for kind in kinds}
        if self._making_s:
            split["write"] = split.get("write", 0.0) + self._making_s
        return AutoReport(
            path=str(self._folder),
            name=self._name,
            table=str(inside / TABLE_FILE),
            run=self.plan.run,
            level=self.plan.level,
            num_objects=sum(map(len, found)),
            num_too_large=sum(len(one.too_large) for one in found),
            num_blocks=len(places),
            num_at_hand=len(places) if self.records is None else self._num_at_hand,
            num_missing=self._num_missing,
            num_tiles=sum(done.num_tiles for done in self._done),
            num_blank=sum(done.num_blank for done in self._done),
            mpx=sum(done.mpx for done in self._done),
            seconds=time.perf_counter() - started,
            split=split,
        )

    @property
    def _records(self) -> Records:
        assert self.records is not None
        return self.records

    def _require_whole(self, place: Place) -> None:
        records = self._records
        if not records.missing([place]):
            try:
                records.load(place)
            except DataError:
                records.drop(place)

    def _numbered(self) -> dict[Place, NDArray[np.int64]]:
        """Give all objects numbers by their first cells, row by row, whatever their blocks."""
        places = self._records.plan.places()
        firsts = [self._records.load(place).first for place in places]
        ends = np.cumsum([len(first) for first in firsts])
        whole = np.concatenate(firsts)
        numbers = np.empty(len(whole), np.int64)
        numbers[np.lexsort((whole[:, 1], whole[:, 0]))] = np.arange(1, len(whole) + 1)
        return dict(zip(places, np.split(numbers, ends[:-1]), strict=True))

    def _painted(
        self, numbers: dict[Place, NDArray[np.int64]]
    ) -> Iterator[tuple[Box, NDArray[np.uint32]]]:
        """Paint region by region of level 0; objects do not overlap."""
        plan, cell = self._records.plan, cell0_px(self.plan.level)
        halo = Rules(**plan.rules).halo
        found: LRU[Place, Found] = LRU(MAX_FOUND_BYTES, _num_bytes)
        region0 = _box0(plan.region.expand(halo), cell).clip(self._image.shape_yx)
        for part in REGIONS.parts(region0):
            box = _whole_region(part, self._image.shape_yx)
            cells = Box(box.y0 // cell, box.x0 // cell, -(-box.y1 // cell), -(-box.x1 // cell))
            values = np.zeros(cells.shape_yx, np.uint32)
            for place in plan.places_near(cells, halo):
                if len(numbers[place]):
                    if place not in found:
                        found[place] = self._records.load(place)
                    values += found[place].paint(cells, numbers[place])
            large = values.repeat(cell, 0).repeat(cell, 1)
            first = box.y0 - cells.y0 * cell, box.x0 - cells.x0 * cell
            inside = Box.of_shape(box.shape_yx).shifted(*first)
            yield box, large[inside.slices]

    def _put_into(self, folder: Path, numbers: dict[Place, NDArray[np.int64]]) -> None:
        """Put what was found, and the table, into the label image."""
        inside = folder / RUN_FOLDER
        self._records.copy_to(inside)
        cell = cell0_px(self.plan.level)
        rows: list[tuple[Any, ...]] = []
        for place, own in numbers.items():
            rows += _rows(self._records.load(place), own, cell)
        rows.sort()
        with (inside / TABLE_FILE).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(TABLE_COLUMNS)
            writer.writerows(rows)


TABLE_COLUMNS = (
    "label", "score", "area_px", "y0_px", "x0_px", "y1_px", "x1_px", "solidity",
    "mean_red", "mean_green", "mean_blue", "std_red", "std_green", "std_blue",
)  # fmt: skip
"""Areas and half-open boxes are in level-0 pixels, colours 0..255 as the model sees them."""


def _rows(found: Found, numbers: NDArray[np.int64], cell: int) -> Iterator[tuple[Any, ...]]:
    told = (found.solidity[:, None], found.mean_rgb, found.std_rgb)
    columns = np.concatenate(told, axis=1).T.astype(np.float64).round(4)
    return zip(
        numbers.tolist(),
        found.scores.astype(np.float64).round(4).tolist(),
        (found.areas.astype(np.int64) * cell * cell).tolist(),
        *(found.boxes.astype(np.int64) * cell).T.tolist(),
        *columns.tolist(),
        strict=True,
    )


def _box0(cells: Box, cell: int) -> Box:
    return Box(cells.y0 * cell, cells.x0 * cell, cells.y1 * cell, cells.x1 * cell)


def _whole_region(part: Box, shape_yx: tuple[int, int]) -> Box:
    (place,) = REGIONS.places(part)
    return REGIONS.box(place).clip(shape_yx)


def _num_bytes(found: Found) -> int:
    return found.runs.nbytes + found.features.nbytes + 80 * len(found)
