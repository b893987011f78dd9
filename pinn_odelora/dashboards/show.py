"""``po.dashboard``: a page with sliders for a family, a page that compares for runs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from pinn_odelora.document import Document
from pinn_odelora.errors import InputError
from pinn_odelora.families.family import Family
from pinn_odelora.result import Result

Run = Result | str | os.PathLike[str]


def dashboard(
    shown: Family | Run | Iterable[Run],
    path: str | os.PathLike[str] | None = None,
    *,
    values: int | None = None,
    trust: Sequence[str] = (),
) -> Document:
    """A page that holds all of its data, loads nothing and works without a network; a notebook shows it.

    Of a family it shows the solution, as a map with its colour bar and a cut along the first coordinate, with the
    estimated error and a slider for each parameter. It shows the first two coordinates of the problem, the others at
    the middle of their ranges.

    Of runs it shows a table with filters, error and loss against cost, error against step size, balance and
    conditioning, and chosen runs side by side with maps of solution and error. This needs Plotly, the extra
    ``dashboard``. What is left out, as a damaged run, is said in ``notes`` of what is returned.

    Args:
        shown: a family of one or two parameters, of a problem on a box; or results and run folders, one or several. A
            folder above runs stands for all of them.
        path: the file to write; None writes none.
        values: of each parameter of a family, 41 for one and 11 for two unless given; an adapter takes about 0.1 s,
            and more of them leave room for fewer cells.
        trust: modules of your own that runs in folders may import and call, see ``load``; without them the maps of
            such runs are left out.

    Raises:
        InputError: if the family has more parameters, its problem no box, or ``values`` is not allowed; if there is no
            run, or Plotly is not installed; or if the file cannot be written.
    """
    if isinstance(shown, Family):
        from pinn_odelora.families.page import dashboard as family_page

        return family_page(shown, path, values=values)
    if values is not None:
        raise InputError("values are those of the parameters of a family, but runs are shown: leave it out.")
    from pinn_odelora.dashboards.collect import collected
    from pinn_odelora.dashboards.page import page

    made = page(*collected([shown] if isinstance(shown, Result | str | os.PathLike) else shown, trust))
    if path is not None:
        made.save(path)
    return made
