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
from warmup_plugin.data.preparation.wmt24pp import (
    URL,
    parse_locales,
    prepare_wmt24pp,
)

_DESCRIPTION: Final = """\
Prepares WMT24++, the test set of WMT24 in 55 languages, for evaluation.

Each language becomes a file of one segment a line, `wmt24pp.en`, `wmt24pp.de`, …, with
the post-edited references, without the sources that the data card calls bad, and
`wmt24pp.docid` with the document of each line. Score a run by
`evaluate RUN --data OUT --split wmt24pp`."""

_EPILOG: Final = """\
examples:
  python scripts/prepare_wmt24pp.py data/ende --langs de
  python scripts/prepare_wmt24pp.py data/wmt24pp --langs de cs zh=zh_CN fr=fr_CA
  python scripts/prepare_wmt24pp.py data/wmt24pp --langs eng_Latn=en deu_Latn=de --from downloads/wmt24pp"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = PreparationParser("prepare_wmt24pp.py", _DESCRIPTION, _EPILOG)

    parser.add_argument(
        "--langs",
        nargs="+",
        required=True,
        metavar="LANG",
        help="languages beside English, such as `de`; with the region where there are several, as in zh=zh_CN for the file `wmt24pp.zh`",
    )

    parser.add_download_arguments(
        what="a folder of files such as `en-de_DE.jsonl`", url=URL
    )

    return parser.run(argv, _prepare)


def _prepare(args: argparse.Namespace, folder: DataFolder) -> str:
    return prepare_wmt24pp(
        folder,
        parse_locales(args.langs),
        source=args.source,
        url=args.url or URL,
        downloads=get_downloads(args),
        downloader=Downloader(),
    )


if __name__ == "__main__":
    sys.exit(main())
