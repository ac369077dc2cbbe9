# SPDX-License-Identifier: MIT
"""
Publishes a model; then this process may end. Run a gmsd first, and consumer.py after:

    gmsd --socket /tmp/gms.sock &
    export GMS_SOCKET=/tmp/gms.sock PYTHONPATH=libgmsclient/python
    python3 libgmsclient/python/examples/producer.py host/model         # or cuda:0/model
    python3 libgmsclient/python/examples/consumer.py host/model
"""
import sys

import gms
import torch
from model import Model

store = sys.argv[1] if len(sys.argv) > 1 else "host/model"
device = "cpu" if store.startswith("host") else "cuda"

# Waits until nobody else uses the store. On a GPU, what is allocated inside lies in the store already.
with gms.pool(store):
    torch.manual_seed(1)
    model = Model().to(device).eval()

# One atomic step. The session is a reader's: this process may go on with the model, or end.
with gms.publish(model, identity="example@1") as session:
    print(f"{store}: generation {session.generation}, {len(session.manifest())} tensors, {session.state().bytes >> 10} KiB")
    with torch.inference_mode():
        print(f"checksum {model(torch.arange(64, device=device)[None]).double().sum().item():.6f}")
