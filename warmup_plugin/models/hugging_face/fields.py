# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeGuard, final

from warmup_plugin.errors import WarmupError


@final
class ConfigFields:
    """
    Reads the fields of a ``config.json``.

    Every error is a :class:`WarmupError` that names the field, its value and what to
    do. A field may be missing since it is younger than the checkpoint; the caller
    says which value ``transformers`` assumes then.
    """

    def __init__(
        self, hg_config: Mapping[str, object], family: str, *, parent: str = ""
    ) -> None:
        """
        :param parent: What stands before a name in an error, with its dot.
        """
        self._hg_config = hg_config
        self._family = family
        self._parent = parent

    def has(self, name: str) -> bool:
        return name in self._hg_config

    def get(self, name: str) -> object:
        return self._hg_config.get(name)

    def nested(self, name: str) -> ConfigFields | None:
        """Returns the fields of an object; ``None`` if it is missing or empty."""
        value = self._hg_config.get(name)

        if not value:
            return None

        if not isinstance(value, Mapping):
            raise self.refuse(name, value, "an object")

        return ConfigFields(value, self._family, parent=f"{self._parent}{name}.")

    def read_size(
        self, name: str, default: int | None = None, *, least: int = 1
    ) -> int:
        """
        Reads an integer.

        :param default: What a missing field or ``null`` means; if ``None``, it is an
            error.
        :param least: The least that it may be.
        """
        value = self._get(name, default)

        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self.refuse(
                name,
                value,
                "a positive integer" if least == 1 else f"an integer from {least} on",
            )

        return value

    def read_positive(self, name: str, default: float | None = None) -> float:
        """Reads a finite number above 0; ``default`` is as in :meth:`read_size`."""
        value = self._get(name, default)

        if not _is_finite(value) or value <= 0:
            raise self.refuse(name, value, "a positive number")

        return float(value)

    def read_probability(self, name: str, default: float) -> float:
        """Reads the probability of a dropout, which is less than 1."""
        value = self._get(name, default)

        if not _is_finite(value) or not 0 <= value < 1:
            raise self.refuse(name, value, "at least 0 and less than 1")

        return float(value)

    def read_flag(self, name: str, default: bool) -> bool:
        value = self._get(name, default)

        if not isinstance(value, bool):
            raise self.refuse(name, value, "true or false")

        return value

    def read_choice(
        self, name: str, choices: Sequence[str], default: str | None = None
    ) -> str:
        """Reads one of some words; ``default`` is as in :meth:`read_size`."""
        value = self._get(name, default)

        if not isinstance(value, str) or value not in choices:
            raise self.refuse(name, value, f"one of {', '.join(map(repr, choices))}")

        return value

    def require(self, name: str, expected: object, *, default: object) -> None:
        """
        Refuses every value but one.

        :param default: What a missing field means; ``null`` is a value.
        """
        value = self._hg_config.get(name, default)

        # In Python, but not in JSON, 1 equals true.
        if value != expected or isinstance(value, bool) != isinstance(expected, bool):
            raise self.refuse(name, value, _write(expected))

    def require_off(self, *names: str) -> None:
        """Refuses what is neither missing nor ``null`` nor ``false``."""
        for name in names:
            value = self._hg_config.get(name)

            if value is not None and value is not False:
                raise self.refuse(name, value, "false")

    def require_eps(self, name: str, expected: float, *, default: float) -> None:
        """Refuses another epsilon of the layer norms; fairseq2 has it in its code."""
        value = self._get(name, default)

        # Some tools write the nearest single-precision number.
        if not _is_finite(value) or not math.isclose(value, expected, rel_tol=1e-6):
            raise self.refuse(name, value, f"{expected:g}")

    def refuse(self, name: str, value: object, expected: str) -> WarmupError:
        """
        Creates the error about a field.

        :param expected: Completes "but has to be".
        """
        origin = "" if name in self._hg_config else " (its default)"

        return WarmupError(
            f"`{self._parent}{name}` is {_write(value)}{origin} in the Hugging Face configuration, but has to be {expected} for the fairseq2 family `{self._family}`; choose a checkpoint for which that holds."
        )

    def _get(self, name: str, default: object) -> object:
        value = self._hg_config.get(name)

        if value is not None:
            return value

        if default is None:
            raise WarmupError(
                f"`{self._parent}{name}` is missing in the Hugging Face configuration; take the `config.json` that was published with the weights."
            )

        return default


def _is_finite(value: object) -> TypeGuard[float]:
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and math.isfinite(value)
    )


def _write(value: object) -> str:
    """Writes a value as in JSON where Python's spelling is another one."""
    if value is None:
        return "null"

    return str(value).lower() if isinstance(value, bool) else repr(value)
