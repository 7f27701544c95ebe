# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
How long does it take to draw K warmups of each source?

Compared, in turn in one process, with an untrained model of the same dimensions and
the same sources, encoding included:

- ``ours``: ``draw_candidates()``, each source encoded once;
- ``fairseq2 top-p``: ``SamplingSeq2SeqGenerator`` with ``TopPSampler(p=1.0)``, the
  sources repeated, as one gets it from fairseq2;
- ``fairseq2 inverse CDF``: the same with a sampler that sorts nothing;
- ``transformers``: ``generate()`` of a ``MarianMTModel``.

The models are set such that a warmup ends with the same probability at every step: rows
that end early are where the four differ most. The second table is of the token samplers
alone. ::

    python scripts/bench_sampling.py
    python scripts/bench_sampling.py --sources 8 --end-prob 0.3 --vocab-sizes 8000
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, final

import torch
from fairseq2.data.tokenizers import VocabularyInfo
from fairseq2.datasets import Seq2SeqBatch
from fairseq2.generation.sampling import (
    Sampler,
    SamplingSeq2SeqGenerator,
    TopPSampler,
)
from fairseq2.models.transformer import TransformerModel
from fairseq2.nn import BatchLayout
from torch import Tensor
from typing_extensions import override

if not __package__:
    # Started as a file: the folder of the package is not on the path then.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.bench_common import (
    BOS_IDX,
    PAD_IDX,
    SEPARATOR_IDX,
    UNK_IDX,
    BenchParser,
    Setting,
    create_batch,
    create_layout,
    create_marian,
    create_model,
    format_range,
    format_table,
    generate_with_marian,
    mask_source,
    measure_alternating,
    measure_drawn_lens,
    parse_positive_int,
    prepare_device,
    print_record,
    repeat_source,
)
from warmup_plugin.models.scorable import create_conditional_model
from warmup_plugin.sampling import draw_candidates, sample_tokens

SETTING: Final = Setting(
    name="sampling",
    model_dim=256,
    num_layers=3,
    vocab_size=8000,
    source_len=30,
    target_len=30,
    warmup_len=30,
    num_warmups=4,
)


@final
class InverseCdfSampler(Sampler):
    """Draws by inverting the cumulative distribution; sums in fp64."""

    @override
    def sample(self, probs: Tensor) -> Tensor:
        # (N, V)
        cumulative = probs.cumsum(dim=-1, dtype=torch.float64)

        # (N, 1)
        total = cumulative[:, -1:]

        u = total * torch.rand_like(total)

        # (N, 1) -> (N)
        tokens = torch.searchsorted(cumulative, u, right=True).squeeze(1)

        return tokens.clamp_(max=probs.size(1) - 1)


def set_end_prob(model: TransformerModel, end_prob: float) -> None:
    """Lets every step end its warmup with about the same probability."""
    layer_norm: Any = model.decoder.layer_norm

    embedding = model.get_parameter("final_proj.weight")[SEPARATOR_IDX]

    # What is left of the hidden state is a constant that points to the separator; to
    # any other token it is nearly orthogonal.
    with torch.no_grad():
        layer_norm.weight.zero_()

        layer_norm.bias.copy_(
            _compute_end_logit(end_prob) * embedding / embedding.square().sum()
        )


def set_marian_end_prob(model: Any, end_prob: float) -> None:
    """Does to a ``MarianMTModel`` what :func:`set_end_prob` does."""
    with torch.no_grad():
        # Layers are post-norm, so this one has the last word.
        model.model.decoder.layers[-1].final_layer_norm.weight.zero_()

        model.final_logits_bias[0, SEPARATOR_IDX] = _compute_end_logit(end_prob)


def _compute_end_logit(end_prob: float) -> float:
    """The logit of the separator if all others are zero."""
    return math.log(end_prob / (1.0 - end_prob) * (SETTING.vocab_size - 1))


def create_draws(
    num_sources: int, end_prob: float, device: torch.device
) -> dict[str, Callable[[], Tensor]]:
    """Creates the ways to draw; each returns the lengths of its warmups."""
    batch = create_batch(SETTING, num_sources * SETTING.target_len, device)

    model, stock_model = (create_model(SETTING, device).eval() for _ in range(2))

    # An encoder-decoder, as the setting says.
    assert isinstance(model, TransformerModel)
    assert isinstance(stock_model, TransformerModel)

    set_end_prob(model, end_prob)

    marian = create_marian(SETTING, device).eval()

    set_marian_end_prob(marian, end_prob)

    conditional = create_conditional_model(model)

    # Not the one that `create_conditional_model()` may have adapted.
    set_end_prob(stock_model, end_prob)

    @torch.no_grad()
    def draw_ours() -> Tensor:
        candidates = draw_candidates(
            conditional,
            conditional.encode(*batch.as_source_input()),
            create_layout(SETTING),
            batch.target_seqs[:, :1],
            num_warmups=SETTING.num_warmups,
            max_warmup_len=SETTING.warmup_len,
        )

        return candidates.seq_lens

    @torch.no_grad()
    def draw_with_marian() -> Tensor:
        warmups = generate_with_marian(
            marian,
            *mask_source(*batch.as_source_input()),
            num_warmups=SETTING.num_warmups,
            max_warmup_len=SETTING.warmup_len,
        )

        return measure_drawn_lens(warmups)[0]

    return {
        "ours": draw_ours,
        "fairseq2 top-p": _create_stock_draw(stock_model, batch, TopPSampler(p=1.0)),
        "fairseq2 inverse CDF": _create_stock_draw(
            stock_model, batch, InverseCdfSampler()
        ),
        "transformers": draw_with_marian,
    }


