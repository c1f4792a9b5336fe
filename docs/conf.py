"""Sphinx configuration; the figures are drawn anew at every build."""

import sys
from importlib.metadata import version as installed
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import figures

figures.draw(Path(__file__).parent / "_figures")

project = "xpatches"
author = "The xpatches developers"
version = release = installed("xpatches")

extensions = [
    "myst_parser",
    "sphinx_design",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build", "_figures"]
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
autodoc_typehints = "none"
autodoc_class_signature = "separated"
autodoc_member_order = "bysource"
default_role = "code"
napoleon_google_docstring = False
nitpicky = False

html_theme = "pydata_sphinx_theme"
html_title = f"xpatches {version}"
html_theme_options = {
    "github_url": "https://github.com/xpatches/xpatches",
    "navigation_with_keys": False,
}
html_sidebars: dict[str, list[str]] = {"index": []}
