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
once a step (``warmup.share_encoder``). ``mrt`` draws K outputs,
which end at the length of the source, and scores them by chrF++. ``joint-1`` draws by a beam of
K + 1, which the prediction does not count. ``lora-sft`` and ``lora-marginal-1``, which have
to be asked for, train an adapter of rank 16 on all projections; the JSON says how many
parameters each step trains. ::

    python scripts/bench_step.py
    python scripts/bench_step.py --settings mt5-vocab --memory --rounds 1 --variants sft,marginal-1,marginal-all
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, final
from unittest import mock

import torch
import torch.nn.functional as F
from fairseq2.datasets import Seq2SeqBatch
from fairseq2.gang import create_fake_gangs
from fairseq2.metrics import Mean, MetricBag
from fairseq2.metrics.common import add_seq2seq_batch_metrics
from fairseq2.models.transformer.ac import apply_ac_to_transformer
from fairseq2.models.transformer_lm import TransformerLM
from fairseq2.models.transformer_lm.ac import apply_ac_to_transformer_lm
from fairseq2.nn import BatchLayout
from torch import Tensor
from torch.nn import Module
from torch.nn.utils.rnn import pad_sequence

if not __package__:
    # Started as a file: the folder of the package is not on the path then.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.bench_common import (
    PAD_IDX,
    ROOT,
    Setting,
    add_clock_argument,
    add_common_arguments,
    create_batch,
    create_layout,
    create_marian,
    create_model,
    format_range,
    format_table,
    generate_with_marian,
    get_clock,
    mask_source,
    measure_alternating,
    measure_drawn_lens,
    parse_names,
    parse_positive_int,
    prepare_device,
    print_record,
    read_memory,
    repeat_source,
    reset_peak_memory,
    run_benchmark,
    synchronize,
)
from warmup_plugin.criteria import Criterion, CriterionContext, WarmupSection
from warmup_plugin.criteria import look as look_module
from warmup_plugin.criteria import warmup as warmup_module
from warmup_plugin.criteria.base import num_target_tokens
from warmup_plugin.criteria.config import KeepSection
from warmup_plugin.criteria.mrt import MrtConfig, create_mrt_criterion
from warmup_plugin.criteria.sft import create_sft_criterion
from warmup_plugin.criteria.warmup import create_warmup_criterion
from warmup_plugin.errors import WarmupError
from warmup_plugin.layout import DecoderRows, join_rows
from warmup_plugin.metrics.sentence import create_sentence_metric
from warmup_plugin.models.conditional import ConditionalModel, evaluation_mode
from warmup_plugin.models.lora import LoraSection, add_adapter
from warmup_plugin.models.scorable import create_conditional_model, make_scorable
from warmup_plugin.objectives import (
    Objective,
    best_loss,
    elbo_loss,
    joint_loss,
    marginal_loss,
)
from warmup_plugin.sampling import WarmupSampler, draw_candidates
from warmup_plugin.sampling.samplers import StochasticBeamSampler

_CAPTIONS: Final = Setting(
    name="captions",
    model_dim=128,
    num_layers=2,
    vocab_size=6000,
    source_len=17,
    target_len=17,
    warmup_len=8,
    num_warmups=4,
)

_SENTENCE: Final = replace(
    _CAPTIONS,
    name="sentence",
    model_dim=256,
    num_layers=6,
    vocab_size=8000,
    source_len=30,
    target_len=30,
)

# Transformer base, as in "Attention Is All You Need".
_BASE: Final = replace(
    _SENTENCE,
    name="base",
    model_dim=512,
    num_heads=8,
    vocab_size=32_000,
    needs_gpu=True,
)

_T5_BASE: Final = replace(
    _BASE,
    name="t5-base",
    family="t5",
    model_dim=768,
    num_layers=12,
    num_heads=12,
    vocab_size=32_128,
    source_len=40,
    target_len=40,
)

