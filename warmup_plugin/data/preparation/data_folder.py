# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final, final

from warmup_plugin import __version__
from warmup_plugin.data.preparation.files import (
    count_lines,
    hash_file,
    make_folder,
    write_text,
    write_texts,
)
from warmup_plugin.errors import WarmupError
from warmup_plugin.parsing import parse_json

CARD_FILE: Final = "DATA.json"
"""What programs read of a data folder."""

CARD_PAGE: Final = "DATA.md"
"""The same for people."""

_FORMAT: Final = 1


@dataclass(kw_only=True)
class Origin:
    """Says where data comes from and what may be done with it."""

    title: str

    page: str
    """The page of the data set, for people."""

    version: str

    license: str

    citation: str = ""


@dataclass(kw_only=True)
class Inputs:
    """
    Holds all that the files of an entry depend on.

    As long as it is the same and the files match their checksums, there is nothing to do.
    """

    sources: dict[str, str] = field(default_factory=dict)
    """The checksum of each file that was read, by its URL or path."""

    settings: dict[str, Any] = field(default_factory=dict)


@final
class DataFolder:
    """
    A folder of prepared data, with a card that says what each file is.

    The card has an entry for each data set; a folder may hold the training text of one
    and the test set of another. An entry is written before its files, so that what a
    killed run leaves is known to be unfinished.
    """

    def __init__(
        self, path: Path, command: Sequence[str], *, force: bool = False
    ) -> None:
        """
        :param path: The folder; it is made when there is something to write.
        :param command: The command that prepares it, for the card.
        :param force: If ``True``, files that come from elsewhere are replaced.
        """
        if path.exists() and not path.is_dir():
            raise WarmupError(
                f"`{path}` is a file: name a folder to write the data to."
            )

        self.path = path
        self._command = shlex.join(command)
        self._force = force
        self._entries = self._read_entries()
        self._new_keys: set[str] = set()

    def is_done(self, key: str, inputs: Inputs) -> bool:
        """Returns ``True`` if the files of an entry are there, intact and up to date."""
        entry = self._entries.get(key)

        if entry is None or not entry["finished"]:
            return False

        # Another version may filter or format differently.
        if entry["warmup_plugin"] != __version__:
            return False

        if entry["inputs"] != _to_json(inputs):
            return False

        return self._is_intact(entry)

    def get_files(self, key: str) -> list[str]:
        """Returns the names of the files of an entry, none if there is no such entry."""
        return list(self._entries[key]["files"]) if key in self._entries else []

    def start(self, key: str, inputs: Inputs, names: Iterable[str]) -> None:
        """
        Announces the files of an entry, so that they may be written.

        Files that are there and that no earlier entry of this key announced are only
        replaced if the folder was opened with ``force``.
        """
        make_folder(self.path)

        own = set(self.get_files(key))

        names = sorted(names)

        if not self._force:
            for name in names:
                if name not in own and self.path.joinpath(name).exists():
                    raise WarmupError(
                        f"`{self.path / name}` exists and is not of {key}: name another folder, or replace the file with `--force`."
                    )

        self._entries[key] = {
            "finished": False,
            "inputs": _to_json(inputs),
            # What an earlier run of the same key wrote stays its own.
            "files": {name: {} for name in sorted(own | set(names))},
        }

        self._write()

    def finish(
        self,
        key: str,
        names: Iterable[str],
        *,
        origin: Origin,
        counts: Mapping[str, int],
        notes: Sequence[str] = (),
    ) -> None:
        """
        Completes an entry after its files were written.

        :param counts: What was counted, in order, such as pairs before and after a step.
        :param notes: Sentences that whoever uses the data should know.
        """
        entry = self._entries[key]

        entry.update(
            finished=True,
            origin=asdict(origin),
            counts=dict(counts),
            notes=list(notes),
            files={name: self._describe(name) for name in sorted(names)},
            command=self._command,
            date=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            warmup_plugin=__version__,
        )

        # A file has one origin; whose it was before no longer vouches for it.
        for other_key, other in list(self._entries.items()):
            if other_key == key:
                continue

            for name in entry["files"]:
                other["files"].pop(name, None)

            if not other["files"]:
                del self._entries[other_key]

        self._new_keys.add(key)

        self._write()

    def write_lines(
        self,
        inputs: Inputs,
        texts: Mapping[str, Sequence[str]],
        *,
        origin: Origin,
        counts: Mapping[str, int],
        notes: Sequence[str] = (),
    ) -> None:
        """
        Writes the files of an entry, beside those of earlier runs, which stay.

        :param texts: The lines of each file.

        The other arguments are those of :meth:`start` and :meth:`finish`.
        """
        key = origin.title

        earlier = [n for n in self.get_files(key) if self.path.joinpath(n).is_file()]

        self.start(key, inputs, texts)

        with write_texts([self.path / name for name in texts]) as files:
            for lines, file in zip(texts.values(), files):
                file.writelines(f"{line}\n" for line in lines)

        self.finish(key, {*texts, *earlier}, origin=origin, counts=counts, notes=notes)

    def summarize(self, key: str) -> str:
        """Returns what the console shows of an entry: licence, counts and files."""
        entry = self._entries[key]

        state = "written" if key in self._new_keys else "there already, intact"

        lines = [f"{key} (licence: {entry['origin']['license']}): {state}"]

        width = max(map(len, entry["counts"]), default=0)

        lines += [
            f"  {name:<{width}}  {num:>11,}" for name, num in entry["counts"].items()
        ]

        lines += [f"  {note}" for note in entry["notes"]]

        files = ", ".join(entry["files"])

        lines.append(f"{self.path}: {files}; {CARD_PAGE} says where they come from")

        return "\n".join(lines)

    def _is_intact(self, entry: dict[str, Any]) -> bool:
        return all(
            self.path.joinpath(name).is_file()
            and hash_file(self.path / name) == description.get("sha256")
            for name, description in entry["files"].items()
        )

    def _describe(self, name: str) -> dict[str, Any]:
        file = self.path.joinpath(name)

        return {"lines": count_lines(file), "sha256": hash_file(file)}

    def _read_entries(self) -> dict[str, dict[str, Any]]:
        file = self.path.joinpath(CARD_FILE)

        if not file.exists():
            return {}

        try:
            card = parse_json(file.read_text(encoding="utf-8"))

            if card["format"] != _FORMAT:
                raise ValueError(f"format {card['format']}")

            entries = card["entries"]

            for entry in entries.values():
                # All that is read below.
                entry["finished"], entry["inputs"]

                if not all(isinstance(f, dict) for f in entry["files"].values()):
                    raise TypeError("a file without description")

                if entry["finished"]:
                    _format_entry(entry)

            return dict(entries)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as ex:
            raise WarmupError(
                f"`{file}` is not a data card of this version ({ex}): name another folder, or delete the file to prepare the data anew."
            ) from None

    def _write(self) -> None:
        card = {"format": _FORMAT, "entries": self._entries}

        text = json.dumps(card, ensure_ascii=False, indent=2) + "\n"

        write_text(self.path / CARD_FILE, text)

        write_text(self.path / CARD_PAGE, format_page(self._entries))


