# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Final, final

import numpy as np
from sacrebleu.metrics.base import Metric
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.significance import PairedTest, Result

from warmup_plugin.errors import WarmupError

DEFAULT_SEED: Final = 12345
"""The seed of all resampling; sacreBLEU's own default."""

# The part of a language code before the first hyphen or underscore, e.g. of "zh-CN" or
# "zho_Hans". All other languages are tokenised by "13a".
_TOKENIZERS: Final = {
    "zh": "zh",
    "zho": "zh",
    "cmn": "zh",
    "yue": "zh",
    "ja": "ja-mecab",
    "jpn": "ja-mecab",
    "ko": "ko-mecab",
    "kor": "ko-mecab",
}

# Its paired test narrates every step.
logging.getLogger("sacrebleu").setLevel(logging.WARNING)


@final
@dataclass(frozen=True)
class MetricScore:
    """Holds the corpus score of one system."""

    name: str

    score: float

    signature: str
    """The sacreBLEU signature. Scores compare only if their signatures are equal."""

    ci_low: float | None
    """The lower end of the 95% bootstrap interval."""

    ci_high: float | None

    num_sentences: int


@final
@dataclass(frozen=True)
class Comparison:
    """Holds the paired bootstrap test of one system against the baseline."""

    system: str

    metric: str

    score: float

    baseline_score: float

    p_value: float

    signature: str


def score_translations(
    hypotheses: Sequence[str],
    references: Sequence[str],
    *,
    target_lang: str | None = None,
    num_bootstrap: int = 1000,
    seed: int = DEFAULT_SEED,
) -> list[MetricScore]:
    """
    Computes corpus BLEU and chrF2++.

    :param references: One reference a hypothesis, in the same order.
    :param target_lang: Selects the tokenizer of BLEU.
    :param num_bootstrap: The number of resamples behind the 95% interval, whose ends
        are the percentiles 2.5 and 97.5. Zero leaves the interval out.
    """
    _check_lines(hypotheses, references, "hypotheses")

    if num_bootstrap < 0:
        raise WarmupError(
            "`num_bootstrap` must be greater than or equal to 0, but is "
            f"{num_bootstrap}."
        )

    return [
        _score(metric, hypotheses, references, num_bootstrap, seed)
        for metric in _create_metrics(target_lang)
    ]


def check_target_lang(target_lang: str | None) -> None:
    """
    Checks that translations into a language can be scored here.

    :raises WarmupError: The tokenizer of BLEU for it is not installed.
    """
    _create_metrics(target_lang)


def compare_translations(
    baseline: Sequence[str],
    systems: Mapping[str, Sequence[str]],
    references: Sequence[str],
    *,
    target_lang: str | None = None,
    num_samples: int = 1000,
    seed: int = DEFAULT_SEED,
) -> list[Comparison]:
    """
    Tests whether the score of each system differs from that of the baseline.

    The test is sacreBLEU's paired bootstrap, which is two-sided.

    :param baseline: The hypotheses of the baseline.
    :param systems: The hypotheses of each system, by the name of the system.

    :returns: One comparison for each system and metric, in this order.
    """
    _check_lines(baseline, references, "hypotheses of the baseline")

    for name, hypotheses in systems.items():
        _check_lines(hypotheses, references, f"hypotheses of {name}")

    if not systems:
        return []

    # sacreBLEU reads 0 samples as its default and a seed of 0 as no seed.
    for argument, value in (("num_samples", num_samples), ("seed", seed)):
        if value < 1:
            raise WarmupError(
                f"`{argument}` must be greater than or equal to 1, but is {value}."
            )

    metrics = {_name_of(metric): metric for metric in _create_metrics(target_lang)}

    with _sacrebleu_seed(seed):
        signatures, results = PairedTest(
            [("", baseline), *systems.items()],
            metrics,
            references=[references],
            test_type="bs",
            n_samples=num_samples,
        )()

    comparisons = []

    for row_idx, name in enumerate(systems, start=1):
        for metric_name in metrics:
            base, result = results[metric_name][0], results[metric_name][row_idx]

            assert isinstance(base, Result) and isinstance(result, Result)
            assert result.p_value is not None

            # sacreBLEU counts the resamples that deviate by *more* than the observed
            # difference; a system compared with itself has none and would come out as
            # significant.
            p_value = 1.0 if result.score == base.score else float(result.p_value)

            comparisons.append(
                Comparison(
                    name,
                    metric_name,
                    float(result.score),
                    float(base.score),
                    p_value,
                    str(signatures[metric_name]),
                )
            )

    return comparisons


