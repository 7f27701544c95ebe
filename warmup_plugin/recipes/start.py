# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""What happens to a training command before fairseq2 sees it."""

from __future__ import annotations

import fcntl
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, cast

from fairseq2.data.tokenizers import Tokenizer
from fairseq2.recipe.base import Recipe
from fairseq2.runtime.dependency import get_dependency_resolver
from fairseq2.utils.config import StandardConfigMerger
from fairseq2.utils.structured import StandardValueConverter, StructureError

from warmup_plugin.components import create_component
from warmup_plugin.config_values import create_value_converter
from warmup_plugin.console import describe_causes, make_private_log
from warmup_plugin.data.directions import (
    get_pairs_config,
    list_directions,
    narrow_to_direction,
)
from warmup_plugin.data.text_pairs import check_split
from warmup_plugin.errors import WarmupError
from warmup_plugin.files import write_text_atomically
from warmup_plugin.metrics.registry import METRICS
from warmup_plugin.models.families import find_family, reads_prompts
from warmup_plugin.models.t5.tokenizer import T5_TOKENIZER_FAMILY
from warmup_plugin.recipes.checks import OPEN_ENDED_SCHEDULERS, check_model
from warmup_plugin.recipes.common import (
    create_direction_codecs,
    dump_config,
    find_family_name,
    get_rank,
)
from warmup_plugin.run_dir import RunDir, dump_yaml, is_same_tokenizer, load_yaml
from warmup_plugin.tasks import TaskContext, TaskSettings, TextTask
from warmup_plugin.tokenizers.hugging_face import (
    HUGGING_FACE_FAMILY,
    get_prompt_end,
)
from warmup_plugin.tokenizers.loading import load_tokenizer
from warmup_plugin.tokenizers.spm import WARMUP_SPM_FAMILY
from warmup_plugin.warmup_lens import writes_warmups

SCORE_OF_TASK: Final = "task"
"""As ``regime.score_metric``: the score that the task picks the best checkpoint by."""


