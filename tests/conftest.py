"""Tests marked gpu are skipped where there is none; every test's process can fork others that train."""

import pytest
import torch


def pytest_configure():
    """The first backward pass starts a thread for each device that torch knows, and nothing that was forked with those
    can have one of its own. Exporting and compiling make up a device that is not there, so it comes before them."""
    torch.zeros(1, requires_grad=True).sum().backward()


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):  # not item.keywords, which a folder of that name is among
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
