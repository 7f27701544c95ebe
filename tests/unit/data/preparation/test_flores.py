# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.unit.data.preparation.archives import make_tar, make_zip
from tests.unit.data.preparation.servers import serve
from warmup_plugin.data.preparation import flores
from warmup_plugin.data.preparation.data_folder import DataFolder
from warmup_plugin.data.preparation.download import Downloader
from warmup_plugin.data.preparation.flores import (
    RELEASES,
    parse_languages,
    prepare_flores,
)
from warmup_plugin.data.split_files import TextPairsConfig
from warmup_plugin.data.text_pairs import read_split
from warmup_plugin.errors import WarmupError

# A narrow no-break space stands in French before a colon; it is part of the reference.
TEXTS = {
    "dev": {"en": "One.\nTwo.\n", "fr": "Un\u202f: un.\nDeux.\n", "zh": "一。\n二。\n"},
    "devtest": {"en": "Three.\n", "fr": "Trois.\n", "zh": "三。\n"},
}


@pytest.fixture(autouse=True)
def few_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the texts of the tests be complete."""
    monkeypatch.setattr(flores, "_NUM_SENTENCES", {"dev": 2, "devtest": 1})


def make_files(pattern: str, codes: Mapping[str, str]) -> dict[str, str]:
    """Returns the files of a release by ``pattern``, such as ``{split}/{code}``."""
    files = {"root/README": "FLORES\n"}

    for split, texts in TEXTS.items():
        for lang, code in codes.items():
            name = pattern.format(split=split, code=code)

            files[name] = texts[lang]

            if name.endswith(".jsonl"):
                files[name] = to_json_lines(texts[lang])

    return files


def to_json_lines(text: str) -> str:
    rows = [
        {"id": idx, "iso_639_3": "eng", "text": line, "domain": "wikinews"}
        for idx, line in enumerate(text.splitlines())
    ]

    # Their order does not tell which sentence they are.
    return "".join(json.dumps(row) + "\n" for row in reversed(rows))


def run(
    path: Path,
    release: str,
    langs: Sequence[str] = ("en", "fr", "zh"),
    **options: Any,
) -> DataFolder:
    folder = DataFolder(path, ["prepare_flores.py"])

    prepare_flores(
        folder,
        release,
        parse_languages(release, langs),
        downloads=path / "downloads",
        downloader=Downloader(max_failures=1),
        **options,
    )

    return folder


def assert_texts(path: Path) -> None:
    for split, texts in TEXTS.items():
        for lang, text in texts.items():
            assert path.joinpath(f"{split}.{lang}").read_text("utf-8") == text


OLD_CODES = {"en": "eng", "fr": "fra", "zh": "zho_simpl"}

NEW_CODES = {"en": "eng_Latn", "fr": "fra_Latn", "zh": "zho_Hans"}

NEWEST_CODES = {"en": "eng_Latn", "fr": "fra_Latn", "zh": "cmn_Hans"}


class TestPrepareFlores:
    @pytest.mark.parametrize(
        ("release", "root", "codes"),
        [
            ("flores101", "flores101_dataset", OLD_CODES),
            ("flores200", "flores200_dataset", NEW_CODES),
        ],
    )
    def test_call_downloads_archive(
        self, tmp_path: Path, release: str, root: str, codes: dict[str, str]
    ) -> None:
        data = make_tar(make_files(f"./{root}/{{split}}/{{code}}.{{split}}", codes))

        with serve(files={"/f.tar.gz": data}) as server:
            for _ in range(2):
                run(tmp_path, release, url=f"{server.url}/f.tar.gz")

            assert len(server.requests) == 1

        assert_texts(tmp_path)

        names = sorted(file.name for file in tmp_path.iterdir() if file.is_file())

        # Two cards, three languages, two splits.
        assert len(names) == 2 + 6

    def test_call_downloads_files_of_hub(self, tmp_path: Path) -> None:
        files = {
            f"/{name}": text.encode()
            for name, text in make_files("{split}/{code}.jsonl", NEWEST_CODES).items()
        }

        with serve(files=files) as server:
            run(tmp_path, "flores_plus", url=server.url)

        assert_texts(tmp_path)

        card = json.loads(tmp_path.joinpath("DATA.json").read_text())

        assert len(card["entries"]["FLORES+"]["inputs"]["sources"]) == 6

    def test_call_keeps_documents_of_hub(self, tmp_path: Path) -> None:
        for code in ("eng_Latn", "fra_Latn"):
            rows = [
                {"id": idx, "text": "a", "url": f"https://en.wikinews.org/{name}"}
                for idx, name in ((1, "x"), (0, "x"), (2, "y"))
            ]

            file = tmp_path / "in" / "dev" / f"{code}.jsonl"

            file.parent.mkdir(parents=True, exist_ok=True)

            file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))

        options: dict[str, Any] = {"splits": ["dev"], "source": tmp_path / "in"}

        run(tmp_path / "out", "flores_plus", ["en", "fr"], **options)

        config = TextPairsConfig(path=tmp_path / "out", target_lang="fr")

        pairs = read_split(config, "dev")

        assert [pairs.document(idx) for idx in range(3)] == [
            f"https://en.wikinews.org/{name}" for name in "xxy"
        ]

    def test_call_keeps_documents_of_archive(self, tmp_path: Path) -> None:
        files = make_files("flores200_dataset/{split}/{code}.{split}", NEW_CODES)

        header = "URL\tdomain\ttopic\thas_image\thas_hyperlink\n"

        files["flores200_dataset/metadata_dev.tsv"] = (
            f"{header}https://x\twikinews\tnews\t0\t0\nhttps://y\twikibooks\t\t0\t1\n"
        )
        # Of another number of sentences, it tells nothing.
        files["flores200_dataset/metadata_devtest.tsv"] = header

        file = tmp_path / "f.tar.gz"

        file.write_bytes(make_tar(files))

        run(tmp_path / "out", "flores200", source=file)

        assert_texts(tmp_path / "out")

        assert (
            tmp_path.joinpath("out/dev.docid").read_text() == "https://x\nhttps://y\n"
        )
        assert not tmp_path.joinpath("out/devtest.docid").exists()

    def test_call_reads_parquet_where_there_are_no_json_lines(
        self, tmp_path: Path
    ) -> None:
        pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")

        parquet = pytest.importorskip("pyarrow.parquet")

        files = {}

        for name, text in make_files("{split}/{code}.jsonl", NEWEST_CODES).items():
            if name.endswith(".jsonl"):
                rows = [json.loads(line) for line in text.splitlines()]

                file = tmp_path / "rows.parquet"

                parquet.write_table(pyarrow.Table.from_pylist(rows), file)

                name = name.replace(".jsonl", ".parquet")

                files[f"/{name}"] = file.read_bytes()

        with serve(files=files) as server:
            run(tmp_path / "out", "flores_plus", url=server.url)

        assert_texts(tmp_path / "out")

        file = (
            tmp_path / "out" / "downloads" / "flores_plus" / "dev" / "eng_Latn.parquet"
        )

        file.write_bytes(b"PAR1")

        with pytest.raises(WarmupError, match="eng_Latn.parquet` is no Parquet file"):
            run(tmp_path / "out2", "flores_plus", source=file.parents[1])

    def test_call_asks_for_what_the_hub_wants(self, tmp_path: Path) -> None:
        with serve(statuses=[401]) as server:
            with pytest.raises(
                WarmupError, match="401.*accept the conditions .* `HF_TOKEN` to a token"
            ):
                run(tmp_path, "flores_plus", url=server.url)

            # It is no other format that is missing.
            assert len(server.requests) == 1

    @pytest.mark.parametrize("codes", [NEW_CODES, NEWEST_CODES])
    def test_call_reads_locked_archive(
        self, tmp_path: Path, codes: dict[str, str]
    ) -> None:
        file = tmp_path / "floresp.zip"

        files = make_files("floresp-v2.0/{split}/{split}.{code}", codes)

        file.write_bytes(make_zip(files, "multilingual machine translation"))

        run(tmp_path / "out", "flores_plus", source=file)

        assert_texts(tmp_path / "out")

    def test_blank_line_counts_for_nothing(self, tmp_path: Path) -> None:
        for lang, lines in (("eng_Latn", "\n"), ("fra_Latn", "")):
            file = tmp_path / "in" / "dev" / f"{lang}.jsonl"

            file.parent.mkdir(parents=True, exist_ok=True)

            file.write_text('{"id": 0, "text": "a"}\n' + lines)

        run(
            tmp_path / "out",
            "flores_plus",
            ["en", "fr"],
            splits=["dev"],
            source=tmp_path / "in",
        )

        assert tmp_path.joinpath("out", "dev.en").read_text() == "a\n"

    def test_call_reads_what_it_wrote(self, tmp_path: Path) -> None:
        for split, texts in TEXTS.items():
            for lang, text in texts.items():
                tmp_path.joinpath(f"{split}.{lang}").write_text(text, "utf-8")

        run(tmp_path / "out", "flores101", source=tmp_path)

        assert_texts(tmp_path / "out")

    def test_call_adds_languages(self, tmp_path: Path) -> None:
        file = tmp_path / "f.tar.gz"

        file.write_bytes(make_tar(make_files("f/{split}/{code}.{split}", OLD_CODES)))

        run(tmp_path / "out", "flores101", ["en", "zh"], source=file)
        run(tmp_path / "out", "flores101", ["en", "fr"], source=file)

        assert_texts(tmp_path / "out")

        card = json.loads(tmp_path.joinpath("out", "DATA.json").read_text())

        assert len(card["entries"]["FLORES-101"]["files"]) == 6

        # Another release would write other sentences to the same files.
        with pytest.raises(WarmupError, match=r"is not of FLORES\+"):
            run(
                tmp_path / "out",
                "flores_plus",
                ["en=eng", "fr=fra"],
                source=file,
            )

    def test_call_takes_other_languages_by_code(self, tmp_path: Path) -> None:
        tmp_path.joinpath("devtest").mkdir()
        tmp_path.joinpath("devtest", "swh_Latn.devtest").write_text("Tatu.\n")
        tmp_path.joinpath("devtest", "eng_Latn.devtest").write_text("Three.\n")

        run(
            tmp_path / "out",
            "flores200",
            ["en", "sw=swh_Latn"],
            source=tmp_path,
            splits=["devtest"],
        )

        assert tmp_path.joinpath("out", "devtest.sw").read_text() == "Tatu.\n"

    def test_call_notes_other_number_of_sentences(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(flores, "_NUM_SENTENCES", {"dev": 997, "devtest": 1})

        file = tmp_path / "f.tar.gz"

        file.write_bytes(make_tar(make_files("f/{split}/{code}.{split}", OLD_CODES)))

        folder = run(tmp_path / "out", "flores101", source=file)

        text = folder.summarize("FLORES-101")

        assert "`dev` has 2 sentences instead of the 997 that were published." in text
        assert "`devtest` has" not in text

    @pytest.mark.parametrize(
        ("files", "text"),
        [
            ({"devtest/eng.devtest": "a\n"}, "has no `devtest` of `fr` .*`devtest/fra"),
            (
                {"devtest/eng.devtest": "a\nb\n", "devtest/fra.devtest": "a\n"},
                "has 2 sentences in `en`, but 1 or others in `fr`",
            ),
            (
                {"devtest/eng.devtest": "a\n\n", "devtest/fra.devtest": "a\nb\n"},
                "has an empty line in `en`",
            ),
            (
                {
                    "devtest/eng.devtest": "a\n",
                    "devtest/fra.devtest": "a\n",
                    "devtest.fr": "b\n",
                },
                "has `devtest` of `fr` twice",
            ),
            (
                {"devtest/eng.jsonl": '{"id": 0}\n', "devtest/fra.devtest": "a\n"},
                "Line 1 of .* is not a JSON object with the fields `id` and `text`",
            ),
            (
                {"devtest/eng.jsonl": "\n[]\n", "devtest/fra.devtest": "a\n"},
                "Line 2 of .* is not a JSON object with the fields `id` and `text`",
            ),
            (
                {
                    "devtest/eng.jsonl": '{"id": 0, "text": "a"}\n',
                    "devtest/fra.jsonl": '{"id": 1, "text": "a"}\n',
                },
                "has 1 sentences in `en`, but 1 or others in `fr`",
            ),
        ],
    )
    def test_call_refuses_what_does_not_fit(
        self, tmp_path: Path, files: dict[str, str], text: str
    ) -> None:
        for name, content in files.items():
            file = tmp_path / "in" / name

            file.parent.mkdir(parents=True, exist_ok=True)

            file.write_text(content)

        with pytest.raises(WarmupError, match=text):
            run(
                tmp_path / "out",
                "flores101",
                ["en", "fr"],
                source=tmp_path / "in",
                splits=["devtest"],
            )

        assert not tmp_path.joinpath("out").exists()

    def test_real_devtest_in_eight_directions(
        self, tmp_path: Path, real_data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.undo()

        source = real_data / "flores101"

        folder = run(
            tmp_path,
            "flores101",
            ["en", "de", "fr", "ru", "zh"],
            source=source,
            splits=["devtest"],
        )

        assert "instead of" not in folder.summarize("FLORES-101")

        for other in ("de", "fr", "ru", "zh"):
            for source_lang, target_lang in (("en", other), (other, "en")):
                config = TextPairsConfig(
                    path=tmp_path, source_lang=source_lang, target_lang=target_lang
                )

                pairs = read_split(config, "devtest")

                assert len(pairs) == 1012
                assert not pairs.empty_mask().any()

            # Byte by byte what was published.
            name = f"devtest.{other}"

            assert (tmp_path / name).read_bytes() == (source / name).read_bytes()


class TestParseLanguages:
    def test_call_knows_languages_of_the_paper(self) -> None:
        for name, release in RELEASES.items():
            codes = parse_languages(name, ["en", "de", "fr", "ru", "zh"])

            assert codes == release.codes

    @pytest.mark.parametrize(
        ("langs", "text"),
        [
            (["en", "sw"], "`--langs sw` is not one of `en`"),
            (["en", "en=eng"], "names `en` twice"),
            (["docid=deu"], "names files `.docid`, which are no language's"),
        ],
    )
    def test_call_refuses_unknown_language(self, langs: list[str], text: str) -> None:
        with pytest.raises(WarmupError, match=text):
            parse_languages("flores101", langs)
