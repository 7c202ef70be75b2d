"""How much longer `import torch` takes with the package's modules, and what `minifastai.all`, with pyplot, adds.

Each import has a fresh interpreter; they take turns.
Run it with nothing else going on: python benchmarks/imports.py
"""
import statistics
import subprocess
import sys

from common import claim, options, spread, where

CASES = {'torch': 'import torch', 'every module': 'import torch; import minifastai.cli', 'minifastai.all': 'import torch; import minifastai.all'}


def seconds(code:str) -> float:
    return float(subprocess.run([sys.executable, '-c', f'import time; start = time.perf_counter(); {code}; print(time.perf_counter() - start)'], capture_output=True, text=True, check=True).stdout)


def main(rounds:int):
    print(where())
    times = {name: [] for name in CASES}
    for i in range(rounds + 1):
        for name, code in CASES.items():
            s = seconds(code)
            if i: times[name].append(s)   # the first round fills the disk's cache
    for name, s in times.items():
        more = '' if name == 'torch' else f"; {spread([a - b for a, b in zip(s, times['torch'])], '+.2f')} s more than torch"
        print(f"{name:16} {spread(s, '.2f')} s{more}")
    claim('importing every module, seconds more than torch', 0.3, statistics.median([a - b for a, b in zip(times['every module'], times['torch'])]))
    own = subprocess.run([sys.executable, '-X', 'importtime', '-c', CASES['every module']], capture_output=True, text=True, check=True).stderr
    rows = [line.removeprefix('import time:').split('|') for line in own.splitlines()[1:]]
    after = rows[next(i for i, r in enumerate(rows) if r[2] == ' torch') + 1:]
    slowest = sorted(((int(r[0]), r[2].strip()) for r in after), reverse=True)[:6]
    print('slowest by themselves: ' + ', '.join(f'{name} {us/1000:.0f} ms' for us, name in slowest))


if __name__ == '__main__': main(options(__doc__, rounds=5).rounds)
