# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import http.client
import json
import os
import ssl
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, final
from urllib.parse import urlsplit, urlunsplit

from warmup_plugin import __version__
from warmup_plugin.data.preparation.files import (
    PART_SUFFIX,
    hash_file,
    make_folder,
    write_text,
)
from warmup_plugin.errors import WarmupError
from warmup_plugin.files import open_to_append
from warmup_plugin.parsing import read_json
from warmup_plugin.terminal import show

_USER_AGENT: Final = f"warmup_plugin/{__version__}"

_BLOCK_SIZE: Final = 1 << 18

_REPORT_SECONDS: Final = 15.0

# Of statuses, those that another attempt may not meet.
_PASSING_STATUSES: Final = (408, 425, 429, 500, 502, 503, 504)


class FileIsMissing(WarmupError):
    """Raised where a server has no such file."""


@final
class Downloader:
    """
    Downloads files over HTTP.

    A file appears under its name only when it is complete. A broken download goes on
    where it stopped if the server has the same file still (``Range`` with ``If-Range``),
    and starts again otherwise. Beside each file ``{name}.sha256`` keeps its checksum, in
    the format of ``sha256sum -c``; a file that matches it is not downloaded again.
    """

    def __init__(
        self,
        *,
        token: str | None = None,
        max_failures: int = 5,
        wait_seconds: float = 2.0,
        timeout: float = 60.0,
    ) -> None:
        """
        :param token: The bearer token for the server, if it wants one. It is not sent to
            another server that the first refers to.
        :param max_failures: How often in a row a download may break without a byte more
            than before.
        :param wait_seconds: The pause after the first failure; each further one doubles it.
        :param timeout: The longest silence of a server, in seconds.
        """
        # The error of the library would show it.
        if token is not None and not (token.isascii() and token.isprintable()):
            raise WarmupError(
                "The token for the server holds characters that no token has, such as a line feed: set `HF_TOKEN` anew."
            )

        self._token = token
        self._max_failures = max_failures
        self._wait_seconds = wait_seconds
        self._timeout = timeout

    def download(self, url: str, path: Path, *, sha256: str | None = None) -> str:
        """
        Downloads a file unless it is there and intact.

        :param url: Where the file is.
        :param path: Where it goes.
        :param sha256: The checksum that the file must have, if known.

        :returns: The SHA-256 checksum of the file.
        """
        if not url.startswith(("http://", "https://")):
            raise WarmupError(
                f"`{url}` is not a URL of the web: begin it with `https://`; what is on this machine is given with `--from`."
            )

        if path.exists():
            found = self._check_existing(path, sha256)

            if found is not None:
                return found

        make_folder(path.parent)

        try:
            return self._download(url, path, sha256)
        except OSError as ex:
            # Network errors have become sentences below; this is the disk.
            raise WarmupError(
                f"`{path}` cannot be written ({ex.strerror or ex}): make room or name another folder; what is there already is used."
            ) from None

    def fetch(self, url: str, path: Path) -> dict[str, str]:
        """
        Downloads a file as :meth:`download` does.

        :returns: Its checksum by its URL, for a data card.
        """
        return {hide_secrets(url): self.download(url, path)}

    def _check_existing(self, path: Path, sha256: str | None) -> str | None:
        expected = sha256 or read_checksum(path)

        found = hash_file(path)

        if expected is None:
            # Put there by hand: from now on it is held to what it is.
            write_checksum(path, found)

            return found

        if found == expected:
            return found

        show(f"{path} does not match its checksum and is downloaded again")

        return None

    def _download(self, url: str, path: Path, sha256: str | None) -> str:
        part = _Part(hide_secrets(url), path)

        show(f"downloading {hide_secrets(url)}")

        failures = 0

        while True:
            size = part.size()

            reason = self._fetch(url, part, is_checked=sha256 is not None)

            if reason is None:
                break

            failures = 1 if part.size() > size else failures + 1

            if failures >= self._max_failures:
                raise WarmupError(
                    f"`{hide_secrets(url)}` could not be downloaded ({reason}, {part.size():,} bytes are there): run the same command again to go on, or download the file elsewhere and put it at `{path}`."
                )

            time.sleep(self._wait_seconds * 2 ** (failures - 1))

        found = hash_file(part.path)

        if sha256 is not None and found != sha256:
            part.delete()

            raise WarmupError(
                f"`{hide_secrets(url)}` has the SHA-256 checksum {found} instead of {sha256}: the file there is another one, or it was damaged on the way; run the same command again."
            )

        # In this order: a file never stands without its checksum.
        write_checksum(path, found)

        part.publish()

        show(f"wrote {path} ({path.stat().st_size:,} bytes)")

        return found

    def _fetch(self, url: str, part: _Part, *, is_checked: bool) -> str | None:
        """Fetches what is missing. Returns why it broke off, or ``None``."""
        offset = part.size()

        validator = part.validator()

        # Without either, two halves of different files could be joined unnoticed.
        if offset > 0 and validator is None and not is_checked:
            part.delete()

            offset = 0

        try:
            request = urllib.request.Request(url, headers={"User-Agent": _USER_AGENT})

            if self._token is not None:
                # Unredirected: the servers that a hub refers to are told no secrets.
                request.add_unredirected_header(
                    "Authorization", f"Bearer {self._token}"
                )

            if offset > 0:
                request.add_header("Range", f"bytes={offset}-")

                if validator is not None:
                    request.add_header("If-Range", validator)

            # Not `urlopen`, which keeps the proxies of its first call.
            opener = urllib.request.build_opener()

            with opener.open(request, timeout=self._timeout) as response:
                return self._receive(response, part, offset)
        except urllib.error.HTTPError as ex:
            ex.close()

            if ex.code == 416:
                # What we have is as long as the file or longer: it may be another one.
                part.delete()

                return "the file has changed"

            if ex.code in _PASSING_STATUSES:
                return f"HTTP {ex.code} {ex.reason}"

            kind = FileIsMissing if ex.code == 404 else WarmupError

            raise kind(_explain_status(url, ex)) from None
        except urllib.error.URLError as ex:
            return str(ex.reason)
        except (
            http.client.HTTPException,
            TimeoutError,
            ConnectionError,
            ssl.SSLError,
        ) as ex:
            return str(ex) or type(ex).__name__
        except ValueError as ex:
            # Of the URL, or of one that a server refers to.
            raise WarmupError(
                f"`{hide_secrets(url)}` could not be downloaded, since it is no valid URL or refers to none ({ex}): correct it, give a mirror with `--url`, or the file itself with `--from`."
            ) from None

    def _receive(
        self, response: http.client.HTTPResponse, part: _Part, offset: int
    ) -> str | None:
        total: int | None

        if response.status == 206:
            start, total = _parse_content_range(response.headers.get("Content-Range"))

            if start != offset:
                part.delete()

                return "the server sent another part than asked for"
        else:
            # All of it, from the start.
            offset = 0

            total = _parse_size(response.headers.get("Content-Length"))

            part.start(response)

        reported = time.monotonic()

        with part.open(offset) as fp:
            while block := response.read(_BLOCK_SIZE):
                fp.write(block)

                if time.monotonic() - reported > _REPORT_SECONDS:
                    reported = time.monotonic()

                    of_total = "" if total is None else f" of {total:,}"

                    show(f"  {fp.tell():,}{of_total} bytes")

        if total is not None and part.size() != total:
            if part.size() > total:
                part.delete()

            return f"the connection ended after {part.size():,} of {total:,} bytes"

        return None


