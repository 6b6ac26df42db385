"""`refinesam evaluate`. What is heavy is imported when the command runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from refinesam.command_options import DeviceOption, ThreadsOption, WeightsOption
from refinesam.errors import ConfigError
from refinesam.files import HTML, JSON, PARQUET, check_outputs, write_json, write_outputs
from refinesam.threads import settle_threads

if TYPE_CHECKING:
    from refinesam.amr import AMRConfig
    from refinesam.evaluation.presets import PresetName
    from refinesam.evaluation.running import Outcome, Request
    from refinesam.session import Session

__all__ = ["evaluate"]

ProtocolOption = Annotated[
    Literal["box", "noisy-box", "points-1", "points-3", "points-5", "random-2", "noc"],
    typer.Option(help="How objects are prompted; noc: clicks until the mask is good."),
]
RefinementOption = Annotated[
    Literal["full", "fast", "paper", "paper-prose"], typer.Option(help="Which refinement, with --refine.")
]
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
    limit: Annotated[int | None, typer.Option(help="Only the first images.")] = None,
    seed: Annotated[int, typer.Option(help="Of random clicks and noise.")] = 0,
    choose: Annotated[
        Literal["score", "box"] | None, typer.Option(help="The mask of several that counts: by score or by the box.")
    ] = None,
    feed_back: Annotated[bool, typer.Option(help="noc: prompt with the logits before, too.")] = True,
    ap: Annotated[
        str | None, typer.Option(help="Also mask AP, of: boxes, prompts, or a detector's COCO results (a file).")
    ] = None,
    lvis: Annotated[bool, typer.Option("--lvis", help="AP by LVIS' rules.")] = False,
    proposals: Annotated[bool, typer.Option("--proposals", help="Also AR@1000 of segment everything.")] = False,
    backend: Annotated[Literal["pycocotools", "faster"], typer.Option(help="What computes AP and AR.")] = "pycocotools",
    preset: Annotated[
        Literal["paper-table-1", "paper-table-2"] | None, typer.Option(help="Measure a table of the source paper.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write summary and records.")] = None,
    parquet: Annotated[Path | None, typer.Option(help="Write the records, a row an object.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a report with plots and pictures.")] = None,
) -> None:
    """Measure mIoU against ground truth, per category and size, with and without refinement; clicks, AP and AR."""
    check_outputs([(json, JSON), (parquet, PARQUET), (html, HTML)], inputs=[annotations, weights, ap])
    session_of = partial(_session, device=device, threads=settle_threads(threads))
    if preset is not None:
        changed = {
            "--protocol": protocol != "box",
            "--weights": weights != "builtin",
            "--refine": refine,
            "--amr": amr != "full",
        }
        _check_fixed({**changed, "--choose": choose, "--lvis": lvis, "--proposals": proposals, "--parquet": parquet})
        _run_preset(preset, annotations, images, session_of, ap, limit, seed, json, html)
        return
    if annotations is None or images is None:
        raise ConfigError("Give --annotations, a COCO JSON file, and --images, the folder of the images it names.")
    from refinesam.evaluation.running import Request

    request = Request(
        annotations=annotations,
        images=images,
        protocol=protocol,
        refine=_refinement(amr) if refine else None,
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
    _run(request, weights, session_of, json, parquet, html)


def _refinement(name: str) -> AMRConfig:
    from refinesam.amr import AMRConfig

    named = {"full": AMRConfig.full, "fast": AMRConfig.fast, "paper": AMRConfig.paper}
    return named[name]() if name in named else AMRConfig(rule="paper_prose")


def _check_fixed(options: Mapping[str, object]) -> None:
    if given := [name for name, value in options.items() if value]:
        raise ConfigError(f"The tables of the paper fix {', '.join(given)}: leave it out, or leave --preset out.")


def _session(weights: str, device: str, threads: int) -> Session:
    from refinesam.predictor import load

    return load(weights, device=device, threads=threads)


def _run(
    request: Request,
    weights: str,
    session_of: Callable[[str], Session],
    json: Path | None,
    parquet: Path | None,
    html: Path | None,
) -> None:
    from refinesam.evaluation.dataset import read_coco_folder
    from refinesam.evaluation.html_report import write_html
    from refinesam.evaluation.parquet import arrow_modules, write_parquet
    from refinesam.evaluation.running import run_request

    if parquet is not None:
        arrow_modules()
    folder = read_coco_folder(request.annotations, request.images)
    session = session_of(weights)
    with _progress() as on_progress:
        outcome = run_request(session, request, folder, on_progress)
    _print(outcome)
    writers: dict[Path, Callable[[Path], object]] = {}
    if json is not None:
        writers[json] = lambda path: write_json(path, outcome.document(), indent=1)
    if parquet is not None:
        records = outcome.evaluation or outcome.clicks
        assert records is not None, "every request asks for one of them"
        writers[parquet] = partial(write_parquet, records)
    if html is not None:
        writers[html] = lambda path: write_html(path, {Path(weights).name: outcome})
    write_outputs(writers)


def _run_preset(
    name: PresetName,
    annotations: Path | None,
    images: Path | None,
    session_of: Callable[[str], Session],
    detections: str | None,
    limit: int | None,
    seed: int,
    json: Path | None,
    html: Path | None,
) -> None:
    from refinesam.evaluation.presets import PRESETS, preset_document, preset_table, run_preset

    preset = PRESETS[name]
    with _progress() as on_progress:
        measured = run_preset(
            preset,
            annotations,
            images,
            session_of,
            detections=detections,
            limit_images=limit,
            seed=seed,
            on_progress=on_progress,
            on_missing=lambda sentence: errors.print(f"Left out: {sentence}", markup=False, soft_wrap=True),
        )
    console.print(preset_table(preset, measured))
    writers: dict[Path, Callable[[Path], object]] = {}
    if json is not None:
        writers[json] = lambda path: write_json(path, preset_document(preset, measured), indent=1)
    if html is not None:
        from refinesam.evaluation.html_report import write_html

        writers[html] = lambda path: write_html(path, {one.model: one.outcome for one in measured})
    write_outputs(writers)


def _print(outcome: Outcome) -> None:
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
    from rich.progress import Progress

    with Progress(console=errors, transient=True) as progress:
        tasks: dict[str, Any] = {}

        def on_progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done)

        yield on_progress
