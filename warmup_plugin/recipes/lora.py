# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""How a training run with LoRA gets its base, at its start and when it resumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fairseq2.models.utils.checkpoint import set_model_state
from fairseq2.nn.utils.module import reset_non_persistent_buffers, to_empty
from fairseq2.recipe.base import RecipeContext
from fairseq2.runtime.dependency import DependencyContainer
from fairseq2.utils.progress import NOOP_PROGRESS_REPORTER
from torch.nn import Module

from warmup_plugin.config_values import create_value_converter
from warmup_plugin.criteria.setup import setup_model
from warmup_plugin.errors import WarmupError
from warmup_plugin.fairseq2_doors import broadcast_under_fsdp
from warmup_plugin.models.families import find_family
from warmup_plugin.models.lora import add_adapter
from warmup_plugin.models.lora_checkpoint import (
    create_record,
    find_base,
    find_record,
    write_record,
)
from warmup_plugin.models.separator import PreparedRow
from warmup_plugin.recipes.train_config import TrainConfig
from warmup_plugin.runs.run_dir import RunDir
from warmup_plugin.tokenizers.codec import TextCodec


def find_run_base(run_dir: RunDir) -> Path | None:
    """
    Finds the weights that the adapters of a run were trained beside.

    :returns: ``None`` if the run has no checkpoint yet.

    :raises WarmupError: If it has, and they are gone.
    """
    if not run_dir.checkpoint_steps():
        return None

    record = find_record(run_dir.checkpoint_dir)

    if record is None:
        raise WarmupError(
            f"`{run_dir.checkpoint_dir}` has lost its `lora.json`, which says what the adapters there belong to; restore it from a copy of the run."
        )

    return find_base(record, run_dir.checkpoint_dir)


def register_lora(container: DependencyContainer) -> None:
    """Lets FSDP broadcast the base of an adapter, as DDP does by itself."""
    broadcast_under_fsdp(
        container,
        lambda resolver: (
            RecipeContext(resolver).get_config_as(TrainConfig).lora.rank is not None
        ),
    )


def setup_lora_model(
    context: RecipeContext,
    model: Module,
    config: TrainConfig,
    codecs: Mapping[str, TextCodec],
) -> Module:
    """
    Does what :func:`~warmup_plugin.criteria.setup.setup_model` does, and adds an adapter.

    :param model: As fairseq2 has loaded it on the first rank. Where a run resumes, it is
        empty, and gets its base there, since checkpoints hold the adapter alone. The other
        ranks get theirs from the first one, see :func:`register_lora`.

    :raises WarmupError: Also if the base is gone, or cannot have such an adapter.
    """
    run_dir = RunDir(context.output_dir)

    resumes = context.get_checkpoint_manager().has_checkpoint(exclude_model_only=True)

    if resumes:
        base = find_run_base(run_dir)

        assert base is not None

        if context.gangs.dp.rank == 0:
            _load_base(context, model, run_dir, base)

    def record(rows: Sequence[PreparedRow]) -> None:
        if resumes or context.gangs.root.rank != 0:
            return

        assert config.model.path is not None

        write_record(
            run_dir.checkpoint_dir,
            create_record(config.lora, config.model.path, config.model.dtype, rows),
        )

    setup_model(context, model, codecs=codecs, on_prepared=record)

    add_adapter(model, config.lora)

    return model


def _load_base(
    context: RecipeContext, model: Module, run_dir: RunDir, base: Path
) -> None:
    family_name, content = run_dir.load_model_metadata()

    family = find_family(family_name, context.resolver)

    model_config = create_value_converter().structure(content, family.config_kls)

    gangs = context.gangs

    to_empty(model, gangs.device)

    reset_non_persistent_buffers(model)

    weights = family.iter_checkpoint(
        base, model_config, gangs, mmap=False, restrict=True
    )

    set_model_state(model, weights, NOOP_PROGRESS_REPORTER)
