# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Input as nobody would write it, and what it may lead to."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from hypothesis import strategies as st

from warmup_plugin.errors import WarmupError
from warmup_plugin.terminal import describe_system_error, escape_controls

NASTY: Final = (
    *("", " ", "\t", "\n", "\r\n", "\0", "\x1b[31m", "\u2028", "\u202e", "\ufeff"),
    *("\ud800", "\\ud800", "a" * 300, "../..", "/", "~", "*", "[a]", "-1", "0", "1e40"),
    *("nan", "null", "true", "9" * 5000, "😀", "<sep>", "{", "[" * 200, "&a [*a]"),
)

TEXTS: Final = st.one_of(
    st.text(max_size=20), st.sampled_from(NASTY), st.characters(categories=["Cs"])
)

NUMBERS: Final = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([-1, 0, 1, 1.5, 10**40, 1e-40, 2**31, 2**63, 1e308]),
)

SCALARS: Final = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)

VALUES: Final = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)
    ),
    max_leaves=6,
)


def to_json(value: object) -> bytes:
    return json.dumps(value).encode()


def json_lines(
    fields: Mapping[str, st.SearchStrategy[Any]],
) -> st.SearchStrategy[bytes]:
    """Lines of which some are objects with the right fields, of any value."""
    right = st.fixed_dictionaries(dict(fields))

    some = st.fixed_dictionaries(
        {}, optional={name: st.one_of(value, VALUES) for name, value in fields.items()}
    )

    line = st.one_of(
        right.map(to_json), some.map(to_json), VALUES.map(to_json), st.binary()
    )

    return st.lists(line, max_size=4).map(b"\n".join)


LINES: Final = st.one_of(
    st.binary(max_size=60),
    st.lists(TEXTS, max_size=5).map(
        lambda texts: "\n".join(texts).encode("utf-8", "surrogatepass")
    ),
    st.lists(st.lists(TEXTS, max_size=3).map("\t".join), max_size=4).map(
        lambda texts: "\n".join(texts).encode("utf-8", "replace")
    ),
)


def compressed(data: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Data that is gzipped, mostly as it should be."""
    return st.one_of(
        data.map(lambda d: gzip.compress(d, mtime=0)), damaged(data), st.binary()
    )


@st.composite
def damaged(draw: st.DrawFn, data: st.SearchStrategy[bytes]) -> bytes:
    """Data some bytes of which are others, or are missing."""
    content = bytearray(draw(data))

    for _ in range(draw(st.integers(0, 3))):
        if not content:
            break

        place = draw(st.integers(0, len(content) - 1))

        if draw(st.booleans()):
            content[place] = draw(st.integers(0, 255))
        else:
            del content[place : place + draw(st.integers(1, 40))]

    return bytes(content)


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """A value, of mappings in each other, of which one part is another or is missing."""
    if not isinstance(value, dict) or not value or draw(st.integers(0, 4)) == 0:
        return draw(VALUES)

    name = draw(st.sampled_from(sorted(value, key=str)))

    if draw(st.integers(0, 5)) == 0:
        return {key: item for key, item in value.items() if key != name}

    return {**value, name: draw(changed(value[name]))}


@contextmanager
def new_folder() -> Iterator[Path]:
    """An empty folder; that of a test would be the same for all of its examples."""
    with TemporaryDirectory(prefix="fuzz-") as folder:
        yield Path(folder)


def check(call: Callable[[], object]) -> bool:
    """
    Checks that a call ends well, or in one sentence.

    :returns: Whether it ended well.
    """
    try:
        call()
    except WarmupError as ex:
        text = escape_controls(str(ex))
    except OSError as ex:
        # As every command does.
        text = escape_controls(describe_system_error(ex) or "")
    else:
        return True

    assert len(text) > 10, text

    # It can be written anywhere.
    text.encode("utf-8")

    return False
