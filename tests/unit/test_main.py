# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from types import ModuleType

import pytest

from warmup_plugin import __version__
from warmup_plugin.__main__ import COMMANDS, main
from warmup_plugin.errors import WarmupError


def set_recipe(
    monkeypatch: pytest.MonkeyPatch, status: int | BaseException
) -> list[object]:
    """Replaces the train recipe with one that returns or raises ``status``."""
    calls: list[object] = []

    def run(argv: object) -> int:
        calls.append(argv)

        if isinstance(status, BaseException):
            raise status

        return status

    module = ModuleType("warmup_plugin.recipes.train")

    setattr(module, "main", run)

    monkeypatch.setitem(sys.modules, "warmup_plugin.recipes.train", module)

    return calls


class TestMain:
    def test_call_passes_arguments_of_recipes_through(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls = set_recipe(monkeypatch, 3)

        args = ["OUT", "--help", "--config", "a.b=c"]

        assert main(["train", *args]) == 3
        assert calls == [args]

    def test_call_reads_arguments_of_process(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls = set_recipe(monkeypatch, 0)

        monkeypatch.setattr(sys, "argv", ["prog", "train", "OUT"])

        assert main() == 0
        assert calls == [["OUT"]]

    def test_call_prints_one_line_when_input_is_bad(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        set_recipe(monkeypatch, WarmupError("The file `x` is bad; mend it."))

        assert main(["train"]) == 2
        assert capsys.readouterr().err == "error: The file `x` is bad; mend it.\n"

    def test_call_returns_130_when_interrupted(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        set_recipe(monkeypatch, KeyboardInterrupt())

        assert main(["train"]) == 130

    def test_call_lets_unexpected_error_through(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        set_recipe(monkeypatch, RuntimeError("a bug"))

        with pytest.raises(RuntimeError, match="a bug"):
            main(["train"])

    def test_call_prints_help_when_there_is_no_command(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main([]) == 2

        out = capsys.readouterr().out

        for name in COMMANDS:
            assert f"\n  {name} " in out

    def test_call_exits_with_2_when_command_is_not_known(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit, match="2"):
            main(["foo"])

        err = capsys.readouterr().err

        assert "invalid choice: 'foo'" in err and "doctor" in err

    def test_call_prints_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit, match="0"):
            main(["--version"])

        assert capsys.readouterr().out == f"warmup_plugin {__version__}\n"

    def test_every_command_exists(self) -> None:
        for command in COMMANDS.values():
            assert find_spec(command.module) is not None, command.module

    def test_help_imports_nothing_heavy(self) -> None:
        code = """if True:
            import sys

            from warmup_plugin.__main__ import main

            for args in (["--help"], ["doctor", "--help"], ["train-tokenizer", "-h"]):
                try:
                    main(args)
                except SystemExit as ex:
                    assert ex.code == 0

            assert not {"torch", "fairseq2", "numpy"} & set(sys.modules)
            """

        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)

    def test_process_is_quiet_when_reader_of_output_has_left(self) -> None:
        code = """if True:
            import sys
            from types import ModuleType

            from warmup_plugin.__main__ import main

            def run(argv):
                print("a line")
                return 0

            module = ModuleType("warmup_plugin.recipes.train")
            module.main = run
            sys.modules["warmup_plugin.recipes.train"] = module

            sys.stdin.read()
            sys.exit(main(["train"]))
            """

        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

        with process:
            assert process.stdin and process.stdout and process.stderr

            process.stdout.close()
            process.stdin.close()

            assert process.stderr.read() == b""
            assert process.wait() == 141
