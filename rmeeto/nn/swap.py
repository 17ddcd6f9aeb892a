"""Another class for a module that exists: the same parameters and names, another forward pass, and back."""

from __future__ import annotations

from functools import cache

from torch import nn


class Swapped:
    """A class that another class was swapped for; ``dense_class`` is the other one."""

    dense_class: type
    mixin: type

    def __reduce__(self) -> tuple:
        # The swapped class is made on the fly, so copies and pickles name what it is made of.
        return _revive, (self.mixin, self.dense_class), self.__getstate__()


@cache
def _swapped_class(mixin: type, dense: type) -> type:
    members = {"mixin": mixin, "dense_class": dense, "__doc__": dense.__doc__, "__module__": __name__}
    return type(f"Merging{dense.__name__}", (Swapped, mixin, dense), members)


def _revive(mixin: type, dense: type) -> nn.Module:
    merging = _swapped_class(mixin, dense)
    return merging.__new__(merging)


def swap(module: nn.Module, mixin: type) -> None:
    """Put a mixin before a module's class."""
    module.__class__ = _swapped_class(mixin, type(module))


def unswap(module: nn.Module) -> None:
    """Take it off again, with the attributes that it has set."""
    for name in vars(module.mixin):  # the settings, each with its default in the mixin
        module.__dict__.pop(name, None)
    module.__class__ = module.dense_class
