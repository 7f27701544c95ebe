# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
The plots of a report, as plotly figures.

A colour may be a variable of ``page.css``, such as ``var(--run-0)``; the page replaces it
by that of the theme, light or dark. ``meta.run`` of a trace is the index of its run, and
``meta.times`` are the training times of its points.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final, Literal, cast, final

import plotly.graph_objects as go

from warmup_plugin.metrics.base import MetricScore
from warmup_plugin.report.curves import NUM_WARMUPS, Curve, Curves, Panel
from warmup_plugin.report.lexical import NUM_POSITION_BINS, TEXTS, LexicalAnalysis

NUM_COLORS: Final = 8
"""The variables ``--run-0``, ``--run-1``, … of ``page.css``."""

_LABELS: Final = {"other reference": "another<br>reference"}

_TICKS: Final = ("begin", "middle", "end")

_SYMBOLS: Final = ("circle", "square", "diamond", "triangle-up", "x", "star")

_HEIGHT: Final = 240

_MAX_NUM_BINS: Final = 40

Indexed = Mapping[int, Any]
"""Something for each run that has it, by the index of the run."""


@final
@dataclass(frozen=True)
class Figure:
    """Holds a plot and the words around it."""

    id: str

    title: str

    note: str

    label: str
    """What a screen reader says instead of the plot."""

    height: int

    plot: Mapping[str, object]
    """``data`` and ``layout`` of plotly."""

    has_steps: bool = False
    """If ``True``, the page can show training time instead of steps."""


def color_of(run_idx: int) -> str:
    """Returns the colour of a run, the same in all of the page."""
    return f"var(--run-{run_idx % NUM_COLORS})"


def plot_curves(
    panel: Panel, names: Sequence[str], curves: Sequence[Curves], marks: Indexed
) -> Figure | None:
    """
    Plots a metric over the training of all runs.

    :param marks: The step of the checkpoint that is evaluated, which gets a ring.

    :returns: ``None`` if no run has the metric.
    """
    traces, last_values = [], []

    further: dict[str, Any] = {}

    for idx, (name, run_curves) in enumerate(zip(names, curves)):
        train, valid = run_curves.train.get(panel.key), run_curves.valid.get(panel.key)

        for curve, is_valid in ((train, False), (valid, True)):
            if curve is None:
                continue

            # A panel of validation scores has no other curves to be told from.
            is_second = is_valid and train is not None

            traces.append(_plot_curve(panel, idx, name, curve, is_valid, is_second))

        main = valid if train is None else train

        if main is not None:
            last = main.values[-1]

            value = format_share(last) if panel.is_share else f"{last:.3f}"

            last_values.append(f"{name} {value} at step {main.steps[-1]:g}")

        if train is None and valid is not None and marks.get(idx) in valid.steps:
            traces.append(_plot_ring(idx, valid, valid.steps.index(marks[idx])))

    if not traces:
        return None

    limits = sorted(_find_limits(panel, curves))

    note = panel.note

    if limits:
        note += f" Warning above {' or '.join(f'{limit:.0%}' for limit in limits)}."

    if panel.is_share or panel.begins_at_zero:
        further["yaxis_rangemode"] = "tozero"

    return _finish(
        f"curve-{_slug(panel.key)}",
        panel.title,
        note,
        last_values,
        traces,
        has_steps=True,
        y_is_share=panel.is_share,
        xaxis_title_text="step",
        hovermode="x unified",
        shapes=[_draw_line("y", limit) for limit in limits],
        **further,
    )


def _plot_curve(
    panel: Panel, idx: int, name: str, curve: Curve, is_valid: bool, is_second: bool
) -> go.Scatter:
    shows_points = is_valid or len(curve.steps) == 1

    return go.Scatter(
        x=list(curve.steps),
        y=list(curve.values),
        name=f"{name}, dev. set" if is_second else name,
        mode="lines+markers" if shows_points else "lines",
        line={
            "color": color_of(idx),
            "width": 2,
            "dash": "dash" if is_second else "solid",
        },
        marker={"size": 5, "symbol": _SYMBOLS[idx % len(_SYMBOLS)]},
        # Runs have records at other steps than the one below the pointer.
        hovertemplate=f"%{{y:{'.1%' if panel.is_share else '.3f'}}} at %{{x}}",
        meta={"run": idx, "times": list(curve.times)},
    )


