# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""The systems that ``bench_generate.py`` compares, and what all of them do."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, final

import torch
from fairseq2.models.nllb import NllbConfig
from fairseq2.models.nllb.factory import create_nllb_model
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from scripts.bench_common import (
    BOS_IDX,
    Setting,
    create_batch,
    create_layout,
    create_nllb_config,
)
from warmup_plugin.data.directions import get_pairs_config
from warmup_plugin.data.text_pairs import read_split
from warmup_plugin.data.tokenizing import encode_sources
from warmup_plugin.errors import WarmupError
from warmup_plugin.generation import GenerationConfig, WarmupGenerator
from warmup_plugin.interop.checkpoints import load_model_config, load_weights
from warmup_plugin.layout import DecoderLayout
from warmup_plugin.models.hugging_face.nllb import (
    NllbHuggingFaceFormat,
    from_hg_token_idx,
    to_hg_token_idx,
)
from warmup_plugin.models.int8 import quantize_projections
from warmup_plugin.models.scorable import create_conditional_model
from warmup_plugin.recipes.checks import read_run_config
from warmup_plugin.recipes.common import get_codec_options
from warmup_plugin.runs.run_dir import RunDir
from warmup_plugin.tokenizers.codec import create_codec
from warmup_plugin.tokenizers.loading import load_tokenizer

BASE: Final = "transformers"

INT8_SYSTEMS: Final = ("ours-int8", "ctranslate2-int8")

PLAIN_SYSTEMS: Final = (BASE, "ours", "full-search", "ctranslate2", *INT8_SYSTEMS)

WARMUP_SYSTEMS: Final = ("single", "greedy-then-beam", "sample")

# Longer than any caption.
_MAX_RUN_LEN: Final = 60


@final
@dataclass(frozen=True)
class Job:
    """Holds what all systems do."""

    name: str

    config: NllbConfig

    weights: Mapping[str, Tensor]

    layout: DecoderLayout

    sources: list[list[int]]

    prefix: list[int]

    fixed_len: int | None
    """The number of tokens of every output, EOS not counted; ``None`` if they end by
    themselves."""

    warmup_len: int

    num_warmups: int

    @property
    def max_len(self) -> int:
        return _MAX_RUN_LEN if self.fixed_len is None else self.fixed_len

    @property
    def suppressed(self) -> list[int]:
        """What other libraries call the control symbols, which no output holds."""
        layout = self.layout

        return [
            to_hg_token_idx(idx)
            for idx in layout.banned_in_target
            if idx < layout.vocab_size
        ]


def create_random_job(setting: Setting, num_sentences: int) -> Job:
    """Creates an untrained model and random sources."""
    torch.manual_seed(0)

    config = create_nllb_config(setting)

    # Also for outputs without end.
    config.max_seq_len += 128

    batch = create_batch(
        setting, num_sentences * setting.target_len, torch.device("cpu")
    )

    sources = [
        seq[:n] for seq, n in zip(batch.source_seqs.tolist(), batch.source_seq_lens)
    ]

    return Job(
        setting.describe(),
        config,
        create_nllb_model(config).state_dict(),
        create_layout(setting),
        sources,
        [BOS_IDX],
        setting.target_len - 1,
        setting.warmup_len,
        setting.num_warmups,
    )


def load_run_job(path: Path, num_sentences: int) -> Job:
    """
    Loads the best model of a run and the sources of its test set.

    :raises WarmupError: If its family is not ``nllb``.
    """
    run_dir = RunDir(path)

    step_nr = run_dir.find_checkpoint("best")

    run_config = read_run_config(run_dir)

    family, config = load_model_config(run_dir)

    if not isinstance(config, NllbConfig):
        raise WarmupError(
            f"The model of `{path}` is of the family `{family}`, but this benchmark builds twins of `nllb` only; name another run."
        )

    section = run_config["tokenizer"]

    if run_dir.tokenizer_path is None:
        raise WarmupError(f"`{path}` holds no tokenizer; name another run.")

    codec = create_codec(
        load_tokenizer(
            run_dir.tokenizer_path, section["family"], section["config_overrides"]
        ),
        get_codec_options(section, run_config["dataset"]),
        reads_prompts=False,
    )

    dataset = run_config["dataset"]

    pairs = read_split(get_pairs_config(dataset), dataset["test_split"])

    texts = [pairs.source(idx) for idx in range(min(len(pairs), num_sentences))]

    _, sources, prefixes = encode_sources(texts, codec)

    return Job(
        f"{path.name}, step {step_nr}: {pairs.origin}",
        config,
        load_weights(run_dir, step_nr),
        codec.layout,
        [sources[n].tolist() for n in range(len(sources))],
        prefixes[0].tolist(),
        None,
        run_config["warmup"]["max_warmup_len"],
        run_config["warmup"]["num_warmups"],
    )


