# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""The tokenizer of a run, written as transformers reads it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from warmup_plugin.errors import WarmupError
from warmup_plugin.models.hugging_face.nllb import to_hg_token_idx
from warmup_plugin.models.t5.tokenizer import T5TokenizerConfig, load_t5_tokenizer
from warmup_plugin.runs.tokenizer_files import list_tokenizer_files
from warmup_plugin.transformers_doors import convert_spm


def write_hub_tokenizer(
    path: Path,
    family: str,
    overrides: Mapping[str, Any],
    folder: Path,
    *,
    model_family: str,
    source_lang: str,
    target_lang: str,
) -> Callable[[int], int]:
    """
    Writes a tokenizer.

    :param path: The tokenizer of the run, a file or a folder.
    :param family: Its family.
    :param overrides: Its settings.
    :param model_family: That of the model, whose rows are in the order of its tokens.
    :param source_lang: For the tokenizer of NLLB, as is ``target_lang``.

    :returns: A function from the tokens of the run to those that were written.

    :raises WarmupError: If both have no common form in transformers.
    """
    # The rows of M2M100 are in another order than ours.
    to_hub_idx = to_hg_token_idx if model_family == "nllb" else lambda idx: idx

    match family, model_family:
        case "hugging_face", "llama" | "qwen":
            _copy(path, folder)
        case "t5", "t5":
            _write_t5(path, overrides, folder)
        case "nllb", "nllb":
            _write_nllb(path, overrides, folder, source_lang, target_lang)
        case "warmup_spm", "t5" | "nllb":
            _write_spm(path, folder, to_hub_idx)
        case _:
            raise WarmupError(
                f"A model of the family `{model_family}` with a tokenizer of the family `{family}` has no form in transformers; those of `t5` and `nllb` go with their own or with `warmup_spm`, those of `llama` and `qwen` with `hugging_face`."
            )

    return to_hub_idx


def _copy(source: Path, folder: Path) -> None:
    for file in list_tokenizer_files(source):
        shutil.copyfile(file, folder / file.name)


def _write_t5(path: Path, overrides: Mapping[str, Any], folder: Path) -> None:
    tokenizer = load_t5_tokenizer(path, T5TokenizerConfig(**overrides))

    if path.is_dir():
        _copy(path, folder)
    else:
        shutil.copyfile(path, folder / "spiece.model")

    settings = folder / "tokenizer_config.json"

    if settings.is_file() and not overrides:
        return

    if folder.joinpath("spiece.model").is_file():
        # It would win, and may hold another number of sentinels.
        folder.joinpath("tokenizer.json").unlink(missing_ok=True)

    num_sentinels = tokenizer.vocab_info.size - tokenizer.num_pieces

    content = {
        "tokenizer_class": "T5Tokenizer",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "extra_ids": num_sentinels,
        # In the model itself, as those of mT5, they need no mention.
        "additional_special_tokens": [f"<extra_id_{i}>" for i in range(num_sentinels)],
    }

    settings.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_nllb(
    path: Path,
    overrides: Mapping[str, Any],
    folder: Path,
    source_lang: str,
    target_lang: str,
) -> None:
    from tokenizers import models
    from transformers import NllbTokenizerFast

    langs = list(overrides["langs"])

    # Without PAD, so that unknown, BOS and EOS are the first three pieces.
    first_tokens = ["<s>", "<pad>", "</s>", "<unk>"]

    tokenizer = convert_spm(path, lambda pieces: first_tokens + pieces[3:])

    # As in the public checkpoints; transformers itself would put `<mask>` first.
    tokenizer.add_special_tokens([*langs, "<mask>"])

    # transformers 5 makes a BPE, as the public one is, of all that is called NLLB: of
    # another model, single characters.
    if isinstance(tokenizer.model, models.BPE):
        # It puts the language of its sources before a text, and that of their
        # translations.
        NllbTokenizerFast(
            tokenizer_object=tokenizer,
            src_lang=source_lang,
            tgt_lang=target_lang,
            additional_special_tokens=langs,
        ).save_pretrained(str(folder))
    else:
        _save_fast(
            tokenizer, source_lang, folder, additional_special_tokens=[*langs, "<mask>"]
        )

    shutil.copyfile(path, folder / "sentencepiece.bpe.model")


def _write_spm(path: Path, folder: Path, to_hub_idx: Callable[[int], int]) -> None:
    """Writes a ``warmup_spm`` tokenizer, in the order of the model's rows."""

    def sort(pieces: list[str]) -> list[str]:
        return [
            piece
            for _, piece in sorted((to_hub_idx(i), p) for i, p in enumerate(pieces))
        ]

    _save_fast(convert_spm(path, sort), None, folder)


def _save_fast(
    tokenizer: Any, first: str | None, folder: Path, **options: object
) -> None:
    """
    Writes a tokenizer of the ``tokenizers`` library as it is.

    :param first: The token that begins a text, if one does; EOS ends it.
    """
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    specials = ["</s>"] if first is None else [first, "</s>"]

    begin = "" if first is None else f"{first} "

    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin}$A </s>",
        pair=f"{begin}$A $B </s>",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in specials],
    )

    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        **options,
    ).save_pretrained(str(folder))
