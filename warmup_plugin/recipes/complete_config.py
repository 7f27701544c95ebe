# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Fills in what the config of a training leaves open: by its task, tokenizer and model."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from fairseq2.assets import AssetCardError, AssetStore
from fairseq2.data.tokenizers import Tokenizer
from fairseq2.models.nllb import NLLB_FAMILY
from fairseq2.recipe.config import ModelSection, ReferenceModelSection
from fairseq2.runtime.dependency import DependencyResolver
from fairseq2.utils.config import StandardConfigMerger
from fairseq2.utils.structured import StructureError

from warmup_plugin.config_values import create_value_converter
from warmup_plugin.console import describe_causes
from warmup_plugin.criteria.config import WarmupSection
from warmup_plugin.data.directions import (
    DirectionSection,
    list_directions,
    narrow_to_direction,
)
from warmup_plugin.errors import WarmupError
from warmup_plugin.metrics.registry import METRICS
from warmup_plugin.models.families import (
    find_family,
    get_arch_config,
    reads_prompts,
)
from warmup_plugin.models.t5.tokenizer import T5_TOKENIZER_FAMILY
from warmup_plugin.recipes.checks import check_model, read_run_config
from warmup_plugin.recipes.common import (
    RunTokenizerSection,
    TextPairsSection,
    create_direction_codecs,
    find_family_name,
)
from warmup_plugin.recipes.train_config import SCORE_OF_TASK, TrainConfig
from warmup_plugin.runs.run_dir import RunDir
from warmup_plugin.runs.tokenizer_files import is_same_tokenizer
from warmup_plugin.tasks import TaskContext, TaskSettings
from warmup_plugin.tokenizers.codec import encode_labels
from warmup_plugin.tokenizers.hugging_face import (
    HUGGING_FACE_FAMILY,
    get_prompt_end,
)
from warmup_plugin.tokenizers.loading import load_tokenizer
from warmup_plugin.tokenizers.spm import WARMUP_SPM_FAMILY
from warmup_plugin.warmup_lens import writes_warmups

SectionT = TypeVar("SectionT")


def get_sections(config: TrainConfig) -> dict[str, Any]:
    """Returns what a config is narrowed to a direction by."""
    return {"dataset": asdict(config.dataset), "tokenizer": asdict(config.tokenizer)}


def complete_config(
    resolver: DependencyResolver, run_dir: RunDir, config: TrainConfig
) -> TrainConfig:
    config = deepcopy(config)

    if config.lora.rank is not None and config.init_from is None:
        raise WarmupError(
            "`lora.rank` is set, but there is no model to add an adapter to; set `init_from` to a run or an imported model, or leave `lora.rank` out."
        )

    if config.init_from is not None:
        RunDir(config.init_from).check_is_run(
            "set `init_from` to the output directory of a training run, or make one of a public model with `python -m warmup_plugin import`"
        )

    tokenizer_path = find_tokenizer(config)

    config.tokenizer = _complete_tokenizer(run_dir, config, tokenizer_path)

    tokenizer: Tokenizer | None = None

    if tokenizer_path is not None:
        tokenizer = load_tokenizer(
            tokenizer_path,
            cast(str, config.tokenizer.family),
            cast(Any, config.tokenizer.config_overrides),
        )

    _complete_model(config, tokenizer_path, tokenizer)

    config.dataset = complete_dataset(config.dataset)

    family_name = find_family_name(config.model.name, config.model.family, resolver)

    is_decoder_only = reads_prompts(find_family(family_name, resolver))

    if is_decoder_only and config.generation.truncate:
        raise WarmupError(
            "`generation.truncate` is set, but what a decoder-only model reads is a prompt, which would lose its end if it were cut; leave it out."
        )

    _apply_task(
        resolver,
        config,
        family_name or "",
        is_decoder_only=is_decoder_only,
        prompt_end=get_prompt_end(tokenizer),
    )

    if tokenizer is not None:
        # Before anything is written: it may lack the separator, a language or labels.
        codecs = create_direction_codecs(
            tokenizer, get_sections(config), reads_prompts=is_decoder_only
        )

        if config.generation.rank_labels:
            for codec in codecs.values():
                encode_labels(codec, config.validation.labels or ())

    if config.criterion.has_warmups and not is_decoder_only:
        for name, direction in (config.dataset.directions or {}).items():
            if direction.behind and not direction.plain:
                raise WarmupError(
                    f"`dataset.directions.{name}.behind` puts the sources of a direction before its targets, where an encoder-decoder model has its warmups; set `plain` for it, or leave `behind` out."
                )

    needs_reference = config.criterion.has_warmups and config.warmup.kl_weight > 0.0

    # The model without its adapter.
    if config.lora.rank is not None:
        needs_reference = False

    if config.reference_model is None and needs_reference:
        if config.init_from is None:
            raise WarmupError(
                "`warmup.kl_weight` is set, but there is no model to hold the warmups near to; set `reference_model`, or `init_from` to start from that model."
            )

        config.reference_model = ReferenceModelSection(
            family=config.model.family,
            path=config.model.path,
            config_overrides=config.model.config_overrides,
        )
    elif config.reference_model is not None:
        _check_model("reference_model", config.reference_model)

    config.warmup = _complete_warmup(resolver, config)

    return config


