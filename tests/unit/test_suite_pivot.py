# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Suites whose systems share a model of several directions."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts import run_suite
from tests.tiny_runs import ROOT
from tests.unit.metrics.texts import make_hypotheses
from tests.unit.test_run_suite import (
    REFERENCES,
    load,
    score_or_compare,
    with_fewer_trials,
    write_data,
    write_grid,
    write_metrics,
    write_run,
)
from warmup_plugin.errors import WarmupError
from warmup_plugin.suite.figure import (
    THEMES,
    collect_series,
    format_figure,
    make_ticks,
    spread,
)
from warmup_plugin.suite.grid import Grid
from warmup_plugin.suite.load import load_grid
from warmup_plugin.suite.plan import Plan, make_plan
from warmup_plugin.suite.results import SuiteResult, collect_results
from warmup_plugin.suite.tables import format_markdown, make_json


@pytest.fixture(scope="module", autouse=True)
def fewer_trials() -> Iterator[None]:
    with with_fewer_trials():
        yield


def make_grid() -> dict[str, Any]:
    """Returns a grid: legs from `en` by way of `fr` to `de`, and what starts there."""
    return {
        "name": "pivot",
        "out": "out",
        "seeds": [1, 2],
        "baseline": "sft",
        "figure": {"x": "pairs & more", "metric": "chrf"},
        "tasks": [
            {
                "name": "legs",
                "split": "test",
                "config": {"dataset.directions": {"en-fr": {}, "fr-de": {}}},
            },
            *(
                {
                    "name": f"n{num}",
                    "split": "test",
                    "checkpoint": "last",
                    "direction": "en-de",
                    "config": {"dataset.max_train_pairs": num},
                    "x": num,
                }
                for num in (10, 20)
            ),
        ],
        "systems": [
            {"name": "legs", "tasks": "legs", "score": False, "steps": 40},
            {
                "name": "sft",
                "tasks": "n*",
                "init_from": "legs/legs",
                "config": {"criterion.name": "sft"},
                "steps": 10,
            },
            {"name": "warmup", "tasks": "n*", "init_from": "legs/legs", "steps": 10},
            {
                "name": "plain",
                "tasks": ["n*"],
                "decode": "warmup",
                "options": ["--warmup", "none", "--beam-size", 1],
            },
            {
                "name": "cascade",
                "tasks": ["n20"],
                "cascade": "legs/legs",
                "directions": ["en-fr", "fr-de"],
                "options": ["--beam-size", 2],
            },
        ],
    }


@pytest.fixture
def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Grid:
    monkeypatch.chdir(tmp_path)

    return load(tmp_path, make_grid())


@pytest.fixture
def plan(grid: Grid) -> Plan:
    return make_plan(grid)


