# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
The decoder sequence ``[prefix] c₁…c_m SEP y₁…y_n EOS``.

This module alone builds it, marks its parts and splits it again; nobody else does
index arithmetic on decoder sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from warmup_plugin.errors import WarmupError


@final
@dataclass(frozen=True)
class DecoderLayout:
    """Holds the fixed tokens of a decoder sequence."""

    separator_idx: int
    """The token that ends a warmup; text never encodes to it."""

    eos_idx: int
    """The token that ends the target."""

    pad_idx: int
    """The token that fills a batch."""

    prefix_len: int
    """The number of tokens before the warmup (BOS, language token)."""

    vocab_size: int
    """The number of tokens that may be generated."""

    banned_in_warmup: tuple[int, ...]
    """The tokens that a warmup never holds: control symbols and unknown."""

    banned_in_target: tuple[int, ...]
    """The tokens that are never generated after the separator. All but the separator
    itself have a probability there nevertheless, see :meth:`excluded_tokens`."""

    unk_idx: int | None = None
    """The token that stands for what the vocabulary does not hold."""

    ends_like_text: bool = False
    """If ``True``, a warmup ends where a text would: the separator has the probability
    of EOS, and is read, but never learned to be written; see ``tokenizer.warmup_end``."""

    @property
    def warmup_end_idx(self) -> int:
        """The token whose logit decides whether a warmup ends."""
        return self.eos_idx if self.ends_like_text else self.separator_idx

    def room(self, max_row_len: int, max_warmup_len: int | None) -> int:
        """
        Returns the most tokens of y and EOS together behind the longest warmup.

        :param max_row_len: The number of tokens that the model reads of a row.
        :param max_warmup_len: ``None`` for rows without separator; 0 for the empty
            warmup.
        """
        num_before = self.prefix_len

        if max_warmup_len is not None:
            num_before += max_warmup_len + 1

        # EOS is only ever predicted.
        return max_row_len - num_before + 1

    def excluded_tokens(self, num_logits: int, device: torch.device) -> ExcludedTokens:
        """
        Lists the tokens that have probability zero in each part of a sequence with a
        separator.

        A warmup excludes what only an output may hold, EOS first of all, or, if it
        :attr:`ends_like_text`, the separator instead; and y excludes the separator. Each of the two ends one part; where both stood in one softmax,
        learning to write either would be learning not to write the other.

        :param num_logits: The width of the model's output projection; a padded
            vocabulary has rows that no token stands for.
        """
        padding = range(self.vocab_size, num_logits)

        in_warmup = {*self.banned_in_warmup, self.separator_idx} - {self.warmup_end_idx}

        return ExcludedTokens(
            torch.tensor([*sorted(in_warmup), *padding], device=device),
            torch.tensor([self.separator_idx], device=device),
        )

    def warmup_tokens(self, num_logits: int, device: torch.device) -> WarmupTokens:
        """
        Returns what restricts logits to the tokens of a warmup, for whoever writes one.

        :param num_logits: See :meth:`excluded_tokens`.
        """
        padding = range(self.vocab_size, num_logits)

        return WarmupTokens(
            torch.tensor([*self.banned_in_warmup, *padding], device=device),
            self.separator_idx,
            self.warmup_end_idx,
        )

    def unwritten_tokens(self, num_logits: int, device: torch.device) -> ExcludedTokens:
        """
        Lists the tokens that generation writes in no part of a sequence, so that outputs
        that are drawn have the probability that is learned; the unknown token, which
        references may hold, is written.

        :param num_logits: See :meth:`excluded_tokens`.
        """
        in_target = {*self.banned_in_target, *range(self.vocab_size, num_logits)}

        if self.unk_idx is not None and self.unk_idx != self.pad_idx:
            in_target.discard(self.unk_idx)

        return ExcludedTokens(
            self.excluded_tokens(num_logits, device).in_warmup,
            torch.tensor(sorted(in_target), device=device),
        )


