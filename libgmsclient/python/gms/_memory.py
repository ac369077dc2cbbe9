# SPDX-License-Identifier: MIT
"""Torch tensors as ranges of bytes."""
from __future__ import annotations

from typing import Sequence

import torch

ALIGNMENT = 256  # no type's is larger


def extent(tensor: torch.Tensor) -> tuple[int, int]:
    """The addresses of its first byte and of the one behind its last. What is empty is nowhere, also beside what is not."""
    if not tensor.numel():
        return 0, 0
    elements = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride())) + 1
    return tensor.data_ptr(), tensor.data_ptr() + elements * tensor.element_size()


def flat(tensor: torch.Tensor) -> torch.Tensor:
    """Its extent, as uint8 over the same memory."""
    start, end = extent(tensor)
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(
        tensor.untyped_storage(), tensor.storage_offset() * tensor.element_size(), (end - start,), (1,))


def private_copies(shared: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Copies of tensors over one piece of memory, that are views of one storage as well."""
    extents = [extent(t) for t in shared]
    begin = min((start for start, end in extents if end), default=0) // ALIGNMENT * ALIGNMENT
    memory = torch.empty(max(end for _, end in extents) - begin, dtype=torch.uint8, device=shared[0].device)
    copies = []
    for tensor, (start, end) in zip(shared, extents):
        if not end:
            copies.append(torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device))
            continue
        memory[start - begin:end - begin].copy_(flat(tensor))
        copies.append(torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(
            memory.untyped_storage(), (start - begin) // tensor.element_size(), tensor.shape, tensor.stride()))
    return copies
