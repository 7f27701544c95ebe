# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from fairseq2.datasets import Seq2SeqBatch
from fairseq2.gang import FakeGang, Gangs
from fairseq2.metrics import Mean, MetricBag, Sum
from torch import Tensor
from typing_extensions import override

from tests.common import BOS_IDX, EOS_IDX, create_layout, device, pad_rows
from tests.unit.metrics.fake_comet import install_comet_worker, write_comet_model
from warmup_plugin.criteria import validation
from warmup_plugin.criteria.base import Criterion, WeighedWarmup
from warmup_plugin.criteria.validation import TranslationValidUnit, ValidDirection
from warmup_plugin.errors import WarmupError
from warmup_plugin.gathering import gather_objects
from warmup_plugin.generation import Hypothesis, WarmupGenerator
from warmup_plugin.metrics.comet import CometWorkers
from warmup_plugin.metrics.registry import MetricOptions
from warmup_plugin.metrics.translation import score_translations
from warmup_plugin.tokenizers.codec import EncodedText, TextCodec

WARMUPS = [
    WeighedWarmup([5], 0.25, -1.0, -3.0),
    WeighedWarmup([], 0.75, -2.0, -4.0),
]


class FakeCriterion(Criterion):
    """Draws the same two warmups for every source."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []
        self.steps: list[int] = []

    @override
    def add_metrics(self, metric_bag: MetricBag) -> None:
        metric_bag.add("warmup_k", Mean())

    @override
    def compute_loss(
        self, batch: Seq2SeqBatch, metric_bag: MetricBag, *, step_nr: int
    ) -> Tensor:
        raise AssertionError("Validation computes no gradient.")

    @override
    def evaluate(
        self,
        batch: Seq2SeqBatch,
        metric_bag: MetricBag,
        *,
        step_nr: int,
        shown: Sequence[int],
    ) -> list[list[WeighedWarmup]]:
        self.asked.append(list(shown))
        self.steps.append(step_nr)

        metric_bag.get("warmup_k", Mean).update(2.0, weight=batch.num_examples)

        return [WARMUPS] * len(shown)

    @property
    @override
    def max_warmup_len(self) -> int | None:
        return 1


class FakeGenerator:
    """Repeats the source."""

    def __call__(
        self, source_seqs: Tensor, source_seq_lens: list[int], prefixes: Tensor
    ) -> list[list[Hypothesis]]:
        # What stands before the warmup.
        assert prefixes.tolist() == [[BOS_IDX]] * len(source_seq_lens)

        rows = zip(source_seqs.tolist(), source_seq_lens)

        return [[Hypothesis([], row[: n - 1], [], 0.0, 0.0, 0.0)] for row, n in rows]


class FakeCodec(TextCodec):
    @override
    def encode_source(self, source: str) -> EncodedText:
        raise NotImplementedError()

    @override
    def encode_target(self, target: str) -> list[int]:
        raise NotImplementedError()

    @override
    def decode(self, tokens: Sequence[int]) -> str:
        return " ".join(f"w{idx}" for idx in tokens)

    @override
    def to_tokens(self, tokens: Sequence[int]) -> list[str]:
        raise NotImplementedError()

    @property
    @override
    def template(self) -> str:
        return "{source}"

    @property
    @override
    def num_template_tokens(self) -> int:
        return 0


def create_gangs(rank: int = 0) -> Gangs:
    gang, root = FakeGang(device), FakeGang(device, rank=rank, size=1 + rank)

    return Gangs(root=root, dp=gang, rdp=gang, sdp=gang, tp=gang, pp=gang)


def create_unit(
    criterion: Criterion,
    *,
    num_shown: int = 2,
    rank: int = 0,
    options: MetricOptions = MetricOptions(target_lang="de"),
    **kwargs: Any,
) -> TranslationValidUnit:
    """:param kwargs: The other parameters of the unit."""
    return TranslationValidUnit(
        "dev",
        criterion,
        lambda max_warmup_len: cast(WarmupGenerator, FakeGenerator()),
        FakeCodec(create_layout(), "<sep>"),
        create_gangs(rank),
        num_shown=num_shown,
        options=options,
        **kwargs,
    )


def create_batch(
    indices: Sequence[int], sources: Sequence[Sequence[int]], targets: Sequence[str]
) -> Seq2SeqBatch:
    source_seqs, source_lens = pad_rows([[*s, EOS_IDX] for s in sources])

    target_seqs, target_lens = pad_rows(
        [[BOS_IDX, *[5] * len(t.split()), EOS_IDX] for t in targets]
    )

    example = {
        "indices": list(indices),
        "sources": [f"source {idx}" for idx in indices],
        "references": [[target] for target in targets],
    }

    return Seq2SeqBatch(
        source_seqs, source_lens, target_seqs, target_lens, example=example
    )


BATCHES = [
    ([2], [[5, 6, 7, 5, 6]], ["w5 w6 w7 w5 w6"]),
    ([1, 0], [[7, 7, 7, 6], [5]], ["w7 w7 w7 w7", "w6"]),
]


def run(unit: TranslationValidUnit) -> tuple[dict[str, object], MetricBag]:
    """Returns the values that a validation reports."""
    metric_bag = MetricBag(device)

    unit.prepare_metric_bag(metric_bag)
    unit.set_train_step_nr(7)

    for batch in BATCHES:
        unit.process_batch(create_batch(*batch), metric_bag)

    unit.finalize(metric_bag)

    values: dict[str, object] = {}

    unit.process_metric_values(values)

    return values, metric_bag


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is logged."""
    messages: list[str] = []

    class Handler(logging.Handler):
        @override
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    logger = logging.getLogger("fairseq2")

    # Restored by the fixture of all tests.
    logger.addHandler(Handler())
    logger.setLevel(logging.INFO)

    return messages


