# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Final

from warmup_plugin.errors import WarmupError
from warmup_plugin.generation.ctranslate2_generator import (
    TOKENS_FILE,
    import_ctranslate2,
)
from warmup_plugin.interop.exporting import export_run
from warmup_plugin.models.lora_checkpoint import find_record
from warmup_plugin.parsing import read_json
from warmup_plugin.runs.run_dir import RunDir

_FOLDER: Final = "ctranslate2"

_ORIGIN_FILE: Final = "origin.json"


def convert_run(run_dir: RunDir, *, checkpoint: str, direction: str | None) -> Path:
    """
    Writes a checkpoint of a run as CTranslate2 reads it, into the run, unless it is
    there already.

    :param checkpoint: ``best``, ``last`` or a step.
    :param direction: See :func:`export_run`.

    :returns: The folder, whose model is that of all directions.

    :raises WarmupError: As of :func:`export_run`; if CTranslate2 is missing or does not
        know such a model, or the run is not to be written to.
    """
    folder = get_converted(run_dir)

    library = import_ctranslate2()

    step_nr = run_dir.find_checkpoint(checkpoint)

    origin = {
        "step": step_nr,
        "time": run_dir.model_path(step_nr).stat().st_mtime,
        "version": library.__version__,
    }

    if read_json(folder / _ORIGIN_FILE) == origin:
        return folder

    try:
        with tempfile.TemporaryDirectory(
            prefix=f"{_FOLDER}.", dir=run_dir.path
        ) as temp_dir:
            exported = export_run(
                run_dir,
                Path(temp_dir, "exported"),
                checkpoint=checkpoint,
                direction=direction,
                # It reads no adapters.
                merge=find_record(run_dir.checkpoint_dir) is not None,
            )

            converted = Path(temp_dir, "converted")

            try:
                converter = library.converters.TransformersConverter(str(exported.path))

                with _quiet_transformers():
                    converter.convert(str(converted))
            except (ValueError, NotImplementedError) as ex:
                raise WarmupError(
                    f"CTranslate2 {library.__version__} cannot convert the model of the run in `{run_dir.path}` ({ex}); leave out `--backend`."
                ) from None

            _write_tokens(converted, exported.list_hub_indices())

            (converted / _ORIGIN_FILE).write_text(json.dumps(origin), encoding="utf-8")

            _replace(folder, converted)
    except OSError as ex:
        raise WarmupError(
            f"The model for CTranslate2 cannot be written into `{run_dir.path}` ({ex.strerror or ex}); copy the run to where you may write, or leave out `--backend`."
        ) from None

    return folder


def get_converted(run_dir: RunDir) -> Path:
    """Returns the folder of :func:`convert_run`."""
    return run_dir.path / _FOLDER


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Hides that the library calls transformers in a way that is no longer wished."""
    logger = logging.getLogger("transformers")

    level = logger.level

    logger.setLevel(logging.ERROR)

    try:
        yield
    finally:
        logger.setLevel(level)


def _write_tokens(folder: Path, hub_indices: list[int]) -> None:
    """Writes the names of our tokens, as the vocabulary of the converted model has them."""
    file = folder / "shared_vocabulary.json"

    if not file.is_file():
        file = folder / "vocabulary.json"

    vocabulary = json.loads(file.read_text(encoding="utf-8"))

    names = [vocabulary[idx] for idx in hub_indices]

    (folder / TOKENS_FILE).write_text(
        json.dumps(names, ensure_ascii=False), encoding="utf-8"
    )


def _replace(folder: Path, converted: Path) -> None:
    """Puts a folder where another one may be, which a job that reads it keeps open."""
    old = folder.with_name(f"{_FOLDER}.{token_hex(4)}.old")

    if folder.exists():
        folder.rename(old)

    converted.rename(folder)

    shutil.rmtree(old, ignore_errors=True)
