"""Rooms of the package know only rooms below them: every import goes one way."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import deep_image_compositing

PACKAGE = Path(deep_image_compositing.__file__).parent

FLOORS = (
    {"errors", "messages", "noise"},
    {"conventions", "extras", "files", "options", "running", "settings", "web"},
    {"devices", "functional", "images", "ledger", "published", "weights"},
    {"metrics", "networks", "placement", "registry"},
    {"hub", "losses", "models", "shadows"},
    {"export", "inference", "stages"},
    {"data", "fullsize"},
    {"composite", "harmonizing"},
    {"compositor", "resuming"},
    {"training"},
    {"benchmark", "evaluation", "removal"},
    {"batch", "serving"},
    {"commands"},
    {"cli"},
    {"__init__", "__main__"},
)
"""Rooms from the ground up; those of one floor do not know one another."""

FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def imported(tree: ast.Module) -> Iterator[str]:
    """Modules of the package that a module imports, but those for the type checker alone."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body.clear()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == PACKAGE.name:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)


def test_rooms_import_only_what_is_below_them() -> None:
    wrong, seen = [], set()
    for path in PACKAGE.rglob("*.py"):
        own = path.relative_to(PACKAGE).with_suffix("").parts[0]
        seen.add(own)
        for name in imported(ast.parse(path.read_text("utf-8"))):
            package, *rest = name.split(".")
            if package != PACKAGE.name or not rest or rest[0] in (own, "__version__"):
                continue
            if FLOOR[rest[0]] >= FLOOR[own]:
                wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert not wrong, "\n".join(wrong)
    assert seen == FLOOR.keys()
