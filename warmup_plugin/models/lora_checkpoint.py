# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
Checkpoints that hold an adapter alone, and how they become whole models again.

Beside the checkpoints of a run with LoRA lies ``lora.json``: which base the adapter
belongs to, and what was done to it. Whoever loads such a checkpoint by fairseq2's own
:class:`ModelCheckpointLoader` (``translate``, ``generate``, ``export``, ``init_from``, an
asset card) gets the base with the adapter merged into it, and needs not know.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final, final

import torch
from fairseq2.file_system import FileSystem, raise_if_not_exists
from fairseq2.model_checkpoint import (
    CorruptModelCheckpointError,
    ModelCheckpointLoader,
    ModelCheckpointLoadOptions,
)
from fairseq2.runtime.dependency import DependencyContainer
from fairseq2.utils.structured import StandardValueConverter, StructureError
from torch import Tensor
from typing_extensions import override

from warmup_plugin.errors import WarmupError
from warmup_plugin.fairseq2_doors import parse_step_folder, remove_provider
from warmup_plugin.files import digest_weights, write_text_atomically
from warmup_plugin.models.lora import (
    A_NAME,
    B_NAME,
    LoraSection,
    is_adapter_weight,
    merge_weight,
)
from warmup_plugin.models.separator import PreparedRow, prepare_rows
from warmup_plugin.parsing import parse_json

_FILE_NAME: Final = "lora.json"


@final
@dataclass(frozen=True, kw_only=True)
class AdapterRecord:
    """Says what the adapters of a run belong to."""

    base: str
    """The folder of the weights of the base, whose last parts are
    ``RUN/checkpoints/step_N/model``."""

    base_digest: str
    """As of :func:`~warmup_plugin.files.digest_weights`."""

    dtype: str
    """The type that the base was trained in, such as ``float32``."""

    rank: int

    alpha: float

    dropout: float

    targets: Sequence[str]

    rows: Sequence[PreparedRow]
    """The rows of the base that were prepared before training."""

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def create_record(
    section: LoraSection,
    base: Path,
    dtype: torch.dtype,
    rows: Sequence[PreparedRow],
) -> AdapterRecord:
    """
    Describes an adapter that is to be trained.

    :param section: With a ``rank``.
    :param base: The folder of the weights of the base.
    """
    assert section.rank is not None

    return AdapterRecord(
        base=str(base.resolve()),
        base_digest=digest_weights(base),
        dtype=str(dtype).removeprefix("torch."),
        rows=list(rows),
        **asdict(section),
    )


def write_record(checkpoint_dir: Path, record: AdapterRecord) -> None:
    """Writes what :func:`find_record` reads beside the checkpoints of a run."""
    checkpoint_dir.mkdir(parents=True, exist_ok=True)

    write_text_atomically(
        checkpoint_dir / _FILE_NAME, json.dumps(asdict(record), indent=2) + "\n"
    )


def find_record(checkpoint_dir: Path) -> AdapterRecord | None:
    """
    Reads what the adapters in a folder of checkpoints belong to.

    :returns: ``None`` if whole models are there.

    :raises WarmupError: If the record is damaged.
    """
    file = checkpoint_dir / _FILE_NAME

    try:
        content = parse_json(file.read_text(encoding="utf-8"))

        record: AdapterRecord = StandardValueConverter().structure(
            content, AdapterRecord
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, StructureError):
        raise _make_damaged_error(file) from None

    if record.rank < 1 or not isinstance(
        getattr(torch, record.dtype, None), torch.dtype
    ):
        raise _make_damaged_error(file)

    return record


def _make_damaged_error(file: Path) -> WarmupError:
    return WarmupError(
        f"`{file}`, which says what the adapters beside it belong to, cannot be read; restore it from a copy of the run."
    )


def find_base(record: AdapterRecord, checkpoint_dir: Path) -> Path:
    """
    Finds the weights that an adapter belongs to: where they were, or else in the run of
    the same name beside this one, if both were moved.

    :param checkpoint_dir: That of the adapter.

    :raises WarmupError: If they are not there, or others are.
    """
    base = Path(record.base)

    places = [base, checkpoint_dir.parent.parent.joinpath(*base.parts[-4:])]

    found = [place for place in places if place.is_dir()]

    for place in found:
        if digest_weights(place) == record.base_digest:
            return place

    file = checkpoint_dir / _FILE_NAME

    if found:
        raise WarmupError(
            f"`{found[0]}`, which the adapters of `{checkpoint_dir.parent}` were trained beside, has changed since; restore it, or write where a copy is as `base` in `{file}`."
        )

    raise WarmupError(
        f"`{base}`, which the adapters of `{checkpoint_dir.parent}` were trained beside, is gone; restore it, or write where it is now as `base` in `{file}`."
    )


