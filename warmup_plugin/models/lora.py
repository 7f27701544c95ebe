# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

r"""
LoRA: a frozen projection plus a trained product of two narrow matrices.

.. math::

    y = W x + \frac{\alpha}{r} B A\,\mathrm{dropout}(x)

after `arXiv 2106.09685 <https://arxiv.org/abs/2106.09685>`_. As in ``attention.py``,
projections change class in place and their weights keep their names, so that wrappers,
checkpoints of the base and conversions see nothing new.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, final

import torch
import torch.nn as nn
from fairseq2.error import StateDictError
from fairseq2.models.transformer import FeedForwardNetwork, MultiheadAttention
from fairseq2.nn import ColumnShardedLinear, Linear, Projection, RowShardedLinear
from fairseq2.nn.data_parallel import (
    DataParallelFacade,
    get_data_parallel_facade,
    set_data_parallel_facade,
)
from fairseq2.typing import ContextManager
from fairseq2.utils.validation import Validatable, ValidationResult
from torch import Tensor
from torch.nn import Module, Parameter
from torch.nn.functional import dropout, linear
from typing_extensions import override

from warmup_plugin.errors import WarmupError
from warmup_plugin.fairseq2_doors import change_class

ALL_LINEAR: Final = "all-linear"

_TARGETS: Final[Mapping[str, tuple[type[Module], str]]] = {
    "q_proj": (MultiheadAttention, "q_proj"),
    "k_proj": (MultiheadAttention, "k_proj"),
    "v_proj": (MultiheadAttention, "v_proj"),
    "o_proj": (MultiheadAttention, "output_proj"),
    "gate_proj": (FeedForwardNetwork, "gate_proj"),
    "up_proj": (FeedForwardNetwork, "inner_proj"),
    "down_proj": (FeedForwardNetwork, "output_proj"),
}
"""What the field calls a projection, and what fairseq2 does, in all families."""

A_NAME: Final = "lora_a"

B_NAME: Final = "lora_b"


@dataclass(kw_only=True)
class LoraSection(Validatable):
    """Configures LoRA, which trains narrow matrices beside frozen projections."""

    rank: int | None = None
    """The rank r of what is added to a projection, such as 16; ``None`` trains the whole model."""

    alpha: float = 32.0
    """What is added is multiplied by ``alpha / rank``."""

    dropout: float = 0.0
    """The dropout of the inputs of what is added."""

    targets: list[str] = field(default_factory=lambda: [ALL_LINEAR])
    """The projections, by the same names in all families: some of `q_proj`, `k_proj`, `v_proj`, `o_proj` (of all attention), `gate_proj`, `up_proj`, `down_proj` (of the feed-forward networks), or `all-linear` for all that the model has. Embeddings and the output projection are never among them."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if self.rank is not None and self.rank < 1:
            result.add_error(
                "`rank` must be greater than or equal to 1, or null to train the whole model."
            )

        if not self.alpha > 0.0:
            result.add_error("`alpha` must be greater than 0.")

        if not 0.0 <= self.dropout < 1.0:
            result.add_error("`dropout` must be from 0 to less than 1.")

        if not self.targets:
            result.add_error(
                f"`targets` must not be empty; set `{ALL_LINEAR}` for all projections."
            )

        for name in self.targets:
            if name != ALL_LINEAR and name not in _TARGETS:
                result.add_error(
                    f"`targets` names `{name}`, which is not known; use some of {', '.join(f'`{n}`' for n in _TARGETS)}, or `{ALL_LINEAR}`."
                )

        return result


class LoraProjection(Projection):
    """A projection with an adapter; see :func:`add_adapter`."""

    weight: Parameter
    bias: Parameter | None

    lora_a: Parameter
    """*Shape:* :math:`(R,H_{inp})`."""

    lora_b: Parameter
    """*Shape:* :math:`(H_{out},R)`."""

    lora_scale: float

    lora_dropout_p: float

    adapter_is_on: bool

    def add_adapter(self, rank: int, alpha: float, dropout_p: float) -> None:
        """Adds parameters whose product is zero at first."""
        # Of 32 bits also where the base has fewer: steps as small as theirs would be lost.
        for name, shape in (
            (A_NAME, (rank, self.input_dim)),
            (B_NAME, (self.output_dim, rank)),
        ):
            parameter = Parameter(
                torch.empty(shape, dtype=torch.float32, device=self.weight.device)
            )

            self.register_parameter(name, parameter)

        self.lora_scale = alpha / rank

        self.lora_dropout_p = dropout_p

        self.adapter_is_on = True

        self._reset_adapter()

    def _reset_adapter(self) -> None:
        # As the authors' code has it: A is that of a linear layer, B zero.
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

        nn.init.zeros_(self.lora_b)

    def reset_parameters(self) -> None:
        # Those of the projection itself.
        super().reset_parameters()  # type: ignore[misc]

        self._reset_adapter()

    @override
    def forward(self, x: Tensor) -> Tensor:
        # That of the projection itself.
        y = super().forward(x)  # type: ignore[safe-super]

        if not self.adapter_is_on:
            return y

        # `autocast` casts by itself.
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(self.lora_a.dtype)

        x = dropout(x, self.lora_dropout_p, self.training)

        # (*, H_inp) -> (*, R) -> (*, H_out)
        delta = linear(linear(x, self.lora_a), self.lora_b)

        return y + (self.lora_scale * delta).to(y.dtype)

    def compute_merged_weight(self) -> Tensor:
        """
        Computes the weight of a projection without adapter that does the same.

        :returns: *Shape:* :math:`(H_{out},H_{inp})`.
        """
        return merge_weight(self.weight, self.lora_a, self.lora_b, self.lora_scale)


