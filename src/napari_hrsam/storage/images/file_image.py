"""An image as a file holds it: levels read part by part, axes, colours and pixel size."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from napari_hrsam.storage.images.georeference import Georeference
from napari_hrsam.storage.images.ome_metadata import OmeChannel, OmeImage
from napari_hrsam.storage.images.stored import AxisOrder


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FileImage:
    """What a file of pages or tiles holds as an image.

    Attributes
    ----------
    levels : tuple of array-like
        Finest first.
    axes : str
        One letter per axis of them: Y, X, S for colours or samples, C for channels, T, Z, ...
    is_colour : bool
        Whether S are red, green and blue.
    pixel_size : dict of str to (float, str)
        Size and unit of a pixel along the axes of which the file tells them.
    channels : tuple of OmeChannel
        Names and colours of the channels along C, where the file tells them.
    georeference : Georeference or None
        Where its pixels lie, if it is a map.
    background : (red, green, blue) or None
        Colour, 0..255, of what was not scanned; None where the file has no such places.
    """

    levels: tuple[Any, ...]
    axes: str
    is_colour: bool
    pixel_size: dict[str, tuple[float, str]] = field(default_factory=dict)
    channels: tuple[OmeChannel, ...] = ()
    background: tuple[int, int, int] | None = None
    georeference: Georeference | None = None

    def described(self, path: str, order: AxisOrder) -> OmeImage | None:
        """Tell axes and pixel size as an OME-Zarr would; None where no pixel size is known.

        Parameters
        ----------
        path : str
            Of the file.
        order : AxisOrder
            Of the axes as they are used.
        """
        num = len(self.axes)
        # Planes are called as OME-Zarr orders them, also where the file has no letter for them.
        names = dict(zip(order.planes, ("t", "z")[2 - len(order.planes) :], strict=False))
        if not self.pixel_size or len(order.planes) > 2:
            return None
        for axis in order.planes:
            if self.axes[axis] in "TZ" and len(order.planes) == 1:
                names[axis] = self.axes[axis].lower()
        names |= {order.y: "y", order.x: "x"}
        if order.channel is not None:
            names[order.channel] = "c"
        types = {"t": "time", "c": "channel"}
        sizes = [self.pixel_size.get(names[axis].upper(), (1.0, "")) for axis in range(num)]
        return OmeImage(
            path=path,
            version="0.5",
            axes=tuple(names[axis] for axis in range(num)),
            types=tuple(types.get(names[axis], "space") for axis in range(num)),
            units=tuple(unit for _, unit in sizes),
            datasets=(),
            scales=(tuple(size for size, _ in sizes),),
            translations=((0.0,) * num,),
            channels=self.channels,
        )
