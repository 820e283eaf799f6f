"""Committed objects in the colours of their classes, on the canvas."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from napari_hrsam.plugin.overlay.objects import bright_colors, class_colors, is_class_colors
from napari_hrsam.plugin.session import commands

if TYPE_CHECKING:
    from napari.layers import Labels
    from napari.utils.colormaps import CyclicLabelColormap, DirectLabelColormap

    from napari_hrsam.plugin.session.context import SessionContext
    from napari_hrsam.plugin.session.objects_list import CommittedObjects
    from napari_hrsam.storage.labels.properties import Color


class ClassColors:
    """Shows the objects as the list does while the state says so; then again as before.

    Parameters
    ----------
    context
        What the controller works on.
    listed
        The objects and their classes.
    """

    def __init__(self, context: SessionContext, listed: CommittedObjects) -> None:
        self._context, self._list = context, listed
        self._layer: Labels | None = None
        self._usual: CyclicLabelColormap | DirectLabelColormap | None = None
        self._shown: dict[int, Color] | None = None
        self._asked: set[np.dtype[np.generic]] = set()
        self._ready: set[np.dtype[np.generic]] = set()
        for signal in (listed.reset, listed.changed, listed.classes_changed):
            signal.connect(self.follow)

    def follow(self, *_: object) -> None:
        """Show the objects as the state and the list say."""
        overlay = self._context.overlay
        layer = None if overlay is None else overlay.target
        if layer is not self._layer:
            self._layer, self._usual, self._shown = layer, None, None
        if layer is None:
            return
        if not self._context.state.colors_by_class:
            if self._shown is not None and self._usual is not None:
                layer.colormap = self._usual
            self._usual = self._shown = None
            return
        dtype = np.dtype(layer.dtype)
        if dtype not in self._ready:
            if dtype not in self._asked:
                self._asked.add(dtype)
                warm = partial(self._on_warm, dtype)
                self._context.worker.send(commands.WarmColors(dtype), warm)
            return
        properties = self._list.properties
        found = ((label, properties.color_of(label)) for label in properties.objects)
        colors = {label: color for label, color in found if color is not None}
        if colors == self._shown:
            return
        if self._shown is None:
            known = layer.colormap
            self._usual = bright_colors() if is_class_colors(known) else known
        self._shown = colors
        layer.colormap = class_colors(colors)

    def _on_warm(self, dtype: np.dtype[np.generic], _: object) -> None:
        self._ready.add(dtype)
        self.follow()
