"""Options that several commands share, and what they print for programs."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import typer

__all__ = ["DeviceOption", "FormatOption", "ThreadsOption", "WeightsOption", "print_json"]

WeightsOption = Annotated[str, typer.Option(help="Name of `refinesam weights list`, or a file.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
ThreadsOption = Annotated[
    int | None, typer.Option(min=1, help="Threads that compute; by default the cores this process may use.")
]
FormatOption = Annotated[
    Literal["table", "json"], typer.Option("--format", help="What is printed: for people, or for programs.")
]


def print_json(content: object) -> None:
    """Print for programs: JSON on standard output, which has no NaN and no infinity."""
    typer.echo(json.dumps(content, indent=1, allow_nan=False))
