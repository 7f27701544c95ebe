# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""What can be checked of the benchmarks without a clock; and that they run."""

from __future__ import annotations

import json
import signal
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from scripts import (
    bench_corpus,
    bench_generate,
    bench_growth,
    bench_sampling,
    bench_startup,
    bench_step,
    generation_systems,
    system_process,
)
from scripts.bench_common import (
    BOS_IDX,
    EOS_IDX,
    PAD_IDX,
    ROOT,
    SEPARATOR_IDX,
    Setting,
    create_batch,
    create_layout,
    create_model,
    format_table,
    get_clock,
    measure_alternating,
    measure_drawn_lens,
)
from scripts.bench_step import Measurement, list_bars
from scripts.step_phases import PhaseTimer, profile_step
from scripts.step_settings import SETTINGS, predict_multiple
from scripts.step_variants import (
    WARMUP_VARIANTS,
    create_step,
)
from tests.common import assert_close, assert_equal, device
from warmup_plugin.criteria.base import num_target_tokens
from warmup_plugin.errors import WarmupError
from warmup_plugin.models import int8
from warmup_plugin.models.scorable import create_conditional_model
from warmup_plugin.models.t5 import T5Decoder
from warmup_plugin.sampling import draw_candidates

TINY = Setting(
    name="tiny",
    model_dim=16,
    num_layers=1,
    num_heads=2,
    vocab_size=2000,
    source_len=10,
    target_len=10,
    warmup_len=4,
    num_warmups=3,
)

TINY_LLAMA = replace(TINY, name="tiny-llama", family="llama")


@pytest.fixture(autouse=True)
def restored_threads() -> Iterator[None]:
    num_threads = torch.get_num_threads()

    yield

    torch.set_num_threads(num_threads)


class TestPredictMultiple:
    def test_decoder_only_model_has_no_cross_attention(self) -> None:
        setting = SETTINGS["llama-captions"]

        # By hand: a layer of 12 · 128² four times, and 6,000 · 128 for what is written.
        encode = 17 * 4 * 12 * 128**2
        token = 4 * 12 * 128**2 + 6000 * 128

        sft = 3 * (encode + 17 * token)
        step = 4 * encode + 4 * (9 + 17) * token + 3 * (9 + 17) * token

        assert predict_multiple(setting, 1) == pytest.approx(step / sft)

        # Forward, forward again, and backward.
        step += encode + (9 + 17) * token

        multiple = predict_multiple(setting, 1, checkpoints_activations=True)

        assert multiple == pytest.approx(step / (4 / 3 * sft))

    # The table of the design; each column of it counts something else.
    @pytest.mark.parametrize(
        "name,keep_1,keep_2,keep_all,repeated",
        [
            ("captions", 2.96, 4.07, 5.33, 6.42),
            ("sentence", 2.32, 3.07, 3.80, 5.49),
            ("t5-base", 2.18, 2.86, 3.48, 5.26),
            ("mt5-base", 2.47, 3.39, 4.22, 5.23),
            ("summarization", 1.57, 1.76, 1.93, 5.35),
        ],
    )
    def test_call_reproduces_table(
        self, name: str, keep_1: float, keep_2: float, keep_all: float, repeated: float
    ) -> None:
        setting = SETTINGS[name]

        multiples = [
            predict_multiple(setting, 1),
            predict_multiple(setting, 2),
            predict_multiple(setting, None, weighs=False),
            predict_multiple(setting, None, weighs=False, source_repeated=True),
        ]

        expected = [keep_1, keep_2, keep_all, repeated]

        assert [round(multiple, 2) for multiple in multiples] == expected

    def test_weighing_is_forward_over_targets(self) -> None:
        setting = SETTINGS["captions"]

        # By hand: 2 layers of 14 · 128², and 6,000 · 128 for what is written.
        token = 2 * 14 * 128**2 + 6000 * 128

        sft = 3 * 17 * (2 * 14 * 128**2 + token)

        weighing = predict_multiple(setting, None) - predict_multiple(
            setting, None, weighs=False
        )

        assert weighing == pytest.approx(4 * 17 * token / sft)

    def test_shared_encoder_is_called_once(self) -> None:
        setting = SETTINGS["summarization"]

        # By hand: a layer of 12 · 256² six times, one of 14 · 256² six times, of which
        # keys and values of a source 2 · 256², and 8,000 · 256 for what is written.
        encoder = 512 * 6 * 12 * 256**2
        states = 512 * 6 * 2 * 256**2
        token = 6 * 14 * 256**2 + 8000 * 256

        sft = 3 * (encoder + states + 64 * token)
        step = 3 * encoder + 4 * states
        step += 4 * (17 + 64) * token + 3 * (17 + 64) * token

        multiple = predict_multiple(setting, 1, shares_encoder=True)

        assert multiple == pytest.approx(step / sft)


