# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from fairseq2.models.transformer import (
    ALiBiAttentionBias,
    AttentionBiasCache,
    CausalAttentionBias,
    ChunkedAttentionBias,
    IdentityBias,
    MultiheadAttention,
    StandardMultiheadAttention,
)
from fairseq2.models.transformer.sdpa.base import SDPA
from fairseq2.models.transformer.sdpa.naive import NaiveSDPA
from fairseq2.models.transformer.sdpa.relative import (
    RelativePositionalEncoding,
    RelativePositionSDPA,
)
from fairseq2.models.transformer.sdpa.shaw import ShawRelativePositionSDPA
from fairseq2.models.transformer.sdpa.soft_capped import SoftCappedSDPA
from fairseq2.models.transformer.sdpa.torch import TorchSDPA
from fairseq2.nn import BatchLayout, RMSNorm, RotaryEncoder
from torch import Tensor
from torch.nn import Module, ModuleDict
from typing_extensions import override

from tests.common import assert_close, assert_equal, create_tiny_model, device
from warmup_plugin.errors import WarmupError
from warmup_plugin.fairseq2_doors import project_keys_and_values
from warmup_plugin.models.attention import (
    ContinuedRows,
    PromptedRows,
    RowAttention,
    RowLayout,
    SelfAttention,
    SourceAttention,
    SteppedRows,
    WholeRows,
    adapt_attention,
    attend,
)
from warmup_plugin.models.rows import Folding, RowCache, SourceMemory

MODEL_DIM = 12


def create_attention(
    sdpa: SDPA | None = None, **kwargs: Any
) -> StandardMultiheadAttention:
    """Creates an attention whose numbers depend on all that it is given."""
    torch.manual_seed(0)

    with device:
        attn = StandardMultiheadAttention(
            MODEL_DIM,
            num_heads=4,
            sdpa=TorchSDPA(CausalAttentionBias()) if sdpa is None else sdpa,
            head_dim=6,
            num_key_value_heads=2,
            **kwargs,
        )

        for parameter in attn.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)

    return attn.eval()


def create_self_attention(sdpa: SDPA | None = None) -> StandardMultiheadAttention:
    """Creates one with rotary positions and normalised queries and keys."""
    with device:
        return create_attention(
            sdpa,
            pos_encoder=RotaryEncoder(6, 32),
            q_norm=RMSNorm(6, bias=False),
            k_norm=RMSNorm(6, bias=False),
        )


def create_seqs(*seq_lens: int) -> list[Tensor]:
    generator = torch.Generator(device).manual_seed(1)

    return [
        torch.randn((n, MODEL_DIM), generator=generator, device=device)
        for n in seq_lens
    ]


def attend_alone(attn: Module, seq: Tensor, keys: Tensor | None = None) -> Tensor:
    """Returns what fairseq2 makes of one row. *Shape:* :math:`(S,M)`."""
    seqs = seq.unsqueeze(0)

    all_keys = seqs if keys is None else keys.unsqueeze(0)

    output = attn(
        seqs,
        BatchLayout.of(seqs),
        all_keys,
        BatchLayout.of(all_keys),
        all_keys,
        AttentionBiasCache(),
    )[0]

    assert isinstance(output, Tensor)

    return output


