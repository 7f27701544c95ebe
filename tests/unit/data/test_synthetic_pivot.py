# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from tests.unit.data.test_synthetic import Words
from warmup_plugin.data.synthetic import (
    Clause,
    Relative,
    Sentence,
    SentenceMaker,
    make_lexicon,
)
from warmup_plugin.data.synthetic_pivot import (
    FarLanguage,
    tell_language,
    write_synthetic_pivot,
)
from warmup_plugin.errors import WarmupError

_AUXILIARIES = {"wido", "wida", "widu", "wide"}


@pytest.fixture(scope="module")
def words() -> Words:
    return Words(make_lexicon())


@pytest.fixture(scope="module")
def language() -> FarLanguage:
    return FarLanguage()


class TestFarLanguage:
    """
    Nouns by what A calls them: ronatu = yiqu (class 0, animate), tiro = ceqeqo (0,
    animate), masasa = jayo (1), rotu = yiyi (1), nupuku = cecu (1, P's dogi) or cuxixu
    (1, P's dovu), kupi = qacu (0) or xecajo (1). Verbs: puke = cucace, mame = ceci;
    nerupa, where its object is animate, = qojo if its subject is too, otherwise yexa.
    """

    @pytest.mark.parametrize(
        "subject,verb,expected",
        [
            ("nupuku", "puke", "cucaceya xo cecu xo yiquxi"),
            # Another word of P, chosen by the verb, is another word of B.
            ("nupuku", "nerupa", "yexaya xo cuxixu xo yiquxi"),
            # An animate subject chooses the other verb.
            ("tiro", "nerupa", "qojoye xo ceqeqo xo yiquxi"),
        ],
    )
    def test_words_follow_from_pivot(
        self,
        words: Words,
        language: FarLanguage,
        subject: str,
        verb: str,
        expected: str,
    ) -> None:
        clause = Clause(words.the(subject), words.verb(verb), words.the("ronatu"))

        assert language.write(Sentence(clause)) == expected

    def test_verb_is_first_and_all_agree(
        self, words: Words, language: FarLanguage
    ) -> None:
        sentence = Sentence(
            Clause(
                words.a("tiro", plural=True, adjective=words.word("puti")),
                words.verb("puke"),
                words.the("rotu"),
                adverb=words.word("lone"),
                place=(words.word("nalo"), words.the("nupuku")),
                past=True,
            )
        )

        # verb | some ADJ ceqeqo | the yiyi | the cecu at | adverb
        assert (
            language.write(sentence)
            == "cucaceju jexojo ceqeqoca xo yiyiyu xo cecuyu cexu jejiqi"
        )

    @pytest.mark.parametrize(
        "head_is_subject,expected",
        [
            (True, "ceciya xo jayo ja cucaceji yiyicayu"),
            (False, "ceciya xo jayo ja cucaceju yiyica"),
        ],
    )
    def test_case_and_verb_tell_relative_clauses_apart(
        self,
        words: Words,
        language: FarLanguage,
        head_is_subject: bool,
        expected: str,
    ) -> None:
        relative = Relative(
            words.verb("puke"), words.a("rotu", plural=True), head_is_subject, past=True
        )

        sentence = Sentence(
            Clause(words.the("masasa", relative=relative), words.verb("mame"))
        )

        assert language.write(sentence) == expected

    @pytest.mark.parametrize(
        "verb,expected",
        [
            ("puke", "cucaceye xo qacu xo ceqeqoxi ce cecije"),
            ("nerupa", "yexaya xo xecajo xo ceqeqoxi ce ceciji"),
        ],
    )
    def test_pronoun_is_class_of_first_subject(
        self, words: Words, language: FarLanguage, verb: str, expected: str
    ) -> None:
        sentence = Sentence(
            Clause(words.the("kupi"), words.verb(verb), words.the("tiro")),
            Clause(None, words.verb("mame"), past=True),
        )

        assert language.write(sentence) == expected

    def test_pivot_tells_all(self, language: FarLanguage) -> None:
        maker = SentenceMaker(seed=3)

        translations: dict[str, set[str]] = {}

        for _ in range(3000):
            sentence = maker.make()

            translations.setdefault(sentence.target(), set()).add(
                language.write(sentence)
            )

        assert {len(t) for t in translations.values()} == {1}

    def test_every_word_of_pivot_has_stem_of_its_own(
        self, language: FarLanguage
    ) -> None:
        lexicon, far = make_lexicon(), language

        assert set(far.nouns) == {s.stem for n in lexicon.nouns for s in n.senses}

        stems = [
            *(stem for stem, _ in far.nouns.values()),
            *(stem for senses in far.verbs.values() for stem in senses),
            *far.others.values(),
        ]

        assert len(set(stems)) == len(stems)

        assert {c for _, c in far.nouns.values()} == {0, 1}
        assert {len(senses) for senses in far.verbs.values()} == {1, 2}


