"""The rooms of the package, its folders and root modules, and which of them may import which."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'lckd_mm'

#: A room imports from earlier lines alone: not from later ones, nor from its neighbours.
LAYERS = (
    ('functional', 'arguments', 'contexts', 'errors', 'streams'),
    ('registry', 'storage'),
    ('hosts',),
    ('taps', 'config'),
    ('backbones', 'heads', 'losses', 'connectors', 'data', 'optim'),
    ('distillation', 'evaluation'),
    ('hooks',),
    ('cli', 'reporting', 'doctor'),
)
ORDER = {room: layer for layer, rooms in enumerate(LAYERS) for room in rooms}


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


def test_every_room_has_one_layer():
    assert set(ORDER) == set(rooms())
    assert len(ORDER) == sum(map(len, LAYERS))


def test_the_root_stays_small():
    assert len(list(PACKAGE.glob('*.py'))) <= 9


@pytest.mark.parametrize('room', rooms())
def test_imports_go_to_earlier_layers(room):
    for file in rooms()[room]:
        for name in imported(file):
            parts = name.split('.')
            if parts[0] == 'lckd_mm' and len(parts) > 1 and parts[1] in ORDER and parts[1] != room:
                assert ORDER[parts[1]] < ORDER[room], f'{file}: {name}'


def test_formulas_import_torch_numpy_and_the_standard_library_alone():
    for file in rooms()['functional']:
        for name in imported(file):
            assert name.split('.')[0] in {'torch', 'numpy', 'lckd_mm', *sys.stdlib_module_names}, f'{file}: {name}'
