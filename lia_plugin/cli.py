"""The command line: one group of all commands, and one place where errors become a line and an exit code.

Exit codes: 0 done, 1 a batch that went on past bad items, 2 the user's input can't be used, 3 one of several
processes was lost, 130 stopped by Ctrl-C.
"""

import errno
import importlib
import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from lia_plugin import __version__

# Listed by hand, so that the list itself imports nothing; a command is imported when it is asked for.
COMMANDS = {
    'train': 'Train LIA (both stages) or a plain StyleGAN2.',
    'invert': 'Put real images into the latent space: reconstructions, y and z.',
    'edit': 'Edit images: interpolate, manipulate, mix, vary, learn directions, paste back, measure.',
    'generate': 'Draw pictures of random seeds or of stored latents.',
    'video': 'Film a walk through the latent space that ends where it began.',
    'audit': 'Look at a data set through a network: odd images, duplicates, and a list of what to keep.',
    'calc_metrics': 'Evaluate a network.',
    'compare': 'Compare LIA with other encoders, BiGAN/ALI and optimisation, as the paper does.',
    'figures': "Draw the paper's figures for a network and a data set.",
    'attach': 'Give an existing StyleGAN network its φ, without training stage 1.',
    'export': 'Turn a network pickle into a folder without pickles, and back.',
    'dataset_tool': 'Make a data set of a folder, an archive or a well-known format.',
}

EXIT_BAD_INPUT = 2
EXIT_LOST = 3
EXIT_INTERRUPTED = 130  # The shell's convention: 128 + SIGINT.

# Who has all of these was started as one of several.
TORCHRUN = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT')

# What a machine, not the program, does to a file: a missing permission, a full disk, a file where a folder should be.
SURROUNDINGS = (errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EEXIST, errno.ENOTDIR,
                errno.EISDIR, errno.ENAMETOOLONG)

# What setup.cfg requires, as it is imported. (Of ninja and pyspng others do the work.)
REQUIRED = ('numpy', 'PIL', 'psutil', 'requests', 'safetensors', 'scipy', 'torch', 'tqdm')


def load_command(name: str) -> click.Command:
    """The click command of `lia_plugin.commands.<name>`; `-` and `_` are the same in `name`."""
    name = name.replace('-', '_')
    return getattr(importlib.import_module(f'lia_plugin.commands.{name}'), name)


class LazyGroup(click.Group):
    """A group whose commands are imported one by one, when they are run or asked for help.

    `commands_table` tells what each is for; command NAME is found in `lia_plugin.commands.<module_prefix>NAME`.
    """

    def __init__(
        self,
        *args: Any,
        commands_table: Mapping[str, str] | None = None,  # None = COMMANDS.
        module_prefix: str = '',
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.table = COMMANDS if commands_table is None else commands_table
        self.module_prefix = module_prefix

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        name = cmd_name.replace('-', '_')
        return load_command(self.module_prefix + name) if name in self.table else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section('Commands'):
            formatter.write_dl(list(self.table.items()))


@click.group(cls=LazyGroup, invoke_without_command=True)
@click.version_option(__version__, prog_name='lia')
@click.pass_context
def lia(ctx: click.Context) -> None:
    """LIA: a GAN whose latent space takes real images. `lia COMMAND --help` tells each command's options."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def _loaded_classes(name: str, *modules: str) -> tuple[type, ...]:
    # Looked up among what is loaded: an error's class comes from an imported module, and `--help` stays fast.
    found = (getattr(sys.modules.get(module), name, None) for module in modules)
    return tuple(c for c in found if c is not None)


def _lack_of_memory(error: Exception) -> str | None:
    """What to say of an error that is one."""
    memory = sys.modules.get('lia_plugin.memory')
    if memory is None:  # Where it isn't loaded, no tensors are either.
        return 'not enough memory for this (MemoryError)' if isinstance(error, MemoryError) else None
    return memory.lack(error) if memory.is_out_of_memory(error) else None


def _report(message: str) -> int:
    print('Error: ' + ' '.join(message.split()), file=sys.stderr)
    return EXIT_BAD_INPUT


def run(command: click.Command, args: Sequence[str] | None = None, prog_name: str | None = None) -> int:
    """Run `command` and give the exit code; `args` None = the process's own arguments.

    User errors and click's become one line on stderr and 2, Ctrl-C becomes 130, a process of several that was lost 3.
    Any other exception is a defect and keeps its traceback. Of the processes that torchrun has started the first one
    runs the command, the others help it.
    """
    def run_here() -> Any:
        return command.main(list(args) if args is not None else None, prog_name=prog_name, standalone_mode=False)

    if not all(name in os.environ for name in TORCHRUN):
        return _exit_code(run_here)

    def run_together() -> int:
        from lia_plugin import host

        return host.together(lambda: _exit_code(run_here))

    return _exit_code(run_together)


def _exit_code(work: Callable[[], Any]) -> int:
    """Does it, tells of its errors in one line, and gives the exit code."""
    try:
        result = work()
    except (click.Abort, KeyboardInterrupt):
        print('Stopped.', file=sys.stderr)
        return EXIT_INTERRUPTED
    except click.ClickException as error:
        hint = ' (--help lists the options)' if isinstance(error, click.NoSuchOption) else ''
        return _report(error.format_message() + hint)
    except OSError as error:
        if error.errno not in SURROUNDINGS:
            raise
        return _report(f'{error.filename or "files"}: {os.strerror(error.errno)}')
    except ModuleNotFoundError as error:
        package = (error.name or '').split('.')[0]
        if package not in REQUIRED:
            raise
        return _report(f'{sys.executable}: this Python has no {package}; use the one that the project is installed '
                       f'in, or `{sys.executable} -m pip install -e .` beside setup.cfg')
    except Exception as error:
        if isinstance(error, _loaded_classes('LostProcess', 'torch_utils.distributed')):
            print(getattr(error, 'details', ''), file=sys.stderr)
            _report(str(error))
            return EXIT_LOST
        if (lack := _lack_of_memory(error)) is not None:
            return _report(lack)
        if not isinstance(error, _loaded_classes('UserError', 'lia_plugin.host', 'dnnlib.util')):
            raise
        return _report(str(error))
    return result if isinstance(result, int) else 0


def tell_any_name() -> None:
    """Lets this process and those that it starts print names of files that are not UTF-8, with escapes in them."""
    os.environ.setdefault('PYTHONIOENCODING', ':backslashreplace')
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == 'strict':
            stream.reconfigure(errors='backslashreplace')


def main(args: Sequence[str] | None = None, prog_name: str = 'lia') -> int:
    """`lia COMMAND …` and `python -m lia_plugin COMMAND …`."""
    tell_any_name()
    return run(lia, args, prog_name=prog_name)


def main_command(name: str) -> None:
    """Run one command as a script of its own (`python train.py …`) and leave the process with its exit code."""
    tell_any_name()
    sys.exit(run(load_command(name), prog_name=f'{name}.py'))
