"""A pickle is a program for a stack machine. This one knows the operations that checkpoints need."""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rmeeto.reader.values import (
    STORAGES,
    SUBCLASS,
    Array,
    DType,
    Inert,
    Name,
    Storage,
    Unreadable,
    find,
    key_of,
)

# (key, type or None for bytes, how many) -> the numbers of a storage
Load = Callable[[str, torch.dtype | None, int], Tensor]

# What a pickle may cost: a short one can make much of little, by naming one long list a million times. An operation
# costs 16, a call or container 80, and all of them the sizes of what they take: about the bytes of memory that they
# need. The pickle of Vim-B with averaged weights and optimizer costs some 5 million.
BUDGET = 32 * 2**20

_SIZED = {str, bytes, bytearray, list, tuple, dict, set, frozenset}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_SET": set, "EMPTY_TUPLE": tuple}
_PUSHED = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip


class Machine:
    """Runs one pickle.

    Args:
        file: to read from; left behind the pickle's end.
        load: gives the numbers of the storages that it names.
    """

    def __init__(self, file: Any, load: Load) -> None:
        self._file, self._load = file, load
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stacks below each mark
        self._memo: dict[int, Any] = {}
        self._left = BUDGET

    def run(self) -> Any:
        """The value of the pickle.

        Raises:
            Unreadable: it holds more than plain values, or would cost too much.
            Exception: nearly any, for one that is damaged.
        """
        for operation, argument, _ in pickletools.genops(self._file):
            self._pay(16 + len(argument) if type(argument) in _SIZED else 16)
            if operation.name == "STOP":
                break
            self._do(operation.name, argument)
        (value,) = self._stack
        return value

    def _do(self, name: str, argument: Any) -> None:
        stack, pop = self._stack, self._stack.pop
        match name:
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self._remember(argument)
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case _ if name in _PUSHED:
                stack.append(argument)
            case _ if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case _ if name in _EMPTY:
                self._pay(80)
                stack.append(_EMPTY[name]())
            case "MEMOIZE":
                self._remember(len(self._memo))
            case "MARK":
                self._below.append(stack)
                self._stack = []
            case "POP":
                pop()
            case "POP_MARK":
                self._since_mark()
            case "DUP":
                stack.append(stack[-1])
            case "TUPLE":
                self._push(tuple(self._since_mark()))
            case "LIST":
                self._push(self._since_mark())
            case "DICT":
                self._push(self._fill({}, self._since_mark()))
            case "FROZENSET":
                self._push(frozenset(map(key_of, self._since_mark())))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                items = [pop() for _ in range(count)]
                self._push(tuple(reversed(items)))
            case "APPEND":
                item = pop()
                _expect(stack[-1], list).append(item)
            case "APPENDS":
                items = self._since_mark()
                _expect(self._stack[-1], list).extend(items)
            case "ADDITEMS":
                items = self._since_mark()
                _expect(self._stack[-1], set).update(map(key_of, items))
            case "SETITEM":
                value, key = pop(), pop()
                self._fill(stack[-1], [key, value])
            case "SETITEMS":
                items = self._since_mark()
                self._fill(self._stack[-1], items)
            case "GLOBAL":
                self._push(find(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                member, module = _expect(pop(), str), _expect(pop(), str)
                self._push(find(module, member))
            case "REDUCE" | "NEWOBJ":
                arguments, function = pop(), pop()
                self._push(self._call(function, arguments))
            case "BUILD":
                self._build(pop())
            case "BINPERSID":
                self._push(self._storage(pop()))
            case "PROTO" | "FRAME":
                pass
            case _:
                raise Unreadable(f"its pickle uses the operation {name}, which no checkpoint needs")

    def _pay(self, cost: int) -> None:
        self._left -= cost
        if self._left < 0:
            raise Unreadable("its pickle makes too many objects for a checkpoint")

    def _push(self, value: Any) -> None:
        self._pay(80)
        self._stack.append(value)

    def _since_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._below.pop()
        return items

    def _remember(self, place: int) -> None:
        value = self._stack[-1]
        if isinstance(value, Array):
            value.places.append(place)
        self._memo[place] = value

    def _fill(self, target: Any, items: list[Any]) -> Any:
        values = target.values if isinstance(target, Inert) else _expect(target, dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            values[key_of(key)] = value
        return target

    def _call(self, function: Any, arguments: Any) -> Any:
        name = _expect(function, Name).name
        if name == SUBCLASS:
            inner, _, arguments, _ = _expect(arguments, tuple)
            function = _expect(inner, Name)
        for value in _expect(arguments, tuple):
            if type(value) in _SIZED:
                self._pay(len(value) * (1 if isinstance(value, str | bytes) else 8))
        return function.make(*arguments)

    def _build(self, state: Any) -> None:
        target = self._stack[-1]
        if isinstance(target, Array):
            self._stack[-1] = array = target.finish(state)
            self._pay(array.nbytes)
            for place in target.places:
                self._memo[place] = array
        elif isinstance(target, DType):
            target.finish(state)
        elif isinstance(target, Inert):
            state = state if type(state) is dict else {"state": state}
            self._pay(len(state))
            target.values.update(state)
        elif not isinstance(target, dict):  # of a dictionary, such as OrderedDict, the attributes are left out
            raise Unreadable(f"its pickle changes a {type(target).__name__}")

    def _storage(self, named: Any) -> Storage:
        kind, of, key, _, count, *view = _expect(named, tuple)
        if kind != "storage" or any(view) or _expect(of, Name).name not in STORAGES:
            raise Unreadable("it holds a storage of a kind that is not known")
        return Storage(self._load(_expect(key, str), STORAGES[of.name], _expect(count, int)))


def _expect(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise Unreadable(f"its pickle takes a {type(value).__name__} for a {kind.__name__}")
    return value