System = Callable[[Sequence[Sequence[int]]], list[list[int]]]
"""Generates for a batch of sources; returns the tokens of the outputs, without EOS."""


@final
class Ours:
    def __init__(
        self,
        job: Job,
        device: torch.device,
        beam: int,
        warmup: str,
        *,
        early_stopping: bool,
        int8: bool = False,
    ) -> None:
        with device:
            model = create_nllb_model(job.config)

        model.load_state_dict(dict(job.weights))

        model.eval()

        if int8 and quantize_projections(model) == 0:
            raise WarmupError(
                f"`{job.name}` has no projection that is large enough for 8 bits; leave `ours-int8` out."
            )

        self._job = job
        self._device = device

        self._generator = WarmupGenerator(
            create_conditional_model(model),
            job.layout,
            GenerationConfig(
                warmup=warmup,
                max_warmup_len=job.warmup_len,
                num_warmups=job.num_warmups,
                beam_size=beam,
                max_len_a=0.0,
                max_len_b=job.max_len,
                min_len_b=job.fixed_len or 0,
                early_stopping=early_stopping,
            ),
        )

    def __call__(self, batch: Sequence[Sequence[int]]) -> list[list[int]]:
        seqs, lens = _pad(batch, self._job.layout.pad_idx)

        prefixes = torch.tensor([self._job.prefix] * len(batch), device=self._device)

        with torch.inference_mode():
            groups = self._generator(seqs.to(self._device), lens, prefixes)

        return [group[0].target for group in groups]


@final
class Transformers:
    def __init__(self, job: Job, device: torch.device, beam: int) -> None:
        self._job = job
        self._device = device

        self.model = _create_twin(job).to(device)

        self._options = dict(
            do_sample=False,
            num_beams=beam,
            max_new_tokens=job.max_len + 1,
            min_new_tokens=job.fixed_len,
            length_penalty=1.0,
            early_stopping=True,
            suppress_tokens=job.suppressed,
        )

        if job.fixed_len is not None:
            self._options["forced_eos_token_id"] = self.model.config.eos_token_id

        if beam == 1:
            del self._options["early_stopping"], self._options["length_penalty"]

    def __call__(self, batch: Sequence[Sequence[int]]) -> list[list[int]]:
        ids = [[to_hg_token_idx(idx) for idx in seq] for seq in batch]

        pad_idx = self.model.config.pad_token_id

        seqs, lens = _pad(ids, pad_idx)

        mask = torch.arange(seqs.size(1)) < torch.tensor(lens).unsqueeze(1)

        prefix = [to_hg_token_idx(idx) for idx in self._job.prefix]

        with torch.inference_mode():
            outputs = self.model.generate(
                seqs.to(self._device),
                attention_mask=mask.long().to(self._device),
                decoder_input_ids=torch.tensor(
                    [prefix] * len(batch), device=self._device
                ),
                **self._options,
            )

        ends = (self.model.config.eos_token_id, pad_idx)

        hypotheses = [
            [*takewhile(lambda idx: idx not in ends, seq[len(prefix) :])]
            for seq in outputs.tolist()
        ]

        # An output that reaches the limit has another token where EOS should be.
        return [
            [from_hg_token_idx(i) for i in hypothesis[: self._job.max_len]]
            for hypothesis in hypotheses
        ]


