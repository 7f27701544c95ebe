# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
One small interface over fairseq2's models: encode a source once, decode rows
against it.

For an encoder-decoder the source is what the encoder reads; for a decoder-only model it
is the prompt, whose keys and values all rows of that source share. Rows are the decoder
sequences of ``layout.py``; a decoder-only model reads them behind the prompt.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

from fairseq2.nn import BatchLayout
from torch import Tensor
from torch.nn import Module

from warmup_plugin.layout import DecoderRows, ExcludedTokens
from warmup_plugin.models.rows import SourceMemory


@final
@dataclass(frozen=True)
class EncodedSource:
    """Holds N sources as rows see them."""

    seqs: Tensor
    """The encoder's output, *Shape:* :math:`(N,S_{src},M)`, or the tokens of prompts,
    *Shape:* :math:`(N,S_{src})`."""

    layout: BatchLayout

    memory: SourceMemory
    """The keys and values of the sources; filled by the first pass without gradient
    that needs them."""

    others: tuple[EncodedSource, ...] = ()
    """The same sources as the other models of an ensemble see them."""

    def detach(self) -> EncodedSource:
        """
        Returns what an encoder has read with gradient as if it had done so without.

        Not for prompts, which are not read before their rows with gradient.
        """
        memory = SourceMemory(self.layout.seq_lens, self.seqs.size(1), self.seqs.device)

        return EncodedSource(self.seqs.detach(), self.layout, memory)

    def select(self, idx: Tensor) -> EncodedSource:
        """
        Returns some of the sources of an encoder, at least one.

        :param idx: *Shape:* :math:`(N')`.
        """
        seq_lens = [self.layout.seq_lens[n] for n in idx.tolist()]

        seqs = self.seqs.index_select(0, idx)[:, : max(seq_lens)]

        memory = SourceMemory(seq_lens, seqs.size(1), seqs.device)

        return EncodedSource(seqs, BatchLayout.of(seqs, seq_lens), memory)


class RowScores(NamedTuple):
    """Holds the log-probabilities of decoder rows, natural logarithm, fp32."""

    warmup_log_probs: Tensor
    """log P(c|x). *Shape:* :math:`(B)`."""

    target_log_probs: Tensor
    """log P(y|c,x). *Shape:* :math:`(B)`."""


@final
@dataclass(frozen=True)
class RowCoefs:
    """
    Holds what multiplies the log-probabilities of decoder rows in a loss: constants.

    A class of its own, since FSDP casts the tensors that a ``forward`` is given to a
    lower precision, but only in containers that PyTorch knows.
    """

    warmup: Tensor
    """What multiplies log P(c|x), fp32. *Shape:* :math:`(B)`."""

    target: Tensor
    """What multiplies log P(y|c,x), fp32. *Shape:* :math:`(B)`."""


@final
class RowLosses:
    """
    Is told what each row adds to a loss.

    A class of its own, as :class:`RowCoefs` is.
    """

    target: Tensor | None = None
    """v log P(y|c,x), label smoothing included, without gradient; ``None`` before the
    pass. *Shape:* :math:`(B)`."""


class RowDecoder(ABC):
    """Decodes rows one step after the other, remembering their past."""

    scores_any_length: ClassVar[bool] = True
    """Whether rows to :meth:`score` may be longer than it was started for."""

    @abstractmethod
    def step(self, tokens: Tensor, rows: Tensor | None = None) -> Tensor:
        """
        Feeds the next tokens of rows.

        :param tokens: *Shape:* :math:`(A,S_{step})`.
        :param rows: The rows that they belong to; ``None`` for all. A row that is left
            out once has ended and is not fed again. *Shape:* :math:`(A)`.

        :returns: The logits of the token that follows. *Shape:* :math:`(A,V)`.
        """

    @abstractmethod
    def select(self, rows: Tensor) -> None:
        """
        Keeps, repeats or reorders rows.

        :param rows: The indices of the rows to go on with. *Shape:* :math:`(B')`.
        """

    @abstractmethod
    def select_beams(
        self, beams: Tensor, groups: Tensor | None, max_beams: int
    ) -> None:
        """
        Goes on with beams: A groups of as many rows each, one behind the other, at first
        of one. From then on, they are only fed a token a step and selected so.

        In contrast to :meth:`select`, nothing that has been remembered is moved as long
        as all groups go on.

        :param beams: The row of the same group that each beam goes on from. *Shape:*
            :math:`(A',G)`.
        :param groups: The groups that go on; ``None`` for all. *Shape:* :math:`(A')`.
        :param max_beams: The most beams of a group, the same at each call.
        """

    @abstractmethod
    def fork(self, rows: Tensor) -> None:
        """
        Adds copies of rows behind all others.

        :param rows: The rows to copy. *Shape:* :math:`(F)`.
        """

    @abstractmethod
    def rewind(self, past_lens: Tensor) -> None:
        """
        Forgets what rows were fed beyond a number of tokens; all go on from there.

        :param past_lens: At most what the row was fed. *Shape:* :math:`(B)`.
        """

    @abstractmethod
    def score(
        self, rows: DecoderRows, past_lens: Tensor, excluded: ExcludedTokens
    ) -> Tensor:
        """
        Scores the targets of rows whose first tokens have been fed, without gradient.

        :param rows: One for each row of this decoder, in the same order.
        :param past_lens: The number of tokens that each of them has been fed; what it
            was fed beyond them is forgotten. *Shape:* :math:`(B)`.
        :param excluded: See :meth:`~warmup_plugin.ConditionalModel.score`.

        :returns: log P(y|c,x). *Shape:* :math:`(B)`.
        """


