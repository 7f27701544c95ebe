# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
Puts off what fairseq2 imports as it starts and hardly any command ever uses.

Its recipes import transformers, with all that comes with it, wandb, torch's compiler, FSDP
and metrics of classification, more than half of the seconds in which a command starts, for
names that are of use only with a Hugging Face tokenizer, where a run is logged to Weights &
Biases, where a model is compiled or divided, or not at all.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Final, final

from typing_extensions import override

from warmup_plugin.fairseq2_doors import (
    keep_compiler_out,
    keep_s3_out,
    late_compiler,
)

# The modules whose names fairseq2 imports.
_MODULES: Final = (
    "huggingface_hub._snapshot_download",
    "torch.distributed._shard",
    "torch.distributed._shard.sharded_tensor",
    "torch.distributed.fsdp",
    "torch.distributed.fsdp.api",
    "torch.distributed.fsdp.sharded_grad_scaler",
    "torch.distributed.tensor",
    "torch.utils.tensorboard",
    "torcheval.metrics.audio",
    "torcheval.metrics.classification",
    "torcheval.metrics.functional.classification",
    "torcheval.metrics.functional.image",
    "torcheval.metrics.functional.ranking",
    "torcheval.metrics.functional.regression",
    "torcheval.metrics.functional.text",
    "torcheval.metrics.image",
    "torcheval.metrics.ranking",
    "torcheval.metrics.regression",
    "torcheval.metrics.text",
    "torcheval.metrics.window",
    "transformers",
    "transformers.models.qwen2_5_omni.modeling_qwen2_5_omni",
    "wandb",
    "wandb.errors",
)


# Packages of others that take names of late modules, for whoever imports them from there.
_PACKAGES: Final = ("torcheval.metrics", "torcheval.metrics.functional")


def import_fairseq2() -> None:
    """
    Imports fairseq2's recipes, and what we add to them, without the modules above.

    They are imported when something of theirs is used. Does nothing if fairseq2's recipes
    have been imported; a module that was imported before is left as it is.
    """
    if "fairseq2.recipe" in sys.modules:
        return

    with _uncollected(), _late_modules(), late_compiler():
        for name in (
            "fairseq2.recipe.cli",
            "fairseq2.recipe.composition",
            "warmup_plugin.composition",
        ):
            import_module(name)

    keep_compiler_out()

    keep_s3_out()


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keeps the garbage collector from looking for any in what is imported to stay."""
    was_enabled = gc.isenabled()

    gc.disable()

    try:
        yield
    finally:
        gc.freeze()

        if was_enabled:
            gc.enable()


@contextmanager
def _late_modules() -> Iterator[None]:
    late = {name: _LateModule(name) for name in _MODULES if name not in sys.modules}

    sys.modules.update(late)

    try:
        yield
    finally:
        for name in late:
            # From now on, it is the module itself that is imported.
            del sys.modules[name]

        for name in _PACKAGES:
            if name in sys.modules:
                _take_names_out(sys.modules[name])


def _take_names_out(package: ModuleType) -> None:
    """Lets a package have the names of late modules when it is asked for them."""
    # The modules by the names.
    late: dict[str, str] = {
        name: vars(value)["_module"]
        for name, value in vars(package).items()
        if isinstance(value, _LateClass)
    }

    for name in late:
        delattr(package, name)

    def get(name: str) -> Any:
        if name not in late:
            raise AttributeError(
                f"module {package.__name__!r} has no attribute {name!r}"
            )

        value = _load(late[name], name)

        setattr(package, name, value)

        return value

    if late:
        setattr(package, "__getattr__", get)


def _load(module: str, name: str) -> Any:
    value = getattr(import_module(module), name)

    if module == "transformers":
        from warmup_plugin.transformers_doors import refuse_foreign_code

        refuse_foreign_code()

    return value


@final
class _LateModule(ModuleType):
    """Stands for a module until something of it is used."""

    def __init__(self, name: str) -> None:
        super().__init__(name)

        # For those who only ask whether it is installed.
        self.__spec__ = ModuleSpec(name, None)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        if sys.modules.get(self.__name__) is not self:
            return _load(self.__name__, name)

        # Where it is caught, it has to be an exception.
        late = _LateClass(name, (Exception,), {"_module": self.__name__})

        setattr(self, name, late)

        return late


@final
class _LateClass(type):
    """Is the type of what stands for a class of a late module."""

    _module: str

    def _load(cls) -> Any:
        return _load(cls._module, cls.__name__)

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        return getattr(cls._load(), name)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return cls._load()(*args, **kwargs)

    @override
    def __instancecheck__(cls, instance: object) -> bool:
        module = sys.modules.get(cls._module)

        # Or there would be no instances.
        return (
            module is not None
            and not isinstance(module, _LateModule)
            and isinstance(instance, cls._load())
        )

    @override
    def __subclasscheck__(cls, subclass: type) -> bool:
        return subclass is cls or issubclass(subclass, cls._load())
