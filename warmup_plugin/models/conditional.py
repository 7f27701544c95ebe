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
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from fairseq2.models.transformer import TransformerModel
from fairseq2.models.transformer_lm import TransformerLM
from fairseq2.nn import BatchLayout, Projection
from fairseq2.nn.fsdp import FSDP2Module
from torch import Tensor
from torch.nn import Module
from torch.utils.checkpoint import checkpoint
from typing_extensions import override

from warmup_plugin.errors import WarmupError
from warmup_plugin.fairseq2_doors import change_class
from warmup_plugin.layout import DecoderRows, ExcludedTokens
from warmup_plugin.models.attention import (
    ContinuedRows,
    PromptedRows,
    RowLayout,
    SelfAttention,
    SourceAttention,
    SteppedBeams,
    SteppedRows,
    WholeRows,
    adapt_attention,
    create_row_bias,
)
from warmup_plugin.models.rows import (
    BeamCache,
    Folding,
    RowCache,
    SourceMemory,
    select_items,
)
from warmup_plugin.models.token_loss import compute_log_probs, compute_token_loss
from warmup_plugin.models.traits import PositionBias, find_position_bias


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

    @property
    def num_sources(self) -> int:
        """The number N of sources."""
        return self.memory.num_sources

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
        :func:`~warmup_plugin.models.conditional.make_scorable`.

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


def create_conditional_model(model: Module) -> ConditionalModel:
    """
    Wraps a fairseq2 model, whose attention modules change class in place.

    :raises WarmupError: If its kind is not supported.
    """
    if isinstance(model, TransformerModel):
        return TransformerConditional(model)

    if isinstance(model, TransformerLM):
        return TransformerLMConditional(model)

    raise WarmupError(
        f"`model` is a `{type(model).__name__}`, which warmup_plugin cannot condition on a source; use a family built on fairseq2's `TransformerModel` or `TransformerLM`, such as `nllb` or `llama`."
    )


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


@contextmanager
def _gathered(module: Module) -> Iterator[None]:
    """
    Gathers the parameters that FSDP has divided.

    FSDP leaves that to the backward pass of a layer, which has not begun where a whole
    pass is computed again; that of the layer also divides them again. All ranks make as
    many passes, hence as many of these.
    """
    for submodule in module.modules():
        if isinstance(submodule, FSDP2Module):
            submodule.unshard()

    yield


@final
class _FlatRows:
    """Holds the tokens of rows one after the other."""

    def __init__(self, rows: DecoderRows, begins: Tensor | None = None) -> None:
        """
        :param begins: The number of tokens of each row to leave out. *Shape:*
            :math:`(R)`.
        """
        device = rows.seqs.device

        self.num_rows, width = rows.seqs.shape

        # (R, 1)
        seq_lens = torch.tensor(rows.seq_lens, device=device).unsqueeze(1)

        at = torch.arange(width, device=device)

        # (R, S)
        mask = at < seq_lens

        if begins is not None:
            mask = mask & (at >= begins.unsqueeze(1))

        # (T), (T)
        self.row_idx, self.step_idx = mask.nonzero(as_tuple=True)

        def get(values: Tensor) -> Tensor:
            return values[self.row_idx, self.step_idx]

        # (T) each
        self.tokens = get(rows.seqs)
        self.targets = get(rows.targets)
        self.warmup_mask = get(rows.warmup_mask)
        self.target_mask = get(rows.target_mask)

        self.row_sources = rows.source_idx

        self.source_idx = rows.source_idx.index_select(0, self.row_idx)

        self.folding = Folding(self.row_idx, self.num_rows)

        self.max_len = max(rows.seq_lens)


