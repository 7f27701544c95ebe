# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Suites that score their runs in several directions and on several splits."""

from __future__ import annotations

import json
import re
import shutil
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.tiny_runs import ROOT
from tests.unit.metrics.texts import make_hypotheses, make_references
from tests.unit.test_run_suite import (
    NUM_TRIALS,
    load,
    score_or_compare,
    with_fewer_trials,
    write_metrics,
    write_run,
)
from tests.unit.test_suite_pivot import read_rows
from warmup_plugin.errors import WarmupError
from warmup_plugin.evaluation.scores import evaluate
from warmup_plugin.evaluation.systems import RunOptions, read_hypotheses, read_run
from warmup_plugin.metrics.resampling import randomization_p_values_of_groups
from warmup_plugin.metrics.translation import evaluate_systems
from warmup_plugin.suite.figure import collect_series
from warmup_plugin.suite.grid import Grid
from warmup_plugin.suite.load import load_grid
from warmup_plugin.suite.plan import Plan, make_plan
from warmup_plugin.suite.results import SuiteResult, collect_results
from warmup_plugin.suite.runs import Outputs
from warmup_plugin.suite.tables import format_latex, format_markdown, make_json


@pytest.fixture(scope="module", autouse=True)
def fewer_trials() -> Iterator[None]:
    with with_fewer_trials():
        yield


DIRECTIONS: Final = ["en-de", "de-en"]


def make_grid() -> dict[str, Any]:
    """Returns a grid whose runs are scored in two directions, on two splits."""
    return {
        "name": "both",
        "out": "out",
        "seeds": [1, 2],
        "baseline": "sft",
        "tasks": [
            {
                "name": "toy",
                "split": ["test", {"name": "devtest", "data": "flores"}],
                "direction": DIRECTIONS,
                "metrics": ["chrf"],
                "config": {"dataset.directions": {"en-de": {}, "de-en": {}}},
            }
        ],
        "systems": [
            {"name": "sft", "config": {"criterion.name": "sft"}, "steps": 40},
            {"name": "warmup", "steps": 20},
            {
                "name": "plain",
                "decode": "warmup",
                "options": ["--warmup", "none"],
            },
        ],
    }


REFERENCES: Final = make_references(50)

NUM_LINES: Final = {"test": 50, "devtest": 30}
"""By the split; `devtest` has the first lines of `test`."""

FOLDERS: Final = {"test": Path("data"), "devtest": Path("flores")}


def write_data(lang: str = "de") -> None:
    for split, folder in FOLDERS.items():
        folder.mkdir(parents=True)

        lines = REFERENCES[: NUM_LINES[split]]

        for name, texts in ((lang, lines), ("en", [line.upper() for line in lines])):
            (folder / f"{split}.{name}").write_text("".join(f"{t}\n" for t in texts))


def write_outputs(outputs: Outputs) -> None:
    """Makes up what a run, or a system that trains none, has translated."""
    run, split = outputs.run, outputs.split.name

    texts = REFERENCES[: NUM_LINES[split]]

    sources = [line.upper() for line in texts]

    seed = 10 * run.seed + len(f"{run.name} {split}")

    if str(outputs.direction).endswith("-en"):
        texts, sources, seed = sources, texts, seed + 5

    rate = {"sft": 0.4, "warmup": 0.3, "plain": 0.35}[run.system.name]

    written = make_hypotheses(texts, rate, seed)

    records = [
        json.dumps({"source": source, "output": output})
        for source, output in zip(sources, written)
    ]

    file = outputs.translations

    file.parent.mkdir(parents=True, exist_ok=True)

    for path, lines in ((file, written), (Path(f"{file}.jsonl"), records)):
        path.write_text("".join(f"{line}\n" for line in lines))


def list_outputs(plan: Plan) -> dict[str, Outputs]:
    return {
        outputs.name: outputs for run in plan.runs for outputs in run.list_outputs()
    }


