# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from warmup_plugin.data.synthetic import (
    Clause,
    Lexicon,
    Noun,
    NounPhrase,
    Relative,
    Sentence,
    SentenceMaker,
    Verb,
    Word,
    make_lexicon,
    write_synthetic_pair,
)
from warmup_plugin.errors import WarmupError


@pytest.fixture(scope="module")
def words() -> Words:
    return Words(make_lexicon())


class Words:
    """
    Looks words up by their source.

    Nouns: ronatu = wegi (f, animate), tiro = dabo (n, animate), masasa = fozezo (m,
    animate), rotu = gowi (m); nupuku = dogi (f) with a verb of topic 0, dovu (m) with
    one of topic 1. Verbs: puke = fobawi (topic 0), mame = zubabi (topic 0, without
    object); nerupa (topic 1) = bowazo with an animate object, otherwise biwu.
    """

    def __init__(self, lexicon: Lexicon) -> None:
        self._nouns = {n.source: n for n in lexicon.nouns}

        verbs = [*lexicon.transitive_verbs, *lexicon.intransitive_verbs]

        self._verbs = {v.source: v for v in verbs}

        others = [*lexicon.adjectives, *lexicon.adverbs, *lexicon.prepositions]

        self._others = {w.source: w for w in others}

    def noun(self, source: str) -> Noun:
        return self._nouns[source]

    def the(
        self,
        source: str,
        *,
        plural: bool = False,
        adjective: Word | None = None,
        relative: Relative | None = None,
    ) -> NounPhrase:
        return NounPhrase(self.noun(source), True, plural, adjective, relative)

    def a(
        self, source: str, *, plural: bool = False, adjective: Word | None = None
    ) -> NounPhrase:
        return NounPhrase(self.noun(source), False, plural, adjective)

    def verb(self, source: str) -> Verb:
        return self._verbs[source]

    def word(self, source: str) -> Word:
        return self._others[source]


class TestSentence:
    @pytest.mark.parametrize(
        "verb,expected",
        [("puke", "ba dogi fobawife ba wegi"), ("nerupa", "bo dovu bowazofe ba wegi")],
    )
    def test_verb_chooses_noun_and_noun_its_article(
        self, words: Words, verb: str, expected: str
    ) -> None:
        sentence = Sentence(
            Clause(words.the("nupuku"), words.verb(verb), words.the("ronatu"))
        )

        assert sentence.source() == f"ta nupuku {verb} ta ronatu"
        assert sentence.target() == expected

    @pytest.mark.parametrize(
        "obj,expected",
        [
            ("ronatu", "bo gowi bowazofe ba wegi"),
            ("rotu", "bo gowi biwufe bo gowi"),
            (None, "bo gowi biwufe"),
        ],
    )
    def test_object_chooses_verb(
        self, words: Words, obj: str | None, expected: str
    ) -> None:
        phrase = None if obj is None else words.the(obj)

        sentence = Sentence(Clause(words.the("rotu"), words.verb("nerupa"), phrase))

        assert sentence.target() == expected

    def test_adverb_and_past_bracket_clause(self, words: Words) -> None:
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

        assert sentence.source() == "lone pe puti tiroki puketo ta rotu nalo ta nupuku"

        # adverb | auxiliary | some dabo, givido | at the dogi | the gowi | participle
        assert (
            sentence.target()
            == "dage wide hufa daboga gividodebo gowu ba dogi bo gowi fobawiji"
        )

    def test_finite_verb_is_last_in_relative_clause(self, words: Words) -> None:
        relative = Relative(
            words.verb("puke"), words.a("rotu", plural=True), head_is_subject=True
        )

        sentence = Sentence(
            Clause(words.the("masasa", relative=relative), words.verb("mame"))
        )

        # The singular head is the subject of both verbs.
        assert sentence.source() == "ta masasa so puke pe rotuki mame"
        assert sentence.target() == "bo fozezo zo hefa gowibe fobawife zubabife"

    def test_verb_agrees_with_subject_of_relative_clause(self, words: Words) -> None:
        relative = Relative(
            words.verb("puke"),
            words.a("rotu", plural=True),
            head_is_subject=False,
            past=True,
        )

        sentence = Sentence(
            Clause(words.the("masasa", relative=relative), words.verb("mame"))
        )

        assert sentence.source() == "ta masasa so pe rotuki puketo mame"
        assert sentence.target() == "bo fozezo zi hefa gowibe fobawiji wide zubabife"

    def test_outer_verb_chooses_head_from_behind_relative_clause(
        self, words: Words
    ) -> None:
        # By itself, `puke` would make it `dogi`.
        relative = Relative(words.verb("puke"), words.the("rotu"), head_is_subject=True)

        sentence = Sentence(
            Clause(
                words.the("nupuku", relative=relative),
                words.verb("nerupa"),
                words.the("tiro"),
            )
        )

        assert sentence.source() == "ta nupuku so puke ta rotu nerupa ta tiro"
        assert sentence.target() == "bo dovu zo bo gowi fobawife bowazofe bu dabo"

    @pytest.mark.parametrize(
        "verb,expected",
        [
            ("puke", "ba dogi fobawife bu dabo wo fa wida zubabiji"),
            ("nerupa", "bo dovu bowazofe bu dabo wo fo wido zubabiji"),
        ],
    )
    def test_pronoun_takes_gender_of_first_subject(
        self, words: Words, verb: str, expected: str
    ) -> None:
        sentence = Sentence(
            Clause(words.the("nupuku"), words.verb(verb), words.the("tiro")),
            Clause(None, words.verb("mame"), past=True),
        )

        assert sentence.source() == f"ta nupuku {verb} ta tiro mi lu mameto"
        assert sentence.target() == expected