class TestLoadGrid:
    @pytest.mark.parametrize(
        "path,value,message",
        [
            ("tasks.1.direction", "de", "`tasks[1].direction` names `de`, which is no"),
            ("tasks.2.direction", "en-fr", "do not lead from `en` to `fr`, the direct"),
            ("tasks.1.x", 0, "`tasks[1].x` must be a number greater than 0, but is 0"),
            ("tasks.1.x", 20, "`tasks` holds 20.0 twice as a number `x`; give it once"),
            ("tasks.1.x", None, "`figure` needs tasks with different numbers `x`; giv"),
            ("figure", None, "`x` of a task is of no use without `figure`; add that"),
            ("figure.metric", "ter", "names `ter`, which is none of the scores of ta"),
            (
                "figure.gain_over",
                "legs",
                "`figure.gain_over` names `legs`, which is no",
            ),
            ("figure.y", "x", "`figure.y` is not known; use some of `x`, `metric`, `g"),
            ("systems.0.tasks", "leg", "holds `leg`, which matches no task; use some"),
            ("systems.0.score", "no", "`systems[0].score` must be `true` or `false`"),
            ("systems.0.seed", -1, "`systems[0].seed` must be a whole number of at"),
            ("systems.1.seed", 1, "`systems[1].seed` is for systems that others start"),
            ("systems.0.score", True, "`tasks[0].direction` must be one of the direct"),
            (
                "systems.0.options",
                ["-x"],
                "`systems[0].options` is of no use for a sys",
            ),
            ("systems.1.score", False, "`baseline` names `sft`, which is none of the"),
            (
                "systems.1.init_from",
                "leg/legs",
                "names `leg`, which is none of the tasks (legs,",
            ),
            ("systems.1.init_from", "legs/leg", "which is none of the systems before"),
            ("systems.1.init_from", "legs", "but `legs` is no system of the task n10;"),
            ("systems.2.init_from", "n20/sft", "of a task behind n10; put n20 before"),
            (
                "systems.2.per_task",
                {"legs": {}},
                "names `legs`, which is none of the t",
            ),
            ("systems.3.options", None, "`systems[3].options` is missing; add those"),
            (
                "systems.3.options",
                ["--checkpoint", 2],
                "`systems[3].options` holds `--checkpoint`, which the suite gives",
            ),
            (
                "systems.3.options",
                ["--split=valid"],
                "`systems[3].options` holds `--split`, which the suite gives",
            ),
            (
                "systems.3.options",
                [True],
                "`systems[3].options[0]` must be a text or a number, but is True",
            ),
            ("systems.3.steps", 3, "`systems[3].steps` is of no use beside `decode`"),
            ("systems.3.directions", ["a-b"], "`systems[3].directions` is of no use"),
            (
                "systems.3.score",
                False,
                "`systems[3].score` is of no use beside `decode`",
            ),
            (
                "systems.3.ensemble",
                ["sfd"],
                "`systems[3].ensemble` names `sfd`, which is",
            ),
            ("systems.3.ensemble", "legs", "but `legs` is no system of the task n10;"),
            (
                "systems.2.ensemble",
                "sft",
                "`systems[2].ensemble` is of no use for a sys",
            ),
            ("systems.4.ensemble", "sft", "`systems[4].ensemble` is of no use beside"),
            ("systems.4.decode", "sft", "`systems[4].decode` is of no use beside `cas"),
            ("systems.4.cascade", "plain", "is `plain`, which trains no model; name"),
            ("systems.4.directions", ["en-de"], "must be at least two, such as"),
            ("systems.4.directions", ["en-fr", "de-fr"], "goes on from `de` where it"),
            ("systems.4.tasks", "legs", "has no system before it that is trained on l"),
        ],
    )
    def test_call_names_what_is_wrong(
        self, tmp_path: Path, path: str, value: object, message: str
    ) -> None:
        content = make_grid()

        *parents, key = path.split(".")

        node: Any = content

        for parent in parents:
            node = node[int(parent) if parent.isdecimal() else parent]

        node[key] = value

        with pytest.raises(WarmupError) as info:
            load(tmp_path, content)

        assert message in str(info.value)
        assert str(info.value).endswith(".")

    def test_direction_is_one_that_is_trained(self, tmp_path: Path) -> None:
        content = make_grid()

        content["systems"][0]["score"] = True
        content["tasks"][0]["direction"] = "fr-de"

        assert load(tmp_path, content).tasks[0].directions == ["fr-de"]

        content["tasks"][0]["direction"] = "de-fr"

        with pytest.raises(WarmupError, match="`legs` is trained on, or a list of the"):
            load(tmp_path, content)


