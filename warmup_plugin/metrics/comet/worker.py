# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
The process that scores by COMET; :mod:`warmup_plugin.metrics.comet.client` starts it.

It is run as a file, by the interpreter of an environment that holds ``unbabel-comet`` and
nothing of ours; hence it imports nothing of ours either.

It reads one JSON object a line from its standard input and answers each by one on its
standard output; whatever else is printed goes to standard error.

==========  =====================================================================
at start    ``{"ready": true, "versions": {...}, "requires_references": true,
            "uses_references": true}``, or ``{"ready": false, "error": "..."}`` and exit
            status 3
request     ``{"id": 1, "samples": [{"src": "...", "mt": "...", "ref": "..."}]}``
answer      ``{"id": 1, "scores": [...]}`` or ``{"id": 1, "error": "..."}``
==========  =====================================================================
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import platform
import sys
import traceback
import warnings
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TextIO

# Lightning would take itself for a part of the job of the process that started it.
_JOB_PREFIXES = ("SLURM_", "TORCHELASTIC_", "PMI_", "PMIX_", "OMPI_")

_JOB_NAMES = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK"),
    *("NODE_RANK", "ROLE_RANK", "MASTER_ADDR", "MASTER_PORT"),
)

# The only sign that a checkpoint lacks weights, whose values are then random.
_WEIGHTS_MISSING = (
    "Found keys that are in the model state dict but not in the checkpoint"
)


class LoadError(Exception):
    """Reports in one sentence why there is no model."""


def main() -> int:
    """Runs the worker and returns its exit status."""
    parser = argparse.ArgumentParser()

    group = parser.add_mutually_exclusive_group(required=True)

    group.add_argument("--checkpoint", type=Path)
    group.add_argument("--hub-name")

    parser.add_argument("--gpus", type=int, choices=(0, 1), default=0)
    parser.add_argument("--batch-size", type=int, default=16)

    args = parser.parse_args()

    requests, replies = take_channels()

    try:
        prepare_environment()

        model, versions = load_model(args.checkpoint, args.hub_name, args.gpus)
    except LoadError as ex:
        send(replies, {"ready": False, "error": str(ex)})

        return 3

    hello = {
        "ready": True,
        "versions": versions,
        "requires_references": bool(model.requires_references()),
        "uses_references": uses_references(model),
    }

    send(replies, hello)

    for line in requests:
        request = json.loads(line)

        reply = {"id": request["id"]}

        try:
            reply["scores"] = score(
                model, request["samples"], args.gpus, args.batch_size
            )
        except Exception as ex:
            reply["error"] = f"COMET cannot score these sentences: {describe(ex)}."

        send(replies, reply)

    return 0


def take_channels() -> tuple[TextIO, TextIO]:
    """Takes standard input and output away from everybody else."""
    requests = os.fdopen(os.dup(0), "r", encoding="utf-8", newline="\n")

    replies = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")

    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)

    os.dup2(2, 1)

    sys.stdout = sys.stderr

    return requests, replies


def send(replies: TextIO, reply: dict[str, Any]) -> None:
    replies.write(json.dumps(reply, allow_nan=False) + "\n")

    replies.flush()


def prepare_environment() -> None:
    """Sets what libraries read when they are imported."""
    for name in list(os.environ):
        if name.startswith(_JOB_PREFIXES) or name in _JOB_NAMES:
            del os.environ[name]

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    warnings.filterwarnings("ignore", message=".*pkg_resources.*")

    warnings.filterwarnings("error", message=_WEIGHTS_MISSING)


