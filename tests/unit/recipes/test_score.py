# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from sentencepiece import SentencePieceProcessor

from warmup_plugin.commands.score import main
from warmup_plugin.errors import WarmupError
from warmup_plugin.recipes.job_configs import find_score_warmups
from warmup_plugin.runs.outputs import details_file

Score: TypeAlias = Callable[..., tuple[int, str, str]]


@pytest.fixture
def score(capfd: pytest.CaptureFixture[str]) -> Score:
    """Runs the command and returns status, standard output and standard error."""

    def run(run_dir: Path, *args: object) -> tuple[int, str, str]:
        capfd.readouterr()

        status = main([str(run_dir), "--no-rich", *map(str, args)])

        out, err = capfd.readouterr()

        return status, out, err

    return run


def read(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.split("\n")[:-1]]


@pytest.fixture
def files(tmp_path: Path) -> list[object]:
    source, target = tmp_path / "a.src", tmp_path / "a.tgt"

    source.write_text("puke kuse\n\nta momu\nta\n")

    target.write_text("ta\nmomu\nkuse puke\nkuse puke ta ta\n")

    return ["--source", source, "--target", target]


class TestFiles:
    def test_pairs_are_scored_line_by_line(
        self, warmup_run: Path, score: Score, files: list[object]
    ) -> None:
        status, out, err = score(warmup_run, *files, "--jsonl", "--num-warmups", 5)

        assert status == 0
        assert "4 lines in " in err

        records = read(out)

        assert [r["source"] for r in records] == ["puke kuse", "", "ta momu", "ta"]

        model_file = str(warmup_run / "tokenizer.model")

        decoder = SentencePieceProcessor(model_file=model_file)

        empty = records.pop(1)

        assert empty["log_prob"] is empty["marginal_log_prob"] is empty["gain"] is None
        assert empty["warmups"] == []

        for record in records:
            warmups = record["warmups"]

            assert sum(w["count"] for w in warmups) == 5
            assert sum(w["weight"] for w in warmups) == pytest.approx(1.0)

            # Not two of the same, which are one drawn twice.
            assert len({tuple(w["tokens"]) for w in warmups}) == len(warmups)

            for w in warmups:
                assert decoder.decode(w["tokens"]) == w["warmup"]

            # log (1/K) Σ P(y|c,x)
            total = sum(w["count"] * math.exp(w["target_log_prob"]) for w in warmups)

            assert record["marginal_log_prob"] == pytest.approx(
                math.log(total / 5), abs=1e-4
            )

            assert record["gain"] == pytest.approx(
                record["marginal_log_prob"] - record["log_prob"]
            )

            for w in warmups:
                share = w["count"] * math.exp(w["target_log_prob"]) / total

                assert w["weight"] == pytest.approx(share, abs=1e-4)

            squares = sum(w["count"] * (w["weight"] / w["count"]) ** 2 for w in warmups)

            assert record["effective_sample_size"] == pytest.approx(
                1.0 / squares, abs=1e-3
            )

        # The order and size of batches change nothing.
        again = score(
            warmup_run,
            *files,
            *("--jsonl", "--num-warmups", 5, "--config", "max_num_tokens=10"),
        )

        for a, b in zip(records, [r for r in read(again[1]) if r["source"]]):
            assert a["log_prob"] == pytest.approx(b["log_prob"], abs=1e-4)

            assert a["marginal_log_prob"] == pytest.approx(
                b["marginal_log_prob"], abs=1e-4
            )

        # Columns say the same.
        columns = score(warmup_run, *files, "--num-warmups", 5)[1].split("\n")

        assert columns[1] == "" and columns[4:] == [""]

        plain, marginal = map(float, columns[0].split("\t"))

        assert plain == pytest.approx(records[0]["log_prob"], abs=1e-4)
        assert marginal == pytest.approx(records[0]["marginal_log_prob"], abs=1e-4)

    def test_score_of_output_is_that_of_generator(
        self, tmp_path: Path, sft_run: Path, score: Score
    ) -> None:
        # What beam search says of its output, scoring says of the same text.
        from warmup_plugin.commands import generate

        output = tmp_path / "out.txt"

        args = [str(sft_run), "--output", str(output), "--min-len-b", "1"]

        assert generate.main(args) == 0

        records = read(details_file(output).read_text())

        source = tmp_path / "in.txt"

        source.write_text("".join(f"{r['source']}\n" for r in records))

        status, out, _ = score(sft_run, "--source", source, "--target", output)

        assert status == 0

        num_compared = 0

        for record, line in zip(records, out.split("\n")):
            # A model of no training may write what is not how its text is encoded.
            if record["output"] and line:
                num_compared += math.isclose(
                    float(line), record["log_prob"], abs_tol=1e-3
                )

                assert float(line) < 0.0

        assert num_compared > 0

    def test_more_warmups_change_estimate_only(
        self, warmup_run: Path, score: Score, files: list[object]
    ) -> None:
        one, many = (
            read(score(warmup_run, *files, "--jsonl", "--num-warmups", k)[1])[0]
            for k in (1, 8)
        )

        assert one["log_prob"] == pytest.approx(many["log_prob"], abs=1e-4)
        assert one["effective_sample_size"] == pytest.approx(1.0)

        # A seed draws others.
        args = [*files, "--jsonl", "--num-warmups", 8, "--seed", 7]

        other = read(score(warmup_run, *args)[1])[0]

        assert {w["warmup"] for w in other["warmups"]} != {
            w["warmup"] for w in many["warmups"]
        }

    def test_plain_model_draws_none(
        self, sft_run: Path, score: Score, files: list[object]
    ) -> None:
        [first, *_] = read(score(sft_run, *files, "--jsonl")[1])

        assert first["marginal_log_prob"] is None
        assert first["warmups"] == []
        assert first["log_prob"] < 0.0

        status, _, err = score(sft_run, *files, "--num-warmups", 2)

        assert status == 2
        assert "The run was trained without warmups" in err

        args = [*files, "--num-warmups", 2, "--max-warmup-len", 3]

        assert score(sft_run, *args)[0] == 0

    def test_file_that_is_shorter_is_named(
        self, tmp_path: Path, sft_run: Path, score: Score, files: list[object]
    ) -> None:
        target = tmp_path / "a.tgt"

        target.write_text("ta\nmomu\n")

        status, out, err = score(sft_run, *files)

        assert status == 2
        assert (
            f"`{target}` ends after line 2, but `{tmp_path / 'a.src'}` goes on" in err
        )

        # What comes before is scored.
        assert out.count("\n") == 2


