"""The documentation site: `sphinx-build -W docs build/docs` (extra `docs`); tutorials are executed."""

import os
import sys
from pathlib import Path

import leanrecon

sys.path.insert(0, str(Path(__file__).parent / "extensions"))
# Tutorials call the command `leanrecon` of the Python that builds the site, also where its environment is not activated.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

project = "leanrecon"
author = "the leanrecon developers"
release = version = leanrecon.__version__

extensions = [
    "myst_nb",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.githubpages",
    "sphinx_copybutton",
    "reference_pages",
    "whole_streams",
]
exclude_patterns = ["README.md"]
myst_enable_extensions = ["colon_fence", "deflist"]  # no formulas: MathJax would come from the network
myst_heading_anchors = 3
suppress_warnings = ["myst-nb.lexer"]  # of cells that were not executed

nb_execution_mode = os.environ.get("LEANRECON_DOCS_EXECUTE", "cache")  # or "off"
nb_execution_timeout = 600
nb_execution_show_tb = True  # of a cell that fails, with what its command said
nb_execution_in_temp = True
nb_merge_streams = True
nb_output_stderr = "remove"  # progress

autodoc_typehints = "none"
autodoc_member_order = "bysource"
numpydoc_show_class_members = False

html_theme = "pydata_sphinx_theme"
html_title = "leanrecon"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_theme_options = {
    "github_url": "https://github.com/leanrecon/leanrecon",
    "navigation_with_keys": True,
    "show_toc_level": 2,
    "header_links_before_dropdown": 6,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": [],
    "footer_end": [],
}
copybutton_prompt_text = r"^\$ "
copybutton_prompt_is_regexp = True
