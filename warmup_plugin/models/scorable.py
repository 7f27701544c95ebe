# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Which models of fairseq2 can score rows, and how they come to."""

from __future__ import annotations

from typing import Any

from fairseq2.models.transformer import TransformerModel
from fairseq2.models.transformer_lm import TransformerLM
from torch.nn import Module

from warmup_plugin.errors import WarmupError
from warmup_plugin.fairseq2_doors import change_class
from warmup_plugin.layout import DecoderRows
from warmup_plugin.models.conditional import ConditionalModel
from warmup_plugin.models.decoder_only import TransformerLMConditional
from warmup_plugin.models.encoder_decoder import TransformerConditional


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
