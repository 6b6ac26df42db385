"""Training samples made where the model is trained: crops, augmentation and prompts as tensor operations.

A GPU trains a light model faster than processors can read, augment and prompt for it. A data set that fits its memory
is put there once, and every step's batch is made of it there. What is drawn follows `refinesam.training.finetune.data`,
`augment` and `prompts`; the numbers drawn are others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Generator, Tensor

from refinesam.errors import DatasetError, ImageError
from refinesam.masks import decode_segmentation
from refinesam.training.finetune.augment import draw_curves
from refinesam.training.finetune.config import DataConfig, PromptConfig
from refinesam.training.finetune.data import MIN_PIXELS, Crop, Sample, choose_crop, source_probabilities
from refinesam.training.finetune.resident_prompts import first_prompts
from refinesam.training.sources.source import Source

__all__ = ["ResidentImages", "ResidentSamples", "shrunk_image"]

# Crops are read at twice the input's resolution and averaged, as resizing by area does.
OVERSAMPLING = 2
# Of a Gaussian of at most 1.8 pixels.
BLUR_RADIUS = 5
BITS = torch.arange(7, -1, -1, dtype=torch.uint8)


@dataclass(frozen=True)
class ResidentImages:
    """All annotated images of some sources.

    Attributes:
        pixels: (N, 3, C, C) uint8, each image in the upper left corner.
        masks: (M, C, C / 8) uint8, eight pixels a byte.
        sizes_hw: (N, 2).
        boxes_xywh: (M, 4), tight boxes of the objects.
        ends: (N,); image n has the objects ends[n - 1] to ends[n].
        source: (N,) number of the source that an image is of.
        damaged: images that could not be used, with the reason.
    """

    pixels: Tensor
    masks: Tensor
    sizes_hw: NDArray[np.int64]
    boxes_xywh: NDArray[np.int64]
    ends: NDArray[np.int64]
    source: NDArray[np.int64]
    damaged: tuple[str, ...]

    @classmethod
    def read(cls, sources: Sequence[Source], side: int, device: torch.device) -> ResidentImages:
        """Read every image, shrunk to a longest side of `side` where it is longer.

        Raises:
            DatasetError: there is no image with an object of at least `MIN_PIXELS`.
        """
        pixels, masks, sizes, boxes, ends, numbers, damaged = [], [], [], [], [0], [], []
        for number, source in enumerate(sources):
            for index in range(len(source)):
                try:
                    image, objects = shrunk_image(source, index, side)
                except (ImageError, DatasetError) as error:
                    damaged.append(f"{source.name(index)}: {error}".replace("\n", " "))
                    continue
                if not objects:
                    continue
                canvas = np.zeros((side, side, 3), np.uint8)
                canvas[: image.shape[0], : image.shape[1]] = image
                pixels.append(torch.from_numpy(canvas).permute(2, 0, 1).contiguous())
                for mask in objects:
                    boxes.append(cv2.boundingRect(mask))
                    full = np.zeros((side, side), np.uint8)
                    full[: mask.shape[0], : mask.shape[1]] = mask
                    masks.append(torch.from_numpy(np.packbits(full, axis=1)))
                sizes.append(image.shape[:2])
                ends.append(len(masks))
                numbers.append(number)
        if not pixels:
            raise DatasetError(f"No image has an object of {MIN_PIXELS} pixels. Check the images and their masks.")
        return cls(
            torch.stack(pixels).to(device),
            torch.stack(masks).to(device),
            np.array(sizes),
            np.array(boxes),
            np.array(ends[1:]),
            np.array(numbers),
            tuple(damaged),
        )

    def objects_of(self, image: int) -> range:
        """Return the numbers of an image's objects."""
        return range(int(self.ends[image - 1]) if image else 0, int(self.ends[image]))