class TestCreateBatch:
    def test_call_varies_lengths_around_mean(self) -> None:
        batch = create_batch(TINY, 2000, device)

        sources, targets = batch.source_seq_lens, batch.target_seq_lens

        assert sources is not None and targets is not None

        assert (min(sources), max(sources)) == (7, 13)

        # BOS, which nobody predicts, comes on top.
        assert (min(targets), max(targets)) == (8, 14)

        assert num_target_tokens(batch) == pytest.approx(2000, rel=0.05)

    def test_call_fills_rows_with_words(self) -> None:
        batch = create_batch(TINY, 100, device)

        assert batch.target_seq_lens is not None

        for seq, length in zip(batch.target_seqs.tolist(), batch.target_seq_lens):
            assert seq[0] == BOS_IDX

            assert min(seq[1 : length - 1]) > SEPARATOR_IDX

            assert seq[length - 1] == EOS_IDX

            assert set(seq[length:]) <= {PAD_IDX}

    def test_call_returns_the_same_again(self) -> None:
        first, second = (create_batch(TINY, 100, device) for _ in range(2))

        assert_equal(first.source_seqs, second.source_seqs)


class TestMeasureDrawnLens:
    def test_call_finds_first_separator(self) -> None:
        warmups = torch.tensor(
            [[7, SEPARATOR_IDX, SEPARATOR_IDX], [SEPARATOR_IDX, 7, 7], [7, 8, 9]]
        )

        lens, ended = measure_drawn_lens(warmups)

        assert_equal(lens, [1, 0, 3])
        assert_equal(ended, [True, True, False])


class TestMeasureAlternating:
    def test_call_takes_turns_and_drops_first_round(self) -> None:
        calls: list[str] = []

        clock = SimpleNamespace(now=0.0)

        def run(name: str, seconds: float) -> None:
            # As a first call does, the first takes longer.
            clock.now += seconds if name in calls else 10.0 * seconds

            calls.append(name)

        def between() -> None:
            clock.now += 100.0

            calls.append("between")

        times = measure_alternating(
            {"a": lambda: run("a", 1.0), "b": lambda: run("b", 2.0)},
            device,
            num_rounds=2,
            between=between,
            clock=lambda: clock.now,
        )

        assert calls == ["between", "a", "between", "b"] * 3

        assert times == {"a": [1.0, 1.0], "b": [2.0, 2.0]}

    def test_time_of_the_cpu_is_not_that_of_a_gpu(self) -> None:
        with pytest.raises(WarmupError, match="`--clock` is `cpu`, but a GPU"):
            get_clock(SimpleNamespace(device="cuda", clock="cpu"))  # type: ignore[arg-type]


class TestFormatTable:
    def test_call_aligns_columns(self) -> None:
        table = format_table(["step", "s"], [["a", "10.0"], ["long name", "2.0"]])

        assert table.splitlines() == [
            "step          s",
            "---------------",
            "a          10.0",
            "long name   2.0",
        ]


