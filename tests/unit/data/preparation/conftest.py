# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[4]

# Real data sets, which are not part of the project: a folder beside the clone.
REAL_DATA = Path(
    os.environ.get("WARMUP_TEST_DATA", ROOT.parent.joinpath("shared", "data"))
)


@pytest.fixture
def real_data() -> Path:
    """The folder of real data sets; skips where there is none."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"the data sets are not in {REAL_DATA} (WARMUP_TEST_DATA)")

    return REAL_DATA


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets requests to this machine reach it, whatever the environment says."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "MTDATA"):
        monkeypatch.delenv(name, raising=False)
