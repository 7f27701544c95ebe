# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""What a training run is told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import gcd
from pathlib import Path
from typing import Final

from fairseq2.recipe.config import (
    AdamWConfig,
    CommonSection,
    GangSection,
    LRSchedulerSection,
    MixedPrecisionConfig,
    ModelSection,
    MyleLRConfig,
    OptimizerSection,
    ReferenceModelSection,
    RegimeSection,
    TrainerSection,
)
from typing_extensions import override

from warmup_plugin.components import Checked, find_too_small
from warmup_plugin.criteria.config import CriterionSection, WarmupSection
from warmup_plugin.criteria.setup import find_trainer_errors
from warmup_plugin.errors import WarmupError
from warmup_plugin.generation.config import GenerationSection
from warmup_plugin.metrics.registry import METRICS, check_metric_names
from warmup_plugin.mlflow_recorder import MlflowSection
from warmup_plugin.models.lora import LoraSection
from warmup_plugin.recipes.checks import check_values
from warmup_plugin.recipes.common import RunTokenizerSection, TextPairsSection
from warmup_plugin.tasks.config import TaskSection

SCORE_OF_TASK: Final = "task"
"""As ``regime.score_metric``: the score that the task picks the best checkpoint by."""


@dataclass(kw_only=True)
class ValidationSection(Checked):
    """Configures what a validation decodes and shows."""

    beam_size: int = 1
    """The beam that decodes the development set; 1 is quick and ranks checkpoints well."""

    num_shown: int = 3
    """The number of sources that the log shows with their references, outputs and the warmups drawn for them."""

    max_num_tokens: int = 4000
    """The size of a batch; see ``dataset.max_num_tokens``."""

    metrics: list[str] | None = None
    """What outputs are scored by: some of `bleu`, `chrf`, `ter`, `spbleu`, `spbleu_1k`, `comet`, `cometkiwi`, `rouge`, `language`, `accuracy`, `macro_f1`; ``None`` for those of the task."""

    labels: list[str] | None = None
    """All valid outputs, for `accuracy` and `macro_f1`; ``None`` for those of the task."""

    comet_model: str | None = None
    """The model of `comet`: a checkpoint, its folder or a name on the Hugging Face Hub; ``None`` for `Unbabel/wmt22-comet-da`. The process of rank 0 has it loaded, beside what it trains, as long as it trains."""

    cometkiwi_model: str | None = None
    """The model of `cometkiwi`, which reads no references; ``None`` for `Unbabel/wmt22-cometkiwi-da`."""

    comet_gpus: int = 0
    """The number of GPUs of `comet` and `cometkiwi`, 0 or 1; 1 is the first that rank 0 sees."""

    patience: int | None = None
    """The number of validations without improvement after which training stops; ``None`` never stops early."""

    @override
    def find_errors(self) -> Iterator[str]:
        yield from find_too_small(self, beam_size=1, num_shown=0)

        if self.metrics is not None:
            try:
                check_metric_names(self.metrics, in_validation=True)
            except WarmupError as ex:
                yield str(ex)

        if self.comet_gpus not in (0, 1):
            yield "`comet_gpus` must be 0 or 1."

        for name in ("comet", "cometkiwi"):
            model = getattr(self, f"{name}_model")

            # That of the task is not known yet, and has none of both.
            if model is not None and name not in (self.metrics or ()):
                yield f"`{name}_model` is `{model}`, but `metrics` has no `{name}`; add it there or leave the model out."

        yield from find_too_small(self, patience=1)


