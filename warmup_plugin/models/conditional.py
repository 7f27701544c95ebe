# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
One small interface over fairseq2's models: encode a source once, decode rows
against it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from fairseq2.models.transformer import TransformerModel
from fairseq2.nn import BatchLayout, IncrementalStateBag
from fairseq2.nn.functional import cross_entropy
from torch import Tensor
from torch.nn import Module
from typing_extensions import override

from warmup_plugin.errors import WarmupError
from warmup_plugin.layout import DecoderRows


@final
@dataclass(frozen=True)
class EncodedSource:
    """Holds the encoder's output for N sources."""

    seqs: Tensor
    """*Shape:* :math:`(N,S_{src},M)`."""

    seq_lens: list[int]
    """The lengths of the sources."""

    def expand(self, source_idx: Tensor) -> tuple[Tensor, BatchLayout]:
        """
        Gives each decoder row its source.

        :param source_idx: *Shape:* :math:`(B)`.
        """
        # (N, S_src, M) -> (B, S_src, M)
        seqs = self.seqs.index_select(0, source_idx)

        seq_lens = [self.seq_lens[i] for i in source_idx.tolist()]

        return seqs, BatchLayout.of(seqs, seq_lens)


class RowScores(NamedTuple):
    """
    Holds the log-probabilities of decoder rows, natural logarithm, fp32.

    A named tuple, since FSDP finds the tensors of a ``forward`` only in containers
    that PyTorch knows.
    """

    warmup_log_probs: Tensor
    """log P(c|x). *Shape:* :math:`(B)`."""

    target_log_probs: Tensor
    """log P(y|c,x), label smoothing applied if asked for. *Shape:* :math:`(B)`."""


class RowDecoder(ABC):
    """Decodes rows one step after the other, remembering their past."""

    @abstractmethod
    def step(self, tokens: Tensor) -> Tensor:
        """
        Feeds the next tokens of every row.

        :param tokens: *Shape:* :math:`(B,S_{step})`.

        :returns: The logits of the token that follows. *Shape:* :math:`(B,V)`.
        """

    @abstractmethod
    def select(self, rows: Tensor) -> None:
        """
        Keeps, repeats or reorders rows.

        :param rows: The indices of the rows to go on with. *Shape:* :math:`(B')`.
        """


class ConditionalModel(ABC):
    """A model of P(decoder sequence | source)."""

    @abstractmethod
    def encode(self, source_seqs: Tensor, source_layout: BatchLayout) -> EncodedSource:
        """
        Encodes the sources once for all rows that will be decoded against them.

        :param source_seqs: *Shape:* :math:`(N,S_{src})`.
        """

    @abstractmethod
    def start(
        self, source: EncodedSource, source_idx: Tensor, max_len: int
    ) -> RowDecoder:
        """
        Begins to decode rows.

        :param source_idx: The source of each row. *Shape:* :math:`(B)`.
        :param max_len: The largest number of tokens that a row will be fed.
        """

    @abstractmethod
    def score(
        self,
        source: EncodedSource,
        rows: DecoderRows,
        warmup_ban_mask: Tensor,
        *,
        label_smoothing: float = 0.0,
    ) -> RowScores:
        """
        Scores whole rows in one pass.

        :param warmup_ban_mask: ``True`` for tokens that a warmup cannot hold: a is
            the log-probability under the distribution that warmups are drawn from.
            *Shape:* :math:`(V)`.
        :param label_smoothing: The share of label smoothing in log P(y|c,x), as
            fairseq2's ``cross_entropy`` defines it. Zero for weights.
        """

    @property
    @abstractmethod
    def num_logits(self) -> int:
        """The width of the output projection."""

    @property
    @abstractmethod
    def max_target_len(self) -> int:
        """The longest decoder sequence that the model can read."""

    @property
    @abstractmethod
    def module(self) -> Module:
        """The fairseq2 model."""


