# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Final, final

from warmup_plugin.data.preparation.data_folder import DataFolder, Inputs, Origin
from warmup_plugin.data.preparation.files import hash_files, write_texts
from warmup_plugin.data.preparation.filtering import TrainingFilter
from warmup_plugin.data.preparation.mtdata_bridge import Mtdata
from warmup_plugin.data.preparation.parallel import Corpus, write_pairs
from warmup_plugin.data.preparation.wmt_recipes import WmtRecipe
from warmup_plugin.data.test_sets import (
    TEST_SET_PREFIX,
    find_test_set,
    has_test_set,
    is_test_set,
)
from warmup_plugin.data.text_lines import read_lines
from warmup_plugin.data.text_pairs import DOCUMENT_SUFFIX
from warmup_plugin.errors import WarmupError
from warmup_plugin.terminal import show

_LICENSE: Final = (
    "the data of WMT may be used for research; for other uses, the owners of each corpus decide"
)


@final
@dataclass(frozen=True, kw_only=True)
class _Set:
    """A data set of a recipe and its files."""

    name: str

    corpus: Corpus

    documents: Path | None = None
    """The file that names the document of each line, where there is one."""


def prepare_wmt(
    folder: DataFolder,
    recipe: WmtRecipe,
    training_filter: TrainingFilter,
    *,
    mtdata: Mtdata,
) -> str:
    """
    Writes training text, filtered, with a validation set and test sets.

    They are ``train``, ``valid`` and ``test``, a file a language; further test sets are
    ``test2``, ``test3``, … No sentence of them stays in the training text.

    :param recipe: The data sets: names of mtdata, test sets of sacreBLEU such as
        ``sacrebleu:wmt24``, or paths without the language, such as ``corpora/europarl``
        for ``europarl.de`` and ``europarl.en``.
    :returns: The key of the entry in the data card.
    """
    langs = (training_filter.source_lang, training_filter.target_lang)

    for name in recipe.train:
        if name in recipe.valid or name in recipe.test:
            raise WarmupError(
                f"`{name}` is to be trained on and to be held out: leave it out of `--train` or of `--valid` and `--test`."
            )

    sets, sources, mtdata_version = _get_sets(recipe, *langs, mtdata)

    inputs = Inputs(
        sources=sources | hash_files(training_filter.held_out_files),
        settings={
            **asdict(recipe),
            **training_filter.describe(),
        },
    )

    key = f"WMT {'-'.join(langs)}"

    if folder.is_done(key, inputs):
        return key

    splits: dict[str, list[_Set]] = {}

    if recipe.valid:
        splits["valid"] = [sets[name] for name in recipe.valid]

    for idx, name in enumerate(recipe.test, start=1):
        splits["test" if idx == 1 else f"test{idx}"] = [sets[name]]

    files = {
        split: [folder.path / f"{split}.{lang}" for lang in langs]
        for split in [*splits, "train"]
    }

    documents = {
        folder.path / f"{split}{DOCUMENT_SUFFIX}": parts
        for split, split_sets in splits.items()
        if all(parts := [set_.documents for set_ in split_sets])
    }

    names = [file.name for file in (*chain.from_iterable(files.values()), *documents)]

    folder.start(key, inputs, names)

    counts: dict[str, int] = {}

    for split, split_sets in splits.items():
        # As they are: filtered, a test set would be another one.
        pairs = chain.from_iterable(set_.corpus for set_ in split_sets)

        counts[f"{split}: pairs"] = write_pairs(pairs, *files[split])

        for file in files[split]:
            training_filter.held_out.add_file(file)

    for file, parts in documents.items():
        with write_texts([file]) as (stream,):
            for part in filter(None, parts):
                stream.writelines(f"{line}\n" for line in read_lines(part))

    num_read = {name: 0 for name in recipe.train}

    train_counts = training_filter.write(
        _read([sets[name] for name in recipe.train], num_read), files["train"]
    )

    counts |= {f"train: pairs of {name}": num for name, num in num_read.items()}

    counts |= {f"train: {what}": num for what, num in train_counts.items()}

    folder.finish(
        key,
        names,
        origin=_get_origin(key, mtdata_version),
        counts=counts,
        notes=training_filter.list_notes(),
    )

    return key


def _get_origin(key: str, mtdata_version: str | None) -> Origin:
    if mtdata_version is None:
        return Origin(
            title=key,
            page="the files below",
            version="that of the checksums below",
            license="not stated; that of the files",
        )

    return Origin(
        title=key,
        page="https://www2.statmt.org",
        version=f"data sets of mtdata {mtdata_version}",
        license=_LICENSE,
        citation="the overview paper of the task, and each corpus (`references.bib` of mtdata, among the downloads); for mtdata, Gowda et al., Many-to-English Machine Translation Tools, Data, and Pretrained Models, ACL 2021 (system demonstrations)",
    )


