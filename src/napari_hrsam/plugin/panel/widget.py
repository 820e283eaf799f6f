"""The panel "Segment by clicking": buttons and what they show; the work is the controller's."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from napari.utils.notifications import show_error, show_warning
from qtpy.QtCore import QCoreApplication, Qt, QUrl
from qtpy.QtGui import QDesktopServices, QKeySequence, QShortcut
from qtpy.QtWidgets import (
    QApplication,
    QButtonGroup,
    QComboBox,
    QFileDialog,
    QLabel,
    QProgressBar,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)

from napari_hrsam.errors import PromptError, SessionError
from napari_hrsam.modeling.registry import list_models
from napari_hrsam.plugin.canvas.mouse import DragTool
from napari_hrsam.plugin.overlay.objects import target_name
from napari_hrsam.plugin.panel.colours import ColourBox
from napari_hrsam.plugin.panel.everything import EverythingSection
from napari_hrsam.plugin.panel.key_sheet import KeySheet
from napari_hrsam.plugin.panel.layer_choices import LayerChoices
from napari_hrsam.plugin.panel.level import LevelBox
from napari_hrsam.plugin.panel.model import TOOLTIP_LOADING, ModelBox
from napari_hrsam.plugin.panel.objects import ObjectsSection
from napari_hrsam.plugin.panel.parts import (
    Column,
    KeyTexts,
    Links,
    Notifier,
    QuietInput,
    Section,
    WrappedLabel,
    button,
    error_style,
    fill_combo,
    narrow,
    row,
)
from napari_hrsam.plugin.panel.planes import PlanesBox
from napari_hrsam.plugin.panel.preferences import PreferencesLink
from napari_hrsam.plugin.panel.qt_binding import binding_warning
from napari_hrsam.plugin.panel.target import TargetBox
from napari_hrsam.plugin.panel.window import ContextGuard, WindowKeys, focus_canvas
from napari_hrsam.plugin.session.commands import FindDevices, WarmUp
from napari_hrsam.plugin.session.controller import SegmentController
from napari_hrsam.plugin.session.image_input import default_image_layer, on_grid_of
from napari_hrsam.plugin.session.loading import AUTO_DEVICE, load_named_model, model_label
from napari_hrsam.plugin.session.messages import describe_level, shown_message
from napari_hrsam.plugin.session.state import ControllerState, Phase
from napari_hrsam.plugin.session.targets import path_beside
from napari_hrsam.storage.labels.places import FOLDER_KEY

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import napari.viewer
    from napari.layers import Image
    from qtpy.QtGui import QHideEvent, QShowEvent

    from napari_hrsam.modeling.registry import ModelInfo
    from napari_hrsam.plugin.canvas.key_table import KeyMap
    from napari_hrsam.plugin.session.loading import ModelLoader

logger = logging.getLogger(__name__)

Watch: TypeAlias = LayerChoices | ContextGuard | Links | PreferencesLink

PROGRESS_STEPS = 1000
TOOLTIP_DRAWING = "Commit or cancel the object to change this"
LOCKED = "Commit or cancel the object to change these."
LOCKED_REVIEWING = "Commit or leave the proposals to change these."
TOOLS = (
    (
        DragTool.BOX,
        "Box [{box}]",
        "A plain drag draws a box around the object; Shift + drag always does",
    ),
    (
        DragTool.SCRIBBLE,
        "Scribble [{scribble}]",
        "A plain drag draws over what belongs to the object; a right drag, over what does not",
    ),
    (DragTool.LASSO, "Lasso [{lasso}]", "A plain drag draws an outline around the object"),
    (DragTool.CUT, "Cut [{cut}]", "A plain drag across a committed object cuts it in two"),
)


class SegmentWidget(QWidget):
    """Choose an image, click on objects, commit them to a Labels layer.

    Parameters
    ----------
    napari_viewer
        The viewer that the panel belongs to.
    load_model
        Makes a model; see `ModelLoader`.
    find_models
        Finds the named models that can be chosen.
    """

    def __init__(
        self,
        napari_viewer: napari.viewer.Viewer,
        *,
        load_model: ModelLoader = load_named_model,
        find_models: Callable[[], list[ModelInfo]] = list_models,
    ) -> None:
        super().__init__()
        self._viewer = napari_viewer
        self.controller = SegmentController(napari_viewer, load_model=load_model)
        self._notifier = Notifier()
        self._notifier.notified.connect(self._deliver, Qt.ConnectionType.QueuedConnection)
        self.controller.worker.set_notify(self._notifier.notify)
        self._choices = LayerChoices(napari_viewer, self._fill_layers)
        self._asked_for_devices = False
        self._shown_image: tuple[Image | None, bool] = (None, True)
        self.model_box = ModelBox(find_models=find_models)
        self.model_box.picked.connect(self._choose_model)
        self._build()
        self.controller.state.changed.connect(self._show_state)
        self.controller.state.failed.connect(self._notify)
        self.controller.worker.told.connect(self._warn)
        napari_viewer.events.theme.connect(self._show_state)
        self._key_texts = KeyTexts(self)
        self._keys = WindowKeys(self)
        self._sheet: KeySheet | None = None
        self._sheet_key = QShortcut(self)
        self._sheet_key.activated.connect(self.show_keys)
        self._shown_keys: KeyMap | None = None
        self._bound: Mapping[str, Callable[[], None]] = {}
        section = self.objects_section
        self._fill_layers()
        preferences = PreferencesLink(self, self.controller, self._begin_with)
        watches = (
            self._choices,
            ContextGuard(napari_viewer, self),
            section.links,
            section.model.links,
            self.everything_section.links,
            preferences,
        )
        self.destroyed.connect(partial(_let_go, self.controller, watches))
        application = QApplication.instance()
        if application is not None:
            # No window is left to be blocked: what was asked for is waited for.
            finish = partial(_finish, self.controller, watches)
            application.aboutToQuit.connect(finish)
            # It would keep the controller, and with it viewer and model, until then.
            self.destroyed.connect(partial(_forget, application, finish))
        self._show_state()
        warning = binding_warning()
        if warning is not None:
            show_warning(warning)

    def _warn(self, message: str) -> None:
        """Show what no action of the user asked for, such as a server that is gone."""
        show_warning(message)

    # ------------------------------------------------------------------ building

    def _build(self) -> None:
        self.objects_section = ObjectsSection(self.controller)
        self.everything_section = EverythingSection(
            self.controller, self._open_form, partial(focus_canvas, self)
        )
        column = Column(
            [
                self._build_input(),
                self._build_drawing(),
                self.everything_section,
                self.objects_section,
            ]
        )
        boxes: list[QComboBox | QSpinBox] = column.findChildren(QComboBox)
        boxes += column.findChildren(QSpinBox)
        self._quiet_input = QuietInput(boxes, partial(focus_canvas, self))
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(column, 1)
        layout.addWidget(self._build_footer())

    def _build_input(self) -> Section:
        section = Section("Image and model")
        # A long layer name must not make the panel wider than the dock.
        self.image_box, self.device_box = narrow(QComboBox()), narrow(QComboBox())
        self.target_box, self.colour_box = TargetBox(), ColourBox()
        self.colour_label = QLabel("Colours")
        self.image_box.setToolTip("The image to segment; it is never changed")
        self.device_box.setToolTip("Where the network runs; auto takes a GPU if there is one")
        self._fill_devices((AUTO_DEVICE,))
        self.image_box.activated.connect(self._choose_image)
        self.device_box.activated.connect(self._choose_device)
        self.target_box.picked.connect(self._restart)
        self.colour_box.picked.connect(self._restart)
        self.start_button = button(
            "Start", "Load the model and take clicks on the image", self._start_or_stop
        )
        section.form.addRow("Image", self.image_box)
        section.form.addRow(self.colour_label, self.colour_box)
        section.form.addRow("Model", self.model_box)
        section.form.addRow(self.model_box.question)
        section.form.addRow("Device", self.device_box)
        section.form.addRow("Objects", self.target_box)
        section.form.addRow(self.start_button)
        self.locked_label = WrappedLabel(LOCKED)
        section.form.addRow(self.locked_label)
        colour_boxes = self.colour_box.boxes.values()
        boxes = (self.image_box, self.device_box, self.target_box, *colour_boxes)
        self._tooltips = {box: box.toolTip() for box in boxes}
        return section

    def _build_drawing(self) -> Section:
        section = Section("Draw an object")
        controller, guard = self.controller, self.controller.state.guard
        objects, use_tool = controller.objects, controller.settings.use_tool
        self.add_button = button(
            "Add [{polarity}]",
            "A plain click adds to the object, a right click takes away",
            partial(controller.state.update, is_subtracting=False),
            is_checkable=True,
        )
        self.subtract_button = button(
            "Take away [{polarity}]",
            "A plain click takes away from the object, a right click adds",
            partial(controller.state.update, is_subtracting=True),
            is_checkable=True,
        )
        self._polarity = QButtonGroup(self)
        self._polarity.addButton(self.add_button)
        self._polarity.addButton(self.subtract_button)
        self.tool_buttons = {
            tool: button(text, tooltip, partial(use_tool, tool), is_checkable=True)
            for tool, text, tooltip in TOOLS
        }
        self.commit_button = button(
            "Commit [{commit}]",
            "Write the object to the Labels layer",
            partial(guard, controller.commit),
        )
        self.cancel_button = button(
            "Cancel [{cancel}]", "Give up the current object", partial(guard, controller.cancel)
        )
        self.next_button = button(
            "Other mask [{next_mask}]",
            "Show the next of the masks that the clicks may mean",
            partial(guard, controller.next_candidate),
        )
        self.delete_button = button(
            "Delete [{delete}]",
            "Delete the committed object that is being changed; the key deletes the one under the "
            "mouse, too",
            partial(guard, objects.delete_under_cursor),
        )
        self.fill_button = button(
            "Fill holes",
            "Fill the holes of the committed object that was taken up [{edit}]",
            partial(guard, objects.change_under_cursor, objects.fill_holes, "edit"),
        )
        self.smooth_button = button(
            "Smooth",
            "Smooth the outline of the committed object that was taken up [{edit}]",
            partial(guard, objects.change_under_cursor, objects.smooth, "edit"),
        )
        self.each_button = button(
            "Draw each of a layer",
            "Select a layer of your own: every point is a click on an object, every shape a box, "
            "an outline or a stroke; each object is drawn and committed",
            partial(guard, objects.draw_layer),
        )
        self.undo_button = button(
            "Undo [{undo}]",
            "Undo the last brush stroke, else click, else commit",
            partial(guard, controller.undo),
        )
        self.redo_button = button(
            "Redo [{redo}]", "Redo what was undone last", partial(guard, controller.redo)
        )
        self.count_label = QLabel()
        self.save_button = button(
            "Save beside the image",
            "Write the objects as a TIFF into the folder of the image's file",
            partial(guard, self._save),
        )
        self.folder_button = button("Open their folder", "", self._open_folder)
        self.level_box, self.planes_box = LevelBox(controller), PlanesBox(controller)
        self.keys_button = button(
            "Mouse and keys [{show_keys}]",
            "All that mouse and keys do; other keys are chosen under File > Preferences > HRSAM",
            self.show_keys,
        )
        section.form.addRow(row(self.add_button, self.subtract_button))
        tools = list(self.tool_buttons.values())
        section.form.addRow(row(*tools[:2]))
        section.form.addRow(row(*tools[2:]))
        section.form.addRow(row(self.commit_button, self.cancel_button))
        section.form.addRow(row(self.next_button, self.delete_button))
        section.form.addRow(row(self.fill_button, self.smooth_button))
        section.form.addRow(row(self.undo_button, self.redo_button))
        section.form.addRow(self.each_button)
        section.form.addRow(self.planes_box)
        section.form.addRow(self.count_label)
        section.form.addRow(row(self.save_button, self.folder_button))
        section.form.addRow(self.level_box)
        section.form.addRow(self.keys_button)
        return section

    def _build_footer(self) -> QWidget:
        footer = QWidget()
        layout = QVBoxLayout(footer)
        layout.setContentsMargins(8, 4, 8, 8)
        self.message_label = WrappedLabel()
        self.message_label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        # A long file name in an error must not make the panel wider; the tooltip has it whole.
        self.message_label.setMinimumWidth(1)
        self.facts_label = WrappedLabel()
        self.progress_bar = QProgressBar()
        self.progress_bar.setTextVisible(False)
        self.progress_bar.setFixedHeight(6)
        self.abort_button = button(
            "Cancel",
            "Stop loading, or give up the current object and what is waiting for it",
            partial(self.controller.state.guard, self.controller.cancel),
        )
        self.cover_label = WrappedLabel()
        self.switch_button = button("", "End this session and begin one there", self._switch)
        layout.addWidget(self.message_label)
        layout.addWidget(self.cover_label)
        layout.addWidget(self.switch_button)
        layout.addWidget(self.facts_label)
        layout.addWidget(self.progress_bar)
        layout.addWidget(self.abort_button)
        return footer

    # ------------------------------------------------------------------ showing

    def show_keys(self) -> None:
        """Open the cheat sheet, or close it."""
        if self._sheet is None:
            self._sheet = KeySheet(self)
        if self._sheet.isVisible():
            self._sheet.close()
            return
        self._sheet.show_keys(self.controller.state.keys)
        self._sheet.show()
        self._sheet.raise_()

    def _follow_keys(self, keys: KeyMap) -> None:
        self._shown_keys, self._bound = keys, self.controller.canvas.actions
        self._key_texts.show(keys)
        self._sheet_key.setKey(QKeySequence(keys["show_keys"]))
        self._keys.set_actions(self._bound)
        if self._sheet is not None:
            self._sheet.show_keys(keys)

    def _fill_layers(self) -> None:
        is_running = self.controller.state.phase is not Phase.STOPPED
        image = self.controller.image_layer
        if not is_running:
            active = self._choices.active
            kept = self.image_box.currentData()
            image = default_image_layer(self._choices.images, active)
            if not (active is not None and active == image) and kept in self._choices.images:
                image = kept
        fill_combo(self.image_box, [(layer.name, layer) for layer in self._choices.images], image)
        self._fill_colours()
        if (image, is_running) != self._shown_image:
            self._shown_image = (image, is_running)
            self.target_box.set_image(image)
        overlay = self.controller.overlay
        own_layers = [] if overlay is None else overlay.own
        self.target_box.set_layers(
            [
                (layer.name, layer)
                for layer in self._choices.targets(own_layers)
                if FOLDER_KEY not in layer.metadata
            ]
        )
        in_use = self.controller.target_in_use
        if in_use is not None:
            self.target_box.choose(in_use)

    def _fill_colours(self) -> None:
        image = self.image_box.currentData()
        layers = [] if image is None else on_grid_of(image, self._choices.images)
        self.colour_box.set_layers(layers, image)
        if len(layers) < 2:
            self.colour_box.forget()
        for widget in (self.colour_label, self.colour_box):
            widget.setVisible(len(layers) > 1)

    def _fill_devices(self, names: tuple[str, ...]) -> None:
        chosen = self.device_box.currentData() or AUTO_DEVICE
        fill_combo(self.device_box, [(name, name) for name in names], chosen)

    def _show_state(self) -> None:
        state = self.controller.state
        is_stopped, is_ready = state.phase is Phase.STOPPED, state.phase is Phase.READY
        is_free = not (state.has_object or state.is_proposing or state.is_reviewing)
        is_open = is_stopped or (is_ready and is_free)
        is_loading = state.phase is Phase.LOADING
        why_locked = TOOLTIP_LOADING if is_loading else TOOLTIP_DRAWING
        for box, tooltip in self._tooltips.items():
            box.setEnabled(is_open)
            box.setToolTip(tooltip if is_open else why_locked)
        if state.keys != self._shown_keys:
            self._follow_keys(state.keys)
        elif self._bound is not self.controller.canvas.actions:
            self._bound = self.controller.canvas.actions
            self._keys.set_actions(self._bound)
        self.model_box.set_state(is_loading=is_loading, is_open=is_open, in_use=state.model)
        self._keys.set_enabled(self.controller.canvas.is_on)
        self.start_button.setText("Start" if is_stopped else "Stop")
        self.add_button.setChecked(not state.is_subtracting)
        self.subtract_button.setChecked(state.is_subtracting)
        for tool, one in self.tool_buttons.items():
            one.setChecked(state.drag_tool is tool)
        can_change = is_ready and not state.is_proposing and not state.is_reviewing
        for one in (self.add_button, self.subtract_button, *self.tool_buttons.values()):
            one.setEnabled(can_change)
        self.commit_button.setEnabled(is_ready and state.has_object)
        self.cancel_button.setEnabled(is_ready and state.has_object)
        self.next_button.setEnabled(is_ready and state.num_prompts > 0)
        for one in (self.delete_button, self.fill_button, self.smooth_button):
            one.setEnabled(is_ready and state.is_editing)
        self.undo_button.setEnabled(can_change and (state.can_undo or state.has_object))
        self.each_button.setEnabled(is_ready and is_free)
        self.redo_button.setEnabled(can_change and state.can_redo)
        self.save_button.setVisible(is_ready and not state.is_beside_image)
        self.folder_button.setVisible(is_ready and bool(state.labels_folder))
        self.folder_button.setToolTip(f"The objects are kept in {state.labels_folder}")
        self.count_label.setText(f"Committed in this session: {state.num_committed}")
        self.message_label.setText(shown_message(state))
        self.message_label.setToolTip(state.message if state.is_error else "")
        self.message_label.setStyleSheet(error_style(self._viewer) if state.is_error else "")
        image = self.controller.image_layer
        self._show_cover(image, state.covered_by)
        self.locked_label.setVisible(is_ready and not is_open)
        self.locked_label.setText(LOCKED_REVIEWING if state.is_reviewing else LOCKED)
        self.facts_label.setText(_facts(state, "" if image is None else image.name))
        self.facts_label.setToolTip(state.labels_folder)
        self.level_box.show_state(state)
        self.planes_box.show_state(state)
        if state.progress is None:
            self.progress_bar.setRange(0, 0 if state.is_busy else 1)
        else:
            # Bytes of a large file are more than Qt's 32 bits can count.
            self.progress_bar.setRange(0, PROGRESS_STEPS)
            self.progress_bar.setValue(PROGRESS_STEPS * state.progress[0] // state.progress[1])
        self.abort_button.setEnabled(state.is_busy and not is_stopped)

    def _show_cover(self, image: Image | None, cover: str) -> None:
        is_covered = image is not None and bool(cover)
        if is_covered:
            assert image is not None
            self.cover_label.setText(f"You work on '{image.name}'; here '{cover}' lies over it.")
            self.switch_button.setText(f"Work on '{cover}'")
        self.cover_label.setVisible(is_covered)
        self.switch_button.setVisible(is_covered)

    def _notify(self, error: BaseException) -> None:
        # A click beside the image, or a layer that the user removed, needs no more than the line.
        if not isinstance(error, (PromptError, SessionError)):
            show_error(self.controller.state.message)

    # ------------------------------------------------------------------ events

    def _start_or_stop(self) -> None:
        if self.controller.state.phase is not Phase.STOPPED:
            self.controller.stop()
        else:
            self.controller.state.guard(self.start)

    def start(self) -> None:
        """Start on what the panel's boxes say.

        Raises
        ------
        ImageError, LabelsError
            If the chosen layers cannot be used.
        """
        self.controller.start(
            self.image_box.currentData(),
            self.model_box.chooser.chosen,
            channels=self.colour_box.chosen,
            target=self.target_box.chosen,
            device=self.device_box.currentData(),
        )

    def _begin_with(self, model: str, device: str) -> None:
        """Choose what the preferences say, for the next session; a running one stays as it is."""
        if self.controller.state.phase is not Phase.STOPPED:
            return
        self.model_box.keep(model)
        place = self.device_box.findData(device)
        if place < 0:
            # What there is, is found later.
            self._fill_devices((AUTO_DEVICE, device))
            place = self.device_box.findData(device)
        self.device_box.setCurrentIndex(place)

    def _choose_image(self) -> None:
        # Go on with the objects of this image if there are some.
        image = self.image_box.currentData()
        self.colour_box.forget()
        self.target_box.set_image(image)
        wanted = target_name(image)
        named = [layer for layer in self._choices.targets([]) if layer.name == wanted]
        self.target_box.choose(named[0] if named else None)
        self._restart()

    def _save(self) -> None:
        image = self.controller.image_layer
        path = None if image is None else path_beside(image)
        if path is None:
            chosen, _ = QFileDialog.getSaveFileName(self, "Save the objects", "objects.tif")
            path = Path(chosen) if chosen else None
        if path is not None:
            self.controller.objects.save(path)

    def _open_folder(self) -> None:
        QDesktopServices.openUrl(QUrl.fromLocalFile(self.controller.state.labels_folder))

    def _open_form(self, level: int) -> None:
        """Open the form that segments a whole level."""
        _, form = self._viewer.window.add_plugin_dock_widget("napari-hrsam", "Segment everything")
        fields: Any = form.fields
        image = self.controller.image_layer
        if not form.is_busy and image in fields["image"].choices:
            fields["image"].value, fields["level"].value = image, level

    def _switch(self) -> None:
        """Go over to the image that lies on top."""
        name = self.controller.state.covered_by
        found = [layer for layer in self._choices.images if layer.name == name]
        if self.controller.state.phase is not Phase.READY or not found:
            return
        self.controller.state.guard(self.controller.cancel)
        fill_combo(
            self.image_box, [(layer.name, layer) for layer in self._choices.images], found[0]
        )
        self._choose_image()

    def _choose_model(self, model: str, is_agreed: bool) -> None:
        is_stopped = self.controller.state.phase is Phase.STOPPED
        if is_stopped and not is_agreed and self.model_box.chooser.is_named(model):
            self.model_box.keep(model)
        else:
            self.controller.state.guard(self._use_model, model, is_agreed)

    def _choose_device(self) -> None:
        if self.controller.state.phase is Phase.READY:
            self.controller.state.guard(self._use_model, self.model_box.chooser.chosen, False)

    def _use_model(self, model: str, is_agreed: bool) -> None:
        device = self.device_box.currentData()
        self.controller.models.use(model, device=device, download=is_agreed)
        self.model_box.expect(model)

    def _restart(self) -> None:
        if self.controller.state.phase is Phase.READY:
            self.controller.state.guard(self.start)

    def _deliver(self) -> None:
        self.controller.worker.deliver()
        self._fill_layers()

    def showEvent(self, event: QShowEvent) -> None:
        """Take mouse and keys while the panel is visible."""
        super().showEvent(event)
        self.controller.canvas.set_paused(False)
        self._keys.set_enabled(self.controller.canvas.is_on)
        if not self._asked_for_devices:
            self._asked_for_devices = True
            self.controller.worker.send(FindDevices(), self._fill_devices)
            self.controller.worker.send(WarmUp())

    def hideEvent(self, event: QHideEvent) -> None:
        """Give mouse and keys back to napari; napari hides a dock that is closed."""
        super().hideEvent(event)
        self.controller.canvas.set_paused(True)
        self._keys.set_enabled(False)


def _facts(state: ControllerState, image: str) -> str:
    facts = [f"'{image}'"] if image else []
    facts += [model_label(state.model), state.device] if state.device else []
    if state.level is not None:
        facts.append(describe_level(state.level))
    if state.decode_ms is not None and state.encode_ms is not None:
        facts.append(f"{state.encode_ms + state.decode_ms:.0f} ms")
    return " · ".join(fact for fact in facts if fact)


def _let_go(controller: SegmentController, watches: tuple[Watch, ...], *_: Any) -> None:
    for watch in watches:
        watch.close()
    controller.close()


def _forget(application: QCoreApplication, finish: Callable[[], None], *_: Any) -> None:
    # While the application ends, its part of the signal may be gone already.
    with suppress(RuntimeError):
        application.aboutToQuit.disconnect(finish)


def _finish(controller: SegmentController, watches: tuple[Watch, ...]) -> None:
    _let_go(controller, watches)
    controller.worker.join()
