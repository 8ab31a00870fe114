"""A line between the processes of a run, beside the collectives: who dies, is noticed at once and by name.

A collective whose partner is gone waits for half an hour (NCCL), or fails with whatever the network says (gloo). So
each process keeps one TCP connection to the first one. The kernel closes it the moment a process dies, and both ends
send a sign of life now and then for the case that a whole machine goes. What has happened travels along it to all.

Messages are lines of JSON. Nothing that comes out of a connection is run, and who can't name the run's token is sent
away.
"""

import json
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

BEAT = 5.0  # Seconds between signs of life …
SILENCE = 60.0  # … and without any, until the other end counts as dead.
POLL = 0.5
CONNECT_TIMEOUT = 60.0


class Failure(NamedTuple):
    """Why a run stops. `kind`: 'user' (somebody's input), 'lost' (a process failed or died) or 'stop' (Ctrl-C)."""

    kind: str
    text: str


class _Peer:
    """One end of a connection: whole lines in, whole lines out."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.buffer = b''
        self.heard = time.monotonic()
        self.rank = -1
        self.name = 'a stranger'
        self.left = False  # It has said goodbye; that its connection closes is no news.

    def send(self, **message: Any) -> None:
        try:
            self.connection.sendall(json.dumps(message).encode() + b'\n')
        except OSError:
            pass  # Reading from it will tell.

    def read(self) -> list[dict[str, Any]] | None:
        """The messages that have arrived; None at the end of the connection."""
        try:
            data = self.connection.recv(65536)
        except OSError:
            return None
        if not data:
            return None
        self.heard = time.monotonic()
        *lines, self.buffer = (self.buffer + data).split(b'\n')
        return [json.loads(line) for line in lines]


class Lifeline:
    """The connections of this process, watched by a thread. The first process has one to each of the others.

    Args:
        rank: Number of this process.
        world_size: How many there are.
        on_failure: Called once, in the watching thread, when a failure becomes known that this process didn't report.
    """

    def __init__(self, rank: int, world_size: int, on_failure: Callable[[Failure], None]) -> None:
        self.rank, self.world_size, self.on_failure = rank, world_size, on_failure
        self.failure: Failure | None = None
        self.peers: list[_Peer] = []
        self.done = 0  # What the others have finished, over all of them.
        self._changed = threading.Condition()
        self._closing = False
        self._selector = selectors.DefaultSelector()
        self._listener: socket.socket | None = None
        self._token = ''
        # torchrun's agent; ends with it, for nothing else would ever end this process. Others may start and leave one.
        self._agent = os.getppid() if 'TORCHELASTIC_RUN_ID' in os.environ else None

    # -----------------------------------------------------------------------------------------------------------------
    # Connecting

    def listen(self, address: str, token: str) -> int:
        """The first process's part: opens a port at an address of its own, gives its number."""
        try:
            self._listener = socket.create_server((address, 0), backlog=self.world_size)
        except OSError:  # Known to the others by an address that isn't this machine's own: behind a translation.
            self._listener = socket.create_server(('', 0), backlog=self.world_size)
        self._token = token
        self._selector.register(self._listener, selectors.EVENT_READ, None)
        self._start()
        return int(self._listener.getsockname()[1])

    def connect(self, address: str, port: int, token: str) -> None:
        """The part of the others."""
        peer = _Peer(socket.create_connection((address, port), timeout=CONNECT_TIMEOUT))
        peer.connection.settimeout(None)
        peer.rank, peer.name = 0, f'rank 0 on {address}'
        peer.send(token=token, rank=self.rank, host=socket.gethostname(), pid=os.getpid())
        self.peers.append(peer)
        self._selector.register(peer.connection, selectors.EVENT_READ, peer)
        self._start()

    def wait_joined(self, seconds: float) -> int:
        """Waits, in the first process, until all are connected; gives how many are not by then."""
        with self._changed:
            self._changed.wait_for(lambda: len(self.peers) == self.world_size - 1, timeout=seconds)
            return self.world_size - 1 - len(self.peers)

    def _start(self) -> None:
        if hasattr(os, 'register_at_fork'):  # A data loader's workers would keep the connections open.
            os.register_at_fork(after_in_child=self._close_all)
        threading.Thread(target=self._watch, name='lifeline', daemon=True).start()

    def _close_all(self) -> None:
        for thing in (self._listener, *(peer.connection for peer in self.peers)):
            if thing is not None:
                thing.close()

    # -----------------------------------------------------------------------------------------------------------------
    # What processes tell each other

    def report(self, failure: Failure) -> None:
        """Tells everybody that this process has failed, unless something is known to have failed before."""
        with self._changed:
            if self.failure is not None:
                return
            self.failure = failure
            self._changed.notify_all()
        self._tell(failure)

    def wait_failure(self, seconds: float) -> Failure | None:
        """What has failed, as soon as it is known; None if nothing is after that time."""
        with self._changed:
            self._changed.wait_for(lambda: self.failure is not None, timeout=seconds)
            return self.failure

    def finished(self) -> None:
        """Tells the first process that a piece of work is done here."""
        for peer in list(self.peers):
            peer.send(done=1)

    def wait_finished(self, count: int) -> Failure | None:
        """Waits, in the first process, until the others have finished that much in all; gives a failure instead."""
        with self._changed:
            self._changed.wait_for(lambda: self.failure is not None or self.done >= count)
            return self.failure

    def leave(self, seconds: float = 10.0) -> None:
        """The end of all work. The first process waits for the others to leave, for it may hold what they need."""
        if self.rank == 0:
            with self._changed:
                self._changed.wait_for(
                    lambda: self.failure is not None or all(peer.left for peer in self.peers), timeout=seconds)
        self._closing = True
        for peer in list(self.peers):
            peer.send(bye=1)

    # -----------------------------------------------------------------------------------------------------------------
    # The thread

    def _watch(self) -> None:
        beaten = 0.0
        while not self._closing:
            for key, _events in self._selector.select(POLL):
                if key.data is None:
                    self._accept()
                else:
                    self._hear(key.data)
            if self._agent is not None and os.getppid() != self._agent and self.failure is None and not self._closing:
                failure = Failure('lost', f'torchrun, which started rank {self.rank} on {socket.gethostname()}, died')
                self.report(failure)
                self.on_failure(failure)
            now = time.monotonic()
            if now - beaten >= BEAT:
                beaten = now
                for peer in list(self.peers):
                    peer.send(beat=1)
                    if now - peer.heard > SILENCE and not peer.left:
                        self._drop(peer)
                        self._learn(Failure('lost', f'{peer.name} has given no sign of life for {SILENCE:.0f} seconds: '
                                                    'its machine or the network is gone'))  # fmt: skip

    def _accept(self) -> None:
        assert self._listener is not None, 'only a listener has no data'
        connection, _address = self._listener.accept()
        peer = _Peer(connection)
        self._selector.register(connection, selectors.EVENT_READ, peer)

    def _hear(self, peer: _Peer) -> None:
        try:
            messages = peer.read()
            for message in messages or ():
                self._take(peer, message)
        except (ValueError, KeyError, TypeError):  # A stranger's noise.
            messages = None
        if messages is None:
            self._drop(peer)
            if peer.rank >= 0 and not peer.left and not self._closing:
                self._learn(Failure('lost', f'{peer.name} died without a word: killed (kill -9, or out of memory) '
                                            'or crashed'))  # fmt: skip

    def _take(self, peer: _Peer, message: dict[str, Any]) -> None:
        if peer.rank < 0:
            if message['token'] != self._token:
                raise ValueError('not of this run')
            peer.rank = int(message['rank'])
            peer.name = f'rank {peer.rank} on {message["host"]} (process {int(message["pid"])})'
            with self._changed:
                self.peers.append(peer)
                self._changed.notify_all()
            if self.failure is not None:
                peer.send(failed=list(self.failure))
        elif 'failed' in message:
            self._learn(Failure(*map(str, message['failed'])))
        elif 'done' in message or 'bye' in message:
            with self._changed:
                self.done += 'done' in message
                peer.left |= 'bye' in message
                self._changed.notify_all()

    def _drop(self, peer: _Peer) -> None:
        self._selector.unregister(peer.connection)
        peer.connection.close()
        if peer in self.peers:
            self.peers.remove(peer)

    def _learn(self, failure: Failure) -> None:
        with self._changed:
            if self.failure is not None:
                return
            self.failure = failure
            self._changed.notify_all()
        if self.rank == 0:
            self._tell(failure)
        self.on_failure(failure)

    def _tell(self, failure: Failure) -> None:
        for peer in list(self.peers):
            peer.send(failed=list(failure))
