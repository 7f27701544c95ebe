# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
How the files of a run directory are found, written and read.

fairseq2 takes the names of folders for patterns, lets any pickle of a trainer's state run
code, and reads back whatever a file holds.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, Final, cast, final

import torch
from fairseq2.file_system import FileMode, FileSystem, NativeLocalFileSystem
from fairseq2.io import (
    CorruptFileError,
    DataNotPicklableError,
    TensorFileDumper,
    TensorFileDumpOptions,
    TensorFileLoader,
    TensorFileLoadOptions,
)
from fairseq2.runtime.dependency import DependencyContainer
from torch import Tensor
from typing_extensions import override

from warmup_plugin.errors import WarmupError
from warmup_plugin.fairseq2_doors import (
    find_safe_global,
    parse_step_folder,
    register_file_system,
    remove_provider,
)

_SUFFIX: Final = ".sha256"


def register_storage(container: DependencyContainer) -> None:
    """Puts our file system, reader and writer of tensors in the place of fairseq2's."""
    # The default one is fsspec's, to which `exp[1]` is a pattern.
    register_file_system(_is_local, NativeLocalFileSystem)

    for kls in (TensorFileLoader, TensorFileDumper):
        remove_provider(container, kls)

    container.register_type(TensorFileLoader, CheckedLoader, singleton=True)
    container.register_type(TensorFileDumper, CheckedDumper, singleton=True)


def _is_local(path: object) -> bool:
    # A `Path` has made one slash of two.
    return not str(path).startswith(("s3:/", "file:/", "local:/"))


@final
class CheckedDumper(TensorFileDumper):
    """Writes tensors, and beside each file its checksum as ``sha256sum`` would."""

    def __init__(self, file_system: FileSystem) -> None:
        self._file_system = file_system

    @override
    def dump(
        self,
        data: Mapping[str, object],
        file: Path,
        options: TensorFileDumpOptions | None = None,
    ) -> None:
        if options is None:
            options = TensorFileDumpOptions()

        try:
            self._dump(data, file, options)
        except OSError as ex:
            # What a full disk says has no name of a file.
            if ex.filename is None and ex.errno is not None:
                ex.filename = str(file)

            raise

    def _dump(
        self, data: Mapping[str, object], file: Path, options: TensorFileDumpOptions
    ) -> None:
        with self._file_system.open(file, FileMode.WRITE) as fp:
            writer = _HashingWriter(fp)

            try:
                torch.save(
                    _share_equal(data),
                    cast(Any, writer),
                    pickle_protocol=options.pickle_protocol,
                )
            except (RuntimeError, pickle.PickleError) as ex:
                # What torch makes of a full disk.
                if writer.error is not None:
                    raise writer.error from None

                raise DataNotPicklableError() from ex

        sum_file = file.with_name(file.name + _SUFFIX)

        with self._file_system.open(sum_file, FileMode.WRITE) as fp:
            fp.write(f"{writer.digest}  {file.name}\n".encode())


@final
class CheckedLoader(TensorFileLoader):
    """
    Reads tensors whose checksum is right, and nothing that would run code.

    Files without a checksum, such as those of earlier versions, are read as they are.
    """

    def __init__(self, file_system: FileSystem) -> None:
        self._file_system = file_system

    @override
    def load(
        self, file: Path, options: TensorFileLoadOptions | None = None
    ) -> dict[str, object]:
        """
        :raises WarmupError: If a file of a checkpoint is missing or damaged.
        """
        if options is None:
            options = TensorFileLoadOptions()

        try:
            # Never whole in memory beside the tensors that are in it.
            fp = self._file_system.open(file)
        except FileNotFoundError:
            if _find_step_dir(file) is None:
                raise

            raise WarmupError(
                f"`{file}` is missing; start as many processes as before, or {_describe_remedy(file)}."
            ) from None

        with fp:
            return self._load(fp, file, options)

    def _load(
        self, fp: BinaryIO, file: Path, options: TensorFileLoadOptions
    ) -> dict[str, object]:
        sum_file = file.with_name(file.name + _SUFFIX)

        if self._file_system.exists(sum_file):
            expected = self._file_system.cat(sum_file)[:64]

            if _hash(fp).encode() != expected:
                raise WarmupError(
                    f"`{file}` is damaged, it does not hold what was written; {_describe_remedy(file)}."
                )

            fp.seek(0)

        try:
            return load_tensors(fp, options.map_location, restrict=options.restrict)
        except _ForbiddenError as ex:
            raise WarmupError(
                f"`{file}` would import `{ex}`, which no checkpoint needs, so it is not read; get the run from a place that you trust."
            ) from None
        except Exception as ex:
            # What a damaged file makes of the reader is not limited to some errors.
            if _find_step_dir(file) is None:
                raise CorruptFileError(file) from ex

            raise WarmupError(
                f"`{file}` is damaged; {_describe_remedy(file)}."
            ) from None


