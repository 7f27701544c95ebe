# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""What the training and the generation recipe share."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any

import torch
from fairseq2.assets import AssetStore
from fairseq2.assets.store import AssetNotFoundError
from fairseq2.data.tokenizers import Tokenizer
from fairseq2.recipe.base import RecipeContext
from fairseq2.recipe.config import (
    ModelSection,
    ReferenceModelSection,
    TokenizerSection,
)
from fairseq2.runtime.dependency import DependencyResolver
from torch.nn import Module
from typing_extensions import override

from warmup_plugin.components import Checked, find_too_small
from warmup_plugin.data.directions import (
    DirectionSection,
    list_directions,
    narrow_to_direction,
    split_direction,
)
from warmup_plugin.data.split_files import TextPairsConfig
from warmup_plugin.errors import WarmupError
from warmup_plugin.layout import DecoderLayout
from warmup_plugin.models.conditional import ConditionalModel
from warmup_plugin.models.families import find_family, reads_prompts
from warmup_plugin.models.traits import find_float16_fault
from warmup_plugin.tokenizers.codec import (
    CodecOptions,
    TextCodec,
    create_codec,
    find_template_error,
)


@dataclass(kw_only=True)
class TextPairsSection(TextPairsConfig, Checked):
    """Configures the data: where it is, its splits and its batches."""

    train_split: str = "train"
    """The split to train on."""

    valid_split: str = "valid"
    """The development set, decoded at each validation."""

    test_split: str = "test"
    """The split that ``generate`` and ``evaluate`` take by default; here as everywhere, `sacrebleu:wmt24` is that test set of sacreBLEU."""

    max_train_pairs: int | None = None
    """Of the training split, only so many pairs, the first ones; those that are empty or too long count and are dropped then. With ``directions``, of each. ``None`` for all."""

    prompt: str | None = None
    """What the model reads of a source: a template with `{source}`, and where wanted `{source_lang}` and `{target_lang}`. For a decoder-only model it may name special tokens. ``None`` for that of the task; `{source}` is the source alone."""

    max_source_len: int = 128
    """The most tokens of a source, prompt and EOS included; longer pairs are dropped and counted."""

    max_target_len: int = 128
    """The most tokens of a target, BOS and EOS included."""

    max_num_tokens: int = 1500
    """The size of a batch: rows times the longest source or target among them."""

    cache: str = "auto"
    """Where tokenised splits are kept for later starts and mapped by all processes: `auto` for `.warmup_cache` beside the data (or in the run, if that is read-only) and splits of at least 32 MiB; a folder, for all splits; `none` to tokenise them at each start. What is there may be deleted."""

    directions: dict[str, DirectionSection] | None = None
    """Several directions in one run, by names such as `en-de`: ``'{en-de: {}, de-en: {}}'``. Then ``dataset.source_lang``, ``dataset.target_lang``, ``tokenizer.source_lang`` and ``tokenizer.target_lang`` are not used. ``None`` for the one that these name."""

    sampling_temperature: float = 1.0
    """T, with ``directions``: an epoch has as many pairs as the data, shared out in proportion to size^(1/T). 1 takes the data as it is; the larger T, the more of the small ones."""

    @override
    def find_errors(self) -> Iterator[str]:
        # Not a number is neither.
        if not 1.0 <= self.sampling_temperature < math.inf:
            yield "`sampling_temperature` must be a number greater than or equal to 1."

        yield from find_too_small(self, max_train_pairs=1)

        if self.cache.strip().lower() in ("", "off", "no", "false", "null", "0"):
            yield f"`cache` must be `auto`, `none` or a folder, but is `{self.cache}`."

        if self.directions is None:
            if self.sampling_temperature != 1.0:
                yield "`sampling_temperature` shares out the pairs of `directions`; set them, or leave it out."

            return

        if not self.directions:
            yield "`directions` must not be empty."

        for name, direction in self.directions.items():
            try:
                split_direction(name)
            except WarmupError as ex:
                yield str(ex)

            if direction.max_train_pairs is not None and direction.max_train_pairs < 1:
                yield f"`directions.{name}.max_train_pairs` must be greater than or equal to 1."

            if direction.prompt is not None:
                error = find_template_error(
                    f"directions.{name}.prompt", direction.prompt
                )

                if error is not None:
                    yield error

            others = [f"`{other}`" for other in self.directions if other != name]

            for other in direction.behind or ():
                if f"`{other}`" not in others:
                    remedy = f"name some of {', '.join(others)}" if others else "add it"

                    yield f"`directions.{name}.behind` names `{other}`, which is no other direction of the run; {remedy}."


