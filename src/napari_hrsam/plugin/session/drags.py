"""Boxes, scribbles, outlines and cuts that are drawn with the mouse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from napari_hrsam.plugin.canvas.coordinates import box_between
from napari_hrsam.plugin.canvas.mouse import Drag, DragTool

if TYPE_CHECKING:
    from napari_hrsam.plugin.session.context import SessionContext


class Drags:
    """Shows what is being drawn with the mouse, and has it made when it is done.

    Parameters
    ----------
    context
        What the controller works on.
    box, scribble, lasso, cut
        What is made of it; see `SegmentController` and `ObjectActions`.
    """

    def __init__(
        self,
        context: SessionContext,
        *,
        box: Callable[[Any], None],
        scribble: Callable[[Any, bool], None],
        lasso: Callable[[Any], None],
        cut: Callable[[Any], None],
    ) -> None:
        self._context = context
        self._box, self._scribble, self._lasso, self._cut = box, scribble, lasso, cut

    def take(self, drag: Drag) -> None:
        """Show what is being drawn with the mouse, and make a prompt of it when it is done."""
        if self._context.is_loading():
            return
        overlay = self._context.ready()
        ends = [overlay.view.position(world) for world in drag.path]
        plane, points = ends[-1].plane, [end.point_yx for end in ends]
        if drag.is_done:
            overlay.show_prompts()
        match drag.tool:
            case DragTool.BOX if drag.is_done:
                self._box(box_between(points[0], points[-1]))
            case DragTool.BOX:
                box = box_between(points[0], points[-1])
                shown = replace(overlay.prompts, box=box) if box[0] < box[2] else overlay.prompts
                overlay.show_drag(shown, plane)
            case DragTool.SCRIBBLE if drag.is_done:
                self._scribble(points, drag.is_positive)
            case DragTool.SCRIBBLE:
                overlay.show_drag(overlay.prompts.with_scribble(points, drag.is_positive), plane)
            case DragTool.CUT if drag.is_done:
                self._cut(points)
            case DragTool.CUT:
                overlay.show_drag(overlay.prompts.with_scribble(points, False), plane)
            case DragTool.LASSO if drag.is_done:
                self._lasso(points)
            case DragTool.LASSO:
                overlay.show_drag(overlay.prompts, plane, points)
