"""Sphinx configuration; `make docs` builds the pages into docs/en/_build."""

import latex2mathml.converter
from docutils import nodes

from olor_mm import __version__

project = 'olor_mm'
author = 'The olor_mm authors'
release = __version__
extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon']
exclude_patterns = ['_build']
myst_enable_extensions = ['dollarmath', 'deflist']
myst_heading_anchors = 3
autodoc_member_order = 'bysource'
autodoc_default_options = {'members': True}
autodoc_inherit_docstrings = False  # hooks of MMEngine say that they should be overridden
autodoc_typehints = 'none'  # the docstrings have them, with shapes and units
add_module_names = False
nitpicky = True
nitpick_ignore_regex = [('py:.*', r'(?!olor_mm\b).*')]  # classes of torch and OpenMMLab are in no page here
toc_object_entries_show_parents = 'hide'
html_theme = 'furo'
html_static_path = ['_static']
html_css_files = ['custom.css']
html_title = f'olor_mm {release}'
html_show_copyright = False
html_math_renderer = 'mathml'  # browsers draw it by themselves; MathJax would be fetched from the network


def visit_math(self, node: nodes.math | nodes.math_block) -> None:
    display = 'inline' if isinstance(node, nodes.math) else 'block'
    self.body.append(latex2mathml.converter.convert(node.astext(), display=display))
    raise nodes.SkipNode


def setup(app) -> None:
    app.add_html_math_renderer('mathml', (visit_math, None), (visit_math, None))