SETTINGS: Final = {
    setting.name: setting
    for setting in (
        _CAPTIONS,
        _SENTENCE,
        replace(
            _SENTENCE,
            name="summarization",
            source_len=512,
            target_len=64,
            warmup_len=16,
        ),
        # For the memory of a large vocabulary: small where that does not matter.
        replace(
            _SENTENCE,
            name="mt5-vocab",
            num_layers=2,
            vocab_size=250_000,
            source_len=40,
            target_len=40,
            num_warmups=8,
            num_target_tokens=320,
        ),
        replace(_CAPTIONS, name="t5-captions", family="t5"),
        # Decoder-only, with as many layers as the others have in all.
        replace(_CAPTIONS, name="llama-captions", family="llama", num_layers=4),
        replace(_SENTENCE, name="llama-sentence", family="llama", num_layers=12),
        _BASE,
        _T5_BASE,
        replace(_T5_BASE, name="mt5-base", vocab_size=250_112),
    )
}


def predict_multiple(
    setting: Setting,
    num_kept: int | None,
    *,
    source_repeated: bool = False,
    shares_encoder: bool = False,
    checkpoints_activations: bool = False,
) -> float:
    """
    Predicts a warmup step as a multiple of the SFT step by counting multiply-adds.

    With d dimensions, a token costs 12 d² in a layer of the encoder, 14 d² in a layer
    of the decoder, and V d in the output projection; the keys and values of a source
    token cost 2 d² in a layer of the decoder; a token of a decoder-only model costs 12 d².
    A warmup is counted with its separator. Backward costs two forwards. Attention weights, softmax and drawing are not counted.

    :param num_kept: The candidates a source in the differentiable pass; ``None`` for
        all, which need not be weighed first.
    :param source_repeated: ``True`` if each candidate has its source encoded.
    :param shares_encoder: ``True`` if the encoder is called once; keys and values of the
        decoder are computed twice all the same.
    :param checkpoints_activations: ``True`` if backward computes forward once more.
    """
    squared = setting.model_dim**2

    num_layers = setting.num_layers

    layer = (12 if setting.is_decoder_only else 14) * squared

    encode = setting.source_len * num_layers * layer

    token = num_layers * layer + setting.vocab_size * setting.model_dim

    warmup = (setting.warmup_len + 1) * token

    target = setting.target_len * token

    # Passes forward that a pass with gradient is worth.
    grad = 4 if checkpoints_activations else 3

    sft = grad * (encode + target)

    num_warmups = setting.num_warmups

    num_encoded = num_warmups if source_repeated else 1

    # Once without gradient, for drawing and weighing, and once with.
    step = (1 + grad) * num_encoded * encode + num_warmups * warmup

    if shares_encoder:
        step -= setting.source_len * num_layers * 12 * squared

    if num_kept is None:
        step += grad * num_warmups * (warmup + target)
    else:
        step += num_warmups * target + grad * num_kept * (warmup + target)

    return step / sft


@final
@dataclass(frozen=True)
class WarmupVariant:
    """A way to set the criterion ``warmup``."""

    objective: Objective

    num_kept: int | None
    """The candidates a source in the differentiable pass; ``None`` for all."""

    keep: KeepSection
    """What chooses them."""

    sampler: WarmupSampler = draw_candidates

    share_encoder: bool = False


WARMUP_VARIANTS: Final = {
    "marginal-1": WarmupVariant(marginal_loss, 1, KeepSection(num=1)),
    "shared-1": WarmupVariant(marginal_loss, 1, KeepSection(num=1), share_encoder=True),
    "marginal-2": WarmupVariant(marginal_loss, 2, KeepSection(num=2)),
    "marginal-all": WarmupVariant(marginal_loss, None, KeepSection(name="all")),
    "elbo-1": WarmupVariant(elbo_loss, 1, KeepSection(num=1)),
    "best-1": WarmupVariant(best_loss, 1, KeepSection(num=1)),
    "joint-1": WarmupVariant(
        joint_loss, 1, KeepSection(num=1), StochasticBeamSampler()
    ),
}

_SFT: Final = "sft"
_MRT: Final = "mrt"
_FAIRSEQ2_SFT: Final = "fairseq2-sft"
_PLAIN: Final = "plain"
_HF_SFT: Final = "hf-sft"
_HF_WARMUP: Final = "hf-warmup"

VARIANTS: Final = (
    _SFT,
    *WARMUP_VARIANTS,
    _MRT,
    _FAIRSEQ2_SFT,
    _PLAIN,
    _HF_SFT,
    _HF_WARMUP,
)

