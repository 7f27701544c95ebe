# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

from tests.tiny_runs import ROOT
from warmup_plugin import __version__
from warmup_plugin.__main__ import COMMANDS, find_module, main
from warmup_plugin.errors import WarmupError

LIGHT_SCRIPTS = [
    *("run_suite.py", "filter_pairs.py", "demo.py"),
    *sorted(file.name for file in (ROOT / "scripts").glob("prepare_*.py")),
]


def assert_light(file: Path) -> None:
    """Asserts that the help of a program is there without what takes long to import."""
    code = f"""if True:
        import runpy
        import sys

        sys.argv = [{str(file)!r}, "--help"]

        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as ex:
            assert ex.code == 0

        assert not {{"torch", "fairseq2", "transformers"}} & set(sys.modules)
        """

    process = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )

    assert process.stdout.startswith("usage: ")


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

    module = ModuleType("warmup_plugin.commands.train")

    setattr(module, "main", run)

    monkeypatch.setitem(sys.modules, "warmup_plugin.commands.train", module)

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
        for name in COMMANDS:
            assert find_spec(find_module(name)) is not None, name

    def test_help_imports_nothing_heavy(self) -> None:
        # Seconds each. A mistyped option is answered as fast.
        calls = [[name, "--help"] for name in COMMANDS]

        calls += [[name, "--nope"] for name in COMMANDS]

        calls += [["--help"], ["train", "--list-presets"]]

        code = f"""if True:
            import sys

            from warmup_plugin.__main__ import main

            for args in {calls}:
                try:
                    main(args)
                except SystemExit as ex:
                    assert ex.code == (2 if "--nope" in args else 0), args
                else:
                    assert False, args

                assert not {{"torch", "fairseq2", "transformers"}} & set(sys.modules)
            """

        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)

    @pytest.mark.parametrize("name", ["train", "generate", "evaluate"])
    def test_help_of_recipes_imports_nothing_heavy(self, name: str) -> None:
        assert_light(ROOT / "recipes" / f"{name}.py")

    @pytest.mark.parametrize("name", LIGHT_SCRIPTS)
    def test_help_of_scripts_imports_nothing_heavy(self, name: str) -> None:
        assert_light(ROOT / "scripts" / name)

    def test_process_is_quiet_when_reader_of_output_has_left(self) -> None:
        code = """if True:
            import sys
            from types import ModuleType

            from warmup_plugin.__main__ import main

            def run(argv):
                print("a line")
                return 0

            module = ModuleType("warmup_plugin.commands.train")
            module.main = run
            sys.modules["warmup_plugin.commands.train"] = module

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
