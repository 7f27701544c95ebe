# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from warmup_plugin import __version__

ADAPTER_FOLDER: Final = "adapter"
"""In the folder of a model."""


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """Holds what a model card says."""

    name: str

    arch: str

    is_decoder_only: bool

    separator: str | None
    """The token that ends a warmup; ``None`` if the model writes none."""

    separator_idx: int

    template: str
    """What a source is put into."""

    langs: tuple[str, str] | None
    """The languages of sources and targets; ``None`` if it was not trained."""

    step_nr: int

    score: float | None

    score_metric: str | None

    max_warmup_len: int
    """At the checkpoint; 0 if its warmups are empty."""

    eos_idx: int

    num_forced: int = 0
    """The number of tokens that ``generate()`` writes by itself before a warmup, the
    first one of a decoder included; nothing behind a prompt."""

    cut_share: float | None = None
    """The share of warmups that the limit ended in training, where it is known."""

    warmup_lang: str | None = None
    """The language whose token begins a warmup, if it is not that of the targets."""

    ends_like_text: bool = False
    """Whether the probability of EOS ends a warmup."""

    has_adapter: bool = False
    """If ``True``, the model is the base of an adapter beside it."""


def write_model_card(folder: Path, card: ModelCard) -> None:
    """Writes ``README.md``, which the Hugging Face Hub shows."""
    score = ""

    if card.score is not None:
        score = f", {card.score_metric} {card.score:.2f} on its development set"

    origin = f"written by warmup_plugin {__version__}, not trained with it"

    if card.langs is not None:
        origin = f"trained with warmup_plugin {__version__} (step {card.step_nr}{score}), languages {' to '.join(card.langs)}"

    lines = [
        "---",
        "library_name: transformers",
        "tags:",
        f"- {'text-generation' if card.is_decoder_only else 'text2text-generation'}",
        "- warmup-generations",
        "---",
        "",
        f"# {card.name}",
        "",
        f"A `{card.arch}` {origin}.",
        "",
        *_describe_adapter(card),
        *_describe_output(card),
        "",
        "## Use",
        "",
        "```python",
        *_write_example(card),
        "```",
        "",
        *_describe_serving(card),
    ]

    folder.joinpath("README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _describe_adapter(card: ModelCard) -> list[str]:
    if not card.has_adapter:
        return []

    return [
        f"This folder holds the base, and `{ADAPTER_FOLDER}` in it the adapter (LoRA) that was trained, in the format of `peft`: only both together write what is described here.",
        "",
    ]


def _describe_output(card: ModelCard) -> list[str]:
    if card.separator is None:
        return ["The model writes its output directly, without a warmup."]

    pivot: list[str] = []

    if card.warmup_lang is not None:
        pivot = [
            "",
            f"The warmup is in another language than the output: `{card.warmup_lang}`, whose token begins what is written (`forced_bos_token_id`; `target_prefix` of CTranslate2), and that of the output ends the warmup. Do not force the latter at the beginning, as is usual with NLLB.",
        ]

    return [
        f"Before its output the model writes a short **warmup** of at most {card.max_warmup_len} tokens (Warmup Generations, arXiv 2502.12304). The token `{card.separator}` (id {card.separator_idx}) ends it: what stands before is the warmup, what follows is the output.",
        "",
        "Split by the id before decoding; `skip_special_tokens=True` would join both. transformers and CTranslate2 do not hold a warmup to its form by themselves: EOS must not end it, its limit must, and the output holds no separator. The code below does so; without it what is written is no translation if the model did not learn to end a warmup.",
        *_describe_cuts(card),
        *pivot,
        *_describe_end(card),
    ]


def _describe_end(card: ModelCard) -> list[str]:
    if not card.ends_like_text:
        return []

    return [
        "",
        f"The model has learned to end a warmup as it ends a text, by EOS: the probability of EOS is that of `{card.separator}`, which is put in its place.",
    ]


def _describe_cuts(card: ModelCard) -> list[str]:
    if card.cut_share is None:
        return []

    return [
        "",
        f"In training the limit ended {100 * card.cut_share:.0f} % of the warmups, the model the others.",
    ]


def _write_example(card: ModelCard) -> list[str]:
    kls = "AutoModelForCausalLM" if card.is_decoder_only else "AutoModelForSeq2SeqLM"

    begin = "inputs.input_ids.size(1)" if card.is_decoder_only else str(card.num_forced)

    has_warmup = card.separator is not None

    names = f"AutoTokenizer, {kls}{', LogitsProcessor' if has_warmup else ''}"

    adapter: list[str] = []

    if card.has_adapter:
        adapter = [
            f"model = PeftModel.from_pretrained(model, {f'{card.name}/{ADAPTER_FOLDER}'!r})"
        ]

    lines = [
        *(["from peft import PeftModel"] if card.has_adapter else []),
        f"from transformers import {names}",
        "",
        f"tokenizer = AutoTokenizer.from_pretrained({card.name!r})",
        f"model = {kls}.from_pretrained({card.name!r})",
        *adapter,
        "",
        f"text = {card.template!r}.replace('{{source}}', 'A sentence.')",
        "",
        "inputs = tokenizer(text, return_tensors='pt')",
        "",
    ]

    if not has_warmup:
        return [
            *lines,
            f"tokens = model.generate(**inputs)[0, {begin}:].tolist()",
            "print(tokenizer.decode(tokens, skip_special_tokens=True))",
        ]

    return [
        *lines,
        f"begin, limit = {begin}, {card.max_warmup_len}",
        "",
        f"separator, eos = {card.separator_idx}, {card.eos_idx}",
        "",
        "",
        "class Warmup(LogitsProcessor):",
        "    def __call__(self, input_ids, scores):",
        "        if input_ids.size(1) < begin:",
        "            return scores",
        "",
        "        for row, tokens in enumerate(input_ids[:, begin:].tolist()):",
        "            if separator in tokens:",
        "                scores[row, separator] = -float('inf')",
        "            elif len(tokens) < limit:",
        *(
            ["                scores[row, separator] = scores[row, eos]"]
            if card.ends_like_text
            else []
        ),
        "                scores[row, eos] = -float('inf')",
        "            else:",
        "                scores[row] = -float('inf')",
        "                scores[row, separator] = 0.0",
        "",
        "        return scores",
        "",
        "",
        "tokens = model.generate(**inputs, logits_processor=[Warmup()])[0, begin:].tolist()",
        "",
        "at = tokens.index(separator)",
        "",
        "warmup = tokenizer.decode(tokens[:at], skip_special_tokens=True)",
        "output = tokenizer.decode(tokens[at + 1 :], skip_special_tokens=True)",
        "",
        "print(warmup, output, sep='\\n')",
    ]


def _describe_serving(card: ModelCard) -> list[str]:
    if card.has_adapter:
        return [
            "## Serving",
            "",
            "CTranslate2 reads no adapters: export the run again with `--merge`.",
        ]

    lines = [
        "## Serving",
        "",
        "```sh",
        f"ct2-transformers-converter --model {card.name} --output_dir {card.name}-ct2",
        "```",
        "",
    ]

    if card.separator is None:
        return [*lines, "converts it for CTranslate2."]

    return [
        *lines,
        "converts it for CTranslate2, which is asked twice: for the warmup, up to its limit and without EOS, and for what follows warmup and separator.",
        "",
        "```python",
        *_write_ct2_example(card),
        "```",
    ]


def _write_ct2_example(card: ModelCard) -> list[str]:
    kls, call, vocabulary = "Translator", "translate_batch", "shared_vocabulary"

    if card.is_decoder_only:
        kls, call, vocabulary = "Generator", "generate_batch", "vocabulary"

    lines = [
        "import json",
        "",
        "import ctranslate2",
        "",
        f"engine = ctranslate2.{kls}({card.name + '-ct2'!r})",
        "",
        "name = tokenizer.convert_ids_to_tokens",
        "",
        "source = name(tokenizer(text).input_ids)",
        "",
        f"with open({f'{card.name}-ct2/{vocabulary}.json'!r}, encoding='utf-8') as fp:",
        "    vocabulary = json.load(fp)",
        "",
        "# What neither a warmup nor an output holds.",
        "never = [[vocabulary[i]] for i in model.generation_config.suppress_tokens]",
        "",
        f"limit, separator, eos = {card.max_warmup_len}, name({card.separator_idx}), name({card.eos_idx})",
        "",
    ]

    end, other = ("eos", "separator") if card.ends_like_text else ("separator", "eos")

    warmup_settings = f"beam_size=1, end_token={end}, suppress_sequences=[*never, [{other}]], {{limit}}=limit"

    if card.is_decoder_only:
        settings = warmup_settings.format(limit="max_length")

        return [
            *lines,
            "warmup = []",
            "",
            "if limit > 0:",
            f"    [result] = engine.{call}([source], include_prompt_in_result=False, {settings})",
            f"    warmup = [t for t in result.sequences[0] if t != {end}]",
            "",
            f"[result] = engine.{call}([[*source, *warmup, separator]], beam_size=1, include_prompt_in_result=False, suppress_sequences=[*never, [separator]], max_length=model.generation_config.max_new_tokens)",
            "",
            "print(tokenizer.decode(tokenizer.convert_tokens_to_ids(result.sequences[0]), skip_special_tokens=True))",
        ]

    # What the decoder starts with, CTranslate2 adds by itself.
    prefix = (
        "[name(model.generation_config.forced_bos_token_id)]"
        if card.num_forced > 1
        else "[]"
    )

    settings = warmup_settings.format(limit="max_decoding_length").replace(
        "=limit", "=limit + len(prefix)"
    )

    return [
        *lines,
        f"prefix = {prefix}",
        "warmup = []",
        "",
        "if limit > 0:",
        f"    [result] = engine.{call}([source], target_prefix=[prefix], {settings})",
        f"    warmup = [t for t in result.hypotheses[0][len(prefix) :] if t != {end}]",
        "",
        "prefix = [*prefix, *warmup, separator]",
        "",
        f"[result] = engine.{call}([source], beam_size=1, target_prefix=[prefix], suppress_sequences=[*never, [separator]], max_decoding_length=model.generation_config.max_new_tokens)",
        "",
        "print(tokenizer.decode(tokenizer.convert_tokens_to_ids(result.hypotheses[0][len(prefix) :]), skip_special_tokens=True))",
    ]
