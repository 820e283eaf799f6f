"""Small building blocks of the panel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from napari.utils.theme import get_theme
from qtpy.QtCore import QEvent, QObject, Qt, Signal
from qtpy.QtGui import QColor, QIcon, QKeyEvent, QPixmap
from qtpy.QtWidgets import (
    QAbstractButton,
    QAbstractSpinBox,
    QComboBox,
    QFormLayout,
    QFrame,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QScrollArea,
    QSizePolicy,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

if TYPE_CHECKING:
    import napari.components
    from qtpy.QtGui import QResizeEvent

    from napari_hrsam.plugin.canvas.key_table import KeyMap


MIN_WIDTH_PX = 300
SWATCH_PX = 10
ERROR_COLORS = {"on dark": "#ff6b6b", "on light": "#b3261e"}


class Notifier(QObject):
    """Carries "there is something to deliver" from the inference thread to the panel's thread."""

    notified = Signal()

    def notify(self) -> None:
        """Emit `notified`; callable from any thread."""
        self.notified.emit()


class Links:
    """Signals that are connected to slots, until they are let go of.

    Parameters
    ----------
    *links
        Pairs of a psygnal signal and a slot.
    """

    def __init__(self, *links: tuple[Any, Callable[..., Any]]) -> None:
        self._links = links
        for signal, slot in links:
            signal.connect(slot)

    def close(self) -> None:
        """Disconnect them; does nothing the second time."""
        for signal, slot in self._links:
            signal.disconnect(slot)
        self._links = ()


class Section(QWidget):
    """A titled group that folds."""

    def __init__(self, title: str, *, is_open: bool = True) -> None:
        super().__init__()
        self._button = QToolButton()
        self._button.setText(title.replace("&", "&&"))
        self._button.setCheckable(True)
        self._button.setChecked(is_open)
        self._button.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self._button.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self._body = QWidget()
        self.form = QFormLayout(self._body)
        self.form.setContentsMargins(8, 4, 4, 8)
        self.form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(2)
        layout.addWidget(self._button)
        layout.addWidget(self._body)
        self._button.toggled.connect(self._toggle)
        self._toggle(is_open)

    def set_open(self, is_open: bool) -> None:
        """Show what is in it, or its title alone."""
        self._button.setChecked(is_open)

    def _toggle(self, is_open: bool) -> None:
        self._body.setVisible(is_open)
        arrow = Qt.ArrowType.DownArrow if is_open else Qt.ArrowType.RightArrow
        self._button.setArrowType(arrow)


