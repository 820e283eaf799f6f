"""What a generated image is made from: a few numbers beside its metadata."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from napari_hrsam.errors import ConfigError, ImageError
from napari_hrsam.geometry import level_shape

FILE_NAME = "generated.json"
"""Name of the recipe's file in the group of a generated image."""

VERSION = 1
"""Changes whenever the same recipe would give other pixels."""

CHUNK_PX = 512
"""Side of a chunk: a tile of the models touches few, and reads little that it does not need."""

LOOKS = ("tissue", "em")
MIN_SIZE_PX, MAX_SIZE_PX = 256, 2**20
TOP_LEVEL_PX = 1024
"""The coarsest level is not larger."""

_KIND = "napari-hrsam generated image"


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What a generated image is made from.

    Attributes
    ----------
    size_px : int
        Height and width of level 0, 256 to 1,048,576.
    seed : int
        0 or more; another one gives other objects.
    look : str
        ``"tissue"``: a stained section; ``"em"``: grey, as in an electron microscope.

    Raises
    ------
    ConfigError
        If one of them is out of range.
    """

    size_px: int
    seed: int = 0
    look: str = "tissue"

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not MIN_SIZE_PX <= self.size_px <= MAX_SIZE_PX:
            raise ConfigError(
                f"expected a size of {MIN_SIZE_PX} to {MAX_SIZE_PX} px, got {self.size_px}; "
                "choose e.g. 100000"
            )
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"expected a seed of 0 to {2**32 - 1}, got {self.seed}; choose 0")
        if self.look not in LOOKS:
            raise ConfigError(
                f"expected a look of {', '.join(LOOKS)}, got {self.look!r}; choose one of them"
            )

    @property
    def level_shapes(self) -> tuple[tuple[int, int], ...]:
        """Height and width of every level, by factors of two, the last at most 1024 px."""
        full = (self.size_px, self.size_px)
        shapes = [full]
        while shapes[-1][0] > TOP_LEVEL_PX:
            shapes.append(level_shape(full, len(shapes)))
        return tuple(shapes)

    def to_json(self) -> str:
        """Write the recipe as text."""
        return json.dumps({"kind": _KIND, "version": VERSION, **asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, path: str) -> Recipe:
        """Read what `to_json` wrote; `path` is named in errors.

        Raises
        ------
        ImageError
            If it is damaged, or of another version.
        """
        try:
            entries = json.loads(text)
            kind, version = entries.pop("kind"), entries.pop("version")
            if (kind, version) == (_KIND, VERSION):
                return cls(**entries)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ImageError(
                f"expected the recipe of a generated image, got {type(error).__name__}: {error} "
                f"in {path}; make the image again with `napari-hrsam sample`"
            ) from error
        raise ImageError(
            f"expected a {_KIND} of version {VERSION}, got {kind!r} of version {version!r} in "
            f"{path}; make the image again with `napari-hrsam sample`"
        )
