"""What a benchmark of large images does, and how often."""

from __future__ import annotations

from dataclasses import dataclass

from napari_hrsam.errors import ConfigError

SIZES_PX = (10_000, 50_000, 100_000, 200_000)
LABELS_NAME = "bench"


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What a benchmark of large images does, and how often.

    Attributes
    ----------
    sizes_px : tuple of int
        Sides of the images, 1024 or more.
    model, device : str
        As in `load_model`.
    rounds : int
        New sessions, and commits per size of object, that are timed.
    num_warm : int
        Clicks on a tile that is encoded already.
    num_objects : int
        Objects committed in napari while memory is watched.
    embed_px : int
        Side of the part that is encoded ahead, in level-0 pixels.
    commit_px : tuple of int
        Diameters of committed objects; those that do not fit an image are left out.
    reopen_objects : int
        Objects in the label image that is opened again; 0 leaves this out.

    Raises
    ------
    ConfigError
        If one of them is out of range.
    """

    sizes_px: tuple[int, ...] = SIZES_PX
    model: str = "hrsam-tiny"
    device: str = "auto"
    rounds: int = 5
    num_warm: int = 60
    num_objects: int = 20
    embed_px: int = 2048
    commit_px: tuple[int, ...] = (500, 2000, 10_000)
    reopen_objects: int = 10_000

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not self.sizes_px or min(self.sizes_px) < 1024:
            raise ConfigError(
                f"expected sizes of 1024 px or more, got {self.sizes_px}; choose e.g. 10000"
            )
        counts = (self.rounds, self.num_warm, self.num_objects, self.embed_px, *self.commit_px)
        if min(counts) < 1 or self.reopen_objects < 0:
            raise ConfigError(
                f"expected counts of 1 or more, got {self}; only reopen_objects may be 0"
            )