class TestMakePlan:
    def test_steps_are_in_order(self, plan: Plan) -> None:
        keys = [step.key for step in plan.steps if "/1" in step.key]

        n10 = [
            f"{what} n10/{system}/1"
            for system in ("sft", "warmup", "plain")
            for what in ("train", "generate", "evaluate")
        ]

        n10.remove("train n10/plain/1")

        assert keys == [
            "train legs/legs/1",
            *(*n10, "compare n10/*/1 with sft"),
            *(key.replace("n10", "n20") for key in n10),
            *("translate n20/cascade/1 en-fr", "translate n20/cascade/1 fr-de"),
            *("evaluate n20/cascade/1", "compare n20/*/1 with sft"),
        ]

        every_key = [step.key for step in plan.steps]

        # Nothing stands before what it needs.
        for idx, step in enumerate(plan.steps):
            for other in (*step.needs, *step.after):
                assert every_key.index(other.key) < idx

    def test_legs_are_trained_once(self, plan: Plan) -> None:
        command = plan.train["legs/legs/2"].preview()

        assert command[-2:] == [
            'dataset.directions={"en-fr": {}, "fr-de": {}}',
            "regime.num_steps=40",
        ]

        for task in ("n10", "n20"):
            step = plan.train[f"{task}/sft/2"]

            assert "init_from=out/legs/legs/seed_2" in step.preview()
            assert step.needs == [plan.train["legs/legs/2"]]

    def test_legs_may_be_those_of_one_seed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)

        content = make_grid()

        content["systems"][0]["seed"] = 7

        plan = make_plan(load(tmp_path, content))

        legs = plan.train["legs/legs/7"]

        assert [key for key in plan.train if key.startswith("legs")] == ["legs/legs/7"]

        assert "common.seed=7" in legs.preview()

        for seed in (1, 2):
            step = plan.train[f"n10/sft/{seed}"]

            assert f"common.seed={seed}" in step.preview()
            assert "init_from=out/legs/legs/seed_7" in step.preview()
            assert step.needs == [legs]

    def test_direction_goes_to_all_commands(self, plan: Plan) -> None:
        args = ["--split", "test", "--direction", "en-de", "--checkpoint", "last"]

        run = "out/n10/sft/seed_1"

        assert plan.generate["n10/sft/1"].preview() == [
            *("generate", run, *args, "--no-rich"),
        ]

        assert plan.evaluate["n10/sft/1"].preview()[:8] == ["evaluate", run, *args]

        assert plan.compare["n20/sft/1"].preview()[:-4] == [
            *("compare", "out/n20/sft/seed_1", "out/n20/warmup/seed_1"),
            *("out/n20/plain/seed_1.txt", "out/n20/cascade/seed_1.jsonl"),
            *("--split", "test", "--checkpoint", "last", "--direction", "en-de"),
        ]

    def test_outputs_are_called_like_direction_where_there_are_several(
        self, plan: Plan
    ) -> None:
        [run] = [run for run in plan.runs if run.name == "n10/sft/1"]

        [outputs] = run.list_outputs()

        folder = run.path / "generate"

        assert outputs.translations == folder / "test.last.txt"

        dataset: dict[str, object] = {"source_lang": "en", "target_lang": "de"}

        write_run(run.path, steps=[], dataset=dataset)

        assert outputs.translations == folder / "test.last.txt"

        shutil.rmtree(run.path)

        dataset["directions"] = {"en-de": {}, "de-en": {}}

        write_run(run.path, steps=[], dataset=dataset)

        assert outputs.translations == folder / "test.en-de.last.txt"

    def test_model_is_decoded_with_options(self, plan: Plan) -> None:
        step = plan.generate["n10/plain/1"]

        assert step.preview() == [
            *("generate", "out/n10/warmup/seed_1"),
            *("--warmup", "none", "--beam-size", "1"),
            *("--split", "test", "--direction", "en-de", "--checkpoint", "last"),
            *("--no-rich", "--output", "out/n10/plain/seed_1.txt"),
        ]

        assert step.needs == [plan.train["n10/warmup/1"]]

        assert plan.evaluate["n10/plain/1"].preview() == [
            *("evaluate", "out/n10/warmup/seed_1"),
            *("--split", "test", "--direction", "en-de"),
            *("--hypotheses", "out/n10/plain/seed_1.txt"),
            *("--metrics", "bleu,chrf", "--json", "out/n10/plain/seed_1.scores.json"),
        ]

    def test_models_of_an_ensemble_are_trained_first(self, tmp_path: Path) -> None:
        content = make_grid()

        content["systems"][3] |= {"ensemble": "sft", "options": ["--plain-weight", 0.3]}

        grid = load(tmp_path, content)

        step = make_plan(grid).generate["n10/plain/2"]

        assert step.preview()[:8] == [
            *("generate", "out/n10/warmup/seed_2", "--plain-weight", "0.3"),
            *("--split", "test", "--ensemble", "out/n10/sft/seed_2"),
        ]

        assert [other.key for other in step.needs] == [
            *("train n10/warmup/2", "train n10/sft/2"),
        ]

        # Another model makes other outputs.
        assert (
            step.inputs
            == [
                run.metrics
                for run in make_plan(grid).runs
                if run.name in ("n10/warmup/2", "n10/sft/2")
            ][::-1]
        )

        # Nothing else has to be said.
        del content["systems"][3]["options"]

        assert load(tmp_path, content).system("plain").options == []

    def test_cascade_goes_through_all_directions(self, plan: Plan) -> None:
        second = plan.generate["n20/cascade/1"]

        [first] = second.needs

        place = "out/n20/cascade/seed_1"

        further = ["--beam-size", "2", "--checkpoint", "best", "--direction"]

        assert first.preview() == [
            *("translate", "out/legs/legs/seed_1", f"{place}.sources.jsonl"),
            *(*further, "en-fr", "--jsonl", "--json-fields", "source", "--no-rich"),
            *("--output", f"{place}.en-fr.jsonl"),
        ]

        assert second.preview() == [
            *("translate", "out/legs/legs/seed_1", f"{place}.en-fr.jsonl"),
            *(*further, "fr-de", "--jsonl", "--json-fields", "output", "--no-rich"),
            *("--output", f"{place}.jsonl"),
        ]

        # Whose sources it translates.
        assert [step.key for step in first.needs] == [
            *("train legs/legs/1", "train n20/sft/1"),
        ]

    def test_select_adds_what_is_needed(self, plan: Plan) -> None:
        assert [step.key for step in plan.select(["n20/cascade/1"])] == [
            *("train legs/legs/1", "train n20/sft/1"),
            *("translate n20/cascade/1 en-fr", "translate n20/cascade/1 fr-de"),
            *("evaluate n20/cascade/1", "compare n20/*/1 with sft"),
        ]


