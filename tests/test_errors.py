"""Names that are anybody's are shown without being obeyed, wherever they are printed."""

from __future__ import annotations

import errno
import io
import os
import pickle
import subprocess
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from exp_sh.collect import main as collect_main
from image_task.main import main
from rmeeto import doctor
from rmeeto.cli.main import run_command
from rmeeto.cli.quickstart import make_folder, run_quickstart
from rmeeto.data.loading import Unread, Unreadable
from rmeeto.engine import World
from rmeeto.engine.dist import RankError
from rmeeto.errors import UserError, shown
from tests.warm import PYTHON
from video_task.main import main as video_main
from video_task.views import main as merge_views

HOSTILE = {
    "a\x1b]0;title\x07b": r"a\x1b]0;title\x07b",
    "\x1b[2J\x1b[H": r"\x1b[2J\x1b[H",
    "\x9b31m": r"\x9b31m",
    "a\nerror: made up": r"a\nerror: made up",
    "good\rbad": r"good\rbad",
    "abc\b\b\bxyz": r"abc\x08\x08\x08xyz",
    "\x7f\0": r"\x7f\x00",
    "cat\u202egpj.exe\u2066": r"cat\u202egpj.exe\u2066",
    "\u2028\u2029\x85": r"\u2028\u2029\x85",
    os.fsdecode(b"caf\xe9.jpg"): r"caf\udce9.jpg",
    "\U000e0041": r"\U000e0041",
}
ROOT = Path(__file__).resolve().parents[1]
WORLD = World(torch.device("cpu"))


def harmless(text: str) -> bool:
    """Whether a terminal only displays a text."""
    text.encode()
    return all(line.isprintable() for line in text.split("\n"))


@pytest.mark.parametrize(("name", "expected"), HOSTILE.items(), ids=map(repr, HOSTILE.values()))
def test_what_is_not_printable_stands_escaped(name, expected):
    assert shown(name) == shown(Path(name)) == shown(shown(name)) == expected
    assert str(UserError(f"{name} is no folder", "give one")) == f"{expected} is no folder\ngive one"


@pytest.mark.parametrize("name", ["plain name.jpg", "größe 図.png", "naïve😀.mp4", r"back\slash", ""])
def test_what_is_printable_stays(name):
    assert shown(name) == name


@pytest.mark.parametrize("kind", [UserError, RankError])
def test_an_error_goes_whole_from_process_to_process(kind):
    error = pickle.loads(pickle.dumps(kind("a\x1b", "b")))
    assert (type(error), str(error)) == (kind, "a\\x1b\nb")
    for agree in (WORLD.on_main, WORLD.on_every):
        with pytest.raises(UserError) as caught:
            agree(lambda: (_ for _ in ()).throw(error))
        assert str(caught.value) == "a\\x1b\nb"


def test_a_full_disk_is_one_line_without_the_name_of_a_file_too(capsys):
    def full(config):
        raise OSError(errno.ENOSPC, "No space left on device")

    command = SimpleNamespace(parse=lambda argv: (None, False, []), in_flags=str)
    assert run_command([], command, lambda config: [], full, full) == 2
    assert capsys.readouterr().err == "error: No space left on device\n"


@pytest.mark.parametrize("name", HOSTILE, ids=map(repr, HOSTILE.values()))
def test_every_way_to_the_screen_shows_names_escaped(name, capsys, caplog):
    def refuse(config):
        raise UserError(f"{name} is refused")

    WORLD.print(f"folder  {name}", "next")
    Unread("image", 10, 1.0).in_training([Unreadable(0, name, f"reason of {name}")])
    command = SimpleNamespace(parse=lambda argv: (None, False, [f"note of {name}"]), in_flags=str)
    assert run_command([], command, lambda config: [], refuse, refuse) == 2
    print(doctor._item("cache", name))
    printed = capsys.readouterr()
    logged = "\n".join(caplog.messages)
    for text in (printed.out, printed.err, logged):
        assert harmless(text) and shown(name) in text.replace("\n" + " " * 29, " ")
    assert len(printed.err.splitlines()) == 2 and len(caplog.messages) == 1


SMALL = {
    "doctor": doctor.command,
    "quick start": lambda: run_quickstart(None, "", "runs", Path(), lambda *_: None),
    "views": lambda: merge_views(None),
}


