# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from tests.common import (
    BOS_IDX,
    EOS_IDX,
    PAD_IDX,
    SEPARATOR_IDX,
    UNK_IDX,
    assert_equal,
    create_layout,
    device,
    pad_rows,
)
from warmup_plugin.errors import WarmupError
from warmup_plugin.layout import (
    DecoderLayout,
    DecoderRows,
    ExcludedTokens,
    join_rows,
    plain_rows,
    split_seq,
)

LANG_IDX = 9


def join(
    targets: Sequence[Sequence[int]],
    warmups: Sequence[Sequence[int]],
    *,
    cut: Sequence[bool] | None = None,
    with_separator: Sequence[bool] | None = None,
    target_idx: Sequence[int] | None = None,
    source_idx: Sequence[int] | None = None,
    prefix_len: int = 1,
    given_lens: Sequence[int] | None = None,
    layout: DecoderLayout | None = None,
) -> DecoderRows:
    target_seqs, target_seq_lens = pad_rows(targets)
    warmup_seqs, warmup_lens = pad_rows(warmups)

    num_rows = len(warmups)

    return join_rows(
        layout or create_layout(prefix_len=prefix_len),
        target_seqs,
        torch.tensor(target_seq_lens, device=device),
        # An empty list would become a tensor of floats.
        warmup_seqs.long(),
        torch.tensor(warmup_lens, device=device),
        torch.tensor(cut or [False] * num_rows, device=device),
        torch.tensor(with_separator or [True] * num_rows, device=device),
        torch.tensor(target_idx or list(range(num_rows)), device=device),
        None if source_idx is None else torch.tensor(source_idx, device=device),
        None if given_lens is None else torch.tensor(given_lens, device=device),
    )


class TestExcludedTokens:
    def test_warmup_excludes_control_symbols_and_padded_vocabulary(self) -> None:
        excluded = create_layout(vocab_size=8).excluded_tokens(10, device)

        # The rows 8 and 9 stand for no token.
        assert sorted(excluded.in_warmup.tolist()) == [
            PAD_IDX,
            UNK_IDX,
            BOS_IDX,
            EOS_IDX,
            8,
            9,
        ]

    def test_warmup_that_ends_like_text_is_learned_with_eos(self) -> None:
        layout = replace(create_layout(vocab_size=8), ends_like_text=True)

        excluded = layout.excluded_tokens(8, device)

        assert sorted(excluded.in_warmup.tolist()) == sorted(
            [PAD_IDX, UNK_IDX, BOS_IDX, SEPARATOR_IDX]
        )

        assert_equal(excluded.in_target, [SEPARATOR_IDX])

    def test_target_excludes_separator_alone(self) -> None:
        # Control symbols have a probability there, as in plain fine-tuning.
        excluded = create_layout(vocab_size=8).excluded_tokens(10, device)

        assert_equal(excluded.in_target, [SEPARATOR_IDX])

    def test_plain_fine_tuning_excludes_nothing(self) -> None:
        excluded = ExcludedTokens.none(device)

        for tokens in (excluded.in_warmup, excluded.in_target):
            assert tokens.dtype == torch.long

            assert tokens.tolist() == []


