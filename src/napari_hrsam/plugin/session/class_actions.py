"""Classes of objects: given to them, added, changed, and the one that new objects get."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from napari_hrsam.errors import LabelsError
from napari_hrsam.plugin.session import commands, messages
from napari_hrsam.plugin.session.objects_list import labels_of
from napari_hrsam.storage.labels.properties import Properties

if TYPE_CHECKING:
    from napari_hrsam.plugin.overlay.overlay import Overlay
    from napari_hrsam.plugin.session.context import SessionContext
    from napari_hrsam.plugin.session.objects_list import CommittedObjects
    from napari_hrsam.storage.labels.properties import PropertiesChange


class ClassActions:
    """Changes the classes of the running session, and which objects have them.

    Parameters
    ----------
    context
        What the controller works on.
    listed
        The objects and classes there are.
    """

    def __init__(self, context: SessionContext, listed: CommittedObjects) -> None:
        self._context = context
        self._list = listed
        self._taken_class: str | None = None
        listed.classes_changed.connect(self._on_classes)

    def assign(self, name: str) -> None:
        """Give the current object a class, else the selected ones, else the one under the mouse.

        The current object gets it when it is committed, and so do the new ones after it.

        Parameters
        ----------
        name
            Of the class, which is added if there is none; "" for none.

        Raises
        ------
        PromptError
            If there is neither.
        SessionError
            If no session is ready.
        """
        overlay = self._context.ready()
        if overlay.label:
            self._taken_class = name
        elif overlay.has_object:
            self._context.update(object_class=name)
        else:
            labels = labels_of(self._list.selected) or (overlay.label_under_cursor("its key"),)
            self.change(partial(Properties.setting_class, labels=labels, name=name))
            return
        self._context.show_message(messages.describe_class(name, self._context.state.keys))

    def assign_key(self, digit: int) -> None:
        """Assign the class with a digit from 1 to 9; see `assign`.

        Raises
        ------
        LabelsError
            If no class has it.
        """
        self._context.ready()
        found = self._list.class_with(digit)
        if found is None:
            raise LabelsError(
                f"expected a class with the digit {digit}, got none; add one under Objects in the "
                "panel"
            )
        self.assign(found.name)

    def change(self, make: Callable[[Properties], PropertiesChange]) -> None:
        """Change classes, or those of objects, as one step to undo; see `Properties`.

        Parameters
        ----------
        make
            Makes the change of what is told when it is made.

        Raises
        ------
        SessionError
            If no session is ready.
        """
        self._context.ready()
        self._context.worker.send(commands.ChangeProperties(make))

    def choose(self, name: str) -> None:
        """Give new objects a class from now on; "" for none."""
        self._context.update(object_class=name)

    def keep_class(self) -> None:
        """Let the object that is taken up keep its class, until it is given another one."""
        self._taken_class = None

    def for_commit(self, overlay: Overlay) -> str | None:
        """Return the class with which the current object is committed; None: as it is."""
        object_class = self._taken_class if overlay.label else self._context.state.object_class
        self._taken_class = None
        return object_class

    def _on_classes(self) -> None:
        if self._list.properties.get(self._context.state.object_class) is None:
            self._context.update(object_class="")
