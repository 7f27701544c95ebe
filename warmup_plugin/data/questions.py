# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from warmup_plugin.errors import WarmupError

LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def format_question(context: str, question: str, options: Sequence[str]) -> str:
    """
    Writes a multiple choice question as a model reads it: context, question and
    lettered options, each in a line of its own.

    :param context: May be empty.
    """
    lettered = [f"{letter}. {text}" for letter, text in zip(LETTERS, options)]

    return "\n".join([*([context] if context else []), question, *lettered])


def read_question(example: Mapping[str, object], where: str) -> tuple[str, str]:
    """
    Makes source and target of a multiple choice question.

    :param example: ``question``, ``options``, ``answer``, which is the letter of an
        option or its number from 0, and where there is one ``context`` (or ``text``, as
        LogiQA 2.0 calls it).
    :param where: Where it stands, for messages.

    :returns: The question as of :func:`format_question`, and the letter of its answer.

    :raises WarmupError: If a field is missing or does not fit the others.
    """
    context = example.get("context", example.get("text", ""))

    question, options = example.get("question"), example.get("options")

    for value, name in ((context, "context"), (question, "question")):
        if not isinstance(value, str):
            raise WarmupError(
                f"{where} has no text in field `{name}`: a multiple choice question needs `question`, `options`, `answer` and, where there is one, `context`."
            )

    if not isinstance(options, list) or not all(isinstance(o, str) for o in options):
        raise WarmupError(
            f"{where} must have a list of texts in field `options`: correct the line."
        )

    if not 2 <= len(options) <= len(LETTERS):
        raise WarmupError(
            f"{where} has {len(options)} options, but a question has 2 to {len(LETTERS)}: correct the line."
        )

    answer = example.get("answer")

    letters = LETTERS[: len(options)]

    if isinstance(answer, int) and not isinstance(answer, bool):
        if 0 <= answer < len(options):
            answer = letters[answer]

    if not isinstance(answer, str) or len(answer) != 1 or answer not in letters:
        raise WarmupError(
            f"{where} has {answer!r} in field `answer`, which is none of its {len(options)} options: give the number of an option from 0, or its letter."
        )

    source = format_question(
        str(context).strip(), str(question).strip(), [o.strip() for o in options]
    )

    return source, answer
