# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fairseq2.models.nllb.tokenizer import NllbTokenizerConfig, load_nllb_tokenizer

from warmup_plugin.errors import WarmupError
from warmup_plugin.files import write_text_atomically
from warmup_plugin.interop.checkpoints import (
    check_new_folder,
    new_folder,
    write_model_config,
    write_weights,
)
from warmup_plugin.interop.peft import merge_peft_adapter
from warmup_plugin.models.hugging_face.table import find_format
from warmup_plugin.models.hugging_face.weights import (
    check_weights,
    expected_shapes,
    read_config_json,
    read_weights,
)
from warmup_plugin.models.t5.tokenizer import (
    T5_TOKENIZER_FAMILY,
    load_t5_tokenizer,
)
from warmup_plugin.recipes.running import unstructure_config
from warmup_plugin.recipes.train_config import TrainConfig
from warmup_plugin.runs.run_dir import RunDir
from warmup_plugin.runs.yaml_files import dump_yaml
from warmup_plugin.tokenizers.codec import CodecOptions, create_codec
from warmup_plugin.tokenizers.hugging_face import (
    HUGGING_FACE_FAMILY,
    load_hugging_face_tokenizer,
)
from warmup_plugin.tokenizers.settings import read_settings
from warmup_plugin.tokenizers.special import SEPARATOR
from warmup_plugin.transformers_doors import get_nllb_languages

# Of `org/name` on the Hub; a path has more parts, or a dot before them.
_HUB_NAME: Final = re.compile(r"^[\w.-]+/[\w.-]+$")

_HUB_FILES: Final = (
    "*.json",
    "*.safetensors",
    "*.bin",
    "*.model",
    "*.txt",
    "*.jinja",
)


@dataclass(frozen=True)
class ImportedModel:
    """Describes what was imported."""

    path: Path
    """A run directory without training, to start from."""

    family: str

    num_parameters: int

    vocab_size: int
    """The number of tokens of the tokenizer."""

    separator: str
    """The token that ends a warmup."""


@dataclass(frozen=True)
class _ImportedTokenizer:
    family: str

    path: Path

    config_overrides: dict[str, object] | None

    vocab_size: int

    separator: str


def import_model(
    source: str,
    out: Path,
    *,
    separator: str | None = None,
    adapter: Path | None = None,
) -> ImportedModel:
    """
    Turns a Hugging Face model and its tokenizer into a run directory to start from.

    :param source: A folder, or the name ``org/name`` of a model on the Hub.
    :param separator: The special token that ends a warmup; ``None`` for the
        tokenizer's default.
    :param adapter: The folder of a LoRA of ``peft`` to merge into the model.

    :raises WarmupError: If the model, the tokenizer or the separator cannot be used;
        then nothing has been written.
    """
    out = out.expanduser()

    # Before anything is read that takes long.
    check_new_folder(out)

    folder = _find_folder(source)

    hg_config = read_config_json(folder)

    hg_format = find_format(hg_config)

    if hg_format.family in ("t5", "nllb") and _is_own_export(folder):
        raise WarmupError(
            f"`{folder}` was exported from a run with a tokenizer of `train-tokenizer`, which `import` is not meant to read back; start from that run itself, by `init_from=RUN_DIR`."
        )

    config: Any = hg_format.from_hg_config(hg_config)

    tokenizer = _read_tokenizer(folder, hg_format.family, separator)

    if config.vocab_size < tokenizer.vocab_size:
        raise WarmupError(
            f"The model in `{folder}` has {config.vocab_size} tokens, but its tokenizer {tokenizer.vocab_size}; copy the tokenizer that the model was trained with into the folder."
        )

    hg_weights = read_weights(folder)

    if adapter is not None:
        hg_weights = merge_peft_adapter(hg_weights, adapter.expanduser())

    weights = hg_format.from_hg_state_dict(hg_weights, config)

    shapes = expected_shapes(hg_format.family, config)

    check_weights(weights, shapes, str(folder))

    # Of a run that has not trained, for those that start from it.
    run_config = TrainConfig()

    run_config.criterion.name = "sft"
    run_config.model.family, run_config.model.arch = hg_format.family, None
    run_config.tokenizer.family = tokenizer.family
    run_config.tokenizer.config_overrides = tokenizer.config_overrides
    run_config.tokenizer.separator = separator

    with new_folder(out) as tmp_folder:
        run_dir = RunDir(tmp_folder)

        write_model_config(run_dir, hg_format.family, config)

        write_weights(run_dir, 0, weights)

        run_dir.adopt_tokenizer(tokenizer.path)

        write_text_atomically(
            run_dir.run_file, dump_yaml(unstructure_config(run_config))
        )

        origin = {"imported_from": source}

        if adapter is not None:
            origin["merged_adapter"] = str(adapter)

        run_dir.write_versions(origin)

        run_dir.write_card(name=out.name)

    return ImportedModel(
        out,
        hg_format.family,
        sum(w.numel() for w in {id(w): w for w in weights.values()}.values()),
        tokenizer.vocab_size,
        tokenizer.separator,
    )


def _find_folder(source: str) -> Path:
    folder = Path(source).expanduser()

    if folder.exists() or not _HUB_NAME.match(source):
        return folder

    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    files = list(_HUB_FILES)

    try:
        # Not both kinds of the same weights, each of gigabytes.
        if _has_safetensors(source):
            files.remove("*.bin")

        return Path(snapshot_download(source, allow_patterns=files))
    except GatedRepoError:
        raise WarmupError(
            f"The model `{source}` is gated; accept its licence on the Hub, log in with `hf auth login`, and try again."
        ) from None
    except RepositoryNotFoundError:
        raise WarmupError(
            f"`{source}` is neither a folder nor a model on the Hugging Face Hub; correct the name."
        ) from None
    except (LocalEntryNotFoundError, OSError):
        raise WarmupError(
            f"`{source}` is not a folder, and as a model on the Hugging Face Hub it cannot be downloaded from here; name a folder with its files, or connect to the Hub."
        ) from None