class TestTellLanguage:
    def test_every_word_tells_its_language(self, language: FarLanguage) -> None:
        maker = SentenceMaker(seed=3)

        for _ in range(300):
            sentence = maker.make()

            texts = {
                "a": sentence.source(),
                "p": sentence.target(),
                "b": language.write(sentence),
            }

            for lang, text in texts.items():
                assert {tell_language(word) for word in text.split()} == {lang}

    @pytest.mark.parametrize("word", ["", "taxo", "bo.", "wid", "Bo"])
    def test_call_returns_nothing_for_other_words(self, word: str) -> None:
        assert tell_language(word) == ""


class TestWriteSyntheticPivot:
    def write(self, folder: Path, **sizes: Any) -> dict[str, list[str]]:
        write_synthetic_pivot(
            folder,
            **{"num_leg": 20, "num_direct": 6, "num_valid": 4, "num_test": 5, **sizes},
        )

        return {
            str(file.relative_to(folder)): file.read_text().splitlines()
            for file in sorted(folder.rglob("*.*"))
        }

    def test_call_writes_same_files_on_every_machine(self, tmp_path: Path) -> None:
        digest = hashlib.sha256()

        for name, lines in self.write(tmp_path).items():
            digest.update("\n".join([name, *lines]).encode())

        # Scores in the documentation hold for this text; a new hash means new scores.
        assert (
            digest.hexdigest()
            == "424b674f8585571b3ae17d2b15f5d98b36bb2a209ad2d0b2664e2cfd8c01d60b"
        )

    def test_call_writes_folder_of_each_direction(self, tmp_path: Path) -> None:
        sizes = {name: len(lines) for name, lines in self.write(tmp_path).items()}

        assert sizes == {
            **{f"a-b/test.{lang}": 5 for lang in "abp"},
            **{f"a-b/train.{lang}": 6 for lang in "ab"},
            **{f"a-b/valid.{lang}": 4 for lang in "ab"},
            **{f"a-p/test.{lang}": 5 for lang in "ap"},
            **{f"a-p/train.{lang}": 20 for lang in "ap"},
            **{f"a-p/valid.{lang}": 4 for lang in "ap"},
            **{f"p-b/test.{lang}": 5 for lang in "bp"},
            **{f"p-b/train.{lang}": 20 for lang in "bp"},
            **{f"p-b/valid.{lang}": 4 for lang in "bp"},
        }

    def test_no_sentence_occurs_in_two_directions(self, tmp_path: Path) -> None:
        texts = self.write(tmp_path, num_leg=1000, num_direct=100)

        for lang, num_files in (("a", 6), ("p", 6), ("b", 6)):
            files = {
                name: lines
                for name, lines in texts.items()
                if name.endswith(f".{lang}") and name != "a-b/test.p"
            }

            assert len(files) == num_files

            lines = [line for lines in files.values() for line in lines]

            assert len(set(lines)) == len(lines)

    def test_pivot_of_test_set_is_that_of_its_sentences(self, tmp_path: Path) -> None:
        texts = self.write(tmp_path)

        maker, language = SentenceMaker(seed=1), FarLanguage()

        sentences = [maker.make() for _ in range(5)]

        assert texts["a-b/test.a"] == [s.source() for s in sentences]
        assert texts["a-b/test.p"] == [s.target() for s in sentences]
        assert texts["a-b/test.b"] == [language.write(s) for s in sentences]

    def test_call_keeps_test_and_direct_text_when_legs_grow(
        self, tmp_path: Path
    ) -> None:
        text1 = self.write(tmp_path / "1")
        text2 = self.write(tmp_path / "2", num_leg=40)

        changed = {name for name in text1 if text1[name] != text2[name]}

        assert changed == {
            *(f"a-p/train.{lang}" for lang in "ap"),
            *(f"p-b/train.{lang}" for lang in "pb"),
        }

    def test_lossy_pivot_has_no_tense(self, tmp_path: Path) -> None:
        text1 = self.write(tmp_path / "1", num_leg=300)
        text2 = self.write(tmp_path / "2", num_leg=300, is_lossy=True)

        past = 0

        for name, lines in text1.items():
            if not name.endswith(".p"):
                assert text2[name] == lines

                continue

            for line, other in zip(lines, text2[name]):
                # The auxiliary of the past takes the verb's place, which becomes a
                # participle.
                auxiliaries = sum(word in _AUXILIARIES for word in line.split())

                past += auxiliaries

                assert not _AUXILIARIES & set(other.split())
                assert (line != other) == (auxiliaries > 0)
                assert len(other.split()) == len(line.split()) - auxiliaries

        assert past > 300

    def test_call_depends_on_seed(self, tmp_path: Path) -> None:
        text1 = self.write(tmp_path / "1")
        text2 = self.write(tmp_path / "2", seed=2)

        assert text1["a-b/train.a"] != text2["a-b/train.a"]

    def test_call_raises_when_part_is_empty(self, tmp_path: Path) -> None:
        with pytest.raises(WarmupError, match="`num_direct` must be .* but is 0"):
            write_synthetic_pivot(tmp_path, num_direct=0)
