# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
What is reached behind the public interface of fairseq2, and of the torch it pins.

fairseq2 0.8.1 has no other way to any of it. Each function is one door; no other file
touches a private name of theirs, which a test holds. Another one tells, when an upgrade
takes a name away, which door it was and who goes through it.

Nothing is imported before a door is opened, so that whoever only asks for the name of a
file stays free of fairseq2 and torch.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property, partial, wraps
from importlib import import_module
from importlib.util import find_spec
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar, cast, final

if TYPE_CHECKING:
    from fairseq2.data.tokenizers import Tokenizer
    from fairseq2.data.tokenizers.sentencepiece import SentencePieceModel
    from fairseq2.early_stopper import EarlyStopper
    from fairseq2.file_system import FileSystem
    from fairseq2.models.nllb import NllbTokenizer
    from fairseq2.models.transformer import (
        StandardMultiheadAttention,
        TransformerDecoder,
        TransformerEncoder,
    )
    from fairseq2.nn import BatchLayout
    from fairseq2.recipe.base import Recipe
    from fairseq2.runtime.dependency import DependencyContainer, DependencyResolver
    from fairseq2.trainer import Trainer
    from fairseq2.utils.structured import StandardValueConverter
    from torch import Tensor
    from torch.nn import Module

T = TypeVar("T")

Provider: TypeAlias = Callable[["DependencyResolver"], T]

# Imports


@contextmanager
def late_compiler() -> Iterator[None]:
    """
    Lets what is imported within be kept from torch's compiler without importing it.
    """
    import torch

    # fairseq2 sets it, and takes for granted that the compiler has imported it.
    import torch._functorch.config
    from torch._compile import _disable_dynamo

    disable = torch.compiler.disable

    def disable_late(
        function: Callable[..., Any], recursive: bool = True
    ) -> Callable[..., Any]:
        disabled = _disable_dynamo(function, recursive)

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            # Before that, nothing has been compiled.
            is_needed = "torch._dynamo" in sys.modules

            return (disabled if is_needed else function)(*args, **kwargs)

        return call

    setattr(torch.compiler, "disable", disable_late)

    try:
        yield
    finally:
        setattr(torch.compiler, "disable", disable)


def keep_compiler_out() -> None:
    """
    Lets a model be loaded and read batches without importing torch's compiler.

    It is imported, with sympy and triton, only to be told what is dynamic. Until something
    else imports it, as optimizers do, nothing is compiled, so that it need not be told.
    """
    import torch

    if "torch._dynamo" in sys.modules or "_dynamo" in vars(torch):
        return

    # Which the import replaces.
    setattr(torch, "_dynamo", _LateCompiler())

    _skip_meta_values()


@final
class _LateCompiler:
    """Stands for ``torch._dynamo`` until that is imported."""

    def maybe_mark_dynamic(self, *args: object) -> None:
        """Called for each batch."""
        if "torch._dynamo" in sys.modules:
            self.__getattr__("maybe_mark_dynamic")(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module("torch._dynamo"), name)


