# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
What does a warmup step cost, as a multiple of the SFT step, beside the multiple that
the number of operations predicts?

A step is forward and backward, without the optimizer. Model and text are random: an
untrained model hardly ever writes a separator, so warmups are cut at the length limit,
as the prediction assumes. Dropout is 0.1 and label smoothing 0, the same for all. The
steps that are compared alternate in one process. ``fairseq2-sft`` is fairseq2's own
forward, which ``sft`` replaces; ``plain`` and ``hf-warmup`` are what
one writes who repeats each source K times and differentiates the marginal through all
candidates, on fairseq2's and on transformers' forward. ``shared-1`` calls the encoder
once a step (``warmup.share_encoder``); ``bf16-1`` and ``bf16-2`` draw and weigh in bf16
(``warmup.draw_in_bf16``), of which the prediction knows nothing; ``shared-bf16-1`` does
both. ``mrt`` draws K outputs, which end at the length of the source, and scores them by
chrF++. ``joint-1`` draws by a beam of K + 1, which the prediction does not count.
``lora-sft`` and ``lora-marginal-1``, which have to be asked for, train an adapter of rank
16 on all projections; the JSON says how many parameters each step trains. ::

    python scripts/bench_step.py
    python scripts/bench_step.py --settings mt5-vocab --memory --rounds 1 --variants sft,marginal-1,marginal-all
    torchrun --standalone --nproc-per-node 2 scripts/bench_step.py --fsdp --settings captions --variants sft,fairseq2-sft,marginal-1,marginal-2,marginal-all
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final, final

import torch
from fairseq2.gang import (
    Gangs,
    ProcessGroupGang,
    create_fsdp_gangs,
    create_parallel_gangs,
)

if not __package__:
    # Started as a file: the folder of the package is not on the path then.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.bench_common import (
    ROOT,
    BenchParser,
    Setting,
    create_batch,
    format_range,
    format_table,
    get_clock,
    measure_alternating,
    parse_names,
    parse_positive_int,
    prepare_device,
    print_record,
    read_memory,
    reset_peak_memory,
)
from scripts.step_phases import profile_step
from scripts.step_settings import SETTINGS
from scripts.step_variants import (
    HF_SFT,
    HF_WARMUP,
    LORA_VARIANTS,
    PLAIN,
    SFT,
    VARIANTS,
    WARMUP_VARIANTS,
    BenchStep,
    create_step,
    predict_variant,
)
from warmup_plugin.criteria.base import num_target_tokens
from warmup_plugin.errors import WarmupError

# The step whose multiple a row is, if not `sft`.
_BASELINES: Final = {HF_SFT: HF_SFT, HF_WARMUP: HF_SFT}

# What a step may cost at most, as a multiple of the SFT step; all others of the
# criterion `warmup`, _MAX_RATIO times the predicted multiple.
_MAX_MULTIPLES: Final = {
    ("captions", "marginal-1"): 3.6,
    ("sentence", "marginal-1"): 2.8,
    ("summarization", "marginal-1"): 1.9,
    ("summarization", "shared-1"): 1.5,
}

_MAX_RATIO: Final = 1.25

# The peak memory as a multiple of the SFT step's.
_MAX_MEMORY: Final = {
    ("mt5-vocab", "marginal-1"): 1.5,
    ("mt5-vocab", "marginal-all"): 1.5,
}

# How many times as slow as `marginal-1`, in seconds and as a multiple.
_MIN_SLOWDOWNS: Final = {("captions", HF_WARMUP): 2.0}


@final
@dataclass(frozen=True)
class Bar:
    """Holds what a step is asked to keep."""

    text: str

    met: bool


@final
@dataclass
class Measurement:
    """Holds what was measured of one variant in one setting."""

    times: list[float]
    """The times in seconds."""

    predicted: float | None
    """The predicted multiple of the SFT step."""

    baseline: Measurement | None = None
    """The SFT step, if it was measured as well."""

    num_trained: int | None = None
    """The number of parameters that get a gradient."""

    peak_bytes: int | None = None
    """The memory that the step took at most beyond what was there before it."""

    bars: list[Bar] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """The median time."""
        return statistics.median(self.times)

    @property
    def multiple(self) -> float | None:
        """The time as a multiple of the SFT step's."""
        if self.baseline is None:
            return None

        return self.seconds / self.baseline.seconds

    @property
    def ratio(self) -> float | None:
        """The multiple that was measured over the one that was predicted."""
        if self.multiple is None or self.predicted is None:
            return None

        return self.multiple / self.predicted

    @property
    def memory_multiple(self) -> float | None:
        """The peak memory as a multiple of the SFT step's."""
        if self.baseline is None or self.peak_bytes is None:
            return None

        if self.baseline.peak_bytes is None:
            return None

        return self.peak_bytes / self.baseline.peak_bytes


