# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
Small files in the layout that models have on the Hugging Face Hub.

Their weights are random and their vocabularies tiny; names, formats and special tokens
are those of the public checkpoints.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from sentencepiece import SentencePieceTrainer

TEXT: Final = [
    "A dog runs through the snow.",
    "Two men are playing chess in the park.",
    "Ein Hund läuft durch den Schnee.",
    "Zwei Männer spielen Schach im Park.",
    "translate English to German: The child is reading a book.",
    "Das Kind liest ein Buch. Größe über alles, 12 < 34 > 5_6 = 7.",
]

LLAMA_ROPE_SCALING: Final = {
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
"""That of Llama 3.2."""

SENTINELS: Final = [f"<extra_id_{i}>" for i in range(100)]

LLAMA_SPECIALS: Final = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
]

QWEN_SPECIALS: Final = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_pad|>"]

NLLB_LANGS: Final = ["deu_Latn", "eng_Latn", "fra_Latn", "zho_Hans"]


def train_spm(
    texts: Iterable[str] = TEXT, *, vocab_size: int = 120, **options: Any
) -> bytes:
    """Trains a SentencePiece model in memory."""
    model = io.BytesIO()

    SentencePieceTrainer.train(
        sentence_iterator=iter(list(texts) * 3),
        model_writer=model,
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        character_coverage=1.0,
        minloglevel=2,
        **options,
    )

    return model.getvalue()


def write_json(file: Path, content: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)

    file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def write_t5_tokenizer(folder: Path, texts: Iterable[str] = TEXT) -> int:
    """
    Writes the tokenizer of a T5: 100 sentinels behind ``spiece.model``.

    :returns: The size of the vocabulary.
    """
    folder.mkdir(parents=True, exist_ok=True)

    model = train_spm(texts, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)

    (folder / "spiece.model").write_bytes(model)

    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "T5Tokenizer",
            "extra_ids": 100,
            "additional_special_tokens": SENTINELS,
            "eos_token": "</s>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
        },
    )

    return count_pieces(model) + 100


def write_mt5_tokenizer(folder: Path, texts: Iterable[str] = TEXT) -> int:
    """Writes the tokenizer of an mT5, whose ``spiece.model`` holds the sentinels."""
    folder.mkdir(parents=True, exist_ok=True)

    model = train_spm(
        texts,
        vocab_size=220,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        user_defined_symbols=SENTINELS,
    )

    (folder / "spiece.model").write_bytes(model)

    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "T5Tokenizer",
            "extra_ids": 0,
            "additional_special_tokens": None,
            "eos_token": "</s>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
        },
    )

    return count_pieces(model)


def count_pieces(model: bytes) -> int:
    from sentencepiece import SentencePieceProcessor

    size: int = SentencePieceProcessor(model_proto=model).vocab_size()

    return size


def write_nllb_tokenizer(
    folder: Path, texts: Iterable[str] = TEXT, *, model_type: str = "bpe"
) -> int:
    """
    Writes the tokenizer of an NLLB: SentencePiece without PAD, languages behind it.

    :param model_type: That of the public one, or ``unigram``.

    :returns: The size of the vocabulary, ``<mask>`` and the two rows behind it
        included.
    """
    folder.mkdir(parents=True, exist_ok=True)

    # Unknown, BOS and EOS in SentencePiece's own order.
    model = train_spm(texts, model_type=model_type)

    (folder / "sentencepiece.bpe.model").write_bytes(model)

    num_pieces = count_pieces(model)

    # `<mask>` comes behind the languages; transformers itself would put it before them.
    added = dict(enumerate(["<s>", "<pad>", "</s>", "<unk>"]))

    added.update(enumerate([*NLLB_LANGS, "<mask>"], start=num_pieces + 1))

    write_json(
        folder / "tokenizer_config.json",
        {
            "added_tokens_decoder": {
                str(idx): {"content": token, "special": True}
                for idx, token in added.items()
            },
            "tokenizer_class": "NllbTokenizer",
            "additional_special_tokens": NLLB_LANGS,
            "src_lang": "eng_Latn",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "sep_token": "</s>",
            "cls_token": "<s>",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
            "mask_token": "<mask>",
        },
    )

    # PAD, the pieces, languages, and three rows behind them.
    return 1 + num_pieces + len(NLLB_LANGS) + 3


def write_llama_tokenizer(folder: Path, texts: Iterable[str] = TEXT) -> int:
    """Writes the tokenizer of a Llama 3: byte-level BPE, BOS before each text."""
    return _write_bpe_tokenizer(
        folder,
        texts,
        LLAMA_SPECIALS,
        bos_token="<|begin_of_text|>",
        eos_token="<|end_of_text|>",
    )


