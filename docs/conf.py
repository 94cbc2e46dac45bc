"""Sphinx with MyST and Furo. The pages of the packages are made from their docstrings at each build."""

from __future__ import annotations

import importlib
import pkgutil
import re
import shutil
import textwrap
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

PACKAGES = ["kmp_core", "kmp_storage", "kmp_messaging"]

project = "KMP"
author = "the KMP authors"
version = release = installed_version("kmp-core")

extensions = ["myst_parser", "sphinx.ext.autodoc"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"KMP {version}"
html_show_sourcelink = False

# Docstrings are written to be read in an editor: single backticks are code.
default_role = "code"
# A field's name in a signature may be that of another class's field; it is no reference that anybody follows.
suppress_warnings = ["ref.python"]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88


def public_modules(package: str) -> list[str]:
    """The modules that say what they export: those with `__all__`, which is what users may import from."""
    root = importlib.import_module(package)
    names = [package, *(module.name for module in pkgutil.walk_packages(root.__path__, f"{package}."))]
    return [
        name for name in names if not name.endswith("__main__") and hasattr(importlib.import_module(name), "__all__")
    ]


def write_reference(directory: Path) -> None:
    """A page for each public module, and an index for each package; what was there before is gone."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    for package in PACKAGES:
        modules = public_modules(package)
        listed = "\n".join(module for module in modules if module != package)
        for module in modules:
            # What a package re-exports is described where it is defined.
            options = ":no-members:" if hasattr(importlib.import_module(module), "__path__") else ":members:"
            text = f"# `{module}`\n\n```{{eval-rst}}\n.. automodule:: {module}\n   {options}\n```\n"
            if module == package:
                text += f"\n```{{toctree}}\n:maxdepth: 1\n\n{listed}\n```\n"
            (directory / f"{module}.md").write_text(text)


def write_as_rest(_app: Sphinx, *event: Any) -> None:
    """Docstrings are written as plain Markdown: turn their code blocks and tables into what autodoc reads."""
    lines: list[str] = event[-1]
    text = re.sub(r"^```(\w*)\n(.*?)^```$", _fence, "\n".join(lines), flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"(?:^\|.*\|\n?){3,}", _table, text, flags=re.MULTILINE)
    marked: list[str] = []
    for paragraph in text.split("\n\n"):
        before = marked[-1] if marked else ""
        if paragraph.startswith("    ") and not before.startswith(("    ", ".. ", "::")):
            marked.append("::")
        marked.append(paragraph)
    lines[:] = "\n\n".join(marked).split("\n")


def _fence(match: re.Match[str]) -> str:
    return f".. code-block:: {match[1] or 'text'}\n\n{textwrap.indent(match[2], '    ')}"


def _table(match: re.Match[str]) -> str:
    head, _rule, *rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in match[0].splitlines()]
    cells = "\n".join("    * - " + "\n      - ".join(row) for row in [head, *rows])
    return f".. list-table::\n    :header-rows: 1\n\n{cells}\n"


def setup(app: Sphinx) -> None:
    write_reference(Path(__file__).parent / "reference" / "api")
    app.connect("autodoc-process-docstring", write_as_rest)
