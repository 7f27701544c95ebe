# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""The client, against small programs that answer in the place of a worker."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Final

import pytest

from warmup_plugin.metrics.comet import client, worker
from warmup_plugin.metrics.comet.client import (
    CometClient,
    CometRequestError,
    CometUnavailable,
    find_comet_python,
)

HEAD: Final = f"""#!{sys.executable}
import json, os, signal, sys, time, zlib

def send(reply):
    print(json.dumps(reply), flush=True)

def ready(requires_references=False):
    send(
        {{
            "ready": True,
            "versions": {{"unbabel-comet": "2.2.7"}},
            "requires_references": requires_references,
            "uses_references": True,
        }}
    )

def read():
    return json.loads(sys.stdin.readline() or sys.exit())

"""

COUNT: Final = """
ready()
while True:
    request = read()
    scores = [10_000 * request["id"] + int(s["mt"]) for s in request["samples"]]
    send({"id": request["id"], "scores": scores})
"""
"""Tells the number of the request and the hypothesis, which is a number."""


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with nothing in it."""
    folder = tmp_path_factory.mktemp("venv")

    command = [sys.executable, "-m", "venv", "--without-pip", str(folder)]

    subprocess.run(command, check=True)

    return folder / "bin" / "python"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """What looks like the checkpoint of a model."""
    file = tmp_path / "model" / "checkpoints" / "model.ckpt"

    file.parent.mkdir(parents=True)

    file.touch()

    (tmp_path / "model" / "hparams.yaml").touch()

    return file


def write_worker(tmp_path: Path, code: str) -> Path:
    """Writes an interpreter that runs the code instead of the worker."""
    file = tmp_path / "python"

    file.write_text(HEAD + code)

    file.chmod(0o755)

    return file


def is_alive(pid_file: Path) -> bool:
    try:
        os.kill(int(pid_file.read_text()), 0)
    except ProcessLookupError:
        return False

    return True


class TestScore:
    def test_call_keeps_order_over_several_requests(
        self, tmp_path: Path, model: Path
    ) -> None:
        numbers = [(7 * n) % 1100 for n in range(1100)]

        with CometClient(write_worker(tmp_path, COUNT), model) as client:
            scores = client.score(["x"] * 1100, [str(n) for n in numbers])

            # Nothing is asked.
            assert client.score([], []) == []

            assert client.score(["x"], ["7"]) == [40_007.0]

        expected = [10_000 * (1 + i // 512) + n for i, n in enumerate(numbers)]

        assert scores == expected

    def test_text_arrives_as_it_is(self, tmp_path: Path, model: Path) -> None:
        python = write_worker(
            tmp_path,
            """
ready()
while True:
    request = read()
    scores = [zlib.crc32(repr(sorted(s.items())).encode()) for s in request["samples"]]
    send({"id": request["id"], "scores": scores})
