from __future__ import annotations

from dataclasses import dataclass

import pytest

from rmeeto.cli.flags import Flag, FlagParser, Ignored, in_flags, normalise, parse_bool
from rmeeto.errors import UserError
from rmeeto.settings import setting


@dataclass(frozen=True)
class Sample:
    learning_rate: float = setting(0.1, "a float", "lr")
    steps: int = setting(3, "an int")
    fast: bool = setting(False, "a switch")
    warm: bool = setting(True, "a switch that is on")
    path: str | None = setting(None, "a text or none")
    limit: float | None = setting(1.0, "a float or none")
    betas: tuple[float, float] = setting((0.9, 0.99), "two floats")
    span: tuple[float, float] | None = setting(None, "two floats or none")
    share: int | float | tuple[int, ...] | tuple[int, float] = setting(0, "numbers of several kinds")


def read(*argv: str):
    parser = FlagParser("test", "a test", {"opt": Ignored("it is fixed", ("adamw",)), "pin_all": Ignored("old")})
    parser.add_section("sample", Sample, "sample")
    parser.add_flags({"order": Flag("merge", "keep", parse_bool, "order", switch=True)}, "merge")
    given, notices = parser.read(argv)
    values = {f"{section}.{name}": v for section, one in given.items() for name, v in one.values.items()}
    flags = {f"{section}.{name}": v for section, one in given.items() for name, v in one.flags.items()}
    return values, flags, notices


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], {}),
        (["--learning_rate", "0.5"], {"sample.learning_rate": 0.5}),
        (["--learning-rate=0.5"], {"sample.learning_rate": 0.5}),
        (["--lr", "5e-1"], {"sample.learning_rate": 0.5}),
        (["--lr", "1", "--learning-rate", "2"], {"sample.learning_rate": 2.0}),
        (["--fast"], {"sample.fast": True}),
        (["--fast", "True"], {"sample.fast": True}),
        (["--fast=False"], {"sample.fast": False}),
        (["--fast", "0", "--steps", "4"], {"sample.fast": False, "sample.steps": 4}),
        (["--no-warm"], {"sample.warm": False}),
        (["--path", "a-b_c"], {"sample.path": "a-b_c"}),
        (["--path", "none", "--limit", "None"], {"sample.path": None, "sample.limit": None}),
        (["--path", ""], {"sample.path": None}),
        (["--betas", "0.8", "0.9"], {"sample.betas": (0.8, 0.9)}),
        (["--span", "0.1,1"], {"sample.span": (0.1, 1.0)}),
        (["--span", "none"], {"sample.span": None}),
        (["--share", "0.2"], {"sample.share": 0.2}),
        (["--share", "3"], {"sample.share": 3}),
        (["--share", "3,4"], {"sample.share": (3, 4)}),
        (["--share", "3,-1.0"], {"sample.share": (3, -1.0)}),
        (["--span", "0.1", "1"], {"sample.span": (0.1, 1.0)}),
        (["--order"], {"merge.keep": True}),
        (["--order", "no"], {"merge.keep": False}),
        (["--steps", "-1"], {"sample.steps": -1}),
    ],
)
def test_only_what_is_given_is_read(argv, expected):
    assert read(*argv)[0] == expected


def test_flags_are_remembered_as_they_were_written():
    assert read("--lr", "1", "--order")[1] == {"sample.learning_rate": "--lr", "merge.keep": "--order"}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--step", "3"], "unknown flag --step; did you mean --steps"),
        (["--zzzzzz"], "unknown flag --zzzzzz; --help lists"),
        (["stray"], "unexpected argument 'stray'"),
        (["--steps", "three"], "argument --steps: got 'three'; expected a whole number"),
        (["--steps", "1.5"], "expected a whole number"),
        (["--fast", "maybe"], "got 'maybe'; expected True or False"),
        (["--limit", "x"], "expected a number or none"),
        (["--betas", "0.8,x"], "got '0.8,x'; expected a number or numbers with commas between"),
        (["--path", "\udcff"], "is no text in UTF-8"),
        (["--lr"], "expected one argument"),
        (["--opt", "sgd"], "--opt sgd is not supported .it is fixed.; leave the flag out"),
    ],
)
def test_mistakes_are_user_errors_of_one_line(argv, message):
    with pytest.raises(UserError, match=message) as caught:
        read(*argv)
    assert len(str(caught.value).splitlines()) == 1


def test_ignored_flags_are_named():
    given, _, notices = read("--opt", "adamw", "--pin-all")
    assert given == {}
    assert notices == ["--opt is ignored: it is fixed", "--pin_all is ignored: old"]
    assert read()[2] == []


def test_only_names_are_normalised():
    assert normalise("--a-b=c-d") == "--a_b=c-d"
    assert normalise("a-b") == "a-b" and normalise("-1") == "-1"


def test_the_home_folder_is_meant_by_its_sign_wherever_it_stands_first(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert normalise("--output-dir=~/runs") == "--output_dir=/somewhere/runs"
    assert normalise("~/a b") == "/somewhere/a b" and normalise("~") == "/somewhere"
    assert normalise("~other/x") == "~other/x" and normalise("--x=a~/b") == "--x=a~/b"


@pytest.mark.parametrize(
    ("library", "shell"),
    [
        ("OptimConfig: steps=-1; expected 1 to 9.", "--steps -1; expected 1 to 9."),
        ("X: steps=3 and path='a/b'; other=4", "X: --steps 3 and --path a/b; other=4"),
        ("set sample.fast, or another sample.other", "set --fast, or another sample.other"),
        ("weights: runs/steps=3/best.pt does not exist", "weights: runs/steps=3/best.pt does not exist"),
    ],
)
def test_a_message_of_the_library_is_put_into_flags(library, shell):
    assert in_flags(library, {"sample": Sample}) == shell
    assert in_flags("sample.steps", {"sample": Sample}, {"steps": "--count"}) == "--count"
