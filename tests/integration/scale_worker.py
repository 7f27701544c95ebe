# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
The gradient of one training step, computed by several processes or by one.

``test_scale.py`` runs ``torchrun --nproc-per-node 2 -m tests.integration.scale_worker
FOLDER`` once for all cases, does the same in one process and compares.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Literal, cast, final

import torch
from fairseq2.datasets import Seq2SeqBatch
from fairseq2.gang import (
    Gangs,
    ProcessGroupGang,
    create_fake_gangs,
    create_fsdp_gangs,
    create_parallel_gangs,
)
from fairseq2.metrics import Mean, MetricBag, sync_and_compute_metrics
from fairseq2.models.transformer import (
    TransformerModel,
    apply_ac_to_transformer,
    apply_fsdp_to_transformer,
)
from fairseq2.models.transformer_lm import (
    TransformerLM,
    apply_ac_to_transformer_lm,
    apply_fsdp_to_transformer_lm,
)
from fairseq2.nn.data_parallel import get_data_parallel_facade
from fairseq2.nn.ddp import to_ddp
from fairseq2.nn.fsdp import FSDPWrapper, to_fsdp
from fairseq2.nn.utils.grad import normalize_grads
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import Module

from tests.common import (
    BOS_IDX,
    EOS_IDX,
    WORDS,
    create_candidates,
    create_layout,
    create_tiny_lm,
    create_tiny_model,
    create_tiny_t5,
    device,
    pad_rows,
)
from tests.number_codec import NumberCodec
from warmup_plugin.criteria import Criterion, CriterionContext, WarmupSection
from warmup_plugin.criteria.base import num_target_tokens
from warmup_plugin.criteria.config import KeepSection
from warmup_plugin.criteria.mrt import create_mrt_criterion
from warmup_plugin.criteria.mrt_config import MrtConfig
from warmup_plugin.criteria.warmup import create_warmup_criterion
from warmup_plugin.layout import DecoderLayout, DecoderRows
from warmup_plugin.metrics.base import References
from warmup_plugin.models.conditional import ConditionalModel, EncodedSource
from warmup_plugin.models.lora import LoraSection, add_adapter
from warmup_plugin.models.scorable import create_conditional_model, make_scorable
from warmup_plugin.models.t5 import apply_fsdp_to_t5
from warmup_plugin.objectives import marginal_loss
from warmup_plugin.sampling import Candidates, WarmupSampler, draw_candidates

SOURCES: Final = [
    [5, 6, EOS_IDX],
    [7, EOS_IDX],
    [7, 7, 5, 6, 5, EOS_IDX],
    [6, 5, 7, EOS_IDX],
    [5, 5, 6, 6, 7, 7, 5, EOS_IDX],
]

TARGETS: Final = [
    [BOS_IDX, 6, 5, EOS_IDX],
    [BOS_IDX, 7, EOS_IDX],
    [BOS_IDX, 7, 5, 5, 6, 7, EOS_IDX],
    [BOS_IDX, 6, 6, 5, 7, EOS_IDX],
    [BOS_IDX, 5, 7, EOS_IDX],
]

WARMUPS: Final = [
    [[5], [], [6]],
    [[7], [7], [5]],
    [[5, 6, 7], [5], [6, 6, 6, 6]],
    [[], [7, 5, 6, 5], [5, 7]],
    [[6, 7, 5], [7, 7], [5, 5, 5, 5]],
]
"""The first rank has the first two sources, with short warmups."""

SHARES: Final = [[range(0, 1), range(1, 2)], [range(2, 4), range(4, 5)]]
"""The micro-batches of each rank."""

MAX_WARMUP_LEN: Final = 4

CODEC: Final = NumberCodec(reads_prompts=False)

LOGGED: Final = ("nll_loss",)

LOGGED_BY_MRT: Final = ("sample_score", "sample_best", "sample_distinct")


