# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain, product
from pathlib import Path
from random import Random
from typing import Final, TypeVar, final

from warmup_plugin.errors import WarmupError
from warmup_plugin.files import write_text_atomically

T = TypeVar("T")

MIN_NUM_WORDS: Final = 4

MAX_NUM_WORDS: Final = 14

# Changing any of these constants makes another language, and with it other scores.
_LEXICON_SEED: Final = 20240229
_NUM_NOUNS: Final = 60
_NUM_TRANSITIVE_VERBS: Final = 28
_NUM_INTRANSITIVE_VERBS: Final = 8
_NUM_ADJECTIVES: Final = 20
_NUM_ADVERBS: Final = 10
_NUM_PREPOSITIONS: Final = 4

SOURCE_CONSONANTS: Final = "kplmnrst"
TARGET_CONSONANTS: Final = "bdfghvwz"
VOWELS: Final = "aeiou"

_SOURCE_DEFINITE: Final = "ta"
_SOURCE_INDEFINITE: Final = "pe"
_SOURCE_RELATIVE: Final = "so"
_SOURCE_AND: Final = "mi"
_SOURCE_PRONOUN: Final = "lu"
_SOURCE_PLURAL: Final = "ki"
_SOURCE_PAST: Final = "to"

_TARGET_AND: Final = "wo"
TARGET_PARTICIPLE: Final = "ji"

# By gender (masculine, feminine, neuter), then plural.
_DEFINITE: Final = (("bo", "boza"), ("ba", "baza"), ("bu", "buza"))
_INDEFINITE: Final = (("he", "hefa"), ("ha", "hafa"), ("hu", "hufa"))
_NOUN_ENDING: Final = (("", "be"), ("", "vi"), ("", "ga"))
_ADJECTIVE_ENDING: Final = (("vo", "vebo"), ("ga", "gebo"), ("du", "debo"))
_SUBJECT_RELATIVE: Final = (("zo", "zobe"), ("za", "zabe"), ("zu", "zube"))
_OBJECT_RELATIVE: Final = (("zi", "zibe"), ("ze", "zebe"), ("zi", "zibe"))
_AUXILIARY: Final = (("wido", "wide"), ("wida", "wide"), ("widu", "wide"))
_PRONOUN: Final = (("fo", "fobe"), ("fa", "fabe"), ("fu", "fube"))
_VERB_ENDING: Final = ("fe", "zu")


@final
@dataclass(frozen=True)
class Sense:
    """A translation of a noun."""

    stem: str

    gender: int
    """The place in the tables of forms."""


@final
@dataclass(frozen=True)
class Noun:
    """Holds one sense, or two of which the governing verb's topic chooses."""

    source: str

    senses: tuple[Sense, ...]

    animate: bool

    def sense_for(self, topic: int) -> Sense:
        return self.senses[topic % len(self.senses)]


@final
@dataclass(frozen=True)
class Verb:
    """Holds one translation, or two of which the object chooses."""

    source: str

    senses: tuple[str, ...]

    topic: int
    """Chooses the sense of the nouns of the verb's clause; 0 or 1."""

    def sense_for(self, obj: NounPhrase | None) -> str:
        animate = obj is not None and obj.noun.animate

        return self.senses[int(animate) % len(self.senses)]


@final
@dataclass(frozen=True)
class Word:
    """A word that never changes, or the stem of an adjective."""

    source: str

    target: str


@final
@dataclass(frozen=True)
class NounPhrase:
    noun: Noun

    definite: bool = True

    plural: bool = False

    adjective: Word | None = None

    relative: Relative | None = None


@final
@dataclass(frozen=True)
class Relative:
    verb: Verb

    other: NounPhrase
    """The object if the head noun is the subject, otherwise the subject."""

    head_is_subject: bool

    past: bool = False

    def roles(self, head: NounPhrase, topic: int) -> tuple[NounPhrase, NounPhrase, int]:
        """Returns object, subject, and the topic that chooses the subject's sense."""
        # The head keeps the sense, and so the gender, that the outer verb gave it.
        if self.head_is_subject:
            return self.other, head, topic

        return head, self.other, self.verb.topic


@final
@dataclass(frozen=True)
class Clause:
    subject: NounPhrase | None
    """``None`` is a pronoun for the subject of the first clause."""

    verb: Verb

    obj: NounPhrase | None = None

    adverb: Word | None = None

    place: tuple[Word, NounPhrase] | None = None

    past: bool = False