class _RowModel(ConditionalModel):
    """Decodes flat rows; what both kinds of model have in common."""

    def __init__(self, decoder: Module) -> None:
        adapt_attention(decoder)

    @abstractmethod
    def decode(
        self,
        source: EncodedSource,
        tokens: Tensor,
        positions: Tensor,
        max_len: int,
        attend_rows: SelfAttention,
        attend_source: SourceAttention | None,
    ) -> Tensor:
        """
        Runs the decoder over flat tokens.

        :param tokens: *Shape:* :math:`(T)`.
        :param positions: The place of each token in its row. *Shape:* :math:`(T)`.
        :param max_len: More than the largest of them.

        :returns: *Shape:* :math:`(T,M)`.
        """

    @abstractmethod
    def relate_to_source(
        self, source: EncodedSource, source_idx: Tensor
    ) -> SourceAttention | None:
        """
        Prepares the cross-attention of tokens; ``None`` if the model has none.

        :param source_idx: The source of each token. *Shape:* :math:`(T)`.
        """

    @abstractmethod
    def decode_rows(self, source: EncodedSource, flat: _FlatRows) -> Tensor:
        """Runs the decoder over whole rows. *Shape:* :math:`(T,M)`."""

    @abstractmethod
    def get_offsets(self, source: EncodedSource, source_idx: Tensor) -> Tensor | int:
        """
        Returns where rows begin: one number if it is the same for all.

        *Shape:* :math:`(R)`.
        """

    @property
    @abstractmethod
    def position_bias(self) -> PositionBias | None:
        """What positions add to the logits of self-attention; ``None`` if nothing."""

    @property
    @abstractmethod
    def final_proj(self) -> Projection:
        """The output projection."""

    @override
    def start(
        self, source: EncodedSource, source_idx: Tensor, max_len: int
    ) -> RowDecoder:
        return _CachedRowDecoder(self, source, source_idx, max_len)

    @override
    def score(
        self, source: EncodedSource, rows: DecoderRows, excluded: ExcludedTokens
    ) -> RowScores:
        flat = _FlatRows(rows)

        hidden = self.decode_rows(source, flat)

        idx, num_warmup = _list_counted(flat)

        log_probs = compute_log_probs(
            self.final_proj,
            select_items(hidden, idx),
            flat.targets[idx],
            num_warmup=num_warmup,
            excluded=excluded,
        )

        row_idx = flat.row_idx[idx]

        sizes = [num_warmup, idx.size(0) - num_warmup]

        zeros = log_probs.new_zeros(flat.num_rows)

        sums = [
            zeros.index_add(0, part_idx, part)
            for part_idx, part in zip(row_idx.split(sizes), log_probs.split(sizes))
        ]

        return RowScores(*sums)

    @override
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
        if source is None:
            source = self.encode(source_seqs, source_layout)

        # What counts in each pass, hidden states, targets and coefficients: those of
        # warmups, and those of targets.
        warmup_parts: list[tuple[Tensor, Tensor, Tensor]] = []
        target_parts: list[tuple[Tensor, Tensor, Tensor]] = []

        # The rows of the latter.
        target_rows: list[Tensor] = []

        def collect(
            hidden: Tensor,
            flat: _FlatRows,
            u: Tensor,
            v: Tensor,
            row_numbers: Tensor | None = None,
        ) -> None:
            idx, num_warmup = _list_counted(flat)

            hidden, targets = select_items(hidden, idx), flat.targets[idx]

            row_idx = flat.row_idx[idx]

            for parts, part, row_coefs in (
                (warmup_parts, slice(num_warmup), u),
                (target_parts, slice(num_warmup, None), v),
            ):
                parts.append((hidden[part], targets[part], row_coefs[row_idx[part]]))

            if row_numbers is not None:
                row_idx = row_numbers[row_idx]

            target_rows.append(row_idx[num_warmup:])

        if passes is None:
            flat = _FlatRows(rows)

            collect(self.decode_rows(source, flat), flat, coefs.warmup, coefs.target)

        for part_idx in passes or []:
            u, v = coefs.warmup[part_idx], coefs.target[part_idx]

            if part_idx.numel() == 0:
                # With a row that does not count.
                part_idx = rows.source_idx.new_zeros(1)

                u, v = u.new_zeros(1), v.new_zeros(1)

            flat = _FlatRows(rows.select(part_idx))

            hidden = checkpoint(
                self.decode_rows,
                source,
                flat,
                use_reentrant=False,
                context_fn=lambda: (nullcontext(), _gathered(self.module)),
            )

            collect(hidden, flat, u, v, part_idx)

        # Once for all passes: it holds a gradient of the whole output projection.
        hidden, targets, token_coefs = (
            torch.cat(parts) for parts in zip(*warmup_parts, *target_parts)
        )

        num_warmup = sum(part[0].size(0) for part in warmup_parts)

        token_losses: list[Tensor] | None = None if losses is None else []

        loss = compute_token_loss(
            self.final_proj,
            hidden,
            targets,
            token_coefs,
            num_warmup=num_warmup,
            excluded=excluded,
            label_smoothing=label_smoothing,
            token_losses=token_losses,
        )

        if losses is not None and token_losses:
            terms = -torch.cat(token_losses)[num_warmup:]

            zeros = terms.new_zeros(coefs.target.size(0))

            losses.target = zeros.index_add(0, torch.cat(target_rows), terms)

        # The loss of a token is minus its log-probability.
        return -loss

    @property
    @override
    def num_logits(self) -> int:
        return self.final_proj.output_dim


