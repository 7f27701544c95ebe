# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
Builds the environment of COMET.

``make comet`` runs this file in a clone; from an installed wheel it is
``python -m warmup_plugin.metrics.comet.make_env DIR``. It needs the standard library only.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_REQUIREMENTS: Final = Path(__file__).resolve().with_name("requirements.txt")

# `unbabel-comet` requires numpy 1.26, which has no wheel for 3.13.
_OLDEST, _NEWEST = (3, 10), (3, 12)

_COMMANDS: Final = ("python3.12", "python3.11", "python3.10")

# What pip resolves may not work together; see requirements.txt.
_CHECK: Final = (
    "import comet, torch; from sentencepiece import sentencepiece_model_pb2; "
    "print('COMET', comet.__version__, 'with PyTorch', torch.__version__)"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Builds the environment and returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="make_env",
        description="Builds an environment for COMET, which cannot share one with "
        "fairseq2.",
    )

    parser.add_argument("folder", type=Path, metavar="DIR", help="where to build it")

    parser.add_argument(
        "--torch",
        default=os.environ.get("COMET_TORCH") or "torch",
        metavar="SPEC",
        help="PyTorch to install, as pip names it, such as torch==2.9.1 "
        "(default: COMET_TORCH, else %(default)s)",
    )

    parser.add_argument(
        "--python",
        default=os.environ.get("COMET_PYTHON"),
        help="Python to build it from, 3.10 to 3.12 "
        "(default: COMET_PYTHON, else one that is found)",
    )

    args = parser.parse_args(argv)

    try:
        _build(args.folder, args.torch, _find_python(args.python))
    except _BuildError as ex:
        print(f"error: {ex}", file=sys.stderr)

        return 2
    except KeyboardInterrupt:
        return 130

    return 0


class _BuildError(Exception):
    """Reports in one sentence why there is no environment."""


def _find_python(named: str | None) -> str:
    for candidate in [named] if named else [sys.executable, *_COMMANDS]:
        if _fits(candidate):
            return candidate

    if named:
        reason = f"which {named} is not"
    else:
        reason = f"but {sys.executable} is none of them, and none is on the path"

    raise _BuildError(
        f"COMET needs Python 3.10, 3.11 or 3.12, {reason}; name one by the environment "
        "variable COMET_PYTHON."
    )


def _fits(python: str) -> bool:
    code = "import sys; print(*sys.version_info[:2])"

    try:
        # A version manager may have a command for each version, present or not.
        output = subprocess.run(
            [python, "-I", "-c", code], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return False

    return _OLDEST <= tuple(map(int, output.split())) <= _NEWEST


def _build(folder: Path, torch: str, base_python: str) -> None:
    if folder.exists() and not (folder / "pyvenv.cfg").is_file():
        if not folder.is_dir() or any(folder.iterdir()):
            raise _BuildError(
                f"{folder} is something else than an environment; name a folder that "
                "does not exist yet."
            )

    print(
        f"Building the environment of COMET in {folder} with {torch}: 1.4 GB, or several "
        "more with the CUDA libraries of PyTorch.",
        flush=True,
    )

    try:
        _install(folder, torch, base_python)
    except BaseException:
        # Where there is one, it is expected to work.
        shutil.rmtree(folder, ignore_errors=True)

        raise

    # In a clone it is found there.
    if folder.name != ".venv-comet":
        python = folder.absolute() / "bin" / "python"

        print(f"To use it: export WARMUP_COMET_PYTHON={python}")


def _install(folder: Path, torch: str, base_python: str) -> None:
    _run([base_python, "-m", "venv", "--clear", str(folder)])

    python = folder / "bin" / "python"

    packages = [torch, "--requirement", str(_REQUIREMENTS)]

    # uv takes seconds where pip takes minutes.
    if uv := shutil.which("uv"):
        # It reads none of pip's settings.
        for link in os.environ.get("PIP_FIND_LINKS", "").split():
            packages += ["--find-links", link]

        _run([uv, "pip", "install", "--quiet", "--python", str(python), *packages])
    else:
        pip = [str(python), "-m", "pip", "--disable-pip-version-check"]

        _run([*pip, "install", "--quiet", *packages])

    _run([str(python), "-W", "ignore", "-c", _CHECK])


def _run(command: Sequence[str]) -> None:
    # Packages of the environment that runs this file are not for that one.
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}

    try:
        subprocess.run(command, env=env, check=True)
    except subprocess.CalledProcessError as ex:
        raise _BuildError(
            f"The environment of COMET cannot be built, as `{shlex.join(command)}` ended "
            f"with status {ex.returncode}; its own words are above."
        ) from None


if __name__ == "__main__":
    sys.exit(main())
