# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""The figure of a suite: scores, or gains, against a number that its tasks give."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, final
from xml.sax.saxutils import escape

from warmup_plugin.metrics.registry import METRICS
from warmup_plugin.suite.grid import FigureSpec, Grid
from warmup_plugin.suite.results import SuiteResult


@final
@dataclass(frozen=True)
class Series:
    """Holds the line of a system."""

    title: str

    color_idx: int

    is_constant: bool
    """Whether the system does not depend on the task, as a cascade."""

    points: Mapping[float, Sequence[float]]
    """By the number of the task, in ascending order, one value a seed."""


@final
@dataclass(frozen=True)
class Theme:
    """Holds the colors of a figure, whose background is that of the page."""

    text: str

    soft: str

    line: str

    systems: Sequence[str]


# As in the pages of `report`.
THEMES: Final = {
    "light": Theme(
        "#1b2027",
        "#59626f",
        "#dfe3e8",
        [
            *("#5c6673", "#0b6bcb", "#c2480c", "#0b7a4b"),
            *("#7a3fc0", "#b3157f", "#836200", "#00758a"),
        ],
    ),
    "dark": Theme(
        "#e7eaef",
        "#9ba5b3",
        "#2f3640",
        [
            *("#a3adba", "#5aabff", "#ff9a5c", "#45cf90"),
            *("#c29bff", "#ff7fc8", "#e2c04f", "#43cbe0"),
        ],
    ),
}


def collect_series(result: SuiteResult) -> list[Series]:
    """Collects the lines of the figure, as far as they have been measured."""
    grid, figure = result.grid, result.grid.figure

    if figure is None:
        return []

    scores = _collect_scores(result, figure.metric)

    tasks = {task.x: task for task in grid.tasks if task.x is not None}

    systems = [s for s in grid.systems if s.is_scored and s.name != figure.gain_over]

    series = []

    for idx, system in enumerate(systems):
        points: dict[float, Sequence[float]] = {}

        for x, task in sorted(tasks.items()):
            own = scores.get((task.name, system.name), {})

            base = dict.fromkeys(own, 0.0)

            if figure.gain_over is not None:
                base = scores.get((task.name, figure.gain_over), {})

            values = [
                own[seed] - base[seed]
                for seed in grid.seeds
                if seed in own and seed in base
            ]

            if values:
                points[x] = values

        if points:
            is_constant = system.cascade is not None

            # The first color is gray, and that of the zero line.
            color_idx = idx + (0 if figure.gain_over is None else 1)

            series.append(Series(system.title, color_idx, is_constant, points))

    return series


def _collect_scores(
    result: SuiteResult, key: str
) -> dict[tuple[str, str], dict[int, float]]:
    """Collects a score by task and system and then by seed; that of a cascade, which
    trains nothing, also of like tasks."""
    scores: dict[tuple[str, str], dict[int, float]] = {}

    for entry in result.tasks:
        task = entry.task

        # Of several splits the first.
        if entry.split is not task.splits[0]:
            continue

        like = [
            other
            for other in result.grid.tasks
            if task.x is not None
            and (other.splits, other.directions) == (task.splits, task.directions)
        ]

        for system in entry.systems:
            for other in [task] if system.system.cascade is None else [task, *like]:
                by_seed = scores.setdefault((other.name, system.system.name), {})

                for run in system.runs:
                    if key in run.scores:
                        by_seed.setdefault(run.run.seed, run.scores[key])

    return scores


# Of the whole figure and of what is around the plot, in pixels.
_WIDTH: Final = 720
_HEIGHT: Final = 420
_LEFT: Final = 52
_TOP: Final = 40
_BOTTOM: Final = 74

_LABEL_HEIGHT: Final = 17

# Of common sans-serif fonts, a bold one and a regular one.
_BOLD_WIDTH: Final = 8.4
_CHAR_WIDTH: Final = 7.2


def format_figure(result: SuiteResult, theme: Theme) -> str | None:
    """
    Draws the figure of a suite as SVG.

    :returns: ``None`` if there is nothing to draw yet, or the grid asks for no figure.
    """
    series = collect_series(result)

    figure = result.grid.figure

    if figure is None or not series:
        return None

    return "\n".join(_Drawing(result.grid, figure, series, theme).draw()) + "\n"