def _list_counted(flat: _FlatRows) -> tuple[Tensor, int]:
    """
    Lists the tokens whose prediction counts, those of warmups first.

    :returns: Their places, *Shape:* :math:`(P)`, and the number of warmup tokens.
    """
    warmup_idx = flat.warmup_mask.nonzero().squeeze(1)
    target_idx = flat.target_mask.nonzero().squeeze(1)

    return torch.cat([warmup_idx, target_idx]), warmup_idx.size(0)


@final
class TransformerConditional(_RowModel):
    """Serves fairseq2's encoder-decoder Transformers."""

    def __init__(self, model: TransformerModel) -> None:
        super().__init__(model.decoder)

        self._model = model

    @override
    def encode(self, source_seqs: Tensor, source_layout: BatchLayout) -> EncodedSource:
        seqs, layout = self._model.encoder_frontend(source_seqs, source_layout)

        memory = SourceMemory(layout.seq_lens, seqs.size(1), seqs.device)

        return EncodedSource(self._model.encoder(seqs, layout), layout, memory)

    @override
    def decode(
        self,
        source: EncodedSource,
        tokens: Tensor,
        positions: Tensor,
        max_len: int,
        attend_rows: SelfAttention,
        attend_source: SourceAttention | None,
    ) -> Tensor:
        layout = RowLayout(positions, max_len, attend_rows, attend_source)

        seqs, _ = self._model.decoder_frontend(tokens, layout)

        hidden: Tensor = self._model.decoder(seqs, layout, source.seqs, source.layout)

        return hidden

    @override
    def decode_rows(self, source: EncodedSource, flat: _FlatRows) -> Tensor:
        bias = None

        # Outside of the layers: one that is checkpointed is computed twice.
        if self.position_bias is not None:
            bias = create_row_bias(
                self.position_bias, flat.folding.width, flat.tokens.device
            )

        return self.decode(
            source,
            flat.tokens,
            flat.step_idx,
            flat.max_len,
            WholeRows(flat.folding, bias=bias),
            self.relate_to_source(source, flat.source_idx),
        )

    @override
    def relate_to_source(
        self, source: EncodedSource, source_idx: Tensor
    ) -> SourceAttention | None:
        sources, groups = source_idx.unique(return_inverse=True)

        num_groups = sources.size(0)

        return SourceAttention(
            source.memory,
            Folding(groups, num_groups),
            None if num_groups == source.num_sources else sources,
        )

    @override
    def get_offsets(self, source: EncodedSource, source_idx: Tensor) -> Tensor | int:
        return 0

    @property
    @override
    def reads_prompts(self) -> bool:
        return False

    @property
    @override
    def position_bias(self) -> PositionBias | None:
        return find_position_bias(self._model.decoder)

    @property
    @override
    def final_proj(self) -> Projection:
        return self._model.final_proj

    @property
    @override
    def max_source_len(self) -> int:
        return self._model.max_source_seq_len

    @override
    def get_max_target_len(self, source_len: int) -> int:
        return self._model.max_target_seq_len

    @property
    @override
    def module(self) -> Module:
        return self._model


