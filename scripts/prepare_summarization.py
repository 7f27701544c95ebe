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
from warmup_plugin.data.preparation.summarization import (
    DATA_SETS,
    prepare_summarization,
)

_DESCRIPTION: Final = """\
Prepares XSum, CNN/DailyMail or DialogSum as JSON lines with `source` (the document) and
`target` (the summary).

XSum and CNN/DailyMail are loaded with the library `datasets`
(`pip install 'warmup_plugin[data]'`), DialogSum from the files of its authors. A test
dialogue of DialogSum has three summaries: `targets` has all, `target` the first."""

_EPILOG: Final = """\
examples:
  python scripts/prepare_summarization.py data/xsum --set xsum
  python scripts/prepare_summarization.py data/dialogsum --set dialogsum
  python scripts/prepare_summarization.py data/dialogsum --set dialogsum --from DialogSum_Data"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = PreparationParser("prepare_summarization.py", _DESCRIPTION, _EPILOG)

    parser.add_argument(
        "--set",
        choices=list(DATA_SETS),
        required=True,
        help="which data set",
    )

    parser.add_split_argument(SPLITS)

    parser.add_overlap_argument()

    parser.add_argument(
        "--revision",
        metavar="REV",
        help="of XSum and CNN/DailyMail: the revision on the Hugging Face Hub (default: main)",
    )

    parser.add_download_arguments(
        what="a folder of JSON lines, `train.jsonl`, `dev.jsonl` or `validation.jsonl`, and `test.jsonl`, or one that `datasets` loads",
        url="of DialogSum, that of its authors",
    )

    return parser.run(argv, _prepare)


def _prepare(args: argparse.Namespace, folder: DataFolder) -> str:
    return prepare_summarization(
        folder,
        args.set,
        splits=args.splits,
        source=args.source,
        url=args.url,
        revision=args.revision,
        downloads=get_downloads(args),
        downloader=Downloader(),
        drop_overlap=args.drop_overlap,
    )


if __name__ == "__main__":
    sys.exit(main())
