"""The pages that are no chapters: those of docs/pages/, with what is collected from the chapters.

A page quotes a number of a chapter by a role, so that what it says is what the chapter's stored outputs say:

    {stored}`07#0427e859 valid: .* accuracy (\\S+)`

is the last match, in the output of that cell of chapter 07, and a link to it. A cell for a GPU that has not run on one says so.
"""
import json
import re
from functools import cache
from pathlib import Path

from docutils import nodes
from sphinx.util import logging
from sphinx.util.docutils import SphinxRole

import citations

log = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parents[2]
SIDEBAR = {'About the lesson': ['lesson', 'differences'], 'Reference': ['glossary', 'papers']}


# What chapters say of the lesson's faults, and which papers they cite

FAULTS = 'What went wrong in the original'

def section(sources: list[str], title: str) -> str:
    "What a notebook's Markdown says below a heading of the second level, up to the next of that level; nothing if there is none"
    parts = re.split(r'^##? (.*)\n', '\n\n'.join(sources), flags=re.M)
    return next((body.strip() for head, body in zip(parts[1::2], parts[2::2]) if head.strip() == title), '')

def heading(sources: list[str]) -> str:
    "A notebook's title"
    return next(m[1] for source in sources if (m := re.search(r'^# (.*)', source, re.M)))

def moved(text: str, docname: str) -> str:
    "A chapter's Markdown as another page can show it: links within the chapter lead to it"
    return re.sub(r'\]\(#', f']({docname}.ipynb#', text)

def differences(chapters: dict) -> str:
    "The sections of all chapters on what went wrong in the original"
    res = []
    for docname, nb in chapters.items():
        sources = [cell.source if cell.cell_type == 'markdown' else f'{{cell}}`{docname}#{cell.id}`' for cell in nb.cells]
        if not (text := section(sources, FAULTS)): continue
        text = re.sub(r'(\{cell\}\S+)(\n\n\{cell\}\S+)+', r'\1', text)   # one link for cells that follow each other
        address = f"{docname}.ipynb#{FAULTS.lower().replace(' ', '-')}"
        res.append(f'## {heading(sources)}\n\n{moved(text, docname)}\n\n[Where the chapter says so]({address})')
    return '\n\n'.join(res)

def all_papers(cited: dict[str, list[str]]) -> str:
    "The whole bibliography, each entry with the chapters that cite it"
    def where(key): return [f'[{docname.split("_")[0]}]({docname}.ipynb#references)' for docname, keys in cited.items() if key in keys]
    return '\n'.join(f"- {paper.markdown()} Cited in {', '.join(where(key))}." for key, paper in citations.bibliography().items())

def write_pages(dest: Path, chapters: dict, cited: dict[str, list[str]]) -> dict[str, list[str]]:
    "Write the sources of the pages; their names, by the parts of the sidebar"
    collected = dict(differences=differences(chapters), papers=all_papers(cited))
    for name in (name for names in SIDEBAR.values() for name in names):
        text = (ROOT/f'docs/pages/{name}.md').read_text(encoding='utf-8')
        for complaint in citations.cited(text, citations.bibliography())[1]: log.warning(complaint, location=f'docs/pages/{name}.md:1')
        (dest/f'{name}.md').write_text(f"{text}\n{collected.get(name, '')}\n", encoding='utf-8')
    return {part: list(names) for part, names in SIDEBAR.items()}


# Numbers from stored outputs

@cache
def notebook(path: Path) -> list[dict]:
    "A notebook's cells, as they are in the file"
    return json.loads(path.read_text(encoding='utf-8'))['cells']

def printed(cell: dict) -> str:
    "What a cell has printed and returned"
    return ''.join(''.join(out.get('text', out.get('data', {}).get('text/plain', ''))) for out in cell['outputs'])

def stored(reference: str, nbs: Path = ROOT/'nbs') -> tuple[str, str, str]:
    "From `07#0427e859 valid: .* accuracy (\\S+)`: the notebook's name, the cell's id, and the last match in its output; LookupError if there is none"
    place, _, pattern = reference.partition(' ')
    number, _, cell_id = place.partition('#')
    path = next(nbs.glob(f'{number}_*.ipynb'), None)
    cell = next((c for c in notebook(path) if c['id'] == cell_id and c['cell_type'] == 'code'), None) if path else None
    if not path or not cell: raise LookupError(f'there is no code cell {place}')
    if not cell['outputs'] and re.search(r'^#\| *cuda\b', ''.join(cell['source']), re.M): return path.stem, cell_id, 'not measured: no GPU'
    matches = re.findall(pattern, printed(cell), re.M)
    if not pattern or not matches: raise LookupError(f'the output of cell {place} has nothing like {pattern!r}')
    return path.stem, cell_id, matches[-1]

def link_to_cell(docname: str, cell_id: str, text: str) -> nodes.Node:
    "A link from one of these pages to a code cell of a chapter"
    return nodes.reference('', text, refuri=f'{docname}.html#cell-{cell_id}', internal=True)

class Stored(SphinxRole):
    "A number from a chapter's stored output, with a link to the cell"
    def run(self):
        try: return [link_to_cell(*stored(self.text))], []
        except LookupError as e:
            log.warning('%s', e, location=self.get_location())
            return [nodes.Text('?')], []

class Cell(SphinxRole):
    "In the place of a chapter's code cell, a link to it"
    def run(self): return [link_to_cell(*self.text.split('#'), 'The code, and what it gives')], []

def setup(app):
    app.add_role('stored', Stored())
    app.add_role('cell', Cell())
    return dict(parallel_read_safe=True, parallel_write_safe=True)
