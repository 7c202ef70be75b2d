"""Papers: text that cites one, such as Ioffe and Szegedy (2015), in a chapter or a docstring, links to its entry of docs/references.toml.

Nothing has to be marked in a notebook. The authors may be named as `Smith (2018)`, `Wu and He (2018)`, `Ba, Kiros and Hinton (2016)`, `He and others (2015)`
or `He et al. (2015)`, and the year may stand without its brackets, as within others: `(Smith 2018, section 5)`. Each chapter ends with the papers it cites.
"""
import re
import tomllib
from calendar import month_name
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from docutils import nodes
from fastcore.nbio import mk_cell
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging

log = logging.getLogger(__name__)


# The bibliography

@dataclass
class Paper:
    "An entry of docs/references.toml"
    authors: str
    year: int
    title: str
    venue: str = ''
    arxiv: str = ''
    url: str = ''

    def surnames(self) -> list[str]:
        "The authors' names without initials; those that the entry does not name are 'others'"
        return [re.sub(r'(\w\.[ -]?)+', '', name) for name in re.split(', | and ', self.authors)]

    def names(self) -> set[str]:
        "The ways in which a text may name the authors"
        *before, last = self.surnames()
        spelled = f"{', '.join(before)} and {last}" if before else last
        return {spelled, f'{before[0]} and others'} if len(before) > 1 or last == 'others' else {spelled}

    def markdown(self) -> str:
        "The entry as a reader sees it"
        where = f'[arXiv {self.arxiv}](https://arxiv.org/abs/{self.arxiv})' if self.arxiv else f'<{self.url}>' if self.url else ''
        title = f'*{self.title}*' + '.'*(self.title[-1] not in '.?!')
        *before, last = re.split(', | and ', self.authors)
        authors = f"{', '.join(before)} and {last}" if before else last
        return ' '.join(filter(None, [f'{authors} ({self.year}).', title, self.venue and f'{self.venue}.', where and f'{where}.']))

def read_papers(path: Path) -> dict[str, Paper]:
    "The bibliography, by the names of its entries, in the order of their authors"
    papers = {key: Paper(**entry) for key, entry in tomllib.loads(path.read_text(encoding='utf-8')).items()}
    return dict(sorted(papers.items(), key=lambda item: ([name.lower() for name in item[1].surnames()], item[1].year)))

@cache
def bibliography() -> dict[str, Paper]:
    "The papers of docs/references.toml"
    return read_papers(Path(__file__).parents[1]/'references.toml')


# Citations in a text

NAME = r"[A-Z][\w'’-]*[^\W\d_A-Z]"
CITATION = re.compile(rf'(?P<names>{NAME}(?:,\s{NAME})*(?:,?\s(?:and|&)\s(?:{NAME}|others)|,?\set\sal\.?)?)(?:\s\((?P<year>[12]\d{{3}})\)|,?\s(?P<bare>[12]\d{{3}})(?![\w-]))')
NO_NAMES = {*month_name, *'In By Since Until From Before After Around About'.split()}

@dataclass
class Citation:
    "Where a text cites a paper, and which one; None if the bibliography does not have it"
    start: int
    end: int
    key: str | None

def find_citations(text: str, papers: Mapping[str, Paper]) -> list[Citation]:
    "What cites a paper, and what looks as if it did"
    keys, res = {(names, paper.year): key for key, paper in papers.items() for names in paper.names()}, []
    for m in CITATION.finditer(text):
        names, year, start = m['names'], int(m['year'] or m['bare']), m.start('names')
        while True:   # a list of names may begin before the authors: 'In Berlin, Wu and He (2018)'
            key = keys.get((plain(names), year))
            if key or ', ' not in names: break
            first, names = re.split(r',\s', names, maxsplit=1)
            start += len(first) + 2
        if key: res.append(Citation(start, m.end(), key))
        elif looks_like_one(text, m): res.append(Citation(*m.span(), None))
    return res

def plain(names: str) -> str:
    "Authors' names in the one spelling under which they are looked up"
    names = re.sub(r"['’]s$", '', ' '.join(names.split())).replace('&', 'and')
    return re.sub(r',? et al\.?$', ' and others', names).replace(', and ', ' and ')