# Before the name of one of these, trains an adapter alone.
_LORA: Final = "lora-"

LORA_VARIANTS: Final = (f"{_LORA}{_SFT}", f"{_LORA}marginal-1")

_LORA_RANK: Final = 16

# The step whose multiple a row is, if not `sft`.
_BASELINES: Final = {_HF_SFT: _HF_SFT, _HF_WARMUP: _HF_SFT}

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
_MIN_SLOWDOWNS: Final = {("captions", _HF_WARMUP): 2.0}


@final
class BenchStep:
    """Forward and backward of one batch, or of several."""

    def __init__(
        self,
        module: Module,
        compute_loss: Callable[[], Tensor],
        device: torch.device,
        dtype: torch.dtype,
        *,
        model: ConditionalModel | None = None,
        num_accumulate: int = 1,
    ) -> None:
        """
        :param model: What ``compute_loss`` encodes with, to be profiled.
        :param num_accumulate: The number of batches of a step.
        """
        self.module = module
        self.model = model

        self._compute_loss = compute_loss
        self._device = device
        self._dtype = dtype
        self._num_accumulate = num_accumulate

    def __call__(self) -> None:
        for _ in range(self._num_accumulate):
            self.backward(self.forward())

    def forward(self) -> Tensor:
        """Computes the loss."""
        enabled = self._dtype == torch.bfloat16

        with torch.autocast(self._device.type, torch.bfloat16, enabled=enabled):
            return self._compute_loss()

    def backward(self, loss: Tensor) -> None:
        """Computes the gradients."""
        torch.autograd.backward(loss)

    @property
    def num_trained(self) -> int:
        """The number of parameters that get a gradient."""
        parameters = self.module.parameters()

        return sum(p.numel() for p in parameters if p.requires_grad)

    def clear(self) -> None:
        """Deletes the gradients."""
        for parameter in self.module.parameters():
            parameter.grad = None


def create_step(
    name: str,
    setting: Setting,
    batch: Seq2SeqBatch,
    device: torch.device,
    dtype: torch.dtype,
    *,
    checkpoints_activations: bool = False,
    num_accumulate: int = 1,
) -> BenchStep:
    """
    Creates the step of a variant, with a model of its own.

    :param checkpoints_activations: If ``True``, backward computes each layer once more.
    :param num_accumulate: The number of batches of a step.
    """
    finish = partial(
        BenchStep, device=device, dtype=dtype, num_accumulate=num_accumulate
    )

    if name in (_HF_SFT, _HF_WARMUP):
        marian = create_marian(setting, device)

        if name == _HF_SFT:
            return finish(marian, partial(_compute_marian_sft_loss, marian, batch))

        return finish(
            marian, partial(_compute_marian_warmup_loss, marian, setting, batch)
        )

    module = create_model(setting, device)

    # As it comes from fairseq2.
    if name not in (_FAIRSEQ2_SFT, _PLAIN):
        make_scorable(module)

    if name in LORA_VARIANTS:
        add_adapter(module, LoraSection(rank=_LORA_RANK))

        name = name.removeprefix(_LORA)

    # As the recipes do it.
    if checkpoints_activations:
        if isinstance(module, TransformerLM):
            apply_ac_to_transformer_lm(module, every_nth_layer=1)
        else:
            apply_ac_to_transformer(module, every_nth_layer=1)

    if name == _FAIRSEQ2_SFT:
        if isinstance(module, TransformerLM):
            return finish(module, _create_lm_sft_loss(module, batch))

        return finish(module, partial(_compute_fairseq2_sft_loss, module, batch))

    model = create_conditional_model(module)

    if name == _PLAIN:
        return finish(module, partial(_compute_plain_loss, model, setting, batch))

    if name == _MRT:
        batch = _add_texts(batch)

        factory: CreateCriterion = partial(_create_mrt_criterion, setting)
    else:
        factory = (
            create_warmup_criterion if name in WARMUP_VARIANTS else create_sft_criterion
        )

    criterion, metric_bag = _create_criterion(
        model, setting, factory, WARMUP_VARIANTS.get(name), device
    )

    def compute_loss() -> Tensor:
        return criterion.compute_loss(batch, metric_bag, step_nr=1)

    return finish(module, compute_loss, model=model)