""",
        )

        texts = ["a\nb", "a\r\nb", "\u2028\u0085\t", "\0", "", "\U0001f600é", '"\\n"']

        with CometClient(python, model) as client:
            scores = client.score(texts, texts[::-1])

            scores_with_references = client.score(texts, texts[::-1], ["r"] * 7)

        pairs = list(zip(texts, texts[::-1]))

        assert scores == [
            zlib.crc32(repr([("mt", mt), ("src", src)]).encode()) for src, mt in pairs
        ]

        assert scores_with_references == [
            zlib.crc32(repr([("mt", mt), ("ref", "r"), ("src", src)]).encode())
            for src, mt in pairs
        ]

    def test_much_that_worker_writes_elsewhere_blocks_nothing(
        self, tmp_path: Path, model: Path
    ) -> None:
        noise = "print('noise' * 20, file=sys.stderr, flush=True)"

        python = write_worker(
            tmp_path, f"for _ in range(5000): {noise}\n" + COUNT.strip()
        )

        with CometClient(python, model, start_timeout=30.0) as client:
            assert client.score(["x"], ["1"]) == [10_001.0]

    def test_call_raises_error_when_references_are_missing(
        self, tmp_path: Path, model: Path
    ) -> None:
        python = write_worker(tmp_path, COUNT.replace("ready()", "ready(True)"))

        with CometClient(python, model) as client:
            assert client.requires_references

            with pytest.raises(CometRequestError, match="needs references"):
                client.score(["x"], ["1"])

            assert client.score(["x"], ["1"], ["2"]) == [10_001.0]

    @pytest.mark.parametrize(
        ("hypotheses", "references", "message"),
        [
            (["1", None], ["r", "r"], "hypotheses of COMET must be strings, but number 2 is None"),  # fmt: skip
            (["1", 2], ["r", "r"], "hypotheses of COMET must be strings, but number 2 is 2"),  # fmt: skip
            (["1", "2"], ["r", None], "references of COMET must be strings, but number 2"),  # fmt: skip
            ("12", ["r", "r"], "hypotheses of COMET must be a list of strings"),
            (["1"], ["r", "r"], "2 sources, 1 hypotheses, 2 references"),
            (["1", "2"], ["r"], "2 sources, 2 hypotheses, 1 references"),
            ([], None, "2 sources, 0 hypotheses"),
        ],
    )
    def test_call_raises_error_before_it_asks(
        self,
        tmp_path: Path,
        model: Path,
        hypotheses: list[str],
        references: list[str] | None,
        message: str,
    ) -> None:
        with CometClient(write_worker(tmp_path, COUNT), model) as client:
            with pytest.raises(CometRequestError, match=message):
                client.score(["a", "b"], hypotheses, references)

            # The first request.
            assert client.score(["x"], ["1"]) == [10_001.0]

    def test_worker_is_asked_again_after_it_refused(
        self, tmp_path: Path, model: Path
    ) -> None:
        python = write_worker(
            tmp_path,
            """
ready()
send({"id": read()["id"], "error": "COMET cannot score these sentences: no."})
send({"id": read()["id"], "scores": [0.5]})
""",
        )

        with CometClient(python, model) as client:
            with pytest.raises(CometRequestError, match="^COMET cannot .* no.$"):
                client.score(["x"], ["y"])

            assert client.score(["x"], ["y"]) == [0.5]

    def test_call_raises_error_when_worker_is_killed(
        self, tmp_path: Path, model: Path
    ) -> None:
        python = write_worker(
            tmp_path, "ready()\nread()\nos.kill(os.getpid(), signal.SIGKILL)"
        )

        with CometClient(python, model) as client:
            for _ in range(2):
                with pytest.raises(CometUnavailable) as info:
                    client.score(["x", "x"], ["y", "y"])

                assert str(info.value) == (
                    "The COMET worker was ended by SIGKILL while scoring 2 sentence(s); "
                    "it may have run out of memory, which a smaller `batch_size` saves."
                )

    def test_call_raises_error_with_last_words_of_worker(
        self, tmp_path: Path, model: Path
    ) -> None:
        python = write_worker(tmp_path, "ready()\nread()\nraise OSError('no space')")

        message = (
            "ended with status 1 while .* and last wrote: OSError: no space; check"
        )

        with CometClient(python, model) as client:
            with pytest.raises(CometUnavailable, match=message) as info:
                client.score(["x"], ["y"])

            assert "Traceback" not in str(info.value)

    def test_call_raises_error_when_worker_died_before(
        self, tmp_path: Path, model: Path
    ) -> None:
        with CometClient(write_worker(tmp_path, "ready()"), model) as client:
            time.sleep(0.2)

            # More than a pipe holds.
            with pytest.raises(
                CometUnavailable, match="ended with status 0 while scor"
            ):
                client.score(["x"], ["y" * 1_000_000])

    def test_call_raises_error_when_time_is_up(
        self, tmp_path: Path, model: Path
    ) -> None:
        python = write_worker(
            tmp_path,
            f"""
