# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Values that fairseq2 or torch would take, or answer with a traceback."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Final, cast, get_type_hints

from fairseq2.utils.structured import StructureError

from warmup_plugin.config_values import create_value_converter
from warmup_plugin.console import describe_causes
from warmup_plugin.errors import WarmupError
from warmup_plugin.runs.run_dir import RunDir

_MAX_SEED: Final = 2**32 - 1

# Of steps, tokens, minutes.
_MAX_INT: Final = 2**31 - 1

_SURROGATE: Final = re.compile("[\ud800-\udfff]")

# Of a model.
_SIZES: Final = (
    "model_dim",
    "head_dim",
    "ffn_inner_dim",
    "ffn_inner_dim_multiple_of",
    "vocab_size",
    "max_seq_len",
)

_SCALES: Final = (
    "ffn_inner_dim_multiplier",
    "ffn_inner_dim_scale",
    "init_std",
    "norm_eps",
    "rope_theta",
)

# No machine has room for more.
_MAX_SIZE: Final = 2**24

# Numbers of a training config by their keys, and what they must be.
_BOUNDS: Final[Sequence[tuple[str, Callable[[float], bool], str]]] = (
    (
        r"(common\.seed)",
        lambda value: 0 <= value <= _MAX_SEED,
        f"greater than or equal to 0 and at most {_MAX_SEED}",
    ),
    (
        r"(common\.torch\.num_threads|validation\.max_num_tokens"
        # Before fairseq2 divides by them.
        r"|(?:regime|trainer)\.\w+_every_n_\w+"
        r"|dataset\.max_(?:source_len|target_len|num_tokens))",
        lambda value: value >= 1,
        "at least 1",
    ),
    (
        r"(trainer\.max_grad_norm)",
        lambda value: value > 0.0,
        "greater than 0, or null for none",
    ),
    (
        r"(lr_scheduler\.config\.start_lr)(?:\[\d+\])?"
        r"|(optimizer\.config\.(?:groups\[\d+\]\.)?(?:lr|weight_decay|eps))",
        lambda value: value >= 0.0,
        "greater than or equal to 0",
    ),
)

# In whose course the length of the run plays no part.
OPEN_ENDED_SCHEDULERS: Final = ("myle", "noam", "passthrough")


def check_values(config: Any) -> None:
    """
    Checks the values of a training config that nothing else checks.

    :raises WarmupError: With the first that is bad.
    """
    for key, value in _iter_values(config, ""):
        if isinstance(value, str):
            # Of these no file can be named, nor a record kept.
            if "\0" in value or _SURROGATE.search(value):
                raise WarmupError(
                    f"`{key}` is {value!r}, which holds a character that is none; correct it."
                )

            continue

        if isinstance(value, float) and not math.isfinite(value):
            raise WarmupError(
                f"`{key}` must be a finite number, but is {value} instead."
            )

        if abs(value) > _MAX_INT and not key.endswith("seed"):
            raise WarmupError(f"`{key}` is {value}, which is too large.")

        for pattern, is_good, text in _BOUNDS:
            if match := re.fullmatch(pattern, key):
                _check(match[match.lastindex or 0], value, is_good(value), text)

    if config.init_from is None and config.init_checkpoint != "best":
        raise WarmupError(
            "`init_checkpoint` chooses a checkpoint of `init_from`, which is not set; set it, or leave `init_checkpoint` out."
        )

    _check_betas("optimizer.config", config.optimizer.config)

    _check_schedule(config)

    check_model(config.model.config_overrides)


def _check(key: str, value: object, is_good: bool, text: str) -> None:
    if not is_good:
        raise WarmupError(f"`{key}` must be {text}, but is {value} instead.")


def _check_betas(key: str, config: Any) -> None:
    betas = getattr(config, "betas", None)

    if isinstance(betas, Sequence):
        is_good = all(0.0 <= beta < 1.0 for beta in betas)

        _check(f"{key}.betas", list(betas), is_good, "from 0 to less than 1 each")

    for idx, group in enumerate(getattr(config, "groups", ())):
        _check_betas(f"{key}.groups[{idx}]", group)


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


