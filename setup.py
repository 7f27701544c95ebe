# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent

README = ROOT / "README.md"

PRESETS = ROOT / "recipes" / "configs"

METRICS = ["bert-score>=0.3.13", "rouge-score>=0.1.2"]

DOCS = [
    "furo>=2024.8.6",
    "latex2mathml>=3.77",
    "myst-parser>=4",
    "sphinx>=8.1",
    "sphinx-copybutton>=0.5",
]


def read_description() -> str:
    """
    Reads what PyPI shows: the README, without what only a clone has beside it.

    PyPI knows neither ``<picture>`` nor where a link to a file of ours would lead.
    """
    if not README.exists():
        return ""

    text = README.read_text(encoding="utf-8")

    text = re.sub(r"<picture>.*?</picture>\n\n", "", text, flags=re.DOTALL)

    return re.sub(r"\[([^\]]+)\]\((?!\w+:)[^)]+\)", r"\1", text)


def read_version() -> str:
    """Reads the version, without importing a package that is not installed yet."""
    text = (ROOT / "warmup_plugin" / "__init__.py").read_text(encoding="utf-8")

    match = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    if match is None:
        raise ValueError("`__version__` must be set in warmup_plugin/__init__.py.")

    return match[1]


class BuildWithPresets(build_py):
    """
    Puts the presets into the wheel.

    A clone keeps them beside the recipes, where people look for them, and holds no
    second copy; ``warmup_plugin/presets.py`` finds both.
    """

    def run(self) -> None:
        super().run()

        if self.editable_mode:
            return

        target = Path(self.build_lib, "warmup_plugin", "configs")

        # A preset that was deleted may be left from an earlier build.
        shutil.rmtree(target, ignore_errors=True)

        for preset in PRESETS.rglob("*.yaml"):
            copy = target / preset.relative_to(PRESETS)

            copy.parent.mkdir(parents=True, exist_ok=True)

            shutil.copyfile(preset, copy)


setup(
    name="warmup_plugin",
    version=read_version(),
    description="Warmup generations for fairseq2: a model writes a short text before its output and learns which texts help",
    long_description=read_description(),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    packages=find_packages(include=["warmup_plugin", "warmup_plugin.*"]),
    package_data={
        "warmup_plugin": [
            "py.typed",
            "assets/*.yaml",
            "interop/*.j2",
            "metrics/comet/*.txt",
            "report/*.css",
            "report/*.j2",
            "report/*.js",
        ]
    },
    cmdclass={"build_py": BuildWithPresets},
    python_requires=">=3.10,<3.13",
    install_requires=[
        # Pins torch as well. Other versions differ in what the recipes build on.
        "fairseq2==0.8.1",
        # The page of `report`: its template and its plots.
        "jinja2>=3.1",
        # fairseq2 requires the next two and typing_extensions as well and bounds them.
        "numpy>=2.2",
        "plotly>=6",
        # transformers reads SentencePiece models with it, for `export`.
        "protobuf",
        "ruamel.yaml>=0.18",
        "sacrebleu>=2.4,<3",
        "sentencepiece>=0.2.0",
        # For the libsndfile it bundles: fairseq2 does not start without one.
        "soundfile>=0.12",
        "tensorboard",
        "typing_extensions>=4.12",
    ],
    extras_require={
        # The documentation as a site, `make docs`.
        "docs": DOCS,
        # ROUGE and BERTScore; without them these metrics are left out, with the reason.
        "metrics": METRICS,
        # ctranslate2: exported models are served with it. setuptools: a test builds
        # the wheel without a network.
        # scikit-learn: macro-F1 is compared with its own.
        # hypothesis: input that breaks something is looked for.
        # peft: adapters are read and made by it.
        # py3langid: languages are identified.
        # twine: what would be uploaded is checked.
        # sphinx and what is with it: the documentation is built without a warning.
        # selenium: the page of `report` is tried in Chromium where there is one.
        "test": [
            *DOCS,
            *METRICS,
            "ctranslate2>=4.6",
            "hypothesis>=6.100",
            "peft>=0.17",
            "py3langid>=0.4",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "scikit-learn>=1.5",
            "selenium>=4.20",
            "setuptools>=70.1",
            "twine>=6",
        ],
        # scripts/prepare_*.py: where WMT's data is, XSum and CNN/DailyMail, and which
        # language a text is in. Each is used only where it is installed.
        "data": ["datasets>=4.4", "mtdata>=0.5", "py3langid>=0.4"],
        # `mlflow.enabled=true` writes metrics there. (trackio wants a huggingface_hub of
        # 1.10 and more, fairseq2 and its transformers one below 1.)
        "mlflow": ["mlflow>=3"],
        # scripts/public_model.py reads the public model of the tests with it.
        "public-model": ["gguf>=0.17"],
        # scripts/bench_*.py compare with it.
        "bench": ["transformers>=4.57,<5"],
        "dev": [
            "black~=26.1",
            "flake8>=7",
            "isort>=6",
            "mypy>=1.18",
            "types-PyYAML",
            "types-setuptools",
        ],
    },
    entry_points={
        "console_scripts": ["warmup-plugin = warmup_plugin.__main__:main"],
        "fairseq2.extension": [
            "warmup_plugin = warmup_plugin:setup_warmup_extension",
        ],
    },
)