def create_measurements(**seconds: float) -> dict[str, Measurement]:
    """Creates measurements of steps, ``_`` in their names for ``-``."""
    measurements = {
        name.replace("_", "-"): Measurement([value], predicted=2.0)
        for name, value in seconds.items()
    }

    for name, measurement in measurements.items():
        baseline = "hf-sft" if name.startswith("hf") else "sft"

        measurement.baseline = measurements.get(baseline)

    return measurements


class TestListBars:
    @pytest.mark.parametrize("seconds,met", [(2.4, True), (2.6, False)])
    def test_call_asks_for_predicted_multiple(self, seconds: float, met: bool) -> None:
        measurements = create_measurements(sft=1.0, marginal_2=seconds)

        (bar,) = list_bars("captions", "marginal-2", measurements)

        assert (bar.text, bar.met) == ("<= 2.50 x", met)

    @pytest.mark.parametrize("seconds,met", [(7.1, True), (7.3, False)])
    def test_call_asks_for_named_multiple(self, seconds: float, met: bool) -> None:
        measurements = create_measurements(sft=2.0, marginal_1=seconds)

        (bar,) = list_bars("captions", "marginal-1", measurements)

        assert (bar.text, bar.met) == ("<= 3.60 x", met)

    @pytest.mark.parametrize("peak_bytes,met", [(149, True), (151, False)])
    def test_call_asks_for_memory(self, peak_bytes: int, met: bool) -> None:
        measurements = create_measurements(sft=1.0, marginal_all=1.0)

        measurements["sft"].peak_bytes = 100
        measurements["marginal-all"].peak_bytes = peak_bytes

        bars = list_bars("mt5-vocab", "marginal-all", measurements)

        assert [bar.met for bar in bars] == [True, met]

    def test_call_compares_seconds_and_multiples_of_transformers(self) -> None:
        # Twice the seconds of ours, but less than twice the multiple: 5 / 2.5 of its
        # own SFT step, and 2.5 of ours.
        measurements = create_measurements(
            sft=1.0, marginal_1=2.5, hf_sft=2.5, hf_warmup=5.0
        )

        bars = list_bars("captions", "hf-warmup", measurements)

        assert [bar.met for bar in bars] == [True, False]

    def test_call_asks_nothing_of_sft_and_without_it(self) -> None:
        measurements = create_measurements(sft=1.0)

        assert list_bars("captions", "sft", measurements) == []

        measurements = create_measurements(marginal_1=1.0)

        assert list_bars("captions", "marginal-1", measurements) == []


def compute_grads(name: str, setting: Setting = TINY, **options: Any) -> torch.Tensor:
    """Computes the gradients of a step without dropout, as one vector."""
    batch = create_batch(setting, 100, device)

    step = create_step(name, setting, batch, device, torch.float32, **options)

    step.module.eval()

    torch.manual_seed(0)

    step()

    grads = [p.grad for p in step.module.parameters() if p.grad is not None]

    return torch.cat([grad.flatten() for grad in grads])


