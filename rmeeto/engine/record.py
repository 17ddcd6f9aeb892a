"""The run folder: what was run, what happened, what came out; never overwritten silently."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import stat
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch

from rmeeto import __version__
from rmeeto.engine.dist import DEVICES, World
from rmeeto.engine.precision import AMP
from rmeeto.engine.progress import LINE_EVERY
from rmeeto.errors import UserError
from rmeeto.json_file import open_new, parse_json, read_json, write_json
from rmeeto.lock import lock
from rmeeto.settings import Need, Settings, refuse, setting

_ROOT = Path(__file__).resolve().parents[2]
RESUMED = Need(lambda config: config.run.resume, "there is no run.resume", fatal=True)
TRAINED_ON = "trained_on"  # the entry of config.json and of checkpoints, see `rmeeto.trained_on`
LONGEST_NAME = 200  # bytes; file systems take 255


@dataclass(frozen=True)
class RunConfig(Settings):
    """Where a run writes, and what it runs on."""

    output_dir: str = setting("./log", "folder of the run folders", harmless=True)
    name: str | None = setting(None, "of the run folder; none: <model>-<setting>", harmless=True)
    # NumPy takes 32 bits, and each process adds its rank.
    seed: int = setting(0, "of the weights, the drop path and the data", within="[0, inf)")
    eval: bool = setting(False, "evaluate only")
    resume: bool = setting(False, "go on with the run folder if it exists: to the last bit on CPU", harmless=True)
    data_changed: str = setting(
        "refuse",
        "where a resumed run finds other training data than before: refuse, or ok to go on",
        one_of=("refuse", "ok"),
        only="training",
        needs=RESUMED,
        harmless=True,
    )
    smoke: bool = setting(False, "a few batches of the embedded digits, without pre-trained weights")
    device: str = setting("auto", "auto, cpu or cuda", one_of=DEVICES, harmless=True)
    amp: str = setting("auto", "auto (bf16 on a GPU), bf16, fp16 or off", one_of=AMP)
    log_every: int = setting(
        50,
        "optimizer steps between two train lines of log.jsonl",
        within="[1, inf)",
        only="training",
        harmless=True,
    )
    line_every: float = setting(
        LINE_EVERY,
        "seconds between two lines on how far an epoch, an evaluation or a test is, where no terminal shows a bar",
        within="[0, inf)",
        harmless=True,
    )
    checkpoint_every: float = setting(
        2.0,
        "minutes between two checkpoints of an epoch, from which a run that dies goes on; 0: only at its end",
        within="[0, inf)",
        only="training",
        harmless=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.output_dir:
            refuse(self, "output_dir", "a folder")
        if not _is_component(self.name):
            refuse(self, "name", f"a name of 1 to {LONGEST_NAME} bytes without /, for one folder")


def state_of(
    path: Path,
    config: Mapping[str, Any],
    resume: bool,
    harmless: Collection[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> str:
    """Whether a run folder is "new", to be "continued", or "done" already.

    Args:
        path: of the run folder.
        config: of this run, in sections of plain values.
        resume: whether going on is wanted.
        harmless: settings, as `section.field`, that may differ from those of the folder.
        defaults: in sections, what a folder of an earlier version is taken to have where it lacks a setting.

    Raises:
        UserError: the folder exists and `resume` is not set, or it belongs to a run of other settings.
    """
    try:
        if not path.exists() or (path.is_dir() and not any(path.iterdir())):
            return "new"
    except OSError as error:  # the path is too long, or not to be seen
        raise UserError(f"{path} cannot be a run folder ({error.strerror}); choose another run.output_dir.") from None
    done = _is_result(path / "result.json")
    if not resume and done and config.get("run", {}).get("eval"):
        raise UserError(f"{path} holds a finished evaluation; give another run.name, or remove it.")
    if not resume:
        state = "holds a finished run" if done else "exists already"
        raise UserError(f"{path} {state}; set run.resume to go on with it, give another run.name, or remove it.")
    if not (path / "config.json").exists():
        raise UserError(f"{path} exists but holds no config.json, so it is no run folder; choose another run.name.")
    old = read_json(path / "config.json")
    old.pop(TRAINED_ON, None)
    for name, values in (defaults or {}).items():
        if isinstance(values, Mapping) and isinstance(old.get(name), Mapping):
            old[name] = {**values, **old[name]}
    found = differences(old, json.loads(json.dumps(config)), harmless)
    if found:
        listed = "; ".join(found[:8]) + (" and more" if len(found) > 8 else "")
        longer = [name.partition(" ")[0] for name in found] == ["optim.epochs"]
        raise UserError(
            f"{path} was run with other settings: {listed}. Use the same, or another run.name"
            + (
                " (a schedule ends with its last epoch: go on from the weights, with model.model_pth)."
                if longer
                else "."
            )
        )
    return "done" if done else "continued"


def _is_result(path: Path) -> bool:
    try:
        return isinstance(read_json(path).get("top1"), int | float)
    except UserError:
        return False


def _is_component(name: str | None) -> bool:
    """Whether a name stays within output_dir, with room for endings."""
    return name is None or (
        name not in ("", ".", "..") and not {"/", "\0"} & set(name) and len(os.fsencode(name)) <= LONGEST_NAME
    )


def differences(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    harmless: Collection[str],
    form: str = "{name} {old} there, {new} here",
) -> list[str]:
    """The settings, named as `section.field`, whose values differ, each in this form."""
    flat_old, flat_new = _flatten(old), _flatten(new)
    names = [name for name in {**flat_old, **flat_new} if name not in harmless]
    return [
        form.format(name=name[:60], old=str(flat_old.get(name))[:60], new=str(flat_new.get(name))[:60])
        for name in names
        if flat_old.get(name) != flat_new.get(name)
    ]


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat.update(_flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value})
    return flat


class RunFolder:
    """The files of one run. Only the main process writes; on the others every method does nothing.

    Args:
        path: of the folder; made here.
        config: written to config.json when the folder is new.
        world: the processes of this run.
        trained_on: the plain form of `rmeeto.trained_on.TrainedOn`, which config.json and the checkpoints hold as well.
    """

    def __init__(
        self,
        path: Path,
        config: Mapping[str, Any],
        world: World,
        trained_on: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = path
        self.trained_on = {} if trained_on is None else {TRAINED_ON: dict(trained_on)}
        self._writes = world.is_main
        self._log: Any = None
        self._board: Any = None
        world.on_main(lambda: self._create(config, world))

    def _create(self, config: Mapping[str, Any], world: World) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._log = _open_log(self.path / "log.jsonl")
            lock(self._log, self.path)
            if not (self.path / "config.json").exists():
                write_json(self.path / "config.json", {**config, **self.trained_on})
            env_file, now = self.path / "env.json", environment(world)
            if env_file.exists():
                first = read_json(env_file)
                earlier = first.get("resumed")
                now = {**first, "resumed": [*(earlier if isinstance(earlier, list) else ()), now]}
            write_json(env_file, now)
        except OSError as error:
            raise UserError(f"{self.path} cannot be written ({error}); choose another run.output_dir.") from None

    def start(
        self, step: int = 0, keep: Callable[[Mapping[str, Any]], bool] = lambda line: False, lines: int = 0
    ) -> list[str]:
        """Begin to log after optimizer step `step`.

        Args:
            keep: whether a line of the log was written before that; the others are cut off.
            lines: that there were then.

        Returns:
            What there is to say: of lines that are missing, of a log that is kept under another name.
        """
        if not self._writes:
            return []
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and only this process writes

        self._board = SummaryWriter(str(self.path), purge_step=step + 1 if step else None)
        path, notes = self.path / "log.jsonl", []
        old = self._read_log()
        kept = [line for line in old.splitlines(keepends=True) if _is_kept(line, keep)]
        new = b"".join(kept)
        if old and (not step or not old.startswith(new)):  # more goes than a tail behind the checkpoint
            copy = next(p for n in count(1) if not (p := path.with_name(f"log.{n}.jsonl")).exists())
            with open_new(copy) as file:
                file.write(old)
            notes.append(f"the log so far is kept as {copy}")
        self._log.truncate(len(new) if old.startswith(new) else 0)
        if not old.startswith(new):
            self._log.write(new.decode())
        self._log.flush()
        if len(kept) < lines:
            notes.append(f"{path} has {len(kept)} of its {lines} lines up to step {step}; the others are lost")
        return notes

    def log(self, event: str, position: Mapping[str, int], values: Mapping[str, Any], **process: float) -> None:
        """One line of log.jsonl and one TensorBoard scalar a number.

        Args:
            event: "train", "eval", ...
            position: epoch (from 1) and step (optimizer steps done).
            values: what a repetition of the run would give again.
            process: what it would not (seconds and the like); kept apart, under "process".
        """
        if not self._writes:
            return
        if not self.path.is_dir():
            raise UserError(f"{self.path} is gone, removed or moved during the run; start anew with another run.name.")
        line = {"event": event, **position, **values, **({"process": process} if process else {})}
        try:
            self._log.write(json.dumps(line) + "\n")
            self._log.flush()
        except OSError as error:
            raise UserError(
                f"{self.path / 'log.jsonl'} cannot be written ({error.strerror}); make room for it, and go on with "
                "run.resume=True."
            ) from None
        for name, value in {**values, **process}.items():
            if isinstance(value, int | float):
                self._board.add_scalar(f"{event}/{name}", value, position["step"])
        self._board.flush()  # its thread would meet a folder removed since with a traceback

    def log_lines(self) -> int:
        """Lines of log.jsonl, which are on the disk when this returns."""
        if not self._writes:
            return 0
        os.fsync(self._log.fileno())
        return self._read_log().count(b"\n")

    def _read_log(self) -> bytes:
        """Through the file that is open: to close another one of it would end the lock, which is the process's."""
        descriptor = self._log.fileno()
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0)

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write result.json, which marks the run as done."""
        if self._writes:
            write_json(self.path / "result.json", result)

    def close(self) -> None:
        """Let go of the files."""
        for file in (
            self._log,
            self._board if self.path.is_dir() else None,
        ):  # a board's thread would fail aloud
            if file is not None:
                with contextlib.suppress(OSError):  # a full disk, which `log` has said
                    file.close()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open_log(path: Path) -> Any:
    """The log to append to: a file of our own, no link or pipe in its place."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path.name} is no regular file")
    return open(descriptor, "a", encoding="utf-8")


def _is_kept(line: bytes, keep: Callable[[Mapping[str, Any]], bool]) -> bool:
    """Whether a whole line of the log, of the kind that `log` writes, is to be kept."""
    try:
        found = parse_json(line)
    except ValueError:
        return False
    known = isinstance(found, dict) and all(type(found.get(name)) is int for name in ("epoch", "step"))
    return known and line.endswith(b"\n") and keep(found)


def environment(world: World) -> dict[str, Any]:
    """What a run ran on: versions, device, processes, commit, command."""
    on_gpu = world.device.type == "cuda"
    script = Path(os.path.relpath(sys.argv[0], _ROOT)) if sys.argv[0].startswith(str(_ROOT)) else Path(sys.argv[0])
    return {
        "command": ["python", str(script), *sys.argv[1:]],
        "commit": _commit(),
        "rmeeto": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if on_gpu else None,
        "device": torch.cuda.get_device_name(world.device) if on_gpu else f"{platform.machine()} CPU",
        "processes": world.size,
        "threads": torch.get_num_threads(),
        "system": platform.system(),
    }


def _commit() -> str | None:
    if not (_ROOT / ".git").exists():
        return None
    command = ["git", "-C", str(_ROOT), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
