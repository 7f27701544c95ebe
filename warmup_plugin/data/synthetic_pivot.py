# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass, replace
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, Final, final

from warmup_plugin.data.synthetic import (
    SOURCE_CONSONANTS,
    TARGET_CONSONANTS,
    TARGET_PARTICIPLE,
    VOWELS,
    Clause,
    Noun,
    NounPhrase,
    Relative,
    Sentence,
    SentenceMaker,
    check_sizes,
    make_lexicon,
    make_stems,
    write_text,
)

SOURCE_LANG: Final = "a"

PIVOT_LANG: Final = "p"

TARGET_LANG: Final = "b"

DIRECTIONS: Final = (
    (SOURCE_LANG, TARGET_LANG),
    (SOURCE_LANG, PIVOT_LANG),
    (PIVOT_LANG, TARGET_LANG),
)

# Changing any of these constants makes another language, and with it other scores.
_LEXICON_SEED: Final = 20250212
_CONSONANTS: Final = {
    SOURCE_LANG: SOURCE_CONSONANTS,
    PIVOT_LANG: TARGET_CONSONANTS,
    TARGET_LANG: "cjqxy",
}

_DEFINITE: Final = "xo"
_RELATIVE: Final = "ja"
_AND: Final = "ce"

# By class, then plural.
_ADJECTIVE_ENDING: Final = (("qi", "jo"), ("qu", "jo"))
_ACCUSATIVE_ENDING: Final = ("xi", "yu")
_PLURAL_ENDING: Final = "ca"
_PRESENT_ENDING: Final = (("ye", "yo"), ("ya", "yo"))
_PAST_ENDING: Final = (("je", "ju"), ("ji", "ju"))


@final
class FarLanguage:
    """
    Writes a :class:`Sentence` in a third language, B.

    With the source as A and the target as P, the pivot, the three languages make a task
    in which a detour pays: there is much text for A→P and P→B and little for A→B, and
    every word of B follows from P alone.

    **Words** are built of the consonants ``cjqxy``; none is a word of A or P.

    **Grammar**, in the notation of :class:`Sentence`::

        S     ->  C [ce (C | C')]
        C     ->  V-TENSE-AGR NP [NP-ACC] [NP-ACC POST] [ADV]
        C'    ->  V-TENSE-AGR [NP-ACC]
        NP    ->  [xo] [ADJ-AGR] N[-PL][-ACC] [ja V-TENSE-AGR (NP | NP-ACC)]

    - *Word order.* The verb comes first, in relative clauses too; prepositions of P
      follow their noun, adjectives precede it, the adverb is last.
    - *Agreement.* A noun is of one of two classes, which P's gender says nothing about.
      Verbs and adjectives agree with it in class and number, and the accusative has an
      ending for each class. The case tells the relative clauses apart; a pronoun is not
      written but shows in the verb.
    - *Ambiguity.* Some verbs of P have two translations; an animate subject chooses the
      one, another subject the other.
    """

    def __init__(self) -> None:
        # The lexicon is always the same.
        rng = Random(_LEXICON_SEED)

        stems, lexicon = make_stems(rng, _CONSONANTS[TARGET_LANG], []), make_lexicon()

        # By what the pivot calls them.
        self.nouns: dict[str, tuple[str, int]] = {}
        """Stem and class, 0 or 1."""

        self.verbs: dict[str, tuple[str, ...]] = {}
        """One stem, or two of which the subject chooses."""

        self.others: dict[str, str] = {}

        for noun in lexicon.nouns:
            for sense in noun.senses:
                self.nouns[sense.stem] = next(stems), int(rng.random() * 2)

        for verb in [*lexicon.transitive_verbs, *lexicon.intransitive_verbs]:
            for stem in verb.senses:
                # Every third one is ambiguous.
                num_senses = 2 if len(self.verbs) % 3 == 2 else 1

                self.verbs[stem] = tuple(islice(stems, num_senses))

        for word in [*lexicon.adjectives, *lexicon.adverbs, *lexicon.prepositions]:
            self.others[word.target] = next(stems)

    def write(self, sentence: Sentence) -> str:
        """Returns the words of the only correct translation."""
        return sentence.write(self._clause, _AND)

    def _clause(
        self, clause: Clause, antecedent: NounPhrase, antecedent_topic: int
    ) -> list[str]:
        topic = clause.verb.topic

        if clause.subject is not None:
            subject, subject_topic = clause.subject, topic
        else:
            subject, subject_topic = antecedent, antecedent_topic

        words = [self._verb(clause, clause.obj, subject, subject_topic)]

        if clause.subject is not None:
            words += self._noun_phrase(clause.subject, topic)

        if clause.obj is not None:
            words += self._noun_phrase(clause.obj, topic, accusative=True)

        if clause.place is not None:
            words += self._noun_phrase(clause.place[1], topic, accusative=True)

            words.append(self.others[clause.place[0].target])

        if clause.adverb is not None:
            words.append(self.others[clause.adverb.target])

        return words

    def _verb(
        self,
        clause: Clause | Relative,
        obj: NounPhrase | None,
        subject: NounPhrase,
        topic: int,
    ) -> str:
        senses = self.verbs[clause.verb.sense_for(obj)]

        stem = senses[int(subject.noun.animate) % len(senses)]

        _, noun_class = self._noun(subject.noun, topic)

        endings = _PAST_ENDING if clause.past else _PRESENT_ENDING

        return stem + endings[noun_class][subject.plural]

    def _noun_phrase(
        self, phrase: NounPhrase, topic: int, *, accusative: bool = False
    ) -> list[str]:
        stem, noun_class = self._noun(phrase.noun, topic)

        words = [_DEFINITE] * phrase.definite

        if phrase.adjective is not None:
            ending = _ADJECTIVE_ENDING[noun_class][phrase.plural]

            words.append(self.others[phrase.adjective.target] + ending)

        words.append(
            stem
            + _PLURAL_ENDING * phrase.plural
            + _ACCUSATIVE_ENDING[noun_class] * accusative
        )

        if phrase.relative is not None:
            relative = phrase.relative

            words.append(_RELATIVE)

            words.append(self._verb(relative, *relative.roles(phrase, topic)))

            words += self._noun_phrase(
                relative.other, relative.verb.topic, accusative=relative.head_is_subject
            )

        return words

    def _noun(self, noun: Noun, topic: int) -> tuple[str, int]:
        return self.nouns[noun.sense_for(topic).stem]


