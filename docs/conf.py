"""Sphinx configuration: ``sphinx-build -n -W docs docs/_build/html``."""

from __future__ import annotations

import builtins
import pydoc
import sys
from importlib.metadata import version as version_of
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.addnodes import pending_xref
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

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
default_role = "py:obj"
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r".*[\[\]'\"].*"),  # pieces of a type that stands in a list of attributes
    (r"py:(class|obj)", r"(.*[.~])?([MPQRS]|ResponseT)"),  # type variables
    (r"py:class", r"(pymemcache|nats|sqlalchemy|sa)\..*"),  # client libraries that publish no inventory
    # What is imported for types only, and so stands in a signature by its short name.
    (
        r"py:class",
        r"(async_)?scoped_session|(Async)?Session|AsyncEngine|AsyncConnection|timedelta|AsyncCaller|Transaction",
    ),
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


def resolve(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: nodes.TextElement
) -> nodes.Element | None:
    """Resolve what stands under another name than the one it is documented by.

    Classes are made in one module and documented where users import them from. Private names are left as they are, and
    so is the standard library: the pages build without the network. But a name of it must exist.
    """
    target: str = node["reftarget"]
    if "._" in f".{target}":
        return contnode
    python = env.domains["py"]
    for name in (target, target.rpartition(".")[2] if target.startswith("idempo.") else target):
        documented = {full for full, entry in python.objects.items() if full.endswith(f".{name}") and not entry.aliased}
        if len(documented) == 1:
            return python.resolve_xref(env, node["refdoc"], app.builder, "obj", documented.pop(), node, contnode)
    standard = target.partition(".")[0] in sys.stdlib_module_names or target in dir(builtins)
    return contnode if standard and pydoc.locate(target) is not None else None


def show_public_bases(_app: Sphinx, _name: str, _obj: type, _options: Any, bases: list[type]) -> None:
    """Show the nearest public class instead of a private one that only shares code."""
    bases[:] = [
        getattr(base, "__origin__", base).__bases__[0] if base.__name__.startswith("_") else base for base in bases
    ]


def setup(app: Sphinx) -> None:
    """Connect what stands above."""
    app.connect("missing-reference", resolve)
    app.connect("autodoc-process-bases", show_public_bases)
