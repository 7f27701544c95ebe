# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from warmup_plugin.errors import WarmupError

SEPARATOR: Final = "<sep>"

MODEL_TYPES: Final = ("unigram", "bpe")

NORMALIZATIONS: Final = ("nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf", "identity")

# SentencePiece leaves out longer lines, which is right: they are seldom sentences.
MAX_LINE_BYTES: Final = 4192

# PAD, UNK, BOS, EOS, the separator and one character.
MIN_VOCAB_SIZE: Final = 6


@dataclass(frozen=True, kw_only=True)
class TokenizerTrainingReport:
    """Describes a finished training of a tokenizer."""

    path: Path
    """The model."""

    vocab_size: int
    """The number of tokens, special ones included."""

    num_lines: int
    """The number of lines trained on."""

    num_empty_lines: int
    """The number of lines left out since they hold no text."""

    num_long_lines: int
    """The number of lines left out since they are longer than 4192 bytes."""


def train_tokenizer(
    inputs: Sequence[Path],
    output: Path,
    *,
    vocab_size: int,
    model_type: str = "unigram",
    character_coverage: float = 1.0,
    normalization: str = "nmt_nfkc",
    num_threads: int = 4,
    json_fields: Sequence[str] | None = None,
    force: bool = False,
) -> TokenizerTrainingReport:
    """
    Trains a SentencePiece model for the tokenizer family ``warmup_spm``.

    The same inputs and options give the same bytes on every machine.

    :param inputs:
        The text files, one sentence a line, or JSON lines if they end in ``.jsonl``;
        ``.gz`` is unpacked.
    :param output:
        The model. It appears only once it is complete; its folder is created.
    :param num_threads:
        The number of threads. The default does not follow the number of cores, since
        the order in which threads add their counts up decides between near ties.
    :param json_fields:
        The fields of JSON lines that hold text, each line of it a sentence; ``None``
        for ``source`` and ``target``.
    :param force: If ``True``, replaces an existing ``output``.

    :raises WarmupError: An input, an option or the output cannot be used.
    """
    _check_options(vocab_size, model_type, character_coverage, normalization)

    if num_threads < 1:
        raise WarmupError(
            f"The number of threads must be at least 1, but is {num_threads}; leave `--num-threads` out to use 4."
        )

    _prepare_output(inputs, output, force)

    # Both take a while to import, and a wrong option should be reported at once.
    from sentencepiece import SentencePieceTrainer

    if json_fields is not None and not any(_is_json_lines(path) for path in inputs):
        raise WarmupError(
            "`--json-fields` is of no use, since no input is called `.jsonl` or `.jsonl.gz`; leave it out, or rename the file if it holds JSON lines."
        )

    sentences = _Sentences(inputs, json_fields or ("source", "target"))

    model = io.BytesIO()

    try:
        SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            vocab_size=vocab_size,
            model_type=model_type,
            character_coverage=character_coverage,
            normalization_rule_name=normalization,
            num_threads=num_threads,
            max_sentence_length=MAX_LINE_BYTES,
            pad_id=0,
            unk_id=1,
            bos_id=2,
            eos_id=3,
            control_symbols=[SEPARATOR],
            minloglevel=2,
        )
    except RuntimeError as ex:
        # SentencePiece turns what an iterator raises into a `RuntimeError`.
        if sentences.error is not None:
            raise sentences.error from None

        raise _translate_error(ex, sentences, vocab_size) from None

    _write_atomically(output, model.getvalue())

    return TokenizerTrainingReport(
        path=output,
        vocab_size=vocab_size,
        num_lines=sentences.num_lines,
        num_empty_lines=sentences.num_empty_lines,
        num_long_lines=sentences.num_long_lines,
    )


@final
class _Sentences(Iterable[str]):
    """Reads the sentences of several files and counts what is left out."""

    def __init__(self, paths: Sequence[Path], json_fields: Sequence[str]) -> None:
        self.paths = paths
        self.json_fields = json_fields
        self.error: BaseException | None = None
        self.num_lines = 0
        self.num_empty_lines = 0
        self.num_long_lines = 0

    def __iter__(self) -> Iterator[str]:
        try:
            for path in self.paths:
                for line in self._iter_lines(path):
                    if not line.strip():
                        self.num_empty_lines += 1
                    elif len(line.encode()) > MAX_LINE_BYTES:
                        self.num_long_lines += 1
                    else:
                        self.num_lines += 1

                        yield line
        except GeneratorExit:
            raise
        except BaseException as ex:
            self.error = ex

            raise

    def _iter_lines(self, path: Path) -> Iterator[str]:
        from warmup_plugin.data.text_pairs import iter_json_texts, iter_lines

        if not _is_json_lines(path):
            yield from iter_lines(path)

            return

        fields = [("--json-fields", field) for field in self.json_fields]

        for texts in iter_json_texts(path, fields):
            for text in texts or [""]:
                yield from text.split("\n")


def _is_json_lines(path: Path) -> bool:
    return path.name.endswith((".jsonl", ".jsonl.gz"))


def _check_options(
    vocab_size: int, model_type: str, character_coverage: float, normalization: str
) -> None:
    if vocab_size < MIN_VOCAB_SIZE:
        raise WarmupError(
            f"The vocabulary size must be at least {MIN_VOCAB_SIZE} (five special tokens and one character), but is {vocab_size}; set `--vocab-size` to a few thousand."
        )

    if model_type not in MODEL_TYPES:
        raise WarmupError(
            f"`{model_type}` is not a known model type; set `--model-type` to {' or '.join(MODEL_TYPES)}."
        )

    # The bounds are SentencePiece's.
    if not 0.98 <= character_coverage <= 1.0:
        raise WarmupError(
            f"The character coverage must be between 0.98 and 1, but is {character_coverage}; set `--character-coverage` to 1 for alphabets and to 0.9995 for Chinese or Japanese."
        )

    if normalization not in NORMALIZATIONS:
        raise WarmupError(
            f"`{normalization}` is not a known normalization; set `--normalization` to one of {', '.join(NORMALIZATIONS)}."
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


def _translate_error(
    error: RuntimeError, sentences: _Sentences, vocab_size: int
) -> WarmupError:
    text = str(error)

    names = ", ".join(f"`{p}`" for p in sentences.paths)

    if sentences.num_lines == 0 or "all_chars_count" in text:
        return WarmupError(
            f"No line of {names} can be trained on ({sentences.num_empty_lines} empty, {sentences.num_long_lines} longer than {MAX_LINE_BYTES} bytes); name files with one sentence a line after `--input`."
        )

    match = re.search(r"Vocabulary size too high .* value <= (\d+)", text)
    if match is not None:
        return WarmupError(
            f"A vocabulary of {vocab_size} tokens is too large for the text of {names}; set `--vocab-size` to {match[1]} or less, or name more text."
        )

    match = re.search(r"smaller than required_chars\. \d+ vs (\d+)", text)
    if match is not None:
        return WarmupError(
            f"A vocabulary of {vocab_size} tokens has no room for the characters of {names}; set `--vocab-size` to {match[1]} or more, or lower `--character-coverage`."
        )

    reason = " ".join(text.split())

    return WarmupError(
        f"SentencePiece cannot train on {names} ({reason}); check the text and the options."
    )


def _write_atomically(output: Path, content: bytes) -> None:
    temp = output.with_name(f".{output.name}.{os.getpid()}.tmp")

    try:
        try:
            temp.write_bytes(content)

            temp.replace(output)
        finally:
            temp.unlink(missing_ok=True)
    except OSError as ex:
        raise WarmupError(
            f"The output `{output}` cannot be written ({ex.strerror}); free space or name a file in another folder."
        ) from None
