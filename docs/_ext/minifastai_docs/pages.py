"""The pages of docs/pages/, with what is collected for them from the chapters.

A page quotes a number from a chapter by a role, so it always agrees with the stored outputs:

    {stored}`07#0427e859 valid: .* accuracy (\\S+)`

stands for the last match in the output of that cell of chapter 07, and links to the cell. If the
cell needs a GPU and has not run on one, the page says so.
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


# The chapters' sections on the lesson's faults, and the papers that they cite

FAULTS = 'What went wrong in the original'

def section(sources: list[str], title: str) -> str:
    """Return the Markdown of the section with that title, or '' if there is none.

    A section goes from one heading of the second level to the next.
    """
    parts = re.split(r'^##? (.*)\n', '\n\n'.join(sources), flags=re.M)
    sections = zip(parts[1::2], parts[2::2])
    return next((body.strip() for head, body in sections if head.strip() == title), '')

def moved(text: str, docname: str) -> str:
    "Return a chapter's Markdown for another page: links within the chapter now lead there"
    return re.sub(r'\]\(#', f']({docname}.ipynb#', text)

def differences(chapters: dict) -> str:
    "Collect the chapters' sections on what went wrong in the original"
    res = []
    address = FAULTS.lower().replace(' ', '-')
    for docname, nb in chapters.items():
        sources = [source_or_link(cell, docname) for cell in nb.cells]
        text = section(sources, FAULTS)
        if not text: continue
        # one link for several cells in a row
        text = re.sub(r'(\{cell\}\S+)(\n\n\{cell\}\S+)+', r'\1', text)
        title = heading('\n\n'.join(sources)).title
        link = f'[Read this section in its chapter]({docname}.ipynb#{address})'
        res.append(f'## {title}\n\n{moved(text, docname)}\n\n{link}')
    return '\n\n'.join(res)

def source_or_link(cell, docname: str) -> str:
    "Return a prose cell's text, or a link to a code cell"
    return cell.source if cell.cell_type == 'markdown' else f'{{cell}}`{docname}#{cell.id}`'

def all_papers(cited: dict[str, list[str]]) -> str:
    "Return the whole bibliography, with the chapters that cite each entry"
    entries = []
    for key, paper in citations.bibliography().items():
        citing = [docname for docname, keys in cited.items() if key in keys]
        links = [f'[{name.split("_")[0]}]({name}.ipynb#references)' for name in citing]
        chapters = 'chapters' if len(links) > 1 else 'chapter'
        entries.append(f"- {paper.markdown()} Cited in {chapters} {citations.listed(links)}.")
    return '\n'.join(entries)

def write_pages(dest: Path, chapters: dict, cited: dict[str, list[str]]) -> dict[str, list[str]]:
    "Write the sources of the pages; return their names, by the parts of the sidebar"
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
    "Read a notebook's cells, as the file has them"
    return json.loads(path.read_text(encoding='utf-8'))['cells']

def find_cell(path: Path, cell_id: str) -> dict | None:
    "Find the code cell with that id"
    cells = (cell for cell in notebook(path) if cell['cell_type'] == 'code')
    return next((cell for cell in cells if cell['id'] == cell_id), None)

def stored(reference: str, nbs: Path = ROOT/'nbs') -> tuple[str, str, str]:
    """Return the notebook's name, the cell's id, and the last match in the cell's output.

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
        raise LookupError(f'nothing in the output of cell {place} matches {pattern!r}')
    return path.stem, cell_id, matches[-1]

def link_to_cell(docname: str, cell_id: str, text: str) -> nodes.Node:
    "Make a link from one of these pages to a code cell of a chapter"
    return nodes.reference('', text, refuri=f'{docname}.html#cell-{cell_id}', internal=True)

class Stored(SphinxRole):
    "A number from a chapter's stored output, with a link to the cell"
    def run(self):
        try: return [link_to_cell(*stored(self.text))], []
        except LookupError as e:
            log.warning('%s', e, location=self.get_location())
            return [nodes.Text('?')], []

class Cell(SphinxRole):
    "A link to a chapter's code cell, instead of the cell"
    def run(self):
        docname, cell_id = self.text.split('#')
        return [link_to_cell(docname, cell_id, 'See the code and its output')], []


def setup(app):
    app.add_role('stored', Stored())
    app.add_role('cell', Cell())
    return dict(parallel_read_safe=True, parallel_write_safe=True)
