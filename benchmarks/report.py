"""Runs the benchmarks and writes what they print to benchmarks/results.md, with the machine, the versions and the date, and a table of the claims.

python benchmarks/report.py runs those that fit in five minutes; python benchmarks/report.py --all the training of chapter 08's recipes as well, which takes a quarter of an hour. Nothing else should run on the machine.
"""
import argparse
import datetime
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
QUICK = ['steps.py', 'epoch.py', 'norms.py', 'telemetry.py', 'imports.py', 'memory.py', 'growth.py', 'checkpoints.py']
LONG = ['recipes.py']


def processor() -> str:
    "The processor's name, as far as the system tells"
    try: return next(line.split(':')[1].strip() for line in Path('/proc/cpuinfo').read_text().splitlines() if line.startswith('model name'))
    except (OSError, StopIteration): return platform.processor() or platform.machine()


def main(scripts:list[str]):
    sections, claims = [], []
    for script in scripts:
        print(f'{script} ...', flush=True)
        start = time.perf_counter()
        done = subprocess.run([sys.executable, HERE/script], capture_output=True, text=True)
        if done.returncode: sys.exit(f'{script} failed:\n{done.stderr}')
        lines = done.stdout.splitlines()
        claims += [line[3:].split(' | ') for line in lines if line.startswith('=> ')]
        text = '\n'.join(line for line in lines if not line.startswith('=> '))
        doc = (HERE/script).read_text().split('"""')[1].split('\n')[0]
        sections.append(f'## {doc.split(":")[0]}: `python benchmarks/{script}`\n{doc}\n\n```\n{text}\n```\n')
        print(f'{text}\n({time.perf_counter() - start:.0f} s)\n', flush=True)
    table = '\n'.join(f"| {name} | {'at least' if how == '>=' else 'at most'} {target} | {value} | {'yes' if (float(value) >= float(target) if how == '>=' else float(value) <= float(target)) else '**no**'} |" for name, how, target, value in claims)
    notes = (HERE/'notes.md').read_text()
    (HERE/'results.md').write_text(f"""# What the benchmarks printed

Written by `make bench` on {datetime.date.today():%d %B %Y}: {processor()}, {os.cpu_count()} processors, {platform.system()}, Python {platform.python_version()}; PyTorch's version stands in each block. Times differ from machine to machine and from run to run; the ratios are what to look at. Where several numbers stand in brackets, they are quartiles.

| claim | target | measured | reached |
|---|---|---|---|
{table}

{notes}
""" + '\n'.join(sections))
    print(f'Written: {HERE/"results.md"}')


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--all', action='store_true', help='with the long ones')
    main(QUICK + LONG*p.parse_args().all)