@final
class TransformerLMConditional(_RowModel):
    """
    Serves fairseq2's decoder-only Transformers.

    A source is the prompt, but for its last token: that is the first one of each row,
    so that every row has a token to begin with. Prompts of different lengths may be in
    one batch.
    """

    def __init__(self, model: TransformerLM) -> None:
        super().__init__(model.decoder)

        self._model = model

    @override
    def encode(self, source_seqs: Tensor, source_layout: BatchLayout) -> EncodedSource:
        seq_lens = source_layout.seq_lens

        memory = SourceMemory(seq_lens, max(seq_lens), source_seqs.device)

        source = EncodedSource(source_seqs, source_layout, memory)

        # With gradient the prompts are read in one pass with their rows.
        if not torch.is_grad_enabled():
            all_sources = torch.arange(memory.num_sources, device=source_seqs.device)

            prompts = _FlatRows(_create_prompt_rows(source, all_sources))

            def remember(module: Module, k: Tensor, v: Tensor) -> None:
                memory.states[module] = (k, v)

            self.decode(
                source,
                prompts.tokens,
                prompts.step_idx,
                prompts.max_len,
                WholeRows(prompts.folding, on_states=remember),
                None,
            )

        return source

    @override
    def decode(
        self,
        source: EncodedSource,
        tokens: Tensor,
        positions: Tensor,
        max_len: int,
        attend_rows: SelfAttention,
        attend_source: SourceAttention | None,
    ) -> Tensor:
        # The longest row need not be that of the longest prompt.
        max_len = min(max_len, self._model.max_seq_len)

        layout = RowLayout(positions, max_len, attend_rows, attend_source)

        seqs, _ = self._model.decoder_frontend(tokens, layout)

        hidden: Tensor = self._model.decoder(seqs, layout)

        return hidden

    @override
    def decode_rows(self, source: EncodedSource, flat: _FlatRows) -> Tensor:
        memory = source.memory

        # (T)
        offsets = memory.seq_lens.index_select(0, flat.source_idx)

        positions = flat.step_idx + offsets

        max_len = memory.width + flat.max_len

        if not torch.is_grad_enabled():
            return self.decode(
                source,
                flat.tokens,
                positions,
                max_len,
                ContinuedRows(
                    flat.folding,
                    memory.seq_lens.index_select(0, flat.row_sources),
                    lambda module, end: memory.get(module, flat.row_sources, end),
                ),
                None,
            )

        # Only the prompts that these rows continue.
        sources, prompt_idx = flat.row_sources.unique(return_inverse=True)

        prompts = _FlatRows(_create_prompt_rows(source, sources))

        num_prompt_tokens = prompts.tokens.size(0)

        hidden = self.decode(
            source,
            torch.cat([prompts.tokens, flat.tokens]),
            torch.cat([prompts.step_idx, positions]),
            max_len,
            PromptedRows(
                prompts.folding,
                flat.folding,
                num_prompt_tokens,
                prompt_idx,
                memory.seq_lens.index_select(0, sources),
            ),
            None,
        )

        return hidden[num_prompt_tokens:]

    @override
    def relate_to_source(
        self, source: EncodedSource, source_idx: Tensor
    ) -> SourceAttention | None:
        return None

    @override
    def get_offsets(self, source: EncodedSource, source_idx: Tensor) -> Tensor | int:
        memory = source.memory

        if not memory.padded:
            return memory.width

        return memory.seq_lens.index_select(0, source_idx)

    @property
    @override
    def reads_prompts(self) -> bool:
        return True

    @property
    @override
    def position_bias(self) -> PositionBias | None:
        return None

    @property
    @override
    def final_proj(self) -> Projection:
        return self._model.final_proj

    @property
    @override
    def max_source_len(self) -> int:
        # A row of one token at least.
        return self._model.max_seq_len - 1

    @override
    def get_max_target_len(self, source_len: int) -> int:
        return self._model.max_seq_len - source_len

    @property
    @override
    def module(self) -> Module:
        return self._model


def _create_prompt_rows(source: EncodedSource, sources: Tensor) -> DecoderRows:
    """
    Builds rows of nothing but the prompts, in which no prediction counts.

    :param sources: The prompts to take. *Shape:* :math:`(R)`.
    """
    seqs = source.seqs.index_select(0, sources)

    none = torch.zeros_like(seqs, dtype=torch.bool)

    return DecoderRows(
        seqs=seqs,
        seq_lens=source.memory.seq_lens.index_select(0, sources).tolist(),
        targets=seqs,
        warmup_mask=none,
        target_mask=none,
        source_idx=sources,
    )