class TestSentenceMaker:
    def test_make_draws_all_constructions_within_length(self) -> None:
        maker = SentenceMaker(seed=3)

        sentences = [maker.make() for _ in range(300)]

        for sentence in sentences:
            for side in (sentence.source(), sentence.target()):
                assert 4 <= len(side.split()) <= 14

        sources = [sentence.source().split() for sentence in sentences]

        for word in ("ta", "pe", "so", "mi", "lu", "luki"):
            assert any(word in source for source in sources)

    def test_words_of_both_languages_are_disjoint(self) -> None:
        maker = SentenceMaker(seed=3)

        sentences = [maker.make() for _ in range(300)]

        sources = {word for s in sentences for word in s.source().split()}
        targets = {word for s in sentences for word in s.target().split()}

        assert len(sources) > 100 and len(targets) > 150

        assert sources.isdisjoint(targets)


class TestWriteSyntheticPair:
    def test_call_writes_same_files_on_every_machine(self, tmp_path: Path) -> None:
        write_synthetic_pair(tmp_path, num_train=50, num_valid=10, num_test=10)

        digest = hashlib.sha256()

        for file in sorted(tmp_path.iterdir()):
            digest.update(file.name.encode())
            digest.update(file.read_bytes())

        # Scores in the documentation hold for this text; a new hash means new scores.
        assert (
            digest.hexdigest()
            == "d20044566091217a2bb636a34c772261684da6d929d3d5b9f897dc7b02cac63e"
        )

    def test_call_depends_on_seed(self, tmp_path: Path) -> None:
        for seed in (1, 2):
            write_synthetic_pair(
                tmp_path / str(seed), num_train=5, num_valid=5, num_test=5, seed=seed
            )

        text1, text2 = [
            (tmp_path / str(seed) / "train.src").read_text() for seed in (1, 2)
        ]

        assert text1 != text2

    def test_call_keeps_test_set_when_training_text_grows(self, tmp_path: Path) -> None:
        for num_train in (5, 10):
            write_synthetic_pair(
                tmp_path / str(num_train), num_train=num_train, num_valid=5, num_test=5
            )

        text1, text2 = [
            (tmp_path / str(num_train) / "test.tgt").read_text()
            for num_train in (5, 10)
        ]

        assert text1 == text2

    def test_call_writes_no_source_twice(self, tmp_path: Path) -> None:
        write_synthetic_pair(tmp_path, num_train=1000, num_valid=100, num_test=200)

        sources = {}

        for split, size in (("train", 1000), ("valid", 100), ("test", 200)):
            lines = (tmp_path / f"{split}.src").read_text().splitlines()

            assert len(lines) == size
            assert len((tmp_path / f"{split}.tgt").read_text().splitlines()) == size

            sources[split] = set(lines)

        assert len(set.union(*sources.values())) == 1300

    def test_call_raises_when_split_is_empty(self, tmp_path: Path) -> None:
        with pytest.raises(WarmupError, match="`num_test` must be .* but is 0"):
            write_synthetic_pair(tmp_path, num_test=0)

    def test_call_raises_when_folder_is_file(self, tmp_path: Path) -> None:
        file = tmp_path / "file"

        file.touch()

        with pytest.raises(WarmupError, match="cannot be written to"):
            write_synthetic_pair(file, num_train=1, num_valid=1, num_test=1)