def _plot_ring(idx: int, curve: Curve, at: int) -> go.Scatter:
    return go.Scatter(
        x=[curve.steps[at]],
        y=[curve.values[at]],
        mode="markers",
        marker={
            "color": color_of(idx),
            "size": 14,
            "symbol": "circle-open",
            "line": {"width": 2},
        },
        hoverinfo="skip",
        meta={"run": idx, "times": [curve.times[at]]},
    )


def _find_limits(panel: Panel, curves: Sequence[Curves]) -> set[float]:
    """Returns where runs warn of a collapse; not the same if their K differ."""
    if panel.limit is None:
        return set()

    if not panel.limit_scales_with_k:
        return {panel.limit}

    limits = set()

    for run_curves in curves:
        if NUM_WARMUPS in run_curves.train:
            k = run_curves.train[NUM_WARMUPS].values[-1]

            limits.add(panel.limit * (k - 1) / k)

    return limits


def plot_scores(
    metric: str,
    names: Sequence[str],
    scores: Mapping[int, MetricScore],
    baseline: int,
) -> Figure | None:
    """
    Plots the corpus scores of all runs with their intervals.

    :param scores: By the index of the run; those without a score are left out.

    :returns: ``None`` if there are not two scores to compare.
    """
    shown = {idx: s for idx, s in scores.items() if s.score is not None}

    if len(shown) < 2:
        return None

    traces = []

    for idx, score in shown.items():
        value = cast(float, score.score)

        error = None

        if score.ci_low is not None and score.ci_high is not None:
            error = {
                "type": "data",
                "symmetric": False,
                "array": [score.ci_high - value],
                "arrayminus": [value - score.ci_low],
                "thickness": 2,
                "width": 5,
                "color": color_of(idx),
            }

        traces.append(
            go.Scatter(
                x=[value],
                y=[names[idx]],
                name=names[idx],
                mode="markers",
                error_x=error,
                marker={
                    "color": color_of(idx),
                    "size": 10,
                    "symbol": _SYMBOLS[idx % len(_SYMBOLS)],
                },
                hovertemplate="%{x:.2f}",
                meta={"run": idx},
            )
        )

    note = "Corpus score with its 95 % interval"

    further: dict[str, Any] = {}

    if baseline in shown:
        note += "; dotted: the baseline"

        further["shapes"] = [_draw_line("x", cast(float, shown[baseline].score))]

    return _finish(
        f"score-{_slug(metric)}",
        metric,
        f"{note}.",
        [f"{names[idx]} {s.score:.2f}" for idx, s in shown.items()],
        traces,
        height=max(_HEIGHT, 90 + 30 * len(shown)),
        # The first run on top.
        yaxis_autorange="reversed",
        yaxis_type="category",
        yaxis_showgrid=False,
        **further,
    )


