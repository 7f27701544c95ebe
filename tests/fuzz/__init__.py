# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT
