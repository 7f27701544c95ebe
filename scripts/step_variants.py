# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""The steps that ``bench_step.py`` compares: forward and backward of each variant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, cast, final

import torch
import torch.nn.functional as F
from fairseq2.datasets import Seq2SeqBatch
from fairseq2.gang import Gangs, create_fake_gangs
from fairseq2.metrics import Mean, MetricBag
from fairseq2.metrics.common import add_seq2seq_batch_metrics
from fairseq2.models.transformer.ac import apply_ac_to_transformer
from fairseq2.models.transformer.fsdp import apply_fsdp_to_transformer
from fairseq2.models.transformer_lm import TransformerLM
from fairseq2.models.transformer_lm.ac import apply_ac_to_transformer_lm
from fairseq2.models.transformer_lm.fsdp import apply_fsdp_to_transformer_lm
from fairseq2.nn import BatchLayout
from fairseq2.nn.fsdp import FSDPWrapper, to_fsdp
from torch import Tensor
from torch.nn import Module
from torch.nn.utils.rnn import pad_sequence

from scripts.bench_common import (
    PAD_IDX,
    Setting,
    create_layout,
    create_marian,
    create_model,
    generate_with_marian,
    mask_source,
    measure_drawn_lens,
    repeat_source,
)
from scripts.step_settings import predict_multiple
from warmup_plugin.criteria import Criterion, CriterionContext, WarmupSection
from warmup_plugin.criteria.config import KeepSection
from warmup_plugin.criteria.mrt import create_mrt_criterion
from warmup_plugin.criteria.mrt_config import MrtConfig
from warmup_plugin.criteria.sft import create_sft_criterion
from warmup_plugin.criteria.warmup import create_warmup_criterion
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

    draw_in_bf16: bool = False


WARMUP_VARIANTS: Final = {
    "marginal-1": WarmupVariant(marginal_loss, 1, KeepSection(num=1)),
    "shared-1": WarmupVariant(marginal_loss, 1, KeepSection(num=1), share_encoder=True),
    "bf16-1": WarmupVariant(marginal_loss, 1, KeepSection(num=1), draw_in_bf16=True),
    "bf16-2": WarmupVariant(marginal_loss, 2, KeepSection(num=2), draw_in_bf16=True),
    "shared-bf16-1": WarmupVariant(
        marginal_loss, 1, KeepSection(num=1), share_encoder=True, draw_in_bf16=True
    ),
    "marginal-2": WarmupVariant(marginal_loss, 2, KeepSection(num=2)),
    "marginal-all": WarmupVariant(marginal_loss, None, KeepSection(name="all")),
    "elbo-1": WarmupVariant(elbo_loss, 1, KeepSection(num=1)),
    "best-1": WarmupVariant(best_loss, 1, KeepSection(num=1)),
    "joint-1": WarmupVariant(
        joint_loss, 1, KeepSection(num=1), StochasticBeamSampler()
    ),
}

SFT: Final = "sft"

MRT: Final = "mrt"

FAIRSEQ2_SFT: Final = "fairseq2-sft"

PLAIN: Final = "plain"

HF_SFT: Final = "hf-sft"

HF_WARMUP: Final = "hf-warmup"

VARIANTS: Final = (
    SFT,
    *WARMUP_VARIANTS,
    MRT,
    FAIRSEQ2_SFT,
    PLAIN,
    HF_SFT,
    HF_WARMUP,
)

# Before the name of one of these, trains an adapter alone.
_LORA: Final = "lora-"

LORA_VARIANTS: Final = (f"{_LORA}{SFT}", f"{_LORA}marginal-1")

_LORA_RANK: Final = 16


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

    if name in (PLAIN, HF_WARMUP):
        return predict(None, weighs=False, source_repeated=True)

    return None


