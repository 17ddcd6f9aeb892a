"""The suites of the front and of larger inputs, and the time that a suite may take."""

from __future__ import annotations

import json

from benchmarks import cli, front


def test_the_front_compiles_few_of_the_models_and_all_that_are_asked_for():
    default = list(front.cases(cli.parse(["front"])))
    compiled = {(case["model"], case["r"]) for case in default if case["mode"] == "compiled"}
    assert {name for name, _ in compiled} == set(front.COMPILED) and {r for _, r in compiled} == {0, 11}
    assert {case["r"] for case in default if case["mode"] == "eager"} == set(front.R)
    asked = front.cases(cli.parse(["front", "--models", "vim_base", "--modes", "compiled", "--batch", "1"]))
    assert [case["r"] for case in asked] == [0, 11]


def test_a_suite_ends_in_time_and_goes_on(tmp_path, capsys):
    command = ["sizes", "--quick", "--runs", "5", "--out", str(tmp_path)]
    assert cli.main([*command, "--minutes", "1e-9"]) == 3
    assert "--resume goes on" in capsys.readouterr().out
    assert cli.main([*command, "--resume"]) == 0
    (file,) = tmp_path.glob("sizes-fp32-cpu-pt*.json")
    result = json.loads(file.read_text())
    assert "stopped" not in result and file.with_suffix(".png").exists()
    assert {(row["kind"], row["size"], row["way"]) for row in result["rows"]} == {
        *(("img_size", size, way) for size in (16, 32) for way in ("dense", "merged")),
        *(("num_frames", size, way) for size in (2, 4) for way in ("dense", "merged in a window")),
    }
    assert all(len(row["runs_ms"]) == 5 for row in result["rows"])
    assert cli.main(["sizes", "--minutes", "0"]) == 2
