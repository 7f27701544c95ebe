# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import argparse
import os
import platform
import site
from ctypes import CDLL
from importlib.util import find_spec
from pathlib import Path

from warmup_plugin.errors import WarmupError

DESCRIPTION = "Links the libsndfile that the soundfile package bundles to where fairseq2 looks for it, unless the system has one. fairseq2 does not start without it."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(args: argparse.Namespace) -> int:
    found = find_libsndfile()
    if found is not None:
        print(f"libsndfile found: {found}")
    else:
        print(f"libsndfile linked: {link_libsndfile()}")

    return 0


def find_libsndfile() -> str | None:
    """
    Looks for libsndfile where fairseq2 does.

    :returns: "system", the path in the Python environment, or ``None``.
    """
    name = _get_library_name()

    # fairseq2 looks only in the environment if it is Conda's.
    if "CONDA_PREFIX" not in os.environ and _can_load(name):
        return "system"

    for lib_dir in _get_lib_dirs():
        path = lib_dir / name

        if _can_load(str(path)):
            return str(path)

    return None


def link_libsndfile() -> Path:
    """Links the libsndfile of the soundfile package and returns the link."""
    link = _get_lib_dirs()[0] / _get_library_name()

    spec = find_spec("_soundfile_data")

    if spec is None or spec.submodule_search_locations is None:
        raise WarmupError(
            "The soundfile package, whose libsndfile would be linked, is not installed or bundles none; install it with `pip install soundfile` or libsndfile itself, for example with `apt install libsndfile1`."
        )

    for folder in spec.submodule_search_locations:
        for bundled in sorted(Path(folder).glob("libsndfile*")):
            if not _can_load(str(bundled)):
                continue

            # Relative, so that the link of an environment that is moved stays whole.
            target = os.path.relpath(bundled, link.parent)

            try:
                link.unlink(missing_ok=True)

                link.symlink_to(target)
            except OSError as ex:
                raise WarmupError(
                    f"The link `{link}` to libsndfile cannot be made ({ex.strerror}); use a virtual environment of your own or install libsndfile, for example with `apt install libsndfile1`."
                ) from None

            return link

    raise WarmupError(
        "The libsndfile that the soundfile package bundles does not load on this system; install another, for example with `apt install libsndfile1` or `brew install libsndfile`."
    )


def _get_library_name() -> str:
    if platform.system() == "Darwin":
        return "libsndfile.1.dylib"

    return "libsndfile.so.1"


def _get_lib_dirs() -> list[Path]:
    # The parent of `pythonX.Y/site-packages`, as in `fairseq2n/__init__.py`.
    return [Path(folder).parent.parent for folder in site.getsitepackages()]


def _can_load(name: str) -> bool:
    try:
        CDLL(name)
    except OSError:
        return False

    return True
