# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq2.datasets import Seq2SeqBatch
from fairseq2.metrics import MetricBag
from torch import Tensor

from tests.tiny_runs import (
    SHORT_OUTPUTS,
    Options,
    assert_same_weights,
    load_weights,
    take_snapshot,
    tiny_options,
    to_args,
    write_tiny_text,
)
from warmup_plugin.commands import generate
from warmup_plugin.criteria import Criterion, validation
from warmup_plugin.criteria.mrt import MrtCriterion
from warmup_plugin.criteria.sft import SftCriterion
from warmup_plugin.criteria.warmup import WarmupCriterion
from warmup_plugin.data import tokenizing
from warmup_plugin.errors import WarmupError
from warmup_plugin.metrics.translation import MetricScore
from warmup_plugin.recipes import corpora
from warmup_plugin.recipes.train import main
from warmup_plugin.runs import run_dir as run_dir_module
from warmup_plugin.runs.run_dir import RunDir
from warmup_plugin.runs.yaml_files import dump_yaml, load_yaml


def read_metrics(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def set_scores(monkeypatch: pytest.MonkeyPatch, *scores: float) -> None:
    """Lets the validations report these chrF++ one after the other."""
    values = iter(scores)

    def score(*args: object, **kwargs: object) -> list[MetricScore]:
        value = next(values)

        return [
            MetricScore(name, value, "signature", None, None, num_sentences=1, key=key)
            for key, name in (("bleu", "BLEU"), ("chrf", "chrF2++"))
        ]

    monkeypatch.setattr(validation, "score_translations", score)


class TestBadInput:
    @pytest.mark.parametrize(
        "options,message",
        [
            ({"tokenizer.path": "nope.model"}, "The tokenizer `nope.model` does not"),
            ({"dataset.path": "/nope"}, "The data folder `/nope` does not exist"),
            ({"dataset.train_split": "nope"}, "has no `nope` split"),
            ({"init_from": "/nope"}, "The run directory `/nope` does not exist"),
            ({"criterion.name": "nope"}, "`criterion.name` is `nope`, which is not"),
            ({"warmup.objective.name": "nope"}, "`warmup.objective.name` is `nope`"),
            ({"warmup.objective.config": "{nope: 1}"}, "nope` is not known"),
            (
                {"criterion.name": "warmup", "warmup.objective.name": "joint"},
                "set `warmup.sampler.name` to `stochastic_beam`",
            ),
            (
                {"criterion.name": "warmup", "warmup.kl_weight": 0.1},
                "`warmup.kl_weight` is set, but there is no model to hold",
            ),
            (
                {"model.arch": "nope"},
                "`model.arch` is `nope`, which is not a known architecture of `nllb`; use one of `dense_1b`,",
            ),
            ({"model.family": "nope"}, "`nope`, which is not a known model family"),
            ({"model.name": "nope"}, "`model.name` is `nope`, which no asset card"),
            (
                {
                    "model.family": "t5",
                    "model.arch": "t5_test",
                    "model.dtype": "float16",
                },
                "T5 and mT5 overflow in float16",
            ),
            (
                {
                    "model.family": "t5",
                    "model.arch": "t5_test",
                    "trainer.mixed_precision.mode": "auto",
                    "trainer.mixed_precision.dtype": "float16",
                },
                "T5 and mT5 overflow in float16",
            ),
            (
                {
                    "criterion.name": "warmup",
                    "trainer.mixed_precision.mode": "auto",
                    "trainer.mixed_precision.dtype": "float16",
                },
                "must be `bfloat16`; warmups are not trained in float16",
            ),
            ({"model.config_overrides": "{nope: 1}"}, "nope` is not known"),
            ({"model.config_overrides": "{vocab_size: 9}"}, "The model has 9 output"),
            ({"nope": 1}, "nope` is not known"),
            ({"regime.nope": 1}, "`regime.nope` is not known"),
            ({"regime.num_steps": "nope"}, "`regime.num_steps` must be a whole number"),
            ({"regime.num_steps": 0}, "`regime.num_steps` must be greater than"),
            ({"regime.num_data_epochs": 1}, "`regime.num_data_epochs` must be null"),
            ({"regime.save_model_only": "all"}, "`regime.save_model_only` must be"),
            (
                {
                    "criterion.name": "warmup",
                    "trainer.data_parallelism": "fsdp",
                    "trainer.fsdp.version": "v1",
                },
                "`trainer.fsdp.version` must be `v2`",
            ),
            ({"regime.score_metric": "nope"}, "nope is not a known metric."),
            (
                {"regime.score_metric": "ter", "validation.metrics": "[bleu]"},
                "`regime.score_metric` is `ter`, which `validation.metrics` does not",
            ),
            ({"validation.metrics": "[nope]"}, "nope"),
            (
                {"validation.metrics": "[accuracy]", "validation.labels": "[a, b]"},
                "which is none of the labels a, b; correct the reference or `--labels`, in training `validation.labels`",
            ),
            (
                {"validation.metrics": "[accuracy]", "validation.labels": "[a]"},
                "`--labels`, in training `validation.labels`",
            ),
            (
                {"validation.comet_model": "a/b"},
                "`validation.comet_model` is `a/b`, but `metrics` has no `comet`",
            ),
            ({"regime.validate_every_n_steps": 1}, "must be equal, or the best score"),
            ({"common.no_sweep_dir": "false"}, "`common.no_sweep_dir` must be `true`"),
            ({"common.seed": -1}, "`common.seed` must be greater than"),
            ({"validation.patience": 0}, "`validation.patience` must be greater than"),
            ({"dataset.max_num_tokens": 3}, "a batch may hold only 3"),
            ({"dataset.max_source_len": 1000}, "`dataset.max_source_len` is 1000"),
            ({"dataset.max_target_len": 1000}, "`dataset.max_target_len` (1000)"),
        ],
        ids=str,
    )
    def test_call_says_one_sentence(
        self,
        tmp_path: Path,
        text_folder: Path,
        tokenizer_file: Path,
        capfd: pytest.CaptureFixture[str],
        options: Options,
        message: str,
    ) -> None:
        all_options = tiny_options(text_folder, tokenizer_file)

        assert main(to_args(tmp_path / "run", {**all_options, **options})) == 2

        captured = capfd.readouterr()

        assert "Traceback" not in captured.err + captured.out

        [line] = [
            line
            for line in captured.err.splitlines()
            if line.startswith("error: ") or " ERROR: " in line
        ]

        assert message in line

        assert not RunDir(tmp_path / "run").checkpoint_steps()

    @pytest.mark.parametrize(
        "content,message",
        [
            (
                None,
                "is neither a file nor a preset; the presets are base/finetune, base/lora, base/untrained, ",
            ),
            ("a: [", "cannot be read as YAML (while parsing a flow node"),
            ("- 1", "must hold a mapping, but holds a list; write `key: value`"),
            ("", "x.yaml` is empty; write settings"),
            ("base: nope", "is neither a file nor a preset; the presets are base/"),
            ("base: x.yaml", "goes round in a circle"),
            (
                "criterion: {name: [sft]}",
                "`criterion.name` must be a text, but is a list",
            ),
        ],
    )
    def test_bad_config_file_is_one_sentence(
        self,
        tmp_path: Path,
        capfd: pytest.CaptureFixture[str],
        content: str | None,
        message: str,
    ) -> None:
        file = tmp_path / "x.yaml"

        if content is not None:
            file.write_text(content)

        args = [str(tmp_path / "run"), "--no-rich", "--config-file", str(file)]

        assert main(args) == 2

        err = capfd.readouterr().err

        assert message in err
        assert "Traceback" not in err
        assert not (tmp_path / "run").exists()

    def test_wrong_path_leaves_nothing_behind(
        self, tmp_path: Path, tokenizer_file: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        options = tiny_options(tmp_path / "nope", tokenizer_file)

        assert main(to_args(tmp_path / "runs" / "new", options)) == 2

        assert "nope` does not exist" in capfd.readouterr().err

        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("args", [[], ["--config", "a=b", "OUT"]])
    def test_missing_directory_is_left_to_parser(self, args: Sequence[str]) -> None:
        with pytest.raises(SystemExit, match="2"):
            main(args)

    def test_dump_config_needs_no_directory(
        self, capfd: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["--dump-config"]) == 0
        assert "criterion:" in capfd.readouterr().out

    def test_unexpected_error_keeps_traceback(
        self,
        tmp_path: Path,
        text_folder: Path,
        tokenizer_file: Path,
        capfd: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def fail(self: SftCriterion, *args: object, **kwargs: object) -> Tensor:
            raise ValueError("a bug")

        monkeypatch.setattr(SftCriterion, "compute_loss", fail)

        options = tiny_options(text_folder, tokenizer_file)

        assert main(to_args(tmp_path / "run", options)) == 1

        err = capfd.readouterr().err

        assert "Traceback" in err
        assert "ValueError: a bug" in err

    def test_error_during_training_is_one_sentence(
        self,
        tmp_path: Path,
        text_folder: Path,
        tokenizer_file: Path,
        capfd: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def fail(self: SftCriterion, *args: object, **kwargs: object) -> Tensor:
            raise WarmupError("The loss is nan; lower it.")

        monkeypatch.setattr(SftCriterion, "compute_loss", fail)

        options = tiny_options(text_folder, tokenizer_file)

        assert main(to_args(tmp_path / "run", options)) == 2

        err = capfd.readouterr().err

        assert "ERROR: The loss is nan; lower it.\n" in err
        assert "Traceback" not in err


class TestRunDirectory:
    def test_run_records_everything(self, sft_run: Path) -> None:
        names = {path.name for path in sft_run.iterdir()}

        assert names >= {
            *("config.yaml", "command.yaml", "run.yaml", "card.yaml"),
            *("tokenizer.model", "versions.json", "checkpoints", "metrics"),
            *("logs", "tb"),
        }

        [start] = json.loads((sft_run / "versions.json").read_text())

        assert start["num_processes"] == 1

        config: dict[str, Any] = load_yaml(sft_run / "run.yaml")

        assert config["model"]["config_overrides"] == {"vocab_size": 120, "pad_idx": 0}

        # What fairseq2 trained with is what we keep.
        assert config == load_yaml(sft_run / "config.yaml")

        # No sub-folder named by a hash.
        assert not list(sft_run.glob("ws_*"))

    def test_secrets_do_not_reach_logs(
        self,
        tmp_path: Path,
        text_folder: Path,
        tokenizer_file: Path,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
        bare_log_filter: None,
    ) -> None:
        monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
        monkeypatch.setenv("DATABASE", "postgres://joe:verysecret@host/db")

        options = tiny_options(text_folder, tokenizer_file, regime__num_steps=1)

        assert main(to_args(tmp_path / "run", options)) == 0

        log = (tmp_path / "run" / "logs" / "rank_0.log").read_text()

        for text in (log, capfd.readouterr().err):
            assert "HF_TOKEN" not in text
            assert "DATABASE" not in text
            assert "verysecret" not in text

            # torcheval's, of metrics without values.
            assert "No calls to update()" not in text

    def test_metrics_are_recorded(self, sft_run: Path, warmup_run: Path) -> None:
        train = read_metrics(warmup_run / "metrics" / "train.jsonl")

        assert [record["Step"] for record in train] == [1, 2]

        for name in (
            *("NLL Loss", "Warmups per Source (K)", "Effective Sample Size"),
            *("Warmup Length", "Empty Warmups (%)", "Cut Warmups (%)"),
            *("Duplicate Warmups (%)", "Gain over No Warmup (nats)"),
            *("Repetition in Warmups (%)", "Warmup Entropy (nats)"),
            *("Share of Step Drawing (%)", "Elements per Second"),
        ):
            assert name in train[0], name

        assert train[0]["Warmups per Source (K)"] == 2

        for run_dir in (sft_run, warmup_run):
            [record, *_] = read_metrics(run_dir / "metrics" / "valid" / "valid.jsonl")

            assert {"NLL Loss", "BLEU", "chrF++"} <= record.keys()

            assert list((run_dir / "tb" / "train").iterdir())

    def test_outputs_are_shown(self, sft_run: Path, warmup_run: Path) -> None:
        log = (warmup_run / "logs" / "rank_0.log").read_text()

        assert log.count("Sample outputs of valid at step 2:") == 1
        assert log.count("\nsource:    ") == log.count("\noutput:    ") == 3
        assert log.count("\nwarmup:    ") == 6
        assert "(weight 0." in log
        assert "chrF2++ (nrefs:1|case:mixed" in log

        log = (sft_run / "logs" / "rank_0.log").read_text()

        # Of two validations.
        assert log.count("\nsource:    ") == log.count("\noutput:    ") == 6
        assert log.count("\nreference: ") == 6
        assert "\nwarmup:    " not in log

    def test_sft_has_no_figures_of_warmups(self, sft_run: Path) -> None:
        metrics = sft_run / "metrics"

        text = (sft_run / "logs" / "rank_0.log").read_text()

        lines = [line for line in text.splitlines() if "Metrics (step" in line]

        # Four steps, two validations.
        assert len(lines) == 6

        for line in (
            *lines,
            *(metrics / "train.jsonl").read_text().splitlines(),
            *(metrics / "valid" / "valid.jsonl").read_text().splitlines(),
        ):
            assert "armup" not in line and "Draw" not in line, line

    def test_loss_with_label_smoothing_is_named(
        self, sft_run: Path, warmup_run: Path
    ) -> None:
        [sft, *_] = read_metrics(sft_run / "metrics" / "train.jsonl")
        [warmup, *_] = read_metrics(warmup_run / "metrics" / "train.jsonl")
        [valid, *_] = read_metrics(sft_run / "metrics" / "valid" / "valid.jsonl")

        assert "Label-Smoothed Loss" in sft and "NLL Loss" not in sft

        for record in (warmup, valid):
            assert "NLL Loss" in record and "Label-Smoothed Loss" not in record

    def test_console_shows_what_people_watch(
        self,
        tmp_path: Path,
        tokenizer_file: Path,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        # With it fairseq2 tells each extension that it loads.
        monkeypatch.delenv("FAIRSEQ2_EXTENSION_TRACE", raising=False)

        text_folder = write_tiny_text(tmp_path / "text")

        file = text_folder / "train.src"

        file.write_text(file.read_text().replace("a", "ß"))

        out = tmp_path / "run"

        options = tiny_options(text_folder, tokenizer_file, regime__num_steps=4)

        args = [arg for arg in to_args(out, options) if arg != "--no-rich"]

        assert main(args) == 0

        err = capfd.readouterr().err

        assert "\x1b" not in err

        begin, _, _ = err.partition("Train Metrics (step 1) - ")

        # Data, tokens, model, criterion, sizes, the place of the logs, and warnings.
        assert len(begin.splitlines()) < 15

        for text in (
            *("INFO: train: all 60 pairs kept.", "INFO: valid: all 6 pairs kept."),
            *("train, sources (src): ", "train, targets (tgt): "),
            "% of the tokens of train, sources (src) are unknown to the tokenizer, such as 'ß': ",
            *(
                "Model: nllb transformer_test; ",
                f" parameters; float32; 1 process on cpu, {torch.get_num_threads()} thread(s) each.",
            ),
            "Criterion: sft; label smoothing 0.1, which the loss shown of training includes.",
            *("Training: 4 steps (", f"Logs: {out / 'logs' / 'rank_0.log'} (with"),
        ):
            assert text in begin, text

        assert "targets (tgt) are unknown" not in begin

        # One line each, as long as it may be.
        lines = [line for line in err.splitlines() if "Train Metrics (step" in line]

        assert len(lines) == 4

        for line in lines[:-1]:
            assert " | Time Left: " in line and " | Learning Rate: " in line

        log = (out / "logs" / "rank_0.log").read_text()

        for text in ("'criterion': {", "Host - ", "(final_proj): "):
            assert text in log and text not in err, text

        # The name of what writes it is in no line.
        assert "fairseq2 - " not in err

        messages = re.findall(r"^[-\d]{10} [:\d]{8} (.*)", err, re.MULTILINE)

        # Nothing is said twice.
        assert len(messages) == len(set(messages)) > 10

    def test_dropped_pairs_are_reported(
        self,
        tmp_path: Path,
        text_folder: Path,
        tokenizer_file: Path,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        options = tiny_options(
            text_folder, tokenizer_file, regime__num_steps=1, dataset__max_source_len=20
        )

        assert main(to_args(tmp_path / "run", options)) == 0

        err = capfd.readouterr().err

        assert "of 60 pairs kept; dropped: " in err
        assert "of 20 source and 128 target tokens (" in err

    def test_card_describes_model_and_tokenizer(self, sft_run: Path) -> None:
        card = (sft_run / "card.yaml").read_text()

        best = RunDir(sft_run).find_checkpoint("best")

        assert f"./checkpoints/step_{best}/model" in card
        assert "./checkpoints/step_4/model" in card


class TestResume:
    def resume_args(
        self, out: Path, text_folder: Path, tokenizer_file: Path, **options: object
    ) -> list[str]:
        defaults: Options = {
            "regime__num_steps": 4,
            "regime__keep_last_n_checkpoints": 2,
        }

        all_options = tiny_options(
            text_folder, tokenizer_file, **{**defaults, **options}
        )

        return to_args(out, all_options)

    @pytest.fixture
    def copied_run(self, tmp_path: Path, sft_run: Path) -> Path:
        return Path(shutil.copytree(sft_run, tmp_path / "copied"))

    def test_finished_run_stays_as_it_is(
        self, copied_run: Path, text_folder: Path, tokenizer_file: Path
    ) -> None:
        weights = load_weights(copied_run, 4)

        metrics = (copied_run / "metrics" / "train.jsonl").read_bytes()

        assert main(self.resume_args(copied_run, text_folder, tokenizer_file)) == 0

        assert RunDir(copied_run).checkpoint_steps() == [2, 4]
        assert_same_weights(load_weights(copied_run, 4), weights)
        assert (copied_run / "metrics" / "train.jsonl").read_bytes() == metrics

    def test_resumed_run_equals_uninterrupted_one(
        self, copied_run: Path, text_folder: Path, tokenizer_file: Path
    ) -> None:
        weights = load_weights(copied_run, 4)

        metrics = read_metrics(copied_run / "metrics" / "train.jsonl")

        # As if it was killed after the first checkpoint.
        shutil.rmtree(copied_run / "checkpoints" / "step_4")

        assert main(self.resume_args(copied_run, text_folder, tokenizer_file)) == 0

        assert_same_weights(load_weights(copied_run, 4), weights)

        repeated = read_metrics(copied_run / "metrics" / "train.jsonl")[4:]

        assert [(r["Step"], r["Label-Smoothed Loss"]) for r in repeated] == [
            (r["Step"], r["Label-Smoothed Loss"]) for r in metrics[2:]
        ]

    @pytest.mark.parametrize("content", [None, ""])
    def test_validation_that_was_cut_off_is_repeated(
        self,
        copied_run: Path,
        text_folder: Path,
        tokenizer_file: Path,
        content: str | None,
    ) -> None:
        scores = RunDir(copied_run).scores()

        weights = load_weights(copied_run, 4)

        # The validation saves the checkpoint while it runs, and its score when it ends.
        shutil.rmtree(copied_run / "checkpoints" / "step_4")

        score_file = copied_run / "checkpoints" / "scores" / "step_2.txt"

        if content is None:
            score_file.unlink()
        else:
            score_file.write_text(content)

        assert main(self.resume_args(copied_run, text_folder, tokenizer_file)) == 0

        assert RunDir(copied_run).scores() == scores

        assert_same_weights(load_weights(copied_run, 4), weights)

    def test_last_validation_that_was_cut_off_is_repeated(
        self, copied_run: Path, text_folder: Path, tokenizer_file: Path
    ) -> None:
        scores = RunDir(copied_run).scores()

        (copied_run / "checkpoints" / "scores" / "step_4.txt").unlink()

        snapshot = take_snapshot(copied_run / "checkpoints" / "step_4")

        assert main(self.resume_args(copied_run, text_folder, tokenizer_file)) == 0

        assert RunDir(copied_run).scores() == scores
        assert take_snapshot(copied_run / "checkpoints" / "step_4") == snapshot

    def test_validation_without_score_is_not_repeated(
        self, tmp_path: Path, text_folder: Path, tokenizer_file: Path
    ) -> None:
        options = tiny_options(text_folder, tokenizer_file, regime__score_metric="null")

        args = to_args(tmp_path / "run", options)

        assert main(args) == 0

        metrics_file = tmp_path / "run" / "metrics" / "valid" / "valid.jsonl"

        metrics = metrics_file.read_text()

        assert main(args) == 0

        assert metrics_file.read_text() == metrics

    def test_run_of_several_config_files_is_resumed(
        self, tmp_path: Path, text_folder: Path, tokenizer_file: Path
    ) -> None:
        files = [
            *("--config-file", "translation/finetune_warmup"),
            *("--config-file", "hardware/one_gpu"),
        ]

        options = tiny_options(
            text_folder,
            tokenizer_file,
            criterion__name=None,
            dataset__max_num_tokens=100,
            lr_scheduler__config__num_warmup_steps=1,
        )

        run = tmp_path / "run"

        assert main(to_args(run, options, *files)) == 0

        config: Any = load_yaml(run / "command.yaml")

        # The whole of it, since the merged file is gone.
        assert config["criterion"]["name"] == "warmup"
        assert config["lr_scheduler"]["name"] == "polynomial_decay"
        assert config["trainer"]["mixed_precision"]["mode"] == "auto"
        assert config["trainer"]["grad_accumulation"]["num_batches"] == 8

        snapshot = take_snapshot(run / "checkpoints" / "step_2")

        assert main(to_args(run, options, *files)) == 0
        assert take_snapshot(run / "checkpoints" / "step_2") == snapshot

        # Without one of the files it is another config.
        assert main(to_args(run, options, *files[:2])) == 2

    def test_changed_config_is_refused_and_nothing_is_written(
        self,
        copied_run: Path,
        text_folder: Path,
        tokenizer_file: Path,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        snapshot = take_snapshot(copied_run)

        args = self.resume_args(
            copied_run, text_folder, tokenizer_file, model__arch="transformer_tiny"
        )

        assert main([*args, "criterion.name=warmup"]) == 2

        err = capfd.readouterr().err

        assert (
            "`model.arch` ('transformer_test' in the run, 'transformer_tiny' now)"
            in err
        )
        assert "`criterion.name` ('sft' in the run, 'warmup' now)" in err
        assert "Traceback" not in err

        assert take_snapshot(copied_run) == snapshot

    def test_changed_data_is_refused(
        self,
        tmp_path: Path,
        copied_run: Path,
        text_folder: Path,
        tokenizer_file: Path,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        shutil.rmtree(copied_run / "checkpoints" / "step_4")

        other_text = Path(shutil.copytree(text_folder, tmp_path / "text"))

        with (other_text / "train.src").open("a") as fp:
            fp.write("ta\n")

        with (other_text / "train.tgt").open("a") as fp:
            fp.write("ba\n")

        args = self.resume_args(copied_run, other_text, tokenizer_file)

        assert main(args) == 2

        err = capfd.readouterr().err

        assert "has changed (60 pairs then, 61 now)" in err
        assert "Traceback" not in err

    def test_run_resumes_when_data_was_moved(
        self,
        tmp_path: Path,
        copied_run: Path,
        text_folder: Path,
        tokenizer_file: Path,
    ) -> None:
        moved_text = Path(shutil.copytree(text_folder, tmp_path / "moved_text"))

        shutil.rmtree(copied_run / "checkpoints" / "step_4")

        assert main(self.resume_args(copied_run, moved_text, tokenizer_file)) == 0

        assert RunDir(copied_run).checkpoint_steps() == [2, 4]

    def test_run_resumes_when_fairseq2_left_half_a_config(
        self, copied_run: Path, text_folder: Path, tokenizer_file: Path
    ) -> None:
        (copied_run / "config.yaml").write_text("model: {na")

        assert main(self.resume_args(copied_run, text_folder, tokenizer_file)) == 0

    def test_every_start_is_recorded(
        self, copied_run: Path, text_folder: Path, tokenizer_file: Path
    ) -> None:
        assert main(self.resume_args(copied_run, text_folder, tokenizer_file)) == 0

        assert len(json.loads((copied_run / "versions.json").read_text())) == 2

    def test_moved_run_resumes(
        self, copied_run: Path, text_folder: Path, tokenizer_file: Path
    ) -> None:
        config = (copied_run / "run.yaml").read_text()

        # Nothing is left where the run was made.
        [old_file] = re.findall(r"\S+tokenizer\.model", config)

        (copied_run / "run.yaml").write_text(config.replace(old_file, "/nope"))

        shutil.rmtree(copied_run / "checkpoints" / "step_4")

        assert main(self.resume_args(copied_run, text_folder, tokenizer_file)) == 0

        assert RunDir(copied_run).checkpoint_steps() == [2, 4]

    def test_run_resumes_when_run_it_started_from_is_gone(
        self, tmp_path: Path, copied_run: Path, text_folder: Path
    ) -> None:
        options = tiny_options(
            text_folder,
            None,
            init_from=copied_run,
            criterion__name="warmup",
            regime__num_steps=4,
            regime__keep_last_n_checkpoints=2,
        )

        out = tmp_path / "warmup"

        assert main(to_args(out, options)) == 0

        weights = load_weights(out, 4)

        shutil.rmtree(copied_run)
        shutil.rmtree(out / "checkpoints" / "step_4")

        assert main(to_args(out, options)) == 0

        assert_same_weights(load_weights(out, 4), weights)


class TestInitFrom:
    def test_run_starts_from_model(
        self, tmp_path: Path, text_folder: Path, sft_run: Path
    ) -> None:
        # A learning rate of nothing shows where it started.
        options = tiny_options(
            text_folder,
            None,
            init_from=sft_run,
            init_checkpoint="last",
            optimizer__config__lr=0.0,
        )

        assert main(to_args(tmp_path / "run", options)) == 0

        assert_same_weights(load_weights(tmp_path / "run", 2), load_weights(sft_run, 4))

        spm = (tmp_path / "run" / "tokenizer.model").read_bytes()

        assert spm == (sft_run / "tokenizer.model").read_bytes()

    def test_preset_only_prepares_the_model(
        self, tmp_path: Path, text_folder: Path, sft_run: Path
    ) -> None:
        options = {
            key: value
            for key, value in tiny_options(
                text_folder, None, criterion__name="warmup", init_from=sft_run
            ).items()
            if not key.startswith(("regime", "lr_scheduler"))
        }

        options["init_checkpoint"] = "last"

        args = to_args(
            *(tmp_path / "run", options, "--config-file"),
            *("translation/from_scratch_warmup", "base/untrained"),
        )

        assert main(args) == 0

        before, after = load_weights(sft_run, 4), load_weights(tmp_path / "run", 2)

        assert before.keys() == after.keys()

        changed = {
            name for name in before if not torch.equal(before[name], after[name])
        }

        # One matrix for all, of which the row of the separator is another.
        assert {before[name].shape for name in changed} == {
            before["sdp_00.pt:final_proj.weight"].shape
        }

        for name in changed:
            rows = (before[name] != after[name]).any(dim=1)

            assert rows.sum() == 1


class TestWarmupSettings:
    def test_run_works_when_all_of_them_are_set(
        self,
        tmp_path: Path,
        text_folder: Path,
        sft_run: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        compute_loss = WarmupCriterion.compute_loss

        seen = []

        def look(
            self: WarmupCriterion, batch: Seq2SeqBatch, bag: MetricBag, *, step_nr: int
        ) -> Tensor:
            reference = self._context.reference

            assert reference is not None

            parameters = list(reference.module.parameters())

            assert not reference.module.training
            assert not any(parameter.requires_grad for parameter in parameters)

            seen.append(
                [
                    torch.equal(x, y)
                    for x, y in zip(parameters, self._context.model.module.parameters())
                ]
            )

            return compute_loss(self, batch, bag, step_nr=step_nr)

        monkeypatch.setattr(WarmupCriterion, "compute_loss", look)

        options = tiny_options(
            text_folder,
            None,
            init_from=sft_run,
            criterion__name="warmup",
            warmup__sampler="{name: stochastic_beam}",
            warmup__objective="{name: joint}",
            warmup__keep="{name: mass, mass: 0.8}",
            warmup__weight_temperature=2.0,
            warmup__length_normalized="true",
            warmup__sft_weight=0.1,
            warmup__entropy_weight=0.1,
            # To the model that it starts from.
            warmup__kl_weight=0.1,
            warmup__max_num_tokens=200,
            regime__num_steps=3,
        )

        out = tmp_path / "run"

        assert main(to_args(out, options)) == 0

        train = read_metrics(out / "metrics" / "train.jsonl")

        assert [record["Step"] for record in train] == [1, 2, 3]

        # Drawn without replacement.
        assert all(record["Duplicate Warmups (%)"] == 0.0 for record in train)

        # The reference is where the model started, and stays there; the learning rate of
        # the first step is zero.
        assert all(seen[0]) and not any(seen[2])


class TestBestCheckpoint:
    def test_best_by_chrf_is_kept_and_found(
        self,
        tmp_path: Path,
        text_folder: Path,
        tokenizer_file: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        set_scores(monkeypatch, 10.0, 30.0, 20.0, 25.0)

        options = tiny_options(text_folder, tokenizer_file, regime__num_steps=8)

        assert main(to_args(tmp_path / "run", options)) == 0

        run_dir = RunDir(tmp_path / "run")

        assert run_dir.checkpoint_steps() == [4, 8]
        assert run_dir.scores() == {4: 30.0, 8: 25.0}
        assert run_dir.find_checkpoint("best") == 4
        assert run_dir.find_checkpoint("last") == 8

        card = run_dir.card_file.read_text()

        assert "./checkpoints/step_4/model" in card
        assert "./checkpoints/step_8/model" in card

    def test_card_never_names_deleted_checkpoint(
        self,
        tmp_path: Path,
        text_folder: Path,
        tokenizer_file: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        # The validation of step 4 replaces the best checkpoint; the last step validates
        # once more.
        set_scores(monkeypatch, 10.0, 30.0, 20.0)

        out = tmp_path / "run"

        compute_loss = SftCriterion.compute_loss

        cards = []

        def look(
            self: SftCriterion, batch: Seq2SeqBatch, bag: MetricBag, *, step_nr: int
        ) -> Tensor:
            if step_nr == 5:
                steps = RunDir(out).checkpoint_steps()

                cards.append((steps, (out / "card.yaml").read_text()))

            return compute_loss(self, batch, bag, step_nr=step_nr)

        monkeypatch.setattr(SftCriterion, "compute_loss", look)

        options = tiny_options(text_folder, tokenizer_file, regime__num_steps=5)

        assert main(to_args(out, options)) == 0

        [(steps, card)] = cards

        assert steps == [4]
        assert "step_4/model" in card
        assert "step_2/model" not in card


class TestPatience:
    def test_run_stops_early_and_stays_stopped(
        self,
        tmp_path: Path,
        text_folder: Path,
        tokenizer_file: Path,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        # The equal score of step 4 replaces the checkpoint of step 2.
        set_scores(monkeypatch, 10.0, 10.0, 5.0)

        options = tiny_options(
            text_folder, tokenizer_file, regime__num_steps=100, validation__patience=2
        )

        args = to_args(tmp_path / "run", options)

        assert main(args) == 0

        run_dir = RunDir(tmp_path / "run")

        assert run_dir.checkpoint_steps() == [4, 6]

        assert "No improvement since step 2 (score 10.00)" in capfd.readouterr().err

        snapshot = take_snapshot(run_dir.path)

        assert main(args) == 0

        assert "has stopped early; there is nothing to do" in capfd.readouterr().out

        assert take_snapshot(run_dir.path) == snapshot


def send_at_step(
    monkeypatch: pytest.MonkeyPatch, kls: type[Criterion], nr: int
) -> None:
    """Lets a run with this criterion receive SIGTERM while it is at a step."""
    compute_loss = kls.compute_loss

    def send(
        self: Criterion, batch: Seq2SeqBatch, bag: MetricBag, *, step_nr: int
    ) -> Tensor:
        if step_nr == nr:
            os.kill(os.getpid(), signal.SIGTERM)

        return compute_loss(self, batch, bag, step_nr=step_nr)

    monkeypatch.setattr(kls, "compute_loss", send)


class TestStopSignal:
    def test_run_ends_with_checkpoint_and_resumes(
        self,
        tmp_path: Path,
        text_folder: Path,
        tokenizer_file: Path,
        sft_run: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        options = tiny_options(
            text_folder,
            tokenizer_file,
            regime__num_steps=4,
            regime__keep_last_n_checkpoints=2,
        )

        args = to_args(tmp_path / "run", options)

        old_handler = signal.getsignal(signal.SIGTERM)

        with monkeypatch.context() as context:
            send_at_step(context, SftCriterion, 2)

            assert main(args) == 128 + signal.SIGTERM

        assert signal.getsignal(signal.SIGTERM) is old_handler

        run_dir = RunDir(tmp_path / "run")

        # The step that was running and the next one, at whose start it stopped.
        assert run_dir.checkpoint_steps() == [2, 3]
        assert run_dir.card_file.is_file()

        # What is there can be used.
        output = tmp_path / "out.txt"

        assert (
            generate.main([str(run_dir.path), "--no-rich", "--output", str(output)])
            == 0
        )

        assert main(args) == 0

        assert_same_weights(load_weights(run_dir.path, 4), load_weights(sft_run, 4))

    def test_minimum_risk_training_goes_on_as_if_never_stopped(
        self,
        tmp_path: Path,
        text_folder: Path,
        tokenizer_file: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        options = tiny_options(
            text_folder,
            tokenizer_file,
            criterion__name="mrt",
            criterion__config="{num_samples: 2, with_warmups: true, max_len_a: 0.0, max_len_b: 4}",
            regime__num_steps=4,
            regime__keep_last_n_checkpoints=4,
            **SHORT_OUTPUTS,
        )

        whole, stopped = tmp_path / "whole", tmp_path / "stopped"

        assert main(to_args(whole, options)) == 0

        with monkeypatch.context() as context:
            send_at_step(context, MrtCriterion, 2)

            assert main(to_args(stopped, options)) == 128 + signal.SIGTERM

        # At a step without validation, with an optimizer that has begun.
        assert RunDir(stopped).checkpoint_steps() == [2, 3]

        assert main(to_args(stopped, options)) == 0

        for step in (2, 4):
            assert_same_weights(load_weights(stopped, step), load_weights(whole, step))

        lines = [read_metrics(d / "metrics" / "train.jsonl") for d in (whole, stopped)]

        # Bit for bit, also what is only measured.
        names = ("Step", "Score of Samples", "Distinct Samples (%)", "Gradient Norm")

        values, other_values = ([[r[n] for n in names] for r in rows] for rows in lines)

        assert len(values) == 4 and other_values == values

    def test_status_of_failure_is_kept(
        self,
        tmp_path: Path,
        text_folder: Path,
        tokenizer_file: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def fail(self: SftCriterion, *args: object, **kwargs: object) -> Tensor:
            os.kill(os.getpid(), signal.SIGTERM)

            raise WarmupError("The loss is nan; lower it.")

        monkeypatch.setattr(SftCriterion, "compute_loss", fail)

        options = tiny_options(text_folder, tokenizer_file)

        assert main(to_args(tmp_path / "run", options)) == 2


def test_card_of_one_checkpoint_is_written_once(
    tmp_path: Path,
    text_folder: Path,
    tokenizer_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    num_cards = 0

    def dump(*documents: Any) -> str:
        nonlocal num_cards

        num_cards += "checkpoint" in documents[0]

        return dump_yaml(*documents)

    monkeypatch.setattr(run_dir_module, "dump_yaml", dump)

    options = tiny_options(text_folder, tokenizer_file)

    assert main(to_args(tmp_path / "run", options)) == 0

    assert (tmp_path / "run" / "card.yaml").is_file() and num_cards == 1


_SIGNUMS: list[int] = []
"""What this process is to send itself."""


def _send_signals() -> None:
    while _SIGNUMS:
        os.kill(os.getpid(), _SIGNUMS.pop())


# There Python prints errors, such as those of a handler of signals, and goes on.
os.register_at_fork(after_in_parent=_send_signals)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("cache", ["none", "cache"])
def test_signal_ends_tokenising_and_its_processes(
    tmp_path: Path,
    text_folder: Path,
    tokenizer_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    cache: str,
    signum: signal.Signals,
) -> None:
    options = tiny_options(
        text_folder,
        tokenizer_file,
        dataset__cache=cache if cache == "none" else tmp_path / cache,
    )

    args = to_args(tmp_path / "run", options)

    def count_processes(num_sharing: int) -> int:
        # Sent when the first of them is made.
        _SIGNUMS.append(signum)

        return 2

    def wait(*_: object) -> None:
        # For ever, were it not ended.
        threading.Event().wait(300.0)

    with monkeypatch.context() as patch:
        patch.setattr(tokenizing, "_LEAST_PAIRS", 10)
        patch.setattr(tokenizing._Job, "encode", wait)
        patch.setattr(corpora, "count_processes", count_processes)

        assert main(args) == 128 + signum

    assert not _SIGNUMS and multiprocessing.active_children() == []

    # Half of a split is nowhere.
    assert list((tmp_path / "cache").glob("*")) == []

    log = (tmp_path / "run" / "logs" / "rank_0.log").read_text()

    assert "No step has begun, so that there is nothing to save; stopping now." in log

    # The same command begins again.
    assert main(args) == 0
