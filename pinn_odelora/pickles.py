"""Pickles as data. A pickle is a program for a stack machine, whose dangerous instructions import and call; here they
write down what would be imported and called:

    GLOBAL m n      ->  Name("m.n")                      nothing is imported
    REDUCE f args   ->  Made("f", args)                  nothing is called
    BUILD state     ->  the ``Made`` before it keeps its state

so that reading a file runs no code of it, whatever it holds. Only plain values (numbers, text, lists, tuples, maps)
come back as themselves. What a recorded call means is left to the reader of the result.

The instructions are listed by ``pickletools`` (Python's own), which decodes their arguments and does nothing else.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}
"""Modules that Python 2 called otherwise, and with it every pickle of protocol 2, torch's among them."""


@dataclass(eq=False)
class Made:
    """What a pickle would make of a class or function, and is not made.

    Attributes:
        name: the dotted name of class or function; empty where the pickle calls something that it made itself.
        args: what it would be called with.
        state: what would be put into it.
        entries: what would be set by key.
        elements: what would be appended.
    """

    name: str
    args: tuple[Any, ...] = ()
    state: Any = None
    entries: dict[Any, Any] = field(default_factory=dict)
    elements: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class Name:
    """A class or function that a pickle names."""

    dotted: str


class UnreadableError(ValueError):
    """A pickle that is damaged, or holds an instruction that no checkpoint has."""


def read_pickle(file: BinaryIO, persistent: Callable[[Any], Any] | None = None) -> Any:
    """What one pickle holds, names and calls as ``Name`` and ``Made``; the file is left behind its end.

    Args:
        file: positioned at the start of the pickle.
        persistent: what takes the place of an object outside of the pickle, from its identifier, ``Made`` if absent.

    Raises:
        UnreadableError: if it is damaged.
    """
    machine = _Machine(persistent or (lambda key: Made("persistent", (key,))))
    try:
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == "STOP":
                return machine.stack.pop()
            machine.do(opcode.name, argument)
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        raise UnreadableError(str(error) or type(error).__name__) from error
    raise UnreadableError("the pickle has no end")


class _Machine:
    """The stack, the stacks below the open marks, and the memo."""

    def __init__(self, persistent: Callable[[Any], Any]) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.persistent = persistent

    def do(self, name: str, argument: Any) -> None:
        """One instruction."""
        if name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in _LITERALS:
            self.stack.append(argument)
        elif name in _MARKED:
            items = self._marked()  # first, since it takes up another stack
            self.stack.append(_MARKED[name](items))
        elif name in _TUPLES:
            self.stack[-_TUPLES[name] :] = [tuple(self.stack[-_TUPLES[name] :])]
        elif (instruction := getattr(self, f"_{name.lower()}", None)) is not None:
            instruction(argument)
        elif name not in ("PROTO", "FRAME"):
            raise UnreadableError(f"the instruction {name} has no meaning here")

    def _marked(self) -> list[Any]:
        """What was put on the stack since the last mark, which is closed."""
        items, self.stack = self.stack, self.below.pop()
        return items

    # The stack and the memo.

    def _mark(self, _: Any) -> None:
        self.below.append(self.stack)
        self.stack = []

    def _pop(self, _: Any) -> None:
        self.stack.pop() if self.stack else self._marked()

    def _pop_mark(self, _: Any) -> None:
        self._marked()

    def _dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def _put(self, place: Any) -> None:
        self.memo[len(self.memo) if place is None else int(place)] = self.stack[-1]

    def _get(self, place: Any) -> None:
        self.stack.append(self.memo[int(place)])

    _memoize = _binput = _long_binput = _put
    _binget = _long_binget = _get

    # Containers.

    def _append(self, _: Any) -> None:
        self._extend([self.stack.pop()])

    def _appends(self, _: Any) -> None:
        self._extend(self._marked())

    _additems = _appends

    def _extend(self, items: list[Any]) -> None:
        owner = self.stack[-1]
        (owner.elements if isinstance(owner, Made) else owner if isinstance(owner, list) else []).extend(items)

    def _setitem(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def _setitems(self, _: Any) -> None:
        self._set(self._marked())

    def _set(self, items: list[Any]) -> None:
        owner = self.stack[-1]
        (owner.entries if isinstance(owner, Made) else owner).update(_mapping(items))

    # Names and calls.

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.stack.append(Name(f"{RENAMED.get(module, module)}.{name}"))

    def _stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self._global(f"{module} {name}")

    def _reduce(self, _: Any) -> None:
        args, callee = self.stack.pop(), self.stack.pop()
        self.stack.append(_made(callee, args))

    _newobj = _reduce

    def _newobj_ex(self, _: Any) -> None:
        self.stack.pop()  # arguments by name
        self._reduce(None)

    def _inst(self, argument: str) -> None:
        args = self._marked()
        self._global(argument)
        self.stack.append(_made(self.stack.pop(), tuple(args)))

    def _obj(self, _: Any) -> None:
        callee, *args = self._marked()
        self.stack.append(_made(callee, tuple(args)))

    def _build(self, _: Any) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Made):
            self.stack[-1].state = state

    def _persid(self, key: Any) -> None:
        self.stack.append(self.persistent(key))

    def _binpersid(self, _: Any) -> None:
        self.stack.append(self.persistent(self.stack.pop()))


def _made(callee: Any, args: Any) -> Made:
    return Made(callee.dotted if isinstance(callee, Name) else "", args if isinstance(args, tuple) else (args,))


def _mapping(items: list[Any]) -> dict[Any, Any]:
    """Keys and values in turn; keys that are not plain are left out, since to hash a nested one can take for ever."""
    pairs = zip(items[::2], items[1::2], strict=True)
    return {key: value for key, value in pairs if key is None or isinstance(key, str | bytes | int | float)}


def _set_of(items: Iterable[Any]) -> Made:
    return Made("builtins.set", (list(items),))


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": lambda: _set_of(()),
}
_NUMBERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT")
_TEXTS = ("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
_BYTES = ("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8")
_LITERALS = frozenset((*_NUMBERS, *_TEXTS, *_BYTES))
_MARKED: dict[str, Callable[[list[Any]], Any]] = {
    "LIST": list,
    "TUPLE": tuple,
    "DICT": _mapping,
    "FROZENSET": _set_of,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
