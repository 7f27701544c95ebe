# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Adapters that ``peft`` reads, and that it has made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq2.device import CPU
from fairseq2.gang import create_fake_gangs
from fairseq2.nn import BatchLayout
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.common import assert_close
from tests.hub_files import NLLB_LANGS
from tests.unit.interop.conftest import Case
from tests.unit.interop.hub import Hub
from warmup_plugin.__main__ import main as run_command
from warmup_plugin.errors import WarmupError
from warmup_plugin.interop.checkpoints import load_model_config
from warmup_plugin.interop.exporting import export_run
from warmup_plugin.interop.importing import import_model
from warmup_plugin.models.families import find_family
from warmup_plugin.models.hugging_face.nllb import from_hg_token_idx
from warmup_plugin.runs.run_dir import RunDir

TEXT = "ta rusuko so puke"


def compute_own_logits(case: Case, run_dir: Path, ids: list[int]) -> Tensor:
    """Computes what :meth:`Hub.compute_logits` does, with the last checkpoint."""
    runs = RunDir(run_dir)

    family_name, config = load_model_config(runs)

    path = runs.model_path(runs.find_checkpoint("last"))

    model = find_family(family_name).load_custom_model(
        path, config, create_fake_gangs(CPU), torch.float32, load_rank0_only=False, mmap=False, restrict=True
    ).eval()  # fmt: skip

    num_tokens: int = model.final_proj.output_dim  # type: ignore[assignment,union-attr]

    # Their order of tokens is another one.
    to_ours = from_hg_token_idx if case.kind == "nllb" else int

    order = torch.tensor([to_ours(i) for i in range(num_tokens)])

    source = order[torch.tensor([ids])]

    inputs: list[Any] = [source, BatchLayout.of(source)]

    if not case.is_decoder_only:
        inputs += [source.flip(1), BatchLayout.of(source)]

    with torch.no_grad():
        logits: Tensor = model(*inputs)[0, :, order]

    return logits


def open_hub(case: Case, folder: Path, adapter: Path | None = None) -> Hub:
    """:param adapter: What ``peft`` puts around the model."""
    hub = Hub(str(folder), case.is_decoder_only, NLLB_LANGS)

    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(hub.model, str(adapter))

        hub.__dict__["model"] = model.eval()

    return hub


