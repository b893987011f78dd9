"""Whatever the encoding of a terminal or pipe, output arrives, with escapes for the letters that it lacks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SAYS = "from pinn_odelora.streams import *; escape_what_cannot_be_encoded(); print('κ → ‖r‖')"


def output(encoding, *command):
    environment = os.environ | {"PYTHONIOENCODING": encoding, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, check=False)
    assert ran.returncode == 0, ran.stderr.decode(encoding)
    return ran.stdout.decode(encoding)


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("utf-8", "κ → ‖r‖"),
        ("cp1252", r"\u03ba \u2192 \u2016r\u2016"),
        ("cp936", "κ → ‖r‖"),
        ("ascii", r"\u03ba \u2192 \u2016r\u2016"),
    ],
)
def test_letters_that_an_encoding_lacks_are_escaped(encoding, text):
    assert output(encoding, "-c", SAYS).strip() == text


@pytest.mark.parametrize(
    "encoding", ["ascii", *(pytest.param(name, marks=pytest.mark.slow) for name in ("cp1252", "cp936"))]
)
def test_the_list_of_problems_is_printed(encoding):
    assert "burgers" in output(encoding, "-m", "pinn_odelora", "list")


def test_train_py_prints_in_any_encoding():
    lines = [
        "import sys",
        "sys.argv = ['train.py', '--help']",
        "import train",
        "from pinn_odelora.config import program",
        "program.explained = lambda folder: '\\u03ba'",
        "sys.exit(program.run(train.train))",
    ]
    assert output("ascii", "-c", "\n".join(lines)).strip() == r"\u03ba"
