# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Final

from jinja2 import Environment, StrictUndefined

from warmup_plugin import __version__

ADAPTER_FOLDER: Final = "adapter"
"""In the folder of a model."""


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """Holds what a model card says."""

    name: str

    arch: str

    is_decoder_only: bool

    separator: str | None
    """The token that ends a warmup; ``None`` if the model writes none."""

    separator_idx: int

    template: str
    """What a source is put into."""

    langs: tuple[str, str] | None
    """The languages of sources and targets; ``None`` if it was not trained."""

    step_nr: int

    score: float | None

    score_metric: str | None

    max_warmup_len: int
    """At the checkpoint; 0 if its warmups are empty."""

    eos_idx: int

    num_forced: int = 0
    """The number of tokens that ``generate()`` writes by itself before a warmup, the
    first one of a decoder included; nothing behind a prompt."""

    cut_share: float | None = None
    """The share of warmups that the limit ended in training, where it is known."""

    warmup_lang: str | None = None
    """The language whose token begins a warmup, if it is not that of the targets."""

    ends_like_text: bool = False
    """Whether the probability of EOS ends a warmup."""

    has_adapter: bool = False
    """If ``True``, the model is the base of an adapter beside it."""


def write_model_card(folder: Path, card: ModelCard) -> None:
    """Writes ``README.md``, which the Hugging Face Hub shows."""
    environment = Environment(
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )

    environment.filters["repr"] = repr

    template = files("warmup_plugin.interop") / "model_card.md.j2"

    text = environment.from_string(template.read_text(encoding="utf-8")).render(
        card=card, version=__version__, adapter_folder=ADAPTER_FOLDER
    )

    folder.joinpath("README.md").write_text(text, encoding="utf-8")
