# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""The command line of training: what ``--help`` says, and what fairseq2 gets of it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, final

from warmup_plugin.options import add_option, read_options
from warmup_plugin.parsing import parse_yaml_leniently
from warmup_plugin.presets import describe_preset, find_preset, list_presets

_USAGE: Final = (
    "python -m recipes.train OUT --config-file PRESET [PRESET ...] --config KEY=VALUE ..."
)

_DESCRIPTION: Final = (
    "Trains a model into the new directory OUT, or goes on with the run in it."
)

_EXAMPLE: Final = """\
example, with the files train.en, train.de, valid.en and valid.de in DATA:
  python -m warmup_plugin train-tokenizer runs/tokenizer.model --vocab-size 8000 \\
      --input DATA/train.en DATA/train.de
  python -m recipes.train runs/sft --config-file translation/from_scratch_sft \\
      --config dataset.path=DATA dataset.source_lang=en dataset.target_lang=de \\
      tokenizer.path=runs/tokenizer.model
  python -m recipes.train runs/warmup --config-file translation/from_scratch_warmup \\
      --config dataset.path=DATA dataset.source_lang=en dataset.target_lang=de \\
      init_from=runs/sft
"""

_FURTHER: Final = (
    "`--dump-config` prints every key with its value; docs/config.md describes them all, "
    "and `python -m warmup_plugin train` is the same command where there is no clone."
)


# The most used keys, their defaults as YAML, which a test compares with the config
# classes, and what they mean.
KEYS: Final = (
    ("dataset.path", "null", "the folder of the data"),
    ("dataset.source_lang", "en", "the language of the sources"),
    ("dataset.target_lang", "de", "the language of the targets"),
    ("dataset.format", "auto", "plain, tsv, jsonl or manifest"),
    ("dataset.train_split", "train", "the split to train on"),
    ("dataset.valid_split", "valid", "the split that validations decode"),
    ("dataset.max_num_tokens", "1500", "a batch: rows x longest side"),
    ("tokenizer.path", "null", "what train-tokenizer wrote"),
    ("init_from", "null", "a run whose model and tokenizer to start from"),
    ("task.name", "translation", "or summarization, multiple_choice"),
    ("model.arch", "transformer_tiny", "the size of a model from scratch"),
    ("criterion.name", "sft", "sft, warmup for warmups before outputs, or mrt"),
    ("warmup.num_warmups", "4", "K, the warmups drawn for a source"),
    ("warmup.max_warmup_len", "8", "the most tokens of a warmup"),
    ("warmup.sft_weight", "0.0", "adds the loss without a warmup"),
    ("regime.num_steps", "10000", "the length of the run"),
    ("regime.validate_every_n_steps", "500", "the rhythm of validations"),
    ("regime.checkpoint_every_n_steps", "500", "the same number"),
    ("validation.patience", "null", "validations without gain, then it stops"),
    ("optimizer.config.lr", "0.001", "the highest learning rate"),
    (
        "lr_scheduler.config.num_warmup_steps",
        "1000",
        "steps in which the learning rate rises",
    ),
    ("trainer.mixed_precision.mode", "off", "auto for bfloat16 on a GPU"),
    ("trainer.grad_accumulation.num_batches", "1", "batches a step"),
    ("common.seed", "2", "the seed of all that is random"),
)


@final
@dataclass(frozen=True)
class TrainArguments:
    """Holds what the command line of training says."""

    out: Path | None

    config_files: Sequence[str] = ()
    """Presets or YAML files; later ones go before earlier ones."""

    settings: Sequence[str] = ()
    """Further settings, which go before those of files."""

    dump_config: bool = False
    """Print the whole configuration and exit."""

    no_rich: bool = False
    """Plain lines of the log, without colours and bars."""

    no_exit_on_error: bool = False
    """Let errors of fairseq2 through, with their traceback."""


def read_train_arguments(argv: Sequence[str]) -> TrainArguments:
    """
    Reads the command line of training, before fairseq2 is imported.

    ``--help``, ``--list-presets`` and mistakes end the process here.
    """
    parser = _create_parser()

    args = parser.parse_intermixed_args(argv)

    if args.list_presets:
        print("\n".join(format_presets()))

        parser.exit()

    if args.checkpoint_dir is not None:
        parser.error(
            "`--checkpoint-dir` is not supported, since a run directory holds its own checkpoints; leave it out."
        )

    for pair in args.settings:
        _check_pair(parser, pair)

    files = list(args.config_files)

    out = args.out

    # Behind a file, the directory looks like another one.
    if out is None and len(files) > 1 and not _is_config_file(files[-1]):
        out = files.pop()

    if out is None and not args.dump_config:
        parser.error("OUT, the directory of the run, is missing; put it first.")

    return read_options(
        TrainArguments,
        args,
        out=None if out is None else Path(out),
        config_files=files,
    )


def _create_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.train",
        usage=_USAGE,
        description=_DESCRIPTION,
        epilog=_make_epilog(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )

    parser.add_argument(
        "out", nargs="?", metavar="OUT", help="the directory of the run"
    )

    add = partial(add_option, parser, TrainArguments)

    several = {"action": "extend", "default": []}

    add("config_files", "--config-file", nargs="+", metavar="PRESET", **several)
    add("settings", "--config", nargs="*", metavar="KEY=VALUE", **several)

    parser.add_argument(
        "--list-presets", action="store_true", help="print the presets and exit"
    )

    add("dump_config")
    add("no_rich")
    add("no_exit_on_error")

    # Refused with the reason.
    parser.add_argument("--checkpoint-dir", help=argparse.SUPPRESS)

    return parser


def _is_config_file(name: str) -> bool:
    return Path(name).expanduser().is_file() or find_preset(name) is not None


def _check_pair(parser: argparse.ArgumentParser, pair: str) -> None:
    key, equals, value = pair.strip().partition("=")

    if key.startswith("del:"):
        return

    if not equals:
        parser.error(
            f"`{pair}` behind `--config` is no KEY=VALUE; give it a value, or, if it is the directory of the run, put it first."
        )

    try:
        parse_yaml_leniently(value)
    except ValueError as ex:
        parser.error(
            f"The value of `{key}` behind `--config` is no YAML ({ex}); correct it, or put it in quotes."
        )


def _make_epilog() -> str:
    key_width, default_width, _ = (max(map(len, column)) for column in zip(*KEYS))

    keys = [
        f"  {key:<{key_width}}  {default:<{default_width}}  {meaning}"
        for key, default, meaning in KEYS
    ]

    parts = [
        _EXAMPLE.rstrip(),
        "\n".join(["presets:", *(f"  {line}" for line in format_presets())]),
        "\n".join(["the most used keys, and their defaults:", *keys]),
        _FURTHER,
    ]

    return "\n\n".join(parts)


def format_presets() -> list[str]:
    """Returns a line for each preset: its name and what it is for."""
    names = list_presets()

    width = max(map(len, names), default=0)

    return [f"{name:<{width}}  {describe_preset(name)}".rstrip() for name in names]