class NothingToRun(Exception):
    """Ends a command before fairseq2 starts, with an exit status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)

        self.status = status


def find_output_dir(args: Sequence[str]) -> Path | None:
    """
    Returns the output directory of a command line, if it names one.

    ``--config`` takes all arguments up to the next option, so that a directory behind
    its pairs is taken for one of them.
    """
    idx = 0

    while idx < len(args):
        arg = args[idx]

        idx += 1

        if arg == "--config":
            while idx < len(args) and not args[idx].startswith("-"):
                idx += 1
        elif arg == "--config-file":
            idx += 1
        elif not arg.startswith("-"):
            return Path(arg)

    return None


@contextmanager
def start_run(recipe: Recipe, path: Path, args: Sequence[str]) -> Iterator[list[str]]:
    """
    Checks a training command against its run directory and completes its config.

    The config as the user gave it is kept in ``command.yaml``: only the same may
    resume the run. What fairseq2 gets is complete: it names the run's own copy of the
    tokenizer, a vocabulary that fits, and for ``init_from`` the whole model. That
    config is read again when the run resumes, so the places it came from may be gone
    by then.

    :returns: The command line for fairseq2.

    :raises WarmupError: If the input is bad; then nothing has been written.
    :raises NothingToRun: If fairseq2 has reported an error or the run has ended.
    """
    run_dir = RunDir(path)

    if any(arg.partition("=")[0] == "--checkpoint-dir" for arg in args):
        raise WarmupError(
            "`--checkpoint-dir` is not supported, since a run directory holds its own checkpoints; leave it out."
        )

    status, config = dump_config(recipe, args)
    if config is None:
        raise NothingToRun(status)

    stock = run_dir.take_stock()

    start = _plan_start(recipe, run_dir, config)

    options = [a for a in args if a in ("--no-rich", "--no-exit-on-error")]

    with (
        _lock(run_dir),
        tempfile.TemporaryDirectory(prefix="warmup_plugin-") as tmp_dir,
    ):
        # Another command may have trained here since, and ended.
        if get_rank() == 0 and run_dir.take_stock() != stock:
            start = _plan_start(recipe, run_dir, config)

        if start.is_new and get_rank() == 0:
            _write_start(run_dir, config, start.complete_config)

        if start.grown_from is not None and get_rank() == 0:
            _write_growth(run_dir, config)

        # The folder is private, and so are the logs of the other ranks in it.
        if get_rank() == 0:
            try:
                make_private_log(run_dir.path, 0)
            except OSError as ex:
                raise _make_write_error(run_dir, ex) from None

        file = Path(tmp_dir, "config.yaml")

        # Merged into the defaults, a component would keep settings of the default one.
        text = dump_yaml({"_set_": start.complete_config})

        file.write_text(text, encoding="utf-8")

        yield [str(run_dir.path), "--config-file", str(file), *options]


@dataclass(frozen=True)
class _Start:
    """Says how a run begins or goes on."""

    is_new: bool
    """``False`` if it goes on."""

    grown_from: int | None
    """The number of steps before, if it is to train longer."""

    complete_config: dict[str, object]
    """What fairseq2 gets."""


def _plan_start(recipe: Recipe, run_dir: RunDir, config: dict[str, object]) -> _Start:
    """
    Looks at the run directory and checks the config against it; writes nothing.

    :raises WarmupError: If the input is bad.
    :raises NothingToRun: If the run has ended.
    """
    # Every rank checks, or the others would wait for one that has ended.
    if not run_dir.has_begun():
        run_dir.check_is_usable()

        complete_config = _complete_config(run_dir, config)

        _check_models(complete_config)

        _check_data(complete_config)

        return _Start(True, None, complete_config)

    defaults = StandardValueConverter().unstructure(recipe.config_kls())

    grown_from = _find_growth(run_dir, config)

    run_dir.refuse_changed_config(
        config,
        defaults if isinstance(defaults, Mapping) else None,
        ignored=[] if grown_from is None else ["regime.num_steps"],
    )

    run_dir.check_last_checkpoint()

    _check_tokenizer(run_dir, config)

    _check_early_stop(run_dir, config)

    complete_config = _resume_config(run_dir, config)

    _check_data(complete_config)

    return _Start(False, grown_from, complete_config)


def _check_models(config: dict[str, object]) -> None:
    """
    :raises WarmupError: If a model that a config names by its path is not there.
    """
    for key in ("model", "reference_model"):
        section = config[key]

        path = section["path"] if isinstance(section, Mapping) else None

        if path is not None and not Path(path).exists():
            raise WarmupError(
                f"`{key}.path` is `{path}`, which does not exist; correct it."
            )


def _check_data(config: dict[str, object]) -> None:
    """
    :raises WarmupError: If the data of a run is not there.
    """
    dataset = _get_section(config, "dataset")

    for name in list_directions(dataset):
        narrowed = narrow_to_direction(config, name, find_data=True)

        for key in ("train_split", "valid_split"):
            check_split(get_pairs_config(narrowed["dataset"]), dataset[key])


@contextmanager
def _lock(run_dir: RunDir) -> Iterator[None]:
    """Keeps a second command out of the directory while the first one trains."""
    if get_rank() != 0:
        yield

        return

    try:
        run_dir.path.mkdir(parents=True, exist_ok=True)

        fp = run_dir.lock_file.open("a")
    except OSError as ex:
        raise _make_write_error(run_dir, ex) from None

    with fp:
        try:
            fcntl.flock(fp, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WarmupError(
                f"Another command is training in `{run_dir.path}`; wait for it, stop it, or choose another output directory."
            ) from None
        except OSError:
            # A file system without locks, as some network ones are.
            pass

        yield


def _make_write_error(run_dir: RunDir, ex: OSError) -> WarmupError:
    return WarmupError(
        f"`{run_dir.path}` cannot be written ({ex.strerror}); choose an output directory that you may write to."
    )


def _write_start(
    run_dir: RunDir, config: dict[str, object], complete_config: dict[str, object]
) -> None:
    tokenizer_path = _find_tokenizer(config)

    try:
        # First, since it tells the files of a run from those of a user.
        write_text_atomically(run_dir.command_file, dump_yaml(config))

        if tokenizer_path is not None:
            run_dir.adopt_tokenizer(tokenizer_path)

        write_text_atomically(run_dir.run_file, dump_yaml(complete_config))
    except OSError as ex:
        raise _make_write_error(run_dir, ex) from None


def _find_growth(run_dir: RunDir, config: dict[str, object]) -> int | None:
    """
    Returns the number of steps of a run that is to train longer, else ``None``.

    :raises WarmupError: If its learning rates would have been others all along.
    """
    if not run_dir.command_file.is_file():
        return None

    old_regime = load_yaml(run_dir.command_file).get("regime")

    old = old_regime.get("num_steps") if isinstance(old_regime, dict) else None

    new = _get_section(config, "regime")["num_steps"]

    if not isinstance(old, int) or not isinstance(new, int) or new <= old:
        return None

    scheduler = _get_section(config, "lr_scheduler")["name"]

    if scheduler not in OPEN_ENDED_SCHEDULERS:
        raise WarmupError(
            f"`regime.num_steps` cannot grow from {old} to {new} with `lr_scheduler.name={scheduler}`, whose learning rates depend on it from the start; train in another output directory with `init_from={run_dir.path}` and `init_checkpoint=last`, or with `lr_scheduler.name=myle` to begin with."
        )

    return old


def _write_growth(run_dir: RunDir, config: dict[str, object]) -> None:
    num_steps = _get_section(config, "regime")["num_steps"]

    try:
        # The old one is compared to, so that it goes last.
        for file in (run_dir.run_file, run_dir.command_file):
            content = load_yaml(file)

            regime = {**_get_section(content, "regime"), "num_steps": num_steps}

            write_text_atomically(file, dump_yaml({**content, "regime": regime}))
    except OSError as ex:
        raise _make_write_error(run_dir, ex) from None


def _resume_config(
    run_dir: RunDir, command_config: dict[str, object]
) -> dict[str, object]:
    config = run_dir.load_config(complete=True)

    # The directory may have been moved since, and so may the data.
    if run_dir.tokenizer_path is not None:
        section = _get_section(config, "tokenizer")

        config["tokenizer"] = {**section, "path": str(run_dir.tokenizer_path)}

    section = _get_section(config, "dataset")

    dataset = {**_complete_dataset(command_config), "prompt": section["prompt"]}

    if dataset["directions"]:
        dataset["directions"] = {
            name: {**section["directions"][name], "path": direction["path"]}
            for name, direction in dataset["directions"].items()
        }

    config["dataset"] = dataset

    config["regime"] = {
        **_get_section(config, "regime"),
        "num_steps": _get_section(command_config, "regime")["num_steps"],
    }

    return config


def _complete_config(run_dir: RunDir, config: dict[str, object]) -> dict[str, object]:
    if config["init_from"] is not None:
        RunDir(Path(str(config["init_from"]))).check_is_run(
            "set `init_from` to the output directory of a training run, or make one of a public model with `python -m warmup_plugin import`"
        )

    tokenizer_path = _find_tokenizer(config)

    complete_tokenizer = _complete_tokenizer(run_dir, config, tokenizer_path)

    tokenizer: Tokenizer | None = None

    if tokenizer_path is not None:
        tokenizer = load_tokenizer(
            tokenizer_path,
            complete_tokenizer["family"],
            complete_tokenizer["config_overrides"],
        )

    model_section = _get_section(config, "model")

    overrides = model_section["config_overrides"] or {}

    if not isinstance(overrides, dict):
        raise WarmupError(
            "`model.config_overrides` must be a mapping, such as `{dropout_p: 0.1}`."
        )

    complete_model = dict(model_section)

    init_from = config["init_from"]

    if init_from is not None:
        init_dir = RunDir(Path(str(init_from)))

        _check_init_tokenizer(init_dir, tokenizer_path)

        step_nr = init_dir.find_checkpoint(str(config["init_checkpoint"]))

        family, model_config = init_dir.load_model_metadata()

        complete_model.update(
            name=None,
            arch=None,
            family=family,
            path=str(init_dir.model_path(step_nr)),
            config_overrides={**model_config, **overrides},
        )
    elif model_section["name"] is None and model_section["path"] is None:
        fitting = _fit_model(
            model_section["family"], tokenizer, complete_tokenizer["family"]
        )

        complete_model["config_overrides"] = {**fitting, **overrides}

    if complete_model["name"] is None:
        _check_model(complete_model)

    complete_dataset = _complete_dataset(config)

    task_sections = _apply_task(
        config,
        complete_model,
        complete_tokenizer,
        complete_dataset,
        prompt_end=get_prompt_end(tokenizer),
    )

    complete_tokenizer, complete_dataset = (
        task_sections["tokenizer"],
        task_sections["dataset"],
    )

    if tokenizer is not None and complete_model["name"] is None:
        # Before anything is written: it may lack the separator or a language.
        create_direction_codecs(
            tokenizer,
            task_sections,
            reads_prompts=reads_prompts(find_family(complete_model["family"])),
        )

    reference_model = config["reference_model"]

    needs_reference = (
        writes_warmups(config) and _get_section(config, "warmup")["kl_weight"] > 0.0
    )

    if reference_model is None and needs_reference:
        if init_from is None:
            raise WarmupError(
                "`warmup.kl_weight` is set, but there is no model to hold the warmups near to; set `reference_model`, or `init_from` to start from that model."
            )

        reference_model = {
            key: complete_model[key] for key in ("family", "path", "config_overrides")
        }

    return {
        **config,
        **task_sections,
        "warmup": _complete_warmup(config, complete_tokenizer),
        "model": complete_model,
        "reference_model": reference_model,
    }


def _fit_model(
    family_name: str | None, tokenizer: Tokenizer | None, tokenizer_family: str | None
) -> dict[str, object]:
    """Returns the settings with which a new model fits its tokenizer."""
    if tokenizer is None or tokenizer_family not in (
        WARMUP_SPM_FAMILY,
        HUGGING_FACE_FAMILY,
    ):
        return {}

    info = tokenizer.vocab_info

    # What also ends a text has to be learned, unlike padding.
    pad_idx = None if info.pad_idx in (info.bos_idx, info.eos_idx) else info.pad_idx

    fitting: dict[str, object] = {"vocab_size": info.size, "pad_idx": pad_idx}

    config_kls = cast(Any, find_family(family_name).config_kls)

    # Qwen has no `pad_idx`.
    known = {field.name for field in fields(config_kls)}

    return {name: value for name, value in fitting.items() if name in known}


def _check_model(section: dict[str, Any]) -> None:
    """
    :raises WarmupError: If the settings of the model do not fit each other.
    """
    family = find_family(section["family"])

    config: object

    if section["arch"] is None:
        config = cast(Any, family.config_kls)()
    else:
        config = family.maybe_get_arch_config(section["arch"])

    # fairseq2 says which there are.
    if config is None:
        return

    converter = create_value_converter()

    try:
        merged = StandardConfigMerger().merge(
            converter.unstructure(config), section["config_overrides"] or {}
        )

        converter.structure(merged, type(config))
    except (StructureError, TypeError, ValueError) as ex:
        raise WarmupError(
            f"`model.config_overrides` cannot be read: {describe_causes(ex)}"
        ) from None

    check_model(merged)


def _apply_task(
    config: dict[str, object],
    model: dict[str, Any],
    tokenizer: dict[str, Any],
    dataset: dict[str, Any],
    *,
    prompt_end: str | None,
) -> dict[str, dict[str, Any]]:
    """
    Fills in what the config leaves to the task.

    :param prompt_end: As of :func:`get_prompt_end`.

    :returns: The sections that it fills in, such as ``dataset``.
    """
    section = _get_section(config, "task")

    task = cast(
        TextTask,
        create_component(cast(Any, TextTask), section["name"], section["config"]),
    )

    resolver = get_dependency_resolver()

    family: str | None

    try:
        family = find_family_name(model["name"], model["family"], resolver)
    except WarmupError:
        # A card of `common.assets.extra_paths`, which are known only within the recipe.
        family = None

        if dataset["prompt"] is None and get_rank() == 0:
            print(
                f"warning: the card `{model['name']}` is read later, so the task has no prompt for its model; set `dataset.prompt` if it needs one.",
                file=sys.stderr,
            )

    narrowed = {
        name: narrow_to_direction({"dataset": dataset, "tokenizer": tokenizer}, name)
        for name in list_directions(dataset)
    }

    target_langs: list[str] = []

    if dataset["directions"]:
        target_langs = sorted({n["dataset"]["target_lang"] for n in narrowed.values()})

    by_direction = {
        name: task.get_settings(
            TaskContext(
                model_family=family or "",
                tokenizer_family=tokenizer["family"],
                is_decoder_only=(
                    family is not None and reads_prompts(find_family(family, resolver))
                ),
                source_lang=sections["dataset"]["source_lang"],
                target_lang=sections["dataset"]["target_lang"],
                target_langs=target_langs,
                max_target_len=dataset["max_target_len"],
                prompt_end=prompt_end,
            )
        )
        for name, sections in narrowed.items()
    }

    settings = _get_common_settings(by_direction)

    validation = _get_section(config, "validation")

    generation = _get_section(config, "generation")

    for name in settings.generation:
        if name not in generation:
            raise WarmupError(
                f"The task `{section['name']}` sets `generation.{name}`, which does not exist; correct the task to one of {', '.join(f'`{key}`' for key in generation)}."
            )

    regime = _get_section(config, "regime")

    def fill(open_section: dict[str, Any], **values: object) -> dict[str, Any]:
        return {
            key: values.get(key) if value is None else value
            for key, value in open_section.items()
        }

    validation = fill(
        validation, metrics=list(settings.metrics), labels=list(settings.labels)
    )

    generation = fill(generation, **settings.generation)

    if generation["rank_labels"] and not validation["labels"]:
        raise WarmupError(
            "`generation.rank_labels` is set, but there are no labels to rank; set `validation.labels`, or a task that has some, such as `multiple_choice`."
        )

    if regime["score_metric"] == SCORE_OF_TASK:
        score = settings.score_metric

        scores = [name for m in validation["metrics"] for name in METRICS[m].names]

        # Other metrics than the task's may not have its score.
        regime = {**regime, "score_metric": score if score in scores else scores[0]}

    if dataset["directions"]:
        dataset = {
            **dataset,
            "directions": {
                name: fill(
                    dataset["directions"][name],
                    prompt=(
                        direction_settings.prompt
                        if dataset["prompt"] is None
                        else dataset["prompt"]
                    ),
                    source_token=direction_settings.source_lang,
                    target_token=direction_settings.target_lang,
                )
                for name, direction_settings in by_direction.items()
            },
        }
    else:
        dataset = fill(dataset, prompt=settings.prompt)

        tokenizer = fill(
            tokenizer,
            source_lang=settings.source_lang,
            target_lang=settings.target_lang,
        )

    return {
        "tokenizer": tokenizer,
        "dataset": dataset,
        "generation": generation,
        "validation": validation,
        "regime": regime,
    }


def _get_common_settings(by_direction: dict[str, TaskSettings]) -> TaskSettings:
    """
    Returns the settings of a run, which do not depend on its directions.

    :raises WarmupError: If they do.
    """
    (first_name, first), *others = by_direction.items()

    for name, settings in others:
        for what in ("metrics", "labels", "score_metric", "generation"):
            if getattr(settings, what) != getattr(first, what):
                raise WarmupError(
                    f"The task has different `{what}` for the directions `{first_name}` and `{name}`; train them in runs of their own."
                )

    return first


def _complete_dataset(config: dict[str, object]) -> dict[str, Any]:
    section = _get_section(config, "dataset")

    # Resuming, generating and evaluating find it from any folder.
    def complete_path(folder: dict[str, Any]) -> dict[str, Any]:
        if folder["path"] is None:
            return folder

        path = Path(str(folder["path"])).expanduser().absolute()

        return {**folder, "path": str(path)}

    if section["directions"]:
        section = {
            **section,
            "directions": {
                name: complete_path(direction)
                for name, direction in section["directions"].items()
            },
        }

    return complete_path(section)


def _complete_tokenizer(
    run_dir: RunDir, config: dict[str, object], path: Path | None
) -> dict[str, Any]:
    """
    Completes the settings of the tokenizer.

    :param path: Where it is found; ``None`` if it is a fairseq2 asset.
    """
    section = _get_section(config, "tokenizer")

    init_from = config["init_from"]

    # What the run that we start from has said of its tokenizer stays true of it.
    inherited: dict[str, Any] = {}

    if init_from is not None:
        init_config = RunDir(Path(str(init_from))).load_config(complete=True)

        inherited = _get_section(init_config, "tokenizer")

    # Each of the two says what ends a warmup, so that one takes the place of the other.
    if section["separator"] is not None or section["warmup_lang"] is not None:
        inherited = {**inherited, "separator": None, "warmup_lang": None}

    complete = {
        key: inherited.get(key) if value is None else value
        for key, value in section.items()
    }

    # So that a baseline is one key away from a run with warmups.
    if not writes_warmups(config):
        complete["warmup_lang"] = None

    if path is None:
        return complete

    if complete["family"] is None:
        complete["family"] = _guess_tokenizer_family(config, path)

    file = run_dir.tokenizer_folder if path.is_dir() else run_dir.tokenizer_file

    return {**complete, "name": None, "path": str(file)}


def _complete_warmup(
    config: dict[str, object], tokenizer: dict[str, Any]
) -> dict[str, Any]:
    """
    Completes the settings of the warmups.

    :param tokenizer: The complete settings of the tokenizer.
    """
    section = _get_section(config, "warmup")

    if tokenizer["warmup_lang"] is not None and section["plain_path"] == "bare":
        raise WarmupError(
            "`warmup.plain_path` is `bare`, but with `tokenizer.warmup_lang` an output without the token that ends a warmup would not be told its language; set it to `empty`."
        )

    if _knows_separator(config, tokenizer):
        return {**section, "separator_init": "none"}

    return section


def _knows_separator(config: dict[str, object], tokenizer: dict[str, Any]) -> bool:
    """Tells whether the model that training starts from has a separator that is not to be
    lost, or is a new one, of which no token means anything."""
    # The token of a language.
    if tokenizer["warmup_lang"] is not None:
        return True

    init_from = config["init_from"]

    if init_from is None:
        model = _get_section(config, "model")

        return model["name"] is None and model["path"] is None

    init_config = RunDir(Path(str(init_from))).load_config(complete=True)

    if not writes_warmups(init_config):
        return False

    init_tokenizer = _get_section(init_config, "tokenizer")

    # Another one may end its warmups.
    return all(
        init_tokenizer.get(name) == tokenizer[name]
        for name in ("separator", "warmup_lang")
    )


def _guess_tokenizer_family(config: dict[str, object], path: Path) -> str:
    if not path.is_dir():
        return WARMUP_SPM_FAMILY

    # The family of the models has the same name as that of their tokenizers.
    is_t5 = _get_section(config, "model")["family"] == T5_TOKENIZER_FAMILY

    return T5_TOKENIZER_FAMILY if is_t5 else HUGGING_FACE_FAMILY


def _find_tokenizer(config: dict[str, object]) -> Path | None:
    """Returns the tokenizer's file or folder; ``None`` if it is a fairseq2 asset."""
    init_from = config["init_from"]

    section = _get_section(config, "tokenizer")

    path: Path | None

    if section["path"] is not None:
        path = _expand_tokenizer_path(section["path"])
    elif section["name"] is not None:
        return None
    elif init_from is not None:
        init_dir = RunDir(Path(str(init_from)))

        init_dir.check_is_run()

        path = init_dir.tokenizer_path

        init_name = _get_section(init_dir.load_config(complete=True), "tokenizer")[
            "name"
        ]

        if path is None and init_name is None:
            raise WarmupError(
                f"`{init_dir.path}` has lost its tokenizer; restore it from a copy of the run."
            )

        return path
    else:
        raise WarmupError(
            "No tokenizer is given; set `tokenizer.path` to a file that `python -m warmup_plugin train-tokenizer` wrote, or `init_from` to a run or an imported model."
        )

    if not path.exists():
        raise WarmupError(
            f"The tokenizer `{path}` does not exist; train it with `python -m warmup_plugin train-tokenizer` or correct `tokenizer.path`."
        )

    return path