def load_model(
    checkpoint: Path | None, hub_name: str | None, gpus: int
) -> tuple[Any, dict[str, str]]:
    """
    Loads a model from a checkpoint or from the Hugging Face Hub.

    :returns: The model, and the versions of what scores.
    """
    try:
        import comet
        import numpy
        import torch
        import transformers
    except ImportError as ex:
        raise LoadError(
            f"The environment of COMET, {sys.prefix}, is incomplete ({describe(ex)}); "
            "build it anew by `make comet`, or install what "
            f"{Path(__file__).with_name('requirements.txt')} lists."
        ) from None

    versions = {
        "unbabel-comet": comet.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
    }

    # COMET would go on without one.
    if gpus > 0 and not torch.cuda.is_available():
        raise LoadError(
            f"COMET was to run on a GPU, but PyTorch {torch.__version__} of its "
            "environment finds none; set `gpus` to 0, or build the environment with a "
            "PyTorch for your driver."
        )

    refuse_foreign_code()

    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)

    # As huggingface_hub reads it.
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")

    if checkpoint is None:
        assert hub_name is not None

        checkpoint = download(hub_name, offline)

    hparams_file = checkpoint.parents[1] / "hparams.yaml"

    try:
        encoder = read_encoder(hparams_file)

        # COMET takes the name of the encoder from the checkpoint, unless it is told to
        # reload all of this file, the only place to tell where a folder has moved.
        model = comet.load_from_checkpoint(
            str(checkpoint),
            reload_hparams=Path(encoder).is_dir(),
            local_files_only=offline,
        )
    except Exception as ex:
        if comes_from_encoder(ex):
            raise LoadError(
                f"The encoder {encoder} of the COMET model {checkpoint} cannot be loaded "
                f"({describe(ex)}); load the model once where there is a network, or "
                "name a folder with the encoder's config.json and tokenizer.json by "
                f"`pretrained_model` in {hparams_file}."
            ) from None

        if isinstance(ex, UnpicklingError):
            remedy = (
                "it is incomplete or no checkpoint; if it is one that you trust, with "
                "more than weights, set TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1"
            )
        else:
            remedy = "it may be incomplete or of another version; copy it anew"

        raise LoadError(
            f"The COMET model {checkpoint} cannot be loaded ({describe(ex)}); {remedy}."
        ) from None

    return model, versions


def refuse_foreign_code() -> None:
    """
    Lets transformers refuse an encoder that needs Python code of its own folder.

    It would ask on standard input.
    """
    from transformers import dynamic_module_utils

    # With no time to answer it does not ask.
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0


def download(hub_name: str, offline: bool) -> Path:
    """Returns the checkpoint of a model, from the cache if it has been loaded before."""
    import comet

    try:
        return Path(comet.download_model(hub_name, local_files_only=offline))
    except Exception as ex:
        # COMET tells that it knows no such model, whatever the cause.
        raise LoadError(
            f"The COMET model {hub_name} is no file or folder here and cannot be had "
            f"from the Hugging Face Hub ({describe(find_origin(ex))}); load it once where "
            "there is a network, after `hf auth login` if its licence asks for "
            "that, or give a folder with its hparams.yaml and checkpoints/model.ckpt."
        ) from None


def read_encoder(hparams_file: Path) -> str:
    """Returns the folder, or the name on the Hub, of a model's encoder."""
    import yaml

    hparams = yaml.load(hparams_file.read_text("utf-8"), Loader=yaml.FullLoader)

    return str(hparams["pretrained_model"])


def comes_from_encoder(ex: BaseException) -> bool:
    """
    Tells whether COMET raised an error when it loaded the encoder.

    The error itself does not tell: where the Hub cannot be reached it may be an
    ``AttributeError``.
    """
    frames = traceback.walk_tb(ex.__traceback__)

    return any(Path(f.f_code.co_filename).parent.name == "encoders" for f, _ in frames)


def uses_references(model: Any) -> bool:
    """Tells whether a model reads references, required or not."""
    # A unified metric reads some of source, translation and reference.
    segments = model.hparams.get("input_segments", ())

    return "ref" in segments or bool(model.requires_references())


def score(
    model: Any, samples: list[dict[str, str]], gpus: int, batch_size: int
) -> list[float]:
    # Processes that load data cost more than they save.
    output = model.predict(
        samples, batch_size=batch_size, gpus=gpus, progress_bar=False, num_workers=0
    )

    scores = [float(s) for s in output.scores]

    if len(scores) != len(samples):
        raise ValueError(f"{len(scores)} scores came out for {len(samples)} sentences")

    if not all(map(math.isfinite, scores)):
        raise ValueError("a score is not a finite number")

    return scores


def find_origin(ex: BaseException) -> BaseException:
    """Returns the first of the errors that led to this one."""
    seen: set[int] = set()

    while (cause := ex.__cause__ or ex.__context__) is not None:
        # Errors may have led to each other.
        if id(cause) in seen:
            break

        seen.add(id(cause))

        ex = cause

    return ex


def describe(ex: BaseException) -> str:
    """Returns the kind of an error and the first sentence of its message."""
    text = " ".join(str(ex).split()).partition(". ")[0].rstrip(".")

    if len(text) > 300:
        text = f"{text[:300]}..."

    return f"{type(ex).__name__}: {text}" if text else type(ex).__name__


if __name__ == "__main__":
    sys.exit(main())
