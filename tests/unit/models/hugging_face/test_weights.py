# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import json
import os
import pickle
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import fairseq2.runtime.dependency
import pytest
import torch
from fairseq2.composition import _register_library
from fairseq2.models.hg import HuggingFaceConfig
from fairseq2.runtime.dependency import DependencyContainer
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tests.common import assert_equal
from tests.unit.models.hugging_face.cases import (
    assert_one_sentence,
    create_case,
    each_case,
)
from warmup_plugin.errors import WarmupError
from warmup_plugin.models.hugging_face.weights import (
    check_weights,
    expected_shapes,
    read_config_json,
    read_weights,
    write_model,
)

WEIGHTS: Final = {"a": torch.arange(600.0), "b": torch.ones(2, 3)}

LFS_POINTER: Final = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    "size 12345\n"
)

M2M100: Final = HuggingFaceConfig(
    {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1},
    kls_name="M2M100Config",
    arch="M2M100ForConditionalGeneration",
)


def assert_raises(call: Callable[[], object], *expected: str) -> None:
    """Asserts that one sentence holds each of the given texts."""
    with pytest.raises(WarmupError) as info:
        call()

    message = str(info.value)

    for text in expected:
        assert text in message

    # Not the points of file names.
    assert_one_sentence(re.sub(r"/[\w/.-]*\w", "/file", message))


def save_shards(folder: Path, weight_map: object) -> Path:
    """Writes two shards and an index. Returns the index."""
    save_file({"a": WEIGHTS["a"]}, folder / "model-1.safetensors")
    save_file({"b": WEIGHTS["b"]}, folder / "model-2.safetensors")

    index = folder / "model.safetensors.index.json"

    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    return index


WEIGHT_MAP: Final = {"a": "model-1.safetensors", "b": "model-2.safetensors"}


class Code:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._file),)


