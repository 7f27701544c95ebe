# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
Trains a model: ``python -m recipes.train OUT --config-file F.yaml``.

``criterion.name`` is ``sft``, ``warmup`` or ``mrt``; everything else is shared.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import final

import torch
from fairseq2.logging import log
from fairseq2.recipe.base import Recipe, RecipeContext
from fairseq2.recipe.composition import register_reference_model
from fairseq2.runtime.dependency import DependencyContainer
from fairseq2.task import Task
from fairseq2.utils.yaml import YamlDumper
from torch.nn import Module
from typing_extensions import override

from warmup_plugin.console import calm_console
from warmup_plugin.criteria import CriterionTrainUnit
from warmup_plugin.criteria.setup import (
    REFERENCE_MODEL,
    create_criterion,
    setup_model,
)
from warmup_plugin.criteria.validation import TranslationValidUnit, ValidDirection
from warmup_plugin.data.directions import split_direction
from warmup_plugin.data.reader import TextPairReader
from warmup_plugin.data.test_sets import make_file_name
from warmup_plugin.generation import WarmupGenerator, create_generation_config
from warmup_plugin.metrics.base import DEFAULT_METRICS
from warmup_plugin.metrics.comet import CometWorkers
from warmup_plugin.metrics.registry import MetricOptions
from warmup_plugin.metrics.training import shorten_metric_lines
from warmup_plugin.mlflow_recorder import register_mlflow
from warmup_plugin.models.lora import save_adapter_only
from warmup_plugin.models.scorable import create_conditional_model
from warmup_plugin.recipes.common import (
    check_lengths,
    create_direction_codecs,
    get_rank,
    is_decoder_only,
    refuse_float16,
)
from warmup_plugin.recipes.complete_config import get_sections
from warmup_plugin.recipes.config_files import read_config
from warmup_plugin.recipes.control import (
    PatienceEarlyStopper,
    StopSignal,
    TrainerControl,
)
from warmup_plugin.recipes.corpora import CorpusReader
from warmup_plugin.recipes.lora import register_lora, setup_lora_model
from warmup_plugin.recipes.overview import describe_training
from warmup_plugin.recipes.running import RecipeRunner, unstructure_config
from warmup_plugin.recipes.start import NothingToRun, start_run
from warmup_plugin.recipes.train_arguments import TrainArguments, read_train_arguments
from warmup_plugin.recipes.train_config import TrainConfig
from warmup_plugin.runs.run_dir import RunDir
from warmup_plugin.terminal import get_arguments, guard
from warmup_plugin.threads import CrowdWarning
from warmup_plugin.tokenizers.codec import TextCodec


