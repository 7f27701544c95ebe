# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sacrebleu

from tests.unit.data.preparation.archives import make_tar
from tests.unit.data.preparation.fake_mtdata import RECIPE, write_fake_mtdata
from tests.unit.data.preparation.servers import FileServer, serve
from warmup_plugin.data.preparation.data_folder import DataFolder
from warmup_plugin.data.preparation.download import Downloader
from warmup_plugin.data.preparation.filtering import TrainingFilter
from warmup_plugin.data.preparation.mtdata_bridge import Mtdata
from warmup_plugin.data.preparation.wmt import (
    get_mtdata_recipe,
    get_recipe_of_year,
    prepare_wmt,
)
from warmup_plugin.data.preparation.wmt_recipes import YEARS, WmtRecipe, get_recipe
from warmup_plugin.data.split_files import TextPairsConfig
from warmup_plugin.data.text_pairs import read_split
from warmup_plugin.errors import WarmupError

COMMONCRAWL = "http://www.statmt.org/wmt13/training-parallel-commoncrawl.tgz"

EUROPARL = "http://www.statmt.org/wmt13/training-parallel-europarl-v7.tgz"

WMT = "http://www.statmt.org"

DEV = "http://data.statmt.org/wmt20/translation-task/dev.tgz"

# In the layout of the real archives. Of the training pairs, one is there twice and two
# have a sentence of a test set.
ARCHIVES = {
    COMMONCRAWL: make_tar(
        {
            "commoncrawl.de-en.de": "Ein Haus.\nEin Baum.\nGuten Tag!\n",
            "commoncrawl.de-en.en": "A house.\nA tree.\nHello, you.\n",
        }
    ),
    EUROPARL: make_tar(
        {
            "training/europarl-v7.de-en.de": "Ein Haus.\n\nDas Parlament tagt.\nEs regnet.\n",
            "training/europarl-v7.de-en.en": "A house.\nEmpty.\nParliament sits.\nIt rains.\n",
        }
    ),
    DEV: make_tar(
        {
            "dev/newstest2012.de": "Guten Tag.\nGestern.\n",
            "dev/newstest2012.en": "Good day.\nYesterday.\n",
            "dev/newstest2013.de": "Regen.\nMorgen.\n",
            "dev/newstest2013.en": "It rains!\nTomorrow.\n",
        }
    ),
}

SETS = WmtRecipe(
    train=["Statmt-commoncrawl_wmt13-1-deu-eng", "Statmt-europarl_wmt13-7-deu-eng"],
    valid=["Statmt-newstest-2012-eng-deu"],
    test=["Statmt-newstest-2013-eng-deu"],
)


@dataclass
class World:
    """A Python that has mtdata, and the only network it sees."""

    python: Path

    server: FileServer

    downloads: Path

    def create_mtdata(self) -> Mtdata:
        downloader = Downloader(max_failures=2, wait_seconds=0.0)

        return Mtdata(self.python, self.downloads, downloader, wmt_url=WMT)

    def get_log(self) -> str:
        return self.downloads.joinpath("eng-deu", "mtdata.log").read_text()


