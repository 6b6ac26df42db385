"""Plots as inline SVG: bars, histograms, reliability diagrams, curves. Colours come from the page's CSS variables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from refinesam.evaluation.calibration import Calibration

__all__ = ["bar_chart", "curve", "histogram", "reliability_diagram"]

WIDTH, HEIGHT = 420, 260
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 28, 40
# In the order of the series.
COLORS = ("var(--first)", "var(--refined)", "var(--other)")


@dataclass(frozen=True)
class _Axes:
    """Data coordinates to those of the picture."""

    x: tuple[float, float]
    y: tuple[float, float]

    def at_x(self, value: float) -> float:
        """Return the horizontal place of a value."""
        low, high = self.x
        return LEFT + (value - low) / ((high - low) or 1) * (WIDTH - LEFT - RIGHT)

    def at_y(self, value: float) -> float:
        """Return the vertical place of a value."""
        low, high = self.y
        return HEIGHT - BOTTOM - (value - low) / ((high - low) or 1) * (HEIGHT - TOP - BOTTOM)


def histogram(values: Sequence[float], title: str, label: str, *, limits: tuple[float, float], bins: int = 40) -> str:
    """Draw how often values occur; those beyond the limits count in the first and last bin.

    Args:
        values: any number.
        title: above the plot.
        label: of the horizontal axis.
        limits: of the horizontal axis. From a negative number on the values are changes, coloured by their sign.
        bins: how many; an odd number gives no change a bin of its own.
    """
    counts, edges = np.histogram(np.clip(np.asarray(values, float), *limits), bins=bins, range=limits)
    # Even, so that the tick in the middle is a whole number of objects.
    axes = _Axes(limits, (0, float(2 * max(1, math.ceil(counts.max() / 2)))))
    parts = []
    for count, low, high in zip(counts.tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        color = COLORS[0] if limits[0] >= 0 else "var(--worse)" if high <= 0 else "var(--better)"
        if low < 0 < high:
            color = "var(--same)"
        parts.append(
            _bar(
                axes.at_x(low),
                axes.at_x(high),
                axes.at_y(0),
                axes.at_y(count),
                color,
                f"{low:.3g} to {high:.3g}: {count}",
            )
        )
    return _picture(title, label, "objects", axes, parts, [limits[0], (limits[0] + limits[1]) / 2, limits[1]])


def bar_chart(groups: Mapping[str, Mapping[str, float | None]], title: str, label: str) -> str:
    """Draw bars between 0 and 1, side by side in each group; missing values leave a gap.

    Args:
        groups: by the group's name, values by the series' name; the same series in each.
        title: above the plot.
        label: of the vertical axis.
    """
    axes = _Axes((0, max(1, len(groups))), (0, 1))
    series = list(next(iter(groups.values()), {}))
    width = 0.8 / max(1, len(series))
    parts = []
    for index, (name, values) in enumerate(groups.items()):
        parts.append(_text(axes.at_x(index + 0.5), HEIGHT - BOTTOM + 15, name, "middle"))
        for place, kind in enumerate(series):
            value = values[kind]
            if value is not None:
                start = axes.at_x(index + 0.1 + place * width)
                end = axes.at_x(index + 0.1 + (place + 1) * width)
                parts.append(
                    _bar(start, end, axes.at_y(0), axes.at_y(value), COLORS[place], f"{name}, {kind}: {value:.3f}")
                )
                parts.append(_text((start + end) / 2, axes.at_y(value) - 3, f"{value:.2f}", "middle"))
    return _picture(title, "", label, axes, [*parts, *_legend(series)], [])


def reliability_diagram(calibrations: Mapping[str, Calibration], title: str) -> str:
    """Draw mean true against mean predicted IoU of each bin; the area of a dot is the bin's share of the objects.

    Args:
        calibrations: by the series' name.
        title: above the plot.
    """
    axes = _Axes((0, 1), (0, 1))
    line = f'<line x1="{axes.at_x(0)}" y1="{axes.at_y(0)}" x2="{axes.at_x(1)}" y2="{axes.at_y(1)}" class="grid"/>'
    parts = [line]
    for place, (name, measured) in enumerate(calibrations.items()):
        total = sum(bin_.objects for bin_ in measured.bins)
        for bin_ in measured.bins:
            if bin_.predicted is not None and bin_.actual is not None:
                tip = f"{name}: predicted {bin_.predicted:.2f}, true {bin_.actual:.2f}, {bin_.objects} objects"
                radius = 3 + 12 * (bin_.objects / total) ** 0.5
                parts.append(
                    f'<circle cx="{axes.at_x(bin_.predicted):.1f}" cy="{axes.at_y(bin_.actual):.1f}" r="{radius:.1f}" '
                    f'fill="{COLORS[place]}" fill-opacity="0.7"><title>{escape(tip)}</title></circle>'
                )
    return _picture(title, "predicted IoU", "true IoU", axes, [*parts, *_legend(list(calibrations))], [0, 0.5, 1])


def curve(values: Sequence[float | None], title: str, label: str) -> str:
    """Draw values between 0 and 1 over 1, 2, 3, ...

    Args:
        values: None where there is none.
        title: above the plot.
        label: of the horizontal axis.
    """
    axes = _Axes((1, max(2, len(values))), (0, 1))
    known = [(number, value) for number, value in enumerate(values, start=1) if value is not None]
    points = " ".join(f"{axes.at_x(number):.1f},{axes.at_y(value):.1f}" for number, value in known)
    parts = [f'<polyline points="{points}" fill="none" stroke="{COLORS[0]}" stroke-width="2"/>']
    return _picture(title, label, "mIoU", axes, parts, [1, max(2, len(values))])


def _picture(title: str, x_label: str, y_label: str, axes: _Axes, parts: Sequence[str], ticks: Sequence[float]) -> str:
    low, high = axes.y
    grid = []
    for value in (low, (low + high) / 2, high):
        grid.append(
            f'<line x1="{LEFT}" y1="{axes.at_y(value)}" x2="{WIDTH - RIGHT}" y2="{axes.at_y(value)}" class="grid"/>'
        )
        grid.append(_text(LEFT - 5, axes.at_y(value) + 4, f"{value:g}", "end"))
    below = [_text(axes.at_x(tick), HEIGHT - BOTTOM + 15, f"{tick:g}", "middle") for tick in ticks]
    labels = [
        _text(LEFT, 16, title, "start", "title"),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x_label, "middle"),
        f'<g transform="rotate(-90 12 {HEIGHT / 2})">{_text(12, HEIGHT / 2, y_label, "middle")}</g>',
    ]
    content = "".join([*grid, *below, *parts, *labels])
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{content}</svg>'


def _bar(start: float, end: float, foot: float, head: float, color: str, tip: str) -> str:
    size = f'width="{max(0.5, end - start - 1):.1f}" height="{max(0.0, foot - head):.1f}"'
    return f'<rect x="{start:.1f}" y="{head:.1f}" {size} fill="{color}"><title>{escape(tip)}</title></rect>'


def _legend(names: Sequence[str]) -> list[str]:
    if len(names) < 2:
        return []
    parts = []
    for place, name in enumerate(names):
        y = TOP + 6 + 15 * place
        parts.append(f'<rect x="{LEFT + 8}" y="{y}" width="10" height="10" fill="{COLORS[place]}"/>')
        parts.append(_text(LEFT + 23, y + 9, name, "start"))
    return parts


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{escape(text)}</text>'
