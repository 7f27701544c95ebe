# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
Attention over flat decoder rows.

fairseq2's layers stay what they are. Only their attention modules change class in
place (:func:`adapt_attention`), and only for a :class:`RowLayout`: then they fold the
flat tokens by row or by source as the layout says. So wrappers of whole layers (FSDP,
activation checkpointing, ``torch.compile``) and checkpoints see nothing new.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, final

import torch
from fairseq2.models.transformer import (
    CausalAttentionBias,
    IdentityBias,
    MultiheadAttention,
    StandardMultiheadAttention,
)
from fairseq2.models.transformer.sdpa.flash2 import Flash2SDPA
from fairseq2.models.transformer.sdpa.flash3 import Flash3SDPA
from fairseq2.models.transformer.sdpa.naive import NaiveSDPA
from fairseq2.models.transformer.sdpa.torch import TorchSDPA
from fairseq2.nn import BatchLayout
from fairseq2.ops import repeat_interleave
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import scaled_dot_product_attention
from typing_extensions import override

from warmup_plugin.errors import WarmupError
from warmup_plugin.fairseq2_doors import (
    change_class,
    fill_batch_layout,
    project_keys_and_values,
    project_queries,
)
from warmup_plugin.models.rows import BeamCache, Folding, RowCache, SourceMemory
from warmup_plugin.models.traits import BiasedDecoder, BiasedSDPA, PositionBias

SelfAttention: TypeAlias = Callable[["RowAttention", Tensor, Tensor, Tensor], Tensor]
"""Says what the tokens of rows see of their rows: maps queries, keys and values, *Shape:*
:math:`(T,H,D)` each, to *Shape:* :math:`(T,H,D)`."""


_MAX_STEP_QUERIES: Final = 8
_MAX_STEP_KEYS: Final = 256
"""Up to which size a step of decoding is computed otherwise on a CPU, as measured."""


@final
class RowLayout(BatchLayout):  # type: ignore[misc]
    """
    Tells the decoder how its T flat tokens hang together.

    fairseq2's frontends and position encoders read it as the layout of a packed batch;
    its layers pass it on to :class:`RowAttention`, which reads the rest.
    """

    def __init__(
        self,
        positions: Tensor,
        max_seq_len: int,
        attend_rows: SelfAttention,
        attend_source: SourceAttention | None,
    ) -> None:
        """
        :param positions: The place of each token in its row. *Shape:* :math:`(T)`.
        :param max_seq_len: More than the largest of them.
        :param attend_source: ``None`` for models without cross-attention.
        """
        fill_batch_layout(self, positions, max_seq_len)

        self.attend_rows = attend_rows
        self.attend_source = attend_source

    @override
    def __repr__(self) -> str:
        return f"RowLayout(width={self.width}, max_seq_len={self.max_seq_len})"


# `torch.compile` would guard on every mask and folding of a layout, and after a few batches
# of other shapes give up on the whole layer. Projections and networks stay compiled.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _attend_rows(
    module: RowAttention, layout: RowLayout, q: Tensor, k: Tensor, v: Tensor
) -> Tensor:
    return layout.attend_rows(module, q, k, v)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _attend_source(
    module: RowAttention,
    layout: RowLayout,
    q: Tensor,
    keys: Tensor,
    keys_layout: BatchLayout,
) -> Tensor:
    assert layout.attend_source is not None

    return layout.attend_source(module, q, keys, keys_layout)


