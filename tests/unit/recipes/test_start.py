# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import fcntl
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.configs import create_runner
from tests.hub_files import (
    NLLB_LANGS,
    write_llama_tokenizer,
    write_nllb_tokenizer,
    write_qwen_tokenizer,
)
from tests.tiny_runs import Options, take_snapshot, tiny_options, to_args
from warmup_plugin.data.directions import narrow_to_direction
from warmup_plugin.data.train_tokenizer import train_tokenizer
from warmup_plugin.errors import WarmupError
from warmup_plugin.recipes.common import create_direction_codecs
from warmup_plugin.recipes.config_files import read_config
from warmup_plugin.recipes.running import unstructure_config
from warmup_plugin.recipes.start import NothingToRun, start_run
from warmup_plugin.recipes.train import main
from warmup_plugin.recipes.train_config import TrainConfig
from warmup_plugin.runs.run_dir import RunDir
from warmup_plugin.runs.yaml_files import dump_yaml, load_yaml
from warmup_plugin.tasks import TaskContext, TaskSettings
from warmup_plugin.tasks.translation import TranslationTask
from warmup_plugin.tokenizers.loading import load_tokenizer


def make_checkpoint(out: Path) -> None:
    """Makes what looks like the checkpoint of a first step."""
    for part in ("model", "trainer", "optimizer", "data_reader"):
        file = out / "checkpoints" / "step_1" / part / "rank_0.pt"

        file.parent.mkdir(parents=True)
        file.touch()


def start(out: Path, options: Options) -> dict[str, Any]:
    """Returns the config that the recipe would get, as values for YAML."""
    runner = create_runner()

    values = read_config(TrainConfig, [], to_args(out, options)[3:])

    with start_run(runner, RunDir(out), runner.structure(values)) as config:
        return unstructure_config(config)


def write_card(folder: Path, family: str) -> dict[str, object]:
    """Writes a card of a model; returns the options that choose it."""
    file = folder / "cards.yaml"

    file.write_text(f"name: public\nmodel_family: {family}\ncheckpoint: nope\n")

    return {"common__assets__extra_paths": f"[{file}]", "model__name": "public"}


def write_langs(folder: Path, *langs: str) -> Path:
    """Writes a line in each language, for runs that are not to read it."""
    folder.mkdir(exist_ok=True)

    for lang in langs:
        for split in ("train", "valid"):
            (folder / f"{split}.{lang}").write_text("A\n")

    return folder


