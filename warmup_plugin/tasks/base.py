# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

from warmup_plugin.models.t5.tokenizer import T5_TOKENIZER_FAMILY


@final
@dataclass(frozen=True, kw_only=True)
class TaskContext:
    """Holds what a task needs to know of a run."""

    model_family: str
    """The fairseq2 family of the model, such as ``t5`` or ``llama``."""

    tokenizer_family: str | None
    """The family of the tokenizer, such as ``warmup_spm``; ``None`` if it is an asset."""

    is_decoder_only: bool
    """Whether the model reads prompts."""

    source_lang: str | None
    """``dataset.source_lang``."""

    target_lang: str | None
    """``dataset.target_lang``; of a run with several directions, that of the one that
    the task is asked about."""

    target_langs: Sequence[str] = ()
    """The target languages of all directions, each once; none for a run with one."""

    max_target_len: int
    """``dataset.max_target_len``."""

    prompt_end: str | None = None
    """The special token with which the prompts of a decoder-only model from scratch end;
    ``None`` of any other model."""


@final
@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """Holds what follows from a task, for the keys that a config leaves open."""

    prompt: str | None
    """See ``dataset.prompt``; ``None`` for the source alone."""

    metrics: Sequence[str]
    """See ``validation.metrics``."""

    labels: Sequence[str] = ()
    """See ``validation.labels``."""

    score_metric: str
    """The score that picks the best checkpoint, one of ``metrics``."""

    source_lang: str | None = None
    """See ``tokenizer.source_lang``."""

    target_lang: str | None = None
    """See ``tokenizer.target_lang``."""

    generation: Mapping[str, object] = field(default_factory=dict)
    """See the fields of the section ``generation``; none for the generator's defaults."""


class TextTask(ABC):
    """
    Says what a model is trained for.

    Registered by name as a component; ``task.name`` chooses it.
    """

    @abstractmethod
    def get_settings(self, context: TaskContext) -> TaskSettings:
        """
        Returns the settings for a model and its languages.

        :raises WarmupError: If the task cannot be done with them.
        """


def limit_to_targets(context: TaskContext) -> dict[str, object]:
    """
    Returns the settings of outputs that are as long as targets, however long the
    sources are.
    """
    return {"max_len_a": 0.0, "max_len_b": context.max_target_len}


def choose_prompt(context: TaskContext, *, t5: str, decoder_only: str) -> str | None:
    """
    Returns the prompt of a kind of model.

    :param t5: That of T5 and mT5 with their own tokenizer.
    :param decoder_only: That of Llama, Qwen and the like.

    :returns: ``None`` for the source alone: models from scratch and NLLB need no words.
    """
    if context.prompt_end is not None:
        return None

    if context.is_decoder_only:
        return decoder_only

    return t5 if has_tokenizer_of(context, T5_TOKENIZER_FAMILY) else None


def has_tokenizer_of(context: TaskContext, family: str) -> bool:
    """
    Tells whether a model has the public tokenizer of its family.

    A model from scratch is of such a family too, with a vocabulary of its own. The
    tokenizer of an asset, whose family is not given, is that of its model.
    """
    return (context.tokenizer_family or context.model_family) == family
