# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import EntryPoint, PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest

from warmup_plugin.commands import doctor
from warmup_plugin.commands.doctor import CHECKS, Finding, examine, format_finding
from warmup_plugin.metrics.comet import client


def one(findings: Iterable[Finding]) -> Finding:
    (finding,) = findings

    return finding


def run(*findings: Finding) -> Callable[[], Iterable[Finding]]:
    def check_something() -> Iterable[Finding]:
        return findings

    return check_something


class FakeResolver:
    def __init__(self, *keys: str) -> None:
        self.keys = keys

    def iter_keys(self, kls: type[object]) -> Iterator[object]:
        return iter(self.keys)


def make_entry_point(value: str) -> EntryPoint:
    return EntryPoint("warmup_plugin", value, "fairseq2.extension")


class TestRun:
    def test_call_returns_zero_when_there_is_no_problem(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        checks = [run(Finding("ok", "a", "fine")), run(Finding("note", "b", "absent"))]

        monkeypatch.setattr(doctor, "CHECKS", checks)

        assert doctor.run(argparse.Namespace()) == 0

        lines = capsys.readouterr().out.splitlines()

        assert lines == [
            "ok       a              fine",
            "note     b              absent",
        ] + [
            "",
            "Training can run.",
        ]

    def test_call_returns_one_when_there_is_a_problem(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        checks = [
            run(Finding("PROBLEM", "a", "gone", "get it"), Finding("ok", "b", ""))
        ]

        monkeypatch.setattr(doctor, "CHECKS", checks)

        assert doctor.run(argparse.Namespace()) == 1

        out = capsys.readouterr().out

        assert "PROBLEM  a              gone -> get it\n" in out
        assert "Training cannot run: 1 problem(s)" in out

    def test_call_works_in_this_environment(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        import fairseq2.runtime.dependency

        # The doctor starts fairseq2, which works once in a process; start it really
        # and leave no trace for the other tests.
        monkeypatch.setattr(fairseq2.runtime.dependency, "_resolver", None)

        status = doctor.run(argparse.Namespace())

        out = capsys.readouterr().out

        lines = out.splitlines()

        # Whatever else holds here, this test could import torch.
        for name in ("Python", "libsndfile", "torch", "fairseq2", "fairseq2n"):
            assert any(line.startswith(f"ok       {name} ") for line in lines), out

        # The package may be tested without having been installed.
        has_problem = any(line.startswith("PROBLEM") for line in lines)

        assert status == (1 if has_problem else 0)

        assert "not checked" not in out

        [logged] = [line for line in lines if "a run was logged offline" in line]

        assert logged.startswith("ok       wandb ")

        for line in lines:
            if line.startswith("PROBLEM"):
                assert " -> " in line


class TestExamine:
    @pytest.mark.parametrize(
        "is_optional,line",
        [
            (True, "note     big thing      not checked (ValueError: boo hoo)"),
            (
                False,
                "PROBLEM  big thing      not checked (ValueError: boo hoo) -> run `make install` in the clone or install the wheel again",
            ),
        ],
    )
    def test_call_goes_on_when_check_fails(
        self, monkeypatch: pytest.MonkeyPatch, is_optional: bool, line: str
    ) -> None:
        def check_big_thing() -> Iterator[Finding]:
            yield Finding("ok", "big", "half")

            raise ValueError("boo\n  hoo")

        if is_optional:
            monkeypatch.setattr(doctor, "OPTIONAL_CHECKS", (check_big_thing,))

        findings = list(examine([check_big_thing, run(Finding("ok", "a", "fine"))]))

        assert [format_finding(f) for f in findings] == [
            "ok       big            half",
            line,
            "ok       a              fine",
        ]


class TestChecks:
    def test_every_check_is_run(self) -> None:
        checks = {f for name, f in vars(doctor).items() if name.startswith("check_")}

        assert checks == set(CHECKS)

    @pytest.mark.parametrize(
        "version,status",
        [
            ((3, 9), "PROBLEM"),
            ((3, 10), "ok"),
            ((3, 12), "ok"),
            ((3, 13), "PROBLEM"),
        ],
    )
    def test_check_python_knows_supported_versions(
        self, monkeypatch: pytest.MonkeyPatch, version: tuple[int, int], status: str
    ) -> None:
        monkeypatch.setattr(sys, "version_info", (*version, 1))

        finding = one(doctor.check_python())

        assert finding.status == status
        assert (finding.remedy is None) == (status == "ok")

    def test_check_libsndfile_reports_missing_library(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(doctor, "find_libsndfile", lambda: None)

        finding = one(doctor.check_libsndfile())

        assert finding.status == "PROBLEM"
        assert finding.remedy is not None
        assert "link-libsndfile" in finding.remedy
        assert "apt install libsndfile1" in finding.remedy

    @pytest.mark.parametrize(
        "version,status",
        [
            ("2.9.1", "ok"),
            ("2.9.1+cpu", "ok"),
            ("2.9.10", "PROBLEM"),
            ("2.8.0", "PROBLEM"),
        ],
    )
    def test_check_torch_knows_supported_version(
        self, monkeypatch: pytest.MonkeyPatch, version: str, status: str
    ) -> None:
        monkeypatch.setattr(doctor, "version", lambda name: version)

        assert one(doctor.check_torch()).status == status

    @pytest.mark.parametrize("version,status", [("0.8.1", "ok"), ("0.8", "PROBLEM")])
    def test_check_fairseq2_knows_supported_version(
        self, monkeypatch: pytest.MonkeyPatch, version: str, status: str
    ) -> None:
        monkeypatch.setattr(doctor, "version", lambda name: version)

        findings = list(doctor.check_fairseq2())

        assert [f.name for f in findings] == ["fairseq2n", "fairseq2"]
        assert [f.status for f in findings] == [status, status]

    def test_check_fairseq2_reports_failing_import(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(name: str) -> None:
            raise OSError("fairseq2 requires libsndfile. Use apt.")

        monkeypatch.setattr(doctor, "import_module", fail)

        for finding in doctor.check_fairseq2():
            assert finding.status == "PROBLEM"
            assert "0.8.1 cannot be imported (OSError: fairseq2" in finding.detail
            assert finding.remedy == "see libsndfile above"

    def test_check_packages_reports_missing_package(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(name: str) -> str:
            raise PackageNotFoundError(name)

        monkeypatch.setattr(doctor, "version", fail)

        findings = list(doctor.check_packages())

        assert {f.name for f in findings} == {
            "sentencepiece",
            "sacrebleu",
            "tensorboard",
        }
        assert {(f.status, f.detail) for f in findings} == {
            ("PROBLEM", "not installed")
        }

    @pytest.mark.parametrize("free,status", [(0, "PROBLEM"), (1, "note"), (9, "ok")])
    def test_check_disk_compares_free_space(
        self, monkeypatch: pytest.MonkeyPatch, free: int, status: str
    ) -> None:
        usage = SimpleNamespace(free=free * 1024**3)

        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)

        assert one(doctor.check_disk()).status == status

    def test_check_devices_names_gpus(self, monkeypatch: pytest.MonkeyPatch) -> None:
        torch = pytest.importorskip("torch")

        props = [
            SimpleNamespace(name="Old", major=7, total_memory=16 * 1024**3),
            SimpleNamespace(name="New", major=9, total_memory=80 * 1024**3),
        ]

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: props[i])

        _, *gpus = doctor.check_devices()

        assert [(f.name, f.detail) for f in gpus] == [
            ("GPU 0", "Old, 16 GiB, no bf16"),
            ("GPU 1", "New, 80 GiB, bf16"),
        ]

    def test_check_devices_does_not_count_missing_gpu_as_problem(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        torch = pytest.importorskip("torch")

        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

        cpu, gpu = doctor.check_devices()

        assert (cpu.status, gpu.status) == ("ok", "note")
        assert "core(s)" in cpu.detail

    @pytest.mark.parametrize(
        "info,end",
        [
            ("flags\t: avx2 avx512f avx512_bf16", "GiB memory, bf16"),
            ("Features : asimd bf16", "GiB memory, bf16"),
            ("flags : avx2 avx512f", "GiB memory, no bf16"),
            (None, "GiB memory"),
        ],
    )
    def test_check_devices_tells_whether_cpu_computes_in_bf16(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        info: str | None,
        end: str,
    ) -> None:
        path = tmp_path / "cpuinfo"

        if info is not None:
            path.write_text(info)

        monkeypatch.setattr(doctor, "_CPU_INFO", path)

        cpu = next(doctor.check_devices())

        assert cpu.detail.endswith(end)

    def test_check_optional_packages_are_never_problems(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(doctor, "find_spec", lambda name: None)

        findings = list(doctor.check_optional_packages())

        assert {f.status for f in findings} == {"note"}
        assert all(f.remedy for f in findings)


class TestCheckComet:
    @pytest.fixture(autouse=True)
    def empty_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[None]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("WARMUP_COMET_PYTHON", raising=False)

        # As if this were the clone.
        monkeypatch.setattr(client, "_WORKER", tmp_path / "a" / "b" / "c" / "worker.py")

        yield

    def test_call_gives_note_when_absent(self) -> None:
        finding = one(doctor.check_comet())

        assert finding.status == "note"
        assert "not installed" in finding.detail

    def test_call_gives_note_when_variable_is_wrong(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WARMUP_COMET_PYTHON", "/nope/python")

        finding = one(doctor.check_comet())

        assert finding.status == "note"
        assert "`/nope/python` does not exist" in finding.detail
        assert "WARMUP_COMET_PYTHON" in (finding.remedy or "")

    @pytest.mark.parametrize("by_variable", [False, True])
    def test_call_gives_version(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, by_variable: bool
    ) -> None:
        python = self.write_python("echo 2.2.7")

        if by_variable:
            python = python.rename(tmp_path / "other")

            monkeypatch.setenv("WARMUP_COMET_PYTHON", str(python))

        finding = one(doctor.check_comet())

        assert finding.status == "ok"
        assert finding.detail == f"2.2.7 ({python})"

    def test_call_gives_note_when_environment_has_no_comet(self) -> None:
        self.write_python("exit 1")

        finding = one(doctor.check_comet())

        assert finding.status == "note"
        assert "has no unbabel-comet" in finding.detail

    def write_python(self, command: str) -> Path:
        python = Path.cwd() / ".venv-comet" / "bin" / "python"

        python.parent.mkdir(parents=True)
        python.write_text(f"#!/bin/sh\n{command}\n")
        python.chmod(0o755)

        return python


class TestCheckExtension:
    def test_call_works_when_family_is_registered(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.install(monkeypatch, "warmup_plugin:setup_warmup_extension")

        keys = [key for _, _, key in doctor.REGISTRATIONS]

        monkeypatch.setattr(doctor, "_init_fairseq2", lambda: (FakeResolver(*keys), []))

        assert one(doctor.check_extension()).status == "ok"

    def test_run_returns_one_when_module_of_ours_cannot_be_imported(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.install(monkeypatch, "warmup_plugin:setup_warmup_extension")

        monkeypatch.setattr(doctor, "_init_fairseq2", lambda: (FakeResolver(), []))

        def fail(name: str) -> None:
            raise ImportError("half installed")

        monkeypatch.setattr(doctor, "import_module", fail)
        monkeypatch.setattr(doctor, "CHECKS", [doctor.check_extension])

        assert doctor.run(argparse.Namespace()) == 1

        out = capsys.readouterr().out

        assert out.startswith("PROBLEM  extension      not checked (ImportError: half")

    def test_call_reports_missing_entry_point(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.install(monkeypatch, "another_package:setup")

        finding = one(doctor.check_extension())

        assert finding.status == "PROBLEM"
        assert "is not registered as an extension" in finding.detail
        assert "make install" in (finding.remedy or "")

    def test_call_reports_entry_point_that_does_not_load(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.install(monkeypatch, "warmup_plugin:no_such_function")

        finding = one(doctor.check_extension())

        assert finding.status == "PROBLEM"
        assert "cannot be loaded (AttributeError: " in finding.detail

    def test_call_reports_family_that_is_not_registered(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.install(monkeypatch, "warmup_plugin:setup_warmup_extension")

        monkeypatch.setattr(doctor, "_init_fairseq2", lambda: (FakeResolver(), []))

        finding = one(doctor.check_extension())

        assert finding.status == "PROBLEM"
        assert "has not registered TokenizerFamily `warmup_spm`" in finding.detail

    @pytest.mark.parametrize("value", [None, "0"])
    def test_call_reports_why_our_extension_fails(
        self, monkeypatch: pytest.MonkeyPatch, value: str | None
    ) -> None:
        from fairseq2.composition import ExtensionError

        self.install(monkeypatch, "warmup_plugin:setup_warmup_extension")

        def init_fairseq2() -> None:
            # Without it fairseq2 would only warn.
            assert os.environ["FAIRSEQ2_EXTENSION_TRACE"] == "1"

            raise ExtensionError("warmup_plugin:x", "x failed.") from KeyError("nllb")

        self.set_init(monkeypatch, init_fairseq2)

        if value is None:
            monkeypatch.delenv("FAIRSEQ2_EXTENSION_TRACE", raising=False)
        else:
            monkeypatch.setenv("FAIRSEQ2_EXTENSION_TRACE", value)

        finding = one(doctor.check_extension())

        assert finding.status == "PROBLEM"
        assert "(KeyError: 'nllb')" in finding.detail

        assert os.environ.get("FAIRSEQ2_EXTENSION_TRACE") == value

    def test_call_gives_note_when_extension_of_others_fails(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from fairseq2.composition import ExtensionError

        self.install(monkeypatch, "warmup_plugin:setup_warmup_extension")

        monkeypatch.delenv("FAIRSEQ2_EXTENSION_TRACE", raising=False)

        def init_fairseq2() -> FakeResolver:
            if "FAIRSEQ2_EXTENSION_TRACE" in os.environ:
                raise ExtensionError("other:x", "x failed.")

            return FakeResolver(*[key for _, _, key in doctor.REGISTRATIONS])

        self.set_init(monkeypatch, init_fairseq2)

        note, ok = doctor.check_extension()

        assert (note.status, ok.status) == ("note", "ok")
        assert "`other:x`" in note.detail

    def test_call_reports_problem_when_fairseq2_cannot_be_imported(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.install(monkeypatch, "warmup_plugin:setup_warmup_extension")

        # Makes `import fairseq2` raise `ImportError`.
        monkeypatch.setitem(sys.modules, "fairseq2", None)
        monkeypatch.setitem(sys.modules, "fairseq2.runtime", None)

        finding = one(doctor.check_extension())

        assert finding.status == "PROBLEM"
        assert "fairseq2 does not start" in finding.detail

    def install(self, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
        entry_point = make_entry_point(value)

        monkeypatch.setattr(doctor, "entry_points", lambda group: [entry_point])

    def set_init(
        self, monkeypatch: pytest.MonkeyPatch, init: Callable[[], object]
    ) -> None:
        import fairseq2.runtime.dependency

        monkeypatch.setattr(fairseq2.runtime.dependency, "_resolver", None)
        monkeypatch.setattr(fairseq2, "init_fairseq2", init)


class TestCheckWandb:
    def test_call_gives_note_when_wandb_fails(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "wandb.py").write_text("raise ImportError('too old')")

        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))

        finding = one(doctor.check_wandb())

        assert finding.status == "note"
        assert "too old" in finding.detail