def plot_gains(
    id_: str,
    title: str,
    note: str,
    names: Sequence[str],
    gains: Mapping[int, Sequence[float]],
    unit: str,
) -> Figure | None:
    """Plots how the gains of sentences are distributed, one curve a run."""
    values = [value for run_gains in gains.values() for value in run_gains]

    if not values:
        return None

    width = _choose_width(min(values), max(values))

    bins = {
        idx: Counter(math.floor(value / width + 0.5) for value in run_gains)
        for idx, run_gains in gains.items()
        if run_gains
    }

    first = min(min(counts) for counts in bins.values()) - 1
    last = max(max(counts) for counts in bins.values()) + 1

    traces = [
        go.Scatter(
            x=[bin_idx * width for bin_idx in range(first, last + 1)],
            y=[counts[bin_idx] / len(gains[idx]) for bin_idx in range(first, last + 1)],
            name=names[idx],
            mode="lines",
            line={"color": color_of(idx), "width": 2, "shape": "hvh"},
            # Several would cover each other.
            fill="tozeroy" if len(bins) == 1 else "none",
            hovertemplate="%{y:.1%}",
            meta={"run": idx},
        )
        for idx, counts in bins.items()
    ]

    return _finish(
        id_,
        title,
        f"{note} Steps of {width:g}; dotted: no difference.",
        [f"{names[idx]} {fmean(gains[idx]):+.2f} on average" for idx in bins],
        traces,
        y_is_share=True,
        hovermode="x unified",
        xaxis_title_text=unit,
        yaxis_rangemode="tozero",
        shapes=[_draw_line("x", 0.0)],
    )


def plot_overlap(
    n: int, names: Sequence[str], analyses: Mapping[int, LexicalAnalysis]
) -> Figure:
    """Plots what share of the n-grams of warmups other texts have too."""
    labels = [_LABELS.get(text, text) for text in TEXTS]

    traces = [
        _plot_bars(idx, names, labels, [analysis.overlaps[text, n] for text in TEXTS])
        for idx, analysis in analyses.items()
    ]

    kind = {1: "words", 2: "pairs of neighbouring words"}[n]

    return _finish(
        f"overlap-{n}",
        f"{'Unigram' if n == 1 else 'Bigram'} overlap of the warmup",
        f"Of all {kind}, those that the text has too. Right: chance level.",
        [
            f"{names[idx]} {format_share(analysis.overlaps['reference', n])} in the reference"
            for idx, analysis in analyses.items()
        ],
        traces,
        y_is_share=True,
        barmode="group",
        xaxis_tickangle=0,
        yaxis_range=[0, 1],
    )


def plot_positions(
    names: Sequence[str], analyses: Mapping[int, LexicalAnalysis]
) -> Figure | None:
    """Plots where in the reference the words stand that warmups share with it."""
    shown = {idx: a for idx, a in analyses.items() if a.positions}

    if not shown:
        return None

    width = 1 / NUM_POSITION_BINS

    traces = [
        go.Scatter(
            x=[(bin_idx + 0.5) * width for bin_idx in range(NUM_POSITION_BINS)],
            y=list(analysis.positions),
            name=names[idx],
            mode="lines+markers",
            line={"color": color_of(idx), "width": 2},
            marker={"size": 6, "symbol": _SYMBOLS[idx % len(_SYMBOLS)]},
            hovertemplate="%{y:.1%}",
            meta={"run": idx},
        )
        for idx, analysis in shown.items()
    ]

    return _finish(
        "positions",
        "Where the shared words stand in the reference",
        "Of the words that warmup and reference share, those in each tenth of the reference. Dotted: evenly spread.",
        [f"{names[idx]} {a.mean_position:.2f} on average" for idx, a in shown.items()],
        traces,
        y_is_share=True,
        hovermode="x unified",
        xaxis={"range": [0, 1], "tickvals": [0, 0.5, 1], "ticktext": _TICKS},
        yaxis_rangemode="tozero",
        shapes=[_draw_line("y", width)],
    )


