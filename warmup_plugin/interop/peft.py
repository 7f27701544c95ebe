# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
Adapters in the format of ``peft``, by Hugging Face: ``adapter_config.json`` and
``adapter_model.safetensors``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from safetensors.torch import save_file
from torch import Tensor

from warmup_plugin.errors import WarmupError
from warmup_plugin.models.hugging_face.format import HuggingFaceFormat
from warmup_plugin.models.hugging_face.weights import (
    read_config_json,
    read_weight_file,
)
from warmup_plugin.models.lora import A_NAME, B_NAME, merge_weight
from warmup_plugin.models.lora_checkpoint import AdapterRecord

_CONFIG_FILE: Final = "adapter_config.json"

_WEIGHT_FILES: Final = ("adapter_model.safetensors", "adapter_model.bin")

_PREFIX: Final = "base_model.model."

_A_SUFFIX: Final = ".lora_A.weight"

_B_SUFFIX: Final = ".lora_B.weight"

_NOT_READ: Final[Mapping[str, object]] = {
    "use_dora": False,
    "bias": "none",
    "fan_in_fan_out": False,
    "alpha_pattern": {},
    "modules_to_save": None,
    "trainable_token_indices": None,
    "layer_replication": None,
}
"""Settings that change what is computed, and the value that is read."""


def write_peft_adapter(
    folder: Path,
    adapter: Mapping[str, Tensor],
    record: AdapterRecord,
    hg_format: HuggingFaceFormat,
    config: object,
    *,
    base: str,
    is_decoder_only: bool,
) -> None:
    """
    Writes an adapter as ``PeftModel.from_pretrained()`` reads it.

    :param adapter: The weights by their names in fairseq2.
    :param config: The configuration of the model.
    :param base: Where the base is, as transformers is told it.
    """
    tensors, targets = {}, set()

    for name, a in adapter.items():
        module, _, kind = name.rpartition(".")

        if kind != A_NAME:
            continue

        b = adapter[f"{module}.{B_NAME}"]

        # The rows of a projection may have another order there, and so may those of B.
        renamed = hg_format.to_hg_state_dict({f"{module}.weight": b}, config)

        [(hg_name, hg_b)] = renamed.items()

        assert isinstance(hg_b, Tensor)

        hg_module = hg_name.removesuffix(".weight")

        targets.add(hg_module.rpartition(".")[2])

        tensors[f"{_PREFIX}{hg_module}{_A_SUFFIX}"] = a.contiguous()
        tensors[f"{_PREFIX}{hg_module}{_B_SUFFIX}"] = hg_b.contiguous()

    alpha = record.alpha

    content = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if is_decoder_only else "SEQ_2_SEQ_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": record.rank,
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "lora_dropout": record.dropout,
        # All modules of a name have one.
        "target_modules": sorted(targets),
        "bias": "none",
        "fan_in_fan_out": False,
    }

    folder.mkdir()

    save_file(tensors, folder / _WEIGHT_FILES[0], {"format": "pt"})

    folder.joinpath(_CONFIG_FILE).write_text(
        json.dumps(content, indent=2) + "\n", encoding="utf-8"
    )


def merge_peft_adapter(
    hg_state_dict: Mapping[str, Tensor], folder: Path
) -> dict[str, Tensor]:
    """
    Merges an adapter that ``peft`` wrote into the weights of its base.

    :param hg_state_dict: The weights by Hugging Face's names.

    :raises WarmupError: If it is no LoRA, one of a kind that is not read, or of another
        model.
    """
    config = read_config_json(
        folder, _CONFIG_FILE, remedy="name the folder of an adapter of `peft`"
    )

    scale = _read_scale(config, folder)

    file = next((f for n in _WEIGHT_FILES if (f := folder / n).is_file()), None)

    if file is None:
        raise WarmupError(
            f"{folder} has neither `{_WEIGHT_FILES[0]}` nor `{_WEIGHT_FILES[1]}`; copy the weights of the adapter as well."
        )

    adapter = read_weight_file(file)

    merged = dict(hg_state_dict)

    while adapter:
        name = next(iter(adapter))

        module = name.removesuffix(_A_SUFFIX).removesuffix(_B_SUFFIX)

        pair = [adapter.pop(f"{module}{s}", None) for s in (_A_SUFFIX, _B_SUFFIX)]

        a, b = pair

        if a is None or b is None:
            raise WarmupError(
                f"{file} holds `{name}`, which is not of a LoRA of projections; train the adapter without what makes it, or merge it with `peft` and import the result."
            )

        base_name = f"{module.removeprefix(_PREFIX)}.weight"

        weight = merged.get(base_name)

        if weight is None or a.ndim != 2 or weight.shape != (b.size(0), a.size(1)):
            raise WarmupError(
                f"{file} holds `{name}`, for which the model has no `{base_name}` of that size; name the model that the adapter was trained beside."
            )

        # Not that of the file: ranks may differ.
        merged[base_name] = merge_weight(weight, a, b, scale(a.size(0)))

    return merged


def _read_scale(config: Mapping[str, Any], folder: Path) -> Any:
    """Returns what maps a rank to what the product is multiplied by."""
    file = folder / _CONFIG_FILE

    if config.get("peft_type") != "LORA":
        raise WarmupError(
            f"{file} has the `peft_type` {config.get('peft_type')!r}; only `LORA` is read."
        )

    for name, value in _NOT_READ.items():
        given = config.get(name)

        if given != value and given:
            raise WarmupError(
                f"{file} has `{name}` {given!r}, which is not read; merge the adapter with `peft` and import the result."
            )

    alpha = config.get("lora_alpha")

    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
        raise WarmupError(
            f"{file} has no number as `lora_alpha`; take the file that `peft` wrote."
        )

    if config.get("use_rslora"):
        return lambda rank: alpha / math.sqrt(rank)

    return lambda rank: alpha / rank
