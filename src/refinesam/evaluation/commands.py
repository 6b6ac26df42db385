"""`refinesam evaluate` and `refinesam paper-table`. What is heavy is imported when the command runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from refinesam.command_options import DeviceOption, FormatOption, ThreadsOption, WeightsOption, print_json
from refinesam.errors import ConfigError
from refinesam.files import HTML, JSON, PARQUET, JsonObject, check_outputs, write_json, write_outputs
from refinesam.threads import settle_threads

if TYPE_CHECKING:
    from refinesam.evaluation.click_report import ClickEvaluation
    from refinesam.evaluation.report import Evaluation
    from refinesam.evaluation.running import EvaluationOutcome, EvaluationRequest
    from refinesam.session import Session

__all__ = ["evaluate", "paper_table"]

ProtocolOption = Annotated[
    Literal["box", "noisy-box", "points-1", "points-3", "points-5", "random-2", "noc"],
    typer.Option(help="How objects are prompted; noc: clicks until the mask is good."),
]
RefinementOption = Annotated[
    Literal["full", "fast", "paper", "paper-prose"], typer.Option(help="Which refinement, with --refine.")
]
ChooseOption = Annotated[
    Literal["score", "box"] | None, typer.Option(help="The mask of several that counts: by score or by the box.")
]
ApOption = Annotated[
    str | None, typer.Option(help="Also mask AP, of: boxes, prompts, or a detector's COCO results (a file).")
]
LimitOption = Annotated[int | None, typer.Option(help="Only the first images.")]
SeedOption = Annotated[int, typer.Option(help="Of random clicks and noise.")]
JsonOption = Annotated[Path | None, typer.Option(help="Write summary and records.")]
ModelsOption = Annotated[
    str | None, typer.Option(help="Weights to compare, as builtin,mobile_sam,my.pt; else the paper's.")
]
HtmlOption = Annotated[Path | None, typer.Option(help="Write a report with plots and pictures.")]
console = Console()
errors = Console(stderr=True)


def evaluate(
    annotations: Annotated[Path | None, typer.Option(help="COCO or LVIS JSON.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of the images it names.")] = None,
    protocol: ProtocolOption = "box",
    refine: Annotated[bool, typer.Option("--refine", help="Also measure Adaptive Mask Refinement, paired.")] = False,
    amr: RefinementOption = "full",
    weights: WeightsOption = "builtin",
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    limit: LimitOption = None,
    seed: SeedOption = 0,
    choose: ChooseOption = None,
    feed_back: Annotated[bool, typer.Option(help="noc: prompt with the logits before, too.")] = True,
    ap: ApOption = None,
    lvis: Annotated[bool, typer.Option("--lvis", help="AP by LVIS' rules.")] = False,
    proposals: Annotated[bool, typer.Option("--proposals", help="Also AR@1000 of segment everything.")] = False,
    backend: Annotated[Literal["pycocotools", "faster"], typer.Option(help="What computes AP and AR.")] = "pycocotools",
    json: JsonOption = None,
    parquet: Annotated[Path | None, typer.Option(help="Write the records, a row an object.")] = None,
    html: HtmlOption = None,
    printed: FormatOption = "table",
) -> None:
    """Measure mIoU against ground truth, per category and size, with and without refinement; clicks, AP and AR."""
    outputs = _Outputs(json, parquet, html, printed)
    outputs.check(inputs=[annotations, weights, ap])
    settled = settle_threads(threads)
    if annotations is None or images is None:
        raise ConfigError("Give --annotations, a COCO JSON file, and --images, the folder of the images it names.")
    from refinesam.amr import AMRConfig
    from refinesam.evaluation.running import EvaluationRequest

    request = EvaluationRequest(
        annotations=annotations,
        images=images,
        protocol=protocol,
        refine=AMRConfig.named(amr) if refine else None,
        seed=seed,
        limit_images=limit,
        choose=choose,
        feed_back=feed_back,
        ap=ap or ("boxes" if lvis else None),
        lvis=lvis,
        proposals=proposals,
        keep_masks=html is not None,
        backend=backend,
    )
    _run(request, weights, partial(_session, device=device, threads=settled), outputs)


def paper_table(
    number: Annotated[int, typer.Argument(min=1, max=2, help="Of the table: 1, boxes; 2, two clicks, and AMR.")],
    annotations: Annotated[Path, typer.Option(help="COCO's JSON.")] = Path("instances_val2017.json"),
    images: Annotated[Path, typer.Option(help="Folder of COCO's images.")] = Path("val2017"),
    models: ModelsOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    limit: LimitOption = None,
    seed: SeedOption = 0,
    ap: Annotated[str | None, typer.Option(help="A detector's COCO results (a file), to take boxes from.")] = None,
    json: JsonOption = None,
    html: HtmlOption = None,
    printed: FormatOption = "table",
) -> None:
    """Measure a table of the source paper on COCO val2017, and show it beside what was published."""
    outputs = _Outputs(json, None, html, printed)
    outputs.check(inputs=[annotations, ap])
    session_of = partial(_session, device=device, threads=settle_threads(threads))
    from refinesam.evaluation.paper_tables import (
        PAPER_TABLES,
        measure_paper_table,
        of_models,
        paper_table_document,
        printed_paper_table,
    )

    paper = PAPER_TABLES[number]
    if models is not None:
        paper = of_models(paper, [model.strip() for model in models.split(",")])
    with _progress() as on_progress:
        measured = measure_paper_table(
            paper,
            annotations,
            images,
            session_of,
            detections=ap,
            limit_images=limit,
            seed=seed,
            on_progress=on_progress,
            on_missing=lambda sentence: errors.print(f"Left out: {sentence}", markup=False, soft_wrap=True),
        )
    if printed == "table":
        console.print(printed_paper_table(paper, measured))
    outputs.write(lambda _: paper_table_document(paper, measured), {part.model: part.outcome for part in measured})


def _session(weights: str, device: str, threads: int) -> Session:
    from refinesam.loading import load

    return load(weights, device=device, threads=threads)


@dataclass(frozen=True)
class _Outputs:
    """Where the results go, None where not, and what is printed."""

    json: Path | None
    parquet: Path | None
    html: Path | None
    printed: str

    def check(self, inputs: Iterable[str | Path | None]) -> None:
        """Find out before the work whether all of them can be written."""
        check_outputs([(self.json, JSON), (self.parquet, PARQUET), (self.html, HTML)], inputs)
        if self.parquet is not None:
            from refinesam.evaluation.parquet import arrow_modules

            arrow_modules()

    def write(
        self,
        document: Callable[[bool], JsonObject],
        outcomes: Mapping[str, EvaluationOutcome],
        records: Evaluation | ClickEvaluation | None = None,
    ) -> None:
        """Print what programs read, and write the files; `document` takes whether every object is in it."""
        from refinesam.evaluation.html_report import write_html
        from refinesam.evaluation.parquet import write_parquet

        if self.printed == "json":
            print_json(document(False))
        writers: dict[Path, Callable[[Path], object]] = {}
        if self.json is not None:
            writers[self.json] = lambda path: write_json(path, document(True), indent=1)
        if self.parquet is not None and records is not None:
            writers[self.parquet] = partial(write_parquet, records)
        if self.html is not None:
            writers[self.html] = lambda path: write_html(path, outcomes)
        write_outputs(writers)


def _run(request: EvaluationRequest, weights: str, session_of: Callable[[str], Session], outputs: _Outputs) -> None:
    from refinesam.evaluation.dataset import read_coco_folder
    from refinesam.evaluation.running import run_request

    folder = read_coco_folder(request.annotations, request.images, lvis=request.lvis)
    session = session_of(weights)
    with _progress() as on_progress:
        outcome = run_request(session, request, folder, on_progress)
    if outputs.printed == "table":
        _print(outcome)
    outputs.write(
        lambda records: outcome.document(records=records),
        {Path(weights).name: outcome},
        outcome.evaluation or outcome.clicks,
    )


def _print(outcome: EvaluationOutcome) -> None:
    from refinesam.evaluation.tables import ap_table, click_table, failure_tables, proposal_table, summary_tables

    if outcome.evaluation is not None:
        for table in summary_tables(outcome.evaluation):
            console.print(table)
    if outcome.clicks is not None:
        console.print(click_table(outcome.clicks))
        for table in failure_tables(outcome.clicks.failures):
            console.print(table)
    if outcome.ap is not None:
        console.print(ap_table(outcome.ap))
        if outcome.evaluation is None or outcome.ap.failures != outcome.evaluation.failures:
            for table in failure_tables(outcome.ap.failures):
                console.print(table)
    if outcome.proposals is not None:
        console.print(proposal_table(outcome.proposals))


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], object]]:
    from rich.progress import Progress, TaskID

    with Progress(console=errors, transient=True) as progress:
        tasks: dict[str, TaskID] = {}

        def on_progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done)

        yield on_progress
