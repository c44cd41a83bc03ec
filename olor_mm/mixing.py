"""Classes made at run time: a mixin over the class of something that a user or MMEngine has chosen."""

from functools import cache


@cache
def mixed(mixin: type, base: type) -> type:
    """A subclass of ``mixin`` and ``base`` with the name of ``base``; ``base`` itself if it has the mixin already."""
    if issubclass(base, mixin):
        return base
    return type(base.__name__, (mixin, base), dict(__module__=base.__module__, __doc__=base.__doc__))


def mix_in(instance: object, mixin: type) -> None:
    """Give an object, whose class has been chosen elsewhere, the methods of a mixin."""
    instance.__class__ = mixed(mixin, type(instance))  # type: ignore[arg-type]  # types are hashable
