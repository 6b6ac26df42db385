"""Hundreds of random actions in the real viewer, each compared with a model of the state made of dicts and arrays."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from napari.layers import Image, Labels, Points
from qtpy.QtWidgets import QApplication

from napari_gui import Gui
from refinesam import Prediction, Prompt, RefinementReport
from refinesam_napari import inference
from refinesam_napari.document import PlanePrompts
from refinesam_napari.geometry import FREE, Plane

ACTIONS = 150
HW = (64, 80)
NOWHERE = np.zeros(HW, bool)
SHAPES = {"stack": (4, *HW), "far stack": (3, *HW), "flat": HW}
GREEN, RED = [46, 204, 64], [255, 65, 54]
# Nowhere is a points layer made the lowest one: with Mesa's software rendering napari 0.9.2 itself, without any plugin,
# crashes when it draws points before anything else.

# Reach of a click, in pixels, without refinement and with it.
FIRST, REFINED = 5, 7
BRUSH = 9

# A click: x, y, on the object. All prompts of a plane: clicks and a box. Prompts by index of the plane.
Click = tuple[float, float, bool]
Prompts = tuple[tuple[Click, ...], tuple[float, float, float, float] | None]
Draft = dict[int, Prompts]


# ---------------------------------------------------------------- a model that answers at once


def segmented(red: np.ndarray, clicks: tuple[Click, ...], box: Any, reach: int) -> np.ndarray:
    """Disks around positive clicks and the box, less disks around negative clicks and the image's holes."""
    y, x = np.indices(red.shape) + 0.5
    mask = np.zeros(red.shape, bool)
    if box is not None:
        x0, y0, x1, y1 = np.float32(box) + np.float32([-reach, -reach, reach, reach]) / 4
        mask |= (x > x0) & (x < x1) & (y > y0) & (y < y1)
    for positive in (True, False):
        for click_x, click_y, sign in clicks:
            if sign is positive:
                disk = np.hypot(x - np.float32(click_x), y - np.float32(click_y)) < reach
                mask = mask | disk if positive else mask & ~disk
    return mask & (red > 0)


class FakeImage:
    def __init__(self, red: np.ndarray) -> None:
        self.red = red

    def _predict(self, prompt: Prompt, reach: int, refinement: RefinementReport | None = None) -> Prediction:
        clicks = [(x, y, bool(label)) for (x, y), label in zip(prompt.points, prompt.labels, strict=True)]
        mask = segmented(self.red, tuple(clicks), prompt.box, reach)
        return Prediction(mask[None], np.float32([0.9]), np.zeros((1, 4, 4), np.float32), prompt, refinement)

    def predict(self, prompt: Prompt) -> Prediction:
        return self._predict(prompt, FIRST)

    def refine(self, first: Prediction, on_progress: Any = None) -> Prediction:
        points = np.float32([[3, 4]])
        report = RefinementReport(1, 0.5, "centre", "rule", points, 0.8, 0.9, "refined", "It is better.")
        return self._predict(first.prompt, REFINED, report)


class FakeSession:
    model = SimpleNamespace(device="arithmetic")

    def encode(self, pixels: np.ndarray, on_progress: Any = None) -> FakeImage:
        return FakeImage(pixels[..., 0].copy())


# ---------------------------------------------------------------- what is expected


@dataclass(frozen=True)
class Object:
    prompts: Draft
    planes: frozenset[int]
    # Painted into it and erased from it by hand, by plane.
    added: dict[int, np.ndarray] = field(default_factory=dict)
    erased: dict[int, np.ndarray] = field(default_factory=dict)

    def corrected(self, z: int, mask: np.ndarray) -> np.ndarray:
        return mask & ~self.erased.get(z, NOWHERE) | self.added.get(z, NOWHERE)

    def painted(self, z: int, added: np.ndarray, erased: np.ndarray) -> Object:
        now_added = self.added.get(z, NOWHERE) & ~erased | added
        now_erased = self.erased.get(z, NOWHERE) & ~added | erased
        planes = self.planes | {z} if now_added.any() else self.planes
        return Object(self.prompts, planes, {**self.added, z: now_added}, {**self.erased, z: now_erased})


