# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""The checkpoints of runs, read and written outside of training."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from fairseq2.device import CPU
from fairseq2.gang import create_fake_gangs
from fairseq2.io import TensorFileDumper
from fairseq2.model_checkpoint import (
    ModelCheckpointLoader,
    ModelCheckpointLoadOptions,
)
from fairseq2.runtime.dependency import get_dependency_resolver
from fairseq2.utils.structured import StructureError, ValueConverter
from torch import Tensor

from warmup_plugin.errors import WarmupError
from warmup_plugin.fairseq2_doors import MODEL_FILE, MODEL_METADATA_FILE
from warmup_plugin.files import write_text_atomically
from warmup_plugin.models.families import find_family
from warmup_plugin.models.lora_checkpoint import (
    AdapterCheckpointLoader,
    AdapterRecord,
    find_base,
    find_record,
    prepare_base,
)
from warmup_plugin.runs.run_dir import RunDir
from warmup_plugin.runs.yaml_files import dump_yaml
from warmup_plugin.terminal import find_full_disk


def load_model_config(run_dir: RunDir) -> tuple[str, object]:
    """
    Loads the family and the configuration of a run's model.

    :raises WarmupError: If the run does not say them, or they do not fit each other.
    """
    family_name, content = run_dir.load_model_metadata()

    family = find_family(family_name)

    converter = get_dependency_resolver().resolve(ValueConverter)

    try:
        config = converter.structure(content, family.config_kls)
    except StructureError:
        raise WarmupError(
            f"`{run_dir.checkpoint_dir / MODEL_METADATA_FILE}` holds no configuration of the family `{family_name}`; restore it from a copy of the run."
        ) from None

    return family_name, config


def load_weights(
    run_dir: RunDir, step_nr: int, *, path: Path | None = None
) -> dict[str, Tensor]:
    """
    Loads the weights of a checkpoint, whole also if several processes have saved it.

    Tied weights come under one of their names; see :func:`complete_tied`.

    :param path: Where else the weights are, of the same model.

    :raises WarmupError: If the checkpoint is damaged or of another model.
    """
    path = path or run_dir.model_path(step_nr)

    family_name, config = load_model_config(run_dir)

    weights = {}

    # Not mapped: the file may be replaced while its weights are used.
    checkpoint = find_family(family_name).iter_checkpoint(
        path, config, create_fake_gangs(CPU), mmap=False, restrict=True
    )

    # What a damaged file makes of the reader is not limited to some errors.
    try:
        for name, weight in checkpoint:
            weights[name] = weight
    except WarmupError:
        raise
    except Exception:
        raise WarmupError(
            f"The checkpoint `{path}` is damaged; choose another checkpoint, or restore it from a copy of the run."
        ) from None

    return weights


@dataclass(frozen=True)
class AdaptedWeights:
    """Holds the two parts of a model with an adapter."""

    record: AdapterRecord

    base: dict[str, Tensor]
    """What the adapter was trained beside, rows that were prepared included."""

    adapter: dict[str, Tensor]


def load_adapted(run_dir: RunDir, step_nr: int) -> AdaptedWeights | None:
    """
    Loads the two parts of a checkpoint of a run with LoRA.

    :returns: ``None`` if the run has none.

    :raises WarmupError: As of :func:`load_weights`.
    """
    record = find_record(run_dir.checkpoint_dir)

    if record is None:
        return None

    base_path = find_base(record, run_dir.checkpoint_dir)

    base = load_weights(run_dir, step_nr, path=base_path)

    loader = get_dependency_resolver().resolve(ModelCheckpointLoader)

    assert isinstance(loader, AdapterCheckpointLoader)

    options = ModelCheckpointLoadOptions(gangs=create_fake_gangs(CPU))

    return AdaptedWeights(
        record,
        dict(prepare_base(base.items(), record)),
        loader.load_adapter(run_dir.model_path(step_nr), options),
    )


def complete_tied(
    weights: Mapping[str, Tensor], family_name: str, config: object
) -> dict[str, Tensor]:
    """Gives tied weights under each of their names."""
    # On the meta device, where nothing is allocated.
    model = find_family(family_name).create_new_model(
        config, create_fake_gangs(CPU), torch.float32, meta=True, init_rank0_only=False
    )

    complete = dict(weights)

    known = {}

    names: dict[int, list[str]] = {}

    # Not detached, so that one parameter is one object under all its names.
    for name, parameter in model.state_dict(keep_vars=True).items():
        names.setdefault(id(parameter), []).append(name)

        known[name] = names[id(parameter)]

    for name, weight in weights.items():
        for other in known.get(name, []):
            complete.setdefault(other, weight)

    return complete


def write_weights(run_dir: RunDir, step_nr: int, weights: Mapping[str, Tensor]) -> None:
    """Writes a checkpoint of one file in fairseq2's own layout."""
    file = run_dir.model_path(step_nr) / MODEL_FILE

    file.parent.mkdir(parents=True)

    dumper = get_dependency_resolver().resolve(TensorFileDumper)

    dumper.dump(weights, file)


def write_model_config(run_dir: RunDir, family_name: str, config: object) -> None:
    """Writes what :func:`load_model_config` reads, as fairseq2 does."""
    converter = get_dependency_resolver().resolve(ValueConverter)

    metadata = {
        "name": "checkpoint",
        "model_family": family_name,
        "model_config": converter.unstructure(config),
    }

    file = run_dir.checkpoint_dir / MODEL_METADATA_FILE

    write_text_atomically(file, dump_yaml(metadata))


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """
    Makes a folder that appears only once it is complete.

    :returns: A folder beside it to write to.

    :raises WarmupError: If it exists and is not empty, or cannot be written.
    """
    out = out.expanduser().absolute()

    check_new_folder(out)

    tmp_folder: Path | None = None

    try:
        out.parent.mkdir(parents=True, exist_ok=True)

        tmp_folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))

        # `mkdtemp` keeps others out, but a model is to be shared.
        umask = os.umask(0)

        os.umask(umask)

        tmp_folder.chmod(0o777 & ~umask)

        yield tmp_folder

        tmp_folder.replace(out)
    except OSError as ex:
        raise WarmupError(
            f"`{out}` cannot be written ({ex.strerror or ex}); free some space or name a folder that you may write to."
        ) from None
    except Exception as ex:
        # What libraries make of a full disk; `torch.save` does not name it.
        full = find_full_disk(ex)

        if (
            full is None
            and "PytorchStreamWriter" not in str(ex)
            and "inline_container" not in str(ex)
        ):
            raise

        reason = " ".join(str(full or "as of a full disk").split())

        raise WarmupError(
            f"`{out}` cannot be written ({reason}); free some space or name another folder."
        ) from None
    finally:
        if tmp_folder is not None:
            shutil.rmtree(tmp_folder, ignore_errors=True)


def check_new_folder(out: Path) -> None:
    """
    :raises WarmupError: If something is there that would be replaced.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise WarmupError(f"`{out}` exists already; name another folder or remove it.")
