"""Runs the benchmarks and writes what they print to benchmarks/results.md.

The page also has the machine, the versions, the date, and a table of the claims. python
benchmarks/report.py runs the benchmarks that fit in five minutes. python benchmarks/report.py --all
also trains chapter 08's recipes, which takes a quarter of an hour. Nothing else should run on the
machine.
"""
import argparse
import ast
import datetime
import operator
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
QUICK = ['steps.py', 'epoch.py', 'norms.py', 'telemetry.py', 'imports.py', 'memory.py',
         'growth.py', 'checkpoints.py', 'backward.py', 'data_path.py']
LONG = ['recipes.py']
CLAIM = '=> '   # how the line of a claim begins
LIMITS = {'>=': ('at least', operator.ge), '<=': ('at most', operator.le)}


class Claim(NamedTuple):
    "A line that `common.claim` printed"
    name: str
    how: str
    target: str
    value: str

    def row(self) -> str:
        "Return the claim as a row of the table"
        limit, reaches = LIMITS[self.how]
        reached = 'yes' if reaches(float(self.value), float(self.target)) else '**no**'
        return f"| {self.name} | {limit} {self.target} | {self.value} | {reached} |"


PAGE = """# What the benchmarks printed

Written by `make bench` on {date:%d %B %Y}: {machine}; each block names PyTorch's version. \
Times differ between machines and between runs, so look at the ratios. \
Several numbers in brackets are quartiles.

| claim | target | measured | reached |
|---|---|---|---|
{table}

{notes}
{sections}"""


def processor() -> str:
    "Return the processor's name, if the system tells"
    try: lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError: lines = []
    names = [line.split(':')[1].strip() for line in lines if line.startswith('model name')]
    return next(iter(names), platform.processor() or platform.machine())


def machine() -> str:
    return (f'{processor()}, {os.cpu_count()} processors, {platform.system()}, '
            f'Python {platform.python_version()}')


def heading(script:str) -> str:
    "Return a script's heading, and below it the second paragraph of its docstring"
    doc = ast.get_docstring(ast.parse((HERE/script).read_text()))
    title, description, *_ = (' '.join(part.split('\n')) for part in doc.split('\n\n'))
    subject = title.split(':')[0].rstrip('.')
    return f'## {subject}: `python benchmarks/{script}`\n\n{description}'


def measure(script:str) -> tuple[list[Claim], str]:
    "Run a script; return the claims that it prints, and the rest"
    start = time.perf_counter()
    done = subprocess.run([sys.executable, HERE/script], capture_output=True, text=True)
    if done.returncode: sys.exit(f'{script} failed:\n{done.stderr}')
    lines = done.stdout.splitlines()
    claims = [Claim(*line.removeprefix(CLAIM).split(' | ')) for line in lines
              if line.startswith(CLAIM)]
    text = '\n'.join(line for line in lines if not line.startswith(CLAIM))
    print(f'{text}\n({time.perf_counter() - start:.0f} s)\n', flush=True)
    return claims, text


def main(scripts:list[str]):
    sections, claims = [], []
    for script in scripts:
        print(f'{script} ...', flush=True)
        its_claims, text = measure(script)
        claims += its_claims
        sections.append(f'{heading(script)}\n\n```\n{text}\n```\n')
    page = PAGE.format(
        date=datetime.date.today(),
        machine=machine(),
        table='\n'.join(claim.row() for claim in claims),
        notes=(HERE/'notes.md').read_text(),
        sections='\n'.join(sections),
    )
    (HERE/'results.md').write_text(page)
    print(f'Written: {HERE/"results.md"}')


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--all', action='store_true', help='also run the long ones')
    main(QUICK + LONG*p.parse_args().all)