class TestJoinRows:
    def test_call_puts_warmup_between_prefix_and_target(self) -> None:
        rows = join([[BOS_IDX, 5, 6, EOS_IDX]], [[7, 7]])

        assert_equal(rows.seqs, [[BOS_IDX, 7, 7, SEPARATOR_IDX, 5, 6]])
        assert_equal(rows.targets, [[7, 7, SEPARATOR_IDX, 5, 6, EOS_IDX]])

        assert rows.seq_lens == [6]

        # Two words and the separator count in log P(c|x), two words and EOS in
        # log P(y|c,x).
        assert_equal(rows.warmup_mask, [[True, True, True, False, False, False]])
        assert_equal(rows.target_mask, [[False, False, False, True, True, True]])

    def test_call_works_when_warmup_is_empty(self) -> None:
        rows = join([[BOS_IDX, 5, EOS_IDX]], [[]])

        assert_equal(rows.seqs, [[BOS_IDX, SEPARATOR_IDX, 5]])
        assert_equal(rows.targets, [[SEPARATOR_IDX, 5, EOS_IDX]])
        assert_equal(rows.warmup_mask, [[True, False, False]])
        assert_equal(rows.target_mask, [[False, True, True]])

    def test_warmup_that_ends_like_text_reads_separator_and_predicts_eos(self) -> None:
        layout = replace(create_layout(), ends_like_text=True)

        rows = join([[BOS_IDX, 5, EOS_IDX]], [[7]], layout=layout)

        assert_equal(rows.seqs, [[BOS_IDX, 7, SEPARATOR_IDX, 5]])
        assert_equal(rows.targets, [[7, EOS_IDX, 5, EOS_IDX]])
        assert_equal(rows.warmup_mask, [[True, True, False, False]])
        assert_equal(rows.target_mask, [[False, False, True, True]])

    def test_call_does_not_count_separator_when_warmup_is_cut(self) -> None:
        rows = join([[BOS_IDX, 5, EOS_IDX]], [[6, 7]], cut=[True])

        assert_equal(rows.seqs, [[BOS_IDX, 6, 7, SEPARATOR_IDX, 5]])
        assert_equal(rows.targets, [[6, 7, SEPARATOR_IDX, 5, EOS_IDX]])
        assert_equal(rows.warmup_mask, [[True, True, False, False, False]])
        assert_equal(rows.target_mask, [[False, False, False, True, True]])

    def test_call_works_when_target_is_empty(self) -> None:
        rows = join([[BOS_IDX, EOS_IDX]], [[7]])

        assert_equal(rows.seqs, [[BOS_IDX, 7, SEPARATOR_IDX]])
        assert_equal(rows.targets, [[7, SEPARATOR_IDX, EOS_IDX]])
        assert_equal(rows.warmup_mask, [[True, True, False]])
        assert_equal(rows.target_mask, [[False, False, True]])

    def test_call_keeps_both_tokens_of_prefix(self) -> None:
        rows = join([[BOS_IDX, LANG_IDX, 5, EOS_IDX]], [[6]], prefix_len=2)

        assert_equal(rows.seqs, [[BOS_IDX, LANG_IDX, 6, SEPARATOR_IDX, 5]])
        assert_equal(rows.targets, [[LANG_IDX, 6, SEPARATOR_IDX, 5, EOS_IDX]])

        # The prefix is given, so that nobody is scored on its second token.
        assert_equal(rows.warmup_mask, [[False, True, True, False, False]])
        assert_equal(rows.target_mask, [[False, False, False, True, True]])

    def test_beginning_of_target_may_be_given(self) -> None:
        targets = [[BOS_IDX, 5, 6, 7, EOS_IDX], [BOS_IDX, 5, 6, EOS_IDX]]

        # The lengths are those of targets, in whatever order these are taken.
        rows = join(
            targets,
            [[], [7]],
            with_separator=[False, True],
            target_idx=[1, 0],
            given_lens=[2, 1],
        )

        assert_equal(rows.targets[0, :3], [5, 6, EOS_IDX])
        assert_equal(rows.target_mask[0, :3], [False, True, True])

        assert_equal(rows.targets[1], [7, SEPARATOR_IDX, 5, 6, 7, EOS_IDX])
        assert_equal(rows.target_mask[1], [False] * 4 + [True] * 2)
        assert_equal(rows.warmup_mask[1], [True] * 2 + [False] * 4)

    def test_source_may_have_several_targets(self) -> None:
        targets = [[BOS_IDX, 5, EOS_IDX], [BOS_IDX, 6, EOS_IDX]]

        rows = join(targets, [[7], [7]], target_idx=[1, 0], source_idx=[3, 3])

        assert_equal(rows.seqs[:, -1], [6, 5])
        assert_equal(rows.source_idx, [3, 3])

    def test_call_pads_rows_of_different_lengths(self) -> None:
        targets = [[BOS_IDX, 5, EOS_IDX], [BOS_IDX, 6, 6, 6, EOS_IDX]]

        # The rows are neither in the order of their targets nor one each; the
        # third has neither warmup nor separator.
        rows = join(
            targets,
            [[7, 7, 7], [], [], [5]],
            cut=[True, False, False, False],
            with_separator=[True, True, False, True],
            target_idx=[1, 0, 0, 0],
        )

        sep, pad = SEPARATOR_IDX, PAD_IDX

        # fmt: off
        assert_equal(
            rows.seqs,
            [
                [BOS_IDX, 7,   7,   7,   sep, 6,   6,   6],
                [BOS_IDX, sep, 5,   EOS_IDX, pad, pad, pad, pad],
                [BOS_IDX, 5,   EOS_IDX, pad, pad, pad, pad, pad],
                [BOS_IDX, 5,   sep, 5,   EOS_IDX, pad, pad, pad],
            ],
        )
        # fmt: on

        # EOS is only predicted: the inputs end before it.
        assert rows.seq_lens == [8, 3, 2, 4]

        assert_equal(
            rows.targets[:, :5],
            [
                [7, 7, 7, sep, 6],
                [sep, 5, EOS_IDX, pad, pad],
                [5, EOS_IDX, pad, pad, pad],
                [5, sep, 5, EOS_IDX, pad],
            ],
        )

        assert_equal(rows.targets[:, 5:], [[6, 6, EOS_IDX]] + [[pad, pad, pad]] * 3)

        # Words and separator of each warmup, words and EOS of each target.
        assert_equal(rows.warmup_mask.sum(dim=1), [3, 1, 0, 2])
        assert_equal(rows.target_mask.sum(dim=1), [4, 2, 2, 2])

        # No prediction counts twice, and none of padding counts.
        assert not bool((rows.warmup_mask & rows.target_mask).any())
        assert not bool((rows.targets[rows.target_mask] == pad).any())
        assert not bool((rows.targets[rows.warmup_mask] == pad).any())

        assert_equal(rows.source_idx, [1, 0, 0, 0])

    def test_call_ignores_width_of_warmups(self) -> None:
        layout = create_layout()

        target_seqs, _ = pad_rows([[BOS_IDX, 5, EOS_IDX]])

        def tensor(value: int | bool) -> torch.Tensor:
            return torch.tensor([value], device=device)

        # What lies behind the end of a warmup is not read.
        rows = join_rows(
            layout,
            target_seqs,
            tensor(3),
            torch.tensor([[6, 7, 7, 7, 7, 7, 7]], device=device),
            warmup_lens=tensor(1),
            warmup_cut=tensor(False),
            with_separator=tensor(True),
            target_idx=tensor(0),
        )

        assert_equal(rows.seqs, [[BOS_IDX, 6, SEPARATOR_IDX, 5]])


