# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""What the benchmarks share: shapes, models, batches, the clock and the table."""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, final

import fairseq2
import torch
from fairseq2.datasets import Seq2SeqBatch
from fairseq2.models.llama import LLaMAConfig
from fairseq2.models.llama.factory import create_llama_model
from fairseq2.models.nllb import NllbConfig
from fairseq2.models.nllb.factory import create_nllb_model
from fairseq2.models.transformer import TransformerModel
from fairseq2.models.transformer_lm import TransformerLM
from fairseq2.nn import BatchLayout
from torch import Tensor

import warmup_plugin
from warmup_plugin.errors import WarmupError
from warmup_plugin.layout import DecoderLayout
from warmup_plugin.models.t5 import T5Config, create_t5_model

ROOT: Final = Path(__file__).resolve().parent.parent

PAD_IDX, UNK_IDX, BOS_IDX, EOS_IDX, SEPARATOR_IDX, FIRST_WORD_IDX = range(6)

_CLOCKS: Final = {"wall": time.perf_counter, "cpu": time.process_time}

# Whose versions are told where they are installed.
_PEERS: Final = ("transformers", "ctranslate2")

# The first calls allocate and import what the others find.
_NUM_DROPPED: Final = 1


@final
@dataclass(frozen=True, kw_only=True)
class Setting:
    """Holds the dimensions of a model and of its data."""

    name: str

    family: str = "nllb"
    """Of fairseq2: ``nllb``; ``t5``, whose positions are a bias of attention; or ``llama``,
    whose prompts are the sources."""

    model_dim: int

    num_layers: int
    """Of the encoder and of the decoder each, or of the only decoder."""

    num_heads: int = 4

    vocab_size: int

    source_len: int
    """The mean number of a source's tokens, EOS included."""

    target_len: int
    """The mean number of a target's tokens to predict, EOS included."""

    warmup_len: int
    """The most tokens of a warmup, the separator not included."""

    num_warmups: int
    """The number K of warmups a source."""

    num_target_tokens: int = 1500
    """The size of a batch unless another one is asked for."""

    needs_gpu: bool = False
    """``True`` if a step takes minutes on a CPU."""

    @property
    def max_seq_len(self) -> int:
        """No sequence of :func:`create_batch` with a warmup is longer."""
        if self.is_decoder_only:
            longest = 2 * (self.source_len + self.target_len)
        else:
            longest = 2 * max(self.source_len, self.target_len)

        return longest + self.warmup_len + 2

    @property
    def is_decoder_only(self) -> bool:
        return self.family == "llama"

    def describe(self) -> str:
        """Describes the setting for people."""
        layers = str(self.num_layers)

        if not self.is_decoder_only:
            layers = f"{layers}+{layers}"

        return (
            f"{self.name} ({self.family}): {self.model_dim} dimensions, {layers} layers, "
            f"V = {self.vocab_size:,}; x / y / c = {self.source_len} / {self.target_len} / "
            f"{self.warmup_len} tokens, K = {self.num_warmups}"
        )


def create_model(
    setting: Setting, device: torch.device
) -> TransformerModel | TransformerLM:
    """Creates an untrained model, whose weights are the same at every call."""
    torch.manual_seed(0)

    if setting.is_decoder_only:
        config: Any = LLaMAConfig(
            model_dim=setting.model_dim,
            max_seq_len=setting.max_seq_len,
            vocab_size=setting.vocab_size,
            pad_idx=PAD_IDX,
            tied_embeddings=True,
            shard_embed_dim=False,
            num_layers=setting.num_layers,
            num_attn_heads=setting.num_heads,
            num_key_value_heads=setting.num_heads,
            # Of which it takes two thirds, in three matrices instead of two.
            ffn_inner_dim=4 * setting.model_dim,
            ffn_inner_dim_multiple_of=8,
            dropout_p=0.1,
        )

        create: Callable[..., TransformerModel | TransformerLM] = create_llama_model
    elif setting.family == "t5":
        config = T5Config(
            model_dim=setting.model_dim,
            head_dim=setting.model_dim // setting.num_heads,
            num_attn_heads=setting.num_heads,
            num_encoder_layers=setting.num_layers,
            num_decoder_layers=setting.num_layers,
            ffn_inner_dim=4 * setting.model_dim,
            vocab_size=setting.vocab_size,
            pad_idx=PAD_IDX,
            dropout_p=0.1,
        )

        create = create_t5_model
    else:
        config, create = create_nllb_config(setting), create_nllb_model

    with device:
        return create(config)


