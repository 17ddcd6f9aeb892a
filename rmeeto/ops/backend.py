"""Who runs an operator, and why: one ladder of backends per operator, best first."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch

from rmeeto.errors import UserError

NAMES = ("naive", "torch", "cpp", "triton", "upstream", "auto")
ENVIRONMENT = "RMEETO_BACKEND"
_left_whole = ContextVar("left_whole", default=False)
_steps_left = ContextVar("steps_left", default=False)


class BackendUnavailable(RuntimeError):
    """A backend cannot run here; the message says why."""


@dataclass(frozen=True)
class Backend:
    """One implementation of an operator.

    Args:
        name: one of `NAMES`.
        devices: device types that it runs on.
        load: returns the implementation, or raises `BackendUnavailable` with the reason.
        automatic: whether ``auto`` may choose it.
    """

    name: str
    devices: tuple[str, ...]
    load: Callable[[], Callable]
    automatic: bool = True


def _is_watched() -> bool:
    """Whether torch.jit.trace or a transform of torch.func looks on, which know torch's own operators alone."""
    return torch._C._get_tracing_state() is not None or torch._C._are_functorch_transforms_active()


class Operator:
    """An operator and its backends.

    Args:
        name: as the doctor shows it.
        backends: best first.
        whole: what makes the operator one node of an exported graph; None: what it is made of stands there.
    """

    def __init__(self, name: str, backends: Iterable[Backend], whole: Callable | None = None) -> None:
        self.name = name
        self.backends = tuple(backends)
        self._whole = whole
        self._names: dict[tuple[str, str, str], str] = {}
        self._loaded: dict[str, Callable] = {}

        @torch.compiler.assume_constant_result  # a compiled graph keeps what was chosen while it was traced
        def choose(device_type: str, requested: str) -> str:
            key = (device_type, requested, os.environ.get(ENVIRONMENT, "auto"))
            if key not in self._names:
                name, implementation = self._resolve(*key)
                self._loaded[name] = implementation  # first: another thread may look in between
                self._names[key] = name
            return self._names[key]

        self._choose = choose

    def implementation(self, device_type: str, requested: str = "auto") -> Callable:
        """The function to call for tensors on ``device_type``.

        Args:
            device_type: ``cpu``, ``cuda``, ...
            requested: a backend's name, or ``auto``: the one that ``RMEETO_BACKEND`` names if this operator has it on
                any device, else the best that runs here.

        Raises:
            UserError: an unknown name, or a backend that is not for this device or cannot run here.
        """
        if self._whole is not None and _left_whole.get():
            return self._whole
        if requested == "auto" and not torch.compiler.is_compiling() and _is_watched():
            requested = next((b.name for b in self.backends if b.name == "torch"), requested)
        return self._loaded[self._choose(device_type, requested)]

    def runs(self, name: str, device_type: str) -> bool:
        """Whether the function that `implementation` gives here and now is that of the backend ``name``."""
        return self.implementation(device_type) is self._loaded.get(name)

    def chosen(self, device_type: str) -> str:
        """Name of the backend that ``auto`` stands for on this device type."""
        return self._choose(device_type, "auto")

    def explain(self, device_type: str) -> list[tuple[str, str]]:
        """(name, state) of each backend; the state is ``chosen``, ``available``, or why it is not there."""
        chosen = self.chosen(device_type)
        return [(backend.name, self._state(backend, device_type, chosen)) for backend in self.backends]

    def _state(self, backend: Backend, device_type: str, chosen: str) -> str:
        if device_type not in backend.devices and "any" not in backend.devices:
            return f"for {', '.join(backend.devices)} only"
        try:
            backend.load()
        except BackendUnavailable as reason:
            return str(reason)
        return "chosen" if backend.name == chosen else "available"

    def _resolve(self, device_type: str, requested: str, forced: str) -> tuple[str, Callable]:
        _check(requested, "backend")
        _check(forced, ENVIRONMENT)
        name, where = requested, "backend"
        if requested == "auto" and any(backend.name == forced for backend in self.backends):
            name, where = forced, ENVIRONMENT  # one that only other operators have forces nothing here
        usable = [b for b in self.backends if device_type in b.devices or "any" in b.devices]
        if name != "auto":
            named = [backend for backend in usable if backend.name == name]
            if not named:
                has = ", ".join(backend.name for backend in usable)
                raise UserError(
                    f"{where}={name!r}: {self.name} has no backend {name!r} for {device_type}; this operator has {has}"
                )
            try:
                return name, named[0].load()
            except BackendUnavailable as reason:
                raise UserError(f"{where}={name!r}: that backend of {self.name} cannot run here: {reason}") from reason
        for backend in usable:
            if not backend.automatic:
                continue
            try:
                return backend.name, backend.load()
            except BackendUnavailable:
                continue
        raise UserError(f"{self.name}: no backend runs on {device_type!r}")


@contextmanager
def forced(name: str) -> Iterator[None]:
    """Within it, operators that have this backend run on it: as with ``RMEETO_BACKEND=<name>``.

    Raises:
        UserError: an unknown name.
    """
    _check(name, "backend")
    before = os.environ.get(ENVIRONMENT)
    os.environ[ENVIRONMENT] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ[ENVIRONMENT]
        else:
            os.environ[ENVIRONMENT] = before


@contextmanager
def left_whole(steps: bool = False) -> Iterator[None]:
    """Within it, a graph that is exported holds each operator as one node; that needs no kernel here.

    Args:
        steps: whether a scan's node projects its step sizes too, which no kernel on a CPU does.
    """
    tokens = _left_whole.set(True), _steps_left.set(steps)
    try:
        yield
    finally:
        _left_whole.reset(tokens[0])
        _steps_left.reset(tokens[1])


def are_steps_left() -> bool:
    """Whether `left_whole` leaves the projection of the step sizes to a scan's node."""
    return _steps_left.get()


def _check(name: str, where: str) -> None:
    if name not in NAMES:
        raise UserError(f"{where}={name!r}; expected one of {NAMES}")