def check_logits(hub: Hub, expected: Tensor) -> None:
    logits = torch.tensor(hub.compute_logits(hub.encode(TEXT)))

    # fp32; sums of the same products in another order.
    assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def lora_run(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps with an adapter of all projections; not to be changed."""
    return case.train(
        tmp_path_factory.mktemp(f"{case.kind}_lora") / "run",
        criterion__name="warmup",
        lora__rank=2,
        lora__alpha=8.0,
        optimizer__config__lr=0.05,
        lr_scheduler__config__num_warmup_steps=1,
        regime__num_steps=4,
        regime__validate_every_n_steps=4,
        regime__checkpoint_every_n_steps=4,
    )


@pytest.fixture(scope="module")
def exported(lora_run: Path) -> Path:
    """Base and adapter; not to be changed."""
    folder = lora_run.parent / "exported"

    assert run_command(["export", str(lora_run), str(folder)]) == 0

    return folder


each_kind = pytest.mark.parametrize(
    "case", ["t5", "nllb", "llama", "qwen"], indirect=True
)
"""Runs a test with each kind of model; mT5 has no other layers than T5."""


@each_kind
class TestExport:
    def test_peft_computes_what_the_run_does(
        self, case: Case, lora_run: Path, exported: Path
    ) -> None:
        pytest.importorskip("peft")

        hub = open_hub(case, exported, exported / "adapter")

        expected = compute_own_logits(case, lora_run, hub.encode(TEXT))

        check_logits(hub, expected)

        # Or nothing would be shown.
        with hub.model.disable_adapter():
            base_logits = torch.tensor(hub.compute_logits(hub.encode(TEXT)))

        assert (base_logits - expected).abs().max() > 0.01

        assert hub.run_card().endswith("\n")

    def test_merged_model_needs_no_peft(
        self, case: Case, lora_run: Path, tmp_path: Path
    ) -> None:
        args = ["export", str(lora_run), str(tmp_path / "merged"), "--merge"]

        assert run_command(args) == 0

        assert not (tmp_path / "merged" / "adapter").exists()

        hub = open_hub(case, tmp_path / "merged")

        check_logits(hub, compute_own_logits(case, lora_run, hub.encode(TEXT)))


@each_kind
class TestImport:
    def test_run_computes_what_peft_does(self, case: Case, tmp_path: Path) -> None:
        peft = pytest.importorskip("peft")

        hub = open_hub(case, case.hub_folder)

        torch.manual_seed(0)

        # None of its parts is zero, and so is its product.
        config = peft.LoraConfig(
            r=2, lora_alpha=2, use_rslora=True, init_lora_weights=False, target_modules="all-linear"
        )  # fmt: skip

        model = peft.get_peft_model(hub.model, config)

        model.save_pretrained(str(tmp_path / "adapter"))

        hub.__dict__["model"] = model.eval()

        args = [str(case.hub_folder), str(tmp_path / "run")]

        assert (
            run_command(["import", *args, "--adapter", str(tmp_path / "adapter")]) == 0
        )

        check_logits(hub, compute_own_logits(case, tmp_path / "run", hub.encode(TEXT)))

    def test_own_adapter_is_read(
        self, case: Case, lora_run: Path, exported: Path, tmp_path: Path
    ) -> None:
        import_model(str(exported), tmp_path / "run", adapter=exported / "adapter")

        ids = Hub(str(exported), case.is_decoder_only, NLLB_LANGS).encode(TEXT)

        assert_close(
            compute_own_logits(case, tmp_path / "run", ids),
            compute_own_logits(case, lora_run, ids),
            rtol=1e-4,
            atol=1e-4,
        )


@pytest.mark.parametrize("case", ["llama"], indirect=True)
class TestBadAdapter:
    @pytest.fixture
    def adapter(self, exported: Path, tmp_path: Path) -> Path:
        return Path(shutil.copytree(exported / "adapter", tmp_path / "adapter"))

    @pytest.mark.parametrize(
        "fields,message",
        [
            ({"peft_type": "IA3"}, "has the `peft_type` 'IA3'; only `LORA` is read"),
            ({"use_dora": True}, "has `use_dora` True, which is not read; merge"),
            ({"bias": "all"}, "has `bias` 'all', which is not read"),
            ({"lora_alpha": "many"}, "has no number as `lora_alpha`"),
        ],
    )
    def test_config(
        self,
        case: Case,
        adapter: Path,
        tmp_path: Path,
        fields: dict[str, object],
        message: str,
    ) -> None:
        file = adapter / "adapter_config.json"

        file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))

        self.check(case, adapter, tmp_path, message)

    @pytest.mark.parametrize(
        "change,message",
        [
            (lambda name: name.replace("lora_A", "lora_magnitude_vector"), "not of a"),
            (lambda name: name.replace("layers.0", "layers.9"), "the model has no `"),
        ],
    )
    def test_weights(
        self, case: Case, adapter: Path, tmp_path: Path, change: Any, message: str
    ) -> None:
        file = adapter / "adapter_model.safetensors"

        save_file({change(n): w for n, w in load_file(file).items()}, file)

        self.check(case, adapter, tmp_path, message)

    def test_run_without_adapter_is_not_merged(
        self, case: Case, tmp_path: Path
    ) -> None:
        with pytest.raises(WarmupError, match="`--merge` merges the adapter of a run"):
            export_run(
                RunDir(case.imported), tmp_path / "out", checkpoint="last", merge=True
            )

    def test_other_size(self, case: Case, adapter: Path, tmp_path: Path) -> None:
        file = adapter / "adapter_model.safetensors"

        save_file({n: w[:, 1:].clone() for n, w in load_file(file).items()}, file)

        self.check(case, adapter, tmp_path, "the model has no `.*` of that size")

    @pytest.mark.parametrize(
        "name,message",
        [
            ("adapter_config.json", "no `adapter_config.json`; name the folder of an"),
            ("adapter_model.safetensors", "has neither `adapter_model.safetensors`"),
        ],
    )
    def test_missing_file(
        self, case: Case, adapter: Path, tmp_path: Path, name: str, message: str
    ) -> None:
        (adapter / name).unlink()

        self.check(case, adapter, tmp_path, message)

    def check(self, case: Case, adapter: Path, tmp_path: Path, message: str) -> None:
        with pytest.raises(WarmupError, match=message):
            import_model(str(case.hub_folder), tmp_path / "out", adapter=adapter)

        assert not (tmp_path / "out").exists()