def create_nllb_config(setting: Setting) -> NllbConfig:
    """Creates the configuration of a setting's model if its family is ``nllb``."""
    return NllbConfig(
        model_dim=setting.model_dim,
        max_seq_len=setting.max_seq_len,
        vocab_size=setting.vocab_size,
        pad_idx=PAD_IDX,
        num_encoder_layers=setting.num_layers,
        num_decoder_layers=setting.num_layers,
        num_encoder_attn_heads=setting.num_heads,
        num_decoder_attn_heads=setting.num_heads,
        ffn_inner_dim=4 * setting.model_dim,
        dropout_p=0.1,
    )


def create_marian(setting: Setting, device: torch.device) -> Any:
    """
    Creates an untrained ``MarianMTModel`` of transformers with the same dimensions.

    :raises WarmupError: If transformers is not installed.
    """
    try:
        transformers = importlib.import_module("transformers")
    except ImportError:
        raise WarmupError(
            "transformers is not installed; install it with `pip install '.[bench]'` or choose other steps with `--variants`."
        ) from None

    config = transformers.MarianConfig(
        d_model=setting.model_dim,
        max_position_embeddings=setting.max_seq_len,
        vocab_size=setting.vocab_size,
        encoder_layers=setting.num_layers,
        decoder_layers=setting.num_layers,
        encoder_attention_heads=setting.num_heads,
        decoder_attention_heads=setting.num_heads,
        encoder_ffn_dim=4 * setting.model_dim,
        decoder_ffn_dim=4 * setting.model_dim,
        activation_function="relu",
        dropout=0.1,
        scale_embedding=True,
        decoder_start_token_id=BOS_IDX,
        pad_token_id=PAD_IDX,
        eos_token_id=EOS_IDX,
        forced_eos_token_id=None,
    )

    torch.manual_seed(0)

    with device:
        return transformers.MarianMTModel(config)


def generate_with_marian(
    model: Any,
    source_seqs: Tensor,
    attention_mask: Tensor,
    *,
    num_warmups: int,
    max_warmup_len: int,
) -> Tensor:
    """
    Draws K warmups a source with ``generate()``.

    :param source_seqs: *Shape:* :math:`(N,S_{src})`.
    :param attention_mask: *Shape:* Same as ``source_seqs``.

    :returns: The warmups with their separator, padded. *Shape:* :math:`(B,C)`.
    """
    # (B, C + 1)
    seqs: Tensor = model.generate(
        source_seqs,
        attention_mask=attention_mask,
        do_sample=True,
        # Without it, the 50 likeliest tokens only.
        top_k=0,
        num_return_sequences=num_warmups,
        max_new_tokens=max_warmup_len,
        eos_token_id=SEPARATOR_IDX,
        pad_token_id=PAD_IDX,
    )

    return seqs[:, 1:]


def measure_drawn_lens(warmups: Tensor) -> tuple[Tensor, Tensor]:
    """
    Finds where generated warmups end.

    :param warmups: What follows a separator is not read. *Shape:* :math:`(B,C)`.

    :returns: The lengths without separator, and ``True`` for those that end in one.
        *Shape:* :math:`(B)` each.
    """
    is_separator = warmups == SEPARATOR_IDX

    ended = is_separator.any(dim=1)

    lens = torch.where(ended, is_separator.int().argmax(dim=1), warmups.size(1))

    return lens, ended


def create_layout(setting: Setting) -> DecoderLayout:
    """Creates the layout of a vocabulary of random tokens."""
    return DecoderLayout(
        separator_idx=SEPARATOR_IDX,
        eos_idx=EOS_IDX,
        pad_idx=PAD_IDX,
        prefix_len=1,
        vocab_size=setting.vocab_size,
        banned_in_warmup=(PAD_IDX, UNK_IDX, BOS_IDX, EOS_IDX),
        banned_in_target=(PAD_IDX, UNK_IDX, BOS_IDX, SEPARATOR_IDX),
    )


def create_batch(
    setting: Setting, num_target_tokens: int, device: torch.device
) -> Seq2SeqBatch:
    """
    Creates a batch of random tokens, the same at every call.

    Lengths vary by 30 % around their mean, so that padding costs what it costs in a
    batch of real text that was not sorted by length.
    """
    generator = torch.Generator().manual_seed(0)

    num_sources = max(1, round(num_target_tokens / setting.target_len))

    def draw(mean_len: int, prefix: Sequence[int]) -> tuple[Tensor, list[int]]:
        spread = int(0.3 * mean_len)

        lens = torch.randint(
            mean_len - spread,
            mean_len + spread + 1,
            (num_sources,),
            generator=generator,
        )

        seqs = torch.full((num_sources, len(prefix) + int(lens.max())), PAD_IDX)

        for seq, length in zip(seqs, lens.tolist()):
            words = torch.randint(
                FIRST_WORD_IDX, setting.vocab_size, (length - 1,), generator=generator
            )

            row = torch.tensor([*prefix, *words.tolist(), EOS_IDX])

            seq[: row.size(0)] = row

        return seqs.to(device), [len(prefix) + n for n in lens.tolist()]

    return Seq2SeqBatch(
        *draw(setting.source_len, []), *draw(setting.target_len, [BOS_IDX])
    )


