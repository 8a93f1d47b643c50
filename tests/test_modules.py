"""How the modules of the package lean on each other."""

from __future__ import annotations

import ast
from pathlib import Path

import rio_bench


def test_no_module_takes_a_private_name_of_another() -> None:
    package = Path(rio_bench.__file__).parent
    taken = [
        f"{file.relative_to(package)}:{node.lineno}: {name.name}"
        for file in sorted(package.rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "rio_bench"
        for name in node.names
        if name.name.startswith("_") and not name.name.startswith("__")
    ]
    assert taken == []
