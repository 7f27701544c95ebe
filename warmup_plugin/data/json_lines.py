# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Fields of JSON lines, read with the line and the field named that are wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from warmup_plugin.data.text_lines import iter_raw_lines
from warmup_plugin.errors import WarmupError, shorten_names
from warmup_plugin.parsing import parse_json_leniently


def iter_json_texts(
    file: Path, fields: Sequence[tuple[str, str]]
) -> Iterator[list[str] | None]:
    """
    Reads and checks fields of JSON lines, gzipped if the file ends in ``.gz``.

    :param fields: The option that names a field, and the field; dots descend.

    :returns: The texts of the fields, stripped of surrounding whitespace; ``None`` for
        an empty line.
    """
    for value, where in iter_json_objects(file):
        if value is None:
            yield None

            continue

        yield get_json_texts(value, fields, where)


def get_json_texts(
    value: dict[str, object], fields: Sequence[tuple[str, str]], where: str
) -> list[str]:
    texts = []

    for option, field in fields:
        text = _get_json_value(value, field, option, where)
        if not isinstance(text, str):
            raise WarmupError(
                f"{where} has {_name_json_type(text)} in field `{field}` (`{option}`): it must be a string."
            )

        check_encodable(text, f"{where}, field `{field}`,")

        texts.append(text.strip())

    return texts


def get_json_list(
    obj: dict[str, object], field: str, where: str, option: str = "--json-fields"
) -> list[str]:
    """
    Returns the text of a field, or those of a list in it, without empty ones.

    :param field: Dots descend.
    :param where: The line, for messages.
    :param option: What names the field.

    :raises WarmupError: If there is no such field, or it holds something else.
    """
    value = _get_json_value(obj, field, option, where)

    texts = [value] if isinstance(value, str) else value

    if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
        raise WarmupError(
            f"{where} has {_name_json_type(value)} in field `{field}` (`{option}`): it must be a string or a list of strings."
        )

    for text in texts:
        check_encodable(text, f"{where}, field `{field}`,")

    return [text.strip() for text in texts if text.strip()]


def has_json_field(obj: dict[str, object], field: str) -> bool:
    """Tells whether an object has a field that is not null; dots descend."""
    value: object = obj

    for part in [field] if field in obj else field.split("."):
        value = value.get(part) if isinstance(value, dict) else None

    return value is not None


def iter_json_objects(file: Path) -> Iterator[tuple[dict[str, object] | None, str]]:
    """Reads JSON lines; ``None`` for an empty one, and where it stands, for messages."""
    for line_nr, line in enumerate(iter_raw_lines(file), start=1):
        where = f"Line {line_nr} of `{file}`"

        if not line.strip():
            yield None, where

            continue

        try:
            value = parse_json_leniently(line)
        except json.JSONDecodeError as ex:
            raise WarmupError(
                f"{where} is not valid JSON ({ex.msg}, column {ex.colno}): write one object a line."
            ) from None
        except ValueError as ex:
            raise WarmupError(
                f"{where} is not valid JSON ({ex}): write one object a line."
            ) from None

        if not isinstance(value, dict):
            raise WarmupError(
                f"{where} is not a JSON object but {_name_json_type(value)}: write one object a line."
            )

        yield value, where


def check_encodable(text: str, what: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        # JSON can spell what UTF-8 cannot.
        raise WarmupError(
            f"{what} has half a surrogate pair, as of a text cut inside a character: correct the line."
        ) from None


def _get_json_value(
    obj: dict[str, object], field: str, option: str, where: str
) -> object:
    value: object = obj

    parts = [field] if field in obj else field.split(".")

    for part in parts:
        if not isinstance(value, dict) or part not in value:
            names = value if isinstance(value, dict) else obj

            fields = shorten_names([f"`{name}`" for name in names]) or "none"

            raise WarmupError(
                f"{where} has no field `{field}` (`{option}`): the fields there are {fields}."
            )

        value = value[part]

    return value


def _name_json_type(value: object) -> str:
    if value is None:
        return "null"

    if isinstance(value, bool):
        return "a truth value"

    for kls, name in ((dict, "an object"), (list, "a list"), (str, "a string")):
        if isinstance(value, kls):
            return name

    return "a number"
