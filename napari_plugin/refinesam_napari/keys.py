"""The plugin's keys. napari takes most letters; these are free in the viewer and on all layers it is used with."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from refinesam_napari.controller import Controller

__all__ = ["KEYS", "Keys"]


def _turn_sign(controller: Controller) -> None:
    prompts = controller.view.prompts
    if not prompts.toggle_selected():
        prompts.use_points(not prompts.positive)
    controller.workspaces.changed.emit()


def _use_boxes(controller: Controller) -> None:
    prompts = controller.view.prompts
    if controller.view.viewer.layers.selection.active is prompts.boxes:
        prompts.use_points(prompts.positive)
    else:
        prompts.use_boxes()
    controller.workspaces.changed.emit()


def _toggle_refine(controller: Controller) -> None:
    controller.predictions.use_options(refine=not controller.predictions.options.refine)


def _toggle_one_each(controller: Controller) -> None:
    controller.use_one_each(not controller.predictions.options.one_each)


def _toggle_first(controller: Controller) -> None:
    controller.predictions.use_options(show_first=not controller.predictions.options.show_first)


# By key: what it does, in words, and the action.
KEYS: dict[str, tuple[str, Callable[[Controller], object]]] = {
    "N": ("add the object, and go on with the next", Controller.commit),
    "Shift-N": ("every click and every box an object of its own, or no longer", _toggle_one_each),
    "Q": ("drop the prompts in hand", Controller.discard),
    "W": ("turn the selected points, or the next ones, from on to off the object and back", _turn_sign),
    "U": ("draw a box; again: back to points", _use_boxes),
    "G": ("refinement of the outline on or off", _toggle_refine),
    "H": ("look at the mask before refinement, and back", _toggle_first),
    ".": ("the next larger mask that the prompts may mean", lambda controller: controller.step_candidate(+1)),
    ",": ("the next smaller one", lambda controller: controller.step_candidate(-1)),
    "J": ("edit the previous object", lambda controller: controller.step_object(-1)),
    "K": ("edit the next object", lambda controller: controller.step_object(+1)),
    "PageDown": ("the next image of the folder", lambda controller: controller.image_asked.emit(+1)),
    "PageUp": ("the previous image of the folder", lambda controller: controller.image_asked.emit(-1)),
    "Control-Z": ("undo", Controller.undo),
    "Control-Shift-Z": ("redo", Controller.redo),
}


class Keys:
    """Binds the keys to a viewer, and to each layer on which napari's own binding would win."""

    def __init__(self, controller: Controller) -> None:
        self.controller = controller
        # Not held: a removed layer takes its image's memory along.
        self._bound: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()

    def bind(self) -> None:
        """Bind the keys to the viewer and to the layers that there are by now: a layer's own bindings win."""
        view, workspace = self.controller.view, self.controller.workspace
        targets: list[Any] = [view.viewer, view.prompts.points, view.prompts.boxes]
        targets += [layer for layer in view.viewer.layers if "refinesam" in layer.metadata]
        if workspace is not None:
            targets += [workspace.image, workspace.objects and workspace.objects.layer]
        for target in targets:
            if target is not None and id(target) not in self._bound:
                for key, (_, action) in KEYS.items():
                    target.bind_key(key, self._call(action), overwrite=True)
                self._bound[id(target)] = target

    def release(self) -> None:
        """Take the keys back."""
        for target in self._bound.values():
            for key in KEYS:
                target.bind_key(key, None)
        self._bound.clear()

    def _call(self, action: Callable[[Controller], object]) -> Callable[[Any], None]:
        def pressed(target: Any) -> None:
            self.controller.tasks.attempt(lambda: action(self.controller))

        return pressed