@final
@dataclass(frozen=True, kw_only=True)
class Case:
    """Says how a step is computed."""

    model: Literal["nllb", "llama", "t5"]

    wrapper: Literal["ddp", "fsdp"]

    warmup: Mapping[str, Any]
    """The fields of ``WarmupSection``."""

    draws: bool = False
    """If ``True``, warmups are drawn, else they are those of ``WARMUPS``."""

    accumulates: bool = False
    """If ``True``, the micro-batches of a rank are read one by one."""

    checkpoints: bool = False
    """If ``True``, layers compute their activations again in the backward pass."""

    granularity: Literal["layer", "stack"] = "layer"
    """What FSDP divides."""

    low_precision: bool = False
    """If ``True``, bfloat16: FSDP's own mixed precision, `autocast` under DDP."""

    lora: bool = False
    """If ``True``, an adapter is trained, and the model without it is the reference."""

    mrt: Mapping[str, Any] | None = None
    """The fields of ``MrtConfig`` if that is the criterion, which draws by itself."""


_MASS: Final = {"keep": KeepSection(name="mass", mass=0.6)}

_ALL_IN_PASSES: Final = {"keep": KeepSection(name="all"), "max_num_tokens": 12}

_VARIANTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "mass": {"warmup": _MASS},
    "resample": {"warmup": {"keep": KeepSection(name="resample", num=2)}},
    "sft_weight": {
        "warmup": {"keep": KeepSection(name="top", num=1), "sft_weight": 0.5}
    },
    "passes": {"warmup": {**_MASS, "max_num_tokens": 12}},
    "draws": {"draws": True, "warmup": {"keep": KeepSection(name="all")}},
    "accumulates": {"accumulates": True, "warmup": _MASS},
    "checkpoints": {"checkpoints": True, "warmup": _ALL_IN_PASSES},
    "low_precision": {"low_precision": True, "warmup": _ALL_IN_PASSES},
}

CASES: Final = {
    f"{variant}-{model}-{wrapper}": Case(model=model, wrapper=wrapper, **options)
    for variant, options in _VARIANTS.items()
    for model in cast("tuple[Literal['nllb', 'llama'], ...]", ("nllb", "llama"))
    for wrapper in cast("tuple[Literal['ddp', 'fsdp'], ...]", ("ddp", "fsdp"))
}

# Its bias of positions belongs to a stack, but is computed outside of it.
CASES.update(
    {
        f"{variant}-t5-{granularity}": Case(
            model="t5", wrapper="fsdp", granularity=granularity, **_VARIANTS[variant]
        )
        for variant in ("passes", "draws", "checkpoints", "low_precision")
        for granularity in cast(
            "tuple[Literal['layer', 'stack'], ...]", ("layer", "stack")
        )
    }
)

CASES["shares_encoder-nllb-ddp"] = Case(
    model="nllb",
    wrapper="ddp",
    accumulates=True,
    warmup={**_MASS, "share_encoder": True, "sft_weight": 0.5},
)

# What is frozen and what is trained share a layer.
CASES.update(
    {
        f"lora-{name}": Case(lora=True, warmup={**_ALL_IN_PASSES, "kl_weight": 0.5}, **options)  # type: ignore[arg-type]
        for name, options in {
            "nllb-ddp": {"model": "nllb", "wrapper": "ddp"},
            "nllb-fsdp": {"model": "nllb", "wrapper": "fsdp", "checkpoints": True},
            "llama-ddp": {"model": "llama", "wrapper": "ddp", "checkpoints": True},
            "llama-fsdp": {"model": "llama", "wrapper": "fsdp", "low_precision": True},
        }.items()
    }
)

_WITH_WARMUPS: Final = {"with_warmups": True, "temperature": 1.5, "alpha": 0.5}

_REINFORCE: Final = {"estimator": "reinforce", "with_warmups": True}

