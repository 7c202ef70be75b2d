"""Papers: text that cites a paper links to its entry in docs/references.toml.

A notebook or a docstring needs no markup for this. You can cite a paper as

    Smith (2018)
    Wu and He (2018)
    Ba, Kiros and Hinton (2016)
    He and others (2015)
    He et al. (2015)

or, inside other brackets, with the year bare: `(Smith 2018, section 5)`. Each chapter ends with
a list of the papers that it cites.
"""
import re
import tomllib
from calendar import month_name
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from docutils import nodes
from fastcore.nbio import mk_cell
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging

log = logging.getLogger(__name__)
DOCS = Path(__file__).resolve().parents[2]


# The bibliography

def listed(names: list[str]) -> str:
    "List names as a sentence does: Ba, Kiros and Hinton"
    *before, last = names
    return f"{', '.join(before)} and {last}" if before else last

@dataclass
class Paper:
    "An entry in docs/references.toml"
    authors: str
    year: int
    title: str
    venue: str = ''
    arxiv: str = ''
    url: str = ''

    def full_names(self) -> list[str]:
        "Return the authors as the entry names them; 'others' stands for those it doesn't name"
        return re.split(', | and ', self.authors)

    def surnames(self) -> list[str]:
        "Return the authors' names without initials"
        return [re.sub(r'(\w\.[ -]?)+', '', name) for name in self.full_names()]

    def names(self) -> set[str]:
        "Return the ways in which a text may name the authors"
        surnames = self.surnames()
        res = {listed(surnames)}
        if len(surnames) > 2 or surnames[-1] == 'others': res.add(f'{surnames[0]} and others')
        return res

    def link(self) -> str:
        "Return a link to the paper, in Markdown"
        if self.arxiv: return f'[arXiv {self.arxiv}](https://arxiv.org/abs/{self.arxiv})'
        return f'<{self.url}>' if self.url else ''

    def markdown(self) -> str:
        "Return the entry as readers see it"
        title = f'*{self.title}*' + '.'*(self.title[-1] not in '.?!')
        facts = [f'{fact}.' for fact in (self.venue, self.link()) if fact]
        return ' '.join([f'{listed(self.full_names())} ({self.year}).', title, *facts])

def read_papers(path: Path) -> dict[str, Paper]:
    "Read a bibliography: papers by the names of their entries, sorted by author"
    entries = tomllib.loads(path.read_text(encoding='utf-8'))
    papers = {key: Paper(**entry) for key, entry in entries.items()}
    def place(item): return [name.lower() for name in item[1].surnames()], item[1].year
    return dict(sorted(papers.items(), key=place))

@cache
def bibliography() -> dict[str, Paper]:
    "Return the papers in docs/references.toml"
    return read_papers(DOCS/'references.toml')


# Citations in a text

NAME = r"[A-Z][\w'’-]*[^\W\d_A-Z]"
NAMES = rf'{NAME}(?:,\s{NAME})*(?:,?\s(?:and|&)\s(?:{NAME}|others)|,?\set\sal\.?)?'
YEAR = r'\s\((?P<year>[12]\d{3})\)'
BARE_YEAR = r',?\s(?P<bare>[12]\d{3})(?![\w-])'
CITATION = re.compile(rf'(?P<names>{NAMES})(?:{YEAR}|{BARE_YEAR})')
NO_NAMES = {*month_name, *'In By Since Until From Before After Around About'.split()}
ARXIV_ID = r'\d{4}\.\d{4,5}'

@dataclass
class Citation:
    "Where a text cites a paper, and which one; None if the bibliography doesn't have it"
    start: int
    end: int
    key: str | None

def find_citations(text: str, papers: Mapping[str, Paper]) -> list[Citation]:
    "Find what cites a paper, and what looks like a citation but isn't a known one"
    keys = {(names, paper.year): key for key, paper in papers.items() for names in paper.names()}
    res = []
    for m in CITATION.finditer(text):
        if found := known(m, keys): res.append(found)
        elif looks_like_one(text, m): res.append(Citation(*m.span(), None))
    return res

def known(m: re.Match, keys: Mapping[tuple[str, int], str]) -> Citation | None:
    "Return the citation of a paper in the bibliography, or None"
    names, year, start = m['names'], int(m['year'] or m['bare']), m.start('names')
    while True:   # other names may come before the authors: 'In Berlin, Wu and He (2018)'
        if key := keys.get((plain(names), year)): return Citation(start, m.end(), key)
        if ', ' not in names: return None
        first, names = re.split(r',\s', names, maxsplit=1)
        start += len(first) + 2

def plain(names: str) -> str:
    "Return authors' names in the spelling that we look up"
    names = re.sub(r"['’]s$", '', ' '.join(names.split())).replace('&', 'and')
    return re.sub(r',? et al\.?$', ' and others', names).replace(', and ', ' and ')

