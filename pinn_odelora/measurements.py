"""Measured values as a further term of the loss: r = √w · (u - u_measured) / size, a component for each measured field.

The size of a field is half the range of its values, so that sensors of u ≈ 0.03 or P ≈ 10⁵ weigh as much as those of a
field of order one; between 0.1 and 10 it counts as one.

A file is an archive of named arrays (.npz) or a table with a header line (.csv) of values separated by commas, or by
semicolons or tabs where the header has those, and then 0,5 may stand for 0.5. Its columns are all coordinates, at
least one field, and optionally a weight w ≥ 0 for each point.

A blank cell, NA or NaN in the column of a field says that it was not measured there, so that sensors of several fields
at different places are one file. The mean of each field is over its own N_f measured points: the row of a point has
the factor √(N / N_f) where the field was measured, and 0 where not, which is the same as a term for each field.
"""

from __future__ import annotations

import codecs
import csv
import io
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pinn_odelora.array_files import read_arrays
from pinn_odelora.derivatives.field import Field
from pinn_odelora.errors import InputError, unknown
from pinn_odelora.formulation import Problem, Term
from pinn_odelora.geometry import Cloud
from pinn_odelora.points import Points
from pinn_odelora.rules import number
from pinn_odelora.units import of_order_one

Column = NDArray[np.float64]
BLANK = ("", "na", "nan")
"""What stands, in any case, where nothing was measured."""
SHARE = "share_"
DECIMAL = re.compile(r"([+-]?\d*),(\d+(?:[eE][+-]?\d+)?)")
THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")


def measured_term(data: str | Path | Mapping[str, ArrayLike] | Term, problem: Problem, weight: float = 1.0) -> Term:
    """The data term of a problem.

    Args:
        data: a file, see ``read_measurements``; columns by name, each (N,); or a term.
        problem: defines the names of coordinates and fields.
        weight: the weight of the term.

    Raises:
        InputError: as ``read_measurements``, and if the weight is not positive.
    """
    weight = number(above=0).check("data_weight", weight)
    if isinstance(data, Term):
        term = data._replace(measured=True)
        term.check("data")
        return term._replace(weight=float(weight))
    if isinstance(data, Mapping):
        columns = {str(name): _array(values) for name, values in data.items()}
        term = _term("data", columns, problem.coords, problem.fields, "weight")
    else:
        term = read_measurements(data, problem.coords, problem.fields)
    return term._replace(weight=float(weight))


def _array(values: Any) -> NDArray:
    """An array of what the caller gives; masked values are blank."""
    values = values.detach() if isinstance(values, Tensor) else values
    return np.ma.filled(values.astype(float), np.nan) if isinstance(values, np.ma.MaskedArray) else np.asarray(values)


def read_measurements(
    path: str | Path, coords: Sequence[str], fields: Sequence[str], weight_column: str = "weight"
) -> Term:
    """The data term of a file.

    Its region is the cloud of the measured points, with the measured values as columns ``measured_<field>`` and the
    weights as ``weight``, each (N, 1), float64. A field with blanks has NaN there, and a column ``share_<field>``,
    N/N_f where it was measured, else 0. Points outside the problem's region are kept.

    Args:
        path: a ``.npz`` or ``.csv`` file.
        coords, fields: names of the problem's coordinates and fields.
        weight_column: name of the optional column of weights.

    Raises:
        InputError: if the file cannot be read; a column is missing, unknown, of another length or not finite; a
            coordinate or a weight is blank, or all fields of a row or all rows of a field are; there are no rows; or
            weights are negative or all zero. Messages count rows from 1, without the header.
    """
    return _term(path, _read(Path(path)), coords, fields, weight_column)


