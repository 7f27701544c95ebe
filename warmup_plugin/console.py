# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""What users see of fairseq2's log: no secrets, and no traceback for bad input."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import BinaryIO, Final, TextIO, final

from typing_extensions import override

from warmup_plugin.terminal import (
    describe_system_error,
    escape_controls,
    find_full_disk,
)

# Not `TOKENIZERS_PARALLELISM` and not `GIT_AUTHOR_NAME`.
_SECRET_NAME: Final = re.compile(
    r"TOKEN(?!IZ)|SECRET|PASSW|PASSPHRASE|CREDENTIAL|COOKIE|AUTH(?!OR(_|$))|PRIVATE|BEARER|JWT|WEBHOOK|CONNECTION_STRING|API_?KEY|ACCESS_?KEY|(^|_)(KEYS?|PASS|PAT|PWD|CREDS?|SAS)(_|\d|$)|KEY$|DSN$",
    re.IGNORECASE,
)

# The shell's working directory.
_NOT_SECRET: Final = ("PWD",)

# A URL may carry `user:password@` or `token@`. The password may hold any character,
# an unescaped `@` as well.
_URL_USER: Final = re.compile(r"(?<=://)(?:([^\s/:@]*):)?[^\s/]+@")

_SEE_TRACE: Final = " See logged stack trace for details."

# What failed is code, not input.
_KEEP_TRACE: Final = ("extension failed", "torch.compile", "Sequence generation")

# What fairseq2 puts before the cause.
_NOISE: Final = re.compile(r"Value cannot be structured to `.*`\.")

# What fairseq2 puts before what is wrong in a section, and what begins each sentence of it.
_INVALID_SECTION: Final = re.compile(r"`([\w.]+)` is not valid: ")

_FIRST_KEY: Final = re.compile(r"(?:^|(?<=\. ))`([\w.-]+)`")

# Where a sentence names a second key of the section.
_MULTIPLE_OF: Final = re.compile(r"(must be a multiple of )`(\w+)`")

# What it says of each field around that cause.
_FIELD: Final = re.compile(r"`(\w+)` field cannot be structured\.")

# Of the fields that are mappings or lists.
_KEY: Final = re.compile(r"Value of the (.+) key cannot be structured\.")

_ELEMENT: Final = re.compile(
    r"Element .* ?at index (\d+) cannot be structured( as .*)?\."
)

# What it says of a key that a section does not have, with the class of the section.
_EXTRA_KEYS: Final = re.compile(
    r"Value must contain only keys corresponding to the fields of `<class '(.+)'>`, but it contains extra key\(s\) (.+)\."
)

# What it says of a value of another type.
_WRONG_TYPE: Final = re.compile(
    r"Value must be of type `<class '([\w.]+)'>`.*, but is of type `<class '([\w.]+)'>` instead\."
)

_TYPES: Final = {
    **{"int": "a number", "float": "a number", "bool": "`true` or `false`"},
    **{"str": "a text", "list": "a list", "dict": "a mapping", "NoneType": "null"},
    **{"pathlib.Path": "a path", "collections.abc.Mapping": "a mapping"},
}

_MAX_MESSAGE_LEN: Final = 400

# Of torcheval, for every metric that had nothing to count.
_POINTLESS: Final = "No calls to update() have been made"

_ENVIRONMENT: Final = "Environment Variables - "

# Before there is a log file.
_FILE_SYSTEMS: Final = "Activated FileSystem protocols"

