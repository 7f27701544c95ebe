# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

from typing_extensions import override

from warmup_plugin.metrics.base import DEFAULT_METRICS
from warmup_plugin.metrics.languages import get_language
from warmup_plugin.tasks.base import (
    TaskContext,
    TaskSettings,
    TextTask,
    choose_prompt,
    has_tokenizer_of,
)

# The English name, by which instructions call a language, and the code of NLLB (FLORES-200).
_LANGUAGES: Final = {
    "ar": ("Arabic", "arb_Arab"),
    "cs": ("Czech", "ces_Latn"),
    "de": ("German", "deu_Latn"),
    "en": ("English", "eng_Latn"),
    "es": ("Spanish", "spa_Latn"),
    "et": ("Estonian", "est_Latn"),
    "fi": ("Finnish", "fin_Latn"),
    "fr": ("French", "fra_Latn"),
    "hi": ("Hindi", "hin_Deva"),
    "it": ("Italian", "ita_Latn"),
    "ja": ("Japanese", "jpn_Jpan"),
    "ko": ("Korean", "kor_Hang"),
    "lt": ("Lithuanian", "lit_Latn"),
    "lv": ("Latvian", "lvs_Latn"),
    "nl": ("Dutch", "nld_Latn"),
    "pl": ("Polish", "pol_Latn"),
    "pt": ("Portuguese", "por_Latn"),
    "ro": ("Romanian", "ron_Latn"),
    "ru": ("Russian", "rus_Cyrl"),
    "tr": ("Turkish", "tur_Latn"),
    "uk": ("Ukrainian", "ukr_Cyrl"),
    "vi": ("Vietnamese", "vie_Latn"),
    "zh": ("Chinese", "zho_Hans"),
}

_NAMES_BY_NLLB_CODE: Final = {code: name for name, code in _LANGUAGES.values()}


@dataclass(kw_only=True)
class TranslationConfig:
    """Configures the task ``translation``."""

    t5_prompt: str = "translate {source_lang} to {target_lang}: {source}"
    """What T5 and mT5 read, with the English names of the languages. T5 was pretrained with this prefix, mT5 with none."""

    scratch_prompt: str = "{target_lang}: {source}"
    """What models with a vocabulary of their own read if a run has several target languages, with the codes of the languages; else they read the source. Where the tokenizer has `<mid>`, that follows."""

    decoder_prompt: str = (
        "Translate from {source_lang} to {target_lang}.\n\n{source}\n\nTranslation:\n"
    )
    """What decoder-only models read, but those with a vocabulary of their own."""


@final
class TranslationTask(TextTask):
    """
    Translates.

    NLLB is told the languages by tokens, T5 and decoder-only models by a prompt. A model
    with a vocabulary of our own is told nothing where it knows one target language, and
    else its code in front of the source, as text.
    """

    def __init__(self, config: TranslationConfig) -> None:
        self._config = config

    @override
    def get_settings(self, context: TaskContext) -> TaskSettings:
        source_lang, target_lang = context.source_lang, context.target_lang

        # Models from scratch have no tokens of languages.
        is_nllb = has_tokenizer_of(context, "nllb")

        return TaskSettings(
            prompt=self._get_prompt(context, is_nllb),
            metrics=DEFAULT_METRICS,
            score_metric="chrf",
            source_lang=get_nllb_code(source_lang) if is_nllb else None,
            target_lang=get_nllb_code(target_lang) if is_nllb else None,
        )

    def _get_prompt(self, context: TaskContext, is_nllb: bool) -> str | None:
        if context.source_lang is None or context.target_lang is None:
            return None

        prompt = choose_prompt(
            context,
            t5=self._config.t5_prompt,
            decoder_only=self._config.decoder_prompt,
        )

        source_name, target_name = map(
            get_language_name, (context.source_lang, context.target_lang)
        )

        if prompt is None:
            if is_nllb or len(context.target_langs) < 2:
                return None

            prompt = f"{self._config.scratch_prompt}{context.prompt_end or ''}"

            # A small vocabulary spells names in many pieces.
            source_name, target_name = context.source_lang, context.target_lang

        return prompt.replace("{source_lang}", source_name).replace(
            "{target_lang}", target_name
        )


def get_language_name(code: str) -> str:
    """Returns the English name of a language; the code itself if it is not known."""
    name = _NAMES_BY_NLLB_CODE.get(code)

    if name is not None:
        return name

    entry = _LANGUAGES.get(get_language(code))

    return code if entry is None else entry[0]


def get_nllb_code(code: str | None) -> str | None:
    """
    Returns NLLB's code of a language of two letters, such as ``deu_Latn`` of ``de``.

    :returns: ``None`` if it is not known; then the code has to be NLLB's own.
    """
    entry = _LANGUAGES.get(code or "")

    return None if entry is None else entry[1]
