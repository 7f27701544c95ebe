# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from warmup_plugin.data.preparation.data_folder import DataFolder, Inputs, Origin
from warmup_plugin.data.preparation.download import Downloader
from warmup_plugin.data.preparation.examples import (
    SPLITS,
    Example,
    iter_rows,
    prepare_examples,
)
from warmup_plugin.data.preparation.files import find_file, hash_files
from warmup_plugin.errors import WarmupError


@dataclass(frozen=True, kw_only=True)
class SummarizationSet:
    """Describes a data set of documents and summaries."""

    title: str

    page: str

    license: str

    citation: str

    source_field: str

    target_fields: Sequence[str]
    """The field of the summary, or those of several that all hold."""

    id_field: str

    topic_field: str | None = None

    num_published: Mapping[str, int]

    url: str | None = None
    """The folder of the files, unless they are loaded with ``datasets``."""

    hub_name: str | None = None
    """What ``datasets`` calls it."""

    hub_config: str | None = None

    note: str | None = None


DATA_SETS: Final = {
    "xsum": SummarizationSet(
        title="XSum",
        page="https://huggingface.co/datasets/EdinburghNLP/xsum",
        license="unknown, says its page; the articles are the BBC's",
        citation="Narayan et al., Don't Give Me the Details, Just the Summary!, EMNLP 2018",
        source_field="document",
        target_fields=["summary"],
        id_field="id",
        num_published={"train": 204045, "valid": 11332, "test": 11334},
        hub_name="EdinburghNLP/xsum",
    ),
    "cnn_dailymail": SummarizationSet(
        title="CNN/DailyMail",
        page="https://huggingface.co/datasets/abisee/cnn_dailymail",
        license="Apache 2.0, says its page; the articles are CNN's and the Daily Mail's",
        citation="Hermann et al., Teaching Machines to Read and Comprehend, NeurIPS 2015; See et al., Get To The Point, ACL 2017",
        source_field="article",
        target_fields=["highlights"],
        id_field="id",
        num_published={"train": 287113, "valid": 13368, "test": 11490},
        hub_name="abisee/cnn_dailymail",
        hub_config="3.0.0",
        note="Line feeds in `target` separate the sentences of a summary, as ROUGE-Lsum wants them.",
    ),
    "dialogsum": SummarizationSet(
        title="DialogSum",
        page="https://github.com/cylnlp/dialogsum",
        license="CC BY-NC-SA 4.0, not for commercial use",
        citation="Chen et al., DialogSum: A Real-Life Scenario Dialogue Summarization Dataset, Findings of ACL 2021",
        source_field="dialogue",
        target_fields=["summary", "summary1", "summary2", "summary3"],
        id_field="fname",
        topic_field="topic",
        num_published={"train": 12460, "valid": 500, "test": 500},
        url="https://raw.githubusercontent.com/cylnlp/dialogsum/main/DialogSum_Data",
        note="Line feeds in `source` separate turns. Each test dialogue has three summaries: `targets` has all of them, `target` the first.",
    ),
}

# What the authors, and who repacks their files, call our splits.
_NAMES: Final = {
    "train": ["train"],
    "valid": ["dev", "validation", "valid", "val"],
    "test": ["test"],
}

# What `datasets` calls them.
_HUB_NAMES: Final = {"train": "train", "valid": "validation", "test": "test"}


def prepare_summarization(
    folder: DataFolder,
    name: str,
    *,
    splits: Sequence[str] = SPLITS,
    source: Path | None = None,
    url: str | None = None,
    revision: str | None = None,
    downloads: Path,
    downloader: Downloader,
    drop_overlap: bool = False,
) -> str:
    """
    Writes documents (``source``) and summaries (``target``) as JSON lines.

    :param name: A key of :data:`DATA_SETS`.
    :param source: A folder of JSON lines, a file a split, or one that ``datasets``
        loads. If ``None``, the data is downloaded.
    :param url: The folder to download the files of DialogSum from.
    :param revision: The revision on the Hugging Face Hub, for ``datasets``.

    :returns: The key of the entry in the data card.
    """
    data_set = DATA_SETS[name]

    files = _find_files(data_set, name, splits, source)

    sources: dict[str, str] = {}

    if files is None and data_set.url is not None and source is None:
        files = {}

        for split in splits:
            file_name = f"{name}.{_NAMES[split][0]}.jsonl"

            files[split] = downloads / file_name

            sources |= downloader.fetch(
                f"{url or data_set.url}/{file_name}", files[split]
            )
    elif files is not None:
        sources = hash_files(files.values())

    settings: dict[str, object] = {
        "data_set": name,
        "splits": list(splits),
        "drop_overlap": drop_overlap,
    }

    if files is None:
        settings["load_dataset"] = [
            str(source or data_set.hub_name),
            data_set.hub_config,
            revision,
        ]

        if source is not None:
            sources = hash_files(f for f in sorted(source.rglob("*")) if f.is_file())

    inputs = Inputs(sources=sources, settings=settings)

    # Here too, so that nothing is loaded for nothing.
    if folder.is_done(data_set.title, inputs):
        return data_set.title

    examples: dict[str, Iterable[Example]]

    if files is not None:
        examples = {
            split: _convert_rows(iter_rows(file), data_set)
            for split, file in files.items()
        }

        version = "files with the checksums below"
    else:
        examples, version = _load(data_set, splits, source, revision)

    return prepare_examples(
        folder,
        inputs,
        examples,
        origin=Origin(
            title=data_set.title,
            page=data_set.page,
            version=version,
            license=data_set.license,
            citation=data_set.citation,
        ),
        num_published=data_set.num_published,
        drop_overlap=drop_overlap,
        notes=[data_set.note] if data_set.note is not None else [],
    )


