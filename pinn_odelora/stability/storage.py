"""All runs in one file, a row each, in Parquet: what the page is made from.

Along a run are kept the costs, the held-out losses and the errors at the marks, of the iterate and, where that is
another one, of what the run would have returned; of condition numbers and the balance defect the largest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pinn_odelora.errors import InputError
from pinn_odelora.files import write_by

SCALARS = {
    **dict.fromkeys(("part", "problem", "method", "rank", "start", "points", "failure"), "string"),
    **dict.fromkeys(("version", "torch", "python"), "string"),
    **dict.fromkeys(("seed", "precision", "evaluations", "residuals", "steps", "evaluations_spent"), "int64"),
    **dict.fromkeys(("step", "seconds", "seconds_spent"), "float64"),
    **dict.fromkeys(("broken_off", "stalled"), "bool"),
    **dict.fromkeys(("peak_condition_a", "peak_condition_b", "peak_balance"), "float64"),
}
ALONG = ("cost", "heldout", "error", "heldout_returned", "error_returned")
MARK = (*ALONG, "condition_a", "condition_b", "balance")
"""The values of a mark, as in ``running.Mark``."""


def flat(run: Mapping[str, Any]) -> dict[str, Any]:
    """The row of a run as ``running.perform`` made it."""
    along = {name: [mark[k] for mark in run["marks"]] for k, name in enumerate(MARK)}
    peaks = {f"peak_{name}": _largest(along.pop(name)) for name in MARK[len(ALONG) :]}
    for name in ("heldout", "error"):
        if along[f"{name}_returned"] == along[name]:
            along[f"{name}_returned"] = None
    kept = {name: run[name] for name in SCALARS if name not in peaks}
    return {**kept, "rank": str(run["rank"]), **peaks, **along}


def _largest(values: Sequence[float | None]) -> float | None:
    return max((x for x in values if x is not None), default=None)


def write(rows: Iterable[Mapping[str, Any]], file: Path) -> None:
    """Replace the file by these rows."""
    arrow, parquet = modules()
    along = [(name, arrow.list_(arrow.float32())) for name in ALONG]
    schema = arrow.schema([(name, getattr(arrow, kind.replace("bool", "bool_"))()) for name, kind in SCALARS.items()])
    for name, kind in along:
        schema = schema.append(arrow.field(name, kind))
    table = arrow.Table.from_pylist([dict(row) for row in rows], schema=schema)
    write_by(file, lambda written: parquet.write_table(table, written, compression="zstd"))


def read(file: Path) -> list[dict[str, Any]]:
    """The rows of the file.

    Raises:
        InputError: if there is none.
    """
    if not file.is_file():
        raise InputError(f"{file} does not exist: run the study first.")
    return modules()[1].read_table(file).to_pylist()


def modules() -> tuple[Any, Any]:
    """pyarrow and its module for Parquet.

    Raises:
        InputError: if it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InputError("The report of a study needs pyarrow: pip install 'pinn-odelora[study]'.") from None
    return pyarrow, pyarrow.parquet
