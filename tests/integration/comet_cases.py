# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
The part of ``test_comet.py`` that runs in the environment of COMET.

``python comet_cases.py WORKER FOLDER`` makes a tiny COMET model, with random weights, from
the texts of ``FOLDER/samples.json``, and others that cannot be loaded or only by some
effort. To ``FOLDER/results.json`` it writes the scores that COMET itself gives, and what
the worker's own function makes of each model: starting a worker for each would take long.
"""

from __future__ import annotations

import json
import os
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

HUB_NAME = "tests/tiny-comet"


def main() -> None:
    worker, folder = runpy.run_path(sys.argv[1]), Path(sys.argv[2])

    samples = json.loads((folder / "samples.json").read_text(encoding="utf-8"))

    # Before huggingface_hub is imported, which reads it then.
    os.environ["HF_HOME"] = str(folder / "hub")
    os.environ["HF_HUB_OFFLINE"] = "1"

    worker["prepare_environment"]()

    make_encoder(folder / "encoder", [t for sample in samples for t in sample.values()])

    make_models(folder, folder / "encoder")

    make_unified_models(folder, folder / "encoder")

    results = {
        "scores": score_directly(folder / "model", samples),
        # None is given, some are given to what reads none, and to what does.
        "unified": {
            "kiwi": compare_directly(worker, folder / "kiwi", samples, ["src", "mt"]),
            "xcomet": compare_directly(
                worker, folder / "xcomet", samples, ["src", "mt", "ref"]
            ),
        },
        "loaded": {
            name: try_load(worker, samples[0], *args)
            for name, args in list_cases(folder).items()
        },
    }

    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")


def list_cases(folder: Path) -> dict[str, tuple[Path | None, str | None, int]]:
    """Returns checkpoint, name on the Hub and number of GPUs, by the name of the case."""
    cases: dict[str, tuple[Path | None, str | None, int]] = {
        path.parents[1].name: (path, None, 0)
        for path in folder.glob("*/checkpoints/model.ckpt")
    }

    cases["cached"] = (None, HUB_NAME, 0)
    cases["uncached"] = (None, "tests/no-comet", 0)
    cases["gpu"] = (folder / "model" / "checkpoints" / "model.ckpt", None, 1)

    return cases


def score_directly(folder: Path, samples: list[dict[str, str]]) -> list[float]:
    import comet

    checkpoint = folder / "checkpoints" / "model.ckpt"

    model = comet.load_from_checkpoint(str(checkpoint))

    # Sentence by sentence, so that neither order nor padding can matter.
    output = model.predict(samples, batch_size=1, gpus=0, progress_bar=False)

    return [float(score) for score in output.scores]


def compare_directly(
    worker: dict[str, Any], folder: Path, samples: list[dict[str, str]], keys: list[str]
) -> dict[str, Any]:
    """Returns what COMET itself and the worker make of some of each sample."""
    samples = [{key: sample[key] for key in keys} for sample in samples]

    checkpoint = folder / "checkpoints" / "model.ckpt"

    model, _ = worker["load_model"](checkpoint, None, 0)

    return {
        "requires_references": bool(model.requires_references()),
        "uses_references": worker["uses_references"](model),
        "worker": worker["score"](model, samples, 0, 4),
        "direct": score_directly(folder, samples),
    }


def try_load(
    worker: dict[str, Any],
    sample: dict[str, str],
    checkpoint: Path | None,
    hub_name: str | None,
    gpus: int,
) -> float | str:
    """Returns what a model makes of a sample, or why there is no model."""
    try:
        model, _ = worker["load_model"](checkpoint, hub_name, gpus)
    except worker["LoadError"] as ex:
        return str(ex)

    [score] = worker["score"](model, [sample], gpus, 1)

    return float(score)


def make_encoder(folder: Path, texts: list[str]) -> None:
    """Makes an XLM-R in the format of the one in COMET's models."""
    import torch
    from sentencepiece import SentencePieceTrainer
    from transformers import XLMRobertaConfig, XLMRobertaModel, XLMRobertaTokenizerFast

    folder.mkdir()

    SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(folder / "spm"),
        vocab_size=100,
        hard_vocab_limit=False,
        # XLM-R counts its own special tokens from these.
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )

    spm_file = folder / "sentencepiece.bpe.model"

    (folder / "spm.model").rename(spm_file)

    (folder / "spm.vocab").unlink()

    tokenizer = XLMRobertaTokenizerFast(str(spm_file), model_max_length=128)

    tokenizer.save_pretrained(folder)

    config = XLMRobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=130,
        type_vocab_size=1,
    )

    torch.manual_seed(0)

    XLMRobertaModel(config, add_pooling_layer=False).save_pretrained(folder)


