# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, final

from typing_extensions import override

from warmup_plugin.errors import WarmupError
from warmup_plugin.metrics.base import (
    Measurement,
    MetricUnavailable,
    References,
    SystemwiseMetric,
    measure_mean,
    sign_num_references,
)
from warmup_plugin.metrics.languages import shorten_code

# What libraries call varieties that a corpus in the language may well hold.
_VARIETIES: Final = {
    **dict.fromkeys(
        ("cmn", "yue", "wuu", "nan", "hak", "gan", "hsn", "cdo", "cjy", "lzh"), "zh"
    ),
    "nb": "no",
    "nn": "no",
    "bs": "hr",
    "sr": "hr",
}


@final
@dataclass(frozen=True)
class LanguageIdentifier:
    """Says which language a text is in."""

    name: str
    """What identifies, with its version, for the data card."""

    identify: Callable[[str], str]
    """Returns the code of the language, such as ``de``."""

    def is_in(self, text: str, lang: str) -> bool:
        """Returns ``True`` if ``text`` is in ``lang`` or a variety of it."""
        return reduce_code(self.identify(text)) == reduce_code(lang)


def reduce_code(lang: str) -> str:
    """Reduces a code such as ``zh-TW``, ``zho_Hans`` or ``yue`` to ``zh``."""
    code = shorten_code(lang)

    return _VARIETIES.get(code, code)


def create_language_identifier(choice: str) -> LanguageIdentifier | None:
    """
    Creates the identifier that a user chose.

    :param choice: ``auto`` for py3langid if it is installed and none otherwise,
        ``py3langid``, ``none``, or the path of a model of fastText such as
        ``lid.176.bin``.
    """
    if choice == "none":
        return None

    if choice in ("auto", "py3langid"):
        try:
            return _load_py3langid()
        except ImportError:
            if choice == "auto":
                return None

            raise WarmupError(
                "`--language-id py3langid` needs a library that is not installed: run `pip install py3langid`, or leave the option out to go without."
            ) from None

    return _load_fasttext(Path(choice))


def _load_py3langid() -> LanguageIdentifier:
    module: Any = import_module("py3langid")

    return LanguageIdentifier(
        f"py3langid {_get_version('py3langid')}",
        lambda text: str(module.classify(text)[0]),
    )


def _load_fasttext(path: Path) -> LanguageIdentifier:
    if not path.is_file():
        raise WarmupError(
            f"`--language-id {path}` is neither `auto`, `none`, `py3langid` nor a file: give the path of a model of fastText, such as `lid.176.bin`."
        )

    try:
        module: Any = import_module("fasttext")
    except ImportError:
        raise WarmupError(
            f"`--language-id {path}` needs the module `fasttext`, which is not installed: run `pip install fasttext-predict`."
        ) from None

    try:
        model: Any = module.load_model(str(path))
    except ValueError as ex:
        raise WarmupError(
            f"`{path}` is not a model of fastText ({ex}): download `lid.176.bin` again."
        ) from None

    def identify(text: str) -> str:
        # A model reads one line.
        labels, _ = model.predict(text.replace("\n", " "))

        return str(labels[0]).removeprefix("__label__") if labels else ""

    digest = sha256(path.read_bytes()).hexdigest()

    return LanguageIdentifier(f"fastText {path.name}, SHA-256 {digest}", identify)


def _get_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "of unknown version"


@final
class LanguageMetric(SystemwiseMetric):
    """
    Computes the share of outputs in the target language, from 0 to 100.

    What is identified is short, and the identifier errs: the share of the references, which
    is in the details, is what can be reached.
    """

    def __init__(self, lang: str) -> None:
        """
        :raises MetricUnavailable: There is nothing to identify languages by.
        """
        identifier = create_language_identifier("auto")

        if identifier is None:
            raise MetricUnavailable(
                "py3langid is not installed; run `pip install 'warmup_plugin[data]'`"
            )

        self._identifier = identifier
        self._lang = lang

    @override
    def measure_one(
        self, hypotheses: Sequence[str], references: References
    ) -> list[Measurement]:
        scores = self._score(hypotheses)

        # Those of a sentence tell the same.
        of_references = self._score([texts[0] for texts in references if texts])

        details = {}

        if of_references:
            details["of_references"] = sum(of_references) / len(of_references)

        signature = f"{sign_num_references(references)}|lang:{reduce_code(self._lang)}|id:{self._identifier.name.replace(' ', '-')}"

        return [
            measure_mean(
                "language",
                "in language",
                scores,
                signature,
                details=details,
            )
        ]

    def _score(self, texts: Sequence[str]) -> list[float]:
        # No text is in no language.
        return [
            100.0 * (bool(text.strip()) and self._identifier.is_in(text, self._lang))
            for text in texts
        ]
