# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Final

from warmup_plugin import __version__
from warmup_plugin.terminal import get_arguments, guard

PROG: Final = "python -m warmup_plugin"


COMMANDS: Final = {
    "doctor": "check that training can run here",
    "link-libsndfile": "give fairseq2 the libsndfile it needs where the system has none",
    "synthetic-pair": "write the text of an invented language pair",
    "synthetic-pivot": "write the text of three invented languages, one a pivot of the others",
    "train-tokenizer": "train a tokenizer from text files",
    "train": "train or resume a model",
    "generate": "translate a test set with a trained model",
    "translate": "translate standard input or files line by line",
    "score": "compute log P(y|x) of given pairs, with and without warmups",
    "evaluate": "score translations by BLEU, chrF++, COMET and others",
    "compare": "test whether systems differ",
    "report": "write one HTML page about runs",
    "import": "make a Hugging Face model a run to start from",
    "export": "write a trained model for transformers and CTranslate2",
    "average": "average the checkpoints of a run",
}
"""
What commands do. Each has a module of its name, imported only when it runs, with
``add_arguments()`` and ``run()``, or with ``main()``.
"""


def find_module(name: str) -> str:
    """Returns the full name of the module of a command."""
    # No module can be called `import`.
    if name == "import":
        name = "import_model"

    return f"warmup_plugin.commands.{name.replace('-', '_')}"


def main(argv: Sequence[str] | None = None) -> int:
    """
    Runs a command.

    :param argv: The command and its arguments. If ``None``, those of the process.

    :returns: The exit status: 2 for bad input, 130 when interrupted.
    """
    args = get_arguments(argv)

    if args and args[0] in COMMANDS:
        name, rest = args[0], args[1:]

        return guard(lambda: _run(name, rest), rest)

    parser = _create_parser()

    if not args:
        parser.print_help()

        return 2

    # `--help`, `--version` and unknown commands all end here.
    parser.parse_args(args)

    return 2


def _run(name: str, args: list[str]) -> int:
    module = import_module(find_module(name))

    status: int

    if hasattr(module, "main"):
        status = module.main(args)
    else:
        parser = argparse.ArgumentParser(
            prog=f"{PROG} {name}", description=module.DESCRIPTION
        )

        module.add_arguments(parser)

        status = module.run(parser.parse_args(args))

    return status


def _create_parser() -> argparse.ArgumentParser:
    width = max(len(name) for name in COMMANDS)

    lines = [f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()]

    parser = argparse.ArgumentParser(
        prog=PROG,
        usage=f"{PROG} COMMAND ...",
        description="Translation models that write a warmup before their output.",
        epilog="commands:\n"
        + "\n".join(lines)
        + f"\n\n`{PROG} COMMAND --help` says more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    parser.add_argument(
        "command", choices=list(COMMANDS), metavar="COMMAND", help=argparse.SUPPRESS
    )

    parser.add_argument(
        "--version", action="version", version=f"warmup_plugin {__version__}"
    )

    return parser


if __name__ == "__main__":
    sys.exit(main())
