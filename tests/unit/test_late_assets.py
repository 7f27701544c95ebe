# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from typing import cast

from fairseq2.assets import AssetCard, AssetStore, StandardAssetStore
from fairseq2.assets.metadata_provider import CachedAssetMetadataProvider
from fairseq2.runtime.dependency import (
    DependencyContainer,
    DependencyResolver,
    get_dependency_resolver,
)

from warmup_plugin.late_assets import LateAssetStore, register_late_assets


def test_cards_are_read_when_one_is_asked_for() -> None:
    num_reads = 0

    def load(resolver: DependencyResolver) -> AssetStore:
        nonlocal num_reads

        num_reads += 1

        cards: dict[str, dict[str, object]] = {"mine@": {"kind": "model"}}

        return StandardAssetStore([CachedAssetMetadataProvider("here", cards)])

    container = DependencyContainer()

    container.register(AssetStore, load, singleton=True)

    register_late_assets(container)

    store = container.resolve(AssetStore)

    assert num_reads == 0

    assert store.retrieve_card("mine").name == "mine"
    assert cast(AssetCard, store.maybe_retrieve_card("mine")).name == "mine"
    assert store.maybe_retrieve_card("yours") is None
    assert [card.name for card in store.find_cards("kind", "model")] == ["mine"]
    assert store.asset_names == {"mine@"}

    assert num_reads == 1


def test_it_is_the_store_of_fairseq2() -> None:
    assert isinstance(get_dependency_resolver().resolve(AssetStore), LateAssetStore)
