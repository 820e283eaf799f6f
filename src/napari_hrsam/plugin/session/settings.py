"""What a user sets, and what follows from it at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from napari_hrsam.plugin.canvas.mouse import DragTool
from napari_hrsam.plugin.session import commands

if TYPE_CHECKING:
    from napari_hrsam.plugin.session.class_colors import ClassColors
    from napari_hrsam.plugin.session.context import SessionContext
    from napari_hrsam.plugin.session.peeks import Peeks


class Settings:
    """Sets how objects are looked at, drawn and shown; what is set is in the state.

    Parameters
    ----------
    context
        What the controller works on.
    peeks
        What is shown under the mouse.
    class_colors
        Colours of committed objects.
    """

    def __init__(self, context: SessionContext, peeks: Peeks, class_colors: ClassColors) -> None:
        self._context = context
        self._peeks = peeks
        self._class_colors = class_colors

    def pin_level(self, level: int | None) -> None:
        """Look at new objects at one level at every zoom, or at that of the zoom (None).

        Parameters
        ----------
        level
            -2 (full size enlarged four times) to the coarsest level of the image; the nearest that
            there is will be taken. The current object keeps its own.
        """
        self._context.update(pinned_level=level)
        self._context.show_level()

    def set_outlines_fully(self, is_full: bool) -> None:
        """Refine outlines of objects larger than a tile at full resolution when they are committed.

        Otherwise they are refined at the level of the object's first prompt, as it was seen.
        """
        self._context.update(outlines_fully=is_full)
        self._context.worker.send(commands.SetOutline(0 if is_full else None))

    def show_model_input(self, is_shown: bool) -> None:
        """Show the tile of each object as the model sees it, in a layer under it, or do not."""
        self._context.update(shows_input=is_shown)
        if self._context.overlay is not None:
            self._context.worker.send(commands.ShowInput(is_shown))

    def set_peeks(self, peeks: bool) -> None:
        """Show under the mouse what a click would give, where that is encoded, or do not."""
        self._context.update(peeks=peeks)
        if not peeks:
            self._peeks.clear()

    def set_reads_ahead(self, reads_ahead: bool) -> None:
        """Encode tiles of the view while nothing else is asked for, or do not."""
        self._context.update(reads_ahead=reads_ahead)
        if reads_ahead:
            self._context.look_ahead()
        else:
            self._context.worker.read_ahead(None)

    def keep_embeddings(self, folder: str = "", max_gb: float = 0.0) -> None:
        """Keep embeddings on disk in a folder, from the next session on.

        Parameters
        ----------
        folder
            By default `napari_hrsam.cache.embeddings_folder`.
        max_gb
            What it may take, in 10^9 bytes; 0: what it was given last, or 8.
        """
        self._context.worker.send(commands.KeepEmbeddings(folder, int(max_gb * 1e9)))

    def set_object_color(self, color: tuple[float, float, float]) -> None:
        """Show the current object in a colour: red, green and blue from 0 to 1."""
        self._context.update(object_color=color)
        if self._context.overlay is not None:
            self._context.overlay.preview.set_color(color)

    def set_colors_by_class(self, is_by_class: bool) -> None:
        """Show committed objects in the colours of their classes, or each in one of its own."""
        self._context.update(colors_by_class=is_by_class)
        self._class_colors.follow()

    def use_tool(self, tool: DragTool) -> None:
        """Draw something with plain drags of the mouse; the same once more: move the view again."""
        state = self._context.state
        state.update(drag_tool=DragTool.PAN if state.drag_tool is tool else tool)
