"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

__all__ = ["DeviceOption", "FormatOption", "ThreadsOption", "WeightsOption"]

WeightsOption = Annotated[str, typer.Option(help="Name of `refinesam weights list`, or a file.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
ThreadsOption = Annotated[
    int | None, typer.Option(min=1, help="Threads that compute; by default the cores this process may use.")
]
FormatOption = Annotated[
    Literal["table", "json"], typer.Option("--format", help="What is printed: for people, or for programs.")
]