class TestNewRun:
    def test_vocabulary_fits_tokenizer(
        self, tmp_path: Path, text_folder: Path, tokenizer_file: Path
    ) -> None:
        options = tiny_options(text_folder, tokenizer_file)

        config = start(tmp_path / "run", options)

        assert config["model"]["config_overrides"] == {"vocab_size": 120, "pad_idx": 0}

    def test_vocabulary_fits_tokenizer_with_languages(self, tmp_path: Path) -> None:
        data = write_langs(tmp_path / "data", "de", "fr")

        text = tmp_path / "text"

        text.write_text("Ein Hund.\nUn chien.\n" * 20)

        train_tokenizer(
            [text], tmp_path / "t.model", vocab_size=24, family="nllb", model_type="bpe"
        )

        options = tiny_options(
            data,
            tmp_path / "t.model",
            tokenizer__family="nllb",
            tokenizer__config_overrides=NLLB_OVERRIDES,
            dataset__source_lang="de",
            dataset__target_lang="fr",
        )

        config = start(tmp_path / "run", options)

        assert config["model"]["config_overrides"] == {
            "vocab_size": 24 + 4 + len(NLLB_LANGS),
            "pad_idx": 0,
        }

    def test_unknown_end_of_warmups_is_refused(
        self, tmp_path: Path, text_folder: Path, tokenizer_file: Path
    ) -> None:
        options = tiny_options(text_folder, tokenizer_file, tokenizer__warmup_end="mid")

        message = "`tokenizer.warmup_end` must be `separator` or `eos`, but is `mid`"

        with pytest.raises(WarmupError, match=message):
            start(tmp_path / "run", options)

    def test_vocabulary_of_decoder_fits_tokenizer(
        self, tmp_path: Path, text_folder: Path
    ) -> None:
        inputs = [text_folder / "train.src"]

        train_tokenizer(inputs, tmp_path / "bpe", vocab_size=280, model_type="byte_bpe")

        options = tiny_options(
            text_folder,
            tmp_path / "bpe",
            model__family="llama",
            model__arch="llama_test",
        )

        config = start(tmp_path / "run", options)

        assert config["model"]["config_overrides"] == {"vocab_size": 280, "pad_idx": 0}

        assert config["tokenizer"]["family"] == "hugging_face"

        # Not the instruction for a public Llama.
        assert config["dataset"]["prompt"] is None

        options["dataset.directions"] = "{src-tgt: {}, tgt-src: {}}"

        directions = start(tmp_path / "both", options)["dataset"]["directions"]

        assert {name: d["prompt"] for name, d in directions.items()} == {
            "src-tgt": "tgt: {source}<mid>",
            "tgt-src": "src: {source}<mid>",
        }

    def test_pad_of_a_public_tokenizer_is_fitted_only_if_it_is_no_other_token(
        self, tmp_path: Path, text_folder: Path
    ) -> None:
        size = write_qwen_tokenizer(tmp_path / "hub")

        options = tiny_options(
            text_folder,
            tmp_path / "hub",
            model__family="llama",
            model__arch="llama_test",
        )

        config = start(tmp_path / "llama", options)

        # EOS pads, but is to be learned.
        assert config["model"]["config_overrides"] == {
            "vocab_size": size,
            "pad_idx": None,
        }

        options.update({"model.family": "qwen", "model.arch": "qwen3_0.6b"})

        config = start(tmp_path / "qwen", options)

        # Its models have no PAD.
        assert config["model"]["config_overrides"] == {"vocab_size": size}

    def test_file_of_a_folder_stands_for_the_folder(
        self, tmp_path: Path, text_folder: Path
    ) -> None:
        write_llama_tokenizer(tmp_path / "hub")

        options = tiny_options(
            text_folder,
            tmp_path / "hub" / "tokenizer.json",
            model__family="llama",
            model__arch="llama3_2_1b",
        )

        config = start(tmp_path / "run", options)

        run_dir = RunDir(tmp_path / "run")

        assert config["tokenizer"]["path"] == str(run_dir.tokenizer_folder)
        assert config["tokenizer"]["family"] == "hugging_face"

        assert (run_dir.tokenizer_folder / "tokenizer_config.json").is_file()

    @pytest.mark.parametrize(
        "options,message",
        [
            ({"tokenizer.separator": "<x>"}, "no special token `<x>`"),
            ({"dataset.prompt": "{x}"}, "must hold `{source}` once"),
            ({"model.family": "llama", "model.arch": "7b"}, "cannot write the prompts"),
            ({"tokenizer.family": "x"}, "`x`, which is not a known tokenizer family"),
            ({"tokenizer.config_overrides": "{y: 1}"}, "does not fit the family"),
        ],
    )
    def test_tokenizer_that_does_not_serve_is_refused_before_anything_is_written(
        self,
        tmp_path: Path,
        text_folder: Path,
        tokenizer_file: Path,
        options: Options,
        message: str,
    ) -> None:
        all_options = {**tiny_options(text_folder, tokenizer_file), **options}

        if "dataset.prompt" in options:
            all_options["dataset.prompt"] = "'{x}'"

        with pytest.raises(WarmupError, match=message):
            start(tmp_path / "run", all_options)

        assert not (tmp_path / "run").exists()

    def test_override_of_user_wins(
        self, tmp_path: Path, text_folder: Path, tokenizer_file: Path
    ) -> None:
        options = tiny_options(text_folder, tokenizer_file)

        options["model.config_overrides"] = "{vocab_size: 128, dropout_p: 0.2}"

        assert start(tmp_path / "run", options)["model"]["config_overrides"] == {
            "vocab_size": 128,
            "pad_idx": 0,
            "dropout_p": 0.2,
        }

    def test_baseline_needs_no_reference_model(
        self, tmp_path: Path, text_folder: Path, tokenizer_file: Path
    ) -> None:
        # One key away from a run that needs one.
        options = tiny_options(text_folder, tokenizer_file, warmup__kl_weight=0.1)

        assert start(tmp_path / "run", options)["reference_model"] is None

    def test_run_gets_tokenizer_and_command(
        self, tmp_path: Path, text_folder: Path, tokenizer_file: Path
    ) -> None:
        run_dir = RunDir(tmp_path / "run")

        options = tiny_options(text_folder, tokenizer_file)

        config = start(run_dir.path, options)

        assert config["tokenizer"]["path"] == str(run_dir.tokenizer_file)
        assert run_dir.tokenizer_file.read_bytes() == tokenizer_file.read_bytes()

        # As the user gave it.
        command: dict[str, Any] = load_yaml(run_dir.command_file)

        assert command["tokenizer"]["path"] == str(tokenizer_file)
        assert command["model"]["config_overrides"] is None

        assert {f.name for f in run_dir.path.iterdir()} == {
            ".lock",
            "logs",
            "command.yaml",
            "run.yaml",
            "tokenizer.model",
        }

    def test_data_is_found_from_any_folder(
        self,
        tmp_path: Path,
        text_folder: Path,
        tokenizer_file: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(text_folder.parent)

        options = tiny_options(Path(text_folder.name), tokenizer_file)

        config = start(tmp_path / "run", options)

        assert config["dataset"]["path"] == str(text_folder)

    def test_component_keeps_no_settings_of_default_one(
        self, tmp_path: Path, text_folder: Path, tokenizer_file: Path
    ) -> None:
        options = tiny_options(text_folder, tokenizer_file)

        options["set:optimizer"] = "{name: adafactor, config: {}}"

        config = start(tmp_path / "run", options)["optimizer"]

        assert config["name"] == "adafactor"
        # Of AdamW, the default.
        assert "betas" not in config["config"]

    def test_directory_is_looked_at_again_under_the_lock(
        self,
        tmp_path: Path,
        text_folder: Path,
        tokenizer_file: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        options = tiny_options(text_folder, tokenizer_file)

        start(tmp_path / "other", {**options, "regime.num_steps": 3})

        flock = fcntl.flock

        # Between the look and the lock another command trains and ends.
        def train_meanwhile(fp: Any, operation: int) -> None:
            shutil.copytree(tmp_path / "other", tmp_path / "run", dirs_exist_ok=True)

            metrics_file = tmp_path / "run" / "metrics" / "train.jsonl"

            metrics_file.parent.mkdir()
            metrics_file.touch()

            flock(fp, operation)

        monkeypatch.setattr(fcntl, "flock", train_meanwhile)

        with pytest.raises(WarmupError, match=r"`regime\.num_steps`"):
            start(tmp_path / "run", options)

    def test_second_command_is_kept_out(
        self, tmp_path: Path, text_folder: Path, tokenizer_file: Path
    ) -> None:
        options = tiny_options(text_folder, tokenizer_file)

        start(tmp_path / "run", options)

        before = take_snapshot(tmp_path / "run")

        with (tmp_path / "run" / ".lock").open() as fp:
            fcntl.flock(fp, fcntl.LOCK_EX)

            with pytest.raises(WarmupError, match="Another command is training"):
                start(tmp_path / "run", {**options, "regime.num_steps": 4})

        assert before.keys() == take_snapshot(tmp_path / "run").keys()

        command: dict[str, Any] = load_yaml(tmp_path / "run" / "command.yaml")

        assert command["regime"]["num_steps"] != 4

        # The lock is gone with the command that held it.
        start(tmp_path / "run", options)

    def test_run_that_has_trained_may_not_change(
        self, tmp_path: Path, text_folder: Path, tokenizer_file: Path
    ) -> None:
        options = tiny_options(text_folder, tokenizer_file)

        start(tmp_path / "run", options)

        # No checkpoint yet, but figures that another config would be mixed with.
        (tmp_path / "run" / "metrics").mkdir()
        (tmp_path / "run" / "metrics" / "train.jsonl").touch()

        with pytest.raises(WarmupError, match="`criterion.label_smoothing`"):
            start(tmp_path / "run", {**options, "criterion.label_smoothing": 0.2})

    def test_run_that_was_killed_early_may_change(
        self, tmp_path: Path, text_folder: Path, tokenizer_file: Path
    ) -> None:
        options = tiny_options(text_folder, tokenizer_file)

        start(tmp_path / "run", options)

        # What fairseq2 writes before the first checkpoint.
        (tmp_path / "run" / "config.yaml").touch()

        start(tmp_path / "run", {**options, "regime.num_steps": 4})

        command: dict[str, Any] = load_yaml(tmp_path / "run" / "command.yaml")

        assert command["regime"]["num_steps"] == 4

    def test_other_ranks_write_nothing(
        self,
        tmp_path: Path,
        text_folder: Path,
        tokenizer_file: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("RANK", "1")

        config = start(tmp_path / "run", tiny_options(text_folder, tokenizer_file))

        assert config["tokenizer"]["path"] == str(tmp_path / "run" / "tokenizer.model")

        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        "options,message",
        [
            ({"tokenizer__path": None}, "No tokenizer is given"),
            ({"tokenizer__path": "nope.model"}, "`nope.model` does not exist"),
            ({"tokenizer__path": __file__}, "is not a SentencePiece model"),
            ({"init_from": "nope"}, "nope` does not exist; set `init_from` .* import`"),
            ({"model__config_overrides": "3"}, "must be a mapping"),
            ({"dataset__path": None}, "The folder of the text pairs is not given"),
            ({"dataset__path": "nope"}, "The data folder `.*/nope` does not exist"),
            ({"dataset__train_split": "nope"}, "has no `nope` split"),
            ({"dataset__valid_split": "nope"}, "has no `nope` split"),
            ({"dataset__target_lang": "nope"}, "has no counterpart `train.nope`"),
            ({"dataset__directions": "{src-nope: {}}"}, "no data of the direction"),
            ({"model__path": "nope"}, "`model.path` is `nope`, which does not exist"),
            (
                {"reference_model": "{path: ., family: nllb, arch: nope}"},
                "`reference_model.arch` is `nope`, which is not a known architecture of",
            ),
            (
                {"reference_model": "{path: ., family: nope}"},
                "`reference_model.family` is `nope`, which is not a known model family",
            ),
            (
                {
                    "reference_model": "{path: ., family: nllb, config_overrides: {nope: 1}}"
                },
                "`reference_model.config_overrides` cannot be read",
            ),
            (
                {"reference_model": "{path: nope, family: nllb}"},
                "`reference_model.path` is `nope`, which does not exist",
            ),
        ],
    )
    def test_bad_input_writes_nothing(
        self,
        tmp_path: Path,
        text_folder: Path,
        tokenizer_file: Path,
        options: dict[str, Any],
        message: str,
    ) -> None:
        with pytest.raises(WarmupError, match=message):
            start(
                tmp_path / "run", tiny_options(text_folder, tokenizer_file, **options)
            )

        assert not (tmp_path / "run").exists()

    def test_files_of_user_are_not_replaced(
        self, tmp_path: Path, text_folder: Path, tokenizer_file: Path
    ) -> None:
        (tmp_path / "tokenizer.model").write_text("mine")

        with pytest.raises(WarmupError, match="is not of a run"):
            start(tmp_path, tiny_options(text_folder, tokenizer_file))

        assert (tmp_path / "tokenizer.model").read_text() == "mine"

    def test_directory_that_cannot_be_written_is_one_sentence(
        self, tmp_path: Path, text_folder: Path, tokenizer_file: Path
    ) -> None:
        (tmp_path / "file").touch()

        with pytest.raises(WarmupError, match="file/run` cannot be written"):
            start(tmp_path / "file" / "run", tiny_options(text_folder, tokenizer_file))


class TestTask:
    """What a config leaves open follows from its task."""

    def test_default_is_translation(
        self, tmp_path: Path, text_folder: Path, tokenizer_file: Path
    ) -> None:
        config = start(tmp_path / "run", tiny_options(text_folder, tokenizer_file))

        assert config["validation"]["metrics"] == ["bleu", "chrf"]
        assert config["validation"]["labels"] == []
        assert config["regime"]["score_metric"] == "chrf"
        assert config["dataset"]["prompt"] is None

    def test_task_sets_what_is_open(
        self, tmp_path: Path, text_folder: Path, tokenizer_file: Path
    ) -> None:
        options = tiny_options(
            text_folder,
            tokenizer_file,
            task__name="multiple_choice",
            task__config="{labels: [yes., no.]}",
        )

        config = start(tmp_path / "run", options)

        assert config["validation"]["metrics"] == ["accuracy", "macro_f1"]
        assert config["validation"]["labels"] == ["yes.", "no."]
        assert config["regime"]["score_metric"] == "accuracy"

        generation = config["generation"]

        # As long as targets, whatever the sources.
        assert (generation["max_len_a"], generation["max_len_b"]) == (0.0, 128)
        assert generation["rank_labels"] is False
        assert generation["beam_size"] is None

    def test_unknown_setting_of_own_task_is_named(
        self,
        tmp_path: Path,
        text_folder: Path,
        tokenizer_file: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def get_settings(self: object, context: TaskContext) -> TaskSettings:
            return TaskSettings(
                prompt=None,
                metrics=("bleu",),
                score_metric="bleu",
                generation={"beam": 3},
            )

        monkeypatch.setattr(TranslationTask, "get_settings", get_settings)

        with pytest.raises(
            WarmupError, match="`generation.beam`, which does not exist"
        ):
            start(tmp_path / "run", tiny_options(text_folder, tokenizer_file))

    def test_labels_to_rank_are_needed(
        self, tmp_path: Path, text_folder: Path, tokenizer_file: Path
    ) -> None:
        options = tiny_options(
            text_folder, tokenizer_file, generation__rank_labels="true"
        )

        with pytest.raises(WarmupError, match="there are no labels to rank; set"):
            start(tmp_path / "run", options)

        # The tokenizer knows none of these letters.
        options |= {
            "task.name": "multiple_choice",
            "task.config": "{rank_options: true, labels: [Ж, Щ]}",
            "generation.rank_labels": "null",
        }

        with pytest.raises(WarmupError, match="`Ж` and `Щ` are the same tokens of"):
            start(tmp_path / "run", options)

        assert not (tmp_path / "run").exists()

    def test_plain_way_is_no_other_one_without_warmups(
        self, text_folder: Path, tokenizer_file: Path, tmp_path: Path
    ) -> None:
        options = tiny_options(
            text_folder, tokenizer_file, generation__plain_weight="0.3"
        )

        with pytest.raises(WarmupError, match="the run writes no warmups"):
            start(tmp_path / "run", options)

        # Nothing could evaluate it.
        options |= {"criterion.name": "warmup", "warmup.plain_path": "bare"}

        with pytest.raises(WarmupError, match="the run learns it without the separ"):
            start(tmp_path / "run", options)

    def test_prompts_are_not_cut(
        self, text_folder: Path, tmp_path: Path, tokenizer_file: Path
    ) -> None:
        options = tiny_options(
            text_folder,
            tokenizer_file,
            model__family="llama",
            model__arch="llama_test",
            generation__truncate="true",
        )

        with pytest.raises(WarmupError, match="which would lose its end if it were"):
            start(tmp_path / "run", options)

    def test_what_is_given_stays(
        self, tmp_path: Path, text_folder: Path, tokenizer_file: Path
    ) -> None:
        options = tiny_options(
            text_folder,
            tokenizer_file,
            task__name="multiple_choice",
            validation__metrics="[bleu, ter]",
            dataset__prompt="'say: {source}'",
        )

        config = start(tmp_path / "run", options)

        assert config["dataset"]["prompt"] == "say: {source}"
        assert config["validation"]["metrics"] == ["bleu", "ter"]

        # Accuracy is not computed.
        assert config["regime"]["score_metric"] == "bleu"

    def test_prompt_of_task_is_kept_when_run_is_resumed(
        self, tmp_path: Path, text_folder: Path
    ) -> None:
        folder = tmp_path / "tokenizer"

        write_llama_tokenizer(folder)

        options = tiny_options(
            text_folder,
            folder,
            model__family="llama",
            model__arch="llama3_2_1b",
            task__name="summarization",
            task__config="{cross_lingual: true}",
        )

        first = start(tmp_path / "run", options)

        assert first["dataset"]["prompt"].startswith("Summarize")

        make_checkpoint(tmp_path / "run")

        assert start(tmp_path / "run", options)["dataset"] == first["dataset"]

    def test_prompt_is_that_of_the_family_of_a_card(
        self, tmp_path: Path, text_folder: Path
    ) -> None:
        write_llama_tokenizer(tmp_path / "tokenizer")

        options = tiny_options(
            text_folder,
            tmp_path / "tokenizer",
            model__family=None,
            model__arch=None,
            task__name="summarization",
            task__config="{cross_lingual: true}",
            **write_card(tmp_path, "llama"),
        )

        prompt = start(tmp_path / "run", options)["dataset"]["prompt"]

        assert prompt.startswith("Summarize")

    def test_model_of_no_card_is_refused_before_anything_is_written(
        self, tmp_path: Path, text_folder: Path, tokenizer_file: Path
    ) -> None:
        options = tiny_options(text_folder, tokenizer_file, model__name="nope")

        with pytest.raises(WarmupError, match="`nope`, which no asset card describes"):
            start(tmp_path / "run", options)

        assert not (tmp_path / "run").exists()

    def test_task_that_is_not_registered_is_refused(
        self, tmp_path: Path, text_folder: Path, tokenizer_file: Path
    ) -> None:
        options = tiny_options(text_folder, tokenizer_file, task__name="nope")

        with pytest.raises(WarmupError, match="`task.name` is `nope`, which is not"):
            start(tmp_path / "run", options)


class TestInitFrom:
    def test_run_takes_model_and_tokenizer(
        self, tmp_path: Path, text_folder: Path, sft_run: Path
    ) -> None:
        options = tiny_options(text_folder, None, init_from=sft_run)

        # Whatever the preset says, the model is that of the other run.
        options["model.arch"] = "transformer_tiny"
        options["model.config_overrides"] = "{dropout_p: 0.25}"

        config = start(tmp_path / "run", options)

        model = config["model"]

        init_dir = RunDir(sft_run)

        best = init_dir.find_checkpoint("best")

        assert model["path"] == str(init_dir.model_path(best))
        assert model["family"] == "nllb"
        assert model["arch"] is None
        assert model["config_overrides"]["model_dim"] == 64
        assert model["config_overrides"]["vocab_size"] == 120
        assert model["config_overrides"]["dropout_p"] == 0.25

        tokenizer = tmp_path / "run" / "tokenizer.model"

        assert tokenizer.read_bytes() == init_dir.tokenizer_file.read_bytes()

    @pytest.mark.parametrize("checkpoint,step", [("last", 4), (2, 2)])
    def test_run_starts_from_chosen_checkpoint(
        self,
        tmp_path: Path,
        text_folder: Path,
        sft_run: Path,
        checkpoint: object,
        step: int,
    ) -> None:
        options = tiny_options(
            text_folder, None, init_from=sft_run, init_checkpoint=checkpoint
        )

        config = start(tmp_path / "run", options)

        assert config["model"]["path"] == str(RunDir(sft_run).model_path(step))

    def test_unknown_checkpoint_is_one_sentence(
        self, tmp_path: Path, text_folder: Path, sft_run: Path
    ) -> None:
        options = tiny_options(text_folder, None, init_from=sft_run, init_checkpoint=7)

        with pytest.raises(WarmupError, match="no checkpoint `7`.*steps 2, 4"):
            start(tmp_path / "run", options)

    def test_same_tokenizer_may_be_named(
        self, tmp_path: Path, text_folder: Path, tokenizer_file: Path, sft_run: Path
    ) -> None:
        config = start(
            tmp_path / "run",
            tiny_options(text_folder, tokenizer_file, init_from=sft_run),
        )

        # The run's own copy, as always.
        copy = tmp_path / "run" / "tokenizer.model"

        assert config["tokenizer"]["path"] == str(copy)
        assert copy.read_bytes() == tokenizer_file.read_bytes()

    def test_other_tokenizer_is_refused(
        self, tmp_path: Path, text_folder: Path, tokenizer_file: Path, sft_run: Path
    ) -> None:
        other = tmp_path / "other.model"

        # A field that SentencePiece does not know.
        other.write_bytes(tokenizer_file.read_bytes() + b"\xa0\x06\x01")

        options = tiny_options(text_folder, other, init_from=sft_run)

        with pytest.raises(WarmupError, match="other.model` is not the one"):
            start(tmp_path / "run", options)

        assert not (tmp_path / "run").exists()


@pytest.fixture
def finished_run(
    tmp_path: Path, text_folder: Path, tokenizer_file: Path, sft_run: Path
) -> tuple[Path, Options]:
    """A copy of a run and the settings that resume it."""
    out = tmp_path / "finished"

    shutil.copytree(sft_run, out)

    options = tiny_options(
        text_folder,
        tokenizer_file,
        regime__num_steps=4,
        regime__keep_last_n_checkpoints=2,
    )

    return out, options


class TestSeparator:
    """It is prepared where the model that training starts from never wrote one."""

    @staticmethod
    def get_init(out: Path, options: Options) -> object:
        return start(out, options)["warmup"]["separator_init"]

    def test_new_model_has_nothing_to_copy(
        self, tmp_path: Path, text_folder: Path, tokenizer_file: Path
    ) -> None:
        options = tiny_options(text_folder, tokenizer_file, criterion__name="warmup")

        assert self.get_init(tmp_path / "run", options) == "none"

    def test_public_model_is_prepared(
        self, tmp_path: Path, text_folder: Path, tokenizer_file: Path
    ) -> None:
        options = tiny_options(
            text_folder,
            tokenizer_file,
            criterion__name="warmup",
            model__arch=None,
            **write_card(tmp_path, "nllb"),
        )

        assert self.get_init(tmp_path / "run", options) == "eos"

    @pytest.mark.parametrize("given", [None, "eos", "none"])
    def test_model_without_warmup_is_prepared_unless_told_otherwise(
        self, tmp_path: Path, text_folder: Path, sft_run: Path, given: str | None
    ) -> None:
        options = tiny_options(
            text_folder,
            None,
            criterion__name="warmup",
            init_from=sft_run,
            warmup__separator_init=given,
        )

        assert self.get_init(tmp_path / "run", options) == (given or "eos")

    def test_learned_separator_is_kept(
        self, tmp_path: Path, text_folder: Path, warmup_run: Path
    ) -> None:
        options = tiny_options(
            text_folder, None, criterion__name="warmup", init_from=warmup_run
        )

        assert self.get_init(tmp_path / "run", options) == "none"

    @pytest.mark.parametrize("suffix", ["", "_last"])
    @pytest.mark.parametrize("key", ["model", "reference_model"])
    def test_separator_of_a_card_is_kept(
        self,
        tmp_path: Path,
        text_folder: Path,
        sft_run: Path,
        warmup_run: Path,
        key: str,
        suffix: str,
    ) -> None:
        inits = []

        for run in (warmup_run, sft_run):
            options = tiny_options(
                text_folder,
                run / "tokenizer.model",
                criterion__name="warmup",
                warmup__kl_weight=0.1,
                common__assets__extra_paths=f"[{run / 'card.yaml'}]",
                model__arch=None,
                model__name=f"{run.name}{suffix}",
                reference_model=f"{{name: {run.name}{suffix}}}",
            )

            if key == "reference_model":
                options["init_from"] = sft_run

            warmup = start(tmp_path / f"of_{run.name}", options)["warmup"]

            what = "separator_init" if key == "model" else "reference_separator_init"

            inits.append(warmup[what])

        assert inits == ["none", "eos"]

    @pytest.mark.parametrize(
        "init,reference,given,expected",
        [
            # Each by whether its run writes warmups.
            ("sft", "warmup", None, ("eos", "none")),
            ("warmup", "sft", None, ("none", "eos")),
            ("sft", None, None, ("eos", "eos")),
            ("warmup", None, None, ("none", "none")),
            ("sft", "warmup", "eos", ("eos", "eos")),
        ],
    )
    def test_reference_is_prepared_if_it_never_wrote_one(
        self,
        tmp_path: Path,
        text_folder: Path,
        sft_run: Path,
        warmup_run: Path,
        init: str,
        reference: str | None,
        given: str | None,
        expected: tuple[str, str],
    ) -> None:
        runs = {"sft": sft_run, "warmup": warmup_run}

        options = tiny_options(
            text_folder,
            None,
            criterion__name="warmup",
            init_from=runs[init],
            warmup__kl_weight=0.1,
            warmup__reference_separator_init=given,
        )

        if reference is not None:
            path = RunDir(runs[reference]).model_path(2)

            options["reference_model"] = f"{{path: {path}, family: nllb}}"

        warmup = start(tmp_path / "run", options)["warmup"]

        assert expected == (
            warmup["separator_init"],
            warmup["reference_separator_init"],
        )

    def test_run_resumes_with_what_it_was_begun_with(
        self, tmp_path: Path, text_folder: Path, sft_run: Path
    ) -> None:
        options = tiny_options(
            text_folder, None, criterion__name="warmup", init_from=sft_run
        )

        out = tmp_path / "run"

        assert start(out, options)["warmup"]["separator_init"] == "eos"

        # It has trained.
        (out / "metrics").mkdir()
        (out / "metrics" / "train.jsonl").touch()

        warmup = start(out, options)["warmup"]

        assert (warmup["separator_init"], warmup["plain_path"]) == ("eos", "empty")

        # One of an earlier version had neither of the two.
        run_dir = RunDir(out)

        for file in (run_dir.command_file, run_dir.run_file):
            config: Any = load_yaml(file)

            del config["warmup"]["separator_init"], config["warmup"]["plain_path"]

            file.write_text(dump_yaml(config))

        warmup = start(out, options)["warmup"]

        assert (warmup["separator_init"], warmup["plain_path"]) == ("none", "bare")


class TestResumedRun:
    def test_same_config_resumes(self, finished_run: tuple[Path, Options]) -> None:
        out, options = finished_run

        snapshot = take_snapshot(out)

        config = start(out, options)

        # The directory was moved, or rather copied.
        assert config["tokenizer"]["path"] == str(out / "tokenizer.model")
        assert config["model"]["config_overrides"]["vocab_size"] == 120

        assert take_snapshot(out) == snapshot

    def test_run_of_earlier_version_resumes(
        self, finished_run: tuple[Path, Options]
    ) -> None:
        out, options = finished_run

        run_dir = RunDir(out)

        for file in (run_dir.command_file, run_dir.run_file):
            config: Any = load_yaml(file)

            # Keys that it did not have.
            del config["generation"], config["dataset"]["sampling_temperature"]

            file.write_text(dump_yaml(config))

        start(out, options)

        options["generation.beam_size"] = 2

        with pytest.raises(
            WarmupError, match="`generation.beam_size` .None in the run, 2 now"
        ):
            start(out, options)

    @pytest.mark.parametrize("rank", ["0", "1"])
    def test_changed_config_is_refused_by_every_rank(
        self,
        finished_run: tuple[Path, Options],
        monkeypatch: pytest.MonkeyPatch,
        rank: str,
    ) -> None:
        monkeypatch.setenv("RANK", rank)

        out, options = finished_run

        options["criterion.label_smoothing"] = 0.2
        options["model.config_overrides"] = "{dropout_p: 0.2}"

        snapshot = take_snapshot(out)

        with pytest.raises(WarmupError) as exc_info:
            start(out, options)

        text = str(exc_info.value)

        assert "`criterion.label_smoothing` (0.1 in the run, 0.2 now)" in text
        assert "`model.config_overrides.dropout_p` (absent in the run, 0.2 now)" in text
        assert f"init_from={out}" in text

        assert take_snapshot(out) == snapshot

    def test_changed_tokenizer_is_refused(
        self, tmp_path: Path, finished_run: tuple[Path, Options]
    ) -> None:
        out, options = finished_run

        tokenizer = tmp_path / "spm.model"

        content = Path(str(options["tokenizer.path"])).read_bytes()

        tokenizer.write_bytes(content + b"\xa0\x06\x01")

        # The same name, but another content.
        command = (out / "command.yaml").read_text()

        (out / "command.yaml").write_text(
            command.replace(str(options["tokenizer.path"]), str(tokenizer))
        )

        options["tokenizer.path"] = tokenizer

        snapshot = take_snapshot(out)

        with pytest.raises(WarmupError, match="spm.model` is not the one"):
            start(out, options)

        assert take_snapshot(out) == snapshot

        # The run has its own copy.
        tokenizer.unlink()

        start(out, options)

    @pytest.mark.parametrize("rank", ["0", "1"])
    def test_early_stopped_run_ends_on_every_rank(
        self,
        finished_run: tuple[Path, Options],
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        rank: str,
    ) -> None:
        monkeypatch.setenv("RANK", rank)

        out, options = finished_run

        options["validation.patience"] = 1

        command: dict[str, Any] = load_yaml(out / "command.yaml")

        command["validation"]["patience"] = 1

        (out / "command.yaml").write_text(dump_yaml(command))

        (out / "early_stop.json").write_text('{"stopped_at": 4}')

        with pytest.raises(NothingToRun):
            start(out, options)

        text = capsys.readouterr().out

        assert ("has stopped early; there is nothing to do" in text) == (rank == "0")


NLLB_OVERRIDES = f"{{langs: [{', '.join(NLLB_LANGS)}], default_lang: eng_Latn}}"


class TestWarmupLang:
    """A language of warmups that is not that of the targets."""

    @pytest.fixture
    def options(self, tmp_path: Path, text_folder: Path) -> Options:
        write_nllb_tokenizer(tmp_path / "tokenizer")

        return tiny_options(
            text_folder,
            tmp_path / "tokenizer" / "sentencepiece.bpe.model",
            criterion__name="warmup",
            tokenizer__family="nllb",
            tokenizer__config_overrides=NLLB_OVERRIDES,
            tokenizer__source_lang="deu_Latn",
            tokenizer__target_lang="fra_Latn",
            tokenizer__warmup_lang="eng_Latn",
        )

    def test_pretrained_tokens_are_left_as_they_are(
        self, tmp_path: Path, options: Options
    ) -> None:
        config = start(tmp_path / "run", options)

        assert config["tokenizer"]["warmup_lang"] == "eng_Latn"
        assert config["warmup"]["separator_init"] == "none"

        # A run that has trained, so that it resumes.
        (tmp_path / "run" / "metrics").mkdir()
        (tmp_path / "run" / "metrics" / "train.jsonl").touch()

        assert start(tmp_path / "run", options) == config

    def test_baseline_has_none(self, tmp_path: Path, options: Options) -> None:
        options["criterion.name"] = "sft"

        config = start(tmp_path / "run", options)

        assert config["tokenizer"]["warmup_lang"] is None
        assert config["warmup"]["separator_init"] == "none"

    @pytest.mark.parametrize(
        "given,message",
        [
            ({"tokenizer.warmup_lang": "en"}, "set `tokenizer.warmup_lang` to a code"),
            ({"tokenizer.separator": "<s>"}, "leave out one of the two"),
            ({"warmup.plain_path": "bare"}, "`warmup.plain_path` is `bare`, but"),
            (
                {"dataset.directions": "{en-de: {}, en-fr: {}, de-fr: {}}", "tokenizer.warmup_lang": "zho_Hans"},
                "directions `de-fr` and `en-de`; .* `dataset.directions.en-de.plain`",
            ),
        ],
    )  # fmt: skip
    def test_what_does_not_go_together_is_refused(
        self, tmp_path: Path, options: Options, given: Options, message: str
    ) -> None:
        with pytest.raises(WarmupError, match=message):
            start(tmp_path / "run", {**options, **given})

        assert not (tmp_path / "run").exists()

    def test_directions_may_share_a_target_or_be_plain(
        self, tmp_path: Path, options: Options
    ) -> None:
        options["dataset.directions"] = (
            "{de-fr: {}, zh-fr: {}, de-en: {plain: true}, en-fr: {plain: true}}"
        )

        options["dataset.path"] = write_langs(tmp_path / "text", "de", "en", "fr", "zh")

        config = start(tmp_path / "run", options)

        tokenizer = load_tokenizer(
            tmp_path / "tokenizer" / "sentencepiece.bpe.model",
            "nllb",
            config["tokenizer"]["config_overrides"],
        )

        codecs = create_direction_codecs(tokenizer, config, reads_prompts=False)

        assert {
            name: codec.to_tokens(codec.encode_source("A").prefix)[1]
            for name, codec in codecs.items()
        } == {
            "de-fr": "__eng_Latn__",
            "zh-fr": "__eng_Latn__",
            "de-en": "__eng_Latn__",
            "en-fr": "__fra_Latn__",
        }

        # Whichever comes first.
        assert {codec.separator for codec in codecs.values()} == {"__fra_Latn__"}
        assert len({codec.layout for codec in codecs.values()}) == 1

        # By itself a plain direction is a run of plain fine-tuning.
        narrowed = narrow_to_direction(config, "de-en")

        assert narrowed["tokenizer"]["warmup_lang"] is None
        assert narrow_to_direction(config, "de-fr")["tokenizer"]["warmup_lang"]


class TestDirections:
    """What a run with several directions records of each."""

    DIRECTIONS = "{src-tgt: {}, tgt-src: {}}"

    def options(self, text_folder: Path, tokenizer: Path, **more: object) -> Options:
        return tiny_options(
            text_folder, tokenizer, dataset__directions=self.DIRECTIONS, **more
        )

    def test_model_from_scratch_is_told_language_by_text(
        self, tmp_path: Path, text_folder: Path, tokenizer_file: Path
    ) -> None:
        out = tmp_path / "run"

        start(out, self.options(text_folder, tokenizer_file))

        run: dict[str, Any] = load_yaml(out / "run.yaml")

        assert {n: d["prompt"] for n, d in run["dataset"]["directions"].items()} == {
            "src-tgt": "tgt: {source}",
            "tgt-src": "src: {source}",
        }

        # The task has nothing to say of what is not used.
        assert run["dataset"]["prompt"] is None
        assert run["regime"]["score_metric"] == "chrf"

    def test_tokens_of_nllb_are_found(self, tmp_path: Path) -> None:
        write_nllb_tokenizer(tmp_path / "tokenizer")

        options = tiny_options(
            write_langs(tmp_path / "text", "en", "de", "fr", "zho_Hans"),
            tmp_path / "tokenizer" / "sentencepiece.bpe.model",
            tokenizer__family="nllb",
            tokenizer__config_overrides=NLLB_OVERRIDES,
            dataset__directions="{en-de: {}, fr-en: {}, zho_Hans-en: {}}",
        )

        config = start(tmp_path / "run", options)

        assert {
            name: (d["source_token"], d["target_token"], d["prompt"])
            for name, d in config["dataset"]["directions"].items()
        } == {
            "en-de": ("eng_Latn", "deu_Latn", None),
            "fr-en": ("fra_Latn", "eng_Latn", None),
            "zho_Hans-en": (None, "eng_Latn", None),
        }

        # Those of the only direction, which there is not.
        assert config["tokenizer"]["target_lang"] is None

    def test_prompt_of_each_is_kept_when_run_is_resumed(self, tmp_path: Path) -> None:
        write_llama_tokenizer(tmp_path / "tokenizer")

        def make(text: Path) -> Options:
            return tiny_options(
                text,
                tmp_path / "tokenizer",
                model__family="llama",
                model__arch="llama3_2_1b",
                dataset__directions=f"{{en-de: {{path: {text}}}, de-en: {{}}}}",
            )

        text_folder = write_langs(tmp_path / "text", "en", "de")

        first = start(tmp_path / "run", make(text_folder))["dataset"]["directions"]

        assert first["de-en"]["prompt"].startswith("Translate from German to English.")
        assert first["en-de"]["prompt"].startswith("Translate from English to German.")

        make_checkpoint(tmp_path / "run")

        moved = text_folder.rename(tmp_path / "moved")

        again = start(tmp_path / "run", make(moved))["dataset"]

        first["en-de"]["path"] = str(moved)

        assert again["directions"] == first
        assert again["path"] == str(moved)

    def test_run_without_number_of_pairs_is_resumed_without(
        self, tmp_path: Path, text_folder: Path, tokenizer_file: Path
    ) -> None:
        out = tmp_path / "run"

        options = self.options(text_folder, tokenizer_file)

        start(out, options)

        make_checkpoint(out)

        # As an earlier version has written them.
        for file in (out / "command.yaml", out / "run.yaml"):
            text = re.sub(r" +max_train_pairs: *(null)?\n", "", file.read_text())

            assert "max_train_pairs" not in text

            file.write_text(text)

        assert start(out, options)["dataset"]["max_train_pairs"] is None

        options["dataset.max_train_pairs"] = 5

        with pytest.raises(WarmupError, match="`dataset.max_train_pairs` .* 5 now"):
            start(out, options)

    def test_prompt_of_user_is_that_of_all_but_those_with_their_own(
        self, tmp_path: Path, text_folder: Path, tokenizer_file: Path
    ) -> None:
        options = self.options(
            text_folder, tokenizer_file, dataset__prompt="'a {target_lang} {source}'"
        )

        options["dataset.directions"] = "{src-tgt: {prompt: 'b {source}'}, tgt-src: {}}"

        directions = start(tmp_path / "run", options)["dataset"]["directions"]

        assert directions["src-tgt"]["prompt"] == "b {source}"
        assert directions["tgt-src"]["prompt"] == "a {target_lang} {source}"

    def test_direction_may_not_change(
        self, tmp_path: Path, text_folder: Path, tokenizer_file: Path
    ) -> None:
        options = self.options(text_folder, tokenizer_file)

        start(tmp_path / "run", options)

        make_checkpoint(tmp_path / "run")

        options["dataset.directions"] = "{src-tgt: {prompt: 'x {source}'}, tgt-src: {}}"

        with pytest.raises(WarmupError, match="dataset.directions.src-tgt.prompt"):
            start(tmp_path / "run", options)

    @pytest.mark.parametrize(
        "options,message",
        [
            (
                # Two languages from one, and nothing says which.
                {
                    "dataset.directions": "{src-tgt: {}, src-x: {}}",
                    "dataset.prompt": "'{source}'",
                },
                "`src-tgt` and `src-x` look the same to the model",
            ),
            (
                {"dataset.directions": "{src-tgt: {prompt: x}, tgt-src: {}}"},
                "`dataset.directions.src-tgt.prompt` is 'x', but a template must hold `{source}` once",
            ),
        ],
    )
    def test_directions_that_do_not_go_together_are_refused(
        self,
        tmp_path: Path,
        text_folder: Path,
        tokenizer_file: Path,
        options: Options,
        message: str,
    ) -> None:
        all_options = {**self.options(text_folder, tokenizer_file), **options}

        with pytest.raises(WarmupError, match=message):
            start(tmp_path / "run", all_options)

        assert not (tmp_path / "run").exists()

    def test_language_that_tokenizer_lacks_is_refused(
        self, tmp_path: Path, text_folder: Path
    ) -> None:
        write_nllb_tokenizer(tmp_path / "tokenizer")

        options = tiny_options(
            text_folder,
            tmp_path / "tokenizer" / "sentencepiece.bpe.model",
            tokenizer__family="nllb",
            tokenizer__config_overrides=NLLB_OVERRIDES,
            dataset__directions="{en-de: {}, en-xx: {}}",
        )

        with pytest.raises(WarmupError, match="`xx` is not a language.*`target_token`"):
            start(tmp_path / "run", options)

    def test_warmup_and_draft_cannot_both_stand_in_decoder(
        self, tmp_path: Path, text_folder: Path, tokenizer_file: Path
    ) -> None:
        options = self.options(text_folder, tokenizer_file)

        directions = "{src-tgt: {}, tgt-src: {behind: [src-tgt]%s}}"

        options["criterion.name"] = "warmup"
        options["dataset.directions"] = directions % ""

        with pytest.raises(WarmupError, match="`.*tgt-src.behind` puts.*set `plain`"):
            start(tmp_path / "run", options)

        options["dataset.directions"] = directions % ", plain: true"

        start(tmp_path / "run", options)

    def test_task_must_be_the_same_for_all(
        self,
        tmp_path: Path,
        text_folder: Path,
        tokenizer_file: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def get_settings(self: object, context: TaskContext) -> TaskSettings:
            assert context.target_langs == ["src", "tgt"]

            metric = "bleu" if context.target_lang == "src" else "chrf"

            return TaskSettings(prompt=None, metrics=(metric,), score_metric=metric)

        monkeypatch.setattr(TranslationTask, "get_settings", get_settings)

        with pytest.raises(WarmupError, match="different `metrics` for the directions"):
            start(tmp_path / "run", self.options(text_folder, tokenizer_file))

    @pytest.mark.parametrize(
        "options,message",
        [
            ({"dataset.directions": "{en: {}}"}, "names `en`, which is no direction"),
            ({"dataset.directions": "{}"}, "`dataset.directions` must not be empty"),
            (
                {"dataset.cache": "off"},
                "`dataset.cache` must be `auto`, `none` or a folder, but is `off`",
            ),
            (
                {"dataset.sampling_temperature": 0.5},
                "must be a number greater than or equal to 1",
            ),
            (
                {"dataset.sampling_temperature": ".nan"},
                "`dataset.sampling_temperature` must be a finite number",
            ),
            (
                {"dataset.sampling_temperature": 2},
                "shares out the pairs of `directions`",
            ),
            (
                {"dataset.max_train_pairs": 0},
                "`dataset.max_train_pairs` must be greater than or equal to 1",
            ),
            (
                {"dataset.directions": "{src-tgt: {max_train_pairs: 0}}"},
                "`dataset.directions.src-tgt.max_train_pairs` must be greater than",
            ),
            (
                {"dataset.directions": "{src-tgt: {behind: [tgt-src]}, a-b: {}}"},
                "`dataset.directions.src-tgt.behind` names `tgt-src`, which is no other direction of the run; name some of `a-b`",
            ),
            (
                {"dataset.directions": "{src-tgt: {behind: [src-tgt]}}"},
                "which is no other direction of the run; add it",
            ),
        ],
    )
    def test_bad_section_is_refused(
        self,
        tmp_path: Path,
        text_folder: Path,
        tokenizer_file: Path,
        capfd: pytest.CaptureFixture[str],
        options: Options,
        message: str,
    ) -> None:
        args = to_args(
            tmp_path / "run", {**tiny_options(text_folder, tokenizer_file), **options}
        )

        assert main(args) == 2

        out, err = capfd.readouterr()

        assert message in " ".join((out + err).split())
