# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Values that fairseq2 or torch would take, or answer with a traceback."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Final

from warmup_plugin.errors import WarmupError

_MAX_SEED: Final = 2**32 - 1

_MAX_INT: Final = 2**63 - 1

# Of `model.config_overrides`.
_SIZES: Final = ("model_dim", "ffn_inner_dim", "vocab_size", "max_seq_len")

# In whose course the length of the run plays no part.
OPEN_ENDED_SCHEDULERS: Final = ("myle", "noam", "passthrough")


def check_values(config: Any) -> None:
    """
    Checks the values of a training config that nothing else checks.

    :raises WarmupError: With the first that is bad.
    """
    for key, value in _iter_numbers(config, ""):
        if isinstance(value, float) and not math.isfinite(value):
            raise WarmupError(
                f"`{key}` must be a finite number, but is {value} instead."
            )

        if abs(value) > _MAX_INT and not key.endswith("seed"):
            raise WarmupError(f"`{key}` is {value}, which is too large.")

    if not 0 <= config.common.seed <= _MAX_SEED:
        raise WarmupError(
            f"`common.seed` must be greater than or equal to 0 and at most {_MAX_SEED}, but is {config.common.seed} instead."
        )

    # Before fairseq2 divides by them.
    for section in ("regime", "trainer"):
        for field in fields(getattr(config, section)):
            value = getattr(getattr(config, section), field.name)

            if "_every_n_" in field.name and value is not None:
                _check(f"{section}.{field.name}", value, value >= 1, "at least 1")

    norm = config.trainer.max_grad_norm

    if norm is not None:
        _check(
            "trainer.max_grad_norm",
            norm,
            norm > 0.0,
            "greater than 0, or null for none",
        )

    if config.init_from is None and config.init_checkpoint != "best":
        raise WarmupError(
            "`init_checkpoint` chooses a checkpoint of `init_from`, which is not set; set it, or leave `init_checkpoint` out."
        )

    for name in ("max_source_len", "max_target_len", "max_num_tokens"):
        value = getattr(config.dataset, name)

        _check(f"dataset.{name}", value, value >= 1, "at least 1")

    _check_optimizer("optimizer.config", config.optimizer.config)

    _check_schedule(config)

    _check_model(config.model.config_overrides)


def _check(key: str, value: object, is_good: bool, text: str) -> None:
    if not is_good:
        raise WarmupError(f"`{key}` must be {text}, but is {value} instead.")


def _check_optimizer(key: str, config: Any) -> None:
    for name in ("lr", "weight_decay"):
        value = getattr(config, name, None)

        if isinstance(value, (int, float)):
            _check(f"{key}.{name}", value, value >= 0, "greater than or equal to 0")

    betas = getattr(config, "betas", None)

    if isinstance(betas, Sequence):
        is_good = all(0.0 <= beta < 1.0 for beta in betas)

        _check(f"{key}.betas", list(betas), is_good, "from 0 to less than 1 each")

    eps = getattr(config, "eps", None)

    if isinstance(eps, (int, float)):
        _check(f"{key}.eps", eps, eps >= 0, "greater than or equal to 0")

    for idx, group in enumerate(getattr(config, "groups", ())):
        _check_optimizer(f"{key}.groups[{idx}]", group)


def _check_schedule(config: Any) -> None:
    scheduler = config.lr_scheduler

    key = "lr_scheduler.config.num_warmup_steps"

    num_steps = getattr(scheduler.config, "num_warmup_steps", None)

    if num_steps is None:
        return

    # Both divide by it.
    least = 1 if scheduler.name in ("myle", "noam") else 0

    _check(key, num_steps, num_steps >= least, f"at least {least}")

    total = config.regime.num_steps

    if scheduler.name in OPEN_ENDED_SCHEDULERS or total is None:
        return

    if num_steps >= total:
        raise WarmupError(
            f"`{key}` is {num_steps}, but the run has only `regime.num_steps` = {total} steps; lower the one or raise the other."
        )


def _check_model(overrides: object) -> None:
    if not isinstance(overrides, Mapping):
        return

    for name, value in overrides.items():
        key = f"model.config_overrides.{name}"

        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue

        if name in _SIZES or str(name).startswith("num_"):
            _check(key, value, value >= 1, "at least 1")

        if str(name).endswith("dropout_p"):
            _check(key, value, 0.0 <= value <= 1.0, "from 0 to 1")

    dim = overrides.get("model_dim")

    for name, value in overrides.items():
        if not isinstance(dim, int) or not isinstance(value, int):
            continue

        if str(name).endswith("attn_heads") and dim % value != 0:
            raise WarmupError(
                f"`model_dim` in `model.config_overrides` must be a multiple of `{name}` ({value}), but is {dim} instead."
            )


def _iter_numbers(value: object, key: str) -> Iterator[tuple[str, int | float]]:
    if isinstance(value, bool):
        return

    if isinstance(value, (int, float)):
        yield key, value
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            name = f"{key}.{field.name}" if key else field.name

            yield from _iter_numbers(getattr(value, field.name), name)
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _iter_numbers(item, f"{key}.{name}")
    elif isinstance(value, (list, tuple)):
        for idx, item in enumerate(value):
            yield from _iter_numbers(item, f"{key}[{idx}]")