_DETAILS: Final = (
    # Settings and surroundings.
    *("Config: ", "Model Config: ", "Tokenizer Config: ", "Host - ", "Device - "),
    *("Software - ", "Runtime Environment - ", "Process Ranks - ", "Tokenizer - "),
    *("Model (rank ", "Random number generator seed ", "Number of threads used "),
    *("Device of the process ", "Default SDPA variant ", "Log files are stored "),
    *("No cluster detected", "torch.distributed environment variables ", "Running on "),
    # Processes that find each other.
    *("Creating the root gang", "Root gang created", "Creating parallel gangs"),
    *("Parallel gangs created", "Creating data parallel ", "Data parallel gang "),
    *("Creating tensor parallel ", "Tensor parallel gang ", "Creating pipeline "),
    *("Pipeline parallel gang ", "Creating hybrid ", "Hybrid sharded "),
    *("Creating inter-node ", "Creating intra-node ", "Performing a collective "),
    *("Gangs warmed up", "Wrapping model with ", "Model wrapped with "),
    # Parts that are ready at once; that weights are loaded, which may take minutes, is
    # shown.
    *(
        "Loading tokenizer",
        "Tokenizer loaded",
        "Initializing model",
        "Model initialized",
    ),
    *("Initializing checkpoint model", "Model loaded"),
    *("Broadcasting model ", "Model broadcasted"),
    # Of a restoration and a checkpoint all but beginning and end, of a validation all but
    # the beginning, which metrics follow.
    *("Restoring trainer state", "Trainer state restored", "Restoring model state"),
    *("Model state restored", "Restoring optimizer state", "Optimizer state restored"),
    *("Restoring data reader state", "Data reader state restored"),
    *("Preparing checkpoint ", "Checkpoint prepared", "Waiting for the current "),
    *("Deleting ", "Stale checkpoints deleted", "Non-model state of previous "),
    *("Validating ", "Validation finished", "Running garbage collection"),
)
"""What fairseq2's messages begin with that belong into the log file alone."""


