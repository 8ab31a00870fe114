"""One command in many processes that torchrun (or anything else that sets its variables) has started, on many machines.

The first process leads: it alone reads the command line, plans, speaks and writes. The others follow: they wait until
it hands them a function, do their share of it, and wait again. So whatever a command decides is decided once.

    RANK, WORLD_SIZE                   which process this is, and of how many
    LOCAL_RANK, LOCAL_WORLD_SIZE       the same on this machine: the number of its GPU
    MASTER_ADDR, MASTER_PORT           where they meet

A process that fails or dies stops all of them within seconds; see `lifeline`.
"""

import contextlib
import os
import pickle
import secrets
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, NamedTuple, NoReturn

import torch

from dnnlib.util import UserError

from . import distributed
from .distributed import LostProcess
from .lifeline import Failure, Lifeline

VARIABLES = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT')
EXIT_USER, EXIT_LOST, EXIT_STOPPED = 2, 3, 130
GRACE = 5.0  # Seconds in which a process may come out of its work by itself, once another has failed.
JOIN_TIMEOUT = 600.0
# Ctrl-C, and what schedulers send ahead of a time limit or a preemption.
SIGNALS = tuple(getattr(signal, name) for name in ('SIGINT', 'SIGTERM', 'SIGUSR1') if hasattr(signal, name))


class Place(NamedTuple):
    """Where in a run a process stands."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int

    @property
    def several_machines(self) -> bool:
        return self.local_world_size < self.world_size


def place() -> Place | None:
    """This process's place by its environment; None if nothing like torchrun has started it.

    Raises UserError for numbers that aren't any.
    """
    if any(name not in os.environ for name in VARIABLES):
        return None
    try:
        rank, world_size, local_rank = (int(os.environ[name]) for name in VARIABLES[:3])
        local_size = int(os.environ.get('LOCAL_WORLD_SIZE', 0))
    except ValueError as error:
        raise UserError(f'torchrun: {", ".join(VARIABLES[:3])} must be numbers ({error})') from None
    if not 0 <= rank < world_size:
        raise UserError(f'torchrun: RANK is {rank}, of a WORLD_SIZE of {world_size}')
    return Place(rank, world_size, local_rank, local_size or world_size)


class Team:
    """All processes of one command. One object in each; see `run`."""

    def __init__(self, where: Place) -> None:
        self.place = where
        self.dispatched = 0
        self.grouped = False
        self._out = threading.Event()  # Set once this process has come out of work that somebody else's end broke.
        with _ends_at_once():
            self.store: Any = next(torch.distributed.rendezvous('env://', timeout=timedelta(seconds=JOIN_TIMEOUT)))[0]
        self.lifeline = Lifeline(where.rank, where.world_size, self._hear)
        address = os.environ['MASTER_ADDR']
        if where.rank == 0:
            token = secrets.token_hex(16)
            port = self.lifeline.listen(address, token)
            self.store.set('lifeline', f'{port} {token}')
            missing = self.lifeline.wait_joined(JOIN_TIMEOUT)
            if missing:
                raise UserError(f'torchrun: {missing} of {where.world_size} processes did not come')
        else:
            with _ends_at_once():
                port_text, token = self.store.get('lifeline').decode().split()
            self.lifeline.connect(address, int(port_text), token)

    # -----------------------------------------------------------------------------------------------------------------
    # The first process

    def dispatch(self, fn: Callable[..., Any], args: tuple[Any, ...], device: torch.device | str) -> Any:
        """Runs `fn(rank, world_size, *args)` in all processes, as one group on `device`; gives the first one's result.

        Raises what the first process raised; UserError, LostProcess or KeyboardInterrupt for what stopped another.
        """
        self.store.set(f'work/{self.dispatched}', pickle.dumps((fn, args, str(device))))
        result = self._work(fn, args, device)
        failure = self.lifeline.wait_finished(self.dispatched * (self.place.world_size - 1))
        if failure is not None:
            raise self._as_error(failure)
        return result

    def dismiss(self) -> None:
        """Sends the others home."""
        self.store.set(f'work/{self.dispatched}', b'')
        self.lifeline.leave()
        self._leave_group()

    # -----------------------------------------------------------------------------------------------------------------
    # The others

    def follow(self) -> int:
        """Does what the first process hands out until it sends this one home; gives the exit code."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # Between pieces of work the first process decides what they mean.
        while True:
            work = self._next()
            if not work:
                break
            fn, args, device = pickle.loads(work)  # The first process's own, by the store that torchrun gave us.
            self._work(fn, args, device)
            self.lifeline.finished()
        self.lifeline.leave()
        self._leave_group()
        return 0

    def _next(self) -> bytes:
        key = f'work/{self.dispatched}'
        while True:
            try:
                self.store.wait([key], timedelta(minutes=5))
                return bytes(self.store.get(key))
            except RuntimeError:  # Nothing yet: the first process may plan, download or write for as long as it needs.
                failure = self.lifeline.wait_failure(1.0)
                if failure is not None:
                    raise self._as_error(failure) from None

    # -----------------------------------------------------------------------------------------------------------------
    # All of them

    def _work(self, fn: Callable[..., Any], args: tuple[Any, ...], device: torch.device | str) -> Any:
        rank, world_size = self.place.rank, self.place.world_size
        self.dispatched += 1
        handlers = {number: signal.signal(number, _stop) for number in SIGNALS}
        try:
            own = distributed.own_device(device, rank)
            if not self.grouped:
                store = torch.distributed.PrefixStore('group', self.store)
                distributed.init(rank, world_size, own, store=store)
                self.grouped = True
            return fn(rank, world_size, *args)
        except BaseException as error:
            raise self._blame(error) from None
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _blame(self, error: BaseException) -> BaseException:
        """What to raise for an error here: its cause may be another process's."""
        if isinstance(error, UserError):
            text = str(error)
            if self.place.several_machines:
                text = f'{text} (on {socket.gethostname()})'
            self.lifeline.report(Failure('user', text))
        elif isinstance(error, (KeyboardInterrupt, SystemExit)):
            self.lifeline.wait_failure(1.0)  # torchrun stops the others of a process that died by a signal.
            self.lifeline.report(Failure('stop', ''))
        else:
            if type(error) in (RuntimeError, getattr(torch.distributed, 'DistNetworkError', RuntimeError),
                               getattr(torch.distributed, 'DistBackendError', RuntimeError)):  # fmt: skip
                self.lifeline.wait_failure(2.0)  # A collective fails when its partner has; that one tells, or its end.
            if self.lifeline.failure is None:
                traceback.print_exception(error)
            what = f'{type(error).__name__}: {" ".join(str(error).split())}'[:300]
            self.lifeline.report(Failure('lost', f'{self._name()} failed: {what}'))
        assert self.lifeline.failure is not None, 'just reported'
        return self._as_error(self.lifeline.failure)

    def _name(self) -> str:
        return f'rank {self.place.rank} on {socket.gethostname()} (process {os.getpid()})'

    def _as_error(self, failure: Failure) -> BaseException:
        self._out.set()
        if failure.kind == 'user':
            return UserError(failure.text)
        if failure.kind == 'stop':
            return KeyboardInterrupt()
        return LostProcess(f'{failure.text}; all {self.place.world_size} processes stop')

    def _hear(self, failure: Failure) -> None:
        """In the watching thread: another process has failed. This one may be waiting for it, where nothing wakes it.
        """
        def leave() -> None:
            time.sleep(GRACE)
            if self._out.is_set():  # It says what there is to say, and tidies up.
                time.sleep(6 * GRACE)
            elif self._speaks() and failure.kind != 'stop':
                print(f'Error: {failure.text}', file=sys.stderr, flush=True)
            leave_at_once(exit_code(failure))

        threading.Thread(target=leave, name='lifeline-end', daemon=True).start()

    def _speaks(self) -> bool:
        """Whether this process tells of a failure: the first one, or the second if that one is gone."""
        failure = self.lifeline.failure
        first_is_gone = failure is not None and failure.text.startswith('rank 0 ') and failure.kind == 'lost'
        return self.place.rank == (1 if first_is_gone else 0)

    def _leave_group(self) -> None:
        if self.grouped:
            torch.distributed.destroy_process_group()
            self.grouped = False