def fill(plan: Plan, *, without: str = "-") -> None:
    """
    Makes up runs and outputs, and really scores and compares them.

    :param without: What is left undone.
    """
    direction: dict[str, object] = {
        key: None for key in ("path", "prompt", "source_token", "target_token")
    }

    # With a single one there is no choice.
    langs = str(plan.runs[0].task.directions[0]).split("-")

    names = ["-".join(langs), "-".join(reversed(langs))]

    dataset = {
        "path": "data",
        "format": "plain",
        "prompt": None,
        "directions": {name: direction for name in names},
    }

    every_outputs = list_outputs(plan)

    for step in plan.steps:
        is_ready = all(need.is_done() for need in step.needs)

        if step.key.startswith(without) or not is_ready or step.is_done():
            continue

        command = step.begin()

        what, _, name = step.key.partition(" ")

        path = Path(command[1])

        if what == "train":
            num_steps = int(command[-1].partition("=")[2])

            write_run(path, steps=[num_steps], num_steps=num_steps, dataset=dataset)

            config = path / "run.yaml"

            config.write_text(f"{config.read_text()}tokenizer: {{}}\n")

            write_metrics(path, [(num_steps, 5.0)])
        elif what == "generate":
            write_outputs(every_outputs[name])
        else:
            score_or_compare(command)

        step.end(command, 1.0)


@pytest.fixture
def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Grid:
    monkeypatch.chdir(tmp_path)

    return load(tmp_path, make_grid())


@pytest.fixture
def plan(grid: Grid) -> Plan:
    return make_plan(grid)


