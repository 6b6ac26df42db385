from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from refinesam.models.build import normalise
from refinesam.models.config import PIXEL_MEAN, PIXEL_STD, ModelConfig, config_named
from refinesam.models.frames import MASK_LOGIT, Frame

VARIANTS = ["efficientsam_ti", "sam_vit_b", "hybrid_ti"]
# Landscape, portrait, square, smaller than any input, odd, thinner than a low-resolution pixel.
SIZES = [(480, 640), (1500, 700), (256, 256), (40, 30), (333, 517), (3, 2000)]


def small(name: str, input_size: int = 256) -> ModelConfig:
    variant = config_named(name)
    return ModelConfig(name, variant.family, variant.width, variant.depth, variant.heads, input_size=input_size)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 10_000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def denormalised(pixels: torch.Tensor) -> np.ndarray:
    return (pixels.permute(1, 2, 0) * torch.tensor(PIXEL_STD) + torch.tensor(PIXEL_MEAN)).numpy()


@pytest.mark.parametrize("image_hw", SIZES)
@pytest.mark.parametrize("name", VARIANTS)
def test_shapes_there_and_back(name: str, image_hw: tuple[int, int]) -> None:
    frame = Frame.of(small(name), image_hw)
    pixels = frame.resize(noise(*image_hw))
    assert pixels.shape == (3, 256, 256) and pixels.dtype == torch.float32
    masks = frame.upsample(torch.randn(3, 64, 64, dtype=torch.float16))
    assert masks.shape == (3, *image_hw) and masks.dtype == torch.float32
    logits = frame.from_mask(np.ones(image_hw, np.bool_))
    assert logits.shape == (64, 64) and logits.dtype == np.float32


@pytest.mark.parametrize("image_hw", SIZES)
@pytest.mark.parametrize("name", VARIANTS)
def test_the_corners_of_the_image_are_the_corners_of_its_content(name: str, image_hw: tuple[int, int]) -> None:
    frame = Frame.of(small(name), image_hw)
    height, width = image_hw
    content_height, content_width = frame.content_hw
    corners = frame.to_input([[0, 0], [width, height]])
    assert corners.dtype == np.float32
    assert corners.tolist() == [[0, 0], [content_width, content_height]]
    assert max(frame.content_hw) == 256


@pytest.mark.parametrize(
    ("image_hw", "content_hw"),
    [((480, 640), (768, 1024)), ((640, 480), (1024, 768)), ((333, 517), (660, 1024)), ((3, 2000), (2, 1024))],
)
def test_sam_keeps_the_aspect(image_hw: tuple[int, int], content_hw: tuple[int, int]) -> None:
    assert Frame.of(config_named("sam_vit_b"), image_hw).content_hw == content_hw


def test_a_line_of_pixels_is_not_lost_in_sams_frame() -> None:
    assert Frame.of(small("sam_vit_b"), (1, 3000)).resize(noise(1, 3000)).shape == (3, 256, 256)


