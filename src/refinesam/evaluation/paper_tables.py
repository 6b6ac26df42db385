"""The source paper's tables on COCO val2017, measured again beside what was published.

The paper says little about how its numbers were made. What is assumed here: Table I prompts with the tight box of every
object; Table II with two random clicks in it (section XI-A, stage 1), with and without Adaptive Mask Refinement by the
paper's equation. AP is that of the same masks, scored by predicted IoU, unless a detector's boxes are given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

from rich.table import Table

from refinesam.amr import AMRConfig
from refinesam.errors import DatasetError, WeightsError
from refinesam.evaluation.coco import AveragePrecision
from refinesam.evaluation.dataset import read_coco_folder
from refinesam.evaluation.protocols import PromptProtocol
from refinesam.evaluation.running import EvaluableSession, EvaluationOutcome, EvaluationRequest, OnProgress, run_request
from refinesam.files import JsonObject
from refinesam.registry import entry_named, find_entry, status

__all__ = [
    "PAPER_TABLES",
    "Measured",
    "PaperTable",
    "measure_paper_table",
    "missing_weights",
    "of_models",
    "paper_table_document",
    "printed_paper_table",
]

_COLUMNS: Final = ("mIoU", "AP", "AP_L", "AP_M", "AP_S")


@dataclass(frozen=True)
class PaperTable:
    """One table of the paper.

    Attributes:
        title: what it is.
        protocol: how objects are prompted.
        refine: settings of Adaptive Mask Refinement, None without it.
        weights: by the table's name of the model, the weights' name or file.
        published: by row, mIoU, AP, AP of large, medium and small objects in percent. A row is the model's name and
            whose numbers they are.
    """

    title: str
    protocol: PromptProtocol
    refine: AMRConfig | None
    weights: Mapping[str, str]
    published: Mapping[tuple[str, str], tuple[float, ...]]


@dataclass(frozen=True)
class Measured:
    """One model's part of a table.

    Attributes:
        model: the table's name of the model.
        rows: by what was measured ("measured", "measured with AMR"), the columns in percent, None where there is none.
        outcome: the evaluation behind it.
    """

    model: str
    rows: Mapping[str, tuple[float | None, ...]]
    outcome: EvaluationOutcome


_WEIGHTS: Final = MappingProxyType({"EfficientSAM-Ti": "efficientsam_ti", "EfficientSAM-S": "efficientsam_s"})
_THEIRS, _FIRST, _WITH_AMR = "EfficientSAM's authors", "source paper", "source paper with AMR"

PAPER_TABLES: Final[Mapping[int, PaperTable]] = MappingProxyType(
    {
        1: PaperTable(
            "Source paper, Table I: COCO val2017, prompted with boxes",
            "box",
            None,
            _WEIGHTS,
            {
                ("EfficientSAM-Ti", _THEIRS): (75.7, 42.3, 57.4, 46.2, 26.7),
                ("EfficientSAM-Ti", _FIRST): (69.03, 45.2, 57.3, 49.0, 38.0),
                ("EfficientSAM-S", _THEIRS): (77.0, 44.4, 60.1, 48.3, 28.4),
                ("EfficientSAM-S", _FIRST): (70.73, 45.2, 57.1, 49.0, 38.2),
            },
        ),
        2: PaperTable(
            "Source paper, Table II: COCO val2017, two random clicks, with and without AMR",
            "random-2",
            AMRConfig.paper(),
            _WEIGHTS,
            {
                ("EfficientSAM-Ti", _FIRST): (69.03, 45.2, 59.2, 54.7, 44.7),
                ("EfficientSAM-Ti", _WITH_AMR): (75.55, 54.7, 68.5, 59.2, 44.7),
                ("EfficientSAM-S", _FIRST): (70.73, 45.2, 57.4, 52.8, 42.7),
                ("EfficientSAM-S", _WITH_AMR): (75.17, 52.8, 67.4, 57.4, 42.7),
            },
        ),
    }
)


def of_models(paper: PaperTable, models: Sequence[str]) -> PaperTable:
    """Return a table with other models in it, so that several stand side by side.

    Args:
        paper: the table of the paper.
        models: names or files of weights; the paper's own models keep the names that they have in its tables.
    """
    names = {weights: model for model, weights in paper.weights.items()}
    return replace(paper, weights={names.get(weights, weights): weights for weights in models})


def missing_weights(paper: PaperTable) -> dict[str, str]:
    """Return by model what to do about weights that are not here; models whose weights are here are left out."""
    missing = {}
    for model, weights in paper.weights.items():
        if find_entry(weights) is None:
            if not Path(weights).is_file():
                missing[model] = f"There is no file {weights}."
        elif (state := status(weights)) in ("missing", "damaged"):
            entry = entry_named(weights)
            by_hand = f"put {entry.url} at {entry.path}"
            missing[model] = f"{weights} is {state}: run `refinesam weights fetch {weights}`, or {by_hand}."
    return missing


def measure_paper_table(
    paper: PaperTable,
    annotations: Path,
    images: Path,
    load: Callable[[str], EvaluableSession],
    *,
    detections: str | None = None,
    limit_images: int | None = None,
    seed: int = 0,
    on_progress: OnProgress | None = None,
    on_missing: Callable[[str], object] = lambda sentence: None,
) -> list[Measured]:
    """Measure as much of a table as the weights that are here allow; a model that fails costs the others nothing.

    Args:
        paper: the table.
        annotations: COCO's instances_val2017.json.
        images: COCO's folder val2017.
        load: makes a session of a name or file of weights.
        detections: a detector's COCO results, to take the boxes for AP from.
        limit_images: only the first images.
        seed: of the clicks.
        on_progress: called after every image.
        on_missing: told what is missing, a sentence each.

    Raises:
        DatasetError: nothing can be run, the message names everything that is missing; or the evaluation's own.
    """
    able, missing = _able(paper, annotations, images)
    if not able:
        raise DatasetError("Nothing of the table can be run. " + " ".join(missing))
    for sentence in missing:
        on_missing(sentence)
    request = EvaluationRequest(annotations, images, paper.protocol, refine=paper.refine, seed=seed)
    request = replace(request, limit_images=limit_images, ap=detections or "prompts", keep_masks=True)
    folder = read_coco_folder(annotations, images)
    measured = []
    for model in able:
        try:
            outcome = run_request(load(paper.weights[model]), request, folder, on_progress)
        except (WeightsError, RuntimeError, MemoryError) as error:  # torch has RuntimeErrors for a lack of memory
            missing.append(f"{model}: {error}")
            on_missing(missing[-1])
        else:
            measured.append(Measured(model, _rows(outcome), outcome))
    if not measured:
        raise DatasetError("Nothing of the table could be measured. " + " ".join(missing))
    return measured


def _able(paper: PaperTable, annotations: Path, images: Path) -> tuple[list[str], list[str]]:
    """Return the models that can be measured, and what is missing, a sentence each."""
    lacking = missing_weights(paper)
    missing = [f"{model}: {what}" for model, what in lacking.items()]
    if annotations.is_file() and images.is_dir():
        return [model for model in paper.weights if model not in lacking], missing
    missing.append(
        "COCO val2017: give --annotations instances_val2017.json and --images val2017, unpacked from "
        f"annotations_trainval2017.zip and val2017.zip (got {annotations} and {images})."
    )
    return [], missing


def printed_paper_table(paper: PaperTable, measured: Sequence[Measured]) -> Table:
    """Return a table of what was published and what was measured, in percent."""
    table = Table(title=paper.title, title_justify="left")
    table.add_column("model")
    table.add_column("whose")
    for name in _COLUMNS:
        table.add_column(name, justify="right")
    rows_of_model = {part.model: part.rows for part in measured}
    for model in paper.weights:
        rows: dict[str, Sequence[float | None]] = {
            whose: numbers for (name, whose), numbers in paper.published.items() if name == model
        }
        rows |= rows_of_model.get(model, {"measured": [None] * len(_COLUMNS)})
        for whose, numbers in rows.items():
            table.add_row(model, whose, *("-" if number is None else f"{number:.1f}" for number in numbers))
    return table


def paper_table_document(paper: PaperTable, measured: Sequence[Measured]) -> JsonObject:
    """Return plain Python values for JSON: the table, and what is behind each of its measured rows."""
    models = [
        {
            "model": part.model,
            "weights": paper.weights[part.model],
            "rows": {whose: dict(zip(_COLUMNS, numbers, strict=True)) for whose, numbers in part.rows.items()},
            **part.outcome.document(records=False),
        }
        for part in measured
    ]
    published = [
        {"model": model, "whose": whose, **dict(zip(_COLUMNS, numbers, strict=True))}
        for (model, whose), numbers in paper.published.items()
    ]
    return {"title": paper.title, "published": published, "measured": models}


def _rows(outcome: EvaluationOutcome) -> dict[str, tuple[float | None, ...]]:
    assert outcome.evaluation is not None and outcome.ap is not None, "the request asks for both"
    summary = outcome.evaluation.summary()
    rows = {"measured": _row(summary["miou"], outcome.ap.first)}
    if outcome.ap.refined is not None:
        rows["measured with AMR"] = _row(summary["miou_refined"], outcome.ap.refined)
    return rows


def _row(miou: float | None, scores: AveragePrecision) -> tuple[float | None, ...]:
    numbers = (miou, scores.ap, scores.ap_large, scores.ap_medium, scores.ap_small)
    return tuple(None if number is None else 100 * number for number in numbers)
