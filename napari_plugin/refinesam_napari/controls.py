"""What the panels are made of: magicgui's controls, and Qt by hand where magicgui has nothing, as is said there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from magicgui.widgets import ComboBox, Container, Label, PushButton
from magicgui.widgets.bases import CategoricalWidget, ValueWidget, Widget
from qtpy.QtWidgets import QComboBox, QFormLayout, QGroupBox, QSizePolicy, QVBoxLayout, QWidget

from refinesam_napari.controller import Controller

__all__ = ["Panel", "combo", "confidence", "form", "row", "show", "show_in_order", "words"]

Choices = Callable[[Any], Iterable[tuple[str, object]]]


class Panel(QGroupBox):
    """A titled box around widgets; magicgui's containers have no title."""

    def __init__(self, controller: Controller, title: str) -> None:
        super().__init__(title)
        self.controller = controller

    def fill(self, *widgets: Widget | QWidget) -> None:
        """Lay widgets out below each other."""
        layout = QVBoxLayout(self)
        for widget in widgets:
            layout.addWidget(widget if isinstance(widget, QWidget) else widget.native)

    def update_shown(self) -> None:
        """Show the state of now."""
        raise NotImplementedError

    def button(self, text: str, tip: str, clicked: Callable[[], object]) -> PushButton:
        """Make a button; what goes wrong with a click is told."""
        made = PushButton(text=text, tooltip=tip)
        self.on_change(lambda checked: clicked(), made)
        return made

    def on_change(self, action: Callable[[Any], object], *widgets: ValueWidget[Any]) -> None:
        """Do something with a value that the user changed; what goes wrong with it is told."""
        for widget in widgets:
            widget.changed.connect(self.controller.tasks.attempting(action))


def combo(choices: Choices | Sequence[object], label: str = "", tip: str = "") -> ComboBox:
    """Make a list to choose from that stays narrow, however long the names of layers are."""
    made = ComboBox(choices=choices, label=label, tooltip=tip)
    made.native.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
    made.native.setMinimumContentsLength(8)
    return made


def form(*widgets: Widget | QWidget) -> QWidget:
    """Put widgets below each other, each with its label; magicgui's own labels line up in its own font alone.

    Qt's widgets have no label and the whole width.
    """
    made = QWidget()
    layout = QFormLayout(made)
    layout.setContentsMargins(0, 0, 0, 0)
    for widget in widgets:
        if isinstance(widget, QWidget):
            layout.addRow(widget)
        else:
            layout.addRow(widget.label, widget.native)
    return made


def row(*widgets: Widget, label: str = "") -> Container[Widget]:
    """Put widgets side by side."""
    made = Container(widgets=widgets, layout="horizontal", labels=False, label=label)
    made.margins = (0, 0, 0, 0)
    return made


def words(text: str = "") -> Label:
    """Make a text of several lines."""
    made = Label(value=text)
    # magicgui's labels are as small as their first text.
    made.native.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Preferred)
    made.native.setWordWrap(True)
    return made


def show(widget: ValueWidget[Any], value: object, anew: bool = False) -> None:
    """Show a value, and before it other choices, as no choice of the user."""
    with widget.changed.blocked():
        if anew and isinstance(widget, CategoricalWidget):
            widget.reset_choices()
        if value is not None:
            widget.value = value


def show_in_order(widget: ComboBox, choices: Sequence[tuple[str, object]], value: object) -> None:
    """Show a value among choices in their order, as no choice of the user: magicgui appends those that are new."""
    native = widget.native
    with widget.changed.blocked():
        if [native.itemText(index) for index in range(native.count())] != [text for text, _ in choices]:
            native.clear()
    show(widget, value, anew=True)


def confidence(score: float) -> str:
    """Put a predicted IoU into words."""
    return f"confidence {min(max(score, 0), 1):.0%}"
