"""python -m pinn_odelora list | new | check | deepxde | suggest-rank | predict | family | compare | dashboard | export
| study

Problems and methods, a new problem and whether it is right, advice on the rank, and what to do with finished runs.
"""

from __future__ import annotations

import argparse
import inspect
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pinn_odelora.errors import ChangedWarning, InputError, RefusedValueError, unknown
from pinn_odelora.families.settings import ADAPTER, COMBINATION, FORMS
from pinn_odelora.registry import problem_classes
from pinn_odelora.streams import program as whole_program

if TYPE_CHECKING:
    from pinn_odelora.adapted_solution import AdaptedSolution

DESCRIPTION = (
    "Problems and methods, a new problem and whether it is right, advice on the rank, and what to do with finished "
    "runs. Runs start by: python train.py"
)


def list_(_: argparse.Namespace) -> None:
    """Problems with their equation, source and target; methods with their paper."""
    from rich.console import Console
    from rich.table import Table

    from pinn_odelora import methods

    problems = Table("problem", "equation", "parameter", "source → target", "conditions", title="Problems")
    for name, cls in problem_classes().items():
        problem = cls()
        declared = cls.parameters()
        problems.add_row(
            name,
            inspect.getdoc(cls).splitlines()[0],
            "\n".join(declared),
            "\n".join(f"{p.source} → {getattr(problem, key)}" for key, p in declared.items()),
            ", ".join(cls.supports),
        )
    table = Table("method", "what it is", "integrator", title="Methods")
    for name in (name for name in methods.__all__ if name != "Method"):
        function = getattr(methods, name)
        integrator = "yes" if "integrator" in inspect.signature(function).parameters else "-"
        table.add_row(name, inspect.getdoc(function).splitlines()[0], integrator)
    console = Console(width=max(Console().width, 120))
    console.print(problems)
    console.print(table)


def new(args: argparse.Namespace) -> None:
    """Write a problem file, its test and its line of YAML, which run at once and are to be changed."""
    from pinn_odelora.commands.new import run

    run(args.name, args.coords, tuple(args.fields))


def check(args: argparse.Namespace) -> int:
    """What holds of a problem: equation, conditions, ansatz, parameters, derivatives; 1 if something fails."""
    from pinn_odelora.commands.check import run

    return run(args.problem)


def deepxde(args: argparse.Namespace) -> None:
    """Run a DeepXDE script as it is, its model trained here; with --set, adapted to another value of a number in it."""
    from pinn_odelora.commands.deepxde import run

    run(args.script, args.set, args.seconds, args.restore, args.rank)


def suggest_rank(args: argparse.Namespace) -> None:
    """Advice on lora.rank for a run with these settings, from the linearisation at the pretrained network."""
    from pinn_odelora.config.suggesting import suggested

    advice = suggested(args.settings)
    print(advice)
    if args.plot:
        advice.plot(args.plot)
        print(args.plot)


def predict(args: argparse.Namespace) -> None:
    """Evaluate a run at given points: an .npz with one array for each coordinate."""
    import pinn_odelora

    print(evaluated(pinn_odelora.load(args.run, trust=args.trust), args.points, args.output))


def evaluated(u: AdaptedSolution, file: Path, out: Path | None) -> Path:
    """Write the values of a solution at the points of a file, beside them unless told where; the path."""
    import numpy as np

    from pinn_odelora.array_files import read_arrays
    from pinn_odelora.files import write_by

    coords, fields = u.problem.coords, u.problem.fields
    try:
        points = read_arrays(file)
    except (OSError, ValueError) as error:
        said = str(error).rstrip(".")
        raise InputError(f"{file} cannot be read as an .npz file of named arrays: {said}.") from None
    if missing := [name for name in coords if name not in points]:
        raise InputError(f"{file} has no array {', '.join(missing)}; the coordinates are {', '.join(coords)}.")
    try:
        values = u(*(points[name] for name in coords))
    except (RuntimeError, TypeError) as error:
        said = str(error).rstrip(".")
        raise InputError(f"The arrays {', '.join(coords)} of {file} are no coordinates: {said}.") from None
    columns = [values] if len(fields) == 1 else list(np.moveaxis(values, -1, 0))
    found = {name: q(*(points[c] for c in q.coords)) for name, q in u.unknown_fields.items()}
    out = out or file.with_name(f"{file.stem}-predicted.npz")
    arrays = {name: points[name] for name in coords} | dict(zip(fields, columns, strict=True)) | found
    write_by(out, lambda file: np.savez(file, **arrays))
    return out


