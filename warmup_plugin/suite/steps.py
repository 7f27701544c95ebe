# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
A step of a suite: its command, what it needs, and whether it is done.

Beside a run ``OUT/TASK/SYSTEM/seed_N`` lie the logs of its steps, such as
``seed_N.train.log``, and their records, such as ``seed_N.train.json``: the command and
the digests of what it read. What a system that trains nothing writes is called
``seed_N.txt``. Where a task scores several splits or directions, the names of what is
about one of them go on with that: ``seed_N.test.de-en.txt``. A step is done if its record
says so for the command and the files of today, and if what it wrote is there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from warmup_plugin.errors import WarmupError
from warmup_plugin.files import write_output
from warmup_plugin.parsing import read_json
from warmup_plugin.runs.run_dir import RunDir
from warmup_plugin.suite.runs import Outputs, Run

OUT_REMEDY: Final = "give an `out` that you may write to"
"""What to do if a file of a suite cannot be written."""


class NotReady(Exception):
    """Says why there is no command for a step now, as the end of a sentence."""


# Of an output: itself, its details, and what there is of them until they are complete.
_OUTPUT_ENDINGS: Final = ("", ".jsonl", ".partial", ".jsonl.partial", ".state")


@final
@dataclass(frozen=True, eq=False)
class Step:
    """Describes a command of a suite."""

    key: str
    """Such as `train en-de/warmup/1`."""

    files: Path
    """The path of its log and its record, without their endings."""

    command: Sequence[str]
    """What stands behind ``python -m warmup_plugin``, as far as it is known before other
    steps are done."""

    complete_command: Callable[[], list[str]] | None = None
    """Returns it when they are, if that is another one. Raises ``NotReady``."""

    runs: Sequence[str] = ()
    """The names of the runs that it is about."""

    inputs: Sequence[Path | Outputs] = ()
    """What it reads of other steps; of outputs the translations."""

    write_inputs: Callable[[], None] = lambda: None
    """Writes what no other step does, when it begins."""

    outputs: Sequence[Path] = ()
    """What it would refuse to write again for another command or other inputs."""

    is_complete: Callable[[], bool] = lambda: True
    """Tells whether what it writes is there."""

    needs: Sequence[Step] = ()
    """What must be done before it."""

    after: Sequence[Step] = ()
    """What must have ended before it, well or badly."""

    retrains: Run | None = None
    """The run that it trains, which must not go on from other inputs."""

    @property
    def log_file(self) -> Path:
        return self.files.with_name(f"{self.files.name}.log")

    @property
    def record_file(self) -> Path:
        return self.files.with_name(f"{self.files.name}.json")

    def make_command(self) -> list[str]:
        """
        Returns the command.

        :raises NotReady: There is nothing to run.
        :raises WarmupError: What it depends on cannot be read.
        """
        if self.complete_command is not None:
            return self.complete_command()

        return list(self.command)

    def preview(self) -> list[str]:
        """Returns the command, as far as it is known already."""
        try:
            return self.make_command()
        except (NotReady, WarmupError):
            return list(self.command)

    def is_done(self) -> bool:
        """Tells whether it and all it needs is done, as the grid says it today."""
        if not all(step.is_done() for step in self.needs):
            return False

        record = self._load_record()

        if not record.get("done") or record.get("inputs") != self._digest_inputs():
            return False

        try:
            command = self.make_command()
        except (NotReady, WarmupError):
            return False

        return record.get("command") == command and self.is_complete()

    def begin(self) -> list[str]:
        """
        Records that the step begins.

        :returns: The command.

        :raises NotReady: There is nothing to run.
        :raises WarmupError: It must not be run.
        """
        command = self.make_command()

        self.write_inputs()

        inputs = self._digest_inputs()

        run, record = self.retrains, self._load_record()

        # `train` would find nothing to do, or go on from a model that is gone.
        if run is not None and record and record.get("inputs") != inputs:
            if RunDir(run.path).has_begun():
                raise WarmupError(
                    f"{run.path} was started from a run that has been trained anew since; delete it, so that it is trained anew as well."
                )

        # What broke goes on.
        if (record.get("command"), record.get("inputs")) != (command, inputs):
            for file in self.outputs:
                for ending in _OUTPUT_ENDINGS:
                    file.with_name(f"{file.name}{ending}").unlink(missing_ok=True)

        self._write_record(command, inputs, None)

        return command

    def end(self, command: Sequence[str], seconds: float) -> None:
        """
        Records that the step has ended well.

        :raises WarmupError: What it should have written is not there.
        """
        if not self.is_complete():
            raise WarmupError(
                "The command ended well but without what it should write; see its log."
            )

        self._write_record(command, self._digest_inputs(), seconds)

    def _load_record(self) -> dict[str, Any]:
        record = read_json(self.record_file)

        return record if isinstance(record, dict) else {}

    def _write_record(
        self,
        command: Sequence[str],
        inputs: Mapping[str, str],
        seconds: float | None,
    ) -> None:
        record = {
            "command": list(command),
            "inputs": inputs,
            "done": seconds is not None,
            "seconds": seconds,
        }

        text = json.dumps(record, indent=2, ensure_ascii=False)

        write_output(self.record_file, f"{text}\n", OUT_REMEDY)

    def _digest_inputs(self) -> dict[str, str]:
        # The names of some translations are known late.
        paths = [p if isinstance(p, Path) else p.translations for p in self.inputs]

        return {str(path): _digest(path) for path in paths}


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return "none"
