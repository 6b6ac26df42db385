"""`refinesam ...`: a thin face over the API. torch is imported only by the commands that need it."""

from __future__ import annotations

import os
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from refinesam.command_options import DeviceOption, FormatOption, ThreadsOption, WeightsOption, print_json
from refinesam.command_results import prediction_document, print_predictions, write_predictions
from refinesam.errors import ConfigError, MissingExtraError, PromptError, RefineSAMError
from refinesam.evaluation.commands import evaluate, paper_table
from refinesam.files import JSON, PNG, check_outputs
from refinesam.jobs.commands import batch, convert
from refinesam.threads import settle_threads, wait_passively
from refinesam.training.commands import app as training_app

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from refinesam.types import Prompt

__all__ = ["app", "main"]

# An adapter's entry point here, "NAME = its_package.module:typer_app", becomes `refinesam NAME`.
COMMANDS = "refinesam.commands"


class _Commands(TyperGroup):
    """The commands below and the adapters'; an adapter is listed by its entry point and imported when it is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *sorted(entry_points(group=COMMANDS).names - self.commands.keys())]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if (own := super().get_command(ctx, cmd_name)) is not None or not entry_points(group=COMMANDS, name=cmd_name):
            return own
        return TyperCommand(cmd_name, help=f"The {cmd_name} adapter, which comes with the extra {cmd_name!r}.")

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None and name not in self.commands:
            command = get_command(_loaded(next(iter(entry_points(group=COMMANDS, name=name)))))
        return name, command, rest


def _loaded(command: EntryPoint) -> typer.Typer:
    try:
        adapter: typer.Typer = command.load()
        return adapter
    except ModuleNotFoundError as error:
        # The extra has the command's name.
        raise MissingExtraError(error.name or command.module, command.name) from error


app = typer.Typer(
    cls=_Commands,
    help="Promptable segmentation: EfficientSAM with Adaptive Mask Refinement.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
weights_app = typer.Typer(help="List, fetch and verify weights.", no_args_is_help=True)
app.add_typer(weights_app, name="weights")
app.add_typer(training_app, name="train")
console = Console()
errors = Console(stderr=True)

OverlayOption = Annotated[Path | None, typer.Option(help="Write a picture of the result (PNG).")]
CocoOption = Annotated[Path | None, typer.Option(help="Write the masks as COCO JSON.")]
IntensityOption = Annotated[str, typer.Option(help="How images beyond 8 bits are mapped: percentile, minmax, as_is.")]
PageOption = Annotated[int | None, typer.Option(help="Page of a multi-page file, from 0.")]
ChannelOption = Annotated[str | None, typer.Option(help="Channel, from 0, or three as R,G,B.")]
MegapixelsOption = Annotated[
    float | None, typer.Option(help="Largest image that is read; by default about 179 million pixels.")
]


def main() -> None:
    """Run the command line; refinesam's own errors, and the system's, become one line and exit code 1."""
    wait_passively()
    try:
        app()
    except BrokenPipeError:  # who reads the output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except (RefineSAMError, OSError) as error:
        errors.print(f"[bold red]Error:[/] {type(error).__name__}: ", end="")
        errors.print(str(error), markup=False, highlight=False, soft_wrap=True)  # paths and URLs stay whole
        raise SystemExit(1) from None


def _print_version(asked: bool) -> None:
    if asked:
        from refinesam import __version__

        typer.echo(f"refinesam {__version__}")
        raise typer.Exit


@app.callback()
def _every_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Take the options that come before a command."""


