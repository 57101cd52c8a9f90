"""Commands: ``lckd_mm train CONFIG …`` or ``python -m lckd_mm train CONFIG …`` run the tool of that name."""

import ast
import runpy
import sys
from pathlib import Path

_TOOLS = Path(__file__).parent / '.mim' / 'tools'


def commands() -> dict[str, Path]:
    """Command to the file that it runs: the tools, and those that analyse."""
    files = [*sorted(_TOOLS.glob('*.py')), *sorted((_TOOLS / 'analysis').glob('*.py'))]
    own = {file.stem: file for file in files if "__name__ == '__main__'" in file.read_text()}
    return own | dict(doctor=Path(__file__).with_name('doctor.py'))


def main() -> None:
    """Run the command that the first argument names; without one, list them."""
    found, named = commands(), sys.argv[1:2]
    if not named or named[0] not in found:
        for name, file in found.items():
            about = ast.get_docstring(ast.parse(file.read_text())) or ''
            print(f'lckd_mm {name.ljust(20)} {about.splitlines()[0].partition(": python ")[0]}')
        if named and named[0] not in ('-h', '--help'):
            sys.exit(f'error: there is no command {named[0]!r}')
        return
    del sys.argv[1]
    if named[0] == 'doctor':
        runpy.run_module('lckd_mm.doctor', run_name='__main__', alter_sys=True)
    else:
        # As `python FILE` does, so that a tool finds the modules that lie beside it.
        sys.path.insert(0, str(found[named[0]].parent))
        runpy.run_path(str(found[named[0]]), run_name='__main__')


if __name__ == '__main__':
    main()
