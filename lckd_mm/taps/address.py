"""Address: names a module of a model and one of its tensors."""

import re
from dataclasses import dataclass

_GRAMMAR = re.compile(
    r'(?P<path>\w+(?:\.\w+)*)(?P<items>(?:\[-?\d+\])*)(?:@(?P<port>in|preact))?(?:#(?P<call>-?\d+|\*))?'
)


@dataclass(frozen=True)
class Address:
    """One parsed address; :meth:`parse` raises ValueError on a malformed one."""

    path: str
    #: Which item of the tuple that the module gives, of the tuple in it, and so on.
    items: tuple[int, ...] = ()
    port: str = 'out'
    call: int | str | None = None

    @classmethod
    def parse(cls, text: str) -> 'Address':
        match = _GRAMMAR.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise ValueError(
                f'tap address {text!r} is malformed: expected path[item]@in#call, such as '
                "'backbone.layer2@preact', 'backbone.layer2.1.relu@in#-1', 'neck[0]', 'decode_head.pixel_decoder[1][0]'"
                " or 'bbox_head.retina_cls#*'"
            )
        items, call = tuple(map(int, re.findall(r'-?\d+', match['items']))), match['call']
        if match['port'] == 'preact' and (items or call is not None):
            raise ValueError(f'tap address {text!r} is malformed: @preact takes neither [item] nor #call')
        return cls(
            path=match['path'],
            items=items,
            port=match['port'] or 'out',
            call=call if call in (None, '*') else int(call),
        )

    def __str__(self) -> str:
        items = ''.join(f'[{item}]' for item in self.items)
        port = '' if self.port == 'out' else f'@{self.port}'
        return f'{self.path}{items}{port}' + ('' if self.call is None else f'#{self.call}')
