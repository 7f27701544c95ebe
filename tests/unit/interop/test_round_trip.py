# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
From Hugging Face to a run, through training of both kinds, and back.

What transformers and CTranslate2 write with the exported model is what we write.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import ctranslate2
import pytest
import torch
from fairseq2.device import CPU
from fairseq2.gang import create_fake_gangs
from fairseq2.models.family import StandardModelFamily
from fairseq2.nn import BatchLayout
from torch import Tensor

from tests.common import assert_close
from tests.hub_files import NLLB_LANGS
from tests.unit.interop.conftest import NUM_STEPS, Case
from tests.unit.interop.hub import MAX_WARMUP_LEN, Hub, RemoteHub
from warmup_plugin.__main__ import main as run_command
from warmup_plugin.commands import generate
from warmup_plugin.interop.checkpoints import load_model_config
from warmup_plugin.interop.exporting import export_run
from warmup_plugin.models.families import find_family
from warmup_plugin.models.hugging_face.nllb import from_hg_token_idx
from warmup_plugin.runs.outputs import details_file
from warmup_plugin.runs.run_dir import RunDir

SOURCES = ["ta rusuko so puke", "momu ta milu", "pe lasipe so roko ta ronatu mata"]


def find_separator(folder: Path, criterion: str) -> int | None:
    """Reads the separator from the model card, as a person would."""
    card = (folder / "README.md").read_text(encoding="utf-8")

    if criterion == "sft":
        assert "without a warmup" in card

        return None

    return int(card.split(" (id ")[1].split(")")[0])


def translate(run_dir: Path, folder: Path) -> list[dict[str, Any]]:
    """Translates greedily with our own command."""
    text = folder / "in.txt"

    text.write_text("".join(f"{line}\n" for line in SOURCES), encoding="utf-8")

    output = folder / "out.txt"

    args = [str(run_dir), "--no-rich", "--input", str(text), "--output", str(output)]

    assert generate.main([*args, "--beam-size", "1"]) == 0

    lines = details_file(output).read_text(encoding="utf-8").splitlines()

    return [json.loads(line) for line in lines]


def split(tokens: list[int], separator_idx: int | None) -> tuple[list[int], list[int]]:
    if separator_idx is None:
        return [], tokens

    at = tokens.index(separator_idx)

    return tokens[:at], tokens[at + 1 :]


