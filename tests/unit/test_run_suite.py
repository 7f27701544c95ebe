# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import statistics
import sys
import threading
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import psutil  # type: ignore[import-untyped]
import pytest
from fairseq2.utils.argparse import ConfigAction
from ruamel.yaml import YAML

from scripts import run_suite
from tests.configs import read_train_config
from tests.tiny_runs import ROOT
from tests.unit.metrics.fake_comet import install_comet_worker, write_comet_model
from tests.unit.metrics.texts import make_hypotheses, make_references
from warmup_plugin.__main__ import main as run_command
from warmup_plugin.errors import WarmupError
from warmup_plugin.metrics.base import measure_mean
from warmup_plugin.metrics.resampling import randomization_p_values_of_groups
from warmup_plugin.metrics.translation import evaluate_systems
from warmup_plugin.runs.yaml_files import dump_yaml
from warmup_plugin.suite import differences
from warmup_plugin.suite.differences import sign_flip_p_value
from warmup_plugin.suite.grid import Grid
from warmup_plugin.suite.load import load_grid
from warmup_plugin.suite.plan import Plan, format_setting, make_plan
from warmup_plugin.suite.results import SuiteResult, collect_results
from warmup_plugin.suite.runner import Outcome, Runner, Status
from warmup_plugin.suite.runs import Run, is_finished, measure_training
from warmup_plugin.suite.steps import NotReady, Step
from warmup_plugin.suite.tables import (
    format_latex,
    format_markdown,
    format_seconds,
    make_json,
)

NUM_TRIALS: Final = 1000
"""Each is scored by sacreBLEU in Python; ten times as many take seconds."""


@contextmanager
def with_fewer_trials() -> Iterator[None]:
    """Lets :func:`collect_results` test with ``NUM_TRIALS``."""
    test = partial(randomization_p_values_of_groups, num_trials=NUM_TRIALS)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(differences, "randomization_p_values_of_groups", test)

        yield


@pytest.fixture(scope="module", autouse=True)
def fewer_trials() -> Iterator[None]:
    with with_fewer_trials():
        yield


def score_or_compare(command: list[str]) -> None:
    if command[0] == "compare":
        command = [*command, "--num-randomization", str(NUM_TRIALS)]

    assert run_command(command) == 0


SUITES: Final = sorted((ROOT / "recipes" / "suites").glob("*.yaml"))


def make_grid() -> dict[str, Any]:
    """Returns the content of a grid: SFT, and from it warmup and SFT as long."""
    return {
        "name": "small",
        "out": "out",
        "seeds": [1, 2],
        "baseline": "more",
        "tasks": [
            {
                "name": "toy",
                "config": {"dataset.path": "data", "regime.num_data_epochs": None},
                "split": "test",
            }
        ],
        "systems": [
            {"name": "sft", "config": {"criterion.name": "sft"}, "steps": 40},
            {
                "name": "more",
                "init_from": "sft",
                "config": {"criterion.name": "sft"},
                "steps": 10,
            },
            {"name": "warmup", "init_from": "sft", "steps": 10},
            {
                "name": "long",
                "init_from": "sft",
                "config": {"criterion.name": "sft"},
                "equal_time_with": "warmup",
                "step_time_of": "more",
            },
        ],
    }


def write_grid(folder: Path, content: Mapping[str, Any]) -> Path:
    file = folder / "grid.yaml"

    # JSON is YAML.
    file.write_text(json.dumps(content))

    return file


def load(folder: Path, content: Mapping[str, Any] | None = None) -> Grid:
    return load_grid(write_grid(folder, make_grid() if content is None else content))