@final
class TranslationTrainRecipe(Recipe):
    """Trains a translation model with the criterion that the config names."""

    def __init__(
        self,
        stop_signal: StopSignal | None = None,
        comet_workers: CometWorkers | None = None,
        run_dir: RunDir | None = None,
    ) -> None:
        """
        :param comet_workers: Keeps the models of COMET between validations and for the
            samples of ``mrt``; whoever passes it closes it.
        :param run_dir: The output directory, if whoever trains writes to it as well.
        """
        self._run_dir = run_dir
        self._stop_signal = stop_signal or StopSignal()
        self._comet_workers = comet_workers

    @override
    def register(self, container: DependencyContainer) -> None:
        calm_console()

        shorten_metric_lines(container)

        register_mlflow(container)

        register_lora(container)

        # Loaded only if it is asked for.
        register_reference_model(container, REFERENCE_MODEL)

        if self._comet_workers is not None:
            container.register_instance(CometWorkers, self._comet_workers)

    @override
    def create_task(self, context: RecipeContext) -> Task:
        config = context.get_config_as(TrainConfig)

        gangs = context.gangs

        run_dir = self._run_dir or RunDir(context.output_dir)

        # Rank 0 has written the tokenizer into the run before it came here.
        gangs.root.barrier()

        codecs = self._create_codecs(context, config)

        # With several directions, what is used of it is the same for all.
        codec = next(iter(codecs.values()))

        layout = codec.layout

        # Read and check the data before the model is built.
        corpus_reader = CorpusReader(
            config,
            codecs,
            run_dir,
            gangs.root,
            context.get_model,
            self._stop_signal,
            reads_prompts=is_decoder_only(context, config.model),
        )

        train_corpus = corpus_reader.read(config.dataset.train_split, is_training=True)

        valid_corpus = corpus_reader.read(config.dataset.valid_split)

        base_model = context.get_model()

        if config.trainer.mixed_precision.mode != "off":
            refuse_float16(base_model, config.trainer.mixed_precision.dtype)

        refuse_float16(base_model, config.model.dtype)

        if config.lora.rank is not None:
            save_adapter_only(context.get_data_parallel_model())

        model = create_conditional_model(base_model)

        criterion = create_criterion(
            context,
            codecs=codecs,
            plain_directions={
                name
                for name, direction in (config.dataset.directions or {}).items()
                if direction.plain
            },
        )

        check_lengths(
            model,
            layout,
            config.dataset.max_source_len,
            config.dataset.max_target_len,
            criterion.max_warmup_len,
        )

        every = config.regime.validate_every_n_steps

        control = TrainerControl(
            self._stop_signal,
            gangs.root,
            run_dir,
            every,
            has_scores=config.regime.score_metric is not None,
        )

        is_first_rank = gangs.root.rank == 0

        crowd = CrowdWarning(gangs.device)

        def on_step(step_nr: int) -> None:
            crowd.check()

            # A validation may have replaced the best checkpoint.
            if is_first_rank and every is not None and step_nr % every == 1 % every:
                run_dir.write_card()

            control.begin_step(step_nr)

        unit = CriterionTrainUnit(
            criterion,
            context.get_optimizer(),
            gangs,
            on_step=on_step,
            num_steps=config.regime.num_steps,
        )

        def create_generator(max_warmup_len: int | None) -> WarmupGenerator:
            return WarmupGenerator(
                model,
                layout,
                create_generation_config(
                    max_warmup_len,
                    beam_size=config.validation.beam_size,
                    section=config.generation,
                    leaves_separator_out=config.criterion.has_warmups,
                ),
                num_template_tokens=codec.num_template_tokens,
            )

        directions = None

        if config.dataset.directions:
            directions = {
                name: ValidDirection(
                    target_lang=split_direction(name)[1],
                    num_template_tokens=direction_codec.num_template_tokens,
                )
                for name, direction_codec in codecs.items()
            }

        valid_unit = TranslationValidUnit(
            make_file_name(config.dataset.valid_split),
            criterion,
            create_generator,
            codec,
            gangs,
            num_shown=config.validation.num_shown,
            metrics=config.validation.metrics or DEFAULT_METRICS,
            options=MetricOptions(
                target_lang=config.dataset.target_lang,
                labels=config.validation.labels or (),
                comet_model=config.validation.comet_model,
                cometkiwi_model=config.validation.cometkiwi_model,
                comet_gpus=config.validation.comet_gpus,
                # The other processes score nothing.
                comet_workers=self._comet_workers if is_first_rank else None,
            ),
            directions=directions,
            references=list(map(valid_corpus.references, range(len(valid_corpus)))),
        )

        train_reader = TextPairReader(
            train_corpus,
            gangs,
            max_num_tokens=config.dataset.max_num_tokens,
            shuffle=True,
            seed=config.common.seed,
            pad_idx=layout.pad_idx,
            num_accumulate=config.trainer.grad_accumulation.num_batches,
            sampling_temperature=config.dataset.sampling_temperature,
        )

        if config.dataset.directions:
            log.info("{}", train_reader.describe_directions())

        valid_reader = TextPairReader(
            valid_corpus,
            gangs,
            max_num_tokens=config.validation.max_num_tokens,
            budget_key="validation.max_num_tokens",
            shuffle=False,
            seed=config.common.seed,
            pad_idx=layout.pad_idx,
        )

        trainer = context.create_trainer(
            unit, train_reader, [valid_unit], [valid_reader]
        )

        early_stopper = None

        if config.validation.patience is not None and every is not None:
            early_stopper = PatienceEarlyStopper(
                context.get_checkpoint_manager(),
                RunDir(context.output_dir),
                config.validation.patience,
                every,
            )

        control.attach(trainer, early_stopper)

        if is_first_rank:
            for line in describe_training(
                config,
                run_dir.path,
                base_model,
                device=context.device,
                num_processes=gangs.root.size,
                num_batches=train_reader.num_batches,
                smooths_loss=criterion.smooths_loss,
            ):
                log.info("{}", line)

            run_dir.write_versions(
                {
                    "num_processes": gangs.root.size,
                    "num_threads": torch.get_num_threads(),
                }
            )

            trainer.register_checkpoint_save_hook(lambda args: run_dir.write_card())

        return trainer

    @staticmethod
    def _create_codecs(
        context: RecipeContext, config: TrainConfig
    ) -> dict[str, TextCodec]:
        return create_direction_codecs(
            context.get_tokenizer(),
            get_sections(config),
            reads_prompts=is_decoder_only(context, config.model),
        )

    @override
    def setup_model(
        self, context: RecipeContext, model: Module, newly_initialized: bool
    ) -> Module:
        config = context.get_config_as(TrainConfig)

        codecs = self._create_codecs(context, config)

        if config.lora.rank is not None:
            return setup_lora_model(context, model, config, codecs)

        return setup_model(context, model, codecs=codecs)

    @property
    @override
    def config_kls(self) -> type[object]:
        return TrainConfig


def main(argv: Sequence[str] | None = None) -> int:
    """
    Runs the training command.

    :returns: The exit status: 0, 2 for bad input, 128 + n if signal n stopped it.
    """
    argv = get_arguments(argv)

    args = read_train_arguments(argv)

    return guard(lambda: train(args), argv)


def train(args: TrainArguments) -> int:
    """
    Trains into a run directory.

    :returns: The exit status, as of :func:`main`.

    :raises WarmupError: If the input is bad.
    """
    stop_signal, comet_workers = StopSignal(), CometWorkers()

    run_dir = None if args.out is None else RunDir(args.out)

    recipe = TranslationTrainRecipe(stop_signal, comet_workers, run_dir)

    runner = RecipeRunner(recipe, TrainConfig)

    config = runner.structure(
        read_config(TrainConfig, args.config_files, args.settings)
    )

    if run_dir is None or args.dump_config:
        runner.resolver.resolve(YamlDumper).dump(unstructure_config(config), sys.stdout)

        return 0

    try:
        with (
            start_run(runner, run_dir, config) as config,
            stop_signal.listen(),
            comet_workers,
        ):
            status = runner.run(
                config,
                run_dir.path,
                no_rich=args.no_rich,
                no_exit_on_error=args.no_exit_on_error,
            )
    except NothingToRun:
        return 0

    if status == 0 and get_rank() == 0:
        # The score of the last checkpoint came after it was saved.
        run_dir.write_card()

    if status == 0 and stop_signal.signum is not None:
        return 128 + stop_signal.signum

    return status
