# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""How a recipe gets its config, structured once, and is run with it."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import (
    Any,
    Final,
    Generic,
    Protocol,
    TypeVar,
    cast,
    final,
    runtime_checkable,
)

import torch.distributed as dist
from fairseq2.logging import log
from fairseq2.recipe.base import Recipe
from fairseq2.recipe.config import (
    ADAFACTOR_OPTIMIZER,
    ADAMW_OPTIMIZER,
    COSINE_ANNEALING_LR,
    MYLE_LR,
    NOAM_LR,
    PASSTHROUGH_LR,
    POLYNOMIAL_DECAY_LR,
    TRI_STAGE_LR,
)
from fairseq2.recipe.error import (
    LRSchedulerNotKnownError,
    OptimizerNotKnownError,
    RecipeError,
    SequenceGeneratorNotKnownError,
)
from fairseq2.recipe.run import run
from fairseq2.runtime.dependency import DependencyResolver
from fairseq2.utils.structured import StructureError
from fairseq2.utils.validation import StandardObjectValidator, ValidationError

from warmup_plugin.config_values import create_value_converter
from warmup_plugin.console import (
    describe_causes,
    hide_start_warning,
    install_log_filter,
    name_keys,
)
from warmup_plugin.cores import watch_cores
from warmup_plugin.errors import WarmupError
from warmup_plugin.fairseq2_doors import (
    checked_once,
    create_recipe_resolver,
    handled_errors,
    structure_recipe_config,
)
from warmup_plugin.threads import limited_threads

ConfigT = TypeVar("ConfigT")

_OPTIMIZERS: Final = (ADAMW_OPTIMIZER, ADAFACTOR_OPTIMIZER)

_LR_SCHEDULERS: Final = (
    *(COSINE_ANNEALING_LR, MYLE_LR, NOAM_LR, POLYNOMIAL_DECAY_LR),
    *(TRI_STAGE_LR, PASSTHROUGH_LR),
)


@runtime_checkable
class Settled(Protocol):
    """A config of which some values follow from others."""

    def settle(self) -> None:
        """Sets them, before it is checked."""


@final
class RecipeRunner(Generic[ConfigT]):
    """Structures the config of a recipe before it runs, and runs it."""

    def __init__(self, recipe: Recipe, config_kls: type[ConfigT]) -> None:
        self._recipe = recipe
        self._config_kls = config_kls
        self._config: ConfigT | None = None

        self.resolver = self._create_resolver()
        """Knows what the recipe will know, such as the asset cards of its config."""

    def _create_resolver(self) -> DependencyResolver:
        with hide_start_warning():
            return create_recipe_resolver(self._recipe, lambda: self._config)

    def structure(self, config: object) -> ConfigT:
        """
        Turns values from YAML into a config, and checks it.

        :raises WarmupError: If they are none of it.
        """
        try:
            typed = cast(
                ConfigT,
                structure_recipe_config(self.resolver, self._config_kls, config),
            )

            if isinstance(typed, Settled):
                typed.settle()

            StandardObjectValidator().validate(typed)
        except StructureError as ex:
            raise WarmupError(
                f"The config cannot be read: {describe_causes(ex)}"
            ) from None
        except ValidationError as ex:
            raise WarmupError(name_keys(str(ex))) from None
        except OptimizerNotKnownError as ex:
            raise _make_unknown_error("optimizer.name", ex.name, _OPTIMIZERS) from None
        except LRSchedulerNotKnownError as ex:
            raise _make_unknown_error(
                "lr_scheduler.name", ex.name, _LR_SCHEDULERS
            ) from None
        except (RecipeError, SequenceGeneratorNotKnownError) as ex:
            raise WarmupError(describe_causes(ex)) from None

        self._config = typed

        return typed

    def run(
        self,
        config: ConfigT,
        out: Path,
        *,
        no_rich: bool = False,
        no_exit_on_error: bool = False,
    ) -> int:
        """
        Runs the recipe as fairseq2's command line would, with our log filter in front.

        Without a terminal it writes plain lines: fairseq2 would break them at 80 columns.

        :param no_exit_on_error: If ``True``, lets errors through.

        :returns: The exit status.
        """
        install_log_filter()

        common = cast(Any, config).common

        if common.metric_recorders.wandb.enabled:
            # It is put off till now, and so are its errors.
            import_module("wandb")

            self.resolver = self._create_resolver()

        old_handlers = list(log.logger.handlers)

        # On a full disk each line of the log would become a traceback on the console.
        old_raise, logging.raiseExceptions = logging.raiseExceptions, False

        try:
            with (
                hide_start_warning(),
                handled_errors(self.resolver, no_exit_on_error),
                checked_once(config),
                limited_threads(watch_cores(), common.torch.num_threads),
            ):
                # Closed by `2>&-`, it is no terminal either.
                run(self._recipe, config, out, no_rich=no_rich or not os.isatty(2))
        except SystemExit as ex:
            return ex.code if isinstance(ex.code, int) else 1
        finally:
            logging.raiseExceptions = old_raise

            # The log file of this run; a second run in this process is not to write there.
            for handler in log.logger.handlers[:]:
                if handler not in old_handlers:
                    log.logger.removeHandler(handler)

                    # What a full disk has no room for was lost before.
                    with contextlib.suppress(OSError):
                        handler.close()

        # All processes end here. Left to the end of the process, the threads of its
        # connections are torn down while they work, which now and then aborts it.
        if dist.is_initialized():
            dist.destroy_process_group()

        return 0


def _make_unknown_error(key: str, name: str, known: Sequence[str]) -> WarmupError:
    names = ", ".join(f"`{n}`" for n in known)

    return WarmupError(
        f"`{key}` is `{name}`, which is not registered; use {names} or one that your own package registers."
    )


def unstructure_config(config: object) -> dict[str, Any]:
    """Turns a config into values for YAML."""
    values = create_value_converter().unstructure(config)

    assert isinstance(values, Mapping)

    return dict(values)
