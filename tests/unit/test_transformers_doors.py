# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
What is reached in transformers; and Python code in the folder of a tokenizer or model,
which must never run.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any, Final

import pytest
from transformers import AutoTokenizer, dynamic_module_utils

from tests.doors import Doors
from tests.hub_files import write_llama_model, write_qwen_tokenizer
from warmup_plugin.__main__ import main
from warmup_plugin.errors import WarmupError
from warmup_plugin.interop.importing import import_model
from warmup_plugin.metrics.comet import worker
from warmup_plugin.tokenizers.hugging_face import load_hugging_face_tokenizer
from warmup_plugin.tokenizers.loading import load_tokenizer
from warmup_plugin.transformers_doors import get_nllb_languages, refuse_foreign_code

DOORS: Final = Doors(
    "warmup_plugin/transformers_doors.py",
    "transformers",
    {
        "refuse_foreign_code": [
            "transformers.dynamic_module_utils:TIME_OUT_REMOTE_CODE",
        ],
        "get_nllb_languages": [
            "transformers.models.nllb.tokenization_nllb:FAIRSEQ_LANGUAGE_CODES"
        ],
        "convert_spm": [
            "transformers.convert_slow_tokenizer:SpmConverter.vocab/2",
            "transformers.convert_slow_tokenizer:SpmConverter.unk_id/2",
            "transformers.convert_slow_tokenizer:SpmConverter.converted/1",
        ],
    },
)

_LINES = "y\nA dog runs.\n"


@pytest.mark.parametrize("door,name", DOORS.cases())
def test_name_is_there(door: str, name: str) -> None:
    DOORS.check(door, name)


def test_no_other_name_is_reached() -> None:
    DOORS.check_complete()


def test_languages_are_those_of_nllb_200() -> None:
    langs = get_nllb_languages()

    assert len(langs) == 202

    assert langs[0] == "ace_Arab" and langs[-1] == "zul_Latn"


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> io.TextIOWrapper:
    """Standard input whose first line would be consent."""
    stream = io.TextIOWrapper(io.BytesIO(_LINES.encode()))

    monkeypatch.setattr(sys, "stdin", stream)

    # Where transformers would copy the code to.
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "m"))

    return stream


def plant_code(
    folder: Path, marker: Path, tokenizer_class: str = "OddTokenizer"
) -> None:
    """Lets a tokenizer name a class of its own, whose file leaves a mark if it runs."""
    (folder / "odd.py").write_text(f"open({str(marker)!r}, 'w').close()\n")

    file = folder / "tokenizer_config.json"

    settings = json.loads(file.read_text())

    settings["tokenizer_class"] = tokenizer_class

    settings["auto_map"] = {"AutoTokenizer": ["odd.Odd", "odd.Odd"]}

    file.write_text(json.dumps(settings))


def check_untouched(stdin: io.TextIOWrapper, marker: Path) -> None:
    assert stdin.read() == _LINES

    assert not marker.exists()


def test_tokenizer_with_code_is_refused(
    tmp_path: Path, stdin: io.TextIOWrapper
) -> None:
    write_qwen_tokenizer(tmp_path / "tok")

    plant_code(tmp_path / "tok", tmp_path / "ran")

    with pytest.raises(WarmupError, match="Python code of its own.*never run here"):
        load_hugging_face_tokenizer(tmp_path / "tok")

    check_untouched(stdin, tmp_path / "ran")


def test_tokenizer_of_known_class_is_read_without_its_code(
    tmp_path: Path, stdin: io.TextIOWrapper
) -> None:
    write_qwen_tokenizer(tmp_path / "tok")

    plant_code(tmp_path / "tok", tmp_path / "ran", "PreTrainedTokenizerFast")

    assert load_hugging_face_tokenizer(tmp_path / "tok").encode("a dog")

    check_untouched(stdin, tmp_path / "ran")


@pytest.mark.parametrize("family", ["llama", "qwen"])
def test_families_of_fairseq2_do_not_ask(
    tmp_path: Path, stdin: io.TextIOWrapper, family: str
) -> None:
    write_qwen_tokenizer(tmp_path / "tok")

    plant_code(tmp_path / "tok", tmp_path / "ran")

    overrides = {"use_im_end": False} if family == "qwen" else {"impl": "hg"}

    with pytest.raises(Exception, match="custom code"):
        load_tokenizer(tmp_path / "tok", family, overrides)

    check_untouched(stdin, tmp_path / "ran")


@pytest.mark.parametrize("of", ["bert_score", "comet"])
def test_other_libraries_do_not_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stdin: io.TextIOWrapper, of: str
) -> None:
    write_qwen_tokenizer(tmp_path / "tok")

    plant_code(tmp_path / "tok", tmp_path / "ran")

    # As in a process that has not set fairseq2 up.
    monkeypatch.setattr(dynamic_module_utils, "TIME_OUT_REMOTE_CODE", 15)

    {"bert_score": refuse_foreign_code, "comet": worker.refuse_foreign_code}[of]()

    with pytest.raises(ValueError, match="custom code"):
        AutoTokenizer.from_pretrained(str(tmp_path / "tok"))

    check_untouched(stdin, tmp_path / "ran")


def test_import_refuses_code(tmp_path: Path, stdin: io.TextIOWrapper) -> None:
    write_llama_model(tmp_path / "hub")

    plant_code(tmp_path / "hub", tmp_path / "ran")

    status = main(["import", str(tmp_path / "hub"), str(tmp_path / "out")])

    assert status == 2

    assert not (tmp_path / "out").exists()

    check_untouched(stdin, tmp_path / "ran")


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")

    write_llama_model(folder / "hub")

    import_model(str(folder / "hub"), folder / "run")

    return folder / "run"


class TestRunDirectory:
    @pytest.mark.parametrize("command", ["translate", "export", "report"])
    def test_command_refuses_code(
        self,
        tmp_path: Path,
        stdin: io.TextIOWrapper,
        capfd: pytest.CaptureFixture[str],
        imported: Path,
        command: str,
    ) -> None:
        run = tmp_path / "run"

        shutil.copytree(imported, run)

        [file] = run.rglob("tokenizer_config.json")

        plant_code(file.parent, tmp_path / "ran")

        for name in ("valid.en", "valid.de"):
            (tmp_path / name).write_text("a dog\n")

        args: dict[str, list[Any]] = {
            "translate": ["--checkpoint", "last"],
            "export": [tmp_path / "hub", "--checkpoint", "last"],
            "report": [
                *("--data", tmp_path, "--split", "valid", "--checkpoint", "last"),
                *("--target-lang", "de", "-o", tmp_path / "report.html"),
            ],
        }

        capfd.readouterr()

        status = main([command, str(run), *map(str, args[command])])

        assert status == 2

        # The log breaks lines.
        said = " ".join("".join(capfd.readouterr()).split())

        assert "Python code of its own" in said

        check_untouched(stdin, tmp_path / "ran")