def _expand_tokenizer_path(given: object) -> Path:
    path = Path(str(given)).expanduser()

    # What describes a `tokenizer.json` lies beside it.
    return path.parent if path.name == "tokenizer.json" else path


def _check_init_tokenizer(init_dir: RunDir, path: Path | None) -> None:
    """Refuses to go on from a model with a tokenizer that it was not trained with."""
    init_dir.check_is_run()

    init_path = init_dir.tokenizer_path

    if path is None or init_path is None:
        return

    if not is_same_tokenizer(path, init_path):
        raise WarmupError(
            f"The tokenizer `{path}` is not the one that the run in `{init_dir.path}` was trained with; leave out `tokenizer.path` to take that of `init_from`."
        )


def _check_tokenizer(run_dir: RunDir, config: dict[str, object]) -> None:
    """Refuses to resume with another tokenizer under the same name."""
    given_path = _get_section(config, "tokenizer")["path"]

    if given_path is None:
        return

    if run_dir.tokenizer_path is None:
        raise WarmupError(
            f"`{run_dir.tokenizer_file}` is missing; restore it from a copy of the run."
        )

    path = _expand_tokenizer_path(given_path)

    # The run has its own copy; the original may be gone.
    if path.exists() and not is_same_tokenizer(path, run_dir.tokenizer_path):
        raise WarmupError(
            f"The tokenizer `{path}` is not the one that the run in `{run_dir.path}` was trained with; restore it or choose another output directory."
        )


def _check_early_stop(run_dir: RunDir, config: dict[str, object]) -> None:
    patience = _get_section(config, "validation")["patience"]

    every = _get_section(config, "regime")["validate_every_n_steps"]

    if patience is None or every is None:
        return

    if run_dir.is_early_stopped(patience, every):
        if get_rank() == 0:
            print(
                f"The run in {run_dir.path} has stopped early; there is nothing to do."
            )

        raise NothingToRun(0)


def _get_section(config: dict[str, object], name: str) -> dict[str, Any]:
    return cast("dict[str, Any]", config[name])