@torch.no_grad()
def merge_weight(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    r"""
    Computes :math:`W + sBA` in 32 bits.

    :param weight: *Shape:* :math:`(H_{out},H_{inp})`.
    :param a: *Shape:* :math:`(R,H_{inp})`.
    :param b: *Shape:* :math:`(H_{out},R)`.

    :returns: In the type of ``weight``. *Shape:* Same as ``weight``.
    """
    return (weight.float() + scale * (b.float() @ a.float())).to(weight.dtype)


_CLASSES: Final[Mapping[type[Module], type[LoraProjection]]] = {
    kls: type(f"Lora{kls.__name__}", (LoraProjection, kls), {})
    # Sharded ones are whole without tensor parallelism.
    for kls in (Linear, ColumnShardedLinear, RowShardedLinear)
}


def add_adapter(model: Module, section: LoraSection) -> None:
    """
    Freezes a model and adds an adapter to it, in place, before any wrapper is put
    around it.

    :param section: With a ``rank``.

    :raises WarmupError: If the model has no such projections, or they are divided by
        tensor parallelism.
    """
    assert section.rank is not None

    projections = dict(_list_projections(model))

    known = {name for name, _ in projections}

    for target in section.targets:
        if target != ALL_LINEAR and target not in known:
            raise WarmupError(
                f"`lora.targets` names `{target}`, which the model does not have; use some of {', '.join(f'`{n}`' for n in _TARGETS if n in known)}, or `{ALL_LINEAR}`."
            )

    model.requires_grad_(False)

    for (target, _), proj in projections.items():
        if ALL_LINEAR not in section.targets and target not in section.targets:
            continue

        kls = _CLASSES.get(type(proj))

        if kls is None:
            raise WarmupError(
                f"`lora.targets` names `{target}`, which is a `{type(proj).__name__}` in this model, to which nothing can be added; leave it out."
            )

        if getattr(proj, "sharded", False):
            raise WarmupError(
                "`gang.tensor_parallel_size` must be 1 with `lora.rank`, whose projections are not divided."
            )

        change_class(proj, kls)

        assert isinstance(proj, LoraProjection)

        max_rank = min(proj.input_dim, proj.output_dim)

        if section.rank > max_rank:
            raise WarmupError(
                f"`lora.rank` is {section.rank}, but no matrix that is added to `{target}` has a rank above {max_rank}; lower it."
            )

        proj.add_adapter(section.rank, section.alpha, section.dropout)


def _list_projections(model: Module) -> Iterator[tuple[tuple[str, str], Module]]:
    """Lists what may get an adapter, by what the field calls it and by its full name."""
    for module_name, module in model.named_modules():
        for target, (kls, name) in _TARGETS.items():
            proj = getattr(module, name, None) if isinstance(module, kls) else None

            if isinstance(proj, Module):
                yield (target, f"{module_name}.{name}"), proj


def _iter_adapted(module: Module) -> Iterator[LoraProjection]:
    for submodule in module.modules():
        if isinstance(submodule, LoraProjection):
            yield submodule


def has_adapter(module: Module) -> bool:
    """Tells whether :func:`add_adapter` was called for a model."""
    return next(_iter_adapted(module), None) is not None


@contextmanager
def without_adapter(module: Module) -> Iterator[None]:
    """Switches the adapter of a model off, if it has one: what is left is its base."""
    adapted = list(_iter_adapted(module))

    for proj in adapted:
        proj.adapter_is_on = False

    try:
        yield
    finally:
        for proj in adapted:
            proj.adapter_is_on = True


def is_adapter_weight(name: str) -> bool:
    """Tells the names of an adapter's weights from those of its base."""
    return name.rpartition(".")[2] in (A_NAME, B_NAME)


def save_adapter_only(dp_model: Module) -> None:
    """Lets checkpoints of a model, with its data parallel wrapper, hold what trains."""
    facade = get_data_parallel_facade(dp_model)

    set_data_parallel_facade(dp_model, _AdapterFacade(facade))


@final
class _AdapterFacade(DataParallelFacade):
    """Shows a trainer the weights of the adapter alone."""

    def __init__(self, facade: DataParallelFacade) -> None:
        self._facade = facade

    @override
    def state_dict(self) -> dict[str, object]:
        state_dict = self._facade.state_dict()

        return {n: w for n, w in state_dict.items() if is_adapter_weight(n)}

    @override
    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        whole = self._facade.state_dict()

        missing = {n for n in whole if is_adapter_weight(n)} ^ state_dict.keys()

        if missing:
            raise StateDictError(
                f"The checkpoint and the adapter differ in `{min(missing)}`."
            )

        self._facade.load_state_dict({**whole, **state_dict})

    @override
    def no_sync(self) -> ContextManager[None]:
        return self._facade.no_sync()

    @override
    def clip_grad_norm(self, max_norm: float | None) -> Tensor:
        return self._facade.clip_grad_norm(max_norm)

    @override
    def summon_full_parameters(self) -> ContextManager[None]:
        return self._facade.summon_full_parameters()