def repeat_source(batch: Seq2SeqBatch, num_times: int) -> tuple[Tensor, BatchLayout]:
    """Repeats each source for its candidates, as one does who shares nothing."""
    source_seqs, source_layout = batch.as_source_input()

    # (N, S_src) -> (B, S_src)
    seqs = source_seqs.repeat_interleave(num_times, dim=0)

    seq_lens = [n for n in source_layout.seq_lens for _ in range(num_times)]

    return seqs, BatchLayout.of(seqs, seq_lens)


def mask_source(seqs: Tensor, layout: BatchLayout) -> tuple[Tensor, Tensor]:
    """Returns sources with the mask that transformers wants."""
    return seqs, (layout.position_indices >= 0).long()


def synchronize(device: torch.device) -> None:
    """Waits until the device has done what it was asked to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_step(
    step: Callable[[], object],
    device: torch.device,
    seed: int,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Returns the time in seconds of a step, until the device has done its part."""
    torch.manual_seed(seed)

    synchronize(device)

    begin = clock()

    step()

    synchronize(device)

    return clock() - begin


def take_turns(
    names: Iterable[str], num_rounds: int, measure: Callable[[str, int], float]
) -> dict[str, list[float]]:
    """
    Measures in turn, A B C A B C …, so that a change of the machine's speed meets all.

    :param measure: Given a name and the number of the round, returns a time.

    :returns: The times of each name, those of the first round dropped.
    """
    times: dict[str, list[float]] = {name: [] for name in names}

    for round_nr in range(_NUM_DROPPED + num_rounds):
        for name in times:
            print(
                f"round {round_nr}/{num_rounds}: {name}",
                file=sys.stderr,
                flush=True,
            )

            seconds = measure(name, round_nr)

            if round_nr >= _NUM_DROPPED:
                times[name].append(seconds)

    return times


