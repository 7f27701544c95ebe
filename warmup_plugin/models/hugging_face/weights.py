# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Final

import torch
import transformers
from fairseq2.device import CPU
from fairseq2.gang import create_fake_gangs
from fairseq2.models.family import ModelFamily
from fairseq2.models.hg import HuggingFaceConfig
from fairseq2.runtime.dependency import get_dependency_resolver
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from warmup_plugin.errors import WarmupError
from warmup_plugin.parsing import parse_json

_CONFIG_FILE: Final = "config.json"

_WEIGHT_FILES: Final = ("model.safetensors", "pytorch_model.bin")
"""The files of weights in the order of preference; large models have an index and
several shards instead."""

_INDEX_SUFFIX: Final = ".index.json"

_LFS_POINTER: Final = b"version https://git-lfs"

_ZIP_FILE: Final = b"PK\x03\x04"

_FILE_NAME: Final = re.compile(r"(?!\.)[^/\\\0]+")
"""The name of a file in the same folder."""

_MAX_NAMES: Final = 3
"""How many weights an error names."""


def read_config_json(
    folder: Path,
    name: str = _CONFIG_FILE,
    *,
    remedy: str = "name the folder of a Hugging Face model",
) -> dict[str, object]:
    """
    Reads the configuration of a Hugging Face model.

    :param remedy: What to do if there is none.

    :raises WarmupError: If there is none, or what is there is not a JSON object.
    """
    _check_folder(folder)

    file = folder / name

    if not _is_file(file):
        raise WarmupError(f"{folder} has no `{name}`; {remedy}.")

    return _read_json(file)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """
    Reads the weights of a Hugging Face model to the CPU.

    Python code in a file is not run.

    :raises WarmupError: If there are no weights, or a file is missing or damaged.
    """
    _check_folder(folder)

    for name in _WEIGHT_FILES:
        if _is_file(folder / name):
            return read_weight_file(folder / name)

        if _is_file(folder / f"{name}{_INDEX_SUFFIX}"):
            return _read_shards(folder / f"{name}{_INDEX_SUFFIX}")

    raise WarmupError(
        f"{folder} has neither `{_WEIGHT_FILES[0]}` nor `{_WEIGHT_FILES[1]}`, nor an index of shards; download the weights as well."
    )


def check_weights(
    state_dict: Mapping[str, Tensor], expected: Mapping[str, torch.Size], origin: str
) -> None:
    """
    Compares weights with what a model needs.

    :param expected: The shapes by name, as from :func:`expected_shapes`.
    :param origin: What the weights were read from.

    :raises WarmupError: If a weight is missing, unknown or has another shape.
    """
    missing = [n for n in expected if n not in state_dict]

    unknown = [n for n in state_dict if n not in expected]

    misshapen = [
        f"{n}: {tuple(state_dict[n].shape)} instead of {tuple(shape)}"
        for n, shape in expected.items()
        if n in state_dict and state_dict[n].shape != shape
    ]

    faults = [
        f"{len(names)} {what} ({_shorten(names)})"
        for what, names in [
            (f"of {len(expected)} missing", missing),
            ("unknown", unknown),
            ("of another shape", misshapen),
        ]
        if names
    ]

    if faults:
        raise WarmupError(
            f"The weights in {origin} do not fit the model, {', '.join(faults)}; take `{_CONFIG_FILE}` and weights from one checkpoint."
        )


def expected_shapes(family_name: str, config: object) -> dict[str, torch.Size]:
    """
    Returns the shapes of the weights of a model by name, tied weights included.

    Nothing is allocated: the model is created on the meta device.

    :raises WarmupError: If fairseq2 does not know the family.
    """
    family = get_dependency_resolver().maybe_resolve(ModelFamily, key=family_name)

    if family is None:
        raise WarmupError(
            f"`{family_name}` is not a model family; see `doctor` for what is installed."
        )

    model = family.create_new_model(
        config,
        create_fake_gangs(CPU),
        torch.float32,
        meta=True,
        init_rank0_only=False,
    )

    return {name: weight.shape for name, weight in model.state_dict().items()}


def write_model(
    folder: Path,
    hg_config: HuggingFaceConfig,
    hg_state_dict: Mapping[str, object],
    extra_config: Mapping[str, object],
) -> None:
    """
    Writes ``config.json`` and ``model.safetensors``.

    Weights of more than 5 GB are written to several files with an index. The
    configuration is written last: a folder that has it is complete.

    :param extra_config: Further fields of ``config.json``, such as the indices of
        special tokens; they go before those of ``hg_config``.

    :raises WarmupError: If the folder holds a model already or cannot be written.
    """
    config_kls = getattr(transformers, hg_config.kls_name)

    config = config_kls(**{**hg_config.data, **extra_config})

    arch = hg_config.arch

    config.architectures = [arch] if isinstance(arch, str) else list(arch)

    tensors = {}

    for name, weight in hg_state_dict.items():
        if not isinstance(weight, Tensor):
            raise TypeError(
                f"`hg_state_dict` must hold tensors, but `{name}` is of type `{type(weight)}`."
            )

        # What looks for shared weights fails for some views.
        tensors[name] = weight.contiguous()

    try:
        folder.mkdir(parents=True, exist_ok=True)

        for file_name in (_CONFIG_FILE, *_WEIGHT_FILES):
            for file in (folder / file_name, folder / f"{file_name}{_INDEX_SUFFIX}"):
                # A reader might prefer the old file to the new ones.
                if file.exists():
                    raise WarmupError(
                        f"{file} exists already; choose another folder or remove the old model."
                    )

        save_torch_state_dict(tensors, folder)

        config.save_pretrained(folder)
    except (OSError, SafetensorError) as ex:
        raise WarmupError(
            f"The model cannot be written to {folder} ({_describe(ex)}); check the permissions and the free space, or choose another folder."
        ) from None


