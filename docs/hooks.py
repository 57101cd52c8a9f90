"""What mkdocs calls while it builds the site (mkdocs.yml): pages that are not in docs/, and links that leave it.

Pages are written once, where a reader of the repository looks for them: README.md is the site's first page, and each
README of configs/ is one. Their links, and those of docs/, are relative in the repository; here they are turned to the
site's pages. A linked file that is no page (a config, the licence) is carried along. What a link names and nobody has
stays as it is, so that mkdocs reports it, and fails under --strict.
"""

import ast
import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_LINK = re.compile(r'(?<=\]\()([^)\s#]+)(#[^)\s]*)?(?=\))')
_ROLE = re.compile(r':[a-z]+:`(?:[^`<]*<)?~?(?:[\w.]*\.)?(\w+)>?`')


def root_of(config: MkDocsConfig) -> Path:
    return Path(config.config_file_path).resolve().parent


def pages(root: Path) -> dict[str, str]:
    """Path in the repository to the page's source on the site, of every page."""
    found = {'README.md': 'index.md'}
    found |= {f'configs/{path.parent.name}/README.md': f'configs/{path.parent.name}.md'
              for path in sorted((root / 'configs').glob('*/README.md'))}  # fmt: skip
    found |= {f'docs/{path.relative_to(root / "docs")}': str(path.relative_to(root / 'docs'))
              for path in sorted((root / 'docs').rglob('*.md'))}  # fmt: skip
    return found


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in docs/, and the files that some page links to."""
    root = root_of(config)
    for path, uri in pages(root).items():
        if not path.startswith('docs/'):
            files.append(File.generated(config, uri, abs_src_path=str(root / path)))
        for target in _targets((root / path).read_text(), path, root):
            uri = _carried(target)
            if files.get_file_from_path(uri) is None:
                files.append(File.generated(config, uri, abs_src_path=str(root / target)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the repository's links to the site's, and write the reference."""
    root = root_of(config)
    known = pages(root)
    path = next(path for path, uri in known.items() if uri == page.file.src_uri)
    here = posixpath.dirname(page.file.src_uri)

    def turn(match: re.Match) -> str:
        target = _target(match[1], path, root)
        if target is None:
            return match[0]
        return posixpath.relpath(known.get(target) or _carried(target), here or '.') + (match[2] or '')

    markdown = _outside_code(markdown, lambda text: _LINK.sub(turn, text))
    return markdown + '\n' + reference(root / 'lckd_mm') if page.file.src_uri == 'reference.md' else markdown


def _target(link: str, path: str, root: Path) -> str | None:
    """The file in the repository that a page's link names; None for an address, or where there is none."""
    if ':' in link or link.startswith('/'):
        return None
    target = posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
    if (root / target / 'README.md').is_file():
        target += '/README.md'
    return target if not target.startswith('..') and (root / target).is_file() else None


def _targets(markdown: str, path: str, root: Path) -> Iterator[str]:
    """The files that a page links to and that are no pages."""
    found: list[str] = []

    def note(match: re.Match) -> str:
        target = _target(match[1], path, root)
        if target and target not in pages(root):
            found.append(target)
        return match[0]

    _outside_code(markdown, lambda text: _LINK.sub(note, text))
    yield from found


def _carried(target: str) -> str:
    """Where a file that is no page stands on the site."""
    return target.removeprefix('docs/') if target.startswith('docs/') else f'repository/{target}'


def _outside_code(markdown: str, change: Callable[[str], str]) -> str:
    parts = re.split(r'(^```.*?^```$)', markdown, flags=re.M | re.S)
    return ''.join(part if part.startswith('```') else change(part) for part in parts)


# ---- the reference


class Entry(NamedTuple):
    """A registered class, or a function that makes one."""

    registry: str
    name: str
    arguments: str
    doc: str
    source: str


#: Registry to heading, in the order of the page.
_HEADINGS = {
    'MODELS': 'Models, losses, connectors',
    'HOOKS': 'Hooks',
    'METRICS': 'Metrics',
    'DATASETS': 'Data sets',
    'OPTIM_WRAPPERS': 'Optimizer wrappers',
    'OPTIM_WRAPPER_CONSTRUCTORS': 'Constructors of optimizer wrappers',
    'MODEL_WRAPPERS': 'Model wrappers',
    'WEIGHT_INITIALIZERS': 'Initialisation',
}
#: Of the models, which are many: file or folder to heading.
_KINDS = {
    'losses': 'Losses',
    'connectors': 'Connectors',
    'losses/critics.py': 'Critics',
    'backbones': 'Backbones',
    'heads': 'Heads',
}


def entries(package: Path) -> list[Entry]:
    """All that has the decorator ``@REGISTRY.register_module()``, read from the source: nothing is imported."""
    found = []
    for file in sorted(package.rglob('*.py')):
        if '.mim' in file.parts:  # links to the configs and tools
            continue
        for node in ast.parse(file.read_text()).body:
            for decorator in getattr(node, 'decorator_list', ()):
                call = getattr(decorator, 'func', None)
                if not isinstance(call, ast.Attribute) or call.attr != 'register_module':
                    continue
                named = {keyword.arg: keyword.value for keyword in decorator.keywords}
                name = ast.literal_eval(named['name']) if 'name' in named else node.name
                source = file.relative_to(package).as_posix()
                doc = ast.get_docstring(node) or ''
                found.append(Entry(call.value.id, name, _arguments(node), doc, source))
    return found


def _arguments(node: ast.ClassDef | ast.FunctionDef) -> str:
    """The constructor's arguments as they are written; '…' where a class inherits its constructor."""
    if isinstance(node, ast.FunctionDef):
        return ast.unparse(node.args)
    inits = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == '__init__']
    if not inits:
        return '' if all(ast.unparse(base) == 'nn.Module' for base in node.bases) else '…'
    return ast.unparse(inits[0].args).removeprefix('self').removeprefix(', ')


def reference(package: Path) -> str:
    """The reference's markdown."""
    found = entries(package)
    groups: dict[str, list[Entry]] = {}
    for entry in found:
        title = _HEADINGS[entry.registry]
        if entry.registry == 'MODELS':
            title = _KINDS.get(entry.source) or _KINDS.get(entry.source.partition('/')[0], 'Distillers')
        groups.setdefault(title, []).append(entry)
    order = ['Distillers', *_KINDS.values(), *list(_HEADINGS.values())[1:]]
    lines = []
    for title in order:
        lines += [f'## {title}', '']
        for entry in groups[title]:
            first, _, rest = _plain(entry.doc).partition('\n\n')
            lines += [f'### {entry.name}', '', ' '.join(first.split()), '']
            lines += ['```python', f'lckd_mm.{entry.name}({entry.arguments})', '```', '']
            if rest.strip():
                lines += ['```text', rest.rstrip(), '```', '']
    return '\n'.join(lines)


def _plain(doc: str) -> str:
    """A docstring without the marks of reStructuredText that mean nothing here; its formulas stay as they are."""
    doc = re.sub(r'^\.\. math:: ', '', doc, flags=re.M).replace(':math:', '')
    return _ROLE.sub(r'\1', doc).replace('``', '`')