def _term(
    path: str | Path, arrays: Mapping[str, NDArray], coords: Sequence[str], fields: Sequence[str], weight_column: str
) -> Term:
    _check_names(path, arrays, coords, fields, weight_column)
    columns = {name: _column(path, name, array) for name, array in arrays.items()}
    _check_rows(path, columns)
    _check_values(path, columns, weight_column)
    _check_blanks(path, columns, fields)
    measured = [name for name in fields if name in columns]
    names = {**{c: c for c in coords}, **{f: f"measured_{f}" for f in measured}, weight_column: "weight"}
    sizes = {name: _size(columns[name]) for name in measured}
    shares = {f"{SHARE}{f}": _share(columns[f]) for f in measured if np.isnan(columns[f]).any()}
    given = {names[name]: values for name, values in columns.items()} | shares
    points = Points({name: torch.from_numpy(values)[:, None] for name, values in given.items()})
    return Term(Cloud(points), _mismatch(sizes, weighted=weight_column in columns), measured=True)


def _size(values: Column) -> float:
    """Half the range of measured values, their largest where all are the same; 1 where that is of order one."""
    values = values[np.isfinite(values)]
    size = float(np.ptp(values)) / 2 or float(np.abs(values).max())
    return 1.0 if of_order_one(size) else size


def _share(values: Column) -> Column:
    """N / N_f where a field was measured, else 0."""
    there = ~np.isnan(values)
    return there * (there.size / there.sum())


def noises(p: Points, rows: slice) -> list[slice]:
    """The residuals of a measured term, of all points of one component after the other, by the noise that they have:
    one for all of them, or where there are blanks one for each component, whose numbers of values then differ.
    """
    if not any(name.startswith(SHARE) for name in p):
        return [rows]
    return [slice(i, i + p.number) for i in range(rows.start, rows.stop, p.number)]


def _error(f: Field, name: str, size: float) -> Tensor:
    e = f.derivative(name, "") - getattr(f, f"measured_{name}").nan_to_num()
    e = e if size == 1 else e / size
    return getattr(f, f"{SHARE}{name}").sqrt() * e if f"{SHARE}{name}" in f.points else e


def _mismatch(measured: Mapping[str, float], weighted: bool) -> Callable[[Field], tuple[Tensor, ...]]:
    def residual(f: Field) -> tuple[Tensor, ...]:
        errors = [_error(f, name, size) for name, size in measured.items()]
        return tuple(f.weight.sqrt() * e for e in errors) if weighted else tuple(errors)

    return residual


def _read(path: Path) -> dict[str, NDArray]:
    readers = {".npz": _read_npz, ".csv": _read_csv}
    if path.suffix.lower() not in readers:
        raise InputError(f"{path} is not a file of measurements; allowed: .npz with named arrays, .csv with a header.")
    try:
        return readers[path.suffix.lower()](path)
    except OSError as error:
        raise InputError(f"Cannot read measurements from {path}: {error.strerror or error}.") from error


def _read_npz(path: Path) -> dict[str, NDArray]:
    try:
        return read_arrays(path)
    except ValueError as error:
        unread = f"no readable arrays by name ({error})"
        found = "pickled objects, never loaded" if "Object arrays" in str(error) else unread
        raise InputError(f"{path} holds {found}; write it with numpy.savez(path, x=..., u=...).") from error


def _read_csv(path: Path) -> dict[str, NDArray]:
    """Columns of text, not yet converted to numbers."""
    text = _text(path)
    separator = _separator(text.lstrip().partition("\n")[0])
    try:
        read = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
        header, *rows = [row for row in read if row] or [[]]
    except csv.Error as error:
        raise InputError(f"{path} is not a table of comma-separated values ({error}).") from error
    if separator != ",":
        rows = _with_points(rows)
    # numpy.savetxt writes its header as a comment.
    names = [name.strip().removeprefix("#").strip() for name in header]
    for name, count in Counter(names).items():
        if count > 1:
            raise InputError(f"Column {name!r} of {path} occurs {count} times.")
    for i, row in enumerate(rows, start=1):
        if len(row) != len(names):
            raise InputError(f"Row {i} of {path} has {len(row)} values, but the header has {len(names)} columns.")
    return {name: np.array([row[i] for row in rows], dtype=str) for i, name in enumerate(names)}


def _text(path: Path) -> str:
    content = path.read_bytes()
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError:
        raise InputError(f"{path} is not a table in UTF-8 or UTF-16; save it in one of these.") from None


def _separator(header: str) -> str:
    return next((mark for mark in ";\t" if mark in header and "," not in header), ",")


