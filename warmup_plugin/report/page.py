# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Writes a report as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.resources import files
from typing import Any, Final, cast, final

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from warmup_plugin import __version__
from warmup_plugin.evaluation.systems import System
from warmup_plugin.metrics.base import Evaluation
from warmup_plugin.metrics.resampling import (
    DEFAULT_SEED,
    NUM_TRIALS,
    warn_of_few_sentences,
)
from warmup_plugin.metrics.sentence import sentence_scores
from warmup_plugin.report.curves import QUALITY_PANELS, WARMUP_PANELS
from warmup_plugin.report.lexical import TEXTS
from warmup_plugin.report.plots import (
    NUM_COLORS,
    Figure,
    format_share,
    plot_curves,
    plot_gains,
    plot_lengths,
    plot_overlap,
    plot_positions,
    plot_scores,
)
from warmup_plugin.report.results import (
    analyze_run,
    analyze_scores,
    build_log_prob_row,
    build_score_table,
    compare_settings,
    summarize,
)
from warmup_plugin.report.runs import ReportRun
from warmup_plugin.report.sentences import build_sentence

_PAGE_FILES: Final = files("warmup_plugin.report")

_OTHER: Final = {"other reference": "reference of another line"}


@final
@dataclass(frozen=True, kw_only=True)
class PageOptions:
    """Says what a page shows."""

    title: str | None = None
    """``None`` for one that names the runs."""

    checkpoint: str = "best"

    num_bootstrap: int = 1000

    max_sentences: int = 5000

    command: str = ""
    """The command that makes the page, for its foot."""


def render_page(
    runs: Sequence[ReportRun], evaluation: Evaluation | None, options: PageOptions
) -> str:
    """
    Renders a report.

    :param evaluation: The scores of the runs that have translations, under the names
        of the runs; ``None`` if none has.
    """
    content = _Content(runs, evaluation, options)

    scripts = {
        "plotly": get_plotlyjs(),
        "page": _read("page.js"),
        # Before anything is drawn, or a light page would flash.
        "theme": _read("theme.js"),
    }

    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )

    template = environment.from_string(_read("page.html.j2"))

    return template.render(
        **content.variables(),
        policy=_create_policy(list(scripts.values())),
        scripts={name: Markup(script) for name, script in scripts.items()},
        style=Markup(_read("page.css")),
        figures_json=to_script_json(content.figures),
        browser_json=to_script_json(content.browser()),
    )


