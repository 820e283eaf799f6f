"""The layer that shows committed objects: the user's Labels, or a view of a label image on disk."""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from napari.layers import Labels
from napari.utils.colormaps import CyclicLabelColormap, DirectLabelColormap

from napari_hrsam.geometry import pixel_of
from napari_hrsam.plugin.canvas.coordinates import place, placement
from napari_hrsam.storage.labels.places import FOLDER_KEY

if TYPE_CHECKING:
    import napari.components
    from napari.layers import Image

    from napari_hrsam.errors import LabelsError
    from napari_hrsam.plugin.session.commands import OpenedLabels
    from napari_hrsam.plugin.session.targets import MemoryTarget
    from napari_hrsam.storage.labels.edits import Edit
    from napari_hrsam.storage.labels.places import LabelFile
    from napari_hrsam.storage.labels.properties import Color

MAX_THUMBNAIL_PIXELS = 2**24
NUM_COLORS = 49
CLASS_COLORS = "colours of classes"
WITHOUT_CLASS = (0.72, 0.72, 0.72, 1.0)

COPY_KEY = "napari-hrsam copy"
"""Metadata of a layer of our own: path and name of the label image with a copy of its objects."""


class ObjectsLayer(Protocol):
    """What a session needs of the layer with the committed objects."""

    layer: Labels

    def edited(self, edit: Edit) -> None:
        """Take note of a commit, or of one that was undone."""

    def refresh(self) -> None:
        """Draw what was edited since the last time."""

    def move_with_image(self) -> None:
        """Follow a change of the image layer's transform."""

    def label_at(self, point_yx: tuple[float, float], plane: tuple[int, ...]) -> int:
        """Return the label of the committed object at a pixel of the image; 0 for none."""

    @property
    def is_disposable(self) -> bool:
        """Whether the layer is the session's own and shows nothing."""

    @property
    def is_paintable(self) -> bool:
        """Whether the user may paint in it."""


def target_name(image: Image) -> str:
    """Name of the layer made for the objects of an image."""
    return f"{image.name} [objects]"


def bright_colors() -> CyclicLabelColormap:
    """Return colours for labels, none of which is dark; neighbouring labels differ in hue."""
    # Steps of the golden ratio around the circle of hues come back to none of the earlier ones.
    # They begin with orange: the first ones are unlike the current object's.
    hues = (0.08 + 0.618034 * np.arange(NUM_COLORS)) % 1
    pale = np.where(np.arange(NUM_COLORS) % 2, 0.55, 0.85)
    colors = [(*colorsys.hsv_to_rgb(h, s, 1.0), 1.0) for h, s in zip(hues, pale, strict=True)]
    return CyclicLabelColormap(colors=np.array([(0, 0, 0, 0), *colors], np.float32))


def class_colors(colors: Mapping[int, Color]) -> DirectLabelColormap:
    """Return the colours of some labels; all others look alike, in grey."""
    known: dict[int | None, tuple[float, ...]] = {None: WITHOUT_CLASS, 0: (0.0, 0.0, 0.0, 0.0)}
    for label, (red, green, blue) in colors.items():
        known[label] = (red / 255, green / 255, blue / 255, 1.0)
    return DirectLabelColormap(name=CLASS_COLORS, color_dict=known)


def is_class_colors(colormap: CyclicLabelColormap | DirectLabelColormap) -> bool:
    """Whether these are `class_colors`."""
    return bool(colormap.name == CLASS_COLORS)


