"""What a child process may do, and how it is noticed that it does more."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import socket
import struct
import sys
import tempfile
from pathlib import Path
from typing import Any

from rmeeto.ops.cache import cache_folder
from tests.fuzz.mutate import HOST, OWN, PORT

MEMORY = 2 << 30  # bytes beyond what the parent has
LARGEST_FILE = 256 << 20
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Events of Python's audit whose first argument, and second for some, is a path that is changed.
_CHANGES = {
    "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.chown", "os.truncate",
    "os.utime", "shutil.rmtree", "shutil.move", "shutil.copyfile",
}  # fmt: skip
_NETWORK = {"socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request"}
_STARTS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn"}
# inotify: opened, modified, attributes, moved, created, deleted
_OPEN, _CHANGED = 0x20, 0x2 | 0x4 | 0xC0 | 0x100 | 0x200 | 0x400
_FOLDER = 0x40000000


class Sandbox:
    """A scratch folder: `run`, where an input is tried; `home` and `tmp`; and `outside`, which is watched.

    The audit sees what Python does, wherever; inotify what any library does to `outside`; the socket, connections.
    """

    def __init__(self, folder: Path) -> None:
        self.run, self.outside, self.output = folder / "run", folder / "outside", folder / "output"
        self._scratch = f"{folder.resolve()}/"
        for name in ("outside", "home", "tmp"):
            (folder / name).mkdir(parents=True)
        for name in ("secret.json", "model.safetensors", "clip.mp4", "picture.jpg"):
            (self.outside / name).write_text('{"model_args": {}}')
        os.environ.setdefault("RMEETO_CACHE", str(cache_folder()))  # kernels are built once, not for each input
        os.environ.update(HOME=str(folder / "home"), TMPDIR=str(folder / "tmp"))
        tempfile.tempdir = None  # read again
        self._watch = _inotify(self.outside)
        self._sockets = [*filter(None, map(_listen, (HOST, OWN)))]
        self._seen: list[str] = []
        self._armed = False
        self._programs: tuple[str, ...] = ()
        sys.addaudithook(self._audit)

    def limit(self) -> None:
        """The limits of this process, and of those that it starts."""
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        output = os.open(self.output, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.dont_write_bytecode = True  # else an import that comes late writes beside its source

    def enter(self, programs: tuple[str, ...]) -> None:
        """An empty current folder, and no complaints from before."""
        os.chdir("/")
        if self.run.exists():
            os.chmod(self.run, 0o700)
            shutil.rmtree(self.run)
        self.run.mkdir()
        os.chdir(self.run)
        if self.output.exists():
            os.truncate(self.output, 0)
        self._programs, self._seen = programs, []
        self.complaint(False)
        self._armed = True

    def stop(self) -> None:
        """Stop watching."""
        self._armed = False

    def leave(self) -> str:
        """Stop watching; what was printed meanwhile."""
        self.stop()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        return self.output.read_text(errors="replace")

    def complaint(self, may_read: bool) -> str:
        """What the input has made the process do that it must not, if anything."""
        seen, self._seen = self._seen, []
        while True:
            try:
                events = os.read(self._watch, 65536)
            except BlockingIOError:
                break
            at = 0
            while at < len(events):
                _, mask, _, size = struct.unpack_from("iIII", events, at)
                name = events[at + 16 : at + 16 + size].rstrip(b"\0").decode(errors="replace")
                at += 16 + size
                if mask & _CHANGED or not (may_read or mask & _FOLDER):  # others may list folders
                    seen.append(f"outside/{name} was {'changed' if mask & _CHANGED else 'opened'}")
        for server in self._sockets:
            try:
                server.accept()[0].close()
                seen.append("a connection was made")
            except BlockingIOError:
                pass
        return "; ".join(dict.fromkeys(seen))

    def _audit(self, event: str, arguments: Any) -> None:
        if not self._armed:
            return
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & _WRITES:
                self._changes(event, path)
        elif event in _CHANGES:
            for path in arguments[: 2 if event in ("os.rename", "os.link", "shutil.move") else 1]:
                if event != "os.remove" or arguments[1] in (-1, None):
                    self._changes(event, arguments[1] if event == "os.symlink" else path)
        elif event in _NETWORK:
            self._seen.append(f"{event} {arguments[-1] if event == 'socket.connect' else arguments!r:.100}")
        elif event in _STARTS and os.path.basename(str(arguments[0])) not in self._programs:
            self._seen.append(f"{event} {arguments[0]!r:.100}")

    def _changes(self, event: str, path: Any) -> None:
        if isinstance(path, int) or path is None:
            return
        self._armed = False  # realpath may be audited itself
        try:
            name = os.fsdecode(path)
            real = os.path.join(os.path.realpath(os.path.dirname(name) or "."), os.path.basename(name))
            within = f"{os.path.normpath(real)}/".startswith(self._scratch) and "/outside/" not in real
            if not within and real not in ("/dev/null", "/dev/tty"):
                self._seen.append(f"{event} of {real}")
        finally:
            self._armed = True


def _inotify(folder: Path) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if libc.inotify_add_watch(descriptor, os.fsencode(folder), _OPEN | _CHANGED) < 0:
        raise OSError(ctypes.get_errno(), "inotify")
    return descriptor


def _listen(host: str) -> socket.socket | None:
    server = socket.socket()
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        server.bind((host, PORT))
    except OSError:  # no such address here: the audit sees Python's connections
        return None
    server.listen(8)
    server.setblocking(False)
    return server
