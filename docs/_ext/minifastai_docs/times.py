"""Estimates how long a chapter takes to read.

We count a minute for 200 words, or for fifteen lines of code. Solutions don't count, because they
are folded.
"""
import re

from .cells import joined


def minutes(nb) -> float:
    "Return the minutes to read a notebook, without its hidden cells and its solutions"
    words = lines = 0
    for cell in nb['cells']:
        source = joined(cell['source'])
        if source.startswith('<details>') or re.search(r'^#\| *(hide|solution)$', source, re.M):
            continue
        if cell['cell_type'] == 'markdown': words += len(source.split())
        if cell['cell_type'] == 'code':
            lines += sum(bool(line.strip()) for line in source.splitlines())
    return words/200 + lines/15

def in_words(m: float) -> str:
    "Return a time as people say it: 5, 10, ... 50 minutes, an hour, 1½ hours, 2 hours"
    if m < 52.5: return f'{max(5, 5*round(m/5))} minutes'
    halves = max(2, round(m/30))
    if halves == 2: return 'an hour'
    return f"{halves//2}{'½'*(halves % 2)} hours"
