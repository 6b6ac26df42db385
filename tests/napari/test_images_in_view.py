"""Stacks, time series, channels, RGB, places in the world: through the real window."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from skimage import data

from napari_gui import Gui
from refinesam_napari.geometry import FREE, Plane
from refinesam_napari.images import ImageSettings

COIN = (50, 48)


def stack_of_coins() -> NDArray[np.uint8]:
    coins = data.coins()
    return np.stack([np.roll(coins, 4 * z, axis=1) for z in range(5)])


def test_moving_through_a_stack_shows_each_slice_its_own_prompts(open_gui: Callable[..., Gui]) -> None:
    gui = open_gui(stack_of_coins())
    image, dims = gui.viewer.layers["image"], gui.viewer.dims
    dims.set_point(0, 1)
    gui.controller.view.prompts.use_points(True)
    gui.click(image, 1, COIN[0], COIN[1] + 4)
    first = gui.mask()
    dims.set_point(0, 3)
    assert not gui.controller.view.preview.layer.visible and gui.controller.predictions.current is None
    gui.click(image, 3, COIN[0], COIN[1] + 12)
    second = gui.mask()
    assert first[COIN[0], COIN[1] + 4] and second[COIN[0], COIN[1] + 12] and not np.array_equal(first, second)
    draft = gui.controller.workspace.document.draft
    assert sorted(plane.position for plane in draft) == [(1, FREE, FREE), (3, FREE, FREE)]
    dims.set_point(0, 1)
    assert np.array_equal(gui.mask(), first) and gui.controller.view.preview.layer.visible
    gui.key("N")
    labels = gui.labels()
    assert np.array_equal(labels[1] == 1, first) and np.array_equal(labels[3] == 1, second)
    assert not labels[[0, 2, 4]].any()
    gui.key("Z", "control")
    assert not gui.labels().any()


def test_a_turned_stack_is_segmented_in_the_plane_in_view(open_gui: Callable[..., Gui]) -> None:
    stack = np.ascontiguousarray(np.repeat(data.coins()[:120, None, :120], 6, axis=1))  # y, z, x
    gui = open_gui(stack)
    image = gui.viewer.layers["image"]
    gui.viewer.dims.order = (1, 2, 0)  # x runs down, y across
    gui.viewer.dims.set_point(1, 2)
    gui.viewer.reset_view()
    assert gui.controller.view.plane == Plane((2, 0), (FREE, 2, FREE))
    gui.controller.view.prompts.use_points(True)
    gui.click(image, COIN[0], 2, COIN[1])
    mask = gui.mask()
    assert mask[COIN[1], COIN[0]]
    gui.key("N")
    assert np.array_equal(gui.labels()[:, 2, :] == 1, mask.T)
    flat = open_gui(np.ascontiguousarray(stack[:, 2, :].T))
    flat.controller.view.prompts.use_points(True)
    # The very same point: a click lands within a pixel of the canvas.
    (point,) = gui.controller.workspace.document.objects[1].prompts[gui.controller.view.plane].points
    flat.controller.view.prompts.points.add([point.y - 0.5, point.x - 0.5])
    assert np.array_equal(flat.mask(), mask)


def test_channels_are_mapped_and_an_object_belongs_to_all_of_them(open_gui: Callable[..., Gui]) -> None:
    channels = np.stack([data.coins(), np.full_like(data.coins(), 30)])
    gui = open_gui(channels, axis_labels=("c", "y", "x"))
    image, workspace = gui.viewer.layers["image"], gui.controller.workspace
    assert workspace.settings == ImageSettings(channel_axis=0, channels=(0, 1))
    gui.controller.view.use_settings(ImageSettings(channel_axis=0, channels=(0,)))
    gui.controller.view.prompts.use_points(True)
    gui.viewer.dims.set_point(0, 0)
    gui.click(image, 0, *COIN)
    mask = gui.mask()
    assert mask[COIN]
    gui.viewer.dims.set_point(0, 1)  # the other channel: same object, same prompts, same mask
    assert np.array_equal(gui.mask(), mask) and gui.controller.view.preview.layer.visible
    assert gui.controller.view.prompts.points.data[:, 0].tolist() == [1]
    gui.key("N")
    assert gui.labels().shape == (1, *channels.shape[1:]) and np.array_equal(gui.labels()[0] == 1, mask)
    layer = gui.controller.workspace.objects.layer
    assert [layer.get_value((c, *COIN), world=True) for c in (0, 1)] == [1, 1]


def test_time_and_depth_by_label(open_gui: Callable[..., Gui]) -> None:
    coins = data.coins()[:100, :100]
    gui = open_gui(np.stack([np.stack([coins] * 3)] * 2), axis_labels=("t", "z", "y", "x"))
    gui.viewer.dims.set_point([0, 1], [1, 2])
    assert gui.controller.view.plane.position == (1, 2, FREE, FREE)
    assert gui.widget.stack.axis == 1
    gui.controller.view.prompts.use_points(True)
    gui.click(gui.viewer.layers["image"], 1, 2, *COIN)
    gui.mask()
    gui.key("N")
    assert np.argwhere(gui.labels().any(axis=(2, 3))).tolist() == [[1, 2]]


def test_a_layer_with_scale_translation_and_rotation_gives_the_same_mask(open_gui: Callable[..., Gui]) -> None:
    plain = open_gui(data.coins())
    plain.controller.view.prompts.use_points(True)
    plain.click(plain.viewer.layers["image"], *COIN)
    expected = plain.mask()
    placed = open_gui(data.coins(), scale=(0.5, 0.25), translate=(100, -30), rotate=20)
    image = placed.viewer.layers["image"]
    placed.viewer.reset_view()
    placed.controller.view.prompts.use_points(True)
    placed.click(image, *COIN)
    mask = placed.mask()
    assert (mask & expected).sum() / (mask | expected).sum() > 0.95  # the click lands within a canvas pixel
    rows, columns = np.nonzero(mask)
    inside = (int(np.median(rows)), int(np.median(columns)))
    world = image.data_to_world(inside)
    preview = placed.controller.view.preview.layer
    assert preview.get_value(world, world=True)
    placed.key("N")
    assert placed.controller.workspace.objects.layer.get_value(world, world=True) == 1


def test_an_rgb_image_and_what_the_model_sees_of_it(open_gui: Callable[..., Gui]) -> None:
    gui = open_gui(data.astronaut()[:300, :400])
    gui.controller.predictions.show_what_the_model_sees()
    seen = gui.viewer.layers["refinesam: what the model sees"]
    assert seen.rgb and np.array_equal(seen.data, data.astronaut()[:300, :400])
    assert seen not in gui.controller.view.images()


def test_sixteen_bits_and_what_the_model_sees_of_them(open_gui: Callable[..., Gui]) -> None:
    values = data.coins().astype(np.uint16) * 4
    values[0, 0] = 65535  # a hot pixel
    gui = open_gui(values)
    gui.controller.predictions.show_what_the_model_sees()
    seen = gui.viewer.layers["refinesam: what the model sees"].data
    assert seen.max() == 255 and seen.std() > 40
    gui.controller.view.use_settings(ImageSettings(intensity="minmax"))
    gui.controller.predictions.show_what_the_model_sees()
    assert np.median(gui.viewer.layers[-1].data) < 8  # the hot pixel darkens everything


def test_two_viewers_at_once(open_gui: Callable[..., Gui]) -> None:
    one, two = open_gui(data.coins()), open_gui(data.cell())
    one.controller.view.prompts.use_points(True)
    one.click(one.viewer.layers["image"], *COIN)
    two.controller.view.prompts.use_boxes()
    two.drag(two.viewer.layers["image"], (322, 362), (456, 496))
    first, second = one.mask(), two.mask()
    one.key("N")
    two.key("N")
    assert np.array_equal(one.labels() == 1, first) and np.array_equal(two.labels() == 1, second)


def test_switching_images_keeps_each_ones_work(open_gui: Callable[..., Gui]) -> None:
    gui = open_gui(data.coins())
    other = gui.viewer.add_image(data.cell(), name="cell")
    image = gui.viewer.layers["image"]
    gui.controller.view.choose_image(image)
    gui.controller.view.prompts.use_points(True)
    gui.click(image, *COIN)
    mask = gui.mask()
    gui.viewer.layers.selection.active = other
    gui.settle()
    assert gui.controller.workspace.image is other
    assert len(gui.controller.view.prompts.points.data) == 0 and not gui.controller.view.preview.layer.visible
    gui.viewer.layers.selection.active = image
    gui.settle()
    assert np.array_equal(gui.mask(), mask) and len(gui.controller.view.prompts.points.data) == 1
    # Renaming and moving layers changes nothing.
    image.name, gui.controller.view.prompts.points.name = "renamed", "mine"
    gui.viewer.layers.move(0, 3)
    gui.controller.view.prompts.use_points(True)
    gui.click(image, COIN[0] + 3, COIN[1])
    assert gui.mask()[COIN]


def test_removing_layers_while_working(open_gui: Callable[..., Gui]) -> None:
    gui = open_gui(data.coins())
    image = gui.viewer.layers["image"]
    mask = gui.segment(image, *COIN)
    objects = gui.controller.workspace.objects.layer
    gui.viewer.layers.remove(gui.controller.view.prompts.points)
    gui.settle()
    gui.controller.view.prompts.use_points(True)
    gui.click(image, 195, 215)
    gui.mask()
    gui.viewer.layers.remove(gui.controller.view.preview.layer)
    gui.key("N")
    gui.viewer.layers.remove(objects)
    assert not gui.controller.workspace.document.objects
    gui.viewer.layers.append(objects)
    assert np.array_equal(gui.labels() == 1, mask) and len(gui.controller.workspace.document.objects) == 2
    gui.viewer.layers.remove(image)
    gui.settle()
    assert gui.controller.workspace is None
    gui.viewer.layers.append(image)
    gui.settle()
    assert len(gui.controller.workspace.document.objects) == 2