@dataclass(kw_only=True)
class RunTokenizerSection(Checked, TokenizerSection):
    """Configures the tokenizer; may be left out if ``init_from`` names a run."""

    family: str | None = None
    """The kind of tokenizer at ``path``: `warmup_spm`, `t5`, `nllb` or `hugging_face`; ``None`` for `warmup_spm` if it is a file, and for that of the model if it is a folder."""

    separator: str | None = None
    """The special token that ends a warmup; ``None`` for the tokenizer's default."""

    source_lang: str | None = None
    """What the tokenizer calls the language of the sources, such as `eng_Latn`; ``None`` for ``dataset.source_lang``."""

    target_lang: str | None = None
    """What the tokenizer calls the language of the targets; ``None`` for ``dataset.target_lang``."""

    warmup_lang: str | None = None
    """NLLB: the language of the warmups, such as `eng_Latn`. Its token begins a warmup, that of the targets ends it, and ``warmup.separator_init`` is `none`, since NLLB knows both. ``None`` for a warmup behind the token of the targets, which ``separator`` ends. Has no effect with `criterion.name=sft`."""

    warmup_end: str | None = None
    """What the end of a warmup is learned as: `separator`, the token itself, or `eos`: a warmup ends with the probability of EOS, as a text does, and the separator is only read. ``None`` for `eos` with ``warmup_lang``, since no model has learned to end a text by the token of a language, and else for `separator`."""

    @override
    def find_errors(self) -> Iterator[str]:
        # A run brings its own tokenizer, so that neither name nor path is needed.
        if self.warmup_end not in (None, "separator", "eos"):
            yield f"`warmup_end` must be `separator` or `eos`, but is `{self.warmup_end}`."


def create_direction_codecs(
    tokenizer: Tokenizer, config: Mapping[str, Any], *, reads_prompts: bool
) -> dict[str, TextCodec]:
    """
    Creates what turns the texts of each direction of a run into tokens.

    :param config: The sections ``tokenizer`` and ``dataset``, at least.

    :returns: The codecs by the names of the directions; of a run without
        ``dataset.directions`` its only one. All write the same decoder sequences.

    :raises WarmupError: As of :func:`create_codec`; if directions do not go together,
        or the model is not told which language to write.
    """
    codecs: dict[str, TextCodec] = {}

    for name in list_directions(config["dataset"]):
        narrowed = narrow_to_direction(config, name)

        options = get_codec_options(narrowed["tokenizer"], narrowed["dataset"])

        codecs[name] = create_codec(tokenizer, options, reads_prompts=reads_prompts)

    directions = config["dataset"]["directions"]

    if directions:
        plain = {name for name in codecs if directions[name].get("plain")}

        if config["tokenizer"].get("warmup_lang") is not None:
            _share_separator(codecs, plain)

        _check_codecs(codecs, plain)

    return codecs


def _share_separator(codecs: Mapping[str, TextCodec], plain: Set[str]) -> None:
    """
    Ends the warmups of all directions with the language of their targets.

    :raises WarmupError: If that is not the same for all.
    """
    warmed = [name for name in codecs if name not in plain]

    for name in warmed[1:]:
        first, other = codecs[warmed[0]], codecs[name]

        if first.separator != other.separator:
            raise WarmupError(
                f"With `tokenizer.warmup_lang` the language of the targets ends a warmup, which is another one in the directions `{warmed[0]}` and `{name}`; train them in runs of their own, or without warmups by `dataset.directions.{name}.plain`."
            )

    for name in plain:
        if warmed:
            codecs[name].adopt_layout(codecs[warmed[0]])


