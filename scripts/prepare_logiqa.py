# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Final

from warmup_plugin.data.preparation.cli import PreparationParser, get_downloads
from warmup_plugin.data.preparation.data_folder import DataFolder
from warmup_plugin.data.preparation.download import Downloader
from warmup_plugin.data.preparation.examples import SPLITS
from warmup_plugin.data.preparation.logiqa import URL, prepare_logiqa

_DESCRIPTION: Final = """\
Prepares LogiQA 2.0, multiple choice questions of logic, as JSON lines.

Each line has what the authors give (id, context, question, options, answer counted from
0, types) and, ready to train with, `source` (context, question, lettered options) and
`target` (the letter of the answer)."""

_EPILOG: Final = """\
examples:
  python scripts/prepare_logiqa.py data/logiqa
  python scripts/prepare_logiqa.py data/logiqa_zh --lang zh
  python scripts/prepare_logiqa.py data/logiqa --from LogiQA2.0/logiqa/DATA/LOGIQA"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = PreparationParser("prepare_logiqa.py", _DESCRIPTION, _EPILOG)

    parser.add_argument(
        "--lang",
        choices=["en", "zh"],
        default="en",
        help="the language of the questions (default: %(default)s)",
    )

    parser.add_split_argument(SPLITS)

    parser.add_overlap_argument()

    parser.add_download_arguments(
        what="a folder of the authors' files, `train.txt`, `dev.txt` and `test.txt` (or `.jsonl`)",
        url=URL,
    )

    return parser.run(argv, _prepare)


def _prepare(args: argparse.Namespace, folder: DataFolder) -> str:
    return prepare_logiqa(
        folder,
        lang=args.lang,
        splits=args.splits,
        source=args.source,
        url=args.url or URL,
        downloads=get_downloads(args),
        downloader=Downloader(),
        drop_overlap=args.drop_overlap,
    )


if __name__ == "__main__":
    sys.exit(main())
