"""Nothing but ``pinn_odelora/files.py`` writes a file; what it writes is whole, and logs grow by whole lines."""

import ast
import errno
import os
from pathlib import Path

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure

from pinn_odelora.errors import InputError, UnwritableError
from pinn_odelora.files import (
    append_text,
    discard_unfinished,
    read_json,
    read_text,
    replacing,
    write_by,
    write_bytes,
    write_figure,
)
from pinn_odelora.runs.history import History, read_history

ROOT = Path(__file__).parent.parent
HOME = "pinn_odelora/files.py"
FILES = [
    *(
        p.relative_to(ROOT).as_posix()
        for d in ("pinn_odelora", "problems", "hydra_plugins")
        for p in (ROOT / d).rglob("*.py")
    ),
    "train.py",
]
ALLOWED = {
    ("pinn_odelora/runs/alone.py", "os.open"),  # the lock, which has no content to lose
    ("pinn_odelora/runs/alone.py", "os.write"),
    ("pinn_odelora/runs/alone.py", "os.ftruncate"),
    ("pinn_odelora/streams.py", "os.open"),  # the null device
    ("pinn_odelora/manifest.py", "os.open"),  # to read, without waiting for a pipe
}
METHODS = {"write_text", "write_bytes", "to_csv", "savefig", "tofile", "touch", "save_file", "savetxt", "write_table"}
MODULES = {
    "os": {"open", "write", "rename", "replace", "truncate", "ftruncate", "fdopen"},
    "torch": {"save"},
    "np": {"save", "savez", "savez_compressed", "savetxt", "memmap"},
    "numpy": {"save", "savez", "savez_compressed", "savetxt", "memmap"},
    "json": {"dump"},
    "yaml": {"dump_all"},
    "pickle": {"dump"},
    "shutil": {"copy", "copy2", "copyfile", "move", "copytree"},
    "tempfile": {"NamedTemporaryFile", "mkstemp", "TemporaryFile"},
    "OmegaConf": {"save"},
    "safetensors.torch": {"save_file"},
}


def opens_for_writing(call):
    """Whether a call of ``open`` names a mode other than one for reading."""
    name = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
    if name != "open":
        return False
    modes = [*call.args, *(k.value for k in call.keywords if k.arg == "mode")]
    words = [m.value for m in modes if isinstance(m, ast.Constant) and isinstance(m.value, str)]
    return any(set(word) <= set("rwaxbt+") and set(word) & set("wax+") for word in words)


def into_memory(tree):
    """The calls inside the second argument of ``write_by``, which write into the file object that it hands out; and
    those whose first or second argument is a local ``BytesIO``.
    """
    inside = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "write_by":
            inside |= {id(part) for part in ast.walk(node.args[1])}
    for scope in (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)):
        buffers = {
            ast.unparse(n.targets[0])
            for n in ast.walk(scope)
            if isinstance(n, ast.Assign) and ast.unparse(n.value) == "io.BytesIO()"
        }
        inside |= {
            id(n)
            for n in ast.walk(scope)
            if isinstance(n, ast.Call) and buffers & {ast.unparse(argument) for argument in n.args[:2]}
        }
    return inside


def writes(path, source):
    """What a file calls that writes another one, with the line."""
    tree = ast.parse(source)
    aside = into_memory(tree)
    found = []
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call) and id(node) not in aside):
        name = ast.unparse(call.func)
        owner, _, last = name.rpartition(".")
        own = last in METHODS and owner  # a plain name is that of files.py
        if (own or last in MODULES.get(owner, ()) or opens_for_writing(call)) and (path, name) not in ALLOWED:
            found.append(f"{path}:{call.lineno} {name}")
    return found


@pytest.mark.parametrize("path", FILES)
def test_nobody_else_writes_a_file(path):
    assert path == HOME or not writes(path, (ROOT / path).read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "line",
    [
        "open(p, 'w')",
        "open(p, mode='ab')",
        "p.open('x')",
        "io.open(p, 'r+')",
        "torch.save(x, p)",
        "np.save(p, x)",
        "np.savez(p, x=x)",
        "p.write_text('a')",
        "p.write_bytes(b'a')",
        "frame.to_csv(p)",
        "figure.savefig(p)",
        "x.tofile(p)",
        "os.replace(p, q)",
        "json.dump(x, file)",
        "OmegaConf.save(x, p)",
        "safetensors.torch.save_file(x, p)",
    ],
)
def test_the_test_sees_a_writer(line):
    assert writes("some.py", line)
    assert not writes(
        "some.py", "write_by(p, lambda file: torch.save(x, file)); write_text(p, 'a'); p.open('rb'); open(p)"
    )


# What files.py writes.


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_what_a_function_writes_is_written_whole(tmp_path):
    write_by(tmp_path / "file", lambda file: (file.write(b"a"), file.write(b"b")))
    with pytest.raises(ZeroDivisionError):
        write_by(tmp_path / "file", lambda file: (file.write(b"c"), 1 / 0))
    assert (tmp_path / "file").read_bytes() == b"ab"