RATES = {"sft": 0.3, "warmup": 0.2, "plain": 0.25, "cascade": 0.1}


def fill(plan: Plan) -> None:
    """Makes up runs and outputs, and really scores and compares them."""
    dataset = write_data(Path("data"))

    for step in plan.steps:
        command = step.begin()

        path = Path(command[1])

        if command[0] == "train":
            num_steps = int(command[-1].partition("=")[2])

            write_run(path, steps=[num_steps], num_steps=num_steps, dataset=dataset)

            write_metrics(path, [(num_steps, 5.0)])
        elif command[0] == "generate":
            [run] = [run for run in plan.runs if run.name == step.key.split()[1]]

            [outputs] = run.list_outputs()

            write_outputs(outputs.translations, run.system.name, run.seed)
        elif command[0] == "translate":
            assert Path(command[2]).read_text().count("\n") == len(REFERENCES)

            write_outputs(Path(command[-1]), "cascade", 1)
        else:
            score_or_compare(command)

        step.end(command, 1.0)


def write_outputs(file: Path, system: str, seed: int) -> None:
    outputs = make_hypotheses(REFERENCES, RATES[system], seed)

    sources = [line.upper() for line in REFERENCES]

    records = [
        json.dumps({"source": source, "output": output})
        for source, output in zip(sources, outputs)
    ]

    file.parent.mkdir(exist_ok=True)

    if file.suffix == ".jsonl":
        file.write_text("".join(f"{line}\n" for line in records))

        return

    for path, lines in ((file, outputs), (Path(f"{file}.jsonl"), records)):
        path.write_text("".join(f"{line}\n" for line in lines))


def read_rows(table: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table.splitlines()
        if line.startswith("| ")
    ][2:]


