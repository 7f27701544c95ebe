# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import io
import json
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from warmup_plugin.errors import WarmupError
from warmup_plugin.files import write_bytes_atomically
from warmup_plugin.tokenizers.byte_bpe import train_byte_bpe
from warmup_plugin.tokenizers.special import SEPARATOR

BYTE_BPE: Final = "byte_bpe"
"""The type for decoder-only models; the other ones are SentencePiece's."""

MODEL_TYPES: Final = ("unigram", "bpe", BYTE_BPE)

NLLB: Final = "nllb"
"""The family of tokenizers with a token for each language."""

FAMILIES: Final = ("warmup_spm", NLLB)
"""The families that read a SentencePiece model; ``byte_bpe`` is of `hugging_face`."""

DEFAULT_NORMALIZATION: Final = "identity"
"""Gives text back as it was; all others turn, for example, Chinese punctuation into
that of ASCII, which no output then has."""

DEFAULT_NUM_THREADS: Final = 4

NORMALIZATIONS: Final = ("identity", "nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf")

# SentencePiece leaves out lines with the first one, which it writes for what is unknown,
# and stops at the second one.
_RESERVED: Final = re.compile("[\u2585\0]")

# SentencePiece leaves out longer lines, which is right: they are seldom sentences.
MAX_LINE_BYTES: Final = 4192

# PAD, UNK, BOS, EOS, the separator and one character.
MIN_VOCAB_SIZE: Final = 6

_SPECIAL_PIECES: Final[dict[str, dict[str, Any]]] = {
    "warmup_spm": {
        "pad_id": 0,
        "unk_id": 1,
        "bos_id": 2,
        "eos_id": 3,
        "control_symbols": [SEPARATOR],
    },
    # As the public model has them: fairseq2 adds PAD and the languages.
    NLLB: {"pad_id": -1, "unk_id": 0, "bos_id": 1, "eos_id": 2},
}

# PAD, EOS, the separator, the end of a prompt and the bytes.
MIN_BYTE_BPE_VOCAB_SIZE: Final = 260


@dataclass(kw_only=True)
class TokenizerTrainingReport:
    """Describes a training of a tokenizer; the lines are counted as they are read."""

    path: Path
    """The model, or its folder."""

    vocab_size: int
    """The number of tokens, special ones included."""

    num_lines: int = 0
    """The number of lines trained on."""

    num_empty_lines: int = 0
    """The number of lines left out since they hold no text."""

    num_long_lines: int = 0
    """The number of lines left out since they are longer than 4192 bytes."""

    num_reserved_lines: int = 0
    """The number of lines without a token for a character that SentencePiece cannot
    learn, U+2585 or U+0000; the rest of them was trained on."""

    num_changed_lines: int = 0
    """The number of lines that the normalization changes."""