@pytest.mark.parametrize("command", SMALL.values(), ids=SMALL)
def test_arguments_of_the_small_commands_are_shown_escaped(command, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["program", "--x\x1b[2J", "y"])
    with pytest.raises(SystemExit) as exit:
        command()
    error = capsys.readouterr().err
    assert exit.value.code == 2 and harmless(error) and r"--x\x1b[2J" in error


def names_of_files() -> list[str]:
    """Hostile names that a file can have."""
    return [name for name in HOSTILE if "\0" not in name and "/" not in name]


def picture(shade: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(data, "PNG")
    return data.getvalue()


COMMON = "--model vim_nano_patch2_16 --merge_method none --eval --num_workers 0 --max_unreadable 1".split()


def evaluate(capsys, caplog, tmp_path: Path, *flags: str) -> str:
    """Everything that an evaluation printed and logged, whatever its exit code."""
    code = main([*COMMON, "--output_dir", str(tmp_path / "log"), *flags])
    printed = capsys.readouterr()
    assert code in (0, 2) and "Traceback" not in printed.err
    return "\n".join([printed.out, printed.err, *caplog.messages])


def test_hostile_names_of_classes_pictures_and_runs(tmp_path, capsys, caplog):
    for number, name in enumerate(names_of_files()):
        for split in ("train", "val"):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            (folder / f"{name}.png").write_bytes(picture(20 * number))
            (folder / f"{name}-broken.png").write_bytes(b"no picture")
    data = ["--data_set", "folder", "--data_path", str(tmp_path / "data")]
    text = evaluate(capsys, caplog, tmp_path, *data, "--name", "run\x1b[2J")
    assert harmless(text) and text.count("unreadable image") == len(names_of_files())
    assert r"run\x1b[2J" in text
    (tmp_path / "data" / "val" / names_of_files()[0]).rename(tmp_path / "data" / "val" / "other\x1b")
    text = evaluate(capsys, caplog, tmp_path, *data, "--name", "second")
    assert harmless(text)


def test_hostile_names_of_run_folders(tmp_path, capsys):
    for name in names_of_files():
        folder = tmp_path / "runs" / f"tab2{name}" / name
        folder.mkdir(parents=True)
        (folder / "result.json").write_text("no JSON")
        make_folder(tmp_path / name, 0)
        make_folder(tmp_path / name, 0)
    command = [PYTHON, str(ROOT / "exp_sh" / "collect.py"), str(tmp_path / "runs")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and harmless(done.stdout) and not done.stderr
    assert done.stdout.count("skipped ") == len(names_of_files())
    moved = capsys.readouterr().out
    assert harmless(moved) and moved.count("the older ") == len(names_of_files())


def test_hostile_names_in_tar_files(tmp_path, capsys, caplog):
    for split in ("train", "val"):
        (tmp_path / "data").mkdir(exist_ok=True)
        with tarfile.open(tmp_path / "data" / f"{split}.tar", "w") as tar:
            for name in names_of_files():
                for file, content in ((f"{name}.png", picture(9)), (f"{name}-broken.png", b"no picture")):
                    member = tarfile.TarInfo(f"{split}/{name}/{file}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    text = evaluate(capsys, caplog, tmp_path, "--data_set", "tar", "--data_path", str(tmp_path / "data"))
    assert harmless(text)


def test_hostile_names_of_tensors_and_files_of_weights(tmp_path, capsys, caplog):
    path = tmp_path / "w\x1b[31m.pth"
    torch.save({f"{name}": torch.zeros(1) for name in HOSTILE}, path)
    text = evaluate(capsys, caplog, tmp_path, "--data_set", "digits", "--model_pth", str(path))
    assert harmless(text) and r"w\x1b[31m.pth" in text and "does not fit" in text


def test_a_name_that_no_disk_takes_is_one_error(tmp_path, capsys):
    name, task = "a" * 300, ["--model", "vim_nano_patch2_16", "--eval", "--output_dir", str(tmp_path)]
    assert main([*task, "--model_pth", name]) == 2
    assert main([*task, "--data-set", "IMNET", "--data-path", name]) == 2
    assert video_main(["--model", "videomamba_video_nano_patch4_32", *task[2:], "--data_path", name]) == 2
    assert collect_main([name]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert sum(line.startswith("error: ") and name in line for line in lines) == 4


def test_of_a_very_long_text_the_middle_is_left_out():
    text = shown("a" * 10**6 + "\n")
    assert len(text) < 2100 and text.endswith("aa\\n") and " ... " in text
