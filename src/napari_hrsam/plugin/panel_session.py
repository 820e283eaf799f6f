"""A session that can go on with another model. Imports torch; loaded on the inference thread."""

from __future__ import annotations

from typing import TYPE_CHECKING

from napari_hrsam.engine.session import Session
from napari_hrsam.storage.label_store import Edit

if TYPE_CHECKING:
    from napari_hrsam.modeling.segmenter import Segmenter


class PanelSession(Session):
    """A `Session` whose commits outlive its model."""

    def with_model(self, model: Segmenter) -> PanelSession:
        """Begin a session with another model on the same image and labels, and close this one.

        Commits, their undo and their redo go over to it. The current object does not: its
        logits and embedding are the old model's.

        Parameters
        ----------
        model
            The model to go on with.
        """
        other = PanelSession(model, self.image, self.labels)
        other.take_history(self._edits, [step for step in self._undone if isinstance(step, Edit)])
        self.close()
        return other

    def take_history(self, edits: list[Edit], undone: list[Edit]) -> None:
        """Take over commits that can be undone and redone, oldest first."""
        self._edits[:] = edits
        self._undone[:] = undone
