# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from warmup_plugin.data.directions import choose_direction, narrow_to_direction
from warmup_plugin.errors import WarmupError
from warmup_plugin.interop.checkpoints import (
    check_new_folder,
    complete_tied,
    load_adapted,
    load_model_config,
    load_weights,
    new_folder,
)
from warmup_plugin.interop.hub_tokenizer import write_hub_tokenizer
from warmup_plugin.interop.model_card import (
    ADAPTER_FOLDER,
    ModelCard,
    write_model_card,
)
from warmup_plugin.interop.peft import write_peft_adapter
from warmup_plugin.models.families import find_family, reads_prompts
from warmup_plugin.models.hugging_face.table import get_format
from warmup_plugin.models.hugging_face.weights import write_model
from warmup_plugin.models.lora_checkpoint import find_record
from warmup_plugin.parsing import parse_json
from warmup_plugin.recipes.checks import read_run_config
from warmup_plugin.recipes.common import get_codec_options
from warmup_plugin.runs.run_dir import RunDir
from warmup_plugin.tokenizers.codec import (
    CodecOptions,
    TextCodec,
    adapt_tokenizer,
    create_codec,
)
from warmup_plugin.tokenizers.loading import load_tokenizer
from warmup_plugin.tokenizers.nllb import NllbWarmupTokenizer
from warmup_plugin.warmup_lens import get_max_warmup_len, writes_warmups

HIGH_CUT_SHARE: Final = 0.5
"""Half of the warmups: without a forced separator most outputs would be none."""


@dataclass(frozen=True)
class ExportedModel:
    """Describes what was exported."""

    path: Path

    step_nr: int

    arch: str
    """The class of transformers."""

    vocab_size: int

    to_hub_idx: Callable[[int], int]
    """Turns a token of ours into that of the exported tokenizer."""

    cut_share: float | None = None
    """The share of warmups that the limit ended when the checkpoint was written;
    ``None`` where no warmups were drawn."""

    adapter: Path | None = None
    """The folder of the adapter that belongs to it, in the format of ``peft``."""

    def list_hub_indices(self) -> list[int]:
        """Lists the tokens of the exported tokenizer by ours."""
        return [self.to_hub_idx(idx) for idx in range(self.vocab_size)]


def export_run(
    run_dir: RunDir,
    out: Path,
    *,
    checkpoint: str,
    direction: str | None = None,
    merge: bool = False,
) -> ExportedModel:
    """
    Writes a checkpoint of a run as transformers reads it: model, tokenizer, settings of
    generation, and a model card that says how to split what the model writes.

    :param checkpoint: ``best``, ``last`` or a step.
    :param direction: Of a run with several directions, the one that prompt and
        languages are set to; the model is that of all.
    :param merge: If ``True``, the adapter of a run with LoRA is merged into its base;
        else the base is written, and in its folder ``adapter`` what belongs to it.

    :raises WarmupError: If there is no such checkpoint or direction, the family or the
        tokenizer has no form in transformers, or the output exists.
    """
    out = out.expanduser()

    check_new_folder(out)

    step_nr = run_dir.find_checkpoint(checkpoint)

    run_config = read_run_config(run_dir, complete=True)

    run_config = narrow_to_direction(
        run_config, choose_direction(run_config, direction, run_dir.path)
    )

    config: Any

    family_name, config = load_model_config(run_dir)

    hg_format = get_format(family_name)

    is_decoder_only = reads_prompts(find_family(family_name))

    tokenizer_path = run_dir.tokenizer_path

    if tokenizer_path is None:
        raise WarmupError(
            f"The run in `{run_dir.path}` uses the tokenizer `{run_config['tokenizer']['name']}`, which is not in its directory; start a run from an imported model to export it."
        )

    section = run_config["tokenizer"]

    options = _get_codec_options(run_config)

    tokenizer = load_tokenizer(
        tokenizer_path, section["family"], section["config_overrides"]
    )

    codec = create_codec(tokenizer, options, reads_prompts=is_decoder_only)

    adapted = adapt_tokenizer(tokenizer)

    lang_indices: frozenset[int] = frozenset()

    if isinstance(adapted, NllbWarmupTokenizer):
        lang_indices = adapted.lang_indices

    separator = codec.separator

    # transformers calls the token of a language by its code alone.
    if options.warmup_lang is not None:
        separator = str(options.target_lang)

    # An imported model is its own step 0.
    is_trained = step_nr > 0

    has_warmup = writes_warmups(run_config)

    # As `generate` has it, of a run whose limit changes too.
    max_warmup_len = get_max_warmup_len(run_config["warmup"], step_nr)

    cut_share = _read_cut_share(run_dir, step_nr) if has_warmup else None

    hg_config = hg_format.to_hg_config(config)

    arch = hg_config.arch if isinstance(hg_config.arch, str) else hg_config.arch[0]

    if merge and find_record(run_dir.checkpoint_dir) is None:
        raise WarmupError(
            f"`--merge` merges the adapter of a run with `lora.rank`, which `{run_dir.path}` has not; leave it out."
        )

    parts = None if merge else load_adapted(run_dir, step_nr)

    weights = load_weights(run_dir, step_nr) if parts is None else parts.base

    weights = complete_tied(weights, family_name, config)

    adapter_path = None if parts is None else out.absolute() / ADAPTER_FOLDER

    with new_folder(out) as folder:
        to_hub_idx = write_hub_tokenizer(
            tokenizer_path,
            section["family"],
            section["config_overrides"] or {},
            folder,
            model_family=family_name,
            source_lang=str(options.source_lang),
            target_lang=str(options.target_lang),
        )

        # What every decoder sequence begins with; nothing behind a prompt.
        prefix = [] if is_decoder_only else codec.encode_source("").prefix

        generation = _create_generation_config(
            codec,
            prefix,
            config.vocab_size,
            to_hub_idx,
            has_warmup=has_warmup,
            lang_indices=lang_indices,
        )

        # Of NLLB, the language of the targets, or of the warmups if that is another one.
        if len(prefix) > 1 and is_trained:
            generation["forced_bos_token_id"] = to_hub_idx(prefix[1])

        generation["max_new_tokens"] = run_config["dataset"]["max_target_len"]

        if has_warmup:
            generation["max_new_tokens"] += max_warmup_len + 1

        # A decoder-only model may have no PAD, and what pads its batches is no part of
        # it.
        if is_decoder_only:
            names = ["eos_token_id", "bos_token_id"]

            generation["bos_token_id"] = tokenizer.vocab_info.bos_idx
        else:
            names = ["eos_token_id", "pad_token_id", "decoder_start_token_id"]

        write_model(
            folder,
            hg_config,
            hg_format.to_hg_state_dict(dict(weights), config),
            {name: generation[name] for name in names},
        )

        if parts is not None:
            write_peft_adapter(
                folder / ADAPTER_FOLDER,
                parts.adapter,
                parts.record,
                hg_format,
                config,
                base=str(out.absolute()),
                is_decoder_only=is_decoder_only,
            )

        folder.joinpath("generation_config.json").write_text(
            json.dumps(generation, indent=2) + "\n", encoding="utf-8"
        )

        write_model_card(
            folder,
            ModelCard(
                name=out.name,
                arch=arch,
                is_decoder_only=is_decoder_only,
                separator=separator if has_warmup else None,
                separator_idx=to_hub_idx(codec.layout.separator_idx),
                template=codec.template,
                langs=(
                    (str(options.source_lang), str(options.target_lang))
                    if is_trained
                    else None
                ),
                step_nr=step_nr,
                score=run_dir.scores().get(step_nr),
                score_metric=run_config["regime"]["score_metric"],
                max_warmup_len=max_warmup_len,
                eos_idx=generation["eos_token_id"],
                num_forced=(
                    1 + ("forced_bos_token_id" in generation)
                    if not is_decoder_only
                    else 0
                ),
                cut_share=cut_share,
                warmup_lang=options.warmup_lang,
                ends_like_text=codec.layout.ends_like_text,
                has_adapter=parts is not None,
            ),
        )

    return ExportedModel(
        out, step_nr, arch, codec.layout.vocab_size, to_hub_idx, cut_share, adapter_path
    )


