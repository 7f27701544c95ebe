# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
Warmup Generations (arXiv 2502.12304) and translation recipes for fairseq2.

What recipes and components of other packages need has a name here; see
``docs/in_your_own_recipe.md``. ``import warmup_plugin`` is quick: fairseq2 and torch are
imported with the first of these names that is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from fairseq2.runtime.dependency import DependencyContainer

    from warmup_plugin.criteria import Criterion as Criterion
    from warmup_plugin.criteria import CriterionContext as CriterionContext
    from warmup_plugin.criteria import CriterionSection as CriterionSection
    from warmup_plugin.criteria import CriterionTrainUnit as CriterionTrainUnit
    from warmup_plugin.criteria import WarmupSection as WarmupSection
    from warmup_plugin.criteria import WeighedWarmup as WeighedWarmup
    from warmup_plugin.criteria import num_target_tokens as num_target_tokens
    from warmup_plugin.criteria import register_criterion as register_criterion
    from warmup_plugin.criteria import update_loss as update_loss
    from warmup_plugin.criteria.setup import create_criterion as create_criterion
    from warmup_plugin.criteria.setup import setup_model as setup_model
    from warmup_plugin.criteria.sft import create_sft_criterion as create_sft_criterion
    from warmup_plugin.criteria.warmup import (
        create_warmup_criterion as create_warmup_criterion,
    )
    from warmup_plugin.errors import WarmupError as WarmupError
    from warmup_plugin.generation import GenerationConfig as GenerationConfig
    from warmup_plugin.generation import Hypothesis as Hypothesis
    from warmup_plugin.generation import WarmupGenerator as WarmupGenerator
    from warmup_plugin.generation.adapters import WarmupHypothesis as WarmupHypothesis
    from warmup_plugin.layout import DecoderLayout as DecoderLayout
    from warmup_plugin.layout import DecoderRows as DecoderRows
    from warmup_plugin.layout import ExcludedTokens as ExcludedTokens
    from warmup_plugin.layout import WarmupTokens as WarmupTokens
    from warmup_plugin.layout import join_rows as join_rows
    from warmup_plugin.layout import plain_rows as plain_rows
    from warmup_plugin.layout import split_seq as split_seq
    from warmup_plugin.metrics.base import SentenceMetric as SentenceMetric
    from warmup_plugin.models.conditional import ConditionalModel as ConditionalModel
    from warmup_plugin.models.conditional import EncodedSource as EncodedSource
    from warmup_plugin.models.conditional import RowCoefs as RowCoefs
    from warmup_plugin.objectives import Objective as Objective
    from warmup_plugin.sampling import Candidates as Candidates
    from warmup_plugin.sampling import WarmupSampler as WarmupSampler
    from warmup_plugin.tasks import TaskContext as TaskContext
    from warmup_plugin.tasks import TaskSettings as TaskSettings
    from warmup_plugin.tasks import TextTask as TextTask
    from warmup_plugin.tasks import choose_prompt as choose_prompt
    from warmup_plugin.tokenizers.base import WarmupTokenizer as WarmupTokenizer
    from warmup_plugin.tokenizers.codec import CodecOptions as CodecOptions
    from warmup_plugin.tokenizers.codec import EncodedText as EncodedText
    from warmup_plugin.tokenizers.codec import TextCodec as TextCodec
    from warmup_plugin.tokenizers.codec import create_codec as create_codec

__version__ = "0.1.0"

# The modules of the public names; the same ones as above.
_PLACES: Final = {
    "Candidates": "sampling",
    "choose_prompt": "tasks",
    "CodecOptions": "tokenizers.codec",
    "ConditionalModel": "models.conditional",
    "create_codec": "tokenizers.codec",
    "create_criterion": "criteria.setup",
    "create_sft_criterion": "criteria.sft",
    "create_warmup_criterion": "criteria.warmup",
    "Criterion": "criteria",
    "CriterionContext": "criteria",
    "CriterionSection": "criteria",
    "CriterionTrainUnit": "criteria",
    "DecoderLayout": "layout",
    "DecoderRows": "layout",
    "EncodedSource": "models.conditional",
    "EncodedText": "tokenizers.codec",
    "ExcludedTokens": "layout",
    "GenerationConfig": "generation",
    "Hypothesis": "generation",
    "join_rows": "layout",
    "num_target_tokens": "criteria",
    "Objective": "objectives",
    "plain_rows": "layout",
    "register_criterion": "criteria",
    "RowCoefs": "models.conditional",
    "SentenceMetric": "metrics.base",
    "setup_model": "criteria.setup",
    "split_seq": "layout",
    "TaskContext": "tasks",
    "TaskSettings": "tasks",
    "TextCodec": "tokenizers.codec",
    "TextTask": "tasks",
    "update_loss": "criteria",
    "WarmupError": "errors",
    "WarmupGenerator": "generation",
    "WarmupHypothesis": "generation.adapters",
    "WarmupSampler": "sampling",
    "WarmupSection": "criteria",
    "WarmupTokenizer": "tokenizers.base",
    "WarmupTokens": "layout",
    "WeighedWarmup": "criteria",
}

__all__ = ["setup_warmup_extension", *_PLACES]

# A type checker takes the imports above, and knows which names there are not.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in _PLACES:
            raise AttributeError(f"module `{__name__}` has no attribute `{name}`")

        value = getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)

        globals()[name] = value

        return value


def setup_warmup_extension(container: DependencyContainer) -> None:
    """Registers everything; the ``fairseq2.extension`` entry point of setup.py."""
    from warmup_plugin.composition import register_warmup_plugin

    register_warmup_plugin(container)
