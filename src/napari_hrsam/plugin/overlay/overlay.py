"""What a running session shows: its layers, the prompts of the current object, the level."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from napari_hrsam.errors import PromptError, SessionError
from napari_hrsam.geometry import FINEST_LEVEL, coarsest_level
from napari_hrsam.plugin.canvas.view import ImageView
from napari_hrsam.plugin.overlay.model_input import ModelInputDisplay
from napari_hrsam.plugin.overlay.preview import PreviewLayer
from napari_hrsam.plugin.overlay.prompts import PromptsDisplay
from napari_hrsam.plugin.overlay.proposals import ProposalsLayer
from napari_hrsam.prompts import Prompts

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import napari.components
    from napari.layers import Labels, Layer

    from napari_hrsam.engine.prediction import Prediction
    from napari_hrsam.plugin.canvas.key_table import KeyMap
    from napari_hrsam.plugin.overlay.objects import ObjectsLayer
    from napari_hrsam.plugin.overlay.strokes import Strokes
    from napari_hrsam.plugin.session.commands import Answer, Proposed
    from napari_hrsam.plugin.session.image_input import ImageInput


MOVE_EVENTS = ("scale", "translate", "rotate", "shear", "affine", "units", "axis_labels")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class GivenUp:
    """An object that was cancelled, so that it can be brought back.

    Attributes
    ----------
    prompts, plane, level, strokes
        What was said, where, the level of the first of it, and what was painted.
    label
        Of the committed object that was being changed; 0 for a new one.
    taken_prompts
        What was known of that one, or of one that was continued, before anything was added.
    carried
        Id and plane of the object that it continued.
    """

    prompts: Prompts
    label: int
    taken_prompts: Prompts
    plane: tuple[int, ...]
    level: int
    strokes: Strokes | None
    carried: tuple[int, tuple[int, ...]] | None = None


class Overlay:
    """The layers of one session on the image's pixel grid, in step with prompts and answers.

    `add_layers` adds all but the objects, before anything else is asked of it.

    Parameters
    ----------
    viewer
        Where layers are added; the one with the current object becomes the active one.
    image
        What is annotated; its layers are only read.
    objects
        What shows the committed objects, in the viewer already.
    tile_px
        Side of the model's tile in level pixels.

    Attributes
    ----------
    view
        What of the image is on screen.
    objects, preview, shown_prompts
        What shows committed objects, the current object and its prompts.
    own
        The layers that go when the session ends.
    prompts
        Clicks, box and scribbles of the current object, answered or not.
    label
        Of the committed object that is being changed; 0 for a new one.
    taken_prompts
        What was known of that one when it was taken up.
    plane
        Where they lie along the axes before y and x.
    given_up
        The object that was cancelled last, until the next one begins.
    proposals
        What shows proposals while they are reviewed; else None.
    """

    def __init__(
        self,
        viewer: napari.components.ViewerModel,
        image: ImageInput,
        objects: ObjectsLayer,
        tile_px: int,
    ) -> None:
        self._viewer = viewer
        self.image = image
        self.view = ImageView(viewer, image)
        self.objects = objects
        self.own: list[Layer] = []
        self.model_input = ModelInputDisplay(viewer, image.layer)
        self.tile_px = tile_px
        self.prompts = Prompts()
        self.label = 0
        self.taken_prompts = Prompts()
        self._carried: tuple[int, tuple[int, ...]] | None = None
        self._is_expected = False
        self.plane: tuple[int, ...] = (0,) * len(image.image.plane_shape)
        self.given_up: GivenUp | None = None
        self.proposals: ProposalsLayer | None = None
        self._object_level: int | None = None

    def add_layers(self) -> Iterator[None]:
        """Add the layers, one at each step; napari takes long for each."""
        image = self.image.layer
        self.preview = PreviewLayer(self._viewer, image)
        self.own.append(self.preview.layer)
        yield
        self.shown_prompts = PromptsDisplay(self._viewer, image)
        self.own.append(self.shown_prompts.layer)
        for name in MOVE_EVENTS:
            getattr(image.events, name).connect(self._move_with_image)
        self._viewer.layers.selection.active = self.preview.layer

    # ------------------------------------------------------------------ layers

    @property
    def target(self) -> Labels:
        """The layer with the committed objects."""
        return self.objects.layer

    @property
    def all(self) -> list[Layer]:
        """Every layer the session needs: its own, the target and the images."""
        proposed = [] if self.proposals is None else [self.proposals.layer]
        return [*self.own, *proposed, self.target, *self.image.layers]

    @property
    def is_painting_target(self) -> bool:
        """Whether one of napari's tools works on the layer with the committed objects."""
        is_active = bool(self._viewer.layers.selection.active == self.target)
        return is_active and str(self.target.mode) != "pan_zoom" and self.objects.is_paintable

    def rescale(self) -> None:
        """Keep prompts as large on screen as before a change of zoom."""
        self.shown_prompts.rescale(self.view.screen_px())
        if self.proposals is not None:
            self.proposals.rescale(self.view.screen_px())

    def add_proposals(self, proposed: Proposed) -> None:
        """Add the layer that shows proposals."""
        plane = proposed.proposals.plane
        self.proposals = ProposalsLayer(
            self._viewer, self.image.layer, proposed.numbers, proposed.box, proposed.step, plane
        )

    def remove_proposals(self) -> None:
        """Take that layer away."""
        shown, self.proposals = self.proposals, None
        if shown is not None and shown.layer in self._viewer.layers:
            self._viewer.layers.remove(shown.layer)

    def disconnect(self) -> None:
        """Stop following the image."""
        for name in MOVE_EVENTS:
            getattr(self.image.layer.events, name).disconnect(self._move_with_image)

    def remove(self, *, keeps_target: bool) -> None:
        """Take the session's own layers out of the viewer, all in this turn of the event loop.

        Parameters
        ----------
        keeps_target
            Whether the layer with the objects stays even if it is empty.
        """
        self.model_input.show(None, None)
        self.remove_proposals()
        leaving = list(self.own)
        if not keeps_target and self.objects.is_disposable:
            leaving.append(self.target)
        for layer in leaving:
            if layer in self._viewer.layers:
                self._viewer.layers.remove(layer)

    def _move_with_image(self) -> None:
        for shown in (self.preview, self.shown_prompts, self.objects, self.proposals):
            if shown is not None:
                shown.move_with_image()

    # ------------------------------------------------------------------ level and image

    @property
    def levels(self) -> tuple[int, int]:
        """The finest and the coarsest level at which objects can be looked at."""
        return FINEST_LEVEL, coarsest_level(self.image.shape_yx, self.tile_px)

    def show_image(self, image: ImageInput) -> None:
        """Take the image as it is shown now."""
        self.image = self.view.image = image

    def next_level(self, pinned: int | None) -> int:
        """Return the level at which a new object is looked at.

        Parameters
        ----------
        pinned
            The user's choice; None: that of the zoom.
        """
        if pinned is None:
            return self.view.level(self.tile_px)
        return min(max(pinned, self.levels[0]), self.levels[1])

    def level(self, pinned: int | None) -> int:
        """Return the level of the current object, else that of the next."""
        if self._object_level is not None and self.has_object:
            return self._object_level
        return self.next_level(pinned)

    # ------------------------------------------------------------------ prompts and answers

    def ask(self, prompts: Prompts, plane: tuple[int, ...]) -> None:
        """Show prompts before they are answered."""
        if not self.has_object:
            self._object_level = None
        self.given_up = None
        self.prompts, self.plane = prompts, plane
        self.show_prompts()

    def take_up(self, label: int, plane: tuple[int, ...]) -> None:
        """Show that a committed object is being changed, before that is answered."""
        self._object_level = self.given_up = None
        self.label, self.plane = label, plane
        self.taken_prompts = Prompts()

    def expect(self, plane: tuple[int, ...]) -> None:
        """Show that an object is being continued on a plane, before that is answered."""
        self.forget_object()
        self._object_level = self.given_up = None
        self.plane, self._is_expected = plane, True

    def show_answer(self, answer: Answer) -> None:
        """Show the session as it is after a step."""
        self.prompts, prediction = answer.prompts, answer.prediction
        self.label = 0 if answer.taken is None else answer.taken.label
        self.taken_prompts, self._carried = answer.begun_with, answer.carried
        self._is_expected = False
        if answer.edit is not None or answer.earlier_edits:
            self.given_up = None
        preview = self.preview
        preview.put_strokes(answer.strokes)
        if prediction is None:
            self._object_level = None
            preview.clear()
        else:
            self._object_level = prediction.level
            self.plane = prediction.tile.plane or (0,) * len(self.plane)
            preview.show(
                prediction.level_mask, prediction.box, prediction.level_downsample, self.plane
            )
            self.watch_brush()
        self.model_input.show(answer.model_input, None if prediction is None else prediction.tile)
        self.show_prompts()

    def show_peek(self, prediction: Prediction | None) -> None:
        """Show what a click would give; it is no object."""
        if prediction is None:
            self.preview.clear()
            return
        plane = prediction.tile.plane or (0,) * len(self.plane)
        mask, step = prediction.level_mask, prediction.level_downsample
        self.preview.show(mask, prediction.box, step, plane)

    def show_prompts(self) -> None:
        """Draw the prompts."""
        self.shown_prompts.show(self.prompts, self.view.screen_px(), self.plane)

    def show_drag(
        self,
        prompts: Prompts,
        plane: tuple[int, ...],
        outline: Sequence[tuple[float, float]] = (),
    ) -> None:
        """Draw prompts, and perhaps an outline, that are not made yet."""
        self.shown_prompts.show(prompts, self.view.screen_px(), plane, outline)

    @property
    def has_object(self) -> bool:
        """Whether there is a current object: prompts, answered or not, or one that is changed."""
        return len(self.prompts) > 0 or self.label > 0 or self._is_expected

    @property
    def elsewhere(self) -> str:
        """Name of the plane with the current object, if another one is shown; else empty."""
        if not self.has_object or not self.plane:
            return ""
        try:
            is_here = self.view.plane() == self.plane
        except PromptError:
            is_here = False
        return "" if is_here else self.view.plane_name(self.plane)

    def watch_brush(self) -> None:
        """Take napari's brush away where the plane of the current object is not shown."""
        try:
            plane = self.view.plane()
        except PromptError:
            plane = None
        self.preview.take_brush_on(plane)

    def plane_for_prompt(self, keys: KeyMap) -> tuple[int, ...]:
        """Return the plane that is shown, for a prompt of the current object.

        Parameters
        ----------
        keys
            As they are set, for the error.

        Raises
        ------
        PromptError
            If the object is on another plane, or the view shows none of the image.
        """
        plane = self.view.plane()
        if self.has_object and plane != self.plane:
            there, here = map(self.view.plane_name, (self.plane, plane))
            raise PromptError(
                f"the object is on {there}, and this is {here}: press {keys.text('commit')} to go "
                f"back to it, or {keys.text('cancel')} to cancel it and begin another one here"
            )
        return plane

    def require_no_object(self, what: str) -> None:
        """Check that no object is being drawn.

        Parameters
        ----------
        what
            What is to be done to others: the end of "commit or cancel it before ...".

        Raises
        ------
        SessionError
            If one is.
        """
        if self.has_object:
            raise SessionError(f"an object is being drawn: commit or cancel it before {what}")

    def label_at_cursor(self, plane: tuple[int, ...] | None = None) -> int:
        """Return the id of the committed object under the mouse, 0 for none.

        Parameters
        ----------
        plane
            Of the object; by default the one that the mouse points at.

        Raises
        ------
        PromptError
            If the view shows none of the image.
        """
        position = self.view.position(self._viewer.cursor.position)
        if not self.view.holds(position.point_yx):
            return 0
        return self.objects.label_at(position.point_yx, position.plane if plane is None else plane)

    def label_under_cursor(self, key: str) -> int:
        """Return the id of the committed object under the mouse, for a key that needs one.

        Raises
        ------
        PromptError
            If there is none.
        """
        label = self.label_at_cursor()
        if not label:
            raise PromptError(
                f"no committed object is under the mouse: point at one, then press {key}"
            )
        return label

    def give_up_object(self, level: int) -> None:
        """Show no object any more, but remember it.

        Parameters
        ----------
        level
            At which a new object would be looked at.
        """
        if self.has_object and not self._is_expected:
            self.given_up = GivenUp(
                prompts=self.prompts,
                label=self.label,
                taken_prompts=self.taken_prompts,
                plane=self.plane,
                level=level if self._object_level is None else self._object_level,
                strokes=self.preview.strokes(),
                carried=self._carried,
            )
        self.forget_object()
        self.preview.clear()

    def forget_object(self) -> None:
        """Show no prompts any more."""
        self.prompts, self.label = Prompts(), 0
        self._carried, self._is_expected = None, False
        self.show_prompts()
