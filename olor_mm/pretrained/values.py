"""Fingerprints of tensors: the same value is recognised without a copy of it, also after it was moved or cast."""

import hashlib

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

CASTS = (torch.float32, torch.float16, torch.bfloat16)


def fingerprint(value: Tensor) -> bytes:
    """20 bytes that are the same for tensors whose elements are the same bit for bit.

    Args:
        value (torch.Tensor): Of any shape and dtype; one that ``fully_shard`` has sharded is gathered first.

    Returns:
        bytes: SHA-1 of the elements' bytes; shape and dtype are not in it.
    """
    data = _whole(value).flatten().view(torch.uint8)
    # of the hashes in Python the fastest on most processors, which have instructions for it; nobody forges weights here
    return hashlib.sha1(data.numpy(), usedforsecurity=False).digest()


def fingerprints(value: Tensor) -> dict[torch.dtype, bytes]:
    """Fingerprints of a value in its dtype and, of a floating one, in those it may be cast to later.

    Args:
        value (torch.Tensor): Of any shape and dtype.

    Returns:
        dict[torch.dtype, bytes]: A fingerprint for each dtype.
    """
    value = _whole(value)
    casts = CASTS if value.is_floating_point() else ()
    smaller = [dtype for dtype in casts if dtype.itemsize <= value.dtype.itemsize]
    return {dtype: fingerprint(value.to(dtype)) for dtype in {value.dtype, *smaller}}


def is_same(value: Tensor, prints: dict[torch.dtype, bytes]) -> bool:
    """Whether a tensor holds the value that these are the fingerprints of: as it was, or cast, there and back too.

    Args:
        value (torch.Tensor): Of any shape and dtype.
        prints (dict[torch.dtype, bytes]): From :func:`fingerprints`.
    """
    value = _whole(value)
    for dtype in sorted(prints, key=lambda dtype: dtype != value.dtype):
        cast = value.to(dtype)
        if (dtype == value.dtype or torch.equal(cast.to(value.dtype), value)) and fingerprint(cast) == prints[dtype]:
            return True
    return False


def holds(given: Tensor, own: Tensor) -> bool:
    """Whether ``given`` is a copy of ``own``, in its own dtype and on its own device."""
    is_plain = not hasattr(given, 'to_local') and not hasattr(own, 'to_local') and not own.is_meta
    return is_plain and given.shape == own.shape and torch.equal(own.detach().to(given.device, given.dtype), given)


def is_constant(value: Tensor) -> bool:
    """Whether all elements are equal, as in a fresh bias or norm layer: such a value does not say where it is from."""
    return value.numel() < 2 or bool((value == value.flatten()[0]).all())


def storage_of(value: Tensor) -> int:
    """The address of the memory that a tensor is in, alone or with others; 0 if it is in none."""
    if value.is_meta or is_lazy(value):
        return 0
    return (value.to_local() if hasattr(value, 'to_local') else value).untyped_storage().data_ptr()


def _whole(value: Tensor) -> Tensor:
    value = value.detach()
    value = value.full_tensor() if hasattr(value, 'full_tensor') else value  # sharded, as by FSDP2
    return value.cpu().contiguous()
