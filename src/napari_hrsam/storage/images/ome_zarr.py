"""Open an OME-Zarr image, or a single zarr array, at a local path or a URL."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr

from napari_hrsam.errors import HRSAMError, ImageError, ImageReadError
from napari_hrsam.sample.generated import local_store
from napari_hrsam.storage.files.bounded_codecs import bounded
from napari_hrsam.storage.files.checked_store import CheckedStore
from napari_hrsam.storage.files.remote import open_url
from napari_hrsam.storage.files.urls import is_url, shown_url
from napari_hrsam.storage.images.colours import Channels, Limits, Shown, shown_channels
from napari_hrsam.storage.images.ome_metadata import OmeChannel, OmeImage, parse_ome
from napari_hrsam.storage.images.stored import AxisOrder, StoredLevel, stored_levels
from napari_hrsam.storage.images.tile_source import PyramidImage

_PURE = {"FF0000": 0, "00FF00": 1, "0000FF": 2}


def open_node(
    path: str, mode: Literal["r", "r+"] = "r", *, use_consolidated: bool | None = None
) -> zarr.Array[Any] | zarr.Group:
    """Open what lies at a path or URL; the one door to files of zarr that others made.

    Parameters
    ----------
    path : str
        Local path or URL.
    mode : str
        ``"r"`` for reading only, ``"r+"`` for writing too (in a local folder).
    use_consolidated : bool, optional
        Whether an index of the metadata is believed; by default where there is one.

    Raises
    ------
    ImageError
        If there is nothing, it is a URL of an unknown kind, or the recipe of a generated image is
        damaged or of another version.
    ImageReadError
        If its metadata cannot be read.
    """
    shown = shown_url(path)
    try:
        folder = None if is_url(shown) else Path(shown).absolute()
        store = open_url(path) if folder is None else local_store(folder, read_only=mode == "r")
        checked = CheckedStore(store, shown, folder)
        node = zarr.open(checked, mode=mode, **_index_wish(use_consolidated))
        return _guarded(node) if isinstance(node, zarr.Array) else node
    except HRSAMError:
        raise
    except FileNotFoundError as error:
        raise ImageError(
            f"expected a zarr array or group, but there is none at {shown}; check the path"
        ) from error
    # Damaged metadata is answered with errors of any kind, also with too deep recursion.
    except Exception as error:
        raise ImageReadError(
            f"expected zarr metadata that can be read, got {type(error).__name__}: "
            f"{str(error)[:500]} at {shown}; the file may be damaged or unfinished"
        ) from error


def open_group(path: Path, mode: Literal["r", "r+"] = "r") -> zarr.Group:
    """Open the group in a local folder; an index of the metadata is not believed.

    Raises
    ------
    ImageError, ImageReadError
        As `open_node`, and for a single array.
    """
    node = open_node(str(path), mode, use_consolidated=False)
    if isinstance(node, zarr.Group):
        return node
    raise ImageError(f"expected a group, got a single array at {path}; give the path of its group")


def array_in(group: zarr.Group, dataset: str, where: str) -> zarr.Array[Any]:
    """Return an array of a group of `open_node`, whose chunks are checked when they are read.

    Parameters
    ----------
    group : zarr.Group
    dataset : str
        Path of the array inside it.
    where : str
        Path or URL of the group, as errors name it.

    Raises
    ------
    ImageError
        If it is none, or a link leads to it out of the group.
    ImageReadError
        If its metadata cannot be read.
    """
    named = f"{where.rstrip('/')}/{dataset}"
    try:
        if not is_url(where):
            require_inside(Path(where), dataset)
        array = group[dataset]
        if isinstance(array, zarr.Array):
            return _guarded(array)
    except HRSAMError:
        raise
    except Exception as error:
        raise ImageReadError(
            f"expected the array of a level at {named}, got {type(error).__name__}: "
            f"{str(error)[:500]}; the file may be damaged or unfinished"
        ) from error
    raise ImageError(f"expected the array of a level, got a group at {named}")


def require_inside(folder: Path, inside: str) -> None:
    """Refuse a path inside a folder that a link leads out of it.

    Raises
    ------
    ImageError
        If so.
    """
    root = folder.resolve()
    if not (root / inside).resolve().is_relative_to(root):
        raise ImageError(
            f"expected {inside} inside {folder}, but it is a link that leads out of it; open what "
            "it leads to, or replace the link by a copy"
        )


def _guarded(array: zarr.Array[Any]) -> zarr.Array[Any]:
    """Have what is read of an array, and what it decodes to, limited."""
    array.store.watch(array)  # type: ignore[attr-defined]
    return bounded(array)


def _index_wish(use_consolidated: bool | None) -> dict[str, Any]:
    return {} if use_consolidated is None else {"use_consolidated": use_consolidated}


def open_ome_zarr(
    path: str,
    group: zarr.Group,
    *,
    rgb: bool | None,
    channel_axis: int | None,
    channels: Channels | None,
    contrast_limits: Limits | None,
) -> PyramidImage:
    """Open the image of a group; the arguments are those of `open_image`.

    Without `channels` and `rgb`, active channels whose colours are pure red, green and blue, once
    each at most, are shown in these. Without `contrast_limits` the windows of the file are used,
    where every shown channel has one that is not the whole range of its integers.

    Raises
    ------
    ImageError
        If the metadata describes no usable image, or the arguments do not fit it.
    ImageReadError
        If an array's metadata cannot be read.
    """
    path = shown_url(path)
    ome = parse_ome(group.attrs.asdict(), path)
    arrays = [array_in(group, dataset, path) for dataset in ome.datasets]
    stored = image_levels(ome, arrays)
    shown, separate = _shown(ome, stored[0].num_channels, rgb, channel_axis, channels)
    limits = contrast_limits
    if limits is None:
        limits = _windows(ome.channels, shown, stored[0].dtype)
    return PyramidImage(stored, shown, limits, separate=separate, ome=ome)


def image_levels(ome: OmeImage, arrays: list[zarr.Array[Any]]) -> tuple[StoredLevel, ...]:
    """Describe the arrays of an image as its levels.

    Raises
    ------
    ImageError
        If they do not fit what the image says of itself, or cannot be read in bounded memory.
    """
    for array, dataset in zip(arrays, ome.datasets, strict=True):
        if array.ndim != len(ome.axes):
            raise ImageError(
                f"expected {len(ome.axes)} axes {ome.axes}, got shape {array.shape} in "
                f"{ome.path}/{dataset}; correct the file's metadata"
            )
    order = _order(ome)
    return stored_levels(
        arrays,
        order,
        factors_yx=[
            (scale[order.y] / ome.scales[0][order.y], scale[order.x] / ome.scales[0][order.x])
            for scale in ome.scales
        ],
        names=[f"{ome.path.rstrip('/')}/{dataset}" for dataset in ome.datasets],
    )


def _order(ome: OmeImage) -> AxisOrder:
    y, x = ome.axes.index("y"), ome.axes.index("x")
    channel = ome.channel_axis
    planes = (axis for axis in range(len(ome.axes)) if axis not in {y, x, channel})
    return AxisOrder(y=y, x=x, channel=channel, planes=tuple(planes))


def _shown(
    ome: OmeImage,
    num_channels: int,
    rgb: bool | None,
    channel_axis: int | None,
    channels: Channels | None,
) -> tuple[Shown, bool]:
    """Choose the channel of each colour; tell whether channels are separate."""
    axis = ome.channel_axis
    if channel_axis is not None and channel_axis % len(ome.axes) != axis:
        raise ImageError(
            f"expected channel_axis={axis} as the axes {ome.axes} say, got {channel_axis}; "
            "leave it out"
        )
    if axis is None and (rgb or channels is not None):
        raise ImageError(
            f"expected neither rgb nor channels for an image of axes {ome.axes}, got rgb={rgb} "
            f"and channels={channels!r}; leave them out"
        )
    if rgb:
        if channels is not None or num_channels not in {3, 4}:
            raise ImageError(
                f"expected 3 or 4 channels and no mapping with rgb=True, got {num_channels} and "
                f"channels={channels!r}; leave rgb out and say e.g. channels=[0]"
            )
        return (0, 1, 2), False
    if channels is None and rgb is None and num_channels > 1:
        found = _coloured(ome.channels[:num_channels])
        if found is not None:
            # All three: colours of one picture, like an array with colours.
            return found, None in found
    try:
        return shown_channels(num_channels, channels), True
    except ImageError as error:
        names = [channel.name for channel in ome.channels]
        raise ImageError(f"{error}; the channels of {ome.path} are called {names}") from error


def _coloured(channels: tuple[OmeChannel, ...]) -> Shown | None:
    """Map active channels by their pure colours; None if one has another colour or the same."""
    shown: list[int | None] = [None, None, None]
    for number, channel in enumerate(channels):
        if not channel.is_active:
            continue
        colour = _PURE.get(channel.colour)
        if colour is None or shown[colour] is not None:
            return None
        shown[colour] = number
    return None if shown == [None, None, None] else tuple(shown)


def _windows(
    channels: tuple[OmeChannel, ...], shown: Shown, dtype: np.dtype[Any]
) -> list[tuple[float, float]] | None:
    """Return the file's windows of the shown channels, None if one has none that says something."""
    windows: list[tuple[float, float]] = []
    for channel in shown:
        if channel is None:
            continue
        window = channels[channel].window if channel < len(channels) else None
        # Many writers put the range of the type, which is no choice: most of it may be empty.
        if window is None or _is_range(window, dtype):
            return None
        windows.append(window)
    return windows


def _is_range(window: tuple[float, float], dtype: np.dtype[Any]) -> bool:
    if dtype.kind not in "iu" or dtype.itemsize == 1:
        return False
    info = np.iinfo(dtype)
    return window[0] <= info.min and window[1] >= info.max
