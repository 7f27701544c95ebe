# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal

from fairseq2.runtime.config_registry import ConfigRegistrar
from fairseq2.runtime.dependency import DependencyContainer
from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override

T5_FAMILY: Final = "t5"


@dataclass(kw_only=True)
class T5Config(Validatable):
    """Holds the configuration of a T5 model; the defaults are those of ``t5_small``."""

    model_dim: int = 512
    """The dimensionality of the model."""

    max_seq_len: int = 1024
    """The largest number of tokens of a source or of a target. T5 has no limit of its own, since far distances share a bucket; training recipes want one."""

    vocab_size: int = 32_128
    """The number of rows of the embedding, more than there are tokens."""

    pad_idx: int = 0
    """The index of the PAD symbol, with which the decoder begins as well."""

    tied_embeddings: bool = True
    """If ``True``, the embedding is the output projection too, and its input is scaled by the inverse square root of ``model_dim``."""

    num_encoder_layers: int = 6
    """The number of encoder layers."""

    num_decoder_layers: int = 6
    """The number of decoder layers."""

    num_attn_heads: int = 8
    """The number of attention heads in all layers."""

    head_dim: int = 64
    """The dimensionality of a head; all heads together need not be as wide as the model."""

    ffn_inner_dim: int = 2048
    """The dimensionality of inner projections in feed-forward networks."""

    gated_ffn: bool = False
    """If ``True``, a second inner projection is multiplied with the activated one."""

    activation: Literal["relu", "gelu"] = "relu"
    """The activation in feed-forward networks; ``gelu`` is the approximation by tanh."""

    num_position_buckets: int = 32
    """The number of distances, or ranges of them, that have a bias of their own; the encoder divides them between both directions."""

    max_position_distance: int = 128
    """The distance from which on all share the last bucket."""

    norm_eps: float = 1e-6
    """What layer normalisation adds to the mean square."""

    dropout_p: float = 0.1
    """The dropout probability."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        for name in (
            "model_dim",
            "max_seq_len",
            "vocab_size",
            "num_encoder_layers",
            "num_decoder_layers",
            "num_attn_heads",
            "head_dim",
            "ffn_inner_dim",
        ):
            if getattr(self, name) < 1:
                result.add_error(f"`{name}` must be greater than or equal to 1.")

        if not 0 <= self.pad_idx < self.vocab_size:
            result.add_error("`pad_idx` must be an index less than `vocab_size`.")

        if self.activation not in ("relu", "gelu"):
            result.add_error("`activation` must be `relu` or `gelu`.")

        # Half of them for each direction, half of those for single distances.
        if self.num_position_buckets < 4:
            result.add_error(
                "`num_position_buckets` must be greater than or equal to 4."
            )

        if self.max_position_distance <= self.num_position_buckets // 2:
            result.add_error(
                "`max_position_distance` must be greater than half of `num_position_buckets`."
            )

        if self.norm_eps <= 0.0:
            result.add_error("`norm_eps` must be greater than 0.")

        if not 0.0 <= self.dropout_p < 1.0:
            result.add_error("`dropout_p` must be between 0 and less than 1.")

        return result


# Of each size the dimensions of the model, the layers of the encoder and of the decoder,
# the heads, and the dimensions of a head and inside of feed-forward networks.
_SIZES: Final = {
    "small": (512, 6, 8, 64, 2048),
    "base": (768, 12, 12, 64, 3072),
    "large": (1024, 24, 16, 64, 4096),
    "3b": (1024, 24, 32, 128, 16_384),
}

_V1_1_SIZES: Final = {
    "small": (512, 8, 6, 64, 1024),
    "base": (768, 12, 12, 64, 2048),
    "large": (1024, 24, 16, 64, 2816),
    "xl": (2048, 24, 32, 64, 5120),
}

# Trains in a minute on a CPU.
_TEST_SIZE: Final = (64, 2, 4, 16, 128)

_MT5_VOCAB_SIZE: Final = 250_112


def register_t5_configs(container: DependencyContainer) -> None:
    """Registers the public sizes, and a tiny one for tests and demonstrations."""
    arch = ConfigRegistrar(container, T5Config)

    arch("t5_test")(partial(_create_v1_1, _TEST_SIZE))

    for name, size in _SIZES.items():
        arch(f"t5_{name}")(partial(_create_config, size))

    for name, size in _V1_1_SIZES.items():
        arch(f"t5_v1_1_{name}")(partial(_create_v1_1, size))

    # mT5 is v1.1 with another vocabulary, FLAN-T5 is v1.1 trained further.
    for name, size in _V1_1_SIZES.items():
        arch(f"mt5_{name}")(partial(_create_v1_1, size, vocab_size=_MT5_VOCAB_SIZE))

        arch(f"flan_t5_{name}")(partial(_create_v1_1, size))


def _create_config(size: tuple[int, int, int, int, int], **others: Any) -> T5Config:
    model_dim, num_layers, num_heads, head_dim, ffn_inner_dim = size

    return T5Config(
        model_dim=model_dim,
        num_encoder_layers=num_layers,
        num_decoder_layers=num_layers,
        num_attn_heads=num_heads,
        head_dim=head_dim,
        ffn_inner_dim=ffn_inner_dim,
        **others,
    )


def _create_v1_1(size: tuple[int, int, int, int, int], **others: Any) -> T5Config:
    return _create_config(
        size, tied_embeddings=False, gated_ffn=True, activation="gelu", **others
    )
