# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
Several directions of translation in one run.

A run with ``dataset.directions`` is *narrowed* to one of them: what comes out is the
config of a run that has that direction alone. Imports no fairseq2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from glob import escape
from pathlib import Path
from typing import Any

from warmup_plugin.data.split_files import TextPairsConfig
from warmup_plugin.errors import WarmupError


@dataclass(kw_only=True)
class DirectionSection:
    """Configures one direction of a run with several."""

    path: Path | None = None
    """The folder of its data; ``None`` to look for it in ``dataset.path``: the folder named like the direction, such as `en-de`; `de-en`, whose files are read in reverse; or, of plain files, `dataset.path` itself."""

    prompt: str | None = None
    """What the model reads of a source, see ``dataset.prompt``; ``None`` for that, or for that of the task."""

    source_token: str | None = None
    """What the tokenizer calls the language of the sources, such as `eng_Latn`; ``None`` for what the task says, or for the code in the direction's name."""

    target_token: str | None = None
    """What the tokenizer calls the language of the targets."""

    plain: bool = False
    """If ``True``, ``criterion.name=warmup`` trains this direction without warmups, as `sft` does, beside the others; and so it is decoded."""

    behind: list[str] | None = None
    """The names of other directions: in training every second source stands where a warmup would. In a decoder-only model that is behind one of their prompts, drawn at random; in an encoder-decoder, the decoder begins with it (given, not learned) and the encoder reads one of their sources. So a model learns to read drafts without having seen any."""

    max_train_pairs: int | None = None
    """Of the training split, only so many pairs, the first ones; ``None`` for ``dataset.max_train_pairs``."""


def split_direction(name: str) -> tuple[str, str]:
    """
    Splits the name of a direction, such as ``en-de`` or ``eng_Latn-deu_Latn``.

    :returns: The languages of its sources and targets.

    :raises WarmupError: If these are not exactly two.
    """
    langs = name.split("-")

    if len(langs) != 2 or not all(langs) or "/" in name or name != name.strip():
        raise WarmupError(
            f"`dataset.directions` names `{name}`, which is no direction; write the languages of source and target with one hyphen between them, such as `en-de` or `eng_Latn-deu_Latn`."
        )

    return langs[0], langs[1]


def list_directions(dataset: Mapping[str, Any]) -> list[str]:
    """
    Returns the names of the directions of a run, or of its only one.

    :param dataset: The section ``dataset`` of the run, which may be of an earlier
        version.
    """
    # YAML files are written in the order of the names.
    if dataset.get("directions"):
        return sorted(dataset["directions"])

    return [f"{dataset.get('source_lang')}-{dataset.get('target_lang')}"]


def choose_direction(
    config: Mapping[str, Any], given: str | None, run: Path | None = None
) -> str | None:
    """
    Finds the direction of a run that a command is about.

    :param config: The config of the run.
    :param given: What stands behind ``--direction``; ``None`` if it does not.
    :param run: Where the run is, which messages say; a command may be about several.

    :returns: The name; ``None`` if the run was trained without ``dataset.directions``.

    :raises WarmupError: If there is no such direction, or several and none is given.
    """
    dataset = config["dataset"]

    names = list_directions(dataset)

    known = ", ".join(f"`{name}`" for name in names)

    subject = "The run" if run is None else f"The run in `{run}`"

    if given is not None and given not in names:
        raise WarmupError(
            f"{subject} was not trained on the direction `{given}`; give `--direction` one that it was trained on: {known}."
        )

    if not dataset.get("directions"):
        return None

    if given is None and len(names) > 1:
        raise WarmupError(
            f"{subject} was trained on several directions; choose one with `--direction`: {known}."
        )

    return given or names[0]


