"""The blocks of a run, one after the other or by several processes at once."""

from __future__ import annotations

import math
import multiprocessing
import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_hrsam.engine.everything.field import Field
from napari_hrsam.engine.everything.found import find_objects
from napari_hrsam.engine.everything.growing import Rules
from napari_hrsam.engine.everything.plan import Place, Plan, Records
from napari_hrsam.errors import ConfigError, SessionError

if TYPE_CHECKING:
    from napari_hrsam.modeling.segmenter import Segmenter
    from napari_hrsam.storage.images.tile_source import PyramidImage

POLL_S = 0.3
"""Pause between two looks at how far other processes are."""


class StoppedError(Exception):
    """Somebody asked for the end of the work."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """What blocks took.

    Attributes
    ----------
    seconds : dict of str to float
        Of the processor, by what was done.
    num_tiles, num_blank : int
        Tiles encoded, and left out because they show nothing.
    """

    seconds: Mapping[str, float]
    num_tiles: int = 0
    num_blank: int = 0


def do_blocks(
    field: Field,
    records: Records,
    places: Sequence[Place],
    *,
    should_stop: Callable[[], bool],
    done: Callable[[], None] = lambda: None,
) -> Done:
    """Find the objects of blocks, and write down those of each when it is done.

    Raises
    ------
    StoppedError
        If it should stop; within one tile.
    """
    plan, rules = records.plan, Rules(**records.plan.rules)
    before = dict(field.seconds), field.num_tiles, field.num_blank

    def step() -> None:
        if should_stop():
            raise StoppedError

    last: dict[Place, int] = {}
    for index, place in enumerate(places):
        last.update(dict.fromkeys(_tiles(field, plan, rules, place), index))
    for index, place in enumerate(places):
        found = find_objects(field, plan.core(place), rules, step=step)
        started = time.process_time()
        records.save(place, found)
        field.seconds["write"] += time.process_time() - started
        field.keep_only(partial(_is_needed, last, index))
        done()
    return Done(
        seconds={key: value - before[0].get(key, 0.0) for key, value in field.seconds.items()},
        num_tiles=field.num_tiles - before[1],
        num_blank=field.num_blank - before[2],
    )


def _is_needed(last: dict[Place, int], index: int, tile: Place) -> bool:
    """Whether a block after this one asks for a tile, by the last one that does."""
    return last.get(tile, -1) > index


def _tiles(field: Field, plan: Plan, rules: Rules, place: Place) -> list[Place]:
    return field.tiles_of(plan.core(place).expand(rules.halo).clip(field.shape))


def do_blocks_in_processes(
    image: PyramidImage,
    model: Segmenter,
    records: Records,
    places: Sequence[Place],
    *,
    workers: int,
    should_stop: Callable[[], bool],
    progress: Callable[[], None],
) -> Done:
    """Find the objects of blocks in several processes of one thread each.

    Raises
    ------
    ConfigError
        If the image cannot be given to other processes.
    SessionError
        If one of them was killed.
    StoppedError
        As `do_blocks`.
    """
    try:
        image_bytes = pickle.dumps(image)
    # What cannot be pickled says so with errors of many kinds.
    except Exception as error:
        raise ConfigError(
            "expected an image that other processes can read, such as an OME-Zarr, got "
            f"{image!r} ({error}); use one worker"
        ) from error
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    told = image_bytes, pickle.dumps(model), str(records.folder), asdict(records.plan), stop
    # Neighbours go to one process, which need not encode what they share twice.
    length = max(1, math.ceil(len(places) / (2 * workers)))
    rows = [places[first : first + length] for first in range(0, len(places), length)]
    with ProcessPoolExecutor(workers, context, _begin, told) as pool:
        running = {pool.submit(_do_row, row) for row in rows}
        finished: set[Future[Done]] = set()
        try:
            while running:
                ready, running = wait(running, POLL_S, FIRST_COMPLETED)
                finished |= ready
                for future in ready:
                    future.result()
                if should_stop():
                    raise StoppedError
                progress()
        except BrokenProcessPool as error:
            raise SessionError(
                "expected all worker processes to go on, but one was killed, perhaps for lack of "
                "memory; run the same again with fewer workers to go on from there"
            ) from error
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
    results = [future.result() for future in finished]
    kinds = {kind for result in results for kind in result.seconds}
    return Done(
        seconds={k: sum(result.seconds.get(k, 0.0) for result in results) for k in kinds},
        num_tiles=sum(result.num_tiles for result in results),
        num_blank=sum(result.num_blank for result in results),
    )


_WORK: dict[str, Any] = {}
"""Of a worker process: what it was told when it began."""


def _begin(image: bytes, model: bytes, folder: str, plan: dict[str, Any], stop: Any) -> None:
    # Both come from the process that started this one.
    segmenter = pickle.loads(model)  # noqa: S301
    from napari_hrsam.engine.predictor import Predictor, use_one_thread

    use_one_thread()
    opened = pickle.loads(image)  # noqa: S301
    records = Records(Path(folder), Plan(**plan))
    _WORK["records"], _WORK["stop"] = records, stop
    _WORK["field"] = Field(
        opened,
        Predictor(segmenter),
        records.plan.level,
        records.plan.plane,
        skip_blank=records.plan.skip_blank,
    )


def _do_row(places: Sequence[Place]) -> Done:
    records = _WORK["records"]
    try:
        return do_blocks(
            _WORK["field"], records, records.missing(places), should_stop=_WORK["stop"].is_set
        )
    except StoppedError:
        return Done(seconds={})
