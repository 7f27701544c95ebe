# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.common import (
    BOS_IDX,
    CREATE_MODEL,
    SEPARATOR_IDX,
    Model,
    assert_close,
    create_source,
    create_tiny_model,
    device,
    each_model,
    forward_alone,
)
from tests.unit.models.cases import (
    NUM_ROWS,
    SEQS,
    SOURCE_IDX,
    SOURCES,
    TARGETS,
    WARMUPS,
    build_rows,
    count_tokens,
    get_excluded,
    score_alone,
    spy,
)
from warmup_plugin.models.conditional import RowDecoder
from warmup_plugin.models.scorable import create_conditional_model


class TestRowDecoder:
    def start(self, model: Model, source_idx: list[int], max_len: int) -> RowDecoder:
        wrapper = create_conditional_model(model)

        source = wrapper.encode(*create_source(SOURCES))

        return wrapper.start(source, torch.tensor(source_idx, device=device), max_len)

    def forward_alone(self, model: Model, rows: list[tuple[int, list[int]]]) -> Tensor:
        """Returns the last logits of sequences of sources. *Shape:* :math:`(B,V)`."""
        return torch.stack(
            [forward_alone(model, SOURCES[idx], seq)[-1] for idx, seq in rows]
        )

    @each_model
    @torch.no_grad()
    def test_step_equals_uncached_forward(self, kind: str) -> None:
        model = CREATE_MODEL[kind](num_layers=2)

        rows = [[BOS_IDX, 5, 6, 7], [BOS_IDX, 7, 7, 5], [BOS_IDX, SEPARATOR_IDX, 5, 5]]

        source_idx = [1, 0, 0]

        expected = self.forward_alone(model, list(zip(source_idx, rows)))

        # A token at a time, and a prefix of two tokens.
        for bounds in ([0, 1, 2, 3, 4], [0, 2, 3, 4], [0, 4]):
            decoder = self.start(model, source_idx, 4)

            for begin, end in zip(bounds, bounds[1:]):
                logits = decoder.step(
                    torch.tensor([row[begin:end] for row in rows], device=device)
                )

            assert_close(logits, expected, rtol=0.0, atol=2e-5)

    @each_model
    @torch.no_grad()
    def test_step_works_when_all_sources_are_as_long(self, kind: str) -> None:
        # The rows of a decoder-only model then all stand at one position.
        model = CREATE_MODEL[kind](num_layers=2)

        wrapper = create_conditional_model(model)

        sources = [[5, 6], [7, 7]]

        source = wrapper.encode(*create_source(sources))

        decoder = wrapper.start(source, torch.tensor([1, 0, 1], device=device), 3)

        decoder.step(torch.tensor([[BOS_IDX]] * 3, device=device))
        decoder.step(torch.tensor([[5], [6], [7]], device=device))

        logits = decoder.step(
            torch.tensor([[6], [5]], device=device), torch.tensor([2, 0], device=device)
        )

        expected = [
            forward_alone(model, [7, 7], [BOS_IDX, 7, 6])[-1],
            forward_alone(model, [7, 7], [BOS_IDX, 5, 5])[-1],
        ]

        assert_close(logits, torch.stack(expected), rtol=0.0, atol=2e-5)

    @each_model
    @torch.no_grad()
    def test_step_may_leave_rows_out(self, kind: str) -> None:
        model = CREATE_MODEL[kind](num_layers=2)

        decoder = self.start(model, [1, 0, 0, 3], 4)

        decoder.step(torch.tensor([[BOS_IDX]] * 4, device=device))

        steps = [
            ([0, 1, 3], [5, 6, 7], [(1, [5]), (0, [6]), (3, [7])]),
            # In another order, and of other sources than before.
            ([3, 1], [5, 7], [(3, [7, 5]), (0, [6, 7])]),
            ([1], [6], [(0, [6, 7, 6])]),
        ]

        for rows, tokens, seqs in steps:
            logits = decoder.step(
                torch.tensor(tokens, device=device).unsqueeze(1),
                torch.tensor(rows, device=device),
            )

            expected = self.forward_alone(
                model, [(idx, [BOS_IDX, *seq]) for idx, seq in seqs]
            )

            assert_close(logits, expected, rtol=0.0, atol=2e-5)

    @each_model
    @torch.no_grad()
    def test_rows_may_be_the_same_tensor_as_before(self, kind: str) -> None:
        # What is grouped by source is then not grouped again.
        model = CREATE_MODEL[kind](num_layers=2)

        decoder = self.start(model, [1, 0, 3], 4)

        decoder.step(torch.tensor([[BOS_IDX]] * 3, device=device))

        rows = torch.tensor([2, 0], device=device)

        decoder.step(torch.tensor([[5], [6]], device=device), rows)

        logits = decoder.step(torch.tensor([[7], [5]], device=device), rows)

        expected = self.forward_alone(
            model, [(3, [BOS_IDX, 5, 7]), (1, [BOS_IDX, 6, 5])]
        )

        assert_close(logits, expected, rtol=0.0, atol=2e-5)

        decoder.select(torch.tensor([2, 1, 0], device=device))

        # Now of the sources 0 and 3.
        rows = torch.tensor([0, 2], device=device)

        logits = decoder.step(torch.tensor([[6], [6]], device=device), rows)

        expected = self.forward_alone(
            model, [(3, [BOS_IDX, 5, 7, 6]), (1, [BOS_IDX, 6, 5, 6])]
        )

        assert_close(logits, expected, rtol=0.0, atol=2e-5)

    @each_model
    @torch.no_grad()
    def test_select_drops_repeats_and_reorders_rows(self, kind: str) -> None:
        model = CREATE_MODEL[kind](num_layers=2)

        decoder = self.start(model, [1, 0, 3], 4)

        decoder.step(torch.tensor([[BOS_IDX]] * 3, device=device))
        decoder.step(torch.tensor([[5], [6], [7]], device=device))

        decoder.select(torch.tensor([2, 0, 0, 2], device=device))

        decoder.step(torch.tensor([[5], [6], [7], [6]], device=device))

        decoder.select(torch.tensor([1, 3], device=device))

        logits = decoder.step(torch.tensor([[7], [5]], device=device))

        expected = self.forward_alone(
            model, [(1, [BOS_IDX, 5, 6, 7]), (3, [BOS_IDX, 7, 6, 5])]
        )

        assert_close(logits, expected, rtol=0.0, atol=2e-5)

    @each_model
    @torch.no_grad()
    def test_select_works_before_first_step(self, kind: str) -> None:
        model = CREATE_MODEL[kind](num_layers=2)

        decoder = self.start(model, [0, 1, 3], 2)

        decoder.select(torch.tensor([2, 2, 0, 1], device=device))

        logits = decoder.step(torch.tensor([[BOS_IDX, t] for t in (5, 6, 7, 5)]))

        expected = self.forward_alone(
            model, [(3, [BOS_IDX, 5]), (3, [BOS_IDX, 6]), (0, [BOS_IDX, 7])]
        )

        assert_close(logits[:3], expected, rtol=0.0, atol=2e-5)

    # Rows that have been rewound are of different lengths.
    @each_model
    @pytest.mark.parametrize("past_lens", [[1, 1, 1], [3, 1, 2]])
    @torch.no_grad()
    def test_beams_go_on_from_each_other(self, kind: str, past_lens: list[int]) -> None:
        model = CREATE_MODEL[kind](num_layers=2)

        source_idx = [1, 0, 3]

        decoder = self.start(model, source_idx, 9)

        fed = [[BOS_IDX, 5, 6], [BOS_IDX, 7, 5], [BOS_IDX, 6, 6]]

        for step in range(max(past_lens)):
            tokens = torch.tensor([[row[step]] for row in fed], device=device)

            decoder.step(tokens)

        if min(past_lens) < max(past_lens):
            decoder.rewind(torch.tensor(past_lens, device=device))

        groups = [[row[:n]] for row, n in zip(fed, past_lens)]

        # The beams of each group, and the groups that go on: one beam, two, three, which
        # is the most; a group is dropped, then another one, and beams get fewer.
        steps: list[tuple[list[list[int]], list[int] | None]] = [
            ([[0, 0], [0, 0], [0, 0]], None),
            ([[1, 1, 0], [0, 1, 1], [1, 0, 0]], None),
            ([[2, 2, 0], [1, 0, 2], [0, 1, 2]], None),
            ([[2, 0, 1], [1, 1, 1]], [0, 2]),
            ([[0, 2], [2, 1]], None),
            ([[1, 0]], [1]),
        ]

        for nr, (beams, kept) in enumerate(steps):
            decoder.select_beams(
                torch.tensor(beams, device=device),
                None if kept is None else torch.tensor(kept, device=device),
                3,
            )

            if kept is not None:
                groups = [groups[n] for n in kept]

                source_idx = [source_idx[n] for n in kept]

            groups = [
                [
                    [*group[beam], 5 + (nr + n + place) % 3]
                    for place, beam in enumerate(places)
                ]
                for n, (group, places) in enumerate(zip(groups, beams))
            ]

            rows = [
                (idx, row) for idx, group in zip(source_idx, groups) for row in group
            ]

            logits = decoder.step(
                torch.tensor([[row[-1]] for _, row in rows], device=device)
            )

            assert_close(logits, self.forward_alone(model, rows), rtol=0.0, atol=2e-5)

    @torch.no_grad()
    def test_beams_are_dropped_before_their_first_step(self) -> None:
        model = create_tiny_model(num_layers=2)

        decoder = self.start(model, [1, 0, 3], 4)

        decoder.step(torch.tensor([[BOS_IDX]] * 3, device=device))

        beams = torch.tensor([[0, 0], [0, 0]], device=device)

        decoder.select_beams(beams, torch.tensor([2, 0], device=device), 2)

        logits = decoder.step(torch.tensor([[5], [6], [7], [5]], device=device))

        rows = [(3, [BOS_IDX, 5]), (3, [BOS_IDX, 6]), (1, [BOS_IDX, 7])]

        expected = self.forward_alone(model, [*rows, (1, [BOS_IDX, 5])])

        assert_close(logits, expected, rtol=0.0, atol=2e-5)

    @each_model
    @torch.no_grad()
    def test_score_equals_score_from_scratch(self, kind: str) -> None:
        model = CREATE_MODEL[kind](num_layers=2)

        rows = build_rows()

        decoder = self.start(model, SOURCE_IDX, 8)

        # As drawing does: all are fed while any of them writes, the last token of a
        # warmup that is cut is not fed.
        decoder.step(rows.seqs[:, :1])

        past_lens = torch.tensor(
            [1 + min(len(warmup), 2) for warmup in WARMUPS], device=device
        )

        for step_nr in (1, 2):
            fed = torch.tensor(
                [[w[step_nr - 1] if len(w) >= step_nr else 7] for w in WARMUPS]
            )

            decoder.step(fed.to(device))

        _, expected = score_alone(model)

        assert_close(decoder.score(rows, past_lens, get_excluded(model)), expected)

    @each_model
    @torch.no_grad()
    def test_score_works_when_ended_rows_were_left_out(self, kind: str) -> None:
        model = CREATE_MODEL[kind](num_layers=2)

        rows = build_rows()

        decoder = self.start(model, SOURCE_IDX, 8)

        decoder.step(rows.seqs[:, :1])

        for step_nr in (1, 2):
            active = torch.tensor(
                [row for row, w in enumerate(WARMUPS) if len(w) >= step_nr],
                device=device,
            )

            decoder.step(rows.seqs[active, step_nr : step_nr + 1], active)

        past_lens = torch.tensor(
            [1 + min(len(warmup), 2) for warmup in WARMUPS], device=device
        )

        _, expected = score_alone(model)

        assert_close(decoder.score(rows, past_lens, get_excluded(model)), expected)

    @each_model
    @torch.no_grad()
    def test_score_works_after_prefixes_were_repeated(self, kind: str) -> None:
        # One row a source is fed, then selected once for each of its warmups.
        model = CREATE_MODEL[kind](num_layers=2)

        rows = build_rows()

        decoder = self.start(model, list(range(len(SOURCES))), 8)

        decoder.step(torch.full((len(SOURCES), 1), BOS_IDX, device=device))

        decoder.select(torch.tensor(SOURCE_IDX, device=device))

        past_lens = torch.ones(NUM_ROWS, dtype=torch.long, device=device)

        _, expected = score_alone(model)

        assert_close(decoder.score(rows, past_lens, get_excluded(model)), expected)

    @each_model
    @torch.no_grad()
    def test_score_reads_and_projects_only_what_is_new(self, kind: str) -> None:
        model = CREATE_MODEL[kind]()

        rows = build_rows()

        decoder = self.start(model, SOURCE_IDX, 8)

        decoder.step(rows.seqs[:, :1])

        past_lens = torch.ones(NUM_ROWS, dtype=torch.long, device=device)

        with spy(model.decoder) as calls, spy(model.final_proj) as proj_calls:
            decoder.score(rows, past_lens, get_excluded(model))

        assert count_tokens(calls) == [sum(len(seq) - 2 for seq in SEQS)]

        # Those of y, EOS included; those of c have been projected by drawing.
        num_target_tokens = sum(len(TARGETS[idx]) - 1 for idx in SOURCE_IDX)

        assert count_tokens(proj_calls) == [num_target_tokens]

    @each_model
    @torch.no_grad()
    def test_rows_go_on_from_where_each_is_rewound_to(self, kind: str) -> None:
        model = CREATE_MODEL[kind](num_layers=2)

        source_idx = [1, 0, 0]

        decoder = self.start(model, source_idx, 7)

        # What is behind the kept tokens is fed to be forgotten.
        fed = [[BOS_IDX, 5, 6, 7], [BOS_IDX, 7, 5, 5], [BOS_IDX, 6, 6, 6]]

        for step in range(4):
            tokens = torch.tensor([[row[step]] for row in fed], device=device)

            decoder.step(tokens)

        past_lens = [3, 1, 2]

        decoder.rewind(torch.tensor(past_lens, device=device))

        rows = [row[:n] for row, n in zip(fed, past_lens)]

        # Two tokens at once, then one, then some rows twice.
        for new in ([[6, 7], [5, 6], [7, 7]], [[5], [7], [6]]):
            logits = decoder.step(torch.tensor(new, device=device))

            rows = [[*row, *tokens] for row, tokens in zip(rows, new)]

            expected = self.forward_alone(model, list(zip(source_idx, rows)))

            assert_close(logits, expected, rtol=0.0, atol=2e-5)

        order = [2, 0, 0, 1]

        decoder.select(torch.tensor(order, device=device))

        logits = decoder.step(torch.tensor([[5], [6], [7], [5]], device=device))

        rows = [[*rows[n], token] for n, token in zip(order, [5, 6, 7, 5])]

        expected = self.forward_alone(
            model, [(source_idx[n], row) for n, row in zip(order, rows)]
        )

        assert_close(logits, expected, rtol=0.0, atol=2e-5)
