"""A report as one HTML file: tables, plots and pictures, nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from html import escape
from pathlib import Path

from refinesam.evaluation.calibration import Calibration, calibration
from refinesam.evaluation.charts import bar_chart, curve, histogram, reliability_diagram
from refinesam.evaluation.click_report import ClickEvaluation
from refinesam.evaluation.gallery import galleries
from refinesam.evaluation.mask_ap import MaskAP
from refinesam.evaluation.proposals import ProposalScores
from refinesam.evaluation.report import Evaluation, Failure
from refinesam.evaluation.running import EvaluationOutcome
from refinesam.files import JsonObject, writing

__all__ = ["write_html"]

STYLE = """
:root { color-scheme: light dark; --first: #1e90ff; --refined: #c2359f; --other: #8a8f98; --better: #1f9d55;
  --worse: #d64545; --same: #8a8f98; --line: #8884; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .25rem .8rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; }
.plots, .gallery { display: flex; flex-wrap: wrap; gap: 1rem; }
svg { width: 420px; max-width: 100%; height: auto; } svg text { font-size: 11px; fill: currentColor; }
svg .title { font-size: 13px; font-weight: 600; } svg .grid { stroke: var(--line); }
figure { margin: 0; max-width: 530px; } figure img { max-width: 100%; } figcaption { font-size: 13px; }
"""
SHOWN_FAILURES = 50


def write_html(path: str | Path, outcomes: Mapping[str, EvaluationOutcome]) -> None:
    """Write a report; the file appears whole or not at all.

    Args:
        path: of the file.
        outcomes: what was measured, by the model's name. Pictures need kept masks.

    Raises:
        OutputError: the file cannot be written.
    """
    parts = (f"<section><h2>{escape(name)}</h2>{_outcome(outcome)}</section>" for name, outcome in outcomes.items())
    sections = "".join(parts)
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>refinesam evaluation</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body><h1>refinesam evaluation</h1>{sections}</body></html>\n"
    )
    with writing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _outcome(outcome: EvaluationOutcome) -> str:
    parts: list[str] = []
    failures: list[Failure] = []
    if outcome.evaluation is not None:
        parts += _evaluation(outcome.evaluation)
        failures += outcome.evaluation.failures
    if outcome.clicks is not None:
        parts += _clicks(outcome.clicks)
        failures += outcome.clicks.failures
    if outcome.ap is not None:
        parts += _ap(outcome.ap)
        failures += [failure for failure in outcome.ap.failures if failure not in failures]
    if outcome.proposals is not None:
        parts += _proposals(outcome.proposals)
    if outcome.evaluation is not None:
        parts += _galleries(outcome)
    return "".join([*parts, *_failures(failures)])


def _evaluation(evaluation: Evaluation) -> Iterable[str]:
    summary = evaluation.summary()
    settings = {} if evaluation.refine is None else asdict(evaluation.refine)
    amr = ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None)
    yield (
        f"<p>Protocol {escape(evaluation.protocol)}, seed {evaluation.seed}, {summary['images']} images, "
        f"{summary['objects']} objects; {escape('AMR: ' + amr if amr else 'without AMR')}.</p>"
    )
    yield _table(
        ("", "objects", "first mask", "with AMR", "best of the masks"),
        [
            (name, str(mean["objects"]), *map(_number, (mean["miou"], mean["miou_refined"], mean["miou_oracle"])))
            for name, mean in (("all", summary), *summary["per_size"].items())
        ],
        "mIoU",
    )
    rows = [("mIoU of the first mask", _number(summary["miou"]), _interval(summary["miou_interval"]))]
    if (change := summary["change"]) is not None:
        rows.append(("change by AMR", f"{change['mean']:+.4f}", _interval(change["interval"], signed=True)))
        rows += [(f"share {name}", f"{change[name]:.1%}", "") for name in ("helped", "hurt", "unchanged")]
    rows += [
        ("boundary IoU of the first mask", _number(summary["boundary_iou"]), ""),
        ("boundary IoU with AMR", _number(summary["boundary_iou_refined"]), ""),
        ("expected calibration error of the predicted IoU", _number(summary["calibration_error"]), ""),
    ]
    yield _table(("", "", "95 % interval"), rows, "Overall")
    yield _table(
        ("category", "objects", "first mask", "with AMR"),
        [
            (c["name"], str(c["objects"]), _number(c["miou"]), _number(c["miou_refined"]))
            for c in summary["per_category"]
        ],
        "mIoU by category",
    )
    yield f'<div class="plots">{"".join(_plots(evaluation, summary))}</div>'


def _plots(evaluation: Evaluation, summary: JsonObject) -> Iterable[str]:
    changes = [record.refined.iou - record.iou for record in evaluation.records if record.refined is not None]
    series = {"first mask": "miou", **({"with AMR": "miou_refined"} if changes else {})}
    by_size = {size: {name: mean[key] for name, key in series.items()} for size, mean in summary["per_size"].items()}
    yield bar_chart(by_size, "mIoU by size", "mIoU")
    yield histogram(evaluation.ious(), "IoU of the first mask", "IoU", limits=(0.0, 1.0))
    yield reliability_diagram(_calibrations(evaluation), "Predicted against true IoU")
    if changes:
        label = "IoU with AMR - IoU of the first mask"
        yield histogram(changes, "Change of IoU by AMR", label, limits=(-1, 1), bins=41)


def _calibrations(evaluation: Evaluation) -> dict[str, Calibration]:
    calibrations = {"first mask": evaluation.calibration()}
    refined = [record.refined for record in evaluation.records if record.refined is not None]
    if refined:
        calibrations["with AMR"] = calibration([r.predicted_iou for r in refined], [r.iou for r in refined])
    return calibrations


def _clicks(clicks: ClickEvaluation) -> Iterable[str]:
    summary = clicks.summary()
    fed = "with" if clicks.fed_back else "without"
    yield (
        f"<p>Protocol noc, at most {clicks.max_clicks} clicks, {fed} the logits fed back, {summary['images']} images, "
        f"{summary['objects']} objects.</p>"
    )
    rows = [
        (
            f"{size}, IoU {threshold}",
            str(at["objects"]),
            _number(at["noc"]),
            _interval(at["noc_interval"]),
            _number(at["never"]),
        )
        for size, by_threshold in (("all", summary["thresholds"]), *summary["per_size"].items())
        for threshold, at in by_threshold.items()
    ]
    yield _table(("", "objects", "clicks (NoC)", "95 % interval", "share never there"), rows, "Number of clicks")
    yield f'<div class="plots">{curve(summary["miou_by_click"], "mIoU after each click", "clicks")}</div>'


def _ap(ap: MaskAP) -> Iterable[str]:
    both = [ap.first, *(() if ap.refined is None else (ap.refined,))]
    rows = [
        (score.name, *(_number(getattr(scores, score.name)) for scores in both))
        for score in fields(ap.first)
        if score.name != "per_category"
    ]
    heads = ("", "first mask", "with AMR")[: len(both) + 1]
    yield _table(heads, rows, f"Mask AP, prompts: {ap.prompts}, {ap.images} images")


def _proposals(proposals: ProposalScores) -> Iterable[str]:
    rows = [(name, _number(value)) for name, value in proposals.summary().items()]
    yield _table(("", "average recall"), rows, "Segment everything")


def _galleries(outcome: EvaluationOutcome) -> Iterable[str]:
    assert outcome.evaluation is not None
    for gallery in galleries(outcome.evaluation, outcome.folder):
        pictures = "".join(
            f'<figure><img src="{picture.jpeg}" alt=""><figcaption>{escape(picture.caption)}</figcaption></figure>'
            for picture in gallery.pictures
        )
        legend = "White outline: ground truth. Blue: first mask. Magenta: with AMR."
        yield f'<h3>{escape(gallery.title)}</h3><p>{legend}</p><div class="gallery">{pictures}</div>'


def _failures(failures: Sequence[Failure]) -> Iterable[str]:
    if failures:
        objects = sum(failure.objects for failure in failures)
        rows = [(failure.file_name, failure.reason) for failure in failures[:SHOWN_FAILURES]]
        yield _table(("where", "reason"), rows, f"{objects} objects could not be evaluated")


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in heads)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<h3>{escape(title)}</h3><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _interval(interval: Sequence[float] | None, *, signed: bool = False) -> str:
    pattern = "{:+.4f} to {:+.4f}" if signed else "{:.3f} to {:.3f}"
    return "" if interval is None else pattern.format(*interval)
