"""The shape of the package: who may import whom, as docs/architecture.md says, and how long and deep things get."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodule_plugin import metrics

PACKAGE = "nodule_plugin"
LONGEST_BODY = 60
"""Lines of a function without its docstring."""
DEEPEST = 2
"""Classes of our own that inherit from each other in metrics/."""


def _rooms(repository: Path) -> dict[str, int]:
    """Each room of the table in docs/architecture.md, and its row."""
    text = (repository / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = text.split("## Packages and the order of their imports\n")[1].split("\n## ")[0]
    rows = [re.findall(r"`([^`]+)`", line.split("|")[1]) for line in section.splitlines() if line.startswith("| `")]
    return {name.rstrip("/").removesuffix(".py"): row for row, names in enumerate(rows) for name in names}


def _modules(repository: Path) -> list[tuple[str, ast.Module]]:
    """Every file of the package, by its path in it."""
    root = repository / PACKAGE
    files = sorted(root.rglob("*.py"))
    return [(file.relative_to(root).as_posix(), ast.parse(file.read_text(encoding="utf-8"))) for file in files]


def _imports(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """The line and the room or file at the package's top that an import asks for, wherever in the file it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import; name the package"
            whole = node.module == PACKAGE
            names = [f"{PACKAGE}.{alias.name}" if whole else str(node.module) for alias in node.names]
        else:
            continue
        yield from ((node.lineno, name.split(".")[1]) for name in names if name.startswith(f"{PACKAGE}."))


def _against_the_order(rooms: dict[str, int], modules: list[tuple[str, ast.Module]]) -> list[str]:
    """The imports of rooms below the own one, and of what is no room (but for the package's own ``__version__``)."""
    wrong = []
    for path, tree in modules:
        room = path.partition("/")[0].removesuffix(".py")
        for line, asked in _imports(path, tree):
            if room != "__init__" and asked != "__version__" and rooms.get(asked, len(rooms)) > rooms[room]:
                wrong.append(f"{path}:{line}: {room} imports {asked}, which stands below it")
    return wrong


def test_every_room_is_in_the_architecture(repository: Path) -> None:
    tops = {path.partition("/")[0].removesuffix(".py") for path, _ in _modules(repository)} - {"__init__"}
    assert tops == set(_rooms(repository))


def test_rooms_import_only_from_rooms_above(repository: Path) -> None:
    assert _against_the_order(_rooms(repository), _modules(repository)) == []


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("handlers/a.py", "from nodule_plugin.report.files import write_report"),
        ("data/a.py", "import nodule_plugin.metrics"),
        ("settings.py", "def late():\n    from nodule_plugin.lidc import xml"),
        ("lidc/phantom/a.py", "from nodule_plugin import data"),
        ("reader_study/a.py", "from nodule_plugin import BiomedCLIPScorer"),
    ],
)
def test_an_import_from_below_is_found(repository: Path, path: str, line: str) -> None:
    found = _against_the_order(_rooms(repository), [(path, ast.parse(line))])
    assert len(found) == 1
    assert found[0].startswith(f"{path}:")


def _body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    body = function.body[1:] if ast.get_docstring(function) is not None and len(function.body) > 1 else function.body
    return int(body[-1].end_lineno or 0) - body[0].lineno + 1


def test_no_function_is_longer_than_a_screen(repository: Path) -> None:
    long = [
        f"{path}:{node.lineno}: {node.name} has {_body_lines(node)} lines"
        for path, tree in _modules(repository)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _body_lines(node) > LONGEST_BODY
    ]
    assert long == []


def _depth(name: str, bases: dict[str, list[str]]) -> int:
    return 1 + max((_depth(base, bases) for base in bases[name] if base in bases), default=0)


def test_measures_are_composed_and_not_inherited(repository: Path) -> None:
    folder = Path(next(iter(metrics.__path__)))
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.py"))]
    classes = [node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)]
    bases = {node.name: [base.id for base in node.bases if isinstance(base, ast.Name)] for node in classes}
    assert len(bases) == len(classes)
    assert {name: _depth(name, bases) for name in bases if _depth(name, bases) > DEEPEST} == {}
    assert [name for name, own in bases.items() if sum(base in bases for base in own) > 1] == []
