# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
How does the cost grow as the work grows?

One small model of each size, in turn in one process:

- a training step, by SFT and with warmups (one candidate kept), against K, the length of
  the warmups, that of the sources and the size of the vocabulary, beside what the number
  of operations predicts;
- a sentence to translate, without warmup and with one, against the beam and the number of
  sentences of a batch;
- the time until the first batch of a training, tokenised for the first time and mapped
  from the cache, against the number of pairs.

A curve that bends upward where the work does not is a fault. ``--figure`` draws all curves
as SVG, light and dark. 20 minutes of a core. ::

    python scripts/bench_growth.py --rounds 3 --clock cpu --figure docs/figures/growth
    python scripts/bench_growth.py --curves step-k,beam
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, final
from xml.sax.saxutils import escape

import torch

if not __package__:
    # Started as a file: the folder of the package is not on the path then.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.bench_common import (
    BenchParser,
    Setting,
    create_batch,
    format_table,
    get_clock,
    measure_alternating,
    parse_names,
    prepare_device,
    print_record,
)
from scripts.bench_corpus import measure_in_process, write_text
from scripts.generation_systems import create_random_job, create_system
from scripts.step_variants import BenchStep, create_step, predict_variant
from warmup_plugin.suite.figure import THEMES, Theme, draw_line, draw_text

SETTING: Final = Setting(
    name="growth",
    model_dim=128,
    num_layers=2,
    vocab_size=6000,
    source_len=20,
    target_len=20,
    warmup_len=8,
    num_warmups=4,
)

NUM_SOURCES: Final = 16
"""Of a training step."""

NUM_SENTENCES: Final = 64
"""To translate with each beam."""

BEAM: Final = 5
"""With each size of a batch."""


@final
@dataclass
class Line:
    """Holds the seconds of one thing at each size of the work."""

    title: str

    points: dict[int, list[float]] = field(default_factory=dict)
    """One value a round."""

    predicted: dict[int, float] = field(default_factory=dict)
    """What the number of operations makes of the SFT step of the same size."""

    def median(self, x: int) -> float:
        """Returns the seconds at one size."""
        return statistics.median(self.points[x])

    def steepness(self) -> list[float]:
        """Returns the powers of the work that the seconds grow with, from each size to
        the next: 1 is in proportion."""
        xs = list(self.points)

        return [
            math.log(self.median(high) / self.median(low)) / math.log(high / low)
            for low, high in zip(xs, xs[1:])
        ]


@final
@dataclass(frozen=True)
class Curve:
    """Describes what is measured against what."""

    title: str

    x_title: str

    xs: Sequence[int]

    measure: Callable[[Curve, argparse.Namespace], list[Line]]


def _measure_steps(
    change: Callable[[int], Setting],
) -> Callable[[Curve, argparse.Namespace], list[Line]]:
    def measure(curve: Curve, args: argparse.Namespace) -> list[Line]:
        device = torch.device(args.device)

        settings = {x: change(x) for x in curve.xs}

        steps: dict[tuple[int, str], BenchStep] = {}

        for x, setting in settings.items():
            batch = create_batch(setting, NUM_SOURCES * setting.target_len, device)

            for name in ("sft", "marginal-1"):
                steps[x, name] = create_step(
                    name, setting, batch, device, torch.float32
                )

        def clear() -> None:
            for step in steps.values():
                step.clear()

        times = measure_alternating(
            {f"{name} {x}": step for (x, name), step in steps.items()},
            device,
            num_rounds=args.rounds,
            between=clear,
            clock=get_clock(args),
        )

        sft = Line("SFT", {x: times[f"sft {x}"] for x in curve.xs})

        warmup = Line("warmup", {x: times[f"marginal-1 {x}"] for x in curve.xs})

        for x, setting in settings.items():
            multiple = predict_variant(setting, "marginal-1")

            assert multiple is not None

            warmup.predicted[x] = multiple * sft.median(x)

        return [sft, warmup]

    return measure


_SYSTEMS: Final = {"ours": "no warmup", "single": "a warmup first"}