@pytest.fixture(scope="session")
def exported(
    run: tuple[Case, str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Case, str, Path, Path]:
    case, criterion, run_dir = run

    folder = tmp_path_factory.mktemp("exported") / "model"

    export_run(RunDir(run_dir), folder, checkpoint="last")

    return case, criterion, run_dir, folder


@pytest.fixture(params=["installed", "5"])
def hub(
    request: pytest.FixtureRequest, exported: tuple[Case, str, Path, Path]
) -> Hub | RemoteHub:
    """The exported model in the version of transformers that we use, and in the next."""
    case, *_, folder = exported

    args = (str(folder), case.is_decoder_only, NLLB_LANGS)

    if request.param == "installed":
        return Hub(*args)

    process = request.getfixturevalue("transformers5")

    if process is None:
        pytest.skip("needs `make test-transformers5`, which makes its environment")

    return RemoteHub(process, *args)


class TestTransformers:
    def test_output_is_reproduced(
        self,
        exported: tuple[Case, str, Path, Path],
        hub: Hub | RemoteHub,
        tmp_path: Path,
    ) -> None:
        _, criterion, run_dir, folder = exported

        separator_idx = find_separator(folder, criterion)

        for record in translate(run_dir, tmp_path):
            tokens = hub.generate(record["source"], separator_idx)

            warmup, output = split(tokens, separator_idx)

            assert hub.decode(output).strip() == record["output"].strip()

            if separator_idx is None:
                assert record["warmup"] is None
            else:
                assert hub.decode(warmup).strip() == record["warmup"].strip()
                assert 0 < len(warmup) <= MAX_WARMUP_LEN

    def test_card_example_runs(self, hub: Hub | RemoteHub) -> None:
        assert hub.run_card().endswith("\n")

    def test_logits_are_those_of_the_run(
        self, exported: tuple[Case, str, Path, Path], hub: Hub | RemoteHub
    ) -> None:
        case, _, run_dir, folder = exported

        family_name, config = load_model_config(RunDir(run_dir))

        model = find_family(family_name).load_custom_model(
            RunDir(run_dir).model_path(NUM_STEPS), config, create_fake_gangs(CPU), torch.float32, load_rank0_only=False, mmap=False, restrict=True
        ).eval()  # fmt: skip

        ids = hub.encode(SOURCES[0])

        # (S, V)
        theirs = torch.tensor(hub.compute_logits(ids))

        # Their order of tokens is another one.
        to_ours = from_hg_token_idx if case.kind == "nllb" else int

        order = torch.tensor([to_ours(i) for i in range(theirs.size(1))])

        def to_input(tokens: Tensor) -> tuple[Tensor, BatchLayout]:
            tokens = order[tokens]

            return tokens, BatchLayout.of(tokens)

        source = torch.tensor([ids])

        with torch.no_grad():
            if case.is_decoder_only:
                ours = model(*to_input(source))
            else:
                ours = model(*to_input(source), *to_input(source.flip(1)))

        # fp32; sums of the same products in another order.
        assert_close(theirs, ours[0, :, order], rtol=1e-4, atol=1e-4)


class TestServing:
    """Models that never end a warmup by themselves, served by the code of their card."""

    @pytest.fixture(scope="class")
    @classmethod
    def endless(
        cls, case: Case, tmp_path_factory: pytest.TempPathFactory
    ) -> tuple[Path, Path]:
        folder = tmp_path_factory.mktemp("endless")

        run_dir = case.train(
            folder / "run",
            criterion__name="warmup",
            warmup__max_warmup_len=6,
            # The separator is left as it is, and has not been learned; at step 2 the
            # limit is another one.
            warmup__separator_init="none",
            warmup__len_schedule="[[0, 6], [2, 4]]",
        )

        export_run(RunDir(run_dir), folder / "out", checkpoint="last")

        return run_dir, folder / "out"

    def test_code_of_card_writes_what_generate_writes(
        self,
        endless: tuple[Path, Path],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        run_dir, folder = endless

        monkeypatch.chdir(folder.parent)

        card = (folder / "README.md").read_text(encoding="utf-8")

        blocks = [part.split("```")[0] for part in card.split("```python\n")[1:]]

        assert "at most 4 tokens" in card

        if not (folder.parent / "out-ct2").exists():
            converter = ctranslate2.converters.TransformersConverter(str(folder))

            converter.convert(str(folder.parent / "out-ct2"))

        num_cut = 0

        for record in translate(run_dir, tmp_path):
            names: dict[str, Any] = {}

            capfd.readouterr()

            exec(blocks[0].replace("A sentence.", record["source"]), names)

            num_cut += len(names["tokens"][: names["at"]]) == 4

            output = record["output"].split()

            # Limits of the length of y are counted in other ways.
            ours = capfd.readouterr().out.rstrip("\n").split("\n")

            assert ours[0].split() == record["warmup"].split()
            assert ours[1].split()[: len(output) - 1] == output[:-1]

            exec(blocks[1], names)

            served = capfd.readouterr().out.split()

            assert len(names["warmup"]) <= 4

            # CTranslate2 names the rows without token of a T5 like its sentinels, so
            # that it cannot be told to leave them out; trained ones are not written.
            if len(set(names["vocabulary"])) < len(names["vocabulary"]):
                continue

            assert names["warmup"] == names["name"](names["tokens"][: names["at"]])

            length = min(len(served), len(output)) - 1

            assert served[:length] == output[:length]

        assert num_cut > 0

    def test_export_warns(
        self,
        endless: tuple[Path, Path],
        tmp_path: Path,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        run_dir, folder = endless

        copy = tmp_path / "run"

        shutil.copytree(run_dir, copy)

        file = copy / "metrics" / "train.jsonl"

        for share, warns in ((0.97, True), (0.1, False)):
            file.write_text(json.dumps({"Step": 2, "Cut Warmups (%)": share}) + "\n")

            out = tmp_path / str(share)

            capfd.readouterr()

            args = ["export", str(copy), str(out), "--checkpoint", "last"]

            assert run_command(args) == 0

            assert ("97 % of the warmups" in capfd.readouterr().err) == warns

            card = (out / "README.md").read_text(encoding="utf-8")

            assert f"limit ended {100 * share:.0f} % of the warmups" in card


class TestCTranslate2:
    def test_greedy_search_writes_the_same(
        self, exported: tuple[Case, str, Path, Path], tmp_path: Path
    ) -> None:
        case, _, _, folder = exported

        converter = ctranslate2.converters.TransformersConverter(str(folder))

        converter.convert(str(tmp_path / "ct2"))

        hub = Hub(str(folder), case.is_decoder_only, NLLB_LANGS)

        to_tokens = hub.tokenizer.convert_ids_to_tokens

        # What transformers leaves out by its settings of generation.
        suppressed = [[token] for token in self.list_suppressed(hub, tmp_path / "ct2")]

        for source in SOURCES:
            ids = torch.tensor([hub.encode(source)])

            # A search that knows no form of a warmup may end it at EOS, which the separator
            # was a copy of: here two tokens at least.
            least = 2 if case.is_decoder_only else 0

            theirs = hub.model.generate(
                ids, do_sample=False, num_beams=1, max_new_tokens=30, min_new_tokens=least
            )[0].tolist()  # fmt: skip

            settings = dict(
                beam_size=1, return_end_token=True, suppress_sequences=suppressed
            )

            if case.is_decoder_only:
                generator = ctranslate2.Generator(str(tmp_path / "ct2"), device="cpu")

                [result] = generator.generate_batch(
                    [to_tokens(ids[0])],
                    max_length=30,
                    min_length=least,
                    include_prompt_in_result=False,
                    **settings,
                )

                ours = result.sequences_ids[0]

                theirs = theirs[ids.size(1) :]
            else:
                translator = ctranslate2.Translator(str(tmp_path / "ct2"), device="cpu")

                lang = hub.settings.get("forced_bos_token_id")

                [translation] = translator.translate_batch(
                    [to_tokens(ids[0])],
                    target_prefix=None if lang is None else [[to_tokens(lang)]],
                    max_decoding_length=30,
                    **settings,
                )

                ours = hub.tokenizer.convert_tokens_to_ids(translation.hypotheses[0])

                # The token that the decoder starts with.
                theirs = theirs[1:]

            length = min(len(ours), len(theirs))

            assert length > 1 and ours[:length] == theirs[:length]

            # Limits are counted in other ways; an end is an end.
            if hub.settings["eos_token_id"] in theirs:
                assert ours == theirs

    @staticmethod
    def list_suppressed(hub: Hub, folder: Path) -> list[str]:
        vocabulary = next(
            json.loads(file.read_text(encoding="utf-8"))
            for file in (folder / "shared_vocabulary.json", folder / "vocabulary.json")
            if file.is_file()
        )

        return [vocabulary[idx] for idx in hub.settings["suppress_tokens"]]


class TestBackend:
    def test_greedy_search_writes_the_same(
        self,
        run: tuple[Case, str, Path],
        tmp_path: Path,
        capfd: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        case, criterion, run_dir = run

        text = tmp_path / "in.txt"

        # Behind a tab what a translation begins with; an empty line is an empty line.
        lines = [*SOURCES, "", f"{SOURCES[1]}\tdobi", SOURCES[2]]

        text.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

        def translate(backend: str, *args: str) -> str:
            options = ["--backend", backend, "--checkpoint", "last", "--prefixes"]

            status = run_command(
                ["translate", str(run_dir), str(text), "--no-rich", *options, *args]
            )

            out, err = capfd.readouterr()

            assert status == 0, err
            assert "deprecated" not in err

            return out

        theirs, ours = (
            [
                json.loads(line)
                for line in translate(
                    backend, "--beam-size", "1", "--jsonl"
                ).splitlines()
            ]
            for backend in ("ctranslate2", "fairseq2")
        )

        for their_record, our_record in zip(theirs, ours, strict=True):
            for name in ("source", "warmup", "output"):
                assert their_record[name] == our_record[name]

            assert their_record["log_prob"] is None

        assert ours[4]["output"].startswith("dobi")

        if case.kind != "nllb":
            return

        # Made once.
        folder = run_dir / "ctranslate2"

        inode = folder.stat().st_ino

        def refuse(*args: object, **kwargs: object) -> None:
            raise AssertionError("the weights are read though another library writes")

        for name in ("load_model", "load_custom_model"):
            monkeypatch.setattr(StandardModelFamily, name, refuse)

        output = translate("ctranslate2", "--beam-size", "3", "--num-best", "2")

        assert len(output.splitlines()) == 2 * len(lines)

        assert folder.stat().st_ino == inode

    def test_output_has_its_fewest_tokens(
        self, case: Case, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        folder = shutil.copytree(case.text_folder, tmp_path / "text")

        # Who has learned these ends at once.
        for file in folder.glob("*.tgt"):
            num_lines = len(file.read_text(encoding="utf-8").splitlines())

            file.write_text("ta\n" * num_lines, encoding="utf-8")

        run_dir = replace(case, text_folder=folder).train(
            tmp_path / "run",
            criterion__name="warmup",
            warmup__max_warmup_len=MAX_WARMUP_LEN,
            optimizer__config__lr=0.01,
            regime__num_steps=30,
            regime__validate_every_n_steps=30,
            regime__checkpoint_every_n_steps=30,
        )

        text = tmp_path / "in.txt"

        text.write_text("".join(f"{line}\n" for line in SOURCES), encoding="utf-8")

        def translate(backend: str, *args: str) -> list[tuple[str, str]]:
            options = ["--backend", backend, "--checkpoint", "last", "--jsonl"]

            options += ["--no-rich", "--warmup", "greedy-then-beam"]

            options += ["--beam-size", "1", *args]

            status = run_command(["translate", str(run_dir), str(text), *options])

            out, err = capfd.readouterr()

            assert status == 0, err

            records = [json.loads(line) for line in out.splitlines()]

            return [(record["warmup"], record["output"]) for record in records]

        short, long = (
            translate("ctranslate2", *args) for args in ([], ["--min-len-b", "7"])
        )

        assert translate("fairseq2", "--min-len-b", "7") == long

        assert all(len(a[1]) < len(b[1]) for a, b in zip(short, long))
