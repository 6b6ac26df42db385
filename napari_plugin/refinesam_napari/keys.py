"""The plugin's keys. napari takes most letters; these are free in the viewer and on all layers it is used with."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from refinesam_napari.controller import Controller

if TYPE_CHECKING:
    from napari.viewer import Viewer

__all__ = ["KEYS", "Keys"]

# Key -> (name of an action, what it does, in words).
KEYS = {
    "N": ("commit", "add the object, and go on with the next"),
    "Q": ("discard", "drop the prompts in hand"),
    "W": ("turn_sign", "turn the selected points, or the next ones, from on to off the object and back"),
    "U": ("use_boxes", "draw a box; again: back to points"),
    "G": ("toggle_refine", "refinement of the outline on or off"),
    "H": ("toggle_first", "look at the mask before refinement, and back"),
    "J": ("previous_object", "edit the previous object"),
    "K": ("next_object", "edit the next object"),
    "Control-Z": ("undo", "undo"),
    "Control-Shift-Z": ("redo", "redo"),
}


class Keys:
    """Binds the keys to a viewer, and to each layer on which napari's own binding would win."""

    def __init__(self, controller: Controller) -> None:
        self.controller = controller
        self._bound: list[Any] = []

    def bind_all(self) -> None:
        """Bind the keys to the viewer and to the layers that there are by now: a layer's own bindings win."""
        controller = self.controller
        layers: list[Any] = [controller.viewer, controller.prompts.points, controller.prompts.boxes]
        layers += [layer for layer in controller.viewer.layers if "refinesam" in layer.metadata]
        if controller.workspace is not None:
            layers.append(controller.workspace.image)
            if controller.workspace.objects is not None:
                layers.append(controller.workspace.objects.layer)
        for layer in layers:
            if layer is not None and not any(layer is other for other in self._bound):
                self.bind(layer)

    def bind(self, target: Viewer | Any) -> None:
        """Bind the keys to a viewer or a layer."""
        for key, (name, _) in KEYS.items():
            target.bind_key(key, self._call(name), overwrite=True)
        self._bound.append(target)

    def release(self) -> None:
        """Take the keys back."""
        for target in self._bound:
            for key in KEYS:
                target.bind_key(key, None)
        self._bound.clear()

    def _call(self, name: str) -> Callable[[Any], None]:
        def pressed(target: Any) -> None:
            self.controller.attempt(getattr(self, name))

        return pressed

    def commit(self) -> None:
        """N."""
        self.controller.commit()

    def discard(self) -> None:
        """Q."""
        self.controller.discard()

    def turn_sign(self) -> None:
        """W."""
        prompts = self.controller.prompts
        if not prompts.toggle_selected():
            prompts.use_points(not prompts.positive)
        self.controller.changed.emit()

    def use_boxes(self) -> None:
        """U."""
        prompts = self.controller.prompts
        if self.controller.viewer.layers.selection.active is prompts.boxes:
            prompts.use_points(prompts.positive)
        else:
            prompts.use_boxes()
        self.controller.changed.emit()

    def toggle_refine(self) -> None:
        """G."""
        self.controller.use_options(refine=not self.controller.options.refine)

    def toggle_first(self) -> None:
        """H."""
        self.controller.use_options(show_first=not self.controller.options.show_first)

    def previous_object(self) -> None:
        """J."""
        self.controller.step_object(-1)

    def next_object(self) -> None:
        """K."""
        self.controller.step_object(+1)

    def undo(self) -> None:
        """Control-Z."""
        self.controller.undo()

    def redo(self) -> None:
        """Control-Shift-Z."""
        self.controller.redo()