@dataclass(frozen=True, eq=False)
class State:
    """All that undo brings back: never changed in place."""

    draft: Draft = field(default_factory=dict)
    editing: int | None = None
    objects: dict[int, Object] = field(default_factory=dict)
    labels: np.ndarray | None = None


@dataclass(eq=False)
class Expected:
    """What belongs to one image."""

    image: Image
    pixels: np.ndarray
    now: State = field(default_factory=State)
    done: list[tuple[str, State]] = field(default_factory=list)
    undone: list[tuple[str, State]] = field(default_factory=list)
    layer: Labels | None = None
    highest_before: int = 0
    # The labels layer that was removed, and all that belonged to it.
    removed: tuple[Labels, State, list[Any], list[Any]] | None = None

    @property
    def planes(self) -> np.ndarray:
        """The image as planes, (Z, H, W)."""
        return self.pixels.reshape(-1, *self.pixels.shape[-2:])

    @property
    def labels(self) -> np.ndarray:
        """The labels' pixels as planes, zeros where there are none yet; a copy."""
        empty = np.zeros(self.planes.shape, np.uint16)
        return empty if self.now.labels is None else self.now.labels.reshape(self.planes.shape).copy()

    def step(self, name: str, **changes: Any) -> None:
        self.done.append((name, self.now))
        self.undone.clear()
        self.now = replace(self.now, **changes)

    def edit(self, name: str, draft: Draft) -> None:
        draft = {z: prompts for z, prompts in draft.items() if prompts != ((), None)}
        if draft != self.now.draft:
            self.step(name, draft=draft)

    def undo(self) -> None:
        if self.done:
            name, before = self.done.pop()
            self.undone.append((name, self.now))
            self.now = before

    def redo(self) -> None:
        if self.undone:
            name, after = self.undone.pop()
            self.done.append((name, self.now))
            self.now = after

    def mask(self, z: int, reach: int, draft: Draft | None = None) -> np.ndarray:
        clicks, box = (self.now.draft if draft is None else draft).get(z, ((), None))
        if box is None and not any(sign for _, _, sign in clicks):
            return np.zeros(self.planes.shape[1:], bool)
        return segmented(self.planes[z], clicks, box, reach)

    def without_ghosts(self, objects: dict[int, Object], labels: np.ndarray) -> dict[int, Object]:
        """Objects that a step took the last pixel from go with it."""
        lost = set(np.unique(self.labels)) - set(np.unique(labels))
        return {key: value for key, value in objects.items() if key not in lost}

    def commit(self, reach: int, overwrite: bool, late: bool) -> bool:
        """Whether there was something to commit; a late mask that leaves nothing is found out after that."""
        now = self.now
        draft = {z: (c, box) for z, (c, box) in now.draft.items() if box is not None or any(sign for *_, sign in c)}
        if not draft:
            return False
        labels = self.labels
        object_id = now.editing or max([self.highest_before, *now.objects]) + 1
        old = now.objects.get(object_id, Object({}, frozenset()))
        for z in {*old.prompts, *draft}:
            mask = old.corrected(z, self.mask(z, reach, draft) if z in draft else NOWHERE)
            own, free = labels[z] == object_id, labels[z] == 0
            labels[z][own] = 0
            labels[z][mask & (own | free | overwrite)] = object_id
        given_up = {z for z in old.prompts.keys() - draft.keys() if not old.added.get(z, NOWHERE).any()}
        made = Object(draft, (old.planes - given_up) | draft.keys(), old.added, old.erased)
        name, objects = f"{'change' if object_id in now.objects else 'add'} object {object_id}", dict(now.objects)
        if (labels == object_id).any():
            objects = self.without_ghosts(objects, labels) | {object_id: made}
        elif not late:
            return False
        elif object_id in objects:  # It keeps the pixels that it had.
            objects[object_id], labels = made, self.labels
        self.step(name, draft={}, editing=None, objects=objects, labels=labels.reshape(self.pixels.shape))
        return True

    def delete(self, object_id: int) -> None:
        objects = {key: value for key, value in self.now.objects.items() if key != object_id}
        editing = None if self.now.editing == object_id else self.now.editing
        labels = self.labels
        labels[labels == object_id] = 0
        labels = labels.reshape(self.pixels.shape)
        self.step(f"delete object {object_id}", objects=objects, editing=editing, labels=labels)

    def paint(self, where: tuple[int, ...], object_id: int) -> None:
        labels = self.labels
        z, row, column = where if len(where) == 3 else (0, *where)
        y, x = np.indices(HW)
        labels[z][(y - row) ** 2 + (x - column) ** 2 <= (BRUSH // 2 + 0.5) ** 2] = object_id
        if (labels == self.labels).all():
            return
        objects, before = dict(self.now.objects), self.labels[z]
        for key in {*np.unique(before[before != labels[z]]).tolist(), object_id} - {0}:
            if key == object_id or key in objects:
                added, erased = (labels[z] == key) & (before != key), (before == key) & (labels[z] != key)
                objects[key] = objects.get(key, Object({}, frozenset())).painted(z, added, erased)
        objects = self.without_ghosts(objects, labels)
        self.step("paint", objects=objects, labels=labels.reshape(self.pixels.shape))

    def remove_labels(self) -> None:
        assert self.layer is not None
        self.removed = self.layer, self.now, self.done, self.undone
        self.now, self.done, self.undone = State(draft=self.now.draft), [], []
        self.layer, self.highest_before = None, 0

    def return_labels(self) -> None:
        assert self.removed is not None
        draft = self.now.draft
        self.layer, self.now, self.done, self.undone = self.removed
        self.removed = None
        self.highest_before = int(self.labels.max())
        if draft != self.now.draft:
            self.step("keep prompts", draft=draft, editing=None)

    def begin_anew(self, pixels: np.ndarray) -> None:
        self.__init__(self.image, pixels)  # type: ignore[misc]


# ---------------------------------------------------------------- the viewer


class Session:
    """Does the same in the viewer and in what is expected of it, and compares."""

    def __init__(self, gui: Gui, seed: int) -> None:
        self.gui, self.viewer, self.controller = gui, gui.viewer, gui.controller
        self.random, self.noise = random.Random(seed), np.random.default_rng(seed)
        self.all = [Expected(layer, layer.data) for layer in gui.viewer.layers if layer.name in SHAPES]
        self.refine, self.show_first, self.overwrite = True, False, False
        self.foreign = 0
        self.errors: list[str] = []
        self.log: list[str] = []
        self.controller.tasks.told.connect(lambda text, error: self.errors.append(text) if error else None)
        # As fast as possible: how long it waits for more is no matter here.
        self.controller.predictions.engine._min_interval = 0.0
        self.controller.predictions._settled.setInterval(0)

    @property
    def image(self) -> Expected | None:
        """What is expected of the image in hand."""
        workspace = self.controller.workspace
        return next((item for item in self.all if workspace is not None and item.image is workspace.image), None)

    @property
    def reach(self) -> int:
        return REFINED if self.refine and not self.show_first else FIRST

    def z(self, item: Expected) -> int:
        """Index of the plane of an image that is in view, the nearest one if none is."""
        if item.pixels.ndim == 2:
            return 0
        return int(np.clip(np.rint(item.image.world_to_data(self.viewer.dims.point)[0]), 0, len(item.planes) - 1))

    def settle(self) -> None:
        """Wait until nothing is computed and the answer to the prompts in view, if any, is there."""

        def settled() -> bool:
            item = self.image if self.viewer.dims.ndisplay == 2 else None
            asked = item is not None and (item.mask(self.z(item), FIRST) | item.mask(self.z(item), REFINED)).any()
            return not self.controller.busy and (not asked or self.controller.predictions.is_complete)

        for _ in range(3):  # what is put off, and what that puts off
            QApplication.processEvents()
        self.gui.until(settled)
        QApplication.processEvents()

    def coordinate(self, low: int = 2, high: int = 60) -> float:
        return self.random.randint(4 * low, 4 * high) / 4

    def plane(self, item: Expected, z: int) -> Plane:
        return Plane((0, 1), (FREE, FREE)) if item.pixels.ndim == 2 else Plane((1, 2), (z, FREE, FREE))

    # -- prompts ----------------------------------------------------------------------------------------------------

    def clicks_at(self, item: Expected) -> list[tuple[int, int]]:
        """Of each point of the layer, in its order: plane, and the how-manieth click in it."""
        counts: dict[int, int] = {}
        found = []
        for data in self.controller.view.prompts.points.data:
            z = 0 if item.pixels.ndim == 2 else int(data[0])
            found.append((z, counts.setdefault(z, 0)))
            counts[z] += 1
        return found

    def data(self, item: Expected, x: float, y: float) -> list[float]:
        """Where in the layers the viewer stands, at a row and column."""
        depth = item.image.world_to_data(self.viewer.dims.point)[:-2]
        return [*depth, y, x]

    def add_point(self, item: Expected) -> None:
        sign, x, y = self.random.random() < 0.7, self.coordinate(high=75), self.coordinate()
        self.controller.view.prompts.use_points(sign)
        self.controller.view.prompts.points.add(self.data(item, x, y))
        clicks, box = item.now.draft.get(self.z(item), ((), None))
        item.edit("add point", {**item.now.draft, self.z(item): ((*clicks, (x + 0.5, y + 0.5, sign)), box)})

    def click(self, item: Expected) -> None:
        """As `add_point`, by mouse; with Alt the click is negative."""
        alt = self.random.random() < 0.4
        self.controller.view.prompts.use_points(True)
        self.viewer.reset_view()
        QApplication.processEvents()
        x, y = self.coordinate(high=75), self.coordinate()
        self.gui.click(item.image, *self.data(item, x, y), modifiers="alt" if alt else "")
        column, row = self.controller.view.prompts.points.data[-1][[-1, -2]].tolist()
        assert abs(column - x) < 1 and abs(row - y) < 1
        clicks, box = item.now.draft.get(self.z(item), ((), None))
        item.edit("add point", {**item.now.draft, self.z(item): ((*clicks, (column + 0.5, row + 0.5, not alt)), box)})

    def change_points(self, item: Expected, name: str, change: Callable[[list[int]], Callable[[Click], Any]]) -> None:
        places = self.clicks_at(item)
        if not places:
            return
        chosen = sorted(self.random.sample(range(len(places)), self.random.randint(1, min(3, len(places)))))
        changed, draft = change(chosen), dict(item.now.draft)
        for z in {places[index][0] for index in chosen}:
            which = {places[index][1] for index in chosen if places[index][0] == z}
            clicks = [changed(click) if k in which else click for k, click in enumerate(draft[z][0])]
            draft[z] = tuple(click for click in clicks if click is not None), draft[z][1]
        item.edit(name, draft)

    def move_points(self, item: Expected) -> None:
        right, down = self.random.choice([-3.25, 2.5]), self.random.choice([-1.75, 4.0])

        def move(chosen: list[int]) -> Any:
            data = self.controller.view.prompts.points.data.copy()
            data[chosen, -1] += right
            data[chosen, -2] += down
            self.controller.view.prompts.points.data = data
            return lambda click: (click[0] + right, click[1] + down, click[2])

        inside = all(
            5 < d < s - 5
            for data in self.controller.view.prompts.points.data
            for d, s in zip(data[-2:], HW, strict=True)
        )
        if inside:
            self.change_points(item, "move point", move)

    def turn_points(self, item: Expected) -> None:
        def turn(chosen: list[int]) -> Any:
            layer = self.controller.view.prompts.points
            self.viewer.layers.selection.active = layer
            layer.selected_data = set(chosen)
            assert self.controller.view.prompts.toggle_selected()
            return lambda click: (click[0], click[1], not click[2])

        self.change_points(item, "turn point", turn)

    def remove_points(self, item: Expected) -> None:
        def remove(chosen: list[int]) -> Any:
            self.controller.view.prompts.points.selected_data = set(chosen)
            self.controller.view.prompts.points.remove_selected()
            return lambda click: None

        self.change_points(item, "remove point", remove)

    def add_box(self, item: Expected) -> None:
        x0, y0 = self.coordinate(high=60), self.coordinate(high=45)
        x1, y1 = x0 + self.coordinate(3, 15), y0 + self.coordinate(3, 15)
        if tiny := self.random.random() < 0.2:
            x1 = x0 + 0.5  # a click without a drag
        corners = np.array([self.data(item, x, y) for x, y in ((x0, y0), (x1, y0), (x1, y1), (x0, y1))])
        self.controller.view.prompts.use_boxes()
        self.controller.view.prompts.boxes.add_rectangles(corners)
        if not tiny:
            clicks, _ = item.now.draft.get(self.z(item), ((), None))
            box = (x0 + 0.5, y0 + 0.5, x1 + 0.5, y1 + 0.5)
            item.edit("add box", {**item.now.draft, self.z(item): (clicks, box)})

    def change_box(self, item: Expected) -> None:
        layer = self.controller.view.prompts.boxes
        if not len(layer.data):
            return
        index = self.random.randrange(len(layer.data))
        z = 0 if item.pixels.ndim == 2 else int(layer.data[index][0, 0])
        clicks, box = item.now.draft[z]
        if self.random.random() < 0.5:
            layer.selected_data = {index}
            layer.remove_selected()
            item.edit("remove box", {**item.now.draft, z: (clicks, None)})
        else:
            data = [corners.copy() for corners in layer.data]
            data[index][:, -1] += 1.25
            layer.data = data
            assert box is not None
            item.edit("move box", {**item.now.draft, z: (clicks, (box[0] + 1.25, box[1], box[2] + 1.25, box[3]))})

    def discard(self, item: Expected) -> None:
        self.controller.discard()
        if item.now.draft or item.now.editing is not None:
            item.step("drop prompts", draft={}, editing=None)

    # -- objects ----------------------------------------------------------------------------------------------------

    def commit(self, item: Expected) -> None:
        workspace = self.controller.workspace
        late = any(workspace.prediction_for(plane, self.refine) is None for plane in workspace.document.draft)
        assert self.controller.commit() is item.commit(self.reach, self.overwrite, late)
        if item.layer is None and workspace.objects is not None:
            item.layer = workspace.objects.layer

    def commit_at_once(self, item: Expected) -> None:
        """Before the answer is there; and then on before the mask is."""
        self.add_point(item)
        self.commit(item)
        for then in self.random.choice(
            [[], ["undo"], ["undo", "redo"], ["delete"], ["delete", "undo"], ["commit again"]]
        ):
            object_id = max(item.now.objects, default=0)
            if then == "undo":
                self.undo(item)
            elif then == "redo":
                self.redo(item)
            elif then == "delete" and object_id:
                self.delete(item, object_id)
            elif then == "commit again" and object_id:
                self.edit(item, object_id)
                self.add_point(item)
                self.commit(item)

    def edit(self, item: Expected, object_id: int | None = None) -> None:
        if not item.now.objects:
            return
        object_id = object_id or self.random.choice(sorted(item.now.objects))
        self.controller.edit_object(object_id)
        chosen = item.now.objects[object_id]
        item.step(f"edit object {object_id}", draft=chosen.prompts, editing=object_id)
        assert self.z(item) in (chosen.prompts or chosen.planes or {self.z(item)})

    def delete(self, item: Expected, object_id: int | None = None) -> None:
        if item.now.objects:
            object_id = object_id or self.random.choice(sorted(item.now.objects))
            self.controller.delete(object_id)
            item.delete(object_id)

    def undo(self, item: Expected) -> None:
        self.controller.undo()
        item.undo()

    def redo(self, item: Expected) -> None:
        self.controller.redo()
        item.redo()

    def undo_much(self, item: Expected) -> None:
        for _ in range(self.random.randint(2, 8)):
            self.undo(item)
        for _ in range(self.random.randint(0, 8)):
            self.redo(item)

    def paint(self, item: Expected) -> None:
        """In the labels of any image, whichever is in hand."""
        item = self.random.choice(self.all)
        layer = item.layer
        if layer is None:
            return
        where = [round(value) for value in layer.world_to_data(self.viewer.dims.point)[:-2]]
        if any(not 0 <= index < size for index, size in zip(where, layer.data.shape, strict=False)):
            return
        where += [self.random.randrange(HW[0]), self.random.randrange(HW[1])]
        object_id = self.random.choice([0, *item.now.objects, max(item.now.objects, default=0) + 2])
        layer.brush_size = BRUSH
        layer.paint(where, object_id)
        item.paint(tuple(where), object_id)

    # -- layers and view --------------------------------------------------------------------------------------------

    def go(self, item: Expected) -> None:
        if self.viewer.dims.ndim == 3:
            self.viewer.dims.set_point(0, self.random.randint(0, 4))

    def look_in_3d(self, item: Expected) -> None:
        self.viewer.dims.ndisplay = 3
        QApplication.processEvents()
        if self.random.random() < 0.3:
            self.undo(item)
        if self.random.random() < 0.3:
            self.choose_image(item)
        self.viewer.dims.ndisplay = 2

    def turn(self, item: Expected) -> None:
        self.viewer.dims.transpose()
        QApplication.processEvents()
        self.viewer.dims.transpose()

    def choose_image(self, item: Expected) -> None:
        there = [item.image for item in self.all if item.image in self.viewer.layers]
        image = self.random.choice(there)
        if self.random.random() < 0.5:
            self.controller.view.choose_image(image)
        elif self.viewer.layers.selection.active is not image:
            self.viewer.layers.selection.active = image
        else:
            return
        self.settle()
        assert self.controller.workspace.image is image

    def remove_image(self, item: Expected) -> None:
        item = self.random.choice(self.all)
        others = [layer for layer in self.viewer.layers if layer is not item.image]
        if item.image in self.viewer.layers and not isinstance(others[0], Points):
            self.viewer.layers.remove(item.image)

    def return_image(self) -> None:
        gone = [item.image for item in self.all if item.image not in self.viewer.layers]
        if gone:
            image = self.random.choice(gone)
            self.viewer.add_layer(image)
            self.settle()
            assert self.controller.workspace.image is image

    def remove_labels(self, item: Expected) -> None:
        item = self.random.choice(self.all)
        if item.layer is not None:
            if item.removed is not None and item.removed[0] in self.viewer.layers:
                return
            self.viewer.layers.remove(item.layer)
            item.remove_labels()

    def return_labels(self, item: Expected) -> None:
        item = next((item for item in self.all if item.removed is not None), item)
        if item.removed is None:
            return
        layer = item.removed[0]
        self.viewer.add_layer(layer)
        if item.layer is None:
            item.return_labels()
        else:  # Others took its place: it is a layer like any other.
            item.removed = None
            self.viewer.layers.remove(layer)

    def remove_prompt_layer(self, item: Expected) -> None:
        prompts = self.controller.view.prompts
        layer = self.random.choice([prompts.points, prompts.boxes])
        of_points = layer is prompts.points
        # Else napari selects a neighbour, and if that is an image, it is the one in hand from then on.
        self.viewer.layers.selection.active = item.image
        self.viewer.layers.remove(layer)
        if self.random.random() < 0.3:
            self.viewer.add_layer(layer)  # before the plugin could make a new one
            return
        draft = {z: ((), box) if of_points else (clicks, None) for z, (clicks, box) in item.now.draft.items()}
        item.edit("remove layer of prompts", draft)
        self.settle()
        if self.random.random() < 0.5:
            self.viewer.add_layer(layer)  # too late: it is a layer like any other
            self.settle()
            self.compare(layers=False)
            if of_points:
                layer.add(np.zeros(layer.ndim))
            self.viewer.layers.remove(layer)

    def rename(self, item: Expected) -> None:
        layer = self.random.choice(list(self.viewer.layers))
        layer.name = self.random.choice(["refinesam: points", "refinesam: preview", "stack objects", "x"])

    def reorder(self, item: Expected) -> None:
        layers = self.viewer.layers
        old, new = self.random.randrange(len(layers)), self.random.randrange(len(layers))
        order = list(layers)
        order.insert(new, order.pop(old))
        if not isinstance(order[0], Points):
            layers.move(old, new + (new > old))
            assert list(layers) == order

    def swap_pixels(self, item: Expected) -> None:
        item = self.random.choice(self.all)
        if item.image not in self.viewer.layers:
            return
        shape = item.pixels.shape
        if other := self.random.random() < 0.3:
            shape = HW if len(shape) == 3 and self.random.random() < 0.3 else (self.random.choice([2, 5]), *HW)
            other = shape != item.pixels.shape
        pixels = some_pixels(self.noise, shape)
        item.image.data = pixels
        if other:
            item.begin_anew(pixels)
        else:
            item.pixels = pixels

    def use_options(self, item: Expected) -> None:
        panel, which = self.gui.widget.prompt_panel, self.random.randrange(3)
        if which == 0:
            self.refine = not self.refine
            panel.refine.value = self.refine
        elif which == 1:
            self.show_first = not self.show_first
            panel.first.value = self.show_first
        else:
            self.overwrite = not self.overwrite
            self.gui.widget.objects_panel.overwrite.value = self.overwrite

    # -- one action -------------------------------------------------------------------------------------------------

    WEIGHTS = {
        add_point: 14, click: 3, move_points: 4, turn_points: 3, remove_points: 3, add_box: 6, change_box: 4,
        discard: 1, commit: 8, commit_at_once: 4, edit: 4, delete: 2, undo: 8, redo: 6, undo_much: 2, paint: 6, go: 6,
        look_in_3d: 1, turn: 1, choose_image: 4, remove_image: 1, remove_labels: 1, return_labels: 2,
        remove_prompt_layer: 2, rename: 2, reorder: 2, swap_pixels: 2, use_options: 4,
    }  # fmt: skip

    def act(self) -> None:
        item = self.image
        if item is None or (self.random.random() < 0.05):
            self.log.append("return_image")
            self.return_image()
        else:
            (action,) = self.random.choices(list(self.WEIGHTS), list(self.WEIGHTS.values()))
            self.log.append(action.__name__)
            action(self, item)
        self.settle()
        self.compare()

    # -- comparing --------------------------------------------------------------------------------------------------

    def compare(self, layers: bool = True) -> None:
        assert not self.errors and not self.controller.busy
        for other in self.all:
            if other.layer is not None:
                assert np.array_equal(other.layer.data, other.labels.reshape(other.pixels.shape))
        item, workspace = self.image, self.controller.workspace
        images = [item.image for item in self.all if item.image in self.viewer.layers]
        if item is None:
            assert workspace is None and not images
            return
        assert workspace.image in images
        self.compare_document(item)
        self.compare_prompt_layers(item)
        self.compare_preview(item)
        self.compare_widget(item)
        if layers:
            self.compare_layers(images)

    def compare_document(self, item: Expected) -> None:
        document, now = self.controller.workspace.document, item.now
        assert self.controller.view.plane == self.plane(item, self.z(item))
        assert self.plain(item, document.draft) == now.draft
        assert document.editing == now.editing
        assert sorted(document.objects) == sorted(now.objects)
        for object_id, found in document.objects.items():
            expected = now.objects[object_id]
            assert self.plain(item, found.prompts) == expected.prompts
            assert set(found.planes) == {self.plane(item, z) for z in expected.planes}
        history = self.controller.workspace.history
        assert history.undo_name == (item.done[-1][0] if item.done else None)
        assert history.redo_name == (item.undone[-1][0] if item.undone else None)
        objects = self.controller.workspace.objects
        assert (objects and objects.layer) is item.layer
        for (object_id, plane), mask in self.controller.workspace.masks().items():
            assert np.array_equal(mask.on(HW), item.labels[max(plane.position[0], 0)] == object_id)

    def plain(self, item: Expected, prompts: Any) -> Draft:
        found: Draft = {}
        for plane, asked in prompts.items():
            assert isinstance(asked, PlanePrompts)
            z = max(plane.position[0], 0)
            assert plane == self.plane(item, z)
            found[z] = tuple((p.x, p.y, p.positive) for p in asked.points), asked.box
        return found

    def compare_prompt_layers(self, item: Expected) -> None:
        points, boxes = self.controller.view.prompts.points, self.controller.view.prompts.boxes
        signs, colours = points.features["positive"], (points.face_color[:, :3] * 255).round().astype(int).tolist()
        clicks = []
        for data, sign, colour in zip(points.data.tolist(), signs, colours, strict=True):
            assert colour == (GREEN if sign else RED)
            clicks.append((*data[:-2], data[-1] + 0.5, data[-2] + 0.5, bool(sign)))
        rectangles = []
        for corners in boxes.data:
            (y0, x0), (y1, x1) = corners[:, -2:].min(0), corners[:, -2:].max(0)
            rectangles.append((*corners[0][:-2], x0 + 0.5, y0 + 0.5, x1 + 0.5, y1 + 0.5))
        depth = {z: () if item.pixels.ndim == 2 else (z,) for z in item.now.draft}
        drafted = item.now.draft.items()
        assert sorted(clicks) == sorted((*depth[z], *click) for z, (asked, _) in drafted for click in asked)
        assert sorted(rectangles) == sorted((*depth[z], *box) for z, (_, box) in drafted if box is not None)

    def compare_preview(self, item: Expected) -> None:
        layer, z = self.controller.view.preview.layer, self.z(item)
        edited = item.now.objects.get(item.now.editing)
        expected = item.mask(z, self.reach)
        if z in item.now.draft and edited is not None and self.controller.predictions.is_complete:
            expected = edited.corrected(z, expected)
        if not expected.any():
            assert layer is None or layer not in self.viewer.layers or not layer.visible
            return
        assert layer in self.viewer.layers and layer.visible
        corner = np.rint(item.image.world_to_data(layer.data_to_world(np.zeros(layer.ndim)))).astype(int)
        if item.pixels.ndim == 3:
            assert corner[0] == z
        shown, (y, x) = np.zeros(HW, bool), corner[-2:]
        patch = np.asarray(layer.data).reshape(layer.data.shape[-2:]) > 0
        shown[y : y + patch.shape[0], x : x + patch.shape[1]] = patch
        assert np.array_equal(shown, expected)

    def compare_widget(self, item: Expected) -> None:
        panel = self.gui.widget.objects_panel
        assert panel.undo.text == (f"Undo: {item.done[-1][0]}" if item.done else "Undo")
        assert panel.redo.text == (f"Redo: {item.undone[-1][0]}" if item.undone else "Redo")
        rows = [panel.list.item(row).text() for row in range(panel.list.count())]
        assert [int(row.split(":")[0]) for row in rows] == sorted(item.now.objects)
        assert [row.endswith("(editing)") for row in rows] == [
            key == item.now.editing for key in sorted(item.now.objects)
        ]

    def compare_layers(self, images: list[Image]) -> None:
        """Nothing in the list of layers but what is known, and each once."""
        controller = self.controller
        known = [*images, controller.view.prompts.points, controller.view.prompts.boxes]
        known += [
            layer for layer in (controller.view.preview.layer, controller.view.preview.amr_points) if layer is not None
        ]
        labels = [layer for layer in self.viewer.layers if isinstance(layer, Labels)]
        assert all(item.layer in labels for item in self.all if item.layer is not None)
        others = [layer for layer in self.viewer.layers if layer not in labels]
        assert sorted(map(id, others)) == sorted(id(layer) for layer in known if layer in self.viewer.layers)
        assert controller.view.prompts.points in others and controller.view.prompts.boxes in others


def some_pixels(noise: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Gray values with holes of zero."""
    pixels = noise.integers(1, 255, shape, np.uint8)
    pixels[noise.random(shape) < 0.1] = 0
    return pixels


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_random_actions(open_gui: Callable[..., Gui], monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setitem(inference.sessions._sessions, inference.Model(), FakeSession())
    gui = open_gui(size=(900, 700))
    noise = np.random.default_rng(seed)
    for name, shape in SHAPES.items():
        place = {"scale": (1, 2, 2), "translate": (1, 0, 0)} if name == "far stack" else {}
        gui.viewer.add_image(some_pixels(noise, shape), name=name, **place)
    session = Session(gui, seed)
    session.settle()
    session.compare()
    for _ in range(ACTIONS):
        try:
            session.act()
        except BaseException:
            print(f"seed {seed}, actions: {' '.join(session.log)}")
            raise


def test_prompts_and_objects_while_the_viewer_stands_outside_the_image(
    open_gui: Callable[..., Gui], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(inference.sessions._sessions, inference.Model(), FakeSession())
    gui, noise = open_gui(size=(900, 700)), np.random.default_rng(0)
    for name, shape in {"stack": (5, *HW), "far stack": (2, *HW)}.items():
        gui.viewer.add_image(some_pixels(noise, shape), name=name)
    session = Session(gui, seed=0)
    item = session.all[1]
    gui.controller.view.choose_image(item.image)
    for where in (0, 4, 3, 0):
        gui.viewer.dims.set_point(0, where)
        for step in (session.add_box, session.commit, session.undo, session.redo):
            step(item)
            session.settle()
            session.compare()
    assert item.labels[1].any()  # the plane next to where the viewer stands
