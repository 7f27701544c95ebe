# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_runs import take_snapshot, tiny_options, to_args
from warmup_plugin.commands import evaluate
from warmup_plugin.commands.generate import main
from warmup_plugin.errors import WarmupError
from warmup_plugin.recipes import train
from warmup_plugin.recipes.arguments import create_generate_parser
from warmup_plugin.recipes.job_configs import create_generation_options, load_run_config
from warmup_plugin.recipes.job_options import JobOptions
from warmup_plugin.recipes.line_progress import LineProgress
from warmup_plugin.runs.outputs import details_file
from warmup_plugin.runs.run_dir import RunDir
from warmup_plugin.runs.yaml_files import dump_yaml, load_yaml


def read_json_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def run(run_dir: Path, *args: object) -> int:
    return main([str(run_dir), "--no-rich", *map(str, args)])


class TestOutput:
    def test_text_holds_the_best_of_each_alone(
        self, tmp_path: Path, sft_run: Path
    ) -> None:
        output = tmp_path / "out.txt"

        args = ["--num-best", 2, "--beam-size", 2, "--output", output]

        assert run(sft_run, *args) == 0

        records = read_json_lines(details_file(output))

        assert max(len(record["hypotheses"]) for record in records) == 2

        # As `evaluate` reads it: a line for each source.
        assert output.read_text() == "".join(
            f"{record['hypotheses'][0]['output']}\n" for record in records
        )

    def test_split_is_translated_line_by_line(
        self, tmp_path: Path, text_folder: Path, warmup_run: Path
    ) -> None:
        output = tmp_path / "new" / "out.txt"

        # Small batches, so that the order is not that of the batches.
        args = ["--split", "valid", "--output", output]

        assert run(warmup_run, *args, "--config", "max_num_tokens=40") == 0

        sources = (text_folder / "valid.src").read_text().splitlines()

        records = read_json_lines(details_file(output))

        assert [record["source"] for record in records] == sources

        assert output.read_text() == "".join(f"{r['output']}\n" for r in records)

        for record in records:
            assert isinstance(record["warmup"], str)
            assert record["score"] < 0.0
            assert record["log_prob"] < record["score"]

            assert record["log_prob"] == pytest.approx(
                record["warmup_log_prob"] + record["target_log_prob"]
            )

            # The best one is the first of all.
            [best] = record["hypotheses"]

            for name in ("warmup", "output", "score", "log_prob", "target_log_prob"):
                assert best[name] == record[name]

            assert sum(best["token_log_probs"]) == pytest.approx(record["log_prob"])

            assert len(best["tokens"]) == len(best["token_log_probs"])
            assert best["tokens"].count("<sep>") == 1
            assert best["tokens"][-1] == "</s>"

    def test_output_does_not_depend_on_batches(
        self, tmp_path: Path, sft_run: Path
    ) -> None:
        outputs = []

        for size in (30, 2000):
            output = tmp_path / f"{size}.txt"

            args = ["--output", output, "--config", f"max_num_tokens={size}"]

            assert run(sft_run, *args) == 0

            outputs.append(output.read_text())

        assert outputs[0] == outputs[1]

    def test_empty_lines_stay_empty(self, tmp_path: Path, warmup_run: Path) -> None:
        text = tmp_path / "in.txt"

        text.write_text("\npuke kuse\n  \nta momu\n", encoding="utf-8")

        output = tmp_path / "out.txt"

        assert run(warmup_run, "--input", text, "--output", output) == 0

        lines = output.read_text().split("\n")

        assert lines[0] == "" and lines[2] == "" and lines[4:] == [""]

        first, second, *_ = read_json_lines(details_file(output))

        assert first == {
            "source": "",
            "warmup": "",
            "output": "",
            "score": None,
            "log_prob": None,
            "warmup_log_prob": None,
            "target_log_prob": None,
            "hypotheses": [],
        }

        assert second["source"] == "puke kuse"
        assert second["log_prob"] is not None

    def test_model_without_warmup_writes_none(
        self, tmp_path: Path, sft_run: Path
    ) -> None:
        text = tmp_path / "in.txt"

        text.write_text("puke\n\n")

        output = tmp_path / "out.txt"

        assert run(sft_run, "--input", text, "--output", output) == 0

        assert [r["warmup"] for r in read_json_lines(details_file(output))] == [
            None,
            None,
        ]

    def test_output_of_one_line_stays_one(
        self, tmp_path: Path, sft_run: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from warmup_plugin.tokenizers import codec

        def decode(*args: object) -> str:
            return "a\u2028b\rc\nd"

        monkeypatch.setattr(codec, "decode_tokens", decode)

        output = tmp_path / "out.txt"

        assert run(sft_run, "--output", output) == 0

        assert output.read_bytes() == b"a b c d\n" * 5

    def test_empty_input_gives_empty_output(
        self, tmp_path: Path, sft_run: Path
    ) -> None:
        text = tmp_path / "in.txt"

        text.touch()

        output = tmp_path / "out.txt"

        assert run(sft_run, "--input", text, "--output", output) == 0

        assert output.read_text() == ""
        assert details_file(output).read_text() == ""


class TestOptions:
    def test_config_may_be_given_twice(self) -> None:
        args = create_generate_parser().parse_args(
            ["run", "--config", "a=1", "b=2", "--no-rich", "--config", "c=3"]
        )

        assert args.settings == ["a=1", "b=2", "c=3"]

    def test_data_names_folder_of_moved_data(
        self, tmp_path: Path, text_folder: Path, sft_run: Path
    ) -> None:
        folder = tmp_path / "text"

        folder.mkdir()

        source = (text_folder / "test.src").read_text().splitlines()[0]

        for lang in ("src", "tgt"):
            (folder / f"test.{lang}").write_text(f"{source}\n")

        output = tmp_path / "out.txt"

        assert run(sft_run, "--data", folder, "--output", output) == 0

        [record] = read_json_lines(details_file(output))

        assert record["source"] == source


class TestWarmupOption:
    """What a model writes depends on what it has learned."""

    @staticmethod
    def complete(
        given: dict[str, object],
        *,
        criterion: str = "warmup",
        plain_path: str = "empty",
        max_warmup_len: int = 6,
        ranks_labels: bool = False,
        leaves_separator_out: bool = False,
    ) -> tuple[object, object]:
        config = {
            "criterion": {"name": criterion},
            "warmup": {
                "plain_path": plain_path,
                "max_warmup_len": max_warmup_len,
                "leaves_separator_out": leaves_separator_out,
            },
            "generation": {},
        }

        options = create_generation_options(config, given, ranks_labels=ranks_labels)

        return options["warmup"], options.get("max_warmup_len")

    def test_run_with_warmups_writes_them(self) -> None:
        assert self.complete({}) == ("single", 6)
        assert self.complete({"max_warmup_len": 4}) == ("single", 4)
        assert self.complete({"warmup": "sample"}) == ("sample", 6)

    def test_plain_weight_of_a_run_holds_where_a_warmup_is_written_first(self) -> None:
        def complete(
            given: dict[str, object], max_warmup_len: int = 6
        ) -> tuple[object, object]:
            config = {
                "criterion": {"name": "warmup"},
                "warmup": {"plain_path": "empty", "max_warmup_len": max_warmup_len},
                "generation": {"plain_weight": 0.3},
            }

            options = create_generation_options(config, given)

            return options["warmup"], options.get("plain_weight")

        assert complete({}) == ("beam_then_beam", 0.3)
        assert complete({"warmup": "sample"}) == ("sample", 0.3)
        assert complete({"plain_weight": 0.5}) == ("beam_then_beam", 0.5)
        assert complete({"plain_weight": 0.0}) == ("single", 0.0)

        for warmup in ("single", "empty", "bare"):
            assert complete({"warmup": warmup}) == (warmup, None)

        # The end of a curriculum.
        assert complete({}, max_warmup_len=0) == ("empty", None)

        with pytest.raises(WarmupError, match="outputs have one way only; leave"):
            complete({"plain_weight": 0.3}, max_warmup_len=0)

    def test_none_is_the_empty_one_unless_run_learned_bare_outputs(self) -> None:
        assert self.complete({"warmup": "none"})[0] == "empty"
        assert self.complete({"warmup": "empty"})[0] == "empty"

        assert self.complete({"warmup": "none"}, plain_path="bare")[0] == "none"

    @pytest.mark.parametrize("ranks_labels", [False, True])
    def test_none_has_the_softmax_that_run_has_learned(
        self, ranks_labels: bool
    ) -> None:
        complete = partial(
            self.complete, ranks_labels=ranks_labels, leaves_separator_out=True
        )

        given: dict[str, object] = {"warmup": "none"}

        assert complete(given, plain_path="bare")[0] == "bare"
        assert complete(given, plain_path="empty")[0] == "empty"

        # As the config of a plain direction is.
        assert complete({}, criterion="sft")[0] == "bare"

        # Asked for by its name.
        assert self.complete({"warmup": "bare"}, criterion="sft")[0] == "bare"
        assert complete({"warmup": "bare"}, max_warmup_len=0)[0] == "bare"

    def test_softmax_is_known_of_runs_by_their_records(
        self, tmp_path: Path, sft_run: Path, warmup_run: Path
    ) -> None:
        def knows(run_dir: Path) -> object:
            options = JobOptions(run_dir=run_dir, checkpoint="last")

            return load_run_config(options)[0]["warmup"]["leaves_separator_out"]

        assert knows(warmup_run) is True
        assert knows(sft_run) is False

        out = tmp_path / "run"

        shutil.copytree(warmup_run, out)

        config: Any = load_yaml(out / "run.yaml")

        # One of an earlier version, which had the separator in it.
        del config["warmup"]["plain_path"]

        (out / "run.yaml").write_text(dump_yaml(config))

        assert knows(out) is False

    def test_ranking_without_warmup_is_that_of_the_empty_one(self) -> None:
        for warmup in ("none", "empty"):
            assert self.complete({"warmup": warmup}, ranks_labels=True)[0] == "empty"

        assert self.complete({}, ranks_labels=True) == ("sample", 6)

    def test_plain_fine_tuning_writes_none(self) -> None:
        assert self.complete({}, criterion="sft") == ("none", None)
        assert self.complete({"warmup": "none"}, criterion="sft")[0] == "none"

        given: dict[str, object] = {"warmup": "single", "max_warmup_len": 4}

        assert self.complete(given, criterion="sft") == ("single", 4)

        with pytest.raises(WarmupError, match="was trained without warmups"):
            self.complete({"warmup": "single"}, criterion="sft")

    @pytest.mark.parametrize("plain_path", ["empty", "bare"])
    @pytest.mark.parametrize("ranks_labels", [False, True])
    def test_end_of_curriculum_writes_the_empty_one(
        self, ranks_labels: bool, plain_path: str
    ) -> None:
        # It was learned, whatever stood for y without warmup.
        complete = partial(
            self.complete,
            max_warmup_len=0,
            plain_path=plain_path,
            ranks_labels=ranks_labels,
        )

        assert complete({}) == complete({"warmup": "none"}) == ("empty", None)

    def test_end_of_curriculum_has_no_warmups_to_write(self) -> None:
        with pytest.raises(
            WarmupError, match="all warmups are empty .*`--warmup single` has none"
        ):
            self.complete({"warmup": "single"}, max_warmup_len=0)

        given: dict[str, object] = {"warmup": "single", "max_warmup_len": 4}

        assert self.complete(given, max_warmup_len=0) == ("single", 4)

    def test_length_is_that_of_checkpoint(
        self, tmp_path: Path, warmup_run: Path
    ) -> None:
        out = tmp_path / "run"

        shutil.copytree(warmup_run, out)

        run_dir = RunDir(out)

        config: Any = load_yaml(run_dir.run_file)

        config["warmup"]["len_schedule"] = [[0, 3], [2, 1], [5, 0]]

        run_dir.run_file.write_text(dump_yaml(config))

        options = JobOptions(run_dir=out, checkpoint="last")

        # Of step 2.
        assert load_run_config(options)[0]["warmup"]["max_warmup_len"] == 1


class TestRunDirectory:
    def test_moved_run_needs_nothing_else(
        self, tmp_path: Path, warmup_run: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        moved = Path(shutil.copytree(warmup_run, tmp_path / "moved"))

        # Wherever the run was made is not there any more.
        config = moved / "run.yaml"

        text = config.read_text().replace(str(warmup_run), "/nope")

        assert "/nope" in text

        config.write_text(text)

        monkeypatch.chdir(tmp_path)

        assert run(Path("moved")) == 0

        # The default output.
        assert (moved / "generate" / "test.best.txt").read_text().count("\n") == 5
        assert (moved / "generate" / "test.best.txt.jsonl").is_file()

        assert run(Path("moved"), "--split", "valid", "--checkpoint", "last") == 0
        assert (moved / "generate" / "valid.last.txt").read_text().count("\n") == 6

        (tmp_path / "my.txt").write_text("ta\n")

        assert run(Path("moved"), "--input", "my.txt", "--checkpoint", "2") == 0
        assert (moved / "generate" / "input-my.txt.2.txt").read_text().count("\n") == 1

    def test_best_checkpoint_is_taken_by_default(
        self, tmp_path: Path, sft_run: Path
    ) -> None:
        outputs = {}

        copied = Path(shutil.copytree(sft_run, tmp_path / "copied"))

        scores_dir = copied / "checkpoints" / "scores"

        for step, score in ((2, 20.0), (4, 10.0)):
            (scores_dir / f"step_{step}.txt").write_text(f"{score}\n")

        for which in ("best", "last", "2", "4"):
            output = tmp_path / f"{which}.txt"

            args = [] if which == "best" else ["--checkpoint", which]

            assert run(copied, "--output", output, *args) == 0

            outputs[which] = details_file(output).read_text()

        assert outputs["best"] == outputs["2"]
        assert outputs["last"] == outputs["4"]
        assert outputs["2"] != outputs["4"]

    def test_card_loads_in_fairseq2(self, tmp_path: Path, sft_run: Path) -> None:
        copied = Path(shutil.copytree(sft_run, tmp_path / "copied"))

        output = tmp_path / "out.txt"

        # As anyone would load the model: by its name.
        args = [
            *("--output", output, "--config", "model.path=null", "model.family=null"),
            *("model.config_overrides=null", "model.name=sft", "tokenizer.path=null"),
            *("tokenizer.name=sft", "tokenizer.family=null"),
            f"common.assets.extra_paths=[{copied}/card.yaml]",
        ]

        assert run(copied, *args) == 0

        assert run(copied) == 0

        expected = (copied / "generate" / "test.best.txt").read_text()

        assert output.read_text() == expected

    def test_run_is_left_as_it_is(self, tmp_path: Path, sft_run: Path) -> None:
        copied = Path(shutil.copytree(sft_run, tmp_path / "copied"))

        snapshot = take_snapshot(copied)

        assert run(copied, "--output", tmp_path / "out.txt") == 0

        assert take_snapshot(copied) == snapshot


@pytest.fixture(scope="session")
def short_run(
    tmp_path_factory: pytest.TempPathFactory,
    text_folder: Path,
    tokenizer_file: Path,
) -> Path:
    """A run whose model reads 40 tokens."""
    out = tmp_path_factory.mktemp("runs") / "short"

    options = tiny_options(
        text_folder,
        tokenizer_file,
        model__config_overrides="{max_seq_len: 40}",
        dataset__max_source_len=40,
        dataset__max_target_len=40,
        regime__num_steps=1,
    )

    assert train.main(to_args(out, options)) == 0

    return out


class TestLongLines:
    @pytest.fixture
    def text(self, tmp_path: Path) -> Path:
        text = tmp_path / "in.txt"

        text.write_text("ta\n\n" + "kuse " * 100 + "\npuke\n" + "puke " * 200 + "\n")

        return text

    def test_call_names_line(
        self,
        tmp_path: Path,
        short_run: Path,
        text: Path,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        output = tmp_path / "out.txt"

        assert run(short_run, "--input", text, "--output", output) == 2

        err = capfd.readouterr().err

        assert f"Line 3 of `{text}` has " in err
        assert "the model reads at most 40; split it into sentences" in err
        assert "Traceback" not in err
        assert not output.exists()

        # What stands before it is done; to cut the line is to go on.
        partial = tmp_path / "out.txt.partial"

        assert partial.read_text().count("\n") == 2

        args = ["--input", text, "--output", output, "--truncate"]

        assert run(short_run, *args) == 0

        assert "2 done before" in capfd.readouterr().err
        assert output.read_text().count("\n") == 5
        assert not partial.exists()

    def test_call_cuts_when_asked_to(
        self,
        tmp_path: Path,
        short_run: Path,
        text: Path,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        output = tmp_path / "out.txt"

        args = ["--input", text, "--output", output, "--truncate"]

        assert run(short_run, *args) == 0

        lines = output.read_text().split("\n")

        assert len(lines) == 6
        assert lines[2] != "" and lines[4] != ""

        assert "2 of these lines were longer than" in capfd.readouterr().err

        records = read_json_lines(details_file(output))

        assert [bool(r.get("truncated")) for r in records] == [
            *(False, False, True, False, True)
        ]


def test_total_of_split_is_known(
    sft_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    totals: list[int | None] = []

    class Progress(LineProgress):
        def __init__(self, total: int | None) -> None:
            totals.append(total)

            super().__init__(total)

    monkeypatch.setattr("warmup_plugin.recipes.line_recipes.LineProgress", Progress)

    output = tmp_path / "out.txt"

    assert run(sft_run, "--output", output) == 0

    assert totals == [output.read_text().count("\n")]


def test_default_output_of_broken_job_is_begun_again(
    tmp_path: Path, sft_run: Path
) -> None:
    copied = Path(shutil.copytree(sft_run, tmp_path / "copied"))

    assert run(copied) == 0

    output = copied / "generate" / "test.best.txt"

    expected = output.read_text()

    # What is left of a job with another checkpoint.
    output.unlink()

    for name in ("test.best.txt.partial", "test.best.txt.jsonl.partial"):
        output.with_name(name).write_text("x\n")

    state = {"num_lines": 1, "checksum": 1, "sizes": [2, 2], "settings": {"a": 1}}

    output.with_name("test.best.txt.state").write_text(json.dumps(state))

    assert run(copied) == 0

    assert output.read_text() == expected


class TestBadInput:
    def test_call_wants_output_when_settings_differ(
        self, sft_run: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for args in (["--config", "max_num_tokens=20"], ["--beam-size", 2]):
            assert run(sft_run, *args) == 2

            assert "name the file to write with `--output`" in capsys.readouterr().err

        assert not (sft_run / "generate" / "test.best.txt").exists()

    @pytest.mark.parametrize(
        "args,message",
        [
            (["--split", "nope"], "has no `nope` split"),
            (["--checkpoint", "7"], "has no checkpoint `7`; use `best`, `last` or one"),
            (["--input", "nope.txt"], "The input file `nope.txt` does not exist"),
            (["--output", "/tmp"], "The output `/tmp` is a folder"),
            (["--config", "nope=1"], "nope` is not known"),
            # As they were typed, not as the config calls them.
            (["--beam-size", "0"], "`--beam-size` must be greater than or equal to 1"),
            (
                ["--num-best", "9"],
                "`--num-best` must be at most `--beam-size` (5), but",
            ),
            (["--max-len-b", "0"], "`--max-len-b` must be greater than or equal to 1"),
            (["--warmup", "greedy-beam"], "`--max-warmup-len`"),
            (
                ["--warmup", "greedy-beam", "--max-warmup-len", "3"],
                "`--warmup` must be one of none, bare, empty, single, greedy_then_beam, beam_then_beam, sample, but is `greedy-beam`",
            ),
            (["--rank-by", "mbr"], "but only `--warmup sample` has several warmups"),
            (["--rank-by", "cometkiwi"], "`--rank-by cometkiwi` ranks one output; add"),
            (["--rank-model", "a/b"], "`--rank-model` is for a ranking by COMET; add"),
            (["--temperature", "2"], "set `--sampling`, or `--warmup` to `sample`"),
            (["--warmup", "single"], "The run was trained without warmups"),
            (
                ["--config", "seq2seq_generator.config.beam_size=0"],
                "`seq2seq_generator.config.beam_size` must be greater than",
            ),
            (
                [
                    "--config",
                    "seq2seq_generator={name: beam_search, config: {beam_size: 2}}",
                ],
                "`seq2seq_generator.name` is not `warmup`",
            ),
            (["--config", "dataset.path=/nope"], "data folder `/nope` does not exist"),
        ],
    )
    def test_call_says_one_sentence(
        self,
        tmp_path: Path,
        sft_run: Path,
        capfd: pytest.CaptureFixture[str],
        args: list[str],
        message: str,
    ) -> None:
        if "--output" not in args:
            args = ["--output", str(tmp_path / "out.txt"), *args]

        assert run(sft_run, *args) == 2

        err = capfd.readouterr().err

        [line] = [
            line
            for line in err.splitlines()
            if line.startswith("error: ") or " ERROR: " in line
        ]

        assert message in line
        assert "Traceback" not in err

    def test_call_names_line_that_is_not_utf8(
        self, tmp_path: Path, sft_run: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        text = tmp_path / "in.txt"

        text.write_bytes(b"ta\n\xff\n")

        assert run(sft_run, "--input", text, "--output", tmp_path / "out.txt") == 2

        assert f"Line 2 of `{text}` is not valid UTF-8" in capfd.readouterr().err

    def test_input_is_not_replaced(
        self, tmp_path: Path, sft_run: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        text = tmp_path / "in.txt"

        text.write_text("ta\n")

        assert run(sft_run, "--input", text, "--output", text) == 2

        assert "is the input" in capfd.readouterr().err
        assert text.read_text() == "ta\n"

    def test_directory_without_run_is_one_sentence(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        assert run(tmp_path) == 2
        assert "is not a run directory" in capfd.readouterr().err

        assert run(tmp_path / "nope") == 2
        assert "does not exist" in capfd.readouterr().err

    def test_run_without_checkpoint_is_one_sentence(
        self, tmp_path: Path, sft_run: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        copied = Path(shutil.copytree(sft_run, tmp_path / "copied"))

        shutil.rmtree(copied / "checkpoints")

        assert run(copied) == 2
        assert "has no checkpoint yet" in capfd.readouterr().err

    def test_options_exclude_each_other(self, sft_run: Path) -> None:
        with pytest.raises(SystemExit, match="2"):
            run(sft_run, "--input", "x", "--split", "test")


def test_run_dir_of_fixture_has_two_checkpoints(sft_run: Path) -> None:
    # The tests above choose between them.
    assert RunDir(sft_run).checkpoint_steps() == [2, 4]


@pytest.fixture(scope="module")
def choice_run(
    tmp_path_factory: pytest.TempPathFactory, text_folder: Path, warmup_run: Path
) -> Path:
    """A run of multiple choice whose sources have several lines; not to be changed."""
    folder = tmp_path_factory.mktemp("choice")

    sources = (text_folder / "train.src").read_text().splitlines()

    for split, num in (("train", 30), ("valid", 4), ("test", 5)):
        examples = [
            {"source": f"{source}\n{source}", "target": "ta" if n % 2 else "kuse"}
            for n, source in enumerate(sources[:num])
        ]

        text = "".join(f"{json.dumps(example)}\n" for example in examples)

        (folder / f"{split}.jsonl").write_text(text)

    options = tiny_options(
        folder,
        None,
        criterion__name="warmup",
        init_from=warmup_run,
        task__name="multiple_choice",
        task__config="{labels: [ta, kuse, mu], rank_options: true}",
    )

    out = folder / "run"

    assert train.main(to_args(out, options)) == 0

    return out


class TestLabels:
    def test_run_says_that_labels_are_ranked(self, choice_run: Path) -> None:
        assert run(choice_run) == 0

        records = read_json_lines(choice_run / "generate" / "test.best.txt.jsonl")

        outputs = (choice_run / "generate" / "test.best.txt").read_text().splitlines()

        assert outputs == [record["output"] for record in records]

        for record in records:
            labels = [h["output"] for h in record["hypotheses"]]

            assert sorted(labels) == ["kuse", "mu", "ta"]

            # One of the warmups that were drawn.
            assert record["warmup"] is not None

    def test_source_keeps_its_lines(self, choice_run: Path, tmp_path: Path) -> None:
        output = tmp_path / "out.txt"

        assert run(choice_run, "--output", output) == 0

        for record in read_json_lines(details_file(output)):
            first, second = record["source"].split("\n")

            assert first == second

        assert evaluate.main([str(choice_run)]) == 0

    def test_output_is_written_where_asked_for(
        self, choice_run: Path, tmp_path: Path
    ) -> None:
        output = tmp_path / "out.txt"

        assert run(choice_run, "--output", output, "--no-rank-labels") == 0

        [hypothesis] = read_json_lines(details_file(output))[0]["hypotheses"]

        assert hypothesis["token_log_probs"]

    def test_labels_are_ranked_without_warmup(
        self, choice_run: Path, tmp_path: Path
    ) -> None:
        output = tmp_path / "out.txt"

        assert run(choice_run, "--output", output, "--warmup", "none") == 0

        assert read_json_lines(details_file(output))[0]["warmup"] is None

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (["--rank-labels"], "With settings of your own"),
            (["--ensemble", "x"], "With settings of your own"),
            (["--output", "x", "--beam-size", 3], "`--beam-size` is of no use"),
            (["--output", "x", "--warmup", "single"], "cannot rank labels"),
        ],
    )
    def test_option_without_effect_is_refused(
        self,
        choice_run: Path,
        args: list[object],
        message: str,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        assert run(choice_run, *args) == 2

        assert message in capsys.readouterr().err

    def test_run_without_labels_is_refused(
        self, warmup_run: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(warmup_run, "--output", "x", "--rank-labels") == 2

        assert "The run has no labels to rank" in capsys.readouterr().err


class TestLimits:
    def test_length_of_outputs_is_that_of_run(
        self, tmp_path: Path, text_folder: Path, sft_run: Path
    ) -> None:
        options = tiny_options(
            text_folder,
            None,
            init_from=sft_run,
            generation__max_len_a=0.0,
            generation__max_len_b=2,
        )

        assert train.main(to_args(tmp_path / "run", options)) == 0

        assert run(tmp_path / "run") == 0

        file = tmp_path / "run" / "generate" / "test.best.txt.jsonl"

        for record in read_json_lines(file):
            assert len(record["hypotheses"][0]["tokens"]) <= 3

        # A command may say otherwise.
        output = tmp_path / "out.txt"

        assert run(tmp_path / "run", "--output", output, "--max-len-b", 9) == 0

        lengths = [
            len(record["hypotheses"][0]["tokens"])
            for record in read_json_lines(details_file(output))
        ]

        assert max(lengths) > 3
