"""How much memory an epoch of chapter 07's network takes, ours against a loop written by hand.

Both sides keep a record and averages, and each has its own process. The peak is the largest
resident set during the epoch minus the one before it. On a GPU, it's the peak of PyTorch's
allocator.

python benchmarks/memory.py
"""
import resource
import statistics
import subprocess
import sys
import threading
import time

import torch
from common import claim, options, ratios, spread, where
from epoch import hand, ours

from minifastai.device import default_device


def resident() -> int:
    "Return this process's bytes in memory"
    if sys.platform != 'linux': return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open('/proc/self/statm') as f: return int(f.read().split()[1])*resource.getpagesize()


class Watch(threading.Thread):
    "Records the largest resident set while a `with` block runs"
    def __init__(self):
        super().__init__()
        self.done = threading.Event()
        self.top = 0

    def run(self):
        while not self.done.is_set():
            self.top = max(self.top, resident())
            time.sleep(0.002)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *exc):
        self.done.set()
        self.join()


def peak(kind:str) -> float:
    "Return the MiB that two epochs add"
    device = default_device()
    on_gpu = device.type == 'cuda'
    x = torch.randn(20_000, 784, device=device)
    y = torch.randint(10, (20_000,), device=device)
    fit = hand(x, y) if kind == 'by hand' else ours(x, y, True)
    before = resident()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    with Watch() as watch:
        for _ in range(2): fit()
    top = torch.cuda.max_memory_allocated() if on_gpu else watch.top
    return (top - before)/2**20


def measure(kind:str) -> float:
    "Return the MiB that two epochs add in a fresh process"
    command = [sys.executable, __file__, '--only', kind]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main(rounds:int):
    print(where())
    found = {'by hand': [], 'ours': []}
    for _ in range(rounds):
        for kind, values in found.items(): values.append(measure(kind))
    for kind, values in found.items(): print(f"{kind:8} {spread(values, '.1f')} MiB")
    times = ratios(found['ours'], found['by hand'])
    print(f"ratio    {spread(times)}")
    claim('peak memory of an epoch, times that by hand', 1.05, statistics.median(times))


if __name__ == '__main__':
    if '--only' in sys.argv: print(peak(sys.argv[-1]))
    else: main(options(__doc__, rounds=3).rounds)