class TestWarmupOptions:
    @staticmethod
    def get(
        num_warmups: int | None = None,
        max_warmup_len: int | None = None,
        *,
        criterion: str = "warmup",
        trained_len: int = 6,
    ) -> tuple[int, int]:
        config = {
            "criterion": {"name": criterion},
            "warmup": {"max_warmup_len": trained_len},
        }

        return find_score_warmups(config, num_warmups, max_warmup_len)

    def test_defaults_are_those_of_run(self) -> None:
        assert self.get() == (8, 6)
        assert self.get(2, 3) == (2, 3)
        assert self.get(criterion="sft")[0] == 0

    def test_end_of_curriculum_draws_none(self) -> None:
        assert self.get(trained_len=0)[0] == 0

        with pytest.raises(WarmupError, match="At this checkpoint all warmups are emp"):
            self.get(2, trained_len=0)

        assert self.get(2, 3, trained_len=0) == (2, 3)


class TestSplit:
    def test_split_is_scored_and_summed_up(
        self, tmp_path: Path, warmup_run: Path, score: Score
    ) -> None:
        run_dir = Path(shutil.copytree(warmup_run, tmp_path / "run"))

        status, out, _ = score(run_dir)

        assert status == 0

        file = run_dir / "score" / "test.best.jsonl"

        records = read(file.read_text())

        assert len(records) == 5

        assert "5 pairs, " in out
        assert f"wrote {file}" in out

        mean = sum(r["gain"] for r in records) / 5

        [gain] = re.findall(r"^gain +(\S+) a pair", out, re.MULTILINE)

        assert float(gain) == pytest.approx(mean, abs=1e-3)

        assert score(run_dir, "--split", "valid", "--checkpoint", "last")[0] == 0
        assert (run_dir / "score" / "valid.last.jsonl").is_file()


class TestBadInput:
    @pytest.mark.parametrize(
        "args",
        [
            ["--num-warmups", 4],
            ["--num-warmups", 0],
            ["--max-warmup-len", 2],
            ["--seed", 3],
            ["--config", "max_num_tokens=20"],
        ],
    )
    def test_call_wants_output_when_settings_differ(
        self, warmup_run: Path, score: Score, args: list[object]
    ) -> None:
        status, out, err = score(warmup_run, *args)

        assert (status, out) == (2, "")
        assert "name the file to write with `--output`" in err

        assert not (warmup_run / "score").exists()

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (["--source", "x"], "`--source` and `--target` belong together"),
            (["--source", "x", "--target", "y", "--split", "z"], "instead of a split"),
            (["--source", "x", "--target", "y"], "The input file `x` does not exist"),
            (["--split", "nope"], "has no `nope` split"),
            (["--num-warmups", "-1"], "`--num-warmups` must be greater than or equal"),
            (["--max-warmup-len", "0"], "`--max-warmup-len` must be greater than or"),
            (["--seed", "-1"], "`--seed` must be greater than or equal to 0"),
            (["--checkpoint", "9"], "has no checkpoint `9`"),
        ],
    )
    def test_mistake_is_one_sentence(
        self,
        warmup_run: Path,
        score: Score,
        tmp_path: Path,
        args: list[str],
        message: str,
    ) -> None:
        status, out, err = score(warmup_run, *args, "--output", tmp_path / "out")

        assert (status, out) == (2, "")
        assert message in err
        assert "Traceback" not in err

    def test_long_pair_is_named(
        self, tmp_path: Path, warmup_run: Path, score: Score
    ) -> None:
        source, target = tmp_path / "a", tmp_path / "b"

        source.write_text("ta\nta\n")
        target.write_text("ta\n" + "puke " * 600 + "\n")

        args = ["--source", source, "--target", target]

        status, out, err = score(warmup_run, *args)

        assert status == 2
        assert out.count("\n") == 1
        assert f"Line 2 of `{source}` and `{target}` has a target of " in err

        assert score(warmup_run, "--source", target, "--target", source)[0] == 2

        for pair in ((source, target), (target, source)):
            args = ["--source", pair[0], "--target", pair[1], "--truncate"]

            status, out, err = score(warmup_run, *args)

            assert status == 0
            assert out.count("\n") == 2
            assert "1 of these lines were longer than the model reads" in err
