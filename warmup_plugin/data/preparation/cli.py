# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""What the scripts that prepare data share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import final

from warmup_plugin.data.preparation.data_folder import DataFolder
from warmup_plugin.data.preparation.filtering import TrainingFilter
from warmup_plugin.data.preparation.filters import DUPLICATES, FilterConfig
from warmup_plugin.errors import WarmupError
from warmup_plugin.metrics.language_id import create_language_identifier
from warmup_plugin.terminal import get_arguments, guard, show


@final
class PreparationParser(argparse.ArgumentParser):
    """Parses what a script is told, and runs it."""

    def __init__(self, prog: str, description: str, epilog: str) -> None:
        """
        :param description: Is shown as it is written, as are the examples in ``epilog``.
        """
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

        self.add_argument(
            "out",
            type=Path,
            metavar="OUT",
            help="folder for the data, the `dataset.path` of training; it may hold data of other scripts too",
        )

        self.add_argument(
            "--force",
            action="store_true",
            help="replace files in OUT that come from elsewhere",
        )

    def run(
        self,
        argv: Sequence[str] | None,
        prepare: Callable[[argparse.Namespace, DataFolder], str | None],
    ) -> int:
        """
        Parses arguments, prepares data and shows what became of it.

        :param prepare: Prepares a folder and returns the key of its entry, or ``None`` if
            nothing was to be prepared.

        :returns: The exit status: 2 for bad input, 130 when interrupted.
        """
        arguments = get_arguments(argv)

        args = self.parse_args(arguments)

        def prepare_folder() -> int:
            command = ["python", f"scripts/{self.prog}", *arguments]

            folder = DataFolder(args.out, command, force=args.force)

            try:
                key = prepare(args, folder)
            except OSError as ex:
                raise WarmupError(
                    f"`{ex.filename or args.out}` cannot be read or written ({ex.strerror or ex}): check its permissions and the room on the disk, then run the same command again."
                ) from None

            if key is not None:
                show(folder.summarize(key))

            return 0

        return guard(prepare_folder, arguments)

    def add_download_arguments(self, *, what: str, url: str) -> None:
        self.add_argument(
            "--from",
            dest="source",
            type=Path,
            metavar="PATH",
            help=f"{what}; without it, the data is downloaded",
        )

        self.add_argument(
            "--url", metavar="URL", help=f"a mirror to download from (default: {url})"
        )

        self.add_downloads_argument()

    def add_downloads_argument(self) -> None:
        self.add_argument(
            "--downloads",
            type=Path,
            metavar="DIR",
            help="folder that keeps what was downloaded, with checksums; a broken download goes on from there (default: OUT/downloads)",
        )

    def add_split_argument(self, splits: Sequence[str]) -> None:
        self.add_argument(
            "--splits",
            nargs="+",
            choices=splits,
            default=list(splits),
            metavar="SPLIT",
            help=f"of {', '.join(splits)} (default: all)",
        )

    def add_overlap_argument(self) -> None:
        self.add_argument(
            "--drop-overlap",
            action="store_true",
            help="drop training examples whose source occurs in another split; without it, they are only counted, and the data is as published",
        )

    def add_filter_arguments(self) -> None:
        group = self.add_argument_group(
            "filters of training text (a Chinese or Japanese character is half a word)"
        )

        defaults = {
            field.name: field.default
            for field in fields(FilterConfig)
            if field.default is not MISSING
        }

        for option, metavar, text in (
            ("min-len", "WORDS", "shortest side"),
            ("max-len", "WORDS", "longest side"),
            ("max-ratio", "R", "greatest ratio of the lengths of the two sides"),
            (
                "language-id-min-len",
                "WORDS",
                "do not look at the language of shorter texts",
            ),
        ):
            default = defaults[option.replace("-", "_")]

            group.add_argument(
                f"--{option}",
                type=float,
                default=default,
                metavar=metavar,
                help=f"{text} (default: {default:g})",
            )

        group.add_argument(
            "--keep-identical",
            action="store_true",
            help="keep pairs whose target is a copy of the source",
        )

        group.add_argument(
            "--duplicates",
            choices=DUPLICATES,
            default=defaults["duplicates"],
            help="of what only the first is kept (default: %(default)s)",
        )

        group.add_argument(
            "--language-id",
            default="auto",
            metavar="HOW",
            help="drop pairs with a side in another language: `py3langid` (about 3,300 texts a second), the path of a model of fastText such as `lid.176.bin` (much faster), `auto` for py3langid if it is installed, or `none` (default: %(default)s)",
        )

        group.add_argument(
            "--held-out",
            nargs="+",
            type=Path,
            default=[],
            metavar="FILE",
            help="test sets, one sentence a line, in any language: pairs with one of their sentences are counted and dropped",
        )

        group.add_argument(
            "--max-pairs",
            type=int,
            metavar="N",
            help="of the pairs that are left, draw at most N at random (default: keep all)",
        )

        group.add_argument(
            "--seed",
            type=int,
            default=1,
            metavar="N",
            help="another one draws other pairs (default: %(default)s)",
        )


def get_downloads(args: argparse.Namespace) -> Path:
    downloads: Path | None = args.downloads

    out: Path = args.out

    return downloads if downloads is not None else out / "downloads"


def get_training_filter(
    args: argparse.Namespace, source_lang: str, target_lang: str
) -> TrainingFilter:
    names = [field.name for field in fields(FilterConfig)]

    config = FilterConfig(**{name: getattr(args, name) for name in names})

    config.check()

    if args.max_pairs is not None and args.max_pairs < 1:
        raise WarmupError(
            f"`--max-pairs` must be at least 1, but is {args.max_pairs} instead."
        )

    return TrainingFilter(
        source_lang=source_lang,
        target_lang=target_lang,
        config=config,
        held_out_files=args.held_out,
        identifier=create_language_identifier(args.language_id),
        max_pairs=args.max_pairs,
        seed=args.seed,
    )
