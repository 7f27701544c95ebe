# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from fairseq2.nn import BatchLayout
from torch import Tensor

from warmup_plugin.errors import WarmupError
from warmup_plugin.generation.beams import FoundSeq
from warmup_plugin.generation.config import GenerationConfig
from warmup_plugin.generation.hypothesis import Hypothesis
from warmup_plugin.generation.next_tokens import SearchSpace
from warmup_plugin.generation.ranking import (
    rank_by_log_prob,
    rank_by_marginal,
    rank_by_mbr,
)
from warmup_plugin.generation.search import RowSearch, StepCallback
from warmup_plugin.generation.token_picks import (
    TokenDraw,
    TokenPick,
    WrittenWarmups,
    write_warmups,
)
from warmup_plugin.layout import DecoderLayout, split_seq
from warmup_plugin.models.conditional import (
    ConditionalModel,
    EncodedSource,
    RowDecoder,
)
from warmup_plugin.models.ensemble import PathsDecoder
from warmup_plugin.sampling.tokens import draw_line_uniforms


@final
class WarmupGenerator:
    """
    Generates warmups and outputs, as :class:`GenerationConfig` says.

    What is generated for a source depends neither on its batch nor on earlier calls.
    """

    def __init__(
        self,
        model: ConditionalModel,
        layout: DecoderLayout,
        config: GenerationConfig,
        *,
        decode: Callable[[Sequence[int]], str] | None = None,
        num_template_tokens: int = 0,
        plain_model: ConditionalModel | None = None,
        plain_begin_idx: int | None = None,
    ) -> None:
        """
        :param model: In evaluation mode.
        :param decode: Turns the tokens of an output into text; needed by ``mbr``.
        :param num_template_tokens: The number of a source's tokens that belong to the
            prompt around it; they do not count in the limits of the output.
        :param plain_model: What ``plain_weight`` hears beside the model: one of plain
            fine-tuning, which writes outputs alone. By default the model itself, behind
            the empty warmup.
        :param plain_begin_idx: The token that outputs of ``plain_model`` follow, if it
            is not that of warmups.

        :raises WarmupError: If ``decode`` is needed and missing.
        """
        if config.rank_by == "mbr" and decode is None:
            raise WarmupError(
                "`rank_by` is `mbr`, which compares texts, but the generator has no tokenizer to decode with; choose another one."
            )

        self._model = model
        self._layout = layout
        self._config = config
        self._decode = decode
        self._num_template_tokens = num_template_tokens
        self._plain_model = plain_model
        self._plain_begin_idx = plain_begin_idx

        self.on_step: Callable[[Tensor, Tensor, Tensor], None] | None = None
        """Called after each step of a search with the source of each row, what the rows
        have written and their log-probabilities. *Shape:* :math:`(B)`, :math:`(B,T)`
        twice."""

    @property
    def model(self) -> ConditionalModel:
        return self._model

    @property
    def layout(self) -> DecoderLayout:
        return self._layout

    @property
    def config(self) -> GenerationConfig:
        return self._config

    @property
    def num_rows(self) -> int:
        """The number of decoder rows that a source takes at most."""
        config = self._config

        num_rows = 1 if config.sampling else config.beam_size

        if config.warmup == "sample":
            return num_rows * config.num_warmups

        return num_rows * (config.num_best if config.sampling else 1)

    @property
    def has_warmup(self) -> bool:
        """``True`` if a warmup is written before each output."""
        return self._config.warmup not in ("none", "bare", "empty")

    def get_room(self, source_len: int) -> int:
        """Returns the most tokens, EOS included, that a source leaves for its output
        behind the longest warmup; less than 2 is too little."""
        max_warmup_len = None

        if self._config.warmup not in ("none", "bare"):
            max_warmup_len = self._config.max_warmup_len if self.has_warmup else 0

        max_row_len = self._model.get_max_target_len(source_len)

        return self._layout.room(max_row_len, max_warmup_len)

    def get_limits(
        self,
        source_seq_lens: Sequence[int],
        forced: Sequence[Sequence[int]],
        num_template_tokens: Sequence[int] | None = None,
    ) -> list[int]:
        """
        Returns the most tokens of the output of each source, EOS not counted.

        :param num_template_tokens: As of :meth:`__call__`.

        :raises WarmupError: As of :meth:`__call__`.
        """
        space = self._create_space(
            source_seq_lens, torch.device("cpu"), forced, num_template_tokens
        )

        limits: list[int] = space.limits.tolist()

        return limits

    def get_min_lens(
        self, source_seq_lens: Sequence[int], forced: Sequence[Sequence[int]]
    ) -> list[int]:
        """
        Returns the fewest tokens of the output of each source, EOS not counted.

        :raises WarmupError: As of :meth:`__call__`.
        """
        space = self._create_space(source_seq_lens, torch.device("cpu"), forced, None)

        min_lens: list[int] = space.min_lens.tolist()

        return min_lens

    @torch.no_grad()
    def __call__(
        self,
        source_seqs: Tensor,
        source_seq_lens: Sequence[int],
        prefixes: Tensor,
        *,
        forced: Sequence[Sequence[int]] | None = None,
        line_numbers: Sequence[int] | None = None,
        num_template_tokens: Sequence[int] | None = None,
    ) -> list[list[Hypothesis]]:
        """
        :param source_seqs: *Shape:* :math:`(N,S_{src})`.
        :param prefixes: The tokens before the warmup. *Shape:* :math:`(N,P)`.
        :param forced: The tokens that the output of each source begins with.
        :param line_numbers: What the draws of each source depend on besides the seed;
            by default 0 to N - 1.
        :param num_template_tokens: That of each source, if their prompts differ.

        :returns: The hypotheses of each source, best first, ``num_best`` at most.

        :raises WarmupError: If a warmup may be as long as all that the model reads, if
            a forced beginning is longer than the output may be, or if the model gives
            a probability that is not a number.
        """
        run = self._begin(
            source_seqs,
            source_seq_lens,
            prefixes,
            forced,
            line_numbers,
            num_template_tokens,
        )

        hypotheses = self._generate(run)

        config = self._config

        if config.warmup == "sample":
            hypotheses = self._rank(run, hypotheses)

        if config.num_best > 1 and not config.sampling:
            hypotheses = [_drop_duplicates(group) for group in hypotheses]

        return [group[: config.num_best] for group in hypotheses]

    @torch.no_grad()
    def generate_candidates(
        self,
        source_seqs: Tensor,
        source_seq_lens: Sequence[int],
        prefixes: Tensor,
        *,
        forced: Sequence[Sequence[int]] | None = None,
        line_numbers: Sequence[int] | None = None,
    ) -> list[list[Hypothesis]]:
        """
        Generates what :meth:`__call__` chooses from; see there.

        :returns: Of each source all hypotheses; for ``warmup=sample`` those of its K
            warmups as they were drawn, equal ones included.
        """
        return self._generate(
            self._begin(source_seqs, source_seq_lens, prefixes, forced, line_numbers)
        )

    def _begin(
        self,
        source_seqs: Tensor,
        source_seq_lens: Sequence[int],
        prefixes: Tensor,
        forced: Sequence[Sequence[int]] | None,
        line_numbers: Sequence[int] | None,
        num_template_tokens: Sequence[int] | None = None,
    ) -> _Run:
        space = self._create_space(
            source_seq_lens, prefixes.device, forced, num_template_tokens
        )

        if self._config.warmup == "empty":
            prefixes = self._add_separator(prefixes)

        source_layout = BatchLayout.of(source_seqs, list(source_seq_lens))

        encoded = self._model.encode(source_seqs, source_layout)

        if line_numbers is None:
            line_numbers = range(source_seqs.size(0))

        run = _Run(
            model=self._model,
            encoded=encoded,
            prefixes=prefixes,
            space=space,
            line_numbers=line_numbers,
        )

        if self._config.plain_weight > 0.0:
            run.plain = self._begin_plain(run, source_seqs, source_layout)

        return run

    def _begin_plain(
        self, run: _Run, source_seqs: Tensor, source_layout: BatchLayout
    ) -> _Run:
        """Begins the way to an output without a warmup."""
        model, begin_idx = self._plain_model, self._plain_begin_idx

        if model is None:
            return replace(run, prefixes=self._add_separator(run.prefixes))

        prefixes = run.prefixes

        if begin_idx is not None:
            prefixes = prefixes.clone()

            prefixes[:, -1] = begin_idx

        encoded = model.encode(source_seqs, source_layout)

        return replace(run, model=model, encoded=encoded, prefixes=prefixes)

    def _add_separator(self, prefixes: Tensor) -> Tensor:
        """Returns what stands before an output behind the empty warmup, which is given,
        not written."""
        separators = prefixes.new_full(
            (prefixes.size(0), 1), self._layout.separator_idx
        )

        return torch.cat([prefixes, separators], dim=1)

    def _generate(self, run: _Run) -> list[list[Hypothesis]]:
        config = self._config

        if config.warmup in ("none", "bare", "empty", "single"):
            return self._search_all(run)

        num_warmups = config.num_warmups if config.warmup == "sample" else 1

        return self._search_behind_warmups(run, num_warmups)

    def _create_space(
        self,
        source_seq_lens: Sequence[int],
        device: torch.device,
        forced: Sequence[Sequence[int]] | None,
        num_template_tokens: Sequence[int] | None,
    ) -> SearchSpace:
        config = self._config

        max_warmup_len = config.max_warmup_len if self.has_warmup else None

        if num_template_tokens is None:
            num_template_tokens = [self._num_template_tokens] * len(source_seq_lens)

        rooms = [self.get_room(n) for n in source_seq_lens]

        # A word and EOS at least.
        if min(rooms) < 2:
            raise WarmupError(
                f"Warmups of up to {max_warmup_len} tokens leave no room for an output in the {min(map(self._model.get_max_target_len, source_seq_lens))} tokens that the model reads; lower `--max-warmup-len`, or in training `warmup.max_warmup_len`."
            )

        limits, min_lens = [], []

        for n, room, num_around in zip(source_seq_lens, rooms, num_template_tokens):
            n = max(n - num_around, 1)

            limit = min(int(config.max_len_a * n + config.max_len_b), room - 1)

            limits.append(limit)

            min_lens.append(min(int(config.min_len_a * n + config.min_len_b), limit))

        forced_seqs = forced_lens = None

        if forced is not None and any(forced):
            width = max(map(len, forced))

            longest = min(room - 1 - len(seq) for room, seq in zip(rooms, forced))

            if longest < 0:
                raise WarmupError(
                    f"A forced beginning of {width} tokens is longer than the output that the model can write; shorten it."
                )

            limits = [max(limit, len(seq)) for limit, seq in zip(limits, forced)]

            forced_seqs = torch.tensor(
                [
                    [*seq, *[self._layout.pad_idx] * (width - len(seq))]
                    for seq in forced
                ],
                device=device,
            )

            forced_lens = torch.tensor([len(seq) for seq in forced], device=device)

        return SearchSpace(
            max_warmup_len=max_warmup_len,
            limits=torch.tensor(limits, device=device),
            min_lens=torch.tensor(min_lens, device=device),
            forced=forced_seqs,
            forced_lens=forced_lens,
        )

    def _search_all(self, run: _Run) -> list[list[Hypothesis]]:
        """Searches, or draws, warmup and output in one go."""
        config = self._config

        # Each draw is a group of its own.
        num_groups = config.num_best if config.sampling else 1

        decoder, logits = run.start(num_groups)

        space = run.repeat_space(num_groups)

        search = self._create_search(run, space.max_len, num_groups)

        found = search(decoder, logits, space)

        hypotheses = []

        for n in range(run.num_sources):
            group = found[n * num_groups : (n + 1) * num_groups]

            source_hypotheses = [self._split(seq) for seqs in group for seq in seqs]

            # Draws come in any order.
            source_hypotheses.sort(key=lambda h: -h.score)

            hypotheses.append(source_hypotheses)

        return hypotheses

    def _split(self, found: FoundSeq) -> Hypothesis:
        warmup, target = split_seq(self._layout, found.tokens)

        num_warmup = len(warmup) + 1 if self.has_warmup else 0

        return Hypothesis(
            warmup,
            target,
            found.token_log_probs,
            sum(found.token_log_probs[:num_warmup]),
            sum(found.token_log_probs[num_warmup:]),
            found.score,
        )

    def _search_behind_warmups(
        self, run: _Run, num_warmups: int
    ) -> list[list[Hypothesis]]:
        """
        Writes K warmups of each source first, then searches the output of each.

        :returns: The hypotheses of each source: the best of each of K warmups, or
            those of the only one.
        """
        config, layout = self._config, self._layout

        # Without warmups to draw, each draw of an output is a group of its own.
        num_draws = config.num_best if config.sampling and num_warmups == 1 else 1

        if config.warmup == "beam_then_beam":
            decoder, warmups = self._search_warmups(run)
        else:
            decoder, warmups = self._pick_warmups(run, num_warmups)

        device = run.prefixes.device

        lens = torch.tensor([len(c) for c in warmups.seqs], device=device)

        prefix_len = run.prefixes.size(1)

        # The last token before the separator is read again: a warmup that was cut has
        # not been read to its end.
        decoder.rewind(prefix_len + lens - 1)

        prefix_ends = run.prefixes[:, -1].repeat_interleave(num_warmups).tolist()

        ends = [
            [c[-1] if c else prefix_end, layout.separator_idx]
            for c, prefix_end in zip(warmups.seqs, prefix_ends)
        ]

        logits = decoder.step(torch.tensor(ends, device=device))

        if run.plain is not None:
            plain_decoder, plain_logits = run.plain.start(num_warmups)

            weight = config.plain_weight

            joint_decoder = PathsDecoder(
                [decoder, plain_decoder],
                [1.0 - weight, weight],
                layout.excluded_tokens(logits.size(1), device).in_target,
            )

            logits = joint_decoder.join([logits, plain_logits])

            decoder = joint_decoder

        groups = torch.arange(lens.size(0), device=device).repeat_interleave(num_draws)

        if num_draws > 1:
            decoder.select(groups)

            logits = logits.index_select(0, groups)

        space = replace(
            run.repeat_space(num_warmups * num_draws),
            max_warmup_len=None,
            begun_log_probs=torch.tensor(warmups.log_probs, device=device)[groups],
            begun_lens=lens[groups] + 1,
        )

        search = self._create_search(
            run, space.max_len, num_warmups * num_draws, skip=config.max_warmup_len
        )

        found = search(decoder, logits, space)

        joined = [
            [self._join(warmups, int(group), seq) for seq in seqs]
            for group, seqs in zip(groups.tolist(), found)
        ]

        size = num_warmups * num_draws

        hypotheses = []

        for n in range(run.num_sources):
            source_groups = joined[n * size : (n + 1) * size]

            if num_warmups > 1:
                hypotheses.append([seqs[0] for seqs in source_groups])
            else:
                seqs = [seq for group in source_groups for seq in group]

                hypotheses.append(sorted(seqs, key=lambda h: -h.score))

        return hypotheses

    def _pick_warmups(
        self, run: _Run, num_warmups: int
    ) -> tuple[RowDecoder, WrittenWarmups]:
        """
        Writes warmups token by token.

        :returns: Them and what has read them but for their last token, which it may have
            read too.
        """
        config = self._config

        decoder, logits = run.start(num_warmups)

        pick = TokenPick()

        if config.warmup == "sample":
            pick = self._create_draw(
                run, config.max_warmup_len + run.space.max_len, num_warmups
            )

        warmups = write_warmups(
            decoder, logits, self._layout, pick, max_warmup_len=config.max_warmup_len
        )

        return decoder, warmups

    def _search_warmups(self, run: _Run) -> tuple[RowDecoder, WrittenWarmups]:
        """Searches the best warmup of each source by beams; see :meth:`_pick_warmups`."""
        config, layout = self._config, self._layout

        search = RowSearch(
            layout,
            beam_size=config.beam_size,
            length_penalty=config.length_penalty,
            num_best=1,
            early_stopping=config.early_stopping,
            end_idx=layout.separator_idx,
        )

        # The warmup is all that is written.
        space = SearchSpace(
            max_warmup_len=config.max_warmup_len,
            limits=torch.zeros_like(run.space.limits),
            min_lens=torch.zeros_like(run.space.min_lens),
        )

        found = [seqs[0] for seqs in search(*run.start(1), space)]

        warmups = WrittenWarmups(
            [seq.tokens for seq in found],
            [seq.token_log_probs for seq in found],
            [seq.log_prob for seq in found],
        )

        # Its beams have parted from the rows that began.
        decoder, _ = run.start(1)

        width = max(map(len, warmups.seqs))

        if width > 0:
            padded = [c + [layout.pad_idx] * (width - len(c)) for c in warmups.seqs]

            decoder.step(torch.tensor(padded, device=run.prefixes.device))

        return decoder, warmups

    def _join(self, warmups: WrittenWarmups, group: int, found: FoundSeq) -> Hypothesis:
        return Hypothesis(
            warmups.seqs[group],
            found.tokens,
            [*warmups.token_log_probs[group], *found.token_log_probs],
            warmups.log_probs[group],
            found.log_prob,
            found.score,
        )

    def _rank(
        self, run: _Run, candidates: list[list[Hypothesis]]
    ) -> list[list[Hypothesis]]:
        """Orders the candidates of each source; equal ones become one."""
        config = self._config

        if config.rank_by == "marginal":
            ranked = rank_by_marginal(
                self._model,
                run.encoded,
                self._layout,
                run.prefixes,
                candidates,
                max_warmup_len=config.max_warmup_len,
                length_penalty=config.length_penalty,
            )
        elif config.rank_by == "mbr":
            assert self._decode is not None

            ranked = [rank_by_mbr(group, self._decode) for group in candidates]
        else:
            ranked = [rank_by_log_prob(group) for group in candidates]

        return ranked

    def _create_search(
        self, run: _Run, max_len: int, num_groups: int, *, skip: int = 0
    ) -> RowSearch:
        """
        :param max_len: The most tokens that will be drawn.
        :param num_groups: The number of groups a source.
        :param skip: The number of draws that the warmups have used up.
        """
        config = self._config

        draw = None

        if config.sampling:
            draw = self._create_draw(run, max_len, num_groups, skip=skip)

        return RowSearch(
            self._layout,
            beam_size=1 if config.sampling else config.beam_size,
            length_penalty=config.length_penalty,
            # Several that are asked for have to differ; more than they are found.
            num_best=1 if config.num_best == 1 else None,
            early_stopping=config.early_stopping,
            no_repeat_ngram_size=config.no_repeat_ngram_size,
            ban_unk=config.ban_unk,
            knows_separator=config.warmup != "none",
            draw=draw,
            on_step=self._create_hook(num_groups),
        )

    def _create_hook(self, num_groups: int) -> StepCallback | None:
        on_step = self.on_step

        if on_step is None:
            return None

        def hook(groups: Tensor, seqs: Tensor, log_probs: Tensor) -> None:
            on_step(groups // num_groups, seqs, log_probs)

        return hook

    def _create_draw(
        self, run: _Run, max_len: int, num_groups: int, *, skip: int = 0
    ) -> TokenDraw:
        config = self._config

        return TokenDraw(
            run.draw_uniforms(config.seed, skip + max_len, num_groups)[:, skip:],
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
        )


def _drop_duplicates(hypotheses: Sequence[Hypothesis]) -> list[Hypothesis]:
    """Keeps the first one of each output: the one with its best warmup."""
    first: dict[tuple[int, ...], Hypothesis] = {}

    for hypothesis in hypotheses:
        first.setdefault(tuple(hypothesis.target), hypothesis)

    return list(first.values())


@final
@dataclass(kw_only=True)
class _Run:
    """Holds a batch of sources while their outputs are generated."""

    model: ConditionalModel

    encoded: EncodedSource

    prefixes: Tensor
    """What stands before the first token to write. *Shape:* :math:`(N,P)`."""

    space: SearchSpace

    line_numbers: Sequence[int]

    plain: _Run | None = None
    """The same sources on their way to an output without a warmup, if it counts."""

    @property
    def num_sources(self) -> int:
        return self.prefixes.size(0)

    def start(self, num_groups: int) -> tuple[RowDecoder, Tensor]:
        """
        Feeds the prefixes of as many groups of each source.

        :returns: The decoder and the logits of what follows. *Shape:* :math:`(M,V)`.
        """
        sources = torch.arange(self.num_sources, device=self.prefixes.device)

        decoder = self.model.start(
            self.encoded, sources, self.prefixes.size(1) + self.space.max_len
        )

        # All groups of a source begin alike.
        logits = decoder.step(self.prefixes)

        if num_groups > 1:
            groups = sources.repeat_interleave(num_groups)

            decoder.select(groups)

            logits = logits.index_select(0, groups)

        return decoder, logits

    def repeat_space(self, num_groups: int) -> SearchSpace:
        """Returns the search space of as many groups of each source."""
        if num_groups == 1:
            return self.space

        def repeat(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.repeat_interleave(num_groups, dim=0)

        space = self.space

        return replace(
            space,
            limits=space.limits.repeat_interleave(num_groups),
            min_lens=space.min_lens.repeat_interleave(num_groups),
            forced=repeat(space.forced),
            forced_lens=repeat(space.forced_lens),
        )

    def draw_uniforms(self, seed: int, num_steps: int, num_groups: int) -> Tensor:
        """See :func:`draw_line_uniforms`. *Shape:* :math:`(M,T)`."""
        uniforms = draw_line_uniforms(seed, self.line_numbers, num_groups, num_steps)

        return uniforms.to(self.prefixes.device)
