"""A pickle machine that can only build plain data and call what it is given by name.

It runs the opcodes that `pickletools` decodes. Nothing is imported, no attribute is followed, and no object of Python's
own takes part in a call; a function on the stack can't be looked into or changed. Work and memory are bounded by the
size of the file.
"""

import dataclasses
import pickletools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

import dnnlib

MAX_OPCODES = 2_000_000     # A snapshot of 1024² networks has some 300,000.
MAX_BITS = 8192     # Of an integer: longer ones can make any arithmetic last for minutes.
MAX_INT_KEY = (1 << 61) - 2     # Beyond it, integers can be chosen so that they all have the same hash.
PERSISTENT_ID = ''  # The name of what loads persistent ids: no file can spell it.
_PLAIN_KEYS = (str, int, float, bool, bytes, type(None))    # Nested keys could overflow the stack when hashed.


class Refused(Exception):
    """The file does what no pickler writes, by damage or by intent. The message says what."""


class ForbiddenName(Refused):
    """The file needs a class or function that is not among the permitted ones."""


@dataclasses.dataclass(eq=False)
class Record:
    """An object as the file describes it: never constructed, only looked at."""

    class_name: str
    module_name: str | None = None
    source: str = ''
    state: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(eq=False)
class Array:
    """A NumPy array on its way: created empty, filled by its state. `value` is None in between."""

    value: np.ndarray | None = None


@dataclasses.dataclass(eq=False)
class DType:
    """A NumPy dtype on its way: a kind and size, and the byte order that its state brings."""

    code: str
    order: str = '='

    def to_numpy(self) -> np.dtype:
        return np.dtype(self.order + self.code)


@dataclasses.dataclass(frozen=True)
class Global:
    """A permitted name. It can be called through the machine, and nothing else can be done to it."""

    name: str
    call: Callable[..., Any]


class Source:
    """The file's bytes. Long reads are views, so that weights aren't copied on the way; none goes past the end."""

    def __init__(self, data: bytes | memoryview) -> None:
        self.view = memoryview(data)
        self.position = 0

    def read(self, size: int) -> bytes | memoryview:
        part = self.view[self.position:self.position + size]
        self.position += len(part)
        return part if len(part) > 4096 else bytes(part)

    def readline(self) -> bytes:
        head = bytes(self.view[self.position:self.position + 4096])     # No name or number is longer.
        line = head[:head.find(b'\n') + 1]
        self.position += len(line)
        return line

    def tell(self) -> int:
        return self.position


# What an instruction of one or two bytes can make, if more than a small object's 64 bytes.
_OBJECT_BYTES = {
    'EMPTY_SET': 220, 'EMPTY_DICT': 250, 'DICT': 250, 'EMPTY_LIST': 120, 'LIST': 120, 'SETITEM': 150, 'APPEND': 80,
    'REDUCE': 1000, 'NEWOBJ': 1000, 'MEMOIZE': 100, 'PUT': 100, 'BINPUT': 100, 'LONG_BINPUT': 100,
}


class Budget:
    """What one file may cost, over all the streams inside it."""

    def __init__(self, num_bytes: int) -> None:
        self.bytes_left = 2 * num_bytes + (32 << 20)
        self.opcodes_left = MAX_OPCODES

    def spend(self, num_bytes: int) -> None:
        self.bytes_left -= num_bytes
        if self.bytes_left < 0:
            raise Refused('unpacks to much more than its own size')

    def count(self, opcode_name: str) -> None:
        self.opcodes_left -= 1
        if self.opcodes_left < 0:
            raise Refused(f'has more than {MAX_OPCODES:,} instructions')
        self.spend(_OBJECT_BYTES.get(opcode_name, 64))