def _numbers(text: str, count: int, what: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != count:
        raise PromptError(f"{what} {text!r} must be {count} numbers with commas between them, such as {what} 120,80.")
    return values


def _prompt(points: list[str], negatives: list[str], boxes: list[str]) -> Prompt:
    from refinesam.types import Prompt

    if len(boxes) > 1:
        raise PromptError(f"{len(boxes)} boxes were given; one prompt names one object and takes one --box.")
    return Prompt(
        points=[_numbers(p, 2, "--point") for p in points] + [_numbers(p, 2, "--negative") for p in negatives],
        labels=[1] * len(points) + [0] * len(negatives),
        box=_numbers(boxes[0], 4, "--box") if boxes else None,
    )


@app.command()
def segment(
    image: Annotated[Path, typer.Argument(help="The image file.")],
    point: Annotated[list[str] | None, typer.Option(help="X,Y on the object; may be repeated.")] = None,
    negative: Annotated[list[str] | None, typer.Option(help="X,Y not on the object; may be repeated.")] = None,
    box: Annotated[list[str] | None, typer.Option(help="X0,Y0,X1,Y1 around the object.")] = None,
    refine: Annotated[bool, typer.Option("--refine", help="Apply Adaptive Mask Refinement.")] = False,
    weights: WeightsOption = "builtin",
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    overlay: OverlayOption = None,
    coco: CocoOption = None,
    intensity: IntensityOption = "percentile",
    page: PageOption = None,
    channel: ChannelOption = None,
    max_megapixels: MegapixelsOption = None,
    printed: FormatOption = "table",
) -> None:
    """Segment one object, named by clicks, a box, or both."""
    check_outputs([(overlay, PNG), (coco, JSON)], inputs=[image, weights])
    settled = settle_threads(threads)
    prompt = _prompt(point or [], negative or [], box or [])
    pixels = _read(image, intensity, page, channel, max_megapixels)
    prompt.check_inside((pixels.shape[0], pixels.shape[1]))
    from refinesam.loading import load

    encoded = load(weights, device=device, threads=settled).encode(pixels)
    first = encoded.predict(prompt)
    result = encoded.refine(first) if refine else first
    if printed == "json":
        print_json(prediction_document(image.name, encoded.image_hw, [result]))
    else:
        print_predictions([result], console)

    def picture() -> NDArray[np.uint8]:
        from refinesam.overlay import draw_comparison, draw_mask, draw_prompt

        if refine:
            return draw_comparison(pixels, [(first, result)])
        return draw_prompt(draw_mask(pixels, first.mask), prompt)

    write_predictions(overlay, picture, coco, image.name, encoded.image_hw, [result])


@app.command()
def everything(
    image: Annotated[Path, typer.Argument(help="The image file.")],
    points_per_side: Annotated[int | None, typer.Option(help="Clicks along each side of the grid.")] = None,
    iou_threshold: Annotated[float | None, typer.Option(help="Least predicted IoU; by default the model's.")] = None,
    stability_threshold: Annotated[float | None, typer.Option(help="Least stability; by default the model's.")] = None,
    crops: Annotated[bool | None, typer.Option(help="Look at crops too; by default in large images.")] = None,
    weights: WeightsOption = "builtin",
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    overlay: OverlayOption = None,
    coco: CocoOption = None,
    intensity: IntensityOption = "percentile",
    page: PageOption = None,
    channel: ChannelOption = None,
    max_megapixels: MegapixelsOption = None,
    printed: FormatOption = "table",
) -> None:
    """Segment everything in an image."""
    check_outputs([(overlay, PNG), (coco, JSON)], inputs=[image, weights])
    settled = settle_threads(threads)
    pixels = _read(image, intensity, page, channel, max_megapixels)
    from rich.progress import Progress

    from refinesam.automatic import AutomaticMaskGenerator
    from refinesam.loading import load

    generator = AutomaticMaskGenerator(
        load(weights, device=device, threads=settled),
        points_per_side=points_per_side,
        iou_threshold=iou_threshold,
        stability_threshold=stability_threshold,
        crops=crops,
    )
    with Progress(console=errors, transient=True) as progress:
        task = progress.add_task("Segmenting", total=None)
        predictions = generator.generate(
            pixels, on_progress=lambda done, total: progress.update(task, completed=done, total=total)
        )
    image_hw = (pixels.shape[0], pixels.shape[1])
    if printed == "json":
        print_json(prediction_document(image.name, image_hw, predictions))
    else:
        console.print(f"{len(predictions)} masks")
    from refinesam.overlay import draw_everything

    write_predictions(overlay, lambda: draw_everything(pixels, predictions), coco, image.name, image_hw, predictions)


app.command()(batch)
app.command()(convert)
app.command()(evaluate)
app.command()(paper_table)


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="Name of `refinesam weights list`, or a file of weights.")],
    output: Annotated[Path, typer.Option(help="Folder to write; an earlier export there is replaced.")],
) -> None:
    """Write a model as ONNX files, which run without refinesam and without torch."""
    from refinesam.export import export_model

    for name, size in export_model(model, output).items():
        console.print(f"{output / name}: {size:,} bytes", markup=False, highlight=False, soft_wrap=True)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for overlays and masks.")] = Path("demo_output"),
    weights: WeightsOption = "builtin",
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
) -> None:
    """Segment photographs and micrographs that come with scikit-image, with and without refinement."""
    settled = settle_threads(threads)
    from refinesam.demo import run_demo

    run_demo(output, weights, device, console, settled)


