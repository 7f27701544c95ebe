# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

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


def register_t5_configs(container: DependencyContainer) -> None:
    """Registers the public sizes, and a tiny one for tests and demonstrations."""
    arch = ConfigRegistrar(container, T5Config)

    @arch("t5_test")
    def t5_test() -> T5Config:
        """2+2 layers of v1.1; trains in a minute on a CPU."""
        config = t5_v1_1_small()

        config.model_dim = 64
        config.num_encoder_layers = 2
        config.num_decoder_layers = 2
        config.num_attn_heads = 4
        config.head_dim = 16
        config.ffn_inner_dim = 128

        return config

    @arch("t5_small")
    def t5_small() -> T5Config:
        return T5Config()

    @arch("t5_base")
    def t5_base() -> T5Config:
        config = t5_small()

        config.model_dim = 768
        config.num_encoder_layers = 12
        config.num_decoder_layers = 12
        config.num_attn_heads = 12
        config.ffn_inner_dim = 3072

        return config

    @arch("t5_large")
    def t5_large() -> T5Config:
        config = t5_base()

        config.model_dim = 1024
        config.num_encoder_layers = 24
        config.num_decoder_layers = 24
        config.num_attn_heads = 16
        config.ffn_inner_dim = 4096

        return config

    @arch("t5_3b")
    def t5_3b() -> T5Config:
        config = t5_large()

        config.num_attn_heads = 32
        config.head_dim = 128
        config.ffn_inner_dim = 16_384

        return config

    @arch("t5_v1_1_small")
    def t5_v1_1_small() -> T5Config:
        config = t5_small()

        config.tied_embeddings = False
        config.num_encoder_layers = 8
        config.num_decoder_layers = 8
        config.num_attn_heads = 6
        config.ffn_inner_dim = 1024
        config.gated_ffn = True
        config.activation = "gelu"

        return config

    @arch("t5_v1_1_base")
    def t5_v1_1_base() -> T5Config:
        config = t5_v1_1_small()

        config.model_dim = 768
        config.num_encoder_layers = 12
        config.num_decoder_layers = 12
        config.num_attn_heads = 12
        config.ffn_inner_dim = 2048

        return config

    @arch("t5_v1_1_large")
    def t5_v1_1_large() -> T5Config:
        config = t5_v1_1_base()

        config.model_dim = 1024
        config.num_encoder_layers = 24
        config.num_decoder_layers = 24
        config.num_attn_heads = 16
        config.ffn_inner_dim = 2816

        return config

    @arch("t5_v1_1_xl")
    def t5_v1_1_xl() -> T5Config:
        config = t5_v1_1_large()

        config.model_dim = 2048
        config.num_attn_heads = 32
        config.ffn_inner_dim = 5120

        return config

    # mT5 is v1.1 with another vocabulary, FLAN-T5 is v1.1 trained further.
    v1_1_sizes = {
        "small": t5_v1_1_small,
        "base": t5_v1_1_base,
        "large": t5_v1_1_large,
        "xl": t5_v1_1_xl,
    }

    for size, create_v1_1 in v1_1_sizes.items():

        @arch(f"mt5_{size}")
        def mt5(create_v1_1: Callable[[], T5Config] = create_v1_1) -> T5Config:
            config = create_v1_1()

            config.vocab_size = 250_112

            return config

        @arch(f"flan_t5_{size}")
        def flan_t5(create_v1_1: Callable[[], T5Config] = create_v1_1) -> T5Config:
            return create_v1_1()