def write_qwen_tokenizer(folder: Path, texts: Iterable[str] = TEXT) -> int:
    """Writes the tokenizer of a Qwen: byte-level BPE, no BOS, PAD is EOS."""
    return _write_bpe_tokenizer(
        folder,
        texts,
        QWEN_SPECIALS,
        bos_token=None,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
    )


def _write_bpe_tokenizer(
    folder: Path,
    texts: Iterable[str],
    specials: Sequence[str],
    *,
    bos_token: str | None,
    eos_token: str,
    pad_token: str | None = None,
) -> int:
    from tokenizers import Tokenizer
    from tokenizers import decoders as token_decoders
    from tokenizers import models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())

    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = token_decoders.ByteLevel()

    tokenizer.train_from_iterator(
        list(texts),
        trainers.BpeTrainer(
            vocab_size=340,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )

    # Behind the text's own, as in the public tokenizers.
    tokenizer.add_special_tokens(list(specials))

    if bos_token is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos_token} $A",
            pair=f"{bos_token} $A {bos_token}:1 $B:1",
            special_tokens=[(bos_token, tokenizer.token_to_id(bos_token))],
        )

    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos_token,
        eos_token=eos_token,
        pad_token=pad_token,
        clean_up_tokenization_spaces=True,
        model_input_names=["input_ids", "attention_mask"],
    )

    fast.save_pretrained(str(folder))

    return len(fast)


def write_t5_model(folder: Path, texts: Iterable[str] = TEXT, **options: Any) -> Any:
    """Writes a T5 v1.0 with its tokenizer, and returns the model."""
    from transformers import T5Config, T5ForConditionalGeneration

    # As the public ones, with rows behind the tokenizer's.
    vocab_size = write_t5_tokenizer(folder, texts) + 28

    config = T5Config(
        vocab_size=vocab_size,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
        **{"feed_forward_proj": "relu", "tie_word_embeddings": True, **options},
    )

    return save_model(T5ForConditionalGeneration, config, folder)


def write_mt5_model(folder: Path, texts: Iterable[str] = TEXT, **options: Any) -> Any:
    """Writes an mT5 with its tokenizer, and returns the model."""
    from transformers import MT5Config, MT5ForConditionalGeneration

    vocab_size = write_mt5_tokenizer(folder, texts) + 12

    config = MT5Config(
        vocab_size=vocab_size,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
        tie_word_embeddings=False,
        **options,
    )

    return save_model(MT5ForConditionalGeneration, config, folder)


def write_nllb_model(folder: Path, texts: Iterable[str] = TEXT, **options: Any) -> Any:
    """Writes an NLLB with its tokenizer, and returns the model."""
    from transformers import M2M100Config, M2M100ForConditionalGeneration

    config = M2M100Config(
        vocab_size=write_nllb_tokenizer(folder, texts),
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=128,
        encoder_layerdrop=0.0,
        decoder_layerdrop=0.0,
        **options,
    )

    return save_model(M2M100ForConditionalGeneration, config, folder)


def write_llama_model(folder: Path, texts: Iterable[str] = TEXT, **options: Any) -> Any:
    """Writes a Llama 3 with its tokenizer, and returns the model."""
    from transformers import LlamaConfig, LlamaForCausalLM

    vocab_size = write_llama_tokenizer(folder, texts)

    specials = {name: vocab_size - 8 + i for i, name in enumerate(LLAMA_SPECIALS)}

    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=56,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=131_072,
        rms_norm_eps=1e-5,
        rope_theta=500_000.0,
        bos_token_id=specials["<|begin_of_text|>"],
        eos_token_id=specials["<|end_of_text|>"],
        **{"tie_word_embeddings": True, **options},
    )

    return save_model(LlamaForCausalLM, config, folder)


def write_qwen_model(folder: Path, texts: Iterable[str] = TEXT, **options: Any) -> Any:
    """Writes a Qwen 3 with its tokenizer, and returns the model."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    vocab_size = write_qwen_tokenizer(folder, texts)

    config = Qwen3Config(
        # The public ones have rows behind the tokenizer's too.
        vocab_size=vocab_size + 7,
        hidden_size=32,
        intermediate_size=56,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        bos_token_id=vocab_size - 4,
        eos_token_id=vocab_size - 4,
        **{"tie_word_embeddings": True, **options},
    )

    return save_model(Qwen3ForCausalLM, config, folder)


WRITE_MODEL: Final = {
    "t5": write_t5_model,
    "mt5": write_mt5_model,
    "nllb": write_nllb_model,
    "llama": write_llama_model,
    "qwen": write_qwen_model,
}
"""What writes a model of each kind."""


def save_model(kls: Any, config: Any, folder: Path, *, seed: int = 3) -> Any:
    """Writes a model of random weights, none of which is near zero for all tokens."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)

        model = kls(config)

        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))

    model.eval()

    model.save_pretrained(str(folder))

    return model