def _hash(fp: BinaryIO) -> str:
    digest = sha256()

    while block := fp.read(1 << 20):
        digest.update(block)

    return digest.hexdigest()


def load_tensors(
    stream: BinaryIO, map_location: Any = None, *, restrict: bool = True
) -> dict[str, object]:
    """
    Reads a file of ``torch.save``.

    :param restrict: If ``True``, takes what torch calls safe. Torch cannot read the state
        of a trainer so, whose pickle is of a later protocol; of that, the same names are
        allowed.
    """
    if restrict:
        data = torch.load(stream, map_location, weights_only=True)
    else:
        # Of an older format torch would read parts without our unpickler.
        if not zipfile.is_zipfile(stream):
            raise pickle.UnpicklingError("not a file of `torch.save`")

        stream.seek(0)

        data = torch.load(
            stream,
            map_location,
            pickle_module=SimpleNamespace(
                __name__=__name__, Unpickler=_Unpickler, load=_refuse
            ),
            weights_only=False,
        )

    if not isinstance(data, dict):
        raise pickle.UnpicklingError("no mapping")

    return data


class _ForbiddenError(pickle.UnpicklingError):
    pass


class _Unpickler(pickle.Unpickler):
    """Finds only what torch allows in weights."""

    @override
    def find_class(self, module: str, name: str) -> Any:
        full_name = f"{module}.{name}"

        known = find_safe_global(full_name)

        if known is not None:
            return known

        # Of persistent ids; torch reads them itself.
        if module == "torch" and name.endswith("Storage"):
            return super().find_class(module, name)

        raise _ForbiddenError(full_name)


def _refuse(*args: object, **kwargs: object) -> object:
    raise pickle.UnpicklingError("not a file of `torch.save`")


class _HashingWriter(io.RawIOBase):
    """Computes the checksum of what is written, and keeps the error of a full disk."""

    def __init__(self, fp: BinaryIO) -> None:
        self._fp = fp
        self._hash = sha256()

        self.error: OSError | None = None

    @override
    def write(self, data: Any) -> int:
        try:
            self._fp.write(data)
        except OSError as ex:
            self.error = ex

            raise

        self._hash.update(data)

        return len(data)

    @override
    def flush(self) -> None:
        try:
            self._fp.flush()
        except OSError as ex:
            self.error = ex

            raise

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()


def _share_equal(data: Mapping[str, object]) -> dict[str, object]:
    """
    Lets equal matrices share their memory, so that a file holds them once.

    Tied embeddings come under three names, each a copy by the time they are written.
    """
    shared: dict[str, object] = {}

    matrices: list[Tensor] = []

    for name, value in data.items():
        if type(value) is Tensor and value.dim() > 1 and value.numel() > 1:
            for other in matrices:
                if (
                    other.shape == value.shape
                    and other.dtype == value.dtype
                    and other.device == value.device
                    # Most differ here already.
                    and bool(other[0].equal(value[0]))
                    and other.equal(value)
                ):
                    # Another object: fairseq2 reads only one name of the same.
                    value = other.detach()

                    break
            else:
                matrices.append(value)

        shared[name] = value

    return shared


def _find_step_dir(file: Path) -> Path | None:
    for folder in file.parents:
        if parse_step_folder(folder.name) is not None:
            return folder

    return None


def _describe_remedy(file: Path) -> str:
    folder = _find_step_dir(file)

    if folder is None:
        return "get the file anew"

    others = [
        step_nr
        for path in folder.parent.iterdir()
        if (step_nr := parse_step_folder(path.name)) is not None
        and (path / "trainer").is_dir()
        and path != folder
    ]

    if not others:
        return f"restore `{folder}` from a copy of the run, or delete it to begin again, since there is no other checkpoint"

    return f"restore `{folder}` from a copy of the run, or delete it to go on from the checkpoint of step {max(others)}"