def _find_files(
    data_set: SummarizationSet, name: str, splits: Sequence[str], source: Path | None
) -> dict[str, Path] | None:
    """Finds the JSON lines in a folder. Returns ``None`` if ``datasets`` shall load it."""
    if source is None:
        return None

    if not source.is_dir():
        raise WarmupError(f"`--from {source}` is not a folder: check the path.")

    if data_set.hub_name is not None and not any(source.glob("*.jsonl")):
        return None

    return {
        split: find_file(
            source,
            [
                pattern
                for split_name in _NAMES[split]
                for pattern in (f"{name}.{split_name}.jsonl", f"{split_name}.jsonl")
            ],
            split,
        )
        for split in splits
    }


def _load(
    data_set: SummarizationSet,
    splits: Sequence[str],
    source: Path | None,
    revision: str | None,
) -> tuple[dict[str, Iterable[Example]], str]:
    """Loads with ``datasets``. Returns the examples and which version they are."""
    try:
        datasets: Any = import_module("datasets")
    except ImportError:
        raise WarmupError(
            f"{data_set.title} is loaded with the library `datasets`, which is not installed: run `pip install 'warmup_plugin[data]'`, or give a folder of JSON lines with `--from`."
        ) from None

    path, config = str(data_set.hub_name), data_set.hub_config

    if source is not None:
        path = str(source)

        # Only a clone of the repository says what its configurations are.
        if not source.joinpath("README.md").is_file():
            config = None

    examples: dict[str, Iterable[Example]] = {}

    fingerprints = []

    for split in splits:
        try:
            rows = datasets.load_dataset(
                path, config, split=_HUB_NAMES[split], revision=revision
            )
        # It raises whatever its many backends do.
        except Exception as ex:
            reason = str(ex).strip().partition("\n")[0] or type(ex).__name__

            raise WarmupError(
                f"`datasets` could not load `{split}` of `{path}` ({reason}): check the network and `--revision`, or give a folder with `--from`."
            ) from None

        examples[split] = _convert_rows(
            _number_rows(rows, f"`{split}` of `{path}`"), data_set
        )

        fingerprints.append(f"{split} {rows._fingerprint}")

    return (
        examples,
        f"`{path}`, {config or 'default configuration'}, revision {revision or 'main'}; loaded with datasets {datasets.__version__}, fingerprints: {', '.join(fingerprints)}",
    )


def _number_rows(rows: Iterable[Any], origin: str) -> Iterator[tuple[Any, str]]:
    for row_nr, row in enumerate(rows):
        yield row, f"Row {row_nr} of {origin}"


def _convert_rows(
    rows: Iterable[tuple[Any, str]], data_set: SummarizationSet
) -> Iterator[Example]:
    for row, where in rows:
        yield _convert(row, data_set, where)


def _convert(row: Any, data_set: SummarizationSet, where: str) -> Example:
    if not isinstance(row, dict):
        raise WarmupError(f"{where} is not a JSON object: write one a line.")

    targets = [row[field] for field in data_set.target_fields if field in row]

    source = row.get(data_set.source_field)

    if not isinstance(source, str) or not targets:
        fields = ", ".join(f"`{field}`" for field in row) or "none"

        raise WarmupError(
            f"{where} has not the fields `{data_set.source_field}` and `{data_set.target_fields[0]}` of {data_set.title}, but {fields}: check that it is this data set."
        )

    if not all(isinstance(target, str) for target in targets):
        raise WarmupError(f"{where} has a summary that is no text: correct it.")

    example: Example = {
        "id": row.get(data_set.id_field),
        "source": source.strip(),
        "target": targets[0].strip(),
    }

    if len(targets) > 1:
        example["targets"] = [target.strip() for target in targets]

    if data_set.topic_field is not None:
        topics = [
            row[field]
            for field in row
            # With a number where there is one a summary.
            if field.rstrip("0123456789") == data_set.topic_field
        ]

        example["topics"] = topics

    return example
