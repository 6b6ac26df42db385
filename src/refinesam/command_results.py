"""What commands print and write of predictions. What is heavy is imported when it is used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from refinesam.files import JsonObject, write_json, write_outputs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from refinesam.types import Prediction

__all__ = ["prediction_document", "print_predictions", "write_predictions"]


def prediction_document(name: str, image_hw: tuple[int, int], predictions: list[Prediction]) -> JsonObject:
    """Return what a program may want to know of the predictions; masks as COCO's compressed RLE."""
    from refinesam.masks import box_from_mask, encode_rle

    described = []
    for prediction in predictions:
        box, report = box_from_mask(prediction.mask), prediction.refinement
        entry = {
            "predicted_iou": prediction.score,
            "area": int(prediction.mask.sum()),
            "box": None if box is None else box.tolist(),
            "segmentation": dict(encode_rle(prediction.mask)),
            "negatives": prediction.negatives,
            "refinement": None if report is None else report.to_dict(),
        }
        described.append(entry)
    return {"image": name, "height": image_hw[0], "width": image_hw[1], "predictions": described}


def print_predictions(predictions: list[Prediction], console: Console) -> None:
    """Print a table of the predictions, with why each was refined or not."""
    from refinesam.masks import box_from_mask

    table = Table("predicted IoU", "area (px)", "box x0, y0, x1, y1", "refinement")
    for prediction in predictions:
        box = box_from_mask(prediction.mask)
        report = prediction.refinement
        table.add_row(
            f"{prediction.score:.3f}",
            str(int(prediction.mask.sum())),
            "empty" if box is None else ", ".join(f"{v:g}" for v in box.tolist()),
            "" if report is None else report.reason,
        )
    console.print(table)
    if predictions and predictions[0].negatives == "subtracted":
        console.print(
            "Spots around negative clicks were cut out: the model was not trained on such clicks, or ignored them."
        )


def write_predictions(
    overlay: Path | None,
    picture: Callable[[], NDArray[np.uint8]],
    coco: Path | None,
    name: str,
    image_hw: tuple[int, int],
    predictions: list[Prediction],
) -> None:
    """Write the picture, which is drawn then, and the masks as COCO JSON, each where it has a path."""
    from refinesam.images import write_png
    from refinesam.masks import coco_document

    writers: dict[Path, Callable[[Path], object]] = {}
    if overlay is not None:
        writers[overlay] = lambda path: write_png(path, picture())
    if coco is not None:
        content = {name: (image_hw, [(p.mask, p.score) for p in predictions])}
        writers[coco] = lambda path: write_json(path, coco_document(content))
    write_outputs(writers)