def read_run_config(run_dir: RunDir, *, complete: bool = False) -> dict[str, Any]:
    """
    Reads the configuration that a run was trained with.

    :param complete: If ``True``, the defaults of what it does not say are added.

    :raises WarmupError: If a value is none that a run has.
    """
    config, file = run_dir.load_config(), run_dir.run_file

    # It imports this module.
    from warmup_plugin.recipes.train_config import TrainConfig

    converter = create_value_converter()

    defaults = cast("dict[str, Any]", converter.unstructure(TrainConfig()))

    # Of no run are these the default ones.
    for name in ("dataset", "tokenizer") if complete else ():
        if not isinstance(config.get(name), Mapping):
            raise WarmupError(
                f"`{file}` has no section `{name}`; restore the file that `train` wrote."
            )

    checked: dict[str, Any] = {**(defaults if complete else {}), **config}

    def read(key: str, value: object, hint: object) -> object:
        try:
            return converter.unstructure(converter.structure(value, hint))
        except StructureError as ex:
            reason = describe_causes(ex).removesuffix(".")

            raise WarmupError(
                f"`{key}` in `{file}` is none that a run has ({reason}); restore the file that `train` wrote."
            ) from None

    for name, hint in get_type_hints(TrainConfig).items():
        if name not in checked:
            continue

        value = checked[name]

        if not is_dataclass(hint) or not isinstance(value, Mapping):
            checked[name] = read(name, value, hint)

            continue

        # Another version may have had other keys, which stay as they are.
        section = checked[name] = {**(defaults[name] if complete else {}), **value}

        for key, key_hint in get_type_hints(hint).items():
            if key in section:
                section[key] = read(f"{name}.{key}", section[key], key_hint)

    return checked


def check_model(config: object) -> None:
    """
    Checks sizes of a model, of which fairseq2 would be told only as it builds it.

    :param config: The whole configuration of the model, or what overrides its defaults.

    :raises WarmupError: With the first that is bad.
    """
    if not isinstance(config, Mapping):
        return

    for name, value in config.items():
        key = f"model.config_overrides.{name}"

        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue

        if str(name).endswith("dropout_p"):
            _check(key, value, 0.0 <= value <= 1.0, "from 0 to 1")
        elif name == "pad_idx":
            _check(key, value, value >= 0, "greater than or equal to 0, or null")
        elif name in _SIZES or str(name).startswith("num_"):
            _check(key, value, value >= 1, "at least 1")
            _check(key, value, value <= _MAX_SIZE, f"at most {_MAX_SIZE}")
        elif name in _SCALES:
            _check(key, value, value > 0.0, "greater than 0")

    def get(name: str) -> int | None:
        value = config.get(name)

        return value if isinstance(value, int) else None

    dim, num_kv_heads = get("model_dim"), get("num_key_value_heads")

    # These heads need not be as wide as the model.
    has_own_dim = get("head_dim") is not None

    for name in config:
        num_heads = get(name)

        if dim is None or num_heads is None or not str(name).endswith("attn_heads"):
            continue

        if not has_own_dim and dim % num_heads != 0:
            raise WarmupError(
                f"`model_dim` in `model.config_overrides` must be a multiple of `{name}` ({num_heads}), but is {dim} instead."
            )

        if num_kv_heads is not None and num_heads % num_kv_heads != 0:
            raise WarmupError(
                f"`{name}` in `model.config_overrides` must be a multiple of `num_key_value_heads` ({num_kv_heads}), but is {num_heads} instead."
            )

        # Positions are encoded by pairs, of the model or of each head.
        width = dim if num_kv_heads is None else dim // num_heads

        if not has_own_dim and width % 2 != 0:
            raise WarmupError(
                f"`model_dim` in `model.config_overrides` must be even, in each head of a decoder-only model too, but is {dim} with `{name}` = {num_heads} instead."
            )


def _iter_values(value: object, key: str) -> Iterator[tuple[str, int | float | str]]:
    """Goes through the numbers and texts of a config."""
    if isinstance(value, bool):
        return

    if isinstance(value, Path):
        value = str(value)

    if isinstance(value, (int, float, str)):
        yield key, value
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            name = f"{key}.{field.name}" if key else field.name

            yield from _iter_values(getattr(value, field.name), name)
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _iter_values(item, f"{key}.{name}")
    elif isinstance(value, (list, tuple)):
        for idx, item in enumerate(value):
            yield from _iter_values(item, f"{key}[{idx}]")
