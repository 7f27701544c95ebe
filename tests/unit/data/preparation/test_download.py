# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.unit.data.preparation.servers import FileServer, serve
from warmup_plugin.data.preparation.download import Downloader, hide_secrets
from warmup_plugin.errors import WarmupError

DATA = bytes(range(256)) * 40

SHA256 = hashlib.sha256(DATA).hexdigest()


def create_downloader(*, token: str | None = None) -> Downloader:
    return Downloader(token=token, max_failures=3, wait_seconds=0.0, timeout=10.0)


def list_files(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def get_ranges(server: FileServer) -> list[str | None]:
    return [request.headers.get("Range") for request in server.requests]


class TestDownload:
    def test_call_writes_file_and_checksum(self, tmp_path: Path) -> None:
        file = tmp_path / "sub" / "a.bin"

        with serve(files={"/a.bin": DATA}) as server:
            sha256 = create_downloader().download(f"{server.url}/a.bin", file)

        assert sha256 == SHA256
        assert file.read_bytes() == DATA
        assert list_files(file.parent) == ["a.bin", "a.bin.sha256"]
        assert (tmp_path / "sub" / "a.bin.sha256").read_text() == f"{SHA256}  a.bin\n"

    def test_call_downloads_nothing_twice(self, tmp_path: Path) -> None:
        file = tmp_path / "a.bin"

        with serve(files={"/a.bin": DATA}) as server:
            for _ in range(2):
                create_downloader().download(f"{server.url}/a.bin", file)

            assert len(server.requests) == 1

            # What was damaged since is.
            file.write_bytes(DATA[:-1])

            create_downloader().download(f"{server.url}/a.bin", file)

            assert len(server.requests) == 2

        assert file.read_bytes() == DATA

    def test_call_takes_file_that_was_put_there(self, tmp_path: Path) -> None:
        file = tmp_path / "a.bin"

        file.write_bytes(DATA)

        # No server: nothing is asked of it.
        sha256 = create_downloader().download("http://127.0.0.1:9/a.bin", file)

        assert sha256 == SHA256

    def test_call_goes_on_where_connection_broke(self, tmp_path: Path) -> None:
        file = tmp_path / "a.bin"

        with serve(
            files={"/a.bin": DATA}, etags={"/a.bin": '"1"'}, cut_after=[1000, 500]
        ) as server:
            create_downloader().download(f"{server.url}/a.bin", file)

            assert get_ranges(server) == [None, "bytes=1000-", "bytes=1500-"]

        assert file.read_bytes() == DATA
        assert list_files(tmp_path) == ["a.bin", "a.bin.sha256"]

    def test_call_goes_on_in_another_process(self, tmp_path: Path) -> None:
        file = tmp_path / "a.bin"

        with serve(
            files={"/a.bin": DATA}, etags={"/a.bin": '"1"'}, cut_after=[100, 0, 0, 0]
        ) as server:
            with pytest.raises(
                WarmupError, match=r", 100 bytes are there\): run the same"
            ):
                create_downloader().download(f"{server.url}/a.bin", file)

            # Never half a file under its name.
            assert not file.exists()

            create_downloader().download(f"{server.url}/a.bin", file)

            assert get_ranges(server)[-1] == "bytes=100-"

        assert file.read_bytes() == DATA

    def test_call_starts_again_when_file_has_changed(self, tmp_path: Path) -> None:
        file = tmp_path / "a.bin"

        with serve(
            files={"/a.bin": DATA}, etags={"/a.bin": '"1"'}, cut_after=[100, 0, 0, 0]
        ) as server:
            with pytest.raises(WarmupError):
                create_downloader().download(f"{server.url}/a.bin", file)

            server.files["/a.bin"] = DATA[::-1]
            server.etags["/a.bin"] = '"2"'

            create_downloader().download(f"{server.url}/a.bin", file)

        assert file.read_bytes() == DATA[::-1]

    def test_call_starts_again_when_file_has_become_shorter(
        self, tmp_path: Path
    ) -> None:
        file = tmp_path / "a.bin"

        with serve(
            files={"/a.bin": DATA}, etags={"/a.bin": '"1"'}, cut_after=[100, 0, 0, 0]
        ) as server:
            with pytest.raises(WarmupError):
                create_downloader().download(f"{server.url}/a.bin", file)

            server.files["/a.bin"] = b"short"

            create_downloader().download(f"{server.url}/a.bin", file)

        assert file.read_bytes() == b"short"

    @pytest.mark.parametrize("etag", [None, 'W/"1"'])
    def test_call_starts_again_when_server_cannot_tell_files_apart(
        self, tmp_path: Path, etag: str | None
    ) -> None:
        with serve(files={"/a.bin": DATA}, cut_after=[1000]) as server:
            if etag is not None:
                server.etags["/a.bin"] = etag

            create_downloader().download(f"{server.url}/a.bin", tmp_path / "a.bin")

            assert get_ranges(server) == [None, None]

        assert (tmp_path / "a.bin").read_bytes() == DATA

    def test_call_starts_again_when_server_ignores_range(self, tmp_path: Path) -> None:
        with serve(
            files={"/a.bin": DATA},
            etags={"/a.bin": '"1"'},
            cut_after=[1000],
            ignores_range=True,
        ) as server:
            create_downloader().download(f"{server.url}/a.bin", tmp_path / "a.bin")

        assert (tmp_path / "a.bin").read_bytes() == DATA

    def test_call_tries_again_when_server_is_busy(self, tmp_path: Path) -> None:
        with serve(files={"/a.bin": DATA}, statuses=[503, 429]) as server:
            create_downloader().download(f"{server.url}/a.bin", tmp_path / "a.bin")

            assert len(server.requests) == 3

    @pytest.mark.parametrize(
        ("status", "text"), [(404, "it may have moved"), (401, "`HF_TOKEN`")]
    )
    def test_call_explains_refusal_at_once(
        self, tmp_path: Path, status: int, text: str
    ) -> None:
        with serve(statuses=[status, status]) as server:
            with pytest.raises(WarmupError, match=text):
                create_downloader().download(f"{server.url}/a.bin", tmp_path / "a.bin")

            assert len(server.requests) == 1

        assert list_files(tmp_path) == []

    def test_call_explains_unreachable_server(self, tmp_path: Path) -> None:
        with serve() as server:
            url = server.url

        with pytest.raises(
            WarmupError, match=r"could not be downloaded \(.*refused, 0"
        ):
            create_downloader().download(f"{url}/a.bin", tmp_path / "a.bin")

    @pytest.mark.parametrize("url", ["a.bin", "file:///a.bin"])
    def test_call_explains_what_is_no_url(self, tmp_path: Path, url: str) -> None:
        with pytest.raises(WarmupError, match=f"`{url}` is not a URL of the web"):
            create_downloader().download(url, tmp_path / "a.bin")

    @pytest.mark.parametrize(
        "headers",
        [
            {"Content-Length": "many"},
            {"Content-Length": "-5"},
            {"Content-Length": "9" * 5000},
            {"Content-Type": "text/plain; charset=\xff\x80"},
            {"ETag": "\xff", "Last-Modified": "\x80"},
        ],
    )
    def test_broken_header_is_no_obstacle(
        self, tmp_path: Path, headers: dict[str, str]
    ) -> None:
        with serve(files={"/a": b"abc"}, headers=headers) as server:
            Downloader(wait_seconds=0).download(f"{server.url}/a", tmp_path / "a")

        assert (tmp_path / "a").read_bytes() == b"abc"

    @pytest.mark.parametrize(
        "target",
        ["/loop", "http://[::1", "http://x y/\x7f", "http://h:port/", "file:///a"],
    )
    def test_bad_redirect_is_a_sentence(self, tmp_path: Path, target: str) -> None:
        with serve(redirects={"/loop": target}) as server:
            with pytest.raises(WarmupError, match="could not be downloaded") as info:
                Downloader(wait_seconds=0, max_failures=1).download(
                    f"{server.url}/loop", tmp_path / "a"
                )

        assert "\n" not in str(info.value)

    @pytest.mark.parametrize("url", ["http://[::1", "http://h:port/", "http://h/\n"])
    def test_bad_url_is_a_sentence(self, tmp_path: Path, url: str) -> None:
        with pytest.raises(WarmupError, match="could not be downloaded"):
            Downloader(wait_seconds=0, max_failures=1).download(url, tmp_path / "a")

    def test_bad_token_is_not_shown(self) -> None:
        with pytest.raises(WarmupError, match="set `HF_TOKEN` anew") as info:
            Downloader(token="hf_abc\n")

        assert "hf_abc" not in str(info.value)

    def test_link_in_place_of_part_is_not_followed(self, tmp_path: Path) -> None:
        (tmp_path / "a.part").symlink_to(tmp_path / "other")

        with serve(files={"/a": b"abc"}) as server:
            Downloader().download(f"{server.url}/a", tmp_path / "a")

        assert not (tmp_path / "other").exists()

    def test_call_refuses_other_checksum(self, tmp_path: Path) -> None:
        with serve(files={"/a.bin": DATA}) as server:
            with pytest.raises(WarmupError, match=f"{SHA256} instead of {'0' * 64}"):
                create_downloader().download(
                    f"{server.url}/a.bin", tmp_path / "a.bin", sha256="0" * 64
                )

        assert list_files(tmp_path) == []

    def test_call_sends_token_to_first_server_only(self, tmp_path: Path) -> None:
        with serve(files={"/b.bin": DATA}) as store, serve() as hub:
            hub.redirects["/a.bin"] = f"{store.url}/b.bin"

            downloader = create_downloader(token="secret")

            downloader.download(f"{hub.url}/a.bin", tmp_path / "a.bin")

            assert hub.requests[0].headers["Authorization"] == "Bearer secret"
            assert "Authorization" not in store.requests[0].headers

        assert (tmp_path / "a.bin").read_bytes() == DATA


@pytest.mark.parametrize(
    "url,shown",
    [
        ("https://host/a.gz?token=abc", "https://host/a.gz"),
        ("https://joe:p@ss@host:80/a#abc", "https://host:80/a"),
        ("https://host/a", "https://host/a"),
        ("https://[abc", "[hidden]"),
    ],
)
def test_secrets_are_cut_from_urls(url: str, shown: str) -> None:
    assert hide_secrets(url) == shown


def test_secrets_of_url_are_in_no_message(tmp_path: Path) -> None:
    downloader = Downloader(max_failures=1, wait_seconds=0.0, timeout=1.0)

    with pytest.raises(WarmupError) as info:
        downloader.download("http://127.0.0.1:9/a?token=abc", tmp_path / "a")

    assert "http://127.0.0.1:9/a" in str(info.value)
    assert "abc" not in str(info.value)
