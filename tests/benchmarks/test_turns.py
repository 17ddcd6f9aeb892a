"""Processes that take turns: nobody works but those that are told to, and one that is gone is said."""

from __future__ import annotations

import os

import pytest

from benchmarks.turns import Group


def test_a_piece_is_done_when_it_is_wanted_and_by_all(tmp_path):
    done = tmp_path / "done"

    def work(rank, rest, meet):
        rest("prepared")
        for piece in range(3):
            with done.open("a") as file:
                file.write(f"{piece}")
            meet()
            rest((rank, piece, done.read_text()))

    with Group(2, work) as group:
        assert not done.exists()
        assert group.turn() == [(0, 0, "00"), (1, 0, "00")]
        assert group.turn() == [(0, 1, "0011"), (1, 1, "0011")]
        assert done.read_text() == "0011"


def test_a_process_that_is_gone_is_named():
    def work(rank, rest, meet):
        rest(None)
        if rank:
            os._exit(3)
        rest(None)

    with Group(2, work) as group, pytest.raises(RuntimeError, match="process 1 of 2 ended"):
        group.turn()