def _read_shards(index_file: Path) -> dict[str, Tensor]:
    weight_map = _read_json(index_file).get("weight_map")

    if not isinstance(weight_map, dict) or not weight_map:
        raise WarmupError(
            f"{index_file} has no `weight_map` that names files; download it again."
        )

    names: dict[Path, list[str]] = {}

    for name, file_name in weight_map.items():
        # Not what is outside of the folder.
        if not isinstance(file_name, str) or not _FILE_NAME.fullmatch(file_name):
            raise WarmupError(
                f"{index_file} names {file_name!r} as the file of `{name}`, which is not a file name; download it again."
            )

        names.setdefault(index_file.parent / file_name, []).append(name)

    # Known before gigabytes are read.
    for file in names:
        if not _is_file(file):
            raise WarmupError(
                f"{file} is missing, though {index_file.name} names it; download it as well."
            )

    state_dict = {}

    for file, file_names in names.items():
        shard = read_weight_file(file)

        lost = [n for n in file_names if n not in shard]

        if lost:
            raise WarmupError(
                f"{file} lacks {len(lost)} of the weights that {index_file.name} says it has ({_shorten(lost)}); download both again."
            )

        state_dict.update(shard)

    return state_dict


def read_weight_file(file: Path) -> dict[str, Tensor]:
    """
    Reads a file of weights, as :func:`read_weights` does.

    :raises WarmupError: If it holds something else, or is damaged.
    """
    head = _read_head(file)

    weights: object

    try:
        if file.suffix == ".safetensors":
            weights = load_file(file)
        else:
            with warnings.catch_warnings():
                # About versions of pickle; what cannot be read is reported below.
                warnings.simplefilter("ignore")

                # Files of PyTorch before 1.6 are not zipped and cannot be mapped.
                weights = torch.load(
                    file,
                    map_location=CPU,
                    weights_only=True,
                    mmap=head.startswith(_ZIP_FILE),
                )
    except UnpicklingError as ex:
        # So pickle calls what it would import: a function or a class.
        if "GLOBAL" in str(ex):
            raise WarmupError(
                f"{file} holds Python code, which is not run; convert the file to safetensors where you trust it, or take `{_WEIGHT_FILES[0]}`."
            ) from None

        # What PyTorch says is about trust.
        raise _refuse_damaged(file, UnpicklingError("not weights")) from None
    # What a reader makes of a damaged file is not limited to some errors.
    except Exception as ex:
        raise _refuse_damaged(file, ex) from None

    if isinstance(weights, dict):
        if all(isinstance(w, Tensor) for w in weights.values()):
            # A file of older versions may hold parameters.
            return {str(name): weight.detach() for name, weight in weights.items()}

    raise WarmupError(
        f"{file} holds something else than weights by name; take the file that `save_pretrained` of transformers wrote."
    )


def _refuse_damaged(file: Path, ex: Exception) -> WarmupError:
    return WarmupError(
        f"{file} is damaged or incomplete ({_describe(ex)}); download it again."
    )


def _read_json(file: Path) -> dict[str, object]:
    _read_head(file)

    try:
        content = parse_json(file.read_text(encoding="utf-8"))
    except ValueError as ex:
        raise WarmupError(
            f"{file} is not JSON ({_describe(ex)}); download it again."
        ) from None

    if not isinstance(content, dict):
        raise WarmupError(f"{file} is not a JSON object; download it again.")

    return content


def _read_head(file: Path) -> bytes:
    """Opens a file, and refuses the pointer that stands for it in a Git repository."""
    try:
        with file.open("rb") as fp:
            head = fp.read(64)
    except OSError as ex:
        raise _refuse_unreadable(file, ex) from None

    if head.startswith(_LFS_POINTER):
        raise WarmupError(
            f"{file} is a pointer of Git LFS instead of the file; run `git lfs pull` in {file.parent}."
        )

    return head


def _check_folder(folder: Path) -> None:
    try:
        exists = folder.is_dir()
    except OSError as ex:
        raise _refuse_unreadable(folder, ex) from None

    if not exists:
        raise WarmupError(
            f"{folder} is not a folder; name the folder of a Hugging Face model, downloaded before."
        )


def _is_file(file: Path) -> bool:
    try:
        return file.exists()
    except OSError as ex:
        raise _refuse_unreadable(file, ex) from None


def _refuse_unreadable(path: Path, ex: OSError) -> WarmupError:
    return WarmupError(
        f"{path} cannot be read ({_describe(ex)}); check its permissions."
    )


def _describe(ex: Exception) -> str:
    """Returns the beginning of what an error says, without a final point."""
    message = ex.strerror if isinstance(ex, OSError) and ex.strerror else str(ex)

    sentence = re.split(r"\.?\s*\n|\.\s", message.strip())[0].rstrip(".")

    return sentence[:120] or type(ex).__name__


def _shorten(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > _MAX_NAMES else ""

    return f"{', '.join(names[:_MAX_NAMES])}{more}"