def prepare_base(
    weights: Iterable[tuple[str, Tensor]], record: AdapterRecord
) -> Iterator[tuple[str, Tensor]]:
    """
    Makes of weights what an adapter was trained beside, in the type that it was.

    :param weights: Those of :func:`find_base`.
    """
    prepared = {name for row in record.rows for name in row.weights}

    for name, weight in weights:
        weight = weight.to(getattr(torch, record.dtype))

        if name in prepared:
            # Equal weights share their memory, also if they are not tied.
            weight = weight.clone()

            prepare_rows({name: weight}, record.rows)

        yield name, weight


@final
class AdapterCheckpointLoader(ModelCheckpointLoader):
    """
    Loads checkpoints as fairseq2 does, and those of adapters as whole models.

    It takes the place of fairseq2's own loader, which tries the same formats in turn.
    """

    def __init__(
        self, loaders: Sequence[ModelCheckpointLoader], file_system: FileSystem
    ) -> None:
        self._loaders = loaders
        self._file_system = file_system

    @override
    def lazy_load(
        self,
        path: Path,
        shard_dims: Mapping[str, int],
        options: ModelCheckpointLoadOptions | None = None,
    ) -> Iterator[tuple[str, Tensor]]:
        options = options or ModelCheckpointLoadOptions()

        record = _find_record_of(path)

        if record is None:
            return self._load(path, shard_dims, options)

        return self._merge(record, path, shard_dims, options)

    def _load(
        self,
        path: Path,
        shard_dims: Mapping[str, int],
        options: ModelCheckpointLoadOptions,
    ) -> Iterator[tuple[str, Tensor]]:
        raise_if_not_exists(self._file_system, path)

        for loader in self._loaders:
            if loader.supports_path(path):
                return loader.lazy_load(path, shard_dims, options)

        raise CorruptModelCheckpointError(
            path, f"{path} does not point to any known checkpoints."
        )

    def _merge(
        self,
        record: AdapterRecord,
        path: Path,
        shard_dims: Mapping[str, int],
        options: ModelCheckpointLoadOptions,
    ) -> Iterator[tuple[str, Tensor]]:
        adapter = self.load_adapter(path, options)

        base = find_base(record, path.parent.parent)

        weights = self.lazy_load(base, shard_dims, options)

        for name, weight in prepare_base(weights, record):
            module = name.removesuffix(".weight")

            a, b = (adapter.pop(f"{module}.{n}", None) for n in (A_NAME, B_NAME))

            if a is not None and b is not None:
                weight = merge_weight(weight, a, b, record.scale)

            yield name, weight

        if adapter:
            raise WarmupError(
                f"The adapter in `{path}` has `{min(adapter)}`, which its base has no place for; restore it from a copy of the run."
            )

    def load_adapter(
        self, path: Path, options: ModelCheckpointLoadOptions | None = None
    ) -> dict[str, Tensor]:
        """
        Loads the weights of an adapter alone, by their names in the model.

        :param path: The folder of the weights of its checkpoint.

        :raises WarmupError: If they are something else.
        """
        options = options or ModelCheckpointLoadOptions()

        # No converter of a family knows them.
        options = replace(options, state_dict_converter=None)

        adapter = dict(self._load(path, {}, options))

        for name in adapter:
            if not is_adapter_weight(name):
                raise WarmupError(
                    f"`{path}` holds `{name}`, which is not of an adapter, though `{path.parent.parent / _FILE_NAME}` says so; restore both from a copy of the run."
                )

        return adapter

    @override
    def supports_path(self, path: Path) -> bool:
        return any(loader.supports_path(path) for loader in self._loaders)


def _find_record_of(path: Path) -> AdapterRecord | None:
    """Finds the record of a folder ``checkpoints/step_N/model``."""
    if path.name != "model" or parse_step_folder(path.parent.name) is None:
        return None

    return find_record(path.parent.parent)


def register_adapter_loader(container: DependencyContainer) -> None:
    """Puts our loader of checkpoints in the place of fairseq2's."""
    remove_provider(container, ModelCheckpointLoader)

    container.register_type(
        ModelCheckpointLoader, AdapterCheckpointLoader, singleton=True
    )
