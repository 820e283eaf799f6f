"""The part of a session that encodes tiles before they are clicked on."""

from __future__ import annotations

from collections.abc import Sequence

from napari_hrsam.engine.embed import (
    EmbedReport,
    Progress,
    box_on,
    embed_tiles,
    tiles_around,
    tiles_for,
)
from napari_hrsam.engine.session_state import SessionState
from napari_hrsam.errors import SessionError
from napari_hrsam.geometry import Box, TileGrid


class EncodesAhead:
    """Encodes tiles ahead of time or while idle.

    Parameters
    ----------
    state : SessionState
        What the session is made of.
    """

    def __init__(self, state: SessionState) -> None:
        self._state = state

    def embed(
        self,
        level: int = 0,
        box: Sequence[float] | Box | None = None,
        plane: tuple[int, ...] = (),
        progress: Progress | None = None,
        *,
        skip_blank: bool = False,
    ) -> EmbedReport:
        """Encode the tiles of a level ahead of time, so that clicks need not wait for that.

        Tiles that are on disk are not encoded again, so work that was cut off goes on where it
        was. Without a store on disk the tiles are kept in memory.

        Parameters
        ----------
        level : int
            One of `levels`.
        box : (y0, x0, y1, x1), optional
            Level-0 pixels; only what clicks inside this box look at.
        plane : tuple of int
            As in `click`.
        progress : callable, optional
            Called with the tiles done and the tiles in all. What it raises stops the work; the
            tiles done so far are kept.
        skip_blank : bool
            Leave out tiles that show nothing but one colour and noise. They are encoded when they
            are clicked on.

        Raises
        ------
        PromptError
            If there is no such plane, or the box is malformed or lies outside the image.
        SessionError
            If there is no such level or no room for the tiles, the session is closed, or the
            model fails.
        EmbeddingsError
            If an embedding cannot be written to disk.
        """
        self._state.require_open()
        levels = self._state.levels
        if level not in levels:
            raise SessionError(
                f"expected a level from {levels.start} to {levels.stop - 1}, got "
                f"{level}; the image has no others"
            )
        grid = TileGrid(self._state.image.shape_yx, self._state.tiles.tile_px, level, plane)
        tiles = tiles_for(grid, box_on(self._state.image.shape_yx, box))
        return embed_tiles(self._state.tiles, tiles, progress, skip_blank=skip_blank)

    def read_ahead(
        self, box0: Sequence[float] | Box, level: int, plane: tuple[int, ...] = ()
    ) -> bool:
        """Encode one tile that a view may need next; to be called while idle.

        First the tiles that clicks in the view look at, nearest to its centre first, then those
        one level coarser, then a few one level finer. Never more than memory has room for, and
        the current object's tile stays.

        Parameters
        ----------
        box0 : (y0, x0, y1, x1)
            What is on screen, in level-0 pixels.
        level : int
            At which a new object would be looked at; the nearest that the image has is taken.
        plane : tuple of int
            As in `click`.

        Returns
        -------
        bool
            Whether a tile was encoded; False if nothing is left to do.

        Raises
        ------
        PromptError, SessionError
            As in `embed`.
        """
        self._state.require_open()
        levels = self._state.levels
        level = min(max(level, levels.start), levels.stop - 1)
        grid = TileGrid(self._state.image.shape_yx, self._state.tiles.tile_px, level, plane)
        box = box_on(self._state.image.shape_yx, box0)
        prediction = self._state.drawing.prediction
        needed = () if prediction is None else (prediction.tile,)
        return self._state.tiles.see_ahead(tiles_around(grid, box, levels.stop - 1), needed)