def shrunk_image(source: Source, index: int, side: int) -> tuple[NDArray[np.uint8], list[NDArray[np.uint8]]]:
    """Read an image (H, W, 3) and its objects' masks (H, W) of 0 and 1, shrunk to a longest side of `side`.

    Raises:
        ImageError, DatasetError: it cannot be read.
    """
    annotated = source.read(index)
    image = annotated.pixels
    height, width = image.shape[:2]
    scale = min(1.0, side / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    masks = []
    for annotation in annotated.objects:
        mask = decode_segmentation(annotation.segmentation, height, width).astype(np.uint8)
        if scale < 1:
            mask = (cv2.resize(mask * 255, size, interpolation=cv2.INTER_AREA) > 127).astype(np.uint8)
        if mask.sum() >= MIN_PIXELS:
            masks.append(mask)
    if scale < 1:
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    return image, masks


class ResidentSamples:
    """Endless batches: a step's is always the same, so that a resumed run sees what it would have seen."""

    def __init__(
        self, images: ResidentImages, input_size: int, data: DataConfig, prompts: PromptConfig, seed: int
    ) -> None:
        """Prepare to draw.

        Args:
            images: of the sources that `data` names.
            input_size: S, side of the model's input in pixels.
            data: how sources and crops are drawn.
            prompts: how users are simulated.
            seed: of the samples.
        """
        self.images, self.input_size, self.data, self.prompts, self.seed = images, input_size, data, prompts, seed
        counts = np.bincount(images.source, minlength=len(data.sources))
        self._of_source = [np.flatnonzero(images.source == number) for number in range(len(counts))]
        self._probabilities = source_probabilities(counts.tolist(), data)

    def batches(self, steps: range, batch_size: int) -> Iterator[Sample]:
        """Give each step's batch."""
        return (self.batch(step, batch_size) for step in steps)

    @torch.no_grad()
    def batch(self, step: int, batch_size: int) -> Sample:
        """Return a step's images and prompts, on the images' device."""
        rng = np.random.default_rng((self.seed, step))
        device = self.images.pixels.device
        generator = torch.Generator(device).manual_seed(int(rng.integers(2**62)))
        chosen = [self._choose(rng) for _ in range(batch_size)]
        numbers = torch.tensor([image for image, _, _ in chosen], device=device)
        objects = torch.tensor([its for _, _, its in chosen], device=device)
        grid = self._grid([crop for _, crop, _ in chosen], rng)
        pixels = self._warp(self.images.pixels[numbers].float(), grid)
        pixels = _augment(pixels / 255, rng, generator)
        packed = self.images.masks[objects.flatten()]
        masks = ((packed.unsqueeze(-1) >> BITS.to(device)) & 1).flatten(-2).float().unsqueeze(1)
        masks = (
            self._warp(masks, grid.repeat_interleave(objects.shape[1], dim=0)).unflatten(0, objects.shape).squeeze(2)
        )
        masks = _with_visible(masks)
        points, labels = first_prompts(masks.flatten(0, 1) > 0.5, self.prompts, generator)
        return Sample(
            image=(pixels * 255).round().to(torch.uint8),
            target=F.avg_pool2d(masks, 4),
            points=points.unflatten(0, objects.shape),
            labels=labels.unflatten(0, objects.shape),
            damaged="",
        )

    def _choose(self, rng: np.random.Generator) -> tuple[int, Crop, list[int]]:
        """Draw an image, a crop of it around one of its objects, and the numbers of the objects to be prompted."""
        images = self._of_source[int(rng.choice(len(self._of_source), p=self._probabilities))]
        image = int(rng.choice(images))
        objects = rng.permutation(self.images.objects_of(image))
        boxes = self.images.boxes_xywh[objects]
        height, width = self.images.sizes_hw[image].tolist()
        crop = choose_crop(tuple(boxes[0].tolist()), height, width, self.data.zoom_probability, rng)
        x, y, w, h = boxes.T
        seen = (x < crop.x + crop.width) & (crop.x < x + w) & (y < crop.y + crop.height) & (crop.y < y + h)
        # With fewer objects than prompts, an object is prompted again in another way.
        return image, crop, np.resize(objects[seen], self.prompts.per_image).tolist()

    def _grid(self, crops: list[Crop], rng: np.random.Generator) -> Tensor:
        """Where each output pixel is read: (B, kS, kS, 2) of the canvas, mirrored and turned at random."""
        side, canvas, device = self.input_size * OVERSAMPLING, self.images.pixels.shape[-1], self.images.pixels.device
        box = torch.tensor([(c.x, c.y, c.width, c.height) for c in crops], dtype=torch.float32)
        low, size = box[:, :2], box[:, 2:]
        turned = torch.from_numpy(np.stack([_mirrored_and_turned(rng) for _ in crops])).float()
        theta = torch.cat([size[..., None] / canvas * turned, ((2 * low + size) / canvas - 1)[..., None]], dim=2)
        grid = F.affine_grid(theta.to(device), [len(crops), 1, side, side], align_corners=False)
        # Half a pixel from the crop's border the outermost pixels are read as they are.
        first, last = ((2 * edge / canvas - 1).to(device)[:, None, None] for edge in (low + 0.5, low + size - 0.5))
        return grid.clamp(first, last)

    def _warp(self, maps: Tensor, grid: Tensor) -> Tensor:
        """Read (N, C, C', C') maps at a grid: (N, C, S, S)."""
        return F.avg_pool2d(F.grid_sample(maps, grid, mode="bilinear", align_corners=False), OVERSAMPLING)


def _mirrored_and_turned(rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw as `augment.flip_and_turn`: the (2, 2) matrix from output to image coordinates."""
    matrix = np.diag([-1 if rng.random() < 0.5 else 1, 1])
    quarter = np.array([[0, 1], [-1, 0]])
    return np.linalg.matrix_power(quarter, int(rng.integers(1, 4)) if rng.random() < 0.3 else 0) @ matrix


def _with_visible(masks: Tensor) -> Tensor:
    """Put the largest of an image's masks in the place of those too small to be seen: (B, P, S, S)."""
    pixels = (masks > 0.5).sum(dim=(-2, -1))
    largest = pixels.argmax(dim=1, keepdim=True).expand_as(pixels)
    own = torch.arange(masks.shape[1], device=masks.device).expand_as(pixels)
    index = torch.where(pixels >= MIN_PIXELS, own, largest)
    return masks.gather(1, index[..., None, None].expand_as(masks))


def _augment(pixels: Tensor, rng: np.random.Generator, generator: Generator) -> Tensor:
    """Change (B, 3, S, S) colours in [0, 1] as `refinesam.training.finetune.augment.augment_colors`."""
    device, count = pixels.device, len(pixels)
    curves = torch.from_numpy(np.stack([draw_curves(rng) for _ in range(count)])).to(device).transpose(1, 2)
    levels = (pixels * 255).round().long().clamp(0, 255).flatten(2)
    pixels = curves.gather(2, levels).view_as(pixels)

    def some(share: float) -> Tensor:
        return torch.from_numpy(rng.random(count) < share).to(device)[:, None, None, None]

    luma = torch.tensor([0.299, 0.587, 0.114], device=device).view(1, 3, 1, 1)
    pixels = torch.where(some(0.15), (pixels * luma).sum(dim=1, keepdim=True).expand_as(pixels), pixels)
    order = torch.from_numpy(np.stack([rng.permutation(3) for _ in range(count)])).to(device)[..., None, None]
    pixels = torch.where(some(0.085), pixels.gather(1, order.expand_as(pixels)), pixels)
    pixels = torch.where(
        some(0.12), _blurred(pixels, torch.from_numpy(rng.uniform(0.5, 1.8, count)).to(device)), pixels
    )
    sigma = torch.from_numpy(rng.uniform(3, 15, count) / 255).to(device, pixels.dtype)[:, None, None, None]
    noise = torch.randn(pixels.shape, generator=generator, device=device) * sigma
    return torch.where(some(0.15), pixels + noise, pixels).clamp(0, 1)


def _blurred(pixels: Tensor, sigmas: Tensor) -> Tensor:
    """Blur each of (B, C, S, S) by a Gaussian of its own."""
    count, channels = pixels.shape[:2]
    offsets = torch.arange(-BLUR_RADIUS, BLUR_RADIUS + 1, device=pixels.device)
    kernels = (-(offsets**2) / (2 * sigmas[:, None] ** 2)).exp().to(pixels.dtype)
    kernels = (kernels / kernels.sum(dim=1, keepdim=True)).repeat_interleave(channels, dim=0)[:, None]
    x = F.pad(pixels, (BLUR_RADIUS,) * 4, mode="reflect").flatten(0, 1)[None]
    x = F.conv2d(x, kernels.unsqueeze(-1), groups=count * channels)
    return F.conv2d(x, kernels.unsqueeze(-2), groups=count * channels)[0].unflatten(0, (count, channels))
