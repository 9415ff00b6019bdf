"""Sphinx configuration: ``sphinx-build -n -W docs docs/_build/html``."""

from __future__ import annotations

from importlib.metadata import version as version_of

project = "idempo"
author = "The idempo authors"
copyright = f"2026, {author}"
release = version_of("idempo")
version = release

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"idempo {release}"
html_copy_source = False

# `Name` in a docstring is a reference to it, wherever it is documented.
default_role = "any"
nitpicky = True
nitpick_ignore_regex = [
    # The standard library and attrs are not linked: the pages build without the network.
    (r"py:.*", r"(collections|datetime|contextlib|typing|enum|types|asyncio|sqlite3|os|pathlib|logging)(\..*)?"),
    (
        r"py:.*",
        r"(bool|bytes|bytearray|memoryview|callable|dict|float|frozenset|int|list|object|optional|set|str|tuple|type)",
    ),
    (r"py:.*", r"(BaseException|Exception|TypeError|ValueError|RuntimeError|AttributeError|KeyError|LookupError)"),
]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True}
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = [("Units", "notes_style")]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
myst_fence_as_directive = []
