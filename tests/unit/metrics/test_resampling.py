# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER
from sacrebleu.significance import PairedTest, Result

from tests.unit.metrics.texts import make_hypotheses, make_references
from warmup_plugin.errors import WarmupError
from warmup_plugin.metrics import resampling
from warmup_plugin.metrics.base import Measurement, measure_mean
from warmup_plugin.metrics.labels import MacroF1Metric
from warmup_plugin.metrics.registry import METRICS, MetricOptions
from warmup_plugin.metrics.resampling import (
    DEFAULT_SEED,
    bootstrap_interval,
    bootstrap_p_value,
    randomization_p_values_of_groups,
    resample_scores,
    sign_with_test,
)
from warmup_plugin.metrics.translation import evaluate_systems

_REFERENCES = make_references()

# Close enough for p-values between 0 and 1.
_SYSTEMS = [
    make_hypotheses(_REFERENCES, rate, seed) for rate, seed in ((0.3, 2), (0.26, 3))
]


def _measure(name: str) -> list[Measurement]:
    metric = METRICS[name].create(MetricOptions())

    return [m for [m] in metric.measure(_SYSTEMS, [[r] for r in _REFERENCES], None)]


def _mean(*scores: float) -> Measurement:
    return measure_mean("x", "X", scores, "nrefs:1|x:y")


def randomization_p_values(
    baselines: Sequence[Measurement],
    systems: Sequence[Measurement],
    num_trials: int,
    *,
    seed: int = DEFAULT_SEED,
) -> list[float]:
    """Tests each system by itself."""
    groups = [[pair] for pair in zip(baselines, systems, strict=True)]

    return randomization_p_values_of_groups(groups, num_trials, seed=seed)


