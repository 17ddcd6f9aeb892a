"""Tests marked gpu are skipped where there is none; what every test needs of its own process."""

import gc
import signal

import pytest
import torch


def pytest_configure():
    """The first backward pass starts a thread for each device that torch knows, and nothing that was forked with those
    can have one of its own. Exporting and compiling make up a device that is not there, so it comes before them."""
    torch.zeros(1, requires_grad=True).sum().backward()
    # Who is started behind the scenes of a shell ignores Ctrl-C, and so would the programs that tests send one to.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish():
    """What is imported by now stays: no search for garbage goes through it, here or in a forked process."""
    gc.freeze()


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):  # not item.keywords, which a folder of that name is among
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def two_threads():
    """Operators are shared out among two threads, as few tests need it."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