# What is drawn depends on the pair alone, so that one process draws the same.
CASES.update(
    {
        f"mrt-{name}": Case(**options)  # type: ignore[arg-type]
        for name, options in {
            "risk-nllb-ddp": {
                **{"model": "nllb", "wrapper": "ddp", "warmup": {}},
                "mrt": {"with_reference": True},
            },
            "risk-llama-fsdp": {
                **{"model": "llama", "wrapper": "fsdp", "checkpoints": True},
                **{"warmup": {"max_num_tokens": 30}, "mrt": {"sft_weight": 0.1}},
            },
            "risk_warmups-llama-ddp": {
                **{"model": "llama", "wrapper": "ddp", "accumulates": True},
                **{"warmup": {"max_num_tokens": 30}, "mrt": _WITH_WARMUPS},
            },
            "risk_warmups-nllb-fsdp": {
                **{"model": "nllb", "wrapper": "fsdp", "warmup": {}},
                "mrt": {**_WITH_WARMUPS, "sft_weight": 0.1},
            },
            "reinforce-nllb-ddp": {
                **{"model": "nllb", "wrapper": "ddp", "warmup": {}},
                "mrt": _REINFORCE,
            },
            "reinforce-t5-fsdp": {
                **{"model": "t5", "wrapper": "fsdp", "granularity": "stack"},
                **{"warmup": {"max_num_tokens": 30}, "mrt": _REINFORCE},
            },
        }.items()
    }
)


@final
@dataclass(frozen=True)
class Step:
    """Holds what a process knows after the backward pass."""

    grads: dict[str, Tensor]
    """The gradient of each parameter that has one, of all ranks."""

    candidates: list[Candidates]
    """The warmups of its sources, of one group after the other."""

    forwards: list[tuple[int, list[int]]]
    """Of each differentiable forward the number of decoder tokens, and the number of
    rows of each of its passes."""

    values: dict[str, float]
    """What is logged of all ranks; empty but on the first one."""


@final
class FixedSampler:
    """Hands out given candidates, those of the next sources at each call."""

    def __init__(self, candidates: Candidates) -> None:
        self._candidates = candidates
        self._num_done = 0

    def __call__(
        self,
        model: ConditionalModel,
        source: EncodedSource,
        layout: DecoderLayout,
        prefixes: Tensor,
        *,
        num_warmups: int,
        max_warmup_len: int,
    ) -> Candidates:
        candidates = self._candidates

        begin, end = self._num_done, self._num_done + prefixes.size(0)

        self._num_done = end

        rows = slice(begin * num_warmups, end * num_warmups)

        return Candidates(
            seqs=candidates.seqs[rows],
            seq_lens=candidates.seq_lens[rows],
            cut=candidates.cut[rows],
            proposal_log_probs=candidates.proposal_log_probs[begin:end],
        )


@final
class RecordingSampler:
    """Remembers what another sampler draws."""

    def __init__(self, sampler: WarmupSampler) -> None:
        self._sampler = sampler
        self.candidates: list[Candidates] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Candidates:
        candidates = self._sampler(*args, **kwargs)

        # Without a decoder, which would keep the model.
        self.candidates.append(replace(candidates, warmup_log_probs=None, past=None))

        return candidates


def create_model(case: Case) -> TransformerModel | TransformerLM:
    """Creates the same model in each process, before it is wrapped."""
    model: TransformerModel | TransformerLM

    if case.model == "nllb":
        model = create_tiny_model(num_layers=2)
    elif case.model == "t5":
        model = create_tiny_t5(num_layers=2)
    else:
        model = create_tiny_lm(num_layers=2)

    make_scorable(model)

    if case.lora:
        torch.manual_seed(1)

        add_adapter(model, LoraSection(rank=3))

        with torch.no_grad():
            for name, parameter in model.named_parameters():
                # Or that of its factor would be zero.
                if name.endswith(".lora_b"):
                    parameter.normal_(std=0.05)

    if case.checkpoints:
        if isinstance(model, TransformerModel):
            apply_ac_to_transformer(model, every_nth_layer=1)
        else:
            apply_ac_to_transformer_lm(model, every_nth_layer=1)

    return model.train()