def plot_lengths(
    names: Sequence[str], analyses: Mapping[int, LexicalAnalysis]
) -> Figure:
    """Plots how long warmups are."""
    traces = []

    longest = max(max(a.lengths) for a in analyses.values())

    width = math.ceil((longest + 1) / _MAX_NUM_BINS)

    for idx, analysis in analyses.items():
        counts = Counter(length // width for length in analysis.lengths)

        bins = range(longest // width + 1)

        traces.append(
            _plot_bars(
                idx,
                names,
                [bin_idx * width + (width - 1) / 2 for bin_idx in bins],
                [counts[bin_idx] / len(analysis.lengths) for bin_idx in bins],
            )
        )

    note = "Of all warmups, those with so many words"

    note += f", in steps of {width}." if width > 1 else "."

    return _finish(
        "lengths",
        "Length of the warmup",
        note,
        [
            f"{names[idx]} {analysis.mean_length:.1f} words on average"
            for idx, analysis in analyses.items()
        ],
        traces,
        y_is_share=True,
        hovermode="x unified",
        barmode="group",
        bargap=0.1,
        xaxis_title_text="words",
    )


def _plot_bars(
    idx: int, names: Sequence[str], x: Sequence[Any], y: Sequence[Any]
) -> go.Bar:
    return go.Bar(
        x=x,
        y=y,
        name=names[idx],
        marker={"color": color_of(idx)},
        hovertemplate="%{y:.1%}",
        meta={"run": idx},
    )


def format_share(value: float | None) -> str:
    """Formats a share as a percentage."""
    return "–" if value is None else f"{100 * value:.1f} %"


def _layout(height: int, y_is_share: bool) -> Any:
    axis = {
        "automargin": True,
        "gridcolor": "var(--line)",
        "linecolor": "var(--line-strong)",
        "zerolinecolor": "var(--line-strong)",
        "title": {"font": {"color": "var(--text-soft)", "size": 11}, "standoff": 6},
    }

    return go.Layout(
        # Else plotly puts its default one, 6 KB, into each figure.
        template=go.layout.Template(),
        height=height,
        margin={"l": 44, "r": 12, "t": 8, "b": 36},
        font={
            "color": "var(--text-soft)",
            "family": "system-ui, sans-serif",
            "size": 11,
        },
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        hoverlabel={
            "bgcolor": "var(--panel)",
            "bordercolor": "var(--line-strong)",
            "font": {"color": "var(--text)", "size": 12},
        },
        # A finger that scrolls over a plot is not to zoom it.
        dragmode=False,
        # Of the colour of the paper otherwise, which has none.
        modebar={
            "bgcolor": "rgba(0,0,0,0)",
            "color": "var(--line-strong)",
            "activecolor": "var(--accent)",
        },
        # The runs in the head of the page are the legend of all plots.
        showlegend=False,
        xaxis={
            **axis,
            "spikecolor": "var(--line-strong)",
            "spikedash": "solid",
            "spikethickness": 1,
        },
        yaxis={**axis, "tickformat": ".0%"} if y_is_share else axis,
    )


def _draw_line(across: Literal["x", "y"], at: float) -> dict[str, object]:
    """Draws a line through all of a plot at a place on one of its axes."""
    along = "y" if across == "x" else "x"

    return {
        "type": "line",
        f"{along}ref": "paper",
        f"{along}0": 0,
        f"{along}1": 1,
        f"{across}0": at,
        f"{across}1": at,
        "line": {"color": "var(--text-soft)", "width": 1, "dash": "dot"},
    }


def _finish(
    id_: str,
    title: str,
    note: str,
    labels: Sequence[str],
    traces: Sequence[Any],
    *,
    has_steps: bool = False,
    height: int = _HEIGHT,
    y_is_share: bool = False,
    **further: object,
) -> Figure:
    """
    Makes a figure.

    :param labels: What is to be said of each run.
    :param further: What is particular about the layout.
    """
    layout = _layout(height, y_is_share).update(**further)

    figure = go.Figure(data=list(traces), layout=layout)

    # Numbers that are not finite become `null`.
    plot = cast("dict[str, object]", json.loads(figure.to_json()))

    label = f"{title}: {'; '.join(labels)}."

    return Figure(id_, title, note, label, height, plot, has_steps)


def _choose_width(low: float, high: float) -> float:
    """Chooses a round width of bins."""
    least = max(high - low, 1e-6) / _MAX_NUM_BINS

    power = 10.0 ** math.floor(math.log10(least))

    return next(f * power for f in (1, 2, 5, 10) if f * power >= least)


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text.lower()).strip("-")
