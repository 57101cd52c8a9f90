"""What mkdocstrings calls for each object while it reads the package (mkdocs.yml): docstrings as it takes them.

Ours are made for an editor: marks of reStructuredText, and sections with several entries on a line. Here the marks
become Markdown, arguments and errors sections in Google's style with one entry a line, other sections text.
"""

import re
from collections.abc import Iterator
from typing import Any

import griffe

_SECTION = re.compile(r'^((?:Args|Deviation|Error|Example|Raises|Returns|Shapes|Source)[\w ,]*):(?= |$)', re.M)
_ROLE = re.compile(r':[a-z]+:`~?([\w.]+)`')
_DIRECTIVE = re.compile(r'^\.\. math::(.*(?:\n +.*)*)', re.M)


class Docstrings(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value, obj)


def markdown(text: str, obj: griffe.Object) -> str:
    head, *sections = _SECTION.split(text)
    parts = [_inline(head, obj).strip()]
    for title, body in zip(sections[::2], sections[1::2]):
        if title == 'Example':
            parts.append(f'**Example**\n\n```python\n{_dedented(body)}\n```')
            continue
        body = ' '.join(_inline(body, obj).split())
        if title == 'Args' and (rows := list(_arguments(body, obj))):
            parts.append(_google('Args', rows))
        elif title == 'Raises' and (rows := _entries(body, r'\w+(?:Error|Exception)')):
            parts.append(_google('Raises', rows))
        elif title == 'Shapes' and (rows := _entries(body, r'inputs|data_samples|\w*student\w*|\w*teacher\w*|scores')):
            parts.append('**Shapes**\n\n' + '\n'.join(f'* `{names}`: {rest}' for names, rest in rows))
        else:
            parts.append(f'**{title}:** {body}'.replace('. Deviation: ', '.\n\n**Deviation:** '))
    return '\n\n'.join(parts)


def _inline(text: str, obj: griffe.Object) -> str:
    def link(match: re.Match) -> str:
        path, name = match[1], match[1].rpartition('.')[2]
        if '.' not in path:
            try:
                path = obj.resolve(path)
            except griffe.NameResolutionError:
                return f'`{name}`'
        return f'<autoref identifier="{path}" optional><code>{name}</code></autoref>'

    text = _DIRECTIVE.sub(lambda match: f'$$\n{" ".join(match[1].split())}\n$$\n', text)
    text = re.sub(r':math:`([^`]*)`', r'$\1$', text)
    return _ROLE.sub(link, text).replace('``', '`')


def _entries(body: str, name: str) -> list[tuple[str, str]]:
    """The entries ``name: text`` or ``name, name: text`` of a section; a line may hold several."""
    begins = list(re.finditer(rf'(?:^|(?<=[.;)] ))((?:{name})(?:, (?:{name}))*): ', body))
    if not begins or begins[0].start():
        return []
    ends = [match.start() for match in begins[1:]] + [len(body)]
    return [(match[1], body[match.end() : end].strip()) for match, end in zip(begins, ends)]


def _arguments(body: str, obj: griffe.Object) -> Iterator[tuple[str, str]]:
    parameters = [re.escape(parameter.name.lstrip('*')) for parameter in getattr(obj, 'parameters', ())]
    for names, text in _entries(body, '|'.join(parameters) or r'\w+'):
        first, *others = names.split(', ')
        yield first, text
        yield from ((name, f'see `{first}`.') for name in others)


def _google(title: str, rows: list[tuple[str, str]]) -> str:
    return '\n'.join([f'{title}:', *(f'    {names}: {text}' for names, text in rows)])


def _dedented(body: str) -> str:
    lines = body.strip('\n').rstrip().split('\n')
    margin = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
    return '\n'.join(line[margin:] for line in lines)