open({str(tmp_path / "pid")!r}, "w").write(str(os.getpid()))
ready()
read()
time.sleep(60)
""",
        )

        with CometClient(python, model, timeout=0.2) as client:
            with pytest.raises(CometUnavailable, match="ended after 0.2 seconds"):
                client.score(["x"], ["y"])

            assert not is_alive(tmp_path / "pid")

            with pytest.raises(CometUnavailable, match="ended by SIGKILL"):
                client.score(["x"], ["y"])


class TestStart:
    def test_client_tells_what_worker_told(self, tmp_path: Path, model: Path) -> None:
        with CometClient(write_worker(tmp_path, COUNT), model) as client:
            assert client.versions == {"unbabel-comet": "2.2.7"}
            assert client.requires_references is False

    def test_worker_gets_arguments(
        self, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        python = write_worker(
            tmp_path, 'send({"ready": False, "error": json.dumps(sys.argv[1:])})'
        )

        monkeypatch.chdir(tmp_path)

        cases: dict[str | Path, list[str]] = {
            model: ["--checkpoint", str(model)],
            model.parents[1]: ["--checkpoint", str(model)],
            # The worker may be elsewhere.
            "model": ["--checkpoint", str(model)],
            "Unbabel/wmt22-comet-da": ["--hub-name", "Unbabel/wmt22-comet-da"],
            Path("a/b"): ["--hub-name", "a/b"],
        }

        for name, expected in cases.items():
            with pytest.raises(CometUnavailable) as info:
                CometClient(python, name, gpus=1, batch_size=3)

            args = json.loads(str(info.value))

            assert args[:3] == ["-I", "-X", "utf8"]

            assert Path(args[3]).name == "worker.py"

            assert args[4:] == [*expected, "--gpus", "1", "--batch-size", "3"]

    @pytest.mark.parametrize(
        "name", ["nowhere/at/all", "nowhere/model.ckpt", "nowhere", "/nowhere/x", ""]
    )
    def test_init_raises_error_when_model_is_not_there(
        self, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "empty").mkdir()

        monkeypatch.chdir(tmp_path / "empty")

        with pytest.raises(CometUnavailable, match="does not exist; give a checkpoint"):
            CometClient(write_worker(tmp_path, COUNT), name)

    def test_init_raises_error_when_hparams_are_not_there(
        self, tmp_path: Path, model: Path
    ) -> None:
        hparams_file = model.parents[1] / "hparams.yaml"

        hparams_file.unlink()

        with pytest.raises(CometUnavailable, match=f"lacks {hparams_file}"):
            CometClient(write_worker(tmp_path, COUNT), model)

    def test_init_raises_error_when_python_is_not_there(
        self, tmp_path: Path, model: Path
    ) -> None:
        python = tmp_path / "bin" / "python"

        with pytest.raises(CometUnavailable, match=f"{python}; build .*`make comet`"):
            CometClient(python, model)

        python.parent.mkdir()

        python.touch()

        message = f"^{python} cannot be run for COMET .Permission denied.; build "

        with pytest.raises(CometUnavailable, match=message):
            CometClient(python, model)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"gpus": 2}, "`gpus` must be 0 or 1 .* but is 2"),
            ({"batch_size": 0}, "`batch_size` must be .* but is 0"),
        ],
    )
    def test_init_raises_error_when_option_is_out_of_range(
        self, tmp_path: Path, model: Path, options: dict[str, int], message: str
    ) -> None:
        with pytest.raises(CometUnavailable, match=message):
            CometClient(write_worker(tmp_path, COUNT), model, **options)

    def test_init_raises_error_when_time_is_up(
        self, tmp_path: Path, model: Path
    ) -> None:
        python = write_worker(
            tmp_path,
            f"""
