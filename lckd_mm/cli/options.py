"""Options of the command line that change a config."""

import ast
from typing import Any

from mmengine.config import DictAction


class Options(DictAction):
    """mmengine's action for ``--cfg-options KEY=VALUE``; a dict, or a list with dicts, is read as Python writes it."""

    @staticmethod
    def _parse_iterable(val: str) -> Any:
        if '{' in val and val.lstrip()[0] in '[({':
            try:
                return ast.literal_eval(val)
            except (SyntaxError, ValueError):
                raise ValueError(
                    f"--cfg-options: {val!r} is no value of Python; write dicts as in [{{'type': 'lckd_mm.ConvBN'}}]"
                ) from None
        return DictAction._parse_iterable(val)