class TestCreateStep:
    def test_plain_computes_what_criterion_computes(self) -> None:
        plain, ours = compute_grads("plain"), compute_grads("marginal-all")

        # Not quite: the criterion leaves four tokens out of P(c|x).
        assert (plain - ours).norm() < 0.01 * ours.norm()

    @pytest.mark.parametrize("setting", [TINY, TINY_LLAMA], ids=lambda s: s.name)
    def test_sft_computes_what_fairseq2_computes(self, setting: Setting) -> None:
        theirs = compute_grads("fairseq2-sft", setting)
        ours = compute_grads("sft", setting)

        assert (theirs - ours).norm() < 1e-4 * ours.norm()

    @pytest.mark.parametrize("setting", [TINY, TINY_LLAMA], ids=lambda s: s.name)
    @pytest.mark.parametrize("name", ["sft", "fairseq2-sft", "marginal-1"])
    def test_gradients_do_not_depend_on_options(
        self, name: str, setting: Setting
    ) -> None:
        grads = compute_grads(name, setting)

        # What is recomputed is the same.
        again = compute_grads(name, setting, checkpoints_activations=True)

        assert (again - grads).norm() < 1e-4 * grads.norm()

        if name != "marginal-1":
            twice = compute_grads(name, setting, num_accumulate=2)

            assert (twice - 2 * grads).norm() < 1e-4 * grads.norm()

    @pytest.mark.parametrize("name", ["hf-sft", "hf-warmup"])
    def test_transformers_steps_compute_gradients(self, name: str) -> None:
        pytest.importorskip("transformers")

        grads = compute_grads(name)

        assert grads.isfinite().all() and grads.abs().sum() > 0

    def test_clear_deletes_gradients(self) -> None:
        batch = create_batch(TINY, 20, device)

        step = create_step("sft", TINY, batch, device, torch.float32)

        step()

        step.clear()

        assert all(p.grad is None for p in step.module.parameters())

    @pytest.mark.parametrize("name", ["captions", "t5-captions"])
    def test_untrained_model_writes_warmups_of_full_length(self, name: str) -> None:
        # What the prediction counts.
        setting = SETTINGS[name]

        model = create_model(setting, device).eval()

        assert isinstance(model.decoder, T5Decoder) == (setting.family == "t5")

        conditional = create_conditional_model(model)

        batch = create_batch(setting, 300, device)

        torch.manual_seed(0)

        with torch.no_grad():
            candidates = draw_candidates(
                conditional,
                conditional.encode(*batch.as_source_input()),
                create_layout(setting),
                batch.target_seqs[:, :1],
                num_warmups=setting.num_warmups,
                max_warmup_len=setting.warmup_len,
            )

        mean_len = candidates.seq_lens.float().mean()

        assert float(mean_len) > 0.95 * setting.warmup_len


