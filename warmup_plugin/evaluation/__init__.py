# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Systems and their scores: what `evaluate`, `compare`, `report` and suites share."""
