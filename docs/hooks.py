"""What mkdocs calls while it builds the site (mkdocs.yml): pages that are not in docs/, and links that leave it.

Pages are written once, where a reader of the repository looks for them: README.md is the site's first page, and each
README of configs/ is one. Their links, and those of docs/, are relative in the repository; here they are turned to the
site's pages. A linked file that is no page (a config, the licence) is carried along. What a link names and nobody has
stays as it is, so that mkdocs reports it, and fails under --strict.
"""

import posixpath
import re
from collections.abc import Callable, Iterator
from functools import cache
from html import unescape
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_LINK = re.compile(r'(?<=\]\()([^)\s#]+)(#[^)\s]*)?(?=\))')
_NAME = re.compile(r'(?<!">)<code>lckd_mm\.([A-Z]\w+)</code>')
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.S)


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
    """Turn the repository's links to the site's."""
    root = root_of(config)
    known = pages(root)
    path = next(path for path, uri in known.items() if uri == page.file.src_uri)
    here = posixpath.dirname(page.file.src_uri)

    def turn(match: re.Match) -> str:
        target = _target(match[1], path, root)
        if target is None:
            return match[0]
        return posixpath.relpath(known.get(target) or _carried(target), here or '.') + (match[2] or '')

    return _outside_code(markdown, lambda text: _LINK.sub(turn, text))


def on_page_content(html: str, config: MkDocsConfig, **_: Any) -> str:
    """Turn formulas to MathML, which a browser shows without a script, and names of ours to links to the reference."""
    names = _reference(root_of(config))

    def link(match: re.Match) -> str:
        path = names.get(match[1])
        return f'<autoref identifier="{path}" optional>{match[0]}</autoref>' if path else match[0]

    return _NAME.sub(link, _FORMULA.sub(lambda match: _mathml(unescape(match[2]), match[1] == 'div'), html))


def _mathml(latex: str, block: bool) -> str:
    # Bars as letters: browsers space those that are operators, and shift them where they have an index.
    latex = re.sub(r'(?:\\[Bb]ig[lr])?\\[lr]Vert', '‖', latex)
    parts = [convert(part, display='block') for part in latex.split(r'\qquad')] if block else [convert(latex)]
    mathml = ''.join(parts).replace('<mo stretchy="false">&#x0007C;</mo>', '<mi>|</mi>')
    return f'<div class="formula">{mathml}</div>' if block else mathml


@cache
def _reference(root: Path) -> dict[str, str]:
    """Name to path of what the reference has."""
    pages = ''.join(page.read_text() for page in (root / 'docs/reference').glob('*.md'))
    return {path.rpartition('.')[2]: path for path in re.findall(r'^::: ([\w.]+)$', pages, re.M)}


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