@pytest.fixture
def locked_folder() -> Iterator[Path]:
    """A folder whose files this process cannot read, as root neither."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        folder.chmod(0o755)

        for file_name in ("config.json", "model.safetensors"):
            (folder / file_name).write_text("{}")
            (folder / file_name).chmod(0)

        (folder / "sub").mkdir(mode=0)

        uid = os.geteuid()

        if uid == 0:
            os.seteuid(65534)

        try:
            yield folder
        finally:
            os.seteuid(uid)


class TestReadConfigJson:
    def test_call_returns_content(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text('{"a": [1, "é"]}', encoding="utf-8")

        assert read_config_json(tmp_path) == {"a": [1, "é"]}

    def test_call_raises_error_when_there_is_no_folder(self, tmp_path: Path) -> None:
        folder = tmp_path / "no"

        assert_raises(lambda: read_config_json(folder), str(folder), "not a folder")

    def test_call_raises_error_when_there_is_no_file(self, tmp_path: Path) -> None:
        assert_raises(lambda: read_config_json(tmp_path), str(tmp_path), "no `config")

    @pytest.mark.parametrize(
        "content,expected",
        [
            (b"", "not JSON"),
            (b'{"a": 1', "not JSON"),
            (b'{"a": "\xff"}', "not JSON"),
            (b"[" * 100_000, "not JSON"),
            (b"[1]", "not a JSON object"),
            (LFS_POINTER.encode(), "pointer of Git LFS"),
        ],
    )
    def test_call_raises_error_when_content_is_not_an_object(
        self, tmp_path: Path, content: bytes, expected: str
    ) -> None:
        (tmp_path / "config.json").write_bytes(content)

        file = str(tmp_path / "config.json")

        assert_raises(lambda: read_config_json(tmp_path), file, expected)

    def test_call_raises_error_when_file_is_not_readable(
        self, locked_folder: Path
    ) -> None:
        file = str(locked_folder / "config.json")

        assert_raises(lambda: read_config_json(locked_folder), file, "permissions")

        # What is in a locked folder cannot even be listed.
        file = str(locked_folder / "sub" / "config.json")

        assert_raises(
            lambda: read_config_json(locked_folder / "sub"), file, "permissions"
        )

        folder = locked_folder / "sub" / "x"

        assert_raises(lambda: read_config_json(folder), str(folder), "permissions")


class TestReadWeights:
    def test_call_reads_each_layout(self, tmp_path: Path) -> None:
        def check() -> None:
            weights = read_weights(tmp_path)

            assert set(weights) == {"a", "b"}

            for name, weight in weights.items():
                assert_equal(weight, WEIGHTS[name])

        def clear() -> None:
            for file in tmp_path.iterdir():
                file.unlink()

        save_file(WEIGHTS, tmp_path / "model.safetensors")

        check()
        clear()

        save_shards(tmp_path, WEIGHT_MAP)

        check()
        clear()

        torch.save(WEIGHTS, tmp_path / "pytorch_model.bin")

        check()
        clear()

        # As PyTorch did before version 1.6.
        torch.save(
            WEIGHTS,
            tmp_path / "pytorch_model.bin",
            _use_new_zipfile_serialization=False,
        )

        check()
        clear()

        for name, weight in WEIGHTS.items():
            torch.save({name: torch.nn.Parameter(weight)}, tmp_path / f"{name}.bin")

        (tmp_path / "pytorch_model.bin.index.json").write_text(
            json.dumps({"weight_map": {"a": "a.bin", "b": "b.bin"}})
        )

        check()

        assert not any(w.requires_grad for w in read_weights(tmp_path).values())

    def test_call_prefers_safetensors(self, tmp_path: Path) -> None:
        torch.save({"old": torch.ones(1)}, tmp_path / "pytorch_model.bin")

        save_shards(tmp_path, WEIGHT_MAP)

        assert set(read_weights(tmp_path)) == {"a", "b"}

        save_file({"new": torch.ones(1)}, tmp_path / "model.safetensors")

        assert set(read_weights(tmp_path)) == {"new"}

    def test_call_raises_error_when_there_is_nothing(self, tmp_path: Path) -> None:
        folder = tmp_path / "no"

        assert_raises(lambda: read_weights(folder), str(folder), "not a folder")

        assert_raises(
            lambda: read_weights(tmp_path),
            str(tmp_path),
            "`model.safetensors`",
            "`pytorch_model.bin`",
        )

    @pytest.mark.parametrize(
        "damage",
        [
            lambda content: content[: len(content) // 2],
            lambda content: content[:-1],
            lambda content: content[:20],
            lambda content: b"",
            lambda content: content[:8] + b"x" + content[9:],
            lambda content: b"\xff" * 100,
            lambda content: b"<html>not found</html>",
        ],
    )
    @pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "old"])
    def test_call_raises_error_when_file_is_damaged(
        self, tmp_path: Path, name: str, damage: Callable[[bytes], bytes]
    ) -> None:
        file = tmp_path / name

        if name == "model.safetensors":
            save_file(WEIGHTS, file)
        elif name == "pytorch_model.bin":
            torch.save(WEIGHTS, file)
        else:
            file = tmp_path / "pytorch_model.bin"

            torch.save(WEIGHTS, file, _use_new_zipfile_serialization=False)

        content = damage(file.read_bytes())

        if name == "pytorch_model.bin" and content[8:9] == b"x":
            pytest.skip("What is not read may be damaged.")

        file.write_bytes(content)

        assert_raises(lambda: read_weights(tmp_path), str(file), "download it again")

    @pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
    def test_call_raises_error_when_file_is_pointer(
        self, tmp_path: Path, name: str
    ) -> None:
        (tmp_path / name).write_text(LFS_POINTER)

        assert_raises(
            lambda: read_weights(tmp_path), str(tmp_path / name), "`git lfs pull`"
        )

    @pytest.mark.parametrize("zipped", [True, False])
    def test_call_raises_error_and_runs_nothing_when_file_holds_code(
        self, tmp_path: Path, zipped: bool
    ) -> None:
        file, trace = tmp_path / "pytorch_model.bin", tmp_path / "trace"

        torch.save({"a": Code(trace)}, file, _use_new_zipfile_serialization=zipped)

        assert_raises(
            lambda: read_weights(tmp_path), str(file), "Python code", "safetensors"
        )

        assert not trace.exists()

        # Otherwise the test above could not see anything.
        torch.load(file, weights_only=False)

        assert trace.exists()

    def test_call_raises_error_and_runs_nothing_when_file_is_pickle(
        self, tmp_path: Path
    ) -> None:
        file, trace = tmp_path / "pytorch_model.bin", tmp_path / "trace"

        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            file.write_bytes(pickle.dumps({"a": Code(trace)}, protocol))

            assert_raises(lambda: read_weights(tmp_path), str(file))

            assert not trace.exists()

    @pytest.mark.parametrize(
        "content", [[torch.ones(1)], {"model": {"a": torch.ones(1)}}, {"a": 1}]
    )
    def test_call_raises_error_when_file_holds_something_else(
        self, tmp_path: Path, content: object
    ) -> None:
        file = tmp_path / "pytorch_model.bin"

        torch.save(content, file)

        assert_raises(lambda: read_weights(tmp_path), str(file), "something else")

    def test_call_raises_error_when_shard_is_missing(self, tmp_path: Path) -> None:
        save_shards(tmp_path, WEIGHT_MAP)

        file = tmp_path / "model-2.safetensors"

        file.unlink()

        assert_raises(lambda: read_weights(tmp_path), str(file), "is missing")

    def test_call_raises_error_when_shard_lacks_weight(self, tmp_path: Path) -> None:
        save_shards(tmp_path, {**WEIGHT_MAP, "c": "model-2.safetensors"})

        file = str(tmp_path / "model-2.safetensors")

        assert_raises(
            lambda: read_weights(tmp_path), file, "lacks 1 of the weights", "(c)"
        )

    def test_call_raises_error_when_shard_is_damaged(self, tmp_path: Path) -> None:
        save_shards(tmp_path, WEIGHT_MAP)

        file = tmp_path / "model-2.safetensors"

        file.write_bytes(file.read_bytes()[:-4])

        assert_raises(lambda: read_weights(tmp_path), str(file), "damaged")

    @pytest.mark.parametrize(
        "weight_map,expected",
        [
            (None, "no `weight_map`"),
            ({}, "no `weight_map`"),
            (["a"], "no `weight_map`"),
            ({"a": 1}, "names 1 as the file of `a`"),
            ({"a": "../a.safetensors"}, "not a file name"),
            ({"a": "/etc/passwd"}, "not a file name"),
            ({"a": ""}, "not a file name"),
            ({"a": ".."}, "not a file name"),
        ],
    )
    def test_call_raises_error_when_index_is_bad(
        self, tmp_path: Path, weight_map: object, expected: str
    ) -> None:
        index = save_shards(tmp_path, weight_map)

        assert_raises(lambda: read_weights(tmp_path), str(index), expected)

    def test_call_raises_error_when_index_is_not_json(self, tmp_path: Path) -> None:
        index = save_shards(tmp_path, WEIGHT_MAP)

        index.write_text("{")

        assert_raises(lambda: read_weights(tmp_path), str(index), "not JSON")

    def test_call_raises_error_when_file_is_not_readable(
        self, locked_folder: Path
    ) -> None:
        file = str(locked_folder / "model.safetensors")

        assert_raises(lambda: read_weights(locked_folder), file, "permissions")

    def test_call_raises_error_when_file_is_folder(self, tmp_path: Path) -> None:
        (tmp_path / "model.safetensors").mkdir()

        file = str(tmp_path / "model.safetensors")

        assert_raises(lambda: read_weights(tmp_path), file, "cannot be read")


class TestCheckWeights:
    def test_call_returns_when_weights_fit(self) -> None:
        check_weights(WEIGHTS, {n: w.shape for n, w in WEIGHTS.items()}, "x")

    def test_call_raises_error_with_names_and_counts(self) -> None:
        weights = {f"w{i}": torch.ones(2) for i in range(8)}

        expected = {f"w{i}": torch.Size([2]) for i in range(4, 13)}

        expected["w5"] = torch.Size([3])

        assert_raises(
            lambda: check_weights(weights, expected, "/some/folder"),
            "The weights in /some/folder do not fit the model",
            "5 of 9 missing (w8, w9, w10, ...)",
            "4 unknown (w0, w1, w2, ...)",
            "1 of another shape (w5: (2,) instead of (3,))",
        )

    def test_call_leaves_out_what_is_fine(self) -> None:
        shapes = {n: w.shape for n, w in WEIGHTS.items()}

        def check(weights: dict[str, Tensor]) -> str:
            with pytest.raises(WarmupError) as info:
                check_weights(weights, shapes, "x")

            return str(info.value)

        assert re.search(r"model, 1 of 2 missing \(b\);", check({"a": WEIGHTS["a"]}))

        surplus = {**WEIGHTS, "c": torch.ones(1)}

        assert re.search(r"model, 1 unknown \(c\);", check(surplus))

        misshapen = {**WEIGHTS, "b": torch.ones(3, 2)}

        assert re.search(r"model, 1 of another shape \(b: ", check(misshapen))


class TestExpectedShapes:
    @pytest.fixture(autouse=True)
    def resolver(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # Not `init_fairseq2()`, which works once in a process.
        container = DependencyContainer()

        _register_library(container, no_progress=True)

        monkeypatch.setattr(fairseq2.runtime.dependency, "_resolver", container)

    @each_case
    def test_call_returns_shapes_of_model(self, case: str) -> None:
        family, hg_model = create_case(case)

        config = family.hg_format.from_hg_config(hg_model.config.to_dict())

        shapes = expected_shapes(family.hg_format.family, config)

        model = family.create_model(config)

        assert shapes == {n: w.shape for n, w in model.state_dict().items()}

        # What is read has these names, tied weights included.
        check_weights(
            family.hg_format.from_hg_state_dict(hg_model.state_dict(), config),
            shapes,
            "x",
        )

    def test_call_raises_error_when_family_is_unknown(self) -> None:
        assert_raises(lambda: expected_shapes("foo", object()), "`foo`", "`doctor`")


class TestWriteModel:
    def test_call_writes_config_and_weights(self, tmp_path: Path) -> None:
        folder = tmp_path / "a" / "b"

        write_model(
            folder, M2M100, WEIGHTS, {"decoder_start_token_id": 0, "d_model": 4}
        )

        assert {f.name for f in folder.iterdir()} == {
            "config.json",
            "model.safetensors",
        }

        config_json = read_config_json(folder)

        assert config_json["model_type"] == "m2m_100"
        assert config_json["architectures"] == ["M2M100ForConditionalGeneration"]
        assert config_json["encoder_layers"] == 1
        assert config_json["decoder_start_token_id"] == 0
        assert config_json["d_model"] == 4
        assert config_json.get("dtype") is None and "torch_dtype" not in config_json

        for name, weight in read_weights(folder).items():
            assert_equal(weight, WEIGHTS[name])

        # Without it, transformers of some versions refuses the file.
        with safe_open(folder / "model.safetensors", framework="pt") as fp:
            assert fp.metadata()["format"] == "pt"

    def test_call_writes_views_and_shared_weights(self, tmp_path: Path) -> None:
        matrix = torch.arange(6.0).view(2, 3)

        write_model(tmp_path, M2M100, {"a": matrix.T, "b": matrix}, {})

        weights = read_weights(tmp_path)

        for name, weight in weights.items():
            assert_equal(weight, matrix.T if name == "a" else matrix)

    @pytest.mark.parametrize(
        "name",
        [
            "config.json",
            "model.safetensors",
            "model.safetensors.index.json",
            "pytorch_model.bin",
            "pytorch_model.bin.index.json",
        ],
    )
    def test_call_raises_error_when_folder_holds_model(
        self, tmp_path: Path, name: str
    ) -> None:
        (tmp_path / name).write_text("old")

        file = str(tmp_path / name)

        assert_raises(
            lambda: write_model(tmp_path, M2M100, WEIGHTS, {}), file, "exists"
        )

        assert [f.name for f in tmp_path.iterdir()] == [name]
        assert (tmp_path / name).read_text() == "old"

    def test_call_keeps_other_files(self, tmp_path: Path) -> None:
        (tmp_path / "tokenizer.json").write_text("{}")

        write_model(tmp_path, M2M100, WEIGHTS, {})

        assert (tmp_path / "tokenizer.json").read_text() == "{}"

    def test_call_raises_error_when_there_is_a_file(self, tmp_path: Path) -> None:
        file = tmp_path / "file"

        file.write_text("")

        for folder in (file, file / "x"):
            assert_raises(
                lambda: write_model(folder, M2M100, WEIGHTS, {}), str(folder), "written"
            )

    def test_call_raises_error_when_folder_is_not_writable(
        self, locked_folder: Path
    ) -> None:
        for folder in (locked_folder / "sub", locked_folder / "sub" / "x"):
            assert_raises(
                lambda: write_model(folder, M2M100, WEIGHTS, {}),
                str(folder),
                "Permission denied",
            )

    def test_call_leaves_no_config_when_weights_cannot_be_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*args: object, **kwargs: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(
            "warmup_plugin.models.hugging_face.weights.save_torch_state_dict", fail
        )

        assert_raises(
            lambda: write_model(tmp_path, M2M100, WEIGHTS, {}),
            str(tmp_path),
            "No space left on device",
        )

        assert not list(tmp_path.iterdir())

    def test_call_raises_error_when_state_dict_holds_no_tensor(
        self, tmp_path: Path
    ) -> None:
        with pytest.raises(TypeError, match="`a` is of type"):
            write_model(tmp_path, M2M100, {"a": 1}, {})
