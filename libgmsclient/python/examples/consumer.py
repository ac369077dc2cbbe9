# SPDX-License-Identifier: MIT
"""Attaches to the model that producer.py published, without a copy; sleeps, and wakes up at the same addresses."""
import sys
import time

import gms
import torch
from model import Model

store = sys.argv[1] if len(sys.argv) > 1 else "host/model"

# Shapes and dtypes, no memory.
with gms.parameters_on_meta():
    model = Model()

# Should nothing be published yet, this waits for it. Other content is refused.
begin = time.perf_counter()
session = gms.attach(store, identity="example@1", deadline=10)
session.into(model).eval()
print(f"attached in {(time.perf_counter() - begin) * 1e3:.1f} ms")


def checksum():
    ids = torch.arange(64, device=model.head.weight.device)[None]
    with torch.inference_mode():
        return f"checksum {model(ids).double().sum().item():.6f}"


print(checksum())

session.sleep()  # the memory is the store's alone; every address is kept
changed = session.wake()
print(f"awake again, contents {'changed' if changed else 'as before'}: {checksum()}")

# A service would look at session.fileno() in its loop, or watch() in a thread.
for event in session.watch(timeout=0):
    if event.kind == "published":
        session.refresh()

session.close()