def create_conditional_model(model: Module) -> ConditionalModel:
    """
    Wraps a fairseq2 model.

    :raises WarmupError: If its kind is not supported.
    """
    if isinstance(model, TransformerModel):
        return TransformerConditional(model)

    raise WarmupError(
        f"`model` is a `{type(model).__name__}`, which warmup_plugin cannot condition on a source; use an encoder-decoder of a family built on fairseq2's `TransformerModel`, such as `nllb`."
    )


@contextmanager
def evaluation_mode(module: Module) -> Iterator[None]:
    """
    Switches ``module`` to evaluation and back.

    In training mode fairseq2's attention ignores its cache without a word: each
    generated token would see only its predecessor.
    """
    training = module.training

    module.eval()

    try:
        yield
    finally:
        module.train(training)


@final
class TransformerConditional(ConditionalModel):
    """Serves fairseq2's encoder-decoder Transformers."""

    def __init__(self, model: TransformerModel) -> None:
        self._model = model

    @override
    def encode(self, source_seqs: Tensor, source_layout: BatchLayout) -> EncodedSource:
        seqs, layout = self._model.encoder_frontend(source_seqs, source_layout)

        return EncodedSource(
            self._model.encoder(seqs, layout), list(source_layout.seq_lens)
        )

    @override
    def start(
        self, source: EncodedSource, source_idx: Tensor, max_len: int
    ) -> RowDecoder:
        return _TransformerRowDecoder(self._model, source, source_idx, max_len)

    @override
    def score(
        self,
        source: EncodedSource,
        rows: DecoderRows,
        warmup_ban_mask: Tensor,
        *,
        label_smoothing: float = 0.0,
    ) -> RowScores:
        encoded, encoded_layout = source.expand(rows.source_idx)

        seqs, layout = self._model.decoder_frontend(
            rows.seqs, BatchLayout.of(rows.seqs, rows.seq_lens)
        )

        # (B, S, M)
        hidden = self._model.decoder(seqs, layout, encoded, encoded_layout)

        num_rows = rows.seqs.size(0)

        def sum_rows(row_idx: Tensor, values: Tensor) -> Tensor:
            sums = torch.zeros(num_rows, device=values.device, dtype=torch.float32)

            return sums.index_add(0, row_idx, values)

        # Only counted positions reach the output projection, the largest matrix of a
        # small model: (P, 2), P counted positions.
        row_idx, step_idx = rows.warmup_mask.nonzero(as_tuple=True)

        if row_idx.numel() > 0:
            # (P, V)
            logits = self._model.final_proj(hidden[row_idx, step_idx])

            logits = logits.float().masked_fill(warmup_ban_mask, -torch.inf)

            # (P)
            nll = cross_entropy(
                logits, rows.targets[row_idx, step_idx], None, reduction="none"
            )

            warmup_log_probs = sum_rows(row_idx, -nll)
        else:
            # Empty warmups with forced separators; keep the graph connected.
            warmup_log_probs = hidden.new_zeros(num_rows, dtype=torch.float32)

        row_idx, step_idx = rows.target_mask.nonzero(as_tuple=True)

        logits = self._model.final_proj(hidden[row_idx, step_idx])

        targets = rows.targets[row_idx, step_idx]

        nll = cross_entropy(
            logits,
            targets,
            None,
            label_smoothing=label_smoothing,
            reduction="none",
        )

        target_log_probs = sum_rows(row_idx, -nll.flatten())

        return RowScores(warmup_log_probs, target_log_probs)

    @property
    @override
    def num_logits(self) -> int:
        return int(self._model.final_proj.output_dim)

    @property
    @override
    def max_target_len(self) -> int:
        return self._model.max_target_seq_len

    @property
    @override
    def module(self) -> Module:
        return self._model


