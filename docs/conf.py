# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
Builds the documentation site, ``make docs``.

The pages are the Markdown files of the repository, where GitHub shows them, so the root
of the sources is that of the repository. Nothing that is built needs a network.
"""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import is_dataclass
from pathlib import Path
from typing import Final

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

ROOT: Final = Path(__file__).resolve().parent.parent

sys.path.insert(0, str(ROOT))

import warmup_plugin  # noqa: E402

_log = logging.getLogger(__name__)

project = "warmup_plugin"
author = "warmup_plugin contributors"
copyright = author
version = release = warmup_plugin.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]

# The README is the first page, here and on GitHub.
root_doc = "README"
include_patterns = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "recipes/README.md",
    "docs/*.md",
    "docs/api/*.rst",
]

# Folders that a walk through a clone would otherwise enter.
exclude_patterns = [
    ".*",
    "build",
    "data",
    "dist",
    "runs",
    "scripts",
    "tests",
    "warmup_plugin",
]

nitpicky = True

# Other packages are not linked, since their indices would have to be downloaded.
nitpick_ignore_regex = [
    (r"py:.*", r"(collections|fairseq2|numpy|pathlib|torch|typing)\..*"),
    # Types of ours in signatures that are no part of the reference.
    (r"py:class", r"warmup_plugin(\.\w+){3,4}"),
    # Names as the sources import them.
    (r"py:.*", r"ConfigT|DependencyContainer|RecipeError|Tensor"),
]

myst_enable_extensions = ["attrs_inline"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autoclass_content = "both"
autodoc_default_options = {
    "members": True,
    # A field whose name says all has no text below it.
    "undoc-members": True,
    "exclude-members": "kls, validate",
}
python_maximum_signature_line_length = 80

html_theme = "furo"
html_title = "warmup_plugin"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_math_renderer = "mathml"

# Prompts are no part of a command.
copybutton_prompt_text = "$ "

# What the sidebar lists; the README itself names the same pages in its own words.
CONTENTS: Final = """

```{toctree}
:hidden:
:caption: Tutorials

docs/tutorial_pivot
docs/tutorial_own_text
docs/tutorial_public_checkpoint
```

```{toctree}
:hidden:
:caption: Results

docs/results
docs/pivot
docs/pivot_results
```

```{toctree}
:hidden:
:caption: Guides

docs/data
docs/training
docs/models
docs/lora
docs/mrt
docs/tasks
docs/generation
docs/evaluation
docs/report
docs/suite
docs/in_your_own_recipe
docs/migrating_from_fairseq2_0.4
```

```{toctree}
:hidden:
:caption: Reference

docs/config
recipes/README
docs/api/index
docs/limits
```

```{toctree}
:hidden:
:caption: Project

docs/life_of_a_batch
docs/files
docs/upgrading
CONTRIBUTING
CHANGELOG
```
"""

_PICTURE: Final = re.compile(
    # Not in a block of code.
    r'(?<=\n\n)<picture>\s*<source media="\(prefers-color-scheme: dark\)" srcset="(?P<dark>[^"]+)">'
    r'\s*<img src="(?P<light>[^"]+)" alt="(?P<alt>[^"]+)">\s*</picture>'
)


def read_page(app: Sphinx, page: str, text: list[str]) -> None:
    """
    Adapts what GitHub shows to the site.

    A ``<picture>`` follows the system alone; two images follow the switch of the page
    as well.
    """
    text[0] = _PICTURE.sub(
        r"![\g<alt>](\g<light>){.only-light}![\g<alt>](\g<dark>){.only-dark}", text[0]
    )

    if "\n\n<picture>" in text[0]:
        _log.warning("a <picture> is not written as the others are", location=page)

    if page == root_doc:
        text[0] += CONTENTS


def hide_fields(
    app: Sphinx, what: str, name: str, item: object, *args: object
) -> tuple[str, None] | None:
    """Leaves out what a dataclass is created from: its fields are listed below it."""
    return ("", None) if what == "class" and is_dataclass(item) else None


def visit_math(translator: HTML5Translator, node: nodes.math) -> None:
    """Writes MathML, which browsers show by themselves."""
    is_block = isinstance(node, nodes.math_block)

    mathml = convert(node.astext(), display="block" if is_block else "inline")

    # A command that it does not know is left as it was.
    if "\\" in mathml:
        _log.warning("not all of %s becomes MathML", node.astext(), location=node)

    translator.body.append(f'<div class="math">{mathml}</div>' if is_block else mathml)

    raise nodes.SkipNode


def add_index(app: Sphinx, error: Exception | None) -> None:
    """Writes the first page under the name that a server looks for, too."""
    if error is None and app.builder.name == "html":
        shutil.copyfile(app.outdir / f"{root_doc}.html", app.outdir / "index.html")


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer(
        "mathml",
        inline_renderers=(visit_math, None),
        block_renderers=(visit_math, None),
    )

    app.connect("source-read", read_page)
    app.connect("autodoc-process-signature", hide_fields)
    app.connect("build-finished", add_index)