@final
@dataclass(frozen=True)
class ExcludedTokens:
    """Holds the tokens that a softmax leaves out, by the part of the sequence."""

    in_warmup: Tensor
    """Those without probability in P(c|x). *Shape:* :math:`(X)`."""

    in_target: Tensor
    """Those without probability in P(y|c,x). *Shape:* :math:`(X)`."""

    @staticmethod
    def none(device: torch.device) -> ExcludedTokens:
        """Leaves nothing out: plain fine-tuning, which knows no separator."""
        nothing = torch.zeros(0, dtype=torch.long, device=device)

        return ExcludedTokens(nothing, nothing)


@final
@dataclass(frozen=True)
class WarmupTokens:
    """Restricts logits to the tokens that a warmup is written with, its end included."""

    banned: Tensor
    """*Shape:* :math:`(X)`."""

    separator_idx: int

    end_idx: int
    """The token whose logit the separator has."""

    def restrict(self, logits: Tensor) -> Tensor:
        """
        Restricts logits, in place.

        :param logits: *Shape:* :math:`(B,V)`.
        """
        if self.end_idx != self.separator_idx:
            logits[:, self.separator_idx] = logits[:, self.end_idx]

        return logits.index_fill_(1, self.banned, -torch.inf)


@final
@dataclass(frozen=True)
class DecoderRows:
    """
    Holds decoder sequences as a model is trained on them: ``targets[b, s]`` is the
    token that follows ``seqs[b, s]``.
    """

    seqs: Tensor
    """The decoder inputs. *Shape:* :math:`(B,S)`."""

    seq_lens: list[int]
    """The lengths of the inputs."""

    targets: Tensor
    """The tokens to predict. *Shape:* :math:`(B,S)`."""

    warmup_mask: Tensor
    """``True`` where the prediction counts in log P(c|x): the warmup and its
    separator, unless the separator was forced. *Shape:* :math:`(B,S)`."""

    target_mask: Tensor
    """``True`` where the prediction counts in log P(y|c,x). *Shape:* :math:`(B,S)`."""

    source_idx: Tensor
    """The source that each row belongs to. *Shape:* :math:`(B)`."""

    def select(self, rows: Tensor) -> DecoderRows:
        """
        Picks rows.

        :param rows: *Shape:* :math:`(R)`.
        """
        return DecoderRows(
            seqs=self.seqs.index_select(0, rows),
            seq_lens=[self.seq_lens[i] for i in rows.tolist()],
            targets=self.targets.index_select(0, rows),
            warmup_mask=self.warmup_mask.index_select(0, rows),
            target_mask=self.target_mask.index_select(0, rows),
            source_idx=self.source_idx.index_select(0, rows),
        )