@pytest.fixture(scope="module")
def filled_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all steps are done; not to be changed."""
    folder = tmp_path_factory.mktemp("filled")

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)

        fill(make_plan(load(folder, make_grid())))

    return folder


@pytest.fixture
def filled(grid: Grid, plan: Plan, filled_folder: Path) -> tuple[Grid, Plan]:
    """The grid and its plan, all of whose steps are done."""
    for name in ("data", "out"):
        # With the times of files and folders.
        shutil.copytree(filled_folder / name, name)

    return grid, plan


class TestCollectResults:
    def test_all_systems_are_scored_and_tested(self, filled: tuple[Grid, Plan]) -> None:
        grid, plan = filled

        assert all(step.is_done() for step in plan.steps)

        # Of the outputs of the first direction.
        lines = Path("out/n20/cascade/seed_1.sources.jsonl").read_text().splitlines()

        sources = [json.loads(line)["source"] for line in lines]

        assert sources == [line.upper() for line in REFERENCES]

        result = collect_results(grid, plan)

        table = format_markdown(result, plan, "")

        rows = read_rows(table)

        assert [row[:4] for row in rows] == [
            ["legs", "legs", "2 of 2", "40"],
            *(["n10", "sft", "2 of 2", "+10"], ["n10", "warmup", "2 of 2", "+10"]),
            ["n10", "plain", "2 of 2", ""],
            *(["n20", "sft", "2 of 2", "+10"], ["n20", "warmup", "2 of 2", "+10"]),
            *(["n20", "plain", "2 of 2", ""], ["n20", "cascade", "2 of 2", ""]),
        ]

        has_text = [[bool(cell) for cell in row[5:]] for row in rows]

        both, no_test = [True] * 4, [True, False] * 2

        assert has_text == [
            *([False] * 4, no_test, both, both),
            *(no_test, both, both, both),
        ]

        report = make_json(result, "")

        tasks: Any = report["tasks"]

        against = tasks["n20"]["systems"]["cascade"]["against"]["sft"]["chrf"]

        assert against["mean"] > 0.0
        assert against["p_sentences"] < 0.05
        assert all(e["p_randomization"] < 0.05 for e in against["by_seed"].values())

        assert "- none yet" not in table
        assert "Not measured" not in table

        assert (
            "- `plain`: the model of `warmup` as it is, translating with `--warmup none "
            "--beam-size 1`." in table
        )

        assert (
            "- `cascade`: the model of `legs/legs` translates the sources `en-fr`, what "
            "comes out `fr-de` with `--beam-size 2`." in table
        )

        assert (
            "python -m warmup_plugin translate out/legs/legs/seed_1 out/n20/" in table
        )

    def test_model_that_is_trained_anew_translates_anew(
        self, filled: tuple[Grid, Plan]
    ) -> None:
        _, plan = filled

        write_metrics(Path("out/n10/warmup/seed_1"), [(11, 5.0)])

        step, file = plan.generate["n10/plain/1"], Path("out/n10/plain/seed_1.txt")

        assert not step.is_done()
        assert plan.generate["n10/plain/2"].is_done()

        # `generate --output` would refuse to replace it.
        step.begin()

        assert not file.exists()
        assert not Path(f"{file}.jsonl").exists()

        # What broke then goes on.
        Path(f"{file}.partial").touch()

        step.begin()

        assert Path(f"{file}.partial").exists()


def test_dry_run_prints_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    write_grid(tmp_path, make_grid())

    assert run_suite.main(["grid.yaml", "--dry-run"]) == 0

    assert capsys.readouterr().out.count(": to do\n") == 2 * (1 + 8 + 1 + 8 + 3 + 1)


class TestFormatFigure:
    def collect(self, folder: Path, **figure: object) -> SuiteResult:
        """Collects the results of a figure with other settings."""
        content = make_grid()

        content["figure"] |= figure
        content["systems"][4]["title"] = "a <cascade>"

        grid = load(folder, content)

        return collect_results(grid, make_plan(grid))

    def test_lines_hold_scores_or_gains(
        self, tmp_path: Path, filled: tuple[Grid, Plan]
    ) -> None:
        result = self.collect(tmp_path)

        scores = {
            (task.task.x, system.system.name): system.scores("chrf")
            for task in result.tasks
            for system in task.systems
        }

        # The cascade is of one task, but it does not depend on it.
        scores[10.0, "cascade"] = scores[20.0, "cascade"]

        names = ["sft", "warmup", "plain", "cascade"]

        by_title = {series.title: series.points for series in collect_series(result)}

        # The legs are not scored.
        assert list(by_title) == [*names[:3], "a <cascade>"]

        for name, points in zip(names, by_title.values()):
            assert points == {x: scores[x, name] for x in (10.0, 20.0)}

        result = self.collect(tmp_path, gain_over="sft")

        by_title = {series.title: series.points for series in collect_series(result)}

        assert list(by_title) == [*names[1:3], "a <cascade>"]

        for name, points in zip(names[1:], by_title.values()):
            for x, gains in points.items():
                pairs = zip(scores[x, name], scores[x, "sft"])

                assert gains == [value - base for value, base in pairs]

        for theme in THEMES.values():
            text = format_figure(result, theme)

            assert text is not None

            root = ElementTree.fromstring(text)

            texts = [
                "".join(element.itertext())
                for element in root.iter("{http://www.w3.org/2000/svg}text")
            ]

            assert texts[0] == "chrF2++, gain over sft"

            assert {"10", "20", "pairs & more", "sft", "a <cascade>"} <= set(texts)

            # The bands of all lines.
            assert len(list(root.iter("{http://www.w3.org/2000/svg}polygon"))) == 3

    def test_figure_is_written_when_there_is_something(
        self,
        tmp_path: Path,
        filled_folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.chdir(tmp_path)

        write_grid(tmp_path, make_grid())

        assert run_suite.main(["grid.yaml", "--tables"]) == 0

        assert list(Path("out").glob("*.svg")) == []

        shutil.rmtree("out")

        for name in ("data", "out"):
            shutil.copytree(filled_folder / name, name)

        assert run_suite.main(["grid.yaml", "--tables"]) == 0

        assert "wrote out/pivot.light.svg\nwrote out/pivot.dark.svg\n" in (
            capsys.readouterr().out
        )

        assert Path("out/pivot.dark.svg").read_text().startswith("<svg ")

    @pytest.mark.parametrize(
        "low,high,ticks",
        [
            (4.2, 19.4, [0.0, 5.0, 10.0, 15.0, 20.0]),
            (-1.5, 5.1, [-2.0, 0.0, 2.0, 4.0, 6.0]),
            (0.11, 0.29, [0.1, 0.15, 0.2, 0.25, 0.3]),
            (0.0, 0.0, [0.0, 0.002]),
            (30.0, 30.0, [30.0, 30.2]),
        ],
    )
    def test_ticks_are_round(self, low: float, high: float, ticks: list[float]) -> None:
        assert make_ticks(low, high) == pytest.approx(ticks)

    def test_labels_move_apart(self) -> None:
        assert spread([10.0, 50.0, 52.0], 15.0, 100.0) == [10.0, 50.0, 65.0]
        assert spread([10.0, 95.0, 96.0], 15.0, 100.0) == [10.0, 85.0, 100.0]
        assert spread([], 15.0, 100.0) == []


def test_grid_of_the_docs_is_one(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "suite.md").read_text(encoding="utf-8")

    _, _, text = text.partition("## One model for several tasks\n\n```yaml\n")

    file = tmp_path / "grid.yaml"

    file.write_text(text.partition("```")[0])

    plan = make_plan(load_grid(file))

    assert plan.train["n500/warmup/3"].preview() == [
        *("train", "runs/suites/pivot/n500/warmup/seed_3", "--no-rich", "--config"),
        *("common.seed=3", "dataset.max_train_pairs=500", "dataset.path=DATA"),
        *('dataset.prompt="{target_lang}: {source}"', "criterion.name=warmup"),
        *("dataset.source_lang=de", "dataset.target_lang=fr"),
        *("init_from=runs/suites/pivot/legs/legs/seed_3", "regime.num_steps=200"),
    ]