@final
class LogFilter(logging.Filter):
    """
    Rewrites log records before they reach console or file.

    fairseq2 writes every environment variable into its log, which is left out, and a
    traceback for errors whose cause is the user's input. torcheval warns of metrics
    without values.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        super().__init__()

        secrets = {n: value for n, value in environ.items() if is_secret(n) and value}

        # Short values (`1`, `true`) would blank out unrelated text.
        long_values = {value for value in secrets.values() if len(value) >= 6}

        self._secrets = sorted(long_values, key=len, reverse=True)

        self._secret_pairs = [f"{name}={value}" for name, value in secrets.items()]

    @override
    def filter(self, record: logging.LogRecord) -> bool:
        msg = record.getMessage()

        # No rule knows all secrets of an environment.
        if msg.startswith((_POINTLESS, _ENVIRONMENT, _FILE_SYSTEMS)):
            return False

        new_msg = msg

        # fairseq2 passes `False` where there is none.
        if record.exc_info:
            ex = record.exc_info[1]

            is_input = _SEE_TRACE in msg and not any(
                text in msg for text in _KEEP_TRACE
            )

            # What the system refused is the user's; a broken collective call is not.
            if ex is not None and "operational error" in msg:
                *_, root = _iter_causes(ex)

                is_input = isinstance(root, OSError)

            # Whatever came of it, wherever it was.
            full = None if ex is None else find_full_disk(ex)

            if full is not None:
                new_msg = str(describe_system_error(full))

                record.exc_info = None
            elif ex is not None and is_input:
                new_msg = f"{msg.replace(_SEE_TRACE, '')} {describe_causes(ex)}"

                record.exc_info = None
            else:
                # Handlers take this text instead of making their own.
                record.exc_text = escape_controls(
                    self.redact(logging.Formatter().formatException(record.exc_info))
                )

        new_msg = escape_controls(self.redact(name_keys(new_msg)))

        if new_msg != msg:
            record.msg, record.args = new_msg, ()

        return True

    def redact(self, text: str) -> str:
        """Replaces what looks like a secret."""
        for pair in self._secret_pairs:
            name, _, _ = pair.partition("=")

            text = text.replace(pair, f"{name}=[hidden]")

        for secret in self._secrets:
            text = text.replace(secret, "[hidden]")

        return _URL_USER.sub(_hide_password, text)


@final
class ConsoleFilter(logging.Filter):
    """Keeps off the console what is of interest only when something has gone wrong; the
    log file has it."""

    @override
    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            return True

        return not record.getMessage().startswith(_DETAILS)


def calm_console() -> None:
    """
    Limits what fairseq2 shows on the console to what people watch, without its name.

    To be called when fairseq2 has configured its log: it replaces the handlers then. The
    log file is not affected.
    """
    # Not for those who only want a filter.
    from rich.logging import RichHandler

    for handler in logging.getLogger().handlers:
        if not any(isinstance(f, ConsoleFilter) for f in handler.filters):
            handler.addFilter(ConsoleFilter())

        # A subclass, such as that of a file, has its own.
        if type(handler) is logging.StreamHandler:
            handler.setFormatter(
                logging.Formatter(
                    "%(asctime)s %(levelname)s: %(message)s", "%Y-%m-%d %H:%M:%S"
                )
            )
        elif isinstance(handler, RichHandler):
            # It has columns for the rest, which are narrow enough without the day.
            handler.setFormatter(logging.Formatter("%(message)s", "%H:%M:%S"))


def is_secret(name: str) -> bool:
    """Tells whether an environment variable looks like a secret by its name."""
    return name not in _NOT_SECRET and _SECRET_NAME.search(name) is not None


def _hide_password(match: re.Match[str]) -> str:
    user = match[1]

    return "[hidden]@" if user is None else f"{user}:[hidden]@"


def _iter_causes(ex: BaseException) -> Iterator[BaseException]:
    """Goes through an exception and what it was raised from, which may be a circle."""
    cause: BaseException | None = ex

    seen: set[int] = set()

    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))

        yield cause

        cause = cause.__cause__


def describe_causes(ex: BaseException) -> str:
    """
    Joins the messages of an exception and its causes, outermost first.

    Of the fields of a config in each other, of which fairseq2 gives a sentence each, one
    name is made.
    """
    messages: list[str] = []

    path: list[str] = []

    for cause in _iter_causes(ex):
        text = " ".join(str(cause).split())

        if match := _FIELD.fullmatch(text) or (path and _KEY.fullmatch(text)):
            path.append(match[1])
        elif path and (match := _ELEMENT.fullmatch(text)):
            path[-1] += f"[{match[1]}]"
        elif match := _EXTRA_KEYS.fullmatch(text):
            messages.append(
                _shorten(_describe_extra_keys(path, match[1], match[2].split(", ")))
            )

            path.clear()
        elif path and (match := _WRONG_TYPE.fullmatch(text)):
            messages.append(_describe_wrong_type(path, match[1], match[2]))

            path.clear()
        elif path and text and not _NOISE.fullmatch(text):
            name = f"`{'.'.join(path)}`"

            path.clear()

            # As our own reader of numbers says it.
            text = (
                f"{name}{text[2:]}" if text.startswith("It must") else f"{name}: {text}"
            )

            messages.append(_shorten(text))
        elif text and text not in messages and not _NOISE.fullmatch(text):
            messages.append(_shorten(text))

    if path:
        messages.append(f"`{'.'.join(path)}` cannot be read.")

    return " ".join(m if m.endswith((".", "!", "?")) else f"{m}." for m in messages)


def _describe_wrong_type(path: Sequence[str], expected: str, given: str) -> str:
    """
    :param path: The names of the section in each other.
    :param expected: The name of a class, with its module.
    :param given: The same of the value.
    """
    name = ".".join(path)

    given = _TYPES.get(given, f"`{given}`")

    if known := _list_keys(expected):
        return f"`{name}` is a section, but is given {given}; set its keys, such as `{name}.{known[0]}`."

    return f"`{name}` must be {_TYPES.get(expected, f'`{expected}`')}, but is {given} instead."


def _find_class(name: str) -> object:
    module_name, _, class_name = name.rpartition(".")

    return getattr(sys.modules.get(module_name), class_name, None)


def _list_keys(class_name: str) -> list[str]:
    """Lists the keys of a section; none for another class."""
    kls = _find_class(class_name)

    return [f.name for f in fields(kls)] if is_dataclass(kls) else []


def _describe_extra_keys(
    path: Sequence[str], class_name: str, keys: Sequence[str]
) -> str:
    """
    :param path: The names of the section in each other.
    :param class_name: That of the section, with its module.
    """
    known = _list_keys(class_name)

    if _find_class(class_name) is not None and not known:
        names = ", ".join(f"`{'.'.join([*path, key])}`" for key in keys)

        return f"`{'.'.join(path)}` takes no settings, but has {names}; leave it out."

    sentences = []

    for key in keys:
        sentence = f"`{'.'.join([*path, key])}` is not known"

        similar = get_close_matches(key, known, n=1)

        if similar:
            sentence += f"; did you mean `{'.'.join([*path, *similar])}`?"

        sentences.append(sentence)

    return ", ".join(sentences)


def name_keys(text: str) -> str:
    """
    Names keys as one types them: of "`regime` is not valid: `num_steps` must be …", which
    is how fairseq2 says it, "`regime.num_steps` must be …" is made.
    """
    head, *parts = _INVALID_SECTION.split(text)

    for section, sentences in zip(parts[::2], parts[1::2]):

        def name(match: re.Match[str]) -> str:
            key = match[1]

            # Some call themselves by the whole name.
            is_whole = key.startswith(f"{section}.") or key == section

            return f"`{key}`" if is_whole else f"`{section}.{key}`"

        named, num_keys = _FIRST_KEY.subn(name, sentences)

        # Another key of the section.
        named = _MULTIPLE_OF.sub(rf"\1`{section}.\2`", named)

        head += named if num_keys > 0 else f"`{section}` is not valid: {sentences}"

    return head


def _shorten(text: str) -> str:
    """Keeps the first sentences of a message that lists every weight of a model."""
    if len(text) <= _MAX_MESSAGE_LEN:
        return text

    kept = text[:_MAX_MESSAGE_LEN].rpartition(". ")[0] or text[:_MAX_MESSAGE_LEN]

    return f"{kept.rstrip('.')}, and so on."


def make_private_log(out: Path, rank: int) -> None:
    """
    Makes the log file of a process so that only its owner can read it.

    fairseq2 appends to it. Paths, data and configuration of a run are in there.
    """
    file = out / "logs" / f"rank_{rank}.log"

    file.parent.mkdir(parents=True, exist_ok=True)

    # Also those of C++ lie there.
    file.parent.chmod(0o700)

    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)

    try:
        os.fchmod(fd, 0o600)
    finally:
        os.close(fd)


def install_log_filter() -> None:
    """Puts the filter in front of fairseq2's log and of the root's, once a process."""
    # A filter of the root alone does not see what its children log.
    for name in ("fairseq2", None):
        logger = logging.getLogger(name)

        if not any(isinstance(f, LogFilter) for f in logger.filters):
            logger.addFilter(LogFilter(os.environ))


@contextmanager
def hide_start_warning() -> Iterator[None]:
    """
    Hides a warning that fairseq2 0.8.1 gives at every start, of its own code.

    A filter would not do: fairseq2 puts its own in front of all others.
    """
    show = warnings.showwarning

    def show_others(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if "`hg_exporter` is deprecated" not in str(message):
            show(message, category, filename, lineno, file, line)

    warnings.showwarning = show_others

    try:
        yield
    finally:
        warnings.showwarning = show


@contextmanager
def quiet_log() -> Iterator[None]:
    """Hides what fairseq2 tells of its start from commands that only use parts of it."""
    old_level = logging.root.manager.disable

    logging.disable(logging.INFO)

    try:
        with hide_start_warning():
            yield
    finally:
        logging.disable(old_level)


@contextmanager
def claimed_stdout() -> Iterator[BinaryIO]:
    """
    Claims standard output for what a command writes; all else goes to standard error.

    Libraries print there too, some from C++: two processes begin with "[Gloo] Rank 0 is
    connected to 1 peer ranks".
    """
    sys.stdout.flush()

    stdout = sys.stdout.fileno()

    stream = os.fdopen(os.dup(stdout), "wb")

    os.dup2(sys.stderr.fileno(), stdout)

    try:
        yield stream
    finally:
        sys.stdout.flush()

        os.dup2(stream.fileno(), stdout)

        try:
            stream.close()
        except OSError:
            # Told by who wrote to it.
            pass
