# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import errno
import logging
import warnings
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import fairseq2
import pytest
from fairseq2.logging import LogWriter, configure_logging, get_log_writer
from rich.logging import RichHandler

from warmup_plugin import console
from warmup_plugin.console import (
    ConsoleFilter,
    LogFilter,
    calm_console,
    describe_causes,
    hide_start_warning,
    install_log_filter,
    is_secret,
    make_private_log,
    name_keys,
    quiet_log,
)

SEE_TRACE = "See logged stack trace for details."


@pytest.fixture
def stream() -> Iterator[StringIO]:
    """What a logger behind the filter writes."""
    logger = logging.getLogger("tests.console")

    environ = {
        "HF_TOKEN": "hf_abcdef",
        "DB_PASSWORD": "s3cret!",
        "SHORT_TOKEN": "1",
        "TOKENIZERS_PARALLELISM": "false-or-true",
        "PWD": "/home/user",
        "EMPTY_SECRET": "",
    }

    stream = StringIO()

    handler = logging.StreamHandler(stream)

    log_filter = LogFilter(environ)

    logger.addFilter(log_filter)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False

    yield stream

    logger.removeHandler(handler)
    logger.removeFilter(log_filter)


@pytest.fixture
def log(stream: StringIO) -> LogWriter:
    """The kind of log that fairseq2 has."""
    return get_log_writer("tests.console")


class TestSecrets:
    def test_filter_hides_secrets_of_environment_dump(
        self, log: LogWriter, stream: StringIO
    ) -> None:
        log.info("Environment Variables - {}", "HOME=/root, HF_TOKEN=hf_abcdef")

        # As `_StandardLogHelper.log_environment_variables()` writes it.
        log.info(
            "Variables - {}",
            "HOME=/root, HF_TOKEN=hf_abcdef, DB_PASSWORD=s3cret!, SHORT_TOKEN=1, "
            "TOKENIZERS_PARALLELISM=false-or-true, PWD=/home/user, "
            "URL=https://joe:p@ss@host:80/p?q=1, GIT=https://ghp_1@host/a, "
            "SITE=http://host:80/a@b, EMPTY_SECRET=",
        )

        text = stream.getvalue()

        assert "Environment" not in text

        for secret in ("hf_abcdef", "s3cret!", "p@ss", "ghp_1", "SHORT_TOKEN=1"):
            assert secret not in text

        assert "HOME=/root, HF_TOKEN=[hidden], DB_PASSWORD=[hidden]" in text
        assert "TOKENIZERS_PARALLELISM=false-or-true, PWD=/home/user" in text
        assert (
            "URL=https://joe:[hidden]@host:80/p?q=1, GIT=https://[hidden]@host/a"
            in text
        )
        assert "SITE=http://host:80/a@b" in text

    def test_filter_hides_secret_wherever_it_stands(
        self, log: LogWriter, stream: StringIO
    ) -> None:
        log.info("Config: {'path': 'x/hf_abcdef/y', 'n': 1}")

        assert stream.getvalue() == "Config: {'path': 'x/[hidden]/y', 'n': 1}\n"

    def test_filter_hides_secret_in_traceback(
        self, log: LogWriter, stream: StringIO
    ) -> None:
        try:
            raise RuntimeError("cannot open http://joe:pass@host with hf_abcdef")
        except RuntimeError:
            log.exception("Recipe failed due to an unexpected error.")

        assert "http://joe:[hidden]@host with [hidden]" in stream.getvalue()
        assert "Traceback" in stream.getvalue()

    def test_filter_formats_arguments_once(self, stream: StringIO) -> None:
        logger = logging.getLogger("tests.console")

        logger.info("%s of %d%%", "hf_abcdef", 5)
        logger.info("100%")

        assert stream.getvalue() == "[hidden] of 5%\n100%\n"

    @pytest.mark.parametrize(
        "name",
        [
            *("DB_PASS", "OPENAI_KEY_1", "AZURE_KEY_PROD", "AWSKEY", "SAS_URL"),
            *("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD", "MYSQL_PWD", "X_PAT"),
            *("OPENAI_API_KEY", "apikey", "SENTRY_DSN", "SLACK_WEBHOOK_URL", "JWT"),
            *("GOOGLE_APPLICATION_CREDENTIALS", "KEY", "MY_KEY", "AUTHORIZATION"),
            *("PROXY_AUTH", "SSH_PRIVATE", "AZURE_STORAGE_CONNECTION_STRING"),
        ],
    )
    def test_is_secret_returns_true(self, name: str) -> None:
        assert is_secret(name)

    @pytest.mark.parametrize(
        "name",
        [
            *("PATH", "HOME", "PWD", "OLDPWD", "KEYBOARD", "TOKENIZERS_PARALLELISM"),
            *("GIT_AUTHOR_NAME", "AUTHOR", "LANG", "OMP_NUM_THREADS", "PATTERN"),
        ],
    )
    def test_is_secret_returns_false(self, name: str) -> None:
        assert not is_secret(name)