def write_synthetic_pivot(
    folder: Path,
    *,
    num_leg: int = 8000,
    num_direct: int = 300,
    num_valid: int = 100,
    num_test: int = 500,
    seed: int = 1,
    is_lossy: bool = False,
) -> None:
    """
    Writes the three directions of a task with a pivot.

    ``a-p`` and ``p-b`` are the legs, ``a-b`` is what they lead to. Each is a folder of
    ``{train,valid,test}.{a,p,b}``, as ``dataset.directions`` reads them, one sentence a
    line. No sentence occurs twice, neither in a direction nor in two: nothing tells a
    model which sentences of A and B belong together but the pairs of ``a-b``.

    ``a-b`` has ``test.p`` as well, what the sentences would be in the pivot.

    :param folder: Created if it does not exist; files in it are overwritten.
    :param num_leg: The training pairs of each leg.
    :param num_direct: The training pairs of ``a-b``.
    :param num_valid: The validation pairs of each direction.
    :param num_test: The test pairs of each direction.
    :param is_lossy: If ``True``, P does not tell the past from the present, so that a
        translation from P has to guess what one from A can know.
    """
    check_sizes(
        {"leg": num_leg, "direct": num_direct, "valid": num_valid, "test": num_test}
    )

    # In this order the test sets are the same however much text there is to train on.
    parts = [
        *(("test", direction, num_test) for direction in DIRECTIONS),
        *(("valid", direction, num_valid) for direction in DIRECTIONS),
        ("train", (SOURCE_LANG, TARGET_LANG), num_direct),
        ("train", (SOURCE_LANG, PIVOT_LANG), num_leg),
        ("train", (PIVOT_LANG, TARGET_LANG), num_leg),
    ]

    maker, far_language = SentenceMaker(seed), FarLanguage()

    seen: set[str] = set()

    def make() -> dict[str, str]:
        while (source := (sentence := maker.make()).source()) in seen:
            pass

        seen.add(source)

        return {
            SOURCE_LANG: source,
            PIVOT_LANG: (_drop_tense(sentence) if is_lossy else sentence).target(),
            TARGET_LANG: far_language.write(sentence),
        }

    for split, (source_lang, target_lang), size in parts:
        texts = [make() for _ in range(size)]

        langs = [source_lang, target_lang]

        if split == "test" and PIVOT_LANG not in langs:
            langs.append(PIVOT_LANG)

        for lang in langs:
            file = folder / f"{source_lang}-{target_lang}" / f"{split}.{lang}"

            write_text(file, [text[lang] for text in texts])


def _drop_tense(part: Any) -> Any:
    """Puts a sentence, or a part of one, into the present."""
    if isinstance(part, tuple):
        return tuple(map(_drop_tense, part))

    if not is_dataclass(part) or isinstance(part, type):
        return part

    changes = {f.name: _drop_tense(getattr(part, f.name)) for f in fields(part)}

    if "past" in changes:
        changes["past"] = False

    return replace(part, **changes)


def tell_language(word: str) -> str:
    """Returns the language whose syllables a word is made of, or an empty string."""
    # The one ending of P that is none of its syllables.
    stem = word.removesuffix(TARGET_PARTICIPLE)

    for lang, consonants in _CONSONANTS.items():
        text = stem if lang == PIVOT_LANG else word

        if re.fullmatch(f"(?:[{consonants}][{VOWELS}])+", text):
            return lang

    return ""
