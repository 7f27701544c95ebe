# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Accuracy and macro-F1 of outputs that begin with a label."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Final, final

import numpy as np
from typing_extensions import override

from warmup_plugin.errors import WarmupError
from warmup_plugin.metrics.base import (
    FloatArray,
    Measurement,
    References,
    SystemwiseMetric,
    measure_mean,
    sign_num_references,
)

_MAX_EXAMPLES: Final = 3

_INTRODUCTION: Final = re.compile(
    r"(?:the\s+)?(?:correct\s+|right\s+|best\s+)?(?:answer|option)(?:\s+is)?\s*:?\s*"
    r"|(?:所以|因此|故|我)?(?:应该?)?(?:正确|最佳)?的?(?:答案|选项|选择|选)(?:应该?)?[是为选]?\s*:?\s*",
    re.IGNORECASE,
)

_OPENING: Final = r"[(\[「『【《]?"

_END: Final = r"\s*(?:[)\].,:;!。、」』】》]+|$)"

_JOINT: Final = r"[\s,.;:/&|+。、)\]]*(?:(?:and|or|und|oder|et|ou)\s|[和或与及])?\s*"


def read_label(text: str, labels: Sequence[str]) -> str | None:
    """
    Reads the label from what a model wrote.

    The label is the whole text, or it stands at its beginning, in parentheses or before a
    punctuation mark: ``B``, ``(B)``, ``B. Because …``, ``The answer is B.``, ``答案是B``,
    in full width too. Nothing is guessed from the rest: ``A man`` is no answer, nor is
    ``b``, and who lists several labels (``A, B``) has not answered.

    :returns: ``None`` if there is none, an invalid answer.
    """
    text = text.strip()

    if text in labels:
        return text

    # Letters and punctuation of full width become those of ASCII.
    text = unicodedata.normalize("NFKC", text).strip()

    forms = {unicodedata.normalize("NFKC", label): label for label in labels}

    text = text[match.end() :] if (match := _INTRODUCTION.match(text)) else text

    # The longest first: of `not sure` and `not`, only one can be meant.
    names = sorted(forms, key=len, reverse=True)

    for name in names:
        match = re.match(rf"{_OPENING}{re.escape(name)}{_END}", text)

        if match is not None:
            others = [other for other in names if other != name]

            return (
                None if _is_listed(text[match.end() :], others, names) else forms[name]
            )

    return None


def _is_listed(rest: str, others: Sequence[str], names: Sequence[str]) -> bool:
    """
    Tells whether a label follows another one as in a list.

    It does if it stands alone, before punctuation or before what joins more of them; a
    word after it makes it the beginning of a sentence, such as ``A man``.
    """

    def choose(choices: Sequence[str]) -> str:
        return "|".join(map(re.escape, choices))

    # The same one may be said again before another one.
    begin = rf"{_JOINT}(?:(?:{choose(names)}){_JOINT})*?"

    end = r"(?![^\W_]|[ '’-]+(?!(?:and|or|und|oder|et|ou)\s)\w)"

    # Letters of Latin script make a word of it, those of Han do not.
    end = end.replace(r"[^\W_]", r"[^\W_\u3000-\U0003ffff]")

    return (
        re.match(rf"{begin}{_OPENING}(?:{choose(others)}){end}", rest, re.DOTALL)
        is not None
    )


class _LabelMetric(SystemwiseMetric):
    def __init__(self, labels: Sequence[str]) -> None:
        """
        :param labels: All labels, also those that no reference has. Any other output is
            an invalid answer: it counts as an answer, and it is never right.
        """
        labels = [label.strip() for label in labels]

        if len(labels) < 2 or not all(labels) or len(set(labels)) < len(labels):
            raise WarmupError(
                "The labels must be two or more, each given once and none empty, but "
                f"are {labels}; correct `--labels`, in training `validation.labels`."
            )

        self._labels = labels

        self._signature = f"labels:{','.join(labels)}|answer:leading|invalid:wrong"

    @override
    def check_references(self, references: References) -> None:
        for line_nr, texts in enumerate(references, start=1):
            for label in map(str.strip, texts):
                if label not in self._labels:
                    raise WarmupError(
                        f"Reference {line_nr} is `{label}`, which is none of the labels "
                        f"{', '.join(self._labels)}; correct the reference or "
                        "`--labels`, in training `validation.labels`."
                    )

    def _read_answers(
        self, hypotheses: Sequence[str], references: References
    ) -> tuple[list[list[str]], list[str], dict[str, object]]:
        """
        Returns the gold labels of each question, answers, and what is to be known of
        invalid ones.
        """
        self.check_references(references)

        gold = [[text.strip() for text in texts] for texts in references]

        read = [read_label(line, self._labels) for line in hypotheses]

        lines = [line.strip() for line in hypotheses]

        # What is no label stays what it is, and is wrong.
        answers = [line if a is None else a for a, line in zip(read, lines)]

        invalid = Counter(line for a, line in zip(read, lines) if a is None)

        details = {
            "num_invalid": invalid.total(),
            # The most frequent ones.
            "invalid_examples": [
                line for line, _ in invalid.most_common(_MAX_EXAMPLES)
            ],
        }

        return gold, answers, details


@final
class AccuracyMetric(_LabelMetric):
    """
    Computes the share of right answers, from 0 to 100; of several references, any is
    right.
    """

    @override
    def measure_one(
        self, hypotheses: Sequence[str], references: References
    ) -> list[Measurement]:
        gold, answers, details = self._read_answers(hypotheses, references)

        scores = [100.0 * (a in labels) for a, labels in zip(answers, gold)]

        signature = f"{sign_num_references(references)}|{self._signature}"

        return [
            measure_mean("accuracy", "accuracy", scores, signature, details=details)
        ]


@final
class MacroF1Metric(_LabelMetric):
    """
    Computes the mean of the F1 of all labels, from 0 to 100.

    The F1 of a label that neither a reference nor an answer has is 0.
    """

    @override
    def measure_one(
        self, hypotheses: Sequence[str], references: References
    ) -> list[Measurement]:
        gold, answers, details = self._read_answers(hypotheses, references)

        for line_nr, labels in enumerate(gold, start=1):
            if len(set(labels)) > 1:
                raise WarmupError(
                    f"Reference {line_nr} is one of {', '.join(labels)}, but macro-F1 is defined for one right answer; leave the others out, or the metric."
                )

        # (N, L)
        is_gold = np.array([labels[:1] for labels in gold]) == np.array(self._labels)
        is_answer = np.array(answers)[:, None] == np.array(self._labels)

        # By label: right answers, then what is divided by. F1 is 2 TP / (2 TP + FP + FN).
        # (N, 2 * L)
        stats = np.concatenate(
            [is_gold & is_answer, is_gold.astype(np.int64) + is_answer], axis=1
        )

        stats = stats.astype(np.float64)

        return [
            Measurement(
                "macro_f1",
                "macro-F1",
                float(_compute_macro_f1(stats.sum(axis=0, keepdims=True))[0]),
                f"nrefs:1|{self._signature}",
                stats,
                score_sums=_compute_macro_f1,
                details=details,
            )
        ]


def _compute_macro_f1(sums: FloatArray) -> FloatArray:
    # (R, 2 * L) -> (R, L), (R, L)
    right, total = np.split(sums, 2, axis=1)

    # No right answers either where the total is 0.
    # (R, L) -> (R)
    scores: FloatArray = 100.0 * np.mean(2.0 * right / np.maximum(total, 1.0), axis=1)

    return scores