def _skip_meta_values() -> None:
    """
    Keeps fairseq2 from computing values for the meta device, which has none.

    torch would import sympy and the compiler for it. They are computed once the model is
    on a real device.
    """
    import torch
    from fairseq2.models import family
    from fairseq2.nn import (
        ReferenceRotaryEncoder,
        RotaryEncoder,
        SinusoidalPositionEncoder,
    )
    from torch import Tensor
    from torch.nn import init
    from torch.overrides import TorchFunctionMode

    # How parameters get their first values, also the parts of `trunc_normal_`.
    fill = {
        *(init.normal_, init.uniform_, init.kaiming_uniform_),
        *(Tensor.normal_, Tensor.uniform_),
        *(Tensor.add_, Tensor.clamp_, Tensor.erfinv_, Tensor.mul_),
    }

    class SkipMode(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            kwargs = kwargs or {}

            if func in fill:
                tensor = args[0] if args else kwargs["tensor"]

                if tensor.is_meta:
                    return tensor

            # As `to_empty()` calls it.
            if func is torch.empty_like and kwargs.keys() == {"device"}:
                if args[0].is_meta and args[0].is_contiguous():
                    return torch.empty(args[0].size(), dtype=args[0].dtype, **kwargs)

            return func(*args, **kwargs)

    def with_mode(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with SkipMode():
                return function(*args, **kwargs)

        return call

    kls = family.StandardModelFamily

    setattr(kls, "_do_create_model", with_mode(kls._do_create_model))

    setattr(family, "to_empty", with_mode(vars(family)["to_empty"]))

    for encoder_kls in (
        *(SinusoidalPositionEncoder, RotaryEncoder, ReferenceRotaryEncoder),
    ):
        reset = _unless_meta(encoder_kls.reset_non_persistent_buffers)

        setattr(encoder_kls, "reset_non_persistent_buffers", reset)


def _unless_meta(reset: Callable[[Any], None]) -> Callable[[Any], None]:
    @wraps(reset)
    def reset_unless_meta(module: Module) -> None:
        if not any(buffer.is_meta for buffer in module.buffers()):
            reset(module)

    return reset_unless_meta


def keep_s3_out() -> None:
    """Lets fairseq2 know paths of S3 without importing what reads them until one is read."""
    from fairseq2 import file_system

    make = vars(file_system)["filesystem"]

    # fairseq2 asks whether it is installed by making one.
    if find_spec("s3fs") is None or isinstance(make, partial):
        return

    def make_late(make: Callable[..., Any], protocol: str, **options: Any) -> Any:
        if protocol != "s3":
            return make(protocol, **options)

        return _LateObject(partial(make, protocol, **options))

    setattr(file_system, "filesystem", partial(make_late, make))


@final
class _LateObject:
    """Stands for an object until something of it is used."""

    def __init__(self, make: Callable[[], object]) -> None:
        self._make = make

    @cached_property
    def _object(self) -> object:
        return self._make()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._object, name)


# Dependencies and configs


def remove_provider(
    container: DependencyContainer, kls: type[object], key: str | None = None
) -> None:
    """Makes room for a provider of ours: fairseq2 refuses a second one."""
    container._registrations.pop((kls, key), None)

    if key in container._keys[kls]:
        container._keys[kls].remove(key)


def take_provider(container: DependencyContainer, kls: type[T]) -> Provider[T] | None:
    """
    Returns what makes an object for fairseq2, and makes room for a provider of ours;
    ``None`` in a container without fairseq2's own.
    """
    registration = container._registrations.get((kls, None))

    if registration is None:
        return None

    remove_provider(container, kls)

    return cast("Provider[T]", registration.provider)


def find_dependency_resolver() -> DependencyResolver | None:
    """Returns what ``init_fairseq2()`` has made; ``None`` if it was not called yet."""
    from fairseq2.runtime import dependency

    return dependency._resolver


def set_structurer(
    converter: StandardValueConverter,
    kls: type[object],
    structurer: Callable[[object, object, object], object],
) -> None:
    """Lets a function turn values from YAML into those of a type."""
    # Typed by the names of its arguments.
    converter._structurers[kls] = cast(Any, structurer)


def list_components(
    resolver: DependencyResolver, interface: object
) -> Iterator[tuple[str, type[object]]]:
    """Lists the components of an interface, with the classes of their settings."""
    from fairseq2.recipe.component import _ComponentEntry

    for key in resolver.iter_keys(_ComponentEntry):
        kls, name = cast("tuple[object, str]", key)

        if kls is interface:
            yield name, resolver.resolve(_ComponentEntry, key=key).config_kls


def register_optimizers(container: DependencyContainer) -> None:
    """Registers fairseq2's optimizers and learning rate schedulers, and nothing else."""
    from fairseq2.recipe.composition.lr_schedulers import _register_lr_schedulers
    from fairseq2.recipe.composition.optim import _register_optim

    _register_optim(container)

    _register_lr_schedulers(container)


def create_recipe_resolver(
    recipe: Recipe, get_config: Callable[[], object]
) -> DependencyResolver:
    """
    Creates what a recipe resolves its dependencies with, before it runs.

    It has the components of every recipe, and optimizers besides.

    :param get_config: Returns the config of the recipe as soon as there is one.
    """
    from fairseq2.composition import _register_library
    from fairseq2.recipe.cli import _register_cli_errors
    from fairseq2.recipe.composition import _register_train_recipe
    from fairseq2.recipe.internal.config import _RecipeConfigHolder
    from fairseq2.runtime.dependency import DependencyContainer

    container = DependencyContainer()

    _register_library(container, no_progress=True)

    _register_train_recipe(container, recipe)

    _register_cli_errors(container)

    container.register(
        _RecipeConfigHolder, lambda resolver: _RecipeConfigHolder(get_config())
    )

    return container


def structure_recipe_config(
    resolver: DependencyResolver, kls: type[object], config: object
) -> object:
    """Turns values from YAML into the config of a recipe, components included."""
    from fairseq2.recipe.internal.config import _StandardRecipeConfigStructurer
    from fairseq2.runtime.dependency import wire_object

    structurer = wire_object(resolver, _StandardRecipeConfigStructurer)

    return structurer.structure(kls, config)


def handled_errors(
    resolver: DependencyResolver, no_exit_on_error: bool
) -> AbstractContextManager[None]:
    """Turns errors into messages and exit statuses, as fairseq2's command line does."""
    from fairseq2.recipe.cli import _handle_errors

    return _handle_errors(resolver, no_exit_on_error)


@contextmanager
def checked_once(config: object) -> Iterator[None]:
    """
    Lets fairseq2 check the config of a recipe once.

    It checks all of it each time that something asks for it, twenty times a start.
    """
    from fairseq2.utils.validation import StandardObjectValidator

    validate = StandardObjectValidator.validate

    is_valid = False

    def validate_once(self: StandardObjectValidator, obj: object) -> None:
        nonlocal is_valid

        if obj is not config:
            validate(self, obj)
        elif not is_valid:
            validate(self, obj)

            is_valid = True

    setattr(StandardObjectValidator, "validate", validate_once)

    try:
        yield
    finally:
        setattr(StandardObjectValidator, "validate", validate)


def broadcast_under_fsdp(
    container: DependencyContainer, is_wanted: Callable[[DependencyResolver], bool]
) -> None:
    """
    Lets FSDP give all ranks the weights of the first one also where a run resumes, when
    fairseq2 leaves all of them to the checkpoint.

    :param container: That of a recipe, in its ``register()``.
    :param is_wanted: Asked when the wrapper is made.
    """
    from fairseq2.nn.fsdp import to_fsdp
    from fairseq2.recipe.internal.data_parallel import (
        _DataParallelModelWrapper,
        _FSDPModelWrapper,
    )
    from fairseq2.runtime.dependency import wire_object

    def wrap(*args: Any, **options: Any) -> Module:
        return to_fsdp(*args, **{**options, "broadcast_state": True})

    def create(resolver: DependencyResolver) -> _DataParallelModelWrapper:
        factory = wrap if is_wanted(resolver) else to_fsdp

        return wire_object(resolver, _FSDPModelWrapper, fsdp_factory=factory)

    remove_provider(container, _DataParallelModelWrapper, "fsdp")

    container.register(_DataParallelModelWrapper, create, key="fsdp")


# Files


def register_file_system(
    matches: Callable[[object], bool], kls: type[FileSystem]
) -> None:
    """Lets a file system serve the paths that match, unless it does so already."""
    from fairseq2.file_system import FileSystemRegistry

    if (matches, kls) not in FileSystemRegistry._resolvers:
        FileSystemRegistry.register(cast(Any, matches), kls)


def find_safe_global(name: str) -> Any | None:
    """Returns what torch lets a file of weights import by a full name, else ``None``."""
    import torch

    unpickler: Any = torch._weights_only_unpickler

    return {
        **unpickler._get_user_allowed_globals(),
        **unpickler._get_allowed_globals(),
    }.get(name)


MODEL_FILE: Final = PurePosixPath("pp_00/tp_00/sdp_00.pt")
"""The weights of a checkpoint that one process has saved, in its folder ``model``."""

MODEL_METADATA_FILE: Final = "model.yaml"
"""In the folder of checkpoints: family and configuration of their model."""

CHECKPOINT_PARTS: Final = ("model", "trainer", "optimizer", "data_reader")
"""The folders of a checkpoint that training goes on from."""


def get_step_folder(step_nr: int | str) -> str:
    """Returns the name of the folder of a checkpoint; of ``*``, the pattern of all."""
    return f"step_{step_nr}"


def parse_step_folder(name: str) -> int | None:
    """Returns the step of a folder; ``None`` if it is of no complete checkpoint."""
    number = name.removeprefix("step_")

    # One being written is called `step_N.tmp`; more digits are of no step.
    if number == name or not re.fullmatch("[0-9]{1,18}", number):
        return None

    return int(number)


def get_score_file(step_nr: int) -> PurePosixPath:
    """Returns the file with the validation score of a checkpoint, in their folder."""
    return PurePosixPath(f"scores/step_{step_nr}.txt")


# The trainer


def replace_early_stopper(trainer: Trainer, early_stopper: EarlyStopper) -> None:
    """Replaces the stopper that never stops, the only one its factory passes."""
    trainer._early_stopper = early_stopper


def is_last_step(trainer: Trainer, step_nr: int) -> bool:
    """Tells whether a trainer will end with a step by itself."""
    return trainer._max_num_steps is not None and step_nr >= trainer._max_num_steps


def request_stop(trainer: Trainer, *, validate: bool) -> None:
    """
    Makes the step that is running the last one.

    :param validate: If ``False``, a trainer that stops does not validate.
    """
    from fairseq2.validator import NOOP_VALIDATOR

    # `_run_post_step()` looks at a stop request only if no maximum is set.
    trainer._max_num_steps = None

    if not validate:
        trainer._validator = NOOP_VALIDATOR

    trainer.request_stop()


def call_when_restored(trainer: Trainer, hook: Callable[[bool], bool]) -> None:
    """
    Calls a function as soon as a trainer has restored its state, if it has one.

    :param hook: Is told whether the run has ended, and says whether to stop early.
    """
    from fairseq2.trainer import _TrainerState

    restore = trainer._maybe_restore_state

    def restore_and_call() -> _TrainerState:
        state = restore()

        if trainer.step_nr == 0:
            return state

        has_ended = state == _TrainerState.STOPPED

        # What is due depends on it.
        trainer._state = (
            _TrainerState.END_OF_TRAINING if has_ended else _TrainerState.POST_STEP
        )

        if hook(has_ended) and not has_ended:
            return _TrainerState.EARLY_STOP

        return state

    setattr(trainer, "_maybe_restore_state", restore_and_call)


def is_scored_checkpoint(trainer: Trainer) -> bool:
    """Tells whether both a validation and a checkpoint belong to the current step."""
    return trainer._should_validate() and trainer._should_save_checkpoint()


def validate(trainer: Trainer) -> float | None:
    """Validates, and returns the score if there is one."""
    return trainer._validate()


def should_stop_early(trainer: Trainer, score: float) -> bool:
    """Asks the early stopper, which all ranks obey."""
    return trainer._maybe_request_early_stop(score)


# Models


def change_class(module: Module, kls: type[Module]) -> None:
    """
    Makes a module one of a subclass of its class, which adds methods only.

    fairseq2 discards what ``Recipe.setup_model()`` returns, so that only a change in
    place survives; and so do wrappers, parameters and checkpoints.
    """
    module.__class__ = kls


def fill_batch_layout(layout: BatchLayout, positions: Tensor, max_seq_len: int) -> None:
    """
    Makes a layout that of one packed batch without padding.

    Its ``__init__`` would find the same in a loop over all sequences.

    :param positions: The place of each token in its sequence. *Shape:* :math:`(T)`.
    :param max_seq_len: More than the largest of them.
    """
    layout._width = positions.size(0)
    layout._packed = True
    layout._padded = False
    layout._position_indices = positions
    layout._max_seq_len = max_seq_len


def project_queries(
    module: StandardMultiheadAttention, seqs: Tensor, layout: BatchLayout
) -> Tensor:
    """
    Projects inputs to queries, with norm and positions.

    :param seqs: *Shape:* :math:`(*,M)`.

    :returns: *Shape:* :math:`(*,H,D)`.
    """
    return module._project_q(seqs, layout)


def project_keys_and_values(
    module: StandardMultiheadAttention, seqs: Tensor, layout: BatchLayout
) -> tuple[Tensor, Tensor]:
    """
    Projects inputs to keys and values, with norm and positions.

    :param seqs: *Shape:* :math:`(*,M)`.

    :returns: *Shape:* :math:`(*,H_{kv},D)` each.
    """
    return module._project_kv(seqs, layout, seqs)


def call_layer_hooks(
    stack: TransformerEncoder | TransformerDecoder,
    layer_idx: int,
    seqs: Tensor,
    layout: BatchLayout,
) -> None:
    """Calls what was registered by ``register_layer_hook()`` of a stack."""
    for hook in stack._layer_hooks.values():
        if not hook(layer_idx, seqs, layout, len(stack.layers)):
            break


# Tokenizers


def get_nllb_parts(
    tokenizer: NllbTokenizer,
) -> tuple[frozenset[str], SentencePieceModel]:
    """Returns the languages of a tokenizer and its SentencePiece model."""
    return frozenset(tokenizer._langs), tokenizer._model


def find_transformers_tokenizer(tokenizer: Tokenizer) -> tuple[Any, str] | None:
    """
    Returns the tokenizer of transformers within fairseq2's ``llama`` and ``qwen`` ones,
    and what it calls EOS.

    :returns: ``None`` if it is another tokenizer.
    """
    from fairseq2.models.llama import LLaMAHuggingFaceTokenizer
    from fairseq2.models.qwen import QwenTokenizer

    if not isinstance(tokenizer, (LLaMAHuggingFaceTokenizer, QwenTokenizer)):
        return None

    return tokenizer._model._tok, tokenizer._eos_token