def train_tokenizer(
    inputs: Sequence[Path],
    output: Path,
    *,
    vocab_size: int,
    model_type: str = "unigram",
    family: str | None = None,
    character_coverage: float = 1.0,
    normalization: str | None = None,
    num_threads: int | None = None,
    json_fields: Sequence[str] | None = None,
    force: bool = False,
) -> TokenizerTrainingReport:
    """
    Trains a tokenizer: a SentencePiece model for the family ``warmup_spm`` or ``nllb``,
    or byte-level BPE for the family ``hugging_face``, which decoder-only models need.

    The same inputs and options give the same bytes on every machine.

    :param inputs:
        The text files, one sentence a line, JSON lines if they end in ``.jsonl``, or
        two columns if they end in ``.tsv``; ``.gz`` is unpacked.
    :param output:
        The model, or the folder of ``byte_bpe``. It appears only once it is complete;
        the folder it is in is created.
    :param model_type: ``unigram``, ``bpe`` or ``byte_bpe``.
    :param family:
        ``warmup_spm`` (``None``), or ``nllb``, to which the languages are added by
        ``tokenizer.config_overrides.langs`` when it is read.
    :param character_coverage: Of no use with ``byte_bpe``, which has all bytes.
    :param normalization:
        ``None`` for ``identity``, which keeps text as it is but for runs of spaces;
        ``byte_bpe`` does so too.
    :param num_threads:
        The number of threads of SentencePiece, ``None`` for 4. The default does not
        follow the number of cores, since the order in which threads add their counts
        up decides between near ties.
    :param json_fields:
        The fields of JSON lines that hold text, each line of it a sentence; ``None``
        for ``source`` and ``target``.
    :param force: If ``True``, replaces an existing ``output``.

    :raises WarmupError: An input, an option or the output cannot be used.
    """
    is_byte_bpe = model_type == BYTE_BPE

    _check_options(vocab_size, model_type, family, character_coverage, normalization)

    if is_byte_bpe:
        _check_byte_bpe_options(
            vocab_size, family, character_coverage, normalization, num_threads
        )

    if num_threads is not None and num_threads < 1:
        raise WarmupError(
            f"The number of threads must be at least 1, but is {num_threads}; leave `--num-threads` out to use {DEFAULT_NUM_THREADS}."
        )

    if is_byte_bpe:
        _check_output_folder(output, force)

    # Of a folder, the file that is written last.
    file = output / "tokenizer.json" if is_byte_bpe else output

    _prepare_output(inputs, file, force)

    if json_fields is not None and not any(_is_json_lines(path) for path in inputs):
        raise WarmupError(
            "`--json-fields` is of no use, since no input is called `.jsonl` or `.jsonl.gz`; leave it out, or rename the file if it holds JSON lines."
        )

    sentences = _Sentences(
        inputs,
        json_fields or ("source", "target"),
        TokenizerTrainingReport(path=output, vocab_size=vocab_size),
        normalization="identity" if is_byte_bpe else normalization,
        is_sentencepiece=not is_byte_bpe,
    )

    if is_byte_bpe:
        _train_byte_bpe(sentences)
    else:
        _train_sentencepiece(
            sentences,
            model_type=model_type,
            character_coverage=character_coverage,
            num_threads=num_threads or DEFAULT_NUM_THREADS,
            **_SPECIAL_PIECES[family or FAMILIES[0]],
        )

    return sentences.report


def _train_sentencepiece(sentences: _Sentences, **options: Any) -> None:
    """:param options: SentencePiece's own, which are the user's choice."""
    # It takes a while to import, and a wrong option should be reported at once.
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()

    try:
        SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            vocab_size=sentences.report.vocab_size,
            normalization_rule_name=sentences.normalization,
            max_sentence_length=MAX_LINE_BYTES,
            minloglevel=2,
            **options,
        )
    except RuntimeError as ex:
        # SentencePiece turns what an iterator raises into a `RuntimeError`.
        if sentences.error is not None:
            raise sentences.error from None

        raise _translate_error(ex, sentences) from None

    _write_atomically(sentences.report.path, model.getvalue())


def _train_byte_bpe(sentences: _Sentences) -> None:
    report = sentences.report

    files = train_byte_bpe(sentences, report.vocab_size)

    if report.num_lines == 0:
        raise _make_empty_error(sentences)

    size = len(json.loads(files["tokenizer.json"])["model"]["vocab"])

    if size < report.vocab_size:
        raise _make_large_error(sentences, str(size))

    for name, content in files.items():
        _write_atomically(report.path / name, content)