open({str(tmp_path / "pid")!r}, "w").write(str(os.getpid()))
time.sleep(60)
""",
        )

        message = "ended after 0.5 seconds without an answer while loading its model"

        with pytest.raises(CometUnavailable, match=message):
            CometClient(python, model, start_timeout=0.5)

        assert not is_alive(tmp_path / "pid")

    def test_init_raises_error_when_it_is_no_worker(
        self, tmp_path: Path, model: Path
    ) -> None:
        with pytest.raises(CometUnavailable, match="does not run the COMET worker"):
            CometClient(write_worker(tmp_path, "print('Hello')"), model)

        message = "ended with status 7 while loading its model; check its .*`.$"

        with pytest.raises(CometUnavailable, match=message):
            CometClient(write_worker(tmp_path, "sys.exit(7)"), model)


class TestClose:
    CODE: Final = """
open({pid_file!r}, "w").write(str(os.getpid()))
ready()
{rest}
"""

    def test_close_ends_worker(self, tmp_path: Path, model: Path) -> None:
        code = self.CODE.format(pid_file=str(tmp_path / "pid"), rest="read()")

        with CometClient(write_worker(tmp_path, code), model):
            assert is_alive(tmp_path / "pid")

        assert not is_alive(tmp_path / "pid")

    def test_exit_does_not_wait_when_interrupted(
        self, tmp_path: Path, model: Path
    ) -> None:
        rest = "time.sleep(60)"

        code = self.CODE.format(pid_file=str(tmp_path / "pid"), rest=rest)

        begin = time.monotonic()

        with pytest.raises(KeyboardInterrupt):
            with CometClient(write_worker(tmp_path, code), model):
                raise KeyboardInterrupt

        assert time.monotonic() - begin < 5

        assert not is_alive(tmp_path / "pid")


class TestFindCometPython:
    def test_call_returns_what_variable_names(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WARMUP_COMET_PYTHON", str(tmp_path / "python"))

        assert find_comet_python() == tmp_path / "python"

    def test_call_finds_environment_of_the_clone_alone(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("WARMUP_COMET_PYTHON", raising=False)

        for name in ("clone", "anywhere"):
            python = tmp_path / name / ".venv-comet" / "bin" / "python"

            python.parent.mkdir(parents=True)

            # Where it points to is an interpreter without the packages.
            python.symlink_to(sys.executable)

        clone = tmp_path / "clone"

        worker_file = clone / "warmup_plugin" / "metrics" / "comet" / "worker.py"

        monkeypatch.setattr(client, "_WORKER", worker_file)

        monkeypatch.chdir(tmp_path / "anywhere")

        assert find_comet_python() == clone / ".venv-comet" / "bin" / "python"

        monkeypatch.setattr(client, "_WORKER", tmp_path / "b" / "c" / "d" / "e" / "f")

        assert find_comet_python() is None


class TestWorker:
    """The worker itself, as far as it comes without COMET."""

    def test_start_fails_when_packages_are_missing(
        self, bare_python: Path, model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Must not be of use there.
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))

        with pytest.raises(CometUnavailable) as info:
            CometClient(bare_python, model)

        assert re.fullmatch(
            r"The environment of COMET, \S+, is incomplete \(ModuleNotFoundError: No "
            r"module named 'comet'\); build it anew by `make comet`, or install what "
            r"\S+/requirements.txt lists.",
            str(info.value),
        )

    def test_channels_are_its_own(self, bare_python: Path) -> None:
        code = """
import os, runpy, subprocess, sys

worker = runpy.run_path(sys.argv[1])
requests, replies = worker["take_channels"]()
print("a library prints")
os.write(1, b"a C library prints")
subprocess.run(["echo", "a program prints"])
assert sys.stdin.read() == ""
worker["send"](replies, {"line": requests.readline()})
"""

        process = subprocess.run(
            [bare_python, "-c", code, worker.__file__],
            input="a request\n",
            capture_output=True,
            text=True,
            check=True,
        )

        assert process.stdout == '{"line": "a request\\n"}\n'

        assert process.stderr.count("prints") == 3