def _complete_model(
    config: TrainConfig, tokenizer_path: Path | None, tokenizer: Tokenizer | None
) -> None:
    section = config.model

    overrides = section.config_overrides or {}

    if not isinstance(overrides, dict):
        raise WarmupError(
            "`model.config_overrides` must be a mapping, such as `{dropout_p: 0.1}`."
        )

    if config.init_from is not None:
        init_dir = RunDir(config.init_from)

        _check_init_tokenizer(init_dir, tokenizer_path)

        step_nr = init_dir.find_checkpoint(str(config.init_checkpoint))

        init_dir.check_model(step_nr)

        section.family, model_config = init_dir.load_model_metadata()

        section.name = section.arch = None

        section.path = init_dir.model_path(step_nr)

        section.config_overrides = {**model_config, **overrides}
    elif section.name is None and section.path is None:
        fitting = _fit_model(section.family, tokenizer, config.tokenizer.family)

        section.config_overrides = {**fitting, **overrides}

    _check_model("model", section)


def _fit_model(
    family_name: str | None, tokenizer: Tokenizer | None, tokenizer_family: str | None
) -> dict[str, object]:
    """Returns the settings with which a new model fits its tokenizer."""
    if tokenizer is None or tokenizer_family not in (
        WARMUP_SPM_FAMILY,
        HUGGING_FACE_FAMILY,
        NLLB_FAMILY,
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


def _check_model(key: str, section: ModelSection | ReferenceModelSection) -> None:
    """
    :param key: Of the section.

    :raises WarmupError: If the settings of the model do not fit each other.
    """
    # Its card knows.
    if section.name is not None:
        return

    family = find_family(section.family, section=key)

    config: object

    if section.arch is None:
        config = cast(Any, family.config_kls)()
    else:
        config = get_arch_config(family, section.arch, section=key)

    converter = create_value_converter()

    try:
        merged = StandardConfigMerger().merge(
            converter.unstructure(config), section.config_overrides or {}
        )

        converter.structure(merged, type(config))
    except (StructureError, TypeError, ValueError) as ex:
        raise WarmupError(
            f"`{key}.config_overrides` cannot be read: {describe_causes(ex)}"
        ) from None

    check_model(merged)


def _fill(section: SectionT, **values: object) -> SectionT:
    """Fills in what a section leaves open."""
    open_values = {n: v for n, v in values.items() if getattr(section, n) is None}

    return cast(SectionT, replace(cast(Any, section), **open_values))


def _apply_task(
    resolver: DependencyResolver,
    config: TrainConfig,
    family_name: str,
    *,
    is_decoder_only: bool,
    prompt_end: str | None,
) -> None:
    """
    Fills in what the config leaves to the task.

    :param prompt_end: As of :func:`get_prompt_end`.
    """
    task = config.task.create(resolver)

    sections = get_sections(config)

    narrowed = {
        name: narrow_to_direction(sections, name)["dataset"]
        for name in list_directions(sections["dataset"])
    }

    directions = config.dataset.directions

    target_langs: list[str] = []

    if directions:
        target_langs = sorted({dataset["target_lang"] for dataset in narrowed.values()})

    by_direction = {
        name: task.get_settings(
            TaskContext(
                model_family=family_name,
                tokenizer_family=config.tokenizer.family,
                is_decoder_only=is_decoder_only,
                source_lang=dataset["source_lang"],
                target_lang=dataset["target_lang"],
                target_langs=target_langs,
                max_target_len=config.dataset.max_target_len,
                prompt_end=prompt_end,
            )
        )
        for name, dataset in narrowed.items()
    }

    settings = _get_common_settings(by_direction)

    known = [field.name for field in fields(config.generation)]

    for name in settings.generation:
        if name not in known:
            raise WarmupError(
                f"The task `{config.task.name}` sets `generation.{name}`, which does not exist; correct the task to one of {', '.join(f'`{key}`' for key in known)}."
            )

    validation = config.validation = _fill(
        config.validation, metrics=list(settings.metrics), labels=list(settings.labels)
    )

    config.generation = _fill(config.generation, **settings.generation)

    if config.generation.plain_weight and not config.criterion.has_warmups:
        raise WarmupError(
            "`generation.plain_weight` is set, but the run writes no warmups, so that its outputs have one way only; leave it out."
        )

    if config.generation.plain_weight and config.warmup.plain_path == "bare":
        raise WarmupError(
            "`generation.plain_weight` hears the output behind the empty warmup, but with `warmup.plain_path=bare` the run learns it without the separator; leave one of them out."
        )

    if config.generation.rank_labels and not validation.labels:
        raise WarmupError(
            "`generation.rank_labels` is set, but there are no labels to rank; set `validation.labels`, or a task that has some, such as `multiple_choice`."
        )

    if config.regime.score_metric == SCORE_OF_TASK:
        score = settings.score_metric

        scores = [n for m in validation.metrics or () for n in METRICS[m].names]

        # Other metrics than the task's may not have its score.
        config.regime.score_metric = score if score in scores else scores[0]

    if not directions:
        config.dataset = _fill(config.dataset, prompt=settings.prompt)

        config.tokenizer = _fill(
            config.tokenizer,
            source_lang=settings.source_lang,
            target_lang=settings.target_lang,
        )

        return

    for name, of_direction in by_direction.items():
        prompt = config.dataset.prompt

        directions[name] = _fill(
            directions[name],
            prompt=of_direction.prompt if prompt is None else prompt,
            source_token=of_direction.source_lang,
            target_token=of_direction.target_lang,
        )


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


def complete_dataset(section: TextPairsSection) -> TextPairsSection:
    section = deepcopy(section)

    folders: list[TextPairsSection | DirectionSection] = [section]

    folders += (section.directions or {}).values()

    for folder in folders:
        if folder.path is not None:
            # Resuming, generating and evaluating find it from any folder.
            folder.path = folder.path.expanduser().absolute()

    return section


def _complete_tokenizer(
    run_dir: RunDir, config: TrainConfig, path: Path | None
) -> RunTokenizerSection:
    """
    Completes the settings of the tokenizer.

    :param path: Where it is found; ``None`` if it is a fairseq2 asset.
    """
    section = config.tokenizer

    # What the run that we start from has said of its tokenizer stays true of it.
    inherited: dict[str, Any] = {}

    if config.init_from is not None:
        init_config = read_run_config(RunDir(config.init_from), complete=True)

        known = [field.name for field in fields(section)]

        init_section = cast("dict[str, Any]", init_config["tokenizer"])

        inherited = {n: v for n, v in init_section.items() if n in known}

    # Each of the two says what ends a warmup, so that one takes the place of the other.
    if section.separator is not None or section.warmup_lang is not None:
        inherited.update(separator=None, warmup_lang=None, warmup_end=None)

    complete = _fill(section, **inherited)

    # So that a baseline is one key away from a run with warmups.
    if not config.criterion.has_warmups:
        complete.warmup_lang = complete.warmup_end = None

    if complete.warmup_end is None:
        has_lang = complete.warmup_lang is not None

        complete.warmup_end = "eos" if has_lang else "separator"

    if path is None:
        return complete

    if complete.family is None:
        complete.family = _guess_tokenizer_family(config, path)

    complete.name = None

    complete.path = (
        run_dir.tokenizer_folder if path.is_dir() else run_dir.tokenizer_file
    )

    return complete


def _complete_warmup(
    resolver: DependencyResolver, config: TrainConfig
) -> WarmupSection:
    """Completes the settings of the warmups; those of the tokenizer are complete."""
    section = config.warmup

    if config.tokenizer.warmup_lang is not None and section.plain_path == "bare":
        raise WarmupError(
            "`warmup.plain_path` is `bare`, but with `tokenizer.warmup_lang` an output without the token that ends a warmup would not be told its language; set it to `empty`."
        )

    reference = config.reference_model

    if reference is not None and section.kl_weight > 0.0:
        section = _fill(
            section,
            reference_separator_init=_find_reference_init(resolver, config, reference),
        )

    if _knows_separator(resolver, config):
        return replace(section, separator_init="none")

    return section


def _find_reference_init(
    resolver: DependencyResolver, config: TrainConfig, reference: ReferenceModelSection
) -> str:
    """Finds how the separator of the reference model begins, which need not be the model
    that training starts from."""
    if config.tokenizer.warmup_lang is not None:
        return "none"

    run_dir = _find_run(resolver, reference)

    if run_dir is not None and _has_learned_separator(run_dir, config):
        return "none"

    return config.warmup.separator_init


def _find_run(
    resolver: DependencyResolver, section: ModelSection | ReferenceModelSection
) -> RunDir | None:
    """Finds the run that a model belongs to, which lies among its checkpoints, by its path
    or by its card."""
    path = section.path

    # fairseq2 takes the name where both are given.
    if section.name is not None:
        path = _find_card_path(resolver, section.name)

    if path is None:
        return None

    path = path.expanduser().resolve()

    for folder in path.parents:
        run_dir = RunDir(folder)

        if path.is_relative_to(run_dir.checkpoint_dir) and run_dir.run_file.is_file():
            return run_dir

    return None


def _find_card_path(resolver: DependencyResolver, name: str) -> Path | None:
    """Finds where the model of a card lies, if that is on this machine."""
    card = resolver.resolve(AssetStore).maybe_retrieve_card(name)

    field = None if card is None else card.maybe_get_field("checkpoint")

    # What is wrong with it is said when it is loaded.
    try:
        uri = None if field is None else field.as_uri()
    except AssetCardError:
        return None

    return uri.to_path() if uri is not None and uri.scheme == "file" else None


def _knows_separator(resolver: DependencyResolver, config: TrainConfig) -> bool:
    """Tells whether the model that training starts from has a separator that is not to be
    lost, or is a new one, of which no token means anything."""
    # The token of a language.
    if config.tokenizer.warmup_lang is not None:
        return True

    if config.init_from is not None:
        return _has_learned_separator(RunDir(config.init_from), config)

    if config.model.name is None and config.model.path is None:
        return True

    run_dir = _find_run(resolver, config.model)

    return run_dir is not None and _has_learned_separator(run_dir, config)


def _has_learned_separator(run_dir: RunDir, config: TrainConfig) -> bool:
    """Tells whether the model of another run writes the separator of this one."""
    run_config = read_run_config(run_dir, complete=True)

    if not writes_warmups(run_config):
        return False

    # Another one may end its warmups.
    return all(
        run_config["tokenizer"].get(name) == getattr(config.tokenizer, name)
        for name in ("separator", "warmup_lang", "warmup_end")
    )


def _guess_tokenizer_family(config: TrainConfig, path: Path) -> str:
    if not path.is_dir():
        return WARMUP_SPM_FAMILY

    # The family of the models has the same name as that of their tokenizers.
    is_t5 = config.model.family == T5_TOKENIZER_FAMILY

    return T5_TOKENIZER_FAMILY if is_t5 else HUGGING_FACE_FAMILY


def find_tokenizer(config: TrainConfig) -> Path | None:
    """Returns the tokenizer's file or folder; ``None`` if it is a fairseq2 asset."""
    section = config.tokenizer

    path: Path | None

    if section.path is not None:
        path = expand_tokenizer_path(section.path)
    elif section.name is not None:
        return None
    elif config.init_from is not None:
        init_dir = RunDir(config.init_from)

        path = init_dir.tokenizer_path

        init_config = read_run_config(init_dir, complete=True)

        if path is None and init_config["tokenizer"]["name"] is None:
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


def expand_tokenizer_path(path: Path) -> Path:
    path = path.expanduser()

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