@dataclass(kw_only=True)
class TrainConfig(Checked):
    """Describes a training run."""

    task: TaskSection = field(default_factory=TaskSection)

    model: ModelSection = field(
        default_factory=lambda: ModelSection(family="nllb", arch="transformer_tiny")
    )
    """The model to train from scratch; with ``init_from`` that of the run is taken."""

    init_from: Path | None = None
    """The directory of a run whose model and tokenizer to start from."""

    init_checkpoint: str | int = "best"
    """Which of its checkpoints: ``best``, ``last`` or a step."""

    lora: LoraSection = field(default_factory=LoraSection)

    reference_model: ReferenceModelSection | None = None
    """The frozen model of ``warmup.kl_weight``; ``None`` for that of ``init_from``. Every process holds a whole copy; with ``lora.rank`` and ``None`` there is none, since the model without its adapter is that of ``init_from``."""

    dataset: TextPairsSection = field(default_factory=TextPairsSection)

    tokenizer: RunTokenizerSection = field(default_factory=RunTokenizerSection)

    criterion: CriterionSection = field(default_factory=CriterionSection)

    warmup: WarmupSection = field(default_factory=WarmupSection)

    validation: ValidationSection = field(default_factory=ValidationSection)

    generation: GenerationSection = field(default_factory=GenerationSection)

    gang: GangSection = field(default_factory=GangSection)

    trainer: TrainerSection = field(
        default_factory=lambda: TrainerSection(
            mixed_precision=MixedPrecisionConfig(mode="off"), max_grad_norm=1.0
        )
    )

    optimizer: OptimizerSection = field(
        default_factory=lambda: OptimizerSection(
            config=AdamWConfig(lr=0.001, betas=(0.9, 0.98))
        )
    )

    lr_scheduler: LRSchedulerSection = field(
        default_factory=lambda: LRSchedulerSection(
            name="myle", config=MyleLRConfig(num_warmup_steps=1000)
        )
    )

    regime: RegimeSection = field(
        default_factory=lambda: RegimeSection(
            num_steps=10_000,
            validate_every_n_steps=500,
            checkpoint_every_n_steps=500,
            publish_metrics_every_n_steps=100,
            keep_last_n_checkpoints=1,
            keep_best_n_checkpoints=1,
            score_metric=SCORE_OF_TASK,
        )
    )

    common: CommonSection = field(
        default_factory=lambda: CommonSection(no_sweep_dir=True)
    )

    mlflow: MlflowSection = field(default_factory=MlflowSection)

    def settle(self) -> None:
        """
        Publishes figures often enough for the rhythm of validations and checkpoints, of
        which fairseq2 wants a divisor.

        So a short try needs no key for it.
        """
        regime = self.regime

        every = regime.publish_metrics_every_n_steps

        if every is None or every < 1:
            return

        for other in (regime.validate_every_n_steps, regime.checkpoint_every_n_steps):
            if other is not None and other > 0:
                every = gcd(every, other)

        regime.publish_metrics_every_n_steps = every

    @override
    def find_errors(self) -> Iterator[str]:
        check_values(self)

        regime = self.regime

        if regime.num_data_epochs is not None:
            # Resuming inside the last epoch ends at once, resuming at the end of one
            # adds another.
            yield "`regime.num_data_epochs` must be null, since fairseq2 0.8.1 cannot resume such a run; set `regime.num_steps`."

        if regime.score_metric is not None:
            if regime.validate_every_n_steps != regime.checkpoint_every_n_steps:
                yield "`regime.validate_every_n_steps` and `regime.checkpoint_every_n_steps` must be equal, or the best score would belong to no checkpoint."

            validation = self.validation

            metrics = validation.metrics

            # Those of the task are not known before it has been asked.
            if metrics is None:
                metrics = list(METRICS)

            computed = [METRICS[m].names for m in metrics if m in METRICS]

            known = {name for entry in METRICS.values() for name in entry.names}

            if regime.score_metric in known.difference(*computed):
                yield f"`regime.score_metric` is `{regime.score_metric}`, which `validation.metrics` does not compute; add it there."

        if self.validation.patience is not None:
            if regime.score_metric is None or regime.validate_every_n_steps is None:
                yield "`regime.score_metric` and `regime.validate_every_n_steps` must be set for `validation.patience`."

        yield from find_trainer_errors(self.trainer, self.criterion, self.warmup)

        if regime.save_model_only in (True, "all"):
            yield "`regime.save_model_only` must be `false` or `all_but_last`, since nothing else can be resumed."

        if not self.common.no_sweep_dir:
            yield "`common.no_sweep_dir` must be `true`, since the output directory is that of one run."
