# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""The metrics by name; the one list that every command and validation read."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, final

from warmup_plugin.errors import WarmupError
from warmup_plugin.metrics import metricx, rouge
from warmup_plugin.metrics.base import Metric, References
from warmup_plugin.metrics.bertscore import BertScoreMetric
from warmup_plugin.metrics.comet import CometWorkers
from warmup_plugin.metrics.comet_score import (
    DEFAULT_KIWI_MODEL,
    DEFAULT_MODEL,
    CometMetric,
)
from warmup_plugin.metrics.labels import AccuracyMetric, MacroF1Metric
from warmup_plugin.metrics.language_id import LanguageMetric
from warmup_plugin.metrics.overlap import (
    OverlapMetric,
    create_bleu,
    create_chrf,
    create_ter,
    load_bleu,
)

if TYPE_CHECKING:
    from sacrebleu.metrics.bleu import BLEU

# fairseq2's own takes seconds to import.
_log = logging.getLogger(__name__)


@final
@dataclass(frozen=True, kw_only=True)
class MetricOptions:
    """Holds what the metrics need to know, each what it needs."""

    target_lang: str | None = None
    """Language that selects tokenizers (default: that of the run)."""

    bleu_tokenize: str | None = None
    """Tokenizer of BLEU, such as flores200 (default: by language)."""

    comet_model: str | None = None
    """Checkpoint of COMET, its folder or a name on the Hugging Face Hub (default: that of the run's validations, else Unbabel/wmt22-comet-da)."""

    cometkiwi_model: str | None = None
    """The same for `cometkiwi`, which reads no references (default: Unbabel/wmt22-cometkiwi-da)."""

    comet_gpus: int = 0
    """GPUs of COMET (default: 0)."""

    metricx_model: str | None = None
    """Model of MetricX-24, a folder or a name on the Hugging Face Hub (default: google/metricx-24-hybrid-large-v2p6)."""

    bertscore_model: str | None = None
    """Model of BERTScore, a folder or a name on the Hugging Face Hub (default: by language)."""

    bertscore_layers: int | None = None
    """The layer of that model to compare (default: what bert-score recommends)."""

    labels: Sequence[str] = ()
    """All valid answers, for accuracy and macro_f1; other answers are wrong."""

    comet_workers: CometWorkers | None = None
    """Keeps the models of COMET for further measurements; ``None`` to keep none."""


@final
@dataclass(frozen=True)
class MetricEntry:
    """Says how a metric is created and what its scores are called."""

    names: Mapping[str, str]
    """The names of its scores by their keys, which are unique among all metrics."""

    create: Callable[[MetricOptions], Metric]
    """
    Creates the metric. Raises ``MetricUnavailable`` if an optional part is missing, and
    ``WarmupError`` if an option is, or is wrong.
    """

    needs_sources: bool = False

    needs_references: bool = True

    runs_model: bool = False
    """Whether it runs a model of its own, so that nothing measures by it twice."""

    in_validation: bool = True
    """Whether training may validate by it; not if its model would have to share the
    process with the one that is trained."""


def _make_bleu(key: str, create: Callable[..., BLEU]) -> Metric:
    # Single sentences lack the longer n-grams more often than not.
    sentence_metric = create(effective_order=True)

    name = METRICS[key].names[key]

    return OverlapMetric(key, create(), name=name, sentence_metric=sentence_metric)


def _create_comet(
    options: MetricOptions, key: str, model: str, *, reads_references: bool = True
) -> Metric:
    _check_comet_model(model)

    return CometMetric(
        model,
        key=key,
        name=METRICS[key].names[key],
        reads_references=reads_references,
        gpus=options.comet_gpus,
        workers=options.comet_workers,
    )


def _create_metricx(
    options: MetricOptions, key: str, *, reads_references: bool = True
) -> Metric:
    model = options.metricx_model or metricx.DEFAULT_MODEL

    path = Path(model).expanduser()

    if path.is_dir():
        model = str(path)
    elif model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise WarmupError(
            f"The model of MetricX {model} does not exist; give a folder or a name on the Hugging Face Hub, such as `{metricx.DEFAULT_MODEL}`."
        )

    name = METRICS[key].names[key]

    return metricx.MetricXMetric(
        model, key=key, name=name, reads_references=reads_references
    )


def _check_comet_model(model: str) -> None:
    path = Path(model).expanduser()

    # Only OWNER/NAME can be on the Hub.
    is_path = (
        path.suffix == ".ckpt"
        or model.startswith((".", "/", "~"))
        or model.count("/") != 1
    )

    if is_path and not path.exists():
        raise WarmupError(
            f"The COMET model {model} does not exist; give a checkpoint, its folder, or "
            "a name on the Hugging Face Hub, such as `Unbabel/wmt22-comet-da`."
        )


def _create_rouge(options: MetricOptions) -> Metric:
    if options.target_lang is None:
        raise WarmupError(
            "The metric `rouge` needs `--target-lang`, which selects tokenizer and "
            "stemmer; add it, for example `--target-lang en`."
        )

    return rouge.RougeMetric(options.target_lang)


def _create_bertscore(options: MetricOptions) -> Metric:
    model, num_layers = options.bertscore_model, options.bertscore_layers

    if model is None and options.target_lang is None:
        raise WarmupError(
            "The metric `bertscore` needs `--bertscore-model DIR`, or `--target-lang`, "
            "for which `bert-score` recommends a model; add one of them."
        )

    return BertScoreMetric(model, num_layers, options.target_lang)


def _create_language(options: MetricOptions) -> Metric:
    if options.target_lang is None:
        raise WarmupError(
            "The metric `language` needs `--target-lang`, the language that outputs are to be in; add it."
        )

    return LanguageMetric(options.target_lang)