@final
class _Sentences(Iterable[str]):
    """Reads the sentences of several files and counts what is left out."""

    def __init__(
        self,
        paths: Sequence[Path],
        json_fields: Sequence[str],
        report: TokenizerTrainingReport,
        *,
        normalization: str | None,
        is_sentencepiece: bool,
    ) -> None:
        self.paths = paths
        self.json_fields = json_fields
        self.report = report
        self.normalization = normalization or DEFAULT_NORMALIZATION
        self.is_sentencepiece = is_sentencepiece
        self.error: BaseException | None = None

    def __iter__(self) -> Iterator[str]:
        normalize, report = self._create_normalizer(), self.report

        try:
            for path in self.paths:
                for line in self._iter_lines(path):
                    if not _is_visible(line):
                        report.num_empty_lines += 1

                        continue

                    if len(line.encode()) > MAX_LINE_BYTES:
                        report.num_long_lines += 1

                        continue

                    if self.is_sentencepiece and _RESERVED.search(line):
                        report.num_reserved_lines += 1

                        line = _RESERVED.sub(" ", line).strip()

                        if not line:
                            continue

                    if normalize is not None and normalize(line) != line:
                        report.num_changed_lines += 1

                    report.num_lines += 1

                    yield line
        except GeneratorExit:
            raise
        except BaseException as ex:
            self.error = ex

            raise

    def _create_normalizer(self) -> Callable[[str], str] | None:
        if self.normalization == "identity":
            return None

        from sentencepiece import SentencePieceNormalizer

        normalizer = SentencePieceNormalizer(
            rule_name=self.normalization,
            add_dummy_prefix=False,
            escape_whitespaces=False,
            remove_extra_whitespaces=False,
        )

        def normalize(line: str) -> str:
            return str(normalizer.normalize(line))

        return normalize

    def _iter_lines(self, path: Path) -> Iterator[str]:
        from warmup_plugin.data.json_lines import iter_json_texts
        from warmup_plugin.data.text_lines import iter_lines

        if path.name.endswith((".tsv", ".tsv.gz")):
            # As the data of a training: a column a side, and no header.
            for line_nr, line in enumerate(iter_lines(path), start=1):
                columns = line.split("\t")

                if line and len(columns) != 2:
                    raise WarmupError(
                        f"Line {line_nr} of `{path}` has {len(columns)} columns, but a `.tsv` to train a tokenizer on must have two, source and target; cut the others, ids for example, off it first."
                    )

                yield from columns

            return

        if not _is_json_lines(path):
            yield from iter_lines(path)

            return

        fields = [("--json-fields", field) for field in self.json_fields]

        for texts in iter_json_texts(path, fields):
            for text in texts or [""]:
                yield from text.split("\n")


def _is_visible(line: str) -> bool:
    # Neither separators nor control and format characters.
    return any(unicodedata.category(c)[0] not in "CZ" for c in line)


def _is_json_lines(path: Path) -> bool:
    return path.name.endswith((".jsonl", ".jsonl.gz"))


def _check_options(
    vocab_size: int,
    model_type: str,
    family: str | None,
    character_coverage: float,
    normalization: str | None,
) -> None:
    if vocab_size < MIN_VOCAB_SIZE:
        raise WarmupError(
            f"The vocabulary size must be at least {MIN_VOCAB_SIZE} (five special tokens and one character), but is {vocab_size}; set `--vocab-size` to a few thousand."
        )

    if model_type not in MODEL_TYPES:
        raise WarmupError(
            f"`{model_type}` is not a known model type; set `--model-type` to one of {', '.join(MODEL_TYPES)}."
        )

    if family is not None and family not in FAMILIES:
        raise WarmupError(
            f"`{family}` is not a family of tokenizers that can be trained; set `--family` to one of {', '.join(FAMILIES)}, or `--model-type {BYTE_BPE}` for a decoder-only model."
        )

    # The bounds are SentencePiece's.
    if not 0.98 <= character_coverage <= 1.0:
        raise WarmupError(
            f"The character coverage must be between 0.98 and 1, but is {character_coverage}; set `--character-coverage` to 1 for alphabets and to 0.9995 for Chinese or Japanese."
        )

    if normalization is not None and normalization not in NORMALIZATIONS:
        raise WarmupError(
            f"`{normalization}` is not a known normalization; set `--normalization` to one of {', '.join(NORMALIZATIONS)}."
        )


