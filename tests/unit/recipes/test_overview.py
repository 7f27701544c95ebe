# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from pathlib import Path

import torch

from tests.common import create_tiny_model
from warmup_plugin.criteria.mrt_config import MrtConfig
from warmup_plugin.recipes.overview import describe_training
from warmup_plugin.recipes.train_config import TrainConfig


def describe(
    config: TrainConfig, *, num_processes: int = 1, smooths_loss: bool = True
) -> list[str]:
    return describe_training(
        config,
        Path("run"),
        create_tiny_model(),
        device=torch.device("cuda", 0),
        num_processes=num_processes,
        num_batches=400,
        smooths_loss=smooths_loss,
    )


class TestDescribeTraining:
    def test_call_describes_defaults(self) -> None:
        num = sum(p.numel() for p in create_tiny_model().parameters())

        assert describe(TrainConfig()) == [
            f"Model: nllb transformer_tiny; {num:,} parameters; float32; 1 process on cuda.",
            "Criterion: sft; label smoothing 0.1, which the loss shown of training includes.",
            "Training: 10,000 steps (25 epochs) of at most 1,500 tokens a side; adamw with learning rate 0.001, scheduler myle; figures every 100 steps, validation every 500; best checkpoint by task.",
            "Logs: run/logs/rank_0.log (with config, environment and modules) and run/metrics (all figures).",
        ]

    def test_call_describes_warmups(self) -> None:
        config = TrainConfig()

        config.criterion.name = "warmup"
        config.warmup.num_warmups = 16

        assert describe(config, smooths_loss=False)[1] == (
            "Criterion: warmup with K = 16 warmups a source of at most 8 tokens, objective "
            "marginal, sampler independent; label smoothing 0.1, which the loss shown of "
            "training does not include."
        )

        assert describe(config)[1].endswith(
            ", which the loss shown of training includes for the pairs of plain directions."
        )

        config.criterion.label_smoothing = 0.0

        assert describe(config)[1].endswith("sampler independent.")

    def test_call_describes_minimum_risk_training(self) -> None:
        config = TrainConfig()

        config.criterion.name = "mrt"
        config.criterion.config = MrtConfig(num_samples=5)

        # There is no label smoothing.
        assert describe(config)[1] == (
            "Criterion: mrt with 5 samples a source, scored by chrf, estimator risk."
        )

    def test_call_describes_start(self) -> None:
        config = TrainConfig()

        config.init_from = Path("sft")
        config.model.arch = None
        config.model.path = Path("sft/checkpoints/step_4/model")

        assert "Model: nllb from sft (best); " in describe(config)[0]

        config.init_from = None

        assert f"nllb from {config.model.path}; " in describe(config)[0]

        config.model.name = "nllb-200"
        config.model.path = None

        assert "Model: nllb-200; " in describe(config)[0]

    def test_call_describes_size_of_a_step(self) -> None:
        config = TrainConfig()

        config.trainer.grad_accumulation.num_batches = 4
        config.trainer.mixed_precision.mode = "auto"
        config.regime.validate_every_n_steps = None

        model, _, training, _ = describe(config, num_processes=2)

        assert "float32 with mixed precision in bfloat16; 2 processes on " in model

        # A process has 400 batches an epoch, four of which it takes a step.
        assert "10,000 steps (100 epochs) of 8 batches of at most 1,500 " in training
        assert training.endswith("figures every 100 steps.")

    def test_call_works_without_last_step(self) -> None:
        config = TrainConfig()

        config.regime.num_steps = None

        assert "Training: steps without end of at most" in describe(config)[2]

    def test_call_counts_trained_parameters(self) -> None:
        model = create_tiny_model()

        for parameter in model.encoder.parameters():
            parameter.requires_grad_(False)

        sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]

        num_trained = sum(n for n, is_trained in sizes if is_trained)

        line, *_ = describe_training(
            TrainConfig(),
            Path("run"),
            model,
            device=torch.device("cpu"),
            num_processes=1,
            num_batches=1,
            smooths_loss=False,
        )

        assert f" parameters, {num_trained:,} of them trained; " in line
