# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Generation by CTranslate2, a C++ library that serves models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Final, final

import torch
from torch import Tensor

from warmup_plugin.errors import WarmupError
from warmup_plugin.generation.config import GenerationConfig
from warmup_plugin.generation.generator import WarmupGenerator
from warmup_plugin.generation.hypothesis import Hypothesis
from warmup_plugin.parsing import parse_json

TOKENS_FILE: Final = "tokens.json"
"""What the library calls each of our tokens, beside its model."""

# What the library has as well, and what stays as it is.
_KNOWN_OPTIONS: Final = (
    *("warmup", "max_warmup_len", "beam_size", "num_best", "length_penalty"),
    *("max_len_a", "max_len_b", "min_len_a", "min_len_b"),
    *("early_stopping", "ban_unk", "seed"),
)


def import_ctranslate2() -> Any:
    """
    :raises WarmupError: If it is not installed.
    """
    try:
        import ctranslate2
    except ImportError:
        raise WarmupError(
            "`--backend ctranslate2` needs the package ctranslate2, which is not installed; run `pip install 'ctranslate2>=4.6'`, or leave the option out."
        ) from None

    return ctranslate2


def check_options(config: GenerationConfig) -> None:
    """
    :raises WarmupError: If the library cannot generate as a config says.
    """
    defaults = GenerationConfig()

    for name in (field.name for field in fields(config)):
        if name not in _KNOWN_OPTIONS and getattr(config, name) != getattr(
            defaults, name
        ):
            option, default = f"--{name.replace('_', '-')}", getattr(defaults, name)

            # It may have been said by the run, where nothing can be left out.
            number = (
                ""
                if default is None or isinstance(default, bool)
                else f", or say `{option} {default}` if the run sets it"
            )

            raise WarmupError(
                f"`{option}` is not for `--backend ctranslate2`, which searches by beams alone; leave one of them out{number}."
            )

    if config.warmup == "sample":
        raise WarmupError(
            "`--warmup sample` is not for `--backend ctranslate2`, which draws nothing; leave one of them out."
        )

    if config.warmup in ("single", "beam_then_beam") and config.beam_size > 1:
        raise WarmupError(
            "`--backend ctranslate2` writes the likeliest tokens of a warmup before it searches for the output; take `--warmup greedy-then-beam`, or `--beam-size 1`."
        )


