"""`refinesam labelstudio ...`: serve, preannotate, import, status, doctor, configs, export, approve, finetune."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

import refinesam
from refinesam import ConfigError
from refinesam.hosts import known_weights
from refinesam_labelstudio.access import ProjectServer
from refinesam_labelstudio.agreement import compare_versions, options_of
from refinesam_labelstudio.batch_results import BatchResults
from refinesam_labelstudio.console import (
    Run,
    console,
    errors,
    finish,
    log_to_console,
    print_failed,
    print_models,
    print_reasons,
)
from refinesam_labelstudio.corrections import approve, project_folder, waiting
from refinesam_labelstudio.detections import Detections, detections_version
from refinesam_labelstudio.doctor import examine
from refinesam_labelstudio.environment import (
    DEFAULT_FOLDER,
    TOKEN,
    URL,
    annotations_folder,
    basic_auth,
    image_reader,
    journal_path,
    options_from,
    required_label_studio,
    start_service,
)
from refinesam_labelstudio.export import export_project
from refinesam_labelstudio.findings import SSRF
from refinesam_labelstudio.json_types import JsonObject
from refinesam_labelstudio.labeling_config import EXAMPLES, LabelingConfig
from refinesam_labelstudio.learning import finetune_project, weights_for
from refinesam_labelstudio.options import ServiceOptions, weights_version
from refinesam_labelstudio.progress import progress_of
from refinesam_labelstudio.states import project_states
from refinesam_labelstudio.task_images import TaskImages
from refinesam_labelstudio.task_prediction import TaskPredictor

__all__ = ["app"]

app = typer.Typer(
    help="Label Studio: serve the ML backend, pre-annotate projects, find out what is wrong.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

WeightsOption = Annotated[
    str, typer.Option(envvar="REFINESAM_WEIGHTS", help="Name of `refinesam weights list`, a file, or a versions.json.")
]
DeviceOption = Annotated[str, typer.Option(envvar="REFINESAM_DEVICE", help="auto, cpu, cuda, cuda:1, ...")]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        min=1, envvar="REFINESAM_THREADS", help="That compute an answer; serve takes half the cores, preannotate all."
    ),
]
RefineOption = Annotated[bool, typer.Option("--refine", help="Apply Adaptive Mask Refinement.")]
ExtraOption = Annotated[str, typer.Option(help='As a project\'s extra params, such as {"output": "polygon"}.')]
FolderOption = Annotated[
    Path, typer.Option(envvar="REFINESAM_LABELSTUDIO_FOLDER", help="For downloads, journals and annotations.")
]
RootsOption = Annotated[
    list[Path] | None, typer.Option("--local-root", help="Label Studio's local files, as mounted here; repeatable.")
]
HostsOption = Annotated[
    list[str] | None, typer.Option("--allow-host", help="A further host to fetch images from; repeatable.")
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite-own", help="Make predictions of this model version anew.")]
ChunkOption = Annotated[int, typer.Option(min=1, max=1000, help="Most tasks that are stored together.")]
ReportOption = Annotated[Path | None, typer.Option(help="Write what was done as JSON.")]
ShowOption = Annotated[
    bool | None, typer.Option(help="Let the project show these predictions. Default: unless somebody chose others.")
]
NOT_EXPORTED = (
    "Label Studio's own COCO and PNG exports leave bitmasks out: choose brush, or export with `refinesam labelstudio "
    "export`."
)
WHOLE = (
    "Tasks without a box or a click are segmented whole. On a CPU that takes some four seconds of computing a photo, "
    "so that one Retrieve answers a few, and most of what is found there is background or parts of things; the extra "
    'params {"everything": false} leave them out.'
)
MOST_NAMED = 5
ProjectOption = Annotated[int, typer.Option(help="The project's id, the number in its address.")]


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 9090,
    weights: WeightsOption = "builtin",
    also: Annotated[
        list[str] | None,
        typer.Option(envvar="REFINESAM_ALSO", help="Further weights that a project may choose; repeatable."),
    ] = None,
    device: DeviceOption = "auto",
    refine: RefineOption = False,
    extra_params: ExtraOption = "",
    folder: FolderOption = DEFAULT_FOLDER,
    local_root: RootsOption = None,
    allow_host: HostsOption = None,
    learn: Annotated[bool, typer.Option("--learn", help="Collect accepted annotations from the webhook.")] = False,
    threads: ThreadsOption = None,
) -> None:
    """Run the ML backend.

    Secrets come from the environment: LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY to read images,
    REFINESAM_LABELSTUDIO_USER and REFINESAM_LABELSTUDIO_PASSWORD to ask for a user name and password.
    """
    import uvicorn

    from refinesam_labelstudio.app import create_app

    log_to_console()
    # Before the weights load and torch with them. Two answers at once are common: a click while a batch runs.
    refinesam.settle_threads(threads, concurrency=2)
    credentials, options = basic_auth(), options_from(refine, extra_params)
    service = start_service(weights, device, options, folder, local_root or (), allow_host or (), learn, also or ())
    address = host if host not in ("0.0.0.0", "::") else "this machine's address"
    print_models((weights, *(also or ())))
    errors.print(f"Connect http://{address}:{port} in a project's settings, under Model. {SSRF}", highlight=False)
    if options.everything is not None:
        errors.print(WHOLE)
    if not os.environ.get(URL):
        errors.print(f"Without {URL} and {TOKEN}, only images in local roots and data URIs can be read.")
    uvicorn.run(create_app(service, basic_auth=credentials), host=host, port=port, log_level="info")


@app.command("preannotate")
def preannotate_project(
    project: ProjectOption,
    prompts: Annotated[
        Path | None,
        typer.Option(help="A detector's boxes instead of what tasks hold: COCO annotations or results, CSV, Parquet."),
    ] = None,
    coco: Annotated[Path | None, typer.Option(help="COCO document that names the ids of COCO results.")] = None,
    overwrite_own: OverwriteOption = False,
    chunk: ChunkOption = 20,
    report: ReportOption = None,
    show: ShowOption = None,
    weights: Annotated[
        str | None,
        typer.Option(envvar="REFINESAM_WEIGHTS", help="As of `serve`; by default the project's model, else builtin."),
    ] = None,
    device: DeviceOption = "auto",
    refine: RefineOption = False,
    extra_params: ExtraOption = "",
    folder: FolderOption = DEFAULT_FOLDER,
    local_root: RootsOption = None,
    allow_host: HostsOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Store a prediction for every task of a project; may be ended and started again at any time.

    With --prompts, a detector's boxes become masks, each with its class as label and its score. The images are found by
    the names of their files.

    Without --refine and --extra-params, the extra params of the project's connection hold, so that both give the same
    model version.

    LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY say where and as whom.
    """
    log_to_console()
    refinesam.settle_threads(threads)
    given = options_from(refine, extra_params)
    if coco is not None and prompts is None:
        raise ConfigError("--coco names what the ids of --prompts mean: give that, too.")
    with closing(required_label_studio(allow_host or ())) as server:
        connections, options, config = _setup(server, project, given if refine or extra_params else None)
        detections = None
        if prompts is not None:
            detections = Detections.read(prompts, TaskImages.of_project(server, project, config), coco)
        session = refinesam.load(_weights_of(weights, options.model), device=device)
        predictor = TaskPredictor(session, image_reader(server, folder, local_root or ()), config, options, detections)
        version = options.version(weights_version(session))
        if prompts is not None:
            version = detections_version(version, prompts, coco)
        elif difference := compare_versions(connections, version):
            errors.print(difference, markup=False)
        run = Run(server, project, journal_path(folder, server.url, project), overwrite_own, chunk)
        done = run.tell(predictor, version, "images that the file has no prompts for" if prompts is not None else None)
        finish(run, done, show, connections, report)


