# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import pytest
import torch
from fairseq2.error import StateDictError
from fairseq2.models.transformer import TransformerModel
from fairseq2.nn.data_parallel import get_data_parallel_facade
from torch import Tensor

from tests.common import (
    BOS_IDX,
    CREATE_MODEL,
    SEPARATOR_IDX,
    Model,
    assert_close,
    assert_equal,
    create_source,
    create_tiny_model,
    device,
    each_model,
    forward_alone,
)
from tests.unit.models.cases import (
    NUM_ROWS,
    SOURCE_IDX,
    SOURCES,
    build_rows,
    create_coefs,
    get_excluded,
    lower_precision,
)
from warmup_plugin.errors import WarmupError
from warmup_plugin.models.conditional import RowCoefs
from warmup_plugin.models.int8 import quantize_projections
from warmup_plugin.models.lora import (
    LoraProjection,
    LoraSection,
    add_adapter,
    has_adapter,
    is_adapter_weight,
    save_adapter_only,
    without_adapter,
)
from warmup_plugin.models.scorable import create_conditional_model

RANK = 3

SEQ = [BOS_IDX, 5, SEPARATOR_IDX, 7]


def adapt(
    model: Model, *, rank: int = RANK, is_trained: bool = True, **fields: object
) -> Model:
    """Adds an adapter, as training would leave it."""
    section = LoraSection(rank=rank, alpha=6.0, **fields)  # type: ignore[arg-type]

    add_adapter(model, section)

    if is_trained:
        with torch.no_grad():
            for proj in list_adapted(model).values():
                proj.lora_b.normal_(std=0.1)

    return model.eval()


def compute_logits(model: Model) -> Tensor:
    # With gradient, what T5 attends with depends on whether its bias is frozen.
    with torch.no_grad():
        return forward_alone(model, SOURCES[0], SEQ)


def list_adapted(model: Model) -> dict[str, LoraProjection]:
    modules = model.named_modules()

    return {name: m for name, m in modules if isinstance(m, LoraProjection)}


def merge(kind: str, model: Model) -> Model:
    """Creates the model without adapter that does the same, by the formula."""
    merged = CREATE_MODEL[kind]()

    with torch.no_grad():
        for name, proj in list_adapted(model).items():
            weight = merged.get_parameter(f"{name}.weight")

            weight.add_(6.0 / RANK * proj.lora_b @ proj.lora_a)

    return merged


@each_model
class TestAddAdapter:
    def test_untrained_adapter_changes_nothing(self, kind: str) -> None:
        model = adapt(CREATE_MODEL[kind](), is_trained=False)

        logits = compute_logits(model)

        assert_equal(logits, compute_logits(CREATE_MODEL[kind]()))

        assert all(p.lora_a.abs().min() > 0 for p in list_adapted(model).values())

    def test_model_does_what_the_merged_one_does(self, kind: str) -> None:
        model = adapt(CREATE_MODEL[kind]())

        merged = merge(kind, model)

        logits = compute_logits(model)

        assert_close(logits, compute_logits(merged))

        with without_adapter(model):
            base_logits = compute_logits(model)

        base = CREATE_MODEL[kind]()

        assert_equal(base_logits, compute_logits(base))

        # Or nothing would be shown.
        assert (logits - base_logits).abs().max() > 0.01

        # Switched on again.
        assert_equal(logits, compute_logits(model))

    def test_rows_are_scored_and_written_as_by_the_merged_model(
        self, kind: str
    ) -> None:
        model = adapt(CREATE_MODEL[kind]())

        a, b = (create_conditional_model(m) for m in (model, merge(kind, model)))

        rows, inputs, excluded = (
            build_rows(),
            create_source(SOURCES),
            get_excluded(model),
        )

        for grad_enabled in (True, False):
            with torch.set_grad_enabled(grad_enabled):
                scores, expected = (
                    m.score(m.encode(*inputs), rows, excluded) for m in (a, b)
                )

            assert_close(scores.warmup_log_probs, expected.warmup_log_probs)
            assert_close(scores.target_log_probs, expected.target_log_probs)

        source_idx = torch.tensor(SOURCE_IDX, device=device)

        with torch.no_grad():
            decoders = [m.start(m.encode(*inputs), source_idx, 4) for m in (a, b)]

            for token in (BOS_IDX, 6):
                tokens = torch.full((NUM_ROWS, 1), token, device=device)

                logits, expected_logits = (d.step(tokens) for d in decoders)

                assert_close(logits, expected_logits)

    def test_gradient_is_that_of_the_merged_model(self, kind: str) -> None:
        model = adapt(CREATE_MODEL[kind]())

        merged = merge(kind, model)

        for m in (model, merged):
            loss = create_conditional_model(m).compute_loss(
                *create_source(SOURCES),
                build_rows(),
                RowCoefs(*create_coefs()),
                get_excluded(m),
            )

            loss.backward()

        adapted = list_adapted(model)

        for name, proj in adapted.items():
            grad = merged.get_parameter(f"{name}.weight").grad

            assert grad is not None and proj.lora_a.grad is not None

            # W = W_0 + s B A
            assert_close(proj.lora_b.grad, 2.0 * grad @ proj.lora_a.T, rtol=1e-4, atol=1e-5)  # type: ignore[arg-type]
            assert_close(
                proj.lora_a.grad, 2.0 * proj.lora_b.T @ grad, rtol=1e-4, atol=1e-5
            )

        trained = {n for n, p in model.named_parameters() if p.requires_grad}

        assert trained == {f"{n}.{p}" for n in adapted for p in ("lora_a", "lora_b")}

        assert all(p.grad is None for p in model.parameters() if not p.requires_grad)

    def test_each_projection_of_a_layer_is_found(self, kind: str) -> None:
        names = {
            name.split(".", 1)[1] for name in list_adapted(adapt(CREATE_MODEL[kind]()))
        }

        attns = ["self_attn"]

        if kind in ("transformer", "t5"):
            attns.append("encoder_decoder_attn")

        projs = ["ffn.inner_proj", "ffn.output_proj"]

        if kind != "transformer":
            projs.append("ffn.gate_proj")

        projs += [
            f"{a}.{p}"
            for a in attns
            for p in ("q_proj", "k_proj", "v_proj", "output_proj")
        ]

        assert names == {f"layers.0.{name}" for name in projs}