class TestPhaseTimer:
    def test_measure_leaves_out_what_is_inside(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        times = iter([0.0, 1.0, 3.0, 3.0, 7.0, 10.0])

        monkeypatch.setattr(time, "perf_counter", lambda: next(times))

        timer = PhaseTimer(device)

        with timer.measure("rest"):
            with timer.measure("warmup::draw"):
                pass

            with timer.measure("warmup::draw"):
                pass

        # 2 and 4 seconds of 10.
        assert timer.seconds == {"draw": 6.0, "rest": 4.0}


class TestProfileStep:
    def test_call_finds_phases(self) -> None:
        batch = create_batch(TINY, 20, device)

        step = create_step("marginal-1", TINY, batch, device, torch.float32)

        seconds = profile_step(step, device)

        phases = {"encode", "draw", "weigh", "keep", "differentiate", "backward"}

        assert phases <= set(seconds)


class TestMain:
    def test_prints_table_and_json(self, capsys: pytest.CaptureFixture[str]) -> None:
        names = ["sft", *WARMUP_VARIANTS, "plain", "lora-sft", "lora-marginal-1"]

        args = ["--settings", "captions", "--num-tokens", "20", "--rounds", "1"]

        assert bench_step.main([*args, "--variants", ",".join(names)]) == 0

        lines = capsys.readouterr().out.splitlines()

        rows = [line.split() for line in lines if line.split()[:1]]

        assert [row[0] for row in rows if row[0] in names] == names

        record = json.loads(lines[-1])

        steps = record["settings"]["captions"]["steps"]

        assert list(steps) == names

        ours, sft = steps["marginal-1"], steps["sft"]

        assert ours["multiple"] == pytest.approx(ours["seconds"] / sft["seconds"])

        assert ours["ratio"] == pytest.approx(ours["multiple"] / 2.96, rel=0.01)

        # Rank 16 of all projections of two layers of 128 dimensions, of three each.
        num_trained = steps["lora-marginal-1"]["num_trained"]

        assert 0 < num_trained < 0.2 * ours["num_trained"] == 0.2 * sft["num_trained"]

    @pytest.mark.parametrize(
        "args,message",
        [
            ([], "divides the models among several processes; start it with `torchrun"),
            (["--memory"], "`--fsdp` measures times only"),
            (["--variants", "sft,plain"], "names `plain`, which one process computes"),
        ],
    )
    def test_division_needs_processes(
        self,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        args: list[str],
        message: str,
    ) -> None:
        monkeypatch.delenv("LOCAL_RANK", raising=False)

        assert bench_step.main(["--fsdp", "--variants", "sft", *args]) == 2

        assert message in capsys.readouterr().err

    def test_measures_memory_in_process_of_its_own(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        args = ["--settings", "captions", "--num-tokens", "300", "--rounds", "1"]

        assert bench_step.main([*args, "--variants", "sft", "--memory"]) == 0

        record = json.loads(capsys.readouterr().out.splitlines()[-1])

        peak_bytes = record["settings"]["captions"]["steps"]["sft"]["peak_bytes"]

        # At least the gradient of the embedding and the logits, far from the memory of
        # the whole process.
        num_logits = 300 * 6000

        assert 4 * num_logits < peak_bytes < 200 * 2**20

    @pytest.mark.parametrize(
        "args,message",
        [
            (["--settings", "captions,foo"], "`--settings` names `foo`"),
            (["--variants", "foo"], "`--variants` names `foo`"),
            (["--profile", "sft"], "`--profile` names `sft`"),
            (
                ["--settings", "llama-captions", "--variants", "sft,plain"],
                "names `plain`, which",
            ),
            (["--settings", "t5-base"], "`--allow-slow`"),
        ],
    )
    def test_refuses_bad_argument(
        self, args: list[str], message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert bench_step.main(args) == 2

        error = capsys.readouterr().err

        assert message in error and error.count("\n") == 1

    @pytest.mark.parametrize("rounds", ["0", "-1", "x"])
    def test_refuses_number_of_rounds(
        self, rounds: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit, match="2"):
            bench_step.main(["--rounds", rounds])

        assert f"must be a positive integer, but is {rounds}" in capsys.readouterr().err

    @pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPU")
    def test_refuses_missing_gpu(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert bench_step.main(["--device", "cuda"]) == 2

        assert "PyTorch finds no GPU" in capsys.readouterr().err

    def test_says_what_to_do_without_transformers(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        # How Python marks a module that cannot be imported.
        monkeypatch.setitem(sys.modules, "transformers", None)

        args = ["--settings", "captions", "--num-tokens", "20"]

        assert bench_step.main([*args, "--variants", "hf-sft"]) == 2

        error = capsys.readouterr().err

        assert "transformers is not installed" in error and error.count("\n") == 1


class TestSampling:
    def test_all_draw_warmups_of_the_same_length(self) -> None:
        pytest.importorskip("transformers")

        torch.manual_seed(0)

        draws = bench_sampling.create_draws(8, 0.5, device)

        mean_lens = [float(draw().float().mean()) for draw in draws.values()]

        # (1 - p) / p tokens; the standard error of 32 rows is 0.25.
        assert len(mean_lens) == 4

        assert mean_lens == pytest.approx([1.0] * 4, abs=0.8)

    def test_samplers_draw_from_the_same_distribution(self) -> None:
        torch.manual_seed(0)

        probs = torch.tensor([0.1, 0.0, 0.6, 0.3])

        logits = probs.log().expand(4000, 4).contiguous()

        samplers = bench_sampling.create_samplers(logits)

        samplers["inverse CDF"] = lambda: bench_sampling.InverseCdfSampler().sample(
            logits.softmax(dim=-1)
        )

        for sampler in samplers.values():
            shares = torch.bincount(sampler(), minlength=4) / 4000

            assert_close(shares, probs, rtol=0.0, atol=0.04)

            assert shares[1] == 0

    def test_main_prints_tables_and_json(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        pytest.importorskip("transformers")

        args = ["--sources", "1", "--end-prob", "0.5", "--rounds", "1"]

        assert bench_sampling.main([*args, "--vocab-sizes", "500"]) == 0

        lines = capsys.readouterr().out.splitlines()

        record = json.loads(lines[-1])

        for name in (*record["draw_times"], *record["sampler_times"]["500"]):
            assert any(line.startswith(name) for line in lines)

    @pytest.mark.parametrize("end_prob", ["0", "1", "x"])
    def test_main_refuses_probability(
        self, end_prob: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit, match="2"):
            bench_sampling.main(["--end-prob", end_prob])

        assert "must be between 0 and 1" in capsys.readouterr().err


class TestBenchGenerate:
    def test_systems_write_the_same(self) -> None:
        job = generation_systems.create_random_job(TINY, 5)

        outputs = [
            generation_systems.create_system(name, job, device, 1, 1)(job.sources)
            for name in generation_systems.PLAIN_SYSTEMS
            if name not in generation_systems.INT8_SYSTEMS
        ]

        assert all(len(output) == job.fixed_len for output in outputs[0])

        assert outputs[0] == outputs[1] == outputs[2]

    @pytest.mark.parametrize("name", generation_systems.WARMUP_SYSTEMS)
    def test_outputs_behind_warmups_are_as_long(self, name: str) -> None:
        job = generation_systems.create_random_job(TINY, 5)

        outputs = generation_systems.create_system(name, job, device, 1, 1)(job.sources)

        assert [len(output) for output in outputs] == [job.fixed_len] * 5

    def test_systems_of_8_bits_write_nearly_the_same(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job = generation_systems.create_random_job(TINY, 5)

        with pytest.raises(WarmupError, match="leave `ours-int8` out"):
            generation_systems.create_system("ours-int8", job, device, 1, 1)

        monkeypatch.setattr(int8, "_LEAST_SIZE", 1)

        for name in generation_systems.INT8_SYSTEMS:
            outputs = generation_systems.create_system(name, job, device, 1, 1)(
                job.sources
            )

            assert [len(output) for output in outputs] == [job.fixed_len] * 5

    def test_memory_of_step_is_what_it_takes(self) -> None:
        # 64 MiB
        mib = system_process.measure_memory(lambda: torch.ones(2**24))

        if mib is None:
            pytest.skip("this kernel does not tell the peak of a process")

        assert 60.0 < mib < 80.0

    def test_benchmark_runs(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(SETTINGS, "tiny", TINY)

        args = ["--settings", "tiny", "--sentences", "4", "--rounds", "1"]

        args += ["--systems", "transformers,ours,single", "--beams", "1,2"]

        assert bench_generate.main(args) == 0

        record = json.loads(capsys.readouterr().out.splitlines()[-1])

        assert [m["beam"] for m in record["measurements"]] == [1, 2]

        for measurement in record["measurements"]:
            systems = {system["system"]: system for system in measurement["systems"]}

            assert [*systems] == ["transformers", "ours", "single"]

            # Of all of them, as long as the setting says.
            assert systems["ours"]["num_tokens"] == 4 * TINY.target_len

            assert all(len(system["seconds"]) == 1 for system in systems.values())

            if measurement["beam"] == 1:
                # Beams of a random model are close to each other.
                assert systems["ours"]["num_equal"] == 4

    def test_process_that_dies_is_one_sentence(self) -> None:
        with system_process.SystemProcess("ours", device, 1, time.monotonic) as system:
            # As the kernel kills what takes too much memory.
            system._executor.submit(signal.raise_signal, signal.SIGKILL)

            with pytest.raises(WarmupError, match="process of `ours` has died"):
                system.get_outputs()

    def test_unknown_system_is_one_sentence(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert bench_generate.main(["--systems", "nope"]) == 2

        assert "`--systems` names `nope`" in capsys.readouterr().err

    def test_beam_that_is_no_number_is_one_sentence(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit):
            bench_generate.main(["--beams", "1,x"])

        assert "--beams: must be a positive integer" in capsys.readouterr().err


class TestStartup:
    def test_call_waits_for_the_line_that_counts(self) -> None:
        code = "import time; print('a'); time.sleep(0.2); print('b c'); time.sleep(99)"

        wall, cpu = bench_startup.measure(["-c", code], ROOT, "b")

        assert 0.2 < wall < 90.0
        assert 0.0 <= cpu < wall

    def test_command_that_fails_is_shown(self) -> None:
        with pytest.raises(WarmupError, match="failed:\na"):
            bench_startup.measure(["-c", "print('a')"], ROOT, "b")


class TestCorpus:
    def test_starts_read_the_same_text(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(bench_corpus, "_NUM_SENTENCES", 400)
        monkeypatch.setattr(bench_corpus, "_VOCAB_SIZE", 300)

        bench_corpus.write_text(tmp_path / "work", 900)

        lines = tmp_path.joinpath("work", "data", "train.src").read_text().splitlines()

        assert len(lines) == 900

        cache = tmp_path / "cache"

        starts = [
            bench_corpus.measure_start(tmp_path / "work", str(place))
            for place in ("none", cache, cache)
        ]

        assert len(list(cache.iterdir())) == 1

        for start in starts:
            assert start["seconds"] >= start["plan_seconds"] > 0.0
            assert start["peak_mib"] > 100.0
            assert start["batches_per_second"] > 0.0


class TestGrowth:
    def test_steepness_is_the_power_of_the_work(self) -> None:
        line = bench_growth.Line("a", {1: [3.0], 2: [6.0, 99.0, 5.0], 8: [96.0]})

        assert line.steepness() == pytest.approx([1.0, 2.0])

    def test_curves_are_measured_and_drawn(
        self,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        for name in ("step-k", "beam", "batch", "start"):
            curve = bench_growth.CURVES[name]

            xs = (200, 400) if name == "start" else (1, 3)

            monkeypatch.setitem(bench_growth.CURVES, name, replace(curve, xs=xs))

        monkeypatch.setattr(bench_growth, "SETTING", TINY)
        monkeypatch.setattr(bench_growth, "NUM_SENTENCES", 3)

        # No process of its own, whose text would have the size that is not for tests.
        monkeypatch.setattr(bench_growth, "write_text", lambda folder, num_pairs: None)
        monkeypatch.setattr(
            bench_growth, "measure_in_process", lambda folder, cache: {"seconds": 2.0}
        )

        figure = tmp_path / "new" / "growth"

        options = ["--curves", "step-k,beam,batch,start", "--rounds", "1"]

        assert bench_growth.main([*options, "--figure", str(figure)]) == 0

        record = json.loads(capsys.readouterr().out.splitlines()[-1])

        assert {name: len(lines) for name, lines in record["curves"].items()} == {
            name: 2 for name in ("step-k", "beam", "batch", "start")
        }

        sft, warmup = record["curves"]["step-k"]

        # As counted, of what was measured.
        for x in (1, 3):
            multiple = predict_multiple(
                replace(bench_growth.SETTING, num_warmups=x), num_kept=1
            )

            predicted = multiple * sft["seconds"][str(x)][0]

            assert warmup["predicted"][str(x)] == pytest.approx(predicted)

        for theme in ("light", "dark"):
            svg = ElementTree.parse(tmp_path / "new" / f"growth.{theme}.svg")

            texts = ["".join(e.itertext()) for e in svg.iter() if e.text is not None]

            assert "A sentence: beam" in texts
            assert any("later starts: 2 at 200, 2 at 400" in text for text in texts)

            circles = [e for e in svg.iter() if e.tag.endswith("circle")]

            assert len(circles) == 4 * 2 * 2
