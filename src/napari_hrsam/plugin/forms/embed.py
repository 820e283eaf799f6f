"""The form *Encode ahead*."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import napari.layers

from napari_hrsam.modeling.registry import list_models
from napari_hrsam.plugin.forms.form import Form
from napari_hrsam.plugin.forms.jobs import Job, Progress, at_once, box_of, whole_numbers
from napari_hrsam.plugin.panel.preferences import Preferences
from napari_hrsam.plugin.session.image_input import read_image_layers
from napari_hrsam.plugin.session.loading import AUTO_DEVICE, DEFAULT_MODEL

if TYPE_CHECKING:
    import napari.viewer

    from napari_hrsam.engine.embed import EmbedReport


def prepare_encode(
    image: napari.layers.Image | None = None,
    model: str = DEFAULT_MODEL,
    level: int = 0,
    box: str = "",
    plane: str = "",
    skip_blank: bool = False,
    folder: Path | None = None,
    max_gb: float = 0.0,
    device: Literal["auto", "cpu", "cuda"] = AUTO_DEVICE,  # type: ignore[assignment]
    *,
    among: Sequence[napari.layers.Layer] = (),
) -> Job[Any]:
    """Encode an image layer ahead of time, so that clicks on it need not wait for that.

    What was encoded before is not encoded again, so work that was cut off goes on where it was.

    Parameters
    ----------
    image : Image layer
        As it is shown now.
    model : str
        Name from `napari_hrsam.list_models`, or a weight file.
    level : int
        Zoom at which objects will be looked at: 0 full size, 1 half, ...
    box : str
        Only what clicks in y0,x0,y1,x1 look at, in pixels of full size; empty: everything.
    plane : str
        Which plane of a stack: one number per axis besides rows and columns.
    skip_blank : bool
        Leave out tiles that show one colour and noise.
    folder : Path, optional
        Where embeddings are kept; by default where the panel looks for them.
    max_gb : float
        What the folder may take from now on, in 10^9 bytes; 0: what it was given last, or 8.
    device : {"auto", "cpu", "cuda"}
        Where the network runs.
    among : sequence of layers
        The viewer's: those seen together with the image are encoded with it, as in the panel.

    Returns
    -------
    EmbedReport

    Raises
    ------
    ImageError, ConfigError, EmbeddingsError, SessionError
        If the image cannot be read so, or there is no room.
    """
    shown = read_image_layers(image, among=among).image
    chosen_box = box_of(box)
    chosen_plane = whole_numbers(plane, "the numbers of a plane, such as 3 or 0,3")

    def run(progress: Progress) -> EmbedReport:
        # The engine brings torch.
        from napari_hrsam.engine.session import Session
        from napari_hrsam.modeling.checkpoints import load_model
        from napari_hrsam.storage.embeddings.store import EmbeddingStore

        store = EmbeddingStore(folder, max_bytes=int(max_gb * 1e9) or None)
        store.require_writable()
        pixels = shown.open()
        with Session(load_model(model, device=device), pixels, embeddings=store) as session:
            return session.embed(level, chosen_box, chosen_plane, progress, skip_blank=skip_blank)

    return run


encode_layer = at_once(prepare_encode)


class EncodeForm(Form):
    """The dock: what to encode ahead."""

    def __init__(self, napari_viewer: napari.viewer.Viewer) -> None:
        models = [model.name for model in list_models() if model.weights]
        super().__init__(
            napari_viewer,
            prepare_encode,
            action="Encode",
            options={
                "image": {"label": "Image"},
                "model": {"label": "Model", "choices": models, "widget_type": "ComboBox"},
                "level": {"label": "Level", "min": -2, "max": 30},
                "box": {"label": "Box", "hint": "all, or y0, x0, y1, x1"},
                "plane": {"label": "Plane", "hint": "of a stack: t, z"},
                "skip_blank": {"label": "Skip blank"},
                "folder": {"label": "Folder", "mode": "d"},
                "max_gb": {"label": "Room, GB", "min": 0.0, "max": 1e6},
                "device": {"label": "Device"},
            },
        )
        # Where the panel looks for them.
        kept = Preferences().group("embeddings")
        if kept["folder"].strip():
            self.fields["folder"].value = Path(kept["folder"].strip())
        self.fields["max_gb"].value = kept["max_gb"]

    def describe(self, result: EmbedReport) -> str:
        """Say what was encoded."""
        return (
            f"{result.num_encoded} of {result.num_tiles} tiles of level {result.level} encoded in "
            f"{result.seconds:.1f} s; {result.num_at_hand} were there, {result.num_blank} blank."
        )

    def describe_cancel(self, done: int, total: int) -> str:
        """Say what is left of it."""
        return f"Cancelled after {done} of {total} tiles, which are kept: Encode goes on there."
