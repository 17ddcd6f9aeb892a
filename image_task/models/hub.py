"""Models as folders and hub repositories, as every task has them: see `rmeeto.hub`."""

from rmeeto.hub import CONFIG, WEIGHTS, export, fetch, load

__all__ = ["CONFIG", "WEIGHTS", "export", "fetch", "load"]
