"""What the window does not wait for: heavy imports, and the disk."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from napari.layers import Labels, Shapes

from napari_hrsam.errors import LabelsError
from napari_hrsam.geometry import Box
from napari_hrsam.plugin.overlay.levels import LabelView
from napari_hrsam.plugin.session.controller import SegmentController
from napari_hrsam.plugin.session.inference_thread import THREAD_NAME
from napari_hrsam.storage.labels import stored
from napari_hrsam.storage.labels.places import LabelFile

HEAVY = {"numcodecs", "pooch", "requests", "shapely", "tifffile", "torch", "zarr"}
"""Not what napari itself may import."""


def test_the_panel_is_imported_without_what_takes_long() -> None:
    """It is imported on the viewer's thread."""
    code = (
        "import json, sys, napari.viewer, napari.layers\n"
        "before = set(sys.modules)\n"
        "import napari_hrsam.plugin.panel.widget\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in set(sys.modules) - before})))"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)
    imported = json.loads(done.stdout.splitlines()[-1])
    assert "napari_hrsam" in imported
    assert not HEAVY & set(imported)


def test_what_napari_compiles_is_ready_before_the_first_layer(
    controller: SegmentController, viewer: Any, pixels: Any, monkeypatch: Any
) -> None:
    """numba takes seconds for it, once on each machine."""
    made: list[tuple[str, str, int]] = []

    def note(kind: type) -> None:
        make = kind.__init__

        def noted(self: Any, *args: Any, **options: Any) -> None:
            made.append((kind.__name__, threading.current_thread().name, len(viewer.layers)))
            make(self, *args, **options)

        monkeypatch.setattr(kind, "__init__", noted)

    viewer.add_image(pixels, rgb=True)
    for kind in (Labels, Shapes):
        note(kind)
    controller.start()
    controller.wait()
    first = made[:3]
    assert {name for name, _, _ in first} == {"Labels", "Shapes"}
    for _, thread, num_layers in first:
        assert thread.startswith(THREAD_NAME)
        assert num_layers == 1, "before the session's layers"
    assert {thread for _, thread, _ in made[3:]} == {"MainThread"}
    assert {name for name, _, _ in made[3:]} == {"Labels"}, "a box is no Shapes layer"


def test_labels_on_disk_are_read_on_the_inference_thread(
    controller: SegmentController, viewer: Any, pixels: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    here = threading.get_ident()
    readers: list[int] = []
    read = stored.read_labels

    def noted(array: zarr.Array[Any], where: Any) -> Any:
        readers.append(threading.get_ident())
        return read(array, where)

    monkeypatch.setattr(stored, "read_labels", noted)
    viewer.add_image(pixels, rgb=True)
    viewer.scene.camera.zoom = 1.0
    controller.start(target=LabelFile(tmp_path / "labels.zarr"))
    controller.wait()
    assert controller.overlay is not None
    shown = controller.overlay.target
    assert not np.asarray(shown.data).any()
    controller.click((30, 30))
    controller.commit()
    controller.wait()
    assert np.asarray(shown.data)[30, 30] == 1
    controller.undo()
    controller.wait()
    assert not np.asarray(shown.data).any()
    assert readers
    assert here not in readers


def test_damage_met_before_anyone_listens_is_told(tmp_path: Path) -> None:
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=(64, 64), chunks=(64, 64), dtype="uint32", fill_value=0
    )
    array[:] = 3
    chunk = tmp_path / "a.zarr/c/0/0"
    chunk.write_bytes(chunk.read_bytes()[:10])
    told: list[LabelsError] = []
    view = LabelView([array])
    view.tell_damage(told.append)
    assert len(told) == 1
    view.edited(Box(0, 0, 8, 8))
    assert len(told) == 1