def narrow_to_direction(
    config: Mapping[str, Any],
    name: str | None,
    *,
    data_dir: Path | None = None,
    find_data: bool = False,
) -> dict[str, Any]:
    """
    Turns the config of a run with several directions into that of one with one.

    :param config: The sections ``dataset`` and, with several directions, ``tokenizer``,
        at least.
    :param name: The direction, as of :func:`choose_direction`.
    :param data_dir: Where the data is now; ``None`` if it is where the run says. The
        direction is looked for there; the folder itself takes the place of that of the
        only direction that had one of its own.
    :param find_data: If ``True``, the folder of the direction is looked for.

    :returns: The config, whose ``dataset`` and ``tokenizer`` are those of the direction;
        that of a plain one has the criterion ``sft``. Without ``dataset.directions`` nothing but ``data_dir`` makes a difference.

    :raises WarmupError: If ``find_data`` finds no data of the direction.
    """
    dataset = dict(config["dataset"])

    if data_dir is not None:
        dataset["path"] = str(data_dir)

    directions = dataset.get("directions")

    if name is None or not directions:
        return {**config, "dataset": dataset}

    direction = directions[name]

    source_lang, target_lang = split_direction(name)

    prompt = direction["prompt"]

    # Runs of earlier versions do not have it.
    if direction.get("max_train_pairs") is not None:
        dataset["max_train_pairs"] = direction["max_train_pairs"]

    dataset.update(
        directions=None,
        # Of no meaning for a single direction.
        sampling_temperature=1.0,
        source_lang=source_lang,
        target_lang=target_lang,
        prompt=dataset["prompt"] if prompt is None else prompt,
    )

    tokenizer = {
        **config["tokenizer"],
        "source_lang": direction["source_token"],
        "target_lang": direction["target_token"],
    }

    # Without warmup, the outputs begin with their own language.
    if direction.get("plain") and tokenizer.get("warmup_lang") is not None:
        tokenizer["warmup_lang"] = None

    if direction["path"] is not None:
        dataset["path"] = direction["path"]

        if data_dir is not None:
            dataset["path"] = str(_find_moved(data_dir, directions, name))
    elif find_data and dataset["path"] is not None:
        dataset.update(_find_data(dataset, name))

    narrowed = {**config, "dataset": dataset, "tokenizer": tokenizer}

    if direction.get("plain") and "criterion" in config:
        narrowed["criterion"] = {
            **config["criterion"],
            "name": "sft",
            "writes_warmups": None,
        }

    return narrowed


def _find_moved(data_dir: Path, directions: Mapping[str, Any], name: str) -> Path:
    """
    Finds the folder of a direction that had one of its own.

    :param data_dir: Where the data is now.

    :raises WarmupError: It could be that of another direction as well.
    """
    folder = data_dir / name

    if folder.is_dir():
        return folder

    own = [other for other in directions if directions[other]["path"] is not None]

    if len(own) > 1:
        raise WarmupError(
            f"`{data_dir}` has no folder `{name}`, but each of the directions {', '.join(f'`{other}`' for other in own)} has a folder of its own; give `--data` a folder that holds folders, or links, of these names."
        )

    return data_dir


def _find_data(dataset: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns what of the section ``dataset`` says where a direction is."""
    root = Path(str(dataset["path"])).expanduser()

    # Reading it says what is wrong.
    if not root.is_dir():
        return {}

    source_lang, target_lang = split_direction(name)

    folder, reversed_folder = root / name, root / f"{target_lang}-{source_lang}"

    if folder.is_dir():
        return {"path": str(folder)}

    # A question is no translation of its answer.
    if reversed_folder.is_dir() and dataset.get("example", "pair") == "pair":
        if any(reversed_folder.glob("*/MANIFEST*")):
            raise WarmupError(
                f"`{reversed_folder}` has a `MANIFEST`, which cannot be read in reverse for the direction `{name}`; make a folder `{folder}`, or name one with `dataset.directions.{name}.path`."
            )

        # Of plain files, the languages tell the sides.
        return {
            "path": str(reversed_folder),
            "source_field": dataset["target_field"],
            "target_field": dataset["source_field"],
            # They are those of the other direction.
            "references_field": "",
            "source_column": dataset["target_column"],
            "target_column": dataset["source_column"],
        }

    looked_for = f"the folders `{name}` and `{reversed_folder.name}`"

    if dataset["format"] in ("auto", "plain"):
        if all(_has_files(root, lang) for lang in (source_lang, target_lang)):
            # Whatever else is there, it is not of this direction alone.
            return {"format": "plain"}

        looked_for += f", and plain files that end in `.{source_lang}` and `.{target_lang}`, gzipped or not"

    raise WarmupError(
        f"`{root}` has no data of the direction `{name}` (looked for {looked_for}); add it, or name its folder with `dataset.directions.{name}.path`."
    )


def _has_files(folder: Path, lang: str) -> bool:
    return any(any(folder.glob(f"*.{escape(lang)}{ending}")) for ending in ("", ".gz"))


def get_pairs_config(dataset: Mapping[str, Any]) -> TextPairsConfig:
    """
    Returns where the text pairs of a run with one direction are.

    :param dataset: The section ``dataset``, which may be of an earlier version.
    """
    config = TextPairsConfig()

    for field in fields(TextPairsConfig):
        value = dataset.get(field.name)

        if value is not None:
            setattr(config, field.name, Path(value) if field.name == "path" else value)

    return config