def _measure_translation(
    list_jobs: Callable[[int], tuple[int, int, int]],
) -> Callable[[Curve, argparse.Namespace], list[Line]]:
    """
    :param list_jobs: Returns the beam, the sentences of a batch, and those of all.
    """

    def measure(curve: Curve, args: argparse.Namespace) -> list[Line]:
        device = torch.device(args.device)

        steps: dict[str, Callable[[], None]] = {}

        def add(x: int, name: str) -> None:
            beam, batch_size, num_sentences = list_jobs(x)

            job = create_random_job(SETTING, num_sentences)

            system = create_system(name, job, device, beam, args.threads)

            sources = sorted(job.sources, key=len)

            def step() -> None:
                for start in range(0, num_sentences, batch_size):
                    system(sources[start : start + batch_size])

            steps[f"{name} {x}"] = step

        for x in curve.xs:
            for name in _SYSTEMS:
                add(x, name)

        times = measure_alternating(
            steps, device, num_rounds=args.rounds, clock=get_clock(args)
        )

        return [
            Line(
                title,
                {
                    x: [t / list_jobs(x)[2] for t in times[f"{name} {x}"]]
                    for x in curve.xs
                },
            )
            for name, title in _SYSTEMS.items()
        ]

    return measure


def _measure_starts(curve: Curve, args: argparse.Namespace) -> list[Line]:
    first, later = Line("first start"), Line("later starts")

    for x in curve.xs:
        with tempfile.TemporaryDirectory() as temp_dir:
            folder = Path(temp_dir)

            write_text(folder / "work", x)

            for line in (first, later):
                print(f"{line.title}: {x:,} pairs", file=sys.stderr, flush=True)

                figures = measure_in_process(folder / "work", str(folder / "cache"))

                line.points[x] = [figures["seconds"]]

    return [first, later]


CURVES: Final = {
    "step-k": Curve(
        "A training step: K",
        "warmups a source",
        (1, 2, 4, 8, 16, 32),
        _measure_steps(lambda x: replace(SETTING, num_warmups=x)),
    ),
    "step-warmup": Curve(
        "A training step: length of c",
        "tokens of a warmup",
        (4, 8, 16, 32, 64, 128),
        _measure_steps(lambda x: replace(SETTING, warmup_len=x)),
    ),
    "step-source": Curve(
        "A training step: length of x",
        "tokens of a source",
        (16, 64, 256, 1024),
        _measure_steps(lambda x: replace(SETTING, source_len=x)),
    ),
    "step-vocab": Curve(
        "A training step: vocabulary",
        "tokens of the vocabulary",
        (2000, 8000, 32_000, 128_000),
        _measure_steps(lambda x: replace(SETTING, vocab_size=x)),
    ),
    "beam": Curve(
        "A sentence: beam",
        "beam",
        (1, 2, 4, 8, 16),
        _measure_translation(lambda x: (x, 32, NUM_SENTENCES)),
    ),
    "batch": Curve(
        "A sentence: size of a batch",
        "sentences of a batch",
        (1, 4, 16, 64, 256),
        _measure_translation(lambda x: (BEAM, x, max(16, x))),
    ),
    "start": Curve(
        "First batch: size of the text",
        "pairs",
        (1000, 10_000, 100_000, 1_000_000),
        _measure_starts,
    ),
}


def _format_curve(curve: Curve, lines: Sequence[Line]) -> str:
    rows = []

    for line in lines:
        steepness = ["", *[f"{power:.2f}" for power in line.steepness()]]

        for x, power in zip(curve.xs, steepness):
            predicted = line.predicted.get(x)

            rows.append(
                [
                    line.title,
                    f"{x:,}",
                    f"{line.median(x):.4f}",
                    power,
                    "" if predicted is None else f"{predicted:.4f}",
                    "" if predicted is None else f"{line.median(x) / predicted:.2f}",
                ]
            )

    header = ["", curve.x_title, "seconds", "power", "predicted", "x / predicted"]

    return format_table(header, rows)


# Of a plot and of what is around it, in pixels.
_COLUMNS: Final = 2
_WIDTH: Final = 360
_HEIGHT: Final = 240
_LEFT: Final = 52
_RIGHT: Final = 14
_TOP: Final = 44
_BOTTOM: Final = 46


def format_figure(lines: Mapping[str, Sequence[Line]], theme: Theme) -> str:
    """
    Draws curves beside each other as SVG, on logarithmic axes.

    :param lines: The lines of each curve.
    """
    num_rows = math.ceil(len(lines) / _COLUMNS)

    width, height = _COLUMNS * _WIDTH, num_rows * _HEIGHT + 24

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" font-size="12" font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif" fill="{theme.text}">',
        "<title>Seconds against the size of the work</title>",
        f"<desc>{escape(_describe(lines))}</desc>",
    ]

    for idx, name in enumerate(lines):
        row, column = divmod(idx, _COLUMNS)

        parts.append(f'<g transform="translate({column * _WIDTH} {row * _HEIGHT})">')

        parts += _Plot(CURVES[name], lines[name], theme).draw()

        parts.append("</g>")

    parts.append(
        draw_text(
            12,
            height - 8,
            "Seconds, both axes logarithmic. Dashed: what the number of operations predicts, from the SFT step of the same size.",
            theme.soft,
            11,
        )
    )

    return "\n".join([*parts, "</svg>"]) + "\n"


