# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Several processes, low precision and what else saves memory or time."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

import pytest
import torch
from fairseq2.gang import create_fake_gangs
from fairseq2.models.transformer_lm import TransformerLM
from fairseq2.models.transformer_lm.compiler import compile_transformer_lm
from torch import Tensor

from tests.common import assert_close, device
from tests.integration.scale_worker import (
    CASES,
    SOURCES,
    Case,
    FixedSampler,
    Step,
    compute_step,
    compute_whole,
    create_model,
    create_section,
    fixed_candidates,
)
from tests.tiny_runs import (
    ROOT,
    SHORT_OUTPUTS,
    Options,
    command_environment,
    load_weights,
    python_command,
    tiny_options,
    to_args,
)
from warmup_plugin.criteria.config import KeepSection
from warmup_plugin.models.t5 import compile_t5
from warmup_plugin.recipes.train import main
from warmup_plugin.sampling import concat_candidates

pytestmark = pytest.mark.integration

TIMEOUT: Final = 300.0
"""The seconds that processes may take, also on a machine that is busy."""


def run_two_processes(log_file: Path, module: str, args: Sequence[object]) -> None:
    """Runs a module with torchrun; fails if it does or if it hangs."""
    command = python_command(
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2),
        *("-m", module, *args),
    )

    with log_file.open("wb") as fp:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=command_environment(),
            stdout=fp,
            stderr=subprocess.STDOUT,
        )

    try:
        status = process.wait(TIMEOUT)
    except subprocess.TimeoutExpired:
        # torchrun ends its processes before itself.
        process.terminate()
        process.wait()

        pytest.fail(f"Hangs after {TIMEOUT} s:\n{log_file.read_text(errors='replace')}")

    assert status == 0, log_file.read_text(errors="replace")


@pytest.fixture(scope="module")
def shares(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Step]]:
    """What each of two processes has computed, by case."""
    folder = tmp_path_factory.mktemp("shares")

    run_two_processes(folder / "log.txt", "tests.integration.scale_worker", [folder])

    shares = []

    for rank in range(2):
        file = folder / f"rank_{rank}.pt"

        steps: dict[str, dict[str, Any]] = torch.load(file, weights_only=False)

        shares.append({name: Step(**fields) for name, fields in steps.items()})

    return shares


class TestStepOfTwoProcesses:
    @pytest.mark.parametrize("name", CASES)
    def test_gradient_equals_that_of_one_process(
        self, name: str, shares: list[dict[str, Step]]
    ) -> None:
        case = CASES[name]

        steps = [steps[name] for steps in shares]

        drawn = [c for s in steps for c in s.candidates]

        whole = compute_whole(case, concat_candidates(drawn, 0) if drawn else None)

        parameters = create_model(case).named_parameters()

        names = [name for name, p in parameters if p.requires_grad]

        for step in steps:
            check_grads(step.grads, whole.grads, names, case.low_precision)

        if not case.low_precision:
            assert steps[0].values == pytest.approx(whole.values, rel=1e-4, abs=1e-6)

        # Or there would be nothing that ranks could be at odds about.
        num_tokens = [sum(tokens for tokens, _ in step.forwards) for step in steps]

        assert num_tokens[0] < num_tokens[1]

        assert sum(num_tokens) == whole.forwards[0][0]

        # All make as many passes, also if that leaves nothing to do in some.
        num_rows, other_num_rows = (step.forwards[0][1] for step in steps)

        assert len(num_rows) == len(other_num_rows)

        assert (0 in num_rows) == ("max_num_tokens" in case.warmup)

        if case.draws:
            assert [c.seqs.size(1) > 1 for s in steps for c in s.candidates] == [
                False,
                True,
            ]


def check_grads(
    grads: dict[str, Tensor],
    expected: dict[str, Tensor],
    names: list[str],
    low_precision: bool,
) -> None:
    """
    :param names: The parameters, all of which must have learned something.
    """
    assert set(grads) == set(expected)

    assert len(grads) == len(names)

    for name, grad in grads.items():
        assert grad.dtype == torch.float32

        assert grad.abs().max() > 0, name

        if not low_precision:
            assert_close(grad, expected[name], rtol=1e-4, atol=1e-6)

    # (P)
    flat, expected_flat = (
        torch.cat([g[name].flatten() for name in expected]) for g in (grads, expected)
    )

    error = (flat - expected_flat).norm() / expected_flat.norm()

    # bfloat16 has 8 bits, so that each value is off by up to 0.4 %.
    assert error < (0.04 if low_precision else 1e-5)


