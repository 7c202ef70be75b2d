"""Writes the site for programs other than browsers.

That is: each chapter as Markdown with its outputs, llms.txt that lists them, a sitemap, and
robots.txt. In a chapter's plain text, alt texts and captions replace the pictures.
"""
import re
from pathlib import Path
from xml.sax.saxutils import escape

from fastcore.nbio import read_nb

from .cells import heading, joined


def fenced(text: str, language: str = '') -> str:
    "Return a block of code, in a fence longer than any inside it"
    fence = '`'*max(3, *(len(run) + 1 for run in re.findall('`{3,}', text)), 3)
    return f'{fence}{language}\n{text.rstrip()}\n{fence}'

def output(out, image: str, caption: str) -> str:
    "Return an output as text; for a picture, its alt text and its caption"
    if 'text' in out: return fenced(joined(out['text']), 'text')
    data = out.get('data', {})
    if any(kind.startswith('image/') for kind in data):
        return f'[Figure: {image}]' + (f'\n\n*{caption}*' if caption else '')
    if 'text/markdown' in data: return joined(data['text/markdown'])
    return fenced(joined(data['text/plain']), 'text') if 'text/plain' in data else ''

def plain_prose(source: str) -> str:
    "Return Markdown without the site's directives, with links to other plain texts"
    if '{toctree}' in source: return ''
    source = re.sub(r'^```\{(?!code)[^`]*?^```\n?', '', source, flags=re.M)
    return re.sub(r'\]\((\w+)\.ipynb(#[^)]*)?\)', r'](\1.md)', source)

def plain_cell(cell) -> str:
    "Return a cell and its outputs as Markdown"
    source = joined(cell['source'])
    if 'facts' in cell['metadata'].get('tags', ()): return ''
    if cell['cell_type'] == 'markdown': return plain_prose(source)
    if cell['cell_type'] != 'code' or not source: return ''
    said = cell['metadata'].get('mystnb', {})
    image, caption = said.get('image', {}).get('alt', ''), said.get('figure', {}).get('caption', '')
    outputs = (output(out, image, caption) for out in cell.get('outputs', []))
    return '\n\n'.join(filter(None, [fenced(source, 'python'), *outputs]))

def plain(nb) -> str:
    "Return a notebook as Markdown"
    return '\n\n'.join(filter(None, (plain_cell(cell).strip() for cell in nb['cells']))) + '\n'


OVERVIEW = '''\
# {name}

> {summary}

Each page of the course is also available as Markdown, with code and outputs.

## The course

{chapters}

## Other pages

{others}
'''

def overview(name: str, summary: str, chapters: dict[str, tuple[str, str]], others: list[str],
             base: str) -> str:
    "Return the text of llms.txt, which lists all pages"
    listed = []
    for page, (title, subtitle) in chapters.items():
        listed.append(f'- [{title}]({base}{page}.md)' + f': {subtitle}'*bool(subtitle))
    other_links = [f'- [{page}]({base}{page}.html)' for page in others]
    return OVERVIEW.format(name=name, summary=summary, chapters='\n'.join(listed),
                           others='\n'.join(other_links))

SITEMAP = '''\
<?xml version="1.0" encoding="utf-8"?>
<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">
{urls}
</urlset>
'''

def sitemap(pages: list[str], base: str) -> str:
    "Return the addresses of all pages, for search engines"
    urls = [f'<url><loc>{escape(base + page)}.html</loc></url>' for page in pages]
    return SITEMAP.format(urls='\n'.join(urls))

def write(app, exception):
    "Write all these files next to the pages"
    if exception or app.builder.format != 'html': return
    out, pages = Path(app.outdir), sorted(app.env.found_docs)
    base = app.config.html_baseurl.rstrip('/') + '/'
    texts = {}
    for page in pages:
        source = app.srcdir/f'{page}.ipynb'
        if source.exists(): texts[page] = plain(read_nb(source))
    for page, text in texts.items(): (out/f'{page}.md').write_text(text, encoding='utf-8')
    order = sorted(texts, key=lambda page: (page != 'index', page != 'introduction', page))
    chapters = {page: heading(texts[page]) for page in order}
    name, summary = chapters.pop('index')
    others = [page for page in pages if page not in texts]
    llms = overview(name, summary, chapters, others, base)
    robots = f'User-agent: *\nAllow: /\nSitemap: {base}sitemap.xml\n'
    (out/'llms.txt').write_text(llms, encoding='utf-8')
    (out/'sitemap.xml').write_text(sitemap(pages, base), encoding='utf-8')
    (out/'robots.txt').write_text(robots, encoding='utf-8')

LINK = ('\n<link rel="alternate" type="text/markdown" href="{name}.md" '
        'title="This page as plain text">')

def link_to_text(app, pagename, templatename, context, doctree):
    "Name a page's plain text in its head"
    if not (app.srcdir/f'{pagename}.ipynb').exists(): return
    context['metatags'] = context.get('metatags', '') + LINK.format(name=Path(pagename).name)


def setup(app):
    app.connect('build-finished', write)
    app.connect('html-page-context', link_to_text)
    return dict(parallel_read_safe=True, parallel_write_safe=True)
