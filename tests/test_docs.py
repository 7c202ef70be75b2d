"The documentation site's own code, without building the site: citations, numbers quoted from outputs, sections collected from chapters."
import json
import re
import sys
from pathlib import Path

import pytest

root = Path(__file__).parent.parent
for name in ('tomllib', 'sphinx', 'docutils'): pytest.importorskip(name, reason=f'{name} is not here: `make site` sets up what the site needs, and Python 3.11 or newer has tomllib')
sys.path.insert(0, str(root/'docs/_ext'))
from minifastai_docs import cells, citations, pages  # noqa: E402

papers = citations.bibliography()
chapters = sorted((root/'nbs').glob('0*.ipynb'))


def sources(path, kinds=('markdown', 'code')): return [''.join(c['source']) for c in json.loads(path.read_text(encoding='utf-8'))['cells'] if c['cell_type'] in kinds]

def keys(text): return [c.key for c in citations.find_citations(text, papers)]


@pytest.mark.parametrize('key, paper', papers.items(), ids=papers)
def test_entries_of_the_bibliography(key, paper):
    assert re.fullmatch(rf'{paper.surnames()[0].lower()}-{paper.year}', key)
    assert all(re.match(r'([A-Z]\. )+[A-Z]', name) for name in paper.authors.removesuffix(' and others').split(', '))
    assert paper.arxiv or paper.url
    if paper.arxiv:
        assert re.fullmatch(r'\d{4}\.\d{4,5}', paper.arxiv) and not paper.url
        assert 0 <= paper.year - 2000 - int(paper.arxiv[:2]) <= 2    # what is on arXiv appears a little later, if at all
    assert paper.title[-1] != '.' and len(paper.markdown()) > 40

@pytest.mark.parametrize('text, found', {
    'Smith (2018) says': ['smith-2018'],
    '(Smith 2018, section 5)': ['smith-2018'],
    'Leslie Smith (2015)': ['smith-2015'],
    "Smith's (2018) way": ['smith-2018'],
    'as Wu and He (2018) and Wu & He (2018)': ['wu-2018', 'wu-2018'],
    'Ba, Kiros and Hinton 2016, arXiv 1607.06450': ['ba-2016'],
    'Ba, Kiros, and Hinton\n(2016)': ['ba-2016'],
    'He and others (2015), He et al. (2016), He et al 2016': ['he-2015', 'he-2016', 'he-2016'],
    'In Lake Tahoe, Wu and He (2018)': ['wu-2018'],
    'Bouthillier and others 2021': ['bouthillier-2021'],
    'Blanchard, Higham and Higham (2021)': ['blanchard-2021'],
    'Smith (2017)': [None], 'Smithers (2018)': [None], 'Wu and She 2018': [None], 'Wu et al. 2018': [None], '(Smithers 2018, section 2)': [None], '(after Smithers 2018)': [None],
    'ICLR 2017': [], '(NeurIPS 2018)': [], 'on 23 November 2026': [], 'In 2015': [], '(Since 2015)': [], 'in May and June 2019': [], 'Springer 1990': [], 'PyTorch 2.13': [], 'Smith 20180': [],
    'the course of 2019': [], 'Information 11 (2020)': []}.items())
def test_what_is_a_citation(text, found): assert keys(text) == found

def test_where_a_citation_is():
    text = 'as in Berlin, Wu and He (2018) say'
    c, = citations.find_citations(text, papers)
    assert text[c.start:c.end] == 'Wu and He (2018)'
    before, link, after = citations.linked(text, [(c.start, c.end, '#wu-2018', True)])
    assert before + link.astext() + after == text and link['refuri'] == '#wu-2018'

def test_an_arxiv_id_is_that_of_a_paper_cited_beside_it():
    assert citations.cited('(Smith 2018, arXiv 1803.09820)', papers) == (['smith-2018'], [])
    assert citations.cited('(Smith 2018, arXiv 1506.01186)', papers)[1] == ['arXiv 1506.01186 is none of the papers cited beside it']
    assert citations.cited('[here](https://arxiv.org/abs/1234.56789)', papers)[1] == ['arXiv 1234.56789 is none of the papers cited beside it']
    assert citations.cited('Smith (2017)', papers)[1] == ['no paper in docs/references.toml for "Smith (2017)"']

@pytest.mark.parametrize('path', chapters, ids=lambda p: p.stem)
def test_chapters_cite_what_the_bibliography_has(path):
    found = [citations.cited(source, papers) for source in sources(path)]
    assert not [w for _, wrong in found for w in wrong]
    assert any(cited for cited, _ in found), 'a chapter names its papers'

def test_every_paper_is_cited(): assert set(papers) <= {key for path in (root/'nbs').glob('*.ipynb') for source in sources(path) for key in keys(source)}