@final
class _TransformerRowDecoder(RowDecoder):
    def __init__(
        self,
        model: TransformerModel,
        source: EncodedSource,
        source_idx: Tensor,
        max_len: int,
    ) -> None:
        self._model = model

        self._encoded, self._encoded_layout = source.expand(source_idx)

        self._state_bag = IncrementalStateBag(max_len + 1)

        # Building a layout takes several PyTorch calls a row, a third of a small
        # model's step; from one compaction to the next it stays the same.
        self._tokens_layout: BatchLayout | None = None

        self._tokens_shape: tuple[int, ...] = ()

    @override
    def step(self, tokens: Tensor) -> Tensor:
        model = self._model

        if self._tokens_layout is None or self._tokens_shape != tokens.shape:
            self._tokens_layout = BatchLayout.of(tokens)

            self._tokens_shape = tokens.shape

        seqs, layout = model.decoder_frontend(
            tokens, self._tokens_layout, state_bag=self._state_bag
        )

        # (B, S_step, M)
        hidden = model.decoder(
            seqs,
            layout,
            self._encoded,
            self._encoded_layout,
            state_bag=self._state_bag,
        )

        self._state_bag.increment_step_nr(tokens.size(1))

        # From here on the state bag holds its projected keys and values, and only its
        # lengths are read; `select()` need not copy more.
        self._encoded = self._encoded[:, :, :0]

        # (B, S_step, M) -> (B, V)
        return model.final_proj(hidden[:, -1])

    @override
    def select(self, rows: Tensor) -> None:
        self._state_bag.reorder(rows)

        self._encoded = self._encoded.index_select(0, rows)

        seq_lens = self._encoded_layout.seq_lens

        self._encoded_layout = BatchLayout.of(
            self._encoded, [seq_lens[i] for i in rows.tolist()]
        )


class ScorableTransformer(TransformerModel):  # type: ignore[misc]
    """
    A ``TransformerModel`` whose ``forward`` can score decoder rows.

    DDP and FSDP synchronise gradients in the hooks of the wrapper's ``forward``; a
    submodule called directly is silently not synchronised. So the differentiable pass
    must be a call of the wrapped model itself. :func:`make_scorable` turns a model
    into this class in place: no parameter, name or checkpoint key changes.
    """

    def forward(  # type: ignore[override]
        self,
        source_seqs: Tensor,
        source_seqs_layout: BatchLayout,
        target_seqs: Tensor,
        target_seqs_layout: BatchLayout,
        targets: Tensor | None = None,
        *,
        rows: DecoderRows | None = None,
        warmup_ban_mask: Tensor | None = None,
        label_smoothing: float = 0.0,
        **kwargs: Any,
    ) -> Tensor | tuple[Tensor, Tensor] | RowScores:
        """
        Scores ``rows`` if given, else does what ``TransformerModel`` does.

        ``target_seqs`` and its layout are not read when ``rows`` is given; fairseq2's
        wrappers require a fixed signature, so they are still passed.
        """
        if rows is None or warmup_ban_mask is None:
            return super().forward(
                source_seqs,
                source_seqs_layout,
                target_seqs,
                target_seqs_layout,
                targets,  # type: ignore[arg-type]
                label_smoothing=label_smoothing,
                **kwargs,
            )

        conditional = TransformerConditional(self)

        source = conditional.encode(source_seqs, source_seqs_layout)

        return conditional.score(
            source, rows, warmup_ban_mask, label_smoothing=label_smoothing
        )


def make_scorable(model: Module) -> None:
    """
    Lets the ``forward`` of ``model`` score decoder rows.

    :raises WarmupError: If its kind is not supported.
    """
    if isinstance(model, ScorableTransformer):
        return

    if type(model) is not TransformerModel:
        # For the message.
        create_conditional_model(model)

        raise WarmupError(
            f"`model` is of the subclass `{type(model).__name__}` of `TransformerModel`; train an unmodified `TransformerModel`."
        )

    # The return value of `Recipe.setup_model()` is discarded by fairseq2 0.8.1, so only
    # a change in place survives.
    model.__class__ = ScorableTransformer
