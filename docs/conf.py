"""How `make docs` builds the site."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

# The pages are about this checkout, whatever is installed.
sys.path.insert(0, str(Path(__file__).parent.parent))

project = "Resnet Twins"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

html_theme = "furo"
html_title = project
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False

myst_heading_anchors = 3

# The public names of a package, in the order of its __all__.
autodoc_default_options = {"members": True, "imported-members": True}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
maximum_signature_line_length = 60
python_use_unqualified_type_names = True

# With -n, a reference that leads nowhere is a warning. These have no page here: types
# of other libraries, and the inside of parity.
nitpick_ignore_regex = [
    (
        "py:.*",
        r"(collections|os|pathlib|numpy|PIL|torch|jax|jaxlib|jaxtyping|flax|onnx)\..*",
    ),
    ("py:class", r"Array|Tensor|Float|Int|Num"),
    (
        "py:.*",
        r"(parity|resnet_(torch|flax|spec|training))(\.\w+){2,}|parity\.machine",
    ),
]


def _returns_are_prose(
    app: Sphinx, what: str, name: str, it: object, options: Any, lines: list[str]
) -> None:
    """Turns ``Returns:`` into a field before napoleon reads a type before a colon."""
    if "Returns:" in lines:
        start = lines.index("Returns:")
        lines[start : start + 2] = ["", f":returns: {lines[start + 1].strip()}"]


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", _returns_are_prose, priority=400)
