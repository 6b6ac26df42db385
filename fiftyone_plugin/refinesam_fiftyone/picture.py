"""The picture that explains one object: both masks, where they differ, the prompt and AMR's points, side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from refinesam import Prompt

__all__ = ["COLOURS", "Mask", "ComparisonPicture"]

Mask = NDArray[np.bool_]
Colour = tuple[int, int, int]

# RGB; distinct for colour-blind readers (Okabe and Ito).
COLOURS: Final[dict[str, Colour]] = {
    "baseline": (86, 180, 233),
    "amr": (230, 159, 0),
    "truth": (0, 200, 130),
    "prompt": (255, 255, 255),
    "points": (240, 80, 200),
}
# Width of one of the pictures, and the frame around the object as a part of its size.
TILE: Final = 300
MARGIN: Final = 0.35
CAPTION: Final = 36
GAP: Final = 6


@dataclass(frozen=True, eq=False)
class ComparisonPicture:
    """What is drawn; masks are (H, W) bool in the image's frame, points pixel (x, y)."""

    image: NDArray[np.uint8]
    baseline: Mask
    amr: Mask
    truth: Mask | None
    prompt: Prompt | None
    points: NDArray[np.float64]

    def draw(self) -> NDArray[np.uint8]:
        """Return the object side by side: first mask, after refinement, what differs, ground truth."""
        window = self._window()
        tiles = [
            self._tile("First mask", window, {"baseline": self.baseline}, prompt=True),
            self._tile("After refinement", window, {"amr": self.amr}, prompt=True, points=True),
            self._tile(
                "Only one of both",
                window,
                {"baseline": self.baseline & ~self.amr, "amr": self.amr & ~self.baseline},
                opacity=0.75,
            ),
        ]
        if self.truth is not None:
            tiles.append(self._tile("Ground truth", window, {"truth": self.truth}))
        height = max(tile.shape[0] for tile in tiles)
        canvas = np.full((height, len(tiles) * (TILE + GAP) - GAP, 3), 38, np.uint8)
        for index, tile in enumerate(tiles):
            canvas[: tile.shape[0], index * (TILE + GAP) : index * (TILE + GAP) + TILE] = tile
        return canvas

    def _window(self) -> tuple[int, int, int, int]:
        """Return top, bottom, left, right of what is shown: everything that is drawn, and a margin."""
        rows, columns = self.image.shape[:2]
        shown = self.baseline | self.amr if self.truth is None else self.baseline | self.amr | self.truth
        ys, xs = (list(where) for where in np.nonzero(shown))
        if self.prompt is not None and self.prompt.box is not None:
            left, top, right, bottom = self.prompt.box
            xs, ys = [*xs, left, right - 1], [*ys, top, bottom - 1]
        clicks = self._clicks()[0]
        xs, ys = [*xs, *clicks[:, 0], *self.points[:, 0]], [*ys, *clicks[:, 1], *self.points[:, 1]]
        if not xs:
            return 0, rows, 0, columns
        margin = max(4.0, MARGIN * max(max(ys) - min(ys), max(xs) - min(xs)))
        top, bottom = int(max(0, min(ys) - margin)), int(min(rows, max(ys) + margin + 2))
        left, right = int(max(0, min(xs) - margin)), int(min(columns, max(xs) + margin + 2))
        return top, bottom, left, right

    def _clicks(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        if self.prompt is None:
            return np.empty((0, 2)), np.empty(0, np.int64)
        return np.asarray(self.prompt.points, np.float64).reshape(-1, 2), np.asarray(
            self.prompt.labels, np.int64
        ).reshape(-1)

    def _tile(
        self,
        caption: str,
        window: tuple[int, int, int, int],
        masks: dict[str, Mask],
        *,
        opacity: float = 0.35,
        prompt: bool = False,
        points: bool = False,
    ) -> NDArray[np.uint8]:
        top, bottom, left, right = window
        scale = TILE / max(bottom - top, right - left)
        size = max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))
        crop = cv2.resize(self.image[top:bottom, left:right], size, interpolation=cv2.INTER_AREA if scale < 1 else 0)
        for name, mask in masks.items():
            part = mask[top:bottom, left:right].astype(np.uint8)
            large = cv2.resize(part, size, interpolation=cv2.INTER_NEAREST)
            inside = large.astype(np.bool_)
            crop[inside] = (crop[inside] * (1 - opacity) + np.array(COLOURS[name]) * opacity).astype(np.uint8)
            outlines, _ = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(crop, outlines, -1, COLOURS[name], 2)
        tile = Image.new("RGB", (TILE, TILE + CAPTION), (38, 38, 38))
        tile.paste(Image.fromarray(crop), ((TILE - size[0]) // 2, CAPTION))
        canvas = ImageDraw.Draw(tile)
        canvas.text((2, 4), caption, fill=(235, 235, 235), font=ImageFont.load_default(24))
        origin = np.array([left, top]), scale, np.array([(TILE - size[0]) // 2, CAPTION])
        if prompt:
            self._draw_prompt(canvas, *origin)
        if points:
            for x, y in (self.points - origin[0]) * scale + origin[2]:
                _cross(canvas, x, y, COLOURS["points"])
        return np.asarray(tile)

    def _draw_prompt(
        self, canvas: ImageDraw.ImageDraw, corner: NDArray[np.int64], scale: float, offset: NDArray[np.int64]
    ) -> None:
        if self.prompt is None:
            return
        if self.prompt.box is not None:
            x0, y0, x1, y1 = (
                ((np.asarray(self.prompt.box).reshape(2, 2) - corner) * scale + offset).reshape(-1).tolist()
            )
            canvas.rectangle((x0, y0, x1 - 1, y1 - 1), outline=COLOURS["prompt"], width=2)
        places, signs = self._clicks()
        for (x, y), sign in zip((places - corner) * scale + offset, signs, strict=True):
            colour = COLOURS["truth"] if sign > 0 else (230, 60, 60)
            canvas.ellipse((x - 5, y - 5, x + 5, y + 5), fill=colour, outline=COLOURS["prompt"], width=2)


def _cross(canvas: ImageDraw.ImageDraw, x: float, y: float, colour: Colour) -> None:
    for shade, width in (((0, 0, 0), 5), (colour, 2)):
        canvas.line((x - 6, y, x + 6, y), fill=shade, width=width)
        canvas.line((x, y - 6, x, y + 6), fill=shade, width=width)