def _with_points(rows: list[list[str]]) -> list[list[str]]:
    """Rows with decimal commas as rows with points, where nothing else can be meant: no value has a point, and some
    comma cannot separate thousands, as that of 1,500 might.
    """
    cells = [cell.strip() for row in rows for cell in row]
    if any("." in cell for cell in cells) or all(THOUSANDS.fullmatch(cell) for cell in cells if "," in cell):
        return rows
    return [[DECIMAL.sub(r"\1.\2", cell.strip()) for cell in row] for row in rows]


def _column(path: str | Path, name: str, array: NDArray) -> Column:
    if array.ndim == 0 or array.ndim > 2 or (array.ndim == 2 and array.shape[1] != 1):
        raise InputError(f"Column {name!r} of {path} has shape {array.shape}; columns have shape (N,) or (N, 1).")
    if array.dtype.kind == "U":
        return _numbers(path, name, array)
    if array.dtype.kind not in "fiu":
        raise InputError(f"Column {name!r} of {path} is of type {array.dtype}; columns are real numbers.")
    return array.reshape(-1).astype(np.float64)


def _numbers(path: str | Path, name: str, words: NDArray[np.str_]) -> Column:
    values = np.empty(words.size)
    for i, word in enumerate(words.flat):
        try:
            values[i] = math.nan if word.strip().lower() in BLANK else float(word)
        except ValueError:
            hint = "; write decimals with a point" if "," in word else ""
            raise InputError(
                f"Column {name!r} of {path} is {str(word)!r} in row {i + 1}, not a number{hint}."
            ) from None
    return values


def _check_names(
    path: str | Path, columns: Collection[str], coords: Sequence[str], fields: Sequence[str], weight_column: str
) -> None:
    for name in columns:
        if name not in (*coords, *fields, weight_column):
            raise unknown(f"column of {path}:", name, (*coords, *fields, weight_column))
    if missing := [name for name in coords if name not in columns]:
        raise InputError(f"{path} has no column {missing[0]!r}; it must have all coordinates, {', '.join(coords)}.")
    if not any(name in columns for name in fields):
        raise InputError(f"{path} has no measured field; it must have at least one of {', '.join(fields)}.")


def _check_rows(path: str | Path, columns: Mapping[str, Column]) -> None:
    first, number = next((name, len(values)) for name, values in columns.items())
    for name, values in columns.items():
        if len(values) != number:
            raise InputError(f"Column {name!r} of {path} has {len(values)} rows, but {first!r} has {number}.")
    if number == 0:
        raise InputError(f"{path} has no rows.")


def _check_values(path: str | Path, columns: Mapping[str, Column], weight_column: str) -> None:
    for name, values in columns.items():
        if (bad := np.isinf(values)).any():
            raise InputError(
                f"Column {name!r} of {path} is {values[bad][0]} in row {bad.argmax() + 1}; it must be finite."
            )
    weights = columns.get(weight_column, np.ones(1))
    column = f"Column {weight_column!r} of {path}"
    if (bad := weights < 0).any():
        raise InputError(f"{column} is {weights[bad][0]} in row {bad.argmax() + 1}; weights are at least 0.")
    if not weights.any():
        raise InputError(f"{column} is 0 in every row; at least one weight must be positive.")


def _check_blanks(path: str | Path, columns: Mapping[str, Column], fields: Sequence[str]) -> None:
    """Only fields have blanks, none has nothing else, and no row either."""
    blank = {name: np.isnan(values) for name, values in columns.items()}
    for name, there in blank.items():
        if name not in fields and there.any():
            raise InputError(
                f"Column {name!r} of {path} is blank in row {there.argmax() + 1}; only fields may be, where they were "
                "not measured."
            )
        if there.all():
            raise InputError(f"Column {name!r} of {path} is blank in every row; leave the column out.")
    measured = [name for name in fields if name in columns]
    if (empty := np.logical_and.reduce([blank[name] for name in measured])).any():
        raise InputError(
            f"Row {empty.argmax() + 1} of {path} has no measured value, of {', '.join(measured)}; leave the row out."
        )