@final
class _Drawing:
    def __init__(
        self, grid: Grid, figure: FigureSpec, series: Sequence[Series], theme: Theme
    ) -> None:
        self._grid = grid
        self._figure = figure
        self._series = series
        self._theme = theme

        # The line that gains are measured from.
        self._zero_title: str | None = None

        if figure.gain_over is not None:
            self._zero_title = grid.system(figure.gain_over).title

        titles = [s.title for s in series] + [self._zero_title or ""]

        right = 22 + max(len(title) for title in titles) * _BOLD_WIDTH

        self._plot_right = _WIDTH - right
        self._plot_bottom = _HEIGHT - _BOTTOM

        # Also those of tasks that have not been measured yet.
        self._xs = sorted({t.x for t in grid.tasks if t.x is not None})

        values = [v for s in series for vs in s.points.values() for v in vs]

        if self._zero_title is not None:
            values.append(0.0)

        self._ticks = make_ticks(min(values), max(values))

    def _to_x(self, value: float) -> float:
        low, high = math.log(self._xs[0]), math.log(self._xs[-1])

        # Away from the axis.
        left, right = _LEFT + 22.0, self._plot_right - 12.0

        return left + (math.log(value) - low) / (high - low) * (right - left)

    def _to_y(self, value: float) -> float:
        low, high = self._ticks[0], self._ticks[-1]

        share = (value - low) / (high - low)

        return self._plot_bottom - share * (self._plot_bottom - _TOP)

    def draw(self) -> Iterator[str]:
        theme = self._theme

        names = {key: name for m in METRICS.values() for key, name in m.names.items()}

        y_title = names[self._figure.metric]

        if self._zero_title is not None:
            y_title += f", gain over {self._zero_title}"

        yield (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
            f'width="{_WIDTH}" height="{_HEIGHT}" role="img" font-size="13" '
            'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, '
            f'sans-serif" fill="{theme.text}">'
        )

        yield f"<title>{escape(self._grid.name)}: {escape(y_title)}</title>"

        yield f"<desc>{escape(self._describe())}</desc>"

        yield draw_text(_LEFT - 40, 20, y_title, weight=600)

        yield from self._draw_axes()

        # Bands lie below all lines.
        for series in self._series:
            yield from self._draw_band(series)

        for series in self._series:
            yield from self._draw_line(series)

        yield from self._draw_labels()

        yield draw_text(
            _LEFT - 40, _HEIGHT - 10, self._describe_seeds(), theme.soft, 11.5
        )

        yield "</svg>"

    def _describe(self) -> str:
        parts = []

        for series in self._series:
            means = [
                f"{statistics.fmean(values):.2f} at {x:,g}"
                for x, values in series.points.items()
            ]

            parts.append(f"{series.title}: {', '.join(means)}")

        return ". ".join(parts) + "."

    def _describe_seeds(self) -> str:
        num_seeds = max(len(vs) for s in self._series for vs in s.points.values())

        if num_seeds == 1:
            return "One seed."

        return (
            f"Lines: mean of up to {num_seeds} seeds. Bands: from the lowest to the "
            "highest seed."
        )

    def _draw_axes(self) -> Iterator[str]:
        theme, right, bottom = self._theme, self._plot_right, self._plot_bottom

        for tick in self._ticks:
            y = self._to_y(tick)

            is_zero = self._zero_title is not None and tick == 0.0

            color, width = (theme.systems[0], 1.5) if is_zero else (theme.line, 1.0)

            yield draw_line([(_LEFT, y), (right, y)], color, width)

            yield draw_text(
                _LEFT - 8,
                y + 4,
                f"{tick:g}".replace("-", "\u2212"),
                theme.soft,
                anchor="end",
            )

        last_x = -math.inf

        for number in self._xs:
            x = self._to_x(number)

            yield draw_line([(x, bottom), (x, bottom + 5)], theme.soft, 1.0)

            label = f"{number:,g}"

            # Ticks without a number are better than numbers in each other.
            if x - last_x > len(label) * _CHAR_WIDTH + 8:
                yield draw_text(x, bottom + 20, label, theme.soft, anchor="middle")

                last_x = x

        yield draw_text(
            (_LEFT + right) / 2, bottom + 40, self._figure.x_title, anchor="middle"
        )

    def _draw_band(self, series: Series) -> Iterator[str]:
        if max(len(values) for values in series.points.values()) == 1:
            return

        if len(series.points) == 1:
            [(x, values)] = series.points.items()

            ends = [
                (self._to_x(x), self._to_y(end)) for end in (min(values), max(values))
            ]

            yield draw_line(ends, self._color(series), 6.0, opacity=0.3)

            return

        upper = [(self._to_x(x), self._to_y(max(v))) for x, v in series.points.items()]
        lower = [(self._to_x(x), self._to_y(min(v))) for x, v in series.points.items()]

        yield (
            f'<polygon points="{_format_points([*upper, *reversed(lower)])}" '
            f'fill="{self._color(series)}" fill-opacity="0.16"/>'
        )

    def _draw_line(self, series: Series) -> Iterator[str]:
        points = self._get_means(series)

        color = self._color(series)

        yield draw_line(points, color, 2.0, dash="7 5" if series.is_constant else None)

        if not series.is_constant:
            for x, y in points:
                yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{color}"/>'

    def _draw_labels(self) -> Iterator[str]:
        ends = [
            (*self._get_means(series)[-1], series.title, self._color(series))
            for series in self._series
        ]

        if self._zero_title is not None:
            color = self._theme.systems[0]

            ends.append((self._plot_right, self._to_y(0.0), self._zero_title, color))

        ends.sort(key=lambda end: end[1])

        places = spread([y for _, y, *_ in ends], _LABEL_HEIGHT, self._plot_bottom)

        for (x, y, title, color), place in zip(ends, places):
            left = self._plot_right + 14

            # Shows what a label belongs to that is not beside its end.
            if abs(place - y) > 2.0 or left - x > 40.0:
                begin = max(x + 6, self._plot_right - 6)

                yield draw_line([(begin, y), (left - 3, place)], color, 0.8)

            yield draw_text(left, place + 4.5, title, color, weight=600)

    def _get_means(self, series: Series) -> list[tuple[float, float]]:
        return [
            (self._to_x(x), self._to_y(statistics.fmean(values)))
            for x, values in series.points.items()
        ]

    def _color(self, series: Series) -> str:
        colors = self._theme.systems

        return colors[series.color_idx % len(colors)]


