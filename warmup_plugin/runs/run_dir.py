# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
The run directory: what it holds and what protects it.

``command.yaml`` (the config as given), ``run.yaml`` (the complete one), ``config.yaml``
(the same by fairseq2),
``card.yaml`` (fairseq2 asset card), ``tokenizer.model`` or ``tokenizer/``,
``versions.json``, ``early_stop.json`` (with ``validation.patience``), ``checkpoints/``,
``metrics/``, ``logs/``, ``tb/``. Imports no
fairseq2, so that it can refuse a command at once.
"""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from secrets import token_hex
from typing import Any, Final, cast, final

from warmup_plugin.errors import WarmupError
from warmup_plugin.fairseq2_doors import (
    CHECKPOINT_PARTS,
    MODEL_METADATA_FILE,
    get_score_file,
    get_step_folder,
    parse_step_folder,
)
from warmup_plugin.files import (
    digest_weights,
    write_bytes_atomically,
    write_text_atomically,
)
from warmup_plugin.parsing import parse_json, read_json, shorten_text
from warmup_plugin.runs.tokenizer_files import list_tokenizer_files
from warmup_plugin.runs.yaml_files import dump_yaml, flatten_config, load_yaml
from warmup_plugin.warmup_lens import writes_warmups

# What runs did before there were these settings, where it is not their default.
_EARLIER_SETTINGS: Final[dict[str, dict[str, str]]] = {
    "tokenizer": {"warmup_end": "separator"},
    "warmup": {"plain_path": "bare", "separator_init": "none"},
}


@final
class RunDir:
    """Finds and writes the files of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().resolve()

        self.config_file = self.path / "config.yaml"

        self.run_file = self.path / "run.yaml"
        """The complete config, written once; fairseq2 writes the same as ``config.yaml``,
        but again at each start and not atomically."""

        self.command_file = self.path / "command.yaml"
        """The config as the user gave it."""

        self.card_file = self.path / "card.yaml"

        self.tokenizer_file = self.path / "tokenizer.model"
        """The tokenizer, if it is one file."""

        self.tokenizer_folder = self.path / "tokenizer"
        """The tokenizer, if it is the folder of a Hugging Face one."""

        self.lock_file = self.path / ".lock"
        """Locked while a command trains here."""

        self.versions_file = self.path / "versions.json"

        self.early_stop_file = self.path / "early_stop.json"
        """The best score so far and where early stopping ended the run."""

        self.checkpoint_dir = self.path / "checkpoints"

        # The name and the steps of the card that was written last.
        self._carded: tuple[str, int, int] | None = None

    @property
    def tokenizer_path(self) -> Path | None:
        """The tokenizer of the run; ``None`` if it is one that fairseq2 knows by
        name."""
        if self.tokenizer_file.is_file():
            return self.tokenizer_file

        return self.tokenizer_folder if self.tokenizer_folder.is_dir() else None

    def has_begun(self) -> bool:
        """Tells whether a run has trained here."""
        metrics_file = self.path / "metrics" / "train.jsonl"

        return bool(self.checkpoint_steps()) or metrics_file.is_file()

    def checkpoint_steps(self) -> list[int]:
        """Returns the steps of the complete checkpoints, in ascending order."""
        steps = []

        for path in self.checkpoint_dir.glob(get_step_folder("*")):
            step = parse_step_folder(path.name)

            if step is not None and (path / "model").is_dir():
                steps.append(step)

        return sorted(steps)

    def take_stock(self) -> tuple[object, ...]:
        """Returns what changes when a command trains here."""
        try:
            command = self.command_file.read_bytes()
        except OSError:
            command = None

        return self.has_begun(), self.checkpoint_steps(), command

    def check_last_checkpoint(self) -> None:
        """
        :raises WarmupError: If a part of the last checkpoint is missing, which fairseq2
            takes for a run that has not begun.
        """
        folders = self.checkpoint_dir.glob(get_step_folder("*"))

        steps = [parse_step_folder(folder.name) for folder in folders]

        last = max((step for step in steps if step is not None), default=None)

        if last is None:
            return

        folder = self.checkpoint_dir / get_step_folder(last)

        for part in CHECKPOINT_PARTS:
            if not any(folder.joinpath(part).rglob("*.pt")):
                raise WarmupError(
                    f"`{folder}` lacks the files of `{part}`; restore it from a copy of the run, or delete it to go on from the checkpoint before it, if there is one."
                )

    def check_model(self, step: int) -> None:
        """
        :raises WarmupError: If the weights of a checkpoint are missing.
        """
        folder = self.model_path(step)

        # What is there is checked by who reads it.
        if not any(f.is_file() for f in folder.rglob("*") if f.suffix != ".sha256"):
            raise WarmupError(
                f"`{folder}` holds no weights; restore it from a copy of the run, or choose another checkpoint."
            )

    def scores(self, *, whole: bool = True) -> dict[int, float]:
        """
        Returns the validation score of each checkpoint that has one.

        :param whole: If ``False``, a file that holds no number is left out, as a process
            killed while writing leaves; the run makes up for it when it resumes.

        :raises WarmupError: If there is such a file.
        """
        scores = {}

        for step in self.checkpoint_steps():
            try:
                score = self._read_score(step)
            except ValueError:
                if not whole:
                    continue

                raise WarmupError(
                    f"`{self._score_file(step)}` does not hold a number; delete it or choose a checkpoint by its step."
                ) from None

            if score is not None:
                scores[step] = score

        return scores

    def has_whole_score(self, step: int) -> bool:
        """
        Tells whether the validation of a checkpoint was completed.

        Removes a file that holds no number, as a process killed while writing leaves.
        """
        try:
            return self._read_score(step) is not None
        except ValueError:
            self._score_file(step).unlink()

            return False

    def _read_score(self, step: int) -> float | None:
        try:
            return float(self._score_file(step).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None

    def _score_file(self, step: int) -> Path:
        return self.checkpoint_dir / get_score_file(step)

    def find_checkpoint(self, which: str) -> int:
        """
        Finds a checkpoint.

        :param which: ``best`` (by validation score; the last one if there is no
            score), ``last`` or the number of a step.

        :raises WarmupError: If there is none.
        """
        self.check_is_run()

        steps = self.checkpoint_steps()
        if not steps:
            raise WarmupError(
                f"`{self.path}` has no checkpoint yet; train it at least `regime.checkpoint_every_n_steps` steps."
            )

        if which == "last":
            return steps[-1]

        if which == "best":
            scores = self.scores()

            if not scores:
                return steps[-1]

            # The first of equal scores.
            return min(scores, key=lambda step: (-scores[step], step))

        for step in steps:
            if which == str(step):
                return step

        raise WarmupError(
            f"`{self.path}` has no checkpoint `{shorten_text(which)}`; use `best`, `last` or one of the steps {', '.join(map(str, steps))}."
        )

    def model_path(self, step: int) -> Path:
        """Returns the folder of the model of a checkpoint."""
        return self.checkpoint_dir / get_step_folder(step) / "model"

    def describe_checkpoint(self, step: int) -> dict[str, object]:
        """Returns what tells a checkpoint from any other: its step and its content."""
        return {"step": step, "model": digest_weights(self.model_path(step))}

    def write_origin(self, file: Path, origin: Mapping[str, object]) -> None:
        """
        Records beside an output which checkpoint has made it.

        :param origin: As of :meth:`describe_checkpoint` before it was made.
        """
        write_text_atomically(_find_origin_file(file), json.dumps(origin) + "\n")

    def has_made(self, file: Path, which: str) -> bool:
        """
        Tells whether an output is of a checkpoint as it is now.

        :param which: As of :meth:`find_checkpoint`.
        """
        if not file.is_file():
            return False

        try:
            origin = parse_json(_find_origin_file(file).read_text(encoding="utf-8"))
        except FileNotFoundError:
            # Of an earlier version: did checkpoints come or go since it was written?
            if not self.checkpoint_dir.is_dir():
                return True

            return self.checkpoint_dir.stat().st_mtime <= file.stat().st_mtime
        except (OSError, ValueError):
            return False

        if not self.checkpoint_steps():
            # Only the outputs were kept.
            return True

        try:
            step = self.find_checkpoint(which)
        except WarmupError:
            return False

        return bool(origin == self.describe_checkpoint(step))

    def check_is_run(
        self, remedy: str = "name the output directory of a training run"
    ) -> None:
        """
        :param remedy: What the message tells to do.

        :raises WarmupError: If the directory is not that of a run.
        """
        if not self.path.is_dir():
            raise WarmupError(
                f"The run directory `{self.path}` does not exist; {remedy}."
            )

        if not self.run_file.is_file():
            raise WarmupError(
                f"`{self.path}` is not a run directory, it holds no `run.yaml`; {remedy}."
            )

    def check_is_usable(self) -> None:
        """
        :raises WarmupError: If a new run would replace something of the user's.
        """
        if self.path.exists() and not self.path.is_dir():
            raise WarmupError(
                f"`{self.path}` is a file; choose another output directory."
            )

        ours = (self.config_file, self.tokenizer_file, self.tokenizer_folder)

        others = [f for f in ours if f.exists()]

        if others and not self.command_file.exists():
            raise WarmupError(
                f"`{others[0]}` is not of a run and would be replaced; move it or choose another output directory."
            )

    def load_config(self) -> dict[str, object]:
        """
        Loads the configuration that the run was trained with, as it stands in its file.

        What reads more of it than a name takes that of
        :func:`~warmup_plugin.recipes.checks.read_run_config`, whose values have been
        checked.
        """
        self.check_is_run()

        config = load_yaml(self.run_file)

        for name, earlier in _EARLIER_SETTINGS.items():
            section = config.get(name)

            if isinstance(section, dict):
                config[name] = {**earlier, **section}

        return config

    def leaves_separator_out(self) -> bool:
        """
        Tells whether the separator had no probability in any output that was learned.

        Plain fine-tuning knows none, and before ``warmup.plain_path`` outputs without
        separator were learned with it.
        """
        config = load_yaml(self.run_file)

        warmup = config.get("warmup")

        knows_setting = isinstance(warmup, dict) and "plain_path" in warmup

        return knows_setting and writes_warmups(config)

    def load_model_metadata(self) -> tuple[str, dict[str, object]]:
        """Returns the model's family and its whole configuration."""
        file = self.checkpoint_dir / MODEL_METADATA_FILE

        if not file.is_file():
            raise WarmupError(
                f"`{file}` is missing, so the model of the run cannot be built; restore it from a copy of the run."
            )

        metadata = load_yaml(file)

        family, config = metadata.get("model_family"), metadata.get("model_config")

        if not isinstance(config, dict):
            raise WarmupError(
                f"`{file}` holds no `model_config`; restore it from a copy of the run."
            )

        return str(family), cast(dict[str, object], config)

    def is_early_stopped(self, patience: int, validate_every: int) -> bool:
        """Tells whether early stopping has already ended the run."""
        stopped_at = self.load_early_stop().get("stopped_at")

        if stopped_at is not None and stopped_at in self.checkpoint_steps():
            return True

        # A run may have been killed between a validation and what follows from it.
        scores = self.scores(whole=False)
        if not scores:
            return False

        best_step = min(scores, key=lambda step: (-scores[step], step))

        return max(scores) - best_step >= patience * validate_every

    def load_early_stop(self) -> dict[str, Any]:
        """
        Loads what early stopping remembers; nothing if it has not begun.

        The scores of the checkpoints do not say it all: of equal ones fairseq2 keeps
        the last, and counting from there would never end.
        """
        content = read_json(self.early_stop_file)

        return content if isinstance(content, dict) else {}

    def load_starts(self) -> list[Mapping[str, object]]:
        """Loads the versions of each start of the run, as far as they are known."""
        starts = read_json(self.versions_file)

        if not isinstance(starts, list):
            return []

        return [start for start in starts if isinstance(start, dict)]

    def refuse_changed_config(
        self,
        config: Mapping[str, object],
        defaults: Mapping[str, object] | None = None,
        *,
        ignored: Sequence[str] = (),
    ) -> None:
        """
        Refuses to resume a run with another configuration.

        fairseq2 would overwrite ``checkpoints/model.yaml`` and the old checkpoints
        could no longer be loaded.

        :param defaults: What a run of an earlier version had of keys that are new.
        :param ignored: Keys that may differ.

        :raises WarmupError: With the keys that differ.
        """
        if not self.command_file.is_file():
            raise WarmupError(
                f"`{self.path}` holds checkpoints or metrics but no `command.yaml`, so it is not a run of this recipe; choose another output directory."
            )

        old = flatten_config(load_yaml(self.command_file))
        new = flatten_config(config)

        for key, value in flatten_config(defaults or {}).items():
            if key in new:
                old.setdefault(key, value)

        # The data may have been moved; the reader compares what it reads.
        keys = sorted(
            key
            for key in old.keys() | new.keys()
            if key not in ignored and not _MOVABLE.fullmatch(key)
        )

        differing = [
            f"`{key}` ({_show(old, key)} in the run, {_show(new, key)} now)"
            for key in keys
            if old.get(key) != new.get(key)
        ]

        if differing:
            raise WarmupError(
                f"`{self.path}` holds a run with another configuration, differing in {', '.join(differing)}; restore these values to resume it, or choose another output directory (with `init_from={self.path}` to start from its model)."
            )

    def adopt_tokenizer(self, path: Path) -> None:
        """
        Copies a tokenizer, a file or a folder, into the run; later only the copy is
        read.
        """
        self.path.mkdir(parents=True, exist_ok=True)

        if not path.is_dir():
            write_bytes_atomically(self.tokenizer_file, path.read_bytes())

            return

        if self.tokenizer_folder.exists() and self.tokenizer_folder.samefile(path):
            return

        folder = self.tokenizer_folder

        tmp_folder = folder.with_name(f"{folder.name}.{token_hex(8)}.tmp")

        tmp_folder.mkdir()

        try:
            for file in list_tokenizer_files(path):
                shutil.copyfile(file, tmp_folder / file.name)

            shutil.rmtree(folder, ignore_errors=True)

            tmp_folder.replace(folder)
        finally:
            shutil.rmtree(tmp_folder, ignore_errors=True)

    def write_versions(self, extra: Mapping[str, object]) -> None:
        """
        Records versions and commit beside the run, one entry a start: a run may be
        resumed with others.
        """
        starts = [*self.load_starts(), {**collect_versions(), **extra}]

        write_text_atomically(
            self.versions_file, json.dumps(starts, indent=2, ensure_ascii=False) + "\n"
        )

    def write_card(self, *, name: str | None = None) -> None:
        """
        Writes the asset card: the best model under ``name``, by default that of the
        directory, the last one with ``_last`` behind it, each with its tokenizer.

        The paths are relative, so the directory may be moved. In fairseq2:
        ``common.assets.extra_paths=[RUN_DIR/card.yaml] model.name=NAME``.
        """
        if not self.checkpoint_steps():
            return

        name = name or self.path.name

        best, last = self.find_checkpoint("best"), self.find_checkpoint("last")

        # YAML is slow, and nothing else of a card changes while a run trains.
        if self._carded == (name, best, last) and self.card_file.is_file():
            return

        family, config = self.load_model_metadata()

        tokenizer: dict[str, object] = {}

        # A run may also use a tokenizer that fairseq2 knows by name.
        if self.tokenizer_path is not None:
            section = cast("dict[str, object]", self.load_config()["tokenizer"])

            tokenizer["tokenizer"] = f"./{self.tokenizer_path.name}"
            tokenizer["tokenizer_family"] = section["family"]

            if section["config_overrides"]:
                tokenizer["tokenizer_config_overrides"] = section["config_overrides"]

        cards = []

        for suffix, step in (("", best), ("_last", last)):
            card = {
                "name": f"{name}{suffix}",
                "model_family": family,
                "model_config": config,
                "checkpoint": f"./checkpoints/step_{step}/model",
                **tokenizer,
            }

            cards.append(card)

        write_text_atomically(self.card_file, dump_yaml(*cards))

        self._carded = (name, best, last)


def _find_origin_file(file: Path) -> Path:
    return file.with_name(f"{file.name}.origin.json")


# Where data is, of a run or of one of its directions.
_MOVABLE: Final = re.compile(r"dataset\.(cache|(directions\..*\.)?path)")


def _show(flat_config: Mapping[str, object], key: str) -> str:
    return repr(flat_config[key]) if key in flat_config else "absent"


def collect_versions() -> dict[str, object]:
    """Collects the versions that a result depends on."""
    versions: dict[str, object] = {"python": platform.python_version()}

    for name in ("warmup_plugin", "fairseq2", "torch", "sacrebleu", "sentencepiece"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None

    versions["git_commit"] = _find_commit()

    return versions


def _find_commit() -> str | None:
    """Returns the commit of the clone we run from, ``-dirty`` if it was changed."""
    # Three levels up from an installed wheel is some unrelated folder.
    root = Path(__file__).resolve().parent.parent.parent

    if not (root / "setup.py").is_file():
        return None

    try:
        result = subprocess.run(
            # Without tags, which may be moved.
            ["git", "-C", str(root), "describe", "--always", "--dirty"]
            + ["--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None

    return result.stdout.strip() or None if result.returncode == 0 else None
