"""Images that napari shows: its Image layers as the levels of an image. Nothing imports napari."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.errors import ImageError
from napari_hrsam.storage.images.arrange import arrange
from napari_hrsam.storage.images.array_kinds import adapted, known_shape
from napari_hrsam.storage.images.colours import (
    GREY,
    HIDING,
    NUM_COLOURS,
    Channels,
    Limits,
    Look,
    Shown,
    looks_of,
    plain_mapping,
    shown_channels,
    spread_limits,
)
from napari_hrsam.storage.images.georeference import Georeference
from napari_hrsam.storage.images.limits import find_limits
from napari_hrsam.storage.images.stored import AxisOrder, chunk_shape, stored_levels
from napari_hrsam.storage.images.tile_source import PyramidImage

GEOREFERENCE_KEY = "napari-hrsam georeference"
"""In the metadata of an Image layer: where its pixels lie, as `Georeference.as_json` tells it."""

_LAYER_NAMES = ("data", "multiscale", "rgb", "contrast_limits", "data_to_world")


def is_image_layer(value: object) -> bool:
    """Whether something is a napari Image layer, told by what it has."""
    # Arrays answer what they are asked for by work, or by errors.
    if isinstance(value, np.ndarray):
        return False
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
        The channel shown as each colour; with looks, the channel of each of them.
    contrast_limits : (low, high), one such pair per shown channel, or None
        None: to be found from the pixels.
    looks : tuple of Look
        How channels are coloured and laid together; empty: as `shown` says.
    is_separate : bool
        Whether channels are separate, so that each has limits of its own.
    name : str
        What errors call the image.
    plane_names : tuple of str
        What the viewer calls the axes of `plane_shape`.
    georeference : Georeference or None
        Where the pixels of a map lie, if its reader told it.
    """

    arrays: tuple[Any, ...]
    order: AxisOrder
    shown: Shown
    contrast_limits: Limits | None
    looks: tuple[Look, ...] = ()
    is_separate: bool
    name: str
    plane_names: tuple[str, ...] = ()
    georeference: Georeference | None = None

    def is_same_picture(self, other: LayerImage) -> bool:
        """Whether a model would be shown the same; pixels changed in place are not noticed."""
        mine, others = self._sources, other._sources
        return (
            len(mine) == len(others)
            and all(one is another for one, another in zip(mine, others, strict=True))
            and self.order == other.order
            and self.shown == other.shown
            and _pairs(self.contrast_limits) == _pairs(other.contrast_limits)
            and [look.facts for look in self.looks] == [look.facts for look in other.looks]
        )

    @property
    def _sources(self) -> list[Any]:
        """What the levels are made of."""
        return [
            part
            for array in self.arrays
            for part in (array.parts if isinstance(array, _StackedChannels) else (array,))
        ]

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
        return all(isinstance(part, np.ndarray) for part in self._sources)

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
        return PyramidImage(
            stored,
            self.shown,
            self.contrast_limits,
            looks=self.looks,
            separate=self.is_separate,
            plane_names=self.plane_names,
            georeference=self.georeference,
        )

    def plain(self) -> PyramidImage:
        """Open the first channel between fixed limits: the same whatever is chosen to be shown.

        Raises
        ------
        ImageError
            If the levels are not of one image.
        """
        arrays, order = self.arrays, self.order
        if isinstance(arrays[0], _StackedChannels):
            arrays = arrays[0].first_levels
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
        By default those of the layers.

    Returns
    -------
    LayerImage
        With the gamma of the layers, and, where `channels` does not say otherwise, with their
        colormaps, opacity and blending. Of several layers those that are hidden do not count,
        unless all are or `channels` names them; they are laid together even where one would hide
        those before it.

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
    if channels is None:
        seen = [place for place, layer in enumerate(chosen) if layer.visible]
        seen = seen or list(range(len(chosen)))
        looks = [_look(chosen[place]) for place in seen]
        if not all(np.allclose(look.colours, GREY, atol=1e-6) for look in looks):
            looks = [replace(look, blending="additive") if look.hides else look for look in looks]
            return _laid(chosen, seen, looks, contrast_limits)
        # Grey ones would be one picture without colours.
        mapping = shown_channels(len(seen), None)
        channels = [None if place is None else seen[place] for place in mapping]
    shown = shown_channels(len(chosen), channels)
    limits = contrast_limits
    if limits is None:
        limits = [_layer_limits(chosen[i]) for i in _used(shown)]
    return _stacked(chosen, shown, limits, gammas={i: _gamma(chosen[i]) for i in set(_used(shown))})


def take_shown(layer: Any, layers: Iterable[Any]) -> LayerImage:
    """Take down an Image layer as a viewer shows it, with the others on its pixel grid.

    Parameters
    ----------
    layer : Image layer
        What is annotated.
    layers : iterable of layer
        All of the viewer, the lowest first.

    Returns
    -------
    LayerImage
        Of the layers of `seen_together`, with their limits, gamma, colormaps, opacity and blending;
        of `layer` alone, as if it was visible, where there are none.

    Raises
    ------
    ImageError
        As `take_layers`.
    """
    seen = seen_together(layer, layers)
    if [one is layer for one in seen] in ([], [True]):
        return take_layers(layer)
    chosen = [layer, *(one for one in seen if one is not layer)]
    places = [next(i for i, one in enumerate(chosen) if one is wanted) for wanted in seen]
    return _laid(chosen, places, [_look(one) for one in seen], None)