def measure_alternating(
    steps: Mapping[str, Callable[[], object]],
    device: torch.device,
    *,
    num_rounds: int,
    between: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """
    Measures the steps of one process in turn, see :func:`take_turns`.

    :param between: Called before each step; its time does not count.
    :param clock: Tells the time in seconds.
    """

    def measure(name: str, round_nr: int) -> float:
        between()

        return measure_step(steps[name], device, round_nr, clock)

    return take_turns(steps, num_rounds, measure)


def format_range(values: Sequence[float], *, digits: int) -> str:
    """Formats the least and the largest of several values."""
    return f"{min(values):.{digits}f}-{max(values):.{digits}f}"


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Formats a table of plain text, the first column to the left."""
    table = [header, *rows]

    widths = [max(len(row[i]) for row in table) for i in range(len(header))]

    lines = []

    for row in table:
        cells = [row[0].ljust(widths[0])]

        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]

        lines.append("  ".join(cells).rstrip())

    lines.insert(1, "-" * max(len(line) for line in lines))

    return "\n".join(lines)


def describe_environment(args: argparse.Namespace) -> dict[str, object]:
    """Describes for scripts what was measured, on what, and how."""
    device = torch.device(args.device)

    if device.type == "cuda":
        device_name = torch.cuda.get_device_name(device)
    else:
        device_name = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"

    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fairseq2": fairseq2.__version__,
        "warmup_plugin": warmup_plugin.__version__,
    }

    for name in _PEERS:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            pass

    return {
        "commit": _find_commit(),
        "versions": versions,
        "device": args.device,
        "device_name": device_name,
        "num_threads": torch.get_num_threads(),
        "num_rounds": args.rounds,
        # Of what measures steps in its own process.
        **({"clock": args.clock} if "clock" in args else {}),
    }


def print_record(args: argparse.Namespace, benchmark: str, **figures: object) -> None:
    """Prints what was measured as the last line, for scripts."""
    record = {"benchmark": benchmark, **describe_environment(args), **figures}

    print(f"\n{json.dumps(record)}")


def read_memory(field: str, file: str = "status") -> int:
    """
    Reads a figure of this process in bytes.

    :param field: Such as ``VmHWM``.
    :param file: Which of the files in ``/proc/self`` has it.

    :raises WarmupError: If this system tells none.
    """
    try:
        lines = Path("/proc/self", file).read_text().splitlines()
    except OSError:
        raise WarmupError(
            "Memory is read from /proc, which this system does not have; leave `--memory` out or measure on Linux."
        ) from None

    [line] = [line for line in lines if line.startswith(f"{field}:")]

    # `VmHWM: 1234 kB`
    return 1024 * int(line.split()[1])


def reset_peak_memory() -> int:
    """
    Lets ``VmHWM`` begin anew. What Python's ``resource`` reports includes the creation of
    the model, and the process that started this one.

    :returns: What the process takes now, in bytes.
    """
    before = read_memory("VmRSS")

    Path("/proc/self/clear_refs").write_text("5")

    return before


def _find_commit() -> str | None:
    """Finds the commit of the code, with ``-dirty`` if it was changed since."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]

    try:
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return None

    return result.stdout.strip() or None


def parse_positive_int(text: str) -> int:
    """Parses an argument that counts something."""
    value = int(text) if text.isdecimal() else 0

    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer, but is {text}")

    return value


def parse_positive_ints(text: str) -> list[int]:
    """Parses an argument of several counts, divided by commas."""
    return [parse_positive_int(part) for part in text.split(",")]


def parse_names(option: str, text: str, known: Sequence[str]) -> list[str]:
    """
    Parses names that are divided by commas.

    :raises WarmupError: If one is not known.
    """
    names = text.split(",")

    for name in names:
        if name not in known:
            raise WarmupError(
                f"`{option}` names `{name}`, which is not known; use {', '.join(known)}."
            )

    return list(dict.fromkeys(names))


def get_clock(args: argparse.Namespace) -> Callable[[], float]:
    """
    Returns the clock of ``--clock``.

    :raises WarmupError: If it does not see what the device does.
    """
    if args.device == "cuda" and args.clock == "cpu":
        raise WarmupError(
            "`--clock` is `cpu`, but a GPU works while the CPU does not; leave it out with `--device cuda`."
        )

    return _CLOCKS[args.clock]


def prepare_device(args: argparse.Namespace) -> torch.device:
    """
    Applies the common arguments.

    :raises WarmupError: If there is no such device.
    """
    if args.device == "cuda" and not torch.cuda.is_available():
        raise WarmupError(
            "`--device` is `cuda`, but PyTorch finds no GPU; leave it out to measure on the CPU."
        )

    torch.set_num_threads(args.threads)

    return torch.device(args.device)


@final
class BenchParser(argparse.ArgumentParser):
    """Parses what a benchmark is told, and runs it."""

    def add_count(self, option: str, default: int, text: str) -> None:
        """Adds an argument that counts something."""
        self.add_argument(
            option,
            type=parse_positive_int,
            default=default,
            metavar="N",
            help=f"{text} (default: %(default)s)",
        )

    def add_names(self, option: str, default: Iterable[str], text: str) -> None:
        """Adds an argument that :func:`parse_names` reads."""
        self.add_argument(
            option,
            default=",".join(default),
            metavar="NAMES",
            help=f"{text} (default: %(default)s)",
        )

    def add_common_arguments(self) -> None:
        """Adds what every benchmark can be told."""
        self.add_count("--rounds", 5, "measurements of each step; one more is dropped")

        self.add_count("--threads", 1, "threads of PyTorch on the CPU")

        self.add_argument(
            "--device",
            choices=["cpu", "cuda"],
            default="cpu",
            help="where to measure (default: %(default)s)",
        )

    def add_clock_argument(self) -> None:
        """Adds the choice of the clock to what measures steps in its own process."""
        self.add_argument(
            "--clock",
            choices=[*_CLOCKS],
            default="wall",
            help="what seconds are: those of the wall, or of the CPU, which other work on the same cores does not change much (default: %(default)s)",
        )

    def run(
        self,
        argv: Sequence[str] | None,
        run: Callable[[argparse.Namespace], None],
    ) -> int:
        """
        Parses arguments and runs a benchmark.

        :returns: The exit status: 0, 2 for bad input, or 130 when interrupted.
        """
        args = self.parse_args(argv)

        try:
            run(args)
        except WarmupError as ex:
            print(f"error: {ex}", file=sys.stderr)

            return 2
        except KeyboardInterrupt:
            print("\nstopped", file=sys.stderr)

            return 130

        return 0
