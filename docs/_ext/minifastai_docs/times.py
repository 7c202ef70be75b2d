"""How long a chapter takes to read.

A minute is 200 words or ten lines of code, because code is read more than once.
"""
import re

from .cells import joined


def minutes(nb) -> float:
    "Minutes to read a notebook; the cells that no reader sees do not count"
    words = lines = 0
    for cell in nb['cells']:
        source = joined(cell['source'])
        if cell['cell_type'] == 'markdown': words += len(source.split())
        if cell['cell_type'] == 'code' and not re.search(r'^#\| *hide$', source, re.M):
            lines += sum(bool(line.strip()) for line in source.splitlines())
    return words/200 + lines/10

def in_words(m: float) -> str:
    "A time as people say it: 5, 10, ... 50 minutes, an hour, 1½ hours, 2 hours"
    if m < 52.5: return f'{max(5, 5*round(m/5))} minutes'
    halves = max(2, round(m/30))
    if halves == 2: return 'an hour'
    return f"{halves//2}{'½'*(halves % 2)} hours"
