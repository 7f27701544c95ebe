# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""The pairs that a training reads, as tokens: made at each start, or once and kept."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from secrets import token_hex
from typing import Any, Final, final

import torch.distributed as dist
from fairseq2.gang import Gang
from fairseq2.logging import log
from fairseq2.task import TaskStopException
from torch.nn import Module

from warmup_plugin.data.corpus import Corpus, join_corpora, put_behind, put_into_decoder
from warmup_plugin.data.corpus_cache import (
    CACHE_FOLDER,
    Note,
    get_size,
    load_corpus,
    make_cache_name,
    save_corpus,
)
from warmup_plugin.data.directions import get_pairs_config, narrow_to_direction
from warmup_plugin.data.split_files import describe_split, list_split_files
from warmup_plugin.data.text_pairs import read_split
from warmup_plugin.data.tokenizing import count_processes, tokenize_pairs
from warmup_plugin.errors import WarmupError
from warmup_plugin.gathering import gather_objects
from warmup_plugin.models.separator import has_tied_embeddings
from warmup_plugin.recipes.common import get_codec_options
from warmup_plugin.recipes.complete_config import get_sections
from warmup_plugin.recipes.control import StopSignal
from warmup_plugin.recipes.token_stats import measure_tokens
from warmup_plugin.recipes.train_config import TrainConfig
from warmup_plugin.runs.run_dir import RunDir
from warmup_plugin.tokenizers.codec import TextCodec

LEAST_CACHED_BYTES: Final = 32 << 20
"""Text files that are smaller, some 200,000 pairs, are tokenised in seconds."""

# Whoever waits for a process that has ended is told so at once.
_PATIENCE: Final = timedelta(days=7)

# Of which another version may tokenise another way.
_TOKENIZING_PACKAGES: Final = ("fairseq2", "fairseq2n", "tokenizers")


@final
class PatientGroup:
    """
    Lets processes exchange what takes one of them long to make.

    ``gang.timeout`` does not count here: it is for what takes all equally long, and tens of
    millions of pairs take a process more than its 15 minutes.
    """

    def __init__(self, gang: Gang) -> None:
        """:param gang: All processes of the training, each of which calls this."""
        self._gang = gang

        self._group: dist.ProcessGroup | None = None

        if gang.size > 1:
            self._group = dist.new_group(backend="gloo", timeout=_PATIENCE)

    def gather(self, item: object) -> list[Any]:
        """Collects one picklable object of every process, in the order of the ranks."""
        return gather_objects(self._gang, item, self._group)