def project(attn: StandardMultiheadAttention, x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the keys and values of rows. *Shape:* :math:`(B,S,H,D)` each."""
    return project_keys_and_values(attn, x, BatchLayout.of(x))


def attend_rows(
    attn: Module, tokens: Tensor, positions: Tensor, attend_rows: SelfAttention
) -> Tensor:
    """Runs self-attention over flat tokens. *Shape:* :math:`(T,M)`."""
    layout = RowLayout(positions, 32, attend_rows, None)

    output = attn(tokens, layout, tokens, layout, tokens, AttentionBiasCache())

    assert isinstance(output, Tensor)

    return output


def reject(module: RowAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Stands where nothing may be seen."""
    raise AssertionError()


def list_positions(begins: list[int], seqs: list[Tensor]) -> Tensor:
    """Lists where each token stands in its row. *Shape:* :math:`(T)`."""
    return torch.cat(
        [
            torch.arange(begin, begin + seq.size(0), device=device)
            for begin, seq in zip(begins, seqs)
        ]
    )


def create_row_folding(seqs: list[Tensor]) -> Folding:
    row_idx = [row for row, seq in enumerate(seqs) for _ in seq]

    return Folding(torch.tensor(row_idx, device=device), len(seqs))


def adapt(attn: Module) -> None:
    adapt_attention(ModuleDict({"self_attn": attn}))

    assert type(attn) is RowAttention


def assert_same_gradients(attn: Module, outputs: Tensor, expected: Tensor) -> None:
    parameters = list(attn.parameters())

    gradients = [
        torch.autograd.grad(x.square().sum(), parameters) for x in (outputs, expected)
    ]

    for x, y in zip(*gradients):
        assert_close(x, y, rtol=1e-4, atol=1e-4)


SDPAS: dict[str, Callable[[], SDPA]] = {
    "torch": lambda: TorchSDPA(CausalAttentionBias()),
    "torch, scaled": lambda: TorchSDPA(CausalAttentionBias(), scale=1.3),
    "naive": lambda: NaiveSDPA(CausalAttentionBias()),
    "naive, scaled": lambda: NaiveSDPA(CausalAttentionBias(), scale=1.3),
}


class TestWholeRows:
    @pytest.mark.parametrize("seq_lens", [(4, 1, 3), (3, 3), (2,)])
    @pytest.mark.parametrize("sdpa", SDPAS)
    def test_call_equals_attention_of_rows_alone(
        self, sdpa: str, seq_lens: tuple[int, ...]
    ) -> None:
        attn = create_self_attention(SDPAS[sdpa]())

        seqs = create_seqs(*seq_lens)

        expected = torch.cat([attend_alone(attn, seq) for seq in seqs])

        adapt(attn)

        outputs = attend_rows(
            attn,
            torch.cat(seqs),
            list_positions([0] * len(seqs), seqs),
            WholeRows(create_row_folding(seqs)),
        )

        assert_close(outputs, expected)

        assert_same_gradients(attn, outputs, expected)

    def test_rows_may_be_mixed(self) -> None:
        attn = create_self_attention()

        one, two = create_seqs(3, 2)

        adapt(attn)

        # The first token of the second row, the first one of the first row, …
        tokens = torch.stack([two[0], one[0], one[1], two[1], one[2]])

        outputs = attend_rows(
            attn,
            tokens,
            torch.tensor([0, 0, 1, 1, 2], device=device),
            WholeRows(Folding(torch.tensor([1, 0, 0, 1, 0], device=device), 2)),
        )

        assert_close(outputs[[1, 2, 4]], attend_alone(attn, one))
        assert_close(outputs[[0, 3]], attend_alone(attn, two))

    def test_padding_is_not_seen(self) -> None:
        # The first token of all stands in the padded places too.
        attn = create_self_attention()

        adapt(attn)

        seqs = create_seqs(4, 1, 3)

        def run(first: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            tokens = torch.cat([first, *seqs[1:]]).requires_grad_()

            outputs = attend_rows(
                attn,
                tokens,
                list_positions([0, 0, 0], seqs),
                WholeRows(create_row_folding(seqs)),
            )[4:]

            weights = torch.arange(float(outputs.numel()), device=device)

            loss = (weights.view_as(outputs) * outputs).sum()

            return outputs, torch.autograd.grad(loss, [tokens, *attn.parameters()])

        outputs, gradients = run(seqs[0])

        others, other_gradients = run(1e4 * seqs[0].flip(0))

        assert_equal(others, outputs)

        for x, y in zip(gradients, other_gradients):
            assert_equal(x, y)

        # Nor does anything reach the first row.
        assert not bool(gradients[0][:4].any())

    def test_states_are_told(self) -> None:
        attn = create_self_attention()

        adapt(attn)

        seqs = create_seqs(3, 2)

        told: list[tuple[Module, Tensor, Tensor]] = []

        attend_rows(
            attn,
            torch.cat(seqs),
            list_positions([0, 0], seqs),
            WholeRows(
                create_row_folding(seqs), on_states=lambda *args: told.append(args)
            ),
        )

        [(module, k, v)] = told

        assert module is attn

        for row, seq in enumerate(seqs):
            expected_k, expected_v = project(attn, seq.unsqueeze(0))

            assert_close(k[row, : seq.size(0)], expected_k[0])
            assert_close(v[row, : seq.size(0)], expected_v[0])

    def test_dropout_of_weights_is_that_of_training(self) -> None:
        attn = create_self_attention(TorchSDPA(CausalAttentionBias(), dropout_p=0.5))

        adapt(attn)

        seqs = create_seqs(4, 3)

        def run(seed: int) -> Tensor:
            torch.manual_seed(seed)

            return attend_rows(
                attn,
                torch.cat(seqs),
                list_positions([0, 0], seqs),
                WholeRows(create_row_folding(seqs)),
            )

        expected = torch.cat([attend_alone(attn, seq) for seq in seqs])

        assert_close(run(0), expected)

        attn.train()

        assert_equal(run(0), run(0))

        assert not torch.allclose(run(0), run(1), atol=0.01)
        assert not torch.allclose(run(0), expected, atol=0.01)


class TestContinuedRows:
    @pytest.mark.parametrize("pasts", [[2, 0, 3, 1], [0, 0, 0, 0], [2, 2, 2, 2]])
    def test_call_equals_attention_of_whole_rows(self, pasts: list[int]) -> None:
        attn = create_self_attention()

        adapt(attn)

        seqs = create_seqs(4, 1, 5, 3)

        expected = [attend_alone(attn, seq) for seq in seqs]

        cache = RowCache(4, 6)

        # More than counts, as of rows that were fed on after they had ended.
        filled = torch.full((4, 6, MODEL_DIM), 1e3, device=device)

        for row, seq in enumerate(seqs):
            filled[row, : seq.size(0)] = seq

        cache.begin(attn, *project(attn, filled))

        rest = [seq[past:] for seq, past in zip(seqs, pasts)]

        rows = torch.arange(4, device=device)

        outputs = attend_rows(
            attn,
            torch.cat(rest),
            list_positions(pasts, rest),
            ContinuedRows(
                create_row_folding(rest),
                torch.tensor(pasts, device=device),
                lambda module, end: cache.get(module, rows, end),
            ),
        )

        assert_close(outputs, torch.cat([e[past:] for e, past in zip(expected, pasts)]))


class TestPromptedRows:
    @pytest.mark.parametrize("prompt_lens", [(2, 4, 1), (3, 3, 3)])
    @pytest.mark.parametrize(
        "prompt_idx, seq_lens",
        [([1, 0, 1, 2], (3, 1, 2, 4)), ([0, 1, 2], (2, 2, 2)), ([2, 0], (1, 3))],
    )
    def test_call_equals_attention_of_prompts_and_rows(
        self,
        prompt_idx: list[int],
        seq_lens: tuple[int, ...],
        prompt_lens: tuple[int, ...],
    ) -> None:
        attn = create_self_attention()

        all_seqs = create_seqs(*prompt_lens, *seq_lens)

        prompts, seqs = all_seqs[:3], all_seqs[3:]

        expected = [
            *[attend_alone(attn, prompt) for prompt in prompts],
            *[
                attend_alone(attn, torch.cat([prompts[idx], seq]))[prompt_lens[idx] :]
                for idx, seq in zip(prompt_idx, seqs)
            ],
        ]

        adapt(attn)

        outputs = attend_rows(
            attn,
            torch.cat(all_seqs),
            list_positions([0] * 3 + [prompt_lens[i] for i in prompt_idx], all_seqs),
            PromptedRows(
                create_row_folding(prompts),
                create_row_folding(seqs),
                sum(prompt_lens),
                torch.tensor(prompt_idx, device=device),
                torch.tensor(prompt_lens, device=device),
            ),
        )

        assert_close(outputs, torch.cat(expected))

        assert_same_gradients(attn, outputs, torch.cat(expected))


class TestSteppedRows:
    @torch.no_grad()
    @pytest.mark.parametrize("as_tensor", [False, True])
    def test_call_equals_attention_of_whole_rows(self, as_tensor: bool) -> None:
        attn = create_self_attention()

        adapt(attn)

        seqs = create_seqs(5, 5, 5)

        expected = torch.stack([attend_alone(attn, seq) for seq in seqs])

        x = torch.stack(seqs)

        cache = RowCache(3, 8)

        # Two tokens of all rows, then one; two of two rows, in another order.
        steps = [([0, 1, 2], 0, 2), ([0, 1, 2], 2, 3), ([2, 0], 3, 5)]

        for rows, begin, end in steps:
            tokens = x[rows, begin:end].flatten(0, 1)

            positions: Tensor | int = begin

            if as_tensor:
                positions = torch.full((len(rows),), begin, device=device)

            outputs = attend_rows(
                attn,
                tokens,
                torch.arange(begin, end, device=device).repeat(len(rows)),
                SteppedRows(
                    cache,
                    None if len(rows) == 3 else torch.tensor(rows, device=device),
                    positions,
                    end - begin,
                    end,
                    None,
                ),
            )

            assert_close(
                outputs.unflatten(0, (len(rows), -1)), expected[rows, begin:end]
            )

    @torch.no_grad()
    def test_rows_may_stand_at_different_positions(self) -> None:
        # Behind their prompts, of which two rows share one.
        attn = create_self_attention()

        adapt(attn)

        prompts, prompt_idx = create_seqs(3, 1), [1, 0, 1]

        x = torch.stack(create_seqs(2, 2, 2)).flip(0)

        expected = torch.stack(
            [
                attend_alone(attn, torch.cat([prompts[idx], seq]))[-2:]
                for idx, seq in zip(prompt_idx, x)
            ]
        )

        memory = SourceMemory([3, 1], 3, device)

        def remember(module: Module, k: Tensor, v: Tensor) -> None:
            memory.states[module] = (k, v)

        attend_rows(
            attn,
            torch.cat(prompts),
            list_positions([0, 0], prompts),
            WholeRows(create_row_folding(prompts), on_states=remember),
        )

        cache = RowCache(3, 3 + 2)

        begins = torch.tensor([1, 3, 1], device=device)

        for step_nr in range(2):
            outputs = attend_rows(
                attn,
                x[:, step_nr],
                begins + step_nr,
                SteppedRows(
                    cache,
                    None,
                    begins + step_nr,
                    1,
                    3 + step_nr + 1,
                    (
                        (memory, torch.tensor(prompt_idx, device=device))
                        if step_nr == 0
                        else None
                    ),
                ),
            )

            assert_close(outputs, expected[:, step_nr])


class TestSourceAttention:
    # The source of each token: in no order, without the second one, of one alone.
    @pytest.mark.parametrize(
        "source_idx", [[2, 0, 0, 1, 2, 0], [0, 2, 0], [1], [0, 0, 1, 1, 2, 2]]
    )
    @pytest.mark.parametrize("source_lens", [(2, 4, 1), (3, 3, 3)])
    def test_call_equals_attention_of_tokens_alone(
        self, source_lens: tuple[int, ...], source_idx: list[int]
    ) -> None:
        attn = create_attention(TorchSDPA(IdentityBias()))

        sources = create_seqs(*source_lens)

        [tokens] = create_seqs(len(source_idx))

        expected = torch.cat(
            [
                attend_alone(attn, token.unsqueeze(0), sources[idx])
                for token, idx in zip(tokens, source_idx)
            ]
        )

        adapt(attn)

        # Large numbers in padded places.
        keys = torch.full((3, max(source_lens), MODEL_DIM), 1e4, device=device)

        for row, source in enumerate(sources):
            keys[row, : source.size(0)] = source

        keys_layout = BatchLayout.of(keys, list(source_lens))

        used, groups = torch.tensor(source_idx, device=device).unique(
            return_inverse=True
        )

        num_groups = used.size(0)

        memory = SourceMemory(source_lens, keys.size(1), device)

        attend_source = SourceAttention(
            memory, Folding(groups, num_groups), None if num_groups == 3 else used
        )

        layout = RowLayout(
            torch.zeros(len(source_idx), device=device, dtype=torch.long),
            1,
            reject,
            attend_source,
        )

        def run() -> Tensor:
            output = attn(tokens, layout, keys, keys_layout, keys, AttentionBiasCache())

            assert isinstance(output, Tensor)

            return output

        outputs = run()

        assert_close(outputs, expected)

        assert_same_gradients(attn, outputs, expected)

        # What a pass with gradient projects must not be used by another one.
        assert not memory.states

        with torch.no_grad():
            assert_close(run(), expected)

            assert list(memory.states) == [attn]

            assert_close(run(), expected)


class TestRowLayout:
    def test_call_looks_like_packed_batch(self) -> None:
        positions = torch.tensor([0, 1, 0], device=device)

        layout = RowLayout(positions, 2, reject, None)

        assert layout.packed
        assert not layout.padded
        assert layout.width == 3
        assert layout.max_seq_len == 2
        assert layout.position_indices is positions

        # As a debugger shows it.
        assert "RowLayout" in repr(layout)


class Special(MultiheadAttention):
    """An attention of a kind that nobody knows."""

    @override
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        raise NotImplementedError()


class UnknownSDPA(SDPA):
    """Says neither what it sees nor what it drops."""

    @override
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError()


def create_relative_sdpa() -> SDPA:
    encoding = RelativePositionalEncoding(MODEL_DIM, 8)

    return RelativePositionSDPA(MODEL_DIM, 4, encoding, CausalAttentionBias())


UNKNOWN: dict[str, Callable[[], SDPA]] = {
    "CausalAttentionBias.attn_window_len=3": lambda: TorchSDPA(
        CausalAttentionBias(attn_window_len=3)
    ),
    "ALiBiAttentionBias": lambda: TorchSDPA(ALiBiAttentionBias(4)),
    "ChunkedAttentionBias": lambda: NaiveSDPA(ChunkedAttentionBias(4)),
    "RelativePositionSDPA": create_relative_sdpa,
    "ShawRelativePositionSDPA": lambda: ShawRelativePositionSDPA(
        MODEL_DIM, 4, CausalAttentionBias(), 2
    ),
    "SoftCappedSDPA": lambda: SoftCappedSDPA(CausalAttentionBias()),
    "UnknownSDPA": UnknownSDPA,
}


def create_mask(name: str) -> Tensor | None:
    """Creates what a batch of three, in two of whose groups something is hidden, sees of
    seven keys."""
    if name == "none":
        return None

    seen = torch.ones((3, 1, 1, 7), dtype=torch.bool, device=device)

    seen[1, :, :, 5:] = False
    seen[2, :, :, 1:] = False

    if name == "bool":
        return seen

    numbers = torch.linspace(-1.0, 1.0, 7, device=device)

    return numbers.expand(3, 4, 1, 7).masked_fill(~seen, -torch.inf)


class TestAttend:
    # A step of decoding is computed otherwise on a CPU, where there is no gradient.
    @pytest.mark.parametrize("mask", ["none", "bool", "numbers"])
    @pytest.mark.parametrize("num_queries", [1, 3])
    @pytest.mark.parametrize("scale", [None, 1.0])
    def test_step_equals_training(
        self,
        mask: str,
        num_queries: int,
        scale: float | None,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        attn = create_attention()

        adapt_attention(ModuleDict({"attn": attn}))

        assert isinstance(attn, RowAttention)

        # As T5's, which has no scale.
        if scale is not None:
            setattr(attn.sdpa, "scale", scale)

        generator = torch.Generator(device).manual_seed(2)

        q, k, v = (
            torch.randn((3, n, num_heads, 6), generator=generator, device=device)
            for n, num_heads in ((num_queries, 4), (7, 2), (7, 2))
        )

        expected = attend(attn, q, k, v, mask=create_mask(mask))

        def reject(*args: object, **kwargs: object) -> Tensor:
            raise AssertionError()

        if device.type == "cpu":
            monkeypatch.setattr(
                "warmup_plugin.models.attention.scaled_dot_product_attention", reject
            )

        with torch.no_grad():
            actual = attend(attn, q, k, v, mask=create_mask(mask))

        assert_close(actual, expected)

    def test_step_in_16_bits_is_as_exact_as_training(self) -> None:
        attn = create_attention()

        adapt_attention(ModuleDict({"attn": attn}))

        assert isinstance(attn, RowAttention)

        generator = torch.Generator(device).manual_seed(2)

        q, k, v = (
            torch.randn((3, n, h, 6), generator=generator, device=device).bfloat16()
            for n, h in ((1, 4), (7, 2), (7, 2))
        )

        expected = attend(attn, q, k, v)

        with torch.no_grad():
            assert_equal(attend(attn, q, k, v), expected)


class TestAdaptAttention:
    @pytest.mark.parametrize("name", UNKNOWN)
    def test_call_raises_error_when_attention_is_not_plain(self, name: str) -> None:
        model = create_tiny_model(num_layers=2)

        layer = model.get_submodule("decoder.layers.1")

        layer.register_module("self_attn", create_attention(UNKNOWN[name]()))

        with pytest.raises(
            WarmupError, match=f"`layers.1.self_attn`.*{name}.*; use a model"
        ):
            adapt_attention(model.decoder)

    def test_call_raises_error_when_kind_is_unknown(self) -> None:
        model = create_tiny_model(num_layers=2)

        layer = model.get_submodule("decoder.layers.0")

        layer.register_module("encoder_decoder_attn", Special())

        with pytest.raises(
            WarmupError, match="`layers.0.encoder_decoder_attn`.*`Special`.*; use"
        ):
            adapt_attention(model.decoder)

    def test_call_changes_class_alone(self) -> None:
        model, other = create_tiny_model(), create_tiny_model()

        for _ in range(2):
            adapt_attention(model.decoder)

        def list_attentions(model: Module) -> list[type]:
            return [
                type(module)
                for module in model.modules()
                if isinstance(module, MultiheadAttention)
            ]

        assert list_attentions(model.decoder) == [RowAttention] * 2

        # The encoder needs none.
        assert list_attentions(model.encoder) == [StandardMultiheadAttention]

        assert list(model.state_dict()) == list(other.state_dict())

    @pytest.mark.parametrize("seq_lens", [[4, 4], [4, 2]])
    def test_attention_does_what_it_did(self, seq_lens: list[int]) -> None:
        attn = create_self_attention()

        x = torch.stack(create_seqs(4, 4)).requires_grad_()

        layout = BatchLayout.of(x, seq_lens)

        def run() -> tuple[Tensor, ...]:
            output = attn(x, layout, x, layout, x, AttentionBiasCache())

            gradients = torch.autograd.grad(
                output.square().sum(), [x, *attn.parameters()]
            )

            return (output, *gradients)

        expected = run()

        adapt(attn)

        for a, b in zip(run(), expected):
            assert_equal(a, b)