@final
@dataclass(eq=False)
class BenchStep:
    """Forward and backward of one batch, or of several."""

    module: Module

    compute_loss: Callable[[], Tensor]

    device: torch.device

    dtype: torch.dtype

    model: ConditionalModel | None = None
    """What ``compute_loss`` encodes with, to be profiled."""

    num_accumulate: int = 1
    """The number of batches of a step."""

    def __call__(self) -> None:
        for _ in range(self.num_accumulate):
            self.backward(self.forward())

    def forward(self) -> Tensor:
        """Computes the loss."""
        enabled = self.dtype == torch.bfloat16

        with torch.autocast(self.device.type, torch.bfloat16, enabled=enabled):
            return self.compute_loss()

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
    gangs: Gangs | None = None,
) -> BenchStep:
    """
    Creates the step of a variant, with a model of its own.

    :param checkpoints_activations: If ``True``, backward computes each layer once more.
    :param num_accumulate: The number of batches of a step.
    :param gangs: The processes among which FSDP2 divides each layer; ``None`` for one
        process that has it all.
    """
    finish = partial(
        BenchStep, device=device, dtype=dtype, num_accumulate=num_accumulate
    )

    if name in (HF_SFT, HF_WARMUP):
        marian = create_marian(setting, device)

        if name == HF_SFT:
            return finish(marian, partial(_compute_marian_sft_loss, marian, batch))

        return finish(
            marian, partial(_compute_marian_warmup_loss, marian, setting, batch)
        )

    module = create_model(setting, device)

    # As it comes from fairseq2.
    if name not in (FAIRSEQ2_SFT, PLAIN):
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

    dp_module = module if gangs is None else _divide(module, gangs)

    if name == FAIRSEQ2_SFT:
        if isinstance(module, TransformerLM):
            return finish(module, _create_lm_sft_loss(dp_module, batch))

        return finish(module, partial(_compute_fairseq2_sft_loss, dp_module, batch))

    model = create_conditional_model(module)

    if name == PLAIN:
        return finish(module, partial(_compute_plain_loss, model, setting, batch))

    if name == MRT:
        batch = _add_texts(batch)

        factory: CreateCriterion = partial(_create_mrt_criterion, setting)
    else:
        factory = (
            create_warmup_criterion if name in WARMUP_VARIANTS else create_sft_criterion
        )

    criterion, metric_bag = _create_criterion(
        *(model, dp_module, setting, factory, WARMUP_VARIANTS.get(name)),
        gangs or create_fake_gangs(device),
    )

    def compute_loss() -> Tensor:
        return criterion.compute_loss(batch, metric_bag, step_nr=1)

    return finish(module, compute_loss, model=model)


def _divide(module: Module, gangs: Gangs) -> Module:
    """Divides each layer among processes, as a training recipe does."""

    def apply(module: Module, wrapper: FSDPWrapper) -> Module:
        if isinstance(module, TransformerLM):
            return apply_fsdp_to_transformer_lm(module, "layer", wrapper)

        return apply_fsdp_to_transformer(cast(Any, module), "layer", wrapper)

    return to_fsdp(
        *(module, gangs, apply),
        version="v2",
        mixed_precision_dtype=None,
        fp32_reduce=True,
        broadcast_state=True,
    )


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
    dp_module: Module,
    setting: Setting,
    factory: CreateCriterion,
    variant: WarmupVariant | None,
    gangs: Gangs,
) -> tuple[Criterion, MetricBag]:
    if variant is None:
        # Which it does not read.
        variant = WARMUP_VARIANTS["marginal-1"]

    criterion = factory(
        CriterionContext(
            model=model,
            dp_model=dp_module,
            layout=create_layout(setting),
            gangs=gangs,
            label_smoothing=0.0,
            warmup=WarmupSection(
                num_warmups=setting.num_warmups,
                max_warmup_len=setting.warmup_len,
                keep=variant.keep,
                share_encoder=variant.share_encoder,
                draw_in_bf16=variant.draw_in_bf16,
            ),
            objective=variant.objective,
            sampler=variant.sampler,
            reference=None,
            plain_directions=frozenset(),
            publish_every_n_steps=None,
        )
    )

    metric_bag = MetricBag(gangs.device)

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
