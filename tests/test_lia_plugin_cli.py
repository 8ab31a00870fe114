"""The command line's one place for errors: a line on stderr and an exit code, and nothing heavy for --help."""

import configparser
import errno
import os
import pathlib
import re
import subprocess
import sys

import click
import pytest
import torch

from dnnlib.util import UserError
from lia_plugin import cli
from lia_plugin.commands import edit


def _command(error: BaseException | None = None, result: int | None = None) -> click.Command:
    @click.command()
    @click.option('--count', type=int, required=True)
    def command(count: int) -> int | None:
        if error is not None:
            raise error
        return result
    return command


@pytest.mark.parametrize('error, code, line', [
    (UserError('faces.zip: truncated;\n download it again'), 2, 'Error: faces.zip: truncated; download it again\n'),
    (click.ClickException('--batch: must be positive'), 2, 'Error: --batch: must be positive\n'),
    (KeyboardInterrupt(), 130, 'Stopped.\n'),
])
def test_known_errors_are_one_line(error: BaseException, code: int, line: str,
                                   capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(_command(error), ['--count', '1']) == code
    captured = capsys.readouterr()
    assert captured.err.lstrip('\n') == line and captured.out == ''


@pytest.mark.parametrize('args, named', [
    (['--count', 'many'], '--count'), ([], '--count'), (['--count', '1', '--cuont=2'], '--cuont'),
    (['--count', '1', 'stray'], 'stray'),
])
def test_wrong_usage_is_one_line(args: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(_command(), args) == 2
    err = capsys.readouterr().err
    assert err.count('\n') == 1 and named in err


@pytest.mark.parametrize('module', ['torch', 'PIL'])
def test_a_python_without_what_is_required_is_one_line(module: str) -> None:
    code = (f'import sys; sys.modules[{module!r}] = None; from lia_plugin import cli\n'
            f'sys.exit(cli.run(cli.load_command("calc_metrics"), ["--network=no.pkl"]))')
    ended = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr == (f'Error: {sys.executable}: this Python has no {module}; use the one that the project is '
                            f'installed in, or `{sys.executable} -m pip install -e .` beside setup.cfg\n')


def test_what_is_required_is_what_setup_cfg_says() -> None:
    setup = configparser.ConfigParser()
    setup.read(pathlib.Path(__file__).parents[1] / 'setup.cfg')
    names = {re.match('[a-z]+', line)[0] for line in setup['options']['install_requires'].split('\n') if line}
    done_by_others = {'click', 'ninja', 'pyspng'}
    assert names - done_by_others == {'pillow' if name == 'PIL' else name for name in cli.REQUIRED}
    assert done_by_others < names


def test_a_missing_module_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(ModuleNotFoundError):
        cli.run(_command(ModuleNotFoundError('no', name='torch_utils.nothing')), ['--count', '1'])


def test_a_defect_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        cli.run(_command(ZeroDivisionError()), ['--count', '1'])


@pytest.mark.parametrize('result, code', [(None, 0), (1, 1)])
def test_the_exit_code_is_the_commands_result(result: int | None, code: int) -> None:
    assert cli.run(_command(result=result), ['--count', '1']) == code


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(['trian']) == 2
    assert 'trian' in capsys.readouterr().err


@pytest.mark.parametrize('name', [*cli.COMMANDS, *(f'edit_{name}' for name in edit.SUBCOMMANDS)])
def test_help_is_instant(name: str) -> None:
    """No command imports torch before it works."""
    code = (f'import sys; from lia_plugin.cli import load_command, run; run(load_command({name!r}), ["--help"]); '
            'assert "torch" not in sys.modules, "torch is imported by --help"')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'Usage' in done.stdout


def test_group_help_lists_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in cli.COMMANDS)


def test_edit_alone_lists_what_can_be_done(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(['edit']) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in edit.SUBCOMMANDS)


@pytest.mark.parametrize('error, line', [
    (FileExistsError(errno.EEXIST, 'File exists', 'out'), 'Error: out: File exists'),
    (OSError(errno.ENOSPC, 'No space left on device'), 'Error: files: No space left on device'),
])
def test_what_a_machine_refuses_is_one_line(error: OSError, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    @click.command()
    def write() -> None:
        raise error

    assert cli.run(write, []) == 2
    assert capsys.readouterr().err.strip() == line


def test_an_operating_systems_error_that_is_ours_keeps_its_traceback() -> None:
    @click.command()
    def leak() -> None:
        raise OSError(errno.EBADF, 'Bad file descriptor')

    with pytest.raises(OSError):
        cli.run(leak, [])


def test_too_little_memory_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    from lia_plugin import memory  # noqa: F401  As every command does that makes tensors.

    @click.command()
    def fill() -> None:
        torch.empty([2**60], dtype=torch.uint8)

    assert cli.run(fill, []) == 2
    assert capsys.readouterr().err.startswith('Error: not enough memory for this (')
    with pytest.raises(RuntimeError, match='something else'):
        cli.run(_command(RuntimeError('something else')), ['--count', '1'])


def test_names_that_are_not_utf8_can_be_told() -> None:
    """On both streams, in this process and in those that it starts, where a locale has them strict."""
    tell = 'print(chr(0xdce9), flush=True); print(chr(0xdce9), file=sys.stderr)'
    code = f"import subprocess, sys; sys.stdout.reconfigure(errors='strict'); from lia_plugin import cli; " \
           f"cli.tell_any_name(); {tell}; subprocess.run([sys.executable, '-c', 'import sys; {tell}'], check=True)"
    env = {name: value for name, value in os.environ.items() if name != 'PYTHONIOENCODING'}
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, check=True, env=env)
    assert done.stdout.split() == done.stderr.split() == [rb'\udce9'] * 2
