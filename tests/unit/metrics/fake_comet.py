# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""A stand-in for COMET's own environment, which the tests have not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# The score of an output is its length, over 100 and the lengths of source and
# reference. It notes each start in a file, and its process in another.
_WORKER = """#!{python}
import json, os, pathlib, sys

with pathlib.Path(__file__).with_name("starts").open("a") as fp:
    fp.write("x")

pathlib.Path(__file__).with_name("pid").write_text(str(os.getpid()))

print(json.dumps({{"ready": {ready}, "error": "no such model", "requires_references": {refs},
    "uses_references": {uses},
    "versions": {{"unbabel-comet": "2.2.7", "torch": "2"}}}}), flush=True)

for line in sys.stdin:
    request = json.loads(line)

    if request["samples"][0]["mt"] == "boom" or {fails}:
        print(json.dumps({{"id": request["id"], "error": "out of memory", "kind": "RuntimeError"}}), flush=True)

        continue

    scores = [len(s["mt"]) / (100 + len(s["src"] + s.get("ref", ""))) for s in request["samples"]]

    print(json.dumps({{"id": request["id"], "scores": scores}}), flush=True)
"""


def write_comet_model(folder: Path) -> str:
    """Writes a checkpoint of nothing where a real one would be."""
    file = folder / "tiny-comet" / "checkpoints" / "model.ckpt"

    file.parent.mkdir(parents=True)

    file.touch()

    (file.parents[1] / "hparams.yaml").touch()

    return str(file)


def install_comet_worker(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    ready: bool = True,
    requires_references: bool = True,
    uses_references: bool = True,
    fails: bool = False,
) -> None:
    """
    Makes a program in ``folder`` the interpreter of COMET's environment.

    :param ready: If ``False``, it says that there is no such model.
    :param fails: If ``True``, it refuses whatever it is asked.
    """
    file = folder / "python"

    file.write_text(
        _WORKER.format(
            python=sys.executable,
            ready=ready,
            refs=requires_references,
            uses=uses_references,
            fails=fails,
        )
    )

    file.chmod(0o755)

    monkeypatch.setenv("WARMUP_COMET_PYTHON", str(file))
