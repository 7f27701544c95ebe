# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
Puts off the cards of fairseq2's models, tokenizers and data until one is asked for.

Whatever loads a model or a tokenizer gets them all, half a second of YAML, also where both
are named by their paths, as in every run of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from functools import cached_property, partial
from typing import final

from fairseq2.assets import AssetCard, AssetStore
from fairseq2.runtime.dependency import DependencyContainer
from typing_extensions import override

from warmup_plugin.fairseq2_doors import take_provider


def register_late_assets(container: DependencyContainer) -> None:
    """Puts our store of cards in front of fairseq2's."""
    load = take_provider(container, AssetStore)

    if load is None:
        return

    container.register(
        AssetStore,
        lambda resolver: LateAssetStore(partial(load, resolver)),
        singleton=True,
    )


@final
class LateAssetStore(AssetStore):
    """Reads the cards when one is asked for; errors in them show only then."""

    def __init__(self, load: Callable[[], AssetStore]) -> None:
        self._load = load

    @cached_property
    def _store(self) -> AssetStore:
        return self._load()

    @override
    def retrieve_card(self, name: str) -> AssetCard:
        return self._store.retrieve_card(name)

    @override
    def maybe_retrieve_card(self, name: str) -> AssetCard | None:
        return self._store.maybe_retrieve_card(name)

    @override
    def find_cards(self, field: str, value: object) -> Iterator[AssetCard]:
        return self._store.find_cards(field, value)

    @property
    @override
    def asset_names(self) -> Set[str]:
        return self._store.asset_names