@app.command("import")
def import_results(
    results: Annotated[Path, typer.Argument(help="The --output of `refinesam batch`, which may still be running.")],
    project: ProjectOption,
    overwrite_own: OverwriteOption = False,
    chunk: ChunkOption = 20,
    report: ReportOption = None,
    show: ShowOption = None,
    extra_params: ExtraOption = "",
    folder: FolderOption = DEFAULT_FOLDER,
) -> None:
    """Store the masks of `refinesam batch` as predictions, each with its class as label and its score.

    Images are found by the names of their files. What is not there yet comes when the command is run again.
    """
    log_to_console()
    with closing(required_label_studio(())) as server:
        given = options_from(False, extra_params) if extra_params else None
        connections, options, config = _setup(server, project, given)
        answers = BatchResults.read(results, TaskImages.of_project(server, project, config), config, options)
        run = Run(server, project, journal_path(folder, server.url, project), overwrite_own, chunk)
        done = run.tell(answers, answers.version, "images that the results don't have")
        print_reasons("Results that are left out:", list(answers.results.unread.items()))
        finish(run, done, show, connections, report)


def _setup(
    server: ProjectServer, project: int, given: ServiceOptions | None
) -> tuple[list[JsonObject], ServiceOptions, LabelingConfig]:
    """Return a project's connections, what answers it are like (those of its connection, unless given), its config."""
    connections = server.ml_backends(project)
    options = options_of(connections) if given is None else given
    config = LabelingConfig.parse(str(server.project(project).get("label_config") or ""))
    config.output_for(options.label, options.output)
    return connections, options, config


