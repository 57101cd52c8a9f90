"""Options of the command line that change a config."""

import ast
import re
from typing import Any

from mmengine.config import DictAction


class Options(DictAction):
    """mmengine's action for ``--cfg-options KEY=VALUE``; a dict, or a list with dicts, is read as Python writes it."""

    @staticmethod
    def _parse_iterable(val: str) -> Any:
        if re.match(r'\s*([\[({]|dict\()', val) and re.search(r'\{|\bdict\(', val):
            try:
                return ast.literal_eval(_Literals().visit(ast.parse(val.strip(), mode='eval')))
            except (SyntaxError, ValueError):
                raise ValueError(
                    f"--cfg-options: {val!r} is no value of Python; write dicts as in [{{'type': 'lckd_mm.ConvBN'}}] "
                    "or [dict(type='lckd_mm.ConvBN')]"
                ) from None
        return DictAction._parse_iterable(val)


class _Literals(ast.NodeTransformer):
    """Writes ``dict(a=1)`` as ``{'a': 1}``."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if not isinstance(node.func, ast.Name) or node.func.id != 'dict' or node.args:
            return node
        keys = [ast.Constant(keyword.arg) if keyword.arg else None for keyword in node.keywords]
        return ast.Dict(keys, [self.visit(keyword.value) for keyword in node.keywords])
