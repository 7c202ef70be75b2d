"""How much memory an epoch of chapter 07's network takes: ours, with recorder and averages, against a loop written by hand, each in a process of its own.

The peak is the largest resident set during the epoch less that before it (on a GPU: the peak that PyTorch's allocator saw).
python benchmarks/memory.py
"""
import resource
import statistics
import subprocess
import sys
import threading
import time

import torch
from common import claim, options, spread, where
from epoch import hand, ours

from minifastai.device import default_device


def resident() -> int:
    "Bytes of this process that are in memory now"
    if sys.platform != 'linux': return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open('/proc/self/statm') as f: return int(f.read().split()[1])*resource.getpagesize()


def peak(kind:str) -> float:
    "MiB that two epochs add"
    device = default_device()
    x, y = torch.randn(20_000, 784, device=device), torch.randint(10, (20_000,), device=device)
    fit = hand(x, y) if kind == 'by hand' else ours(x, y, True)
    before, top, done = resident(), [0], threading.Event()
    def watch():
        while not done.is_set(): top[0] = max(top[0], resident()); time.sleep(0.002)
    if device.type == 'cuda': torch.cuda.reset_peak_memory_stats(); before = torch.cuda.memory_allocated()
    watcher = threading.Thread(target=watch); watcher.start()
    for _ in range(2): fit()
    done.set(); watcher.join()
    return ((torch.cuda.max_memory_allocated() if device.type == 'cuda' else top[0]) - before)/2**20


def main(rounds:int):
    print(where())
    found = {'by hand': [], 'ours': []}
    for _ in range(rounds):
        for kind, values in found.items():
            values.append(float(subprocess.run([sys.executable, __file__, '--only', kind], capture_output=True, text=True, check=True).stdout))
    for kind, values in found.items(): print(f"{kind:8} {spread(values, '.1f')} MiB")
    print(f"ratio    {spread([a/b for a, b in zip(found['ours'], found['by hand'])])}")
    claim('peak memory of an epoch, times that by hand', 1.05, statistics.median([a/b for a, b in zip(found['ours'], found['by hand'])]))


if __name__ == '__main__':
    if '--only' in sys.argv: print(peak(sys.argv[-1]))
    else: main(options(__doc__, rounds=3).rounds)
