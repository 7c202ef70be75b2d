"""The site for readers that are no browsers: each chapter as Markdown with its outputs, llms.txt that lists them, a sitemap, and robots.txt.

A chapter's plain text is its page without pictures: their alternative texts and captions stand in for them.
"""
import re
from pathlib import Path
from xml.sax.saxutils import escape

from fastcore.nbio import read_nb


def fenced(text: str, language: str = '') -> str:
    "A block of code, within a fence that is longer than any in it"
    fence = '`'*max(3, *(len(run) + 1 for run in re.findall('`{3,}', text)), 3)
    return f'{fence}{language}\n{text.rstrip()}\n{fence}'

def joined(text) -> str:
    "What a notebook stores as a string or as a list of lines"
    return text if isinstance(text, str) else ''.join(text)

def output(out, image: str, caption: str) -> str:
    "An output as text; a picture as what is said of it"
    if 'text' in out: return fenced(joined(out['text']), 'text')
    data = out.get('data', {})
    if any(kind.startswith('image/') for kind in data): return f'[Figure: {image}]' + (f'\n\n*{caption}*' if caption else '')
    if 'text/markdown' in data: return joined(data['text/markdown'])
    return fenced(joined(data['text/plain']), 'text') if 'text/plain' in data else ''

def plain_cell(cell) -> str:
    "A cell and its outputs as Markdown; the links between chapters lead to other plain texts"
    source = joined(cell['source'])
    if 'facts' in cell['metadata'].get('tags', ()): return ''
    if cell['cell_type'] == 'markdown':
        return '' if '{toctree}' in source else re.sub(r'\]\((\w+)\.ipynb(#[^)]*)?\)', r'](\1.md)', re.sub(r'^```\{(?!code)[^`]*?^```\n?', '', source, flags=re.M))
    if cell['cell_type'] != 'code' or not source: return ''
    said = cell['metadata'].get('mystnb', {})
    outputs = (output(out, said.get('image', {}).get('alt', ''), said.get('figure', {}).get('caption', '')) for out in cell.get('outputs', []))
    return '\n\n'.join(filter(None, [fenced(source, 'python'), *outputs]))

def plain(nb) -> str:
    "A notebook as Markdown"
    return '\n\n'.join(filter(None, (plain_cell(cell).strip() for cell in nb['cells']))) + '\n'

def heading(text: str) -> tuple[str, str]:
    "Title and subtitle of a chapter: its first heading, and the quotation below it"
    title, subtitle = (re.search(pattern, text, re.M) for pattern in (r'^# (.+)$', r'^> (.+)$'))
    return title[1] if title else '', subtitle[1] if subtitle else ''

def overview(name: str, summary: str, chapters: dict[str, tuple[str, str]], others: list[str], base: str) -> str:
    "llms.txt: what there is, and where"
    lines = [f'# {name}', '', f'> {summary}', '', 'Each page of the course is also there as Markdown, with code and outputs.', '', '## The course', '']
    lines += [f'- [{title}]({base}{page}.md)' + f': {subtitle}'*bool(subtitle) for page, (title, subtitle) in chapters.items()]
    return '\n'.join([*lines, '', '## Other pages', '', *(f'- [{page}]({base}{page}.html)' for page in others)]) + '\n'

def sitemap(pages: list[str], base: str) -> str:
    "The addresses of all pages, for search engines"
    urls = '\n'.join(f'<url><loc>{escape(base + page)}.html</loc></url>' for page in pages)
    return f'<?xml version="1.0" encoding="utf-8"?>\n<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n{urls}\n</urlset>\n'

def write(app, exception):
    "Write all of it beside the pages"
    if exception or app.builder.format != 'html': return
    pages, out, base = sorted(app.env.found_docs), Path(app.outdir), app.config.html_baseurl.rstrip('/') + '/'
    texts = {page: plain(read_nb(app.srcdir/f'{page}.ipynb')) for page in pages if (app.srcdir/f'{page}.ipynb').exists()}
    for page, text in texts.items(): (out/f'{page}.md').write_text(text, encoding='utf-8')
    order = sorted(texts, key=lambda page: (page != 'index', page != 'introduction', page))
    chapters = {page: heading(texts[page]) for page in order}
    name, summary = chapters.pop('index')
    (out/'llms.txt').write_text(overview(name, summary, chapters, [p for p in pages if p not in texts], base), encoding='utf-8')
    (out/'sitemap.xml').write_text(sitemap(pages, base), encoding='utf-8')
    (out/'robots.txt').write_text(f'User-agent: *\nAllow: /\nSitemap: {base}sitemap.xml\n', encoding='utf-8')

def link_to_text(app, pagename, templatename, context, doctree):
    "Tell of a page's plain text in its head"
    if (app.srcdir/f'{pagename}.ipynb').exists():
        context['metatags'] = context.get('metatags', '') + f'\n<link rel="alternate" type="text/markdown" href="{Path(pagename).name}.md" title="This page as plain text">'

def setup(app):
    app.connect('build-finished', write)
    app.connect('html-page-context', link_to_text)
    return dict(parallel_read_safe=True, parallel_write_safe=True)
