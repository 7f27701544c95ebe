# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
MetricX-24 (Juraska et al., 2024): an mT5 that was trained to predict MQM's penalties.

A model has the weights of an ordinary mT5. Its score is the logit of one token of the
vocabulary at the first step of the decoder, from 0, which is perfect, to 25.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, final

import torch

from warmup_plugin.metrics.base import MetricUnavailable
from warmup_plugin.metrics.metricx import DEFAULT_MODEL

# The models come without one; that of all mT5 is the same.
_TOKENIZER: Final = "google/mt5-xl"

_TOKENIZER_FILES: Final = ("tokenizer.json", "spiece.model")

SCORE_IDX: Final = 250_089
"""The token `<extra_id_10>`, whose logit is the score."""

_MAX_SCORE: Final = 25.0

# EOS, which the models were trained without, counted.
_MAX_LEN: Final = 1536

_BATCH_SIZE: Final = 16


@final
class MetricXScorer:
    """Scores single outputs by a model of MetricX-24."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        """
        :param model: An ``MT5ForConditionalGeneration`` of transformers.
        :param tokenizer: One of transformers.
        """
        self._model = model.eval()
        self._tokenizer = tokenizer

    @property
    def precision(self) -> str:
        return str(self._model.dtype).removeprefix("torch.").replace("float", "fp")

    @torch.inference_mode()
    def score(
        self,
        sources: Sequence[str],
        hypotheses: Sequence[str],
        references: Sequence[str] | None = None,
    ) -> list[float]:
        """
        :param references: ``None`` to estimate the quality without.

        :returns: One score a hypothesis, 0 for the best.
        """
        texts = [
            f"source: {source} candidate: {hypothesis}"
            for source, hypothesis in zip(sources, hypotheses, strict=True)
        ]

        if references is not None:
            texts = [
                f"{text} reference: {reference}"
                for text, reference in zip(texts, references, strict=True)
            ]

        if not texts:
            return []

        seqs = self._tokenizer(
            texts, add_special_tokens=False, truncation=True, max_length=_MAX_LEN - 1
        )["input_ids"]

        scores = [0.0] * len(seqs)

        # Little padding.
        order = sorted(range(len(seqs)), key=lambda row: len(seqs[row]))

        for begin in range(0, len(order), _BATCH_SIZE):
            rows = order[begin : begin + _BATCH_SIZE]

            values = self._score_batch([seqs[row] for row in rows])

            for row, value in zip(rows, values):
                scores[row] = value

        return scores

    def _score_batch(self, seqs: Sequence[Sequence[int]]) -> list[float]:
        config, device = self._model.config, self._model.device

        max_len = max(len(seq) for seq in seqs)

        padded = [[*seq, *[config.pad_token_id] * (max_len - len(seq))] for seq in seqs]

        masks = [[1] * len(seq) + [0] * (max_len - len(seq)) for seq in seqs]

        # (B, 1)
        start = torch.full((len(seqs), 1), config.decoder_start_token_id, device=device)

        # (B, 1, V)
        logits = self._model(
            input_ids=torch.tensor(padded, device=device),
            attention_mask=torch.tensor(masks, device=device),
            decoder_input_ids=start,
            use_cache=False,
        ).logits

        scores: list[float] = (
            logits[:, 0, SCORE_IDX].float().clamp(0.0, _MAX_SCORE).tolist()
        )

        return scores


# Both metrics of a model in one evaluation load it once.
@lru_cache(maxsize=1)
def load_scorer(name: str) -> MetricXScorer:
    """
    :raises MetricUnavailable: The model cannot be loaded.
    """
    from transformers import AutoTokenizer, MT5ForConditionalGeneration

    path = Path(name)

    tokenizer_name = _TOKENIZER

    if any((path / file).is_file() for file in _TOKENIZER_FILES):
        tokenizer_name = name

    try:
        # Published weights name a class of their own, which has those of mT5.
        model, info = MT5ForConditionalGeneration.from_pretrained(
            name, dtype="auto", output_loading_info=True
        )
    # Whatever reading a file or asking the Hub may raise.
    except Exception as ex:
        raise MetricUnavailable(
            f"The model of MetricX {name} cannot be loaded ({_describe(ex)}); name a folder that holds it with `--metricx-model DIR`."
        ) from None

    if info["missing_keys"] or model.config.vocab_size <= SCORE_IDX:
        raise MetricUnavailable(
            f"{name} is no model of MetricX, which are mT5 with all weights and {SCORE_IDX + 1:,} tokens or more; give one, such as `{DEFAULT_MODEL}`."
        )

    try:
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_name)
    except Exception as ex:
        raise MetricUnavailable(
            f"The tokenizer of MetricX, {tokenizer_name}, cannot be loaded ({_describe(ex)}); put the `spiece.model` of any mT5 into the folder of the model, and name that with `--metricx-model DIR`."
        ) from None

    device = "cuda" if torch.cuda.is_available() else "cpu"

    return MetricXScorer(model.to(device), tokenizer)


def _describe(ex: Exception) -> str:
    text = " ".join(str(ex).split()).partition(". ")[0].rstrip(".")

    return text[:300] or type(ex).__name__
