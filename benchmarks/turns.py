"""Code bases that are measured in turns: each in a process of its own, or all in this one.

Processes: same threads, settings and kind of allocator, and the one that waits is stopped, so that its spinning threads
take no core. One process: also the same heap and the same threads, but what one side leaves in them meets the other.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import click
from common import FOLDER, PROJECT, environment, stop_on_sigterm

Rounds = list[dict[str, list[float]]]  # Per round: work → seconds, one a side.
OURS, THEIRS, PLAIN = 'this project', 'original', 'kernels off'


class Side:
    """A worker process: one code base."""

    def __init__(self, name: str, config: dict[str, Any], env: dict[str, str], script: str = 'worker.py') -> None:
        self.name = name
        self.process = subprocess.Popen([sys.executable, os.path.join(FOLDER, script), json.dumps(config)], env=env,
                                        text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, *command: Any) -> Any:
        """Runs a command of the script's worker and gives its result; the process rests before and after."""
        assert self.process.stdin is not None and self.process.stdout is not None, 'both are pipes'
        self._signal('SIGCONT')
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(command) + '\n')
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise click.ClickException(f'{self.name}: the process ended, exit code {self.process.wait()}')
        self._signal('SIGSTOP')
        answer = json.loads(line)
        if 'error' in answer:
            raise click.ClickException(f'{self.name}: {answer["error"]}')
        return answer['result']

    def close(self) -> None:
        self.process.kill()
        self.process.wait()

    def _signal(self, name: str) -> None:
        if hasattr(signal, name):
            self.process.send_signal(getattr(signal, name))


class LocalSide:
    """A code base in this process, with modules of its own. Its worker is the same."""

    def __init__(self, name: str, config: dict[str, Any]) -> None:
        from namespaces import CodeBase
        from worker import Worker, folders

        self.name = name
        self.code = CodeBase(folders(config['root']))
        with self.code.active():
            self.worker = Worker(**config)

    def ask(self, *command: Any) -> Any:
        with self.code.active():
            try:
                return getattr(self.worker, command[0])(*command[1:])
            except (RuntimeError, ImportError) as error:
                raise click.ClickException(f'{self.name}: {type(error).__name__}: {error}') from error

    def close(self) -> None:
        pass


@contextlib.contextmanager
def start(config: dict[str, Any], host: str | None, *, keep_memory: bool = False, plain: bool = False,
          one_process: bool = False, script: str = 'worker.py') -> Iterator[list[Any]]:
    """The sides: this project, `host` if there is one, this project without kernels if `plain`. None survives.

    config: arguments of the script's Worker but for root and weights. This project's weights go to all.
    """
    stop_on_sigterm()
    wanted: list[tuple[str, str, bool]] = [(OURS, PROJECT, True)]
    wanted += [(THEIRS, host, True)] if host else []
    wanted += [(PLAIN, PROJECT, False)] if plain else []
    sides: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:
        config = dict(config, weights=os.path.join(folder, 'weights.pt'))
        try:
            for name, root, kernels in wanted:
                own = dict(config, root=root, first=not sides)
                env = environment(keep_memory, kernels)
                sides.append(LocalSide(name, own) if one_process else Side(name, own, env, script))
                sides[-1].ask('facts')  # Waits until it is built: the weights come from the first.
            yield sides
        finally:
            for side in sides:
                side.close()


def measure(sides: list[Any], names: list[str], rounds: int, seconds: float) -> Rounds:
    """All work in turns, `rounds` times or until no further round may fit into `seconds`; one round at least."""
    results: Rounds = []
    began = time.monotonic()
    while len(results) < rounds:
        # Who comes first changes, or the first would always meet the colder machine.
        order = sides if len(results) % 2 == 0 else sides[::-1]
        taken = {name: {id(side): side.ask('measure', name) for side in order} for name in names}
        results.append({name: [times[id(side)] for side in sides] for name, times in taken.items()})
        passed = time.monotonic() - began
        print(f'round {len(results)}, {passed:.0f} s', file=sys.stderr)
        if passed * (1 + 1 / len(results)) > seconds:
            break
    return results