@final
class CorpusReader:
    """Reads the splits of a training, the same in each of its processes."""

    def __init__(
        self,
        config: TrainConfig,
        codecs: Mapping[str, TextCodec],
        run_dir: RunDir,
        gang: Gang,
        get_model: Callable[[], Module],
        stop_signal: StopSignal,
        *,
        reads_prompts: bool,
    ) -> None:
        """
        :param codecs: What turns text into tokens, by the names of the directions.
        :param gang: All processes of the training.
        :param get_model: Returns what is trained; called where the data depends on it.
        :param stop_signal: Ends the reading in all processes, whichever receives it.
        :param reads_prompts: ``True`` for a decoder-only model.
        """
        self._config = config
        self._codecs = codecs
        self._run_dir = run_dir
        self._gang = gang
        self._group = PatientGroup(gang)
        self._get_model = get_model
        self._stop_signal = stop_signal
        self._reads_prompts = reads_prompts

        self._begins: dict[str, int] | None = None

        sections = get_sections(config)

        self._narrowed: dict[str, dict[str, Any]] = {
            name: narrow_to_direction(sections, name, find_data=True) for name in codecs
        }

    def read(self, split: str, *, is_training: bool = False) -> Corpus:
        """
        Reads a split, from the cache if it is large.

        :param is_training: If ``True``, ``max_train_pairs`` counts, and the log tells what
            the tokens look like.

        :raises WarmupError: If the files are wrong; if they are not the same for all
            processes, each of which takes its share of one plan of batches.
        :raises TaskStopException: If one of the processes has received a signal.
        """
        # In all processes: they build the model together.
        if self._begins is None:
            self._begins = self._find_begins()

        folder = self._find_cached(split, is_training)

        loaded = made = None if folder is None else self._load(folder, split)

        # Also on a machine that does not see the files of the first one.
        if made is None:
            with suppress(TaskStopException):
                made = self._make(split, is_training, self._gang.size)

        self._stop_together()

        assert made is not None

        corpus, notes = made

        if loaded is not None and folder is not None:
            size = get_size(corpus) / (1 << 20)

            notes.append(
                Note(
                    f"{split}: the tokens are mapped from `{folder}` ({size:,.0f} MiB), which may be deleted when no run needs it."
                )
            )

        if self._gang.rank == 0:
            for note in notes:
                (log.warning if note.is_warning else log.info)("{}", note.text)

        self._check_same(corpus)

        return corpus

    def _find_cached(self, split: str, is_training: bool) -> Path | None:
        """
        Returns the folder of a split in the cache, where the first process puts it.

        The others wait for it, do as it does, and fail or stop as it does.
        """
        result: Path | WarmupError | None = None

        if self._gang.rank == 0:
            try:
                cache_dir = self._find_cache_dir(split)

                if cache_dir is not None:
                    result = self._prepare(split, is_training, cache_dir)
            except WarmupError as ex:
                result = ex
            except TaskStopException:
                pass

        [result, *_] = self._group.gather(result)

        if isinstance(result, WarmupError):
            raise result

        self._stop_together()

        return result

    def _stop_together(self) -> None:
        """
        Lets all processes stop if one of them has received a signal: the others would wait
        for it.

        :raises TaskStopException: If so.
        """
        signums = self._group.gather(self._stop_signal.signum)

        signum = next((n for n in signums if n is not None), None)

        if signum is None:
            return

        self._stop_signal.adopt(signum)

        log.info("No step has begun, so that there is nothing to save; stopping now.")

        raise TaskStopException()

    def _find_cache_dir(self, split: str) -> Path | None:
        """Returns the folder of caches; ``None`` to keep the tokens in memory."""
        setting = self._config.dataset.cache

        if setting == "none":
            return None

        if setting != "auto":
            try:
                return Path(setting).expanduser()
            except RuntimeError:
                raise WarmupError(
                    f"`dataset.cache` is `{setting}`, but there is no such user; correct it."
                ) from None

        files = self._list_files(split)

        if sum(file.stat().st_size for file in files) < LEAST_CACHED_BYTES:
            return None

        [narrowed, *_] = self._narrowed.values()

        # Runs on the same data share it; what may not be written to is somebody else's.
        for folder in (Path(narrowed["dataset"]["path"]), self._run_dir.path):
            cache_dir = folder.expanduser() / CACHE_FOLDER

            # Another user of the same data may have made it.
            place = cache_dir if cache_dir.is_dir() else cache_dir.parent

            if os.access(place, os.W_OK | os.X_OK):
                return cache_dir

        return None

    def _list_files(self, split: str) -> list[Path]:
        files: list[Path] = []

        for narrowed in self._narrowed.values():
            files += list_split_files(get_pairs_config(narrowed["dataset"]), split)

        return files

    def _prepare(self, split: str, is_training: bool, cache_dir: Path) -> Path:
        """Makes what is not in the cache."""
        files = self._list_files(split)

        tokenizer_path = self._run_dir.tokenizer_path

        if tokenizer_path is not None:
            files += (
                sorted(file for file in tokenizer_path.rglob("*") if file.is_file())
                if tokenizer_path.is_dir()
                else [tokenizer_path]
            )

        try:
            name = make_cache_name(split, files, self._list_settings(is_training))

            folder = cache_dir / name

            if self._load(folder, split) is None:
                log.info("{}: tokenising, once for all runs on this data.", split)

                self._remove_damaged(folder)

                save_corpus(folder, *self._make(split, is_training, num_sharing=1))
        except OSError as ex:
            raise WarmupError(
                f"The tokens of the `{split}` split cannot be kept in `{cache_dir}` ({ex.strerror or ex}); set `dataset.cache` to a folder with room, or to `none` to keep them in memory."
            ) from None

        return folder

    @staticmethod
    def _remove_damaged(folder: Path) -> None:
        if folder.exists():
            log.warning("`{}` is damaged and is made anew.", folder)

            # Under another name first, so that nobody opens half of it; its own one, since
            # a killed process may have left such a folder.
            remains = folder.with_name(f"{folder.name}.{token_hex(8)}.tmp")

            # Another run may have been faster.
            with suppress(FileNotFoundError):
                folder.rename(remains)

            shutil.rmtree(remains, ignore_errors=True)

    def _load(self, folder: Path, split: str) -> tuple[Corpus, list[Note]] | None:
        origins = [
            describe_split(get_pairs_config(narrowed["dataset"]), split)
            for narrowed in self._narrowed.values()
        ]

        return load_corpus(folder, origins)

    def _list_settings(self, is_training: bool) -> object:
        """Returns all but the files that a corpus depends on."""
        section = self._config.dataset

        directions: dict[str, object] = {}

        for name, narrowed in self._narrowed.items():
            pairs = asdict(get_pairs_config(narrowed["dataset"]))

            del pairs["path"]

            directions[name] = [
                pairs,
                asdict(get_codec_options(narrowed["tokenizer"], narrowed["dataset"])),
                narrowed["dataset"]["max_train_pairs"] if is_training else None,
                self._list_behind(name) if is_training else [],
            ]

        seed = None

        if any(map(self._list_behind, self._narrowed)):
            seed = self._config.common.seed

        return {
            "directions": directions,
            # Rows of a run that names its only direction carry that name.
            "has_directions": bool(section.directions),
            "is_training": is_training,
            "lens": [section.max_source_len, section.max_target_len],
            "seed": seed,
            "begins": self._begins,
            "tokenizer": [
                self._config.tokenizer.name,
                self._config.tokenizer.family,
                # Such as the tokens of the languages, or the one that ends a text.
                self._config.tokenizer.config_overrides,
            ],
            "reads_prompts": self._reads_prompts,
            "versions": [version(name) for name in _TOKENIZING_PACKAGES],
        }

    def _find_begins(self) -> dict[str, int]:
        """
        Finds what stands between a draft and the target in a decoder, by direction: the
        token that a prepared separator is read like.
        """
        begins = {}

        for name in self._narrowed if not self._reads_prompts else ():
            codec = self._codecs[name]

            if not self._list_behind(name):
                continue

            # A longer prefix ends with a language, which is a separator as it is.
            if codec.layout.prefix_len == 1 and has_tied_embeddings(self._get_model()):
                begins[name] = codec.layout.eos_idx
            else:
                begins[name] = codec.get_begin()

        return begins

    def _list_behind(self, name: str) -> Sequence[str]:
        directions = self._config.dataset.directions

        return (directions[name].behind or ()) if directions else ()

    def _make(
        self, split: str, is_training: bool, num_sharing: int
    ) -> tuple[Corpus, list[Note]]:
        """
        :param num_sharing: How many processes do so at the same time.
        """
        section = self._config.dataset

        corpora: dict[str, Corpus] = {}

        notes: list[Note] = []

        for name, codec in self._codecs.items():
            dataset = self._narrowed[name]["dataset"]

            self._stop_signal.check()

            corpus = corpora[name] = tokenize_pairs(
                read_split(
                    get_pairs_config(dataset), split, with_references=not is_training
                ),
                codec,
                max_source_len=section.max_source_len,
                max_target_len=section.max_target_len,
                max_pairs=dataset["max_train_pairs"] if is_training else None,
                num_processes=count_processes(num_sharing),
                check_stop=self._stop_signal.check,
            )

            prefix = f"{name}, " if section.directions else ""

            notes.append(Note(f"{prefix}{corpus.report.describe()}"))

            if is_training and self._gang.rank == 0:
                for stats in measure_tokens(
                    corpus,
                    codec,
                    name=f"{prefix}{split}",
                    source_lang=dataset["source_lang"],
                    target_lang=dataset["target_lang"],
                ):
                    notes.append(Note(stats.describe()))

                    warning = stats.find_warning()

                    if warning is not None:
                        notes.append(Note(warning, is_warning=True))

        if not section.directions:
            return corpus, notes

        # Behind the sources of others as they are, not as they stand behind more of them.
        behind = {
            name: self._put_behind(name, corpora, others)
            for name in (corpora if is_training else ())
            if (others := self._list_behind(name))
        }

        return join_corpora({**corpora, **behind}), notes

    def _put_behind(
        self, name: str, corpora: Mapping[str, Corpus], behind: Sequence[str]
    ) -> Corpus:
        section, seed = self._config.dataset, self._config.common.seed

        others = [corpora[other] for other in behind]

        if self._reads_prompts:
            return put_behind(
                corpora[name], others, max_source_len=section.max_source_len, seed=seed
            )

        assert self._begins is not None

        return put_into_decoder(
            corpora[name],
            others,
            [self._codecs[other] for other in behind],
            prefix_len=self._codecs[name].layout.prefix_len,
            begin_idx=self._begins[name],
            max_target_len=section.max_target_len,
            seed=seed,
        )

    def _check_same(self, corpus: Corpus) -> None:
        """
        :raises WarmupError: If a process has read other pairs: some would be trained on
            twice and others never, or processes would wait for each other.
        """
        if self._gang.size == 1:
            return

        # A machine that does not see the cache of the first one may have tokenised.
        facts = self._group.gather((len(corpus), corpus.digest))

        for rank, fact in enumerate(facts):
            if fact != facts[0]:
                raise WarmupError(
                    f"Process {rank} has read other pairs ({fact[0]:,}) of {corpus.origin} than process 0 ({facts[0][0]:,}); give all machines the same files."
                )
