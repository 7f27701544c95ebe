# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""BERTScore, by ``bert-score``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, final

from typing_extensions import override

from warmup_plugin.errors import WarmupError
from warmup_plugin.metrics.base import (
    Measurement,
    Metric,
    MetricUnavailable,
    References,
    measure_mean,
    sign_num_references,
)
from warmup_plugin.metrics.languages import get_language
from warmup_plugin.transformers_doors import refuse_foreign_code

# The embeddings of so many sentences a system are in memory at once.
_MAX_SENTENCES: Final = 512


@final
class BertScoreMetric(Metric):
    """
    Computes the mean F1 of BERTScore, from 0 to 100.

    Of several references the one that gives the most, as in ``bert-score``. Neither
    weighted by idf nor rescaled by a baseline. Text beyond what the model
    reads is cut by ``bert-score``.
    """

    def __init__(
        self, model: str | None, num_layers: int | None, target_lang: str | None
    ) -> None:
        """
        :param model: A folder or a name on the Hugging Face Hub; ``None`` for the one
            that ``bert-score`` recommends for the language.
        :param num_layers: The layer whose output is compared; ``None`` for the one that
            ``bert-score`` recommends for the model.

        :raises MetricUnavailable: ``bert-score`` is not installed or the model cannot
            be loaded.
        """
        try:
            from bert_score import BERTScorer
            from bert_score.utils import lang2model, model2layers
        except ImportError:
            raise MetricUnavailable(
                "BERTScore needs the package bert-score, which is not installed; run "
                "`pip install 'warmup_plugin[metrics]'`."
            ) from None

        if model is None:
            model = str(lang2model[get_language(target_lang)])
        elif (path := Path(model).expanduser()).is_dir():
            model = str(path)
        elif model.startswith((".", "/", "~")) or model.count("/") > 1:
            # No name on the Hub.
            raise WarmupError(
                f"The model of BERTScore {model} does not exist; give a folder or a name "
                "on the Hugging Face Hub."
            )

        if num_layers is None:
            if model not in model2layers:
                raise WarmupError(
                    f"`bert-score` recommends no layer for the model {model}; choose "
                    "one with `--bertscore-layers N`."
                )

            num_layers = int(model2layers[model])

        # Without a network it tells of every try, for half a minute; what matters is in
        # the error.
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)

        refuse_foreign_code()

        try:
            self._scorer: Any = BERTScorer(model_type=model, num_layers=num_layers)
        # How it checks its arguments.
        except AssertionError as ex:
            raise WarmupError(
                f"BERTScore refuses `--bertscore-layers {num_layers}` ({ex}); choose a "
                "layer that the model has."
            ) from None
        # Whatever reading a file or asking the Hub may raise.
        except Exception as ex:
            reason = " ".join(str(ex).split()) or type(ex).__name__

            raise MetricUnavailable(
                f"BERTScore cannot load the model {model} with {num_layers} layers "
                f"({reason}); name a folder that holds it with `--bertscore-model DIR "
                "--bertscore-layers N`."
            ) from None

        self._model = model

        self._signature = (
            f"model:{Path(model).name}|layer:{num_layers}|idf:no|rescaled:no|"
            f"version:bert-score-{version('bert-score')}"
        )

    @override
    def measure(
        self,
        systems: Sequence[Sequence[str]],
        references: References,
        sources: Sequence[str] | None,
    ) -> list[list[Measurement]]:
        # (precision, recall, F1) of each sentence, by system
        scores: list[list[tuple[float, float, float]]] = [[] for _ in systems]

        for start in range(0, len(references), _MAX_SENTENCES):
            block = slice(start, start + _MAX_SENTENCES)

            # In one call the references, and what systems have in common, are read
            # once.
            hypotheses = [line for system in systems for line in system[block]]

            block_references = [list(texts) for texts in references[block]]

            try:
                columns = self._scorer.score(
                    hypotheses, block_references * len(systems)
                )
            # Positions that the model has not, or too little memory.
            except (IndexError, RuntimeError) as ex:
                raise MetricUnavailable(
                    f"BERTScore cannot read the text with the model {self._model} "
                    f"({' '.join(str(ex).split())}); set `model_max_length` in its "
                    "tokenizer_config.json if that is missing, or choose a smaller model."
                ) from None

            rows = list(zip(*(column.tolist() for column in columns)))

            size = len(block_references)

            for idx, system_scores in enumerate(scores):
                system_scores += rows[idx * size : (idx + 1) * size]

        signature = f"{sign_num_references(references)}|{self._signature}"

        return [[_summarize(rows, signature)] for rows in scores]


def _summarize(
    rows: Sequence[tuple[float, float, float]], signature: str
) -> Measurement:
    precision, recall, f1 = (
        [100.0 * value for value in column] for column in zip(*rows)
    )

    return measure_mean(
        "bertscore",
        "BERTScore",
        f1,
        signature,
        details={
            "precision": sum(precision) / len(precision),
            "recall": sum(recall) / len(recall),
        },
    )
