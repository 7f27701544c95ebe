# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

from warmup_plugin.errors import WarmupError

# What mtdata calls the languages of the recipes below.
_CODES: Final = {"en": "eng", "de": "deu", "fr": "fra", "ru": "rus", "zh": "zho"}


@final
@dataclass(frozen=True, kw_only=True)
class WmtRecipe:
    """Names the data sets, as mtdata calls them, of a direction and year."""

    train: list[str]

    valid: list[str]

    test: list[str]


# Of each set its name, and the first and the last year.
# Chosen after the tables of the news tasks within what mtdata 0.5.1 has, by the language
# beside English and the years of the task. These are not the exact lists: News Commentary
# v13 stands for v9 to v12, which mtdata lacks (v14 in French), and ParaCrawl of 2018 and
# 2020, the CWMT corpus (zh) and Yandex' (ru, behind a licence) are left out.
_TRAIN_SETS: Final = {
    "de": [
        ("Statmt-europarl_wmt13-7-deu-eng", 2014, 2018),
        ("Statmt-europarl-9-deu-eng", 2019, 2019),
        ("Statmt-europarl-10-deu-eng", 2020, 2021),
        ("Statmt-commoncrawl_wmt13-1-deu-eng", 2014, 2021),
        ("Statmt-news_commentary_wmt18-13-deu-eng", 2014, 2018),
        ("Statmt-news_commentary-14-deu-eng", 2019, 2019),
        ("Statmt-news_commentary-15-deu-eng", 2020, 2020),
        ("Statmt-news_commentary-16-deu-eng", 2021, 2021),
        ("Tilde-rapid-2016-deu-eng", 2017, 2018),
        ("Tilde-rapid-2019-deu-eng", 2019, 2021),
        ("ParaCrawl-paracrawl-3-eng-deu", 2019, 2019),
        ("ParaCrawl-paracrawl-7.1-eng-deu", 2021, 2021),
        ("Statmt-wiki_titles-1-deu-eng", 2019, 2019),
        ("Statmt-wiki_titles-2-deu-eng", 2020, 2020),
        ("Statmt-wikititles-3-deu-eng", 2021, 2021),
        ("Facebook-wikimatrix-1-deu-eng", 2020, 2021),
    ],
    "ru": [
        ("Statmt-commoncrawl_wmt13-1-rus-eng", 2014, 2021),
        ("Statmt-news_commentary_wmt18-13-rus-eng", 2014, 2018),
        ("Statmt-news_commentary-14-eng-rus", 2019, 2019),
        ("Statmt-news_commentary-15-eng-rus", 2020, 2020),
        ("Statmt-news_commentary-16-eng-rus", 2021, 2021),
        ("OPUS-unpc-v1.0-eng-rus", 2017, 2021),
        ("ParaCrawl-paracrawl-1_bonus-eng-rus", 2018, 2020),
        ("Statmt-paracrawl-8.wmt21-eng-rus", 2021, 2021),
        ("Statmt-wiki_titles-1-rus-eng", 2019, 2019),
        ("Statmt-wiki_titles-2-rus-eng", 2020, 2020),
        ("Statmt-wikititles-3-rus-eng", 2021, 2021),
        ("Facebook-wikimatrix-1-eng-rus", 2020, 2021),
    ],
    "zh": [
        ("Statmt-news_commentary_wmt18-13-zho-eng", 2017, 2018),
        ("Statmt-news_commentary-14-eng-zho", 2019, 2019),
        ("Statmt-news_commentary-15-eng-zho", 2020, 2020),
        ("Statmt-news_commentary-16-eng-zho", 2021, 2021),
        ("OPUS-unpc-v1.0-eng-zho", 2017, 2021),
        ("ParaCrawl-paracrawl-1_bonus-eng-zho", 2021, 2021),
        ("Statmt-wiki_titles-1-zho-eng", 2019, 2019),
        ("Statmt-wiki_titles-2-zho-eng", 2020, 2020),
        ("Statmt-wikititles-3-zho-eng", 2021, 2021),
        ("Facebook-wikimatrix-1-eng-zho", 2020, 2021),
    ],
    "fr": [
        ("Statmt-europarl_wmt13-7-fra-eng", 2014, 2014),
        ("Statmt-commoncrawl_wmt13-1-fra-eng", 2014, 2014),
        ("Statmt-news_commentary-14-eng-fra", 2014, 2014),
        ("OPUS-multiun-v1-eng-fra", 2014, 2014),
        ("OPUS-giga_fren-v2-eng-fra", 2014, 2014),
    ],
}

LAST_YEAR: Final = 2021
"""The last year of these recipes; of later ones, WMT published its own."""

YEARS: Final = {
    "de": range(2014, LAST_YEAR + 1),
    "ru": range(2014, LAST_YEAR + 1),
    "zh": range(2017, LAST_YEAR + 1),
    "fr": range(2014, 2015),
}


def get_recipe(source_lang: str, target_lang: str, year: int) -> WmtRecipe:
    """
    Returns the training sets of the news task of a year, and its test set.

    The validation set is the test set of the year before, or what the task offered in
    its first year of a language.
    """
    langs = {source_lang, target_lang}

    other = source_lang if target_lang == "en" else target_lang

    if "en" not in langs or other not in YEARS:
        pairs = ", ".join(f"en-{lang}" for lang in YEARS)

        raise WarmupError(
            f"There is no recipe for {source_lang}-{target_lang}: take one of {pairs}, either way, or name data sets with `--train`, `--valid` and `--test`."
        )

    years = YEARS[other]

    if year not in years:
        raise WarmupError(
            f"There is no recipe for {source_lang}-{target_lang} of {year}: the years are {years[0]} to {years[-1]}, or name data sets with `--train`, `--valid` and `--test`."
        )

    train = [
        name
        for name, first_year, last_year in _TRAIN_SETS[other]
        if first_year <= year <= last_year
    ]

    if other == "zh" and year == 2017:
        valid = f"Statmt-newsdev_{source_lang}{target_lang}-2017-{_CODES[source_lang]}-{_CODES[target_lang]}"
    else:
        valid = _get_news_test(source_lang, target_lang, year - 1)

    return WmtRecipe(
        train=train,
        valid=[valid],
        test=[_get_news_test(source_lang, target_lang, year)],
    )


def _get_news_test(source_lang: str, target_lang: str, year: int) -> str:
    other = source_lang if target_lang == "en" else target_lang

    # Until then one set served both directions.
    if year <= 2013:
        return f"Statmt-newstest-{year}-eng-{_CODES[other]}"

    if year == 2014:
        return f"Statmt-newstest_{other}en-2014-{_CODES[other]}-eng"

    return f"Statmt-newstest_{source_lang}{target_lang}-{year}-{_CODES[source_lang]}-{_CODES[target_lang]}"
