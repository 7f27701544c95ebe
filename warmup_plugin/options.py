# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Fields of dataclasses as options of a command, whose help is what stands below them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar, cast

from warmup_plugin.config_docs import get_field_docs

OptionsT = TypeVar("OptionsT")

_TYPES: Final = {"int": int, "Path": Path, "Sequence[Path]": Path}


class ArgumentContainer(Protocol):
    """A parser, or a group of its arguments."""

    def add_argument(self, *names: str, **settings: Any) -> argparse.Action: ...


def to_option(name: str) -> str:
    """Returns the option of an argument, such as ``--beam-size`` of ``beam_size``."""
    return f"--{name.replace('_', '-')}"


def add_option(
    parser: ArgumentContainer,
    kls: type[object],
    name: str,
    *options: str,
    **settings: object,
) -> None:
    """
    Adds an option for a field.

    :param options: What it is called; nothing for what the field is.
    :param settings: Further ones of ``add_argument()``, or others than the field has.
    """
    [field] = [f for f in fields(cast(Any, kls)) if f.name == name]

    doc = get_field_docs(kls).get(name, "").replace("``", "`")

    help = " ".join(doc.split()).removesuffix(".").replace("%", "%%")

    # Not of `GPUs`.
    if not help[1:2].isupper():
        help = help[:1].lower() + help[1:]

    own: dict[str, object] = {
        "dest": name,
        "default": field.default,
        "help": help,
    }

    # As text, since annotations are not evaluated.
    kind = str(field.type).removesuffix(" | None")

    if kind == "bool":
        own["action"] = "store_true"
    else:
        own["type"] = _TYPES.get(kind, str)

    parser.add_argument(*(options or [to_option(name)]), **{**own, **settings})


def read_options(
    kls: Callable[..., OptionsT], args: argparse.Namespace, **others: object
) -> OptionsT:
    """
    Returns the options of a dataclass, whose fields arguments have the names of.

    :param others: Further ones, which are no arguments; they go before these.
    """
    names = [field.name for field in fields(cast(Any, kls))]

    given = {n: getattr(args, n) for n in names if hasattr(args, n)}

    return kls(**{**given, **others})