def test_numbers_from_stored_outputs(tmp_path):
    def cell(i, source, *outputs): return dict(cell_type='code', id=i, source=[source], outputs=list(outputs))
    cells = [cell('a', 'x', dict(text=['loss 0.5, accuracy 0.81\n', 'loss 0.4, accuracy 0.9\n']), dict(data={'text/plain': ['(1, 2)'], 'image/png': 'no'})),
             cell('b', '#| cuda\nx'), cell('c', 'x'), dict(cell_type='markdown', id='d', source=['accuracy 1'])]
    (tmp_path/'07_norms.ipynb').write_text(json.dumps(dict(cells=cells)))
    assert pages.stored(r'07#a accuracy (\S+)', tmp_path) == ('07_norms', 'a', '0.9')
    assert pages.stored(r'07#a ^\(1, 2\)$', tmp_path)[2] == '(1, 2)'
    assert pages.stored(r'07#b accuracy (\S+)', tmp_path)[2] == 'not measured: no GPU'
    for wrong in ('07#a accuracy (1)', '07#a', '07#c accuracy', '07#d accuracy', '07#e accuracy', '08#a accuracy'):
        with pytest.raises(LookupError): pages.stored(wrong, tmp_path)

def test_the_lesson_page_quotes_what_is_stored():
    quoted = re.findall(r'\{stored\}`([^`]*)`', (root/'docs/pages/lesson.md').read_text(encoding='utf-8'))
    assert len(quoted) > 50
    for reference in quoted: assert pages.stored(reference)[2]


def test_sections_of_chapters():
    nb = ['# A chapter\n\n## First\n\nnot this', '## What went wrong in the original\n\n- one ([link](#a-b))', 'two\n\n### Below\n\n[there](05_x.ipynb#y)', '## Last\n\nnor this']
    assert cells.heading('\n\n'.join(nb)).title == 'A chapter'
    text = pages.section(nb, pages.FAULTS)
    assert text == '- one ([link](#a-b))\n\ntwo\n\n### Below\n\n[there](05_x.ipynb#y)'
    assert pages.moved(text, '04_z') == '- one ([link](04_z.ipynb#a-b))\n\ntwo\n\n### Below\n\n[there](05_x.ipynb#y)'
    assert pages.section(nb[:1], pages.FAULTS) == ''

def test_the_glossary_says_where():
    text, = re.findall(r'```\{glossary\}\n:sorted:\n(.*)```', (root/'docs/pages/glossary.md').read_text(encoding='utf-8'), re.S)
    terms = dict(re.findall(r'^(\S.*)\n((?:  .*\n)+)', text, re.M))
    assert len(terms) == len(re.findall(r'^\S', text, re.M)) >= 40 and list(terms) == sorted(terms)
    for term, said in terms.items():
        assert re.search(r'\[\]\(\d\w+\.ipynb#[\w-]+\)', said), f'{term} does not say where it is explained'
        assert {use.split('<')[-1].rstrip('>') for use in re.findall(r'\{term\}`([^`]*)`', said)} <= set(terms) - {term}


def test_plain_text_of_a_notebook():
    "Code and outputs in fences that they cannot break, pictures as what is said of them, nothing of what only the site needs"
    plain = pytest.importorskip('minifastai_docs.plain')
    code = lambda source, *outputs, **mystnb: dict(cell_type='code', source=source, outputs=list(outputs), metadata=dict(mystnb=mystnb))
    nb = dict(cells=[dict(cell_type='markdown', source='# 07 Norms\n\n> About norms\n\nSee [05](05_lr_finder.ipynb#a).', metadata={}),
                     dict(cell_type='markdown', source='<p>facts</p>', metadata=dict(tags=['facts'])),
                     code('print("```")', dict(output_type='stream', text=['```\n', 'b\n'])),
                     code('plot()', dict(data={'image/png': 'x', 'text/plain': '<Figure>'}), image=dict(alt='A line'), figure=dict(caption='The loss'))])
    text = plain.plain(nb)
    assert plain.heading(text) == ('07 Norms', 'About norms') and '](05_lr_finder.md)' in text and 'facts' not in text
    assert '````python\nprint("```")\n````\n\n````text\n```\nb\n````' in text and '[Figure: A line]\n\n*The loss*' in text and '<Figure>' not in text


def test_examples_and_errors_of_the_reference():
    examples = pytest.importorskip('minifastai_docs.examples')
    cells = lambda *sources: [dict(cell_type='code', id=f'{i}', source=s, outputs=[dict(text='7\n')]) for i, s in enumerate(sources)]
    nbs = dict(a=cells('f(0)', '#| export\ndef f(): pass', '#| slow\nf(1)', 'x = 1\n'*20 + 'f(2)', 'f(3)'), b=cells('#| hide\ng()', 'f(4); o.g()'))
    found = examples.find(dict(f=('a', 1), g=('a', 1), h=('a', 1)), nbs)
    assert (found['f'].source, found['f'].output, found['g'].source, set(found)) == ('f(3)', '7', 'f(4); o.g()', {'f', 'g'})
    class C:
        def __init__(self, n):
            if n < 0: raise ValueError(f"n is {n}: " "too small")
            raise KeyError
    assert examples.raised(C) == [('ValueError', 'n is …: too small')]


def test_times():
    times = pytest.importorskip('minifastai_docs.times')
    assert [times.in_words(m) for m in (1, 33, 55, 80, 95, 130, 150)] == ['5 minutes', '35 minutes', 'an hour', '1½ hours', '1½ hours', '2 hours', '2½ hours']
    assert times.minutes(dict(cells=[dict(cell_type='markdown', source=['a b ', 'c d ']*100), dict(cell_type='code', source='#| hide\nx'), dict(cell_type='code', source='x\n\ny\n')])) == pytest.approx(2.2)