def _weights_of(given: str | None, model: str | None) -> str:
    """Return the weights to load: those given, or else those that the project's model is called after."""
    if given is None and model is not None and model not in known_weights():
        raise ConfigError(
            f'The project\'s "model" is {model!r}, which is no name of `refinesam weights list`: it is called so where '
            "its backend was started. Give the same file here, with --weights."
        )
    return weights_for(given or model or "builtin")


@app.command()
def status(project: ProjectOption) -> None:
    """Say how far the pre-annotation of a project is: done, nothing found, failed and why, and how fast.

    It asks Label Studio alone, so everybody of the team who has a token sees the same, wherever `preannotate` runs.
    """
    with closing(required_label_studio(())) as server:
        states = project_states(server, project)
    table = Table("model version", "done", "of these nothing found", "failed", "left", "tasks a minute", "last stored")
    for version, state in states.versions.items():
        pace = state.tasks_a_minute
        left = states.tasks - state.done - len(state.failed)
        last = f"{state.last.astimezone():%Y-%m-%d %H:%M}" if state.last else "-"
        numbers = (state.done, state.empty, len(state.failed), left, f"{pace:.1f}" if pace else "-", last)
        table.add_row(version, *map(str, numbers))
    console.print(f"Project {project} has {states.tasks} tasks.")
    console.print(table)
    for version, state in states.versions.items():
        reasons = [(reason or "not told: `preannotate` has a report", _some(ids)) for reason, ids in state.reasons]
        print_reasons(f"Failed with {version}:", reasons)


def _some(task_ids: Sequence[int]) -> str:
    more = f" and {len(task_ids) - MOST_NAMED} more" if len(task_ids) > MOST_NAMED else ""
    return f"tasks {', '.join(map(str, task_ids[:MOST_NAMED]))}{more}"


@app.command()
def doctor(
    project: Annotated[int | None, typer.Option(help="A project to look at, too.")] = None,
    backend: Annotated[
        str | None, typer.Option(help="The backend's address from here; an empty one leaves it out.")
    ] = "http://localhost:9090",
) -> None:
    """Say what keeps predictions from arriving or smart tools from answering; exit code 1 if anything does."""
    url = os.environ.get(URL, "")
    if not url:
        raise ConfigError(f"{URL} is not set: set it to Label Studio's address, such as http://localhost:8080.")
    findings = examine(
        url, os.environ.get(TOKEN, ""), project_id=project, backend_url=backend or None, basic_auth=basic_auth()
    )
    table = Table("", "looked at", "found")
    for finding in findings:
        mark = "[green]ok[/]" if finding.good else "[bold red]wrong[/]"
        # What servers say may look like markup.
        table.add_row(mark, finding.check, finding.message.replace("[", r"\["))
    console.print(table)
    if not all(finding.good for finding in findings):
        raise typer.Exit(1)