def test_efficientsam_is_stretched_without_antialiasing() -> None:
    image = noise(480, 640)
    unit = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    stretched = F.interpolate(unit, (256, 256), mode="bilinear", align_corners=False)[0]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (stretched - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    torch.testing.assert_close(Frame.of(small("efficientsam_ti"), (480, 640)).resize(image), expected)


@pytest.mark.parametrize("image_hw", [(480, 640), (640, 480), (40, 30)])
def test_sam_is_resized_by_pil_and_padded_with_zeros_after_normalisation(image_hw: tuple[int, int]) -> None:
    image = noise(*image_hw)
    frame = Frame.of(small("sam_vit_b"), image_hw)
    pixels = frame.resize(image)
    height, width = frame.content_hw
    expected = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(denormalised(pixels)[:height, :width], expected, atol=1e-3)
    assert pixels[:, height:].count_nonzero() == 0 and pixels[:, :, width:].count_nonzero() == 0


@pytest.mark.parametrize(
    ("image_hw", "method"),
    [((480, 640), cv2.INTER_AREA), ((100, 900), cv2.INTER_AREA), ((40, 30), cv2.INTER_LINEAR)],
)
def test_the_hybrid_is_stretched_as_in_training(image_hw: tuple[int, int], method: int) -> None:
    image = noise(*image_hw)
    expected = cv2.resize(image, (256, 256), interpolation=method)
    pixels = Frame.of(small("hybrid_ti"), image_hw).resize(image)
    torch.testing.assert_close(pixels, normalise(torch.from_numpy(expected).permute(2, 0, 1)))


@pytest.mark.parametrize("name", VARIANTS)
def test_any_memory_layout_is_taken(name: str) -> None:
    image = noise(50, 70)
    frame = Frame.of(small(name), (50, 70))
    expected = frame.resize(image)
    flipped = np.ascontiguousarray(image[:, ::-1])[:, ::-1]
    frozen = image.copy()
    frozen.flags.writeable = False
    before = image.copy()
    for same in (flipped, frozen, np.asfortranarray(image)):
        torch.testing.assert_close(frame.resize(same), expected)
    assert (image == before).all()


def test_efficientsam_returns_bicubically_and_the_hybrid_bilinearly() -> None:
    logits = torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(0))
    for name, mode in (("efficientsam_ti", "bicubic"), ("hybrid_ti", "bilinear")):
        expected = F.interpolate(logits[None], (120, 90), mode=mode, align_corners=False)[0]
        torch.testing.assert_close(Frame.of(small(name), (120, 90)).upsample(logits), expected)


@pytest.mark.parametrize("image_hw", [(120, 90), (1, 1), (1, 300), (64, 64), (32, 32), (128, 128), (1000, 700)])
@pytest.mark.parametrize("name", VARIANTS)
def test_masks_are_where_upsampled_logits_are_positive(name: str, image_hw: tuple[int, int]) -> None:
    frame = Frame.of(small(name), image_hw)
    logits = torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(0))
    upsampled = frame.upsample(logits).numpy()
    masks = frame.masks(logits.numpy())
    assert (masks.dtype, masks.shape) == (np.bool_, (3, *image_hw))
    # On the outline itself two ways of rounding may disagree.
    sure = np.abs(upsampled) > 1e-5
    assert (masks == (upsampled > 0))[sure].all()
    assert sure.mean() > 0.999


def test_sam_cuts_the_padding_off() -> None:
    logits = torch.full((1, 64, 64), -5.0)
    # A 100 x 200 image fills the upper half.
    logits[:, :32] = torch.linspace(1, 2, 64)
    masks = Frame.of(small("sam_vit_b"), (100, 200)).upsample(logits)
    assert masks.shape == (1, 100, 200)
    inner = masks[0, :90]
    assert inner.min() >= 1 and inner.max() <= 2
    torch.testing.assert_close(inner, inner[:1].expand_as(inner))
    assert inner[0].diff().min() >= 0


@pytest.mark.parametrize("image_hw", [(480, 640), (640, 480), (300, 300)])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_mask_prompt_comes_back_as_the_mask(name: str, image_hw: tuple[int, int]) -> None:
    y, x = np.mgrid[: image_hw[0], : image_hw[1]]
    mask = (x - 150) ** 2 + (y - 140) ** 2 < 90**2
    frame = Frame.of(small(name), image_hw)
    logits = frame.from_mask(mask)
    assert np.abs(logits).max() <= MASK_LOGIT and logits.max() == MASK_LOGIT and logits.min() == -MASK_LOGIT
    again = frame.upsample(torch.from_numpy(logits)[None])[0].numpy() > 0
    assert (again & mask).sum() / (again | mask).sum() > 0.97


def test_a_mask_prompts_logits_follow_the_coverage() -> None:
    mask = np.zeros((256, 256), np.bool_)
    mask[4:8, 4:6] = True
    logits = Frame.of(small("hybrid_ti"), (256, 256)).from_mask(mask)
    assert logits[1, 1] == 0
    mask[4:8, 4:7] = True
    assert Frame.of(small("hybrid_ti"), (256, 256)).from_mask(mask)[1, 1] == MASK_LOGIT / 2


def test_sams_padding_is_not_part_of_a_mask_prompt() -> None:
    logits = Frame.of(small("sam_vit_b"), (100, 200)).from_mask(np.ones((100, 200), np.bool_))
    assert (logits[:32] == MASK_LOGIT).all() and (logits[32:] == -MASK_LOGIT).all()
