# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
An exported model as a user of transformers sees it.

Imports nothing of ours and no fairseq2: ``python -m tests.unit.interop.hub`` serves it to
the tests from another environment, with another version of transformers, one line of JSON
a call.
"""

from __future__ import annotations

import io
import json
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import redirect_stdout
from functools import cached_property
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any, Final

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    LogitsProcessor,
)

MAX_WARMUP_LEN: Final = 3


class WellFormed(LogitsProcessor):
    """
    Holds a warmup to its form: no EOS in it, a separator within its limit.

    Languages, which transformers must be able to force, are not written again.
    """

    def __init__(
        self,
        prefix_len: int,
        separator_idx: int | None,
        eos_idx: int,
        langs: list[int],
    ) -> None:
        self._prefix_len = prefix_len
        self._separator_idx = separator_idx
        self._eos_idx = eos_idx
        self._langs = [idx for idx in langs if idx != separator_idx]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if input_ids.size(1) < self._prefix_len:
            return scores

        scores[:, self._langs] = -torch.inf

        if self._separator_idx is None:
            return scores

        written = input_ids[0, self._prefix_len :].tolist()

        if self._separator_idx in written:
            scores[:, self._separator_idx] = -torch.inf
        else:
            scores[:, self._eos_idx] = -torch.inf

            if len(written) == MAX_WARMUP_LEN:
                scores = torch.full_like(scores, -torch.inf)

                scores[:, self._separator_idx] = 0.0

        return scores


class Hub:
    """A model and its tokenizer, loaded from their folder."""

    def __init__(self, folder: str, is_decoder_only: bool, langs: Sequence[str]):
        """
        :param langs: All languages of an NLLB.
        """
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.folder = Path(folder)
        self.is_decoder_only = is_decoder_only
        self.langs = langs

    @cached_property
    def model(self) -> Any:
        kls = AutoModelForCausalLM if self.is_decoder_only else AutoModelForSeq2SeqLM

        # Typed as the model alone.
        loaded: Any = kls.from_pretrained(str(self.folder), output_loading_info=True)

        model, info = loaded

        assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))  # fmt: skip

        return model.eval()

    @cached_property
    def settings(self) -> dict[str, Any]:
        text = self.folder.joinpath("generation_config.json").read_text()

        settings: dict[str, Any] = json.loads(text)

        return settings

    def encode(self, source: str) -> list[int]:
        text = f"{source}\n" if self.is_decoder_only else source

        ids: list[int] = self.tokenizer(text).input_ids

        return ids

    def generate(self, source: str, separator_idx: int | None) -> list[int]:
        """Generates greedily, and returns what was written."""
        ids = self.encode(source)

        source_len = len(ids) - 1 if self.is_decoder_only else len(ids)

        # The limits of our search.
        max_len = int(1.5 * source_len + 20)

        prefix_len = len(ids) if self.is_decoder_only else 1

        langs: list[int] = []

        if self.settings.get("forced_bos_token_id") is not None:
            langs = self.tokenizer.convert_tokens_to_ids(list(self.langs))

            prefix_len += 1

            max_len += 1

        if separator_idx is not None:
            max_len += MAX_WARMUP_LEN + 1

        eos_idx = self.settings["eos_token_id"]

        processors = [WellFormed(prefix_len, separator_idx, eos_idx, langs)]

        tokens: list[int] = self.model.generate(
            torch.tensor([ids]), do_sample=False, num_beams=1, max_new_tokens=max_len, logits_processor=processors
        )[0, prefix_len:].tolist()  # fmt: skip

        return tokens

    def decode(self, tokens: list[int]) -> str:
        text: str = self.tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

        return text

    def compute_logits(self, ids: list[int]) -> list[list[float]]:
        """
        Computes the logits of a source, or of one as its own target, backwards.

        *Shape:* :math:`(S,V)`.
        """
        source = torch.tensor([ids])

        inputs: dict[str, Tensor] = {}

        if not self.is_decoder_only:
            inputs["decoder_input_ids"] = source.flip(1)

        with torch.no_grad():
            logits: list[list[float]] = self.model(source, **inputs).logits[0].tolist()

        return logits

    def run_card(self) -> str:
        """Runs the first code of the model card, and returns what it prints."""
        card = self.folder.joinpath("README.md").read_text(encoding="utf-8")

        printed, cwd = io.StringIO(), os.getcwd()

        os.chdir(self.folder.parent)

        try:
            with redirect_stdout(printed):
                exec(card.split("```python\n")[1].split("```")[0], {})
        finally:
            os.chdir(cwd)

        return printed.getvalue()


class RemoteHub:
    """A :class:`Hub` in another environment, one process for all."""

    def __init__(self, process: Popen[str], *args: object) -> None:
        self._process = process

        self._ask("__init__", args)

    def __getattr__(self, name: str) -> Any:
        return lambda *args: self._ask(name, args)

    def _ask(self, name: str, args: Sequence[object]) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None

        self._process.stdin.write(json.dumps([name, args]) + "\n")
        self._process.stdin.flush()

        result, error = json.loads(self._process.stdout.readline())

        assert error is None, error

        return result


def start_process(python: Path, root: Path) -> Popen[str]:
    """Starts what serves a :class:`Hub` in the environment of a Python."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}

    return Popen(
        [str(python), "-W", "ignore", "-m", "tests.unit.interop.hub"],
        cwd=root,
        env={**env, "HF_HUB_OFFLINE": "1"},
        stdin=PIPE,
        stdout=PIPE,
        text=True,
    )


def serve() -> None:
    """Answers calls until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")

    # What libraries print is no answer.
    os.dup2(2, 1)

    hub: Any = None

    for line in sys.stdin:
        name, args = json.loads(line)

        result, error = None, None

        try:
            if name == "__init__":
                hub = Hub(*args)
            else:
                result = getattr(hub, name)(*args)
        except Exception:
            error = traceback.format_exc()

        print(json.dumps([result, error]), file=answers, flush=True)


if __name__ == "__main__":
    serve()
