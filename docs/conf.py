"""Sphinx configuration: `make docs`."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert

import gpulayers

project = "gpulayers"
copyright = "the gpulayers authors"
version = release = gpulayers.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
# links to files of the repository; `optimizer : str`, which several classes have
suppress_warnings = ["myst.xref_missing", "ref.python"]
default_role = "code"

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "alphabetical"  # the source order of imported names is none
autodoc_typehints = "none"  # the docstrings give shapes and dtypes, which the hints do not
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

html_math_renderer = "mathml"
html_theme = "furo"
html_title = f"gpulayers {release}"
html_theme_options = {
    "source_repository": "",
    "navigation_with_keys": True,
}
html_show_sourcelink = False
html_copy_source = False


# The docstrings are plain text with backticks, made to be read in the source: formulas have stars
# and bars, code is indented. reStructuredText wants those marked.
_QUOTED = re.compile(r"(``.*?``|`.*?`)")


def _marked(text: str) -> str:
    parts = _QUOTED.split(text)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"([*|])", r"\\\1", parts[i])
        parts[i] = re.sub(r"(?<=\w)_(?!\w)", r"\\_", parts[i])
    return "".join(parts)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def process_docstring(
    app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Turn indented blocks into literal ones and escape the signs elsewhere, in place."""
    done: list[str] = []
    literal: int | None = None  # indentation of the text around the block we are in
    before = 0  # indentation of the last line that was not blank
    blank = False
    for line in lines:
        if not line.strip():
            done.append("")
            blank = True
            continue
        indent = _indent(line)
        if literal is not None and indent <= literal:
            literal = None
        if literal is None and blank and indent > before and not line.lstrip().startswith(">>>"):
            done += [" " * before + "::", ""]
            literal = before
        done.append(line if literal is not None else _marked(line))
        before = indent if literal is None else before
        blank = False
    lines[:] = done


# Formulas as MathML, which browsers draw themselves: no script, nothing from a network.
def visit_math(writer: Any, node: Any) -> None:
    writer.body.append(convert(node.astext()))
    raise nodes.SkipNode


def visit_math_block(writer: Any, node: Any) -> None:
    writer.body.append(
        f'<div style="margin: 1em 0">{convert(node.astext(), display="block")}</div>'
    )
    raise nodes.SkipNode


def setup(app: Any) -> None:
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    app.connect("autodoc-process-docstring", process_docstring, priority=400)  # before napoleon
