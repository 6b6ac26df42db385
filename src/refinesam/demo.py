"""The demonstration: real photographs and micrographs, clicks and boxes, with and without refinement."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from numpy.typing import ArrayLike
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from refinesam.errors import MissingExtraError
from refinesam.files import JSON, PNG, check_outputs, write_json
from refinesam.images import as_rgb, write_png
from refinesam.loading import load
from refinesam.masks import coco_document
from refinesam.overlay import draw_comparison, draw_everything
from refinesam.types import Prediction, Prompt

__all__ = ["DEMO_IMAGES", "DemoImage", "run_demo"]


@dataclass(frozen=True, eq=False)
class DemoImage:
    """One image of scikit-image's collection and the objects to segment in it."""

    name: str
    prompts: tuple[Prompt, ...]


DEMO_IMAGES = (
    DemoImage("astronaut", (Prompt(points=[[225, 130]]), Prompt(box=[5, 5, 420, 511]))),
    DemoImage("chelsea", (Prompt(points=[[220, 120], [130, 220]]), Prompt(box=[75, 10, 375, 299]))),
    DemoImage("coffee", (Prompt(box=[150, 60, 460, 330]), Prompt(points=[[300, 180]]))),
    DemoImage("coins", (Prompt(points=[[48, 46]]), Prompt(box=[190, 170, 240, 219]))),
    DemoImage("cell", (Prompt(box=[362, 322, 496, 456]), Prompt(points=[[428, 388], [250, 388]], labels=[1, 0]))),
    DemoImage("immunohistochemistry", (Prompt(points=[[250, 250]]),)),
    DemoImage("rocket", (Prompt(box=[305, 60, 345, 340]),)),
)


def run_demo(output: Path, weights: str, device: str, console: Console, threads: int | None = None) -> None:
    """Segment every one; write overlays and masks; print a table.

    Raises:
        MissingExtraError: scikit-image is not installed.
        OutputError: the folder cannot be written.
        WeightsError: the weights are unknown, missing or damaged.
    """
    data = _skimage_data()
    pictures = {example.name: output / f"{example.name}.png" for example in DEMO_IMAGES}
    everything, document = output / "coins_everything.png", output / "masks.json"
    check_outputs([(document, JSON), *((path, PNG) for path in (*pictures.values(), everything))], inputs=[weights])
    session = load(weights, device=device, threads=threads)
    table = Table("image", "prompt", "IoU", "AMR", "strategy", "κ", "Q", "kept", "ms", box=SIMPLE, padding=(0, 1, 0, 0))
    table.caption = "IoU: predicted, before and after; ms: to encode the image + to answer the prompt"
    masks: dict[str, tuple[tuple[int, int], list[tuple[ArrayLike, float | None]]]] = {}
    for example in DEMO_IMAGES:
        image = as_rgb(getattr(data, example.name)())
        begun = time.perf_counter()
        encoded = session.encode(image)
        encode_ms = 1000 * (time.perf_counter() - begun)
        pairs: list[tuple[Prediction, Prediction]] = []
        for prompt in example.prompts:
            begun = time.perf_counter()
            first = encoded.predict(prompt)
            click_ms = 1000 * (time.perf_counter() - begun)
            refined = encoded.refine(first)
            pairs.append((first, refined))
            milliseconds = f"{encode_ms:.0f}+{click_ms:.0f}"
            table.add_row(example.name, _described(prompt), *_refinement_cells(refined), milliseconds)
        write_png(pictures[example.name], draw_comparison(image, pairs))
        masks[f"{example.name}.png"] = (encoded.image_hw, [(refined.mask, refined.score) for _, refined in pairs])
    coins = as_rgb(data.coins())
    predictions = session.segment_everything(coins)
    write_png(everything, draw_everything(coins, predictions))
    write_json(document, coco_document(masks))
    console.print(table)
    console.print(f"Segment everything: {len(predictions)} masks in the picture of coins.")
    console.print(f"Overlays and masks (COCO JSON) are in {output}/", soft_wrap=True)


def _described(prompt: Prompt) -> str:
    parts = ["box"] if prompt.box is not None else []
    for points, sign in ((prompt.positive_points, "+"), (prompt.negative_points, "-")):
        if len(points):
            parts.append(sign * len(points))
    return " ".join(parts)


def _refinement_cells(refined: Prediction) -> tuple[str, ...]:
    report = refined.refinement
    assert report is not None
    return (
        f"{report.score_before:.2f}",
        f"{refined.score:.2f}",
        report.strategy,
        str(report.kappa),
        f"{report.compactness:.2f}",
        report.kept,
    )


def _skimage_data() -> ModuleType:
    try:
        from skimage import data
    except ImportError as error:
        raise MissingExtraError("scikit-image", "demo") from error
    return data