@final
@dataclass(frozen=True)
class Sentence:
    """
    A sentence of an invented language and its translation into another.

    The demo and the integration tests need text pairs that anyone can make in a second,
    that a model of a few hundred thousand parameters can learn in a minute or two, and
    that still hold what makes translation hard: word order, agreement, and words whose
    translation depends on another word of the sentence.

    **Words** consist of open syllables. The source draws its consonants from
    ``kplmnrst``, the target from ``bdfghvwz``; no word belongs to both languages. The
    lexicon is fixed and a seed chooses sentences only, so that corpora of different
    seeds can be mixed. Words of one class follow a Zipf-like distribution, hence some
    are rare in the training text.

    **Grammar.** ``[...]`` is optional, ``|`` separates alternatives, and a hyphen joins
    a stem and its ending::

        source
        S     ->  C [mi (C | C')]
        C     ->  [ADV] NP V[-to] [NP] [PREP NP]
        C'    ->  (lu | luki) V[-to] [NP]
        NP    ->  (ta | pe) [ADJ] N[-ki] [so V[-to] NP | so NP V[-to]]

        target
        S     ->  C [wo (C | C')]
        C     ->  NP FIN [PREP NP] [NP] [V-ji]
        C     ->  ADV FIN NP [PREP NP] [NP] [V-ji]
        C'    ->  PRON FIN [NP] [V-ji]
        FIN   ->  V-NUM | AUX
        NP    ->  ART N[-PL] [ADJ-AGR] [REL NP (V-NUM | V-ji AUX)]

    - *Word order.* The source is subject-verb-object throughout. The target puts the
      finite verb second in a main clause, also behind a leading adverb, and last in a
      relative clause. The place comes before the object, an adjective after its noun.
      The past (source ``-to``) is an auxiliary in the place of the finite verb and a
      participle (``-ji``) at the end of the clause. The relative clauses ``so V NP`` and
      ``so NP V`` have one order in the target: only the pronoun tells them apart.
    - *Agreement.* A target noun is masculine, feminine or neuter. Gender and number
      decide the article, the plural ending, the ending of the adjective, the relative
      pronoun, the auxiliary, and the pronoun that stands for the subject of the first
      clause. A verb agrees with its subject in number. The source marks nothing but the
      plural (``-ki``) and the past.
    - *Ambiguity.* Some source nouns have two translations of different gender; the verb
      of their clause chooses, if need be from behind a relative clause. Some source
      verbs have two as well; an animate object chooses the one, an inanimate object or
      none the other.
    """

    first: Clause

    second: Clause | None = None

    def source(self) -> str:
        """Returns the words of the source, separated by spaces."""
        return self.write(_source_clause, _SOURCE_AND)

    def target(self) -> str:
        """Returns the words of the only correct translation."""
        return self.write(_target_clause, _TARGET_AND)

    def write(
        self, clause: Callable[[Clause, NounPhrase, int], list[str]], conjunction: str
    ) -> str:
        """
        Writes the sentence in some language.

        :param clause: Writes a clause, whose pronoun stands for a noun phrase in the
            sense of a topic: the subject of the first clause, as its verb has it.
        """
        assert self.first.subject is not None

        antecedent = self.first.subject, self.first.verb.topic

        words = clause(self.first, *antecedent)

        if self.second is not None:
            words += [conjunction] + clause(self.second, *antecedent)

        return " ".join(words)


def _source_clause(clause: Clause, antecedent: NounPhrase, _: int) -> list[str]:
    words = [] if clause.adverb is None else [clause.adverb.source]

    if clause.subject is not None:
        words += _source_noun_phrase(clause.subject)
    else:
        words.append(_SOURCE_PRONOUN + _SOURCE_PLURAL * antecedent.plural)

    words.append(clause.verb.source + _SOURCE_PAST * clause.past)

    if clause.obj is not None:
        words += _source_noun_phrase(clause.obj)

    if clause.place is not None:
        words += [clause.place[0].source] + _source_noun_phrase(clause.place[1])

    return words


def _source_noun_phrase(phrase: NounPhrase) -> list[str]:
    words = [_SOURCE_DEFINITE if phrase.definite else _SOURCE_INDEFINITE]

    if phrase.adjective is not None:
        words.append(phrase.adjective.source)

    words.append(phrase.noun.source + _SOURCE_PLURAL * phrase.plural)

    relative = phrase.relative

    if relative is not None:
        words.append(_SOURCE_RELATIVE)

        verb = [relative.verb.source + _SOURCE_PAST * relative.past]

        if relative.head_is_subject:
            words += verb + _source_noun_phrase(relative.other)
        else:
            words += _source_noun_phrase(relative.other) + verb

    return words


