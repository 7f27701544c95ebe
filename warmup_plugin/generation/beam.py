# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from fairseq2.nn import BatchLayout
from fairseq2.utils.validation import Validatable, ValidationResult
from torch import Tensor
from typing_extensions import override

from warmup_plugin.errors import WarmupError
from warmup_plugin.layout import DecoderLayout, split_seq
from warmup_plugin.models.conditional import ConditionalModel


@dataclass(kw_only=True)
class BeamSearchConfig(Validatable):
    """Configures beam search through warmup and output."""

    beam_size: int = 5
    """The number of partial sequences kept a source; 1 is greedy search."""

    length_penalty: float = 1.0
    """The exponent of the length that divides a sequence's log-probability; 0.0 favours short output, larger values long output."""

    max_len_a: float = 1.5
    """The output is at most ``max_len_a * source length + max_len_b`` tokens long."""

    max_len_b: int = 20
    """See ``max_len_a``."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if self.beam_size < 1:
            result.add_error("`beam_size` must be greater than or equal to 1.")

        if self.max_len_a < 0.0:
            result.add_error("`max_len_a` must be greater than or equal to 0.")

        if self.max_len_b < 1:
            result.add_error("`max_len_b` must be greater than or equal to 1.")

        return result


@final
@dataclass(frozen=True)
class Hypothesis:
    """Holds one output for a source."""

    warmup: list[int]
    """The tokens of the warmup, without separator; empty for plain models."""

    target: list[int]
    """The tokens of the output, without EOS."""

    score: float
    """The log-probability of the whole sequence, divided by length **
    length_penalty."""

    log_prob: float
    """The log-probability of warmup, separator, output and EOS together."""


@final
class BeamSearch:
    """
    Searches the likeliest ``warmup SEP output EOS`` by one beam.

    A warmup is always well formed: no control symbol inside, ended by the separator
    within its limit. All limits are per source, so the output of a sentence does not
    depend on its batch.
    """

    def __init__(
        self,
        model: ConditionalModel,
        layout: DecoderLayout,
        config: BeamSearchConfig,
        *,
        max_warmup_len: int | None,
    ) -> None:
        """
        :param model: In evaluation mode.
        :param max_warmup_len: The most tokens of a warmup; ``None`` for a model that
            writes no warmup (plain fine-tuning).
        """
        self._model = model
        self._layout = layout
        self._config = config
        self._max_warmup_len = max_warmup_len

    @torch.no_grad()
    def __call__(
        self, source_seqs: Tensor, source_seq_lens: list[int], prefixes: Tensor
    ) -> list[Hypothesis]:
        """
        :param source_seqs: *Shape:* :math:`(N,S_{src})`.
        :param prefixes: The tokens before the warmup. *Shape:* :math:`(N,P)`.

        :returns: The best hypothesis of each source.

        :raises WarmupError: If a warmup may be as long as all that the model reads, or
            if the model gives a probability that is not a number.
        """
        layout, config = self._layout, self._config

        device = source_seqs.device

        num_sources, prefix_len = prefixes.shape

        beam_size = config.beam_size

        max_warmup_len = self._max_warmup_len

        # The most tokens that each source leaves for an output and EOS.
        rooms = [
            self._model.get_max_target_len(n) - prefix_len for n in source_seq_lens
        ]

        if max_warmup_len is not None:
            rooms = [room - max_warmup_len - 1 for room in rooms]

        # A word and EOS at least.
        if min(rooms) < 2:
            raise WarmupError(
                f"`max_warmup_len` is {max_warmup_len}, which leaves no room for an output in the {min(map(self._model.get_max_target_len, source_seq_lens))} tokens that the model reads; lower it."
            )

        # The most output tokens of each source, EOS not counted: (N)
        limits = torch.tensor(
            [
                min(int(config.max_len_a * n + config.max_len_b), room - 1)
                for n, room in zip(source_seq_lens, rooms)
            ],
            device=device,
        )

        max_len = int(limits.max()) + 1

        if max_warmup_len is not None:
            max_len += max_warmup_len + 1

        encoded = self._model.encode(
            source_seqs, BatchLayout.of(source_seqs, source_seq_lens)
        )

        # The sources still searched, by their number in the full batch.
        active = torch.arange(num_sources, device=device)

        decoder = self._model.start(
            encoded, active.repeat_interleave(beam_size), prefix_len + max_len
        )

        num_logits = self._model.num_logits

        warmup_ban = layout.warmup_ban_mask(num_logits, device)
        target_ban = layout.target_ban_mask(num_logits, device)

        # All beams of a source begin alike; only the first may be extended at first.
        # (N, G)
        log_probs = torch.full((num_sources, beam_size), -torch.inf, device=device)

        log_probs[:, 0] = 0.0

        # (N, G, T)
        seqs = torch.full(
            (num_sources, beam_size, max_len), layout.pad_idx, device=device
        )

        # The number of warmup tokens so far and whether the separator is written.
        # (N, G)
        warmup_lens = torch.zeros_like(log_probs, dtype=torch.long)

        in_target = torch.full_like(
            warmup_lens, max_warmup_len is None, dtype=torch.bool
        )

        # (N, G), (N, G), (N, G, T), by the number in the full batch
        final_scores = torch.full_like(log_probs, -torch.inf)
        final_log_probs = torch.full_like(log_probs, -torch.inf)
        final_seqs = seqs.clone()

        # (N, P) -> (N x G, P)
        tokens = prefixes.repeat_interleave(beam_size, dim=0)

        for step_nr in range(max_len):
            num_active = active.size(0)

            # (A x G, V) -> (A, G, V), A active sources
            logits = decoder.step(tokens).float().view(num_active, beam_size, -1)

            step_log_probs = self._constrain(
                logits,
                in_target,
                warmup_lens,
                target_lens=step_nr - warmup_lens - int(max_warmup_len is not None),
                limits=limits,
                warmup_ban=warmup_ban,
                target_ban=target_ban,
            )

            # (A, G, V) -> (A, G x V)
            totals = (log_probs.unsqueeze(2) + step_log_probs).flatten(1)

            # At most G of them end, so G go on.
            num_candidates = min(2 * beam_size, totals.size(1))

            # (A, 2G)
            top_log_probs, top_idx = totals.topk(num_candidates, dim=1)

            if bool(top_log_probs.isnan().any()):
                raise WarmupError(
                    "The model gave a token a probability that is not a number, so its training has diverged; use an earlier checkpoint."
                )

            top_beams = top_idx // num_logits
            top_tokens = top_idx % num_logits

            ends = (top_tokens == layout.eos_idx) & top_log_probs.isfinite()

            # A sequence that ends below the beam is dropped, as it would be pruned if
            # it went on.
            ends_in_beam = ends.clone()

            ends_in_beam[:, beam_size:] = False

            # The separator counts into the length, as EOS does.
            scores = top_log_probs / (step_nr + 1) ** config.length_penalty

            scores = scores.masked_fill(~ends_in_beam, -torch.inf)

            # (A, 2G, T)
            ended_seqs = seqs.gather(1, top_beams.unsqueeze(2).expand(-1, -1, max_len))

            # (A, 3G)
            pool_scores = torch.cat([final_scores[active], scores], dim=1)

            # (A, G)
            best_scores, best_idx = pool_scores.topk(beam_size, dim=1)

            final_scores[active] = best_scores

            final_log_probs[active] = torch.cat(
                [final_log_probs[active], top_log_probs], dim=1
            ).gather(1, best_idx)

            final_seqs[active] = torch.cat(
                [final_seqs[active], ended_seqs], dim=1
            ).gather(1, best_idx.unsqueeze(2).expand(-1, -1, max_len))

            # The best G that go on: (A, G)
            log_probs, order = top_log_probs.masked_fill(ends, -torch.inf).topk(
                beam_size, dim=1
            )

            beams = top_beams.gather(1, order)

            next_tokens = top_tokens.gather(1, order)

            seqs = seqs.gather(1, beams.unsqueeze(2).expand(-1, -1, max_len))

            seqs[:, :, step_nr] = next_tokens

            in_target = in_target.gather(1, beams)
            warmup_lens = warmup_lens.gather(1, beams)

            warmup_lens += (~in_target & (next_tokens != layout.separator_idx)).long()

            in_target = in_target | (next_tokens == layout.separator_idx)

            # A source is done once G sequences have ended or nothing goes on.
            full = final_scores[active].isfinite().all(dim=1)

            going = ~full & log_probs.isfinite().any(dim=1)

            # (A')
            kept = going.nonzero().squeeze(1)

            if kept.size(0) == 0:
                break

            # (A, G) -> (A x G)
            rows = beams + beam_size * torch.arange(
                num_active, device=device
            ).unsqueeze(1)

            if kept.size(0) < num_active:
                active = active.index_select(0, kept)
                log_probs = log_probs.index_select(0, kept)
                seqs = seqs.index_select(0, kept)
                in_target = in_target.index_select(0, kept)
                warmup_lens = warmup_lens.index_select(0, kept)
                limits = limits.index_select(0, kept)
                next_tokens = next_tokens.index_select(0, kept)

                rows = rows.index_select(0, kept)

            if beam_size > 1 or kept.size(0) < num_active:
                decoder.select(rows.flatten())

            tokens = next_tokens.reshape(-1, 1)

        best_seqs = final_seqs[:, 0].tolist()

        hypotheses = []

        for seq, score, log_prob in zip(
            best_seqs, final_scores[:, 0].tolist(), final_log_probs[:, 0].tolist()
        ):
            # EOS itself was never written into the sequence; padding ends it.
            seq = seq[: seq.index(layout.pad_idx)] if layout.pad_idx in seq else seq

            warmup, target = split_seq(layout, seq)

            hypotheses.append(Hypothesis(warmup, target, score, log_prob))

        return hypotheses

    def _constrain(
        self,
        logits: Tensor,
        in_target: Tensor,
        warmup_lens: Tensor,
        *,
        target_lens: Tensor,
        limits: Tensor,
        warmup_ban: Tensor,
        target_ban: Tensor,
    ) -> Tensor:
        """
        Turns logits into log-probabilities of the tokens that may come next.

        Within a warmup the distribution is the one that training draws from; a
        separator forced at the limit has probability 1, so it costs nothing.

        :param logits: *Shape:* :math:`(A,G,V)`.
        """
        layout = self._layout

        # (A, G, V)
        log_probs = torch.log_softmax(logits, dim=-1)

        log_probs = log_probs.masked_fill(target_ban, -torch.inf)

        # Only EOS may follow an output of full length.
        at_limit = in_target & (target_lens >= limits.unsqueeze(1))

        eos_log_probs = log_probs[:, :, layout.eos_idx]

        log_probs = log_probs.masked_fill(at_limit.unsqueeze(2), -torch.inf)

        log_probs[:, :, layout.eos_idx] = eos_log_probs

        max_warmup_len = self._max_warmup_len

        if max_warmup_len is None:
            return log_probs

        warmup_log_probs = torch.log_softmax(
            logits.masked_fill(warmup_ban, -torch.inf), dim=-1
        )

        forced = warmup_lens >= max_warmup_len

        warmup_log_probs = warmup_log_probs.masked_fill(forced.unsqueeze(2), -torch.inf)

        warmup_log_probs[:, :, layout.separator_idx] = warmup_log_probs[
            :, :, layout.separator_idx
        ].masked_fill(forced, 0.0)

        return torch.where(in_target.unsqueeze(2), log_probs, warmup_log_probs)
