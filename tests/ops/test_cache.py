"""The cache of the C++ kernels: what is damaged or somebody else's is not loaded, and nothing waits for a compiler."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from pathlib import Path

import pytest

from rmeeto.ops import build, cache
from rmeeto.ops.backend import BackendUnavailable
from tests import forked
from tests.warm import PYTHON

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def small(monkeypatch, tmp_path) -> Path:
    """A cache of its own and kernels that are built at once; the cache's folder."""
    try:
        build.compiler()
    except BackendUnavailable as reason:
        pytest.skip(str(reason))
    sources = tmp_path / "csrc"
    sources.mkdir()
    (sources / "small.cpp").write_text('extern "C" int answer() { return 42; }')
    monkeypatch.setattr(build, "SOURCES", sources)
    monkeypatch.setenv("RMEETO_CACHE", str(tmp_path / "cache"))
    build._load.cache_clear()
    build.library.cache_clear()
    yield tmp_path / "cache"
    build._load.cache_clear()
    build.library.cache_clear()


@pytest.fixture
def no_compiler(monkeypatch):
    """A function after which no compiler is found."""
    return lambda: monkeypatch.setenv("CXX", "no-such-compiler")


def compiler_of(folder: Path, text: str) -> Path:
    """A script that stands for a compiler; ``$real`` is the real one."""
    script = folder / "my compiler"
    script.write_text(f"#!/bin/sh\nreal={shlex.quote(build.compiler()[0])}\n{text}\n")
    script.chmod(0o755)
    return script


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def zero(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(512)
        file.write(bytes(2048))


def instead(make) -> callable:
    """A damage: the library is removed and something else made in its place."""

    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


DAMAGES = {
    "cut": cut,
    "a block of zeros": zero,
    "empty": lambda path: path.write_bytes(b""),
    "more": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "text": lambda path: path.write_text("no library"),
    "folder": instead(Path.mkdir),
    "full folder": instead(lambda path: (path / "a" / "b").mkdir(parents=True)),
    "pipe": instead(os.mkfifo),
    "link to nothing": instead(lambda path: path.symlink_to("nowhere")),
    "link to a library": instead(lambda path: path.symlink_to(path.with_name("other.so"))),
    "writable by all": lambda path: path.chmod(0o666),
    "writable by the group": lambda path: path.chmod(0o664),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_library_that_is_not_as_it_was_built_is_built_again(damage, small):
    path = build.build("portable")
    whole = path.read_bytes()
    path.with_name("other.so").write_bytes(whole)
    damage(path)
    assert cache.find(path.stem.rpartition("-")[0]) is None
    assert build.build("portable") == path and path.read_bytes() == whole
    assert path.is_file() and not path.is_symlink() and path.stat().st_mode & 0o777 == 0o644
    assert path.with_name("other.so").read_bytes() == whole, "no other file is touched"


def test_a_cut_library_does_not_kill_the_process(small):
    """Its pages beyond the end end a process by a signal as soon as it is loaded, which nobody can catch."""
    (build.SOURCES / "large.cpp").write_text(
        "char filler[300000] = {1}; char *many[1000] = {filler, filler + 1}; "
        'extern "C" char *large(int i) { return many[i]; }'
    )
    path = build.build(build.instruction_set())
    cut(path)
    head = "import pathlib, sys; from rmeeto.ops import build; build.SOURCES = pathlib.Path(sys.argv[2]);"
    for code, expected in {
        "import ctypes, sys; ctypes.CDLL(sys.argv[1])": "",
        f"{head} print(build.library().answer(), build.origin() == sys.argv[1])": "42 True\n",
    }.items():
        command = [PYTHON, "-W", "error", "-c", code, str(path), str(build.SOURCES)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.stdout == expected and (done.returncode == 0) == bool(expected), done.stderr


def test_a_library_is_used_without_a_compiler(small, no_compiler, recwarn):
    path = build.build("portable")
    no_compiler()
    assert build.build("portable") == path
    assert not recwarn.list


def test_a_compiler_that_hangs_hangs_nobody(small, monkeypatch, tmp_path):
    path = build.build("portable")
    started = tmp_path / "started"
    hanging = compiler_of(tmp_path, f"sleep 1000 & echo $! >> {shlex.quote(str(started))}; sleep 1000")
    monkeypatch.setenv("CXX", str(hanging))
    assert build.build("portable") == path, "what is in the cache needs no compiler"
    path.unlink()
    monkeypatch.setattr(build, "LIMIT_S", 1.0)
    monkeypatch.setattr(build, "VERSION_LIMIT_S", 1.0)
    for call in (lambda: build.build("portable"), lambda: build.version(build.compiler())):
        with pytest.raises(BackendUnavailable, match="has not ended after 1 s"):
            call()
    assert not list(small.iterdir())
    for pid in started.read_text().split():  # what the compiler had started ends with it
        state = Path(f"/proc/{pid}/stat")
        forked.until(lambda state=state: not state.exists() or state.read_text().split()[2] == "Z")


@pytest.mark.parametrize("cxx", ["{script}", "'{script}' -pipe", "env {real}", "{real} -pipe", "  {real}  "])
def test_cxx_may_hold_spaces_and_arguments(cxx, small, monkeypatch, tmp_path):
    real = build.compiler()[0]
    script = compiler_of(tmp_path, 'exec "$real" "$@"')
    monkeypatch.setenv("CXX", cxx.format(script=script, real=real))
    assert build.build("portable").is_file()
    assert build.version(build.compiler()) == build.version([real])


@pytest.mark.parametrize(
    ("cxx", "message"),
    [("'g++", "cannot be read: No closing quotation"), ("no-such -pipe", "no C.. compiler .no-such -pipe")],
)
def test_a_wrong_cxx_is_named(cxx, message, small, monkeypatch):
    monkeypatch.setenv("CXX", cxx)
    with pytest.raises(BackendUnavailable, match=message):
        build.build("portable")


def test_a_compiler_that_writes_without_end_is_stopped(small, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", shlex.quote(str(compiler_of(tmp_path, "yes"))))
    with pytest.raises(BackendUnavailable, match="my compiler writes without end"):
        build.build("portable")


def test_a_compiler_that_cannot_be_started_is_named(small, monkeypatch, tmp_path):
    script = tmp_path / "cxx"
    script.write_bytes(b"\x7fELF no program")
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    with pytest.raises(BackendUnavailable, match="cxx cannot be started: "):
        build.build("portable")


def loaded_alone(small: Path) -> str:
    """Load the kernels where the cache cannot be used; the one notice."""
    with pytest.warns(UserWarning, match="built for this process alone: ") as notices:
        assert build.library().answer() == 42
    assert len(notices) == 1
    message = str(notices[0].message)
    assert message.endswith("; set RMEETO_CACHE to a folder of yours") and build.origin() in message
    return message


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o1777, 0o707])
def test_a_cache_that_others_can_write_to_is_not_used(mode, small, monkeypatch):
    path = build.build(build.instruction_set())
    path.write_text("planted")
    small.chmod(mode)
    assert f"{small} is writable by others (mode {mode:o}; chmod go-w)" in loaded_alone(small)
    assert path.read_text() == "planted"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_cache_of_another_user_is_not_used(small):
    path = build.build(build.instruction_set())
    os.chown(small, 12345, -1)
    assert f"{small} belongs to another user (number 12345)" in loaded_alone(small)
    os.chown(small, 0, -1)
    os.chown(path, 12345, -1)
    assert build.build(build.instruction_set()) == path and path.stat().st_uid == 0


def test_a_cache_below_a_folder_that_all_can_write_to_is_not_used(small, tmp_path, monkeypatch):
    shared = tmp_path / "shared"
    monkeypatch.setenv("RMEETO_CACHE", str(shared / "mine"))
    (shared / "mine").mkdir(parents=True)
    shared.chmod(0o777)
    assert f"{shared} is writable by everybody" in loaded_alone(small)
    shared.chmod(0o1777)  # as /tmp: nobody can rename what is another's
    assert build.build("portable").is_relative_to(shared)


@pytest.mark.parametrize("kind", ["file", "file/inside", "/sys/rmeeto", "long", "pipe"])
def test_a_cache_that_cannot_be_made_is_none(kind, small, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setenv("RMEETO_CACHE", str(tmp_path / kind.replace("long", "x" * 300)))
    loaded_alone(small)


def test_the_reason_of_both_is_told_where_there_is_no_compiler_either(small, no_compiler, monkeypatch):
    small.mkdir()
    small.chmod(0o777)
    no_compiler()
    with pytest.warns(UserWarning, match="several times slower: no C.. compiler .*the cache: .*mode 777"):
        assert build._load()[0] is None
    assert build.origin().startswith("none: no C++ compiler")


def test_the_cache_is_made_for_its_user_alone(small, tmp_path, monkeypatch):
    monkeypatch.setenv("RMEETO_CACHE", str(tmp_path / "new" / "cache"))
    before = os.umask(0)
    try:
        path = build.build("portable")
    finally:
        os.umask(before)
    assert [folder.stat().st_mode & 0o777 for folder in (path.parent, path.parent.parent)] == [0o700] * 2
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"RMEETO_CACHE": "/a/b"}, "/a/b"),
        ({"RMEETO_CACHE": "mine"}, "{here}/mine"),
        ({"RMEETO_CACHE": "", "XDG_CACHE_HOME": "/c"}, "/c/rmeeto"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/h"}, "/h/.cache/rmeeto"),
        ({"HOME": "/h"}, "/h/.cache/rmeeto"),
    ],
)
def test_cache_folder_follows_the_environment(environment, expected, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("RMEETO_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert str(cache.cache_folder()) == expected.format(here=tmp_path)


@pytest.mark.parametrize("home", ["", "relative"])
def test_without_a_home_folder_the_kernels_are_built_all_the_same(home, small, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("RMEETO_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", home)
    before = sorted(tmp_path.iterdir())
    assert "there is no home folder" in loaded_alone(small)
    assert sorted(tmp_path.iterdir()) == before, "nothing is written to where the user is"


def test_folders_of_killed_builds_are_removed(small, tmp_path):
    build.build("portable")
    old = time.time() - 2 * cache.STALE_S
    outside = tmp_path / "outside"
    for folder in (outside, *(small / f"building-{name}" for name in ("dead", "locked", "new"))):
        folder.mkdir()
        (folder / "scan.o").touch()
        if folder.name != "building-new":
            os.utime(folder, (old, old))
    (small / "building-link").symlink_to(outside)
    os.utime(small / "building-link", (old, old), follow_symlinks=False)
    lock = os.open(small / "building-locked", os.O_RDONLY)
    cache.fcntl.flock(lock, cache.fcntl.LOCK_EX)
    try:
        build.build("portable")
    finally:
        os.close(lock)
    left = {path.name for path in small.glob("building-*")}
    assert left == {"building-locked", "building-new", "building-link"}
    assert (outside / "scan.o").exists()