def format_page(entries: Mapping[str, dict[str, Any]]) -> str:
    """Formats the entries of a card for people."""
    parts = [
        "# Data\n\nWritten by `warmup_plugin`; `DATA.json` has the same for programs.\n"
    ]

    for key, entry in entries.items():
        parts.append(f"## {key}\n")

        if not entry["finished"]:
            parts.append(
                "**Unfinished.** The run that should write these files was stopped; run the same command again.\n"
            )

            continue

        parts.append(_format_entry(entry))

    return "\n".join(parts)


def _format_entry(entry: dict[str, Any]) -> str:
    origin = entry["origin"]

    rows = [
        ("data set", origin["title"]),
        ("page", origin["page"]),
        ("version", origin["version"]),
        ("licence", origin["license"]),
        ("to cite", origin["citation"] or "see the page"),
        ("prepared", f"{entry['date']}, warmup_plugin {entry['warmup_plugin']}"),
        ("command", f"`{entry['command']}`"),
    ]

    settings = entry["inputs"]["settings"]

    rows += [
        (f"setting `{name}`", f"`{json.dumps(value, ensure_ascii=False)}`")
        for name, value in settings.items()
    ]

    text = _format_table(("", ""), rows)

    for note in entry["notes"]:
        text += f"\n{note}\n"

    counts = [(name, f"{value:,}") for name, value in entry["counts"].items()]

    if counts:
        text += "\n" + _format_table(("counts", ""), counts)

    files = [
        (f"`{name}`", f"{file['lines']:,}", f"`{file['sha256']}`")
        for name, file in entry["files"].items()
    ]

    text += "\n" + _format_table(("file", "lines", "SHA-256"), files)

    sources = [
        (f"`{name}`", f"`{checksum}`")
        for name, checksum in entry["inputs"]["sources"].items()
    ]

    if sources:
        text += "\n" + _format_table(("made from", "SHA-256"), sources)

    return text


def _format_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]

    # A bar would end a cell.
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]

    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def _to_json(inputs: Inputs) -> dict[str, Any]:
    """Returns the inputs as they are read from a card."""
    value = json.loads(json.dumps(asdict(inputs)))

    assert isinstance(value, dict)

    return value
