# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""The tokenizer of a run, written as transformers reads it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warmup_plugin.errors import WarmupError
from warmup_plugin.models.hugging_face.nllb import to_hg_token_idx
from warmup_plugin.models.t5.tokenizer import T5_TOKENIZER_FAMILY, load_t5_tokenizer
from warmup_plugin.run_dir import list_tokenizer_files
from warmup_plugin.tokenizers.hugging_face import HUGGING_FACE_FAMILY
from warmup_plugin.tokenizers.spm import WARMUP_SPM_FAMILY


@dataclass(frozen=True)
class HubTokenizer:
    """Describes a tokenizer that was written."""

    to_hub_idx: Callable[[int], int]
    """Maps a token of ours to one of transformers."""


def write_hub_tokenizer(
    path: Path, family: str, overrides: dict[str, Any], folder: Path, **langs: str
) -> HubTokenizer:
    """
    Writes a tokenizer.

    :param path: The tokenizer of the run, a file or a folder.
    :param family: Its family.
    :param langs: ``source_lang`` and ``target_lang`` of a tokenizer of NLLB.

    :raises WarmupError: If the family has no form in transformers.
    """
    if family == HUGGING_FACE_FAMILY:
        _copy(path, folder)

        return HubTokenizer(_keep)

    if family == T5_TOKENIZER_FAMILY:
        _write_t5(path, overrides, folder)

        return HubTokenizer(_keep)

    if family == "nllb":
        _write_nllb(path, overrides, folder, **langs)

        return HubTokenizer(to_hg_token_idx)

    if family == WARMUP_SPM_FAMILY:
        _write_spm(path, folder)

        return HubTokenizer(to_hg_token_idx)

    raise WarmupError(
        f"Tokenizers of the family `{family}` cannot be exported to Hugging Face; those of `{T5_TOKENIZER_FAMILY}`, `nllb`, `{HUGGING_FACE_FAMILY}` and `{WARMUP_SPM_FAMILY}` can."
    )


def _keep(idx: int) -> int:
    return idx


def _copy(source: Path, folder: Path) -> None:
    for file in list_tokenizer_files(source):
        shutil.copyfile(file, folder / file.name)


def _write_t5(path: Path, overrides: dict[str, Any], folder: Path) -> None:
    if path.is_dir():
        _copy(path, folder)

        if folder.joinpath("tokenizer_config.json").is_file():
            return

    from transformers import T5TokenizerFast

    tokenizer = load_t5_tokenizer(path)

    file = path / "spiece.model" if path.is_dir() else path

    # Its own sentinels are in the model of mT5; transformers adds none to them then.
    num_pieces = tokenizer.num_pieces

    T5TokenizerFast(
        vocab_file=str(file), extra_ids=tokenizer.vocab_info.size - num_pieces
    ).save_pretrained(str(folder))


def _write_nllb(
    path: Path,
    overrides: dict[str, Any],
    folder: Path,
    *,
    source_lang: str,
    target_lang: str,
) -> None:
    from transformers import NllbTokenizerFast

    langs = list(overrides["langs"])

    # Without PAD, so that unknown, BOS and EOS are the first three pieces.
    tokenizer = _convert_spm(path, ["<s>", "<pad>", "</s>", "<unk>"], num_replaced=3)

    # As in the public checkpoints; transformers itself would put `<mask>` first.
    tokenizer.add_special_tokens([*langs, "<mask>"])

    # It puts the language of its sources before a text, and that of their translations.
    NllbTokenizerFast(
        tokenizer_object=tokenizer,
        src_lang=source_lang,
        tgt_lang=target_lang,
        additional_special_tokens=langs,
    ).save_pretrained(str(folder))

    shutil.copyfile(path, folder / "sentencepiece.bpe.model")


def _write_spm(path: Path, folder: Path) -> None:
    """
    Writes a ``warmup_spm`` tokenizer, whose first four tokens change their order to
    that of M2M100, as the rows of the model do.
    """
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = _convert_spm(path, ["<s>", "<pad>", "</s>", "<unk>"], num_replaced=4)

    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>",
        pair="$A $B </s>",
        special_tokens=[("</s>", tokenizer.token_to_id("</s>"))],
    )

    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(str(folder))


def _convert_spm(path: Path, first_tokens: list[str], *, num_replaced: int) -> Any:
    """
    Turns a SentencePiece model into a fast tokenizer.

    :param first_tokens: What the vocabulary begins with, instead of the first
        ``num_replaced`` pieces of the model.
    """
    from transformers.convert_slow_tokenizer import SpmConverter

    class Slow:
        """What the converter wants to know of a tokenizer that is not fast."""

        vocab_file = str(path)
        add_prefix_space = True
        legacy = True

    class Converter(SpmConverter):
        def vocab(self, proto: Any) -> list[tuple[str, float]]:
            pieces = [(p.piece, p.score) for p in proto.pieces[num_replaced:]]

            return [(token, 0.0) for token in first_tokens] + pieces

        def unk_id(self, proto: Any) -> int:
            return first_tokens.index("<unk>")

    converter: Any = Converter

    return converter(Slow()).converted()
