# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from warmup_plugin.data.preparation.cli import PreparationParser, get_training_filter
from warmup_plugin.data.preparation.data_folder import DataFolder, Origin
from warmup_plugin.data.preparation.filtering import filter_corpus
from warmup_plugin.data.preparation.parallel import Corpus

_DESCRIPTION: Final = """\
Filters sentence pairs of your own for training.

Dropped are pairs with an empty side, sides that are too long, too short or of very
different length, copies, sentences of test sets, duplicates and, if a library for it is
there, other languages; how many for which reason is shown and kept in the data card. The
text is read as a stream."""

_EPILOG: Final = """\
examples:
  python scripts/filter_pairs.py data/ende --pairs raw.en raw.de --source-lang en --target-lang de --held-out data/ende/valid.en data/ende/test.de
  python scripts/filter_pairs.py data/enru --pairs corpus.tsv.gz --columns 2 3 --source-lang en --target-lang ru"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = PreparationParser("filter_pairs.py", _DESCRIPTION, _EPILOG)

    parser.add_argument(
        "--pairs",
        nargs="+",
        type=Path,
        required=True,
        metavar="FILE",
        help="the sources and the targets, one sentence a line, or one TSV file; `.gz` or not",
    )

    parser.add_argument(
        "--columns",
        nargs=2,
        type=int,
        default=[0, 1],
        metavar="N",
        help="columns of source and target in TSV, counted from 0 (default: 0 1)",
    )

    for side in ("source", "target"):
        parser.add_argument(
            f"--{side}-lang",
            required=True,
            metavar="LANG",
            help=f"language of the {side}s, such as `de`; the ending of their file",
        )

    parser.add_argument(
        "--split",
        default="train",
        metavar="NAME",
        help="what the files are called (default: %(default)s)",
    )

    for option, text in (
        ("title", "what the text is"),
        ("page", "where it comes from"),
        ("license", "what may be done with it"),
    ):
        parser.add_argument(
            f"--{option}",
            default="not stated" if option != "title" else "Filtered pairs",
            metavar="TEXT",
            help=f"for the data card: {text} (default: %(default)s)",
        )

    parser.add_filter_arguments()

    return parser.run(argv, _prepare)


def _prepare(args: argparse.Namespace, folder: DataFolder) -> str:
    return filter_corpus(
        folder,
        Corpus(args.pairs, columns=args.columns),
        get_training_filter(args, args.source_lang, args.target_lang),
        split=args.split,
        origin=Origin(
            title=args.title,
            page=args.page,
            version="files with the checksums below",
            license=args.license,
        ),
    )


if __name__ == "__main__":
    sys.exit(main())