def family(args: argparse.Namespace) -> None:
    """Answers from a family, with their estimated errors; without values, what it is."""
    from pinn_odelora.config.load import family as load
    from pinn_odelora.runs.folder import BASE

    values = given(args.values)
    numbers = max(map(len, values.values()), default=0)
    if any(len(own) not in (1, numbers) for own in values.values()):
        counts = ", ".join(f"{len(own)} of {name}" for name, own in values.items())
        raise InputError(f"There are {counts}; give each parameter once, or as often as the others.")
    if args.output and not args.points:
        raise InputError("An output file is given, but no --points at which to evaluate the answer.")
    if numbers != 1 and (option := "--points" if args.points else "--adapter" if args.adapter else ""):
        raise InputError(f"{option} is for one answer, but values for {numbers} are given.")
    if args.adapter and args.form == COMBINATION:
        raise InputError("--adapter writes one adapter, which a combination is not; --form must be adapter or auto.")
    form = ADAPTER if args.adapter else args.form
    found = load(args.run, trust=args.trust)
    if not numbers and not args.page:
        print(str(found).strip("<>"))
    for k in range(numbers):
        at = {name: own[k % len(own)] for name, own in values.items()}
        try:
            u = found(**at, tolerance=args.tolerance, form=form, extrapolate=args.extrapolate)
        except RefusedValueError as refused:
            allowed = refused.allowed.replace("extrapolate=True", "--extrapolate is given")
            raise RefusedValueError(refused.name, refused.value, allowed) from None
        said = ", ".join(f"{name}={value:.12g}" for name, value in at.items())
        print(f"{said}: relative L2 error about {u.error:.1e}, {u.seconds:.2f} s")
        if args.points:
            print(evaluated(u.solution, args.points, args.output))
        if args.adapter:
            u.adapter.save(args.adapter, base=str(args.run / BASE))
            print(args.adapter)
    if args.page:
        import pinn_odelora

        pinn_odelora.dashboard(found, args.page)
        print(args.page)


def given(arguments: Sequence[str]) -> dict[str, list[float]]:
    """Values by name from ``nu=0.013 nu=0.02``."""
    found: dict[str, list[float]] = {}
    for argument in arguments:
        name, _, value = argument.partition("=")
        try:
            found.setdefault(name, []).append(float(value))
        except ValueError:
            raise InputError(f"Cannot read the argument {argument!r}; values read parameter=number.") from None
    return found


def compare(args: argparse.Namespace) -> None:
    """Finished runs side by side, seeds averaged."""
    from rich.console import Console
    from rich.table import Column, Table

    from pinn_odelora.runs.compare import COLUMNS, summaries, write_csv
    from pinn_odelora.runs.compare import compare as side_by_side
    from pinn_odelora.runs.provenance import sentence_on

    rows = side_by_side(summaries(args.runs))
    table = Table(*(Column(name, overflow="fold") for name in COLUMNS))
    for row in rows:
        texts = ("-" if x is None else x for x in row.values())
        table.add_row(*(f"{x:.3g}" if isinstance(x, float) else str(x).replace(", ", "\n") for x in texts))
    Console(width=max(Console().width, 160)).print(table)
    if said := sentence_on(args.runs):
        print(said, file=sys.stderr)
    if args.csv:
        write_csv(rows, args.csv)


def dashboard(args: argparse.Namespace) -> None:
    """Runs on one page: a table with filters, curves, error against step size, solutions side by side."""
    import pinn_odelora

    made = pinn_odelora.dashboard(args.runs, args.output, trust=args.trust)
    for note in made.notes:
        print(note, file=sys.stderr)
    print(f"{args.output}: {made.runs} {'run' if made.runs == 1 else 'runs'}, {made.size / 1e6:.1f} MB")


def export(args: argparse.Namespace) -> None:
    """The adapted network as a plain torch state_dict with the names of the user's own network."""
    import torch

    import pinn_odelora
    from pinn_odelora.files import write_by
    from pinn_odelora.lowrank.adapter_files import merged_state_dict

    out = args.output or args.run / "network.pt"
    state = merged_state_dict(pinn_odelora.load(args.run, trust=args.trust).solution.net)
    write_by(out, lambda file: torch.save(state, file))
    print(out)


def study(args: argparse.Namespace) -> int:
    """Measure how steadily methods train: step sizes, seeds, ranks and starts on four problems."""
    from pinn_odelora.stability.command import run

    return run(args)