class TestSettings:
    def test_targets_are_called_as_in_the_field(self) -> None:
        model = adapt(create_tiny_model(), targets=["o_proj", "up_proj"])

        assert set(list_adapted(model)) == {
            "encoder.layers.0.self_attn.output_proj",
            "encoder.layers.0.ffn.inner_proj",
            "decoder.layers.0.self_attn.output_proj",
            "decoder.layers.0.encoder_decoder_attn.output_proj",
            "decoder.layers.0.ffn.inner_proj",
        }

    def test_rank_above_that_of_the_matrices_is_refused(self) -> None:
        # The model has 16 dimensions.
        adapt(create_tiny_model(), rank=16)

        with pytest.raises(
            WarmupError, match=r"`lora\.rank` is 17, but .* rank above 16;"
        ):
            adapt(create_tiny_model(), rank=17)

    def test_target_that_the_model_lacks_is_refused(self) -> None:
        with pytest.raises(
            WarmupError, match="`gate_proj`, which the model does not have"
        ):
            adapt(create_tiny_model(), targets=["gate_proj"])

    @pytest.mark.parametrize(
        "fields", [{"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}, {"targets": []}]
    )
    def test_bad_value_is_refused(self, fields: dict[str, object]) -> None:
        result = LoraSection(**fields).validate()  # type: ignore[arg-type]

        assert f"`{next(iter(fields))}` must" in str(result)

    def test_unknown_target_is_refused(self) -> None:
        result = LoraSection(targets=["query"]).validate()

        assert "`targets` names `query`, which is not known" in str(result)

    def test_dropout_is_of_the_adapter_and_of_training(self) -> None:
        model = adapt(create_tiny_model(), dropout=0.5)

        expected = compute_logits(model)

        assert_equal(compute_logits(model), expected)

        model.train()

        assert not compute_logits(model).equal(expected)

        with without_adapter(model):
            base = compute_logits(model)

        assert_equal(base, compute_logits(create_tiny_model()))


class TestPrecision:
    def test_adapter_has_32_bits_beside_a_base_of_16(self) -> None:
        model = lower_precision(create_tiny_model())

        adapt(model)

        adapted = list_adapted(model)

        assert {p.lora_a.dtype for p in adapted.values()} == {torch.float32}

        for proj in adapted.values():
            # (2, H_inp)
            x = torch.randn(2, proj.input_dim, device=device).bfloat16()

            y = proj(x)

            assert y.dtype == torch.bfloat16

            merged = proj.weight.float() + 2.0 * proj.lora_b @ proj.lora_a

            expected = x.float() @ merged.T

            if proj.bias is not None:
                expected = expected + proj.bias.float()

            assert_close(y.float(), expected, rtol=0.03, atol=0.03)

    def test_8_bits_are_of_the_sum(self) -> None:
        model = adapt(create_tiny_model())

        proj = next(iter(list_adapted(model).values()))

        # Large enough.
        proj.input_dim = proj.output_dim = 512
        proj.weight.data = 0.1 * torch.randn(512, 512, device=device)
        proj.lora_a.data = torch.randn(RANK, 512, device=device)
        proj.lora_b.data = 0.1 * torch.randn(512, RANK, device=device)
        proj.bias = None

        x = torch.randn(4, 512, device=device)

        with torch.no_grad():
            expected = proj(x)

            assert quantize_projections(model) == 1

            quantized = model.get_submodule("encoder.layers.0.self_attn.q_proj")

            error = (quantized(x) - expected).norm() / expected.norm()

        assert error < 0.02


def get_weights(model: TransformerModel) -> dict[str, Tensor]:
    return {name: w.clone() for name, w in model.state_dict().items()}


class TestSaveAdapterOnly:
    def test_state_is_that_of_the_adapter(self) -> None:
        model, other = create_tiny_model(), create_tiny_model()

        for m in (model, other):
            adapt(m)

            save_adapter_only(m)

        state_dict = get_data_parallel_facade(model).state_dict()

        assert state_dict.keys() == {
            n for n in model.state_dict() if is_adapter_weight(n)
        }

        get_data_parallel_facade(other).load_state_dict(state_dict)

        for name, weight in get_weights(model).items():
            assert_equal(other.state_dict()[name], weight)

    def test_state_of_another_adapter_is_refused(self) -> None:
        model, other = create_tiny_model(), create_tiny_model()

        adapt(model)
        adapt(other, targets=["q_proj"])

        for m in (model, other):
            save_adapter_only(m)

        facades = [get_data_parallel_facade(m) for m in (model, other)]

        for a, b in (facades, facades[::-1]):
            with pytest.raises(StateDictError, match="differ in"):
                b.load_state_dict(a.state_dict())


def test_has_adapter_tells_models_apart() -> None:
    model = create_tiny_model()

    assert not has_adapter(model)

    adapt(model)

    assert has_adapter(model)