class TestCalmConsole:
    def test_details_are_in_log_file_alone(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        # As fairseq2 does when it starts, and when it knows the output directory.
        configure_logging(no_rich=True)

        calm_console()

        log = get_log_writer("fairseq2")

        file_handler = logging.FileHandler(tmp_path / "rank_0.log")

        log.logger.addHandler(file_handler)

        log.info("{}: {}", "Config", "{\n 'task': 1\n}")
        log.info("Model (rank {}) - {}\n{}", 0, "Parameter Size: 9", "Module(\n)")
        log.info("train: all 400 pairs kept.")
        log.warning("Config: odd")

        file_handler.close()

        err = capsys.readouterr().err.splitlines()

        assert [line[20:] for line in err] == [
            "INFO: train: all 400 pairs kept.",
            "WARNING: Config: odd",
        ]

        text = (tmp_path / "rank_0.log").read_text()

        assert "'task': 1" in text and "Module(" in text and "400 pairs" in text

    def test_call_works_with_columns_of_terminal(self) -> None:
        configure_logging()

        calm_console()
        calm_console()

        [handler] = logging.getLogger().handlers

        assert isinstance(handler, RichHandler)

        # Of a log file whose name is that of the package every line is.
        assert handler.format(logging.makeLogRecord({"msg": "x"})) == "x"

        assert [type(f) for f in handler.filters] == [ConsoleFilter]

    def test_details_are_messages_of_fairseq2(self) -> None:
        files = Path(str(fairseq2.__file__)).parent.rglob("*.py")

        source = "\n".join(file.read_text(encoding="utf-8") for file in files)

        for prefix in console._DETAILS:
            if prefix.endswith("Config: "):
                calls = [f'log_config("{prefix[:-2]}", ']
            else:
                calls = [f'log.info("{prefix}', f'm = "{prefix}']

            assert any(call in source for call in calls), prefix

    def test_filter_drops_protocols(self, log: LogWriter, stream: StringIO) -> None:
        log.info("Activated FileSystem protocols:\n ['file', 'local', 's3']")

        assert stream.getvalue() == ""


def raise_config_error() -> None:
    try:
        try:
            raise ValueError("extra key(s)\nfoo")
        except ValueError as ex:
            raise TypeError("Value cannot be structured to `<class 'x.Y'>`.") from ex
    except TypeError as ex:
        raise RuntimeError("`regime` field cannot be structured.") from ex


class TestTracebacks:
    def test_filter_keeps_cause_of_bad_input_without_traceback(
        self, log: LogWriter, stream: StringIO
    ) -> None:
        try:
            raise_config_error()
        except RuntimeError:
            log.exception(f"Recipe configuration cannot be parsed. {SEE_TRACE}")

        assert stream.getvalue() == (
            "Recipe configuration cannot be parsed. `regime`: extra key(s) foo.\n"
        )

    @pytest.mark.parametrize(
        "message",
        [
            # As fairseq2 writes it.
            "Recipe failed due to an unexpected error. See logged stack trace for details and file a bug report to the corresponding author.",
            f"warmup_plugin extension failed to initialize. {SEE_TRACE}",
            "An error of ours.",
        ],
    )
    def test_filter_keeps_traceback_of_unexpected_error(
        self, log: LogWriter, stream: StringIO, message: str
    ) -> None:
        try:
            raise_config_error()
        except RuntimeError:
            log.exception(message)

        assert stream.getvalue().startswith(f"{message}\nTraceback (most recent")
        assert "in raise_config_error" in stream.getvalue()

    def test_describe_causes_joins_messages_once(self) -> None:
        try:
            try:
                raise ValueError("b!")
            except ValueError as ex:
                raise ValueError("a") from ex
        except ValueError as ex:
            error = ex

        assert describe_causes(error) == "a. b!"

        same = ValueError("a")

        same.__cause__ = ValueError("a")

        assert describe_causes(same) == "a."
        assert describe_causes(ValueError()) == ""


class TestInstallLogFilter:
    @pytest.fixture(autouse=True)
    def bare_loggers(self) -> None:
        for name in ("fairseq2", None):
            # Restored by the fixture of all tests.
            logging.getLogger(name).filters.clear()

    def test_call_installs_once(self) -> None:
        install_log_filter()
        install_log_filter()

        for name in ("fairseq2", None):
            assert len(logging.getLogger(name).filters) == 1

    def test_call_reads_environment_of_process(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SOME_TOKEN", "abcdefgh")

        install_log_filter()

        record = logging.LogRecord("x", logging.INFO, "", 0, "abcdefgh", (), None)

        assert all(f.filter(record) for f in logging.getLogger("fairseq2").filters)  # type: ignore[union-attr]

        assert record.getMessage() == "[hidden]"

    def test_call_drops_warning_about_metrics_without_values(self) -> None:
        install_log_filter()

        stream = StringIO()

        handler = logging.StreamHandler(stream)

        logging.getLogger().addHandler(handler)

        # As torcheval's `Mean.compute()` does.
        logging.warning("No calls to update() have been made - returning 0.0")
        logging.warning("another one")

        logging.getLogger().removeHandler(handler)

        assert stream.getvalue() == "another one\n"

    def test_metric_without_values_says_nothing(self) -> None:
        from torcheval.metrics import Mean

        install_log_filter()

        stream = StringIO()

        handler = logging.StreamHandler(stream)

        logging.getLogger().addHandler(handler)

        Mean().compute()

        logging.getLogger().removeHandler(handler)

        assert stream.getvalue() == ""


class TestHideStartWarning:
    def test_call_hides_one_warning_only(self, monkeypatch: pytest.MonkeyPatch) -> None:
        shown: list[str] = []

        def show(message: Warning | str, *args: object) -> None:
            shown.append(str(message))

        monkeypatch.setattr(warnings, "showwarning", show)

        with hide_start_warning():
            for text in ("`hg_exporter` is deprecated and so on", "another one"):
                warnings.showwarning(text, DeprecationWarning, "file.py", 1)

        assert shown == ["another one"]

    def test_call_restores_function(self) -> None:
        show = warnings.showwarning

        with hide_start_warning():
            assert warnings.showwarning is not show

        assert warnings.showwarning is show


class TestDescribeCauses:
    def test_list_of_all_weights_is_cut_after_a_sentence(self) -> None:
        # As fairseq2 says that a checkpoint is of another model.
        sentences = [f"`layer.{i}.weight` has another shape." for i in range(100)]

        text = describe_causes(ValueError(" ".join(sentences)))

        assert text.startswith("`layer.0.weight` has another shape. `layer.1.weight`")
        assert text.endswith("has another shape, and so on.")
        assert len(text) < 450


class TestNameKeys:
    @pytest.mark.parametrize(
        "text,named",
        [
            (
                "`warmup.keep` is not valid: `num` must be at least 1. `mass` must be x.",
                "`warmup.keep.num` must be at least 1. `warmup.keep.mass` must be x.",
            ),
            (
                "`a` is bad. `b` is not valid: `c` must be at most `d` (1). `e` is not valid: `f` is g; set `h`.",
                "`a` is bad. `b.c` must be at most `d` (1). `e.f` is g; set `h`.",
            ),
            (
                "`a` is not valid: `b` must be a multiple of `c` (3), but is 2 instead.",
                "`a.b` must be a multiple of `a.c` (3), but is 2 instead.",
            ),
            # That calls itself so.
            ("`a` is not valid: `a.b` must be c.", "`a.b` must be c."),
            ("`a` is not valid: It must be c.", "`a` is not valid: It must be c."),
            ("Line 2 is not valid: `a`.", "Line 2 is not valid: `a`."),
        ],
    )
    def test_key_is_that_of_the_config(self, text: str, named: str) -> None:
        assert name_keys(text) == named

    def test_filter_names_keys(self, log: LogWriter, stream: StringIO) -> None:
        log.error("{}", "`regime` is not valid: `num_steps` must be at least 1.")

        assert stream.getvalue() == "`regime.num_steps` must be at least 1.\n"


def test_quiet_log_hides_what_is_no_warning(log: LogWriter, stream: StringIO) -> None:
    with quiet_log():
        log.info("start")
        log.warning("careful")

    log.info("go on")

    assert stream.getvalue() == "careful\ngo on\n"


class TestMakePrivateLog:
    def test_only_owner_reads(self, tmp_path: Path) -> None:
        make_private_log(tmp_path / "run", 1)

        file = tmp_path / "run" / "logs" / "rank_1.log"

        assert file.stat().st_mode & 0o777 == 0o600

        file.chmod(0o644)

        make_private_log(tmp_path / "run", 1)

        assert file.stat().st_mode & 0o777 == 0o600
        assert file.parent.stat().st_mode & 0o777 == 0o700

    def test_no_link_is_followed(self, tmp_path: Path) -> None:
        (tmp_path / "logs").mkdir()
        (tmp_path / "logs" / "rank_0.log").symlink_to(tmp_path / "other")

        with pytest.raises(OSError):
            make_private_log(tmp_path, 0)

        assert not (tmp_path / "other").exists()


class TestControls:
    def test_filter_escapes_what_steers_a_terminal(
        self, log: LogWriter, stream: StringIO
    ) -> None:
        log.info("{}\n{}", "a\x1b[31m\rb\u202e", "c\td")

        assert stream.getvalue() == "a\\x1b[31m\\x0db\\u202e\nc\td\n"

    def test_filter_escapes_traceback(self, log: LogWriter, stream: StringIO) -> None:
        try:
            raise ValueError("\x1b[31m")
        except ValueError:
            log.exception("An error of ours.")

        assert "ValueError: \\x1b[31m" in stream.getvalue()


class TestFullDisk:
    def test_cause_of_any_error_is_told_in_a_sentence(
        self, log: LogWriter, stream: StringIO
    ) -> None:
        try:
            try:
                raise OSError(errno.ENOSPC, "No space left on device", "run/a.pt")
            except OSError:
                raise RuntimeError("unexpected pos")
        except RuntimeError:
            log.exception(f"Recipe failed due to an unexpected error. {SEE_TRACE}")

        text = stream.getvalue()

        assert text.startswith("`run/a.pt` cannot be written, since there is no more")
        assert text.count("\n") == 1

    def test_errors_that_led_to_each_other_end(
        self, log: LogWriter, stream: StringIO
    ) -> None:
        first, second = ValueError("a"), ValueError("b")

        first.__cause__, second.__cause__ = second, first

        assert describe_causes(first) == "a. b."

        try:
            raise first
        except ValueError as ex:
            log.exception(f"Recipe failed due to an operational error. {SEE_TRACE}")

            assert ex.__cause__ is second


class TestTexts:
    """What fairseq2 writes must be what is looked for."""

    @pytest.fixture(scope="class")
    @classmethod
    def sources(cls) -> str:
        folder = Path(fairseq2.__file__).parent

        return "\n".join(file.read_text() for file in folder.rglob("*.py"))

    @pytest.mark.parametrize(
        "text",
        [
            *console._DETAILS,
            *console._KEEP_TRACE,
            console._ENVIRONMENT,
            console._FILE_SYSTEMS,
            console._SEE_TRACE,
            "operational error",
            "` is not valid: ",
            "` field cannot be structured.",
            " key cannot be structured.",
            " cannot be structured as ",
            "Recipe configuration cannot be structured.",
            "Value cannot be structured to `",
            "`hg_exporter` is deprecated",
        ],
    )
    def test_text_is_one_of_fairseq2(self, sources: str, text: str) -> None:
        # The name of a config and a colon are put together when it is logged.
        is_there = text in sources or f'"{text.removesuffix(": ")}"' in sources

        assert (
            is_there
        ), f"fairseq2 {fairseq2.__version__} no longer writes {text!r}, which console.py looks for in its log and errors."
