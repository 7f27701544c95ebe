# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.data.preparation.servers import serve
from warmup_plugin.data.preparation.data_folder import DataFolder
from warmup_plugin.data.preparation.download import Downloader
from warmup_plugin.data.preparation.wmt24pp import (
    LOCALES,
    parse_locales,
    prepare_wmt24pp,
)
from warmup_plugin.data.split_files import TextPairsConfig
from warmup_plugin.data.text_pairs import read_split
from warmup_plugin.errors import WarmupError

# As published: what the card calls a bad source is there and says so.
SEGMENTS: list[dict[str, Any]] = [
    {"domain": "canary", "document_id": "canary", "source": "CANARY", "bad": True},
    {"domain": "news", "document_id": "test-en-news.1", "source": "One."},
    {"domain": "news", "document_id": "test-en-news.1", "source": "Two."},
    {"domain": "social", "document_id": "test-en-social.2", "source": "Three."},
]

TARGETS = {
    "de_DE": ["CANARY", "Eins.", "Zwei,\nzwei.", "Drei."],
    "fr_CA": ["CANARY", "Un.", "Deux.", "Trois."],
}


def make_rows(locale: str) -> list[dict[str, Any]]:
    return [
        {
            "lp": f"en-{locale}",
            "domain": segment["domain"],
            "document_id": segment["document_id"],
            "segment_id": idx,
            "is_bad_source": segment.get("bad", False),
            "source": segment["source"],
            "target": target,
            # Icelandic has none.
            "original_target": None,
        }
        for idx, (segment, target) in enumerate(zip(SEGMENTS, TARGETS[locale]))
    ]


def to_json_lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def run(path: Path, langs: list[str], **options: Any) -> DataFolder:
    folder = DataFolder(path, ["prepare_wmt24pp.py"])

    prepare_wmt24pp(
        folder,
        parse_locales(langs),
        downloads=path / "downloads",
        downloader=Downloader(max_failures=1),
        **options,
    )

    return folder


class TestPrepareWmt24pp:
    def test_call_downloads_files_and_leaves_bad_sources_out(
        self, tmp_path: Path
    ) -> None:
        files = {
            # Their order does not tell which segment they are.
            f"/en-{locale}.jsonl": to_json_lines(make_rows(locale)[::-1]).encode()
            for locale in TARGETS
        }

        with serve(files=files) as server:
            for _ in range(2):
                folder = run(tmp_path, ["de", "fr=fr_CA"], url=server.url)

            assert len(server.requests) == 2

        assert tmp_path.joinpath("wmt24pp.en").read_text() == "One.\nTwo.\nThree.\n"
        # A segment is a line.
        assert tmp_path.joinpath("wmt24pp.de").read_text() == (
            "Eins.\nZwei, zwei.\nDrei.\n"
        )
        assert tmp_path.joinpath("wmt24pp.fr").read_text() == "Un.\nDeux.\nTrois.\n"

        # Both ways, and between two translations.
        for langs in (("en", "de"), ("fr", "en"), ("de", "fr")):
            config = TextPairsConfig(
                path=tmp_path, source_lang=langs[0], target_lang=langs[1]
            )

            pairs = read_split(config, "wmt24pp")

            assert [pairs.document(idx) for idx in range(3)] == [
                *("test-en-news.1", "test-en-news.1", "test-en-social.2")
            ]

        card = json.loads(tmp_path.joinpath("DATA.json").read_text())

        entry = card["entries"]["WMT24++"]

        assert list(entry["counts"].values()) == [4, 1, 3, 2]
        assert len(entry["inputs"]["sources"]) == 2

        summary = folder.summarize("WMT24++")

        assert "there already, intact" in summary
        assert "4 segments instead of the 998" in summary
        assert "Line feeds inside 1 of" in summary

    def test_call_reads_folder_and_keeps_earlier_languages(
        self, tmp_path: Path
    ) -> None:
        for locale in TARGETS:
            file = tmp_path / f"en-{locale}.jsonl"

            file.write_text(to_json_lines(make_rows(locale)))

        for lang in ("deu_Latn=de", "fr_CA"):
            folder = run(tmp_path / "out", [lang], source=tmp_path)

        # The name is that of the language in `dataset.target_lang`.
        assert folder.get_files("WMT24++") == [
            *("wmt24pp.deu_Latn", "wmt24pp.docid", "wmt24pp.en", "wmt24pp.fr_CA")
        ]

        with pytest.raises(WarmupError, match="has no `en-cs_CZ.jsonl`"):
            run(tmp_path / "out", ["cs"], source=tmp_path)

    def test_call_refuses_file_of_bad_sources(self, tmp_path: Path) -> None:
        rows = [{**row, "is_bad_source": True} for row in make_rows("de_DE")]

        tmp_path.joinpath("en-de_DE.jsonl").write_text(to_json_lines(rows))

        with pytest.raises(WarmupError, match="All segments of .*en-de_DE.jsonl"):
            run(tmp_path / "out", ["de"], source=tmp_path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"is_bad_source": "false"}, "Line 2 .*true or false in .*`is_bad_source`"),
            ({"target": " "}, "Line 2 .* has an empty `target`"),
            ({"lp": "en-de_AT"}, "Line 2 .* is of `en-de_AT`, not of `en-de_DE`"),
            ({"segment_id": 0}, "Line 2 .* `segment_id` 0 of an earlier line"),
            ({"target": "\ud800"}, "Line 2 .* half a surrogate pair"),
            ({"source": "1."}, "other sources or documents than"),
            ({"document_id": "test-en-news.2"}, "other sources or documents than"),
            ({"is_bad_source": True}, "other sources or documents than"),
        ],
    )
    def test_call_refuses_what_does_not_fit(
        self, tmp_path: Path, change: dict[str, object], message: str
    ) -> None:
        rows = make_rows("de_DE")

        rows[1].update(change)

        tmp_path.joinpath("en-de_DE.jsonl").write_text(to_json_lines(rows))
        tmp_path.joinpath("en-fr_CA.jsonl").write_text(
            to_json_lines(make_rows("fr_CA"))
        )

        with pytest.raises(WarmupError, match=message):
            run(tmp_path / "out", ["fr=fr_CA", "de"], source=tmp_path)


class TestParseLocales:
    def test_call_finds_languages(self) -> None:
        assert parse_locales(["de", "zh=zh_TW", "fr_FR"]) == {
            **{"de": "de_DE", "zh": "zh_TW", "fr_FR": "fr_FR", "en": "en"}
        }

        assert parse_locales(["eng_Latn=en", "deu_Latn=de"]) == {
            **{"eng_Latn": "en", "deu_Latn": "de_DE"}
        }

    @pytest.mark.parametrize(
        ("langs", "message"),
        [
            (["zh"], "more than one .*write `zh=zh_CN` or `zh=zh_TW`"),
            (["ga"], "is no language of WMT24.., which has ar_EG"),
            (["de", "de=de_DE"], "names `de` twice"),
            (["en"], "names no language that English was translated to"),
            (["a=en", "de", "b=en"], "names English twice, as `a` and as `b`"),
            (["fr=fr_FR", "en=de"], "calls `de_DE` `en`, which is what the sources"),
            (["docid=de"], "names files `.docid`, which are no language's"),
            (["../a=de"], "names files `.../a`"),
            (["=de"], "names files `.`"),
        ],
    )
    def test_call_refuses_other_languages(self, langs: list[str], message: str) -> None:
        with pytest.raises(WarmupError, match=message):
            parse_locales(langs)

    def test_there_are_as_many_as_were_published(self) -> None:
        assert len(set(LOCALES)) == 55