def _check_byte_bpe_options(
    vocab_size: int,
    family: str | None,
    character_coverage: float,
    normalization: str | None,
    num_threads: int | None,
) -> None:
    if vocab_size < MIN_BYTE_BPE_VOCAB_SIZE:
        raise WarmupError(
            f"The vocabulary size must be at least {MIN_BYTE_BPE_VOCAB_SIZE} (four special tokens and the bytes), but is {vocab_size}; set `--vocab-size` to a few thousand."
        )

    for option, is_given in (
        ("--family", family is not None),
        ("--character-coverage", character_coverage != 1.0),
        ("--normalization", normalization not in (None, "identity")),
        ("--num-threads", num_threads is not None),
    ):
        if is_given:
            raise WarmupError(
                f"`{option}` is for SentencePiece and of no use with `--model-type {BYTE_BPE}`, which keeps any text as it is; leave it out."
            )


def _check_output_folder(output: Path, force: bool) -> None:
    if output.exists() and not output.is_dir():
        raise WarmupError(
            f"The output `{output}` is a file, but a tokenizer of the type `{BYTE_BPE}` is a folder; name a folder."
        )

    file = output / "tokenizer.json"

    # The remedy of a single file would be of no use.
    if file.exists() and not force:
        raise WarmupError(
            f"The folder `{output}` holds a tokenizer already; name another folder or replace it with `--force`."
        )


def _prepare_output(inputs: Sequence[Path], output: Path, force: bool) -> None:
    if not inputs:
        raise WarmupError("No text to train on is given; name a file with `--input`.")

    if output.is_dir():
        raise WarmupError(
            f"The output `{output}` is a folder; name a file in it, such as `{output / 'tokenizer.model'}`."
        )

    # Now, since training takes a while before it has something to write.
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as ex:
        raise WarmupError(
            f"The folder `{output.parent}` of the output cannot be created ({ex.strerror}); name a file in another folder."
        ) from None

    if not os.access(output.parent, os.W_OK):
        raise WarmupError(
            f"The folder `{output.parent}` of the output is not writable; name a file in another folder."
        )

    # Not even `force` may destroy the text.
    if output.exists() and any(p.exists() and p.samefile(output) for p in inputs):
        raise WarmupError(
            f"The output `{output}` is also an input; name the model first and the text after `--input`."
        )

    if output.exists() and not force:
        raise WarmupError(
            f"The output `{output}` exists already; name another file or replace it with `--force`."
        )


def _list_names(sentences: _Sentences) -> str:
    return ", ".join(f"`{path}`" for path in sentences.paths)


def _make_empty_error(sentences: _Sentences) -> WarmupError:
    return WarmupError(
        f"No line of {_list_names(sentences)} can be trained on ({sentences.report.num_empty_lines} empty, {sentences.report.num_long_lines} longer than {MAX_LINE_BYTES} bytes); name files with one sentence a line after `--input`."
    )


def _make_large_error(sentences: _Sentences, max_size: str) -> WarmupError:
    return WarmupError(
        f"A vocabulary of {sentences.report.vocab_size} tokens is too large for the text of {_list_names(sentences)}; set `--vocab-size` to {max_size} or less, or name more text."
    )


def _translate_error(error: RuntimeError, sentences: _Sentences) -> WarmupError:
    text = str(error)

    names = _list_names(sentences)

    if sentences.report.num_lines == 0 or "all_chars_count" in text:
        return _make_empty_error(sentences)

    match = re.search(r"Vocabulary size too high .* value <= (\d+)", text)
    if match is not None:
        return _make_large_error(sentences, match[1])

    match = re.search(r"smaller than required_chars\. \d+ vs (\d+)", text)
    if match is not None:
        return WarmupError(
            f"A vocabulary of {sentences.report.vocab_size} tokens has no room for the characters of {names}; set `--vocab-size` to {match[1]} or more, or lower `--character-coverage`."
        )

    reason = " ".join(text.split())

    return WarmupError(
        f"SentencePiece cannot train on {names} ({reason}); check the text and the options."
    )


def _write_atomically(output: Path, content: bytes) -> None:
    try:
        write_bytes_atomically(output, content)
    except OSError as ex:
        raise WarmupError(
            f"The output `{output}` cannot be written ({ex.strerror}); free space or name a file in another folder."
        ) from None
