"""How much longer `import torch` takes with the package's modules, and with `minifastai.all`.

Each import has a fresh interpreter, and they take turns. `minifastai.all` also imports pyplot.

Run it with nothing else going on: python benchmarks/imports.py
"""
import statistics
import subprocess
import sys

from common import claim, options, spread, where

CASES = {
    'torch': 'import torch',
    'every module': 'import torch; import minifastai.cli',
    'minifastai.all': 'import torch; import minifastai.all',
}
TIMED = 'import time; start = time.perf_counter(); {}; print(time.perf_counter() - start)'


def python(*args:str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, check=True)


def seconds(code:str) -> float: return float(python('-c', TIMED.format(code)).stdout)


def differences(a:list[float], b:list[float]) -> list[float]: return [x - y for x, y in zip(a, b)]


def measure(rounds:int) -> dict[str, list[float]]:
    "Return the seconds of each import, round by round, after one that fills the disk's cache"
    times = {name: [] for name in CASES}
    for i in range(rounds + 1):
        for name, code in CASES.items():
            s = seconds(code)
            if i: times[name].append(s)
    return times


def slowest(code:str, n:int=6) -> list[tuple[int, str]]:
    "Return times (us) and names of the modules after torch that take longest by themselves"
    own = python('-X', 'importtime', '-c', code).stderr
    rows = [line.removeprefix('import time:').split('|') for line in own.splitlines()[1:]]
    names = [name for _, _, name in rows]
    after = rows[names.index(' torch') + 1:]
    return sorted(((int(us), name.strip()) for us, _, name in after), reverse=True)[:n]


def main(rounds:int):
    print(where())
    times = measure(rounds)
    for name, s in times.items():
        line = f"{name:16} {spread(s, '.2f')} s"
        more = spread(differences(s, times['torch']), '+.2f')
        print(line if name == 'torch' else f"{line}; {more} s more than torch")
    median = statistics.median(differences(times['every module'], times['torch']))
    claim('importing every module, seconds more than torch', 0.3, median)
    by_themselves = [f'{name} {us/1000:.0f} ms' for us, name in slowest(CASES['every module'])]
    print('slowest by themselves: ' + ', '.join(by_themselves))


if __name__ == '__main__': main(options(__doc__, rounds=5).rounds)