class Machine:
    """The stack, the memo and the marks of one pickle stream."""

    def __init__(self, source: Source, names: dict[str, Global], budget: Budget) -> None:
        self.source, self.names, self.budget = source, names, budget
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        for opcode, arg, _ in pickletools.genops(self.source):  # type: ignore[arg-type]
            self.budget.count(opcode.name)
            if type(arg) is int and arg.bit_length() > MAX_BITS:
                raise Refused(f'has a number of more than {MAX_BITS:,} bits')
            if opcode.name == 'STOP':
                return self.stack.pop()
            if opcode.name in _PUSH:
                self.stack.append(_PUSH[opcode.name](arg))
            elif opcode.name in _RUN:
                _RUN[opcode.name](self, arg)
            else:
                raise Refused(f'uses the instruction {opcode.name}')
        raise EOFError('no end')

    def pop_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def pop_many(self, count: int) -> tuple[Any, ...]:
        if len(self.stack) < count:
            raise IndexError('stack is too short')
        items = tuple(self.stack[-count:])
        del self.stack[-count:]
        return items

    def look_up(self, name: str) -> None:
        if name not in self.names:
            raise ForbiddenName(f'asks for {ascii(name[:100].replace(" ", "."))}')
        self.stack.append(self.names[name])

    def look_up_pair(self, _arg: Any) -> None:
        module, name = self.pop_many(2)
        if type(module) is not str or type(name) is not str or len(module) > 200 or len(name) > 200:
            raise Refused('asks for something that is no name, or a very long one')
        self.look_up(f'{module} {name}')

    def call(self, _arg: Any = None) -> None:
        target, args = self.pop_many(2)
        if type(target) is not Global or type(args) is not tuple or len(args) > 16:
            raise Refused('calls something that is no function')
        self.stack.append(target.call(*args))

    def persistent(self, _arg: Any = None) -> None:
        """An object outside the stream; what loads it, if anything may, stands among the names."""
        key = self.stack.pop()
        if PERSISTENT_ID not in self.names or type(key) is not tuple or len(key) > 16:
            raise Refused('refers to something outside the file')
        self.stack.append(self.names[PERSISTENT_ID].call(*key))

    def build(self, _arg: Any = None) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if type(target) is Record and type(state) is dict:
            target.state = state
        elif type(target) is DType and type(state) is tuple and state[1] in ('<', '>', '|', '='):
            target.order = state[1]
        elif type(target) is Array and type(state) is tuple:
            _version, shape, dtype, fortran, content = state
            self.budget.spend(len(content))
            target.value = to_array(content, dtype, shape, 'F' if fortran else 'C')
        elif type(target) not in (OrderedDict, dnnlib.EasyDict):    # Their attributes, if any, mean nothing here.
            raise Refused(f'sets the state of a {type(target).__name__}')

    def set_items(self, items: Any) -> None:
        target = self.stack[-1]
        if type(target) not in (dict, OrderedDict, dnnlib.EasyDict) or len(items) % 2:
            raise Refused(f'sets items of a {type(target).__name__}')
        target.update(_to_dict(items))

    def extend(self, items: Any) -> None:
        if type(self.stack[-1]) is not list:
            raise Refused(f'appends to a {type(self.stack[-1]).__name__}')
        self.stack[-1].extend(items)

    def add_items(self, items: Any) -> None:
        if type(self.stack[-1]) is not set:
            raise Refused(f'adds to a {type(self.stack[-1]).__name__}')
        self.stack[-1].update(map(plain_key, items))

    def memoize(self, index: int | None) -> None:
        self.memo[plain_key(len(self.memo) if index is None else int(index))] = self.stack[-1]

    def recall(self, index: int) -> None:
        self.stack.append(self.memo[int(index)])


def plain_key(key: Any) -> Any:
    if type(key) not in _PLAIN_KEYS:
        raise Refused(f'has a {type(key).__name__} as a key')
    if type(key) is int and not -MAX_INT_KEY <= key <= MAX_INT_KEY:
        raise Refused('has a very large number as a key')
    return key


def _to_dict(items: Any) -> dict[Any, Any]:
    return {plain_key(key): value for key, value in zip(items[::2], items[1::2])}


def to_array(content: Any, dtype: DType, shape: Any, order: Any) -> np.ndarray:
    return np.frombuffer(content, dtype=dtype.to_numpy()).reshape(shape, order=order).copy()


# Opcodes that push a value, and opcodes that work on the machine; any other is refused.
_PUSH: dict[str, Callable[[Any], Any]] = {
    'NONE': lambda _: None, 'NEWTRUE': lambda _: True, 'NEWFALSE': lambda _: False,
    'EMPTY_LIST': lambda _: [], 'EMPTY_TUPLE': lambda _: (), 'EMPTY_DICT': lambda _: {}, 'EMPTY_SET': lambda _: set(),
    **dict.fromkeys(
        'INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE '
        'BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8'.split(),
        lambda arg: arg),
}
_RUN: dict[str, Callable[[Machine, Any], Any]] = {
    'PROTO': lambda vm, arg: None,
    'FRAME': lambda vm, arg: None,
    'MARK': lambda vm, arg: vm.marks.append(len(vm.stack)),
    'POP': lambda vm, arg: vm.stack.pop(),
    'POP_MARK': lambda vm, arg: vm.pop_mark(),
    'DUP': lambda vm, arg: vm.stack.append(vm.stack[-1]),
    'TUPLE': lambda vm, arg: vm.stack.append(tuple(vm.pop_mark())),
    'TUPLE1': lambda vm, arg: vm.stack.append(vm.pop_many(1)),
    'TUPLE2': lambda vm, arg: vm.stack.append(vm.pop_many(2)),
    'TUPLE3': lambda vm, arg: vm.stack.append(vm.pop_many(3)),
    'LIST': lambda vm, arg: vm.stack.append(vm.pop_mark()),
    'DICT': lambda vm, arg: vm.stack.append(_to_dict(vm.pop_mark())),
    'APPEND': lambda vm, arg: vm.extend(vm.pop_many(1)),
    'APPENDS': lambda vm, arg: vm.extend(vm.pop_mark()),
    'SETITEM': lambda vm, arg: vm.set_items(vm.pop_many(2)),
    'SETITEMS': lambda vm, arg: vm.set_items(vm.pop_mark()),
    'ADDITEMS': lambda vm, arg: vm.add_items(vm.pop_mark()),
    **dict.fromkeys(['GET', 'BINGET', 'LONG_BINGET'], Machine.recall),
    **dict.fromkeys(['PUT', 'BINPUT', 'LONG_BINPUT', 'MEMOIZE'], Machine.memoize),
    'GLOBAL': Machine.look_up,
    'STACK_GLOBAL': Machine.look_up_pair,
    **dict.fromkeys(['REDUCE', 'NEWOBJ'], Machine.call),
    'BUILD': Machine.build,
    'BINPERSID': Machine.persistent,
}
