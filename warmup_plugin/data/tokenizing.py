# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Text as tokens; that of a large split by several processes."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from warmup_plugin.cores import share_cores
from warmup_plugin.data.corpus import (
    Corpus,
    CorpusReport,
    TokenSeqs,
    TokenSeqsBuilder,
    join_reports,
)
from warmup_plugin.data.text_pairs import TextPairs
from warmup_plugin.errors import WarmupError
from warmup_plugin.tokenizers.codec import TextCodec

_LEAST_PAIRS: Final = 20_000
"""For fewer, about two seconds of work, another process is not worth it."""

_POLL_SECONDS: Final = 0.1
"""How long the first process waits for the others before it looks whether to stop."""


def count_processes(num_sharing: int = 1) -> int:
    """
    Returns the number of processes that may tokenise.

    :param num_sharing: How many processes of this training tokenise at the same time.
    """
    # Elsewhere a process cannot safely be copied once it has started threads.
    if sys.platform != "linux":
        return 1

    return share_cores(num_sharing)


def encode_sources(
    texts: Iterable[str], codec: TextCodec
) -> tuple[list[int], TokenSeqs, TokenSeqs]:
    """
    Encodes sources as they are: none is cut, and only empty ones are left out.

    :returns: The places of those that are not empty, these sources, and the prefixes of
        what is written for them.
    """
    sources, prefixes = TokenSeqsBuilder(), TokenSeqsBuilder()

    places = []

    for n, text in enumerate(texts):
        # A prompt would be some text even so.
        if not text:
            continue

        encoded = codec.encode_source(text)

        if codec.is_empty_source(text, encoded):
            continue

        places.append(n)

        sources.append(encoded.source)
        prefixes.append(encoded.prefix)

    return places, sources.build(), prefixes.build()