class TestPlainRows:
    @pytest.mark.parametrize("prefix_len", [1, 2])
    def test_call_builds_targets_as_they_are(self, prefix_len: int) -> None:
        prefix = [BOS_IDX, LANG_IDX][:prefix_len]

        target_seqs, target_seq_lens = pad_rows(
            [[*prefix, 5, 6, EOS_IDX], [*prefix, EOS_IDX]]
        )

        rows = plain_rows(
            create_layout(prefix_len=prefix_len),
            target_seqs,
            torch.tensor(target_seq_lens, device=device),
            with_separator=False,
        )

        assert_equal(rows.seqs[0], [*prefix, 5, 6])
        assert_equal(rows.targets[0], [*prefix[1:], 5, 6, EOS_IDX])
        assert rows.seq_lens == [prefix_len + 2, prefix_len]

        assert not bool(rows.warmup_mask.any())
        assert_equal(rows.target_mask.sum(dim=1), [3, 1])
        assert_equal(rows.targets[rows.target_mask], [5, 6, EOS_IDX, EOS_IDX])

    @pytest.mark.parametrize("prefix_len", [1, 2])
    def test_separator_of_empty_warmup_is_given(self, prefix_len: int) -> None:
        prefix = [BOS_IDX, LANG_IDX][:prefix_len]

        target_seqs, target_seq_lens = pad_rows(
            [[*prefix, 5, 6, EOS_IDX], [*prefix, EOS_IDX]]
        )

        rows = plain_rows(
            create_layout(prefix_len=prefix_len),
            target_seqs,
            torch.tensor(target_seq_lens, device=device),
            with_separator=True,
        )

        assert_equal(rows.seqs[0], [*prefix, SEPARATOR_IDX, 5, 6])
        assert_equal(rows.targets[0], [*prefix[1:], SEPARATOR_IDX, 5, 6, EOS_IDX])
        assert rows.seq_lens == [prefix_len + 3, prefix_len + 1]

        # It counts in neither of the two.
        assert not bool(rows.warmup_mask.any())
        assert_equal(rows.targets[rows.target_mask], [5, 6, EOS_IDX, EOS_IDX])


class TestRoom:
    @pytest.mark.parametrize("num_warmup_tokens", [None, 0, 3])
    @pytest.mark.parametrize("prefix_len", [1, 2])
    def test_row_that_fills_it_is_as_long_as_the_model_reads(
        self, prefix_len: int, num_warmup_tokens: int | None
    ) -> None:
        layout = create_layout(prefix_len=prefix_len)

        room = layout.room(16, num_warmup_tokens)

        target = [*[BOS_IDX] * prefix_len, *[5] * (room - 1), EOS_IDX]

        rows = join(
            [target],
            [[6] * (num_warmup_tokens or 0)],
            with_separator=[num_warmup_tokens is not None],
            prefix_len=prefix_len,
        )

        assert rows.seq_lens == [16]


class TestSplitSeq:
    @pytest.mark.parametrize(
        ("seq", "warmup", "target"),
        [
            ([5, 6, SEPARATOR_IDX, 7, EOS_IDX], [5, 6], [7]),
            ([SEPARATOR_IDX, 7, EOS_IDX], [], [7]),
            ([5, SEPARATOR_IDX, EOS_IDX], [5], []),
            # Plain fine-tuning.
            ([5, 6, EOS_IDX], [], [5, 6]),
            ([5, 6], [], [5, 6]),
            ([], [], []),
            # What follows EOS is dropped, a separator as well.
            ([5, SEPARATOR_IDX, 7, EOS_IDX, SEPARATOR_IDX, 5], [5], [7]),
            ([5, EOS_IDX, SEPARATOR_IDX, 7], [], [5]),
        ],
    )
    def test_call_works(
        self, seq: list[int], warmup: list[int], target: list[int]
    ) -> None:
        assert split_seq(create_layout(), seq) == (warmup, target)

    def test_call_inverts_join_rows(self) -> None:
        rows = join([[BOS_IDX, 5, 5, EOS_IDX]], [[6, 7]])

        assert split_seq(create_layout(), rows.targets[0].tolist()) == ([6, 7], [5, 5])

    def test_call_raises_error_when_separator_occurs_twice(self) -> None:
        seq = [5, SEPARATOR_IDX, 6, SEPARATOR_IDX, EOS_IDX]

        with pytest.raises(WarmupError, match="separator 2 times"):
            split_seq(create_layout(), seq)
