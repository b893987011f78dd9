"""Named arrays of numbers in an ``.npz`` file, which is a zip archive with an ``.npy`` file for each.

Objects in it would be pickles, and are not loaded. A compressed archive can be a thousand times larger than its file,
so that the sizes it declares are looked at before anything is unpacked.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

LARGEST = 2**30
"""Bytes that a compressed archive may unpack to; one that is not compressed is as large as its file."""


def read_arrays(path: Path) -> dict[str, NDArray]:
    """The arrays of a file by name.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no archive of arrays of numbers, is damaged, or would be too large.
    """
    with path.open("rb") as file:
        try:
            if not zipfile.is_zipfile(file):
                raise ValueError("it is no zip archive of arrays")
            _check_sizes(zipfile.ZipFile(file))
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                return {name: np.asarray(archive[name]) for name in archive.files}
        except Exception as error:  # Damaged archives can fail in any way.
            raise ValueError(str(error).rstrip(".") or type(error).__name__) from error


def _check_sizes(archive: zipfile.ZipFile) -> None:
    packed = [entry for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
    if (size := sum(entry.file_size for entry in packed)) > LARGEST:
        raise ValueError(f"it would unpack to {size / 2**30:.1f} GiB; write it uncompressed, by numpy.savez")
