"""The part of a session that encodes tiles before they are clicked on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from napari_hrsam.engine.embed import (
    EmbedReport,
    Progress,
    box_on,
    embed_tiles,
    tiles_around,
    tiles_for,
)
from napari_hrsam.engine.session_state import SessionState
from napari_hrsam.engine.tasks import (
    Crew,
    EndOfRunError,
    Shard,
    Tally,
    do_by_others,
    fingerprints_of,
    part_of,
    require_same_work,
)
from napari_hrsam.errors import ConfigError, EmbeddingsError, SessionError
from napari_hrsam.geometry import Box, Tile, TileGrid

if TYPE_CHECKING:
    from napari_hrsam.modeling.segmenter import Segmenter
    from napari_hrsam.storage.images.tile_source import PyramidImage


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
        workers: int | Crew = 1,
        shard: Shard | None = None,
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
        workers : int or Crew
            Processes, or a cluster, as in `auto`; more than one need a store on disk, which they
            share.
        shard : (int, int), optional
            Which part of the tiles to encode, of how many, as in `auto`.

        Raises
        ------
        PromptError
            If there is no such plane, or the box is malformed or lies outside the image.
        SessionError
            If there is no such level or no room for the tiles, the session is closed, the model
            fails, or several workers could not do some tiles.
        ConfigError
            If there is no such shard, or no store on disk for several workers.
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
        num, tiles = len(tiles), part_of(tiles, shard)
        if not tiles:
            return EmbedReport(
                level=level,
                num_tiles=0,
                num_encoded=0,
                num_at_hand=0,
                num_blank=0,
                tile_px=grid.tile_px,
                seconds=0.0,
            )
        if isinstance(workers, int) and (workers == 1 or len(tiles) < 2):
            return embed_tiles(
                self._state.tiles, tiles, progress, skip_blank=skip_blank, num_in_all=num
            )
        return self._embed_by_others(workers, tiles, num, progress, skip_blank=skip_blank)

    def _embed_by_others(
        self,
        workers: int | Crew,
        tiles: list[Tile],
        num_in_all: int,
        progress: Progress | None,
        *,
        skip_blank: bool,
    ) -> EmbedReport:
        cache, predictor = self._state.tiles, self._state.predictor
        if cache.stored is None or cache.stored.store.is_read_only:
            raise ConfigError(
                "expected a store on disk that several workers write to, got none; give the "
                "session one: Session(..., embeddings=EmbeddingStore())"
            )
        started = time.perf_counter()
        # It remembers its limit, for all who write to it.
        cache.stored.store.require_writable()
        missing = [tile for tile in tiles if not cache.is_kept(tile)]
        tally = Tally(missing)

        def done() -> None:
            if progress is not None:
                num = len(tiles) - len(missing) + len(tally.values) + len(tally.failed)
                progress(num, len(tiles))

        done()
        job = EmbedJob(
            image=self._state.image,
            model=predictor.segmenter,
            fingerprints=fingerprints_of(self._state.image, predictor),
            folder=str(cache.stored.store.folder),
            skip_blank=skip_blank,
            num_in_all=num_in_all,
        )
        if missing:
            do_by_others(workers, job, tally, done=done)
        if tally.failed:
            tile, problem = next(iter(tally.failed.items()))
            raise SessionError(
                f"expected to encode all tiles, but {len(tally.failed)} of {len(tiles)} failed "
                f"several times, one of them {tile} by {problem.error}; the others are kept: mend "
                "the cause and run the same again"
            )
        each = list(tally.values.values())
        return EmbedReport(
            level=tiles[0].level,
            num_tiles=len(tiles),
            num_encoded=sum(one.num_encoded for one in each),
            num_at_hand=len(tiles) - len(missing) + sum(one.num_at_hand for one in each),
            num_blank=sum(one.num_blank for one in each),
            tile_px=cache.tile_px,
            seconds=time.perf_counter() - started,
        )

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


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedJob:
    """Tiles to be encoded into a folder of embeddings, for another process or machine.

    Attributes
    ----------
    image : PyramidImage
    model : Segmenter
    fingerprints : (str, str)
        Of both.
    folder : str
        Of the embeddings, under the same path everywhere.
    skip_blank : bool
    num_in_all : int
        As in `embed_tiles`.
    """

    image: PyramidImage
    model: Segmenter
    fingerprints: tuple[str, str]
    folder: str
    skip_blank: bool
    num_in_all: int

    def open(self, step: Callable[[], None]) -> Callable[[Tile], EmbedReport]:
        """Return what encodes a tile; raise SessionError for another image or model."""
        from napari_hrsam.engine.predictor import Predictor, use_one_thread
        from napari_hrsam.engine.tile_cache import TileCache
        from napari_hrsam.storage.embeddings.store import EmbeddingStore

        use_one_thread()
        predictor = Predictor(self.model)
        require_same_work(self.image, predictor, self.fingerprints)
        cache = TileCache(self.image, predictor, max_tiles=1, store=EmbeddingStore(self.folder))

        def do(tile: Tile) -> EmbedReport:
            step()
            try:
                return embed_tiles(
                    cache, [tile], skip_blank=self.skip_blank, num_in_all=self.num_in_all
                )
            except EmbeddingsError as error:
                # A full disk: the other tiles would meet it, too.
                raise EndOfRunError(str(error)) from error

        return do
