# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
Writes ``docs/config.md``, the reference of every config field. ::

    python scripts/make_config_docs.py
    python scripts/make_config_docs.py --check

Keys, types, defaults and meanings come from the config classes of the recipes and from
what is written below their fields; the messages of refused settings from their
``validate()``. With ``--check`` nothing is written, and the exit status is 1 if the file
is not what would be written.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import NoneType
from typing import Any, Final, cast

import torch
from fairseq2.generation import Seq2SeqGenerator
from fairseq2.models.llama import LLaMAConfig
from fairseq2.models.llama.config import register_llama_configs
from fairseq2.models.nllb import NllbConfig
from fairseq2.models.nllb.config import register_nllb_configs
from fairseq2.models.qwen import QwenConfig
from fairseq2.models.qwen.config import register_qwen_configs
from fairseq2.optim.lr_schedulers import LRScheduler
from fairseq2.recipe.config import (
    LRSchedulerSection,
    OptimizerSection,
    ReferenceModelSection,
    Seq2SeqGeneratorSection,
    SequenceGeneratorSection,
)
from fairseq2.runtime.dependency import DependencyContainer, DependencyResolver
from torch.optim import Optimizer

if not __package__:
    # Started as a file: the folder of the package is not on the path then.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.config_tables import (
    Row,
    describe_elements,
    format_value,
    is_config,
    is_of_fairseq2,
    iter_fields,
    make_markdown,
    make_row,
    make_table,
    to_markdown,
)
from warmup_plugin.composition import register_warmup_plugin
from warmup_plugin.config_docs import get_class_doc, get_field_docs
from warmup_plugin.criteria import (
    CriterionFactory,
    CriterionSection,
    ObjectiveSection,
    SamplerSection,
)
from warmup_plugin.criteria.mrt_config import SentenceMetricSection
from warmup_plugin.fairseq2_doors import list_components, register_optimizers
from warmup_plugin.files import write_text_atomically
from warmup_plugin.metrics.base import SentenceMetric
from warmup_plugin.models.t5 import T5Config
from warmup_plugin.objectives import Objective
from warmup_plugin.recipes.score import ScoreConfig
from warmup_plugin.recipes.train_config import TrainConfig
from warmup_plugin.recipes.translate import GenerateConfig
from warmup_plugin.sampling import WarmupSampler
from warmup_plugin.tasks import TextTask
from warmup_plugin.tasks.config import TaskSection

FILE: Final = Path(__file__).resolve().parents[1] / "docs" / "config.md"

COMMAND: Final = "python scripts/make_config_docs.py"

# The sections that choose a component by name, and the interface it implements.
COMPONENTS: Final[dict[type[object], object]] = {
    CriterionSection: CriterionFactory,
    ObjectiveSection: Objective,
    SamplerSection: WarmupSampler,
    SentenceMetricSection: SentenceMetric,
    TaskSection: TextTask,
    OptimizerSection: Optimizer,
    LRSchedulerSection: LRScheduler,
    # The recipes take no generator but ours, which both kinds of model share.
    Seq2SeqGeneratorSection: Seq2SeqGenerator,
    SequenceGeneratorSection: Seq2SeqGenerator,
}

# Settings that fit no run of ours; the message is that of the config class.
REFUSED: Final[Sequence[Mapping[str, object]]] = (
    {"regime.num_data_epochs": 3},
    {"regime.checkpoint_every_n_steps": 1000},
    {"regime.score_metric": "ter", "validation.metrics": ["bleu"]},
    {"regime.save_model_only": True},
    {"validation.patience": 5, "regime.score_metric": None},
    {"trainer.data_parallelism": "fsdp", "trainer.fsdp.version": "v1"},
    {
        "criterion.name": "warmup",
        "trainer.mixed_precision.mode": "static",
        "trainer.mixed_precision.dtype": torch.float16,
    },
    {"common.no_sweep_dir": False},
)

INTRODUCTION: Final = f"""\
<!-- Written by `{COMMAND}`; a test compares it with the code. -->

# Configuration

Every key of a config file or of `--config KEY=VALUE …`, as one types it. A value on the
command line is YAML. `--dump-config` prints what a command resolves to, with its preset.

- **Default** is that of our recipe, also for fairseq2's keys. The presets of
  [recipes/configs](../recipes/README.md) state what differs.
- Keys that are **fairseq2's** own are marked so. Their meaning is what fairseq2 0.8.1 says
  of them; where it says nothing, the cell is empty.
- A run keeps its config: to go on with another one, start a new run with `init_from`.

| | command | keys |
|---|---|---|
| [Training](#training) | `train` | of `--config-file` and `--config` |
| [Generating](#generating) | `generate`, `translate` | of `--config`; the most usual ones are options too |
| [Scoring](#scoring) | `score` | of `--config`; the most usual ones are options too |
| [Models](#models) | all | of `model.config_overrides`, and the names of `model.arch` |
"""

