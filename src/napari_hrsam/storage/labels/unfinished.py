"""The object that is being drawn, kept beside the commits: a crash costs no prompt."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from napari_hrsam.prompts import Prompts
from napari_hrsam.storage.labels.journal_rows import MAX_PLANES, prompts_from, prompts_text, whole


@dataclass(frozen=True, kw_only=True, slots=True)
class Unfinished:
    """An object that was not committed, so that it can be drawn again.

    Attributes
    ----------
    prompts : Prompts
        All of it.
    level : int
        At which it was looked at first.
    plane : tuple of int
        Of the image.
    label : int
        Of the committed object that was being changed; 0 for a new one.
    carried : (int, tuple of int) or None
        Id and plane of the object that it continued.
    begun_with : Prompts
        What it had when it was taken up or continued.
    model : str
        That drew it.
    """

    prompts: Prompts
    level: int
    plane: tuple[int, ...] = ()
    label: int = 0
    carried: tuple[int, tuple[int, ...]] | None = None
    begun_with: Prompts = field(default_factory=Prompts)
    model: str = ""

    def text(self) -> str:
        """Return it as JSON."""
        return prompts_text(
            self.prompts,
            first_level=self.level,
            plane=self.plane,
            label=self.label,
            carried=self.carried,
            begun_with=json.loads(prompts_text(self.begun_with)),
            model=self.model,
        )

    @classmethod
    def from_text(cls, text: str) -> Unfinished:
        """Return what a text of `text` says; `ValueError` if it is none."""
        said = json.loads(text)
        try:
            carried = said.get("carried")
            return cls(
                prompts=prompts_from(said),
                level=whole(said["first_level"], -100),
                plane=_plane(said["plane"]),
                label=whole(said["label"], 0),
                carried=None if carried is None else (whole(carried[0], 1), _plane(carried[1])),
                begun_with=prompts_from(said["begun_with"]),
                model=str(said["model"]),
            )
        except (AttributeError, KeyError, IndexError, TypeError) as error:
            raise ValueError(f"no object that was being drawn: {text[:80]!r}") from error


def _plane(said: Any) -> tuple[int, ...]:
    if not isinstance(said, list) or len(said) > MAX_PLANES:
        raise ValueError(f"no plane: {str(said)[:80]!r}")
    return tuple(whole(place, 0) for place in said)
