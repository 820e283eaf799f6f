"""Images that napari shows: its Image layers as the levels of an image. Nothing imports napari."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.errors import ImageError
from napari_hrsam.storage.arrange import arrange
from napari_hrsam.storage.array_kinds import adapted, known_shape
from napari_hrsam.storage.colours import Channels, Limits, Shown, shown_channels
from napari_hrsam.storage.limits import find_limits
from napari_hrsam.storage.stored import AxisOrder, chunk_shape, stored_levels
from napari_hrsam.storage.tile_source import PyramidImage

_LAYER_NAMES = ("data", "multiscale", "rgb", "contrast_limits", "data_to_world")
_COLOURS = ("red", "green", "blue")


def is_image_layer(value: object) -> bool:
    """Whether something is a napari Image layer, told by what it has."""
    return all(hasattr(value, name) for name in _LAYER_NAMES)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LayerImage:
    """What image layers hold, taken down at one moment without reading a pixel.

    Layers belong to the viewer's thread; this can be opened on another one.

    Attributes
    ----------
    arrays : tuple of array-like
        The levels, finest first.
    order : AxisOrder
        Of all of them.
    shown : (red, green, blue)
        The channel shown as each colour.
    contrast_limits : (low, high), one such pair per shown channel, or None
        None: to be found from the pixels.
    is_separate : bool
        Whether channels are separate, so that each has limits of its own.
    name : str
        What errors call the image.
    """

    arrays: tuple[Any, ...]
    order: AxisOrder
    shown: Shown
    contrast_limits: Limits | None
    is_separate: bool
    name: str

    @property
    def shape_yx(self) -> tuple[int, int]:
        """Height and width in level-0 pixels."""
        shape = self.arrays[0].shape
        return int(shape[self.order.y]), int(shape[self.order.x])

    @property
    def plane_shape(self) -> tuple[int, ...]:
        """Number of planes along each axis besides rows, columns and channels."""
        return tuple(int(self.arrays[0].shape[axis]) for axis in self.order.planes)

    @property
    def is_in_memory(self) -> bool:
        """Whether every level is an array in memory."""
        return all(isinstance(array, np.ndarray) for array in self.arrays)

    def open(self) -> PyramidImage:
        """Open the image; a coarse level is looked at if there are no limits yet.

        Raises
        ------
        ImageError
            If the levels are not of one image, or no pixel looked at is finite.
        ImageReadError
            If pixels cannot be read.
        """
        stored = stored_levels(
            self.arrays, self.order, names=[self.name, *self._level_names(len(self.arrays))]
        )
        if self.contrast_limits is not None and stored[-1].dtype.kind == "f":
            # Limits that napari gave to an image of NaN say nothing.
            find_limits(stored, self.shown, separate=self.is_separate)
        return PyramidImage(stored, self.shown, self.contrast_limits, separate=self.is_separate)

    def plain(self) -> PyramidImage:
        """Open the first channel between fixed limits: the same whatever is chosen to be shown.

        Raises
        ------
        ImageError
            If the levels are not of one image.
        """
        arrays, order = self.arrays, self.order
        if isinstance(arrays[0], _StackedChannels):
            arrays = tuple(array.first for array in arrays)
            order, _ = arrange(tuple(arrays[0].shape), False, None, None)
        return PyramidImage(stored_levels(arrays, order), (0, 0, 0), (0.0, 1.0))

    def _level_names(self, num: int) -> list[str]:
        return [f"level {level} of {self.name}" for level in range(1, num)]


def take_layers(
    layers: Any,
    *,
    rgb: bool | None = None,
    channel_axis: int | None = None,
    channels: Channels | None = None,
    contrast_limits: Limits | None = None,
) -> LayerImage:
    """Take down what an Image layer, or several with one channel each, hold; no pixel is read.

    Parameters
    ----------
    layers : Image layer or sequence of them
        Multiscale or not, RGB or not, with any number of leading axes, which count planes.
        Several layers are the channels of one image: none is RGB, and all lie on one grid.
    rgb : bool, optional
        Must be what the layer says.
    channel_axis : int, optional
        The axis of a single layer that holds separate channels.
    channels : mapping or sequence, optional
        As in `open_image`; of several layers, the numbers are places in the sequence. By default
        layers whose colormaps are red, green and blue, once each, are shown so.
    contrast_limits : optional
        By default those of the layers; an RGB layer has none that count.

    Raises
    ------
    ImageError
        If there is no pixel, or the layers are not channels of one image.
    """
    if is_image_layer(layers):
        return _take_one(layers, rgb, channel_axis, channels, contrast_limits)
    chosen = list(layers)
    if len(chosen) == 1 and channels is None:
        return _take_one(chosen[0], rgb, channel_axis, channels, contrast_limits)
    if rgb or channel_axis is not None:
        raise ImageError(
            f"expected neither rgb nor channel_axis for several layers, got rgb={rgb} and "
            f"channel_axis={channel_axis}; every layer is one channel"
        )
    _require_one_grid(chosen)
    levels = [levels_of(layer) for layer in chosen]
    num_levels = min(map(len, levels))
    arrays = tuple(_StackedChannels([one[level] for one in levels]) for level in range(num_levels))
    if channels is None:
        channels = _by_colormap(chosen)
    order, _ = arrange(arrays[0].shape, None, 0, [0])
    shown = shown_channels(len(chosen), channels)
    limits = contrast_limits
    if limits is None:
        limits = [_limits(chosen[i]) for i in _used(shown)]
    return LayerImage(
        arrays=arrays,
        order=order,
        shown=shown,
        contrast_limits=limits,
        is_separate=True,
        name=" + ".join(f"'{layer.name}'" for layer in chosen),
    )


def levels_of(layer: Any) -> tuple[Any, ...]:
    """Return the arrays of an Image layer, finest first."""
    return tuple(layer.data) if layer.multiscale else (layer.data,)


def _take_one(
    layer: Any,
    rgb: bool | None,
    channel_axis: int | None,
    channels: Channels | None,
    contrast_limits: Limits | None,
) -> LayerImage:
    if rgb is not None and bool(rgb) != bool(layer.rgb):
        raise ImageError(
            f"expected rgb={bool(layer.rgb)} as the layer '{layer.name}' says, got {rgb}; leave it "
            "out, or add the image to the viewer again"
        )
    arrays = levels_of(layer)
    shape = known_shape(arrays[0])
    if 0 in shape:
        raise ImageError(f"expected pixels, but the image '{layer.name}' is empty: shape {shape}")
    order, shown = arrange(shape, bool(layer.rgb), channel_axis, channels)
    if contrast_limits is None and not layer.rgb:
        contrast_limits = _limits(layer)
        if channel_axis is not None:
            contrast_limits = [contrast_limits] * len(_used(shown))
    return LayerImage(
        arrays=arrays,
        order=order,
        shown=shown,
        contrast_limits=contrast_limits,
        is_separate=channel_axis is not None,
        name=f"'{layer.name}'",
    )


def _used(shown: Shown) -> list[int]:
    """Channels that need limits: one if all colours show the same, else one per colour."""
    used = [channel for channel in shown if channel is not None]
    return used[:1] if len(set(shown)) == 1 else used


def _limits(layer: Any) -> tuple[float, float]:
    low, high = layer.contrast_limits
    return float(low), float(high)


def _by_colormap(layers: Sequence[Any]) -> dict[str, int] | None:
    names = [str(getattr(layer.colormap, "name", "")) for layer in layers]
    if len(set(names)) < len(names) or not set(names) <= set(_COLOURS):
        return None
    return {name: place for place, name in enumerate(names)}


def _require_one_grid(layers: Sequence[Any]) -> None:
    if not layers:
        raise ImageError("expected an image layer, got none; choose one")
    first = layers[0]
    for layer in layers:
        if layer.rgb:
            raise ImageError(
                f"expected layers of one channel each, got the RGB layer '{layer.name}'; choose it "
                "alone"
            )
        if not share_grid(first, layer):
            raise ImageError(
                f"expected layers on one pixel grid, got '{first.name}' of shape "
                f"{tuple(levels_of(first)[0].shape)} and '{layer.name}' of shape "
                f"{tuple(levels_of(layer)[0].shape)}, or at another place or scale; choose "
                "channels of one image"
            )


def share_grid(one: Any, other: Any) -> bool:
    """Whether two layers have the same shape at every level, and lie on each other."""
    shapes = [[tuple(level.shape) for level in levels_of(layer)] for layer in (one, other)]
    common = min(map(len, shapes))
    if shapes[0][:common] != shapes[1][:common] or bool(one.rgb) != bool(other.rgb):
        return False
    ndim = int(one.ndim)
    corners = np.concatenate([np.zeros((1, ndim)), np.diag(shapes[0][0][:ndim])])
    return tuple(one.units) == tuple(other.units) and all(
        np.allclose(one.data_to_world(corner), other.data_to_world(corner)) for corner in corners
    )


class _StackedChannels:
    """Arrays of one channel each as one array with a channel axis in front; read when indexed."""

    def __init__(self, channels: Sequence[Any]) -> None:
        self._channels = tuple(adapted(channel) for channel in channels)
        self.first = channels[0]
        self.shape = (len(self._channels), *self._channels[0].shape)
        self.dtype = np.result_type(*(channel.dtype for channel in self._channels))
        self.ndim = len(self.shape)
        chunks = chunk_shape(channels[0])
        self.chunks = None if chunks is None else (1, *chunks)

    @property
    def size(self) -> int:
        """Number of pixels of all channels."""
        return math.prod(self.shape)

    def __getitem__(self, index: tuple[Any, ...]) -> NDArray[Any]:
        """Read some of the channels; the first index is a slice."""
        return np.stack([np.asarray(one[index[1:]]) for one in self._channels[index[0]]])
