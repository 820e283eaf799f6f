"""A model that finds pixels of the clicked colour, and viewers without a window."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import napari.settings
import numpy as np
import pytest
import torch
from colour_segmenter import colour_logits
from napari.components import ViewerModel
from numpy.typing import NDArray
from panel_window import Window
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from napari_hrsam.modeling.segmenter import ImageFeatures
from napari_hrsam.plugin.panel.widget import SegmentWidget
from napari_hrsam.plugin.session.controller import SegmentController
from napari_hrsam.storage.labels.places import LABELS_VARIABLE

TILE_PX = 64
SQUARE = (slice(24, 40), slice(20, 44))


@dataclass(frozen=True)
class ColourConfig:
    name: str = "colour"
    tile_px: int = TILE_PX
    pixel_mean: tuple[float, float, float] = (10.0, 20.0, 30.0)
    channel_order: str = "rgb"
    focus: None = None


class ColourModel(nn.Module):
    """Object: the colour of a positive click, inside the box, unlike any negative click.

    While `gate` is cleared, the encoder waits: as if it were slow.
    """

    fingerprint = "colour-1"

    def __init__(self) -> None:
        super().__init__()
        self.config = ColourConfig()
        self.anchor = nn.Parameter(torch.zeros(1))
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = threading.Event()
        self.threads: set[str] = set()
        self.num_decoded = 0

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def device(self) -> torch.device:
        return self.anchor.device

    def map_shapes(self, size_px: int) -> dict[str, tuple[int, ...]]:
        return {
            "embedding": (1, 3, size_px // 16, size_px // 16),
            "stride4": (1, 3, size_px // 4, size_px // 4),
        }

    def encode(self, image: Tensor) -> ImageFeatures:
        self.threads.add(threading.current_thread().name)
        self.waiting.set()
        assert self.gate.wait(180)
        small = image / 255
        return ImageFeatures(embedding=avg_pool2d(small, 16), stride4=avg_pool2d(small, 4))

    def decode(
        self,
        features: ImageFeatures,
        *,
        point_coords_xy: Tensor | None = None,
        point_labels: Tensor | None = None,
        boxes_xyxy: Tensor | None = None,
        mask_logits: Tensor | None = None,  # noqa: ARG002
        multimask: bool = False,
    ) -> tuple[Tensor, Tensor]:
        self.num_decoded += 1
        assert features.stride4 is not None
        colours = features.stride4[0]
        logits = colour_logits(colours, point_coords_xy, point_labels, boxes_xyxy)
        if not multimask:
            return logits[None, None], torch.tensor([[0.9]])
        # Candidates: everything, the object, nothing.
        three = torch.stack([torch.full_like(logits, 3.0), logits, torch.full_like(logits, -3.0)])
        return three[None], torch.tensor([[0.5, 0.9, 0.1]])


@pytest.fixture
def model() -> Iterator[ColourModel]:
    model = ColourModel()
    yield model
    model.gate.set()


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    """(64, 64, 3): a red square on green."""
    image = np.zeros((64, 64, 3), np.uint8)
    image[..., 1] = 120
    image[SQUARE] = (230, 10, 10)
    return image


@pytest.fixture
def viewer() -> ViewerModel:
    viewer = ViewerModel()
    # The view as large as the tile, so that new objects are looked at in full size.
    viewer.canvas.size = (TILE_PX, TILE_PX)
    return viewer


@pytest.fixture
def controller(viewer: ViewerModel, model: ColourModel) -> Iterator[SegmentController]:
    controller = SegmentController(viewer, load_model=lambda *_, **__: model)
    yield controller
    model.gate.set()
    controller.close()


@pytest.fixture
def started(
    controller: SegmentController, viewer: ViewerModel, pixels: NDArray[np.uint8]
) -> SegmentController:
    """A controller with a session on the layer "scene"."""
    viewer.add_image(pixels, rgb=True, name="scene")
    viewer.scene.camera.zoom = 1.0
    controller.start()
    controller.wait()
    return controller


@pytest.fixture
def square() -> NDArray[np.bool_]:
    """Mask of the red square."""
    mask = np.zeros((64, 64), bool)
    mask[SQUARE] = True
    return mask


class Discs:
    """One level of a picture of red discs on green, made where it is looked at.

    It counts the pixels that were read, so that a test can tell a look from a copy.
    """

    discs = ((4992, 6016, 20), (20_480, 9216, 600), (16_384, 24_576, 2500))

    def __init__(self, level: int, side_px: int = 32_768) -> None:
        self.step = 2**level
        self.shape = (side_px // self.step, side_px // self.step, 3)
        self.dtype = np.dtype(np.uint8)
        self.ndim, self.size = 3, side_px * side_px * 3 // self.step**2
        self.chunks = (512, 512, 3)
        self.num_read = 0

    def __getitem__(self, index: Any) -> NDArray[np.uint8]:
        index = index if isinstance(index, tuple) else (index,)
        rows, columns = (np.arange(n)[i] for n, i in zip(self.shape[:2], index[:2], strict=True))
        y, x = ((places + 0.5) * self.step for places in (rows, columns))
        pixels = np.zeros((y.size, x.size, 3), np.uint8)
        pixels[..., 1] = 120
        for centre_y, centre_x, radius in self.discs:
            inside = (y[:, None] - centre_y) ** 2 + (x[None] - centre_x) ** 2 < radius**2
            pixels[inside] = (230, 10, 10)
        self.num_read += pixels.size
        return pixels[(..., *index[2:3])]

    def __array__(self, dtype: Any = None, copy: Any = None) -> NDArray[np.uint8]:
        assert self.size < 2**24, "an image of this size must not be copied"
        return np.asarray(self[:, :], dtype)


@pytest.fixture
def discs() -> list[Discs]:
    """A picture of 32,768 x 32,768 pixels in seven levels."""
    return [Discs(level) for level in range(7)]


@pytest.fixture(autouse=True)
def labels_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where objects without a folder of their own go in tests."""
    folder = tmp_path / "my labels"
    monkeypatch.setenv(LABELS_VARIABLE, str(folder))
    return folder


@pytest.fixture(autouse=True)
def own_preferences() -> Iterator[None]:
    """What a test sets in the preferences ends with it."""
    yield
    for settings in napari.settings._PLUGIN_SETTINGS.values():
        settings.reset()


@pytest.fixture
def open_window(
    make_napari_viewer: Any, qtbot: Any, model: Any, pixels: NDArray[np.uint8]
) -> Iterator[Callable[..., Window]]:
    windows: list[Window] = []

    def make(
        load_model: Any = lambda *_, **__: model,
        *,
        show: bool = False,
        data: Any = pixels,
        **options: Any,
    ) -> Window:
        viewer = make_napari_viewer(show=show)
        viewer.add_image(data, **{"rgb": True, "name": "scene", **options})
        panel = SegmentWidget(viewer, load_model=load_model)
        viewer.window.add_dock_widget(panel, name="Segment by clicking")
        windows.append(Window(viewer, panel, qtbot))
        return windows[-1]

    yield make
    model.gate.set()
    for window in windows:
        window.controller.close()