@weights_app.command("list")
def list_weights(printed: FormatOption = "table") -> None:
    """Show the weights that are known, and which of them are here."""
    from refinesam.registry import REGISTRY, status

    if printed == "json":
        known = ("name", "variant", "size", "about", "licence", "digest", "url", "note", "citation")
        entries = [{name: getattr(entry, name) for name in known} for entry in REGISTRY.values()]
        paths = [{"status": status(entry), "path": str(entry.path)} for entry in REGISTRY.values()]
        print_json([entry | path for entry, path in zip(entries, paths, strict=True)])
        return
    table = Table(Column("name", no_wrap=True), "here", "size", "licence", "good at")
    citing: dict[str, list[str]] = {}
    for entry in REGISTRY.values():
        here = {"packaged": "yes", "cached": "yes", "missing": "no"}.get(state := status(entry), state)
        table.add_row(entry.name, here, entry.size_words, entry.licence, entry.note)
        if entry.citation:
            citing.setdefault(entry.citation, []).append(entry.name)
    console.print(table)
    console.print("Please cite, for", *(f"- {', '.join(names)}: {what}." for what, names in citing.items()), sep="\n")
    console.print("`--format json` adds digests and addresses.")


@weights_app.command("fetch")
def fetch_weights(name: Annotated[str, typer.Argument(help="Name of `refinesam weights list`.")]) -> None:
    """Download weights and verify them."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    from refinesam.registry import entry_named, fetch

    columns = (BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True) as progress:
        task = progress.add_task(name, total=None)
        path = fetch(name, lambda done, total: progress.update(task, completed=done, total=total))
    console.print(str(path), soft_wrap=True)
    if citation := entry_named(name).citation:
        errors.print(f"Licence: {entry_named(name).licence}. Please cite: {citation}.", soft_wrap=True)


@weights_app.command("verify")
def verify_weights(name: Annotated[str, typer.Argument(help="Name of `refinesam weights list`.")]) -> None:
    """Check that the file of some weights is here and has the digest it should have."""
    from refinesam.registry import verify

    console.print(f"{verify(name)}: unchanged", soft_wrap=True)


def _read(
    image: Path, intensity: str, page: int | None, channel: str | None, megapixels: float | None
) -> NDArray[np.uint8]:
    from refinesam.images import read_image

    return read_image(
        image,
        intensity=intensity,  # type: ignore[arg-type]
        page=page,
        channel=None if channel is None else _channel(channel),
        max_pixels=None if megapixels is None else round(1e6 * megapixels),
    )


def _channel(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        message = f"--channel {text!r} must be one whole number or three with commas between them, such as 0,1,2."
        raise ConfigError(message) from None


if __name__ == "__main__":
    main()