@final
class _CachedRowDecoder(RowDecoder):
    def __init__(
        self,
        model: _RowModel,
        source: EncodedSource,
        source_idx: Tensor,
        max_len: int,
    ) -> None:
        self._model = model
        self._source = source
        self._source_idx = source_idx

        # Where the rows begin in the cache, behind their prompts if they have any.
        self._offsets = model.get_offsets(source, source_idx)

        # The largest of them.
        self._width = source.memory.width if model.reads_prompts else 0

        self._cache = RowCache(source_idx.size(0), self._width + max_len)

        # The number of tokens behind the offset that all rows have been fed which still
        # take part.
        self._num_fed = 0

        self._has_begun = False

        # The past of beams, once there are some. The offsets are those of groups then.
        self._beams: BeamCache | None = None
        self._num_last_beams = 1

        # The rows and the number of tokens of the last step, and their cross-attention:
        # to group them by source costs more than a step of a small model.
        self._last: tuple[Tensor | None, int, SourceAttention | None] | None = None

    @override
    def step(self, tokens: Tensor, rows: Tensor | None = None) -> Tensor:
        num_steps = tokens.size(1)

        if self._beams is not None:
            return self._step_beams(self._beams, tokens)

        offsets = self._offsets

        if rows is not None and isinstance(offsets, Tensor):
            offsets = offsets.index_select(0, rows)

        begins = offsets + self._num_fed

        prompts = None

        if self._model.reads_prompts and not self._has_begun:
            prompts = (self._source.memory, self._source_idx)

        self._has_begun = True

        # How much of the cache is in use.
        end = self._width + self._num_fed + num_steps

        at = torch.arange(num_steps, device=tokens.device)

        # (A, S)
        positions = torch.as_tensor(begins, device=tokens.device).view(-1, 1) + at

        hidden = self._model.decode(
            self._source,
            tokens.flatten(),
            positions.expand(tokens.shape).flatten(),
            end,
            SteppedRows(
                self._cache,
                rows,
                begins,
                num_steps,
                end,
                prompts,
                position_bias=self._model.position_bias,
            ),
            self._relate_to_source(rows, num_steps),
        )

        self._num_fed += num_steps

        # (A x S, M) -> (A, M)
        hidden = hidden.unflatten(0, tokens.shape)[:, -1]

        # (A, M) -> (A, V)
        return self._model.final_proj(hidden)

    def _step_beams(self, beams: BeamCache, tokens: Tensor) -> Tensor:
        positions = torch.as_tensor(self._offsets, device=tokens.device) + self._num_fed

        num_rows = tokens.size(0)

        if positions.dim() > 0:
            # (A) -> (A x G)
            positions = positions.repeat_interleave(num_rows // positions.size(0))

        hidden = self._model.decode(
            self._source,
            tokens.flatten(),
            positions.expand(num_rows),
            self._width + self._num_fed + 1,
            SteppedBeams(beams, position_bias=self._model.position_bias),
            self._relate_to_source(None, 1),
        )

        self._num_fed += 1

        # (A x G, M) -> (A x G, V)
        return self._model.final_proj(hidden)

    def _relate_to_source(
        self, rows: Tensor | None, num_steps: int
    ) -> SourceAttention | None:
        if self._last is not None:
            last_rows, last_num_steps, attend_source = self._last

            if last_rows is rows and last_num_steps == num_steps:
                return attend_source

        source_idx = self._source_idx

        if rows is not None:
            source_idx = source_idx.index_select(0, rows)

        attend_source = self._model.relate_to_source(
            self._source, source_idx.repeat_interleave(num_steps)
        )

        self._last = (rows, num_steps, attend_source)

        return attend_source

    @override
    def select(self, rows: Tensor) -> None:
        self._cache.select(rows, self._width + self._num_fed)

        source_idx = self._source_idx.index_select(0, rows)

        if not torch.equal(source_idx, self._source_idx):
            self._last = None

        self._source_idx = source_idx

        if isinstance(self._offsets, Tensor):
            self._offsets = self._offsets.index_select(0, rows)

    @override
    def select_beams(
        self, beams: Tensor, groups: Tensor | None, max_beams: int
    ) -> None:
        if self._beams is None:
            self._beams = BeamCache(
                self._cache,
                self._offsets + self._num_fed,
                self._width + self._num_fed,
                max_beams,
            )

        self._beams.select(beams, groups)

        num_beams = beams.size(1)

        if groups is not None or num_beams != self._num_last_beams:
            source_idx = self._source_idx[:: self._num_last_beams]

            if groups is not None:
                source_idx = source_idx.index_select(0, groups)

            self._source_idx = source_idx.repeat_interleave(num_beams)

            self._num_last_beams = num_beams

            self._last = None

        if groups is not None and isinstance(self._offsets, Tensor):
            self._offsets = self._offsets.index_select(0, groups)

    @override
    def fork(self, rows: Tensor) -> None:
        self._cache.fork(rows, self._width + self._num_fed)

        def extend(values: Tensor) -> Tensor:
            return torch.cat([values, values.index_select(0, rows)])

        self._source_idx = extend(self._source_idx)

        if isinstance(self._offsets, Tensor):
            self._offsets = extend(self._offsets)

        self._last = None

    @override
    def rewind(self, past_lens: Tensor) -> None:
        offsets = self._offsets + past_lens

        self._offsets = offsets

        self._width = int(offsets.max())

        self._num_fed = 0

    @override
    def score(
        self, rows: DecoderRows, past_lens: Tensor, excluded: ExcludedTokens
    ) -> Tensor:
        flat = _FlatRows(rows, past_lens)

        offsets = torch.as_tensor(self._offsets, device=flat.tokens.device)

        # (R)
        offsets = offsets.expand(flat.num_rows)

        all_rows = torch.arange(flat.num_rows, device=offsets.device)

        hidden = self._model.decode(
            self._source,
            flat.tokens,
            flat.step_idx + offsets.index_select(0, flat.row_idx),
            self._width + flat.max_len,
            ContinuedRows(
                flat.folding,
                offsets + past_lens,
                lambda module, end: self._cache.get(module, all_rows, end),
                position_bias=self._model.position_bias,
            ),
            self._model.relate_to_source(self._source, flat.source_idx),
        )

        idx = flat.target_mask.nonzero().squeeze(1)

        log_probs = compute_log_probs(
            self._model.final_proj,
            hidden.index_select(0, idx),
            flat.targets[idx],
            num_warmup=0,
            excluded=excluded,
        )

        sums = log_probs.new_zeros(flat.num_rows)

        return sums.index_add(0, flat.row_idx[idx], log_probs)


class ScorableTransformer(TransformerModel):  # type: ignore[misc]
    """
    A ``TransformerModel`` whose ``forward`` can compute the loss of decoder rows.

    DDP and FSDP synchronise gradients in the hooks of the wrapper's ``forward``; a
    submodule called directly is silently not synchronised. So the differentiable pass
    must be a call of the wrapped model itself. :func:`make_scorable` turns a model
    into this class in place: no parameter, name or checkpoint key changes.
    """

    def forward(
        self, *args: Any, rows: DecoderRows | None = None, **kwargs: Any
    ) -> Any:
        """
        Does what :meth:`ConditionalModel.compute_loss` does if ``rows`` is given, else
        what ``TransformerModel`` does.
        """
        if rows is None:
            return super().forward(*args, **kwargs)

        source_seqs, source_layout = args

        return TransformerConditional(self).compute_loss(
            source_seqs, source_layout, rows, **kwargs
        )


class ScorableTransformerLM(TransformerLM):  # type: ignore[misc]
    """A ``TransformerLM`` with the ``forward`` of :class:`ScorableTransformer`."""

    def forward(
        self, *args: Any, rows: DecoderRows | None = None, **kwargs: Any
    ) -> Any:
        if rows is None:
            return super().forward(*args, **kwargs)

        source_seqs, source_layout = args

        return TransformerLMConditional(self).compute_loss(
            source_seqs, source_layout, rows, **kwargs
        )


def make_scorable(model: Module) -> None:
    """
    Lets the ``forward`` of ``model`` compute the loss of decoder rows.

    :raises WarmupError: If its kind is not supported.
    """
    if isinstance(model, (ScorableTransformer, ScorableTransformerLM)):
        return

    # Before FSDP or a checkpoint is wrapped around its layers.
    create_conditional_model(model)

    if type(model) is TransformerModel:
        change_class(model, ScorableTransformer)
    elif type(model) is TransformerLM:
        change_class(model, ScorableTransformerLM)
    else:
        raise WarmupError(
            f"`model` is of the subclass `{type(model).__name__}` of fairseq2's `TransformerModel` or `TransformerLM`; train an unmodified one."
        )
