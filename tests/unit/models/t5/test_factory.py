# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from fairseq2.device import META_DEVICE
from fairseq2.error import NotSupportedError
from fairseq2.gang import FakeGang, create_parallel_gangs, set_gangs
from fairseq2.models.transformer import (
    CausalAttentionBias,
    IdentityBias,
    StandardMultiheadAttention,
    TransformerModel,
    apply_ac_to_transformer,
)
from fairseq2.models.transformer.sdpa.torch import TorchSDPA
from fairseq2.nn import BatchLayout, IncrementalStateBag
from fairseq2.nn.utils.module import reset_parameters, to_empty
from torch import Tensor
from torch.nn import Dropout, Module

from tests.common import assert_close, assert_equal, create_source, device
from tests.unit.models.cases import assert_close_gradients, differentiate, spy
from tests.unit.models.t5.cases import (
    CONFIGS,
    PAD_IDX,
    TARGET_LENS,
    compute_loss,
    create_config,
    create_inputs,
    create_random_model,
    create_seqs,
)
from warmup_plugin.errors import WarmupError
from warmup_plugin.models.t5 import T5SDPA, compile_t5, create_t5_model

each_config = pytest.mark.parametrize("name", ["v1_0", "v1_1"])


def count_position_biases(model: TransformerModel, run: Any) -> tuple[int, int]:
    """Counts the calls in encoder and decoder."""
    with (
        spy(model.get_submodule("encoder.position_bias")) as encoder_calls,
        spy(model.get_submodule("decoder.position_bias")) as decoder_calls,
    ):
        run()

    return len(encoder_calls), len(decoder_calls)


def is_compiled(module: Module) -> bool:
    return module._compiled_call_impl is not None


@contextmanager
def spy_args(module: Module) -> Iterator[list[tuple[Any, ...]]]:
    """Lists the arguments of each call of ``module``."""
    calls: list[tuple[Any, ...]] = []

    handle = module.register_forward_pre_hook(lambda _, args: calls.append(args))

    try:
        yield calls
    finally:
        handle.remove()


class TestCreateT5Model:
    def test_call_creates_what_others_rely_on(self) -> None:
        model = create_random_model(CONFIGS["v1_1"])

        # `make_scorable()` changes the class of nothing else, the rows of nothing else.
        assert type(model) is TransformerModel

        attns = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, StandardMultiheadAttention)
        }

        assert len(attns) == 6

        for name, attn in attns.items():
            assert type(attn) is StandardMultiheadAttention

            sdpa = attn.sdpa

            assert isinstance(sdpa, (T5SDPA, TorchSDPA))

            assert isinstance(sdpa, TorchSDPA) == ("encoder_decoder" in name)

            assert sdpa.scale == 1.0

            causal = name.startswith("decoder") and isinstance(sdpa, T5SDPA)

            kls = CausalAttentionBias if causal else IdentityBias

            assert isinstance(sdpa.bias, kls)

        assert (model.max_source_seq_len, model.max_target_seq_len) == (1024, 1024)

        assert model.pad_idx == PAD_IDX

    def test_dropout_is_everywhere(self) -> None:
        model = create_random_model(create_config(dropout_p=0.25))

        dropouts = [m for m in model.modules() if isinstance(m, Dropout)]

        # The embedding, which both stacks share; the end of each stack; behind each
        # sublayer, and within each feed-forward network.
        assert len(dropouts) == 1 + 2 + 2 * 3 + 2 * 4

        assert all(m.p == 0.25 for m in dropouts)

        sdpas = [m for m in model.modules() if isinstance(m, (T5SDPA, TorchSDPA))]

        assert [m.dropout_p for m in sdpas] == [0.25] * 6

    def test_attention_weights_are_dropped_in_training_alone(self) -> None:
        model = create_random_model(create_config(dropout_p=0.5))

        for module in model.modules():
            if isinstance(module, Dropout):
                module.p = 0.0

            if isinstance(module, TorchSDPA):
                module.dropout_p = 0.0

        inputs = create_inputs()

        expected = model(*inputs)

        model.train()

        assert not torch.equal(model(*inputs), expected)

    @pytest.mark.parametrize("tied", [True, False])
    def test_new_weights_are_drawn_as_t5_is_initialised(self, tied: bool) -> None:
        config = create_config(
            model_dim=64,
            head_dim=32,
            num_attn_heads=8,
            ffn_inner_dim=256,
            num_position_buckets=64,
            vocab_size=300,
            gated_ffn=True,
            tied_embeddings=tied,
        )

        with META_DEVICE:
            model = create_t5_model(config)

        # As fairseq2 does, at the end of FSDP's way for instance.
        to_empty(model, device)

        torch.manual_seed(1)

        reset_parameters(model)

        # `T5PreTrainedModel._init_weights()`, of a width of 64, 32 a head.
        stds = {
            "embed": 1.0,
            "final_proj": 1.0,
            "q_proj": (64 * 32) ** -0.5,
            "k_proj": 64**-0.5,
            "v_proj": 64**-0.5,
            "attn.output_proj": 256**-0.5,
            "gate_proj": 64**-0.5,
            "inner_proj": 64**-0.5,
            "ffn.output_proj": 256**-0.5,
            "position_bias": 64**-0.5,
        }

        seen = set()

        for name, parameter in model.named_parameters():
            if "layer_norm" in name:
                assert_equal(parameter.detach(), torch.ones_like(parameter))

                continue

            (kind,) = (kind for kind in stds if name.endswith(f"{kind}.weight"))

            assert float(parameter.std()) == pytest.approx(stds[kind], rel=0.1), name

            seen.add(kind)

        assert seen == set(stds) - ({"final_proj"} if tied else set())

    def test_call_raises_error_when_heads_are_divided(self) -> None:
        gangs = create_parallel_gangs(FakeGang(device, size=2), tp_size=2)

        with set_gangs(gangs):
            with pytest.raises(WarmupError, match="`gang.tensor_parallel_size` must"):
                create_t5_model(create_config())