class TestCompile:
    @pytest.mark.parametrize("kind", ["llama", "t5"])
    def test_gradient_equals_that_of_eager_mode(
        self, kind: Literal["llama", "t5"]
    ) -> None:
        case = Case(
            model=kind,
            wrapper="ddp",
            warmup={"keep": KeepSection(name="resample", num=2)},
        )

        plain, compiled = create_model(case), create_model(case)

        # What is left out is the translation to machine code, which takes minutes.
        if isinstance(compiled, TransformerLM):
            compile_transformer_lm(compiled, backend="aot_eager")
        else:
            # Nor is the graph differentiated: two stacks would take twice as long.
            compile_t5(compiled, backend="eager")

        # Variants for another model would count as well.
        torch.compiler.reset()

        # Steps of other sizes must not lead to more and more variants: at the limit
        # PyTorch would go on without compiling, and only log that it does.
        with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
            for sources in ([0], [2, 3], [1, 2, 3, 4], [4], range(len(SOURCES))):
                steps = []

                for model in (plain, compiled):
                    torch.manual_seed(0)

                    model.zero_grad()

                    step = compute_step(
                        case,
                        model,
                        model,
                        create_fake_gangs(device),
                        [sources],
                        FixedSampler(fixed_candidates(sources)),
                        create_section(case),
                    )

                    steps.append(step)

                expected, step = steps

                assert step.forwards == expected.forwards

                for name, grad in expected.grads.items():
                    assert_close(step.grads[name], grad, rtol=1e-4, atol=1e-6)

    def test_family_without_support_is_refused(
        self,
        tmp_path: Path,
        text_folder: Path,
        tokenizer_file: Path,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        options = tiny_options(text_folder, tokenizer_file, model__compile="true")

        assert main(to_args(tmp_path / "run", options)) == 2

        assert "Model does not support torch.compile()." in capfd.readouterr().err


class TestRecipe:
    NUM_STEPS: Final = 4

    def get_options(
        self, text_folder: Path, tokenizer_file: Path, **options: object
    ) -> Options:
        return tiny_options(
            text_folder,
            tokenizer_file,
            criterion__name="warmup",
            # Or a parameter without gradient would change as well.
            optimizer__config__weight_decay=0.0,
            # So that four steps lower the loss by more than batches differ.
            lr_scheduler__config__num_warmup_steps=1,
            regime__num_steps=self.NUM_STEPS,
            regime__keep_last_n_checkpoints=2,
            warmup__max_num_tokens=100,
            **SHORT_OUTPUTS,
            **options,
        )

    @pytest.mark.parametrize(
        "options",
        [
            {"trainer__mixed_precision__mode": "auto"},
            {
                "trainer__grad_accumulation__num_batches": 2,
                "trainer__activation_checkpointing__mode": "layerwise",
            },
        ],
        ids=["auto_bfloat16", "accumulation_and_checkpointing"],
    )
    def test_run_trains_all_parameters(
        self,
        tmp_path: Path,
        text_folder: Path,
        tokenizer_file: Path,
        options: dict[str, object],
    ) -> None:
        all_options = self.get_options(text_folder, tokenizer_file, **options)

        assert main(to_args(tmp_path / "run", all_options)) == 0

        self.check_run(tmp_path / "run")

    @pytest.mark.parametrize(
        "options",
        [
            {
                "trainer__mixed_precision__mode": "auto",
                "trainer__grad_accumulation__num_batches": 2,
                "trainer__grad_accumulation__no_sync": "true",
            },
            {
                "trainer__data_parallelism": "fsdp",
                "trainer__mixed_precision__mode": "static",
                "trainer__activation_checkpointing__mode": "layerwise",
            },
        ],
        ids=["ddp_auto_bfloat16", "fsdp_static_bfloat16"],
    )
    def test_run_of_two_processes_trains_all_parameters(
        self,
        tmp_path: Path,
        text_folder: Path,
        tokenizer_file: Path,
        options: dict[str, object],
    ) -> None:
        all_options = self.get_options(
            text_folder, tokenizer_file, dataset__max_num_tokens=200, **options
        )

        run_two_processes(
            tmp_path / "log.txt",
            "recipes.train",
            to_args(tmp_path / "run", all_options),
        )

        self.check_run(tmp_path / "run")

    def check_run(self, run_dir: Path) -> None:
        lines = (run_dir / "metrics" / "train.jsonl").read_text().splitlines()

        losses = [json.loads(line)["NLL Loss"] for line in lines]

        assert len(losses) == self.NUM_STEPS

        assert all(math.isfinite(loss) for loss in losses)

        assert losses[-1] < losses[0]

        before, after = (load_weights(run_dir, step) for step in (2, 4))

        assert before.keys() == after.keys()

        for name in before:
            assert not torch.equal(before[name], after[name]), name


def test_benchmark_divides_models(tmp_path: Path) -> None:
    log_file = tmp_path / "log.txt"

    variants = ["sft", "fairseq2-sft", "marginal-1"]

    args = ["--fsdp", "--settings", "captions", "--num-tokens", 20, "--rounds", 1]

    run_two_processes(
        log_file, "scripts.bench_step", [*args, "--variants", ",".join(variants)]
    )

    # The other process prints none.
    [line] = [s for s in log_file.read_text().splitlines() if s.startswith("{")]

    record = json.loads(line)

    assert record["num_fsdp_processes"] == 2

    assert [*record["settings"]["captions"]["steps"]] == variants