def join_rows(
    layout: DecoderLayout,
    target_seqs: Tensor,
    target_seq_lens: Tensor,
    warmups: Tensor,
    warmup_lens: Tensor,
    warmup_cut: Tensor,
    with_separator: Tensor,
    target_idx: Tensor,
    source_idx: Tensor | None = None,
    given_lens: Tensor | None = None,
) -> DecoderRows:
    """
    Puts each warmup between the prefix and the rest of its target.

    :param target_seqs: The targets as the tokenizer makes them, ``[prefix] y EOS``,
        padded. *Shape:* :math:`(N,S_{tgt})`.
    :param target_seq_lens: The lengths of the targets. *Shape:* :math:`(N)`.
    :param warmups: The warmups without separator, padded. *Shape:* :math:`(B,C)`.
    :param warmup_lens: The lengths of the warmups; 0 for none. *Shape:* :math:`(B)`.
    :param warmup_cut: ``True`` if the separator was forced at the length limit: its
        probability is 1 and not the model's to learn. *Shape:* :math:`(B)`.
    :param with_separator: ``False`` for rows of plain fine-tuning, which have no
        warmup and no separator. *Shape:* :math:`(B)`.
    :param target_idx: The target that each row takes. *Shape:* :math:`(B)`.
    :param source_idx: The source that each row belongs to; ``None`` if each source has
        one target, of the same number. *Shape:* :math:`(B)`.
    :param given_lens: The number of tokens that each target begins with, behind its
        prefix, which are given and do not count in log P(y|c,x); ``None`` for none.
        *Shape:* :math:`(N)`.
    """
    if source_idx is None:
        source_idx = target_idx

    prefix_len = layout.prefix_len

    # (B, 1)
    m = warmup_lens.unsqueeze(1)
    s = with_separator.long().unsqueeze(1)
    n = target_seq_lens.index_select(0, target_idx).unsqueeze(1)

    # Where the separator stands, where y begins, where the row ends: (B, 1)
    separator_at = prefix_len + m
    target_at = separator_at + s
    end = n + m + s

    width = int(end.max())

    # (1, S + 1)
    at = torch.arange(width, device=target_seqs.device).unsqueeze(0)

    in_prefix = at < prefix_len
    in_warmup = (at >= prefix_len) & (at < separator_at)
    is_separator = (at == separator_at) & (s == 1)
    in_row = at < end

    # (B, S + 1)
    target_pos = torch.where(in_prefix, at, at - m - s)
    target_pos = target_pos.clamp(0, target_seqs.size(1) - 1)

    seqs = target_seqs.index_select(0, target_idx).gather(1, target_pos)

    if warmups.size(1) > 0:
        warmup_pos = (at - prefix_len).clamp(0, warmups.size(1) - 1)

        warmup_tokens = warmups.gather(1, warmup_pos.expand(warmups.size(0), -1))

        seqs = torch.where(in_warmup, warmup_tokens, seqs)

    seqs = torch.where(is_separator, layout.separator_idx, seqs)
    seqs = torch.where(in_row, seqs, layout.pad_idx)

    counted_separator = is_separator & ~warmup_cut.unsqueeze(1)

    warmup_mask = in_warmup | counted_separator
    learned_at = target_at

    if given_lens is not None:
        learned_at = target_at + given_lens.index_select(0, target_idx).unsqueeze(1)

    target_mask = (at >= learned_at) & in_row

    predicted = seqs

    if layout.ends_like_text:
        predicted = torch.where(is_separator, layout.eos_idx, seqs)

    # The last token of a row is only ever predicted.
    return DecoderRows(
        seqs=seqs[:, :-1],
        seq_lens=(end - 1).squeeze(1).tolist(),
        targets=predicted[:, 1:],
        warmup_mask=warmup_mask[:, 1:],
        target_mask=target_mask[:, 1:],
        source_idx=source_idx,
    )


def plain_rows(
    layout: DecoderLayout,
    target_seqs: Tensor,
    target_seq_lens: Tensor,
    *,
    with_separator: bool,
    given_lens: Tensor | None = None,
) -> DecoderRows:
    """
    Builds rows without warmup, one a source.

    :param with_separator: If ``True``, the rows have the empty warmup, ``[prefix] SEP y
        EOS``, whose separator is given; else they are those of plain fine-tuning,
        ``[prefix] y EOS``.
    :param given_lens: See :func:`join_rows`.
    """
    num_rows = target_seqs.size(0)

    device = target_seqs.device

    separators = torch.full((num_rows,), with_separator, device=device)

    return join_rows(
        layout,
        target_seqs,
        target_seq_lens,
        warmups=torch.zeros((num_rows, 0), dtype=torch.long, device=device),
        warmup_lens=torch.zeros(num_rows, dtype=torch.long, device=device),
        warmup_cut=separators,
        with_separator=separators,
        target_idx=torch.arange(num_rows, device=device),
        given_lens=given_lens,
    )


def split_seq(layout: DecoderLayout, seq: Sequence[int]) -> tuple[list[int], list[int]]:
    """
    Splits a generated sequence (without prefix) into warmup and target.

    A sequence without separator, as plain fine-tuning generates it, has an empty
    warmup. EOS and what follows it are dropped.

    :raises WarmupError: If the separator occurs more than once.
    """
    tokens = list(seq)

    if layout.eos_idx in tokens:
        tokens = tokens[: tokens.index(layout.eos_idx)]

    if tokens.count(layout.separator_idx) > 1:
        raise WarmupError(
            f"A generated sequence holds the separator {tokens.count(layout.separator_idx)} times; it must hold it once."
        )

    if layout.separator_idx not in tokens:
        return [], tokens

    idx = tokens.index(layout.separator_idx)

    return tokens[:idx], tokens[idx + 1 :]
