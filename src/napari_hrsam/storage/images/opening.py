"""Open anything that holds an image."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.errors import ImageError
from napari_hrsam.storage.images.arrange import arrange
from napari_hrsam.storage.images.array_kinds import NanWhere, known_shape
from napari_hrsam.storage.images.colours import Channels, Limits, shown_channels
from napari_hrsam.storage.images.file_image import FileImage
from napari_hrsam.storage.images.layers import is_image_layer, take_layers
from napari_hrsam.storage.images.pictures import read_picture
from napari_hrsam.storage.images.slides import is_slide, open_slide
from napari_hrsam.storage.images.stored import AxisOrder, stored_levels
from napari_hrsam.storage.images.tiff_files import is_tiff, open_tiff
from napari_hrsam.storage.images.tile_source import ArrayImage, PyramidImage


def open_image(
    source: Any,
    rgb: bool | None = None,
    channel_axis: int | None = None,
    channels: Channels | None = None,
    contrast_limits: Limits | None = None,
) -> PyramidImage:
    """Open an image to annotate; its pixels are read when they are wanted, and never changed.

    Parameters
    ----------
    source : path, URL, array, list of arrays, napari Image layer or layers, or PyramidImage
        Path or URL of an OME-Zarr image (version 0.4 or 0.5) or a single zarr array, or path of a
        TIFF (also OME-TIFF, COG, SVS, NDPI), of a slide (MRXS, SCN, BIF, VMS, Philips, DICOM,
        CZI: with the extra ``slides``) or a picture (PNG, JPEG, .npy). Of a TIFF or slide only
        the parts that are wanted are read, from its levels; its axes, colours, palette, value for
        no data, masks and pixel size count. Or a NumPy, dask or zarr array, or any other with
        ``shape``, ``dtype`` and slicing: (H, W), (H, W, 1, 3 or 4) or (..., H, W), where every
        leading axis counts planes. Or a list of such arrays, the levels of one image from the
        finest to the coarsest, by any factors. Bool, integer or float of any byte order. Or an
        Image layer of napari, or a list of them on one pixel grid, one per channel; with the
        contrast limits, gamma and colormaps that they have now, laid together as napari does; of
        several, hidden ones do not count, and grey ones are channels without colours. An image
        that is open already is returned as it is.

        Pixels that are NaN, infinite or masked, and those that a file declares missing or
        transparent, do not count in the limits and are in no mask.
    rgb : bool, optional
        Whether the last axis holds the colours. By default it does in an array of three axes or
        more whose last one has 3 or 4 entries, unless `channel_axis` is given.
    channel_axis : int, optional
        The axis that holds separate channels.
    channels : mapping or sequence, optional
        Which channel is shown as which colour: ``{"red": 2, "green": 0}``, or up to three channel
        numbers for red, green, blue (None: not shown). One channel is shown grey; two are shown
        red and green unless this says otherwise; three or more need it, but in an OME-Zarr whose
        active channels are pure red, green and blue.
    contrast_limits : (low, high), optional
        Values shown as black and white; or one such pair per shown channel. By default uint8 RGB
        is used as it is and bool runs from False to True; all else runs from the 0.1 to the 99.9
        percentile of a sample of a coarse level, per channel for separate channels. The windows
        of an OME-Zarr come first, unless they are the whole range of its integers.

    Returns
    -------
    PyramidImage
        `ArrayImage` for a 2-D NumPy array.

    Raises
    ------
    ImageError
        If there is no image, or it needs other arguments.
    ImageReadError
        If pixels or metadata cannot be read.
    """
    wishes: dict[str, Any] = {
        "rgb": rgb,
        "channel_axis": channel_axis,
        "channels": channels,
        "contrast_limits": contrast_limits,
    }
    if isinstance(source, PyramidImage):
        given = [name for name, value in wishes.items() if value is not None]
        if given:
            raise ImageError(
                f"expected no further arguments for an image that is open, got {given}; "
                "give them when it is opened first"
            )
        return source
    if isinstance(source, str | os.PathLike):
        return _open_path(os.fspath(source), rgb, channel_axis, channels, contrast_limits)
    if _is_layers(source):
        return take_layers(source, **wishes).open()
    arrays = list(source) if isinstance(source, Sequence) else [source]
    if not arrays or not all(_is_array(array) for array in arrays):
        raise ImageError(
            "expected an array, or a list of arrays from the finest level to the coarsest, got "
            f"{_kind(source)}; convert it with numpy.asarray(image)"
        )
    order, shown = arrange(known_shape(arrays[0]), rgb, channel_axis, channels)
    if len(arrays) == 1 and isinstance(arrays[0], np.ndarray) and not order.planes:
        return ArrayImage(arrays[0], rgb, channel_axis, channels, contrast_limits)
    return PyramidImage(
        stored_levels(arrays, order), shown, contrast_limits, separate=channel_axis is not None
    )


def _open_path(
    path: str,
    rgb: bool | None,
    channel_axis: int | None,
    channels: Channels | None,
    contrast_limits: Limits | None,
) -> PyramidImage:
    try:
        as_zarr, is_file = is_zarr(path), Path(path).exists()
    # A name may be longer than the system takes.
    except (OSError, ValueError) as error:
        raise ImageError(
            f"expected an image, got {type(error).__name__} at {path[:200]!r} ({error.args[-1]}); "
            "check the path"
        ) from error
    if not as_zarr:
        if not is_file:
            raise ImageError(f"expected an image file, but there is none at {path}; check the path")
        as_stored = channel_axis is not None or rgb is False
        found = open_file_image(Path(path), as_stored=as_stored)
        if found is not None:
            return _open_found(found, path, rgb, channel_axis, channels, contrast_limits)
        pixels: Any = read_picture(Path(path))
        if channel_axis is None and _is_transparent(Path(path), pixels):
            # What is transparent was not painted.
            pixels = NanWhere(pixels, lambda part: part[..., 3:] == 0, whole_axis=2)
        return open_image(pixels, rgb, channel_axis, channels, contrast_limits)
    # zarr takes a while to import, and most images of the command line are pictures.
    from napari_hrsam.storage.images.ome_zarr import open_node, open_ome_zarr

    node = open_node(path)
    if hasattr(node, "shape"):
        return open_image(node, rgb, channel_axis, channels, contrast_limits)
    return open_ome_zarr(
        path,
        node,
        rgb=rgb,
        channel_axis=channel_axis,
        channels=channels,
        contrast_limits=contrast_limits,
    )


def open_file_image(path: Path, *, as_stored: bool = False) -> FileImage | None:
    """Open a slide or a TIFF as its file says; None for pictures that are read whole.

    Parameters
    ----------
    path : Path
    as_stored : bool
        Whether samples of a TIFF are channels to choose from, whatever the file says of them.

    Raises
    ------
    MissingExtraError
        If it is a slide, and the extra ``slides`` is not installed.
    ImageError
        If it cannot be read.
    """
    if is_slide(path):
        return open_slide(path)
    return open_tiff(path, as_stored=as_stored) if is_tiff(path) else None


def _open_found(
    found: FileImage,
    path: str,
    rgb: bool | None,
    channel_axis: int | None,
    channels: Channels | None,
    contrast_limits: Limits | None,
) -> PyramidImage:
    """Open an image as its file says; `rgb` and `channel_axis` are for those that say nothing."""
    pixels, shape = found.levels[0], known_shape(found.levels[0])
    if isinstance(pixels, np.ndarray) and found.axes == ("YXS" if found.is_colour else "YX"):
        image = ArrayImage(pixels, rgb, channel_axis, channels, contrast_limits)
        order = AxisOrder(y=0, x=1, channel=2 if found.is_colour else None)
        image.ome, image.georeference = found.described(path, order), found.georeference
        return image
    letter = "S" if "S" in found.axes else "C"
    is_separate = channel_axis is not None
    if channel_axis is None and letter in found.axes:
        y, x, channel = (found.axes.index(axis) for axis in ("Y", "X", letter))
        planes = tuple(axis for axis in range(len(shape)) if axis not in {y, x, channel})
        order = AxisOrder(y=y, x=x, channel=channel, planes=planes)
        as_colours = found.is_colour or (rgb and shape[channel] in {3, 4})
        is_separate = channels is not None or not as_colours
        shown = shown_channels(shape[channel], channels) if is_separate else (0, 1, 2)
    else:
        # Rows of three pixels are no colours where the file has told its axes.
        wish = False if rgb is None and channel_axis is None else rgb
        order, shown = arrange(shape, wish, channel_axis, channels)
    return PyramidImage(
        stored_levels(found.levels, order, names=[path] * len(found.levels)),
        shown,
        contrast_limits,
        separate=is_separate,
        ome=found.described(path, order),
        georeference=found.georeference,
    )


def is_zarr(path: str) -> bool:
    """Whether a path is opened as zarr: a URL, a folder not of DICOM, anything in a ``.zarr``."""
    return (
        "://" in path
        or (Path(path).is_dir() and not is_slide(Path(path)))
        or any(part.endswith(".zarr") for part in Path(path).parts)
    )


def _is_transparent(path: Path, pixels: NDArray[Any]) -> bool:
    """Whether a picture has pixels of no opacity; the fourth of other channels may be anything."""
    return (
        path.suffix.lower() != ".npy"
        and pixels.ndim == 3
        and pixels.shape[2] == 4
        and not pixels[..., 3].all()
    )


def _is_layers(source: object) -> bool:
    if isinstance(source, Sequence):
        return len(source) > 0 and all(map(is_image_layer, source))
    return is_image_layer(source)


def _is_array(value: object) -> bool:
    return all(hasattr(value, name) for name in ("shape", "dtype", "__getitem__"))


def _kind(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