class MemoryObjects:
    """A single-scale Labels layer whose array commits change in place.

    Parameters
    ----------
    viewer
        The viewer to add a new layer to.
    image
        The layer whose pixel grid it shares.
    target
        The user's layer, or an array for a new one.
    copy
        Where its objects are kept on disk, too.
    """

    is_paintable = True

    def __init__(
        self,
        viewer: napari.components.ViewerModel,
        image: Image,
        target: MemoryTarget,
        copy: LabelFile | None,
    ) -> None:
        self._image = image
        self._is_own = target.layer is None
        self._is_stale = False
        layer = target.layer
        if layer is None:
            metadata = {} if copy is None else {COPY_KEY: (str(copy.path), copy.name)}
            layer = Labels(
                target.array,
                name=target_name(image),
                metadata=metadata,
                colormap=bright_colors(),
                **placement(image),
            )
            viewer.add_layer(layer)
        self.layer: Labels = layer

    @property
    def is_disposable(self) -> bool:
        """Whether the layer was made here and is empty."""
        return self._is_own and not np.any(self.layer.data)

    def edited(self, edit: Edit) -> None:  # noqa: ARG002  the array has it already
        """Take note of a commit, or of one that was undone."""
        self._is_stale = True

    def refresh(self) -> None:
        """Draw the layer anew if its pixels were written."""
        if self._is_stale:
            self._is_stale = False
            is_small = self.layer.data.size <= MAX_THUMBNAIL_PIXELS
            self.layer.refresh(extent=False, thumbnail=is_small, highlight=False)

    def label_at(self, point_yx: tuple[float, float], plane: tuple[int, ...]) -> int:  # noqa: ARG002  it is flat
        """Return the label of the committed object at a pixel of the image; 0 for none."""
        y, x = pixel_of(point_yx)
        return int(self.layer.data[y, x])

    def move_with_image(self) -> None:
        """Follow the image, but leave the user's own layer where it is."""
        if self._is_own:
            place(self.layer, self._image)


class StoredObjects:
    """A label image on disk, shown at every zoom; it takes the place of an older view of it.

    Parameters
    ----------
    viewer
        The viewer to add the layer to.
    image
        The layer whose pixel grid it shares.
    opened
        The label image, and what shows it.
    on_damage
        Called once when a chunk cannot be read, on the thread that reads.
    """

    is_paintable = False

    def __init__(
        self,
        viewer: napari.components.ViewerModel,
        image: Image,
        opened: OpenedLabels,
        on_damage: Callable[[LabelsError], None],
    ) -> None:
        self._image = image
        self._view = opened.view
        self._view.tell_damage(on_damage)
        self._is_stale = False
        key = (str(opened.file.path), opened.file.name)
        olds = [layer for layer in viewer.layers if layer.metadata.get(FOLDER_KEY) == key]
        options: dict[str, Any] = placement(image)
        is_pyramid = len(self._view.levels) > 1
        self.layer = Labels(
            # napari takes no pyramid of one level.
            self._view.levels if is_pyramid else self._view.levels[0],
            multiscale=is_pyramid,
            colormap=bright_colors(),
            name=target_name(image),
            metadata={FOLDER_KEY: key},
            **options,
        )
        self.layer.editable = False
        for old in olds:
            viewer.layers.remove(old)
        viewer.add_layer(self.layer)

    @property
    def is_disposable(self) -> bool:
        """Whether there is no object yet."""
        return self._view.is_empty

    def edited(self, edit: Edit) -> None:  # noqa: ARG002  the view has it already
        """Take note of a commit, or of one that was undone."""
        self._is_stale = True

    def label_at(self, point_yx: tuple[float, float], plane: tuple[int, ...]) -> int:
        """Return the label of the committed object at a pixel of the image; 0 for none."""
        finest = self._view.levels[0]
        y, x = pixel_of(point_yx)
        place = plane[len(plane) - (finest.ndim - 2) :] if finest.ndim > 2 else ()
        return int(np.asarray(finest[(*place, slice(y, y + 1), slice(x, x + 1))]).item())

    def refresh(self) -> None:
        """Draw what was edited since the last time."""
        if self._is_stale:
            self._is_stale = False
            self.layer.refresh(extent=False, thumbnail=False, highlight=False)

    def move_with_image(self) -> None:
        """Follow a change of the image layer's transform."""
        place(self.layer, self._image)