class TestForward:
    @each_config
    def test_sequence_does_not_see_its_batch(self, name: str) -> None:
        model = create_random_model(CONFIGS[name])

        source_seqs, source_layout, target_seqs, target_layout = inputs = (
            create_inputs()
        )

        logits = model(*inputs)

        for idx in range(3):
            source = source_seqs[idx, : source_layout.seq_lens[idx]].tolist()

            target = target_seqs[idx, : target_layout.seq_lens[idx]].tolist()

            alone = model(*create_source([source]), *create_source([target]))

            assert_close(logits[idx, : len(target)], alone[0], rtol=0.0, atol=2e-5)

    @each_config
    def test_decoder_does_not_see_what_follows(self, name: str) -> None:
        model = create_random_model(CONFIGS[name])

        source_seqs, source_layout, target_seqs, target_layout = create_inputs()

        # No row is padded, so that the mask is another one.
        source, target = (source_seqs[:1], BatchLayout.of(source_seqs[:1])), target_seqs

        logits = [
            model(*source, seqs, BatchLayout.of(seqs))
            for seqs in (target[1:2], torch.cat([target[1:2, :9], target[1:2, :9]], 1))
        ]

        assert_close(logits[0][:, :9], logits[1][:, :9], rtol=0.0, atol=2e-5)

        assert not torch.allclose(logits[0][:, 9:], logits[1][:, 9:], atol=0.01)

    @each_config
    @pytest.mark.parametrize("bounds", [[0, 1, 2, 3, 4, 12, 18], [0, 6, 7, 18]])
    @torch.no_grad()
    def test_incremental_decoding_equals_full_pass(
        self, name: str, bounds: list[int]
    ) -> None:
        model = create_random_model(CONFIGS[name])

        source_seqs, source_layout, _, _ = create_inputs()

        # Longer than the largest distance; none is padded.
        target_seqs = torch.tensor(create_seqs((18, 18, 18), seed=4), device=device)

        source = (source_seqs, source_layout)

        expected = model(*source, target_seqs, BatchLayout.of(target_seqs))

        state_bag = IncrementalStateBag(max_num_steps=32)

        for begin, end in zip(bounds, bounds[1:]):
            seqs = target_seqs[:, begin:end]

            logits = model(*source, seqs, BatchLayout.of(seqs), state_bag=state_bag)

            state_bag.increment_step_nr(end - begin)

            assert_close(logits, expected[:, begin:end], rtol=0.0, atol=2e-5)

    def test_state_bag_is_not_read_in_training(self) -> None:
        model = create_random_model(CONFIGS["v1_0"]).train()

        inputs = create_inputs()

        state_bag = IncrementalStateBag(max_num_steps=32)

        state_bag.increment_step_nr(5)

        assert_equal(model(*inputs, state_bag=state_bag), model(*inputs))

    def test_position_bias_is_computed_once_a_pass(self) -> None:
        model = create_random_model(create_config(num_encoder_layers=3))

        apply_ac_to_transformer(model, every_nth_layer=1)

        counts = count_position_biases(model, lambda: compute_loss(model).backward())

        assert counts == (1, 1)

    def test_layer_hooks_are_called(self) -> None:
        model = create_random_model(create_config())

        calls: list[tuple[str, int, int]] = []

        def create_hook(stack: str) -> Any:
            def hook(
                layer_idx: int, output: Tensor, layout: BatchLayout, num_layers: int
            ) -> bool:
                calls.append((stack, layer_idx, num_layers))

                return True

            return hook

        handles = [
            model.encoder.register_layer_hook(create_hook("encoder")),
            model.decoder.register_layer_hook(create_hook("decoder")),
        ]

        model(*create_inputs())

        assert calls == [
            *(("encoder", 0, 2), ("encoder", 1, 2)),
            *(("decoder", 0, 2), ("decoder", 1, 2)),
        ]

        for handle in handles:
            handle.remove()

        model(*create_inputs())

        assert len(calls) == 4

    def test_packed_batch_is_refused(self) -> None:
        model = create_random_model(create_config())

        seqs = torch.tensor([3, 4, 5], device=device)

        layout = BatchLayout.of(seqs, [2, 1], packed=True)

        with pytest.raises(NotSupportedError, match="packed batches; pad them"):
            model(seqs, layout, seqs, layout)


