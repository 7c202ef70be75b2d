"""How long each chapter takes to read and to run.

The time to read is estimated from the length, the time to run is measured. python
benchmarks/chapters.py NAME... runs these notebooks (without a name: all of them) on MNIST, without
the cells marked slow or cuda. It writes the times into the notebooks' first cells and into the home
page's table. Nothing else should run on the machine.
"""
import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT/'docs/_ext'))
from minifastai_docs.times import in_words, minutes  # noqa: E402


def seconds_to_run(path:Path) -> float:
    "Measure the seconds to run a notebook, with the start of Python"
    command = [Path(sys.executable).with_name('nbdev-test'), path, '--flags', 'mnist']
    start = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL,
                   env={**os.environ, 'MPLBACKEND': 'agg'})
    return time.perf_counter() - start


def as_people_say(seconds:float) -> str:
    "Return a time as people say it: 10, 20, ... 90 seconds, 2, 3, ... minutes"
    if seconds < 95: return f'{max(10, 10*round(seconds/10))} seconds'
    return f'{round(seconds/60)} minutes'


def read_notebook(path:Path) -> dict: return json.loads(path.read_text(encoding='utf-8'))


def rewrite(path:Path, change:Callable, n:int|None=None):
    "Apply `change` to the lines of the first `n` cells of a notebook, or of all"
    nb = read_notebook(path)
    for cell in nb['cells'][:n]: cell['source'] = change(cell['source'])
    path.write_text(json.dumps(nb, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')


def write_times(path:Path, home:Path, read:str, run:str):
    "Write the times into a chapter's first cells, and into its row in the home page's table"
    def in_chapter(lines):
        times = r'(\*\*Time:\*\*) .*? to read, .*? to run(?=[\s.(])'
        new = rf'\1 about {read} to read, {run} to run'
        return re.sub(times, new, ''.join(lines), flags=re.S).splitlines(True)

    def in_table(lines):
        is_row = lambda line: line.startswith('|') and f']({path.name})' in line
        new = f'| {read}; {run} |'
        return [re.sub(r'\|[^|]*\|$', new, line) if is_row(line) else line for line in lines]

    rewrite(path, in_chapter, 4)
    rewrite(home, in_table)


def main(names:list[str]):
    home = ROOT/'nbs/index.ipynb'
    for path in sorted((ROOT/'nbs').glob('[0-9]*.ipynb')):
        if names and path.stem not in names: continue
        read = in_words(minutes(read_notebook(path)))
        run = as_people_say(seconds_to_run(path))
        print(f'{path.stem}: {read} to read, {run} to run', flush=True)
        write_times(path, home, read, run)


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('names', nargs='*', help='such as 07_batchnorm')
    main(p.parse_args().names)
