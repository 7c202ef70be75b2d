"The site's own code, without building the site: citations, quoted numbers, collected sections."
import json
import re
import sys
from pathlib import Path

import pytest

root = Path(__file__).parent.parent
for name in ('tomllib', 'sphinx', 'docutils'):
    pytest.importorskip(name, reason=f'{name} is not here: `make site` sets up what the site '
                                     'needs, and Python 3.11 or newer has tomllib')
sys.path.insert(0, str(root/'docs/_ext'))
from minifastai_docs import cells, citations, course, pages  # noqa: E402

papers = citations.bibliography()
chapters = sorted((root/'nbs').glob('0*.ipynb'))


def sources(path):
    "The source of each cell of a notebook, a raw cell excepted"
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    return [''.join(cell['source']) for cell in cells if cell['cell_type'] in ('markdown', 'code')]


def page(name): return (root/'docs/pages'/name).read_text(encoding='utf-8')


def keys(text): return [c.key for c in citations.find_citations(text, papers)]


def markdown(source, id='', **metadata):
    return dict(cell_type='markdown', id=id, source=source.splitlines(True), metadata=metadata)


def code(source, *outputs, id='', **mystnb):
    return dict(cell_type='code', id=id, source=source.splitlines(True), outputs=list(outputs),
                metadata=dict(mystnb=mystnb))


# Citations

@pytest.mark.parametrize('key, paper', papers.items(), ids=papers)
def test_entries_of_the_bibliography(key, paper):
    assert re.fullmatch(rf'{paper.surnames()[0].lower()}-{paper.year}', key)
    authors = paper.authors.removesuffix(' and others').split(', ')
    assert all(re.match(r'([A-Z]\. )+[A-Z]', name) for name in authors)
    assert paper.arxiv or paper.url
    if paper.arxiv:
        assert re.fullmatch(r'\d{4}\.\d{4,5}', paper.arxiv)
        assert not paper.url
        # what is on arXiv is published a little later, if at all
        assert 0 <= paper.year - 2000 - int(paper.arxiv[:2]) <= 2
    assert paper.title[-1] != '.'
    assert len(paper.markdown()) > 40


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
    # a citation of no paper in the bibliography
    'Smith (2017)': [None],
    'Smithers (2018)': [None],
    'Wu and She 2018': [None],
    'Wu et al. 2018': [None],
    '(Smithers 2018, section 2)': [None],
    '(after Smithers 2018)': [None],
    # no citation
    'ICLR 2017': [],
    '(NeurIPS 2018)': [],
    'on 23 November 2026': [],
    'In 2015': [],
    '(Since 2015)': [],
    'in May and June 2019': [],
    'Springer 1990': [],
    'PyTorch 2.13': [],
    'Smith 20180': [],
    'the course of 2019': [],
    'Information 11 (2020)': [],
}.items())
def test_what_is_a_citation(text, found): assert keys(text) == found


def test_where_a_citation_is():
    text = 'as in Berlin, Wu and He (2018) say'
    c, = citations.find_citations(text, papers)
    assert text[c.start:c.end] == 'Wu and He (2018)'
    before, link, after = citations.linked(text, [(c.start, c.end, '#wu-2018', True)])
    assert before + link.astext() + after == text
    assert link['refuri'] == '#wu-2018'


def test_an_arxiv_id_is_that_of_a_paper_cited_beside_it():
    def cited(text): return citations.cited(text, papers)
    assert cited('(Smith 2018, arXiv 1803.09820)') == (['smith-2018'], [])
    assert cited('Smith (2017)')[1] == ['no paper in docs/references.toml for "Smith (2017)"']
    for arxiv, text in (
        ('1506.01186', '(Smith 2018, arXiv 1506.01186)'),
        ('1234.56789', '[here](https://arxiv.org/abs/1234.56789)'),
    ):
        assert cited(text)[1] == [f'arXiv {arxiv} is not one of the papers cited next to it']


@pytest.mark.parametrize('path', chapters, ids=lambda p: p.stem)
def test_chapters_cite_what_the_bibliography_has(path):
    found = [citations.cited(source, papers) for source in sources(path)]
    assert not [w for _, wrong in found for w in wrong]
    assert any(cited for cited, _ in found), 'a chapter names its papers'


def test_every_paper_is_cited():
    texts = [source for path in (root/'nbs').glob('*.ipynb') for source in sources(path)]
    assert set(papers) <= {key for text in texts for key in keys(text)}


# Numbers quoted from stored outputs

def test_numbers_from_stored_outputs(tmp_path):
    log = dict(text=['loss 0.5, accuracy 0.81\n', 'loss 0.4, accuracy 0.9\n'])
    pair_and_figure = dict(data={'text/plain': ['(1, 2)'], 'image/png': 'no'})
    cells = [
        code('x', log, pair_and_figure, id='a'),
        code('#| cuda\nx', id='b'),
        code('x', id='c'),
        markdown('accuracy 1', id='d'),
    ]
    (tmp_path/'07_norms.ipynb').write_text(json.dumps(dict(cells=cells)))
    assert pages.stored(r'07#a accuracy (\S+)', tmp_path) == ('07_norms', 'a', '0.9')
    assert pages.stored(r'07#a ^\(1, 2\)$', tmp_path)[2] == '(1, 2)'
    assert pages.stored(r'07#b accuracy (\S+)', tmp_path)[2] == 'not measured: no GPU'
    for wrong in (
        '07#a accuracy (1)',
        '07#a',
        '07#c accuracy',
        '07#d accuracy',
        '07#e accuracy',
        '08#a accuracy',
    ):
        with pytest.raises(LookupError): pages.stored(wrong, tmp_path)