@final
class CTranslate2Generator:
    """
    Writes warmups and outputs as :class:`WarmupGenerator` does, by another library.

    The library is asked twice: for the likeliest tokens of a warmup, and for an output
    behind it. The limits are ours. By greedy search the outputs are ours, too, up to the
    rounding of floats; with beams the length penalty counts other tokens.

    Hypotheses have no probabilities (they are not a number): the library gives those
    among the tokens that may be written, which is another distribution.
    """

    def __init__(
        self,
        folder: Path,
        generator: WarmupGenerator,
        *,
        device: torch.device,
        compute_type: str,
    ) -> None:
        """
        :param folder: What :func:`~warmup_plugin.interop.ctranslate2.convert_run` wrote.
        :param generator: Whose settings and limits hold.
        :param compute_type: As the library calls it: ``float32``, ``int8``, …

        :raises WarmupError: As of :func:`check_options`; if the library is missing or
            cannot read the folder.
        """
        check_options(generator.config)

        ctranslate2 = import_ctranslate2()

        self._generator = generator
        self._layout = generator.layout

        self._is_decoder_only = generator.model.reads_prompts

        kls = ctranslate2.Generator if self._is_decoder_only else ctranslate2.Translator

        try:
            self._engine = kls(
                str(folder),
                device=device.type,
                device_index=device.index or 0,
                compute_type=compute_type,
                inter_threads=1,
                intra_threads=torch.get_num_threads(),
            )

            text = (folder / TOKENS_FILE).read_text(encoding="utf-8")
        except (OSError, RuntimeError, ValueError) as ex:
            raise WarmupError(
                f"CTranslate2 cannot read the model in `{folder}` ({str(ex).splitlines()[0]}); delete that folder, and it is made again."
            ) from None

        self._names: list[str] = parse_json(text)

        self._indices = {name: idx for idx, name in enumerate(self._names)}

        layout, ban_unk = self._layout, generator.config.ban_unk

        never = {layout.unk_idx} if ban_unk and layout.unk_idx is not None else set()

        # It calls what is written last an end, which the separator may stand for.
        self._banned_in_warmup = self._list_banned(
            {*layout.banned_in_warmup, layout.separator_idx, *never}
            - {layout.warmup_end_idx}
        )
        self._banned_in_target = self._list_banned(
            {*layout.banned_in_target, layout.separator_idx, *never} - {layout.eos_idx}
        )

    def _list_banned(self, indices: set[int]) -> list[list[str]]:
        return [[self._names[idx]] for idx in sorted(indices)]

    @property
    def config(self) -> GenerationConfig:
        return self._generator.config

    @property
    def num_rows(self) -> int:
        return self._generator.num_rows

    @property
    def has_warmup(self) -> bool:
        return self._generator.has_warmup

    def get_room(self, source_len: int) -> int:
        return self._generator.get_room(source_len)

    def __call__(
        self,
        source_seqs: Tensor,
        source_seq_lens: Sequence[int],
        prefixes: Tensor,
        *,
        forced: Sequence[Sequence[int]] | None = None,
        line_numbers: Sequence[int] | None = None,
    ) -> list[list[Hypothesis]]:
        """See :meth:`WarmupGenerator.__call__`."""
        config = self.config

        if forced is None:
            forced = [[]] * len(source_seq_lens)

        limits = self._generator.get_limits(source_seq_lens, forced)

        min_lens = self._generator.get_min_lens(source_seq_lens, forced)

        sources = [
            self._to_names(seq[:length])
            for seq, length in zip(source_seqs.tolist(), source_seq_lens)
        ]

        heads = [self._to_names(prefix) for prefix in prefixes.tolist()]

        warmups: list[list[int]] = [[] for _ in sources]

        if self.has_warmup:
            found = self._write(
                sources,
                heads,
                [config.max_warmup_len] * len(sources),
                end_idx=self._layout.warmup_end_idx,
                banned=self._banned_in_warmup,
            )

            warmups = [group[0] for group in found]

        begun = []

        for head, warmup, beginning in zip(heads, warmups, forced):
            separator = [self._layout.separator_idx]

            if config.warmup in ("none", "bare"):
                separator = []

            begun.append(head + self._to_names([*warmup, *separator, *beginning]))

        outputs = self._write(
            sources,
            begun,
            [limit - len(seq) for limit, seq in zip(limits, forced)],
            min_lens=[max(n - len(seq), 0) for n, seq in zip(min_lens, forced)],
            end_idx=self._layout.eos_idx,
            banned=self._banned_in_target,
            beam_size=config.beam_size,
            num_hypotheses=config.num_best,
            length_penalty=config.length_penalty,
        )

        return [
            [_describe(warmup, [*beginning, *output]) for output in group]
            for warmup, beginning, group in zip(warmups, forced, outputs)
        ]

    def _write(
        self,
        sources: Sequence[list[str]],
        begun: Sequence[list[str]],
        limits: Sequence[int],
        *,
        end_idx: int,
        banned: list[list[str]],
        min_lens: Sequence[int] | None = None,
        beam_size: int = 1,
        **options: Any,
    ) -> list[list[list[int]]]:
        """
        Writes on behind what is begun.

        :param limits: The most tokens to write for each source.
        :param end_idx: The token that ends what is written, which it does not hold.
        :param min_lens: The fewest tokens to write for each source.

        :returns: Of each source as many sequences as are asked for, best first.
        """

        def write(
            rows: Sequence[int], limit: int, min_len: int
        ) -> list[list[list[int]]]:
            found = self._call_engine(
                [sources[row] for row in rows],
                [begun[row] for row in rows],
                limit,
                min_len,
                end_token=self._names[end_idx],
                suppress_sequences=banned,
                beam_size=beam_size,
                **options,
            )

            return [
                [[i for i in map(self._to_idx, seq) if i != end_idx] for seq in group]
                for group in found
            ]

        found: list[list[list[int]]] = [[[]] for _ in sources]

        def write_all(rows: Sequence[int], min_len: int) -> None:
            if not rows:
                return

            groups = write(rows, max(limits[row] for row in rows), min_len)

            for row, group in zip(rows, groups):
                if max(map(len, group)) > limits[row]:
                    # The limit is that of the longest: by greedy search the rest is cut
                    # off, by beams it would have been another search.
                    if beam_size == 1:
                        group = [seq[: limits[row]] for seq in group]
                    else:
                        [group] = write([row], limits[row], min_len)

                found[row] = group

        if min_lens is None:
            min_lens = [0] * len(sources)

        rows = [row for row, limit in enumerate(limits) if limit > 0]

        # By greedy search only what comes out too short is another with a minimum.
        write_all([r for r in rows if beam_size == 1 or min_lens[r] == 0], 0)

        # The library knows one minimum for all, and may count what is begun.
        parts: dict[tuple[int, int], list[int]] = {}

        for row in rows:
            if min(map(len, found[row])) < min_lens[row]:
                num_begun = 0 if self._is_decoder_only else len(begun[row])

                parts.setdefault((min_lens[row], num_begun), []).append(row)

        for (min_len, _), part in parts.items():
            write_all(part, min_len)

        return found

    def _call_engine(
        self,
        sources: list[list[str]],
        begun: list[list[str]],
        limit: int,
        min_len: int,
        **options: Any,
    ) -> list[list[list[str]]]:
        """Returns what is written behind ``begun``, EOS or another end left out."""
        if self._is_decoder_only:
            results = self._engine.generate_batch(
                [source + head for source, head in zip(sources, begun)],
                include_prompt_in_result=False,
                max_length=limit,
                min_length=min_len,
                **options,
            )

            return [result.sequences for result in results]

        # The library adds the first token of the decoder by itself.
        heads = [head[1:] for head in begun]

        results = self._engine.translate_batch(
            sources,
            target_prefix=heads,
            # It cuts sources otherwise, and counts what is given.
            max_input_length=0,
            max_decoding_length=limit + max(map(len, heads)),
            min_decoding_length=min_len + len(heads[0]) if min_len > 0 else 0,
            **options,
        )

        return [
            [seq[len(head) :] for seq in result.hypotheses]
            for head, result in zip(heads, results)
        ]

    def _to_names(self, indices: Sequence[int]) -> list[str]:
        return [self._names[idx] for idx in indices]

    def _to_idx(self, name: str) -> int:
        # A row of the output projection that no token stands for.
        return self._indices.get(name, self._layout.unk_idx or 0)


def _describe(warmup: list[int], target: list[int]) -> Hypothesis:
    return Hypothesis(warmup, target, [], math.nan, math.nan, math.nan)
