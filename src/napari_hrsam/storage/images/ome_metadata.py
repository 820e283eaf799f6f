"""What an OME-Zarr 0.4 or 0.5 image says of itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from napari_hrsam.errors import ImageError

VERSIONS = ("0.4", "0.5")
MAX_LEVELS = 64
MAX_AXES = 32

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True, slots=True)
class OmeChannel:
    """A channel as the file describes it.

    Attributes
    ----------
    name : str
        Its label, or empty.
    colour : str
        Six hexadecimal digits, or empty.
    window : (low, high) or None
        Values to be shown as black and white.
    is_active : bool
        Whether it is to be shown.
    """

    name: str = ""
    colour: str = ""
    window: tuple[float, float] | None = None
    is_active: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class OmeImage:
    """A multiscale image of an OME-Zarr file.

    Attributes
    ----------
    path : str
        Local path or URL of the image's group.
    version : str
        ``"0.4"`` or ``"0.5"``.
    axes : tuple of str
        Name of every axis, such as ``("t", "c", "z", "y", "x")``.
    types : tuple of str
        ``"space"``, ``"time"``, ``"channel"`` or empty, one per axis.
    units : tuple of str
        Unit of every axis, such as ``"micrometer"``, or empty.
    datasets : tuple of str
        Path of every level's array inside the group, finest first.
    scales, translations : tuple of tuples of float
        Size of a pixel, and place of the first one, per level and axis, in `units`.
    channels : tuple of OmeChannel
        As many as the file describes.
    """

    path: str
    version: str
    axes: tuple[str, ...]
    types: tuple[str, ...]
    units: tuple[str, ...]
    datasets: tuple[str, ...]
    scales: tuple[tuple[float, ...], ...]
    translations: tuple[tuple[float, ...], ...]
    channels: tuple[OmeChannel, ...] = ()

    def axis(self, name: str) -> int | None:
        """Return the place of an axis, None if there is none of this name."""
        return self.axes.index(name) if name in self.axes else None

    @property
    def channel_axis(self) -> int | None:
        """The place of the channels' axis."""
        return self.types.index("channel") if "channel" in self.types else self.axis("c")


def parse_ome(attributes: Mapping[str, Any], path: str) -> OmeImage:
    """Read the attributes of an image's group.

    Parameters
    ----------
    attributes : mapping
        Of the zarr group.
    path : str
        Local path or URL of the group, kept and named in errors.

    Raises
    ------
    ImageError
        If they describe no image of a known version, or contradict themselves.
    """
    return _explained(_parsed, attributes, path)


def dataset_paths(attributes: Mapping[str, Any], path: str) -> tuple[str, ...]:
    """Return the paths of the levels' arrays, finest first, whatever else the attributes say.

    Parameters
    ----------
    attributes, path
        As in `parse_ome`.

    Raises
    ------
    ImageError
        If they name none, or one outside the group.
    """
    return _explained(_datasets, attributes, path)


def _explained(
    read: Callable[[Mapping[str, Any], str], _T], attributes: Mapping[str, Any], path: str
) -> _T:
    try:
        return read(attributes, path)
    except ImageError:
        raise
    # What others wrote may be of any type, without bounds, and nested without end.
    except Exception as error:
        raise ImageError(
            f"expected OME-Zarr metadata of version {' or '.join(VERSIONS)}, got an entry that is "
            f"missing or malformed in {path} ({type(error).__name__}: {str(error)[:200]}); write "
            "the file again, or open its arrays as a list of levels"
        ) from error


