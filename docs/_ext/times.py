"How long a chapter takes to read: 200 words a minute, and ten lines of code, which are read more than once."
import re

def minutes(nb) -> float:
    "Minutes to read a notebook; the cells that no reader sees do not count"
    sources = [(cell['cell_type'], ''.join(cell['source'])) for cell in nb['cells']]
    words = sum(len(source.split()) for kind, source in sources if kind == 'markdown')
    lines = sum(bool(line.strip()) for kind, source in sources if kind == 'code' and not re.search(r'^#\| *hide$', source, re.M) for line in source.splitlines())
    return words/200 + lines/10

def in_words(m: float) -> str:
    "A time as people say it: 5, 10, ... 50 minutes, an hour, 1½ hours, 2 hours"
    if m < 52.5: return f'{max(5, 5*round(m/5))} minutes'
    halves = max(2, round(m/30))
    return 'an hour' if halves == 2 else f"{halves//2}{'½'*(halves % 2)} hours"