@final
@dataclass(frozen=True)
class _Part:
    """The part of a file that is there, and how to know the file again."""

    url: str

    target: Path

    @property
    def path(self) -> Path:
        return self.target.with_name(self.target.name + PART_SUFFIX)

    @property
    def _info_file(self) -> Path:
        return self.target.with_name(f"{self.target.name}{PART_SUFFIX}.json")

    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def validator(self) -> str | None:
        """Returns what the server would have to confirm for the rest to fit."""
        info = read_json(self._info_file)

        if not isinstance(info, dict) or info.get("url") != self.url:
            return None

        validator = info.get("validator")

        return validator if isinstance(validator, str) else None

    def start(self, response: http.client.HTTPResponse) -> None:
        etag = response.headers.get("ETag")

        # A weak one holds for files that differ in their bytes.
        if etag is not None and etag.startswith("W/"):
            etag = None

        validator = etag or response.headers.get("Last-Modified")

        self.delete()

        write_text(
            self._info_file,
            json.dumps({"url": self.url, "validator": validator}) + "\n",
        )

    def open(self, offset: int) -> BinaryIO:
        fp = open_to_append(self.path)

        fp.truncate(offset)

        return fp

    def publish(self) -> None:
        with self.path.open("rb+") as fp:
            os.fsync(fp.fileno())

        os.replace(self.path, self.target)

        self._info_file.unlink(missing_ok=True)

    def delete(self) -> None:
        for file in (self.path, self._info_file):
            file.unlink(missing_ok=True)


def checksum_file(path: Path) -> Path:
    """Returns the file that holds the checksum of ``path``."""
    return path.with_name(f"{path.name}.sha256")


def read_checksum(path: Path) -> str | None:
    """Reads the recorded checksum of a file, or returns ``None``."""
    try:
        words = checksum_file(path).read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return None

    return words[0] if words and len(words[0]) == 64 else None


def write_checksum(path: Path, sha256: str) -> None:
    """Records the checksum of a file as ``sha256sum`` would."""
    write_text(checksum_file(path), f"{sha256}  {path.name}\n")


def _parse_content_range(value: str | None) -> tuple[int | None, int | None]:
    """Parses ``bytes START-END/TOTAL``. Returns the start and the total."""
    unit, _, range_ = (value or "").partition(" ")

    span, _, total = range_.partition("/")

    start = span.partition("-")[0]

    if unit != "bytes":
        return None, None

    return _parse_size(start), _parse_size(total)


def _parse_size(value: str | None) -> int | None:
    """Parses a number of bytes; ``None`` if a server says nothing that is one."""
    value = (value or "").strip()

    # More digits are of no file.
    if not value.isascii() or not value.isdecimal() or len(value) > 18:
        return None

    return int(value)


def hide_secrets(url: str) -> str:
    """Cuts user, query and fragment from a URL, where a token may be."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "[hidden]"

    netloc = parts.netloc.rpartition("@")[2]

    return urlunsplit((parts.scheme, netloc, parts.path, "", ""))


def _explain_status(url: str, error: urllib.error.HTTPError) -> str:
    text = f"`{hide_secrets(url)}` could not be downloaded (HTTP {error.code} {' '.join(str(error.reason).split())})"

    if error.code in (401, 403):
        return f"{text}: accept the conditions of the data set on its page, then set the environment variable `HF_TOKEN` to a token of yours."

    return f"{text}: it may have moved; look for it on the page of the data set and give a mirror with `--url`, or the file itself with `--from`."