@pytest.fixture(scope="module")
def filled_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all steps are done; not to be changed."""
    folder = tmp_path_factory.mktemp("filled")

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)

        write_data()

        fill(make_plan(load(folder, make_grid())))

    return folder


@pytest.fixture
def filled(
    filled_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Plan, SuiteResult]:
    """The plan of a folder in which all is done, and its results."""
    monkeypatch.chdir(filled_folder)

    grid = load_grid(Path("grid.yaml"))

    plan = make_plan(grid)

    return plan, collect_results(grid, plan)


class TestLoadGrid:
    def test_call_reads_splits_and_directions(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FLORES", "/a folder")

        content = make_grid()

        content["tasks"][0]["split"][1]["data"] = "${FLORES}"

        [task] = load(tmp_path, content).tasks

        assert task.directions == DIRECTIONS

        assert [(split.name, split.data) for split in task.splits] == [
            *(("test", None), ("devtest", "/a folder")),
        ]

        content["tasks"][0]["split"] = {"name": "devtest", "data": "x"}

        [split] = load(tmp_path, content).tasks[0].splits

        assert (split.name, split.data) == ("devtest", "x")

    @pytest.mark.parametrize(
        "path,value,message",
        [
            ("direction", ["en-de", "en-de"], "`tasks[0].direction` holds en-de twice"),
            ("direction", ["en-de", "de"], "`tasks[0].direction[1]` names `de`, which"),
            ("direction", ["en-de", 1], "`tasks[0].direction[1]` must be a text, b"),
            ("direction", ["en-de", "en-fr"], "is trained on, or a list of them; writ"),
            ("split", [], "`tasks[0].split` is missing; add it."),
            ("split", ["test", 3], "`tasks[0].split[1]` must be the name of a split"),
            ("split", ["test", "test"], "`tasks[0].split` holds test twice; give it"),
            ("split", [{"data": "x"}], "`tasks[0].split[0].name` is missing; add"),
            ("split", [{"name": "a", "dat": "x"}], "`tasks[0].split[0].dat` is not"),
        ],
    )
    def test_call_names_what_is_wrong(
        self, tmp_path: Path, path: str, value: object, message: str
    ) -> None:
        content = make_grid()

        content["tasks"][0][path] = value

        with pytest.raises(WarmupError) as info:
            load(tmp_path, content)

        assert message in str(info.value)
        assert str(info.value).endswith(".")

    def test_cascade_has_one_direction(self, tmp_path: Path) -> None:
        content = make_grid()

        cascade = {"cascade": "sft", "directions": ["en-de", "de-en", "en-de"]}

        content["systems"].append({"name": "cascade", **cascade})

        with pytest.raises(WarmupError, match="from `de` to `en`, a direction of toy;"):
            load(tmp_path, content)


class TestMakePlan:
    def test_all_is_scored(self, plan: Plan) -> None:
        places = [f"{split}.{d}" for split in NUM_LINES for d in DIRECTIONS]

        runs = [f"toy/{name}/1" for name in ("sft", "warmup", "plain")]

        expected = []

        for run in runs:
            expected += [] if "plain" in run else [f"train {run}"]

            expected += [
                f"{what} {run} {p}" for p in places for what in ("generate", "evaluate")
            ]

        expected += [f"compare toy/*/1 {place} with sft" for place in places]

        assert [s.key for s in plan.steps][: len(expected)] == expected
        assert len(plan.steps) == 2 * len(expected)

        assert len({step.files for step in plan.steps}) == len(plan.steps)

        run = "out/toy/warmup/seed_1"

        args = ["--split", "devtest", "--data", "flores", "--direction", "de-en"]

        name = "toy/warmup/1 devtest.de-en"

        assert plan.generate[name].preview() == [
            *("generate", run, *args, "--checkpoint", "best", "--no-rich"),
        ]

        assert plan.evaluate[name].preview() == [
            *("evaluate", run, *args, "--checkpoint", "best", "--metrics", "chrf"),
            *("--json", f"{run}.devtest.de-en.scores.json"),
        ]

        plain = "out/toy/plain/seed_1.devtest.de-en.txt"

        assert plan.generate["toy/plain/1 devtest.de-en"].preview() == [
            *("generate", run, "--warmup", "none", *args, "--checkpoint", "best"),
            *("--no-rich", "--output", plain),
        ]

        assert plan.compare["toy/sft/1 devtest.de-en"].preview() == [
            *("compare", "out/toy/sft/seed_1", run, plain, *args[:4]),
            *("--checkpoint", "best", *args[4:], "--metrics", "chrf", "--json"),
            "out/toy/_compare/seed_1.devtest.de-en.sft.result.json",
        ]

    def test_split_in_a_folder_names_files_beside_the_run(self, tmp_path: Path) -> None:
        content = make_grid()

        content["tasks"][0]["split"][0] = "news/test"

        plan = make_plan(load(tmp_path, content))

        command = plan.evaluate["toy/sft/1 news-test.en-de"].preview()

        assert command[2:4] == ["--split", "news/test"]
        assert command[-1] == "out/toy/sft/seed_1.news-test.en-de.scores.json"

    def test_select_takes_all_of_a_run(self, plan: Plan) -> None:
        keys = [step.key for step in plan.select(["toy/plain/2"])]

        assert keys[0] == "train toy/warmup/2"
        assert len(keys) == 1 + 2 * 4 + 4

    def test_cascade_is_scored_on_all_splits(self, tmp_path: Path) -> None:
        content = make_grid()

        content["tasks"][0]["direction"] = "en-de"

        content["systems"][2] = {
            "name": "cascade",
            "cascade": "sft",
            "directions": ["en-de", "de-en", "en-de"],
        }

        plan = make_plan(load(tmp_path, content))

        *_, last = plan.generate["toy/cascade/2 devtest"].preview()

        assert last == "out/toy/cascade/seed_2.devtest.jsonl"

        [way] = plan.generate["toy/cascade/2 devtest"].needs

        assert way.preview()[-1] == "out/toy/cascade/seed_2.devtest.de-en.jsonl"

    def test_folder_goes_on_when_directions_are_added(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)

        write_data()

        content = make_grid() | {"seeds": [1]}

        del content["systems"][1:]

        old = {"split": "test", "direction": "de-en"}

        plans: list[Plan] = []

        for task in (content["tasks"][0] | old, content["tasks"][0]):
            plan = make_plan(load(tmp_path, content | {"tasks": [task]}))

            done = [step.key for step in plan.steps if step.is_done()]

            # Not trained again.
            assert done == ["train toy/sft/1"][: len(plans)]

            fill(plan)

            assert all(step.is_done() for step in plan.steps)

            plans.append(plan)

        # Nor does the old grid do anything anew.
        assert all(step.is_done() for step in plans[0].steps)

        assert Path("out/toy/sft/seed_1.scores.json").is_file()
        assert Path("out/toy/sft/seed_1.test.de-en.scores.json").is_file()


def mean_score(plan: Plan, system: str, seed: int, split: str) -> float:
    """Computes the mean of the directions from the outputs."""
    scores = []

    for direction in DIRECTIONS:
        outputs = list_outputs(plan)[f"toy/{system}/{seed} {split}.{direction}"]

        references = REFERENCES[: NUM_LINES[split]]

        if direction == "de-en":
            references = [line.upper() for line in references]

        evaluation = evaluate_systems(
            {"": read_hypotheses(outputs.translations)},
            references,
            metrics=["chrf"],
            num_bootstrap=0,
        )

        scores.append(evaluation.measurements[""]["chrf"].score)

    return statistics.fmean(scores)


class TestCollectResults:
    def test_scores_are_means_over_directions(
        self, filled: tuple[Plan, SuiteResult]
    ) -> None:
        plan, result = filled

        assert all(step.is_done() for step in plan.steps)

        report: Any = json.loads(json.dumps(make_json(result, "")))

        assert list(report["tasks"]) == ["toy/test", "toy/devtest"]

        for split in NUM_LINES:
            task = report["tasks"][f"toy/{split}"]

            assert (task["split"], task.get("data")) == (
                *(split, "flores" if split == "devtest" else None),
            )

            for name, system in task["systems"].items():
                values = [mean_score(plan, name, seed, split) for seed in (1, 2)]

                assert system["mean"]["chrf"] == pytest.approx(sum(values) / 2)

                assert system["deviation"]["chrf"] == (
                    pytest.approx(abs(values[0] - values[1]) / 2**0.5)
                )

                each = [
                    task["directions"][d]["systems"][name]["mean"]["chrf"]
                    for d in DIRECTIONS
                ]

                assert each[0] != each[1]
                assert sum(each) / 2 == pytest.approx(system["mean"]["chrf"])

            [info] = task["metrics"]

            assert info["num_sentences"] == 2 * NUM_LINES[split]

    def test_tests_of_a_direction_are_those_of_evaluate(
        self, filled: tuple[Plan, SuiteResult]
    ) -> None:
        plan, result = filled

        every_outputs = list_outputs(plan)

        for task in result.tasks:
            for part in task.by_direction:
                label = f"{task.split.name}.{part.direction}"

                systems = [
                    read_run(
                        every_outputs[f"toy/{name}/1 {label}"].run.path,
                        RunOptions(
                            split=task.split.name,
                            data=(
                                None
                                if task.split.data is None
                                else Path(task.split.data)
                            ),
                            direction=part.direction,
                        ),
                    )
                    for name in ("sft", "warmup")
                ]

                evaluation = evaluate(
                    systems, num_randomization=NUM_TRIALS, metrics=["chrf"]
                )

                [comparison] = evaluation.comparisons

                difference = part.systems[1].against["sft"]["chrf"].by_seed[1]

                assert difference.p_randomization == comparison.p_value

    def test_means_are_tested_over_all_sentences(
        self, filled: tuple[Plan, SuiteResult]
    ) -> None:
        plan, result = filled

        every_outputs = list_outputs(plan)

        [task, _] = result.tasks

        difference = task.systems[1].against["sft"]["chrf"]

        def measure(name: str, seed: int, direction: str) -> Any:
            outputs = every_outputs[f"toy/{name}/{seed} test.{direction}"]

            references = REFERENCES

            if direction == "de-en":
                references = [line.upper() for line in references]

            evaluation = evaluate_systems(
                {"": read_hypotheses(outputs.translations)},
                references,
                metrics=["chrf"],
                num_bootstrap=0,
            )

            return evaluation.measurements[""]["chrf"]

        groups = [
            [(measure("sft", seed, d), measure("warmup", seed, d)) for d in DIRECTIONS]
            for seed in (1, 2)
        ]

        both, *each = randomization_p_values_of_groups(
            [groups[0] + groups[1], *groups], NUM_TRIALS
        )

        assert difference.p_sentences == both

        assert [difference.by_seed[seed].p_randomization for seed in (1, 2)] == each

        assert difference.mean == pytest.approx(
            statistics.fmean(b.score - a.score for g in groups for a, b in g)
        )

    def test_direction_that_is_not_measured_leaves_the_mean_empty(
        self, tmp_path: Path, filled_folder: Path, grid: Grid, plan: Plan
    ) -> None:
        for name in ("data", "flores", "out"):
            shutil.copytree(filled_folder / name, name)

        [outputs] = [
            entry
            for name, entry in list_outputs(plan).items()
            if name == "toy/warmup/1 test.en-de"
        ]

        outputs.translations.with_name(f"{outputs.translations.name}.jsonl").unlink()

        result = collect_results(grid, plan)

        [task, devtest] = result.tasks

        [_, run] = task.systems[1].runs

        assert [bool(run.scores) for run in task.systems[1].runs] == [False, True]

        [lines] = [
            re.findall("^- toy/.*", table, re.MULTILINE)
            for table in [format_markdown(result, plan, "").partition("Not measur")[2]]
        ]

        assert lines == ["- toy/warmup/1 test: en-de not translated"]

        # What there is, is shown.
        assert list(task.systems[1].against["sft"]["chrf"].by_seed) == [2]

        assert task.by_direction[1].systems[1].num_scored == 2
        assert devtest.systems[1].num_scored == 2


class TestFormat:
    def test_table_shows_means_and_each_direction(
        self, filled: tuple[Plan, SuiteResult]
    ) -> None:
        plan, result = filled

        table = format_markdown(result, plan, "")

        header, _, *rows = [
            [cell.strip() for cell in line.strip("|").split("|")]
            for line in table.splitlines()
            if line.startswith("| ")
        ]

        assert header == [
            *("task", "direction", "system", "seeds", "steps", "time"),
            *("chrF2++", "p"),
        ]

        assert rows == read_rows(table)

        assert [row[:3] for row in rows] == [
            [f"toy, {split}", direction, system]
            for split in NUM_LINES
            for direction in ("mean of 2", *DIRECTIONS)
            for system in ("sft", "warmup", "plain")
        ]

        # Of the run, not of a direction.
        assert [row[4:6] for row in rows[:6]] == [
            *(["40", "5.0 s"], ["20", "5.0 s"], ["", ""]),
            *(["", ""], ["", ""], ["", ""]),
        ]

        assert all("±" in row[6] for row in rows)
        assert [bool(row[7]) for row in rows] == [False, True, True] * 6

        for text in (
            "- toy, test: split `test`, directions `en-de`, `de-en`, checkpoint `best`,",
            "- toy, devtest: split `devtest` of `flores`, directions `en-de`,",
            "- mean: of the scores of all directions, each counted alike.",
            "- `toy/devtest`, de-en: Only 30 sentences: ",
            "- toy, test, mean of 2, `warmup` less `sft`: chrF2++ +",
            "- toy, devtest, de-en, `plain` less `sft`: chrF2++ ",
        ):
            assert text in table

        assert "Not measured" not in table

        latex = format_latex(result, "")

        cells = [
            line[:-3].split(" & ")
            for line in latex.splitlines()
            if line.endswith(r" \\")
        ]

        assert r"\begin{tabular}{lllrrrrr}" in latex

        assert [row[:6] for row in cells[1:]] == [row[:6] for row in rows]

    def test_signatures_name_their_directions(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)

        write_data("zh")

        text = json.dumps(make_grid()).replace("de", "zh").replace("chrf", "bleu")

        content = json.loads(
            text.replace("zhvtest", "devtest").replace("zhcode", "decode")
        )

        del content["systems"][1:]

        grid = load(tmp_path, content)

        plan = make_plan(grid)

        fill(plan)

        table = format_markdown(collect_results(grid, plan), plan, "")

        for direction, tokenizer in (("en-zh", "zh"), ("zh-en", "13a")):
            start = f"- toy, test: BLEU (`{direction}`): `nrefs:1|"

            assert re.search(f"{re.escape(start)}.*tok:{tokenizer}", table)


class TestFigure:
    def test_figure_shows_the_means_of_the_first_split(
        self, tmp_path: Path, filled_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(filled_folder)

        content = make_grid()

        content["figure"] = {"x": "pairs", "metric": "chrf"}
        content["tasks"][0]["x"] = 10
        content["tasks"].append({**content["tasks"][0], "name": "more", "x": 20})

        grid = load(tmp_path, content)

        plan = make_plan(grid)

        series = collect_series(collect_results(grid, plan))

        [(x, values)] = series[1].points.items()

        means = [mean_score(plan, "warmup", seed, "test") for seed in (1, 2)]

        assert x == 10.0
        assert list(values) == pytest.approx(means)


def test_eight_directions_are_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA", "data")
    monkeypatch.setenv("FLORES", "flores")

    grid = load_grid(ROOT / "recipes" / "suites" / "eight_directions.yaml")

    english = ["de-en", "fr-en", "ru-en", "zh-en", "en-de", "en-fr", "en-ru", "en-zh"]

    assert grid.tasks[0].directions == english

    first = grid.system("first").config["dataset.directions"]

    assert isinstance(first, dict) and list(first) == english

    plan = make_plan(grid)

    assert [
        name for name in plan.evaluate if name.startswith("english/warmup_on/3")
    ] == [
        f"english/warmup_on/3 {split}.{direction}"
        for split in ("test", "devtest")
        for direction in english
    ]
