# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import shlex
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Final

from warmup_plugin.terminal import show

DESCRIPTION: Final = (
    "Turns a Hugging Face model (T5, mT5, NLLB, Llama 3, Qwen 2 or 3) and its tokenizer "
    "into a directory that `train` takes as `init_from`, and `generate` translates with."
)


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="HF_DIR",
        help="a folder with `config.json`, weights and tokenizer, or the name of a model on the Hub",
    )

    parser.add_argument("out", type=Path, metavar="OUT", help="the directory to write")

    parser.add_argument(
        "--separator",
        metavar="TOKEN",
        help="the special token that ends a warmup (default: a spare one of the tokenizer)",
    )

    parser.add_argument(
        "--adapter",
        type=Path,
        metavar="DIR",
        help="a LoRA of `peft` that was trained beside the model, to merge into it",
    )


def run(args: Namespace) -> int:
    # Seconds; not for `--help`.
    from warmup_plugin.console import quiet_log
    from warmup_plugin.interop.importing import import_model

    with quiet_log():
        model = import_model(
            args.source, args.out, separator=args.separator, adapter=args.adapter
        )

    show(
        f"{model.path}: family {model.family}, {model.num_parameters:,} parameters, {model.vocab_size:,} tokens, separator {model.separator}"
    )

    path = shlex.quote(str(model.path))

    show(f"Start from it: python -m recipes.train RUN --config init_from={path}")

    return 0