COMMANDS = {
    "list": list_,
    "new": new,
    "check": check,
    "deepxde": deepxde,
    "suggest-rank": suggest_rank,
    "predict": predict,
    "family": family,
    "compare": compare,
    "dashboard": dashboard,
    "export": export,
    "study": study,
}


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(prog="python -m pinn_odelora", description=DESCRIPTION)
    added = main.add_subparsers(title="commands", metavar="command", dest="command")
    commands = {}
    for name, function in COMMANDS.items():
        said = inspect.getdoc(function)
        commands[name] = added.add_parser(name, help=said, description=said)
    commands["new"].add_argument("name", help="of the problem, in lower case: my_equation")
    commands["new"].add_argument("--coords", default="xt", help="a letter for each coordinate; default: %(default)s")
    commands["new"].add_argument("--fields", nargs="+", default=["u"], metavar="FIELD", help="default: u")
    which = "its name, a file, or module.Class"
    commands["check"].add_argument("problem", help=which)
    script = commands["deepxde"]
    script.add_argument("script", type=Path, help="a script for DeepXDE's backend PyTorch")
    script.add_argument("--set", action="append", default=[], metavar="NAME=number", help="adapt to this value")
    script.add_argument("--seconds", type=float, default=30.0, help="of training or adapting: default %(default)s")
    script.add_argument("--restore", type=Path, help="adapt the network of this file of model.save")
    script.add_argument("--rank", type=int, default=8, help="of the factors: default %(default)s")
    advised = commands["suggest-rank"]
    settings = "as of train.py, problem=burgers; and tolerance=0.1, the residual asked for in the linearised model"
    advised.add_argument("settings", nargs="+", metavar="key=value", help=settings)
    advised.add_argument("--plot", type=Path, help="draw residuals and seconds against the rank in this image")
    for name in ("predict", "export"):
        commands[name].add_argument("run", type=Path, help="the folder of a finished run")
    commands["predict"].add_argument("points", type=Path, help="an .npz file with one array for each coordinate")
    commands["predict"].add_argument("-o", "--output", type=Path, help="default: <points>-predicted.npz beside them")
    asked = commands["family"]
    asked.add_argument("run", type=Path, help="the folder of a family")
    asked.add_argument("values", nargs="*", metavar="parameter=number", help="repeated for several answers")
    asked.add_argument("--tolerance", type=float, help="estimated relative L2 error up to which an answer is improved")
    asked.add_argument("--form", choices=FORMS, default="auto", help="what an answer is: default %(default)s")
    asked.add_argument("--extrapolate", action="store_true", help="allow values outside the range")
    asked.add_argument("--points", type=Path, help="evaluate the answer at the points of an .npz file")
    asked.add_argument("-o", "--output", type=Path, help="default: <points>-predicted.npz beside the points")
    asked.add_argument("--adapter", type=Path, help="write the answer as a PEFT adapter into this folder")
    asked.add_argument("--page", type=Path, help="write an HTML page with a slider for each parameter")
    commands["export"].add_argument("-o", "--output", type=Path, help="default: network.pt in the run's folder")
    commands["compare"].add_argument("runs", type=Path, nargs="+", help="folders of finished runs, or above them")
    commands["compare"].add_argument("--csv", type=Path, help="write the table to this file, too")
    study_options(commands["study"])
    commands["dashboard"].add_argument("runs", type=Path, nargs="+", help="folders of runs, or above them")
    page = "the file to write: default %(default)s"
    commands["dashboard"].add_argument("-o", "--output", type=Path, default=Path("dashboard.html"), help=page)
    trusted = "a module of your own that the run may import and call; may be repeated"
    for name in ("predict", "family", "export", "dashboard"):
        commands[name].add_argument("--trust", action="append", default=[], metavar="MODULE", help=trusted)
    main.epilog = "\n".join(
        ["usage of the commands:", *(f"  {c.format_usage()[7:].strip()}" for c in commands.values())]
    )
    main.formatter_class = argparse.RawDescriptionHelpFormatter
    return main


def study_options(studied: argparse.ArgumentParser) -> None:
    studied.add_argument("name", choices=("stability",), help="which study")
    studied.add_argument("--quick", action="store_true", help="fewer step sizes and evaluations, one seed")
    studied.add_argument("--timed", action="store_true", help="the runs of 10 CPU seconds, for which nothing else runs")
    studied.add_argument("--report", action="store_true", help="run nothing, and report on the runs that there are")
    studied.add_argument("--workers", type=int, help="processes; default: one for each core")
    studied.add_argument("--problems", nargs="+", metavar="PROBLEM", help="some of the problems only")
    studied.add_argument("--methods", nargs="+", metavar="METHOD", help="some of the methods only")
    studied.add_argument("--runs", type=Path, help="folder of the finished runs; default: runs/stability")
    studied.add_argument("--results", type=Path, help="folder of the report; default: report in that of the runs")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code, 2 for invalid input."""
    arguments = sys.argv[1:] if arguments is None else arguments
    program = parser()
    if not arguments:
        program.print_help()
        return 0
    if not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        program.error(str(unknown("command", arguments[0], COMMANDS)))
    args = program.parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", ChangedWarning)
            warnings.showwarning = lambda message, *_: print(message, file=sys.stderr)
            return COMMANDS[args.command](args) or 0
    except InputError as refused:
        print(refused, file=sys.stderr)
        return 2


if __name__ == "__main__":
    with whole_program():
        sys.exit(main())
