"""The form *Segment everything*: a whole level, into a label image of its own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import napari.layers

from napari_hrsam.errors import ImageError
from napari_hrsam.modeling.registry import list_models
from napari_hrsam.plugin.canvas.coordinates import placement
from napari_hrsam.plugin.contrib.label_layers import stored_layer
from napari_hrsam.plugin.forms.form import Form
from napari_hrsam.plugin.forms.jobs import Job, Progress, at_once, box_of, whole_numbers
from napari_hrsam.plugin.session.image_input import read_image_layers
from napari_hrsam.plugin.session.loading import AUTO_DEVICE, DEFAULT_MODEL
from napari_hrsam.plugin.session.messages import duration
from napari_hrsam.plugin.session.progress import Cancelled
from napari_hrsam.storage.labels.places import FOLDER_KEY, LabelFile, OwnPlace, ome_zarr_of

if TYPE_CHECKING:
    import napari.viewer

    from napari_hrsam.engine.everything.auto import AutoReport


def prepare_everything(
    image: napari.layers.Image | None = None,
    model: str = DEFAULT_MODEL,
    level: int = 0,
    box: str = "",
    plane: str = "",
    labels: str = "auto-1",
    folder: Path | None = None,
    skip_blank: bool = False,
    workers: int = 1,
    device: Literal["auto", "cpu", "cuda"] = AUTO_DEVICE,  # type: ignore[assignment]
    *,
    among: Sequence[napari.layers.Layer] = (),
) -> Job[Any]:
    """Find every object of a level of an image layer, and make a label image of them.

    What was found is kept block by block, so work that was cut off goes on where it was.

    Parameters
    ----------
    image : Image layer
        As it is shown now.
    model : str
        Name from `napari_hrsam.list_models`, or a weight file; with a dense head.
    level : int
        Zoom at which objects are 20 to 150 pixels long: 0 full size, 1 half, -1 double.
    box : str
        Only objects that begin in y0,x0,y1,x1, in pixels of full size; empty: everything.
    plane : str
        Which plane of a stack: one number per axis besides rows and columns.
    labels : str
        Name of the new label image.
    folder : Path, optional
        Where it is kept; by default in the image, if that is an OME-Zarr on this computer, else
        where the panel keeps objects of this image.
    skip_blank : bool
        Leave out tiles that show one colour and noise.
    workers : int
        Processes, of one thread each, with a model and the maps of a block each.
    device : {"auto", "cpu", "cuda"}
        Where the network runs.
    among : sequence of layers
        The viewer's: those seen together with the image belong to it, as in the panel.

    Returns
    -------
    AutoReport

    Raises
    ------
    ImageError, ConfigError, LabelsError, SessionError
        If the image cannot be read so, or the name is taken.
    """
    if image is None:
        raise ImageError("expected an image layer, got none; choose one")
    shown = read_image_layers(image, among=among).image
    chosen_box = box_of(box)
    chosen_plane = whole_numbers(plane, "the numbers of a plane, such as 3 or 0,3")
    place = ome_zarr_of(image) if folder is None else folder
    own = OwnPlace(image.name)

    def run(progress: Progress) -> AutoReport:
        # The engine brings torch.
        from napari_hrsam.engine.everything.auto import auto
        from napari_hrsam.modeling.checkpoints import load_model

        told = (0, 1)

        def tell(done: int, total: int) -> None:
            nonlocal told
            told = done, total
            progress(done, total)

        def should_stop() -> bool:
            # Blocks are large: whoever cancels does not wait for the end of one.
            try:
                progress(*told)
            except Cancelled:
                return True
            return False

        return auto(
            shown.open(),
            labels.strip(),
            level,
            chosen_box,
            path=own.of(shown).path if place is None else place,
            plane=chosen_plane,
            model=load_model(model, device=device),
            skip_blank=skip_blank,
            workers=workers,
            progress=tell,
            should_stop=should_stop,
        )

    return run


segment_layer = at_once(prepare_everything)


class EverythingForm(Form):
    """The dock: a whole level, and what its labels are called."""

    def __init__(self, napari_viewer: napari.viewer.Viewer) -> None:
        models = [model.name for model in list_models() if model.weights]
        super().__init__(
            napari_viewer,
            prepare_everything,
            action="Segment",
            options={
                "image": {"label": "Image"},
                "model": {"label": "Model", "choices": models, "widget_type": "ComboBox"},
                "level": {"label": "Level", "min": -1, "max": 30},
                "box": {"label": "Box", "hint": "all, or y0, x0, y1, x1"},
                "plane": {"label": "Plane", "hint": "of a stack: t, z"},
                "labels": {"label": "New labels"},
                "folder": {"label": "Folder", "mode": "d"},
                "skip_blank": {"label": "Skip blank"},
                "workers": {"label": "Processes", "min": 1, "max": 256},
                "device": {"label": "Device"},
            },
        )
        self._began_s, self._image = 0.0, self.fields["image"].value

    def run(self) -> None:
        """Do what the fields say; an error is shown in the form."""
        self._began_s = time.monotonic()
        self._image = self.fields["image"].value
        super().run()

    def describe(self, result: AutoReport) -> str:
        """Say what was found, and show it."""
        self._show_labels(LabelFile(Path(result.path), result.name))
        where = f"labels '{result.name}' in {result.path}"
        lines = [
            f"{result.num_objects:,} objects found in {duration(result.seconds)}: {where}.",
            f"A table of them: {result.table}.",
        ]
        if result.num_too_large:
            lines.append(
                f"{result.num_too_large:,} are too large for level {result.level} and were left "
                f"out: look for them at level {result.level + 1}."
            )
        if not result.num_objects:
            lines = ["No object was found: try a level at which they are 20 to 150 pixels long."]
        return "\n\n".join(lines)

    def describe_cancel(self, done: int, total: int) -> str:
        """Say what is left of it."""
        return f"Cancelled after {done} of {total} blocks, which are kept: Segment goes on there."

    def _show_progress(self, done: int, total: int) -> None:
        super()._show_progress(done, total)
        took_s = time.monotonic() - self._began_s
        left = f", about {duration(took_s / done * (total - done))} left" if done else ""
        self.message_label.setText(f"{done} of {total} blocks{left} ...")

    def _show_labels(self, file: LabelFile) -> None:
        key = (str(file.path), file.name)
        if any(layer.metadata.get(FOLDER_KEY) == key for layer in self._viewer.layers):
            return
        levels, options, _ = stored_layer(file)
        # Where the image is shown, whatever size of a pixel its file tells.
        if self._image in self._viewer.layers:
            options |= placement(self._image)
        self._viewer.add_labels(levels, **options)