def measure_setting(
    setting: Setting, args: argparse.Namespace, names: Sequence[str]
) -> dict[str, Measurement]:
    """Measures variants in one setting."""
    device = torch.device(args.device)

    steps = _create_steps(setting, args, names)

    def clear() -> None:
        for step in steps.values():
            step.clear()

    times = measure_alternating(
        steps,
        device,
        num_rounds=args.rounds,
        between=clear,
        clock=get_clock(args),
    )

    num_trained = {name: step.num_trained for name, step in steps.items()}

    # The processes that measure memory need room.
    steps.clear()

    measurements = {
        name: Measurement(
            times[name],
            predict_variant(
                setting, name, checkpoints_activations=args.checkpoint_activations
            ),
            num_trained=num_trained[name],
        )
        for name in names
    }

    for name, measurement in measurements.items():
        measurement.baseline = measurements.get(_BASELINES.get(name, SFT))

        if args.memory:
            measurement.peak_bytes = _measure_memory_apart(setting, args, name)

    for name, measurement in measurements.items():
        measurement.bars = list_bars(setting.name, name, measurements)

    return measurements


@cache
def _join_gangs(device: torch.device) -> Gangs:
    """Joins the processes that torchrun has started."""
    if "LOCAL_RANK" not in os.environ:
        raise WarmupError(
            "`--fsdp` divides the models among several processes; start it with `torchrun --standalone --nproc-per-node 2 scripts/bench_step.py --fsdp`."
        )

    root = ProcessGroupGang.create_default_process_group(device)

    return create_fsdp_gangs(create_parallel_gangs(root))


def _create_steps(
    setting: Setting, args: argparse.Namespace, names: Sequence[str]
) -> dict[str, BenchStep]:
    device = torch.device(args.device)

    batch = create_batch(setting, _get_num_tokens(setting, args), device)

    dtype = torch.bfloat16 if args.dtype == "bf16" else torch.float32

    return {
        name: create_step(
            name,
            setting,
            batch,
            device,
            dtype,
            checkpoints_activations=args.checkpoint_activations,
            num_accumulate=args.accumulate,
            gangs=_join_gangs(device) if args.fsdp else None,
        )
        for name in names
    }


def _get_num_tokens(setting: Setting, args: argparse.Namespace) -> int:
    num_tokens: int | None = args.num_tokens

    return setting.num_target_tokens if num_tokens is None else num_tokens


def list_bars(
    setting_name: str, name: str, measurements: Mapping[str, Measurement]
) -> list[Bar]:
    """Compares a measurement with what is asked of it."""
    bars: list[Bar] = []

    measurement = measurements[name]

    key = (setting_name, name)

    multiple = measurement.multiple

    if name in WARMUP_VARIANTS and multiple is not None:
        assert measurement.predicted is not None

        limit = _MAX_MULTIPLES.get(key, _MAX_RATIO * measurement.predicted)

        bars.append(Bar(f"<= {limit:.2f} x", multiple <= limit))

    memory_multiple = measurement.memory_multiple

    if key in _MAX_MEMORY and memory_multiple is not None:
        limit = _MAX_MEMORY[key]

        bars.append(Bar(f"memory <= {limit:.2f} x", memory_multiple <= limit))

    ours = measurements.get("marginal-1")

    if key in _MIN_SLOWDOWNS and ours is not None:
        limit = _MIN_SLOWDOWNS[key]

        bars.append(
            Bar(
                f">= {limit:.1f} times the seconds of marginal-1",
                measurement.seconds >= limit * ours.seconds,
            )
        )

        if multiple is not None and ours.multiple is not None:
            bars.append(
                Bar(
                    f">= {limit:.1f} times its multiple",
                    multiple >= limit * ours.multiple,
                )
            )

    return bars