class TestPairedTests:
    @pytest.mark.parametrize("test,num_samples", [("bs", 300), ("ar", 500)])
    def test_p_values_are_those_of_sacrebleu(
        self, test: str, num_samples: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SACREBLEU_SEED", "7")

        signatures, results = PairedTest(
            [("a", _SYSTEMS[0]), ("b", _SYSTEMS[1])],
            {"BLEU": BLEU(), "chrF2++": CHRF(word_order=2), "TER": TER()},
            references=[_REFERENCES],
            test_type=test,
            n_samples=num_samples,
        )()

        for name in ("bleu", "chrf", "ter"):
            baseline, system = _measure(name)

            result = results[system.name][1]

            assert isinstance(result, Result) and result.p_value is not None

            if test == "bs":
                samples = resample_scores([baseline, system], num_samples, seed=7)

                p_value = bootstrap_p_value(baseline, system, *samples)
            else:
                [p_value] = randomization_p_values(
                    [baseline], [system], num_samples, seed=7
                )

            # Neither is a bound.
            assert 1 / (num_samples + 1) < p_value < 1

            if (test, name) == ("ar", "ter"):
                # Edits are few and whole: many trials differ by just as much, which
                # sacreBLEU does not count.
                assert p_value > result.p_value
            else:
                assert p_value == pytest.approx(result.p_value)

            assert sign_with_test(system.signature, test, num_samples, 7) == str(
                signatures[system.name]
            )

    def test_blocks_draw_what_one_draw_would(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        baseline, system = _measure("chrf")

        def compute() -> tuple[list[float], list[float]]:
            [scores] = resample_scores([system], 150)

            return scores.tolist(), randomization_p_values([baseline], [system], 150)

        expected = compute()

        # Blocks of 32 resamples.
        monkeypatch.setattr(resampling, "_BLOCK_SIZE", 1)

        assert compute() == expected


class TestResampleScores:
    def test_scores_are_those_of_resampled_corpora(self) -> None:
        [scores] = resample_scores([_measure("bleu")[0]], 5, seed=3)

        rng = np.random.default_rng(3)

        for score in scores:
            drawn = rng.integers(len(_REFERENCES), size=len(_REFERENCES))

            corpus = BLEU().corpus_score(
                [_SYSTEMS[0][n] for n in drawn], [[_REFERENCES[n] for n in drawn]]
            )

            assert score == pytest.approx(corpus.score)

    def test_measurements_share_their_resamples(self) -> None:
        first, second = resample_scores([_mean(1, 2, 3), _mean(2, 4, 6)], 10)

        assert second == pytest.approx(2 * first)
        assert len(set(first)) > 1

    def test_interval_of_mean_has_width_of_theory(self) -> None:
        values = np.random.default_rng(0).normal(size=400)

        [scores] = resample_scores([_mean(*values)], 2000)

        low, high = bootstrap_interval(scores)

        # 1.96 standard errors on each side.
        assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
        assert low < values.mean() < high

    def test_interval_is_of_percentiles(self) -> None:
        scores = np.arange(1001, dtype=np.float64)

        assert bootstrap_interval(scores) == (25.0, 975.0)


class TestBootstrapPValue:
    def test_system_does_not_differ_from_itself(self) -> None:
        system = _mean(1, 5, 2)

        samples = resample_scores([system, system], 20)

        assert bootstrap_p_value(system, system, *samples) == 1.0

    def test_systems_of_equal_score_do_not_differ(self) -> None:
        baseline, system = _mean(1, 5, 2), _mean(2, 1, 5)

        samples = resample_scores([baseline, system], 20)

        assert bootstrap_p_value(baseline, system, *samples) == 1.0

    def test_call_counts_differences_above_their_mean(self) -> None:
        # Observed: 2. Absolute differences 0, 4, 1, 3 around their mean of 2: only
        # 4 lies at least 2 above it. (1 + 1) / (4 + 1)
        p_value = bootstrap_p_value(
            _mean(1, 1), _mean(3, 3), np.zeros(4), np.array([0.0, 4.0, -1.0, 3.0])
        )

        assert p_value == pytest.approx(2 / 5)


class TestRandomizationPValues:
    def test_p_value_approaches_that_of_all_swaps(self) -> None:
        baseline = _mean(1, 5, 2, 8, 3, 3, 7, 1)
        system = _mean(3, 6, 1, 9, 5, 4, 7, 6)

        gains = system.stats[:, 0] - baseline.stats[:, 0]

        differences = [
            abs(np.dot(signs, gains)) for signs in product((-1, 1), repeat=8)
        ]

        expected = np.mean(np.array(differences) >= abs(gains.sum()))

        assert 0.01 < expected < 0.2

        [p_value] = randomization_p_values([baseline], [system], 20_000)

        # Four standard deviations.
        margin = 4 * (expected * (1 - expected) / 20_000) ** 0.5

        assert p_value == pytest.approx(expected, abs=margin)

    def test_system_does_not_differ_from_itself(self) -> None:
        system = _mean(0.1, 0.2, 0.3)

        assert randomization_p_values([system], [system], 20) == [1.0]

    @pytest.mark.parametrize("gains", [[1.0], [0.3, 0.3]])
    def test_few_differing_sentences_prove_nothing(self, gains: list[float]) -> None:
        # With one, every swap is as extreme as what was observed; with two, half.
        zeros = [0.1] * 30

        baseline = _mean(*zeros, *[0.0] * len(gains))

        [p_value] = randomization_p_values([baseline], [_mean(*zeros, *gains)], 1000)

        assert p_value == pytest.approx(1.0 if len(gains) == 1 else 0.5, abs=0.06)

    def test_clear_difference_is_significant(self) -> None:
        p_values = randomization_p_values(
            [_mean(*[0.0] * 30), _mean(*[0.0] * 30)],
            [_mean(*[1.0] * 30), _mean(*[1.0] * 15, *[-1.0] * 15)],
            200,
        )

        # No trial swaps none or all of 30; the other system gains nothing in sum.
        assert p_values == [1 / 201, 1.0]

    def test_macro_f1_is_tested_from_its_pairs(self) -> None:
        # Not a mean of sentences: brute force over the swaps of answers.
        gold = list("AABBCABCCA")

        answers = list("ABBBCAAACA"), list("BACACCBCBA")

        def compute(system: Sequence[str]) -> float:
            scores = []

            for label in "ABC":
                right = sum(g == a == label for g, a in zip(gold, system))

                scores.append(
                    200 * right / (gold.count(label) + list(system).count(label))
                )

            return sum(scores) / 3

        observed = abs(compute(answers[0]) - compute(answers[1]))

        differences = []

        for keeps in product((True, False), repeat=len(gold)):
            pairs = [(a, b) if keep else (b, a) for keep, a, b in zip(keeps, *answers)]

            first, second = zip(*pairs)

            differences.append(abs(compute(first) - compute(second)))

        expected = np.mean(np.array(differences) >= observed - 1e-9)

        assert 0.1 < expected < 0.9

        metric = MacroF1Metric(["A", "B", "C"])

        baseline, system = (
            metric.measure_one(a, [[g] for g in gold])[0] for a in answers
        )

        [p_value] = randomization_p_values([baseline], [system], 10_000)

        assert p_value == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("seed", [0, -1])
def test_seeds_below_one_are_refused(seed: int) -> None:
    with pytest.raises(WarmupError, match="`seed` must be"):
        resample_scores([_mean(1, 2)], 5, seed=seed)

    with pytest.raises(WarmupError, match="`seed` must be"):
        randomization_p_values([_mean(1, 2)], [_mean(2, 3)], 5, seed=seed)


def test_resampling_needs_samples() -> None:
    with pytest.raises(WarmupError, match="`num_samples` must be"):
        resample_scores([_mean(1, 2)], 0)

    with pytest.raises(WarmupError, match="`num_trials` must be"):
        randomization_p_values([_mean(1, 2)], [_mean(2, 3)], 0)


def _test_group(
    group: Sequence[tuple[Measurement, Measurement]], num_trials: int
) -> float:
    [p_value] = randomization_p_values_of_groups([group], num_trials)

    return p_value


def make_measurements(*rates: float, key: str = "chrf") -> list[Measurement]:
    systems = {
        str(idx): make_hypotheses(_REFERENCES, rate, idx)
        for idx, rate in enumerate(rates)
    }

    evaluation = evaluate_systems(systems, _REFERENCES, metrics=[key], num_bootstrap=0)

    return [evaluation.measurements[name][key] for name in systems]


class TestGroups:
    @pytest.mark.parametrize("key", ["bleu", "chrf"])
    def test_one_training_is_tested_as_compare_does(self, key: str) -> None:
        baseline, system = make_measurements(0.30, 0.25, key=key)

        evaluation = evaluate_systems(
            {
                str(idx): make_hypotheses(_REFERENCES, rate, idx)
                for idx, rate in enumerate((0.30, 0.25))
            },
            _REFERENCES,
            metrics=[key],
            num_bootstrap=1,
            num_randomization=2000,
        )

        [comparison] = evaluation.comparisons

        assert comparison.p_value < 0.9
        assert _test_group([(baseline, system)], 2000) == comparison.p_value

    def test_same_outputs_again_are_no_more_evidence(self) -> None:
        baseline, system = make_measurements(0.30, 0.25)

        once = _test_group([(baseline, system)], 2000)

        assert _test_group([(baseline, system)] * 3, 2000) == once

    def test_opposite_trainings_cancel(self) -> None:
        a, b = make_measurements(0.4, 0.2)

        assert _test_group([(a, b)], 500) < 0.01
        assert _test_group([(a, b), (b, a)], 500) == 1.0

    def test_line_is_swapped_in_all_test_sets_at_once(self) -> None:
        # Of four and of two sentences; the mean of each counts half.
        first, second = [0.4, -0.1, 0.3, 0.2], [0.5, -0.2]

        group = [
            (_mean(*[0.0] * len(gains)), _mean(*gains)) for gains in (first, second)
        ]

        def measure(signs: Sequence[float]) -> float:
            means = [
                statistics.fmean(sign * gain for sign, gain in zip(signs, gains))
                for gains in (first, second)
            ]

            return abs(statistics.fmean(means))

        every_sign = list(product((1.0, -1.0), repeat=4))

        observed = measure([1.0] * 4) - 1e-9

        exact = statistics.fmean(measure(signs) >= observed for signs in every_sign)

        # With swaps of their own in each of them, 0.34.
        assert exact == 0.625

        assert _test_group(group, 10_000) == pytest.approx(exact, abs=0.02)

    def test_chance_is_rarely_significant(self) -> None:
        rng = np.random.default_rng(1)

        num_sentences, num_seeds, num_pairs = 60, 3, 300

        together, apart = [], []

        for _ in range(num_pairs):
            # What a sentence gains is alike in all trainings, and 0 on average.
            shared = rng.normal(size=num_sentences)

            gains = [
                shared + 0.5 * rng.normal(size=num_sentences) for _ in range(num_seeds)
            ]

            zeros = measure_mean("x", "x", [0.0] * num_sentences, "")

            systems = [measure_mean("x", "x", gain.tolist(), "") for gain in gains]

            p = _test_group([(zeros, system) for system in systems], 200)

            together.append(p < 0.05)

            joined = measure_mean("x", "x", np.concatenate(gains).tolist(), "")

            many = measure_mean("x", "x", [0.0] * num_sentences * num_seeds, "")

            apart.append(_test_group([(many, joined)], 200) < 0.05)

        assert 0.02 < statistics.fmean(together) < 0.09

        # As if three trainings were three times as many sentences.
        assert statistics.fmean(apart) > 0.15
