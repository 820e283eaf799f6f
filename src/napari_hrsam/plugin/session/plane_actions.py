"""Objects continued on other planes of a stack."""

from __future__ import annotations

from typing import TYPE_CHECKING

from napari_hrsam.errors import PromptError, SessionError
from napari_hrsam.plugin.session import commands, messages

if TYPE_CHECKING:
    from napari_hrsam.plugin.overlay.overlay import Overlay
    from napari_hrsam.plugin.session.context import SessionContext
    from napari_hrsam.storage.labels.edits import Edit


class PlaneActions:
    """Continues objects of the running session on other planes.

    Parameters
    ----------
    context
        What the controller works on.

    Attributes
    ----------
    newest_edit
        What was changed last in the label image, if it was not undone; its object is continued
        where no other is meant.
    """

    def __init__(self, context: SessionContext) -> None:
        self._context = context
        self.newest_edit: Edit | None = None

    def continue_on(self, step: int = 1, label: int | None = None) -> None:
        """Continue an object on the next plane of a stack, or the one before; the view goes along.

        It becomes the current object there; `commit` writes it under the same id.

        Parameters
        ----------
        step
            Planes to go along the last axis before y and x; negative: back.
        label
            A committed object of the plane that is shown. By default the current object, which is
            committed first, else the object under the mouse, else the one committed last.

        Raises
        ------
        PromptError
            If there is no such plane, no object, or the current one is on another plane.
        SessionError
            If no session is ready, the image is no stack, or a label is given while an object is
            being drawn.
        """
        overlay, plane, axis = self._ready_for_planes()
        following = list(plane)
        following[axis] += step
        size = overlay.image.image.plane_shape[axis]
        if not 0 <= following[axis] < size:
            raise PromptError(
                f"the stack ends here: expected a plane from 0 to {size - 1}, got {following[axis]}"
            )
        label = self._label_to_continue(overlay, plane, label)
        self._context.begin_anew()
        strokes = overlay.preview.take_strokes()
        there = tuple(following)
        overlay.expect(there)
        overlay.view.show_plane(there)
        self._context.show_message(messages.LOOKING)
        self._context.worker.send(commands.ContinueOn(there, plane, label, strokes))

    def continue_here(self, label: int | None = None) -> None:
        """Continue the object that was committed last, on another plane, on the one that is shown.

        It becomes the current object here; `commit` writes it under the same id, and `interpolate`
        then draws it on the planes between.

        Parameters
        ----------
        label
            Its id, if it is not the one committed last but lies on the same plane.

        Raises
        ------
        PromptError, SessionError
            As of `continue_on`.
        """
        overlay, plane, _ = self._ready_for_planes()
        overlay.require_no_object("continuing another one")
        edit = self.newest_edit
        if edit is None or edit.kind == "delete" or edit.plane == plane or not edit.plane:
            raise PromptError(
                "no object to continue here: commit one, go to another plane, then press the button"
            )
        self._context.begin_anew()
        overlay.expect(plane)
        self._context.show_message(messages.LOOKING)
        self._context.worker.send(commands.ContinueOn(plane, edit.plane, label or edit.label))

    def interpolate(self, label: int | None = None) -> None:
        """Draw an object between the plane that is shown and the nearest on which it is drawn.

        Its shape changes evenly; each plane is one commit, to be undone by itself. `cancel` ends
        it; what is committed until then stays.

        Parameters
        ----------
        label
            A committed object of the plane that is shown. By default the one under the mouse, else
            the one committed last.

        Raises
        ------
        PromptError, SessionError
            As of `continue_on`; also if an object is being drawn.
        """
        overlay, plane, axis = self._ready_for_planes()
        overlay.require_no_object("filling in another one")
        label = self._label_to_continue(overlay, plane, label)
        assert label is not None
        self._context.begin_anew()
        self._context.show_message(messages.LOOKING)
        self._context.worker.send(commands.Interpolate(label, plane, axis))

    def propagate(self, num_planes: int, label: int | None = None) -> None:
        """Continue an object over several planes, and commit it on each, while the model is sure.

        `cancel` ends it; what is committed until then stays, and each plane can be undone.

        Parameters
        ----------
        num_planes
            How many along the last axis before y and x; negative: back.
        label
            As of `continue_on`.

        Raises
        ------
        PromptError, SessionError
            As of `continue_on`.
        """
        overlay, plane, axis = self._ready_for_planes()
        label = self._label_to_continue(overlay, plane, label)
        self._context.begin_anew()
        strokes = overlay.preview.take_strokes()
        overlay.forget_object()
        command = commands.Propagate(num_planes, axis, plane, label, strokes)
        self._context.show_message(messages.describe_planes(0, abs(num_planes)))
        self._context.worker.send(command)

    def _ready_for_planes(self) -> tuple[Overlay, tuple[int, ...], int]:
        """Return the plane that is shown, and the axis along which objects are continued."""
        overlay, plane = self._context.ready_for_prompt()
        axes = [axis for axis, size in enumerate(overlay.image.image.plane_shape) if size > 1]
        if not axes:
            raise SessionError(
                f"'{overlay.image.layer.name}' is no stack: there is no other plane to go to"
            )
        return overlay, plane, axes[-1]

    def _label_to_continue(
        self, overlay: Overlay, plane: tuple[int, ...], label: int | None
    ) -> int | None:
        """Return the id of a committed object; None for the current one."""
        if label is not None:
            overlay.require_no_object("continuing another one")
            return label
        if overlay.has_object:
            return None
        label = overlay.label_at_cursor(plane)
        edit = self.newest_edit
        if not label and edit is not None and edit.plane == plane and edit.kind != "delete":
            label = edit.label
        if not label:
            raise PromptError(
                "no object to continue: draw one, or point at a committed one, then press the key"
            )
        return label