def _describe(lines: Mapping[str, Sequence[Line]]) -> str:
    sentences = []

    for name, curve_lines in lines.items():
        for line in curve_lines:
            points = ", ".join(f"{line.median(x):.3g} at {x:,}" for x in line.points)

            sentences.append(f"{CURVES[name].title}, {line.title}: {points}.")

    return " ".join(sentences)


@final
class _Plot:
    def __init__(self, curve: Curve, lines: Sequence[Line], theme: Theme) -> None:
        self._curve = curve
        self._lines = lines
        self._theme = theme

        values = [line.median(x) for line in lines for x in line.points]

        values += [value for line in lines for value in line.predicted.values()]

        # Whole powers of ten enclose all.
        self._low = math.floor(math.log10(min(values)))
        self._high = max(math.ceil(math.log10(max(values))), self._low + 1)

    def _to_x(self, value: float) -> float:
        low, high = math.log(self._curve.xs[0]), math.log(self._curve.xs[-1])

        left, right = _LEFT + 12.0, _WIDTH - _RIGHT - 12.0

        return left + (math.log(value) - low) / (high - low) * (right - left)

    def _to_y(self, value: float) -> float:
        share = (math.log10(value) - self._low) / (self._high - self._low)

        bottom = _HEIGHT - _BOTTOM

        return bottom - share * (bottom - _TOP)

    def draw(self) -> Iterator[str]:
        theme, bottom = self._theme, _HEIGHT - _BOTTOM

        yield draw_text(12, 18, self._curve.title, size=13, weight=600)

        left = 12.0

        for idx, line in enumerate(self._lines):
            color = theme.systems[idx]

            yield draw_line([(left, 31), (left + 14, 31)], color, 2.0)

            yield draw_text(left + 19, 35, line.title, color, weight=600)

            left += 34 + 7.0 * len(line.title)

        for power in range(self._low, self._high + 1):
            y = self._to_y(10.0**power)

            yield draw_line([(_LEFT, y), (_WIDTH - _RIGHT, y)], theme.line, 1.0)

            yield draw_text(
                _LEFT - 7, y + 4, f"{10.0**power:g}", theme.soft, anchor="end"
            )

        for number in self._curve.xs:
            x = self._to_x(number)

            yield draw_line([(x, bottom), (x, bottom + 4)], theme.soft, 1.0)

            yield draw_text(x, bottom + 17, f"{number:,}", theme.soft, anchor="middle")

        yield draw_text(
            (_LEFT + _WIDTH - _RIGHT) / 2,
            bottom + 34,
            self._curve.x_title,
            theme.soft,
            anchor="middle",
        )

        for idx, line in enumerate(self._lines):
            color = theme.systems[idx]

            predicted = [
                (self._to_x(x), self._to_y(y)) for x, y in line.predicted.items()
            ]

            if predicted:
                yield draw_line(predicted, color, 1.2, dash="5 4")

            points = [(self._to_x(x), self._to_y(line.median(x))) for x in line.points]

            yield draw_line(points, color, 2.0)

            for x, y in points:
                yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>'


def _run(args: argparse.Namespace) -> None:
    prepare_device(args)

    # Before minutes have passed.
    get_clock(args)

    names = parse_names("--curves", args.curves, [*CURVES])

    lines: dict[str, list[Line]] = {}

    for name in names:
        curve = CURVES[name]

        lines[name] = curve.measure(curve, args)

        print(f"{curve.title}\n\n{_format_curve(curve, lines[name])}\n", flush=True)

    if args.figure is not None:
        args.figure.parent.mkdir(parents=True, exist_ok=True)

        for theme_name, theme in THEMES.items():
            file = args.figure.with_name(f"{args.figure.name}.{theme_name}.svg")

            file.write_text(format_figure(lines, theme), encoding="utf-8")

    record = {
        name: [
            {"line": line.title, "seconds": line.points, "predicted": line.predicted}
            for line in curve_lines
        ]
        for name, curve_lines in lines.items()
    }

    print_record(args, "growth", curves=record)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark and returns its exit status."""
    parser = BenchParser(
        prog="python scripts/bench_growth.py",
        description="Measures how the cost grows with the work.",
    )

    parser.add_names("--curves", CURVES, "what to measure, divided by commas")

    parser.add_argument(
        "--figure",
        type=Path,
        metavar="NAME",
        help="draw NAME.light.svg and NAME.dark.svg",
    )

    parser.add_common_arguments()

    parser.add_clock_argument()

    return parser.run(argv, _run)


if __name__ == "__main__":
    sys.exit(main())
