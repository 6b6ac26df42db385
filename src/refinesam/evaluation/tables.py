"""An evaluation as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields

from rich.table import Table

from refinesam.evaluation.click_report import ClickEvaluation
from refinesam.evaluation.lvis import LvisScores
from refinesam.evaluation.mask_ap import MaskAP
from refinesam.evaluation.proposals import ProposalScores
from refinesam.evaluation.report import Evaluation, Failure
from refinesam.files import JsonObject

__all__ = ["ap_table", "click_table", "failure_tables", "proposal_table", "summary_tables"]

SHOWN_FAILURES = 10


def summary_tables(evaluation: Evaluation) -> Iterable[Table]:
    """Yield tables: overall and by size, by category, and what failed."""
    summary = evaluation.summary()
    refined = summary["change"] is not None
    overall = Table(title=f"mIoU, protocol {summary['protocol']}", title_justify="left")
    for heading in ("", "objects", "first mask", *(("with AMR",) if refined else ()), "best of the masks"):
        overall.add_column(heading, justify="right" if heading else "left")
    rows: list[tuple[str, JsonObject]] = [("all", summary), *summary["per_size"].items()]
    for name, values in rows:
        cells = [values["miou"], *((values["miou_refined"],) if refined else ()), values["miou_oracle"]]
        overall.add_row(name, str(values["objects"]), *map(_number, cells))
    if refined:
        change = summary["change"]
        interval = "" if change["interval"] is None else " (95 %: {:+.3f} to {:+.3f})".format(*change["interval"])
        overall.caption = (
            f"AMR {change['mean']:+.3f}{interval}; helped {change['helped']:.1%}, hurt {change['hurt']:.1%}, "
            f"unchanged {change['unchanged']:.1%}"
        )
    yield overall
    if len(summary["per_category"]) > 1:
        categories = Table(title="By category", title_justify="left")
        for heading in ("category", "objects", "first mask", *(("with AMR",) if refined else ())):
            categories.add_column(heading, justify="left" if heading == "category" else "right")
        for values in summary["per_category"]:
            cells = [values["miou"], *((values["miou_refined"],) if refined else ())]
            categories.add_row(values["name"], str(values["objects"]), *map(_number, cells))
        yield categories
    yield from failure_tables(evaluation.failures)


def failure_tables(failures: Sequence[Failure]) -> Iterable[Table]:
    """Yield a table of the first failures, where there are any."""
    if not failures:
        return
    objects = sum(failure.objects for failure in failures)
    table = Table(title=f"{objects} objects could not be evaluated", title_justify="left")
    for heading in ("where", "reason"):
        table.add_column(heading)
    for failure in failures[:SHOWN_FAILURES]:
        table.add_row(failure.file_name, failure.reason)
    if (more := len(failures) - SHOWN_FAILURES) > 0:
        table.caption = f"and {more} more: --json names them all"
    yield table


def ap_table(ap: MaskAP) -> Table:
    """Return average precision and recall, with and without refinement."""
    rules = "LVIS" if isinstance(ap.first, LvisScores) else "COCO"
    title = f"Mask AP ({rules} rules), {ap.images} images, prompts: {ap.prompts}"
    table = Table(title=title, title_justify="left", min_width=len(title))
    for heading in ("", "first mask", *(("with AMR",) if ap.refined is not None else ())):
        table.add_column(heading, justify="right" if heading else "left")
    for score in fields(ap.first):
        if score.name != "per_category":
            both = [ap.first, *(() if ap.refined is None else (ap.refined,))]
            table.add_row(score.name, *(_number(getattr(scores, score.name)) for scores in both))
    return table


def click_table(clicks: ClickEvaluation) -> Table:
    """Return the number of clicks to each IoU."""
    summary = clicks.summary()
    title = f"Clicks, {summary['objects']} objects, at most {clicks.max_clicks} each"
    table = Table(title=title, title_justify="left", min_width=len(title))
    for heading in ("IoU", "clicks (NoC)", "95 %", "never reached"):
        table.add_column(heading, justify="right")
    for threshold, at in summary["thresholds"].items():
        interval = "-" if at["noc_interval"] is None else "{:.2f} to {:.2f}".format(*at["noc_interval"])
        noc, never = ("-", "-") if at["noc"] is None else (f"{at['noc']:.2f}", f"{at['never']:.1%}")
        table.add_row(threshold, noc, interval, never)
    table.caption = "Logits were fed back." if clicks.fed_back else "Every prompt held the clicks alone."
    return table


def proposal_table(proposals: ProposalScores) -> Table:
    """Return the average recall of "segment everything"."""
    table = Table(title="Segment everything, average recall", title_justify="left")
    table.add_column("")
    table.add_column("AR", justify="right")
    for name, value in proposals.summary().items():
        table.add_row(name, _number(value))
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
