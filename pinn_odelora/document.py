"""A page of HTML that needs nothing else: a file on the disk, or a frame in a notebook."""

from __future__ import annotations

import html
import json
import os
from typing import Any

from pinn_odelora.files import write_text


class Document:
    """A page as text; a notebook shows it.

    Attributes:
        html: the whole file.
        title: what the frame in a notebook is called.
    """

    title = "A page"

    def __init__(self, content: str) -> None:
        self.html = content

    def _repr_html_(self) -> str:
        """The page in a frame of a notebook."""
        look = "width:100%;height:54rem;border:0"
        return f'<iframe srcdoc="{html.escape(self.html)}" style="{look}" title="{self.title}"></iframe>'

    @property
    def size(self) -> int:
        """In bytes."""
        return len(self.html.encode())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file.

        Raises:
            InputError: if it cannot be written.
        """
        write_text(path, self.html)


def embedded(data: Any) -> str:
    """Plain data as JSON that can stand in a ``script`` element: no "<" of a name may end it."""
    return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