def _multiscale(attributes: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    """Return the first image that a group describes."""
    ome = attributes.get("ome", attributes)
    if not ome.get("multiscales"):
        raise ImageError(
            f"expected the group of an OME-Zarr image, with multiscales, got one with "
            f"{str(sorted(ome))[:200] if ome else 'no attributes'} at {path}; give the path of the "
            "image inside it, e.g. file.zarr/0"
        )
    image: Mapping[str, Any] = ome["multiscales"][0]
    return image


def _datasets(attributes: Mapping[str, Any], path: str) -> tuple[str, ...]:
    entries = _multiscale(attributes, path)["datasets"]
    if not 1 <= len(entries) <= MAX_LEVELS:
        raise ImageError(f"expected 1..{MAX_LEVELS} levels, got {len(entries)} at {path}")
    return tuple(_safe(entry["path"], path) for entry in entries)


def _parsed(attributes: Mapping[str, Any], path: str) -> OmeImage:
    image = _multiscale(attributes, path)
    ome = attributes.get("ome", attributes)
    version = str(ome.get("version") if ome is not attributes else image.get("version", "0.4"))
    if version not in VERSIONS:
        raise ImageError(
            f"expected OME-Zarr of version {' or '.join(VERSIONS)}, got {version[:200]} at {path}; "
            "convert it, or open its arrays as a list of levels"
        )
    if len(image["axes"]) > MAX_AXES:
        raise ImageError(f"expected at most {MAX_AXES} axes, got {len(image['axes'])} at {path}")
    axes = tuple(str(axis["name"]) for axis in image["axes"])
    if "y" not in axes or "x" not in axes or len(set(axes)) < len(axes):
        raise ImageError(f"expected axes that include y and x once each, got {axes} at {path}")
    datasets = _datasets(attributes, path)
    outer = _transform(image.get("coordinateTransformations"), len(axes), path)
    inner = [
        _transform(entry.get("coordinateTransformations"), len(axes), path)
        for entry in image["datasets"]
    ]
    scales = tuple(_products(outer[0], scale) for scale, _ in inner)
    if not all(0 < size < math.inf for scale in scales for size in scale):
        raise ImageError(f"expected pixels of a size that can be told, got {scales} at {path}")
    return OmeImage(
        path=path,
        version=version,
        axes=axes,
        types=tuple(_text(axis.get("type")) for axis in image["axes"]),
        units=tuple(_text(axis.get("unit")) for axis in image["axes"]),
        datasets=datasets,
        scales=scales,
        translations=tuple(
            tuple(t + o for t, o in zip(_products(outer[0], shift), outer[1], strict=True))
            for _, shift in inner
        ),
        channels=_channels(ome.get("omero")),
    )


def _safe(dataset: object, path: str) -> str:
    """Refuse a path of an array that leads out of the group."""
    text = str(dataset)
    parts = text.replace("\\", "/").split("/")
    is_text = isinstance(dataset, str) and text.isprintable()
    if not is_text or ":" in text or {"", "..", "."} & set(parts):
        # The number 0 looks like the text '0' otherwise.
        shown = repr(dataset)[:200] if isinstance(dataset, str | int | float) else type(dataset)
        raise ImageError(
            f"expected the path of an array inside the image, such as '0', got {shown} in "
            f"{path}; do not open files from people you do not trust"
        )
    return text


def _transform(
    steps: Sequence[Mapping[str, Any]] | None, num_axes: int, path: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return scale and translation per axis; ones and zeros where none is told."""
    told = {step["type"]: step.get(step["type"]) for step in steps or ()}
    scale = tuple(map(float, told.get("scale") or [1.0] * num_axes))
    shift = tuple(map(float, told.get("translation") or [0.0] * num_axes))
    fits = len(scale) == len(shift) == num_axes
    if not fits or not all(0 < s < math.inf for s in scale) or not all(map(math.isfinite, shift)):
        raise ImageError(
            f"expected a positive scale and a finite translation for each of {num_axes} axes, got "
            f"scale {scale} and translation {shift} at {path}; correct the file's metadata"
        )
    return scale, shift


def _products(first: tuple[float, ...], second: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(a * b for a, b in zip(first, second, strict=True))


def _channels(omero: object) -> tuple[OmeChannel, ...]:
    """Return the channels; these are hints for a display, and none of them stops an image."""
    entries = omero.get("channels") if isinstance(omero, dict) else None
    return tuple(map(_channel, entries)) if isinstance(entries, list) else ()


def _channel(entry: object) -> OmeChannel:
    said = entry if isinstance(entry, dict) else {}
    window = said.get("window")
    low, high = (_number(window, end) for end in ("start", "end"))
    return OmeChannel(
        name=_text(said.get("label")),
        colour=_text(said.get("color")).lstrip("#").upper()[:6],
        window=(low, high) if math.isfinite(high - low) and low < high else None,
        is_active=bool(said.get("active", True)),
    )


def _number(said: object, key: str) -> float:
    """Return a number of an object, NaN if there is none."""
    found = said.get(key) if isinstance(said, dict) else None
    try:
        return float(found) if isinstance(found, int | float | str) else math.nan
    # No number, or a whole one of more digits than a float takes.
    except (ValueError, OverflowError):
        return math.nan


def _text(said: object) -> str:
    return said if isinstance(said, str) else ""