def wrap_model(case: Case, model: Module, gangs: Gangs) -> Module:
    """Does what fairseq2's training recipe does before ``create_task``."""
    if case.wrapper == "ddp":
        return to_ddp(model, gangs, find_unused_parameters=False)

    def apply_fsdp(module: Module, wrapper: FSDPWrapper) -> Module:
        if isinstance(module, TransformerModel):
            if case.model == "t5":
                return apply_fsdp_to_t5(module, case.granularity, wrapper)

            return apply_fsdp_to_transformer(module, case.granularity, wrapper)

        assert isinstance(module, TransformerLM)

        return apply_fsdp_to_transformer_lm(module, case.granularity, wrapper)

    return to_fsdp(
        model,
        gangs,
        apply_fsdp,
        version="v2",
        mixed_precision_dtype=torch.bfloat16 if case.low_precision else None,
        fp32_reduce=True,
        broadcast_state=True,
    )


def create_batch(sources: Sequence[int]) -> Seq2SeqBatch:
    return Seq2SeqBatch(
        *pad_rows([SOURCES[idx] for idx in sources]),
        *pad_rows([TARGETS[idx] for idx in sources]),
        example={
            "indices": [*sources],
            "sources": [CODEC.decode(SOURCES[idx]) for idx in sources],
            "references": [[CODEC.decode(TARGETS[idx][1:-1])] for idx in sources],
        },
    )


def score_texts(
    hypotheses: Sequence[str], references: References, sources: Sequence[str]
) -> list[float]:
    """Likes the words of the reference, and most of all its first one."""

    def score(text: str, reference: str) -> float:
        counts = [text.count(str(w)) - reference.count(str(w)) for w in WORDS]

        return 0.5 * (text[:1] == reference[:1]) - 0.1 * sum(map(abs, counts))

    return [score(text, texts[0]) for text, texts in zip(hypotheses, references)]


def create_criterion(case: Case, context: CriterionContext) -> Criterion:
    if case.mrt is None:
        return create_warmup_criterion(context)

    # As long as its source: the ranks draw for different times.
    config = MrtConfig(
        **{"num_samples": 3, "max_len_a": 1.0, "max_len_b": 1, **case.mrt}
    )

    assert not config.validate().errors

    return create_mrt_criterion(context, config, score_texts, seed=3)


def compute_step(
    case: Case,
    model: TransformerModel | TransformerLM,
    dp_model: Module,
    gangs: Gangs,
    batches: Sequence[Sequence[int]],
    sampler: WarmupSampler,
    warmup: WarmupSection,
) -> Step:
    """
    Computes the gradient of a step as fairseq2's trainer does.

    :param batches: The sources of each micro-batch of this rank.
    """
    recorder = RecordingSampler(sampler)

    criterion = create_criterion(
        case,
        CriterionContext(
            model=create_conditional_model(model),
            dp_model=dp_model,
            layout=create_layout(),
            gangs=gangs,
            label_smoothing=0.1,
            warmup=warmup,
            objective=marginal_loss,
            sampler=recorder,
            reference=create_conditional_model(model) if case.lora else None,
            plain_directions=frozenset(),
            publish_every_n_steps=1,
            decode=CODEC.decode,
        ),
    )

    metric_bag = MetricBag(device)

    metric_bag.add("nll_loss", Mean())

    criterion.add_metrics(metric_bag)

    forwards = []

    def look(module: Module, args: object, kwargs: dict[str, Any]) -> None:
        rows: DecoderRows = kwargs["rows"]

        passes: list[Tensor] | None = kwargs["passes"]

        if passes is None:
            num_rows = [len(rows.seq_lens)]
        else:
            num_rows = [part.numel() for part in passes]

        forwards.append((sum(rows.seq_lens), num_rows))

    handle = model.register_forward_pre_hook(look, with_kwargs=True)

    # FSDP casts by itself.
    uses_autocast = case.low_precision and case.wrapper == "ddp"

    num_targets = 0

    for batch_nr, sources in enumerate(batches, start=1):
        batch = create_batch(sources)

        # fairseq2 0.8.1 calls a method that FSDP of PyTorch 2.9 does not have.
        if batch_nr < len(batches) and case.wrapper == "ddp":
            sync_context = get_data_parallel_facade(dp_model).no_sync()
        else:
            sync_context = nullcontext()

        with sync_context:
            with torch.autocast("cpu", torch.bfloat16, enabled=uses_autocast):
                loss = criterion.compute_loss(batch, metric_bag, step_nr=1)

            loss.backward()

        num_targets += num_target_tokens(batch)

    handle.remove()

    normalize_grads(dp_model, gangs.dp, num_targets)

    grads = {}

    for name, parameter in model.named_parameters():
        grad = parameter.grad

        if grad is None:
            continue

        if isinstance(grad, DTensor):
            grad = grad.full_tensor()

        grads[name.replace("_checkpoint_wrapped_module.", "")] = grad

    logged = MetricBag(device)

    for name in LOGGED if case.mrt is None else LOGGED_BY_MRT:
        logged.add(name, metric_bag.get(name, Mean))

    # Only the first rank has them.
    values = sync_and_compute_metrics(logged, gangs.dp) or {}

    return Step(
        grads,
        recorder.candidates,
        forwards,
        {name: float(cast(Tensor, value)) for name, value in values.items()},
    )