class RowAttention(StandardMultiheadAttention):  # type: ignore[misc]
    """A multi-head attention that also understands :class:`RowLayout`."""

    @override
    def forward(
        self,
        seqs: Tensor,
        seqs_layout: BatchLayout,
        keys: Tensor,
        keys_layout: BatchLayout,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        if not isinstance(seqs_layout, RowLayout):
            return super().forward(
                seqs, seqs_layout, keys, keys_layout, *args, **kwargs
            )

        # (T, M) -> (T, H, D)
        q = project_queries(self, seqs, seqs_layout)

        if seqs is keys:
            # (T, M) -> (T, H_kv, D)
            k, v = project_keys_and_values(self, keys, seqs_layout)

            attns = _attend_rows(self, seqs_layout, q, k, v)
        else:
            attns = _attend_source(self, seqs_layout, q, keys, keys_layout)

        # (T, H, D) -> (T, M)
        return self.output_proj(attns.flatten(-2, -1))


# The kinds that compute plain scaled dot-product attention.
_KNOWN_SDPAS: Final = (TorchSDPA, NaiveSDPA, Flash2SDPA, Flash3SDPA)


def adapt_attention(decoder: Module) -> None:
    """
    Lets the attention modules of ``decoder`` understand :class:`RowLayout`.

    :raises WarmupError: If one of them computes something else than causal attention
        over a whole row, or attention to a source.
    """
    for name, module in decoder.named_modules():
        if not isinstance(module, MultiheadAttention):
            continue

        if isinstance(module, RowAttention):
            continue

        if type(module) is not StandardMultiheadAttention:
            raise WarmupError(
                f"`model` has at `{name}` an attention of the kind `{type(module).__name__}`, which warmup_plugin cannot batch; use a model of fairseq2's `StandardMultiheadAttention`."
            )

        bias = getattr(module.sdpa, "bias", None)

        known = isinstance(bias, IdentityBias) or (
            isinstance(bias, CausalAttentionBias) and bias.attn_window_len is None
        )

        # A bias of positions comes from the decoder as a whole.
        if isinstance(module.sdpa, BiasedSDPA):
            known = known and isinstance(decoder, BiasedDecoder)
        else:
            known = known and isinstance(module.sdpa, _KNOWN_SDPAS)

        if not known:
            raise WarmupError(
                f"`model` has at `{name}` the attention bias `{bias}` ({type(module.sdpa).__name__}), which warmup_plugin cannot batch; use a model with full causal attention."
            )

        change_class(module, RowAttention)


def attend(
    module: RowAttention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    is_causal: bool = False,
) -> Tensor:
    """
    Computes scaled dot-product attention as the module's own would.

    :param q: *Shape:* :math:`(G,Q,H,D)`.
    :param k: *Shape:* :math:`(G,L,H_{kv},D)`, as is ``v``.
    :param mask: ``True`` for what is seen, or numbers to add to the logits; broadcast
        to :math:`(G,H,Q,L)`.

    :returns: *Shape:* :math:`(G,Q,H,D)`.
    """
    if mask is not None and mask.is_floating_point():
        mask = mask.to(q.dtype)

    # With grouped query attention several query heads share one of keys and values.
    if module.num_query_groups > 1:
        k = repeat_interleave(k, dim=-2, repeat=module.num_query_groups)
        v = repeat_interleave(v, dim=-2, repeat=module.num_query_groups)

    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    scale = getattr(module.sdpa, "scale", None)

    if _is_step(q, k) and not is_causal and not module.training:
        attns = _attend_step(q, k, v, mask, scale)
    else:
        attns = scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=module.sdpa.dropout_p if module.training else 0.0,  # type: ignore[arg-type]
            is_causal=is_causal,
            scale=scale,
        )

    return attns.transpose(1, 2)


def _is_step(q: Tensor, k: Tensor) -> bool:
    return (
        q.size(2) <= _MAX_STEP_QUERIES
        and k.size(2) <= _MAX_STEP_KEYS
        and q.device.type == "cpu"
        and not torch.is_grad_enabled()
        # In 16 bits the logits would be rounded, which the fused kernel keeps in 32.
        and q.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
    )


def _attend_step(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None
) -> Tensor:
    """
    Computes the attention of a step of decoding as two products.

    PyTorch's fused kernel for CPUs cuts queries into blocks, and takes twice as long where
    a block holds one.
    """
    if scale is None:
        scale = q.size(-1) ** -0.5

    # (G, H, Q, L)
    logits = torch.matmul(q * scale, k.transpose(-1, -2))

    if mask is not None:
        if mask.dtype == torch.bool:
            logits = logits.masked_fill_(~mask, -torch.inf)
        else:
            logits += mask

    return torch.matmul(logits.softmax(dim=-1), v)


