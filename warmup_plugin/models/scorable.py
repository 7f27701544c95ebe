# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Which models of fairseq2 can score rows, and how they come to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

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


class _Scorable(Module):
    """
    A model whose ``forward`` can compute the loss of decoder rows.

    DDP and FSDP synchronise gradients in the hooks of the wrapper's ``forward``; a
    submodule called directly is silently not synchronised. So the differentiable pass
    must be a call of the wrapped model itself. :func:`make_scorable` turns a model
    into such a class in place: no parameter, name or checkpoint key changes.
    """

    def forward(
        self, *args: Any, rows: DecoderRows | None = None, **kwargs: Any
    ) -> Any:
        """
        Does what :meth:`ConditionalModel.compute_loss` does if ``rows`` is given, else
        what the model of fairseq2 does.
        """
        if rows is None:
            return super().forward(*args, **kwargs)

        source_seqs, source_layout = args

        return create_conditional_model(self).compute_loss(
            source_seqs, source_layout, rows, **kwargs
        )


class ScorableTransformer(_Scorable, TransformerModel):  # type: ignore[misc]
    pass


class ScorableTransformerLM(_Scorable, TransformerLM):  # type: ignore[misc]
    pass


_CLASSES: Final[Mapping[type[Module], type[_Scorable]]] = {
    TransformerModel: ScorableTransformer,
    TransformerLM: ScorableTransformerLM,
}


def make_scorable(model: Module) -> None:
    """
    Lets the ``forward`` of ``model`` compute the loss of decoder rows.

    :raises WarmupError: If its kind is not supported.
    """
    if isinstance(model, _Scorable):
        return

    # Before FSDP or a checkpoint is wrapped around its layers.
    create_conditional_model(model)

    kls = _CLASSES.get(type(model))
    if kls is None:
        raise WarmupError(
            f"`model` is of the subclass `{type(model).__name__}` of fairseq2's `TransformerModel` or `TransformerLM`; train an unmodified one."
        )

    change_class(model, kls)