def seen_together(layer: Any, layers: Iterable[Any]) -> list[Any]:
    """Choose the layers that are seen as one picture with an Image layer, the lowest first.

    They are visible, share its pixel grid, and neither hide it nor are hidden by it. Layers of
    other kinds or grids, and RGB ones, are no part of it.
    """
    if layer.rgb:
        return [layer] if layer.visible else []
    on_grid = [
        one
        for one in layers
        if is_image_layer(one) and (one is layer or (_is_seen(one) and share_grid(layer, one)))
    ]
    place = next((i for i, one in enumerate(on_grid) if one is layer), len(on_grid))
    below, above = on_grid[:place], on_grid[place + 1 :]
    # What lies on top and hides the image is another image.
    above = [one for one in above if not _look(one).hides]
    parts = [*below, *([layer] if _is_seen(layer) else []), *above]
    lowest = max((i for i, one in enumerate(parts) if _look(one).hides), default=0)
    return parts[lowest:]


def hides_below(layer: Any) -> bool:
    """Whether an Image layer that is visible hides what is below it, at least in part."""
    return bool(layer.opacity) and str(layer.blending) in HIDING


def levels_of(layer: Any) -> tuple[Any, ...]:
    """Return the arrays of an Image layer, finest first."""
    return tuple(layer.data) if layer.multiscale else (layer.data,)


def georeference_of(layer: Any) -> Georeference | None:
    """Return where the pixels of a layer lie on a map, None if no reader told it."""
    told = layer.metadata.get(GEOREFERENCE_KEY) if hasattr(layer, "metadata") else None
    return Georeference.from_json(told)


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
    if contrast_limits is None:
        contrast_limits = _layer_limits(layer)
        if channel_axis is not None:
            contrast_limits = [contrast_limits] * len(_used(shown))
    if channel_axis is None and not layer.rgb:
        shown, contrast_limits, looks = _as_seen((0,), [_look(layer)], contrast_limits)
    else:
        gammas = dict.fromkeys((c for c in shown if c is not None), _gamma(layer))
        shown, looks = looks_of(shown, gammas)
    return LayerImage(
        arrays=arrays,
        order=order,
        shown=shown,
        contrast_limits=contrast_limits,
        looks=looks,
        is_separate=channel_axis is not None,
        name=f"'{layer.name}'",
        plane_names=_axis_names(layer, order.planes),
        georeference=georeference_of(layer),
    )


def _laid(
    chosen: Sequence[Any],
    places: Sequence[int],
    looks: Sequence[Look],
    contrast_limits: Limits | None,
) -> LayerImage:
    """Lay some of several layers together."""
    limits = contrast_limits
    if limits is None:
        limits = [_layer_limits(chosen[place]) for place in places]
    shown, limits, looks = _as_seen(tuple(places), looks, limits)
    return _stacked(chosen, shown, limits, looks=looks)


def _as_seen(
    places: tuple[int, ...], looks: Sequence[Look], limits: Limits
) -> tuple[Shown, Limits, tuple[Look, ...]]:
    """Say what looks show by a mapping to colours, if that is enough."""
    pairs = spread_limits(limits, len(places), places)
    mapping = plain_mapping(looks)
    if mapping is None:
        return places, pairs, tuple(looks)
    shown = tuple(None if place is None else places[place] for place in mapping)
    if len(places) == 1:
        return shown, pairs[0], ()
    return shown, [pairs[place] for place in mapping if place is not None], ()


def _stacked(
    chosen: Sequence[Any],
    shown: Shown,
    limits: Limits,
    *,
    looks: tuple[Look, ...] = (),
    gammas: dict[int, float] | None = None,
) -> LayerImage:
    """Take down several layers as the channels of one image."""
    levels = [levels_of(layer) for layer in chosen]
    arrays = tuple(
        _StackedChannels([one[level] for one in levels], levels[0])
        for level in range(min(map(len, levels)))
    )
    order, _ = arrange(arrays[0].shape, None, 0, [0])
    if gammas:
        shown, looks = looks_of(shown, gammas)
    used = dict.fromkeys(channel for channel in shown if channel is not None)
    return LayerImage(
        arrays=arrays,
        order=order,
        shown=shown,
        contrast_limits=limits,
        looks=looks,
        is_separate=True,
        name=" + ".join(f"'{chosen[place].name}'" for place in used),
        plane_names=_axis_names(chosen[0], [axis - 1 for axis in order.planes]),
        georeference=georeference_of(chosen[0]),
    )


def _axis_names(layer: Any, axes: Iterable[int]) -> tuple[str, ...]:
    # napari before 0.5 has no names.
    names = getattr(layer, "axis_labels", None)
    return () if names is None else tuple(str(names[axis]) for axis in axes)


def _look(layer: Any) -> Look:
    """Take down how napari draws a layer of one channel."""
    steps = np.linspace(0, 1, NUM_COLOURS)
    return Look(
        colours=np.asarray(layer.colormap.map(steps), dtype=np.float32),
        gamma=_gamma(layer),
        opacity=float(layer.opacity),
        blending=str(layer.blending),
    )


def _gamma(layer: Any) -> float:
    return float(layer.gamma)


def _is_seen(layer: Any) -> bool:
    return bool(layer.visible) and float(layer.opacity) > 0


def _pairs(limits: Limits | None) -> list[float] | None:
    return None if limits is None else np.ravel(np.asarray(limits, dtype=np.float64)).tolist()


def _used(shown: Shown) -> list[int]:
    """Channels that need limits: one if all colours show the same, else one per colour."""
    used = [channel for channel in shown if channel is not None]
    return used[:1] if len(set(shown)) == 1 else used


def _layer_limits(layer: Any) -> tuple[float, float]:
    low, high = layer.contrast_limits
    return float(low), float(high)


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

    def __init__(self, channels: Sequence[Any], first_levels: tuple[Any, ...]) -> None:
        self.parts = tuple(channels)
        self.first_levels = first_levels
        self._channels = tuple(adapted(channel) for channel in channels)
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