CreateCriterion = Callable[[CriterionContext], Criterion]


def _write_text(tokens: Sequence[int]) -> str:
    """Writes a word for each token, about as long as those of a tokenizer."""
    return " ".join(f"w{token}" for token in tokens)


def _add_texts(batch: Seq2SeqBatch) -> Seq2SeqBatch:
    def write(seqs: Tensor) -> list[str]:
        return [_write_text(seq) for seq in seqs.tolist()]

    sources, references = write(batch.source_seqs), write(batch.target_seqs)

    assert batch.source_seq_lens is not None and batch.target_seq_lens is not None

    return Seq2SeqBatch(
        batch.source_seqs,
        list(batch.source_seq_lens),
        batch.target_seqs,
        list(batch.target_seq_lens),
        example={
            "indices": list(range(len(sources))),
            "sources": sources,
            "references": [[text] for text in references],
        },
    )


def _create_mrt_criterion(setting: Setting, context: CriterionContext) -> Criterion:
    config = MrtConfig(num_samples=setting.num_warmups, max_len_a=1.0, max_len_b=1)

    return create_mrt_criterion(
        replace(context, decode=_write_text),
        config,
        create_sentence_metric("chrf", None),
        seed=1,
    )


def _create_criterion(
    model: ConditionalModel,
    setting: Setting,
    factory: CreateCriterion,
    variant: WarmupVariant | None,
    device: torch.device,
) -> tuple[Criterion, MetricBag]:
    if variant is None:
        # Which it does not read.
        variant = WARMUP_VARIANTS["marginal-1"]

    criterion = factory(
        CriterionContext(
            model=model,
            dp_model=model.module,
            layout=create_layout(setting),
            gangs=create_fake_gangs(device),
            label_smoothing=0.0,
            warmup=WarmupSection(
                num_warmups=setting.num_warmups,
                max_warmup_len=setting.warmup_len,
                keep=variant.keep,
                share_encoder=variant.share_encoder,
            ),
            objective=variant.objective,
            sampler=variant.sampler,
            reference=None,
            plain_directions=frozenset(),
            publish_every_n_steps=None,
        )
    )

    metric_bag = MetricBag(device)

    add_seq2seq_batch_metrics(metric_bag)

    metric_bag.add("nll_loss", Mean())

    criterion.add_metrics(metric_bag)

    return criterion, metric_bag


def _compute_fairseq2_sft_loss(module: Module, batch: Seq2SeqBatch) -> Tensor:
    """Computes -log P(y|x) by fairseq2's forward, over padded targets."""
    inputs, targets = batch.as_auto_regressive()

    loss: Tensor = module(
        *batch.as_source_input(),
        *inputs.as_target_input(),
        targets=targets.seqs,
        reduction="sum",
    )

    return loss


def _create_lm_sft_loss(module: Module, batch: Seq2SeqBatch) -> Callable[[], Tensor]:
    """
    Returns what computes -log P(y|x) by fairseq2's forward, over prompts and targets in
    padded sequences.
    """
    assert batch.source_seq_lens is not None and batch.target_seq_lens is not None

    rows, masks = [], []

    lens = zip(batch.source_seq_lens, batch.target_seq_lens)

    for n, (source_len, target_len) in enumerate(lens):
        source, target = batch.source_seqs[n], batch.target_seqs[n]

        rows.append(torch.cat([source[:source_len], target[:target_len]]))

        # From the token behind the last one of the prompt.
        mask = torch.zeros_like(rows[-1][1:], dtype=torch.bool)

        mask[source_len:] = True

        masks.append(mask)

    seqs = pad_sequence(rows, batch_first=True, padding_value=PAD_IDX)

    target_mask = pad_sequence(masks, batch_first=True)

    inputs = seqs[:, :-1]

    layout = BatchLayout.of(inputs, [len(row) - 1 for row in rows])

    def compute_loss() -> Tensor:
        loss: Tensor = module(
            inputs,
            layout,
            targets=seqs[:, 1:],
            target_mask=target_mask,
            reduction="sum",
        )

        return loss

    return compute_loss


