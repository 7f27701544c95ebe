# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import gc
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq2 import file_system

from warmup_plugin import late_imports
from warmup_plugin.fairseq2_doors import _LateCompiler, keep_s3_out, late_compiler
from warmup_plugin.late_imports import _late_modules
from warmup_plugin.recipes.running import RecipeRunner
from warmup_plugin.recipes.translate import GenerateConfig, TranslationGenerateRecipe

_LATE = """\
class Shape:
    sides = 4

    def __init__(self, size):
        self.size = size

class Square(Shape): pass

class Trouble(Exception): pass

def double(x): return 2 * x
"""

_USER = """\
import late_one
from late_one import Shape, Trouble
from late_one.part import Trouble as Same

KINDS = {Shape: 1}

def is_shape(x): return isinstance(x, Shape)

def attempt(error):
    try:
        raise error
    except Trouble:
        return "caught"
    except ValueError:
        return "other"
"""


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module whose imports are put off."""
    (tmp_path / "late_one").mkdir()

    (tmp_path / "late_one" / "__init__.py").write_text(_LATE)
    (tmp_path / "late_one" / "part.py").write_text(_LATE)

    (tmp_path / "late_user.py").write_text(_USER)

    monkeypatch.syspath_prepend(tmp_path)

    monkeypatch.setattr(late_imports, "_MODULES", ("late_one", "late_one.part"))

    with _late_modules():
        module = import_module("late_user")

    yield module

    for name in ("late_one", "late_one.part", "late_user"):
        sys.modules.pop(name, None)


class TestLateModules:
    def test_module_is_imported_when_it_is_used(self, user: Any) -> None:
        assert "late_one" not in sys.modules
        assert user.attempt(ValueError()) == "other"
        assert "late_one" not in sys.modules

        assert user.late_one.double(2) == 4

        assert "late_one" in sys.modules

    def test_class_is_that_of_the_module(self, user: Any) -> None:
        shape = user.Shape(3)

        assert type(shape) is import_module("late_one").Shape
        assert shape.size == 3
        assert user.Shape.sides == 4

        assert user.is_shape(shape) and not user.is_shape(3)

        assert issubclass(import_module("late_one").Square, user.Shape)
        assert not issubclass(int, user.Shape)
        assert not issubclass(user.Shape, ModuleType)

    def test_what_was_imported_before_is_left_as_it_is(self, user: Any) -> None:
        module = import_module("late_one")

        with _late_modules():
            assert sys.modules["late_one"] is module


class TestPackages:
    def test_names_are_those_of_the_module(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "late_package").mkdir()

        (tmp_path / "late_package" / "__init__.py").write_text(
            "from late_package.part import Shape, double\n\nclass Own: pass\n"
        )

        (tmp_path / "late_package" / "part.py").write_text(_LATE)

        monkeypatch.syspath_prepend(tmp_path)

        monkeypatch.setattr(late_imports, "_MODULES", ("late_package.part",))
        monkeypatch.setattr(late_imports, "_PACKAGES", ("late_package", "nope"))

        with _late_modules():
            package = import_module("late_package")

        try:
            assert "late_package.part" not in sys.modules

            assert {"Own"} == {name for name in vars(package) if name[0].isupper()}

            part = import_module("late_package.part")

            assert package.Shape is part.Shape
            assert vars(package)["Shape"] is part.Shape
            assert package.double is part.double

            with pytest.raises(AttributeError, match="'late_package' has no .* 'x'"):
                package.x
        finally:
            for name in ("late_package", "late_package.part"):
                sys.modules.pop(name, None)


def test_nothing_is_an_instance_before_the_import(user: Any) -> None:
    assert not user.is_shape(3)

    assert "late_one" not in sys.modules


def test_imports_are_not_looked_through_for_garbage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    monkeypatch.setattr(
        late_imports, "import_module", lambda name: seen.append(gc.isenabled())
    )

    monkeypatch.setattr(late_imports, "keep_compiler_out", lambda: None)
    monkeypatch.setattr(late_imports, "keep_s3_out", lambda: None)

    monkeypatch.delitem(sys.modules, "fairseq2.recipe")

    # What the fixture of all tests has frozen.
    gc.unfreeze()

    late_imports.import_fairseq2()

    assert seen and not any(seen)

    assert gc.isenabled() and gc.get_freeze_count() > 0

    gc.unfreeze()


class TestLateS3:
    def test_it_is_imported_when_it_is_used(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = []

        def make(protocol: str, **options: object) -> Any:
            made.append((protocol, options))

            return SimpleNamespace(name=protocol)

        monkeypatch.setattr(file_system, "filesystem", make)

        keep_s3_out()

        # Again for each command of a process.
        keep_s3_out()

        make_late = vars(file_system)["filesystem"]

        assert make_late("file").name == "file"

        s3 = make_late("s3", anon=True)

        assert made == [("file", {})]

        assert s3.name == s3.name == "s3"

        assert made == [("file", {}), ("s3", {"anon": True})]

    def test_fairseq2_knows_its_paths(self, monkeypatch: pytest.MonkeyPatch) -> None:
        used = []

        def make(protocol: str) -> Any:
            def exists(path: str) -> bool:
                used.append((protocol, path))

                return True

            return SimpleNamespace(exists=exists)

        registry = file_system.FileSystemRegistry

        monkeypatch.setattr(file_system, "filesystem", make)
        monkeypatch.setattr(registry, "_resolvers", [])

        keep_s3_out()

        RecipeRunner(TranslationGenerateRecipe(), GenerateConfig)

        path = Path("s3://bucket/file")

        assert registry.resolve_filesystem(path).exists(path)

        assert used == [("s3", "bucket/file")]


class TestLateCompiler:
    def test_late_one_gives_way_to_the_real_one(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        compiler = import_module("torch._dynamo")

        batch = torch.zeros(2)

        with monkeypatch.context() as context:
            context.delitem(sys.modules, "torch._dynamo")

            _LateCompiler().maybe_mark_dynamic(batch, 0)

            assert "torch._dynamo" not in sys.modules

        assert not hasattr(batch, "_dynamo_weak_dynamic_indices")

        _LateCompiler().maybe_mark_dynamic(batch, 0)

        assert hasattr(batch, "_dynamo_weak_dynamic_indices")

        assert _LateCompiler().config is compiler.config

    def test_function_is_called_and_kept_from_the_compiler(self) -> None:
        disable = torch.compiler.disable

        with late_compiler():

            @torch.compiler.disable  # type: ignore[untyped-decorator]
            def is_compiling(x: int) -> tuple[int, bool]:
                return x, torch.compiler.is_compiling()

        assert torch.compiler.disable is disable

        assert is_compiling(1) == (1, False)

        @torch.compile(backend="eager")
        def call(x: torch.Tensor) -> tuple[torch.Tensor, tuple[int, bool]]:
            return x + 1, is_compiling(2)

        assert call(torch.zeros(1))[1] == (2, False)
