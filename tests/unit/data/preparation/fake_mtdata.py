# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
Stands for mtdata, which tests need not have: the parts of it that we use.

It behaves as mtdata 0.5.1 does, but knows only plain text in tar archives.
"""

from __future__ import annotations

import json
from pathlib import Path

_DEV = "http://data.statmt.org/wmt20/translation-task/dev.tgz"

# Names, URLs and paths as in mtdata.
DATA_SETS = {
    "Statmt-commoncrawl_wmt13-1-deu-eng": (
        "http://www.statmt.org/wmt13/training-parallel-commoncrawl.tgz",
        "commoncrawl.de-en.de",
        "commoncrawl.de-en.en",
    ),
    "Statmt-europarl_wmt13-7-deu-eng": (
        "http://www.statmt.org/wmt13/training-parallel-europarl-v7.tgz",
        "training/europarl-v7.de-en.de",
        "training/europarl-v7.de-en.en",
    ),
    "Statmt-newstest-2012-eng-deu": (
        _DEV,
        "dev/newstest2012.en",
        "dev/newstest2012.de",
    ),
    "Statmt-newstest-2013-eng-deu": (
        _DEV,
        "dev/newstest2013.en",
        "dev/newstest2013.de",
    ),
}

RECIPE = {
    "train": ["Statmt-europarl_wmt13-7-deu-eng"],
    "dev": ["Statmt-newstest-2012-eng-deu"],
    "test": ["Statmt-newstest-2013-eng-deu"],
}

_MODULES = {
    "__init__.py": '__version__ = "0.5.1"\n',
    "entry.py": """
class DatasetId(str):
    @classmethod
    def parse(cls, text):
        if not 4 <= len(text.split("-")) <= 5:
            raise Exception(f"Dataset ID expected, but given {text}")

        return cls(text)
""",
    "index.py": """
import json
from pathlib import Path
from types import SimpleNamespace

INDEX = {
    name: SimpleNamespace(
        did=name, url=url, filename=url.split("/")[-1], in_ext="txt", in_paths=paths
    )
    for name, (url, *paths) in json.loads(
        Path(__file__).with_name("index.json").read_text()
    ).items()
}
""",
    "cache.py": """
from urllib.parse import urlparse


class Cache:
    def __init__(self, root):
        self.root = root

    def get_local_path(self, url, filename=None, fix_missing=True, entry=None):
        assert not fix_missing

        return self.root / urlparse(url).hostname / filename

    def get_flag_file(self, file):
        return file.with_name(file.name + "._valid")
""",
    "iso.py": """
def iso3_code(lang):
    return {"en": "eng", "de": "deu", "cs": "ces", "eng": "eng"}.get(lang)
""",
    "recipe.py": """
import json
import os
from pathlib import Path
from types import SimpleNamespace

RECIPES = {
    "vaswani_etal_2017_ende": SimpleNamespace(
        **json.loads(Path(__file__).with_name("recipe.json").read_text())
    )
}

# Of those of users, JSON, which is YAML as well.
for file in Path(os.environ.get("MTDATA_RECIPES", ".")).glob("mtdata.recipes*.yml"):
    for recipe in json.loads(file.read_text()):
        RECIPES[recipe["id"]] = SimpleNamespace(
            langs=recipe["langs"].split("-"), train=recipe["train"], dev=None, test=None
        )
""",
    "__main__.py": """
import argparse
import os
import tarfile
from pathlib import Path

from mtdata.cache import Cache
from mtdata.index import INDEX

parser = argparse.ArgumentParser()
parser.add_argument("--no-pbar", action="store_true")
get = parser.add_subparsers().add_parser("get")
get.add_argument("--langs", required=True)
get.add_argument("--train", nargs="*", default=[])
get.add_argument("--test", nargs="*", default=[])
get.add_argument("--fail", action="store_true")
get.add_argument("--out", type=Path)

args = parser.parse_args()

cache = Cache(Path(os.environ["MTDATA"]))

for folder, names in (("train-parts", args.train), ("tests", args.test)):
    for name in names:
        out = args.out / folder
        out.mkdir(parents=True, exist_ok=True)

        flag = out / f".valid.{name}"

        if flag.exists():
            continue

        print("lines of", name, flush=True)

        entry = INDEX[name]
        archive = cache.get_local_path(entry.url, entry.filename, fix_missing=False)

        if not cache.get_flag_file(archive).exists():
            raise Exception("the network is not there")

        texts = []

        with tarfile.open(archive) as tar:
            for path in entry.in_paths:
                texts.append(tar.extractfile(path).read().decode().splitlines())

        if folder == "train-parts":
            texts = zip(*(pair for pair in zip(*texts) if all(pair)))

        for lang, lines in zip(name.split("-")[-2:], texts):
            (out / f"{name}.{lang}").write_text("".join(f"{x}\\n" for x in lines))

        flag.touch()
""",
}


def write_fake_mtdata(folder: Path) -> None:
    """Writes a package ``mtdata`` into a folder that is to be on the path."""
    package = folder / "mtdata"

    package.mkdir(parents=True)

    for name, text in _MODULES.items():
        package.joinpath(name).write_text(text)

    package.joinpath("index.json").write_text(json.dumps(DATA_SETS))
    package.joinpath("recipe.json").write_text(json.dumps(RECIPE))