def _read(sets: Sequence[_Set], num_read: dict[str, int]) -> Iterator[tuple[str, str]]:
    for set_ in sets:
        for pair in set_.corpus:
            num_read[set_.name] += 1

            yield pair


def _get_sets(
    recipe: WmtRecipe, source_lang: str, target_lang: str, mtdata: Mtdata
) -> tuple[dict[str, _Set], dict[str, str], str | None]:
    """
    Returns the sets by name and the checksums of what they come from.

    If some come from mtdata, its version is returned as well.
    """
    sets: dict[str, _Set] = {}

    sources: dict[str, str] = {}

    remote: dict[str, list[str]] = {}

    for part, names in (
        ("train", recipe.train),
        ("dev", recipe.valid),
        ("test", recipe.test),
    ):
        remote[part] = []

        for name in names:
            files = find_local_set(name, source_lang, target_lang)

            if files is None:
                remote[part].append(name)

                continue

            documents = _find_documents(files[0])

            # Training splits have none.
            if part != "train" and documents is not None:
                num, num_lines = len(read_lines(documents)), len(read_lines(files[0]))

                if num != num_lines:
                    raise WarmupError(
                        f"`{documents}` names the documents of {num:,} lines, but `{files[0]}` has {num_lines:,}: correct it, or rename it to do without."
                    )

            sets[name] = _Set(name=name, corpus=Corpus(files), documents=documents)

            sources |= hash_files(files)

    if not any(remote.values()):
        return sets, sources, None

    langs = [source_lang, target_lang]

    catalogue = mtdata.get_catalogue(
        [name for names in remote.values() for name in names], langs=langs
    )

    fetched, checksums = mtdata.fetch(
        catalogue, remote, *(catalogue.codes[lang] for lang in langs)
    )

    for name, files in fetched.items():
        sets[name] = _Set(name=name, corpus=Corpus(files))

    return sets, sources | checksums, catalogue.version


def get_mtdata_recipe(name: str, mtdata: Mtdata) -> WmtRecipe:
    """Returns a recipe that mtdata knows."""
    recipe = mtdata.get_catalogue([], recipe=name).recipe

    return WmtRecipe(train=recipe["train"], valid=recipe["dev"], test=recipe["test"])


def get_recipe_of_year(
    source_lang: str, target_lang: str, year: int, mtdata: Mtdata
) -> WmtRecipe:
    """
    Returns the training sets that WMT's own recipe names, as of 2022, and test sets.

    The test set is that of the year, and the validation set the last one before it,
    as far as sacreBLEU has them.
    """
    catalogue = mtdata.get_catalogue_of_year(source_lang, target_lang, year)

    def find(years: Iterable[int]) -> list[str]:
        names = (f"{TEST_SET_PREFIX}wmt{year % 100:02}" for year in years)

        return [n for n in names if has_test_set(n, source_lang, target_lang)][:1]

    recipe = WmtRecipe(
        train=catalogue.recipe["train"],
        valid=find(range(year - 1, 2007, -1)),
        test=find([year]),
    )

    for part, names in (("valid", recipe.valid), ("test", recipe.test)):
        if not names:
            show(
                f"sacreBLEU has no set for `{part}` of {source_lang}-{target_lang} and {year}: none is written unless you name one with `--{part}`"
            )

    return recipe


def _find_documents(text: Path) -> Path | None:
    """Finds the file that names the documents of a text; either may be gzipped."""
    name = text.name.removesuffix(".gz")

    return _find_file(text.with_name(name).with_suffix(DOCUMENT_SUFFIX))


def _find_file(file: Path) -> Path | None:
    """Finds a file that may be gzipped."""
    candidates = (file, Path(f"{file}.gz"))

    return next((path for path in candidates if path.is_file()), None)


def find_local_set(name: str, source_lang: str, target_lang: str) -> list[Path] | None:
    """
    Finds the two files of a set that is given as a path without the language, or is one
    of sacreBLEU, of whose references the first one is taken.

    :returns: The files, or ``None`` if ``name`` is one of mtdata.
    """
    if is_test_set(name):
        source_file, reference_files = find_test_set(name, source_lang, target_lang)

        return [source_file, reference_files[0]]

    files = [_find_file(Path(f"{name}.{lang}")) for lang in (source_lang, target_lang)]

    found = [file for file in files if file is not None]

    if len(found) == 2:
        return found

    # Names of mtdata have no slashes and at least three hyphens.
    if found or "/" in name or name.count("-") < 3:
        raise WarmupError(
            f"`{name}` is neither a data set of mtdata, such as `Statmt-europarl-10-deu-eng`, nor one of sacreBLEU, such as `sacrebleu:wmt24`, nor are there `{name}.{source_lang}` and `{name}.{target_lang}`: correct it."
        )

    return None
