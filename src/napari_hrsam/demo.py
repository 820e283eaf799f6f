"""The demonstration: napari with the panel, or without a display a replay of recorded clicks.

The two images are real and come inside scikit-image's wheel, so that nothing is downloaded.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_hrsam._optional import require
from napari_hrsam.overlay import draw_overlay
from napari_hrsam.storage.images.pictures import write_image, write_labels

if TYPE_CHECKING:
    from napari_hrsam.engine.session import Session
    from napari_hrsam.modeling.segmenter import Segmenter
    from napari_hrsam.prompts import Prompts

DEFAULT_OUT = Path("napari-hrsam-demo")


@dataclass(frozen=True, kw_only=True, slots=True)
class Action:
    """One recorded action: a click, or the commit of the object if there is no point.

    Attributes
    ----------
    point_yx : (float, float) or None
        Level-0 pixels.
    positive : bool
        Whether the click says "inside".
    """

    point_yx: tuple[float, float] | None
    positive: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """An image of scikit-image's wheel and the actions recorded on it.

    Attributes
    ----------
    image : str
        Name of the function in `skimage.data`.
    title : str
        What the image shows.
    level : int
        At which the objects are looked at, as a person would zoom.
    actions : tuple of Action
        In the order in which they were made.
    """

    image: str
    title: str
    level: int
    actions: tuple[Action, ...]

    def pixels(self) -> NDArray[np.uint8]:
        """Read the image, (H, W) or (H, W, 3) uint8."""
        from skimage import data

        return np.asarray(getattr(data, self.image)())


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What one action did and how long it took.

    Attributes
    ----------
    image, action : str
        On which image, and what.
    wall_s, encode_s, decode_s : float
        Seconds in all, in the image encoder, and in the mask decoder.
    area_px : int
        Pixels of the object after it.
    iou : float
        The model's own guess of the quality, 0..1.
    """

    image: str
    action: str
    wall_s: float
    encode_s: float
    decode_s: float
    area_px: int
    iou: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Replay:
    """Outcome of one scene.

    Attributes
    ----------
    labels : (H, W) uint32
        The committed objects.
    prompts : tuple of Prompts
        Those of every object.
    steps : tuple of Step
        One per action.
    """

    labels: NDArray[np.uint32]
    prompts: tuple[Prompts, ...]
    steps: tuple[Step, ...]


def load_scenes() -> tuple[Scene, ...]:
    """Read the recorded clicks that ship with the package."""
    text = files("napari_hrsam").joinpath("demo_clicks.json").read_text(encoding="utf-8")
    return tuple(
        Scene(
            image=scene["image"],
            title=scene["title"],
            level=scene["level"],
            actions=tuple(_action(action) for action in scene["actions"]),
        )
        for scene in json.loads(text)["scenes"]
    )


def _action(entry: dict[str, Any]) -> Action:
    if "commit" in entry:
        return Action(point_yx=None)
    y, x = entry["click"]
    return Action(point_yx=(y, x), positive=entry.get("positive", True))


def replay(
    scene: Scene, model: Segmenter, *, on_step: Callable[[Step], None] | None = None
) -> Replay:
    """Do the recorded actions on the scene's image, through the same session as the panel.

    Parameters
    ----------
    scene : Scene
    model : Segmenter
    on_step : callable, optional
        Told after every action.
    """
    from napari_hrsam.engine.session import Session

    image = scene.pixels()
    labels = np.zeros(image.shape[:2], np.uint32)
    prompts: list[Prompts] = []
    steps: list[Step] = []
    with Session(model, image, labels) as session:
        session.view_level = scene.level
        for action in scene.actions:
            step = _do(session, scene.image, action, prompts)
            steps.append(step)
            if on_step is not None:
                on_step(step)
    return Replay(labels=labels, prompts=tuple(prompts), steps=tuple(steps))


