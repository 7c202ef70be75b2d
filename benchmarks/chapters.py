"""How long each chapter takes: to read, by its length, and to run, measured.

python benchmarks/chapters.py NAME... runs the notebooks (all, without a name) on MNIST, without the cells marked slow or cuda, and writes what it found into their first cell and the home page's table. Nothing else should run on the machine.
"""
import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT/'docs/_ext'))
from minifastai_docs.times import in_words, minutes  # noqa: E402


def seconds_to_run(path:Path) -> float:
    "Seconds from the first cell to the last one, the start of Python included"
    start = time.perf_counter()
    subprocess.run([Path(sys.executable).with_name('nbdev-test'), path, '--flags', 'mnist'], cwd=ROOT, check=True, stdout=subprocess.DEVNULL, env={**os.environ, 'MPLBACKEND': 'agg'})
    return time.perf_counter() - start


def as_people_say(seconds:float) -> str:
    "10, 20, ... 90 seconds, 2, 3, ... minutes"
    return f'{max(10, 10*round(seconds/10))} seconds' if seconds < 95 else f'{round(seconds/60)} minutes'


def main(names:list[str]):
    home = ROOT/'nbs/index.ipynb'
    for path in sorted((ROOT/'nbs').glob('[0-9]*.ipynb')):
        if names and path.stem not in names: continue
        nb = json.loads(path.read_text(encoding='utf-8'))
        read, run = in_words(minutes(nb)), as_people_say(seconds_to_run(path))
        print(f'{path.stem}: {read} to read, {run} to run', flush=True)
        nb = json.loads(path.read_text(encoding='utf-8'))
        for cell in nb['cells'][:4]:
            text = re.sub(r'(\*\*Time:\*\*) .*? to read, .*? to run(?=[\s.(])', rf'\1 about {read} to read, {run} to run', ''.join(cell['source']), flags=re.S)
            cell['source'] = text.splitlines(True)
        path.write_text(json.dumps(nb, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')
        page = json.loads(home.read_text(encoding='utf-8'))
        for cell in page['cells']: cell['source'] = [re.sub(r'\|[^|]*\|$', f'| {read}; {run} |', line) if f']({path.name})' in line and line.startswith('|') else line for line in cell['source']]
        home.write_text(json.dumps(page, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('names', nargs='*', help='such as 07_batchnorm')
    main(p.parse_args().names)
