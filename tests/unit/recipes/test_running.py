# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from fairseq2.assets import AssetStore
from fairseq2.logging import log
from fairseq2.recipe.error import RecipeError
from fairseq2.task import TaskStopException

from tests.configs import create_runner, read_train_config, type_config
from warmup_plugin.errors import WarmupError
from warmup_plugin.recipes import running
from warmup_plugin.recipes.running import unstructure_config
from warmup_plugin.recipes.train_config import TrainConfig
from warmup_plugin.runs.yaml_files import dump_yaml, load_yaml


class TestStructure:
    def test_components_get_their_settings(self) -> None:
        config = type_config(["OUT", "--config", "optimizer.config.lr=1"])

        assert config.optimizer.config.lr == 1.0  # type: ignore[attr-defined]
        assert config.warmup.sampler.config is not None

    @pytest.mark.parametrize(
        "setting,message",
        [
            ("foo=1", r"^The config cannot be read: `foo` is not known\.$"),
            (
                "regime.num_step=1",
                "`regime.num_step` is not known; did you mean `regime.num_steps`\\?$",
            ),
            ("optimizer.config.foo=1", "`optimizer.config.foo` is not known"),
            (
                "criterion.config.foo=1",
                "`criterion.config` takes no settings, but has `criterion.config.foo`; ",
            ),
            (
                "criterion={name: mrt, config: {num_sample: 1}}",
                "`criterion.config.num_sample` is not known; did you mean `criterion.config.num_samples`\\?$",
            ),
            (
                "criterion={name: mrt, config: {metric: {config: {foo: 1}}}}",
                "`criterion.config.metric.config` takes no settings, but has `criterion.config.metric.config.foo`; ",
            ),
            (
                "criterion={name: mrt, config: {metric: {name: comet, config: {mode: x}}}}",
                "`criterion.config.metric.config.mode` is not known; did you mean `criterion.config.metric.config.model`\\?$",
            ),
            (
                "warmup.sampler.config.top_=1",
                "`warmup.sampler.config.top_` is not known; did you mean `warmup.sampler.config.top_",
            ),
            ("lr_scheduler.config.foo=1", "`lr_scheduler.config.foo` is not known"),
            (
                "optimizer.config.groups=[{lrr: 1}]",
                "`optimizer.config.groups\\[0\\].lrr` is not known; did you mean `optimizer.config.groups\\[0\\].lr`\\?$",
            ),
            (
                "dataset.directions={a-b: {plai: 1}}",
                "`dataset.directions.a-b.plai` is not known; did you mean `dataset.directions.a-b.plain`\\?$",
            ),
            (
                "optimizer.config.betas=[0.9, x]",
                "`optimizer.config.betas\\[1\\]` must be a number",
            ),
            (
                "warmup.keep=3",
                "`warmup.keep` is a section, but is given a number; set its keys, such as `warmup.keep.name`\\.$",
            ),
            (
                "dataset.directions=de-en",
                "`dataset.directions` must be a mapping, but is a text instead\\.$",
            ),
            (
                "tokenizer.path=[1]",
                "`tokenizer.path` must be a path, but is a list instead\\.$",
            ),
            ("regime.num_steps=x", "`regime.num_steps`.* must be a whole number"),
            ("regime.num_steps=0", "^`regime.num_steps` must be greater than"),
            (
                "regime.keep_checkpoint_every_n_steps=700",
                "`regime.keep_checkpoint_every_n_steps` must be a multiple of `regime.checkpoint_every_n_steps`",
            ),
            (
                "lora.targets=all-linear",
                "`lora.targets` must be a list, .* 'all-linear'",
            ),
            (
                "warmup.with_empty=maybe",
                "`warmup.with_empty` must be `true` or `false`",
            ),
            ("task.name=nope", "^`task.name` is `nope`, which is not registered"),
            ("optimizer.name=nope", "^`optimizer.name` is `nope`, .*; use `adamw`"),
            ("lr_scheduler.name=nope", "^`lr_scheduler.name` is .*; use `cosine_ann"),
            ("common.seed=-1", "^`common.seed` must be"),
        ],
    )
    def test_bad_value_is_one_sentence(self, setting: str, message: str) -> None:
        with pytest.raises(WarmupError, match=message) as info:
            type_config(["OUT", "--config", setting])

        assert "\n" not in str(info.value)

    @pytest.mark.parametrize(
        ("settings", "every"),
        [
            ({"validate": 500, "checkpoint": 500}, 100),
            ({"validate": 30, "checkpoint": 30}, 10),
            ({"validate": 20, "checkpoint": 20, "publish_metrics": 8}, 4),
            ({"validate": 20, "checkpoint": 20, "publish_metrics": "null"}, None),
        ],
    )
    def test_figures_come_with_validations_and_checkpoints(
        self, settings: dict[str, object], every: int | None
    ) -> None:
        args = [f"regime.{key}_every_n_steps={n}" for key, n in settings.items()]

        config = type_config(["OUT", "--config", *args])

        assert config.regime.publish_metrics_every_n_steps == every

    def test_values_can_be_written_and_structured_again(self, tmp_path: Path) -> None:
        values = read_train_config(
            ["OUT", "--config", "init_from=x", "dataset.path='é: #'"]
        )

        (tmp_path / "x.yaml").write_text(dump_yaml(values), encoding="utf-8")

        content = load_yaml(tmp_path / "x.yaml")

        assert unstructure_config(create_runner().structure(content)) == values

    def test_cards_of_the_config_are_known(self, tmp_path: Path) -> None:
        file = tmp_path / "cards.yaml"

        file.write_text("name: mine\nmodel_family: t5\n")

        runner = create_runner()

        values = unstructure_config(TrainConfig())

        values["common"]["assets"]["extra_paths"] = [str(file)]

        runner.structure(values)

        card = runner.resolver.resolve(AssetStore).retrieve_card("mine")

        assert card.field("model_family").as_(str) == "t5"


