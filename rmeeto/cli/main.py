"""The frame of a task's main program: settings read and checked, errors in one or two lines, exit codes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from rmeeto.cli.command import Command
from rmeeto.cli.config import TaskConfig
from rmeeto.engine.dist import RankError, is_main_process, launch_notes, lost_process
from rmeeto.engine.preempt import EXIT_CODE, Preempted
from rmeeto.engine.progress import wrapped
from rmeeto.errors import UserError, shown


def run_command(
    argv: Sequence[str] | None,
    command: Command,
    check: Callable[[Any], list[str]],
    run: Callable[[Any], Any],
    rehearse: Callable[[Any], str],
) -> int:
    """Run a command line; errors that the user can fix are one or two lines on stderr.

    Args:
        argv: without the program's name; None for this process's own.
        command: what its flags are.
        check: what can be checked of the settings without touching data or weights; returns lines to print.
        run: what the settings say.
        rehearse: all of it up to the first step, without writing; returns a line on what was found.

    Returns:
        The exit code: 0, 1 when nobody reads the output any more or another process is gone, 2 for a user error, 75
        after SIGTERM or SIGUSR1 (with --resume the same command goes on), 130 after Ctrl-C.
    """
    is_main = is_main_process()
    config = None
    try:
        config, mode, notices = command.parse(sys.argv[1:] if argv is None else argv)
        notices += [*map(command.in_flags, check(config)), *launch_notes()]
        for notice in notices if is_main else ():
            print(f"note: {shown(notice)}", file=sys.stderr)
        if mode == "dry_run":
            print(json.dumps(config.to_dict(), indent=2, allow_nan=False), flush=True)
        elif mode == "check":
            found = rehearse(config)
            if is_main:
                first, *others = shown(found).split("; ")
                lines = [f"ready: {first}", *(f"       {other}" for other in others)]
                print(*(line for text in lines for line in wrapped(text)), sep="\n", flush=True)
        else:
            run(config)
        return 0
    except Preempted as error:
        if is_main:
            print(f"stopped by {shown(str(error))}", file=sys.stderr)
        return EXIT_CODE
    except UserError as error:
        if is_main or isinstance(error, RankError):
            print(f"error: {command.in_flags(str(error))}", file=sys.stderr)
        return 2
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if (lost := lost_process(error)) is not None:
            print(
                f"error: a process has lost another one ({shown(lost)}); with --resume the same command goes on from "
                "the last checkpoint",
                file=sys.stderr,
            )
            return 1
        on_gpu = isinstance(error, torch.OutOfMemoryError)
        if not on_gpu and "DefaultCPUAllocator" not in str(error):
            raise
        where = "GPU" if on_gpu else "machine"
        print(
            f"error: the {where} has too little memory; lower --batch_size and raise --accumulation",
            file=sys.stderr,
        )
        return 2
    except BrokenPipeError:  # who read the output, such as head, has left; the exit flushes it once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a name that no disk takes, a folder of somebody else's, a full disk
        what = "" if error.filename is None else f"{shown(error.filename)} cannot be used: "
        print(f"error: {what}{shown(error.strerror or str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if is_main:
            print(_farewell(config), file=sys.stderr)
        return 130


def _farewell(config: TaskConfig | None) -> str:
    if config is None or not (config.folder / "last.pt").exists():
        return "interrupted before the first checkpoint"
    return f"interrupted; the same command with --resume goes on from {shown(config.folder / 'last.pt')}"
