"""Sphinx settings. Nothing is fetched from the network: equations become MathML, and there is no intersphinx."""

import re

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx_gallery.sorting import ExplicitOrder

import skvae

EXAMPLES = [  # tables first
    "plot_07_mixed_table.py",
    "plot_08_imputation.py",
    "plot_10_odd_cells.py",
    "plot_09_conditional_sampling.py",
    "plot_02_model_selection.py",
    "plot_01_digits.py",
    "plot_05_manifold.py",
    "plot_06_editing.py",
    "plot_03_fused_search.py",
    "plot_04_wake_sleep.py",
    "*",
]

project = "skvae"
author = "skvae contributors"
copyright = "2026, skvae contributors"
release = skvae.__version__
version = ".".join(release.split(".")[:2])

extensions = ["sphinx.ext.autodoc", "sphinx.ext.autosummary", "numpydoc", "sphinx_gallery.gen_gallery"]
templates_path = ["_templates"]
exclude_patterns = ["_build", "_templates", "auto_examples/*.ipynb", "sg_execution_times.rst"]
default_role = "literal"

autosummary_generate = True
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
toc_object_entries_show_parents = "hide"

html_theme = "pydata_sphinx_theme"
html_title = "skvae"
html_static_path = ["_static"]
html_css_files = ["skvae.css"]
html_show_sourcelink = False
html_math_renderer = "mathml"
html_theme_options = {
    "navbar_end": ["theme-switcher"],
    "navbar_persistent": ["search-button"],
    "secondary_sidebar_items": ["page-toc"],
    "show_prev_next": True,
    "footer_start": ["copyright"],
    "footer_end": [],
    "navigation_with_keys": False,
    "show_nav_level": 1,
}
html_sidebars = dict.fromkeys(("install", "whats_new", "developer"), [])

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": "/plot_",
    "within_subsection_order": ExplicitOrder(EXAMPLES),
    "plot_gallery": "True",  # text, as -D gives it; minutes, and not to execute the examples: sphinx-build -D plot_gallery=0
    "download_all_examples": False,
    "show_signature": False,
    "show_memory": False,
    "write_computation_times": False,
    "reset_modules": (),
}


def setup(app):
    """Register the renderer that turns equations into MathML, which browsers draw by themselves."""
    app.add_html_math_renderer("mathml", (_inline_math, None), (_displayed_math, None))


def _inline_math(translator, node):
    translator.body.append(_mathml(node.astext()))
    raise nodes.SkipNode


def _displayed_math(translator, node):
    translator.body.append(f'<div class="equation">{_mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def _mathml(tex, **options):
    # Browsers leave no space between a function and its argument, as in "log p".
    space = '<mspace width="0.17em"/>'
    return re.sub(r"<mo>&ApplyFunction;</mo>(?!\s*<mo[^>]*>[(\[])", space, tex2mathml(tex, **options))