def create_section(case: Case, **options: Any) -> WarmupSection:
    """
    :param options: What differs from ``case``.
    """
    return WarmupSection(
        **{
            "num_warmups": len(WARMUPS[0]),
            "max_warmup_len": MAX_WARMUP_LEN,
            **case.warmup,
            **options,
        }
    )


def fixed_candidates(sources: Sequence[int]) -> Candidates:
    return create_candidates([WARMUPS[idx] for idx in sources], MAX_WARMUP_LEN)


def compute_share(case: Case, gangs: Gangs) -> Step:
    """Computes a step together with other processes."""
    rank = gangs.dp.rank

    batches: list[Sequence[int]] = list(SHARES[rank])

    sources = [idx for batch in batches for idx in batch]

    if not case.accumulates:
        batches = [sources]

    model = create_model(case)

    dp_model = wrap_model(case, model, gangs)

    if case.draws:
        torch.manual_seed(10 * rank)

        # The ranks draw different numbers of tokens, whatever the model says.
        section = create_section(case, max_warmup_len=[1, MAX_WARMUP_LEN][rank])

        sampler: WarmupSampler = draw_candidates
    else:
        # All ranks together read one sequence of random numbers, one a source.
        torch.manual_seed(0)

        torch.rand((sources[0], 1), dtype=torch.float64)

        section, sampler = create_section(case), FixedSampler(fixed_candidates(sources))

    return compute_step(case, model, dp_model, gangs, batches, sampler, section)


def compute_whole(case: Case, candidates: Candidates | None) -> Step:
    """
    Computes the same step at once, in this process alone and in fp32.

    :param candidates: ``None`` if the criterion draws by itself.
    """
    case = replace(case, checkpoints=False, low_precision=False)

    model = create_model(case)

    torch.manual_seed(0)

    return compute_step(
        case,
        model,
        model,
        create_fake_gangs(device),
        [range(len(SOURCES))],
        draw_candidates if candidates is None else FixedSampler(candidates),
        create_section(case, max_num_tokens=None),
    )


def main(folder: Path) -> None:
    """Computes all cases as one of the processes that torchrun has started."""
    # A collective call that not all ranks make fails soon.
    root = ProcessGroupGang.create_default_process_group(
        device, timeout=timedelta(seconds=60)
    )

    ddp_gangs = create_parallel_gangs(root)

    fsdp_gangs = create_fsdp_gangs(ddp_gangs)

    steps = {}

    for name, case in CASES.items():
        print(f"case {name}", flush=True)

        gangs = ddp_gangs if case.wrapper == "ddp" else fsdp_gangs

        # Not the class itself, which belongs to the main module here.
        steps[name] = vars(compute_share(case, gangs))

    torch.save(steps, folder / f"rank_{root.rank}.pt")

    root.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
