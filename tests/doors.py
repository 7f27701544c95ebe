# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Whether what a file of doors reaches in another library is still there."""

from __future__ import annotations

import ast
import dis
import inspect
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]

DOORS: Final = (
    "warmup_plugin/fairseq2_doors.py",
    "warmup_plugin/metrics/sacrebleu_doors.py",
    "warmup_plugin/transformers_doors.py",
)


def list_sources() -> list[Path]:
    """Lists our Python files but tests."""
    return [
        file
        for folder in ("warmup_plugin", "recipes", "scripts")
        for file in sorted(ROOT.joinpath(folder).rglob("*.py"))
    ]


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


class Doors:
    """A file of doors, and what each of them reaches."""

    def __init__(self, file: str, library: str, reached: Mapping[str, Sequence[str]]):
        """
        :param reached: For each door the names, as ``module:Class.name``; of a function
            that is called with so many arguments, ``self`` included, as
            ``module:Class.name/2``.
        """
        self.file = file
        self.library = library
        self.reached = reached

    def cases(self) -> list[tuple[str, str]]:
        return [(door, name) for door, names in self.reached.items() for name in names]

    def check(self, door: str, name: str) -> None:
        """Fails with what broke, and where, if a name is not there."""
        reason = find_fault(name)

        if reason is not None:
            path, users = name.partition("/")[0], ", ".join(self.list_users(door))

            raise AssertionError(
                f"{self.library} {version(self.library)}: `{path}` {reason}. `{door}()` of {self.file} reaches it, which {users} need; find another way in that function."
            )

    def check_complete(self) -> None:
        """Fails if a door reaches a private name that is not in the table."""
        tree = ast.parse(ROOT.joinpath(self.file).read_text(encoding="utf-8"))

        doors = [node for node in tree.body if isinstance(node, ast.FunctionDef)]

        assert {node.name for node in doors} >= self.reached.keys()

        for node in doors:
            known = {
                part
                for name in self.reached.get(node.name, ())
                for part in name.partition("/")[0].replace(":", ".").split(".")
            }

            for line_nr, private in find_private(node):
                assert (
                    private in known
                ), f"{self.file}:{line_nr}: `{node.name}()` reaches `{private}`, which its test does not look for."

    def list_users(self, door: str) -> list[str]:
        """Lists the files that import a door."""
        module = self.file.removesuffix(".py").replace("/", ".")

        users = []

        for file in list_sources():
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and node.module == module:
                    if any(alias.name == door for alias in node.names):
                        users.append(str(file.relative_to(ROOT)))

        assert users, f"Nobody needs `{door}()` of {self.file}; delete it."

        return users


def find_private(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Finds private names that are imported, or reached by an attribute of any object."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if is_private(alias.name):
                    yield node.lineno, alias.name
        elif isinstance(node, ast.Attribute):
            if is_private(node.attr):
                yield node.lineno, node.attr
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in ("getattr", "setattr", "hasattr", "delattr"):
                name = node.args[1]

                if isinstance(name, ast.Constant) and is_private(str(name.value)):
                    yield node.lineno, str(name.value)


def find_fault(name: str) -> str | None:
    """Says what is wrong with a name; ``None`` if it is there."""
    path, _, num_args = name.partition("/")

    module_name, _, path = path.partition(":")

    try:
        owner: Any = import_module(module_name)
    except ImportError:
        return "has no module any more"

    *parts, last = path.split(".")

    for part in parts:
        if not hasattr(owner, part):
            return f"is gone with `{part}`"

        owner = getattr(owner, part)

    if not hasattr(owner, last):
        # What an object only has once it is made.
        if inspect.isclass(owner) and last in _list_fields(owner):
            return None

        return "is gone"

    if num_args:
        try:
            inspect.signature(getattr(owner, last)).bind(*[None] * int(num_args))
        except TypeError:
            return f"no longer takes {num_args} arguments"

    return None


def _list_fields(kls: type[object]) -> set[str]:
    """Lists the attributes that methods of a class set."""
    return {
        str(instruction.argval)
        for base in kls.__mro__
        for method in vars(base).values()
        if inspect.isfunction(method)
        for instruction in dis.get_instructions(method)
        if instruction.opname == "STORE_ATTR"
    }