class ConditionalModel(ABC):
    """A model of P(decoder sequence | source)."""

    @abstractmethod
    def encode(self, source_seqs: Tensor, source_layout: BatchLayout) -> EncodedSource:
        """
        Encodes the sources once for all rows that will be decoded against them.

        What is encoded with gradient is to be scored with gradient, what is encoded
        without is to be decoded and scored without.

        :param source_seqs: *Shape:* :math:`(N,S_{src})`.
        """

    @abstractmethod
    def start(
        self, source: EncodedSource, source_idx: Tensor, max_len: int
    ) -> RowDecoder:
        """
        Begins to decode rows, without gradient.

        :param source_idx: The source of each row. *Shape:* :math:`(B)`.
        :param max_len: The largest number of tokens that a row will be fed.
        """

    @abstractmethod
    def score(
        self, source: EncodedSource, rows: DecoderRows, excluded: ExcludedTokens
    ) -> RowScores:
        """
        Scores whole rows in one pass.

        :param excluded: The tokens of probability zero in each part: a is the
            log-probability under the distribution that warmups are drawn from.
        """

    @abstractmethod
    def compute_loss(
        self,
        source_seqs: Tensor,
        source_layout: BatchLayout,
        rows: DecoderRows,
        coefs: RowCoefs,
        excluded: ExcludedTokens,
        *,
        label_smoothing: float = 0.0,
        passes: Sequence[Tensor] | None = None,
        source: EncodedSource | None = None,
        losses: RowLosses | None = None,
    ) -> Tensor:
        r"""
        Computes :math:`\sum_b (u_b \log P(c_b|x) + v_b \log P(y|c_b,x))` for the
        coefficients u and v, with gradient and in little memory.

        To be called through the ``forward`` of the data parallel wrapper, see
        :func:`~warmup_plugin.models.scorable.make_scorable`.

        :param source_seqs: *Shape:* :math:`(N,S_{src})`.
        :param label_smoothing: The share of label smoothing in log P(y|c,x), as
            fairseq2's ``cross_entropy`` defines it.
        :param passes: If given, the rows that are read in each of several passes, which
            are computed again in the backward pass: only the memory of one is needed at
            a time. A pass may be empty, where other ranks have more. *Shape:*
            :math:`(R)` each.
        :param source: The same sources, if this model has encoded them with gradient;
            not as the wrapper of FSDP, which must be called to encode.
        :param losses: If given, is told the terms of the second kind.

        :returns: *Shape:* scalar.
        """

    @property
    @abstractmethod
    def num_logits(self) -> int:
        """The width of the output projection."""

    @property
    @abstractmethod
    def reads_prompts(self) -> bool:
        """``True`` if the model is decoder-only: a source is a prompt, which rows
        continue."""

    @property
    @abstractmethod
    def max_source_len(self) -> int:
        """The number of tokens that a source may have."""

    @abstractmethod
    def get_max_target_len(self, source_len: int) -> int:
        """
        Returns the number of tokens that a row may have.

        :param source_len: The length of its source; a prompt takes room as well.
        """

    @property
    @abstractmethod
    def module(self) -> Module:
        """The fairseq2 model."""


@contextmanager
def evaluation_mode(module: Module) -> Iterator[None]:
    """
    Switches ``module`` to evaluation and back.

    Warmups are drawn and weighed without dropout.
    """
    training = module.training

    module.eval()

    try:
        yield
    finally:
        module.train(training)
