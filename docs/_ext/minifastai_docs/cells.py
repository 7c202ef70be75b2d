"Read a notebook's cells, as a file stores them or as nbdev reads them."
import re
from typing import NamedTuple


class Heading(NamedTuple):
    title: str
    subtitle: str


def joined(text: str | list[str]) -> str:
    "Return a text that a notebook stores as a string or as a list of lines"
    return text if isinstance(text, str) else ''.join(text)

def directives(source: str) -> set[str]:
    "Return the names of the directives in a cell's source"
    return set(re.findall(r'^#\| *(\w+)', source, re.M))

def without_directives(source: str) -> str:
    "Return a cell's code without the directives for nbdev and the site"
    return re.sub(r'^#\|.*\n', '', source, flags=re.M).strip()

def printed(cell, *, drawn: bool = True) -> str:
    "Return what a cell printed, and its value as text; without `drawn`, skip pictures and HTML"
    texts = []
    for out in cell['outputs']:
        data = out.get('data', {})
        if not drawn and any(kind.startswith(('image/', 'text/html')) for kind in data): continue
        texts.append(joined(out.get('text', '')) or joined(data.get('text/plain', '')))
    return ''.join(texts)

def heading(text: str) -> Heading:
    "Return a chapter's title and subtitle: its first heading, and the quotation below it"
    title, subtitle = (re.search(pattern, text, re.M) for pattern in (r'^# (.+)$', r'^> (.+)$'))
    return Heading(title[1] if title else '', subtitle[1] if subtitle else '')