class TestLoadGrid:
    def test_call_reads_all(self, tmp_path: Path) -> None:
        content = make_grid()

        content["tasks"][0] |= {
            "title": "A toy",
            "config_file": "translation/synthetic_pair_sft",
            "metrics": ["accuracy", "bleu"],
            "labels": ["A", "B"],
            "target_lang": "de",
            "checkpoint": "last",
            "steps": 30,
        }

        content["systems"][0]["per_task"] = {
            "toy": {"steps": 7, "config": {"dataset.path": "other", "a.b": "c"}}
        }

        grid = load(tmp_path, content)

        task, sft, more = grid.tasks[0], grid.systems[0], grid.systems[1]

        assert (grid.name, grid.out, grid.seeds) == ("small", Path("out"), [1, 2])
        assert grid.baselines == ["more"]
        assert (task.title, task.checkpoint) == ("A toy", "last")
        assert task.metrics == ["accuracy", "bleu"]
        assert task.metric_options.labels == ["A", "B"]

        assert task.metric_args == [
            *("--metrics", "accuracy,bleu"),
            *("--target-lang", "de", "--labels", "A,B"),
        ]

        # The most specific setting counts.
        settings = grid.settings(task, sft)

        assert settings.config_files == ["translation/synthetic_pair_sft"]
        assert settings.steps == 7
        assert settings.config == {
            "dataset.path": "other",
            "regime.num_data_epochs": None,
            "criterion.name": "sft",
            "a.b": "c",
        }

        assert grid.settings(task, more).steps == 10
        assert list(map(str, more.needs)) == ["sft"]
        assert list(map(str, grid.systems[3].needs)) == ["sft", "warmup", "more"]

    def test_call_reads_several_config_files(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SUITE_FILES", "/files")

        content = make_grid()

        content["tasks"][0]["config_file"] = "translation/synthetic_pair_sft"
        content["systems"][0]["config_file"] = ["a", "${SUITE_FILES}/b"]

        grid = load(tmp_path, content)

        # Those of the system stand for those of the task.
        settings = grid.settings(grid.tasks[0], grid.systems[0])

        assert settings.config_files == ["a", "/files/b"]

        command = make_plan(grid).train["toy/sft/1"].preview()

        assert command[2:7] == [
            *("--config-file", "a", "--config-file", "/files/b"),
            "--no-rich",
        ]

    def test_call_reads_several_baselines(self, tmp_path: Path) -> None:
        content = make_grid() | {"baseline": ["more", "long"]}

        assert load(tmp_path, content).baselines == ["more", "long"]

    def test_call_expands_variables(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SUITE_DATA", "/a folder")

        content = make_grid()

        content["out"] = "${SUITE_DATA}/out"

        content["tasks"][0] |= {
            "prepare": ["train-tokenizer ${OUT}/x.model --input ${SUITE_DATA}/in"],
            "config": {
                "dataset.path": "${SUITE_DATA}",
                # fairseq2's own, and a template.
                "dataset.prompt": ["${env:HOME} {source}"],
            },
        }

        grid = load(tmp_path, content)

        [task] = grid.tasks

        assert task.prepare == [
            ["train-tokenizer", "/a folder/out/x.model", "--input", "/a folder/in"]
        ]

        assert task.config == {
            "dataset.path": "/a folder",
            "dataset.prompt": ["${env:HOME} {source}"],
        }

    @pytest.mark.parametrize(
        "path,value,message",
        [
            ("name", "a b", "`name` is `a b`, but it names folders; use letters"),
            ("name", None, "`name` is missing; add it."),
            ("seeds", [], "`seeds` is missing"),
            ("seeds", [1, "2"], "`seeds[1]` must be a whole number of at least 0, but"),
            ("seeds", [1, 1], "`seeds` holds 1 twice; give it once."),
            ("seed", 3, "`seed` is not known; use some of `name`, `out`, `seeds`"),
            ("baseline", None, "`baseline` is missing; name the system, or a list"),
            ("baseline", "stf", "`baseline` names `stf`, which is none of the systems"),
            ("baseline", ["sft", "sft"], "`baseline` holds sft twice"),
            ("tasks", [], "`tasks` is missing; add at least one."),
            ("tasks", ["toy"], "`tasks[0]` must be a mapping"),
            ("tasks.0.name", "../x", "`tasks[0].name` is `../x`, but it names"),
            ("tasks.0.split", None, "`tasks[0].split` is missing; add it."),
            ("tasks.0.splt", "x", "`tasks[0].splt` is not known; use some of"),
            ("tasks.0.metrics", ["blue"], "`tasks[0].metrics`: The metric `blue` is"),
            ("tasks.0.metrics", "bleu", "`tasks[0].metrics` must be a list, but is"),
            ("tasks.0.labels", ["A"], "`--labels` is of no use without the metric"),
            ("tasks.0.labels", ["A,B"], "`tasks[0].labels[0]` is a label with a comma"),
            ("tasks.0.comet_gpus", 7, "argument --comet-gpus: invalid choice: 7"),
            ("tasks.0.prepare", ["a 'b"], "`tasks[0].prepare[0]` is `a 'b`, which is"),
            ("tasks.0.config", [1], "`tasks[0].config` must be a mapping"),
            ("tasks.0.config", {"common.seed": 1}, "sets `common.seed`, which the su"),
            ("tasks.0.config", {"a": "${NOT_SET_1}"}, "`${NOT_SET_1}` is used, but"),
            ("systems.0.steps", 0, "`systems[0].steps` must be a whole number of at"),
            ("systems.0.steps", True, "`systems[0].steps` must be a whole number of"),
            ("systems.3.name", "sft", "`systems` holds sft twice; give it once."),
            ("systems.1.title", "sft", "`systems` holds sft twice as a title"),
            ("systems.1.init_from", "warmup", "`systems[1].init_from` names `warmup`,"),
            ("systems.1.init_from", "dir", "a folder is given by `config: {init_from:"),
            ("systems.1.config", {"regime.num_steps": 1}, "give `steps` instead"),
            (
                "systems.1.config",
                {"dataset.directions": {"en-de": {}, "de-en": {}}},
                "`tasks[0].direction` must be one of the directions that `more` is "
                "trained on, or a list of them; write some of `[en-de, de-en]`.",
            ),
            ("systems.0.per_task", {"toys": {}}, "`systems[0].per_task` names `toys`,"),
            ("systems.0.per_task", {"toy": {"x": 1}}, "`systems[0].per_task.toy.x` is"),
            ("systems.3.steps", 5, "`systems[3].steps` cannot be given beside"),
            (
                "systems.3.step_time_of",
                None,
                "`systems[3].equal_time_with` needs `step",
            ),
            (
                "systems.3.equal_time_with",
                None,
                "`systems[3].equal_time_with` needs `ste",
            ),
            ("systems.3.step_time_of", "warmup", "since `criterion.name` differs in"),
        ],
    )
    def test_call_names_what_is_wrong(
        self, tmp_path: Path, path: str, value: object, message: str
    ) -> None:
        content = make_grid()

        node: Any = content

        *parents, key = path.split(".")

        for parent in parents:
            node = node[int(parent) if parent.isdecimal() else parent]

        node[key] = value

        with pytest.raises(WarmupError) as info:
            load(tmp_path, content)

        assert message in str(info.value)
        assert str(info.value).startswith(f"{tmp_path / 'grid.yaml'}: ")
        assert str(info.value).endswith(".")

    @pytest.mark.parametrize(
        "text,message",
        [
            ("a.b: 2024-01-01", "`tasks[0].config.a.b` is datetime"),
            ("a.b: [{c: 2024-01-01}]", "`tasks[0].config.a.b[0].c` is datetime"),
            ("1: a", "`tasks[0].config` has the key 1; write it in quotes."),
        ],
    )
    def test_call_refuses_what_is_no_text_or_number(
        self, tmp_path: Path, text: str, message: str
    ) -> None:
        file = tmp_path / "grid.yaml"

        file.write_text(dump_yaml(make_grid()).replace("dataset.path: data", text))

        with pytest.raises(WarmupError, match=re.escape(message)):
            load_grid(file)

    def test_system_of_one_seed_starts_from_one_of_that_seed(
        self, tmp_path: Path
    ) -> None:
        content = make_grid()

        middle = {"name": "middle", "init_from": "sft", "score": False, "seed": 7}

        content["systems"].insert(1, middle)

        with pytest.raises(WarmupError, match="not trained with the seed 7 before it"):
            load(tmp_path, content)

        middle["seed"] = 1

        step = make_plan(load(tmp_path, content)).train["toy/middle/1"]

        assert [need.key for need in step.needs] == ["train toy/sft/1"]

        content["systems"][0] |= {"score": False, "seed": 7}

        middle["seed"] = 7

        assert "toy/middle/7" in make_plan(load(tmp_path, content)).train

    @pytest.mark.parametrize("text", ["a: [", "a: 1\na: 2", "\xff"])
    def test_call_refuses_what_is_no_yaml(self, tmp_path: Path, text: str) -> None:
        file = tmp_path / "grid.yaml"

        file.write_bytes(text.encode("latin-1"))

        with pytest.raises(WarmupError, match="cannot be read as YAML .*; correct it."):
            load_grid(file)

        with pytest.raises(WarmupError, match="does not exist; give the YAML file"):
            load_grid(tmp_path / "none.yaml")


class TestFormatSetting:
    @pytest.mark.parametrize(
        "value",
        [
            *("en", "a/b c", "no", "null", "1", "1.5", "[a]", "{source}\n", " a ", ""),
            *("a: b", "a #b", "=", "ä", "2024-01-01", True, None, 3, 1e-05, 0.5),
            *(["a", 1, None], {"name": "stochastic_beam", "config": {"x": [1]}}),
        ],
    )
    def test_train_reads_the_same(self, value: object) -> None:
        parser = ArgumentParser()

        parser.add_argument("--config", action=ConfigAction)

        args = parser.parse_args(["--config", format_setting("a.b", value), "c=1"])

        assert args.config == [{"a": {"_set_": {"b": value}}, "_set_": {"c": 1}}]

    def test_simple_text_stays_readable(self) -> None:
        assert format_setting("criterion.name", "sft") == "criterion.name=sft"


@pytest.fixture
def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Grid:
    """The grid of :func:`make_grid`; its folder is the current one."""
    monkeypatch.chdir(tmp_path)

    return load(tmp_path)


@pytest.fixture
def plan(grid: Grid) -> Plan:
    return make_plan(grid)


def list_keys(steps: Sequence[Step]) -> list[str]:
    return [step.key for step in steps]


class TestMakePlan:
    def test_steps_are_in_order(self, plan: Plan) -> None:
        keys = list_keys(plan.steps)

        # The first seed is finished before the second begins.
        assert keys[:3] == [
            "train toy/sft/1",
            "generate toy/sft/1",
            "evaluate toy/sft/1",
        ]
        assert keys[12] == "compare toy/*/1 with more"
        assert keys[13] == "train toy/sft/2"
        assert len(keys) == 2 * (4 * 3 + 1)

        # Nothing stands before what it needs.
        for idx, step in enumerate(plan.steps):
            for other in (*step.needs, *step.after):
                assert keys.index(other.key) < idx

    def test_train_gets_settings(self, plan: Plan) -> None:
        assert plan.train["toy/warmup/2"].make_command() == [
            *("train", "out/toy/warmup/seed_2", "--no-rich", "--config"),
            *("common.seed=2", "dataset.path=data", "regime.num_data_epochs=null"),
            *("init_from=out/toy/sft/seed_2", "regime.num_steps=10"),
        ]

    def test_train_gets_steps_of_equal_time(self, plan: Plan) -> None:
        step = plan.train["toy/long/1"]

        assert step.preview()[-1] == (
            "regime.num_steps=<time of toy/warmup/1 / time of a step of toy/more/1>"
        )

        assert not step.is_done()

        # 10 steps of 3 seconds, in which 20 of 1.5 fit.
        write_metrics(Path("out/toy/warmup/seed_1"), [(5, 15.0), (10, 15.0)])
        write_metrics(Path("out/toy/more/seed_1"), [(5, 7.0), (10, 8.0)])

        assert step.make_command()[-1] == "regime.num_steps=20"

        # By seed.
        with pytest.raises(WarmupError, match="warmup/seed_2/metrics/train.jsonl"):
            plan.train["toy/long/2"].make_command()

    def test_other_commands(self, plan: Plan) -> None:
        split = ["--split", "test", "--checkpoint", "best"]

        assert plan.generate["toy/sft/1"].preview() == [
            *("generate", "out/toy/sft/seed_1", *split, "--no-rich"),
        ]

        assert plan.evaluate["toy/sft/1"].preview() == [
            *("evaluate", "out/toy/sft/seed_1", *split, "--metrics", "bleu,chrf"),
            *("--json", "out/toy/sft/seed_1.scores.json"),
        ]

        # The baseline comes first.
        assert plan.compare["toy/more/1"].preview() == [
            *("compare", "out/toy/more/seed_1", "out/toy/sft/seed_1"),
            *("out/toy/warmup/seed_1", "out/toy/long/seed_1", *split),
            *("--metrics", "bleu,chrf"),
            *("--json", "out/toy/_compare/seed_1.more.result.json"),
        ]

        with pytest.raises(NotReady, match="toy/more/1 is not translated"):
            plan.compare["toy/more/1"].make_command()

    def test_select_adds_training_that_is_needed(self, plan: Plan) -> None:
        assert list_keys(plan.select(["toy/warmup/2"])) == [
            *("train toy/sft/2", "train toy/warmup/2", "generate toy/warmup/2"),
            *("evaluate toy/warmup/2", "compare toy/*/2 with more"),
        ]

        assert plan.select([]) == plan.steps
        assert plan.select(["t*"]) == plan.steps
        assert len(plan.select(["*/sft", "*/*/1"])) == len(plan.steps) - 9

        with pytest.raises(WarmupError, match="`--only toy/x` matches no run; the ru"):
            plan.select(["toy/x"])

    @pytest.mark.parametrize("file", SUITES, ids=lambda file: str(file.stem))
    def test_suites_of_the_project_resolve(
        self, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("DATA", "data")
        monkeypatch.setenv("FLORES", "flores")

        grid = load_grid(file)

        assert file.stem == grid.name

        plan = make_plan(grid)

        for run in plan.runs:
            if run.seed != grid.seeds[0] or not run.is_trained:
                continue

            args = plan.train[run.name].preview()[1:]

            # What is computed later.
            if run.system.equal_time_with is not None:
                args[-1] = "regime.num_steps=1000"

            config = read_train_config(args)

            is_plain = run.system.name.startswith(("sft", "legs", "first"))

            name = "sft" if is_plain else "warmup"

            if run.system.name.startswith("mrt"):
                name = "mrt"

            assert config["criterion"]["name"] == name


def write_metrics(
    path: Path, records: Sequence[tuple[int, float]], **further: object
) -> None:
    """Writes the training metrics of a run: steps and the seconds since the last."""
    file = path / "metrics" / "train.jsonl"

    file.parent.mkdir(parents=True, exist_ok=True)

    with file.open("a") as fp:
        for step_nr, seconds in records:
            record = {"Step": step_nr, "Lapse Time": seconds, **further}

            fp.write(json.dumps(record) + "\n")


class TestMeasureTraining:
    def test_call_adds_up(self, tmp_path: Path) -> None:
        write_metrics(tmp_path, [(10, 5.0), (20, 4.0), (25, 3.0)])

        time = measure_training(tmp_path)

        assert time.num_steps == 25
        assert time.seconds == pytest.approx(12.0)
        assert time.seconds_per_step == pytest.approx(0.48)

    def test_steps_done_again_count_once(self, tmp_path: Path) -> None:
        write_metrics(tmp_path, [(10, 5.0), (20, 99.0), (30, 99.0)])

        # Killed at 31, resumed from a checkpoint at 10.
        with (tmp_path / "metrics" / "train.jsonl").open("a") as fp:
            fp.write('{"Step": 40, "La\n')

        write_metrics(tmp_path, [(20, 4.0), (30, 3.0)])

        assert measure_training(tmp_path).seconds == pytest.approx(12.0)

    def test_steps_between_records_are_made_up_for(self, tmp_path: Path) -> None:
        write_metrics(
            tmp_path,
            [(10, 5.0)],
            **{"Number of Elements": 1009, "Elements per Batch": 100},
        )

        # Resumed from a checkpoint at 15: the record says nothing of 11 to 15.
        write_metrics(
            tmp_path,
            [(20, 2.5)],
            **{"Number of Elements": 504, "Elements per Batch": 100},
        )

        time = measure_training(tmp_path)

        assert time.num_steps == 20
        assert time.seconds == pytest.approx(10.0)

    def test_steps_after_last_record_are_made_up_for(self, tmp_path: Path) -> None:
        write_metrics(tmp_path, [(10, 5.0)])

        (tmp_path / "checkpoints" / "step_12" / "model").mkdir(parents=True)

        assert measure_training(tmp_path).seconds == pytest.approx(6.0)

    def test_nothing_is_an_error(self, tmp_path: Path) -> None:
        write_metrics(tmp_path, [])

        with pytest.raises(WarmupError, match="holds no step with its time; train"):
            measure_training(tmp_path)


def write_run(
    path: Path,
    *,
    steps: Sequence[int],
    num_steps: int = 10,
    patience: int | None = None,
    scores: Mapping[int, float] | None = None,
    dataset: Mapping[str, object] | None = None,
) -> None:
    """Makes up the folder of a run with some checkpoints."""
    path.mkdir(parents=True, exist_ok=True)

    config = {
        "regime": {"num_steps": num_steps, "validate_every_n_steps": 2},
        "validation": {"patience": patience},
        "dataset": dict(dataset or {}),
    }

    (path / "run.yaml").write_text(dump_yaml(config))

    for step_nr in steps:
        (path / "checkpoints" / f"step_{step_nr}" / "model").mkdir(parents=True)

    for step_nr, score in (scores or {}).items():
        file = path / "checkpoints" / "scores" / f"step_{step_nr}.txt"

        file.parent.mkdir(exist_ok=True)

        file.write_text(str(score))


class TestIsFinished:
    def test_run_with_last_step_is(self, tmp_path: Path) -> None:
        assert not is_finished(tmp_path / "none")

        write_run(tmp_path / "a", steps=[8])

        assert not is_finished(tmp_path / "a")

        write_run(tmp_path / "b", steps=[8, 10])

        assert is_finished(tmp_path / "b")

        # Broken while the last checkpoint was written.
        write_run(tmp_path / "c", steps=[8])

        (tmp_path / "c" / "checkpoints" / "step_10.tmp" / "model").mkdir(parents=True)

        assert not is_finished(tmp_path / "c")

    def test_run_that_stopped_early_is(self, tmp_path: Path) -> None:
        scores = {2: 5.0, 6: 4.0}

        write_run(tmp_path / "a", steps=[2, 6], patience=2, scores=scores)

        assert is_finished(tmp_path / "a")

        write_run(tmp_path / "b", steps=[2, 6], patience=3, scores=scores)

        assert not is_finished(tmp_path / "b")


class TestStep:
    def make_step(self, folder: Path, *words: str, needs: Sequence[Step] = ()) -> Step:
        return Step(
            "a",
            folder / "step",
            list(words),
            inputs=[folder / "input"],
            is_complete=(folder / "output").is_file,
            needs=needs,
        )

    def test_step_is_done_as_it_was(self, tmp_path: Path) -> None:
        step = self.make_step(tmp_path, "x")

        (tmp_path / "input").write_text("1")

        assert not step.is_done()

        command = step.begin()

        # It may break before it ends.
        assert not step.is_done()

        with pytest.raises(WarmupError, match="ended well but without what it should"):
            step.end(command, 1.0)

        assert not step.is_done()

        (tmp_path / "output").touch()

        step.end(command, 1.0)

        assert step.is_done()

        # With another command, another input, or without its output it is not.
        assert not self.make_step(tmp_path, "y").is_done()

        (tmp_path / "input").write_text("2")

        assert not step.is_done()

        (tmp_path / "input").write_text("1")

        assert step.is_done()

        (tmp_path / "output").unlink()

        assert not step.is_done()

    def test_step_is_not_done_before_what_it_needs(self, tmp_path: Path) -> None:
        needed = Step("b", tmp_path / "needed", ["x"])

        step = self.make_step(tmp_path, "x", needs=[needed])

        (tmp_path / "output").touch()

        step.end(step.begin(), 1.0)

        assert not step.is_done()

        needed.end(needed.begin(), 1.0)

        assert step.is_done()

    def test_run_of_other_model_does_not_go_on(self, plan: Plan) -> None:
        sft, warmup = plan.train["toy/sft/1"], plan.train["toy/warmup/1"]

        for step, num_steps in ((sft, 40), (warmup, 10)):
            command = step.begin()

            path = Path(command[1])

            write_run(path, steps=[num_steps], num_steps=num_steps)
            write_metrics(path, [(num_steps, 5.0)])

            step.end(command, 1.0)

        assert warmup.is_done()

        # SFT is trained anew: its metrics are others.
        write_metrics(Path("out/toy/sft/seed_1"), [(41, 5.0)])

        assert not warmup.is_done()

        with pytest.raises(WarmupError, match="seed_1 was started from a run that has"):
            warmup.begin()

        (Path("out/toy/warmup/seed_1") / "metrics" / "train.jsonl").unlink()
        (Path("out/toy/warmup/seed_1") / "checkpoints").rename("elsewhere")

        assert warmup.begin()[0] == "train"


# Stands for `python -m warmup_plugin`: it notes that it was called, then does as told.
_PROGRAM: Final = """
import pathlib, signal, sys, time

folder, name, what = pathlib.Path(sys.argv[1]), *sys.argv[2:]

with (folder / "calls").open("a") as fp:
    fp.write(f"begin {name}\\n")

print(f"here is {name}", flush=True)

if what == "wait":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    (folder / f"{name}.waits").touch()
    time.sleep(60)

if what == "meet":
    (folder / f"{name}.meets").touch()
    end = time.monotonic() + 30
    while len(list(folder.glob("*.meets"))) < 2 and time.monotonic() < end:
        time.sleep(0.01)

if what == "fail":
    sys.exit("no luck")

if what != "nothing":
    (folder / f"{name}.out").touch()

with (folder / "calls").open("a") as fp:
    fp.write(f"end {name}\\n")
"""


class TestRunner:
    def make_step(
        self,
        folder: Path,
        name: str,
        what: str = "",
        needs: Sequence[Step] = (),
        after: Sequence[Step] = (),
    ) -> Step:
        return Step(
            name,
            folder / name,
            [str(folder), name, what],
            is_complete=(folder / f"{name}.out").is_file,
            needs=needs,
            after=after,
        )

    def run(self, *steps: Step, num_jobs: int = 1) -> tuple[dict[str, Outcome], str]:
        lines: list[str] = []

        runner = Runner(
            steps,
            num_jobs=num_jobs,
            program=[sys.executable, "-c", _PROGRAM],
            say=lines.append,
        )

        outcomes = {outcome.step.key: outcome for outcome in runner.run()}

        return outcomes, "\n".join(lines)

    @pytest.mark.parametrize(
        "num_jobs,given,expected",
        [(1, None, "7"), (2, None, "3"), (2, "5", "5"), (9, None, "1")],
    )
    def test_commands_share_cores(
        self,
        num_jobs: int,
        given: str | None,
        expected: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        free = SimpleNamespace(count_free=lambda: 7)

        monkeypatch.setattr("warmup_plugin.suite.runner.watch_cores", lambda: free)

        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

        if given is not None:
            monkeypatch.setenv("OMP_NUM_THREADS", given)

        file = tmp_path / "threads"

        program = "import os, sys; open(sys.argv[1], 'w').write(str(os.environ.get('OMP_NUM_THREADS')))"

        def run(*further: str) -> str:
            file.unlink(missing_ok=True)

            step = Step(
                "a", tmp_path / "a", [str(file), *further], is_complete=file.is_file
            )

            Runner(
                [step], num_jobs=num_jobs, program=[sys.executable, "-c", program]
            ).run()

            return file.read_text()

        assert run() == expected

        # The environment would outdo it.
        assert run("common.torch.num_threads=3") == str(given)

    def test_failure_stops_only_what_needs_it(self, tmp_path: Path) -> None:
        a = self.make_step(tmp_path, "a", "fail")
        b = self.make_step(tmp_path, "b", needs=[a])
        c = self.make_step(tmp_path, "c", needs=[b])
        d = self.make_step(tmp_path, "d", "nothing")
        e = self.make_step(tmp_path, "e", after=[a, c])

        outcomes, output = self.run(a, b, c, d, e)

        assert {key: o.status for key, o in outcomes.items()} == {
            "a": Status.FAILED,
            "b": Status.SKIPPED,
            "c": Status.SKIPPED,
            "d": Status.FAILED,
            "e": Status.DONE,
        }

        assert (outcomes["a"].note, outcomes["a"].error) == ("exit status 1", "no luck")
        assert (outcomes["c"].note, outcomes["c"].cause) == ("needs `b`", "a")

        assert re.search(r"\[\d/5\] 2 steps that need `a`: skipped\n", output)
        assert "b: skipped" not in output and "c: skipped" not in output

        assert "without what it should write" in outcomes["d"].note

        # The end of the log is shown.
        assert "    here is a\n    no luck\n" in output
        assert f"log: {tmp_path / 'a.log'}" in output

        log = (tmp_path / "a.log").read_text()

        assert log.startswith("# 20")
        assert log.endswith("here is a\nno luck\n")

    def test_second_time_runs_what_is_not_done(self, tmp_path: Path) -> None:
        a, b = self.make_step(tmp_path, "a"), self.make_step(tmp_path, "b", "fail")

        self.run(a, b)

        (tmp_path / "calls").unlink()

        b = self.make_step(tmp_path, "b")

        outcomes, output = self.run(a, b)

        assert outcomes["a"].status is Status.DONE_BEFORE
        assert outcomes["b"].status is Status.DONE
        assert (tmp_path / "calls").read_text() == "begin b\nend b\n"

        # Both attempts.
        assert (tmp_path / "b.log").read_text().count("here is b") == 2

    def test_jobs_run_together_but_not_before_what_they_need(
        self, tmp_path: Path
    ) -> None:
        a, b = (self.make_step(tmp_path, name, "meet") for name in "ab")

        c = self.make_step(tmp_path, "c", after=[a, b])

        d = self.make_step(tmp_path, "d", needs=[c])
        e = self.make_step(tmp_path, "e", after=[d])

        # Each of the first two waits for the other to begin.
        outcomes, _ = self.run(a, b, c, d, e, num_jobs=4)

        assert all(o.status is Status.DONE for o in outcomes.values())

        calls = (tmp_path / "calls").read_text().splitlines()

        assert set(calls[:2]) == {"begin a", "begin b"}
        assert calls[4:] == [f"{what} {n}" for n in "cde" for what in ("begin", "end")]

    def test_commands_end_where_nobody_hears_of_them(self, tmp_path: Path) -> None:
        a = self.make_step(tmp_path, "a", "wait")
        b = self.make_step(tmp_path, "b")

        def say(line: str) -> None:
            # The first one has begun, and whoever read has left.
            if "b: begins" in line:
                while not (tmp_path / "a.waits").exists():
                    threading.Event().wait(0.01)

                raise BrokenPipeError()

        runner = Runner(
            [a, b], num_jobs=2, program=[sys.executable, "-c", _PROGRAM], say=say
        )

        with pytest.raises(BrokenPipeError):
            runner.run()

        for child in psutil.Process().children():
            with suppress(psutil.NoSuchProcess):
                assert str(tmp_path) not in child.cmdline()

    def test_signal_is_passed_on_and_nothing_else_begins(self, tmp_path: Path) -> None:
        a, b = self.make_step(tmp_path, "a", "wait"), self.make_step(tmp_path, "b")

        def send() -> None:
            while not (tmp_path / "a.waits").exists():
                threading.Event().wait(0.01)

            os.kill(os.getpid(), signal.SIGTERM)

        thread = threading.Thread(target=send)

        thread.start()

        outcomes, output = self.run(a, b)

        thread.join()

        assert {key: o.status for key, o in outcomes.items()} == {"a": Status.STOPPED}
        assert "stopping: the commands that run save" in output
        assert not a.is_done()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    def test_nothing_to_run_is_no_failure(self, plan: Plan) -> None:
        step = plan.compare["toy/more/1"]

        outcomes, _ = self.run(step)

        assert outcomes[step.key].status is Status.NOT_READY


REFERENCES: Final = make_references(40)

SOURCES: Final = [line.upper() for line in REFERENCES]


class TestSignFlipPValue:
    @pytest.mark.parametrize(
        "differences,expected",
        [
            ([1.0], 1.0),
            ([1.0, 2.0, 3.0], 0.25),
            ([-1.0, -2.0, -3.0], 0.25),
            # Of the sums +-4, +-2, +-2, +-0, those of 2 or more are 6.
            ([1.0, 2.0, -1.0], 0.75),
            ([0.0, 0.0, 0.0], 1.0),
            ([1.0] * 6, 2 / 64),
            ([], None),
            ([1.0] * 15, None),
        ],
    )
    def test_call_counts_flips(
        self, differences: Sequence[float], expected: float | None
    ) -> None:
        assert sign_flip_p_value(differences) == expected


RATES: Final = {"sft": 0.4, "more": 0.3, "warmup": 0.28, "long": 0.25}


def write_data(folder: Path) -> Mapping[str, object]:
    folder.mkdir()

    for name, lines in (("en", SOURCES), ("de", REFERENCES)):
        (folder / f"test.{name}").write_text("".join(f"{line}\n" for line in lines))

    return {
        "path": str(folder),
        "format": "plain",
        "source_lang": "en",
        "target_lang": "de",
    }


def translate(run: Run, seed: int) -> list[str]:
    """Returns what a made-up run of a system makes of the test set."""
    return make_hypotheses(
        REFERENCES, RATES[run.system.name], 10 * seed + len(run.name)
    )


def fill(plan: Plan, dataset: Mapping[str, object], *, without: str = "") -> None:
    """
    Makes up runs and their translations, and really scores and compares them.

    :param without: The run that has not been trained.
    """
    for step in plan.steps:
        if without and without in step.key:
            continue

        if not all(need.is_done() for need in step.needs):
            continue

        command = step.begin()

        path = Path(command[1])

        if command[0] == "train":
            num_steps = int(command[-1].partition("=")[2])

            write_run(path, steps=[num_steps], num_steps=num_steps, dataset=dataset)

            # A step of warmup takes three times as long.
            seconds = num_steps * (1.5 if "warmup" in path.parts else 0.5)

            write_metrics(path, [(num_steps, seconds)])

            starts = [{"git_commit": "abc", "torch": "2", "num_processes": 1}]

            (path / "versions.json").write_text(json.dumps(starts * 2))
        elif command[0] == "generate":
            run = next(run for run in plan.runs if run.path == path)

            [place] = run.list_outputs()

            outputs = translate(run, run.seed)

            records = [
                json.dumps({"source": source, "output": output})
                for source, output in zip(SOURCES, outputs)
            ]

            place.translations.parent.mkdir()

            for suffix, lines in (("", outputs), (".jsonl", records)):
                file = Path(f"{place.translations}{suffix}")

                file.write_text("".join(f"{line}\n" for line in lines))
        else:
            score_or_compare(command)

        step.end(command, 1.0)


@pytest.fixture(scope="module")
def filled_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all steps of :func:`make_grid` are done; not to be changed."""
    folder = tmp_path_factory.mktemp("filled")

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)

        fill(make_plan(load(folder)), write_data(Path("data")))

    return folder


@pytest.fixture(scope="module")
def filled_result(filled_folder: Path) -> SuiteResult:
    """What was measured there."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(filled_folder)

        grid = load_grid(Path("grid.yaml"))

        return collect_results(grid, make_plan(grid))


@pytest.fixture
def filled(grid: Grid, plan: Plan, filled_folder: Path) -> tuple[Grid, Plan]:
    """The grid and its plan, all of whose steps are done."""
    for name in ("data", "out"):
        # With the times of files and folders.
        shutil.copytree(filled_folder / name, name)

    return grid, plan


def score(run: Run) -> dict[str, float]:
    evaluation = evaluate_systems(
        {"": translate(run, run.seed)}, REFERENCES, num_bootstrap=0
    )

    return {key: m.score for key, m in evaluation.measurements[""].items()}


class TestCollectResults:
    def test_table_holds_what_was_measured(
        self, filled: tuple[Grid, Plan], filled_result: SuiteResult
    ) -> None:
        _, plan = filled

        assert all(step.is_done() for step in plan.steps)

        report: Any = json.loads(json.dumps(make_json(filled_result, "the command")))

        systems = report["tasks"]["toy"]["systems"]

        scores = {run.name: score(run) for run in plan.runs}

        for name, system in systems.items():
            for key in ("bleu", "chrf"):
                values = [scores[f"toy/{name}/{seed}"][key] for seed in (1, 2)]

                assert system["mean"][key] == pytest.approx(sum(values) / 2)

                # Of two values.
                assert system["deviation"][key] == pytest.approx(
                    abs(values[0] - values[1]) / 2**0.5
                )

        assert systems["more"]["against"] == {}

        difference = systems["warmup"]["against"]["more"]["chrf"]

        for seed in (1, 2):
            file = Path(f"out/toy/_compare/seed_{seed}.more.result.json")

            [test] = [
                entry
                for entry in json.loads(file.read_text())["comparisons"]
                if entry["key"] == "chrf" and "warmup" in entry["system"]
            ]

            assert difference["by_seed"][str(seed)] == {
                "difference": pytest.approx(
                    scores[f"toy/warmup/{seed}"]["chrf"]
                    - scores[f"toy/more/{seed}"]["chrf"]
                ),
                "p_randomization": test["p_value"],
            }

        assert difference["p_seeds"] in (0.5, 1.0)

        # As long as warmup, which took 15 seconds.
        assert systems["long"]["runs"]["1"]["num_steps"] == 30
        assert systems["long"]["runs"]["1"]["seconds"] == pytest.approx(15.0)

        assert report["training_versions"] == [
            {"git_commit": "abc", "torch": "2", "num_processes": 1}
        ]

        table = format_markdown(filled_result, plan, "the command")

        rows = [line for line in table.splitlines() if line.startswith("| ")]

        assert rows[0] == "| system | seeds | steps | time | BLEU | p | chrF2++ | p |"

        mean, deviation = (systems["long"][n]["bleu"] for n in ("mean", "deviation"))

        cells = [cell.strip() for cell in rows[-1].strip("|").split("|")]

        assert cells[:5] == [
            *("long", "2 of 2", "+30", "15.0 s", f"{mean:.2f} ± {deviation:.2f}")
        ]

        p_values = systems["long"]["against"]["more"]["bleu"]

        low, high = sorted(
            p_values["by_seed"][seed]["p_randomization"] for seed in ("1", "2")
        )

        assert low < high
        assert cells[5] == f"{p_values['p_sentences']:.2f} ({low:.2f}–{high:.2f})"

        # The baseline is not tested against itself.
        assert rows[3].split("|")[6].strip() == ""

        for text in ("the command", "commit abc, torch 2", "version:2", "seed_1 --"):
            assert text in table

        assert "Not measured" not in table
        assert "Not of equal time" not in table
        assert table.count("commit abc") == 1

    def test_latex_has_same_cells(
        self, filled: tuple[Grid, Plan], filled_result: SuiteResult
    ) -> None:
        _, plan = filled

        markdown = format_markdown(filled_result, plan, "a\nb")

        latex = format_latex(filled_result, "a\nb")

        # A comment that is broken would be typeset.
        assert [line for line in latex.splitlines() if not line.startswith("%")][0] == (
            r"\begin{tabular}{lrrrrrrr}"
        )

        rows = [line[:-3] for line in latex.splitlines() if line.endswith(r" \\")]

        expected = [
            line.removeprefix("| ").removesuffix(" |").replace(" | ", " & ")
            for line in markdown.splitlines()
            if line.startswith("| ") and "---" not in line
        ]

        assert rows == [
            re.sub(r"\bp\b", "$p$", row).replace("±", r"$\pm$").replace("–", "--")
            for row in expected
        ]

    def test_what_is_not_measured_stays_empty(self, filled: tuple[Grid, Plan]) -> None:
        grid, plan = filled

        shutil.rmtree("out/toy/warmup/seed_2")

        result = collect_results(grid, plan)

        table = format_markdown(result, plan, "")

        rows = {
            cells[0]: cells
            for line in table.splitlines()
            if line.startswith("| ")
            and (cells := [cell.strip() for cell in line.strip("|").split("|")])
        }

        assert rows["warmup"][1] == "1 of 2"

        # Of one seed there is neither a deviation nor a range.
        assert "±" not in rows["warmup"][4]
        assert "(" not in rows["warmup"][5]

        assert "- toy/warmup/2: not trained as the grid says\n" in table
        assert "- toy/long/2: not trained as the grid says\n" in table

    def test_old_results_of_other_settings_are_left_out(
        self, tmp_path: Path, filled: tuple[Grid, Plan]
    ) -> None:
        content = make_grid()

        content["systems"][2]["config"] = {"warmup.num_warmups": 8}

        changed = load(tmp_path, content)

        result = collect_results(changed, make_plan(changed))

        by_name = {s.system.name: s for s in result.tasks[0].systems}

        assert by_name["warmup"].mean("bleu") is None
        assert [run.missing for run in by_name["warmup"].runs] == [
            "not trained as the grid says"
        ] * 2
        assert by_name["more"].mean("bleu") is not None

    def test_unequal_time_is_told(self, filled: tuple[Grid, Plan]) -> None:
        grid, plan = filled

        for seed in (1, 2):
            # Slower than the steps by which their number was computed.
            write_metrics(Path(f"out/toy/long/seed_{seed}"), [(30, 21.0)])

        table = format_markdown(collect_results(grid, plan), plan, "")

        assert "Not of equal time: on toy `long` took 40% more than `warmup`" in table

    def test_comet_is_tested_by_what_compare_wrote(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)

        install_comet_worker(tmp_path, monkeypatch)

        content = make_grid()

        content["systems"][2:] = []

        content["tasks"][0] |= {
            "metrics": ["comet"],
            "comet_model": write_comet_model(tmp_path),
        }

        grid = load(tmp_path, content)

        plan = make_plan(grid)

        fill(plan, write_data(Path("data")))

        result = collect_results(grid, plan)

        difference = result.tasks[0].systems[0].against["more"]["comet"]

        def list_scores(name: str, seed: int) -> list[float]:
            run = next(r for r in plan.runs if r.name == f"toy/{name}/{seed}")

            return [
                len(output) / (100 + len(source + reference))
                for output, source, reference in zip(
                    translate(run, seed), SOURCES, REFERENCES
                )
            ]

        measured = {
            name: [
                measure_mean("comet", "COMET", list_scores(name, seed), "")
                for seed in (1, 2)
            ]
            for name in ("more", "sft")
        }

        group = list(zip(measured["more"], measured["sft"]))

        assert [difference.p_sentences] == (
            randomization_p_values_of_groups([group], NUM_TRIALS)
        )

        # Four digits.
        mean = statistics.fmean(m.score for m in measured["sft"])

        assert f"| {mean:.4f} ± " in format_markdown(result, plan, "")

    def test_missing_metric_has_its_reason(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)

        install_comet_worker(tmp_path, monkeypatch, ready=False)

        content = make_grid()

        content["systems"][2:] = []

        content["tasks"][0] |= {
            "metrics": ["comet", "chrf"],
            "comet_model": write_comet_model(tmp_path),
        }

        grid = load(tmp_path, content)

        plan = make_plan(grid)

        fill(plan, write_data(Path("data")))

        table = format_markdown(collect_results(grid, plan), plan, "")

        [row] = [line for line in table.splitlines() if line.startswith("| sft ")]

        assert row.split("|")[5:7] == ["  ", "  "]
        assert "- COMET, where it is missing: " in table
        assert "no such model" in table

    def test_several_tasks_and_baselines_share_a_table(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)

        content = make_grid() | {"baseline": ["sft", "more"]}

        content["systems"][2:] = []

        content["systems"][0]["title"] = "SFT | 100%"

        content["tasks"][0]["metrics"] = ["chrf"]

        content["tasks"].append(
            {"name": "b", "title": "b & c", "split": "test", "metrics": ["bleu"]}
        )

        grid = load(tmp_path, content)

        plan = make_plan(grid)

        fill(plan, write_data(Path("data")))

        result = collect_results(grid, plan)

        header, _, *rows = [
            [cell.strip() for cell in line.strip("|").replace("\\|", "!").split("|")]
            for line in format_markdown(result, plan, "").splitlines()
            if line.startswith("| ")
        ]

        assert header[5:] == [
            *("chrF2++", "p vs SFT ! 100%", "p vs more"),
            *("BLEU", "p vs SFT ! 100%", "p vs more"),
        ]

        # Rows: by task, then by system. Filled: by metric of the task.
        assert [row[:2] for row in rows] == [
            *(["toy", "SFT ! 100%"], ["toy", "more"]),
            *(["b & c", "SFT ! 100%"], ["b & c", "more"]),
        ]

        filled = [[bool(cell) for cell in row[5:]] for row in rows]

        assert filled == [
            [True, False, True, False, False, False],
            [True, True, False, False, False, False],
            [False, False, False, True, False, True],
            [False, False, False, True, True, False],
        ]

        latex = format_latex(result, "")

        assert r"b \& c & SFT \textbar{} 100\% &" in latex
        assert r"$p$ vs SFT \textbar{} 100\%" in latex


class TestFormatSeconds:
    @pytest.mark.parametrize(
        "seconds,text",
        [(3.14, "3.1 s"), (125.0, "2.1 min"), (7200.0, "2.0 h")],
    )
    def test_call_chooses_unit(self, seconds: float, text: str) -> None:
        assert format_seconds(seconds) == text


class TestMain:
    def test_dry_run_prints_commands_and_writes_nothing(
        self, grid: Grid, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run_suite.main(["grid.yaml", "--dry-run", "--only", "toy/sft/2"]) == 0

        lines = capsys.readouterr().out.splitlines()

        assert lines[:2] == [
            "# train toy/sft/2: to do",
            "python -m warmup_plugin train out/toy/sft/seed_2 --no-rich --config "
            "common.seed=2 dataset.path=data regime.num_data_epochs=null "
            "criterion.name=sft regime.num_steps=40",
        ]

        assert not Path("out").exists()

    @pytest.mark.parametrize(
        ("path", "where"),
        [
            (("tasks", 0), "tasks[0].config_file"),
            (("systems", 0), "systems[0].config_file"),
            (("systems", 0, "per_task", "toy"), "systems[0].per_task.toy.config_file"),
        ],
    )
    def test_preset_that_is_not_there_is_found_before_anything_runs(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        path: Sequence[Any],
        where: str,
    ) -> None:
        monkeypatch.chdir(tmp_path)

        content = make_grid()

        part = content

        for key in path:
            part = part.setdefault(key, {}) if isinstance(key, str) else part[key]

        part["config_file"] = ["base/lora", "translation/from_scratch_stf"]

        write_grid(tmp_path, content)

        assert run_suite.main(["grid.yaml", "--dry-run"]) == 2

        assert (
            f"`{where}` names `translation/from_scratch_stf`, which is neither a file"
            in capsys.readouterr().err
        )

        # What is there may be of a grid of another time.
        assert run_suite.main(["grid.yaml", "--tables"]) == 0

    @pytest.mark.parametrize(
        ("split", "has_file"),
        [
            ("tset", False),
            ("test", True),
            ("devtest", True),
            ("news/test", True),
            ("news/tset", False),
            ("v1.test", True),
            ("sacrebleu:wmt13", True),
            ({"name": "test", "data": "other"}, False),
            ({"name": "test", "data": "still_to_be_made"}, True),
        ],
    )
    def test_split_that_is_not_there_is_found_before_anything_runs(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        split: object,
        has_file: bool,
    ) -> None:
        monkeypatch.chdir(tmp_path)

        for name in (
            *("data/test.en.gz", "data/en-de/devtest.en", "data/news/test.en"),
            *("data/v1.test.en", "other/tests.en"),
        ):
            file = tmp_path / name

            file.parent.mkdir(parents=True, exist_ok=True)

            file.touch()

        content = make_grid()

        content["tasks"][0]["split"] = split

        write_grid(tmp_path, content)

        assert run_suite.main(["grid.yaml", "--dry-run"]) == (0 if has_file else 2)

        message = capsys.readouterr().err

        assert ("has no file or folder of that name" in message) != has_file

    def test_tables_are_written_without_runs(
        self, grid: Grid, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run_suite.main(["grid.yaml", "--tables"]) == 0

        assert capsys.readouterr().out.splitlines() == [
            f"wrote out/small.{suffix}" for suffix in ("md", "tex", "json")
        ]

        assert (
            "| warmup | 0 of 2 |  |  |  |  |  |  |" in Path("out/small.md").read_text()
        )
        assert json.loads(Path("out/small.json").read_text())["seeds"] == [1, 2]

    def test_failures_are_reported(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.chdir(tmp_path)

        content = make_grid()

        # The real command, which fails at once.
        content["tasks"][0]["prepare"] = ["compare nothing"]

        write_grid(tmp_path, content)

        assert run_suite.main(["grid.yaml"]) == 1

        out = capsys.readouterr().out

        assert "[1/27] compare toy: failed, exit status 2\n" in out
        assert "There is nothing to compare nothing with" in out
        assert "] 24 steps that need `compare toy`: skipped\n" in out

        # What failed and why, not all that needs it.
        assert re.search(
            r"\n25 of 27 steps were not done:\n"
            r"  compare toy: failed, exit status 2; and 24 steps that need it\n"
            r"    error: There is nothing to compare nothing with.*\n$",
            out,
        )

        assert "train toy/sft/1: skipped" not in out
        assert "| sft | 0 of 2 |" in Path("out/small.md").read_text()

    def test_bad_input_is_one_sentence(
        self, grid: Grid, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for args in (["none.yaml"], ["grid.yaml", "--jobs", "0"]):
            assert run_suite.main(args) == 2

            err = capsys.readouterr().err

            assert err.startswith("error: ") and err.count("\n") == 1


def test_suites_are_found() -> None:
    assert {file.stem for file in SUITES} >= {"synthetic_pair", "multi30k"}

    # What is written there of times and data is for people.
    for file in SUITES:
        assert YAML(typ="safe", pure=True).load(file)