def _read_cut_share(run_dir: RunDir, step_nr: int) -> float | None:
    """Reads from the log of a run how many warmups its limit ended, up to a step."""
    share = None

    try:
        lines = (run_dir.path / "metrics" / "train.jsonl").read_text(encoding="utf-8")
    except OSError:
        return None

    for line in lines.splitlines():
        try:
            row = parse_json(line)

            if int(row["Step"]) <= step_nr:
                share = float(row["Cut Warmups (%)"])
        # A run without warmups, or one that broke off in a line.
        except (ArithmeticError, KeyError, TypeError, ValueError):
            continue

    return share


def _get_codec_options(run_config: dict[str, Any]) -> CodecOptions:
    options = get_codec_options(run_config["tokenizer"], run_config["dataset"])

    overrides = run_config["tokenizer"]["config_overrides"] or {}

    langs = overrides.get("langs")

    if langs is None:
        return options

    def choose(lang: str | None) -> str:
        # A model that was imported and not trained yet has no languages of its own.
        return str(lang if lang in langs else overrides["default_lang"])

    return replace(
        options,
        source_lang=choose(options.source_lang),
        target_lang=choose(options.target_lang),
    )


def _create_generation_config(
    codec: TextCodec,
    prefix: Sequence[int],
    num_logits: int,
    to_hub_idx: Callable[[int], int],
    *,
    has_warmup: bool,
    lang_indices: frozenset[int],
) -> dict[str, Any]:
    """
    Creates the settings of ``generate()`` of transformers.

    :param num_logits: The number of rows of the output projection, which may be more
        than there are tokens.
    :param lang_indices: The tokens of languages, none of which may be suppressed:
        users force that of the language they want.
    """
    layout = codec.layout

    # What is generated nowhere, neither in a warmup nor in an output.
    banned = set(layout.banned_in_target)

    if has_warmup:
        banned &= set(layout.banned_in_warmup)

    banned |= set(range(layout.vocab_size, num_logits))

    # A suppressed token cannot be forced either.
    banned -= {*prefix[1:], *lang_indices}

    generation: dict[str, Any] = {
        "eos_token_id": to_hub_idx(layout.eos_idx),
        "pad_token_id": to_hub_idx(layout.pad_idx),
        "suppress_tokens": sorted(map(to_hub_idx, banned)),
    }

    if prefix:
        generation["decoder_start_token_id"] = to_hub_idx(prefix[0])

    return generation