@contextlib.contextmanager
def _ends_at_once() -> Iterator[None]:
    """A signal ends the process, as there is nothing to tidy up: Python's handlers would wait for the store's answer,
    and that for processes that the same signal may have ended."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt


def exit_code(failure: Failure) -> int:
    return {'user': EXIT_USER, 'stop': EXIT_STOPPED}.get(failure.kind, EXIT_LOST)


def leave_at_once(code: int) -> NoReturn:
    """Ends this process without tidying up: groups wait for partners that may be gone."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


_team: Team | None = None  # There is one command in a process, and what starts processes must find its team.


def team() -> Team | None:
    """The team of this process; None outside of `run`."""
    return _team


def failing() -> bool:
    """Whether another process of the team is known to have failed: signals then are torchrun's, that ends the rest."""
    return _team is not None and _team.lifeline.failure is not None


def run(command: Callable[[], int]) -> int:
    """Runs `command` in the first process while the others follow; gives the exit code.

    `command` tells of its errors itself. It reaches the others by `team().dispatch`.
    """
    global _team
    where = place()
    if where is None or where.world_size == 1:
        return command()
    _team = Team(where)
    if where.rank == 0:
        for number in SIGNALS:
            signal.signal(number, _stop)
        code = command()
        if _team.lifeline.failure is not None:
            leave_at_once(code or EXIT_LOST)
        _team.dismiss()
        return code
    try:
        return _team.follow()
    except BaseException:  # Whatever it is has been told where it happened; the first process says it in one line.
        failure = _team.lifeline.failure or Failure('stop', '')
        if _team._speaks():
            print(f'Error: {_team._as_error(failure)}', file=sys.stderr, flush=True)
        time.sleep(0.5)  # What this process has said must arrive before its end does.
        leave_at_once(exit_code(failure))
