"""Classes of objects, and what is told of each object, in a label image's own metadata.

In the OME metadata `image-label` has one entry of `properties` per object with a class (its name
is in ``class``) and one of `colors` per object with a colour of its own. Which classes there are,
their colours and keys lie beside it under `OWN_KEY`. What other programs wrote is kept.
"""

from __future__ import annotations

import colorsys
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from napari_hrsam.errors import LabelsError
from napari_hrsam.storage.files.metadata_files import is_modest, keep_indexes, read_json
from napari_hrsam.storage.files.safe_files import FileBatch

logger = logging.getLogger(__name__)

OWN_KEY = "napari-hrsam"
"""Of the attributes of the label image's group: the classes there are."""

MAX_CLASSES = 1000
MAX_NAME = 200
"""Characters of the name of a class."""

Color = tuple[int, int, int]
"""Red, green and blue from 0 to 255."""

# Far from each other, bright on dark and visible on white; then around the circle of hues.
_FIRST_COLORS: tuple[Color, ...] = (
    (230, 85, 60),
    (60, 150, 230),
    (70, 180, 90),
    (235, 180, 40),
    (170, 95, 205),
    (60, 190, 190),
    (235, 115, 175),
    (150, 115, 80),
    (140, 150, 160),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectClass:
    """A class that objects can have.

    Attributes
    ----------
    name : str
        Told in exports; 1 to 200 characters.
    color : (int, int, int)
        Red, green and blue from 0 to 255.
    key : int
        The digit that assigns it, 1 to 9; 0 for none.
    """

    name: str
    color: Color
    key: int = 0

    def __post_init__(self) -> None:
        """Raise `LabelsError` unless name, colour and key are usable."""
        name: Any = self.name
        if not isinstance(name, str) or not name.strip() or len(name) > MAX_NAME:
            raise LabelsError(
                f"expected a name of 1 to {MAX_NAME} characters for a class, got {name!r:.80}; "
                "choose another one"
            )
        _require_color(self.color)
        if type(self.key) is not int or not 0 <= self.key <= 9:
            raise LabelsError(f"expected a digit from 1 to 9, or 0 for none, got {self.key!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectProperties:
    """What the metadata tell of an object.

    Attributes
    ----------
    object_class : str
        Name of its class; empty for none.
    color : (int, int, int) or None
        A colour of its own.
    """

    object_class: str = ""
    color: Color | None = None


NO_PROPERTIES = ObjectProperties()

_Classes = tuple[ObjectClass, ...]
_ObjectsChange = tuple[ObjectProperties, ObjectProperties, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True, slots=True)
class PropertiesChange:
    """What an edit does to classes and properties; it can be taken back.

    Attributes
    ----------
    classes : (before, after) or None
        All classes; None if they stay.
    objects : tuple of (before, after, labels)
        Properties of some objects.
    """

    classes: tuple[_Classes, _Classes] | None = None
    objects: tuple[_ObjectsChange, ...] = ()

    def __bool__(self) -> bool:
        """Whether it changes anything."""
        return self.classes is not None or bool(self.objects)

    @property
    def labels(self) -> tuple[int, ...]:
        """The objects that it changes."""
        return tuple(label for *_, labels in self.objects for label in labels)

    def told(self) -> dict[str, Any]:
        """Return it as JSON can keep it."""
        told: dict[str, Any] = {}
        if self.classes is not None:
            told["classes"] = [[asdict(one) for one in side] for side in self.classes]
        if self.objects:
            told["objects"] = [
                [_told(before), _told(after), list(labels)]
                for before, after, labels in self.objects
            ]
        return told

    @classmethod
    def of(cls, told: Any) -> PropertiesChange:
        """Return the change that was told; raises `ValueError` if it is none."""
        try:
            sides = told.get("classes")
            classes = None
            if sides is not None:
                before, after = (
                    tuple(ObjectClass(**{**one, "color": tuple(one["color"])}) for one in side)
                    for side in sides
                )
                classes = before, after
            objects = tuple(
                (_untold(before), _untold(after), tuple(map(_label, labels)))
                for before, after, labels in told.get("objects", ())
            )
        # What is checked here may be anything.
        except Exception as error:
            raise ValueError(f"no change of classes: {str(told)[:80]!r}") from error
        return cls(classes=classes, objects=objects)


@dataclass(frozen=True, kw_only=True, slots=True)
class Properties:
    """The classes of a label image, and the properties of its objects.

    Attributes
    ----------
    classes : tuple of ObjectClass
        In the order in which they are shown.
    objects : mapping of int to ObjectProperties
        Of the objects that have some.
    """

    classes: _Classes = ()
    objects: Mapping[int, ObjectProperties] = field(default_factory=dict)

    def of(self, label: int) -> ObjectProperties:
        """Return the properties of an object."""
        return self.objects.get(label, NO_PROPERTIES)

    def get(self, name: str) -> ObjectClass | None:
        """Return a class, None if there is none of this name."""
        return next((one for one in self.classes if one.name == name), None)

    def color_of(self, label: int) -> Color | None:
        """Return the colour of an object: its own, else that of its class, else None."""
        own = self.of(label)
        found = self.get(own.object_class) if own.object_class else None
        return own.color or (found.color if found else None)

    def after(self, change: PropertiesChange, *, is_done: bool = True) -> Properties:
        """Return what is told after a change, or before it."""
        classes = self.classes if change.classes is None else change.classes[is_done]
        objects = self.objects
        if change.objects:
            objects = dict(objects)
            for *sides, labels in change.objects:
                side: Any = sides[is_done]
                if side == NO_PROPERTIES:
                    for label in labels:
                        objects.pop(label, None)
                else:
                    objects.update(dict.fromkeys(labels, side))
        return Properties(classes=classes, objects=objects)

    # ------------------------------------------------------------------ changes

    def change_objects(self, labels: Iterable[int], **changes: Any) -> tuple[_ObjectsChange, ...]:
        """Return what gives some objects other properties."""
        found: dict[ObjectProperties, list[int]] = {}
        for label in dict.fromkeys(labels):
            if replace(self.of(label), **changes) != self.of(label):
                found.setdefault(self.of(label), []).append(label)
        return tuple(
            (before, replace(before, **changes), tuple(changed))
            for before, changed in found.items()
        )

    def setting_class(self, labels: Iterable[int], name: str) -> PropertiesChange:
        """Return the change that gives objects a class, which is added if there is none; "": none.

        Raises
        ------
        LabelsError
            If the name is unusable.
        """
        classes = None
        if name and self.get(name) is None:
            classes = self.classes, (*self.classes, self.new_class(name))
        return PropertiesChange(
            classes=classes, objects=self.change_objects(labels, object_class=name)
        )

    def setting_color(self, labels: Iterable[int], color: Color | None) -> PropertiesChange:
        """Return the change that gives objects a colour of their own, or none."""
        if color is not None:
            color = _require_color(color)
        return PropertiesChange(objects=self.change_objects(labels, color=color))

    def adding_class(
        self, name: str, color: Color | None = None, key: int | None = None
    ) -> PropertiesChange:
        """Return the change that adds a class.

        Raises
        ------
        LabelsError
            If there is one of this name, or name, colour or key are unusable.
        """
        self._require_free(name)
        new = self.new_class(name)
        new = ObjectClass(
            name=new.name,
            color=new.color if color is None else _require_color(color),
            key=new.key if key is None else key,
        )
        after = (*_without_key(self.classes, new.key), new)
        return PropertiesChange(classes=(self.classes, after))

    def changing_class(
        self,
        name: str,
        *,
        new_name: str | None = None,
        color: Color | None = None,
        key: int | None = None,
    ) -> PropertiesChange:
        """Return the change that renames a class (its objects go with it), or recolours it.

        Raises
        ------
        LabelsError
            If there is none of this name, the new one is taken, or colour or key are unusable.
        """
        old = self._required(name)
        if new_name is not None and new_name.strip() != name:
            self._require_free(new_name)
        new = ObjectClass(
            name=name if new_name is None else new_name.strip(),
            color=old.color if color is None else _require_color(color),
            key=old.key if key is None else key,
        )
        if new == old:
            return PropertiesChange()
        others = self.classes if new.key == old.key else _without_key(self.classes, new.key)
        after = tuple(new if one.name == name else one for one in others)
        objects = (
            ()
            if new.name == name
            else self.change_objects(self.labels_of(name), object_class=new.name)
        )
        return PropertiesChange(classes=(self.classes, after), objects=objects)

    def removing_class(self, name: str) -> PropertiesChange:
        """Return the change that removes a class; its objects have none then.

        Raises
        ------
        LabelsError
            If there is none of this name.
        """
        self._required(name)
        after = tuple(one for one in self.classes if one.name != name)
        return PropertiesChange(
            classes=(self.classes, after),
            objects=self.change_objects(self.labels_of(name), object_class=""),
        )

    def labels_of(self, name: str) -> list[int]:
        """Return the objects of a class."""
        return [label for label, own in self.objects.items() if own.object_class == name]

    def new_class(self, name: str) -> ObjectClass:
        """Return a class with a colour and a key of its own, as far as there are some."""
        if len(self.classes) >= MAX_CLASSES:
            raise LabelsError(
                f"expected at most {MAX_CLASSES} classes, got one more; remove some first"
            )
        keys = {one.key for one in self.classes}
        return ObjectClass(
            name=name.strip(),
            color=_new_color([one.color for one in self.classes]),
            key=next((key for key in range(1, 10) if key not in keys), 0),
        )

    def _required(self, name: str) -> ObjectClass:
        found = self.get(name)
        if found is None:
            there = ", ".join(repr(one.name) for one in self.classes[:10]) or "none"
            raise LabelsError(
                f"expected a class of the label image, got {name!r:.80}; there are: {there}"
            )
        return found

    def _require_free(self, name: str) -> None:
        if self.get(name.strip()) is not None:
            raise LabelsError(
                f"expected a new name for a class, got {name!r}, which there is already; choose "
                "another one"
            )


def properties_in(attributes: Mapping[str, Any]) -> Properties:
    """Read classes and properties out of the attributes of a label image's group.

    What has another form than ours is passed over; `verify_labels` tells it. A class that objects
    have and nobody listed, as other programs write it, is one without a key.
    """
    label = _image_label(attributes)
    objects: dict[int, ObjectProperties] = {}
    for entry in _entries(label, "properties"):
        name = entry.get("class")
        if isinstance(name, str) and name.strip() and len(name) <= MAX_NAME:
            objects[entry["label-value"]] = ObjectProperties(object_class=name)
    for entry in _entries(label, "colors"):
        rgba = entry.get("rgba")
        if isinstance(rgba, list) and len(rgba) == 4 and _is_color(rgba[:3]):
            value = entry["label-value"]
            color = (rgba[0], rgba[1], rgba[2])
            objects[value] = replace(objects.get(value, NO_PROPERTIES), color=color)
    own = attributes.get(OWN_KEY)
    listed = own.get("classes", []) if isinstance(own, dict) else []
    found = Properties()
    for entry in listed if isinstance(listed, list) else []:
        try:
            one = ObjectClass(
                name=entry["name"], color=tuple(entry["color"]), key=entry.get("key", 0)
            )
            change = found.adding_class(one.name, one.color, one.key)
        except (LabelsError, LookupError, TypeError, AttributeError):
            continue
        found = found.after(change)
    unlisted = dict.fromkeys(own.object_class for own in objects.values() if own.object_class)
    for name in unlisted:
        if found.get(name) is None and len(found.classes) < MAX_CLASSES:
            new = replace(found.new_class(name), name=name, key=0)
            found = replace(found, classes=(*found.classes, new))
    return Properties(classes=found.classes, objects=objects)


def put_properties(
    attributes: dict[str, Any], wanted: Properties, labels: Iterable[int] | None = None
) -> None:
    """Change the attributes of a label image's group so that they tell other properties.

    Parameters
    ----------
    attributes : dict
        As they are stored; what we do not know is kept.
    wanted : Properties
        What they are to tell.
    labels : iterable of int, optional
        Only entries of these objects are touched; by default all.
    """
    holder = _ome_of(attributes)
    label = holder.get("image-label")
    if not isinstance(label, dict):
        label = holder["image-label"] = {}
    touched = set(wanted.objects) if labels is None else set(labels)
    told = {value: wanted.of(value) for value in touched}
    _merge(label, "properties", "class", {v: own.object_class or None for v, own in told.items()})
    rgba = {v: None if own.color is None else [*own.color, 255] for v, own in told.items()}
    _merge(label, "colors", "rgba", rgba)
    found = attributes.get(OWN_KEY)
    own = found if isinstance(found, dict) else {}
    if wanted.classes or "classes" in own:
        classes = [{**asdict(one), "color": list(one.color)} for one in wanted.classes]
        attributes[OWN_KEY] = {**own, "classes": classes}


def _merge(label: dict[str, Any], key: str, name: str, values: Mapping[int, Any]) -> None:
    """Set or remove one member of the entries of some objects; entries left bare go."""
    found = label.get(key, [])
    entries: list[Any] = []
    left = dict(values)
    for entry in found if isinstance(found, list) else []:
        value = entry.get("label-value") if isinstance(entry, dict) else None
        if type(value) is not int or value not in left:
            entries.append(entry)
            continue
        wanted = left.pop(value)
        had = name in entry
        new = {k: v for k, v in entry.items() if k != name}
        if wanted is not None:
            new[name] = wanted
        if len(new) > 1 or not had:
            entries.append(new)
    entries += [{"label-value": v, name: w} for v, w in sorted(left.items()) if w is not None]
    if entries or key in label:
        label[key] = entries
    # An empty list is no list in the schema of OME-Zarr.
    if not entries:
        label.pop(key, None)


class PropertiesFile:
    """Classes and properties in the files of a label image's group, replaced as a whole.

    Parameters
    ----------
    folder : Path
        Of the label image's group.
    check : callable, optional
        As for `FileBatch`.
    """

    def __init__(self, folder: Path, check: Callable[[], None] | None = None) -> None:
        self._folder = folder
        self._files = FileBatch(check)

    def put(self, change: PropertiesChange, *, is_done: bool) -> Properties:
        """Write what is told after a change, or before it; safe to do twice.

        Until `drop_backups`, `put_back` undoes it. Returns what the file tells then.

        Raises
        ------
        LabelsError
            If it cannot be read or written.
        """
        try:
            return self._put(change, is_done=is_done)
        except (OSError, ValueError) as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: Exception) -> LabelsError:
        return LabelsError(
            f"expected metadata that can be written to in {self._folder}, got: {error}; check "
            "the space on the disk and the rights of the folder"
        )

    def _put(self, change: PropertiesChange, *, is_done: bool) -> Properties:
        path = self._folder / "zarr.json"
        is_v3 = path.is_file()
        if not is_v3:
            path = self._folder / ".zattrs"
        node: Any = read_json(path) if is_v3 or path.is_file() else {}
        if not isinstance(node, dict):
            raise ValueError(f"no object in {path}")  # noqa: TRY004  it is read, not given
        attributes = node.get("attributes", {}) if is_v3 else node
        wanted = properties_in(attributes).after(change, is_done=is_done)
        put_properties(attributes, wanted, change.labels)
        data = json.dumps({**node, "attributes": attributes} if is_v3 else node, indent=2).encode()
        if not is_modest(data):
            raise LabelsError(
                f"expected metadata that programs can read, got {len(data):,} bytes in {path} with "
                "the classes of all objects; give fewer objects a class"
            )
        self._files.write(str(path), data, top=str(self._folder))
        self._files.finish()
        keep_indexes(self._folder.parent, [self._folder.name])
        return wanted

    def drop_backups(self) -> None:
        """Let go of what was replaced."""
        try:
            self._files.drop_backups()
        except OSError as error:
            logger.warning("a file that is no longer needed was left: %s", error)

    def put_back(self) -> None:
        """Bring the file back as it was before `put`; this needs no space on the disk.

        Raises
        ------
        LabelsError
            If the disk fails; do it again later.
        """
        try:
            self._files.abandon()
            keep_indexes(self._folder.parent, [self._folder.name])
        except OSError as error:
            raise self._unwritable(error) from error

    def close(self) -> None:
        """End the threads."""
        self._files.close()


def _told(own: ObjectProperties) -> dict[str, Any]:
    told = {"class": own.object_class, "color": own.color}
    return {key: value for key, value in told.items() if value}


def _untold(told: Any) -> ObjectProperties:
    name, color = told.get("class", ""), told.get("color")
    if not isinstance(name, str) or len(name) > MAX_NAME:
        raise ValueError("no name of a class")
    return ObjectProperties(
        object_class=name, color=None if color is None else _require_color(tuple(color))
    )


def _label(value: object) -> int:
    if type(value) is not int or not 0 < value < 2**64:
        raise ValueError(f"no id: {value!r:.80}")
    return value


def _require_color(color: Any) -> Color:
    if not _is_color(color):
        raise LabelsError(
            f"expected a colour as red, green and blue from 0 to 255, got {color!r:.80}"
        )
    return color[0], color[1], color[2]


def _is_color(color: Any) -> bool:
    return (
        isinstance(color, list | tuple)
        and len(color) == 3
        and all(type(part) is int and 0 <= part <= 255 for part in color)
    )


def _without_key(classes: _Classes, key: int) -> _Classes:
    return tuple(replace(one, key=0) if key and one.key == key else one for one in classes)


def _new_color(taken: list[Color]) -> Color:
    free = [color for color in _FIRST_COLORS if color not in taken]
    if free:
        return free[0]
    parts = colorsys.hsv_to_rgb(0.618034 * len(taken) % 1, 0.65, 0.9)
    red, green, blue = (round(255 * part) for part in parts)
    return red, green, blue


def _image_label(attributes: Mapping[str, Any]) -> dict[str, Any]:
    label = _ome_of(attributes).get("image-label")
    return label if isinstance(label, dict) else {}


def _ome_of(attributes: Any) -> Any:
    ome = attributes.get("ome")
    return ome if isinstance(ome, dict) else attributes


def _entries(label: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    found = label.get(key)
    return [
        entry
        for entry in (found if isinstance(found, list) else [])
        if isinstance(entry, dict) and type(entry.get("label-value")) is int
    ]


def read_properties(folder: Path) -> Properties:
    """Read classes and properties of the label image in a folder; none if there are none to read.

    See `properties_in`.
    """
    for file, key in (("zarr.json", "attributes"), (".zattrs", None)):
        try:
            found = read_json(folder / file)
        except (OSError, ValueError):
            continue
        found = found.get(key, {}) if key and isinstance(found, dict) else found
        return properties_in(found) if isinstance(found, dict) else Properties()
    return Properties()
