"""A dock with the parameters of a function, a button, progress, Cancel, and what came of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, get_type_hints

import napari.layers
from magicgui.widgets import Container, create_widget
from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QAbstractSpinBox,
    QApplication,
    QComboBox,
    QLabel,
    QProgressBar,
    QVBoxLayout,
    QWidget,
)

from napari_hrsam.errors import HRSAMError
from napari_hrsam.plugin.forms.jobs import Job
from napari_hrsam.plugin.forms.runner import Runner
from napari_hrsam.plugin.panel.layer_choices import LayerChoices
from napari_hrsam.plugin.panel.parts import (
    Column,
    Notifier,
    QuietInput,
    WrappedLabel,
    button,
    error_style,
    narrow,
    row,
)
from napari_hrsam.plugin.session.messages import describe_error

if TYPE_CHECKING:
    import napari.viewer
    from qtpy.QtGui import QShowEvent

LABEL_MARGIN_PX = 12


class Form(QWidget):
    """A form whose fields are the typed parameters of a function that prepares a job.

    Parameters
    ----------
    viewer
        The viewer that the dock belongs to.
    prepare
        Takes the fields' values in the viewer's thread and returns the job, which is done in
        another. A parameter without an entry in `options` gets no field; ``among`` gets all layers.
    action
        What the button says.
    options
        magicgui's options of each field, and a "hint" that an empty one shows.
    """

    def __init__(
        self,
        viewer: napari.viewer.Viewer,
        prepare: Callable[..., Job[Any]],
        *,
        action: str,
        options: dict[str, dict[str, Any]],
    ) -> None:
        super().__init__()
        self._viewer, self._prepare = viewer, prepare
        self._done = (0, 0)
        self._is_error = False
        self._choices = LayerChoices(viewer, self._refresh_layers)
        self.fields = Container(widgets=self._make_fields(options))
        self.fields.margins = (4, 4, 4, 4)
        self.run_button = button(action, "", self.run)
        self.cancel_button = button("Cancel", "Give it up", self.cancel)
        self._build()
        self._notifier = Notifier()
        self._runner = Runner(self._notifier.notify, self._show_progress, self._show_end)
        self._notifier.notified.connect(self._runner.deliver, Qt.ConnectionType.QueuedConnection)
        viewer.events.theme.connect(self._style_message)
        close = partial(_close, self._runner, self._choices, viewer, self._style_message)
        self.destroyed.connect(close)
        application = QApplication.instance()
        if application is not None:
            application.aboutToQuit.connect(self._runner.close)
        self._show("")

    # ------------------------------------------------------------------ for subclasses

    def describe(self, result: Any) -> str:
        """Say what came of a job."""
        # No abc: Qt's classes have a metaclass of their own.
        raise NotImplementedError

    def describe_cancel(self, done: int, total: int) -> str:  # noqa: ARG002
        """Say what is left of a job that was cancelled."""
        return "Cancelled; nothing was written."

    def show_labels_fields(self) -> None:
        """Show the folder and the name of labels only where no layer is chosen."""
        is_layer = self.fields["labels"].value is not None
        self.fields["folder"].visible = self.fields["name"].visible = not is_layer

    # ------------------------------------------------------------------ running

    @property
    def is_busy(self) -> bool:
        """Whether a job is under way."""
        return self._runner.is_busy

    @property
    def message(self) -> str:
        """What the form says."""
        return self.message_label.text()

    def run(self) -> None:
        """Do what the fields say; an error is shown in the form."""
        if self.is_busy:
            return
        values = self.fields.asdict()
        if "among" in inspect.signature(self._prepare).parameters:
            values["among"] = list(self._viewer.layers)
        try:
            job = self._prepare(**values)
        except HRSAMError as error:
            self._show_end(None, error)
            return
        self._done = (0, 0)
        self._runner.start(job)
        self._show("Working ...")

    def cancel(self) -> None:
        """Give the job up; the form can be used again at once."""
        if self._runner.cancel():
            self._show(self.describe_cancel(*self._done))

    # ------------------------------------------------------------------ building and showing

    def _make_fields(self, options: dict[str, dict[str, Any]]) -> list[Any]:
        hints = get_type_hints(self._prepare)
        parameters = inspect.signature(self._prepare).parameters
        layers = {
            napari.layers.Image: lambda _: self._choices.images,
            napari.layers.Labels: lambda _: self._choices.targets([]),
        }
        active = self._choices.active
        fields = []
        for name, option in options.items():
            kinds = [kind for kind in layers if kind in getattr(hints[name], "__args__", ())]
            choices = {"choices": layers[kinds[0]], "nullable": True} if kinds else {}
            own = {key: option[key] for key in option if key not in {"label", "hint"}}
            field: Any = create_widget(
                name=name,
                label=option["label"],
                annotation=hints[name],
                value=parameters[name].default,
                options={"tooltip": _tooltip(self._prepare, name), **own, **choices},
            )
            if "hint" in option:
                # A file is a line of text with a button beside it.
                text = getattr(field, "line_edit", field)
                text.native.setPlaceholderText(option["hint"])
            if kinds and field.choices[1:]:
                # The first of them says that there is none.
                field.value = active if active in field.choices else field.choices[-1]
            fields.append(field)
        return fields

    def _build(self) -> None:
        combos = self.fields.native.findChildren(QComboBox)
        for combo in combos:
            narrow(combo)
        self._quiet_input = QuietInput(
            [*combos, *self.fields.native.findChildren(QAbstractSpinBox)], lambda: None
        )
        self.message_label = WrappedLabel()
        self.message_label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.message_label.setMinimumWidth(1)
        self.message_label.setTextFormat(Qt.TextFormat.PlainText)
        self.progress_bar = QProgressBar()
        self.progress_bar.setTextVisible(False)
        self.progress_bar.setFixedHeight(6)
        footer = QWidget()
        foot = QVBoxLayout(footer)
        foot.setContentsMargins(8, 4, 8, 8)
        foot.addWidget(row(self.run_button, self.cancel_button))
        foot.addWidget(self.progress_bar)
        content = Column([self.fields.native, footer, self.message_label])
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(content)

    def showEvent(self, event: QShowEvent) -> None:
        """Let the fields begin below one another; napari's font is known from now on."""
        super().showEvent(event)
        names = self.fields.native.findChildren(QLabel)
        widest_px = 0
        for name in names:
            name.ensurePolished()
            widest_px = max(widest_px, name.fontMetrics().horizontalAdvance(name.text()))
        for name in names:
            name.setFixedWidth(widest_px + LABEL_MARGIN_PX)

    def _refresh_layers(self) -> None:
        self.fields.reset_choices()

    def _show_progress(self, done: int, total: int) -> None:
        self._done = (done, total)
        self.progress_bar.setRange(0, total)
        self.progress_bar.setValue(done)

    def _show_end(self, result: Any, error: BaseException | None) -> None:
        if error is None:
            self._show(self.describe(result))
        else:
            self._show(describe_error(error, "Please report it"), is_error=True)

    def _show(self, text: str, *, is_error: bool = False) -> None:
        self._is_error = is_error
        self.message_label.setText(text)
        self._style_message()
        self.fields.enabled = not self.is_busy
        self.run_button.setEnabled(not self.is_busy)
        self.cancel_button.setEnabled(self.is_busy)
        # Without a total yet, Qt's bar goes to and fro.
        self.progress_bar.setRange(0, 0 if self.is_busy else 1)
        self.progress_bar.setValue(0)

    def _style_message(self) -> None:
        self.message_label.setStyleSheet(error_style(self._viewer) if self._is_error else "")


def _tooltip(function: Callable[..., Any], name: str) -> str:
    """Take the text of a parameter from a numpy-style docstring."""
    lines = inspect.getdoc(function)
    assert lines is not None
    found: list[str] = []
    is_its = False
    for line in lines.splitlines():
        if line.startswith("    "):
            found += [line.strip()] * is_its
        else:
            is_its = name in line.partition(" : ")[0].split(", ")
    return " ".join(found)


def _close(
    runner: Runner, choices: LayerChoices, viewer: napari.viewer.Viewer, style: Any, *_: Any
) -> None:
    runner.close()
    choices.close()
    viewer.events.theme.disconnect(style)
