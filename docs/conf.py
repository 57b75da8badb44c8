"""Sphinx configuration; `make docs` builds the site into build/docs."""

from importlib.metadata import version

project = "mllm-selector"
author = "the mllm-selector authors"
release = version = version("mllm-selector")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"mllm-selector {release}"

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # numpydoc sections say shapes and dtypes, which hints do not
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_preprocess_types = False
nitpicky = False
default_role = "code"  # docstrings quote names in single backticks