def make_ticks(low: float, high: float) -> list[float]:
    """Returns a few round numbers that enclose a range."""
    # Of equal numbers, and a little around them.
    size = max(high - low, abs(high) * 0.02, 0.01)

    raw = size / 5.0

    power: float = 10.0 ** math.floor(math.log10(raw))

    step = next(m * power for m in (1.0, 2.0, 5.0, 10.0) if m * power >= raw * 0.999)

    first, last = math.floor(low / step), math.ceil(high / step)

    if first == last:
        last += 1

    # A product of the step may be 0.30000000000000004.
    return [round(n * step, 10) for n in range(first, last + 1)]


def spread(places: Sequence[float], distance: float, end: float) -> list[float]:
    """
    Moves labels apart.

    :param places: In ascending order.
    :param distance: The least between two.
    :param end: What the last one may not go beyond.
    """
    moved: list[float] = []

    for place in places:
        moved.append(max(place, moved[-1] + distance) if moved else place)

    limit = end

    for idx in reversed(range(len(moved))):
        moved[idx] = min(moved[idx], limit)

        limit = moved[idx] - distance

    return moved


def _format_points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def draw_line(
    points: Sequence[tuple[float, float]],
    color: str,
    width: float,
    *,
    dash: str | None = None,
    opacity: float = 1.0,
) -> str:
    """Draws a line through several points, in SVG."""
    further = "" if dash is None else f' stroke-dasharray="{dash}"'

    further += "" if opacity == 1.0 else f' stroke-opacity="{opacity}"'

    return (
        f'<polyline points="{_format_points(points)}" fill="none" stroke="{color}" '
        f'stroke-width="{width:g}" stroke-linejoin="round"{further}/>'
    )


def draw_text(
    x: float,
    y: float,
    text: str,
    color: str | None = None,
    size: float | None = None,
    *,
    anchor: str = "start",
    weight: int = 400,
) -> str:
    """Draws text, in SVG."""
    attributes = [f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"']

    if color is not None:
        attributes.append(f'fill="{color}"')

    if size is not None:
        attributes.append(f'font-size="{size:g}"')

    if weight != 400:
        attributes.append(f'font-weight="{weight}"')

    return f"<text {' '.join(attributes)}>{escape(text)}</text>"