def format_table(
    scores: Mapping[str, Sequence[MetricScore]],
    comparisons: Sequence[Comparison] = (),
    *,
    extra_columns: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """
    Formats the scores of several systems as a table of plain text.

    :param scores: The scores by the name of the system.
    :param comparisons: Adds a column of p-values beside each metric.
    :param extra_columns: More columns by their heading, one cell a system.
    """
    p_values = {(c.system, c.metric): c.p_value for c in comparisons}

    metric_names = list(dict.fromkeys(s.name for row in scores.values() for s in row))

    header = ["system"]

    for metric_name in metric_names:
        header += [metric_name, "p"] if p_values else [metric_name]

    rows = [header]

    for system, row in scores.items():
        cells = [system]

        by_name = {score.name: score for score in row}

        for metric_name in metric_names:
            cells.append(_format_score(by_name.get(metric_name)))

            if p_values:
                p_value = p_values.get((system, metric_name))

                cells.append("-" if p_value is None else f"{p_value:.3f}")

        rows.append(cells)

    for heading, column in (extra_columns or {}).items():
        for cells, cell in zip(rows, [heading, *column], strict=True):
            cells.append(cell)

    widths = [max(map(len, column)) for column in zip(*rows)]

    lines = []

    for cells in rows:
        aligned = [cells[0].ljust(widths[0])]

        aligned += [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:])]

        lines.append("  ".join(aligned).rstrip())

    lines.insert(1, "-" * max(map(len, lines)))

    return "\n".join(lines)


def to_json(
    scores: Mapping[str, Sequence[MetricScore]], comparisons: Sequence[Comparison] = ()
) -> dict[str, object]:
    """Returns the scores and comparisons as data that ``json`` can write."""
    return {
        "systems": {name: [asdict(s) for s in row] for name, row in scores.items()},
        "comparisons": [asdict(c) for c in comparisons],
    }


def _check_lines(
    hypotheses: Sequence[str], references: Sequence[str], what: str
) -> None:
    # sacreBLEU scores the common beginning of lists of different length, and reads a
    # string as a list of characters, both without a word.
    for name, lines in ((what, hypotheses), ("references", references)):
        if isinstance(lines, str) or not all(isinstance(line, str) for line in lines):
            raise WarmupError(
                f"The {name} must be a flat list of strings, one a sentence; give one "
                "reference a sentence."
            )

    if len(hypotheses) != len(references):
        raise WarmupError(
            f"There are {len(hypotheses)} {what} but {len(references)} references; "
            "give one reference a hypothesis."
        )

    if not hypotheses:
        raise WarmupError(
            f"There are 0 {what} and 0 references; give at least one sentence to score."
        )


def _create_metrics(target_lang: str | None) -> list[Metric]:
    lang = re.split("[-_]", (target_lang or "").lower())[0]

    tokenizer = _TOKENIZERS.get(lang, "13a")

    try:
        bleu = BLEU(tokenize=tokenizer)
    except (RuntimeError, ImportError):
        # Only the MeCab tokenizers have requirements of their own.
        extra = tokenizer.removesuffix("-mecab")

        raise WarmupError(
            f"BLEU for the target language {target_lang} needs the tokenizer "
            f"{tokenizer}, which is not installed; run `pip install "
            f"'sacrebleu[{extra}]'`."
        ) from None

    return [bleu, CHRF(word_order=2)]


def _name_of(metric: Metric) -> str:
    # The name under which sacreBLEU reports the metric's scores.
    return "BLEU" if isinstance(metric, BLEU) else "chrF2++"


def _score(
    metric: Metric,
    hypotheses: Sequence[str],
    references: Sequence[str],
    num_bootstrap: int,
    seed: int,
) -> MetricScore:
    # The two steps of `corpus_score()`, apart because resampling reuses the first.
    stats = metric._extract_corpus_statistics(hypotheses, [references])

    score = metric._aggregate_and_compute(stats)

    ci_low, ci_high = None, None

    if num_bootstrap > 0:
        # (sentences, statistics)
        sentence_stats = np.array(stats, dtype=np.float64)

        num_sentences = len(sentence_stats)

        rng = np.random.default_rng(seed)

        resampled = []

        for _ in range(num_bootstrap):
            drawn = rng.integers(num_sentences, size=num_sentences)

            # How often each sentence was drawn; summing rows by this product needs no
            # copy of them.
            counts = np.bincount(drawn, minlength=num_sentences)

            sums = (counts @ sentence_stats).tolist()

            resampled.append(metric._compute_score_from_stats(sums).score)

        # sacreBLEU's own interval is half a range around the mean, hence symmetric.
        low, high = np.percentile(resampled, [2.5, 97.5])

        ci_low, ci_high = float(low), float(high)

    return MetricScore(
        _name_of(metric),
        float(score.score),
        # Known only once a corpus has been scored.
        str(metric.get_signature()),
        ci_low,
        ci_high,
        len(hypotheses),
    )


def _format_score(score: MetricScore | None) -> str:
    if score is None:
        return "-"

    if score.ci_low is None or score.ci_high is None:
        return f"{score.score:.2f}"

    return f"{score.score:.2f} [{score.ci_low:.2f}, {score.ci_high:.2f}]"


@contextmanager
def _sacrebleu_seed(seed: int) -> Iterator[None]:
    # The environment is the only place where sacreBLEU looks for a seed.
    previous = os.environ.get("SACREBLEU_SEED")

    os.environ["SACREBLEU_SEED"] = str(seed)

    try:
        yield
    finally:
        if previous is None:
            del os.environ["SACREBLEU_SEED"]
        else:
            os.environ["SACREBLEU_SEED"] = previous