@pytest.fixture(params=["fake", "real"])
def world(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    python = Path(sys.executable)

    if request.param == "fake":
        write_fake_mtdata(tmp_path / "packages")

        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"))
    elif "WARMUP_MTDATA_PYTHON" in os.environ:
        python = Path(os.environ["WARMUP_MTDATA_PYTHON"])
    else:
        # Not whenever it is installed: it takes mtdata half a minute to make its index.
        pytest.skip("WARMUP_MTDATA_PYTHON names no Python that has mtdata")

    with serve(files=dict(ARCHIVES)) as server:
        for url in ARCHIVES:
            server.etags[url] = '"1"'

        # The real servers are reached through ours, a proxy.
        monkeypatch.setenv("http_proxy", server.url)

        yield World(python, server, tmp_path / "downloads")


def run(
    path: Path, mtdata: Mtdata, recipe: WmtRecipe = SETS, **options: Any
) -> DataFolder:
    folder = DataFolder(path, ["prepare_wmt.py"])

    langs = {"source_lang": "en", "target_lang": "de"}

    prepare_wmt(folder, recipe, TrainingFilter(**langs | options), mtdata=mtdata)

    return folder


def read_pairs(
    path: Path, split: str, source_lang: str = "en", target_lang: str = "de"
) -> list[tuple[str, str]]:
    config = TextPairsConfig(
        path=path, source_lang=source_lang, target_lang=target_lang
    )

    pairs = read_split(config, split)

    return [(pairs.source(idx), pairs.target(idx)) for idx in range(len(pairs))]


class TestPrepareWmt:
    def test_call_downloads_filters_and_resumes(
        self, tmp_path: Path, world: World
    ) -> None:
        out = tmp_path / "out"

        # A connection breaks; the download goes on.
        world.server.cut_after.append(20)

        folder = run(out, world.create_mtdata())

        assert read_pairs(out, "train") == [
            ("A house.", "Ein Haus."),
            ("A tree.", "Ein Baum."),
            ("Parliament sits.", "Das Parlament tagt."),
        ]

        assert read_pairs(out, "valid") == [
            ("Good day.", "Guten Tag."),
            ("Yesterday.", "Gestern."),
        ]

        assert read_pairs(out, "test") == [
            ("It rains!", "Regen."),
            ("Tomorrow.", "Morgen."),
        ]

        ranges = [request.headers.get("Range") for request in world.server.requests]

        assert ranges == [None, "bytes=20-", None, None]

        entry = json.loads(out.joinpath("DATA.json").read_text())["entries"][
            "WMT en-de"
        ]

        assert {*entry["inputs"]["sources"]} == {COMMONCRAWL, EUROPARL, DEV}
        assert "mtdata 0." in entry["origin"]["version"]

        counts = {name: num for name, num in entry["counts"].items() if num}

        assert counts == {
            "valid: pairs": 2,
            "test: pairs": 2,
            "train: pairs of Statmt-commoncrawl_wmt13-1-deu-eng": 3,
            "train: pairs of Statmt-europarl_wmt13-7-deu-eng": 3,
            "train: pairs read": 6,
            "train: dropped: occurs in a held-out set": 2,
            "train: - by its source": 1,
            "train: - by its target": 1,
            "train: dropped: duplicate": 1,
            "train: pairs kept": 3,
        }

        assert "written" in folder.summarize("WMT en-de").splitlines()[0]

        # Again: nothing is downloaded, and mtdata makes no lines.
        log = world.downloads / "eng-deu" / "mtdata.log"

        log.unlink()

        folder = run(out, world.create_mtdata())

        assert "there already" in folder.summarize("WMT en-de").splitlines()[0]
        assert len(world.server.requests) == 4
        assert not log.exists()

        # Lines that were damaged since are made anew, and only those.
        part = log.with_name("train-parts") / f"{SETS.train[0]}.deu"

        part.write_text("Schaden\n")

        run(out, world.create_mtdata())

        assert part.read_text() == "Ein Haus.\nEin Baum.\nGuten Tag!\n"
        assert "europarl" not in world.get_log()

    def test_call_reads_an_archive_that_was_replaced(
        self, tmp_path: Path, world: World
    ) -> None:
        recipe = WmtRecipe(train=[SETS.train[0]], valid=[], test=[])

        run(tmp_path / "out", world.create_mtdata(), recipe)

        assert len(read_pairs(tmp_path / "out", "train")) == 3

        world.server.files[COMMONCRAWL] = make_tar(
            {"commoncrawl.de-en.de": "Neu.\n", "commoncrawl.de-en.en": "New.\n"}
        )

        # What is there is damaged, so it is downloaded again.
        (archive,) = world.downloads.rglob("*commoncrawl.tgz")

        archive.write_bytes(b"")

        run(tmp_path / "out", world.create_mtdata(), recipe)

        assert read_pairs(tmp_path / "out", "train") == [("New.", "Neu.")]

    def test_call_explains_what_mtdata_lacks(
        self, tmp_path: Path, world: World
    ) -> None:
        recipe = WmtRecipe(train=["Statmt-foo-1-deu-eng"], valid=[], test=[])

        with pytest.raises(WarmupError, match="does not know `Statmt-foo-1-deu-eng`"):
            run(tmp_path / "out", world.create_mtdata(), recipe)

        with pytest.raises(WarmupError, match="has no recipe `foo`: it has .*vaswani"):
            get_mtdata_recipe("foo", world.create_mtdata())

        recipe = get_mtdata_recipe("vaswani_etal_2017_ende", world.create_mtdata())

        assert RECIPE["train"][0] in recipe.train and recipe.valid and recipe.test

    def test_call_explains_failure_of_mtdata(
        self, tmp_path: Path, world: World
    ) -> None:
        # The archive lacks the file.
        world.server.files[COMMONCRAWL] = make_tar({"other.de": "a\n"})

        recipe = WmtRecipe(train=[SETS.train[0]], valid=[], test=[])

        with pytest.raises(
            WarmupError, match=r"mtdata could not make lines .*log`, and"
        ):
            run(tmp_path / "out", world.create_mtdata(), recipe)

        assert not tmp_path.joinpath("out").exists()

    def test_recipe_of_today_is_that_of_wmt(
        self, tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        recipes = [
            {"id": "wmt24-eng-ces", "langs": "eng-ces", "train": [SETS.train[0]]},
            # It serves both directions.
            {"id": "wmt24-eng-deu", "langs": "eng-deu", "train": SETS.train},
        ]

        path = f"{WMT}/wmt24/mtdata/mtdata.recipes.wmt24-constrained.yml"

        world.server.files[path] = json.dumps(recipes).encode()

        # The test sets are those of sacreBLEU, and none is downloaded before it is read.
        monkeypatch.setattr(sacrebleu, "get_source_file", None)

        mtdata = world.create_mtdata()

        for langs in (("en", "de"), ("de", "en")):
            recipe = get_recipe_of_year(*langs, 2024, mtdata)

            assert recipe.train == SETS.train

        assert recipe.valid == ["sacrebleu:wmt23"]
        # There is none of this direction.
        assert recipe.test == []
        assert get_recipe_of_year("en", "de", 2024, mtdata).test == ["sacrebleu:wmt24"]

        # Once.
        assert [request.path for request in world.server.requests] == [path]

        with pytest.raises(
            WarmupError, match="recipe of 2024 for de-cs: it has `wmt24-eng-ces`, `wmt"
        ):
            get_recipe_of_year("de", "cs", 2024, mtdata)

        with pytest.raises(WarmupError, match="does not know the language `xxx`"):
            get_recipe_of_year("en", "xxx", 2024, mtdata)

        with pytest.raises(WarmupError, match="WMT has no recipe of 2099 for mtdata"):
            get_recipe_of_year("en", "de", 2099, mtdata)

    @pytest.mark.parametrize("world", ["real"], indirect=True)
    def test_recipes_name_what_mtdata_has(self, world: World) -> None:
        names: set[str] = set()

        for other, years in YEARS.items():
            for year in years:
                for langs in (("en", other), (other, "en")):
                    recipe = get_recipe(*langs, year)

                    names.update(recipe.train, recipe.valid, recipe.test)

        catalogue = world.create_mtdata().get_catalogue(sorted(names))

        # Each is a plain file, so that a broken download of it can go on.
        assert all(catalogue.downloads[name] for name in names)


def get_counts(folder: DataFolder) -> dict[str, str]:
    """Returns the counts that the console shows."""
    lines = folder.summarize("WMT en-de").splitlines()

    return {
        name: num
        for line in lines[1:]
        for name, num in [line.strip().rsplit(None, 1)]
        if num.replace(",", "").isdecimal()
    }


def write_set(folder: Path, name: str, **texts: str) -> str:
    for lang, text in texts.items():
        folder.joinpath(f"{name}.{lang}").write_text(text)

    return str(folder / name)


@pytest.fixture
def no_mtdata(tmp_path: Path) -> Mtdata:
    """A Python that has no mtdata."""
    return Mtdata(Path(sys.executable), tmp_path / "downloads", Downloader())


class TestPrepareLocalFiles:
    def test_call_needs_no_mtdata(self, tmp_path: Path, no_mtdata: Mtdata) -> None:
        recipe = WmtRecipe(
            train=[
                write_set(tmp_path, "a", ru="да\nнет\n", en="yes\nno\n"),
                write_set(tmp_path, "b", ru="да\n", en="yes\n"),
            ],
            valid=[
                write_set(tmp_path, "v1", ru="один\n", en="one\n"),
                write_set(tmp_path, "v2", ru="два\n", en="two\n"),
            ],
            test=[
                write_set(tmp_path, "t1", ru="три\n", en="three\n"),
                write_set(tmp_path, "t2", ru="четыре\n", en="four\n"),
            ],
        )

        out = tmp_path / "out"

        run(out, no_mtdata, recipe, source_lang="ru", target_lang="en")

        assert read_pairs(out, "train", "ru", "en") == [("да", "yes"), ("нет", "no")]
        assert read_pairs(out, "valid", "ru", "en") == [("один", "one"), ("два", "two")]
        assert read_pairs(out, "test", "ru", "en") == [("три", "three")]
        assert read_pairs(out, "test2", "ru", "en") == [("четыре", "four")]

        assert not tmp_path.joinpath("downloads").exists()

    @pytest.mark.parametrize("part", ["valid", "test", "train"])
    def test_documents_of_other_lines_are_refused(
        self, tmp_path: Path, no_mtdata: Mtdata, part: str
    ) -> None:
        texts = {"train": 3, "valid": 2, "test": 2}

        sets = {
            name: write_set(
                tmp_path,
                name,
                en="".join(f"{name} {n}.\n" for n in range(num)),
                de="".join(f"{name} ist {n}.\n" for n in range(num)),
            )
            for name, num in texts.items()
        }

        recipe = WmtRecipe(
            train=[sets["train"]], valid=[sets["valid"]], test=[sets["test"]]
        )

        file = Path(f"{sets[part]}.docid")

        file.write_text("d1\n")

        out = tmp_path / "out"

        # Nobody copies that of a training set.
        if part == "train":
            run(out, no_mtdata, recipe)

            return

        with pytest.raises(
            WarmupError,
            match=f"^`{file}` names the documents of 1 lines, but `{sets[part]}.en` has 2: ",
        ):
            run(out, no_mtdata, recipe)

        assert not out.exists() or list(out.iterdir()) == []

        file.write_text("d1\nd2\n")

        run(out, no_mtdata, recipe)

        assert (out / f"{part}.docid").read_text() == "d1\nd2\n"

    @pytest.mark.parametrize("ending", ["", ".gz"])
    def test_documents_of_gzipped_texts_are_found(
        self, tmp_path: Path, no_mtdata: Mtdata, ending: str
    ) -> None:
        train = write_set(tmp_path, "train", en="It rains.\n", de="Es regnet.\n")

        # A name with dots, of which the last one ends no language.
        test = str(tmp_path / "news.2024")

        for lang, text in (("en", "A.\nB.\n"), ("de", "Ein A.\nEin B.\n")):
            Path(f"{test}.{lang}.gz").write_bytes(gzip.compress(text.encode()))

        data = b"d1\nd2\n"

        Path(f"{test}.docid{ending}").write_bytes(
            gzip.compress(data) if ending else data
        )

        out = tmp_path / "out"

        run(out, no_mtdata, WmtRecipe(train=[train], valid=[], test=[test]))

        assert (out / "test.docid").read_bytes() == data

    def test_call_takes_sets_of_sacrebleu(
        self, tmp_path: Path, no_mtdata: Mtdata, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = tmp_path / "sacrebleu"

        folder.mkdir()

        for name, text in (
            *(("src", "It rains.\nIt snows.\n"), ("ref", "Regen.\nSchnee.\n")),
            *(("ref-B", "Es regnet.\nEs schneit.\n"), ("docid", "d1\nd2\n")),
        ):
            folder.joinpath(f"wmt24.en-de.{name}").write_text(text)

        monkeypatch.setattr(
            *(sacrebleu, "get_source_file"), lambda *_: str(folder / "wmt24.en-de.src")
        )

        monkeypatch.setattr(
            *(sacrebleu, "get_reference_files"),
            lambda *_: [str(folder / f"wmt24.en-de.{end}") for end in ("ref", "ref-B")],
        )

        train = write_set(
            tmp_path,
            "train",
            en="It rains!\nA.\nB.\n",
            de="Es giesst.\nEin A.\nEin B.\n",
        )

        valid = write_set(tmp_path, "valid", en="A.\n", de="Ein A.\n")

        recipe = WmtRecipe(train=[train], valid=[valid], test=["sacrebleu:wmt24"])

        run(tmp_path / "out", no_mtdata, recipe)

        # Its first reference, and its documents.
        assert read_pairs(tmp_path / "out", "test") == [
            *(("It rains.", "Regen."), ("It snows.", "Schnee."))
        ]

        assert tmp_path.joinpath("out", "test.docid").read_text() == "d1\nd2\n"
        assert not tmp_path.joinpath("out", "valid.docid").exists()

        assert read_pairs(tmp_path / "out", "train") == [("B.", "Ein B.")]

        recipe = WmtRecipe(train=[train], valid=[], test=["sacrebleu:wmt99"])

        with pytest.raises(WarmupError, match="`sacrebleu:wmt99` is no test set of"):
            run(tmp_path / "out", no_mtdata, recipe)

    def test_call_holds_more_files_out(self, tmp_path: Path, no_mtdata: Mtdata) -> None:
        name = write_set(tmp_path, "a", en="yes\nno\nno, no\n", de="ja\nnein\nnö\n")

        file = tmp_path / "flores.de"

        file.write_text("Ja!\n")

        folder = run(
            tmp_path / "out",
            no_mtdata,
            WmtRecipe(train=[name], valid=[], test=[]),
            held_out_files=[file],
            max_pairs=1,
        )

        assert len(read_pairs(tmp_path / "out", "train")) == 1

        counts = get_counts(folder)

        assert counts["train: pairs kept"] == "2"
        assert counts["train: pairs drawn"] == "1"
        assert counts["train: - by its target"] == "1"

    @pytest.mark.parametrize(
        ("recipe", "text"),
        [
            (
                WmtRecipe(train=["no/file"], valid=[], test=[]),
                "`no/file` is neither a data set of mtdata",
            ),
            (
                WmtRecipe(train=["europarl"], valid=[], test=[]),
                "`europarl` is neither a data set of mtdata",
            ),
            (
                WmtRecipe(train=["A-b-1-deu-eng"], valid=["A-b-1-deu-eng"], test=[]),
                "`A-b-1-deu-eng` is to be trained on and to be held out",
            ),
        ],
    )
    def test_call_refuses_wrong_sets(
        self, tmp_path: Path, no_mtdata: Mtdata, recipe: WmtRecipe, text: str
    ) -> None:
        with pytest.raises(WarmupError, match=text):
            run(tmp_path / "out", no_mtdata, recipe)

    def test_call_explains_missing_mtdata(
        self, tmp_path: Path, no_mtdata: Mtdata
    ) -> None:
        if importlib.util.find_spec("mtdata") is None:
            with pytest.raises(WarmupError, match="has no mtdata, which knows where"):
                run(tmp_path / "out", no_mtdata)

        with pytest.raises(WarmupError, match="cannot be started .*--mtdata-python"):
            run(
                tmp_path / "out",
                Mtdata(tmp_path / "no" / "python", tmp_path, Downloader()),
            )

    def test_real_text(
        self, tmp_path: Path, real_data: Path, no_mtdata: Mtdata
    ) -> None:
        flores = real_data / "flores101"

        recipe = WmtRecipe(
            train=[str(real_data / "multi30k" / "train")],
            valid=[str(real_data / "newstest2013" / "newstest2013")],
            test=[str(real_data / "multi30k" / "test_2016_flickr")],
        )

        folder = run(
            tmp_path,
            no_mtdata,
            recipe,
            held_out_files=[
                flores / "devtest.en",
                flores / "devtest.de",
                real_data / "multi30k" / "val.en",
                real_data / "multi30k" / "val.de",
            ],
        )

        # Of the pairs of Multi30k, one shares its source with the validation set, and
        # another its target.
        counts = get_counts(folder)

        assert counts["train: dropped: occurs in a held-out set"] == "2"
        assert counts["train: - by its source"] == "1"
        assert counts["train: - by its target"] == "1"
        assert counts["train: dropped: duplicate"] == "3"

        assert len(read_pairs(tmp_path, "valid")) == 3000
        assert len(read_pairs(tmp_path, "test")) == 1000
        assert len(read_pairs(tmp_path, "train")) == 28993


class TestGetRecipe:
    def test_call_takes_test_set_of_direction(self) -> None:
        assert get_recipe("en", "de", 2019).test == [
            "Statmt-newstest_ende-2019-eng-deu"
        ]
        assert get_recipe("de", "en", 2019).test == [
            "Statmt-newstest_deen-2019-deu-eng"
        ]

        # Both ways the same, as there is only one.
        assert get_recipe("en", "de", 2014).test == [
            "Statmt-newstest_deen-2014-deu-eng"
        ]
        assert get_recipe("en", "de", 2014).valid == ["Statmt-newstest-2013-eng-deu"]

    def test_call_never_trains_on_both_versions_of_a_corpus(self) -> None:
        for other, years in YEARS.items():
            for year in years:
                recipe = get_recipe("en", other, year)

                corpora = [name.split("-")[1].split("_wmt")[0] for name in recipe.train]

                assert len(corpora) == len(set(corpora)) >= 2
                assert not {*recipe.train} & {*recipe.valid, *recipe.test}

    @pytest.mark.parametrize(
        ("langs", "year", "text"),
        [
            (("en", "sw"), 2014, "no recipe for en-sw: take one of en-de, en-ru"),
            (("de", "fr"), 2014, "no recipe for de-fr"),
            (("en", "fr"), 2020, "no recipe for en-fr of 2020: the years are 2014"),
            (("zh", "en"), 2014, "the years are 2017 to 2021"),
        ],
    )
    def test_call_refuses_what_it_does_not_know(
        self, langs: tuple[str, str], year: int, text: str
    ) -> None:
        with pytest.raises(WarmupError, match=text):
            get_recipe(*langs, year)
