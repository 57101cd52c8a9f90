"""Address: names a module of a model and one of its tensors."""

import re
from dataclasses import dataclass

_GRAMMAR = re.compile(
    r'(?P<path>\w+(?:\.\w+)*)(?:\[(?P<item>-?\d+)\])?(?:@(?P<port>in|preact))?(?:#(?P<call>-?\d+|\*))?'
)


@dataclass(frozen=True)
class Address:
    """One parsed address; :meth:`parse` raises ValueError on a malformed one."""

    path: str
    item: int | None = None
    port: str = 'out'
    call: int | str | None = None

    @classmethod
    def parse(cls, text: str) -> 'Address':
        match = _GRAMMAR.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise ValueError(
                f'tap address {text!r} is malformed: expected path[item]@in#call, such as '
                "'backbone.layer2@preact', 'backbone.layer2.1.relu@in#-1', 'neck[0]' or 'bbox_head.retina_cls#*'"
            )
        item, call = match['item'], match['call']
        if match['port'] == 'preact' and (item is not None or call is not None):
            raise ValueError(f'tap address {text!r} is malformed: @preact takes neither [item] nor #call')
        return cls(
            path=match['path'],
            item=None if item is None else int(item),
            port=match['port'] or 'out',
            call=call if call in (None, '*') else int(call),
        )

    def __str__(self) -> str:
        item = '' if self.item is None else f'[{self.item}]'
        port = '' if self.port == 'out' else f'@{self.port}'
        return f'{self.path}{item}{port}' + ('' if self.call is None else f'#{self.call}')
