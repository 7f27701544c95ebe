# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import argparse
from pathlib import Path

from warmup_plugin.data.train_tokenizer import (
    BYTE_BPE,
    DEFAULT_NORMALIZATION,
    DEFAULT_NUM_THREADS,
    FAMILIES,
    MAX_LINE_BYTES,
    MODEL_TYPES,
    NORMALIZATIONS,
    train_tokenizer,
)
from warmup_plugin.terminal import show

DESCRIPTION = "Trains a tokenizer with a separator that text cannot contain, from one sentence a line; both languages share it. It is SentencePiece for encoder-decoders, or byte-level BPE for decoder-only models."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    # Choices and bounds are checked by `train_tokenizer`, whose messages say more.
    parser.add_argument(
        "output",
        type=Path,
        metavar="OUT",
        help=f"model file to write, such as `tokenizer.model`, or folder if `--model-type` is `{BYTE_BPE}`; the folder it is in is created",
    )

    parser.add_argument(
        "--input",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        dest="inputs",
        help="text files of both languages, or JSON lines (.jsonl); .gz is unpacked",
    )

    parser.add_argument(
        "--json-fields",
        nargs="+",
        metavar="FIELD",
        help="fields of JSON lines to train on (default: source target)",
    )

    parser.add_argument(
        "--vocab-size",
        type=int,
        required=True,
        metavar="N",
        help="number of tokens, special ones included",
    )

    parser.add_argument(
        "--model-type",
        default="unigram",
        metavar="NAME",
        help=f"one of {', '.join(MODEL_TYPES)}; the last one is for decoder-only models (default: %(default)s)",
    )

    parser.add_argument(
        "--family",
        metavar="NAME",
        help=f"SentencePiece: the `tokenizer.family` that is to read it, one of {', '.join(FAMILIES)}; `nllb` has a token for each language (default: {FAMILIES[0]})",
    )

    parser.add_argument(
        "--character-coverage",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="SentencePiece: share of the characters that get a token, 0.98 to 1 (default: %(default)s)",
    )

    parser.add_argument(
        "--normalization",
        metavar="NAME",
        help=f"SentencePiece: one of {', '.join(NORMALIZATIONS)} (default: {DEFAULT_NORMALIZATION}); all but `identity` change text for good, full-width punctuation for example",
    )

    parser.add_argument(
        "--num-threads",
        type=int,
        metavar="N",
        help=f"SentencePiece: threads; another number may give slightly other tokens (default: {DEFAULT_NUM_THREADS})",
    )

    parser.add_argument("--force", action="store_true", help="replace an existing OUT")


def run(args: argparse.Namespace) -> int:
    # Each of its options is an argument.
    report = train_tokenizer(**vars(args))

    show(f"{report.path}: {report.vocab_size} tokens from {report.num_lines} lines")

    if report.num_empty_lines > 0:
        show(f"left out {report.num_empty_lines} empty lines")

    if report.num_long_lines > 0:
        show(f"left out {report.num_long_lines} lines over {MAX_LINE_BYTES} bytes")

    if report.num_reserved_lines > 0:
        show(
            f"left U+2585 and U+0000, which SentencePiece keeps for itself, out of {report.num_reserved_lines} lines; they have no token"
        )

    if report.num_changed_lines > 0:
        show(
            f"--normalization {args.normalization} changes {report.num_changed_lines} lines, which outputs will not spell as they were; `identity` does not"
        )

    return 0
