# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""What users see of fairseq2's log: no secrets, and no traceback for bad input."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from typing import Final, final

from typing_extensions import override

_SECRET_NAME: Final = re.compile(
    r"TOKEN|SECRET|PASSW|PASSPHRASE|CREDENTIAL|COOKIE|AUTH|PRIVATE|API_?KEY|ACCESS_?KEY|_KEY$|^KEY$|DSN$",
    re.IGNORECASE,
)

# A URL may carry `user:password@`.
_URL_PASSWORD: Final = re.compile(r"(?<=://)([^\s/:@]*):([^\s/@]+)@")

_SEE_TRACE: Final = " See logged stack trace for details."


@final
class LogFilter(logging.Filter):
    """
    Rewrites log records before they reach console or file.

    fairseq2 writes every environment variable into its log, and a traceback for
    errors whose cause is the user's input.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        super().__init__()

        # Short values (`1`, `true`) would blank out unrelated text.
        self._secrets = sorted(
            {
                value
                for name, value in environ.items()
                if _SECRET_NAME.search(name) and len(value) >= 6
            },
            key=len,
            reverse=True,
        )

        self._secret_pairs = [
            f"{name}={value}"
            for name, value in environ.items()
            if _SECRET_NAME.search(name) and value
        ]

    @override
    def filter(self, record: logging.LogRecord) -> bool:
        msg = record.getMessage()

        new_msg = msg

        if record.exc_info is not None and _SEE_TRACE in msg:
            ex = record.exc_info[1]

            if ex is not None:
                new_msg = f"{msg.replace(_SEE_TRACE, '')} {describe_causes(ex)}"

                record.exc_info = None

        new_msg = self.redact(new_msg)

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

        return _URL_PASSWORD.sub(r"\1:[hidden]@", text)


def describe_causes(ex: BaseException) -> str:
    """Joins the messages of an exception and its causes, outermost first."""
    messages: list[str] = []

    cause: BaseException | None = ex

    while cause is not None:
        text = " ".join(str(cause).split())

        if text and text not in messages:
            messages.append(text)

        cause = cause.__cause__

    return " ".join(m if m.endswith((".", "!")) else f"{m}." for m in messages)


def install_log_filter() -> None:
    """Puts the filter in front of fairseq2's log, once a process."""
    logger = logging.getLogger("fairseq2")

    if not any(isinstance(f, LogFilter) for f in logger.filters):
        logger.addFilter(LogFilter(os.environ))