def _check_labels(options: MetricOptions) -> Sequence[str]:
    if not options.labels:
        raise WarmupError(
            "The metrics `accuracy` and `macro_f1` need all labels; add them, for "
            "example `--labels A,B,C,D`, in training `validation.labels=[A,B,C,D]`."
        )

    return options.labels


METRICS: Final[dict[str, MetricEntry]] = {
    "bleu": MetricEntry(
        {"bleu": "BLEU"},
        lambda o: _make_bleu(
            "bleu", partial(create_bleu, o.target_lang, o.bleu_tokenize)
        ),
    ),
    "chrf": MetricEntry(
        {"chrf": "chrF2++"}, lambda _: OverlapMetric("chrf", create_chrf())
    ),
    "ter": MetricEntry(
        {"ter": "TER"},
        lambda o: OverlapMetric(
            "ter", create_ter(o.target_lang), higher_is_better=False
        ),
    ),
    "spbleu": MetricEntry(
        {"spbleu": "spBLEU"},
        lambda _: _make_bleu("spbleu", partial(load_bleu, "spBLEU", "flores200")),
    ),
    "spbleu_1k": MetricEntry(
        {"spbleu_1k": "spBLEU-1K"},
        lambda _: _make_bleu("spbleu_1k", partial(load_bleu, "spBLEU", "spBLEU-1K")),
    ),
    "comet": MetricEntry(
        {"comet": "COMET"},
        lambda o: _create_comet(o, "comet", o.comet_model or DEFAULT_MODEL),
        needs_sources=True,
        runs_model=True,
    ),
    "cometkiwi": MetricEntry(
        {"cometkiwi": "CometKiwi"},
        lambda o: _create_comet(
            o,
            "cometkiwi",
            o.cometkiwi_model or DEFAULT_KIWI_MODEL,
            reads_references=False,
        ),
        needs_sources=True,
        needs_references=False,
        runs_model=True,
    ),
    "metricx": MetricEntry(
        {"metricx": "MetricX-24"},
        lambda o: _create_metricx(o, "metricx"),
        needs_sources=True,
        runs_model=True,
        in_validation=False,
    ),
    "metricx_qe": MetricEntry(
        {"metricx_qe": "MetricX-24-QE"},
        lambda o: _create_metricx(o, "metricx_qe", reads_references=False),
        needs_sources=True,
        needs_references=False,
        runs_model=True,
        in_validation=False,
    ),
    "rouge": MetricEntry(rouge.NAMES, _create_rouge),
    "bertscore": MetricEntry(
        {"bertscore": "BERTScore"},
        _create_bertscore,
        runs_model=True,
        in_validation=False,
    ),
    "language": MetricEntry(
        {"language": "in language"}, _create_language, needs_references=False
    ),
    "accuracy": MetricEntry(
        {"accuracy": "accuracy"}, lambda o: AccuracyMetric(_check_labels(o))
    ),
    "macro_f1": MetricEntry(
        {"macro_f1": "macro-F1"}, lambda o: MacroF1Metric(_check_labels(o))
    ),
}
"""The metrics by the names that ``--metrics`` and ``validation.metrics`` take."""


def check_metric_names(names: Sequence[str], *, in_validation: bool = False) -> None:
    """
    :param in_validation: If ``True``, only what training may validate by is let pass.

    :raises WarmupError: If there is none, an unknown one, one twice or one that is too
        slow for validations.
    """
    known = ", ".join(
        name
        for name, entry in METRICS.items()
        if entry.in_validation or not in_validation
    )

    if not names:
        raise WarmupError(f"No metric is given; choose some of {known}.")

    for name in names:
        if name not in METRICS:
            raise WarmupError(
                f"The metric `{name}` is not known; choose some of {known}."
            )

        if in_validation and not METRICS[name].in_validation:
            raise WarmupError(
                f"The metric `{name}` runs a model of its own in this process, which a "
                f"validation does not; leave it to `python -m recipes.evaluate`, and choose some of {known}."
            )

        if names.count(name) > 1:
            raise WarmupError(f"The metric `{name}` is given twice; give it once.")


_KANA_AND_HAN: Final = (
    "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)

_HANGUL_AND_THAI: Final = "\u1100-\u11ff\u3130-\u318f\uac00-\ud7af\u0e00-\u0e7f"

# What needs a tokenizer of its language: of TER, Korean has spaces and Thai has none.
_UNSPACED: Final = {
    "bleu": re.compile(f"[{_KANA_AND_HAN}{_HANGUL_AND_THAI}]"),
    "ter": re.compile(f"[{_KANA_AND_HAN}]"),
}

# A name in its own script is no reason to warn.
_MIN_SHARE: Final = 0.1


def warn_of_missing_language(
    metrics: Sequence[str], options: MetricOptions, references: References
) -> None:
    """Says, once a process, that a language with tokenizers of its own is scored as if
    it had words between spaces, since nobody names it."""
    if options.target_lang is not None:
        return

    text = "".join("".join(line.split()) for texts in references for line in texts)

    names = []

    for name, pattern in _UNSPACED.items():
        if name not in metrics or (name == "bleu" and options.bleu_tokenize):
            continue

        if len(pattern.findall(text)) > _MIN_SHARE * len(text):
            names.append(name.upper())

    if names:
        _warn_once(" and ".join(names))


@cache
def _warn_once(metrics: str) -> None:
    _log.warning(
        "The references look Chinese, Japanese, Korean or Thai, but no target language is "
        "given, so the words of %s are what stands between spaces and punctuation (of "
        "BLEU, the tokenizer 13a); name the language with `--target-lang`, in training "
        "with `dataset.target_lang`, or for Thai a tokenizer of BLEU, such as "
        "`--bleu-tokenize flores200`.",
        metrics,
    )