class TestTraining:
    @each_config
    def test_checkpointed_layers_have_same_gradients(self, name: str) -> None:
        model = create_random_model(CONFIGS[name])

        expected = differentiate(compute_loss(model), model)

        apply_ac_to_transformer(model, every_nth_layer=1)

        gradients = differentiate(compute_loss(model), model)

        gradients = {
            name.replace("_checkpoint_wrapped_module.", ""): gradient
            for name, gradient in gradients.items()
        }

        assert_close_gradients(gradients, expected)

    def test_compiled_layers_have_same_gradients(self) -> None:
        config = create_config(num_encoder_layers=1, num_decoder_layers=1)

        model, compiled = (create_random_model(config) for _ in range(2))

        # What is left out is the translation to machine code, which takes minutes.
        compile_t5(compiled, backend="eager")

        assert all(is_compiled(layer) for layer in compiled.encoder.layers)
        assert all(is_compiled(layer) for layer in compiled.decoder.layers)

        losses = [compute_loss(m) for m in (model, compiled)]

        assert_close(losses[1], losses[0], rtol=1e-6, atol=0.0)

        assert_close_gradients(
            differentiate(losses[1], compiled),
            differentiate(losses[0], model),
            atol=1e-4,
        )

    @pytest.mark.parametrize("autocast", [True, False])
    @each_config
    def test_bf16_learns(self, name: str, autocast: bool) -> None:
        model = create_random_model(CONFIGS[name]).train()

        if not autocast:
            model.to(torch.bfloat16)

        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

        losses = []

        for _ in range(8):
            with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                loss = compute_loss(model)

            optimizer.zero_grad()

            loss.backward()

            for parameter in model.parameters():
                assert parameter.grad is not None

                assert bool(parameter.grad.isfinite().all())

            optimizer.step()

            losses.append(float(loss.detach()) / sum(TARGET_LENS))

        assert losses[-1] < 0.8 * losses[0]

    def test_autocast_bias_is_as_precise_as_queries(self) -> None:
        # Or each layer would keep a copy of it.
        model = create_random_model(CONFIGS["v1_0"])

        dtypes = []

        for enabled in (True, False):
            with torch.autocast(device.type, torch.bfloat16, enabled=enabled):
                with spy_args(model.get_submodule("encoder.layers.0")) as calls:
                    model(*create_inputs())

            dtypes.append(calls[0][2].attn_bias.dtype)

        assert dtypes == [torch.bfloat16, torch.float32]