def make_models(folder: Path, encoder: Path) -> None:
    import torch
    from comet.models import RegressionMetric

    torch.manual_seed(1)

    model = RegressionMetric(
        encoder_model="XLM-RoBERTa",
        pretrained_model=str(encoder),
        layer_transformation="sparsemax",
        layer_norm=False,
        hidden_sizes=[64, 32],
        train_data=[],
        validation_data=[],
        local_files_only=True,
    )

    hparams, weights = dict(model.hparams), model.state_dict()

    write_model(folder / "model", hparams, weights, encoder)

    # The encoder is no longer where it was when the model was trained, and the text file
    # tells where it is now, or does not.
    old_hparams = {**hparams, "pretrained_model": "/gone/encoder"}

    write_model(folder / "moved", old_hparams, weights, encoder)

    write_model(folder / "lost", old_hparams, weights, "/gone/encoder")

    # As a public model names it.
    hub_hparams = {**hparams, "pretrained_model": "xlm-roberta-large"}

    write_model(folder / "unreachable", hub_hparams, weights, "xlm-roberta-large")

    weights.pop("estimator.ff.0.weight")

    write_model(folder / "incomplete", hparams, weights, encoder)

    # What git leaves of a large file.
    pointer = "version https://git-lfs.github.com/spec/v1\n"

    shutil.copytree(folder / "model", folder / "junk")

    (folder / "junk" / "checkpoints" / "model.ckpt").write_text(pointer)

    # What huggingface_hub leaves of a download.
    cache = folder / "hub" / "hub" / f"models--{HUB_NAME.replace('/', '--')}"

    shutil.copytree(folder / "model", cache / "snapshots" / "0123")

    (cache / "refs").mkdir()

    (cache / "refs" / "main").write_text("0123")


def make_unified_models(folder: Path, encoder: Path) -> None:
    """Makes models of the classes of CometKiwi and XCOMET."""
    import torch
    from comet.models import UnifiedMetric, XCOMETMetric

    torch.manual_seed(2)

    options = {
        "encoder_model": "XLM-RoBERTa",
        "pretrained_model": str(encoder),
        "layer_norm": False,
        "sent_layer": "mix",
        "word_layer": 2,
        "hidden_sizes": [64, 32],
        "train_data": [],
        "validation_data": [],
        "local_files_only": True,
    }

    kiwi = UnifiedMetric(**options, input_segments=["mt", "src"])

    hparams = dict(kiwi.hparams)

    write_model(folder / "kiwi", hparams, kiwi.state_dict(), encoder, "unified_metric")

    xcomet = XCOMETMetric(**options)

    hparams = dict(xcomet.hparams)

    write_model(
        folder / "xcomet", hparams, xcomet.state_dict(), encoder, "xcomet_metric"
    )


def write_model(
    folder: Path,
    hparams: dict[str, Any],
    weights: dict[str, Any],
    encoder: str | Path,
    kind: str = "regression_metric",
) -> None:
    """
    :param encoder: What the text file says, the checkpoint aside.
    :param kind: What COMET calls the class of the model.
    """
    import torch
    import yaml

    (folder / "checkpoints").mkdir(parents=True)

    checkpoint = {
        "state_dict": weights,
        "hyper_parameters": hparams,
        "pytorch-lightning_version": "2.6.6",
    }

    torch.save(checkpoint, folder / "checkpoints" / "model.ckpt")

    further = {
        "pretrained_model": str(encoder),
        "class_identifier": kind,
    }

    text = yaml.safe_dump({**hparams, **further})

    (folder / "hparams.yaml").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
