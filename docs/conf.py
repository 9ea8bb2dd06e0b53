"""The documentation site: ``sphinx-build -W -b html docs build/site``."""

from __future__ import annotations

from importlib.metadata import version as installed

from sqlalchemy_proletarian.cli.main import add_commands

add_commands()  # for the page of the command line

project = "sqlalchemy_proletarian"
author = "the authors of sqlalchemy_proletarian"
copyright = f"2026, {author}"  # noqa: A001
release = version = installed("sqlalchemy-proletarian")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx_click",
    "sphinx_copybutton",
]
exclude_patterns = ["examples", "deploy"]

myst_enable_extensions = ["colon_fence", "deflist", "attrs_inline"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "separated"
python_use_unqualified_type_names = True
smartquotes = False  # they would change the names of options

html_theme = "furo"
html_title = f"SQLAlchemy Proletarian {release}"
html_static_path = ["_static"]
html_css_files = ["home.css"]
html_copy_source = False
html_show_copyright = False
copybutton_exclude = ".linenos, .gp, .go"