def looks_like_one(text: str, m: re.Match) -> bool:
    "Whether an unknown name and year is meant as a citation: by the year's brackets, by an 'and', or at the beginning of a bracket"
    if NO_NAMES & set(re.findall(r'\w+', m['names'])): return False
    return bool(m['year'] or re.search(r'\s(and|&|al\.?)\b', m['names']) or re.search(r'\((after |see )?$', text[:m.start()]))

def arxiv_ids(text: str) -> set[str]:
    "The arXiv ids that a text names"
    return set(re.findall(r'\barxiv(?:\.org/abs/|[: ])(\d{4}\.\d{4,5})', text, re.I))

def cited(text: str, papers: Mapping[str, Paper]) -> tuple[list[str], list[str]]:
    "The papers that a text cites, and what is wrong with its citations"
    found = find_citations(text, papers)
    keys = list(dict.fromkeys(c.key for c in found if c.key))
    wrong = [f'no paper in docs/references.toml for "{text[c.start:c.end]}"' for c in found if not c.key]
    wrong += [f'arXiv {i} is none of the papers cited beside it' for i in sorted(arxiv_ids(text) - {papers[key].arxiv for key in keys})]
    return keys, wrong


# The list of papers of a page

def add_references(chapters: dict) -> dict[str, list[str]]:
    "End each notebook with the papers that it cites, in prose, comments and docstrings; which these are"
    papers, res = bibliography(), {}
    for docname, nb in chapters.items():
        found = set()
        for cell in nb.cells:
            keys, wrong = cited(cell.source, papers)
            for complaint in wrong: log.warning(complaint, location=f'nbs/{docname}.ipynb:{cell.id}')
            found.update(keys)
        res[docname] = [key for key in papers if key in found]
        if found: nb.cells.append(mk_cell('## References\n\n' + '\n'.join(f'- {papers[key].markdown()}' for key in res[docname]), 'markdown'))
    for key in papers.keys() - {key for keys in res.values() for key in keys}: log.warning('no chapter cites this paper', location=f'docs/references.toml:{key}')
    return res

def letters(text: str) -> str:
    "A title without what typography changes"
    return re.sub(r'\W', '', text).lower()

def name_entries(app, doctree):
    "Give each entry of a list of papers its address"
    keys = {letters(paper.title): key for key, paper in bibliography().items()}
    for entries in doctree.findall(nodes.bullet_list):
        if app.env.docname != 'papers' and 'references' not in entries.parent['ids']: continue
        entries['classes'].append('papers')
        for item in entries: item['ids'].append(keys[letters(next(item.findall(nodes.emphasis)).astext())])


# Links

NOT_PROSE = (nodes.FixedTextElement, nodes.literal, nodes.math, nodes.raw, nodes.reference, nodes.title)

def in_prose(node) -> bool:
    "Whether a text may have links, and is not an entry of the bibliography itself"
    while node := node.parent:
        if isinstance(node, NOT_PROSE) or 'papers' in node.get('classes', ()): return False
    return True

class LinkCitations(SphinxPostTransform):
    "Link a citation to the page's entry of that paper, or to that of the page of all papers; and an arXiv id to arXiv"
    default_priority = 60

    def run(self, **kwargs):
        here = {item['ids'][0] for entries in self.document.findall(nodes.bullet_list) if 'papers' in entries['classes'] for item in entries}
        page = self.app.builder.get_relative_uri(self.env.docname, 'papers')
        for text in list(self.document.findall(nodes.Text)):
            if not in_prose(text): continue
            links = [(c.start, c.end, ('' if c.key in here else page) + f'#{c.key}', True) for c in find_citations(text, bibliography()) if c.key]
            links += [(*m.span(), f'https://arxiv.org/abs/{m[1]}', False) for m in re.finditer(r'arXiv (\d{4}\.\d{4,5})', text)]
            if links: text.parent.replace(text, linked(text, sorted(links)))

def linked(text: str, links: list[tuple[int, int, str, bool]]) -> list[nodes.Node]:
    "A text in pieces, some of them links: from, to, address, and whether it is within the site"
    res, at = [], 0
    for start, end, uri, internal in links:
        res += [nodes.Text(text[at:start]), nodes.reference('', text[start:end], refuri=uri, internal=internal, classes=['citation'] if internal else [])]
        at = end
    return [*res, nodes.Text(text[at:])]

def setup(app):
    app.connect('doctree-read', name_entries)
    app.add_post_transform(LinkCitations)
    return dict(parallel_read_safe=True, parallel_write_safe=True)
