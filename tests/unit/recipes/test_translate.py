# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import fcntl
import io
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from fairseq2.recipe import cli
from fairseq2.recipe.config import ReferenceModelSection

from tests.unit.metrics.fake_comet import install_comet_worker, write_comet_model
from warmup_plugin.__main__ import main
from warmup_plugin.commands import generate
from warmup_plugin.generation.translator import Translator, to_json_line
from warmup_plugin.interop.checkpoints import load_weights, write_weights
from warmup_plugin.models import int8
from warmup_plugin.recipes.translate import describe_members
from warmup_plugin.runs.run_dir import RunDir
from warmup_plugin.runs.yaml_files import dump_yaml

Translate: TypeAlias = Callable[..., tuple[int, bytes, str]]

TEXT = "puke kuse\n\nta momu puke\n  \nkuse ta\nta\nmomu momu ta kuse\n"


@pytest.fixture
def translate(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> Translate:
    """Runs the command and returns status, standard output and standard error."""

    def run(run_dir: Path, *args: object, stdin: bytes = b"") -> tuple[int, bytes, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))

        capfdbinary.readouterr()

        status = main(["translate", str(run_dir), "--no-rich", *map(str, args)])

        out, err = capfdbinary.readouterr()

        return status, out, err.decode()

    return run


