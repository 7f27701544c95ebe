# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from warmup_plugin.blank import is_blank
from warmup_plugin.data.preparation.hash_set import HashSet, hash_text
from warmup_plugin.data.preparation.text import HeldOutText, clean_line, measure_len
from warmup_plugin.errors import WarmupError
from warmup_plugin.metrics.language_id import LanguageIdentifier

DUPLICATES: Final = ("pair", "source", "target", "either", "none")

_BATCH_SIZE: Final = 1 << 16


@dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """Configures which pairs are kept; the defaults are mild."""

    min_len: float = 1.0
    """
    The shortest length of a side in words. A character of Chinese or Japanese counts as
    half a word, here and below.
    """

    max_len: float = 250.0
    """The greatest length of a side in words."""

    max_ratio: float = 3.0
    """The greatest ratio of the lengths of the two sides."""

    keep_identical: bool = False
    """If ``True``, keeps pairs whose target is a copy of their source."""

    duplicates: str = "pair"
    """
    Of what only the first is kept: equal pairs (``pair``), pairs with an equal
    ``source``, ``target``, or ``either`` of them; or ``none`` is dropped.
    """

    language_id_min_len: float = 6.0
    """
    The shortest length in words of a text whose language is looked at. Shorter ones are
    kept: of the 60 sentences of newstest2013 (en, de) for which py3langid 0.4.0 names
    another language, 54 are shorter.
    """

    def check(self) -> None:
        """Raises an error if a value makes no sense."""
        if self.min_len < 0 or self.max_len < max(self.min_len, 1):
            raise WarmupError(
                f"`--min-len` {self.min_len:g} and `--max-len` {self.max_len:g} leave no pairs: the first must be at least 0, the second at least 1 and not below the first."
            )

        if self.max_ratio < 1:
            raise WarmupError(
                f"`--max-ratio` must be at least 1, but is {self.max_ratio:g} instead: 3 lets one side have three times the words of the other."
            )

        if self.duplicates not in DUPLICATES:
            names = ", ".join(f"`{name}`" for name in DUPLICATES)

            raise WarmupError(
                f"`--duplicates` must be one of {names}, but is `{self.duplicates}` instead."
            )


# The reasons why a pair is dropped, in the order of the tests.
REASONS: Final = (
    "an empty side",
    "too short or too long",
    "sides of very different length",
    "target is a copy of the source",
    "occurs in a held-out set",
    "duplicate",
    "another language",
)

_EMPTY, _LENGTH, _RATIO, _IDENTICAL, _HELD_OUT, _DUPLICATE, _LANGUAGE = REASONS


@final
class PairFilter:
    """
    Drops pairs that are of no use for training, and those of held-out sets.

    It streams: besides a batch, it holds 8 bytes for each pair it has kept.
    """

    def __init__(
        self,
        config: FilterConfig,
        source_lang: str,
        target_lang: str,
        *,
        held_out: HeldOutText | None = None,
        identifier: LanguageIdentifier | None = None,
    ) -> None:
        config.check()

        self._config = config
        self._source_lang = source_lang
        self._target_lang = target_lang
        # Not `or`: what is still empty is filled before the text is read.
        self._held_out = held_out if held_out is not None else HeldOutText()
        self._identifier = identifier

        self._seen: dict[str, HashSet] = {}

        self._num_read = 0
        self._num_kept = 0
        self._num_dropped = {reason: 0 for reason in REASONS}
        self._num_held_out = {"source": 0, "target": 0}

    def filter(self, pairs: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
        """
        Filters pairs; called again, it still knows those of earlier calls.

        :returns: The pairs kept, each side in one line with single spaces.
        """
        iterator = iter(pairs)

        while batch := list(islice(iterator, _BATCH_SIZE)):
            yield from self._filter_batch(batch)

    def counts(self) -> dict[str, int]:
        """Returns how many pairs were read, dropped for which reason, and kept."""
        counts = {"pairs read": self._num_read}

        for reason, num_dropped in self._num_dropped.items():
            counts[f"dropped: {reason}"] = num_dropped

            if reason == _HELD_OUT:
                # Some pairs count for both sides.
                for side, num_pairs in self._num_held_out.items():
                    counts[f"- by its {side}"] = num_pairs

        counts["pairs kept"] = self._num_kept

        return counts

    def describe(self) -> dict[str, Any]:
        """Returns all that the result depends on besides the text."""
        identifier = self._identifier

        return {
            "source_lang": self._source_lang,
            "target_lang": self._target_lang,
            **asdict(self._config),
            "language_id": identifier.name if identifier is not None else "none",
        }

    def _filter_batch(self, batch: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
        self._num_read += len(batch)

        candidates = []

        for raw_source, raw_target in batch:
            source, target = clean_line(raw_source), clean_line(raw_target)

            reason = self._judge(source, target)

            if reason is None:
                candidates.append((source, target))
            else:
                self._num_dropped[reason] += 1

        is_new = self._find_new(candidates)

        for idx, (source, target) in enumerate(candidates):
            if not is_new[idx]:
                self._num_dropped[_DUPLICATE] += 1
            # Last, since it takes longest.
            elif not self._has_right_languages(source, target):
                self._num_dropped[_LANGUAGE] += 1
            else:
                self._num_kept += 1

                yield source, target

    def _judge(self, source: str, target: str) -> str | None:
        config = self._config

        if is_blank(source) or is_blank(target):
            return _EMPTY

        lens = measure_len(source), measure_len(target)

        if min(lens) < config.min_len or max(lens) > config.max_len:
            return _LENGTH

        if max(lens) > config.max_ratio * min(lens):
            return _RATIO

        if source == target and not config.keep_identical:
            return _IDENTICAL

        in_source, in_target = source in self._held_out, target in self._held_out

        self._num_held_out["source"] += in_source
        self._num_held_out["target"] += in_target

        return _HELD_OUT if in_source or in_target else None

    def _find_new(self, pairs: list[tuple[str, str]]) -> NDArray[np.bool_]:
        is_new = np.ones(len(pairs), dtype=np.bool_)

        keys: dict[str, Callable[[tuple[str, str]], str]] = {
            # No text holds a line feed any more.
            "pair": "\n".join,
            "source": lambda pair: pair[0],
            "target": lambda pair: pair[1],
        }

        duplicates = self._config.duplicates

        names = {"none": [], "either": ["source", "target"]}.get(
            duplicates, [duplicates]
        )

        for name in names:
            seen = self._seen.setdefault(name, HashSet())

            hashes = np.fromiter(
                (hash_text(keys[name](pair)) for pair in pairs),
                dtype=np.uint64,
                count=len(pairs),
            )

            is_new &= seen.add(hashes)

        return is_new

    def _has_right_languages(self, source: str, target: str) -> bool:
        if self._identifier is None:
            return True

        for text, lang in ((source, self._source_lang), (target, self._target_lang)):
            if measure_len(text) < self._config.language_id_min_len:
                continue

            if not self._identifier.is_in(text, lang):
                return False

        return True
