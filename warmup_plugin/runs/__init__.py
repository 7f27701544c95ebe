# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""What runs leave behind, and where. Imports neither fairseq2 nor torch."""