def tokenize_pairs(
    pairs: TextPairs,
    codec: TextCodec,
    *,
    max_source_len: int,
    max_target_len: int,
    max_pairs: int | None = None,
    num_processes: int = 1,
    check_stop: Callable[[], None] = lambda: None,
) -> Corpus:
    """
    Encodes each pair once, before training.

    Pairs that are too long are dropped, not cut: a cut target has another likelihood.
    What is dropped is counted in the report.

    :param pairs: The pairs.
    :param codec: What turns them into tokens.
    :param max_source_len: The limit of a source in tokens, with its special tokens.
    :param max_target_len: The limit of a target in tokens, with its special tokens.
    :param max_pairs: The number of pairs, the first ones, to look at: the same text
        whatever the tokenizer and the limits drop of it. ``None`` for all.
    :param num_processes: The most processes to share a large split.
    :param check_stop: Called often. What it raises ends the work, and the processes that
        share it. (A handler of signals must not raise: where Python ignores errors, as
        in hooks of ``fork()``, the signal would be lost.)

    :raises WarmupError: If no pair is left; if one of the processes was ended.
    """
    num_pairs = len(pairs) if max_pairs is None else min(max_pairs, len(pairs))

    job = _Job(
        pairs, codec, pairs.empty_mask()[:num_pairs], max_source_len, max_target_len
    )

    num_processes = max(1, min(num_processes, num_pairs // _LEAST_PAIRS))

    bounds = [num_pairs * n // num_processes for n in range(num_processes + 1)]

    if num_processes == 1:
        shares = [job.encode(0, num_pairs, check_stop)]
    else:
        shares = _encode_in_processes(job, bounds, check_stop)

    report = replace(
        join_reports([share.report for share in shares]),
        num_left_out=len(pairs) - num_pairs,
    )

    if report.num_kept == 0:
        raise _make_nothing_left_error(pairs, report)

    indices = np.concatenate([share.indices for share in shares])

    return Corpus(
        parts=[pairs],
        part_indices=np.zeros(len(indices), dtype=np.int16),
        indices=indices,
        sources=TokenSeqs.concat([share.sources for share in shares]),
        targets=TokenSeqs.concat([share.targets for share in shares]),
        report=report,
    )


@final
@dataclass(frozen=True)
class _Share:
    """Holds what has become of some consecutive pairs."""

    # The places of those that are kept: (N)
    indices: NDArray[np.int64]

    sources: TokenSeqs
    targets: TokenSeqs

    report: CorpusReport


@final
@dataclass(frozen=True)
class _Job:
    pairs: TextPairs
    codec: TextCodec
    empty_mask: NDArray[np.bool_]
    max_source_len: int
    max_target_len: int

    def encode(
        self, begin: int, end: int, check_stop: Callable[[], None] = lambda: None
    ) -> _Share:
        """Encodes the pairs from ``begin`` to before ``end``."""
        pairs, codec = self.pairs, self.codec

        sources, targets = TokenSeqsBuilder(), TokenSeqsBuilder()

        indices: list[int] = []

        num_empty = num_too_long = 0

        longest_source_len = longest_target_len = 0

        for idx in range(begin, end):
            check_stop()

            if self.empty_mask[idx]:
                num_empty += 1

                continue

            source_text, target_text = pairs.source(idx), pairs.target(idx)

            encoded = codec.encode_source(source_text)

            target_tokens = codec.encode_target(target_text)

            if codec.is_empty_source(source_text, encoded) or codec.is_empty_target(
                target_text, target_tokens
            ):
                num_empty += 1

                continue

            source, target = encoded.source, [*encoded.prefix, *target_tokens]

            longest_source_len = max(longest_source_len, len(source))
            longest_target_len = max(longest_target_len, len(target))

            if len(source) > self.max_source_len or len(target) > self.max_target_len:
                num_too_long += 1

                continue

            indices.append(idx)

            sources.append(source)
            targets.append(target)

        report = CorpusReport(
            split=pairs.split,
            num_pairs=end - begin,
            num_empty=num_empty,
            num_too_long=num_too_long,
            num_kept=len(indices),
            max_source_len=self.max_source_len,
            max_target_len=self.max_target_len,
            longest_source_len=longest_source_len,
            longest_target_len=longest_target_len,
        )

        return _Share(
            np.array(indices, dtype=np.int64), sources.build(), targets.build(), report
        )


def _encode_in_processes(
    job: _Job, bounds: Sequence[int], check_stop: Callable[[], None]
) -> list[_Share]:
    """
    Encodes each part of the pairs in a process of its own, which is a copy of this one:
    neither text nor tokenizer has to be sent.

    :param bounds: Where the parts begin, and the end of the last.
    """
    context = multiprocessing.get_context("fork")

    processes: list[BaseProcess] = []

    receivers: list[Connection] = []

    try:
        for begin, end in zip(bounds, bounds[1:]):
            receiver, sender = context.Pipe(duplex=False)

            receivers.append(receiver)

            process = context.Process(
                target=_work,
                args=(os.getpid(), job, begin, end, sender, receivers),
                daemon=True,
            )

            with warnings.catch_warnings():
                # Python 3.12 and later; no other thread is needed by what is copied.
                warnings.simplefilter("ignore", DeprecationWarning)

                try:
                    process.start()
                except OSError as ex:
                    raise WarmupError(
                        f"No process to tokenise can be started ({ex.strerror}); free memory, or raise the limit of processes (`ulimit -u`)."
                    ) from None

            processes.append(process)

            # Else its end would not be noticed.
            sender.close()

        shares = []

        for receiver in receivers:
            # A signal alone does not end waiting.
            while not receiver.poll(_POLL_SECONDS):
                check_stop()

            result = _receive(receiver)

            if isinstance(result, BaseException):
                raise result

            shares.append(result)
    finally:
        for started in processes:
            # It ignores what asks it to end.
            started.kill()
            started.join()

        for receiver in receivers:
            receiver.close()

    return shares


def _receive(receiver: Connection) -> _Share | BaseException:
    try:
        result: _Share | BaseException = receiver.recv()
    # The second one if it was ended while it sent.
    except (EOFError, OSError):
        return WarmupError(
            "A process that tokenises was ended from outside, perhaps since memory ran out; start again with more memory, or tokenise beforehand on another machine (`dataset.cache`)."
        )

    return result


def _work(first_pid: int, *args: Any) -> None:
    # The first process answers for the signals that a terminal or Slurm sends to all.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)

    # If it was killed, it has ended nobody.
    Thread(target=_end_with, args=(first_pid,), daemon=True).start()

    _encode_and_send(*args)


def _end_with(parent_pid: int) -> None:
    while os.getppid() == parent_pid:
        time.sleep(0.5)

    os.kill(os.getpid(), signal.SIGKILL)


def _encode_and_send(
    job: _Job,
    begin: int,
    end: int,
    sender: Connection,
    receivers: Sequence[Connection],
) -> None:
    # Else the end of the first process would not be noticed.
    for receiver in receivers:
        receiver.close()

    result: _Share | BaseException

    try:
        result = job.encode(begin, end)
    except BaseException as ex:
        result = ex

    # If the first process is gone, nobody waits for it.
    with suppress(BrokenPipeError):
        try:
            sender.send(result)
        except (pickle.PicklingError, AttributeError, TypeError):
            sender.send(RuntimeError(repr(result)))


def _make_nothing_left_error(pairs: TextPairs, report: CorpusReport) -> WarmupError:
    if report.num_too_long == 0:
        return WarmupError(
            f"No pair is left of {pairs.origin}, since each of its {report.num_pairs:,} has an empty side: check the files, fields or columns it is read from."
        )

    return WarmupError(
        f"No pair is left of {pairs.origin}: {report.num_too_long:,} of {report.num_pairs:,} are longer than `max_source_len` {report.max_source_len} or `max_target_len` {report.max_target_len} and {report.num_empty:,} have an empty side; raise the limits (the longest source has {report.longest_source_len} tokens, the longest target {report.longest_target_len})."
    )