def _has_safetensors(name: str) -> bool:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        files = HfApi().list_repo_files(name)
    except OfflineModeIsEnabled:
        # Only what is in the cache counts.
        return False

    return any(file.endswith(".safetensors") for file in files)


def _read_tokenizer(
    folder: Path, family: str, separator: str | None
) -> _ImportedTokenizer:
    """Reads the tokenizer and checks that it can end a warmup."""
    tokenizer: Any

    overrides: dict[str, object] | None = None

    options = CodecOptions(separator=separator)

    path = folder

    if family == "t5":
        tokenizer = load_t5_tokenizer(folder)

        name = T5_TOKENIZER_FAMILY
    elif family == "nllb":
        path = folder / "sentencepiece.bpe.model"

        # PAD is before the pieces.
        langs = _read_nllb_langs(folder, 1 + _count_pieces(path))

        tokenizer = load_nllb_tokenizer(
            path, NllbTokenizerConfig(langs=langs, default_lang=langs[0])
        )

        default_lang = "eng_Latn" if "eng_Latn" in langs else langs[0]

        overrides = {"langs": langs, "default_lang": default_lang}

        options = CodecOptions(
            separator=separator, source_lang=default_lang, target_lang=default_lang
        )

        name = "nllb"
    else:
        tokenizer = load_hugging_face_tokenizer(folder)

        name = HUGGING_FACE_FAMILY

    try:
        codec = create_codec(
            tokenizer, options, reads_prompts=name == HUGGING_FACE_FAMILY
        )
    except WarmupError as ex:
        # Training has a setting for what is an option here.
        raise WarmupError(
            str(ex).replace("set `tokenizer.separator` to", "give `--separator`")
        ) from None

    return _ImportedTokenizer(
        name,
        path,
        overrides,
        codec.layout.vocab_size,
        codec.separator,
    )


def _is_own_export(folder: Path) -> bool:
    """Tells whether the tokenizer is one of `warmup_spm`, as an export writes it."""
    if list(folder.glob("*.model")):
        return False

    settings = read_settings(folder / "tokenizer_config.json")

    if settings.get("tokenizer_class") != "PreTrainedTokenizerFast":
        return False

    tokenizer = read_settings(folder / "tokenizer.json")

    names = [_get_content(token) for token in tokenizer.get("added_tokens") or []]

    return "<extra_id_0>" not in names and SEPARATOR in str(tokenizer.get("model"))


def _count_pieces(path: Path) -> int:
    from sentencepiece import SentencePieceProcessor

    if not path.is_file():
        raise WarmupError(
            f"`{path}` is missing; copy the tokenizer of the NLLB checkpoint into the folder."
        )

    try:
        processor = SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError):
        processor = None

    # NLLB has no PAD in the model, so that unknown comes first.
    if processor is None or processor.pad_id() >= 0 or processor.unk_id() != 0:
        raise WarmupError(
            f"`{path}` is not the SentencePiece model of an NLLB; copy it again."
        )

    num_pieces: int = processor.vocab_size()

    return num_pieces


def _read_nllb_langs(folder: Path, num_pieces: int) -> list[str]:
    """
    Reads the languages in the order of their tokens; those of NLLB-200 if unsaid.

    :param num_pieces: The number of tokens before them.

    :raises WarmupError: If they do not follow each other there, or more tokens follow.
    """
    settings = read_settings(folder / "tokenizer_config.json")

    tokenizer = read_settings(folder / "tokenizer.json")

    langs = get_nllb_languages()

    indices: dict[str, int] = {}

    # Whatever else may stand in the files of others.
    try:
        names = settings.get("additional_special_tokens")

        # As transformers 5 calls them.
        if not names:
            names = settings.get("extra_special_tokens")

        if names:
            langs = [_get_content(name) for name in names]

        for idx, token in (settings.get("added_tokens_decoder") or {}).items():
            indices[_get_content(token)] = int(idx)

        for token in tokenizer.get("added_tokens") or []:
            indices[_get_content(token)] = int(token["id"])

        # As versions before 4.34 wrote them.
        for token, idx in read_settings(folder / "added_tokens.json").items():
            indices[token] = int(idx)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise WarmupError(
            f"The special tokens in `{folder}` are not described as transformers does it; take `tokenizer_config.json` and `tokenizer.json` of the public checkpoint."
        ) from None

    langs = sorted(langs, key=lambda lang: indices.get(lang, 0))

    # Users add tokens behind all others, where `<mask>` is the last one of NLLB's.
    end = indices.get("<mask>", num_pieces + len(langs))

    for token, idx in indices.items():
        if idx > end:
            raise WarmupError(
                f"The tokenizer in `{folder}` has the added token `{token}` at {idx}, behind `<mask>`, where fairseq2's tokenizer of NLLB has no place for one, so that an import would lose it; copy its row of the embeddings to that of a language that you do not need, use that one's code for it, and import with the tokenizer files of the public checkpoint."
            )

    for idx, lang in enumerate(langs, start=num_pieces):
        if indices.get(lang, idx) != idx:
            raise WarmupError(
                f"The tokenizer in `{folder}` has the language `{lang}` at {indices[lang]}, where {idx} is expected behind the pieces and the other languages; take the tokenizer files of the public checkpoint."
            )

    return langs


def _get_content(token: object) -> str:
    # Files of newer versions describe the token.
    return str(token["content"] if isinstance(token, Mapping) else token)