class TestTranslationValidUnit:
    def test_unit_scores_all_outputs_in_order_of_corpus(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls = []

        def score(hypotheses: Any, references: Any, **kwargs: Any) -> Any:
            calls.append((hypotheses, references, kwargs))

            return score_translations(hypotheses, references, **kwargs)

        monkeypatch.setattr(validation, "score_translations", score)

        values, metric_bag = run(create_unit(FakeCriterion()))

        [(hypotheses, references, kwargs)] = calls

        assert hypotheses == ["w5", "w7 w7 w7 w6", "w5 w6 w7 w5 w6"]
        assert references == [["w6"], ["w7 w7 w7 w7"], ["w5 w6 w7 w5 w6"]]
        assert kwargs == {
            "sources": ["source 0", "source 1", "source 2"],
            "num_bootstrap": 0,
            "metrics": ("bleu", "chrf"),
            "options": MetricOptions(target_lang="de"),
        }

        bleu, chrf = score_translations(hypotheses, references, num_bootstrap=0)

        assert values == {"bleu": bleu.score, "chrf": chrf.score}

        # Sources 6, 5, 2; of the targets BOS is not predicted: 6, 5, 2.
        assert metric_bag.get("num_examples", Sum).compute() == 3
        assert metric_bag.get("num_source_elements", Sum).compute() == 13
        assert metric_bag.get("num_target_elements", Sum).compute() == 13
        assert metric_bag.get("warmup_k", Mean).compute() == 2.0

    def test_second_validation_starts_anew(self) -> None:
        unit = create_unit(FakeCriterion())

        assert run(unit)[0] == run(unit)[0]

    def test_unit_shows_warmups_with_weights(self, messages: list[str]) -> None:
        criterion = FakeCriterion()

        run(create_unit(criterion))

        # The first two lines of the file are in the second batch.
        assert criterion.asked == [[], [0, 1]]

        [shown] = [m for m in messages if m.startswith("Sample outputs")]

        assert shown.splitlines()[:7] == [
            "Sample outputs of dev at step 7:",
            "source:    source 0",
            "reference: w6",
            "warmup:    '' (weight 0.750, log P(c|x) -2.00, log P(y|c,x) -4.00)",
            "warmup:    'w5' (weight 0.250, log P(c|x) -1.00, log P(y|c,x) -3.00)",
            "output:    w5",
            "",
        ]

        assert "source:    source 1\n" in shown
        assert "source 2" not in shown

    def test_unit_shows_outputs_of_criterion_without_warmups(
        self, messages: list[str]
    ) -> None:
        class Plain(FakeCriterion):
            @override
            def evaluate(
                self,
                batch: Seq2SeqBatch,
                metric_bag: MetricBag,
                *,
                step_nr: int,
                shown: Sequence[int],
            ) -> list[list[WeighedWarmup]]:
                return []

        run(create_unit(Plain(), num_shown=3))

        [shown] = [m for m in messages if m.startswith("Sample outputs")]

        assert shown.split("\n\n")[0].splitlines()[1:] == [
            "source:    source 0",
            "reference: w6",
            "output:    w5",
        ]

        assert shown.count("source:    ") == shown.count("output:    ") == 3
        assert "warmup" not in shown

    def test_signatures_are_told_once(self, messages: list[str]) -> None:
        unit = create_unit(FakeCriterion())

        run(unit)
        run(unit)

        [told] = [m for m in messages if m.startswith("Scores of dev: ")]

        assert "BLEU (nrefs:1|" in told and ", chrF2++ (nrefs:1|" in told

        # The scores themselves are among the metrics of fairseq2's own line.
        assert not any(" at step 7: " in m for m in messages)

    def test_criterion_is_told_step(self) -> None:
        criterion = FakeCriterion()

        run(create_unit(criterion))

        assert criterion.steps == [7, 7]

    def test_unit_shows_nothing_when_not_asked_to(self, messages: list[str]) -> None:
        run(create_unit(FakeCriterion(), num_shown=0))

        assert not any("Sample outputs" in m for m in messages)

    def test_other_ranks_neither_show_nor_score(self, messages: list[str]) -> None:
        values, _ = run(create_unit(FakeCriterion(), rank=1))

        assert values == {}
        assert messages == []

    def test_init_raises_error_when_language_cannot_be_scored(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # As if MeCab were not installed; makes its import raise `ImportError`.
        monkeypatch.setitem(sys.modules, "MeCab", None)
        monkeypatch.delitem(
            sys.modules, "sacrebleu.tokenizers.tokenizer_ja_mecab", raising=False
        )

        with pytest.raises(WarmupError, match=r"language ja .*'sacrebleu\[ja\]'"):
            create_unit(FakeCriterion(), options=MetricOptions(target_lang="ja"))

    def test_init_raises_error_when_reference_is_no_label(self) -> None:
        def create(references: Sequence[Sequence[str]]) -> None:
            create_unit(
                FakeCriterion(),
                metrics=["accuracy"],
                options=MetricOptions(labels=["A", "B"]),
                references=references,
            )

        create([["A"], [" B"]])

        with pytest.raises(WarmupError, match="^Reference 2 is `C`, which is none"):
            create([["A"], ["C"]])

    def test_unit_has_name(self) -> None:
        assert create_unit(FakeCriterion()).name == "dev"


def test_gather_objects_of_one_process_needs_no_network() -> None:
    item = object()

    assert gather_objects(FakeGang(device), item) == [item]


def test_unit_scores_by_given_metrics(messages: list[str]) -> None:
    unit = create_unit(FakeCriterion(), num_shown=0, metrics=["ter", "rouge"])

    values, _ = run(unit)

    assert list(values) == ["ter", "rouge1", "rouge2", "rougeL", "rougeLsum"]

    assert any("ROUGE-L (" in message for message in messages)


def test_unit_asks_one_worker_of_comet_in_all_validations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    install_comet_worker(tmp_path, monkeypatch)

    with CometWorkers() as workers:
        options = MetricOptions(
            comet_model=write_comet_model(tmp_path), comet_workers=workers
        )

        unit = create_unit(
            FakeCriterion(), num_shown=0, metrics=["comet"], options=options
        )

        # Not only at the first validation, which may be hours away.
        assert (tmp_path / "starts").read_text() == "x"

        # Output and source of 2 and 8 characters and so on; see the worker.
        expected = (2 / 110 + 11 / 119 + 14 / 122) / 3

        for _ in range(2):
            assert run(unit)[0] == {"comet": pytest.approx(expected)}

        assert (tmp_path / "starts").read_text() == "x"

    assert any("COMET (nrefs:1|model:tiny-comet|" in message for message in messages)


class RecordingGenerator(FakeGenerator):
    """Repeats the source, and notes the template tokens of each."""

    def __init__(self) -> None:
        self.num_template_tokens: list[int] = []

    def __call__(
        self,
        source_seqs: Tensor,
        source_seq_lens: list[int],
        prefixes: Tensor,
        *,
        num_template_tokens: Sequence[int] = (),
    ) -> list[list[Hypothesis]]:
        self.num_template_tokens += num_template_tokens

        return super().__call__(source_seqs, source_seq_lens, prefixes)


class TestDirections:
    def run(self, generator: FakeGenerator, num_shown: int = 1) -> dict[str, object]:
        unit = self.create_unit(
            lambda max_warmup_len: cast(WarmupGenerator, generator), num_shown=num_shown
        )

        return self.run_unit(unit)

    def create_unit(
        self,
        create_generator: Callable[[int | None], WarmupGenerator],
        *,
        criterion: Criterion | None = None,
        num_shown: int = 1,
    ) -> TranslationValidUnit:
        return TranslationValidUnit(
            "dev",
            criterion or FakeCriterion(),
            create_generator,
            FakeCodec(create_layout(), "<sep>"),
            create_gangs(),
            num_shown=num_shown,
            options=MetricOptions(target_lang="xx"),
            directions={
                "en-de": ValidDirection(target_lang="de", num_template_tokens=3),
                "de-zh": ValidDirection(target_lang="zh", num_template_tokens=5),
            },
        )

    def run_unit(
        self, unit: TranslationValidUnit, step_nr: int = 0
    ) -> dict[str, object]:
        metric_bag = MetricBag(device)

        unit.prepare_metric_bag(metric_bag)

        unit.set_train_step_nr(step_nr)

        for names, batch in zip((["de-zh"], ["en-de", "de-zh"]), BATCHES):
            seq2seq_batch = create_batch(*batch)

            cast("dict[str, Any]", seq2seq_batch.example)["directions"] = names

            unit.process_batch(seq2seq_batch, metric_bag)

        unit.finalize(metric_bag)

        values: dict[str, object] = {}

        unit.process_metric_values(values)

        return values

    def test_each_is_scored_by_itself_in_its_language(
        self, messages: list[str]
    ) -> None:
        generator = RecordingGenerator()

        values = self.run(generator)

        de = score_translations(
            ["w7 w7 w7 w6"],
            ["w7 w7 w7 w7"],
            options=MetricOptions(target_lang="de"),
            num_bootstrap=0,
        )

        zh = score_translations(
            ["w5", "w5 w6 w7 w5 w6"],
            ["w6", "w5 w6 w7 w5 w6"],
            options=MetricOptions(target_lang="zh"),
            num_bootstrap=0,
        )

        for n, key in enumerate(("bleu", "chrf")):
            scores = [cast(float, de[n].score), cast(float, zh[n].score)]

            assert values[f"{key}_en-de"] == pytest.approx(scores[0], abs=1e-4)
            assert values[f"{key}_de-zh"] == pytest.approx(scores[1], abs=1e-4)
            assert values[key] == pytest.approx(sum(scores) / 2)

        assert len(values) == 6

        [told] = [m for m in messages if m.startswith("Scores of dev: ")]

        assert re.search(r"de-zh BLEU \([^)]*tok:zh", told)
        assert re.search(r"en-de BLEU \([^)]*tok:13a", told)

        # As the prompt of each.
        assert generator.num_template_tokens == [5, 3, 5]

    def test_each_is_decoded_with_warmups_of_its_length(self) -> None:
        class Curriculum(FakeCriterion):
            @override
            def get_max_warmup_len(
                self, step_nr: int, direction: str | None
            ) -> int | None:
                # Plain, and a curriculum.
                return None if direction == "en-de" else 10 - step_nr

        decoded: list[tuple[int | None, list[list[int]], list[int]]] = []

        created: list[int | None] = []

        class Generator(RecordingGenerator):
            def __init__(self, max_warmup_len: int | None) -> None:
                super().__init__()

                self.max_warmup_len = max_warmup_len

                created.append(max_warmup_len)

            def __call__(
                self,
                source_seqs: Tensor,
                source_seq_lens: list[int],
                prefixes: Tensor,
                *,
                num_template_tokens: Sequence[int] = (),
            ) -> list[list[Hypothesis]]:
                decoded.append(
                    (
                        self.max_warmup_len,
                        source_seqs.tolist(),
                        list(num_template_tokens),
                    )
                )

                return super().__call__(source_seqs, source_seq_lens, prefixes)

        values = []

        for step_nr in (7, 8):
            decoded.clear()

            unit = self.create_unit(
                lambda n: cast(WarmupGenerator, Generator(n)), criterion=Curriculum()
            )

            values.append(self.run_unit(unit, step_nr=step_nr))

            # Padded no more than they need to be; the outputs are in their places.
            assert decoded == [
                (10 - step_nr, [[5, 6, 7, 5, 6, EOS_IDX]], [5]),
                (None, [[7, 7, 7, 6, EOS_IDX]], [3]),
                (10 - step_nr, [[5, EOS_IDX]], [5]),
            ]

        # Once a validation for each length.
        assert created == [3, None, 2, None]

        assert values[0] == values[1] == self.run(RecordingGenerator())

    def test_first_lines_of_each_are_shown(self, messages: list[str]) -> None:
        self.run(RecordingGenerator(), num_shown=2)

        [shown] = [m for m in messages if m.startswith("Sample outputs")]

        _, _, shown = shown.partition("\n")

        assert [text.splitlines()[:2] for text in shown.split("\n\n")] == [
            ["direction: de-zh", "source:    source 0"],
            ["direction: en-de", "source:    source 1"],
        ]
