"""`lckd_mm COMMAND` and `python -m lckd_mm COMMAND` run the tools."""

import sys

import pytest
from run_helpers import ROOT

from lckd_mm.__main__ import commands, main


def test_every_tool_is_a_command():
    tools = {p.stem for p in [*ROOT.glob('tools/*.py'), *ROOT.glob('tools/analysis/*.py')]}
    assert set(commands()) == (tools - {'smoothness'}) | {'doctor'}  # which only others import


def test_without_a_command_they_are_listed(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['lckd_mm'])
    main()
    out = capsys.readouterr().out
    assert [line.split()[1] for line in out.splitlines()] == list(commands())
    assert all(len(line.split()) > 4 for line in out.splitlines())
    monkeypatch.setattr(sys, 'argv', ['lckd_mm', 'trian'])
    with pytest.raises(SystemExit, match="there is no command 'trian'"):
        main()


@pytest.mark.parametrize(
    ('command', 'says'), [('train', '--teacher NAME'), ('list_taps', '--logits'), ('doctor', 'usage')]
)
def test_a_command_passes_its_arguments_on(command, says, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['lckd_mm', command, '--help'])
    monkeypatch.setattr(sys, 'path', sys.path.copy())
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0 and says in capsys.readouterr().out
