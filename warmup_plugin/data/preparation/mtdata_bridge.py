# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from warmup_plugin.data.preparation.download import (
    Downloader,
    FileIsMissing,
    hide_secrets,
    read_checksum,
)
from warmup_plugin.data.preparation.files import (
    hash_file,
    hash_files,
    make_folder,
    write_text,
)
from warmup_plugin.errors import WarmupError
from warmup_plugin.files import open_new
from warmup_plugin.parsing import parse_json, read_json
from warmup_plugin.terminal import show

_WORKER: Final = Path(__file__).with_name("mtdata_worker.py")


@final
@dataclass(kw_only=True)
class Catalogue:
    """What mtdata knows of data sets."""

    version: str
    """Of mtdata."""

    codes: dict[str, str]
    """What mtdata calls the languages that it was asked for, such as ``deu``."""

    recipe: dict[str, list[str]]
    """The names of the data sets of a recipe by ``train``, ``dev`` and ``test``."""

    downloads: dict[str, list[dict[str, str]]]
    """The plain files of each data set: where they are, and where mtdata looks for them."""


@final
class Mtdata:
    """
    Runs mtdata, the catalogue of translation data, in a process of its own.

    It says where data sets are and turns their many formats into lines. What is a plain
    file is downloaded by us, since mtdata cannot go on with a broken download; it then
    finds the file in its cache.
    """

    def __init__(
        self,
        python: Path,
        folder: Path,
        downloader: Downloader,
        *,
        wmt_url: str = "https://www.statmt.org",
    ) -> None:
        """
        :param python: The Python that has mtdata.
        :param folder: Where downloads and the files made of them are kept.
        :param wmt_url: The pages of WMT, which has its own recipes for mtdata there.
        """
        self._python = python
        # mtdata runs in there.
        self._folder = folder.resolve()
        self._downloader = downloader
        self._wmt_url = wmt_url

    def get_catalogue(
        self,
        names: Sequence[str],
        *,
        langs: Sequence[str] = (),
        recipe: str | None = None,
        recipes: str | None = None,
        recipe_folder: Path | None = None,
    ) -> Catalogue:
        """
        Looks data sets up.

        :param names: Such as ``Statmt-europarl-10-deu-eng``.
        :param langs: Languages, such as ``de``, whose codes are looked up.
        :param recipe: The name of a recipe of mtdata, whose sets are looked up as well.
        :param recipes: What the names of the recipes begin with of which one is for
            ``langs``.
        :param recipe_folder: Where to look for them.
        """
        make_folder(self._cache)

        catalogue = self._ask_worker(
            {
                "ids": list(names),
                "langs": list(langs),
                "recipe": recipe,
                "recipes": recipes,
            },
            recipe_folder,
        )

        for lang, code in catalogue["codes"].items():
            if code is None:
                raise WarmupError(
                    f"mtdata {catalogue['version']} does not know the language `{lang}`: write its code of two or three letters, such as `de`, or give the paths of files that are there."
                )

        if recipe is not None and "unknown" in catalogue["recipe"]:
            known = ", ".join(f"`{name}`" for name in catalogue["recipe"]["unknown"])

            raise WarmupError(
                f"mtdata {catalogue['version']} has no recipe `{recipe}`: it has {known}; put your own into `mtdata.recipes.yml` and set `MTDATA_RECIPES` to its folder."
            )

        unknown = ", ".join(f"`{name}`" for name in catalogue.pop("unknown"))

        if unknown:
            raise WarmupError(
                f"mtdata {catalogue['version']} does not know {unknown}: look the name up with `mtdata list --id --langs eng-deu`, or give the path of files that are there."
            )

        return Catalogue(**catalogue)

    def get_catalogue_of_year(
        self, source_lang: str, target_lang: str, year: int
    ) -> Catalogue:
        """
        Looks up the recipe that WMT published for its general task of a year, as of 2022.

        Its file is downloaded once. Where the recipe of a direction is missing, that of
        the other one has the same corpora.
        """
        task = f"wmt{year % 100:02}"

        name = f"mtdata.recipes.{task}-constrained.yml"

        url = f"{self._wmt_url}/{task}/mtdata/{name}"

        # mtdata would read those of all years.
        file = self._folder / "recipes" / task / name

        try:
            self._downloader.download(url, file)
        except FileIsMissing:
            raise WarmupError(
                f"WMT has no recipe of {year} for mtdata (looked for `{url}`): give another `--year`, or name data sets with `--train`, `--valid` and `--test`."
            ) from None

        catalogue = self.get_catalogue(
            [],
            langs=[source_lang, target_lang],
            recipes=f"{task}-",
            recipe_folder=file.parent,
        )

        if "unknown" in catalogue.recipe:
            known = ", ".join(f"`{name}`" for name in catalogue.recipe["unknown"])

            raise WarmupError(
                f"WMT has no recipe of {year} for {source_lang}-{target_lang}: it has {known}; give another `--year`, or name data sets with `--train`, `--valid` and `--test`."
            )

        return catalogue

    def fetch(
        self,
        catalogue: Catalogue,
        names: Mapping[str, Sequence[str]],
        source_code: str,
        target_code: str,
    ) -> tuple[dict[str, list[Path]], dict[str, str]]:
        """
        Downloads data sets and turns them into lines, unless that was done.

        :param names: Those to fetch by ``train``, ``dev`` and ``test``: mtdata drops
            empty lines of the first only.
        :param source_code: The language of the sources as mtdata calls it, such as
            ``deu``.

        :returns: The files of sources and of targets of each set, one sentence a line, by
            its name, and the checksum of each file by its URL or path.
        """
        out = self._folder / f"{source_code}-{target_code}"

        make_folder(out)

        sources = self._download(catalogue, names)

        sets = [
            _Set(name, is_train=part == "train")
            for part, part_names in names.items()
            for name in part_names
        ]

        record_file = out / "fetched.json"

        record: dict[str, Any] = read_json(record_file)

        if not isinstance(record, dict):
            record = {}

        stale = []

        for set_ in sets:
            if set_.key in record:
                if _is_intact(record[set_.key], sources[set_.name]):
                    continue

                # By this file mtdata knows that it has made the lines.
                (out / set_.folder / f".valid.{set_.name}").unlink(missing_ok=True)

            stale.append(set_)

        if stale:
            self._make_lines(out, stale, f"{source_code}-{target_code}")

        fetched = {}

        for set_ in sets:
            files = [set_.find_file(out, code) for code in (source_code, target_code)]

            fetched[set_.name] = files

            if set_ in stale:
                record[set_.key] = {
                    "sources": sources[set_.name],
                    "files": hash_files(files),
                }

        write_text(record_file, json.dumps(record, indent=2) + "\n")

        checksums: dict[str, str] = {}

        for set_ in sets:
            # What has no plain download is known by the lines made of it.
            checksums |= sources[set_.name] or record[set_.key]["files"]

        return fetched, checksums

    @property
    def _cache(self) -> Path:
        # An index of mtdata takes 140 MB and half a minute; archives serve many pairs.
        cache = os.environ.get("MTDATA")

        return Path(cache).expanduser() if cache else self._folder / "mtdata"

    def _download(
        self, catalogue: Catalogue, names: Mapping[str, Sequence[str]]
    ) -> dict[str, dict[str, str]]:
        """Downloads what can be. Returns the checksums of each set's files by URL."""
        sources: dict[str, dict[str, str]] = {}

        # Many sets share an archive.
        checksums: dict[str, str] = {}

        for part_names in names.values():
            for name in part_names:
                sources[name] = {}

                for file in catalogue.downloads[name]:
                    url = file["url"]

                    if url not in checksums:
                        checksums[url] = self._download_file(
                            url, Path(file["path"]), Path(file["flag"])
                        )

                    sources[name][hide_secrets(url)] = checksums[url]

        return sources

    def _download_file(self, url: str, path: Path, flag: Path) -> str:
        earlier = read_checksum(path)

        checksum = self._downloader.download(url, path)

        if checksum != earlier:
            # mtdata would go on to read what it had unpacked of another archive.
            path.with_name(f"{path.name}-extracted.valid").unlink(missing_ok=True)

        # By this file mtdata knows that the other is complete.
        flag.touch()

        return checksum

    def _make_lines(self, out: Path, sets: Sequence[_Set], langs: str) -> None:
        args = ["-m", "mtdata", "--no-pbar", "get", "--langs", langs]

        for option, is_train in (("--train", True), ("--test", False)):
            # A set may be validation and test set at once.
            names = list(
                dict.fromkeys(set_.name for set_ in sets if set_.is_train == is_train)
            )

            if names:
                args += [option, *names]

        log_file = out / "mtdata.log"

        show(f"mtdata makes lines of {len(sets)} data sets (log: {log_file})")

        # It may be a link, which would lead elsewhere.
        log_file.unlink(missing_ok=True)

        with open_new(log_file) as log:
            process = subprocess.run(
                [str(self._python), *args, "--fail", "--out", str(out)],
                env=self._env(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

        if process.returncode != 0:
            reason = _get_last_line(log_file.read_text("utf-8", errors="replace"))

            raise WarmupError(
                f"mtdata could not make lines of the data sets ({reason}): see `{log_file}`, and run the same command again to go on."
            )

    def _ask_worker(
        self, request: dict[str, Any], recipe_folder: Path | None
    ) -> dict[str, Any]:
        env = self._env()

        if recipe_folder is not None:
            env["MTDATA_RECIPES"] = str(recipe_folder)

        try:
            process = subprocess.run(
                [str(self._python), str(_WORKER), str(self._cache)],
                env=env,
                input=json.dumps(request),
                capture_output=True,
                text=True,
                encoding="utf-8",
            )
        except OSError as ex:
            raise WarmupError(
                f"`{self._python}` cannot be started ({ex.strerror or ex}): give the Python that has mtdata with `--mtdata-python`."
            ) from None

        if "No module named 'mtdata'" in process.stderr:
            raise WarmupError(
                f"`{self._python}` has no mtdata, which knows where the data sets are: run `pip install 'warmup_plugin[data]'`, name a Python that has it with `--mtdata-python`, or give files that are there with `--train`, `--valid` and `--test`."
            )

        if process.returncode != 0:
            raise WarmupError(
                f"mtdata failed ({_get_last_line(process.stderr)}): try `{self._python} -m mtdata list` to see why."
            )

        answer = parse_json(process.stdout)

        assert isinstance(answer, dict)

        return answer

    def _env(self) -> dict[str, str]:
        return os.environ | {"MTDATA": str(self._cache)}


@final
@dataclass(frozen=True)
class _Set:
    """A data set among the files that mtdata writes."""

    name: str

    is_train: bool
    """Training sets lose their empty lines."""

    @property
    def key(self) -> str:
        return f"{self.folder}/{self.name}"

    @property
    def folder(self) -> str:
        return "train-parts" if self.is_train else "tests"

    def find_file(self, out: Path, code: str) -> Path:
        """Finds the side of a language, also if mtdata adds a script or region to it."""
        folder = out / self.folder

        files = [
            file
            for file in sorted(folder.glob("*"))
            if file.name == f"{self.name}.{code}"
            or file.name.startswith(f"{self.name}.{code}_")
        ]

        if len(files) != 1:
            found = ", ".join(f"`{file.name}`" for file in files) or "none"

            raise WarmupError(
                f"mtdata should have written `{self.name}.{code}` to `{folder}`, but there is {found}: check that the data set has this language."
            )

        return files[0]


def _is_intact(record: dict[str, Any], sources: dict[str, str]) -> bool:
    if record["sources"] != sources:
        return False

    return all(
        Path(file).is_file() and hash_file(Path(file)) == checksum
        for file, checksum in record["files"].items()
    )


def _get_last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]

    return lines[-1] if lines else "without a message"
