# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""What the training and the generation recipe share."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import cast

from fairseq2.data.tokenizers import Tokenizer
from fairseq2.logging import log
from fairseq2.recipe.base import Recipe
from fairseq2.recipe.cli import main as fairseq2_main
from fairseq2.recipe.config import TokenizerSection
from fairseq2.utils.validation import ValidationResult
from ruamel.yaml import YAML
from typing_extensions import override

from warmup_plugin.console import hide_start_warning, install_log_filter
from warmup_plugin.data.text_pairs import TextPairsConfig
from warmup_plugin.errors import WarmupError
from warmup_plugin.layout import DecoderLayout
from warmup_plugin.models.conditional import ConditionalModel
from warmup_plugin.presets import find_preset, list_presets


@dataclass(kw_only=True)
class TextPairsSection(TextPairsConfig):
    """Configures the data: where it is, its splits and its batches."""

    train_split: str = "train"
    """The split to train on."""

    valid_split: str = "valid"
    """The development set, decoded at each validation."""

    test_split: str = "test"
    """The split that ``generate`` and ``evaluate`` take by default."""

    max_source_len: int = 128
    """The most tokens of a source, EOS included; longer pairs are dropped and counted."""

    max_target_len: int = 128
    """The most tokens of a target, BOS and EOS included."""

    max_num_tokens: int = 1500
    """The size of a batch: rows times the longest source or target among them."""


@dataclass(kw_only=True)
class RunTokenizerSection(TokenizerSection):
    """Configures the tokenizer; may be left out if ``init_from`` names a run."""

    family: str | None = "warmup_spm"

    @override
    def validate(self) -> ValidationResult:
        # A run brings its own tokenizer, so that neither name nor path is needed.
        return ValidationResult()


def create_layout(tokenizer: Tokenizer) -> DecoderLayout:
    """
    Derives the decoder sequence from the tokenizer.

    :raises WarmupError: If the tokenizer has no separator.
    """
    separator_idx = getattr(tokenizer, "separator_idx", None)
    if separator_idx is None:
        raise WarmupError(
            f"The tokenizer is a `{type(tokenizer).__name__}`, which has no separator to end a warmup; set `tokenizer.family` to `warmup_spm`."
        )

    info = tokenizer.vocab_info

    if info.pad_idx is None or info.eos_idx is None:
        raise WarmupError(
            "The tokenizer has no PAD or no EOS; train one with `python -m warmup_plugin train-tokenizer`."
        )

    prefix = get_prefix(tokenizer)

    control = {info.pad_idx, info.bos_idx, info.eos_idx, info.unk_idx, *prefix}

    in_warmup = sorted(idx for idx in control if idx is not None)

    # EOS ends a target.
    in_target = sorted({*in_warmup, separator_idx} - {info.eos_idx})

    return DecoderLayout(
        separator_idx=separator_idx,
        eos_idx=info.eos_idx,
        pad_idx=info.pad_idx,
        prefix_len=len(prefix),
        vocab_size=info.size,
        banned_in_warmup=tuple(in_warmup),
        banned_in_target=tuple(in_target),
    )


def get_prefix(tokenizer: Tokenizer) -> list[int]:
    """Returns the tokens that stand before warmup and target."""
    prefix = tokenizer.create_encoder(mode="target").prefix_indices

    return [] if prefix is None else cast("list[int]", prefix.tolist())


def check_lengths(
    model: ConditionalModel,
    max_source_len: int,
    max_target_len: int,
    max_warmup_len: int | None,
    model_source_len: int,
) -> None:
    """
    :raises WarmupError: If a sequence within its limit would not fit the model.
    """
    if max_source_len > model_source_len:
        raise WarmupError(
            f"`dataset.max_source_len` is {max_source_len}, but the model reads at most {model_source_len} tokens; lower it or raise `max_seq_len` in `model.config_overrides`."
        )

    # The separator comes on top of the warmup; the last token is never read.
    extra = 0 if max_warmup_len is None else max_warmup_len + 1

    model_target_len = model.get_max_target_len(max_source_len)

    if max_target_len + extra - 1 > model_target_len:
        raise WarmupError(
            f"`dataset.max_target_len` ({max_target_len}) and `warmup.max_warmup_len` ({max_warmup_len}) make decoder sequences longer than the {model_target_len} tokens of the model; lower one of them or raise `max_seq_len` in `model.config_overrides`."
        )


def resolve_config_file(argv: Sequence[str]) -> list[str]:
    """
    Replaces the name of a preset behind ``--config-file`` by its path.

    :raises WarmupError: If it is neither a file nor a preset.
    """
    args = list(argv)

    for idx, arg in enumerate(args):
        option, equals, value = arg.partition("=")

        if option != "--config-file":
            continue

        if not equals:
            if idx + 1 >= len(args):
                return args

            value = args[idx + 1]

        if Path(value).expanduser().is_file():
            continue

        preset = find_preset(value)
        if preset is None:
            raise WarmupError(
                f"`--config-file {value}` is neither a file nor a preset; the presets are {', '.join(list_presets())}."
            )

        if equals:
            args[idx] = f"--config-file={preset}"
        else:
            args[idx + 1] = str(preset)

    return args


def run_fairseq2(recipe: Recipe, argv: Sequence[str]) -> int:
    """
    Runs fairseq2's command line with our log filter in front.

    :returns: The exit status.
    """
    install_log_filter()

    old_handlers = list(log.logger.handlers)

    old_argv = sys.argv

    sys.argv = [old_argv[0], *argv]

    try:
        with hide_start_warning():
            fairseq2_main(recipe)
    except SystemExit as ex:
        if ex.code is None:
            return 0

        return ex.code if isinstance(ex.code, int) else 1
    finally:
        sys.argv = old_argv

        # The log file of this run; a second run in this process is not to write there.
        for handler in log.logger.handlers[:]:
            if handler not in old_handlers:
                log.logger.removeHandler(handler)

                handler.close()

    return 0


def dump_config(
    recipe: Recipe, argv: Sequence[str]
) -> tuple[int, dict[str, object] | None]:
    """
    Resolves the configuration of a command without running it.

    :returns: The exit status and, if it is 0, the configuration.
    """
    stream = StringIO()

    with contextlib.redirect_stdout(stream):
        status = run_fairseq2(recipe, [*argv, "--dump-config"])

    if status != 0:
        # fairseq2 logs to a console created for the redirected stream.
        sys.stderr.write(stream.getvalue())

        return status, None

    config = YAML(typ="safe", pure=True).load(stream.getvalue())

    return 0, cast("dict[str, object]", config)


def get_rank() -> int:
    """Returns the rank of this process under torchrun or Slurm."""
    for name in ("RANK", "SLURM_PROCID"):
        value = os.environ.get(name, "")

        if value.isdecimal():
            return int(value)

    return 0
