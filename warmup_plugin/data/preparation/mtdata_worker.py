# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
Asks mtdata where data sets are. It runs in whichever Python has mtdata, so it imports
nothing of warmup_plugin. ::

    python mtdata_worker.py CACHE < IDS.json > CATALOGUE.json
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any


def main() -> int:
    mtdata: Any = import_module("mtdata")
    index: Any = import_module("mtdata.index")
    entry_module: Any = import_module("mtdata.entry")
    cache_module: Any = import_module("mtdata.cache")
    iso: Any = import_module("mtdata.iso")

    cache = cache_module.Cache(Path(sys.argv[1]))

    request = json.load(sys.stdin)

    # ``None`` for a language that mtdata does not know.
    codes = {lang: iso.iso3_code(lang) for lang in request["langs"]}

    recipe = {}

    if request["recipe"]:
        recipe = _get_recipe(request["recipe"])
    elif request["recipes"]:
        recipe = _find_recipe(request["recipes"], list(codes.values()))

    downloads = {}

    unknown = []

    wanted = [*request["ids"]]

    if "unknown" not in recipe:
        wanted += [name for names in recipe.values() for name in names]

    for name in wanted:
        try:
            entry = index.INDEX[entry_module.DatasetId.parse(name)]
        # mtdata raises plain exceptions for what it does not know.
        except Exception:
            unknown.append(name)

            continue

        downloads[name] = _list_downloads(cache, entry)

    catalogue = {
        "version": mtdata.__version__,
        "codes": codes,
        "recipe": recipe,
        "downloads": downloads,
        "unknown": unknown,
    }

    json.dump(catalogue, sys.stdout)

    return 0


def _get_recipe(name: str) -> dict[str, list[str]]:
    recipes: Any = import_module("mtdata.recipe").RECIPES

    recipe = recipes.get(name)

    if recipe is None:
        return {"unknown": sorted(recipes)}

    return _list_parts(recipe)


def _find_recipe(prefix: str, codes: list[str | None]) -> dict[str, list[str]]:
    """Finds the recipe of two languages among those whose names begin so."""
    recipes: Any = import_module("mtdata.recipe").RECIPES

    # In most years one serves both directions.
    for wanted in (codes, codes[::-1]):
        for name, recipe in recipes.items():
            if name.startswith(prefix) and [str(x) for x in recipe.langs] == wanted:
                return _list_parts(recipe)

    return {"unknown": sorted(name for name in recipes if name.startswith(prefix))}


def _list_parts(recipe: Any) -> dict[str, list[str]]:
    return {
        part: [str(did) for did in getattr(recipe, part) or []]
        for part in ("train", "dev", "test")
    }


def _list_downloads(cache: Any, entry: Any) -> list[dict[str, str]]:
    """Lists what to download where, as far as it is a plain file."""
    if not isinstance(entry.url, str) or "huggingface.co" in entry.url:
        return []

    if entry.in_ext == "opus_xces":
        return []

    path = cache.get_local_path(
        entry.url, filename=entry.filename, fix_missing=False, entry=entry
    )

    return [
        {"url": entry.url, "path": str(path), "flag": str(cache.get_flag_file(path))}
    ]


if __name__ == "__main__":
    sys.exit(main())
