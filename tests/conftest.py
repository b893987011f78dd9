"""Tests run on one thread: two are many times slower for networks of this size."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(7)