class TestRun:
    @staticmethod
    def run(tmp_path: Path, **options: bool) -> int:
        return create_runner().run(TrainConfig(), tmp_path, **options)

    @pytest.mark.parametrize(
        "error,status",
        [
            (TaskStopException(), 0),
            (WarmupError("a"), 2),
            (RecipeError("a"), 2),
            (ValueError("a"), 1),
        ],
    )
    def test_call_returns_exit_status(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        error: Exception,
        status: int,
    ) -> None:
        def fail(*args: object, **kwargs: object) -> None:
            raise error

        monkeypatch.setattr(running, "run", fail)

        assert self.run(tmp_path) == status

        if status == 2:
            # Before it may stand what fairseq2 says of extensions.
            assert caplog.records[-1].getMessage() == "a"

        if status != 0:
            with pytest.raises(type(error)):
                self.run(tmp_path, no_exit_on_error=True)

    @pytest.mark.parametrize(
        "is_terminal,no_rich,expected",
        # fairseq2 would break lines at 80 columns.
        [(False, False, True), (True, False, False), (True, True, True)],
    )
    def test_lines_are_plain_without_terminal(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        is_terminal: bool,
        no_rich: bool,
        expected: bool,
    ) -> None:
        seen: list[Any] = []

        monkeypatch.setattr(running, "run", lambda *a, no_rich: seen.append(no_rich))
        monkeypatch.setattr("os.isatty", lambda fd: is_terminal)

        assert self.run(tmp_path, no_rich=no_rich) == 0

        assert seen == [expected]

    def test_call_closes_log_file_of_run(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def log_to_file(*args: object, **kwargs: object) -> None:
            log.logger.addHandler(logging.FileHandler(tmp_path / "rank_0.log"))

        monkeypatch.setattr(running, "run", log_to_file)

        old_handlers = list(log.logger.handlers)

        assert self.run(tmp_path) == 0

        assert log.logger.handlers == old_handlers