def _compute_plain_loss(
    model: ConditionalModel, setting: Setting, batch: Seq2SeqBatch
) -> Tensor:
    """Computes the marginal with fairseq2's forward, the sources repeated."""
    module = model.module

    # The same draws as those of the criterion, so that only the rest is compared.
    with torch.no_grad(), evaluation_mode(module):
        candidates = draw_candidates(
            model,
            model.encode(*batch.as_source_input()),
            create_layout(setting),
            batch.target_seqs[:, :1],
            num_warmups=setting.num_warmups,
            max_warmup_len=setting.warmup_len,
        )

    torch.clear_autocast_cache()

    rows = _join_warmups(
        setting, batch, candidates.seqs, candidates.seq_lens, candidates.cut
    )

    # (B, S)
    nll = module(
        *repeat_source(batch, setting.num_warmups),
        rows.seqs,
        BatchLayout.of(rows.seqs, rows.seq_lens),
        targets=rows.targets,
        reduction="none",
    )

    return _sum_marginal_losses(setting, rows, nll.view_as(rows.targets))


def _compute_marian_sft_loss(model: Any, batch: Seq2SeqBatch) -> Tensor:
    inputs, targets = batch.as_auto_regressive()

    source_seqs, attention_mask = mask_source(*batch.as_source_input())

    loss: Tensor = model(
        input_ids=source_seqs,
        attention_mask=attention_mask,
        decoder_input_ids=inputs.target_seqs,
        # Where transformers counts nothing.
        labels=targets.seqs.masked_fill(
            targets.seqs == model.config.pad_token_id, -100
        ),
    ).loss

    return loss


def _compute_marian_warmup_loss(
    model: Any, setting: Setting, batch: Seq2SeqBatch
) -> Tensor:
    num_warmups = setting.num_warmups

    with torch.no_grad(), evaluation_mode(model):
        warmups = generate_with_marian(
            model,
            *mask_source(*batch.as_source_input()),
            num_warmups=num_warmups,
            max_warmup_len=setting.warmup_len,
        )

    torch.clear_autocast_cache()

    warmup_lens, ended = measure_drawn_lens(warmups)

    rows = _join_warmups(setting, batch, warmups, warmup_lens, ~ended)

    source_seqs, attention_mask = mask_source(*repeat_source(batch, num_warmups))

    # (B, S, V)
    logits = model(
        input_ids=source_seqs,
        attention_mask=attention_mask,
        decoder_input_ids=rows.seqs,
    ).logits

    # (B, S, V) -> (B, S)
    nll = F.cross_entropy(
        logits.flatten(0, 1), rows.targets.flatten(), reduction="none"
    ).view_as(rows.targets)

    return _sum_marginal_losses(setting, rows, nll)


def _join_warmups(
    setting: Setting,
    batch: Seq2SeqBatch,
    warmups: Tensor,
    warmup_lens: Tensor,
    warmup_cut: Tensor,
) -> DecoderRows:
    target_seqs, target_layout = batch.as_target_input()

    source_idx = torch.arange(target_seqs.size(0), device=target_seqs.device)

    return join_rows(
        create_layout(setting),
        target_seqs,
        target_layout.seq_lens_pt.long(),
        warmups,
        warmup_lens,
        warmup_cut,
        torch.ones_like(warmup_cut),
        source_idx.repeat_interleave(setting.num_warmups),
    )


def _sum_marginal_losses(setting: Setting, rows: DecoderRows, nll: Tensor) -> Tensor:
    """
    :param nll: Of each position. *Shape:* :math:`(B,S)`.
    """

    def sum_rows(mask: Tensor) -> Tensor:
        # (B, S) -> (N, K)
        return -(nll * mask).sum(dim=1).view(-1, setting.num_warmups)

    a, b = sum_rows(rows.warmup_mask), sum_rows(rows.target_mask)

    return marginal_loss(a, b, a.detach()).sum()


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


