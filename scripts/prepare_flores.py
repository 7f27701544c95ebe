# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

from warmup_plugin.data.preparation.cli import PreparationParser, get_downloads
from warmup_plugin.data.preparation.data_folder import DataFolder
from warmup_plugin.data.preparation.download import Downloader
from warmup_plugin.data.preparation.flores import (
    RELEASES,
    SPLITS,
    parse_languages,
    prepare_flores,
)

_DESCRIPTION: Final = """\
Prepares FLORES, the sentences that many languages share, for evaluation.

Each language becomes a file of one sentence a line, `dev.de`, `devtest.de`, …, so that
any two languages are a direction, either way. Train with
`dataset.valid_split=dev dataset.test_split=devtest`.

FLORES+ is only for those who accept its conditions on its page: set the environment
variable HF_TOKEN to a token of yours."""

_EPILOG: Final = """\
examples:
  python scripts/prepare_flores.py data/flores
  python scripts/prepare_flores.py data/flores --release flores_plus --langs en de sw=swh_Latn
  python scripts/prepare_flores.py data/flores --from flores101_dataset.tar.gz --splits devtest"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = PreparationParser("prepare_flores.py", _DESCRIPTION, _EPILOG)

    parser.add_argument(
        "--release",
        choices=list(RELEASES),
        default="flores101",
        help="which FLORES (default: %(default)s)",
    )

    parser.add_argument(
        "--langs",
        nargs="+",
        default=["en", "de", "fr", "ru", "zh"],
        metavar="LANG",
        help="languages; others than the default ones with the code that the release has for them, as in sw=swh_Latn (default: en de fr ru zh)",
    )

    parser.add_split_argument(SPLITS)

    parser.add_download_arguments(
        what="a folder or an archive of FLORES that is there already",
        url="that of the release",
    )

    return parser.run(argv, _prepare)


def _prepare(args: argparse.Namespace, folder: DataFolder) -> str:
    url: str = args.url or RELEASES[args.release].url

    # A mirror is not told the token.
    is_hub = urlsplit(url).hostname == "huggingface.co"

    return prepare_flores(
        folder,
        args.release,
        parse_languages(args.release, args.langs),
        splits=args.splits,
        source=args.source,
        url=url,
        downloads=get_downloads(args),
        downloader=Downloader(token=os.environ.get("HF_TOKEN") if is_hub else None),
    )


if __name__ == "__main__":
    sys.exit(main())