def _do(session: Session, image: str, action: Action, prompts: list[Prompts]) -> Step:
    start = perf_counter()
    if action.point_yx is None:
        prediction = session.prediction
        assert prediction is not None, "a recording commits only after a click"
        edit = session.commit()
        seconds: Mapping[str, float] = {}
        prompts.append(edit.prompts)
        text = f"commit as object {edit.label}"
    else:
        prediction = session.click(action.point_yx, positive=action.positive)
        seconds = prediction.seconds
        y, x = action.point_yx
        text = f"{'positive' if action.positive else 'negative'} click at ({y:g}, {x:g})"
    return Step(
        image=image,
        action=text,
        wall_s=perf_counter() - start,
        encode_s=seconds.get("encode_s", 0.0),
        decode_s=seconds.get("decode_s", 0.0),
        area_px=int(np.count_nonzero(prediction.mask)),
        iou=prediction.iou,
    )


def replay_all(
    model: Segmenter, out: Path, *, on_step: Callable[[Step], None] | None = None
) -> tuple[list[Step], list[Path]]:
    """Replay every scene and write an overlay and the masks of each into a folder.

    Parameters
    ----------
    model : Segmenter
    out : Path
        Made if needed; files of an earlier replay are replaced.
    on_step : callable, optional
        Told after every action.

    Returns
    -------
    steps : list of Step
    written : list of Path
    """
    out.mkdir(parents=True, exist_ok=True)
    steps: list[Step] = []
    written: list[Path] = []
    for scene in load_scenes():
        result = replay(scene, model, on_step=on_step)
        steps += result.steps
        overlay, masks = out / f"{scene.image}_overlay.png", out / f"{scene.image}_masks.png"
        write_image(overlay, draw_overlay(scene.pixels(), result.labels, result.prompts))
        write_labels(masks, result.labels)
        written += [overlay, masks]
    return steps, written


def step_table(steps: list[Step]) -> str:
    """Format the time of every step, in milliseconds, as a text table."""
    rows = [
        f"{'image':<22}{'action':<32}{'ms':>8}{'encode':>8}{'decode':>8}{'area px':>9}{'IoU':>6}"
    ]
    rows += [
        f"{s.image:<22}{s.action:<32}{s.wall_s * 1e3:>8.0f}{s.encode_s * 1e3:>8.0f}"
        f"{s.decode_s * 1e3:>8.0f}{s.area_px:>9}{s.iou:>6.2f}"
        for s in steps
    ]
    return "\n".join(rows)


def open_window() -> None:
    """Open napari with both images and the panel, and return when the window is closed.

    Raises
    ------
    MissingExtraError
        If napari or a working Qt binding is not installed.
    """
    require("napari", extra="all")
    require("qtpy.QtWidgets", extra="all")
    import napari

    from napari_hrsam.plugin.panel.demo import open_demo

    open_demo()
    napari.run()


def missing_display(environ: Mapping[str, str] = os.environ, platform: str = sys.platform) -> str:
    """Say why no window can be opened here, or return an empty text.

    A Qt program that cannot reach its display ends the whole process, so it is asked before.
    """
    if environ.get("QT_QPA_PLATFORM", "") in ("offscreen", "minimal"):
        return f"QT_QPA_PLATFORM={environ['QT_QPA_PLATFORM']} draws no window"
    if platform in ("darwin", "win32"):
        return ""
    wayland = environ.get("WAYLAND_DISPLAY", "")
    if wayland and Path(environ.get("XDG_RUNTIME_DIR", "/run"), wayland).exists():
        return ""
    display = environ.get("DISPLAY", "")
    if not display:
        return "neither DISPLAY nor WAYLAND_DISPLAY is set"
    host, _, number = display.rpartition(":")
    if host not in ("", "unix") or _answers(f"X{number.partition('.')[0]}"):
        return ""
    return f"no X server answers at DISPLAY={display}"


def _answers(name: str) -> bool:
    path = f"/tmp/.X11-unix/{name}"  # noqa: S108  where X servers put their sockets
    for address in (path, f"\0{path}"):
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(address)
            except OSError:
                continue
            return True
    return False