def to_script_json(value: object) -> Markup:
    """
    Writes JSON that may stand in a ``<script>``.

    Texts may hold ``</script>`` or ``<!--``, which would end the element or change how
    it is read, whatever JSON makes of them.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))

    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")

    # Half of a surrogate pair is valid in JSON, but not in UTF-8.
    return Markup(text.encode("utf-8", "backslashreplace").decode("utf-8"))


def _create_policy(scripts: Sequence[str]) -> str:
    """
    Creates a content security policy: only our own scripts run, and nothing is fetched.
    """
    digests = [hashlib.sha256(script.encode("utf-8")).digest() for script in scripts]

    hashes = [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests]

    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {' '.join(hashes)}",
            # plotly.js sets styles of its own.
            "style-src 'unsafe-inline'",
            # It saves a plot as an image by way of one.
            "img-src data: blob:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


def _read(name: str) -> str:
    return (_PAGE_FILES / name).read_text(encoding="utf-8")


@final
class _Content:
    """Computes what the template shows."""

    def __init__(
        self,
        runs: Sequence[ReportRun],
        evaluation: Evaluation | None,
        options: PageOptions,
    ) -> None:
        self._runs = runs
        self._evaluation = evaluation
        self._options = options
        self._names = [run.name for run in runs]

        self._translated = {
            idx: run.translations
            for idx, run in enumerate(runs)
            if run.translations is not None
        }

        # Of those that have translations, the first one.
        self._baseline = min(self._translated, default=0)

        self._chrf = {
            idx: _score_sentences(translations.system, evaluation)
            for idx, translations in self._translated.items()
        }

        self._analyses = {
            idx: analyze_run(translations)
            for idx, translations in self._translated.items()
            if runs[idx].has_warmup
        }

        # A test set without a source that is not empty.
        self._analyses = {i: a for i, a in self._analyses.items() if a.num_warmups > 0}

        self.figures: dict[str, object] = {}
        """Data and layout of all figures by their name."""

    def variables(self) -> dict[str, object]:
        options = self._options

        title = options.title or f"Report: {', '.join(self._names)}"

        return {
            "title": title,
            "created": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            "version": __version__,
            "command": options.command,
            "runs": [self._describe_run(idx) for idx in range(len(self._runs))],
            "baseline": self._baseline,
            "test_set": self._describe_test_set(),
            "num_bootstrap": options.num_bootstrap,
            "num_trials": NUM_TRIALS,
            "few_sentences": self._warn_of_few_sentences(),
            "seed": DEFAULT_SEED,
            "notes": self._collect_notes(),
            "has_browser": bool(self._translated),
            **self._results(),
            **self._training(),
            **self._warmups(),
            "settings": compare_settings(self._runs) if len(self._runs) > 1 else [],
        }

    def _describe_run(self, idx: int) -> dict[str, object]:
        run = self._runs[idx]

        config = run.config

        warmup = _section(config, "warmup")

        criterion = str(_section(config, "criterion").get("name", "–"))

        if run.has_warmup:
            num, length = warmup.get("num_warmups"), warmup.get("max_warmup_len")

            objective = _section(warmup, "objective").get("name")

            criterion += f": {objective}, K\u00a0=\u00a0{num}, at most {length} tokens"

        num_steps = _section(config, "regime").get("num_steps")

        last = run.starts[-1] if run.starts else {}

        commits = dict.fromkeys(str(s.get("git_commit")) for s in run.starts)

        curves = run.curves

        return {
            "idx": idx,
            "color": idx % NUM_COLORS,
            "name": run.name,
            "is_baseline": idx == self._baseline and len(self._runs) > 1,
            "has_warmup": run.has_warmup,
            "criterion": criterion,
            "steps": _describe_steps(curves.last_step, num_steps),
            "checkpoint": run.checkpoint_step,
            "time": _format_time(curves.total_time),
            "begin": _format_stamp(curves.begin),
            "end": _format_stamp(curves.end),
            "versions": [
                (key, last[key])
                for key in ("python", "warmup_plugin", "fairseq2", "torch", "sacrebleu")
                if last.get(key)
            ],
            "commits": [_shorten_commit(c) for c in commits if c != "None"],
            "num_starts": len(run.starts),
        }

    def _describe_test_set(self) -> str:
        if not self._translated:
            return ""

        translations = self._translated[self._baseline]

        split = self._runs[self._baseline].split

        return f"{split} split, {len(translations.system.references):,} sentences, checkpoint “{self._options.checkpoint}”"

    def _warn_of_few_sentences(self) -> str | None:
        if self._evaluation is None or not self._evaluation.is_resampled:
            return None

        row = next(iter(self._evaluation.scores.values()))

        return warn_of_few_sentences(row[0].num_sentences)

    def _collect_notes(self) -> list[tuple[int, str]]:
        """Says what is missing of which run, and why."""
        notes = []

        for idx, run in enumerate(self._runs):
            if run.no_translations:
                notes.append((idx, f"has no translations here: {run.no_translations}."))

            if run.curves.is_empty():
                notes.append((idx, "has no curves: it holds no training metrics."))

            for part in run.curves.unreadable:
                notes.append((idx, f"{part} cannot be read and is left out."))

            texts = run.translations

            if texts and run.has_warmup and texts.scores is None:
                notes.append((idx, f"has no log P(y|x) here: {texts.no_scores}."))

        return notes

    def _results(self) -> dict[str, object]:
        if self._evaluation is None:
            return {"scores": None, "summary": [], "score_figures": []}

        run_idxs = {name: idx for idx, name in enumerate(self._names)}

        table = build_score_table(
            self._evaluation, run_idxs, self._chrf, self._baseline
        )

        figures = []

        for metric in table.metrics:
            scores = {
                run_idxs[name]: score
                for name, row in self._evaluation.scores.items()
                for score in row
                if score.name == metric
            }

            figures.append(plot_scores(metric, self._names, scores, self._baseline))

        # Those that are the same would hide all others.
        gains = {
            idx: [a - b for a, b in zip(chrf, self._chrf[self._baseline]) if a != b]
            for idx, chrf in self._chrf.items()
            if idx != self._baseline
        }

        figures.append(
            plot_gains(
                "chrf-gains",
                "Sentence gains in chrF++",
                f"chrF++ of a sentence less that of {self._names[self._baseline]}, of those that differ.",
                self._names,
                gains,
                "chrF++",
            )
        )

        return {
            "scores": table,
            "summary": summarize(table, self._names),
            "score_figures": self._keep(figures),
        }

    def _training(self) -> dict[str, object]:
        curves = [run.curves for run in self._runs]

        marks = {
            idx: self._runs[idx].checkpoint_step
            for idx in self._translated
            if self._runs[idx].checkpoint_step is not None
        }

        quality, warmup = (
            [plot_curves(panel, self._names, curves, marks) for panel in panels]
            for panels in (QUALITY_PANELS, WARMUP_PANELS)
        )

        has_times = any(c.total_time is not None for c in curves)

        return {
            "quality_figures": self._keep(quality),
            "warmup_figures": self._keep(warmup),
            "has_times": has_times,
            "has_rings": bool(marks),
        }

    def _warmups(self) -> dict[str, object]:
        analyses = self._analyses

        scored = {
            idx: translations
            for idx, translations in self._translated.items()
            if translations.scores is not None
        }

        gains = {
            idx: [pair.gain for pair in t.scores or [] if pair.gain is not None]
            for idx, t in scored.items()
        }

        log_prob_figure = plot_gains(
            "log-prob-gains",
            "Sentence gains in log P(y|x)",
            "log P(y|x) of a reference with the warmups drawn less that without.",
            self._names,
            gains,
            "nats",
        )

        lexical_figures: list[Figure | None] = []

        if analyses:
            lexical_figures = [
                plot_overlap(1, self._names, analyses),
                plot_overlap(2, self._names, analyses),
                plot_positions(self._names, analyses),
                plot_lengths(self._names, analyses),
            ]

        return {
            "log_probs": [
                build_log_prob_row(idx, t.scores or []) for idx, t in scored.items()
            ],
            "log_prob_figures": self._keep([log_prob_figure]),
            "lexical_runs": list(analyses),
            "lexical_rows": self._build_lexical_rows(),
            "lexical_figures": self._keep(lexical_figures),
            "frequent": {idx: a.most_frequent for idx, a in analyses.items()},
            "num_warmups": {idx: a.num_warmups for idx, a in analyses.items()},
        }

    def _build_lexical_rows(self) -> list[tuple[str, str, list[str]]]:
        """Returns heading, explanation and one cell a run for each row."""
        analyses = list(self._analyses.values())

        draws = [analyze_scores(self._translated[idx]) for idx in self._analyses]

        rows = [
            (
                "Warmups",
                "one beside each output",
                [f"{a.num_warmups:,}" for a in analyses],
            ),
            (
                "Distinct",
                "over the whole test set",
                [f"{a.num_distinct:,} ({format_share(a.distinct)})" for a in analyses],
            ),
            ("Empty", "without a word", [format_share(a.empty) for a in analyses]),
            (
                "Length",
                "words, mean",
                [_format_number(a.mean_length, 1) for a in analyses],
            ),
            (
                "Repeated words",
                "that have stood earlier in the same warmup",
                [format_share(a.repeated) for a in analyses],
            ),
            *(
                (
                    f"{kind} also in the {_OTHER.get(text, text)}",
                    "chance level" if text in _OTHER else "",
                    [format_share(a.overlaps[text, n]) for a in analyses],
                )
                for n, kind in ((1, "Words"), (2, "Bigrams"))
                for text in TEXTS
            ),
            *(
                (
                    f"Longest part copied from the {text}",
                    "words in a row, of the words of the warmup",
                    [format_share(a.copied[text]) for a in analyses],
                )
                for text in ("source", "output", "reference")
            ),
            (
                "Position of shared words",
                "in the reference: 0 begin, 0.5 even, 1 end",
                [_format_number(a.mean_position, 2) for a in analyses],
            ),
            (
                "Drawn: distinct per source",
                "of the warmups drawn for one source",
                [format_share(d.distinct) for d in draws],
            ),
            (
                "Drawn: words also in the reference",
                "each warmup counted alike",
                [format_share(d.overlap) for d in draws],
            ),
            (
                "Drawn: the same, by posterior weight",
                "above the row before if sharing words makes the reference likelier",
                [format_share(d.weighted_overlap) for d in draws],
            ),
        ]

        return [row for row in rows if any(cell != "–" for cell in row[2])]

    def _keep(self, figures: Sequence[Figure | None]) -> list[Figure]:
        kept = [figure for figure in figures if figure is not None]

        for figure in kept:
            self.figures[figure.id] = figure.plot

        return kept

    def browser(self) -> dict[str, object]:
        """Returns the data of the sentence browser."""
        runs = [
            {
                "name": run.name,
                "color": idx % NUM_COLORS,
                "warmup": run.has_warmup,
                "there": idx in self._translated,
                "scored": run.translations is not None
                and run.translations.scores is not None,
            }
            for idx, run in enumerate(self._runs)
        ]

        translations = [run.translations for run in self._runs]

        scores = [self._chrf.get(idx) for idx in range(len(translations))]

        references: list[str] = []

        if self._translated:
            references = self._translated[self._baseline].system.joined_references

        sentences = [
            build_sentence(
                at + 1,
                reference,
                [t and t.lines[at] for t in translations],
                [None if chrf is None else chrf[at] for chrf in scores],
                [t and t.scores and t.scores[at] or None for t in translations],
            )
            for at, reference in enumerate(references[: self._options.max_sentences])
        ]

        return {
            "runs": runs,
            "baseline": self._baseline,
            "sentences": sentences,
            "total": len(self._chrf[self._baseline]) if self._chrf else 0,
        }


def _score_sentences(system: System, evaluation: Evaluation | None) -> list[float]:
    """Computes the chrF++ of each sentence."""
    measurements = evaluation.measurements.get(system.name, {}) if evaluation else {}

    # It takes longer than all else that a page does.
    if "chrf" in measurements:
        scores = measurements["chrf"].sentence_scores()

        if scores is not None:
            return [float(score) for score in scores]

    return sentence_scores("chrf", system.hypotheses, system.references)


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = config.get(name)

    return cast("Mapping[str, Any]", section) if isinstance(section, dict) else {}


def _describe_steps(last_step: int, num_steps: object) -> str:
    if last_step == 0:
        return "–"

    if isinstance(num_steps, int) and last_step < num_steps:
        return f"{last_step:,} of {num_steps:,}"

    return f"{last_step:,}"


def _format_number(value: float | None, num_digits: int) -> str:
    return "–" if value is None else f"{value:.{num_digits}f}"


def _format_time(seconds: float | None) -> str:
    if seconds is None:
        return "–"

    minutes, secs = divmod(round(seconds), 60)

    hours, minutes = divmod(minutes, 60)

    return f"{hours}:{minutes:02}:{secs:02}"


def _format_stamp(stamp: str | None) -> str:
    return "–" if stamp is None else stamp[:16].replace("T", " ")


def _shorten_commit(commit: str) -> str:
    number, _, dirty = commit.partition("-")

    return number[:10] + (f"-{dirty}" if dirty else "")
