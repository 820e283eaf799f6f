"""Killed at any moment while embedding: no tile is damaged, and at most the last is made again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from napari_hrsam.engine.predictor import Predictor
from napari_hrsam.engine.stored_tiles import StoredTiles
from napari_hrsam.geometry import Tile, TileGrid
from napari_hrsam.storage.embeddings.store import EmbeddingStore
from napari_hrsam.storage.images.tile_source import ArrayImage

KILLS = int(os.environ.get("NAPARI_HRSAM_KILLS", "20"))
SHAPE = (1500, 1500)

# Imports once and is copied for every turn; says when a tile is encoded and when it is done.
NURSERY = """
import os, sys
import numpy as np
import zarr
sys.path.insert(0, sys.argv[1])
from colour_segmenter import ColourSegmenter
from napari_hrsam.engine.session import Session
from napari_hrsam.storage.embeddings.store import EmbeddingStore

class Loud(ColourSegmenter):
    def encode(self, image):
        features = super().encode(image)
        os.write(out, b"encoded\\n")
        return features

def embed():
    image = np.random.default_rng(0).integers(0, 255, (1500, 1500, 3), dtype=np.uint8)
    store = EmbeddingStore(sys.argv[2], max_bytes=int(sys.argv[3]))
    with Session(Loud(), image, embeddings=store) as session:
        session.embed(0, progress=lambda done, total: os.write(out, b"done %d\\n" % done))
    os.write(out, b"ended\\n")
    os._exit(0)

print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        out = os.open(line.strip(), os.O_WRONLY | os.O_CREAT)
        embed()
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


class Nursery:
    """Runs an embed per turn and kills it."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        here = str(Path(__file__).parents[1] / "support")
        self.process = subprocess.Popen(
            [sys.executable, "-c", NURSERY, here, str(folder / "kept"), str(max_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def turn(self, num_lines: int, seconds: float) -> tuple[list[str], bool]:
        """Kill an embed some time after it said so many lines; return these, and if it ended."""
        said = self.folder / "said.txt"
        said.unlink(missing_ok=True)
        assert self.process.stdin is not None
        self.process.stdin.write(f"{said}\n")
        self.process.stdin.flush()
        child = int(self._line())
        text = ""
        while text.count("\n") < num_lines and not text.endswith("ended\n"):
            time.sleep(0.002)
            text = said.read_text() if said.exists() else ""
        time.sleep(seconds)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        status = int(self._line())
        assert status in {0, signal.SIGKILL}
        return said.read_text().split("\n")[:-1], status == 0

    def end(self) -> None:
        self.process.communicate(timeout=10)


@pytest.mark.slow
def test_a_process_killed_at_any_moment_leaves_whole_tiles_and_goes_on_from_there(
    tmp_path: Path, model: object, caplog: pytest.LogCaptureFixture
) -> None:
    nursery = Nursery(tmp_path, 10**9)
    chance = np.random.default_rng(0)
    num_encoded, num_there, num_killed, num_killed_before = 0, 0, 0, 0
    read: set[Tile] = set()
    for _ in range(KILLS):
        said, has_ended = nursery.turn(int(chance.integers(1, 50)), chance.uniform(0.0, 0.03))
        done = [int(line.split()[1]) for line in said if line.startswith("done")]
        # What was there before was found, and not encoded again.
        assert done[0] == num_there
        num_encoded += said.count("encoded")
        num_killed += not has_ended
        there = require_whole_tiles(tmp_path / "kept", model, read)
        assert there >= done[-1]
        assert num_encoded <= there + num_killed - num_killed_before
        assert there > num_there or not done[1:]
        num_there = there
        if has_ended:
            shutil.rmtree(tmp_path / "kept")
            num_encoded, num_there, num_killed_before, read = 0, 0, num_killed, set()
    nursery.end()
    assert require_whole_tiles(tmp_path / "kept", model, set()) == num_there
    assert num_killed > KILLS / 2
    assert not caplog.records


@pytest.mark.slow
def test_a_process_killed_while_it_makes_room_stays_within_the_limit(
    tmp_path: Path, model: object, caplog: pytest.LogCaptureFixture
) -> None:
    # Room for the tiles of the run that follows, not for those of others that are there too.
    num = len(TileGrid(SHAPE, 64))
    nursery = Nursery(tmp_path, num * 1632)
    EmbeddingStore(tmp_path / "kept").require_writable()
    old = tmp_path / "kept" / "embeddings-v0" / "0" / "old" / "0_64px"
    old.mkdir(parents=True)
    for number in range(num):
        (old / f"c.{number}").write_bytes(bytes(1632))
        os.utime(old / f"c.{number}", (1 + number,) * 2)
    chance = np.random.default_rng(1)
    for _ in range(max(3, KILLS // 4)):
        nursery.turn(int(chance.integers(1, 50)), chance.uniform(0.0, 0.03))
        require_whole_tiles(tmp_path / "kept", model, set())
        there = sum(p.stat().st_size for p in (tmp_path / "kept").rglob("c.*"))
        assert there <= (num + 1) * 1632
    nursery.end()
    assert len(list(old.glob("*"))) < num
    assert not caplog.records


def require_whole_tiles(folder: Path, model: object, read: set[Tile]) -> int:
    """Read every tile that is there and was not read before; return how many there are."""
    pixels = np.random.default_rng(0).integers(0, 255, (*SHAPE, 3), dtype=np.uint8)
    image = ArrayImage(pixels)
    predictor = Predictor(model)  # type: ignore[arg-type]
    stored = StoredTiles(EmbeddingStore(folder, read_only=True), image, predictor)
    num = 0
    for tile in TileGrid(SHAPE, 64):
        if not stored.holds(tile):
            continue
        num += 1
        if tile in read:
            continue
        read.add(tile)
        found = stored.read(tile)
        assert found is not None
        if num % 50 == 1:
            expected = predictor.encode(image.read(tile, predictor.fill), tile)
            for name, array in expected.arrays.items():
                np.testing.assert_array_equal(found.arrays[name], array)
    return num