def predict_variant(
    setting: Setting, name: str, *, checkpoints_activations: bool = False
) -> float | None:
    """Predicts the multiple of a variant; ``None`` for an SFT step."""
    predict = partial(
        predict_multiple, setting, checkpoints_activations=checkpoints_activations
    )

    if name in WARMUP_VARIANTS:
        variant = WARMUP_VARIANTS[name]

        return predict(variant.num_kept, shares_encoder=variant.share_encoder)

    if name in (_PLAIN, _HF_WARMUP):
        return predict(None, source_repeated=True)

    return None


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
        measurement.baseline = measurements.get(_BASELINES.get(name, _SFT))

        if args.memory:
            measurement.peak_bytes = _measure_memory_apart(setting, args, name)

    for name, measurement in measurements.items():
        measurement.bars = list_bars(setting.name, name, measurements)

    return measurements


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


@final
class PhaseTimer:
    """Measures how long the parts of a step take, each without those inside it."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}

        self._device = device
        self._nested = 0.0

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Adds the time that passes to a phase; a prefix ``warmup::`` is left out."""
        name = name.removeprefix("warmup::")

        outer_nested, self._nested = self._nested, 0.0

        synchronize(self._device)

        begin = time.perf_counter()

        yield

        synchronize(self._device)

        elapsed = time.perf_counter() - begin

        self.seconds[name] = self.seconds.get(name, 0.0) + elapsed - self._nested

        self._nested = outer_nested + elapsed


def profile_step(step: BenchStep, device: torch.device) -> dict[str, float]:
    """Measures the phases of one step of the criterion ``warmup`` in seconds."""
    assert step.model is not None

    timer = PhaseTimer(device)

    encode = step.model.encode

    def measure_encode(*args: Any) -> Any:
        with timer.measure("encode"):
            return encode(*args)

    with (
        # The phases that the criterion names for PyTorch's profiler, which itself would
        # slow down the many small operations of a step.
        mock.patch.object(look_module, "record_function", timer.measure),
        mock.patch.object(warmup_module, "record_function", timer.measure),
        mock.patch.object(step.model, "encode", measure_encode),
        timer.measure("rest"),
    ):
        loss = step.forward()

        with timer.measure("backward"):
            step.backward(loss)

    return timer.seconds


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
    return {
        "times": [round(seconds, 6) for seconds in measurement.times],
        "seconds": measurement.seconds,
        "multiple": measurement.multiple,
        "predicted": measurement.predicted,
        "ratio": measurement.ratio,
        "num_trained": measurement.num_trained,
        "peak_bytes": measurement.peak_bytes,
        "memory_multiple": measurement.memory_multiple,
        "bars": [{"bar": bar.text, "met": bar.met} for bar in measurement.bars],
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python scripts/bench_step.py",
        description="Measures a warmup step as a multiple of the SFT step, beside what the number of operations predicts.",
    )

    parser.add_argument(
        "--settings",
        default="captions,sentence,summarization",
        metavar="NAMES",
        help=f"of {', '.join(SETTINGS)}; divided by commas (default: %(default)s)",
    )

    parser.add_argument(
        "--variants",
        default=",".join(VARIANTS),
        metavar="NAMES",
        help=f"the steps to compare, divided by commas; {' and '.join(LORA_VARIANTS)} too (default: %(default)s)",
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

    parser.add_argument(
        "--accumulate",
        type=parse_positive_int,
        default=1,
        metavar="N",
        help="batches of a step (default: %(default)s)",
    )

    parser.add_argument(
        "--checkpoint-activations",
        action="store_true",
        help="let backward compute each layer once more, to save memory",
    )

    parser.add_argument(
        "--allow-slow",
        action="store_true",
        help="measure t5-base and mt5-base on the CPU",
    )

    add_common_arguments(parser)

    add_clock_argument(parser)

    args = parser.parse_args(argv)

    return run_benchmark(lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    names = parse_names("--variants", args.variants, [*VARIANTS, *LORA_VARIANTS])

    settings = [
        SETTINGS[name] for name in parse_names("--settings", args.settings, [*SETTINGS])
    ]

    if args.profile is not None:
        parse_names("--profile", args.profile, [*WARMUP_VARIANTS])

    encoder_only = (_PLAIN, _HF_SFT, _HF_WARMUP, "shared-1")

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
        settings=records,
    )


if __name__ == "__main__":
    sys.exit(main())