def _measure_memory_apart(setting: Setting, args: argparse.Namespace, name: str) -> int:
    """
    Measures the peak memory in a process of its own, where no other step has left any.
    """
    print(f"memory: {name}", file=sys.stderr, flush=True)

    command = [sys.executable, __file__, "--memory-of-one"]

    command += ["--settings", setting.name, "--variants", name, "--allow-slow"]

    command += ["--num-tokens", str(_get_num_tokens(setting, args))]

    for option in ("threads", "device", "dtype", "accumulate"):
        command += [f"--{option}", str(getattr(args, option))]

    if args.checkpoint_activations:
        command.append("--checkpoint-activations")

    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    if result.returncode != 0:
        tail = result.stderr.strip().splitlines()[-1:] or ["killed, out of memory?"]

        raise WarmupError(
            f"The process that measures the memory of `{name}` in `{setting.name}` ended with status {result.returncode} ({tail[0]}); lower `--num-tokens` or leave `{name}` out of `--variants`."
        )

    return int(result.stdout)


def _measure_memory(step: BenchStep, device: torch.device) -> int:
    """Measures what two steps take at most beyond what is there before them."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)

        torch.cuda.reset_peak_memory_stats(device)
    else:
        before = reset_peak_memory()

    # The second finds what the first has left to the allocator.
    for _ in range(2):
        step.clear()

        step()

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) - before

    return read_memory("VmHWM") - before


def _profile_setting(
    setting: Setting, args: argparse.Namespace, name: str
) -> dict[str, list[float]]:
    device = torch.device(args.device)

    step = _create_steps(setting, args, [name])[name]

    phases: dict[str, list[float]] = {}

    def profile() -> None:
        for phase, seconds in profile_step(step, device).items():
            phases.setdefault(phase, []).append(seconds)

    measure_alternating(
        {name: profile}, device, num_rounds=args.rounds, between=step.clear
    )

    # The first round is dropped, as `measure_alternating()` does.
    return {phase: seconds[-args.rounds :] for phase, seconds in phases.items()}


def _format_phases(phases: Mapping[str, Sequence[float]]) -> str:
    medians = {phase: statistics.median(times) for phase, times in phases.items()}

    total = sum(medians.values())

    rows = [
        [phase, f"{medians[phase]:.3f}", f"{medians[phase] / total:.0%}"]
        for phase in medians
    ]

    return format_table(["phase", "seconds", "share"], rows)


def _format_measurements(
    measurements: Mapping[str, Measurement], num_tokens: int
) -> str:
    def format_number(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    rows = []

    for name, m in measurements.items():
        peak_mib = "-" if m.peak_bytes is None else f"{m.peak_bytes / 2**20:.0f}"

        rows.append(
            [
                name,
                f"{m.seconds:.3f}",
                format_range(m.times, digits=3),
                format_number(m.multiple),
                format_number(m.predicted),
                format_number(m.ratio),
                f"{num_tokens / m.seconds:.0f}",
                peak_mib,
                format_number(m.memory_multiple),
                "; ".join(bar.text for bar in m.bars) or "-",
                "; ".join("met" if bar.met else "missed" for bar in m.bars) or "-",
            ]
        )

    header = ["step", "seconds", "range", "x SFT", "predicted", "x / predicted"]

    header += ["target tokens/s", "peak MiB", "MiB x SFT", "bar", "result"]

    return format_table(header, rows)


def _to_json(measurement: Measurement) -> dict[str, object]:
    names = ("seconds", "multiple", "predicted", "ratio", "num_trained", "peak_bytes")

    return {
        "times": [round(seconds, 6) for seconds in measurement.times],
        **{name: getattr(measurement, name) for name in names},
        "memory_multiple": measurement.memory_multiple,
        "bars": [{"bar": bar.text, "met": bar.met} for bar in measurement.bars],
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = BenchParser(
        prog="python scripts/bench_step.py",
        description="Measures a warmup step as a multiple of the SFT step, beside what the number of operations predicts.",
    )

    parser.add_names(
        "--settings",
        ["captions", "sentence", "summarization"],
        f"of {', '.join(SETTINGS)}; divided by commas",
    )

    parser.add_names(
        "--variants",
        VARIANTS,
        f"the steps to compare, divided by commas; {' and '.join(LORA_VARIANTS)} too",
    )

    parser.add_argument(
        "--num-tokens",
        type=parse_positive_int,
        metavar="N",
        help="target tokens of the batch (default: 1500, mt5-vocab 320)",
    )

    parser.add_argument(
        "--memory",
        action="store_true",
        help="also measure peak memory, each step in a process of its own",
    )

    # What those processes are told.
    parser.add_argument("--memory-of-one", action="store_true", help=argparse.SUPPRESS)

    parser.add_argument(
        "--profile",
        metavar="VARIANT",
        help="only show where the time of this step goes",
    )

    parser.add_argument(
        "--dtype",
        choices=["fp32", "bf16"],
        default="fp32",
        help="bf16: under autocast (default: %(default)s)",
    )

    parser.add_count("--accumulate", 1, "batches of a step")

    parser.add_argument(
        "--checkpoint-activations",
        action="store_true",
        help="let backward compute each layer once more, to save memory",
    )

    parser.add_argument(
        "--fsdp",
        action="store_true",
        help="divide each layer among the processes that torchrun has started; the first one prints",
    )

    parser.add_argument(
        "--allow-slow",
        action="store_true",
        help="measure t5-base and mt5-base on the CPU",
    )

    parser.add_common_arguments()

    parser.add_clock_argument()

    return parser.run(argv, _run)


def _run(args: argparse.Namespace) -> None:
    names = parse_names("--variants", args.variants, [*VARIANTS, *LORA_VARIANTS])

    settings = [
        SETTINGS[name] for name in parse_names("--settings", args.settings, [*SETTINGS])
    ]

    if args.profile is not None:
        parse_names("--profile", args.profile, [*WARMUP_VARIANTS])

    shared = [n for n, variant in WARMUP_VARIANTS.items() if variant.share_encoder]

    encoder_only = (PLAIN, HF_SFT, HF_WARMUP, *shared)

    others = [name for name in names if name in encoder_only]

    for setting in settings:
        if setting.is_decoder_only and others:
            raise WarmupError(
                f"`--variants` names `{others[0]}`, which is written for encoder-decoders; leave it out for `{setting.name}`."
            )

        if setting.needs_gpu and args.device == "cpu" and not args.allow_slow:
            raise WarmupError(
                f"`--settings` names `{setting.name}`, whose step takes minutes on a CPU; give `--device cuda`, or `--allow-slow` to measure it all the same."
            )

    device = prepare_device(args)

    if args.fsdp and (args.memory or args.profile is not None):
        raise WarmupError(
            "`--fsdp` measures times only; leave `--memory` and `--profile` out."
        )

    alone = [name for name in names if name in (PLAIN, HF_SFT, HF_WARMUP)]

    if args.fsdp and alone:
        raise WarmupError(
            f"`--variants` names `{alone[0]}`, which one process computes; leave it out with `--fsdp`."
        )

    if args.fsdp and _join_gangs(device).root.rank > 0:
        with (
            open(os.devnull, "w") as fp,
            contextlib.redirect_stdout(fp),
            contextlib.redirect_stderr(fp),
        ):
            _measure(args, names, settings, device)

        return

    _measure(args, names, settings, device)


def _measure(
    args: argparse.Namespace,
    names: Sequence[str],
    settings: Sequence[Setting],
    device: torch.device,
) -> None:
    if args.memory_of_one:
        (step,) = _create_steps(settings[0], args, names).values()

        print(_measure_memory(step, device))

        return

    records: dict[str, object] = {}

    for setting in settings:
        batch = create_batch(setting, _get_num_tokens(setting, args), device)

        num_tokens = num_target_tokens(batch)

        print(
            f"\n{setting.describe()}; {batch.num_examples} sources, {num_tokens:,} target tokens\n"
        )

        record: dict[str, object] = {
            "shapes": vars(setting),
            "num_sources": batch.num_examples,
            "num_target_tokens": num_tokens,
        }

        if args.profile is not None:
            phases = _profile_setting(setting, args, args.profile)

            print(_format_phases(phases))

            record["phases"] = phases
        else:
            measurements = measure_setting(setting, args, names)

            print(_format_measurements(measurements, args.accumulate * num_tokens))

            record["steps"] = {n: _to_json(m) for n, m in measurements.items()}

        records[setting.name] = record

    print_record(
        args,
        "step",
        dtype=args.dtype,
        num_accumulate=args.accumulate,
        checkpoints_activations=args.checkpoint_activations,
        num_fsdp_processes=_join_gangs(device).root.size if args.fsdp else None,
        settings=records,
    )


if __name__ == "__main__":
    sys.exit(main())
