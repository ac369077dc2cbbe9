# SPDX-License-Identifier: MIT
"""Which torch device a store's memory is on. Devices are known by UUID: their ordinals differ between processes."""
from __future__ import annotations

import errno
import functools
import sys
from typing import TYPE_CHECKING

from ._library import Error

if TYPE_CHECKING:
    import torch


@functools.lru_cache(maxsize=None)
def torch_device(uuid: str) -> torch.device:
    """The device of `uuid` as gmsd tells it: "host", or "GPU-..."."""
    import torch
    if uuid == "host":
        return torch.device("cpu")
    for n in range(torch.cuda.device_count()):
        if f"GPU-{torch.cuda.get_device_properties(n).uuid}" == uuid:
            return torch.device("cuda", n)
    raise Error(errno.ENODEV, f"torch shows no GPU {uuid} in this process; look at CUDA_VISIBLE_DEVICES")


def synchronize(uuid: str) -> None:
    """
    Waits until the GPU has done what torch queued in this process: before mappings change under it. Nothing is initialised
    for it: a process that has not used a GPU has queued nothing there.
    """
    torch = sys.modules.get("torch")
    if uuid != "host" and torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize(torch_device(uuid))
