"""The store of embeddings: time to fingerprint an image, to write and read a tile, and its size.

Times are CPU seconds of the process where nothing is waited for, so that other programs on the
machine count little; ``--threads 1`` makes them comparable.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import RESULTS, print_table, save
from numcodecs import Blosc, Zstd

from napari_hrsam.engine.predictor import Embedding, Predictor
from napari_hrsam.engine.session import Session
from napari_hrsam.geometry import TileGrid
from napari_hrsam.modeling.checkpoints import load_model
from napari_hrsam.sample import make_sample
from napari_hrsam.storage.embeddings.layout import pack
from napari_hrsam.storage.embeddings.store import EmbeddingKey, EmbeddingStore
from napari_hrsam.storage.images.fingerprint import identify
from napari_hrsam.storage.images.opening import open_image
from napari_hrsam.storage.images.tile_source import PyramidImage

NUM_TILES = 12


def cpu_ms(work: Callable[..., Any], *given: Any) -> tuple[float, Any]:
    """Call something; return milliseconds of CPU time of all threads, and what it returned."""
    started = time.process_time()
    result = work(*given)
    return (time.process_time() - started) * 1e3, result


def fingerprints(folder: Path, sizes: list[int]) -> list[dict[str, Any]]:
    """Fingerprint generated images of several sizes, opened anew each time."""
    rows = []
    for size in sizes:
        path = folder / f"{size}.ome.zarr"
        make_sample(path, size)
        images = [open_image(path) for _ in range(9)]
        took = [cpu_ms(identify, image)[0] for image in images]
        rows.append(row(f"fingerprint, {size} px", took))
    for name, array in {
        "4 MB array": np.zeros((2048, 2048), np.uint8),
        "1.2 GB array": np.full((20_000, 20_000, 3), 7, np.uint8),
    }.items():
        image = open_image(array)
        took = [cpu_ms(identify, image)[0] for _ in range(9)]
        rows.append(row(f"fingerprint, {name}", took))
    return rows


def row(what: str, took: list[float]) -> dict[str, Any]:
    """Summarise times."""
    return {"what": what, "median_ms": statistics.median(took), "max_ms": max(took)}


def tiles(image: PyramidImage, model: str, folder: Path) -> list[dict[str, Any]]:
    """Encode tiles, keep them, and take them back."""
    predictor = Predictor(load_model(model, device="cpu"))
    grid = TileGrid(image.shape_yx, predictor.tile_px, 2)
    rows, columns = grid.num_tiles_yx
    chosen = [grid.tile(rows // 2 + n // 4, columns // 2 + n % 4) for n in range(NUM_TILES)]
    key = EmbeddingKey(identify(image, predictor.fill), predictor.fingerprint)
    store = EmbeddingStore(folder)
    made: list[Embedding] = []
    encode, write = [], []
    for tile in chosen:
        took, embedding = cpu_ms(predictor.encode, image.read(tile, predictor.fill), tile)
        made.append(embedding)
        encode.append(took)
        write.append(cpu_ms(store.write, key, tile, embedding.arrays)[0])
    again = EmbeddingStore(folder)
    read = [cpu_ms(again.read, key, tile)[0] for tile in chosen]
    found = [
        row(f"{what}, {model}", took)
        for what, took in (
            ("encode a tile", encode),
            ("write a tile", write),
            ("read a tile", read),
        )
    ]
    size = {"what": f"bytes of a tile, {model}", "stored": store.num_bytes // NUM_TILES}
    size["raw"] = sum(array.nbytes for array in made[0].arrays.values())
    return [*found, size, *codecs(made)]


def batches(image: PyramidImage, model: str) -> list[dict[str, Any]]:
    """Encode tiles one by one, in pairs and in fours."""
    predictor = Predictor(load_model(model, device="cpu"))
    grid = TileGrid(image.shape_yx, predictor.tile_px, 2)
    pixels = image.read(grid.nearest((image.shape_yx[0] // 2,) * 2), predictor.fill)
    one = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    rows = []
    for num in (1, 2, 4):
        with torch.inference_mode():
            took = [cpu_ms(predictor.segmenter.encode, one.repeat(num, 1, 1, 1)) for _ in range(5)]
        rows.append(row(f"encode, {num} at once, per tile", [ms / num for ms, _ in took]))
    return rows


def codecs(made: list[Embedding]) -> list[dict[str, Any]]:
    """Compare ways to compress tiles."""
    flats = [pack(embedding.arrays)[0] for embedding in made]
    rows = []
    for name, codec in {
        "zstd 1": Zstd(1),
        "lz4, shuffled bytes": Blosc("lz4", 1, Blosc.SHUFFLE),
        "lz4, shuffled bits (used)": Blosc("lz4", 1, Blosc.BITSHUFFLE),
        "zstd 1, shuffled bits": Blosc("zstd", 1, Blosc.BITSHUFFLE),
    }.items():
        packed = [cpu_ms(codec.encode, flat) for flat in flats]
        unpack_ms = [cpu_ms(codec.decode, part)[0] for _, part in packed]
        rows.append(
            {
                "what": f"codec {name}",
                "share": sum(len(part) for _, part in packed) / sum(flat.nbytes for flat in flats),
                "encode_ms": statistics.median(ms for ms, _ in packed),
                "decode_ms": statistics.median(unpack_ms),
            }
        )
    return rows


def sessions(image: PyramidImage, model: str, folder: Path) -> list[dict[str, Any]]:
    """Embed a box, resume, and click with and without what was kept."""
    segmenter = load_model(model, device="cpu")
    middle = image.shape_yx[0] // 2
    box = (middle, middle, middle + 4096, middle + 4096)
    point = (middle + 2000, middle + 2000)
    rows: list[dict[str, Any]] = []
    with Session(segmenter, image, embeddings=EmbeddingStore(folder)) as session:
        started = time.process_time()
        report = session.embed(2, box)
        seconds = time.process_time() - started
        mpx = report.num_encoded * report.tile_px**2 / 1e6
        rows.append({"what": f"embed, {model}", "tiles": report.num_tiles, "mpx_s": mpx / seconds})
    # Kept, and not: the click's tile at level 2 and any coarser one that its object needs.
    for what, store in (("first click, kept", EmbeddingStore(folder)), ("first click, cold", None)):
        with Session(segmenter, image, embeddings=store) as session:
            started = time.process_time()
            session.click(point, level=2)
            rows.append({"what": f"{what}, {model}", "ms": (time.process_time() - started) * 1e3})
    return rows


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", nargs="+", type=int, default=[10_000, 50_000, 100_000, 200_000])
    parser.add_argument("--model", default="hrsam-tiny")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, default=RESULTS / "embeddings.json")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        found = fingerprints(folder, args.sizes)
        image = open_image(folder / f"{args.sizes[-1]}.ome.zarr")
        found += tiles(image, args.model, folder / "tiles")
        found += batches(image, args.model)
        found += sessions(image, args.model, folder / "sessions")
    for result in found:
        print_table([result], tuple(result))
    save(args.json, found)


if __name__ == "__main__":
    main()
