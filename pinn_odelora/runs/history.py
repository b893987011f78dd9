"""The history of a run as a CSV file that survives the run being killed at any moment.

A row is one ``write`` of one line, and the file is otherwise only replaced as a whole. The worst that a kill or a full
disk can leave behind is thus an incomplete last line, which is dropped when the file is opened again.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pinn_odelora.errors import InputError
from pinn_odelora.files import append_text, reason, write_text

Row = dict[str, float]


class History:
    """The logged steps of a run, in memory as ``rows`` and on disk; a value that a row lacks is an empty cell.

    Args:
        path: the CSV file, made at the first row.
        up_to_step: keep only the rows of an existing file whose ``step`` is at most this; a run resumed from that step
            writes the later ones again.

    Raises:
        InputError: if an existing file is not a table of numbers.
    """

    def __init__(self, path: str | os.PathLike[str], up_to_step: int | None = None) -> None:
        self.path = Path(path)
        self.columns: list[str] = []
        self.rows: list[Row] = []
        if self.path.exists():
            self._open(up_to_step)

    def append(self, metrics: Mapping[str, float]) -> None:
        """Add one row; it is on its way to the disk when this returns."""
        row = {name: float(value) for name, value in metrics.items()}
        self.rows.append(row)
        new = [name for name in row if name not in self.columns]
        removed = self.path.parent.is_dir() and not self.path.exists()
        if new or removed:
            self.columns += new
            self._rewrite()
        else:
            append_text(self.path, _text([self._cells(row)]))

    def _open(self, up_to_step: int | None) -> None:
        text = _read(self.path)
        whole = text[: text.rfind("\n") + 1]
        self.columns, self.rows = _parse(whole, self.path)
        if up_to_step is not None:
            self.rows = [row for row in self.rows if row.get("step", 0) <= up_to_step]
        if self._table() != text:
            self._rewrite()

    def _rewrite(self) -> None:
        write_text(self.path, self._table())

    def _table(self) -> str:
        return _text([self.columns, *map(self._cells, self.rows)]) if self.columns else ""

    def _cells(self, row: Row) -> list[str]:
        # repr gives back the same float when read; counters look like counters.
        return [repr(row[name]).removesuffix(".0") if name in row else "" for name in self.columns]


def read_history(path: str | os.PathLike[str]) -> list[Row]:
    """The rows of a history that is only read; a run may be writing it.

    Raises:
        InputError: if it is not a table of numbers.
    """
    text = _read(Path(path))
    return _parse(text[: text.rfind("\n") + 1], Path(path))[1]


def _read(path: Path) -> str:
    """The text of the file, which a power failure may have left with anything at its end."""
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError as error:
        raise InputError(f"Cannot read {path}: {reason(error)}.") from error


def _text(lines: Iterable[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def _parse(text: str, path: Path) -> tuple[list[str], list[Row]]:
    columns, *lines = list(csv.reader(io.StringIO(text))) or [[]]
    rows = []
    for number, cells in enumerate(lines, start=2):
        try:
            pairs = zip(columns, cells, strict=True)
            rows.append({name: float(cell) for name, cell in pairs if cell})
        except ValueError:
            raise InputError(
                f"Line {number} of {path} is not a row of the history; the file holds numbers only."
            ) from None
    return columns, rows