def test_a_write_that_is_taken_in_parts_is_whole(tmp_path, monkeypatch):
    write, sizes = os.write, []
    monkeypatch.setattr(os, "write", lambda file, data: sizes.append(write(file, data[:3])) or sizes[-1])
    write_bytes(tmp_path / "file", b"0123456789")
    assert ((tmp_path / "file").read_bytes(), sizes) == (b"0123456789", [3, 3, 3, 1])


def test_lines_are_added_whole_or_not_at_all(tmp_path, monkeypatch):
    log = tmp_path / "log"
    with pytest.raises(UnwritableError, match=r"^Cannot write .*log: No such file or directory\.$"):
        append_text(log, "1\n")
    write_bytes(log, b"1\n")
    append_text(log, "2 \u03bd\n")
    write = os.write

    def half(file, data):
        if len(data) < 4:
            full()
        return write(file, data[:4])

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(UnwritableError, match="No space left on device"):
        append_text(log, "3 a long line\n")
    assert log.read_text(encoding="utf-8") == "1\n2 \u03bd\n"


def test_a_torn_last_line_is_dropped(tmp_path):
    file = tmp_path / "history.csv"
    file.write_bytes(b"step,loss\n0,1.5\n1,1.2\n2,1.")
    assert [row["step"] for row in read_history(file)] == [0, 1]
    history = History(file)
    history.append({"step": 2, "loss": 1.125})
    assert file.read_text() == "step,loss\n0,1.5\n1,1.2\n2,1.125\n"
    file.unlink()  # somebody tidied up
    history.append({"step": 3, "loss": 1.0})
    assert [row["step"] for row in read_history(file)] == [0, 1, 2, 3]


def test_what_killed_processes_leave_is_removed_and_nothing_else(tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "code" / "problems").mkdir(parents=True)
    kept = [tmp_path / ".hidden.part", tmp_path / "a.1.part", tmp_path / ".lock"]
    for file in (*kept, tmp_path / ".last.ckpt.123.part", tmp_path / "adapter" / ".w.safetensors.7.part"):
        file.touch()
    (tmp_path / "code" / "problems" / ".heat.py.7.part").touch()
    with replacing(tmp_path / "x") as temporary:
        temporary.touch()
        discard_unfinished(tmp_path)
        assert not temporary.exists(), "it is known by its name"
        temporary.touch()
    discard_unfinished(tmp_path)
    assert sorted(tmp_path.rglob("*.part")) == sorted(kept[:2])


@pytest.mark.parametrize(("name", "magic"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml"), ("a", b"\x89PNG")])
def test_a_figure_is_replaced_as_a_whole(tmp_path, monkeypatch, name, magic):
    with mpl.rc_context():
        write_figure(tmp_path / name, Figure())
        before = (tmp_path / name).read_bytes()
        assert before.startswith(magic)
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(InputError, match="No space left on device"):
            write_figure(tmp_path / name, Figure())
    assert (tmp_path / name).read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_a_picture_of_no_known_kind_is_a_sentence(tmp_path):
    with pytest.raises(InputError, match=r"a\.docx ends in \.docx, but a picture must be one of .*png"):
        write_figure(tmp_path / "a.docx", Figure())


# What it reads.


def test_what_cannot_be_read_is_a_sentence(tmp_path, monkeypatch):
    file = tmp_path / "start.json"
    said = {}
    file.mkdir()
    said["folder"] = sentence(file)
    file.rmdir()
    said["gone"] = sentence(file)
    for name, content in {
        "empty": b" \n",
        "latin": b'{"a": "\xe9"}',
        "half": b'{"a": 1',
        "list": b"[1]",
        "deep": b"[" * 10**5,
    }.items():
        file.write_bytes(content)
        said[name] = sentence(file)
    monkeypatch.setattr(Path, "read_bytes", refused)
    said["refused"] = sentence(file)
    here = str(file)
    expected = {
        "folder": f"Cannot read {here}: Is a directory.",
        "gone": f"Cannot read {here}: No such file or directory.",
        "empty": f"{here} is damaged: it is empty.",
        "latin": f"{here} is damaged: it is not text in UTF-8.",
        "list": f"{here} is damaged: it holds no names with values.",
        "refused": f"Cannot read {here}: Permission denied.",
    }
    assert {name: said[name] for name in expected} == expected
    assert said["half"].startswith(f"{here} is damaged: Expecting")
    assert said["deep"].startswith(f"{here} is damaged: ")
    with pytest.raises(InputError, match="Permission denied"):
        read_text(file)


def refused(path):
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def sentence(file):
    with pytest.raises(InputError) as caught:
        read_json(file)
    return str(caught.value)