def _check_codecs(codecs: Mapping[str, TextCodec], plain: Set[str]) -> None:
    """
    :param plain: The directions without warmup.
    """
    (first_name, first), *others = codecs.items()

    for name, codec in others:
        if codec.layout != first.layout:
            raise WarmupError(
                f"The tokenizer begins the outputs of the directions `{first_name}` and `{name}` differently; train them in runs of their own."
            )

    # By source language and what a model reads and writes of a source, which is not empty
    # since a prompt needs two tokens.
    told: dict[object, str] = {}

    for name, codec in codecs.items():
        source_lang, _ = split_direction(name)

        encoded = codec.encode_source("1 2 3")

        # A separator, or none, tells the languages apart as well.
        key = (
            source_lang,
            tuple(encoded.source),
            tuple(encoded.prefix),
            name in plain,
        )

        other = told.setdefault(key, name)

        if other != name:
            raise WarmupError(
                f"The directions `{other}` and `{name}` look the same to the model, which is not told the language to write; name it in `dataset.prompt`, such as `'{{target_lang}}: {{source}}'`, with words that the tokenizer knows."
            )


def get_codec_options(
    tokenizer: Mapping[str, Any], dataset: Mapping[str, Any]
) -> CodecOptions:
    """
    Returns what a codec needs to know of a config.

    :param tokenizer: The section ``tokenizer``.
    :param dataset: The section ``dataset``.
    """
    return CodecOptions(
        source_lang=tokenizer["source_lang"] or dataset["source_lang"],
        target_lang=tokenizer["target_lang"] or dataset["target_lang"],
        prompt=dataset["prompt"],
        separator=tokenizer["separator"],
        # Runs of earlier versions have none.
        warmup_lang=tokenizer.get("warmup_lang"),
        ends_like_text=tokenizer.get("warmup_end") == "eos",
    )


def is_decoder_only(
    context: RecipeContext, section: ModelSection | ReferenceModelSection
) -> bool:
    """
    Tells whether the model of a config is decoder-only, without building it.

    :raises WarmupError: If it is not known.
    """
    family = find_family_name(section.name, section.family, context.resolver)

    return reads_prompts(find_family(family, context.resolver))


def find_family_name(
    name: str | None, family: str | None, resolver: DependencyResolver
) -> str | None:
    """
    Returns the family of the model of a config.

    :param name: ``model.name``, which goes before ``model.family``.

    :raises WarmupError: If no asset has that name.
    """
    if name is None:
        return family

    try:
        card = resolver.resolve(AssetStore).retrieve_card(name)
    except AssetNotFoundError:
        raise WarmupError(
            f"`model.name` is `{name}`, which no asset card describes; `python -m fairseq2.assets list` shows those that are known."
        ) from None

    field = card.maybe_get_field("model_family")

    return None if field is None else field.as_(str)


def refuse_float16(model: Module, dtype: torch.dtype) -> None:
    """
    :raises WarmupError: If the model must not compute in float16, as a T5.
    """
    fault = find_float16_fault(model)

    if dtype == torch.float16 and fault is not None:
        raise WarmupError(f"{fault}; use bfloat16 or float32.")


def check_lengths(
    model: ConditionalModel,
    layout: DecoderLayout,
    max_source_len: int,
    max_target_len: int,
    max_warmup_len: int | None,
) -> None:
    """
    :raises WarmupError: If a sequence within its limit would not fit the model.
    """
    if max_source_len > model.max_source_len:
        raise WarmupError(
            f"`dataset.max_source_len` is {max_source_len}, but the model reads at most {model.max_source_len} tokens; lower it or raise `max_seq_len` in `model.config_overrides`."
        )

    model_target_len = model.get_max_target_len(max_source_len)

    if max_target_len - layout.prefix_len > layout.room(
        model_target_len, max_warmup_len
    ):
        raise WarmupError(
            f"`dataset.max_target_len` ({max_target_len}) and `warmup.max_warmup_len` ({max_warmup_len}) make decoder sequences longer than the {model_target_len} tokens of the model; lower one of them or raise `max_seq_len` in `model.config_overrides`."
        )


def get_rank() -> int:
    """Returns the rank of this process under torchrun or Slurm."""
    for name in ("RANK", "SLURM_PROCID"):
        value = os.environ.get(name, "")

        if value.isdecimal():
            return int(value)

    return 0