def test_the_lesson_page_quotes_what_is_stored():
    quoted = re.findall(r'\{stored\}`([^`]*)`', page('lesson.md'))
    assert len(quoted) > 50
    for reference in quoted: assert pages.stored(reference)[2]


# Sections collected from chapters

def test_sections_of_chapters():
    nb = [
        '# A chapter\n\n## First\n\nnot this',
        '## What went wrong in the original\n\n- one ([link](#a-b))',
        'two\n\n### Below\n\n[there](05_x.ipynb#y)',
        '## Last\n\nnor this',
    ]
    assert cells.heading('\n\n'.join(nb)).title == 'A chapter'
    text = pages.section(nb, pages.FAULTS)
    rest = 'two\n\n### Below\n\n[there](05_x.ipynb#y)'
    assert text == f'- one ([link](#a-b))\n\n{rest}'
    assert pages.moved(text, '04_z') == f'- one ([link](04_z.ipynb#a-b))\n\n{rest}'
    assert pages.section(nb[:1], pages.FAULTS) == ''


def test_the_glossary_says_where():
    text, = re.findall(r'```\{glossary\}\n:sorted:\n(.*)```', page('glossary.md'), re.S)
    terms = dict(re.findall(r'^(\S.*)\n((?:  .*\n)+)', text, re.M))
    assert len(terms) == len(re.findall(r'^\S', text, re.M)) >= 40
    assert list(terms) == sorted(terms)
    for term, said in terms.items():
        where = re.search(r'\[\]\(\d\w+\.ipynb#[\w-]+\)', said)
        assert where, f'{term} does not say where it is explained'
        uses = re.findall(r'\{term\}`([^`]*)`', said)
        assert {use.split('<')[-1].rstrip('>') for use in uses} <= set(terms) - {term}


# Pages that are made of notebooks and of the package

def test_plain_text_of_a_notebook():
    """Code and outputs become fences that they cannot break, and figures become their alt text.

    What only the site needs is left out.
    """
    plain = pytest.importorskip('minifastai_docs.plain')
    figure = dict(data={'image/png': 'x', 'text/plain': '<Figure>'})
    nb = dict(cells=[
        markdown('# 07 Norms\n\n> About norms\n\nSee [05](05_lr_finder.ipynb#a).'),
        markdown('<p>facts</p>', tags=['facts']),
        code('print("```")', dict(output_type='stream', text=['```\n', 'b\n'])),
        code('plot()', figure, image=dict(alt='A line'), figure=dict(caption='The loss')),
    ])
    text = plain.plain(nb)
    assert plain.heading(text) == ('07 Norms', 'About norms')
    assert '](05_lr_finder.md)' in text
    assert 'facts' not in text
    assert '````python\nprint("```")\n````\n\n````text\n```\nb\n````' in text
    assert '[Figure: A line]\n\n*The loss*' in text
    assert '<Figure>' not in text


def test_examples_of_the_reference():
    examples = pytest.importorskip('minifastai_docs.examples')
    def cells(*sources):
        output = dict(text='7\n')
        return [code(source, output, id=f'{i}') for i, source in enumerate(sources)]
    nbs = dict(
        a=cells(
            'f(0)',
            '#| export\ndef f(): pass',
            '#| slow\nf(1)',
            'x = 1\n'*20 + 'f(2)',
            'f(3)',
        ),
        b=cells(
            '#| hide\ng()',
            'f(4); o.g()',
        ),
    )
    found = examples.find(dict(f=('a', 1), g=('a', 1), h=('a', 1)), nbs)
    assert set(found) == {'f', 'g'}
    assert found['f'].source == 'f(3)'
    assert found['f'].output == '7'
    assert found['g'].source == 'f(4); o.g()'


def test_errors_of_the_reference():
    examples = pytest.importorskip('minifastai_docs.examples')

    class Refuses:
        def __init__(self, n):
            if n < 0: raise ValueError(f"n is {n}: " "too small")
            raise KeyError

    assert examples.raised(Refuses) == [('ValueError', 'n is …: too small')]


def test_times_in_words():
    times = pytest.importorskip('minifastai_docs.times')
    words = {
        1: '5 minutes',
        33: '35 minutes',
        55: 'an hour',
        80: '1½ hours',
        95: '1½ hours',
        130: '2 hours',
        150: '2½ hours',
    }
    assert {minutes: times.in_words(minutes) for minutes in words} == words


def test_minutes_to_read_a_notebook():
    times = pytest.importorskip('minifastai_docs.times')
    cells = [
        markdown('a b c d '*100),
        code('#| hide\nx'),
        code('x\n\ny\n'),
        markdown('<details><summary>Solution 1</summary>\n\nIt is zero.\n</details>'),
        code('#| solution\nx'),
    ]
    assert times.minutes(dict(cells=cells)) == pytest.approx(400/200 + 2/15)


def test_parts_of_the_sidebar():
    names = ['index', 'introduction', '00_data', '04_callbacks', '07b_small_batches', '91_all']
    listed = {part: found for part, found in course.parts(names).items() if found}
    assert listed == {
        'The course': ['introduction'],
        'I From the foundations': ['00_data'],
        'II The training loop and the CNN': ['04_callbacks', '07b_small_batches'],
        'Applications': ['91_all'],
    }
    assert course.part('10_data_block') == 'III To the state of the art'
    assert course.part('19_unet') == 'IV Outlook'