@final
class CTranslate2:
    def __init__(
        self, job: Job, device: torch.device, beam: int, threads: int, int8: bool
    ) -> None:
        import ctranslate2

        self._job = job

        # Deleted with this object.
        self._folder = tempfile.TemporaryDirectory(prefix="bench_generate-")

        folder = self._folder.name

        twin = _create_twin(job)

        loader = ctranslate2.converters.transformers.M2M100Loader()

        names = [f"t{idx}" for idx in range(twin.config.vocab_size)]

        # A token is called by its number.
        tokenizer = SimpleNamespace(
            get_vocab=lambda: {name: idx for idx, name in enumerate(names)},
            bos_token=names[twin.config.bos_token_id],
            eos_token=names[twin.config.eos_token_id],
            unk_token=names[3],
            unk_token_id=3,
            num_madeup_words=0,
            special_tokens_map={},
            convert_ids_to_tokens=names.__getitem__,
        )

        spec = loader(twin, tokenizer)

        spec.validate()
        spec.optimize()
        spec.save(folder)

        self._translator = ctranslate2.Translator(
            folder,
            device=device.type,
            intra_threads=threads,
            inter_threads=1,
            compute_type="int8" if int8 else "default",
        )

        self._options = dict(
            beam_size=beam,
            max_decoding_length=job.max_len,
            min_decoding_length=job.fixed_len or 1,
            length_penalty=1.0,
            suppress_sequences=[[f"t{idx}"] for idx in job.suppressed],
            disable_unk=True,
        )

    def __call__(self, batch: Sequence[Sequence[int]]) -> list[list[int]]:
        results = self._translator.translate_batch(
            [[f"t{to_hg_token_idx(idx)}" for idx in seq] for seq in batch],
            **self._options,
        )

        return [
            [from_hg_token_idx(int(token[1:])) for token in result.hypotheses[0]]
            for result in results
        ]


def _create_twin(job: Job) -> Any:
    """Builds the model of transformers with the same weights."""
    import transformers

    hg_format = NllbHuggingFaceFormat()

    hg_config = hg_format.to_hg_config(job.config)

    config = transformers.M2M100Config(**hg_config.data)

    config.decoder_start_token_id = to_hg_token_idx(job.prefix[0])

    model = transformers.M2M100ForConditionalGeneration(config)

    weights = hg_format.to_hg_state_dict(dict(job.weights), job.config)

    missing, unexpected = model.load_state_dict(weights, strict=False)

    # The embeddings are tied, the positions computed.
    missing = [
        name for name in missing if "embed_" not in name and name != "lm_head.weight"
    ]

    if missing or unexpected:
        raise RuntimeError(f"The twin differs: {missing}, {unexpected}.")

    model.tie_weights()

    assert model.generation_config is not None

    model.generation_config.forced_bos_token_id = None

    return model.eval()


def _pad(seqs: Sequence[Sequence[int]], pad_idx: int) -> tuple[Tensor, list[int]]:
    lens = [len(seq) for seq in seqs]

    rows = [torch.tensor(seq) for seq in seqs]

    return pad_sequence(rows, batch_first=True, padding_value=pad_idx), lens


def create_system(
    name: str, job: Job, device: torch.device, beam: int, threads: int
) -> System:
    """
    :raises WarmupError: If the other library is not installed.
    """
    int8 = name in INT8_SYSTEMS

    base_name = name.removesuffix("-int8")

    if base_name not in (BASE, "ctranslate2"):
        warmup = "none" if name in PLAIN_SYSTEMS else name.replace("-", "_")

        # `ours` ends its search as the other libraries are asked to.
        early_stopping = base_name == "ours"

        return Ours(job, device, beam, warmup, early_stopping=early_stopping, int8=int8)

    try:
        if name == BASE:
            return Transformers(job, device, beam)

        return CTranslate2(job, device, beam, threads, int8)
    except ImportError as ex:
        raise WarmupError(
            f"{ex.name} is not installed; install it with `pip install '.[bench,test]'` or choose other systems with `--systems`."
        ) from None
