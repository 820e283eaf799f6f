"""What a label image does with classes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

import numpy as np

from napari_hrsam.errors import LabelsError
from napari_hrsam.storage.labels.edits import Edit
from napari_hrsam.storage.labels.properties import (
    Color,
    ObjectClass,
    ObjectProperties,
    Properties,
    PropertiesChange,
)


class ClassedObjects(ABC):
    """What a label image does with classes; every change is one edit, to be taken back."""

    @property
    @abstractmethod
    def properties(self) -> Properties:
        """The classes, and what is told of each object."""

    @abstractmethod
    def change_properties(self, change: PropertiesChange) -> Edit | None:
        """Change classes and what is told of objects, as one edit; None if that is nothing."""

    @property
    def classes(self) -> tuple[ObjectClass, ...]:
        """The classes: their names, colours and digits."""
        return self.properties.classes

    def properties_of(self, label: int) -> ObjectProperties:
        """Return class and colour of an object."""
        return self.properties.of(label)

    def set_class(self, labels: int | Iterable[int], name: str) -> Edit | None:
        """Give objects a class; "" takes it away.

        Parameters
        ----------
        labels : int or iterable of int
            Their ids; on all planes.
        name : str
            Of the class, which is added if there is none.

        Returns
        -------
        Edit or None
            None if they have it already.

        Raises
        ------
        LabelsError
            If the name is unusable, or the labels cannot be written to.
        """
        return self.change_properties(self.properties.setting_class(_ids(labels), name))

    def set_color(self, labels: int | Iterable[int], color: Color | None) -> Edit | None:
        """Give objects a colour of their own, (red, green, blue) from 0 to 255; None: no longer.

        Raises
        ------
        LabelsError
            If it is no colour, or the labels cannot be written to.
        """
        return self.change_properties(self.properties.setting_color(_ids(labels), color))

    def add_class(
        self, name: str, color: Color | None = None, key: int | None = None
    ) -> Edit | None:
        """Add a class.

        Parameters
        ----------
        name : str
            1 to 200 characters.
        color : (int, int, int), optional
            Red, green and blue from 0 to 255; by default one that no other class has.
        key : int, optional
            The digit that assigns it, 1 to 9, taken from the class that had it; 0 for none. By
            default one that is free.

        Raises
        ------
        LabelsError
            If there is one of this name, something is unusable, or the labels cannot be written to.
        """
        return self.change_properties(self.properties.adding_class(name, color, key))

    def change_class(
        self,
        name: str,
        *,
        new_name: str | None = None,
        color: Color | None = None,
        key: int | None = None,
    ) -> Edit | None:
        """Rename a class, with its objects, or give it another colour or digit.

        Raises
        ------
        LabelsError
            If there is none of this name, the new one is taken, or as `add_class`.
        """
        return self.change_properties(
            self.properties.changing_class(name, new_name=new_name, color=color, key=key)
        )

    def remove_class(self, name: str) -> Edit | None:
        """Remove a class; its objects have none then.

        Raises
        ------
        LabelsError
            If there is none of this name, or the labels cannot be written to.
        """
        return self.change_properties(self.properties.removing_class(name))


def _ids(labels: int | Iterable[int]) -> tuple[int, ...]:
    ids = (labels,) if isinstance(labels, int | np.integer) else tuple(labels)
    for label in ids:
        if label < 1:
            raise LabelsError(f"expected ids of objects, 1 and more, got {label!r}")
    return tuple(map(int, ids))