@app.command("export")
def export_annotations(
    project: ProjectOption,
    output: Annotated[Path, typer.Option(help="A folder; instances.json is written into it.")],
    png: Annotated[bool, typer.Option("--png", help="Also a PNG for each label of a task.")] = False,
    folder: FolderOption = DEFAULT_FOLDER,
    local_root: RootsOption = None,
    allow_host: HostsOption = None,
) -> None:
    """Write accepted annotations as COCO with exact masks: brushes, bitmasks and polygons alike."""
    log_to_console()
    with closing(required_label_studio(allow_host or ())) as server, progress_of("Export", errors) as on_progress:
        done = export_project(
            server, project, image_reader(server, folder, local_root or ()), output, png=png, on_progress=on_progress
        )
    console.print(
        f"{done.images} images with {done.objects} objects in {output}; {done.unannotated} tasks have no accepted "
        f"annotation, {len(done.failed)} failed.",
        markup=False,
        soft_wrap=True,
    )
    print_failed(done.failed)


@app.command()
def configs(
    kind: Annotated[Literal["brush", "polygon", "bitmask", "box"], typer.Argument(help="What holds the masks.")],
) -> None:
    """Print a labeling config, ready to paste under Settings, Labeling Interface, Code.

    Label Studio's own exports leave bitmasks out: `refinesam labelstudio export` has them.
    """
    if kind == "bitmask":
        errors.print(NOT_EXPORTED)
    typer.echo(EXAMPLES[kind], nl=False)


@app.command("approve")
def approve_collected(
    project: ProjectOption,
    task: Annotated[list[int] | None, typer.Option(help="Only this task; repeatable.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Approve without asking.")] = False,
    folder: FolderOption = DEFAULT_FOLDER,
) -> None:
    """Let collected annotations be trained on: lists what waits, where to look at it, and asks."""
    collected = project_folder(annotations_folder(folder), project)
    labels_of = waiting(collected)
    chosen = sorted(labels_of) if task is None else task
    table = Table("task", "masks", "labels", "look at it")
    for task_id in chosen:
        labels = labels_of.get(task_id, [])
        address = f"{os.environ.get(URL, '').rstrip('/')}/projects/{project}/data?task={task_id}"
        table.add_row(str(task_id), str(len(labels)), ", ".join(sorted(set(labels))), address)
    console.print(table)
    if chosen and (yes or typer.confirm(f"Train on these {len(chosen)} tasks?")):
        approve(collected, chosen)
        console.print(f"Approved: {len(chosen)}. Train: refinesam labelstudio finetune --project {project}")


@app.command()
def finetune(
    project: ProjectOption,
    weights: WeightsOption = "builtin",
    steps: Annotated[int, typer.Option(min=1)] = 200,
    batch_size: Annotated[int, typer.Option(min=1)] = 4,
    learning_rate: Annotated[float, typer.Option(min=0)] = 1e-4,
    trainable: Annotated[str, typer.Option(help="Start of the names of what is trained; empty: all.")] = "mask_decoder",
    device: DeviceOption = "auto",
    folder: FolderOption = DEFAULT_FOLDER,
) -> None:
    """Learn from the approved annotations that `serve --learn` collected, and register a new model version."""
    versions = finetune_project(
        annotations_folder(folder),
        project,
        weights=weights,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        trainable=trainable,
        device=device,
    )
    console.print(f"New version: {weights_for(str(versions))}", soft_wrap=True, markup=False)
    console.print(f"Serve it: refinesam labelstudio serve --weights {versions}", soft_wrap=True, markup=False)
