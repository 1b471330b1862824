"""Formulas as MathML, which browsers draw by themselves: the site needs no script from elsewhere for them."""

from __future__ import annotations

import latex2mathml.converter
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata
from sphinx.writers.html5 import HTML5Translator


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register the renderer, which html_math_renderer names."""
    app.add_html_math_renderer("mathml", (_inline, None), (_displayed, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _inline(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(latex2mathml.converter.convert(node.astext()))
    raise nodes.SkipNode


def _displayed(self: HTML5Translator, node: nodes.math_block) -> None:
    self.body.append(f'<div class="formula">{latex2mathml.converter.convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode
