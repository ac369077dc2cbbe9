# SPDX-License-Identifier: MIT
"""
Sleep and wake under a captured CUDA graph; the same addresses in two processes; and what a kernel's write to a read-only
tensor does, to whom.
"""
import signal
import time

import torch_gpu
from torch_gpu import Child, expect, in_child, ms, settled, used

import gms
import torch

STORE = "cuda:0/graph"
N = 4096
PADDING = 2 << 30  # bytes: enough to see on the GPU
ADDRESS = 0x5000_0000_0000


def weights(seed):
    torch.manual_seed(seed)
    a, b = (torch.randn(N, N, device="cuda", dtype=torch.bfloat16) / 64 for _ in range(2))
    return {"a": a, "b": b, "padding": torch.full((PADDING,), seed, device="cuda", dtype=torch.uint8)}


def publish(seed, mode):
    begin = time.perf_counter()
    gms.publish(weights(seed), STORE, f"seed {seed}", mode=mode).close()
    return time.perf_counter() - begin


def compute(x, t):
    return torch.relu(x @ t["a"]) @ t["b"] + t["padding"][-1]


def expected(seed):
    x = torch.ones(8, N, device="cuda", dtype=torch.bfloat16)
    return compute(x, weights(seed)).cpu()


def graph(child, one, two):
    session = gms.attach(STORE, deadline=10)
    t = session.tensors()
    at = {n: x.data_ptr() for n, x in t.items()}
    x = torch.ones(8, N, device="cuda", dtype=torch.bfloat16)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        compute(x, t)
    torch.cuda.synchronize()
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        y = compute(x, t)

    def replay():
        y.zero_()
        captured.replay()
        return y.cpu()
    facts = {"first": torch.equal(replay(), one)}
    begin = time.perf_counter()
    session.sleep()
    asleep = time.perf_counter()
    changed = session.wake()
    facts["times"] = asleep - begin, time.perf_counter() - asleep
    facts["woken"] = not changed and torch.equal(replay(), one)
    session.sleep()
    child.send(facts)
    child.go()
    facts["moved"] = session.refresh()
    child.send(facts)
    child.go()
    facts["changed"] = session.wake()
    facts["new"] = torch.equal(replay(), two)
    facts["addresses"] = {n: x.data_ptr() for n, x in session.tensors().items()} == at
    return facts


class Steered(Child):
    """Goes on when it is told to."""

    def __init__(self, run, limit=60):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        super().__init__(run, limit)

    def go(self):
        signal.sigwait([signal.SIGUSR1])

    def on(self):
        import os
        os.kill(self.pid, signal.SIGUSR1)


def fixed(child):
    session = gms.attach(STORE, address=ADDRESS, deadline=10)
    child.send({n: x.data_ptr() for n, x in session.tensors().items()})
    signal.pause()


def neighbour(child, two):
    t = gms.attach(STORE, deadline=10).tensors()
    x = torch.ones(8, N, device="cuda", dtype=torch.bfloat16)
    child.send("computes")
    rounds, until = 0, time.monotonic() + 5
    while time.monotonic() < until:
        if not torch.equal(compute(x, t).cpu(), two):
            return 0
        rounds += 1
    return rounds


def write(how):
    t = gms.attach(STORE, deadline=10).tensors()["a"]
    try:
        if how == "kernel":
            t.add_(1)
        else:
            t.copy_(torch.zeros(N, N, dtype=torch.bfloat16))
        torch.cuda.synchronize()
    except RuntimeError as e:
        try:
            torch.ones(1, device="cuda").cpu()
            lost = False
        except RuntimeError:
            lost = True
        return str(e).splitlines()[0], lost
    return "", False


def main():
    torch_gpu.start()
    print(f"torch {torch.__version__}: graphs, addresses, read-only")
    one, two = in_child(expected, 1), in_child(expected, 2)
    base = used()
    in_child(publish, 1, "rw")
    size = (PADDING + 2 * N * N * 2) >> 20
    taken = settled(base + size, 32) - base
    expect(abs(taken - size) <= 32, "published, and its publisher gone", f"{taken} MiB")

    sleeper = Steered(lambda child: graph(child, one, two))
    facts = sleeper.receive()
    expect(facts["first"], "captured over attached weights: right")
    expect(facts["woken"], "slept, woken, replayed: right", "sleep {}, wake {}".format(*map(ms, facts["times"])))
    asleep = used()
    in_child(publish, 2, "update")
    both = settled(asleep + size, 64)
    expect(abs(both - asleep - size) <= 64, "another generation beside the sleeper's takes", f"{both - asleep} MiB")
    sleeper.on()
    facts = sleeper.receive()
    freed = both - settled(asleep, 64)
    expect(facts["moved"] and abs(freed - size) <= 64, "asleep, nothing keeps the old one: given back", f"{freed} MiB")
    sleeper.on()
    facts = sleeper.result()
    expect(facts["changed"] and facts["new"] and facts["addresses"], "woken over the new one: replayed, right, same addresses")

    pair = [Child(fixed) for _ in range(2)]
    places = [child.receive() for child in pair]
    low = min(places[0].values())
    expect(places[0] == places[1] and ADDRESS <= low < ADDRESS + (4 << 30), "two processes, the same addresses", hex(low))
    for child in pair:
        child.kill()

    other = Child(lambda child: neighbour(child, two))
    other.receive()
    text, lost = in_child(write, "kernel")
    expect(bool(text) and lost, "a kernel writes to a read-only tensor: its context is lost")
    print(f"      {text}")
    text, lost = in_child(write, "copy")
    expect(bool(text), "a copy to one is refused", "context lost" if lost else "context unharmed")
    print(f"      {text}")
    rounds = other.result()
    expect(rounds > 0, "a neighbour computed on, right results", f"{rounds} rounds")
    torch_gpu.gmsctl("clear", STORE)
    torch_gpu.finish()


main()
