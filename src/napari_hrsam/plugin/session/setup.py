"""What a session begins with: an image, and where its objects go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from napari_hrsam.plugin.overlay.objects import MemoryObjects, ObjectsLayer, StoredObjects
from napari_hrsam.plugin.session.image_input import (
    ChannelLayers,
    ImageInput,
    default_image_layer,
    read_image_layers,
)
from napari_hrsam.plugin.session.targets import (
    MemoryTarget,
    Target,
    default_target,
    kept_array,
    resolve_target,
)
from napari_hrsam.storage.labels.places import LabelFile, OwnPlace, ome_zarr_of

if TYPE_CHECKING:
    import napari.components
    from napari.layers import Image

    from napari_hrsam.errors import LabelsError
    from napari_hrsam.plugin.session.commands import LabelsPlace, Opened


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Setup:
    """An image, as it is shown now, and the checked target of its objects."""

    image: ImageInput
    target: MemoryTarget | LabelFile | OwnPlace

    @classmethod
    def choose(
        cls,
        layers: napari.components.LayerList,
        image_layer: Image | None,
        channels: ChannelLayers | None,
        target: Target | None,
    ) -> Setup:
        """Check what the user chose, and choose the rest; see `SegmentController.start`."""
        if image_layer is None:
            image_layer = default_image_layer(layers, layers.selection.active)
        image = read_image_layers(image_layer, channels, layers)
        if target is None:
            target = default_target(image.layer, image.image)
        return cls(image=image, target=resolve_target(target, image.layer, image.image))

    def place(self, layers: napari.components.LayerList) -> LabelsPlace:
        """Say where the session writes objects; of an array, with a copy on disk."""
        if isinstance(self.target, MemoryTarget):
            return kept_array(self.target, self.image.layer, layers)
        return self.target

    def objects_layer(
        self,
        viewer: napari.components.ViewerModel,
        opened: Opened,
        on_damage: Callable[[LabelsError], None],
    ) -> ObjectsLayer:
        """Add the layer that shows the objects; see `StoredObjects`."""
        if opened.labels is not None:
            return StoredObjects(viewer, self.image.layer, opened.labels, on_damage)
        assert isinstance(self.target, MemoryTarget)
        return MemoryObjects(viewer, self.image.layer, self.target, opened.copy)

    @property
    def is_beside_image(self) -> bool:
        """Whether objects go into the folder of the image."""
        target = self.target
        return isinstance(target, LabelFile) and target.path == ome_zarr_of(self.image.layer)
