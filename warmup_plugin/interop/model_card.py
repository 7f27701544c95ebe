# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from warmup_plugin import __version__


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

    warmup_lang: str | None = None
    """The language whose token begins a warmup, if it is not that of the targets."""


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
        "Split by the id before decoding; `skip_special_tokens=True` would join both. transformers does not hold the warmup to its limit, as `warmup_plugin generate` does.",
        *pivot,
    ]


def _write_example(card: ModelCard) -> list[str]:
    kls = "AutoModelForCausalLM" if card.is_decoder_only else "AutoModelForSeq2SeqLM"

    begin = "inputs.input_ids.size(1)" if card.is_decoder_only else "0"

    lines = [
        f"from transformers import AutoTokenizer, {kls}",
        "",
        f"tokenizer = AutoTokenizer.from_pretrained({card.name!r})",
        f"model = {kls}.from_pretrained({card.name!r})",
        "",
        f"text = {card.template!r}.replace('{{source}}', 'A sentence.')",
        "",
        "inputs = tokenizer(text, return_tensors='pt')",
        "",
        f"tokens = model.generate(**inputs)[0, {begin}:].tolist()",
    ]

    if card.separator is None:
        return [*lines, "print(tokenizer.decode(tokens, skip_special_tokens=True))"]

    return [
        *lines,
        "",
        f"at = tokens.index({card.separator_idx}) if {card.separator_idx} in tokens else -1",
        "",
        "warmup = tokenizer.decode(tokens[: max(at, 0)], skip_special_tokens=True)",
        "output = tokenizer.decode(tokens[at + 1 :], skip_special_tokens=True)",
        "",
        "print(warmup, output, sep='\\n')",
    ]


def _describe_serving(card: ModelCard) -> list[str]:
    return [
        "## Serving",
        "",
        "```sh",
        f"ct2-transformers-converter --model {card.name} --output_dir {card.name}-ct2",
        "```",
        "",
        "converts it for CTranslate2, whose output tokens are split in the same way.",
    ]