TRAINING: Final = """\
## Training

`python -m recipes.train OUT --config-file F.yaml --config KEY=VALUE …`
"""

GENERATING: Final = """\
## Generating

`python -m recipes.generate RUN_DIR` and `python -m warmup_plugin translate RUN_DIR` fill
all of this from the run and from their options, those of `seq2seq_generator.config` among
them (`--beam-size`, …). `--config KEY=VALUE …` sets the rest, such as `model.dtype` and
`max_num_tokens`.
"""

SCORING: Final = """\
## Scoring

`python -m warmup_plugin score RUN_DIR`, likewise.
"""

CHOOSING: Final = """\
Another name needs settings of its own, since those of the default would stay: on the
command line `SECTION.name=… SECTION.config='{…}'`, in a file `SECTION: {_set_: {name: …,
config: {…}}}`.
"""

# What is said below a section beside its table.
FURTHER: Final = {"model": "The shapes and their settings: [Models](#models)."}


def make_docs() -> str:
    """Returns what ``docs/config.md`` has to be."""
    resolver = _create_resolver()

    recipes = {
        "Training": (TRAINING, TrainConfig()),
        "Generating": (GENERATING, GenerateConfig()),
        "Scoring": (SCORING, ScoreConfig()),
    }

    parts = [INTRODUCTION]

    # What has been described already: the title of the recipe, the name of the section.
    known: dict[str, tuple[str, str]] = {}

    for title, (introduction, config) in recipes.items():
        parts.append(introduction)

        parts += _describe_recipe(title, config, known, resolver)

        if title == "Training":
            parts += ["### What training refuses", _make_refusals()]

    parts += _describe_models(resolver)

    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _create_resolver() -> DependencyResolver:
    """
    Registers what is chosen by name.

    Not as fairseq2 does it, which adds what other packages have registered.
    """
    container = DependencyContainer()

    register_optimizers(container)

    register_nllb_configs(container)

    register_llama_configs(container)

    register_qwen_configs(container)

    register_warmup_plugin(container)

    return container


def _describe_recipe(
    title: str,
    config: object,
    known: dict[str, tuple[str, str]],
    resolver: DependencyResolver,
) -> Iterator[str]:
    docs = get_field_docs(type(config))

    plain, sections = [], []

    for name, hint, value in iter_fields(config):
        section = value if is_config(value) else None

        # A section that is not set.
        if hint == ReferenceModelSection | None:
            section = value or ReferenceModelSection()

        if section is None:
            plain.append(make_row(config, name, name, hint, value))
        else:
            sections.append((name, value, section))

    yield "### Top level"

    yield make_table(plain)

    # By the recipe whose section of the same name is equal.
    same: dict[str, list[str]] = {}

    for name, value, section in sections:
        content = "\n\n".join(_describe_section(name, section, resolver))

        # Equal but for the name of the section.
        fingerprint = content.replace(f"`{name}.", "`")

        known_title, known_name = known.setdefault(fingerprint, (title, name))

        if known_title != title and known_name == name:
            same.setdefault(known_title, []).append(f"`{name}`")

            continue

        yield f"### `{name}`"

        doc = to_markdown(docs.get(name) or get_class_doc(type(section)))

        if value is None:
            doc = f"{doc} Default: `null`; the table is for one that is set."

        if doc:
            yield doc

        if known_name == name:
            yield content
        else:
            yield f"The keys are those of `{known_name}`."

        if name in FURTHER and known_name == name:
            yield FURTHER[name]

    for known_title, names in same.items():
        yield f"### As in {known_title.lower()}"

        yield f"{', '.join(names)}: see [{known_title}](#{known_title.lower()})."


def _describe_section(
    key: str, section: object, resolver: DependencyResolver
) -> Iterator[str]:
    """Describes a section with all that is inside of it; a component in its own table."""
    rows: list[Row] = []

    others: list[str] = []

    def descend(key: str, section: object) -> None:
        components = COMPONENTS.get(type(section))

        for name, hint, value in iter_fields(section):
            field_key = f"{key}.{name}"

            if components is not None and name == "config":
                others.extend(
                    _describe_components(field_key, section, components, resolver)
                )

                continue

            row = make_row(section, name, field_key, hint, value)

            others.extend(describe_elements(field_key, hint))

            if row.meaning or not is_config(value):
                rows.append(row)

            if is_config(value):
                descend(field_key, value)

    descend(key, section)

    yield make_table(rows)

    yield from others