def looks_like_one(text: str, m: re.Match) -> bool:
    """Tell whether an unknown name with a year is meant as a citation.

    It is if the year has brackets, if there is an 'and', or if it comes first in a bracket.
    """
    if NO_NAMES & set(re.findall(r'\w+', m['names'])): return False
    if m['year'] or re.search(r'\s(and|&|al\.?)\b', m['names']): return True
    return bool(re.search(r'\((after |see )?$', text[:m.start()]))

def arxiv_ids(text: str) -> set[str]:
    "Return the arXiv ids in a text"
    return set(re.findall(rf'\barxiv(?:\.org/abs/|[: ])({ARXIV_ID})', text, re.I))

def cited(text: str, papers: Mapping[str, Paper]) -> tuple[list[str], list[str]]:
    "Return the papers that a text cites, and complaints about its citations"
    found = find_citations(text, papers)
    keys = list(dict.fromkeys(c.key for c in found if c.key))
    unknown = [text[c.start:c.end] for c in found if not c.key]
    strange = sorted(arxiv_ids(text) - {papers[key].arxiv for key in keys})
    wrong = [f'no paper in docs/references.toml for "{citation}"' for citation in unknown]
    wrong += [f'arXiv {i} is not one of the papers cited next to it' for i in strange]
    return keys, wrong


# The list of papers of a page

def add_references(chapters: dict) -> dict[str, list[str]]:
    "Add to each notebook a list of the papers that it cites; return their keys"
    papers = bibliography()
    res = {docname: keys_of_notebook(docname, nb, papers) for docname, nb in chapters.items()}
    for docname, keys in res.items():
        entries = '\n'.join(f'- {papers[key].markdown()}' for key in keys)
        if keys: chapters[docname].cells.append(mk_cell(f'## References\n\n{entries}', 'markdown'))
    for key in papers.keys() - {key for keys in res.values() for key in keys}:
        log.warning('no chapter cites this paper', location=f'docs/references.toml:{key}')
    return res

def keys_of_notebook(docname: str, nb, papers: Mapping[str, Paper]) -> list[str]:
    "Return the papers that a notebook cites, in the order of the bibliography"
    found = set()
    for cell in nb.cells:
        keys, wrong = cited(cell.source, papers)
        found.update(keys)
        for complaint in wrong: log.warning(complaint, location=f'nbs/{docname}.ipynb:{cell.id}')
    return [key for key in papers if key in found]

def letters(text: str) -> str:
    "Return a title's letters and digits, in lower case"
    return re.sub(r'\W', '', text).lower()

def name_entries(app, doctree):
    "Give each entry in a list of papers an anchor"
    keys = {letters(paper.title): key for key, paper in bibliography().items()}
    for entries in doctree.findall(nodes.bullet_list):
        if app.env.docname != 'papers' and 'references' not in entries.parent['ids']: continue
        entries['classes'].append('papers')
        for item in entries:
            title = next(item.findall(nodes.emphasis)).astext()
            item['ids'].append(keys[letters(title)])


# Links

NOT_PROSE = (nodes.FixedTextElement, nodes.literal, nodes.math, nodes.raw, nodes.reference,
             nodes.title)

def in_prose(node) -> bool:
    "Tell whether a text may have links, and isn't itself an entry of the bibliography"
    while node := node.parent:
        if isinstance(node, NOT_PROSE) or 'papers' in node.get('classes', ()): return False
    return True

class Link(NamedTuple):
    "The part of a text that becomes a link, and its target"
    start: int
    end: int
    uri: str
    internal: bool

class LinkCitations(SphinxPostTransform):
    """Turns citations and arXiv ids into links.

    A citation links to the paper's entry on the same page, or else on the page of all papers.
    """
    default_priority = 60

    def run(self, **kwargs):
        lists = self.document.findall(nodes.bullet_list)
        here = {item['ids'][0] for ul in lists if 'papers' in ul['classes'] for item in ul}
        page = self.app.builder.get_relative_uri(self.env.docname, 'papers')
        for text in list(self.document.findall(nodes.Text)):
            if not in_prose(text): continue
            links = links_in(text, here, page)
            if links: text.parent.replace(text, linked(text, links))

def links_in(text: str, here: set[str], page: str) -> list[Link]:
    "Find the links in a text, given the papers on its own page, and the page of all papers"
    res = []
    for c in find_citations(text, bibliography()):
        address = '' if c.key in here else page
        if c.key: res.append(Link(c.start, c.end, f'{address}#{c.key}', True))
    for m in re.finditer(f'arXiv ({ARXIV_ID})', text):
        res.append(Link(*m.span(), f'https://arxiv.org/abs/{m[1]}', False))
    return sorted(res)

def linked(text: str, links: list[Link]) -> list[nodes.Node]:
    "Return a text in pieces, some of them links"
    res, at = [], 0
    for start, end, uri, internal in links:
        classes = ['citation'] if internal else []
        link = nodes.reference('', text[start:end], refuri=uri, internal=internal, classes=classes)
        res += [nodes.Text(text[at:start]), link]
        at = end
    return [*res, nodes.Text(text[at:])]


def setup(app):
    app.connect('doctree-read', name_entries)
    app.add_post_transform(LinkCitations)
    return dict(parallel_read_safe=True, parallel_write_safe=True)
