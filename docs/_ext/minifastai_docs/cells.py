"What a notebook's cells hold, as a file stores them or as nbdev reads them."
import re
from typing import NamedTuple


class Heading(NamedTuple):
    title: str
    subtitle: str


def joined(text: str | list[str]) -> str:
    "What a notebook stores as a string or as a list of lines"
    return text if isinstance(text, str) else ''.join(text)

def directives(source: str) -> set[str]:
    "The names of the directives in a cell's source"
    return set(re.findall(r'^#\| *(\w+)', source, re.M))

def without_directives(source: str) -> str:
    "A cell's code without the lines that are for nbdev and for the site"
    return re.sub(r'^#\|.*\n', '', source, flags=re.M).strip()

def printed(cell, *, drawn: bool = True) -> str:
    "What a cell printed, and the text of its value; without `drawn`, not of what a page draws"
    texts = []
    for out in cell['outputs']:
        data = out.get('data', {})
        if not drawn and any(kind.startswith(('image/', 'text/html')) for kind in data): continue
        texts.append(joined(out.get('text', '')) or joined(data.get('text/plain', '')))
    return ''.join(texts)

def heading(text: str) -> Heading:
    "Title and subtitle of a chapter: its first heading, and the quotation below it"
    title, subtitle = (re.search(pattern, text, re.M) for pattern in (r'^# (.+)$', r'^> (.+)$'))
    return Heading(title[1] if title else '', subtitle[1] if subtitle else '')
