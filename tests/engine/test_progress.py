from __future__ import annotations

import io
import sys

import pytest

from rmeeto.engine.progress import Progress, clock


class Stream(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


def output(monkeypatch, terminal: bool, seconds: float, shown: bool = True) -> str:
    stream = Stream(terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress("epoch 1/3", 10, start=4, shown=shown, line_every=seconds) as bar:
        for _ in range(3):
            bar.update(2, "8/s", ", data 5%")
    return stream.getvalue()


def test_lines_without_a_terminal(monkeypatch):
    assert (
        output(monkeypatch, terminal=False, seconds=0)
        == "epoch 1/3 6/10 8/s, data 5%\nepoch 1/3 8/10 8/s, data 5%\nepoch 1/3 10/10 8/s, data 5%\n"
    )
    assert output(monkeypatch, terminal=False, seconds=60) == ""


def test_a_bar_on_a_terminal(monkeypatch):
    text = output(monkeypatch, terminal=True, seconds=0)
    assert "\r" in text and "epoch 1/3  40%" in text and "data" not in text


def test_time_is_shown_as_a_clock():
    assert [clock(seconds) for seconds in (0, 59.6, 3599, 3600, 90061)] == [
        "0:00",
        "1:00",
        "59:59",
        "1:00:00",
        "25:01:01",
    ]


@pytest.mark.parametrize("terminal", [True, False])
def test_nothing_beside_the_main_process(monkeypatch, terminal):
    assert output(monkeypatch, terminal, seconds=0, shown=False) == ""


def test_the_bar_of_an_epoch_fits_80_columns(monkeypatch):
    stream = Stream(terminal=True)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("COLUMNS", "80")
    with Progress("epoch 100/300", 10008, line_every=30) as bar:
        bar._bar.ncols, bar._bar.dynamic_ncols = 80, None
        bar.update(5000, "loss 6.905, 12345/s, 10:00:00 left")
        bar._bar.refresh()
    assert "loss 6.905, 12345/s, 10:00:00 left" in stream.getvalue()
    assert max(len(line.strip("\n")) for line in stream.getvalue().split("\r")) <= 80
