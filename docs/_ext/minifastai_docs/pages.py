"""The pages that are no chapters: those of docs/pages/, with what is collected from the chapters.

A page quotes a number of a chapter by a role, so that it agrees with the chapter's stored outputs:

    {stored}`07#0427e859 valid: .* accuracy (\\S+)`

is the last match, in the output of that cell of chapter 07, and a link to it. If the cell needs a
GPU and has not run on one, the page says so.
"""
import json
import re
from functools import cache
from pathlib import Path

from docutils import nodes
from sphinx.util import logging
from sphinx.util.docutils import SphinxRole

from . import citations
from .cells import heading, joined, printed

log = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parents[3]
SIDEBAR = {'About the lesson': ['lesson', 'differences'], 'Reference': ['glossary', 'papers']}


# What chapters say of the lesson's faults, and which papers they cite

FAULTS = 'What went wrong in the original'

def section(sources: list[str], title: str) -> str:
    """The Markdown of a notebook's section of that title; nothing if there is none.

    A section begins at a heading of the second level, and ends at the next of that level.
    """
    parts = re.split(r'^##? (.*)\n', '\n\n'.join(sources), flags=re.M)
    sections = zip(parts[1::2], parts[2::2])
    return next((body.strip() for head, body in sections if head.strip() == title), '')

def moved(text: str, docname: str) -> str:
    "A chapter's Markdown as another page can show it: links within the chapter lead to it"
    return re.sub(r'\]\(#', f']({docname}.ipynb#', text)

def differences(chapters: dict) -> str:
    "The sections of all chapters on what went wrong in the original"
    res = []
    address = FAULTS.lower().replace(' ', '-')
    for docname, nb in chapters.items():
        sources = [source_or_link(cell, docname) for cell in nb.cells]
        text = section(sources, FAULTS)
        if not text: continue
        # one link for cells that follow each other
        text = re.sub(r'(\{cell\}\S+)(\n\n\{cell\}\S+)+', r'\1', text)
        title = heading('\n\n'.join(sources)).title
        link = f'[Where the chapter says so]({docname}.ipynb#{address})'
        res.append(f'## {title}\n\n{moved(text, docname)}\n\n{link}')
    return '\n\n'.join(res)

def source_or_link(cell, docname: str) -> str:
    "Prose as it is; instead of code, a link to it"
    return cell.source if cell.cell_type == 'markdown' else f'{{cell}}`{docname}#{cell.id}`'

def all_papers(cited: dict[str, list[str]]) -> str:
    "The whole bibliography, each entry with the chapters that cite it"
    entries = []
    for key, paper in citations.bibliography().items():
        citing = [docname for docname, keys in cited.items() if key in keys]
        links = [f'[{name.split("_")[0]}]({name}.ipynb#references)' for name in citing]
        entries.append(f"- {paper.markdown()} Cited in {', '.join(links)}.")
    return '\n'.join(entries)

def write_pages(dest: Path, chapters: dict, cited: dict[str, list[str]]) -> dict[str, list[str]]:
    "Write the sources of the pages; their names, by the parts of the sidebar"
    collected = dict(differences=differences(chapters), papers=all_papers(cited))
    for name in (name for names in SIDEBAR.values() for name in names):
        text = (ROOT/f'docs/pages/{name}.md').read_text(encoding='utf-8')
        for complaint in citations.cited(text, citations.bibliography())[1]:
            log.warning(complaint, location=f'docs/pages/{name}.md:1')
        (dest/f'{name}.md').write_text(f"{text}\n{collected.get(name, '')}\n", encoding='utf-8')
    return {part: list(names) for part, names in SIDEBAR.items()}


# Numbers from stored outputs

@cache
def notebook(path: Path) -> list[dict]:
    "A notebook's cells, as they are in the file"
    return json.loads(path.read_text(encoding='utf-8'))['cells']

def find_cell(path: Path, cell_id: str) -> dict | None:
    "The code cell of that id"
    cells = (cell for cell in notebook(path) if cell['cell_type'] == 'code')
    return next((cell for cell in cells if cell['id'] == cell_id), None)

def stored(reference: str, nbs: Path = ROOT/'nbs') -> tuple[str, str, str]:
    """The notebook's name, the cell's id, and the last match in the cell's output.

    The reference is spelled `07#0427e859 valid: .* accuracy (\\S+)`. Raises LookupError if there is
    no such cell, or no match.
    """
    place, _, pattern = reference.partition(' ')
    number, _, cell_id = place.partition('#')
    path = next(nbs.glob(f'{number}_*.ipynb'), None)
    cell = find_cell(path, cell_id) if path else None
    if not path or not cell: raise LookupError(f'there is no code cell {place}')
    if not cell['outputs'] and re.search(r'^#\| *cuda\b', joined(cell['source']), re.M):
        return path.stem, cell_id, 'not measured: no GPU'
    matches = re.findall(pattern, printed(cell), re.M)
    if not pattern or not matches:
        raise LookupError(f'the output of cell {place} has nothing like {pattern!r}')
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
    def run(self):
        docname, cell_id = self.text.split('#')
        return [link_to_cell(docname, cell_id, 'The code, and what it gives')], []


def setup(app):
    app.add_role('stored', Stored())
    app.add_role('cell', Cell())
    return dict(parallel_read_safe=True, parallel_write_safe=True)
