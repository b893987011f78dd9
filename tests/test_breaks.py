"""Breaks made on purpose: what is exchanged for what, how they are drawn, and which tests they are shown to."""

from collections import Counter

import pytest

from tests.robustness import breaks
from tests.robustness.mutants import is_python, mutants
from tests.robustness.reach import Record

SOURCE = '''"""A docstring with - 1 < 2."""
LIMIT = 3


def area(a: float, b: float = 2.5) -> float:
    """Not 1 - 2."""
    if not a < b:
        raise ValueError(f"{a - b} is 1")
    return max(a, b) * LIMIT - x[-1] @ y.mT


class Ball:
    size: int = 4

    def volume(self, r):
        say("1 + 1", r - 1)
        return [lambda s: -s * r for k in r if k and r]
'''
EXPECTED = {
    ("constant", "LIMIT = 4", ""),
    ("constant", "def area(a: float, b: float = 3.5) -> float:", "area"),
    ("negation", "if a < b:", "area"),
    ("comparison", "if not a <= b:", "area"),
    ("extreme", "return min(a, b) * LIMIT - x[-1] @ y.mT", "area"),
    ("order of arguments", "return max(b, a) * LIMIT - x[-1] @ y.mT", "area"),
    ("operation", "return max(a, b) / LIMIT - x[-1] @ y.mT", "area"),
    ("operation", "return max(a, b) * LIMIT + x[-1] @ y.mT", "area"),
    ("index", "return max(a, b) * LIMIT - x[0] @ y.mT", "area"),
    ("sign", "return max(a, b) * LIMIT - x[1] @ y.mT", "area"),
    ("order of factors", "return max(a, b) * LIMIT - y.mT @ x[-1]", "area"),
    ("transposition", "return max(a, b) * LIMIT - x[-1] @ y", "area"),
    ("constant", "size: int = 5", "Ball"),
    ("sign", "return [lambda s: s * r for k in r if k and r]", "Ball.volume.<locals>.<lambda>"),
    ("operation", "return [lambda s: -s / r for k in r if k and r]", "Ball.volume.<locals>.<lambda>"),
    ("logic", "return [lambda s: -s * r for k in r if k or r]", "Ball.volume"),
}


@pytest.fixture
def found(tmp_path):
    (tmp_path / "some.py").write_text(SOURCE)
    return mutants(tmp_path, "some.py")


def test_signs_bounds_indices_and_orders_are_exchanged_and_nothing_that_is_only_said(found, tmp_path):
    made = {(m.kind, m.after, m.function) for m in found}
    assert made >= EXPECTED, EXPECTED - made
    before = {m.before for m in found}
    assert not [line for line in before if "say(" in line or "raise" in line or '"' in line]
    for m in found:
        lines = zip(SOURCE.splitlines(), m.broken(SOURCE).splitlines(), strict=True)
        assert [(a.strip(), b.strip()) for a, b in lines if a != b] == [(m.before, m.after)]
        assert is_python(m, tmp_path)


def test_breaks_are_spread_evenly_and_drawn_by_the_seed():
    first = breaks.drawn(100, 3)
    assert [m.name for m in first] == [m.name for m in breaks.drawn(100, 3)]
    assert len({m.name for m in first} & {m.name for m in breaks.drawn(100, 4)}) < 20
    counts = Counter(m.file for m in first)
    assert {*counts.values()} == {1, 2}
    assert {*counts} <= {*breaks.core()}
    assert len(counts) > 60
    assert len({m.kind for m in first}) > 8


def test_a_break_is_shown_to_the_tests_that_enter_its_function(found):
    at = {m.function: m for m in found}
    records = [
        Record("tests/a.py::slow", 5.0, frozenset({"some.py:area"})),
        Record("tests/a.py::quick", 0.5, frozenset({"some.py:area", "some.py:Ball.volume"})),
        Record("tests/b.py::other", 0.1, frozenset({"other.py:area", "some.py:<module>"})),
        Record("tests/c.py::last", 1.0, frozenset({"some.py:area"})),
    ]
    chosen = lambda function, limit=60.0: breaks.selected(at[function], records, limit)
    both = {"tests/c.py": ["tests/c.py::last"], "tests/a.py": ["tests/a.py::quick", "tests/a.py::slow"]}
    assert chosen("area") == both
    assert [*chosen("area")] == [*both]
    assert chosen("area", 1.0) == {"tests/c.py": ["tests/c.py::last"]}
    assert chosen("Ball.volume") == {"tests/a.py": ["tests/a.py::quick"]}
    assert chosen("") == both, "what is in no function is met by whatever enters the file"


def test_shares_leave_out_what_changes_nothing(monkeypatch):
    row = lambda n, before, after: {
        "file": "pinn_odelora/a.py",
        "kind": "sign",
        "line_before": f"x = -{n} | y",
        "line_after": f"x = {n} | y",
        "before": before,
        "after": after,
        "by": "test_a.py::test_it",
    }
    rows = [row(1, "caught", "caught"), row(2, "survived", "caught"), row(3, "survived", "survived")]
    rows += [row(4, "survived", "survived"), row(5, "hang", "hang")]
    monkeypatch.setattr(breaks, "equivalents", lambda: {"pinn_odelora/a.py | x = -4 | y | x = 4 | y": "0 is 0"})
    assert breaks.shares(rows) == (2, 3, 4)
    said = breaks.summary(rows, 7, 5)
    assert said.startswith("Seed 7: 2 of 4 caught before (50%), 3 after (75%); 1 more changes nothing.")
    assert breaks.summary(rows, 7, 9).startswith("Seed 7: 5 of 9 tried, 2 of 4 caught")
    caught = [line.rsplit("|", 2)[1].strip() for line in breaks.table(rows)[2:]]
    assert caught == [
        "test_a.py::test_it",
        "test_a.py::test_it (since)",
        "**survived**",
        "changes nothing: 0 is 0",
        "taking too long",
    ]
    assert r"`x = -1 \| y`" in breaks.page([(7, rows, 5)])
