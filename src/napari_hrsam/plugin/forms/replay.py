"""The form *Replay with another model*."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import napari.layers

from napari_hrsam.errors import LabelsError
from napari_hrsam.modeling.registry import list_models
from napari_hrsam.plugin.forms.form import Form
from napari_hrsam.plugin.forms.jobs import Job, Progress, at_once
from napari_hrsam.plugin.forms.labels_of import labels_on_disk
from napari_hrsam.plugin.session.image_input import read_image_layers
from napari_hrsam.plugin.session.loading import AUTO_DEVICE, DEFAULT_MODEL
from napari_hrsam.storage.label_image import open_labels

if TYPE_CHECKING:
    import napari.viewer

    from napari_hrsam.engine.replay import Replayed

MAX_SHOWN = 20
"""Objects that are listed, least alike first; `napari-hrsam replay --json` lists all."""


def prepare_replay(
    image: napari.layers.Image | None = None,
    labels: napari.layers.Labels | None = None,
    folder: Path | None = None,
    name: str = "",
    model: str = DEFAULT_MODEL,
    write: bool = False,
    device: Literal["auto", "cpu", "cuda"] = AUTO_DEVICE,  # type: ignore[assignment]
    *,
    among: Sequence[napari.layers.Layer] = (),
) -> Job[Any]:
    """Draw committed objects again from their prompts with another model, and compare.

    Parameters
    ----------
    image : Image layer
        What the objects were drawn on, as it is shown now.
    labels : Labels layer, optional
        One that shows a label image on disk; or:
    folder, name
        An OME-Zarr image or a folder of labels, and the name of the label image in it.
    model : str
        Name from `napari_hrsam.list_models`, or a weight file.
    write : bool
        Put the new masks in the place of the committed ones, each as one step that can be taken
        back. Not while the labels are open for drawing.
    device : {"auto", "cpu", "cuda"}
        Where the network runs.
    among : sequence of layers
        The viewer's: those seen together with the image belong to it, as in the panel.

    Returns
    -------
    Replayed

    Raises
    ------
    LabelsError
        If the labels are not on disk, or of another shape; see `napari_hrsam.replay`.
    ImageError, ConfigError
        If the image or the model cannot be used.
    """
    shown = read_image_layers(image, among=among).image
    place = labels_on_disk(labels, folder, name)
    if place is None:
        assert labels is not None
        raise LabelsError(
            f"expected labels on disk, which keep the prompts of their objects, got the layer "
            f"'{labels.name}', which is in memory; choose the folder of a label image"
        )

    def run(progress: Progress) -> Replayed:
        # The engine brings torch.
        from napari_hrsam.engine.replay import replay
        from napari_hrsam.modeling.checkpoints import load_model

        network, pixels = load_model(model, device=device), shown.open()
        if not write:
            opened = open_labels(place.path, place.name, mode="r")
            return replay(opened, pixels, network, progress=progress)
        with open_labels(place.path, place.name) as writer:
            return replay(writer, pixels, network, write=True, progress=progress)

    return run


replay_layer = at_once(prepare_replay)


class ReplayForm(Form):
    """The dock: what to draw again, and how alike it is."""

    def __init__(self, napari_viewer: napari.viewer.Viewer) -> None:
        models = [model.name for model in list_models() if model.weights]
        super().__init__(
            napari_viewer,
            prepare_replay,
            action="Replay",
            options={
                "image": {"label": "Image"},
                "labels": {"label": "Labels"},
                "folder": {"label": "or folder", "mode": "d"},
                "name": {"label": "its labels", "hint": "the only ones"},
                "model": {"label": "Model", "choices": models, "widget_type": "ComboBox"},
                "write": {"label": "Replace masks"},
                "device": {"label": "Device"},
            },
        )
        self.fields.changed.connect(self.show_labels_fields)
        self.show_labels_fields()

    def describe(self, result: Replayed) -> str:
        """Say how alike the masks are: a line, then the objects that differ most."""
        drawn = [one for one in result.objects if one.iou is not None]
        lines = [f"{len(drawn)} of {len(result.objects)} objects drawn by {result.model}."]
        if drawn:
            lines[0] += f" IoU with the committed masks: mean {result.mean_iou:.3f}, median "
            lines[0] += f"{result.median_iou:.3f}."
        if result.num_written:
            lines.append(f"{result.num_written} masks replaced; each can be taken back.")
        problems = Counter(one.problem for one in result.objects if one.problem)
        lines += [f"{num} not drawn: {problem}" for problem, num in problems.most_common(5)]
        worst = sorted(drawn, key=lambda one: one.iou or 0.0)[:MAX_SHOWN]
        if worst:
            places = (
                f"{one.label}{f' at {one.plane}' if one.plane else ''}: {one.iou:.3f}"
                for one in worst
            )
            lines.append("Least alike: " + ", ".join(places))
        return "\n\n".join(lines)