def _describe_components(
    key: str, section: Any, interface: object, resolver: DependencyResolver
) -> Iterator[str]:
    """Describes the settings of each component that a section can name."""
    name_key = f"{key.removesuffix('.config')}.name"

    is_fairseq2 = False

    without: list[str] = []

    for name, config_kls in list_components(resolver, interface):
        is_fairseq2 = is_fairseq2 or is_of_fairseq2(config_kls)

        if config_kls is NoneType or not fields(cast(Any, config_kls)):
            without.append(f"`{name}`")

            continue

        # The settings of the one that is the default may differ from its own defaults.
        if name == section.name and section.config is not None:
            config = section.config
        else:
            config = config_kls()

        yield f"**`{key}`** if `{name_key}` is `{name}`:"

        yield from _describe_section(key, config, resolver)

    if without:
        yield f"Without settings (`{key}=null`): {', '.join(without)}."

    if is_fairseq2:
        yield CHOOSING


def _describe_models(resolver: DependencyResolver) -> Iterator[str]:
    yield "## Models"

    yield "`model.arch` names the shape of a model that is trained from scratch; `model.config_overrides` changes it, as in `model.config_overrides.dropout_p=0.2`. A model that comes from a run (`init_from`) or an asset card (`model.name`) has its shape already; of a file (`model.path`) both say what it holds. With a tokenizer of the family `warmup_spm` or `hugging_face`, `vocab_size` and `pad_idx` are set to fit it."

    for family, kls in (("nllb", NllbConfig), ("t5", T5Config)):
        yield f"### `model.config_overrides` of `model.family={family}`"

        yield from _describe_section("model.config_overrides", kls(), resolver)

        yield f"### `model.arch` of `model.family={family}`"

        yield _make_arch_table(kls, resolver)

    yield "### `model.arch` of `llama` and `qwen`"

    yield "`llama_test` (2 layers, 64 dimensions), `llama_tiny` (4, 128), `llama_small` (6, 256) and `llama_base` (12, 512) are ours, for training from scratch with a tokenizer that `train-tokenizer --model-type byte_bpe` wrote. The other ones are fairseq2's: their shapes are those of the public models, which `import` brings with their weights."

    for family, config_kls in (("llama", LLaMAConfig), ("qwen", QwenConfig)):
        names = ", ".join(f"`{n}`" for n in resolver.iter_keys(config_kls))

        yield f"`{family}`: {names}."


def _make_arch_table(kls: type[object], resolver: DependencyResolver) -> str:
    columns = [
        f.name
        for f in fields(cast(Any, kls))
        if f.name not in ("max_seq_len", "pad_idx", "norm_eps")
        and not f.name.startswith(("num_position", "max_position"))
    ]

    configs = {n: resolver.resolve(kls, key=n) for n in resolver.iter_keys(kls)}

    rows = [
        [f"`{name}`", *(format_value(getattr(config, c)) for c in columns)]
        for name, config in configs.items()
    ]

    return make_markdown(["`model.arch`", *(f"`{name}`" for name in columns)], rows)


def _make_refusals() -> str:
    rows = []

    for settings in REFUSED:
        config = TrainConfig()

        for key, value in settings.items():
            *path, name = key.split(".")

            section: Any = config

            for part in path:
                section = getattr(section, part)

            setattr(section, name, value)

        errors = config.validate().errors

        if len(errors) != 1:
            raise ValueError(f"{settings} must be refused once, but: {errors}.")

        pairs = [f"`{key}={format_value(v)}`" for key, v in settings.items()]

        rows.append([" with ".join(pairs), to_markdown(errors[0])])

    return make_markdown(["setting", "why"], rows)


def main(argv: Sequence[str] | None = None) -> int:
    """
    Runs the command.

    :returns: The exit status: 0, or 1 if ``--check`` finds another text.
    """
    parser = argparse.ArgumentParser(
        prog=COMMAND, description="Writes the reference of every config field."
    )

    parser.add_argument(
        "--check", action="store_true", help="only tell whether the file is up to date"
    )

    parser.add_argument(
        "--output", type=Path, default=FILE, metavar="FILE", help="default: %(default)s"
    )

    args = parser.parse_args(argv)

    docs = make_docs()

    if not args.check:
        write_text_atomically(args.output, docs)
    elif not args.output.is_file() or args.output.read_text(encoding="utf-8") != docs:
        print(
            f"error: `{args.output}` is not up to date; run `{COMMAND}`.",
            file=sys.stderr,
        )

        return 1

    return 0


if __name__ == "__main__":
    sys.exit(main())
