"""`refinesam batch` and `refinesam convert`. What is heavy is imported when they run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from refinesam.command_options import DeviceOption, ThreadsOption, WeightsOption
from refinesam.errors import ConfigError
from refinesam.files import JSON, JsonObject, check_outputs
from refinesam.threads import settle_threads

if TYPE_CHECKING:
    from refinesam.jobs.rows import Row, Task
    from refinesam.jobs.worker import Asked

__all__ = ["batch", "convert"]

RefineOption = Annotated[
    Literal["full", "fast", "paper"] | None, typer.Option(help="Also refine each mask, with this preset.")
]


def batch(
    images: Annotated[str, typer.Argument(help="Folder, pattern, list (.txt), table (.parquet, .csv), or a URL.")],
    output: Annotated[Path, typer.Option(help="Folder of the results; the same command goes on where it stopped.")],
    prompts: Annotated[Path | None, typer.Option(help="COCO annotations or results, CSV or Parquet.")] = None,
    everything: Annotated[bool, typer.Option("--everything", help="Segment everything, without prompts.")] = False,
    coco: Annotated[Path | None, typer.Option(help="COCO document that names the ids of COCO results.")] = None,
    refine: RefineOption = None,
    column: Annotated[str | None, typer.Option(help="Column of the images, in a table.")] = None,
    engine: Annotated[Literal["local", "ray"], typer.Option(help="Processes here, or Ray Data.")] = "local",
    processes: Annotated[int, typer.Option(min=1, help="Processes or actors, each with a model of its own.")] = 1,
    shard: Annotated[int, typer.Option(min=1, help="Images in each file of results.")] = 200,
    retry_failures: Annotated[bool, typer.Option("--retry-failures", help="Do shards with failures again.")] = False,
    points_per_side: Annotated[int | None, typer.Option(help="With --everything: clicks along a side.")] = None,
    iou_threshold: Annotated[float | None, typer.Option(help="With --everything: least predicted IoU.")] = None,
    stability_threshold: Annotated[float | None, typer.Option(help="With --everything: least stability.")] = None,
    crops: Annotated[bool | None, typer.Option(help="With --everything: look at crops of the images too.")] = None,
    intensity: Annotated[str, typer.Option(help="Beyond 8 bits: percentile, minmax, as_is.")] = "percentile",
    page: Annotated[int | None, typer.Option(help="Page of multi-page files, from 0.")] = None,
    channel: Annotated[str | None, typer.Option(help="Channel, from 0, or three as R,G,B.")] = None,
    weights: WeightsOption = "builtin",
    input_size: Annotated[int | None, typer.Option(help="Side that images are fitted into.")] = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
) -> None:
    """Segment many images: boxes or points for each, or everything in them. Resumable; failures are rows."""
    if everything == (prompts is not None):
        raise ConfigError("Give --prompts FILE, or --everything, and not both.")
    grid = {"points_per_side": points_per_side, "iou_threshold": iou_threshold}
    grid |= {"stability_threshold": stability_threshold, "crops": crops}
    given = {name: value for name, value in grid.items() if value is not None}
    if given and not everything:
        raise ConfigError(f"{', '.join('--' + name.replace('_', '-') for name in given)}: only with --everything.")
    settled = settle_threads(threads, concurrency=processes)
    from refinesam.evaluation.parquet import arrow_modules
    from refinesam.jobs.folder import JobFolder
    from refinesam.jobs.inputs import Reading
    from refinesam.jobs.run import run_job
    from refinesam.jobs.worker import Asked, Machine

    arrow_modules("batch")
    reading = Reading(intensity, page, _channels(channel))  # type: ignore[arg-type]
    asked = Asked(weights, refine, given, reading, input_size)
    folder = JobFolder(output, _settings(asked), _tasks(images, column, prompts, coco), shard)
    answering = partial(_engine(engine), asked, Machine(device, settled), processes=processes)
    totals = run_job(folder, answering, retry_failures)
    failed = f", {totals.failures} failures, listed in {output / 'failures.csv'}" if totals.failures else ""
    typer.echo(f"{totals.images} images, {totals.objects} masks in {output}{failed}")


FormatName = Literal[
    "coco",
    "coco-polygons",
    "yolo",
    "voc",
    "labelme",
    "geojson",
    "labels-png",
    "labels-tiff",
    "labels-tiff-16",
    "masks",
]


def convert(
    results: Annotated[Path, typer.Argument(help="The --output of refinesam batch.")],
    output: Annotated[Path, typer.Argument(help="A new folder; for COCO a JSON file.")],
    to: Annotated[FormatName, typer.Option(help="The format.")] = "coco",
) -> None:
    """Write the masks of refinesam batch in another format."""
    from refinesam.jobs.formats import documents, rasters, yolo
    from refinesam.jobs.formats.objects import Results

    writers: dict[FormatName, Callable[[Results, Path], None]] = {
        "coco": documents.write_coco,
        "coco-polygons": documents.write_coco_polygons,
        "yolo": yolo.write_yolo,
        "voc": rasters.write_voc,
        "labelme": documents.write_labelme,
        "geojson": documents.write_geojson,
        "labels-png": rasters.write_label_png,
        "labels-tiff": rasters.write_label_tiff,
        "labels-tiff-16": rasters.write_label_tiff_16,
        "masks": rasters.write_masks,
    }
    if to.startswith("coco"):
        check_outputs([(output, JSON)])
    job = Results(results)
    writers[to](job, output)
    left_out = f"; {job.left_out} that failed or are empty were left out" if job.left_out else ""
    typer.echo(f"{len(job.categories)} classes in {output}{left_out}")


def _tasks(images: str, column: str | None, prompts: Path | None, document: Path | None) -> list[Task]:
    from refinesam.jobs.inputs import find_sources
    from refinesam.jobs.prompts import read_prompts
    from refinesam.jobs.rows import Task

    sources = find_sources(images, column)
    if prompts is None:
        return [Task(index, source, None) for index, source in enumerate(sources)]
    by_name = read_prompts(prompts, [source.name for source in sources], document)
    return [Task(index, source, tuple(by_name.get(source.name, ()))) for index, source in enumerate(sources)]


def _settings(asked: Asked) -> JsonObject:
    """Return what decides on the answers; weights by their content."""
    from dataclasses import asdict

    from refinesam.download import file_digest
    from refinesam.registry import weights_path

    settings = asdict(asked) | asked.reading._asdict()
    del settings["reading"]
    return settings | {"weights_sha256": file_digest(weights_path(asked.weights), "sha256")}


def _engine(name: str) -> Callable[..., Iterator[tuple[Task, list[Row]]]]:
    if name == "local":
        from refinesam.jobs.local import run_local

        return run_local
    from refinesam.jobs.on_ray import run_on_ray

    return run_on_ray


def _channels(text: str | None) -> list[int] | int | None:
    if text is None:
        return None
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 3):
        raise ConfigError(f"--channel {text!r} must be one whole number, or three with commas between, such as 0,1,2.")
    return numbers[0] if len(numbers) == 1 else numbers