class TestStreams:
    def test_lines_are_those_of_batch_command(
        self, tmp_path: Path, warmup_run: Path, translate: Translate
    ) -> None:
        text, output = tmp_path / "in.txt", tmp_path / "out.txt"

        text.write_text(TEXT)

        args = [str(warmup_run), "--input", str(text), "--output", str(output)]

        assert generate.main(args) == 0

        status, out, err = translate(warmup_run, stdin=TEXT.encode())

        assert status == 0
        assert out == output.read_bytes()
        assert out.split(b"\n")[1] == out.split(b"\n")[3] == b""
        assert "7 lines in " in err

        # Whatever the batches and the way in; a line feed may be missing at the end.
        for further in (
            ["--interactive"],
            ["--chunk-size", 3],
            ["--config", "max_num_tokens=20"],
        ):
            stdin = TEXT.rstrip("\n").encode()

            assert translate(warmup_run, *further, stdin=stdin)[:2] == (0, out)

        assert translate(warmup_run, text)[:2] == (0, out)
        assert translate(warmup_run, text, text)[:2] == (0, out * 2)

    def test_projections_have_8_bits(
        self,
        warmup_run: Path,
        translate: Translate,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        status, out, err = translate(warmup_run, "--int8", stdin=TEXT.encode())

        assert status == 0
        assert "`--int8` changes nothing" in err

        assert out == translate(warmup_run, stdin=TEXT.encode())[1]

        # They count as large.
        monkeypatch.setattr(int8, "_LEAST_SIZE", 1)

        made = []

        class Spy(int8.Int8Projection):  # type: ignore[misc]
            def __init__(self, *args: Any) -> None:
                super().__init__(*args)

                made.append(self)

        monkeypatch.setattr(int8, "Int8Projection", Spy)

        status, out, err = translate(warmup_run, "--int8", stdin=TEXT.encode())

        assert status == 0 and "changes nothing" not in err
        assert len(made) > 10 and out.count(b"\n") == TEXT.count("\n")

        # Whatever the batches.
        for further in (["--chunk-size", 3], ["--config", "max_num_tokens=20"]):
            args = ("--int8", *further)

            assert translate(warmup_run, *args, stdin=TEXT.encode())[:2] == (0, out)

    def test_jsonl_holds_n_best(self, warmup_run: Path, translate: Translate) -> None:
        args = ["--jsonl", "--num-best", 2, "--beam-size", 3]

        status, out, _ = translate(warmup_run, *args, stdin=b"puke\n\n")

        assert status == 0

        first, second, end = out.split(b"\n")

        assert end == b""

        record = json.loads(first)

        assert len(record["hypotheses"]) == 2
        assert record["hypotheses"][0]["score"] >= record["hypotheses"][1]["score"]

        assert json.loads(second)["hypotheses"] == []

    def test_text_holds_n_best(self, sft_run: Path, translate: Translate) -> None:
        args = ["--num-best", 2, "--beam-size", 3]

        stdin = b"puke\n\nta\n"

        text = translate(sft_run, *args, stdin=stdin)[1].decode().split("\n")

        rows = translate(sft_run, *args, "--jsonl", stdin=stdin)[1].split(b"\n")[:-1]

        expected = []

        for row in rows:
            outputs = [h["output"] for h in json.loads(row)["hypotheses"]]

            expected += [*outputs, "", ""][:2]

        assert text == [*expected, ""] and len(expected) == 6

    def test_terminal_is_asked(
        self,
        sft_run: Path,
        translate: Translate,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        class Terminal(io.TextIOWrapper):
            def isatty(self) -> bool:
                return True

        monkeypatch.setattr(io, "TextIOWrapper", Terminal)

        status, out, err = translate(sft_run, stdin=b"ta\nta\n")

        assert status == 0 and out.count(b"\n") == 2

        assert err.index("loading the model") < err.index("> ")
        assert err.count("> ") == 3

    def test_line_that_shows_nothing_is_empty(
        self, sft_run: Path, translate: Translate
    ) -> None:
        lines = ["ta", "\u200b", "\ufeff\u200b", "\u200e", "\u3000", "\x01", "ta"]

        status, out, _ = translate(sft_run, stdin="\n".join(lines).encode())

        assert status == 0

        first, *blank, last, _ = out.decode().split("\n")

        assert first == last != "" and blank == [""] * 5

    def test_files_may_hold_json_lines_or_columns(
        self, tmp_path: Path, sft_run: Path, translate: Translate
    ) -> None:
        expected = translate(sft_run, stdin=b"puke kuse\nta\n")[:2]

        rows = [{"source": "x", "text": text} for text in ("puke kuse", "ta")]

        json_file, tsv = tmp_path / "x.jsonl", tmp_path / "x.tsv"

        json_file.write_text("".join(json.dumps(row) + "\n" for row in rows))

        tsv.write_text("puke kuse\tmomu\nta\tmomu\n")

        assert translate(sft_run, json_file, "--json-fields", "text")[:2] == expected
        assert translate(sft_run, tsv)[:2] == expected

        status, _, err = translate(sft_run, "--columns", 1, stdin=b"ta\n")

        assert status == 2 and "`--columns 1` is no column" in err

    def test_json_lines_on_standard_input_are_refused(
        self, sft_run: Path, translate: Translate
    ) -> None:
        stdin = b'{"source": "puke"}\n\n{"source": "ta"}\n'

        status, out, err = translate(sft_run, stdin=stdin)

        assert (status, out) == (2, b"")

        assert "Standard input holds JSON lines, not text; write it to a file" in err

    @pytest.mark.parametrize("rank_by", ["log-prob", "marginal", "mbr"])
    def test_samples_are_those_of_line(
        self, warmup_run: Path, translate: Translate, rank_by: str
    ) -> None:
        args: list[object] = ["--warmup", "sample", "--num-warmups", 3]

        args += ["--rank-by", rank_by, "--beam-size", 1, "--sampling", "--jsonl"]

        status, out, _ = translate(warmup_run, *args, stdin=b"puke\nta\npuke\n" * 2)

        assert status == 0

        # Another batch size, the same draws.
        args += ["--chunk-size", 2]

        def read(out: bytes) -> list[tuple[str, str]]:
            records = [json.loads(line) for line in out.split(b"\n")[:-1]]

            return [(r["warmup"], r["output"]) for r in records]

        again = translate(warmup_run, *args, stdin=b"puke\nta\npuke\n" * 2)[1]

        assert read(again) == read(out)

        other = translate(warmup_run, *args, "--seed", 5, stdin=b"puke\nta\npuke\n" * 2)

        assert read(other[1]) != read(out)

    def test_comet_ranks_outputs(
        self,
        warmup_run: Path,
        translate: Translate,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        # Longer outputs are better, to source and reference.
        install_comet_worker(tmp_path, monkeypatch, requires_references=False)

        args: list[object] = ["--rank-model", write_comet_model(tmp_path), "--jsonl"]

        args += ["--sampling", "--num-best", 3, "--rank-by"]

        status, out, _ = translate(
            warmup_run, *args, "cometkiwi", "--warmup", "empty", stdin=b"puke\n\nta\n"
        )

        assert status == 0

        records = [json.loads(line) for line in out.split(b"\n")[:-1]]

        assert [r["output"] == "" for r in records] == [False, True, False]

        for record in records[::2]:
            outputs = [h["output"] for h in record["hypotheses"]]

            expected = [len(o) / (100 + len(record["source"])) for o in outputs]

            assert [h["score"] for h in record["hypotheses"]] == pytest.approx(expected)

            assert expected == sorted(expected, reverse=True)

        file = tmp_path / "out.jsonl"

        further = ("cometkiwi", "--warmup", "empty", "-o", file)

        assert translate(warmup_run, *args, *further, stdin=b"puke\n\nta\n")[0] == 0
        assert file.read_bytes() == out

        # All draws are candidates, of which as many are kept as are asked for.
        args += ["mbr-comet", "--warmup", "sample", "--num-warmups", 5]

        status, out, _ = translate(warmup_run, *args, stdin=b"puke\n")

        assert status == 0

        hypotheses = json.loads(out)["hypotheses"]

        assert 1 < len(hypotheses) <= 3

        scores = [h["score"] for h in hypotheses]

        assert scores == sorted(scores, reverse=True)

        # Of each command one.
        assert (tmp_path / "starts").read_text() == "xxx"

    def test_output_begins_as_told(
        self, tmp_path: Path, warmup_run: Path, translate: Translate
    ) -> None:
        stdin = b"puke kuse\tta\nkuse\n"

        lines = translate(warmup_run, "--prefixes", stdin=stdin)[1].split(b"\n")

        assert lines[0].startswith(b"ta")

        # The tab is not part of the source.
        assert lines[1:] == translate(warmup_run, stdin=b"kuse\n")[1].split(b"\n")

        # A prefix is not a source.
        assert translate(warmup_run, "--prefixes", stdin=b"\tta\n")[1] == b"\n"

        tsv, jsonl = tmp_path / "in.tsv", tmp_path / "in.jsonl"

        tsv.write_bytes(stdin)

        assert translate(warmup_run, "--prefixes", tsv)[1].split(b"\n") == lines

        err = translate(warmup_run, "--prefixes", tsv, "--columns", 2)[2]

        assert "leave out `--columns` and `--json-fields`" in err

        jsonl.write_text('{"source": "ta"}\n')

        err = translate(warmup_run, "--prefixes", jsonl)[2]

        assert "holds JSON lines, not text; name a file of lines of text" in err

        out = translate(warmup_run, "--target-prefix", "momu", stdin=b"puke\n\nta\n")[1]

        lines = out.split(b"\n")

        assert lines[0].startswith(b"momu") and lines[2].startswith(b"momu")
        assert lines[1] == b""

    def test_interactive_answers_before_it_reads_on(
        self, sft_run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        written = tmp_path / "out"

        stream = written.open("wb")

        counts = []

        class Asking(io.RawIOBase):
            lines = [b"puke\n", b"ta\n", b""]

            def readable(self) -> bool:
                return True

            def readline(self, size: int | None = -1, /) -> bytes:
                counts.append(written.read_bytes().count(b"\n"))

                return self.lines.pop(0)

        monkeypatch.setattr("warmup_plugin.recipes.line_recipes.open_stdin", Asking)

        class Out:
            buffer = stream

            def flush(self) -> None:
                pass

            def isatty(self) -> bool:
                return False

            def fileno(self) -> int:
                return stream.fileno()

        monkeypatch.setattr(sys, "stdout", Out())

        assert main(["translate", str(sft_run), "--interactive", "--no-rich"]) == 0

        assert counts == [0, 1, 2]

    def test_interactive_goes_on_after_long_line(
        self, sft_run: Path, translate: Translate
    ) -> None:
        stdin = b"puke\n" + b"kuse " * 600 + b"\nta\n"

        status, out, err = translate(sft_run, "--interactive", stdin=stdin)

        assert status == 2

        first, second, third, end = out.split(b"\n")

        assert first and third and not second and not end

        assert "error: Line 2 of standard input has 3001 tokens" in err
        assert "error: 1 line(s) could not be translated" in err

    def test_separators_inside_line_do_not_split_it(
        self, sft_run: Path, translate: Translate
    ) -> None:
        stdin = "puke\u2028kuse\x0cta\u0085momu\rta\r\nta\n".encode()

        status, out, _ = translate(sft_run, "--jsonl", stdin=stdin)

        assert status == 0

        # Also for readers that split at all of them.
        first, second = out.decode().splitlines()

        assert json.loads(first)["source"] == "puke\u2028kuse\x0cta\u0085momu\rta"
        assert json.loads(second)["source"] == "ta"

    def test_empty_input_is_empty_output(
        self, sft_run: Path, translate: Translate
    ) -> None:
        assert translate(sft_run)[:2] == (0, b"")


class TestFaults:
    def test_lines_before_invalid_one_are_kept(
        self, sft_run: Path, translate: Translate
    ) -> None:
        expected = translate(sft_run, stdin=b"puke\nta\n")[1]

        status, out, err = translate(sft_run, stdin=b"puke\nta\n\xff\nkuse\n")

        assert status == 2
        assert out == expected

        assert "Line 3 of `standard input` is not valid UTF-8 at byte 1" in err
        assert "Traceback" not in err

    def test_lines_before_long_one_are_kept(
        self, sft_run: Path, translate: Translate
    ) -> None:
        expected = translate(sft_run, stdin=b"puke\nta\n")[1]

        stdin = b"puke\nta\n" + b"puke " * 600 + b"\nta\n"

        status, out, err = translate(sft_run, stdin=stdin)

        assert status == 2
        assert out == expected

        assert "Line 3 of standard input has " in err
        assert "or cut it with `--truncate`" in err

        status, out, _ = translate(sft_run, "--truncate", stdin=stdin)

        assert status == 0
        assert out.count(b"\n") == 4

    def test_lines_before_long_beginning_are_kept(
        self, warmup_run: Path, translate: Translate
    ) -> None:
        expected = translate(warmup_run, stdin=b"puke\nta\n")[1]

        stdin = b"puke\nta\nkuse\t" + b"puke " * 600 + b"\nta\n"

        status, out, err = translate(warmup_run, "--prefixes", stdin=stdin)

        assert status == 2
        assert out == expected

        assert "Line 3 of standard input has a translation that is to begin with" in err

    def test_interrupted_job_says_what_is_kept(
        self,
        tmp_path: Path,
        warmup_run: Path,
        translate: Translate,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        text = tmp_path / "in.txt"

        text.write_text(TEXT)

        output = tmp_path / "out.txt"

        original = Translator.__call__

        def interrupt(self: Any, lines: Any, on_batch: Any = None) -> Any:
            if 4 in [line.number for line in lines]:
                raise KeyboardInterrupt

            return original(self, lines, on_batch)

        monkeypatch.setattr(Translator, "__call__", interrupt)

        # fairseq2 ends the process as the signal would.
        monkeypatch.setattr(cli, "signal", lambda *args: None)

        monkeypatch.setattr(cli, "raise_signal", lambda signum: sys.exit(128 + signum))

        args: list[object] = [text, "--chunk-size", 2, "--output", output]

        status, _, err = translate(warmup_run, *args)

        assert status == 130

        assert f"4 lines are kept in {output}.partial; the same command goes on" in err

        # To standard output nothing is kept.
        assert "kept" not in translate(warmup_run, *args[:3])[2]

    def test_stopped_job_has_not_made_its_output(
        self,
        tmp_path: Path,
        warmup_run: Path,
        translate: Translate,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        text, output = tmp_path / "in.txt", tmp_path / "out.txt"

        text.write_text(TEXT)

        # Of an earlier time.
        output.write_text("ta\n")

        original = Translator.__call__

        def stop(self: Any, lines: Any, on_batch: Any = None) -> Any:
            if 2 in [line.number for line in lines]:
                signal.raise_signal(signal.SIGUSR1)

            return original(self, lines, on_batch)

        monkeypatch.setattr(Translator, "__call__", stop)

        args: list[object] = [text, "--chunk-size", 2, "--output", output]

        status, _, err = translate(warmup_run, *args)

        assert status == 2

        assert "ERROR: The job was stopped before its end (SIGUSR1); 4 lines" in err

        # What tells that the run has made the file.
        assert list(tmp_path.glob("*origin*")) == []

        monkeypatch.undo()

        assert translate(warmup_run, *args)[0] == 0

        assert len(output.read_text().splitlines()) == len(TEXT.splitlines())
        assert len(list(tmp_path.glob("*origin*"))) == 1

    @pytest.mark.parametrize("as_json", [False, True])
    def test_broken_job_goes_on(
        self,
        tmp_path: Path,
        warmup_run: Path,
        translate: Translate,
        monkeypatch: pytest.MonkeyPatch,
        as_json: bool,
    ) -> None:
        text = tmp_path / "in.txt"

        text.write_text(TEXT)

        flags = ["--jsonl"] if as_json else []

        args: list[object] = [text, "--chunk-size", 2, *flags]

        expected = translate(warmup_run, *args)[1]

        output = tmp_path / "out.txt"

        args += ["--output", output]

        original = Translator.__call__

        seen: list[int] = []

        def fail(self: Any, lines: Any, on_batch: Any = None) -> Any:
            seen.extend(line.number for line in lines)

            # As if it was killed: what is in the files then is what counts.
            if 4 in [line.number for line in lines]:
                raise SystemExit(3)

            return original(self, lines, on_batch)

        with monkeypatch.context() as patch:
            patch.setattr(Translator, "__call__", fail)

            assert translate(warmup_run, *args)[0] != 0

        assert not output.exists()

        partial = tmp_path / "out.txt.partial"

        # What was written of the next chunk before the end is written again.
        with partial.open("ab") as fp:
            fp.write(b"half a li")

        seen.clear()

        def watch(self: Any, lines: Any, on_batch: Any = None) -> Any:
            seen.extend(line.number for line in lines)

            return original(self, lines, on_batch)

        monkeypatch.setattr(Translator, "__call__", watch)

        status, out, err = translate(warmup_run, *args)

        assert (status, out) == (0, b"")
        assert "3 lines in " in err and "4 done before" in err

        assert seen == [4, 5, 6]
        assert output.read_bytes() == expected

        assert sorted(f.name for f in tmp_path.iterdir()) == [
            "in.txt",
            "out.txt",
            "out.txt.origin.json",
        ]

    def test_output_of_other_job_is_left_alone(
        self, tmp_path: Path, sft_run: Path, translate: Translate
    ) -> None:
        output = tmp_path / "out.txt"

        partial = tmp_path / "out.txt.partial"

        with partial.open("wb") as fp:
            fcntl.flock(fp, fcntl.LOCK_EX)

            fp.write(b"other\n")
            fp.flush()

            status, _, err = translate(sft_run, "--output", output, stdin=b"puke\n")

            assert status == 2
            assert f"Another job is writing `{output}`" in err
            assert partial.read_bytes() == b"other\n"

        assert translate(sft_run, "--output", output, stdin=b"puke\n")[0] == 0

        assert output.read_bytes().count(b"\n") == 1

    @pytest.fixture
    def broken_job(
        self,
        tmp_path: Path,
        sft_run: Path,
        translate: Translate,
    ) -> Iterator[list[object]]:
        """The arguments of a job that broke behind its second line."""
        text = tmp_path / "in.txt"

        text.write_bytes(b"puke\nta\n\xff\n")

        args = [text, "--output", tmp_path / "out.txt"]

        assert translate(sft_run, *args)[0] == 2

        text.write_bytes(b"puke\nta\nkuse\n")

        yield args

    def test_job_with_other_settings_is_not_mixed(
        self,
        tmp_path: Path,
        sft_run: Path,
        translate: Translate,
        broken_job: list[object],
    ) -> None:
        status, _, err = translate(sft_run, *broken_job, "--beam-size", 2)

        assert status == 2
        assert "had other settings (beam_size)" in err

        state = tmp_path / "out.txt.state"

        assert f"or delete `{state}`" in err

        state.unlink()

        assert translate(sft_run, *broken_job, "--beam-size", 2)[0] == 0

    def test_job_with_other_input_is_not_mixed(
        self,
        tmp_path: Path,
        sft_run: Path,
        translate: Translate,
        broken_job: list[object],
    ) -> None:
        text = tmp_path / "in.txt"

        for content in (b"puke\nmomu\nkuse\n", b"puke\n"):
            text.write_bytes(content)

            status, _, err = translate(sft_run, *broken_job)

            assert status == 2
            assert "The first 2 lines of the input are not those" in err

        text.write_bytes(b"puke\nta\nkuse\n")

        assert translate(sft_run, *broken_job)[0] == 0

        assert (tmp_path / "out.txt").read_bytes().count(b"\n") == 3

    def test_lost_part_is_made_again(
        self,
        tmp_path: Path,
        sft_run: Path,
        translate: Translate,
        broken_job: list[object],
    ) -> None:
        (tmp_path / "out.txt.partial").write_bytes(b"x")

        assert translate(sft_run, *broken_job)[0] == 0

        expected = translate(sft_run, tmp_path / "in.txt")[1]

        assert (tmp_path / "out.txt").read_bytes() == expected

    @pytest.mark.skipif(
        not Path("/dev/full").exists(), reason="there is no `/dev/full` here"
    )
    def test_full_disk_is_one_sentence(
        self,
        sft_run: Path,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"puke\n")))

        with open("/dev/full", "w") as full:
            monkeypatch.setattr(sys, "stdout", full)

            status = main(["translate", str(sft_run), "--no-rich"])

            monkeypatch.undo()

        assert status == 2

        err = capfd.readouterr().err

        assert "Standard output cannot be written (No space left on device)" in err
        assert "from line 1 on" in err
        assert "Traceback" not in err

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (["--output", "/dev/null"], "The output `/dev/null` is no regular file"),
            (["--chunk-size", 0], "`--chunk-size` must be greater than or equal to 1"),
            (["--config", "max_num_tokens=0"], "`max_num_tokens` must be greater than"),
            (["--config", "chunk_size=-1"], "`chunk_size` must be greater than or eq"),
        ],
    )
    def test_mistake_is_one_sentence(
        self,
        sft_run: Path,
        translate: Translate,
        args: list[object],
        message: str,
    ) -> None:
        status, _, err = translate(sft_run, *args, stdin=b"puke\n")

        assert status == 2
        assert message in err

    def test_missing_weights_are_one_sentence(
        self, tmp_path: Path, sft_run: Path, translate: Translate
    ) -> None:
        run = shutil.copytree(sft_run, tmp_path / "run")

        run_dir = RunDir(run)

        folder = run_dir.model_path(run_dir.find_checkpoint("best"))

        for file in folder.rglob("*.pt"):
            file.unlink()

        for args in ([run], [sft_run, "--ensemble", run]):
            status, _, err = translate(*args, stdin=b"puke\n")

            assert status == 2
            assert f"`{folder}` holds no weights; restore it from a copy" in err

    def test_missing_file_is_one_sentence(
        self, tmp_path: Path, sft_run: Path, translate: Translate
    ) -> None:
        status, out, err = translate(sft_run, tmp_path / "nope.txt")

        assert (status, out) == (2, b"")
        assert (
            f"error: The input file `{tmp_path / 'nope.txt'}` does not exist; correct it, or name none"
            in err
        )

    def test_run_without_checkpoint_is_one_sentence(
        self, tmp_path: Path, translate: Translate
    ) -> None:
        status, _, err = translate(tmp_path, stdin=b"a\n")

        assert status == 2
        assert "is not a run directory" in err


def test_json_is_one_line_for_all_readers() -> None:
    line = to_json_line({"a": "x\u2028y\u2029z\x85\t\n"})

    assert len(line.splitlines()) == 1

    assert json.loads(line) == {"a": "x\u2028y\u2029z\x85\t\n"}


class TestEnsemble:
    def test_other_models_have_their_say(
        self, tmp_path: Path, warmup_run: Path, translate: Translate
    ) -> None:
        def get_log_probs(*args: object) -> list[float]:
            status, out, err = translate(
                warmup_run, "--jsonl", *args, stdin=b"puke\nta"
            )

            assert status == 0, err

            return [json.loads(line)["log_prob"] for line in out.splitlines()]

        alone = get_log_probs()

        assert get_log_probs("--ensemble", warmup_run) == pytest.approx(alone)

        other = tmp_path / "other"

        shutil.copytree(warmup_run, other)

        run_dir = RunDir(other)

        step_nr = run_dir.find_checkpoint("best")

        weights = load_weights(run_dir, step_nr)

        # Whatever was learned, it has half of it.
        halves = {name: weight / 2 for name, weight in weights.items()}

        shutil.rmtree(run_dir.model_path(step_nr))

        write_weights(run_dir, step_nr, halves)

        together = get_log_probs("--ensemble", other, warmup_run)

        assert together != pytest.approx(alone)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ([], "say with `--plain-weight`, such as 0.3, how much it counts"),
            (["--backend", "ctranslate2"], "`--ensemble` is not for"),
        ],
    )
    def test_what_does_not_go_together_is_refused(
        self,
        options: list[str],
        message: str,
        sft_run: Path,
        warmup_run: Path,
        translate: Translate,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def convert_run(*args: object, **options: object) -> Path:
            raise AssertionError("what is refused is not converted before")

        monkeypatch.setattr(
            "warmup_plugin.interop.ctranslate2.convert_run", convert_run
        )

        status, _, err = translate(
            warmup_run, "--ensemble", sft_run, *options, stdin=b"ta"
        )

        assert status == 2 and message in err and err.count("error") == 1

    def test_labels_are_ranked_by_runs_of_one_kind(
        self, tmp_path: Path, sft_run: Path, warmup_run: Path, translate: Translate
    ) -> None:
        other = shutil.copytree(warmup_run, tmp_path / "other")

        config: dict[str, Any] = RunDir(other).load_config()

        config["validation"]["labels"] = ["ta", "momu"]

        (other / "run.yaml").write_text(dump_yaml(config), "utf-8")

        status, _, err = translate(
            other, "--rank-labels", "--ensemble", sft_run, stdin=b"ta"
        )

        assert status == 2 and "Labels are ranked by runs of one kind" in err

    def test_warmups_of_another_kind_are_refused(
        self, tmp_path: Path, sft_run: Path, warmup_run: Path, translate: Translate
    ) -> None:
        status, _, err = translate(sft_run, "--ensemble", warmup_run, stdin=b"ta")

        assert status == 2 and "name the one with warmups first" in err

        other = shutil.copytree(warmup_run, tmp_path / "other")

        text = (other / "run.yaml").read_text("utf-8")

        (other / "run.yaml").write_text(
            text.replace("plain_path: empty", "plain_path: bare"), "utf-8"
        )

        status, _, err = translate(warmup_run, "--ensemble", other, stdin=b"ta")

        assert status == 2 and "has warmups of another kind than that in" in err

    def test_sft_run_has_its_say_behind_a_warmup(
        self, sft_run: Path, warmup_run: Path, translate: Translate
    ) -> None:
        def write(*args: object) -> list[dict[str, Any]]:
            status, out, err = translate(
                *(warmup_run, "--jsonl", "--warmup", "beam-then-beam", *args),
                stdin=b"puke\nta",
            )

            assert status == 0, err

            return [json.loads(line) for line in out.splitlines()]

        alone = write()

        own = write("--plain-weight", 0.3)

        of_sft = write("--plain-weight", 0.3, "--ensemble", sft_run)

        # More of it says more.
        more = write("--plain-weight", 0.9, "--ensemble", sft_run)

        log_probs = [[x["log_prob"] for x in lines] for lines in (alone, own, of_sft)]

        assert len({tuple(values) for values in log_probs}) == 3

        assert more != of_sft

        for lines in (own, of_sft, more):
            assert [x["warmup"] for x in lines] == [x["warmup"] for x in alone]

    def test_weight_of_plain_way_alone_writes_warmups_first(
        self, warmup_run: Path, translate: Translate
    ) -> None:
        first = translate(warmup_run, "--plain-weight", 0.3, stdin=b"ta")

        second = translate(
            *(warmup_run, "--plain-weight", 0.3, "--warmup", "beam-then-beam"),
            stdin=b"ta",
        )

        assert first[:2] == second[:2] and first[0] == 0

        status, _, err = translate(
            warmup_run, "--plain-weight", 0.3, "--warmup", "single", stdin=b"ta"
        )

        assert status == 2 and "set `--warmup` to" in err

    def test_plain_way_that_was_not_learned_is_refused(
        self, tmp_path: Path, sft_run: Path, warmup_run: Path, translate: Translate
    ) -> None:
        run = tmp_path / "run"

        shutil.copytree(warmup_run, run)

        config = run / "run.yaml"

        text = config.read_text(encoding="utf-8")

        assert text.count("plain_path: empty") == 1

        config.write_text(
            text.replace("plain_path: empty", "plain_path: bare"), encoding="utf-8"
        )

        status, _, err = translate(run, "--plain-weight", 0.3, stdin=b"ta")

        assert status == 2 and "name an SFT run to hear instead" in err

        status, _, err = translate(
            run, "--plain-weight", 0.3, "--ensemble", sft_run, stdin=b"ta"
        )

        assert status == 0, err

    def test_job_knows_a_model_that_was_trained_anew(self, tmp_path: Path) -> None:
        members = [ReferenceModelSection(path=tmp_path)]

        before = describe_members("ensemble", members)

        os.utime(tmp_path, (1, 1))

        assert describe_members("ensemble", members) != before
        assert describe_members("ensemble", members) == {
            "ensemble": [[str(tmp_path), 1.0]]
        }
        assert describe_members("ensemble", []) == {}

    def test_tokenizer_is_the_same(
        self, tmp_path: Path, warmup_run: Path, translate: Translate
    ) -> None:
        other = tmp_path / "other"

        shutil.copytree(warmup_run, other)

        tokenizer = RunDir(other).tokenizer_path

        assert tokenizer is not None and tokenizer.is_file()

        tokenizer.write_bytes(tokenizer.read_bytes() + b"\n")

        status, _, err = translate(warmup_run, "--ensemble", other, stdin=b"ta")

        assert status == 2 and "has another tokenizer than that in" in err
