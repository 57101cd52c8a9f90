"""The layers of docs/design.md, held against what the modules import."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'lckd_mm'


def layers() -> dict[str, int]:
    """Each room's layer, as the page's table says; a row without a number is of the layer above it."""
    found, layer = {}, -1
    for line in (ROOT / 'docs' / 'design.md').read_text().splitlines():
        row = re.match(r'\| *(\d*) *\| *(`.*?) *\|', line)
        if row:
            layer = int(row[1]) if row[1] else layer
            found |= {name.strip('`/ '): layer for name in row[2].split(',')}
    return found


def rooms() -> dict[str, list[Path]]:
    """Modules and folders of the package, with their files."""
    found = {p.stem: [p] for p in PACKAGE.glob('*.py') if p.stem != '__init__'}
    return found | {p.name: sorted(p.rglob('*.py')) for p in PACKAGE.iterdir() if (p / '__init__.py').exists()}


def imported(file: Path) -> set[str]:
    """Full names of all that a file imports, inside functions too."""
    package = list(file.relative_to(ROOT).parts[:-1])
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            path = [*start, *([node.module] if node.module else [])]
            of_the_package = path == ['lckd_mm']  # from . import room
            names |= {f'lckd_mm.{alias.name}' for alias in node.names} if of_the_package else {'.'.join(path)}
    return names


def test_every_room_has_a_layer_and_every_layer_its_rooms():
    assert set(layers()) == set(rooms())
    assert max(layers().values()) > 5


@pytest.mark.parametrize('room', rooms())
def test_imports_go_to_layers_above(room):
    order = layers()
    for file in rooms()[room]:
        for name in imported(file):
            parts = name.split('.')
            if parts[0] == 'lckd_mm' and len(parts) > 1 and parts[1] in order and parts[1] != room:
                same_row = order[parts[1]] == order[room]
                assert order[parts[1]] < order[room], f'{file}: {name}' + (' of the same layer' if same_row else '')


def test_formulas_import_torch_numpy_and_the_standard_library_alone():
    import sys

    for file in rooms()['functional']:
        for name in imported(file):
            assert name.split('.')[0] in {'torch', 'numpy', 'lckd_mm', *sys.stdlib_module_names}, f'{file}: {name}'