class Column(QScrollArea):
    """Sections one above the other, scrolled up and down; always wide enough for all of them."""

    def __init__(self, sections: Sequence[QWidget]) -> None:
        super().__init__()
        content = QWidget()
        column = QVBoxLayout(content)
        column.setContentsMargins(4, 4, 4, 4)
        for section in sections:
            column.addWidget(section)
        column.addStretch(1)
        self.setWidgetResizable(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self._content = content
        self.setWidget(content)
        self._widen()

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:  # noqa: N802  Qt's name
        """Follow the content when a part of it is shown or hidden, or the font changes."""
        if watched is self._content and event.type() == QEvent.Type.LayoutRequest:
            self._widen()
        return bool(super().eventFilter(watched, event))

    def _widen(self) -> None:
        bar_px = self.verticalScrollBar().sizeHint().width()
        needed_px = self._content.minimumSizeHint().width() + bar_px
        self.setMinimumWidth(max(MIN_WIDTH_PX, needed_px))


class QuietInput(QObject):
    """Keeps boxes from changing unasked, and gives the keyboard back after a choice.

    The wheel acts on a box only while it has the focus, else it scrolls the panel; letters never
    choose from a list.

    Parameters
    ----------
    boxes
        Lists and numbers.
    done
        Called after a choice.
    """

    def __init__(
        self, boxes: Sequence[QComboBox | QAbstractSpinBox], done: Callable[[], None]
    ) -> None:
        super().__init__()
        for box in boxes:
            box.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
            box.installEventFilter(self)
            if isinstance(box, QComboBox):
                box.activated.connect(_without_arguments(done))
            else:
                box.lineEdit().returnPressed.connect(done)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:  # noqa: N802  Qt's name
        """Take what would change a box unasked."""
        if event.type() == QEvent.Type.Wheel:
            is_unasked = isinstance(watched, QWidget) and not watched.hasFocus()
        else:
            typed = event.text().strip() if isinstance(event, QKeyEvent) else ""
            is_letter = bool(typed) and typed.isprintable()
            is_press = event.type() == QEvent.Type.KeyPress
            is_unasked = is_letter and is_press and isinstance(watched, QComboBox)
        if is_unasked:
            # Not accepted: it goes on to what holds the box.
            event.ignore()
        return is_unasked


class WrappedLabel(QLabel):
    """A label of several lines that are never cut.

    Qt's form layouts squeeze wrapped lines when the panel is low; a minimum height holds them.
    """

    def __init__(self, text: str = "") -> None:
        super().__init__(text)
        self.setWordWrap(True)

    def ask_for_height(self) -> None:
        """Ask for the height of the present text at the present width."""
        # Qt never answers less than the present minimum: a line that was long would stay high.
        self.setMinimumHeight(0)
        # Before it is laid out it has no width, and Qt answers -1.
        self.setMinimumHeight(max(0, self.heightForWidth(self.width())))

    def setText(self, text: str) -> None:  # noqa: N802  Qt's name
        """Show a text, and ask for the height that it needs."""
        super().setText(text)
        self.ask_for_height()

    def resizeEvent(self, event: QResizeEvent) -> None:  # noqa: N802  Qt's name
        """Ask for the height that the new width needs."""
        super().resizeEvent(event)
        self.ask_for_height()


class KeyTexts:
    """Texts and tooltips of buttons that name keys, such as "Commit [{commit}]", as keys are set.

    Parameters
    ----------
    panel
        What holds the buttons.
    """

    def __init__(self, panel: QWidget) -> None:
        self._texts = [
            (one, one.text(), one.toolTip())
            for one in panel.findChildren(QAbstractButton)
            if "{" in one.text() + one.toolTip()
        ]

    def show(self, keys: KeyMap) -> None:
        """Put the keys in."""
        for one, text, tooltip in self._texts:
            one.setText(keys.spell(text))
            one.setToolTip(keys.spell(tooltip))


def button(
    text: str, tooltip: str, action: Callable[[], Any] | None = None, *, is_checkable: bool = False
) -> QPushButton:
    """Make a push button that does not keep the keyboard from the canvas."""
    made = QPushButton(text)
    made.setToolTip(tooltip)
    made.setCheckable(is_checkable)
    made.setFocusPolicy(Qt.FocusPolicy.NoFocus)
    if action is not None:
        made.clicked.connect(_without_arguments(action))
    return made


def error_style(viewer: napari.components.ViewerModel) -> str:
    """Return the style sheet of an error's text on the background of the theme."""
    red, green, blue = get_theme(viewer.theme).background.as_rgb_tuple()[:3]
    is_dark = red + green + blue < 3 * 128
    return f"color: {ERROR_COLORS['on dark' if is_dark else 'on light']}; font-weight: bold;"


def swatch(color: tuple[int, int, int]) -> QIcon:
    """Make a small square of a colour, the same where it is selected."""
    picture = QPixmap(SWATCH_PX, SWATCH_PX)
    picture.fill(QColor(*color))
    made = QIcon()
    for mode in (QIcon.Mode.Normal, QIcon.Mode.Selected, QIcon.Mode.Disabled):
        made.addPixmap(picture, mode)
    return made


def row(*widgets: QWidget) -> QWidget:
    """Put widgets side by side, equally wide."""
    made = QWidget()
    layout = QHBoxLayout(made)
    layout.setContentsMargins(0, 0, 0, 0)
    for widget in widgets:
        layout.addWidget(widget, 1)
    return made


def narrow(combo: QComboBox) -> QComboBox:
    """Keep a combo box from growing with its entries, which would make the panel too wide."""
    combo.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
    combo.setMinimumContentsLength(12)
    return combo


def fill_combo(combo: QComboBox, items: Sequence[tuple[str, Any]], chosen: Any) -> None:
    """Replace the items (text, data) of a combo box without emitting signals.

    Parameters
    ----------
    combo
        The box to fill.
    items
        Texts and the data behind them.
    chosen
        Data of the item to make current; the first item if it is not among them.
    """
    combo.blockSignals(True)
    present = [(combo.itemText(i), combo.itemData(i)) for i in range(combo.count())]
    # Filling anew would close a list that the user has just opened.
    if present != list(items):
        combo.clear()
        for text, data in items:
            combo.addItem(text, data)
    matches = [i for i, (_, data) in enumerate(items) if data is not None and data == chosen]
    combo.setCurrentIndex(matches[0] if matches else (0 if items else -1))
    combo.blockSignals(False)


def _without_arguments(action: Callable[[], Any]) -> Callable[..., None]:
    # Qt passes whether the button is checked to a slot that takes an argument.
    def run(*_: Any) -> None:
        action()

    return run
