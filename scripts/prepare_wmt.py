# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from warmup_plugin.data.preparation.cli import (
    PreparationParser,
    get_downloads,
    get_training_filter,
)
from warmup_plugin.data.preparation.data_folder import DataFolder
from warmup_plugin.data.preparation.download import Downloader
from warmup_plugin.data.preparation.mtdata_bridge import Mtdata
from warmup_plugin.data.preparation.wmt import (
    get_mtdata_recipe,
    get_recipe_of_year,
    prepare_wmt,
)
from warmup_plugin.data.preparation.wmt_recipes import LAST_YEAR, WmtRecipe, get_recipe
from warmup_plugin.errors import WarmupError
from warmup_plugin.terminal import show

_DESCRIPTION: Final = """\
Prepares training text of the WMT news tasks, filtered, with validation and test sets.

By `--year`, the corpora of that year's task are taken as far as mtdata has them, as of 2022
by the recipe that WMT published; `--list` prints them. `--recipe` takes a recipe of mtdata,
or one of yours that mtdata knows, and `--train`, `--valid` and `--test` name single data
sets: those of mtdata, test sets of sacreBLEU (`sacrebleu:wmt24`), or files that are there
(`corpora/europarl` for `corpora/europarl.en` and `corpora/europarl.de`). What is validated
and tested on is removed from the training text.

mtdata is needed unless all files are there: `pip install 'warmup_plugin[data]'`."""

_EPILOG: Final = """\
examples:
  python scripts/prepare_wmt.py data/ende --pair en-de --year 2014
  python scripts/prepare_wmt.py data/ruen --pair ru-en --year 2019 --max-pairs 1000000 --held-out data/flores/devtest.ru data/flores/devtest.en
  python scripts/prepare_wmt.py data/encs --pair en-cs --year 2024 --max-pairs 5000000
  python scripts/prepare_wmt.py data/enzh --pair en-zh --train Statmt-news_commentary-16-eng-zho --valid Statmt-newsdev_enzh-2017-eng-zho
  python scripts/prepare_wmt.py data/ende --pair en-de --train corpora/europarl --valid newstest2013"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = PreparationParser("prepare_wmt.py", _DESCRIPTION, _EPILOG)

    parser.add_argument(
        "--pair",
        required=True,
        metavar="SRC-TGT",
        help="the direction, such as en-de or de-en; with --year up to 2021: en and one of de, ru, zh, fr",
    )

    parser.add_argument(
        "--year",
        type=int,
        help="the year of the task, from 2014; up to 2021, fr: 2014, zh: from 2017",
    )

    parser.add_argument(
        "--recipe", metavar="NAME", help="a recipe of mtdata, see `mtdata list-recipe`"
    )

    for part, text in (
        ("train", "data sets to train on"),
        ("valid", "data sets that make up the validation set"),
        ("test", "test sets"),
    ):
        parser.add_argument(
            f"--{part}",
            nargs="*",
            metavar="SET",
            help=f"{text}: names of mtdata or sacreBLEU, or paths without the language; replaces those of --year or --recipe",
        )

    parser.add_argument(
        "--list", action="store_true", help="print the data sets and stop"
    )

    parser.add_argument(
        "--mtdata-python",
        type=Path,
        default=Path(os.environ.get("WARMUP_MTDATA_PYTHON", sys.executable)),
        metavar="PYTHON",
        help="a Python that has mtdata (default: the environment variable WARMUP_MTDATA_PYTHON, or this Python)",
    )

    parser.add_downloads_argument()

    parser.add_filter_arguments()

    return parser.run(argv, _prepare)


def _prepare(args: argparse.Namespace, folder: DataFolder) -> str | None:
    langs = args.pair.split("-")

    if len(langs) != 2 or not all(langs):
        raise WarmupError(
            f"`--pair {args.pair}` is not two languages and a hyphen: write for example `en-de`."
        )

    training_filter = get_training_filter(args, langs[0], langs[1])

    mtdata = Mtdata(args.mtdata_python, get_downloads(args), Downloader())

    recipe = _get_recipe(args, langs[0], langs[1], mtdata)

    if args.list:
        for part, names in asdict(recipe).items():
            for name in names:
                show(f"{part:<5}  {name}")

        return None

    return prepare_wmt(folder, recipe, training_filter, mtdata=mtdata)


def _get_recipe(
    args: argparse.Namespace, source_lang: str, target_lang: str, mtdata: Mtdata
) -> WmtRecipe:
    if args.year is not None and args.recipe is not None:
        raise WarmupError(
            "`--year` and `--recipe` both choose data sets: give one of them."
        )

    recipe = WmtRecipe(train=[], valid=[], test=[])

    if args.year is not None and args.year > LAST_YEAR:
        recipe = get_recipe_of_year(source_lang, target_lang, args.year, mtdata)
    elif args.year is not None:
        recipe = get_recipe(source_lang, target_lang, args.year)
    elif args.recipe is not None:
        recipe = get_mtdata_recipe(args.recipe, mtdata)

    recipe = WmtRecipe(
        train=recipe.train if args.train is None else args.train,
        valid=recipe.valid if args.valid is None else args.valid,
        test=recipe.test if args.test is None else args.test,
    )

    if not recipe.train:
        raise WarmupError(
            "There is nothing to train on: choose data sets with `--year`, `--recipe` or `--train`."
        )

    return recipe


if __name__ == "__main__":
    sys.exit(main())
