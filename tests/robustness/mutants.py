"""Breaks of source files: every place where a sign, a bound, an index or an operation can be exchanged for a wrong one.

A mutant is one change of the text of one line. What is left as it is: messages, annotations, docstrings, and what only
raises, since nothing of the mathematics changes with them.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

BINARY = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "/"),
}
COMPARED = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
}
EXTREMES = {
    "min": "max",
    "max": "min",
    "minimum": "maximum",
    "maximum": "minimum",
    "amin": "amax",
    "amax": "amin",
    "argmin": "argmax",
    "argmax": "argmin",
    "clamp_min": "clamp_max",
    "clamp_max": "clamp_min",
}
TRANSPOSED = ("mT", "T", "mH", "H")
SILENT = (ast.Raise, ast.JoinedStr, ast.Import, ast.ImportFrom, ast.Assert)
MESSAGES = ("say", "warn", "debug", "info", "InputError", "RefusedValueError", "NonFiniteError")


@dataclass(frozen=True)
class Mutant:
    """One change: the text from ``start`` to ``end`` of a line, in bytes, becomes ``new``.

    Attributes:
        file: its path from the root.
        line: counted from 1.
        kind: of the change, in words.
        function: qualified name of the function that it is in, empty outside of all.
        before, after: the line, without the space around it.
    """

    file: str
    line: int
    start: int
    end: int
    new: str
    kind: str
    function: str
    before: str
    after: str

    @property
    def name(self) -> str:
        """The same wherever lines above have moved."""
        return f"{self.file} | {self.before} | {self.after}"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def broken(self, source: str) -> str:
        """The source with the change in it."""
        lines = source.splitlines(keepends=True)
        content = lines[self.line - 1].encode()
        lines[self.line - 1] = (content[: self.start] + self.new.encode() + content[self.end :]).decode()
        return "".join(lines)


def mutants(root: Path, file: str) -> list[Mutant]:
    """All of a file, sorted by place; some may be no Python (``is_python``)."""
    source = (root / file).read_text(encoding="utf-8")
    lines, found = source.splitlines(), {}
    for kind, function, line, start, end, new in _changes(ast.parse(source), source.splitlines()):
        content = lines[line - 1].encode()
        after = (content[:start] + new.encode() + content[end:]).decode()
        made = Mutant(file, line, start, end, new, kind, function, lines[line - 1].strip(), after.strip())
        if made.before != made.after:
            found[made.line, made.start, made.end, made.new] = made
    return [found[key] for key in sorted(found)]


def is_python(mutant: Mutant, root: Path) -> bool:
    """Whether what it makes of its file can be compiled."""
    try:
        compile(mutant.broken((root / mutant.file).read_text(encoding="utf-8")), "mutant", "exec", dont_inherit=True)
    except SyntaxError:
        return False
    return True


Change = tuple[str, str, int, int, int, str]
"""Kind, function, line, start, end, new text."""


def _changes(tree: ast.Module, lines: list[str]) -> Iterator[Change]:
    for node, function in _nodes(tree, ""):
        for kind, line, start, end, new in _of_node(node, lines):
            yield kind, function, line, start, end, new


def _nodes(node: ast.AST, function: str) -> Iterator[tuple[ast.AST, str]]:
    """The nodes below one in which something can be changed, each with the function that it is in."""
    for child in ast.iter_child_nodes(node):
        if _is_silent(child) or child in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            continue
        inner = function
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            inner = _within(function, child.name, node)
        elif isinstance(child, ast.Lambda):
            inner = f"{function}.<locals>.<lambda>" if function else "<lambda>"
        yield child, inner
        yield from _nodes(child, inner)


def _within(function: str, name: str, parent: ast.AST) -> str:
    if not function:
        return name
    return f"{function}.{name}" if isinstance(parent, ast.ClassDef) else f"{function}.<locals>.{name}"


def _is_silent(node: ast.AST) -> bool:
    if isinstance(node, SILENT) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
        return True
    called = node.func if isinstance(node, ast.Call) else None
    return getattr(called, "attr", getattr(called, "id", None)) in MESSAGES


def _of_node(node: ast.AST, lines: list[str]) -> Iterator[tuple[str, int, int, int, str]]:
    match node:
        case ast.BinOp(op=op) if type(op) in BINARY and not (_is_text(node.left) or _is_text(node.right)):
            yield from _between(node.left, node.right, *BINARY[type(op)], "operation", lines)
        case ast.BinOp(op=ast.MatMult()):
            yield from _exchanged(node.left, node.right, "order of factors", lines)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            if node.lineno == operand.lineno:
                yield "sign", node.lineno, node.col_offset, operand.col_offset, ""
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            if node.lineno == operand.lineno:
                yield "negation", node.lineno, node.col_offset, operand.col_offset, ""
        case ast.Compare():
            for a, op, b in zip([node.left, *node.comparators], node.ops, node.comparators, strict=False):
                if type(op) in COMPARED:
                    yield from _between(a, b, *COMPARED[type(op)], "comparison", lines)
        case ast.BoolOp():
            words = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
            for a, b in pairwise(node.values):
                yield from _between(a, b, *words, "logic", lines)
        case ast.Subscript():
            yield from _shifted(node.slice)
        case ast.Constant(value=value) if type(value) in (int, float):
            yield from _other_numbers(node)
        case ast.Attribute(attr=attr) if attr in TRANSPOSED and node.end_lineno == node.value.end_lineno:
            yield "transposition", node.end_lineno, node.value.end_col_offset, node.end_col_offset, ""
        case ast.Call():
            yield from _of_call(node, lines)


def _of_call(node: ast.Call, lines: list[str]) -> Iterator[tuple[str, int, int, int, str]]:
    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
    if name in EXTREMES:
        end = node.func.end_col_offset
        yield "extreme", node.func.end_lineno, end - len(name), end, EXTREMES[name]
    if len(node.args) > 1 and not any(isinstance(x, ast.Starred) for x in node.args[:2]):
        yield from _exchanged(node.args[0], node.args[1], "order of arguments", lines)


def _between(
    a: ast.expr, b: ast.expr, old: str, new: str, kind: str, lines: list[str]
) -> Iterator[tuple[str, int, int, int, str]]:
    """The operator between two operands, where all of that is on one line."""
    if a.end_lineno != b.lineno:
        return
    gap = lines[b.lineno - 1].encode()[a.end_col_offset : b.col_offset]
    if gap.count(old.encode()) == 1:
        at = a.end_col_offset + gap.index(old.encode())
        yield kind, b.lineno, at, at + len(old), new


def _exchanged(a: ast.expr, b: ast.expr, kind: str, lines: list[str]) -> Iterator[tuple[str, int, int, int, str]]:
    if len({a.lineno, a.end_lineno, b.lineno, b.end_lineno}) > 1:
        return
    text = lines[a.lineno - 1].encode()
    first, gap, second = (
        text[i:j].decode() for i, j in pairwise((a.col_offset, a.end_col_offset, b.col_offset, b.end_col_offset))
    )
    yield kind, a.lineno, a.col_offset, b.end_col_offset, second + gap + first


def _shifted(node: ast.expr) -> Iterator[tuple[str, int, int, int, str]]:
    """Indices and ends of slices that are numbers."""
    for inner in ast.walk(node):
        negative = isinstance(inner, ast.UnaryOp) and isinstance(inner.op, ast.USub)
        constant = inner.operand if negative else inner
        if isinstance(constant, ast.Constant) and type(constant.value) is int:
            value = -constant.value if negative else constant.value
            yield "index", inner.lineno, inner.col_offset, inner.end_col_offset, str(value + 1)


def _other_numbers(node: ast.Constant) -> Iterator[tuple[str, int, int, int, str]]:
    value = node.value
    others = [value + 1, value + 2, value - 1] if isinstance(value, int) or abs(value) >= 1 else [2 * value, value + 1]
    for other in others:
        yield "constant", node.lineno, node.col_offset, node.end_col_offset, repr(other)


def _is_text(node: ast.expr) -> bool:
    """Strings, lists and tuples are joined by +, and nothing else makes sense."""
    return isinstance(node, ast.JoinedStr | ast.List | ast.Tuple | ast.ListComp) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