def _create_stock_draw(
    model: TransformerModel, batch: Seq2SeqBatch, sampler: Sampler
) -> Callable[[], Tensor]:
    vocab_info = VocabularyInfo(
        SETTING.vocab_size, UNK_IDX, BOS_IDX, SEPARATOR_IDX, PAD_IDX
    )

    generator = SamplingSeq2SeqGenerator(
        model,
        vocab_info,
        sampler,
        # The separator counts, and the last step forces it.
        max_gen_len=(0.0, SETTING.warmup_len),
        temperature=1.0,
    )

    def draw() -> Tensor:
        source = repeat_source(batch, SETTING.num_warmups)

        prompts = batch.target_seqs[:, :1].repeat_interleave(SETTING.num_warmups, dim=0)

        output = generator(*source, prompts, BatchLayout.of(prompts))

        return torch.tensor([h[0].seq.size(0) - 1 for h in output.hypotheses])

    return draw


def create_samplers(logits: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Creates the ways to draw one token a row from a model's logits."""
    return {
        "ours": lambda: sample_tokens(logits)[0].squeeze(1),
        "torch.multinomial": lambda: torch.multinomial(
            logits.softmax(dim=-1), num_samples=1
        ).squeeze(1),
        "sort (top-p)": lambda: TopPSampler(p=1.0).sample(logits.softmax(dim=-1)),
    }


def _measure_samplers(
    args: argparse.Namespace, device: torch.device
) -> dict[str, dict[str, list[float]]]:
    """Measures the samplers for each size of the vocabulary."""
    times = {}

    for vocab_size in args.vocab_sizes:
        torch.manual_seed(0)

        num_rows = args.sources * SETTING.num_warmups

        logits = torch.randn((num_rows, vocab_size), device=device)

        times[str(vocab_size)] = measure_alternating(
            create_samplers(logits), device, num_rounds=args.rounds
        )

    return times


def _format_draws(
    times: Mapping[str, Sequence[float]], mean_lens: Mapping[str, float]
) -> str:
    ours = statistics.median(times["ours"])

    rows = []

    for name, seconds in times.items():
        median = statistics.median(seconds)

        milliseconds = [1000 * value for value in seconds]

        rows.append(
            [
                name,
                f"{1000 * median:.0f}",
                format_range(milliseconds, digits=0),
                f"{median / ours:.2f}",
                f"{mean_lens[name]:.1f}",
            ]
        )

    return format_table(["drawing", "ms", "range", "x ours", "mean length"], rows)


def _format_samplers(times: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    names = [*next(iter(times.values()))]

    rows = []

    for name in names:
        cells = [
            f"{1000 * statistics.median(of_size[name]):.1f}"
            for of_size in times.values()
        ]

        rows.append([name, *cells])

    header = ["token sampler, ms", *(f"V = {int(size):,}" for size in times)]

    return format_table(header, rows)


def _parse_prob(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0

    if not 0.0 < value < 1.0:
        raise argparse.ArgumentTypeError(f"must be between 0 and 1, but is {text}")

    return value


def main(argv: Sequence[str] | None = None) -> int:
    parser = BenchParser(
        prog="python scripts/bench_sampling.py",
        description="Measures drawing K = 4 warmups of up to 30 tokens a source, beside fairseq2's and transformers' own sampling.",
    )

    parser.add_count("--sources", 32, "sources of the batch, 4 rows each")

    parser.add_argument(
        "--end-prob",
        type=_parse_prob,
        default=0.07,
        metavar="P",
        help="about the probability that a step ends its warmup (default: %(default)s)",
    )

    parser.add_argument(
        "--vocab-sizes",
        type=parse_positive_int,
        nargs="+",
        default=[8000, 32_000, 250_000],
        metavar="V",
        help="the vocabularies of the token samplers (default: 8000 32000 250000)",
    )

    parser.add_common_arguments()

    return parser.run(argv, _run)


def _run(args: argparse.Namespace) -> None:
    device = prepare_device(args)

    draws = create_draws(args.sources, args.end_prob, device)

    torch.manual_seed(0)

    mean_lens = {name: float(draw().float().mean()) for name, draw in draws.items()}

    times = measure_alternating(draws, device, num_rounds=args.rounds)

    print(f"\n{SETTING.describe()}; {args.sources} sources\n")

    print(_format_draws(times, mean_lens))

    sampler_times = _measure_samplers(args, device)

    print(f"\n{args.sources * SETTING.num_warmups} rows\n")

    print(_format_samplers(sampler_times))

    print_record(
        args,
        "sampling",
        shapes=vars(SETTING),
        num_sources=args.sources,
        end_prob=args.end_prob,
        draw_times=times,
        mean_lens=mean_lens,
        sampler_times=sampler_times,
    )


if __name__ == "__main__":
    sys.exit(main())