def _target_clause(
    clause: Clause, antecedent: NounPhrase, antecedent_topic: int
) -> list[str]:
    topic = clause.verb.topic

    if clause.subject is not None:
        subject = _target_noun_phrase(clause.subject, topic)

        forms = _target_verb(clause, clause.obj, clause.subject, topic)
    else:
        gender = antecedent.noun.sense_for(antecedent_topic).gender

        subject = [_PRONOUN[gender][antecedent.plural]]

        forms = _target_verb(clause, clause.obj, antecedent, antecedent_topic)

    finite, *participle = forms

    if clause.adverb is not None:
        words = [clause.adverb.target, finite] + subject
    else:
        words = subject + [finite]

    if clause.place is not None:
        words += [clause.place[0].target] + _target_noun_phrase(clause.place[1], topic)

    if clause.obj is not None:
        words += _target_noun_phrase(clause.obj, topic)

    return words + participle


def _target_verb(
    clause: Clause | Relative, obj: NounPhrase | None, subject: NounPhrase, topic: int
) -> list[str]:
    """Returns the finite verb and, in the past, the participle."""
    stem = clause.verb.sense_for(obj)

    if clause.past:
        gender = subject.noun.sense_for(topic).gender

        return [_AUXILIARY[gender][subject.plural], stem + TARGET_PARTICIPLE]

    return [stem + _VERB_ENDING[subject.plural]]


def _target_noun_phrase(phrase: NounPhrase, topic: int) -> list[str]:
    sense = phrase.noun.sense_for(topic)
    gender, plural = sense.gender, phrase.plural

    articles = _DEFINITE if phrase.definite else _INDEFINITE

    words = [articles[gender][plural], sense.stem + _NOUN_ENDING[gender][plural]]

    if phrase.adjective is not None:
        words.append(phrase.adjective.target + _ADJECTIVE_ENDING[gender][plural])

    relative = phrase.relative

    if relative is not None:
        pronouns = _SUBJECT_RELATIVE if relative.head_is_subject else _OBJECT_RELATIVE

        words.append(pronouns[gender][plural])

        words += _target_noun_phrase(relative.other, relative.verb.topic)

        # The finite verb is last.
        words += _target_verb(relative, *relative.roles(phrase, topic))[::-1]

    return words


@final
@dataclass(frozen=True)
class Lexicon:
    nouns: Sequence[Noun]

    transitive_verbs: Sequence[Verb]

    intransitive_verbs: Sequence[Verb]

    adjectives: Sequence[Word]

    adverbs: Sequence[Word]

    prepositions: Sequence[Word]


def make_lexicon() -> Lexicon:
    """Makes the lexicon, which is always the same."""
    rng = Random(_LEXICON_SEED)

    source = make_stems(rng, SOURCE_CONSONANTS, [_SOURCE_PRONOUN + _SOURCE_PLURAL])

    # The function words of more than one syllable; stems have at least two.
    tables = (_DEFINITE, _INDEFINITE, _SUBJECT_RELATIVE, _OBJECT_RELATIVE)

    forms = chain(*chain(*tables, _AUXILIARY, _PRONOUN))

    target = make_stems(rng, TARGET_CONSONANTS, [f for f in forms if len(f) > 2])

    def make_noun(idx: int) -> Noun:
        # Every fourth noun is ambiguous; all of these are things.
        ambiguous, animate = idx % 4 == 1, idx % 4 in (0, 2)

        gender = int(rng.random() * 3)

        senses = [Sense(next(target), gender)]

        if ambiguous:
            other_gender = (gender + 1 + int(rng.random() * 2)) % 3

            senses.append(Sense(next(target), other_gender))

        return Noun(next(source), tuple(senses), animate)

    def make_verb(idx: int, *, transitive: bool) -> Verb:
        # Every third transitive verb is ambiguous.
        num_senses = 2 if transitive and idx % 3 == 1 else 1

        senses = tuple(next(target) for _ in range(num_senses))

        return Verb(next(source), senses, idx % 2)

    def make_words(count: int) -> list[Word]:
        return [Word(next(source), next(target)) for _ in range(count)]

    return Lexicon(
        nouns=[make_noun(i) for i in range(_NUM_NOUNS)],
        transitive_verbs=[
            make_verb(i, transitive=True) for i in range(_NUM_TRANSITIVE_VERBS)
        ],
        intransitive_verbs=[
            make_verb(i, transitive=False) for i in range(_NUM_INTRANSITIVE_VERBS)
        ],
        adjectives=make_words(_NUM_ADJECTIVES),
        adverbs=make_words(_NUM_ADVERBS),
        prepositions=make_words(_NUM_PREPOSITIONS),
    )


def make_stems(rng: Random, consonants: str, taken: Sequence[str]) -> Iterator[str]:
    """Makes stems of which none begins another, so that no form has two readings."""
    syllables = ["".join(s) for s in product(consonants, VOWELS)]

    stems = list(taken)

    while True:
        num_syllables = 2 if rng.random() < 0.7 else 3

        stem = "".join(
            syllables[int(rng.random() * len(syllables))] for _ in range(num_syllables)
        )

        if not any(stem.startswith(s) or s.startswith(stem) for s in stems):
            stems.append(stem)

            yield stem