def _add_position_bias(
    mask: Tensor,
    key_positions: Tensor,
    query_positions: Tensor,
    position_bias: PositionBias,
) -> Tensor:
    """
    Turns a mask into numbers to add to the logits.

    :param mask: ``True`` for what is seen. *Shape:* :math:`(G,1,Q,L)`.
    :param key_positions: *Shape:* :math:`(G,L)`.
    :param query_positions: *Shape:* :math:`(G,Q)`.

    :returns: *Shape:* :math:`(G,H,Q,L)`.
    """
    # (G, Q, L)
    relative_positions = key_positions.unsqueeze(1) - query_positions.unsqueeze(2)

    return position_bias(relative_positions).masked_fill(~mask, -torch.inf)


def create_row_bias(
    position_bias: PositionBias, width: int, device: torch.device
) -> Tensor:
    """
    Creates the bias of rows that are read from their first token on, causality included.

    :returns: *Shape:* :math:`(1,H,S,S)`.
    """
    # (1, S)
    positions = torch.arange(width, device=device).unsqueeze(0)

    # (1, 1, S, S)
    mask = (positions.unsqueeze(1) <= positions.unsqueeze(2)).unsqueeze(1)

    return _add_position_bias(mask, positions, positions, position_bias)


@final
@dataclass(eq=False)
class WholeRows:
    """Self-attention of rows that are read from their first token on."""

    rows: Folding

    bias: Tensor | None = None
    """What :func:`create_row_bias` returns, if positions have a bias."""

    on_states: Callable[..., None] | None = None
    """Receives the module and its folded keys and values."""

    def __call__(self, module: RowAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # Padding stands behind the tokens of its row, where causality hides it.
        k, v = self.rows.fold(k), self.rows.fold(v)

        if self.on_states is not None:
            self.on_states(module, k, v)

        attns = attend(
            module,
            self.rows.fold(q),
            k,
            v,
            mask=self.bias,
            is_causal=self.bias is None,
        )

        return self.rows.unfold(attns)


def _create_continued_mask(past_lens: Tensor, past_width: int, width: int) -> Tensor:
    """
    Marks what rows see that continue a past of other keys.

    :param past_lens: *Shape:* :math:`(R)`.

    :returns: *Shape:* :math:`(R,1,S,L+S)`.
    """
    device = past_lens.device

    # (R, L)
    past = torch.arange(past_width, device=device) < past_lens.unsqueeze(1)

    # (S, S)
    own = torch.ones((width, width), dtype=torch.bool, device=device).tril()

    num_rows = past_lens.size(0)

    mask = torch.cat(
        [
            past.unsqueeze(1).expand(-1, width, -1),
            own.unsqueeze(0).expand(num_rows, -1, -1),
        ],
        dim=2,
    )

    return mask.unsqueeze(1)


@final
class ContinuedRows:
    """Self-attention of rows whose first tokens have been read before."""

    def __init__(
        self,
        rows: Folding,
        past_lens: Tensor,
        get_past: Callable[[Module, int], tuple[Tensor, Tensor]],
        *,
        position_bias: PositionBias | None = None,
    ) -> None:
        """
        :param past_lens: The number of tokens that each row has behind it. *Shape:*
            :math:`(R)`.
        :param get_past: Returns the keys and values of a layer up to a position.
            *Shape:* :math:`(R,L,H,D)` each.
        """
        self._rows = rows
        self._get_past = get_past
        self._past_width = int(past_lens.max())
        self._mask = _create_continued_mask(past_lens, self._past_width, rows.width)

        if position_bias is not None:
            # (1, L)
            past = torch.arange(self._past_width, device=past_lens.device).unsqueeze(0)

            own = torch.arange(rows.width, device=past_lens.device)

            # (R, S)
            positions = past_lens.unsqueeze(1) + own

            # (R, L + S)
            key_positions = torch.cat(
                [past.expand(past_lens.size(0), -1), positions], dim=1
            )

            self._mask = _add_position_bias(
                self._mask, key_positions, positions, position_bias
            )

    def __call__(self, module: RowAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        past_k, past_v = self._get_past(module, self._past_width)

        # (R, L + S, H, D)
        k = torch.cat([past_k, self._rows.fold(k)], dim=1)
        v = torch.cat([past_v, self._rows.fold(v)], dim=1)

        attns = attend(module, self._rows.fold(q), k, v, mask=self._mask)

        return self._rows.unfold(attns)


@final
class PromptedRows:
    """
    Self-attention of prompts and of the rows that continue them, read in one pass.

    The tokens of the prompts come first. Each prompt is read once, however many rows
    continue it.
    """

    def __init__(
        self,
        prompts: Folding,
        rows: Folding,
        num_prompt_tokens: int,
        prompt_idx: Tensor,
        prompt_lens: Tensor,
    ) -> None:
        """
        :param prompt_idx: The prompt of each row. *Shape:* :math:`(R)`.
        :param prompt_lens: *Shape:* :math:`(N)`.
        """
        self._prompts = prompts
        self._rows = rows
        self._num_prompt_tokens = num_prompt_tokens
        self._prompt_idx = prompt_idx

        self._mask = _create_continued_mask(
            prompt_lens.index_select(0, prompt_idx), prompts.width, rows.width
        )

    def __call__(self, module: RowAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        sizes = [self._num_prompt_tokens, q.size(0) - self._num_prompt_tokens]

        prompt_q, q = q.split(sizes)
        prompt_k, k = k.split(sizes)
        prompt_v, v = v.split(sizes)

        # (N, L, H, D)
        prompt_k = self._prompts.fold(prompt_k)
        prompt_v = self._prompts.fold(prompt_v)

        prompt_attns = attend(
            module, self._prompts.fold(prompt_q), prompt_k, prompt_v, is_causal=True
        )

        # (R, L + S, H, D)
        k = torch.cat([prompt_k[self._prompt_idx], self._rows.fold(k)], dim=1)
        v = torch.cat([prompt_v[self._prompt_idx], self._rows.fold(v)], dim=1)

        attns = attend(module, self._rows.fold(q), k, v, mask=self._mask)

        return torch.cat([self._prompts.unfold(prompt_attns), self._rows.unfold(attns)])


@final
@dataclass(eq=False)
class SteppedRows:
    """Self-attention of rows that are decoded step by step and fill a cache."""

    cache: RowCache

    rows: Tensor | None
    """The rows of ``cache`` that take this step; ``None`` for all. *Shape:* :math:`(A)`."""

    positions: Tensor | int
    """Where their next token stands: one number if it is the same for all, else *Shape:*
    :math:`(A)`."""

    num_steps: int
    """The number S of tokens that each of them is fed."""

    end: int
    """No row of the cache is longer after this step."""

    prompts: tuple[SourceMemory, Tensor] | None
    """What the rows of ``cache`` continue, and the prompt of each of them; read in the
    first step. *Shape:* :math:`(B)`."""

    position_bias: PositionBias | None = None

    _mask: Tensor | None = field(default=None, init=False)

    def __call__(self, module: RowAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.prompts is not None:
            memory, prompt_idx = self.prompts

            self.cache.begin(module, *memory.get(module, prompt_idx, memory.width))

        # (T, H, D) -> (A, S, H, D)
        shape = (-1, self.num_steps)

        k, v = self.cache.append(
            module,
            k.unflatten(0, shape),
            v.unflatten(0, shape),
            self.rows,
            self.positions,
            self.end,
        )

        attns = attend(module, q.unflatten(0, shape), k, v, mask=self._get_mask(k))

        return attns.flatten(0, 1)

    def _get_mask(self, k: Tensor) -> Tensor | None:
        sees_all = isinstance(self.positions, int) and self.num_steps == 1

        if sees_all and self.position_bias is None:
            return None

        # In the first layer: there is no gradient, so none is computed again.
        if self._mask is None:
            positions = torch.as_tensor(self.positions, device=k.device).view(-1, 1)

            # (A, S)
            positions = positions + torch.arange(self.num_steps, device=k.device)

            # (1, L)
            at = torch.arange(k.size(1), device=k.device).unsqueeze(0)

            # (A, 1, S, L)
            mask = (at <= positions.unsqueeze(2)).unsqueeze(1)

            if self.position_bias is not None:
                mask = _add_position_bias(mask, at, positions, self.position_bias)

            self._mask = mask

        return self._mask


@final
class SteppedBeams:
    """Self-attention of beams that are decoded step by step, a token each."""

    def __init__(
        self, cache: BeamCache, *, position_bias: PositionBias | None = None
    ) -> None:
        cache.begin_step()

        self._cache = cache
        self._position_bias = position_bias
        self._mask: Tensor | None = None

    def __call__(self, module: RowAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self._mask is None:
            self._mask = self._create_mask(q.dtype)

        # (A x G, H, D) -> (A, G, H, D)
        shape = (self._mask.size(0), -1)

        k, v = self._cache.append(module, k.unflatten(0, shape), v.unflatten(0, shape))

        return attend(module, q.unflatten(0, shape), k, v, mask=self._mask).flatten(
            0, 1
        )

    def _create_mask(self, dtype: torch.dtype) -> Tensor:
        mask = self._cache.get_mask()

        if self._position_bias is None:
            # As numbers, which each layer would make of it.
            return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, -torch.inf)

        position, key_positions = self._cache.get_positions()

        # (A, G)
        positions = torch.as_tensor(position, device=mask.device).view(-1, 1)

        positions = positions.expand(mask.size(0), mask.size(2))

        return _add_position_bias(mask, key_positions, positions, self._position_bias)


@final
class SourceAttention:
    """
    Cross-attention of rows to their sources.

    Queries do not see each other here, so all tokens of all rows of a source are one
    long row of queries, and its keys and values need no copy.
    """

    def __init__(
        self, memory: SourceMemory, by_source: Folding, sources: Tensor | None
    ) -> None:
        """
        :param by_source: Arranges tokens by their source.
        :param sources: The sources that have rows, in the order of ``by_source``;
            ``None`` for all. *Shape:* :math:`(G)`.
        """
        self._memory = memory
        self._by_source = by_source
        self._sources = sources
        self._selected: dict[Module, tuple[Tensor, Tensor]] = {}

        # (G, S_src)
        mask = memory.mask(sources)

        self._mask: Tensor | None = None

        if mask is not None:
            # As numbers, which each layer would make of it.
            numbers = torch.zeros_like(mask, dtype=torch.get_default_dtype())

            self._mask = numbers.masked_fill_(~mask, -torch.inf)[:, None, None, :]

    def __call__(
        self, module: RowAttention, q: Tensor, keys: Tensor, keys_layout: BatchLayout
    ) -> Tensor:
        # (G, S_src, H, D)
        k, v = self._get_states(module, keys, keys_layout)

        attns = attend(module, self._by_source.fold(q), k, v, mask=self._mask)

        return self._by_source.unfold(attns)

    def _get_states(
        self, module: RowAttention, keys: Tensor, keys_layout: BatchLayout
    ) -> tuple[Tensor, Tensor]:
        # With gradient a layer asks once, or twice if it is checkpointed, and then must
        # compute it again.
        if torch.is_grad_enabled():
            k, v = project_keys_and_values(module, keys, keys_layout)

            if self._sources is None:
                return k, v

            return k.index_select(0, self._sources), v.index_select(0, self._sources)

        if module not in self._memory.states:
            k, v = project_keys_and_values(module, keys, keys_layout)

            # A head in one piece, see `RowCache`.
            self._memory.states[module] = (
                k.transpose(1, 2).contiguous().transpose(1, 2),
                v.transpose(1, 2).contiguous().transpose(1, 2),
            )

        sources = self._sources

        if sources is None:
            return self._memory.states[module]

        # Many steps of a decoder ask for the same sources.
        if module not in self._selected:
            k, v = (
                state.transpose(1, 2).index_select(0, sources).transpose(1, 2)
                for state in self._memory.states[module]
            )

            self._selected[module] = (k, v)

        return self._selected[module]
