"""What is done to committed objects: taken up again, deleted, merged, split, filled, smoothed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from napari_hrsam.errors import PromptError, SessionError
from napari_hrsam.plugin.canvas.coordinates import pixel_area
from napari_hrsam.plugin.canvas.layer_prompts import prompts_of_layer
from napari_hrsam.plugin.overlay.objects import MemoryObjects
from napari_hrsam.plugin.session import commands, messages
from napari_hrsam.plugin.session.objects_list import CommittedObjects
from napari_hrsam.prompts import Prompts, Scribble

if TYPE_CHECKING:
    from napari.layers import Layer

    from napari_hrsam.plugin.overlay.overlay import Overlay
    from napari_hrsam.plugin.session.class_actions import ClassActions
    from napari_hrsam.plugin.session.context import SessionContext
    from napari_hrsam.storage.labels.objects import Key, ObjectList

MAX_LOOKS = 50
"""Places along a line at which it is looked for the object that is to be cut."""


class ObjectActions:
    """Changes committed objects of the running session, each change one step to undo.

    Objects are named by their id, on the plane that is shown, or by the key of the list.

    Parameters
    ----------
    context
        What the controller works on.
    listed
        The objects there are.
    classes
        Told when an object is taken up: it keeps its class until it gets another one.

    Attributes
    ----------
    list
        As `listed`.
    """

    def __init__(
        self, context: SessionContext, listed: CommittedObjects, classes: ClassActions
    ) -> None:
        self._context = context
        self._classes = classes
        self.list = listed

    def edit(self, label: int) -> None:
        """Take up a committed object of the plane that is shown, to change it.

        Prompts correct its mask; `commit` puts it back under its id, `cancel` leaves it as it was.

        Raises
        ------
        SessionError
            If no session is ready, or an object is being drawn.
        """
        overlay, plane = self._context.ready_for_prompt()
        overlay.require_no_object("changing another one")
        self._context.begin_anew()
        self._classes.keep_class()
        overlay.take_up(label, plane)
        self._context.show_message(messages.LOOKING)
        self._context.worker.send(commands.TakeUp(label, plane))

    def draw_each(self, several: Sequence[Prompts]) -> None:
        """Draw several objects of the plane that is shown, and commit each, one after the other.

        `cancel` ends it; what is committed until then stays, and each can be undone.

        Parameters
        ----------
        several : sequence of Prompts
            Those of each object.

        Raises
        ------
        PromptError
            If there are none.
        SessionError
            If no session is ready, or an object is being drawn.
        """
        overlay, plane = self._context.ready_for_prompt()
        overlay.require_no_object("drawing others")
        if not several:
            raise PromptError("expected prompts of objects on this plane, got none")
        self._context.begin_anew()
        level = overlay.next_level(self._context.state.pinned_level)
        chosen = self._classes.for_commit(overlay)
        self._context.show_message(messages.describe_drawing(0, len(several)))
        command = commands.DrawEach(tuple(several), level, plane, chosen)
        self._context.worker.send(command)

    def draw_layer(self, layer: Layer | None = None) -> None:
        """Draw an object for every point or shape of a layer; see `prompts_of_layer`.

        Parameters
        ----------
        layer : Points or Shapes layer, optional
            By default the selected one.

        Raises
        ------
        PromptError, SessionError
            As of `draw_each`; also if it is no such layer, or the session's own.
        """
        overlay = self._context.ready()
        viewer = self._context.viewer
        layer = viewer.layers.selection.active if layer is None else layer
        if layer is None or layer in overlay.own:
            raise PromptError(
                "no points or shapes chosen: select a Points layer of yours (a click each) or a "
                "Shapes layer (boxes, outlines, lines) in the list of layers"
            )
        self.draw_each(prompts_of_layer(viewer, layer, overlay.view))

    def delete(self, label: int) -> None:
        """Delete a committed object of the plane that is shown; `undo` brings it back.

        Raises
        ------
        SessionError
            If no session is ready, or another object is being drawn.
        """
        overlay, plane = self._context.ready_for_prompt()
        if overlay.label != label:
            overlay.require_no_object("deleting another one")
        overlay.forget_object()
        self._context.worker.send(commands.Delete(label, plane))

    def merge(self, labels: Sequence[int]) -> None:
        """Give all pixels of some committed objects of the plane that is shown to the first.

        Raises
        ------
        SessionError
            If no session is ready, or an object is being drawn.
        """
        self._edit_object(lambda plane: commands.Merge(tuple(labels), plane), labels)

    def split(self, label: int, line_yx: Sequence[Sequence[float]]) -> None:
        """Cut a committed object of the plane that is shown along a line in level-0 pixels.

        Raises
        ------
        PromptError, SessionError
            If the line is malformed, no session is ready, or an object is being drawn.
        """
        line = Scribble(points_yx=line_yx).points_yx  # type: ignore[arg-type]  # copied, checked
        self._edit_object(lambda plane: commands.Split(label, line, plane), (label,))

    def fill_holes(self, label: int) -> None:
        """Fill the holes of a committed object of the plane that is shown.

        Raises
        ------
        SessionError
            If no session is ready, or another object is being drawn.
        """
        self._edit_object(lambda plane: commands.FillHoles(label, plane), (label,))

    def smooth(self, label: int) -> None:
        """Smooth the outline of a committed object of the plane that is shown.

        Raises
        ------
        SessionError
            If no session is ready, or another object is being drawn.
        """
        self._edit_object(lambda plane: commands.Smooth(label, plane), (label,))

    def _edit_object(
        self,
        command: Callable[[tuple[int, ...]], commands.ObjectEdit],
        labels: Sequence[int],
    ) -> None:
        overlay, plane = self._context.ready_for_prompt()
        is_drawn_on = len(overlay.prompts) > len(overlay.taken_prompts)
        if overlay.label not in labels or is_drawn_on:
            overlay.require_no_object("changing others")
        overlay.forget_object()
        self._context.worker.send(command(plane))

    def merge_under_cursor(self) -> None:
        """Merge the committed object under the mouse into the one that was taken up; see `merge`.

        Raises
        ------
        PromptError
            If none is under the mouse.
        SessionError
            If none was taken up.
        """
        overlay, keys = self._context.ready(), self._context.state.keys
        edit, merge = keys.text("edit"), keys.text("merge")
        if not overlay.label:
            raise SessionError(
                f"no object was taken up: point at the one that is to stay and press {edit}, then "
                f"at the other one and press {merge}"
            )
        self.merge((overlay.label, overlay.label_under_cursor(merge)))

    def cut(self, line_yx: Sequence[tuple[float, float]]) -> None:
        """Cut the committed object that a line crosses most; see `split`.

        Raises
        ------
        PromptError
            If it crosses none.
        """
        overlay, plane = self._context.ready_for_prompt()
        places = Scribble(points_yx=tuple(line_yx)).evenly(MAX_LOOKS).tolist()
        seen = [
            overlay.objects.label_at((y, x), plane) for y, x in places if overlay.view.holds((y, x))
        ]
        found = Counter(label for label in seen if label)
        if not found:
            raise PromptError(
                "no committed object is under this line: draw it across the one to cut in two"
            )
        self.split(found.most_common(1)[0][0], line_yx)

    def change_under_cursor(self, change: Callable[[int], None], action: str) -> None:
        """Change the object that was taken up, else the one under the mouse.

        Parameters
        ----------
        change
            What is done to it.
        action
            Whose key a user presses who points at none.
        """
        overlay = self._context.ready()
        change(overlay.label or self._label_under_cursor(action))

    def _label_under_cursor(self, action: str) -> int:
        return self._context.ready().label_under_cursor(self._context.state.keys.text(action))

    def edit_under_cursor(self) -> None:
        """Take up the committed object under the mouse; see `edit`."""
        self.edit(self._label_under_cursor("edit"))

    def delete_under_cursor(self) -> None:
        """Delete the object that is being changed, else the one under the mouse; see `delete`."""
        self.change_under_cursor(self.delete, "delete")

    def show(self, key: Key) -> None:
        """Move the view to a committed object, and to its plane.

        Raises
        ------
        SessionError
            If no session is ready, or there is no such object.
        """
        overlay, row = self._context.ready(), self.list.row(key)
        if row is None:
            raise SessionError(f"expected a committed object to show, got {key[1]}, which is gone")
        overlay.view.show_plane(self._image_plane(overlay, row.plane))
        overlay.view.show_box(row.box)

    def _image_plane(self, overlay: Overlay, plane: tuple[int, ...]) -> tuple[int, ...]:
        """Return a plane of the labels as one of the image: axes of length 1 may differ."""
        num = len(overlay.plane)
        return plane if len(plane) == num else (0,) * num

    def edit_listed(self, key: Key) -> None:
        """Take up a committed object of any plane; see `edit`."""
        overlay = self._context.ready()
        overlay.require_no_object("changing another one")
        self.show(key)
        self.edit(key[1])

    def delete_listed(self, keys: Sequence[Key]) -> None:
        """Delete committed objects of any plane, each as one step to undo; see `delete`."""
        overlay = self._context.ready()
        overlay.require_no_object("deleting others")
        for plane, label in keys:
            self._context.worker.send(commands.Delete(label, self._image_plane(overlay, plane)))

    def save(self, path: Path) -> None:
        """Write the objects, after the commits asked for, as a label TIFF with all planes.

        Objects on disk that are too large for one file are reported as an error in the panel.

        Raises
        ------
        SessionError
            If no session is ready.
        """
        objects = self._context.ready().objects
        array = objects.layer.data if isinstance(objects, MemoryObjects) else None
        message = f"The objects were saved as {path}."
        self._context.worker.send(
            commands.Save(path, array), lambda _: self._context.show_message(message)
        )

    def begin(self, opened: commands.Opened, found: ObjectList | None) -> None:
        """List what was found in the labels of a session that was opened."""
        overlay = self._context.overlay
        if found is None or overlay is None:
            return
        labels = opened.labels
        if not found.unit:
            # Labels in memory tell no size of a pixel; the image's layer may.
            found.set_unit(*pixel_area(overlay.image.layer))
        planes = () if labels is None else tuple(labels.levels[0].shape[:-2])
        self.list.begin(found, None if labels is None else labels.file, planes)