@final
class SentenceMaker:
    """Draws random sentences of the source language."""

    def __init__(self, seed: int) -> None:
        self._rng = Random(seed)
        self._lexicon = make_lexicon()

    def make(self) -> Sentence:
        """Draws a sentence whose sides have 4 to 14 words."""
        while True:
            sentence = self._make_sentence()

            lengths = [len(s.split()) for s in (sentence.source(), sentence.target())]

            if min(lengths) >= MIN_NUM_WORDS and max(lengths) <= MAX_NUM_WORDS:
                return sentence

    def _make_sentence(self) -> Sentence:
        first = self._make_clause(simple=False)

        if not self._flip(0.3):
            return Sentence(first)

        second = self._make_clause(simple=True)

        if self._flip(0.6):
            second = replace(second, subject=None)

        return Sentence(first, second)

    def _make_clause(self, *, simple: bool) -> Clause:
        is_transitive = self._flip(0.8)

        verb = self._pick(
            self._lexicon.transitive_verbs
            if is_transitive
            else self._lexicon.intransitive_verbs
        )

        adverb, obj, place = None, None, None

        if not simple and self._flip(0.35):
            adverb = self._pick(self._lexicon.adverbs)

        subject = self._make_noun_phrase(relative=not simple and self._flip(0.35))

        # An ambiguous verb may also stand alone.
        if is_transitive and not (len(verb.senses) > 1 and self._flip(0.1)):
            relative = not simple and subject.relative is None and self._flip(0.2)

            obj = self._make_noun_phrase(relative=relative)

        if not simple and self._flip(0.25):
            preposition = self._pick(self._lexicon.prepositions)

            place = (preposition, self._make_noun_phrase(relative=False))

        return Clause(subject, verb, obj, adverb, place, past=self._flip(0.4))

    def _make_noun_phrase(self, *, relative: bool) -> NounPhrase:
        phrase = NounPhrase(
            self._pick(self._lexicon.nouns),
            definite=self._flip(0.6),
            plural=self._flip(0.4),
            adjective=(
                self._pick(self._lexicon.adjectives) if self._flip(0.35) else None
            ),
        )

        if not relative:
            return phrase

        clause = Relative(
            self._pick(self._lexicon.transitive_verbs),
            replace(self._make_noun_phrase(relative=False), adjective=None),
            head_is_subject=self._flip(0.5),
            past=self._flip(0.4),
        )

        return replace(phrase, relative=clause)

    # `random()` is the one method of `Random` whose values Python promises to keep.
    def _flip(self, probability: float) -> bool:
        return self._rng.random() < probability

    def _pick(self, items: Sequence[T]) -> T:
        cumulative = list(accumulate(1.0 / (rank + 4) for rank in range(len(items))))

        point = self._rng.random() * cumulative[-1]

        return next(item for item, c in zip(items, cumulative) if point < c)


def write_synthetic_pair(
    folder: Path,
    *,
    num_train: int = 6000,
    num_valid: int = 200,
    num_test: int = 500,
    seed: int = 1,
) -> None:
    """
    Writes ``{train,valid,test}.{src,tgt}``, one sentence a line.

    The content depends on the arguments alone. No source sentence occurs twice, neither
    in one split nor in two.

    :param folder: Created if it does not exist; files in it are overwritten.
    """
    # In this order the test set is the same however much text there is to train on.
    sizes = {"test": num_test, "valid": num_valid, "train": num_train}

    check_sizes(sizes)

    maker = SentenceMaker(seed)

    sentences: dict[str, str] = {}

    while len(sentences) < sum(sizes.values()):
        sentence = maker.make()

        sentences.setdefault(sentence.source(), sentence.target())

    pairs = iter(sentences.items())

    for split, size in sizes.items():
        split_pairs = [next(pairs) for _ in range(size)]

        for lang, side in (("src", 0), ("tgt", 1)):
            write_text(folder / f"{split}.{lang}", [p[side] for p in split_pairs])


def write_text(file: Path, lines: Sequence[str]) -> None:
    """Writes the same bytes on every system, and the folder if there is none."""
    try:
        write_text_atomically(file, "".join(line + "\n" for line in lines))
    except OSError as ex:
        raise WarmupError(
            f"The synthetic text cannot be written to {file.parent} ({ex.strerror}); "
            "give a folder that you may write to."
        ) from None


def check_sizes(sizes: Mapping[str, int]) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise WarmupError(
                f"`num_{name}` must be greater than or equal to 1, but is {size}."
            )
