"""How long `auto` takes on a cluster: a simulation of events, with costs measured here.

First a part of the generated slide is done by one process, for the core-seconds of a tile of the
encoder and of a megapixel of labels. Then workers start, work, are slow, die and are replaced;
a scheduler hands out blocks one after the other, and a store answers so many requests a second. A
block that kills its workers is given up. The label image is made by one process at the end.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import tempfile
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from measure import RESULTS, environment, print_table

COLUMNS = (
    "case", "slides", "workers", "block_px", "blocks", "find_min", "ideal_min", "make_min",
    "executions", "lost_core_h",
)  # fmt: skip
SLIDE_PX = 100_000
"""Side of a slide, 10 Gpx, at the level that is looked at."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What happens.

    Attributes
    ----------
    name : str
    slides, workers, block_px : int
    start_s : (float, float)
        A worker comes after so long, at the beginning and after a death.
    slow_share, slow : float
        Share of workers that take so many times as long.
    death_s : float
        Mean time after which a worker dies.
    num_poison : int
        Blocks that kill their worker.
    scheduler_s : float
        Of the scheduler for each task.
    requests, store_rate : float
        Of a task, and what the store answers in a second.
    scheduler_dies_s, scheduler_back_s : float or None
        When it dies, and after how long a new one is there; what was running is lost.
    """

    name: str
    slides: int
    workers: int
    block_px: int = 4096
    start_s: tuple[float, float] = (10.0, 180.0)
    slow_share: float = 0.02
    slow: float = 4.0
    death_s: float = 7200.0
    num_poison: int = 3
    scheduler_s: float = 0.001
    requests: int = 48
    store_rate: float = 5000.0
    scheduler_dies_s: float | None = None
    scheduler_back_s: float = 60.0


TRIES = 3


class Simulation:
    """A run, event by event.

    Parameters
    ----------
    case : Case
    block_s : float
        Core-seconds of a block.
    seed : int

    Attributes
    ----------
    num_blocks, executions : int
    now_s, lost_s : float
        Time since the beginning; core-seconds that came to nothing.
    """

    def __init__(self, case: Case, block_s: float, seed: int = 0) -> None:
        self.case, self._block_s = case, block_s
        self._rng = np.random.default_rng(seed)
        self.num_blocks = case.slides * math.ceil(SLIDE_PX / case.block_px) ** 2
        self.executions, self.now_s, self.lost_s = 0, 0.0, 0.0
        self._left = deque(range(self.num_blocks))
        self._num_open = self.num_blocks
        poison = self._rng.choice(self.num_blocks, case.num_poison, replace=False)
        self._deaths = dict.fromkeys(poison.tolist(), 0)
        is_slow = self._rng.random(case.workers) < case.slow_share
        self._speed = np.where(is_slow, case.slow, 1.0)
        self._dies_s = np.zeros(case.workers)
        self._idle: list[int] = []
        self._at_work: dict[int, tuple[int, float]] = {}
        self._scheduler_s = self._store_s = 0.0
        self._events: list[tuple[float, int, str, int]] = []
        self._num_events = 0

    def run(self) -> None:
        """Go on until every block is done or given up."""
        for worker in range(self.case.workers):
            self._start(worker, 0.0)
        if self.case.scheduler_dies_s is not None:
            self._later(self.case.scheduler_dies_s, "scheduler", -1)
        while self._num_open:
            self.now_s, _, kind, worker = heapq.heappop(self._events)
            if kind == "scheduler":
                self._restart()
            elif kind == "dead":
                self._dead(worker)
            else:
                if kind == "done":
                    del self._at_work[worker]
                    self._num_open -= 1
                self._idle.append(worker)
            while self._idle and self._left:
                self._begin(self._idle.pop(), self._left.popleft())

    def _later(self, at_s: float, kind: str, worker: int) -> None:
        self._num_events += 1
        heapq.heappush(self._events, (at_s, self._num_events, kind, worker))

    def _start(self, worker: int, after_s: float) -> None:
        begun = self.now_s + after_s + float(self._rng.uniform(*self.case.start_s))
        self._dies_s[worker] = begun + self._rng.exponential(self.case.death_s)
        self._later(begun, "idle", worker)

    def _begin(self, worker: int, block: int) -> None:
        case = self.case
        self.executions += 1
        begun = self._scheduler_s = max(self.now_s, self._scheduler_s) + case.scheduler_s
        self._store_s = max(begun, self._store_s) + case.requests / case.store_rate
        takes = self._block_s * float(self._speed[worker])
        end = begun + takes / 2 if block in self._deaths else max(begun + takes, self._store_s)
        self._at_work[worker] = block, begun
        dies = max(self.now_s, float(self._dies_s[worker]))
        if block in self._deaths or dies < end:
            self._later(min(end, dies), "dead", worker)
        else:
            self._later(end, "done", worker)

    def _dead(self, worker: int) -> None:
        block, begun = self._at_work.pop(worker)
        self.lost_s += max(0.0, self.now_s - begun)
        self._deaths.update({block: self._deaths[block] + 1} if block in self._deaths else {})
        if self._deaths.get(block, 0) == TRIES:
            self._num_open -= 1
        else:
            self._left.append(block)
        self._start(worker, 0.0)

    def _restart(self) -> None:
        """Lose what was running, and start all workers anew."""
        for block, begun in self._at_work.values():
            self._left.append(block)
            self.lost_s += max(0.0, self.now_s - begun)
        self._events, self._at_work, self._idle = [], {}, []
        for worker in range(self.case.workers):
            self._start(worker, self.case.scheduler_back_s)


def measure(model_name: str, side_px: int) -> dict[str, float]:
    """Do a part of the generated slide in this process, and count its core-seconds."""
    import napari_hrsam as hrsam
    from napari_hrsam.engine.everything.field import CELL_PX, Field
    from napari_hrsam.engine.everything.found import rules_for
    from napari_hrsam.engine.predictor import Predictor
    from napari_hrsam.errors import SessionError
    from napari_hrsam.geometry import Box
    from napari_hrsam.sample import make_sample

    model = hrsam.load_model(model_name, device="cpu")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        path = folder / "slide.ome.zarr"
        make_sample(path, 20_000)
        image = hrsam.open_image(path)
        predictor = Predictor(model)
        # What is compiled at first use is no cost of a tile.
        hrsam.auto(image, "warm", box=(0, 0, 64, 64), path=folder / "w", model=model)
        box = (8192, 8192, 8192 + side_px, 8192 + side_px)

        def part() -> Any:
            return hrsam.auto(
                image,
                "a",
                box=box,
                path=folder / "o",
                model=model,
                block_px=4096,
                # The first time it ends before the label image is made.
                should_stop=(folder / "o/labels/.a.partial").exists if not found_s else None,
            )

        found_s = 0.0
        started = time.process_time()
        with suppress(SessionError):
            part()
        found_s = time.process_time() - started
        report = part()
        make_s = time.process_time() - started - found_s
        field = Field(image, predictor, 0, ())
        halo = rules_for(predictor.tile_px).halo
        cells = Box(*(side // CELL_PX for side in box)).expand(halo)
        num_tiles = len(field.tiles_of(cells))
        tiles = {}
        for block_px in (2048, 4096):
            side, corner = block_px // CELL_PX, 8192 // CELL_PX
            around = Box(corner, corner, corner + side, corner + side).expand(halo)
            tiles[f"tiles_{block_px}"] = len(field.tiles_of(around))
    return {
        "tile_core_s": found_s / num_tiles,
        "make_core_s_per_mpx": make_s / (side_px**2 / 1e6),
        "num_tiles": num_tiles,
        "num_objects": report.num_objects,
        **tiles,
    }


def cases() -> list[Case]:
    """List what is simulated."""
    one = Case(name="as it is", slides=1, workers=2)
    many = replace(one, slides=100, workers=1000)
    return [
        *(replace(one, workers=num) for num in (2, 16, 64, 256, 1000)),
        replace(one, name="smaller blocks", workers=1000, block_px=2048),
        *(replace(many, workers=num) for num in (16, 64, 256, 1000)),
        replace(many, name="preempted every 20 min", death_s=1200.0),
        replace(many, name="scheduler dies at 10 min", scheduler_dies_s=600.0),
        replace(many, name="scheduler, 48 tasks/s", scheduler_s=1 / 48),
        replace(many, name="300 requests a task", requests=300),
        replace(many, name="300, store of 500/s", requests=300, store_rate=500.0),
    ]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="hrsam-tiny")
    parser.add_argument("--side-px", type=int, default=1024, help="of the part that is measured")
    parser.add_argument("--costs", type=Path, help="take the costs of an earlier file")
    parser.add_argument("--json", type=Path, default=RESULTS / "scale-out.json")
    args = parser.parse_args()
    if args.costs is None:
        costs = measure(args.model, args.side_px)
    else:
        costs = json.loads(args.costs.read_text(encoding="utf-8"))["costs"]
    print(", ".join(f"{name} {value:.3g}" for name, value in costs.items()))
    rows: list[dict[str, Any]] = []
    for case in cases():
        block_s = costs["tile_core_s"] * costs[f"tiles_{case.block_px}"]
        told = Simulation(case, block_s)
        told.run()
        rows.append(
            {
                "case": case.name,
                "slides": case.slides,
                "workers": case.workers,
                "block_px": case.block_px,
                "blocks": told.num_blocks,
                "find_min": told.now_s / 60,
                "ideal_min": told.num_blocks * block_s / case.workers / 60,
                "make_min": SLIDE_PX**2 / 1e6 * costs["make_core_s_per_mpx"] / 60,
                "executions": str(told.executions),
                "lost_core_h": told.lost_s / 3600,
            }
        )
    print_table(rows, COLUMNS)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(
        json.dumps({**environment(), "costs": costs, "rows": rows}, indent=1) + "\n"
    )
    print(f"\nwrote {args.json}")


if __name__ == "__main__":
    main()
