"""The course's notebooks as pages: staged through nbdev's processors with their stored outputs, in the order of their file names.

A chapter is written for Jupyter and nbdev. What only the site understands is said in directives at the top of a code cell:

    #| fig-alt: what the picture shows     (every picture needs one)
    #| fig-cap: a caption, in Markdown     (for a cell that shows one picture)
    #| solution                            (folds the cell, output included, under "Show solution")
    #| code-fold: true                     (the same, under "Show code")
    #| live: schedule                      (a cell of one picture, which _static/live.js draws anew, with the controls that it has by that name;
                                            without JavaScript the picture stays. A notebook's own controls are in a hidden cell behind it)
"""
import re
from importlib.util import find_spec
from pathlib import Path
from shutil import copyfile, copytree, rmtree

from docutils import nodes
from fastcore.basics import listify
from fastcore.nbio import mk_cell, read_nb, write_nb
from nbdev.doclinks import patch_name
from nbdev.process import NBProcessor
from nbdev.processors import clean_magics, filter_stream_, hide_, hide_line, rm_header_dash, strip_ansi
from PIL import Image
from sphinx.errors import ConfigError
from sphinx.util import logging

import citations
import examples
import pages
import reference
import times

log = logging.getLogger(__name__)
WIDGET = 'application/vnd.jupyter.widget-view+json'
PICTURES = {'image/png', 'image/jpeg', 'image/gif', 'image/svg+xml'}


# The order of the chapters

def notebooks(nbs: Path) -> list[Path]:
    "The notebooks in reading order: the home page, the introduction, the chapters"
    return sorted((p for p in nbs.glob('*.ipynb') if p.name[0] not in '._'), key=lambda p: (p.stem != 'index', p.stem != 'introduction', p.stem))

def number(docname: str) -> str:
    "A chapter's number as its file name spells it: 04a of 04a_statistics; nothing for the home page"
    return m[1] if (m := re.match(r'(\d+[a-z]*)_', docname)) else ''

def parts(docnames: list[str]) -> dict[str, list[str]]:
    "The parts of the sidebar that hold notebooks"
    res = {'The course': [], 'Applications': []}
    for d in docnames:
        if d != 'index': res['Applications' if number(d).startswith('9') else 'The course'].append(d)
    return res

def toctree(caption: str, docnames: list[str]) -> str:
    "One part of the sidebar, as the directive that makes it"
    return '\n'.join(['```{toctree}', ':hidden:', f':caption: {caption}', '', *docnames, '```'])


# A cell, from nbdev's form to MyST-NB's

def default_exp_(cell, *_):
    "Drop the cell that names the module"
    del cell['source']

def exported(cell) -> list[str]:
    "Names that an exported cell adds to the package, a method patched into a class as Class.method"
    names = []
    for node in cell.parsed_() or ():
        if hasattr(node, 'name'): names += listify(patch_name(node))
        names += [t.id for t in getattr(node, 'targets', ()) if hasattr(t, 'id')]
    return names

def unquoted(text: str) -> str:
    "A directive's value without the quotes that some put around it"
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in '"\'' else text

def metadata_for_myst(cell):
    "Move what the site's directives say to the metadata that MyST-NB reads"
    said, meta = cell.get('directives_', {}), cell.metadata
    mystnb, tags = dict(meta.get('mystnb', {})), list(meta.get('tags', []))
    if 'fig-alt' in said: mystnb['image'] = dict(alt=unquoted(said['fig-alt']))
    if 'fig-cap' in said: mystnb['figure'] = dict(caption=unquoted(said['fig-cap']))
    if 'solution' in said or said.get('code-fold') == '':   # nbdev reads `true` as nothing
        what = 'solution' if 'solution' in said else 'code'
        mystnb |= dict(code_prompt_show=f'Show {what}', code_prompt_hide=f'Hide {what}')
        tags.append('hide-cell')
    if 'live' in said: tags.append(f"live-{said['live']}")
    exports = {'export', 'exports', 'exporti'} & said.keys()
    if exports: tags.append('exported')
    cell['metadata'] = dict(tags=tags, mystnb=mystnb, exports=exported(cell) if exports else [], id=cell.id)

def outputs_for_a_page(cell):
    "Keep what a page without a kernel can show, and fold what is long"
    for out in cell.get('outputs', []):
        if 'text' in out: out['text'] = re.sub(r'[^\n]*\r(?!\n)', '', out['text'])   # of a progress bar, its last state
        if 'data' in out: out['data'].pop(WIDGET, None)
    lines = sum(out.get('text', '').count('\n') for out in cell.get('outputs', []))
    if lines > 30 and 'hide-cell' not in cell.metadata['tags']:
        cell.metadata['tags'].append('hide-output')
        cell.metadata['mystnb'] |= dict(code_prompt_show=f'Show all {lines} lines', code_prompt_hide='Hide them')

def links_as_slugs(cell):
    "Spell links to headings as MyST does: Jupyter's [..](04_callbacks.ipynb#The-Runner) becomes #the-runner"
    if cell.cell_type != 'markdown': return
    def slug(m): return f']({m[1]}#' + re.sub(r'[^\w-]', '', m[2].lower()) + ')'
    cell.source = re.sub(r'\]\(([\w./-]*)#([^)\s]+)\)', slug, cell.source)

def complaints(cell) -> list[str]:
    "What a reader of the page would miss"
    res, results, mystnb = [], [o['data'] for o in cell.get('outputs', []) if 'data' in o], cell.metadata['mystnb']
    if any(t.startswith('live-') for t in cell.metadata['tags']) and 'figure' not in mystnb: res.append('a live figure without a picture to stand for it, and its fig-cap')
    if re.search(r'^#\|', cell.source, re.M): res.append('a directive that is not at the top of its cell')
    if 'figure' in mystnb and (n := sum(not PICTURES.isdisjoint(data) for data in results)) != 1: res.append(f'a fig-cap for {n} pictures')
    for data in results:
        html = data.get('text/html', '')
        if not data: res.append('a widget with nothing to show in its place')
        if PICTURES & data.keys() and not mystnb.get('image', {}).get('alt'): res.append('a picture without alt text (#| fig-alt: ...)')
        if re.search(r'<img(?![^>]*\balt=)', html): res.append('a picture within HTML, without alt text')
        if 'application/javascript' in data or re.search(r'<script|\bsrc="?https?:', html): res.append('an output that needs a script or the network')
    return res


# The notebook

def staged(path: Path):
    "The notebook as the site shows it"
    nb = NBProcessor(path, process=True, procs=[hide_, default_exp_, hide_line, filter_stream_, strip_ansi, clean_magics, rm_header_dash,
                                                metadata_for_myst, outputs_for_a_page, links_as_slugs]).nb
    for cell in nb.cells:
        for complaint in complaints(cell): log.warning(complaint, location=f'{path}:{cell.id}')
    if n := number(path.stem):
        title = next(c for c in nb.cells if c.cell_type == 'markdown')
        title.source = re.sub(rf'^# (?:{n}\b\W*)?', f'# {n} ', title.source, count=1, flags=re.M)
    nb['metadata'] = dict(language_info=dict(name='python', pygments_lexer='ipython3'), kernelspec=nb.metadata.get('kernelspec', {}))
    return nb

def facts(docname: str, nb, modules: list[str]) -> str:
    "What stands below a chapter's title: how long it takes to read, the modules that it builds, and where it is without pictures"
    page = lambda m: f'{m.rsplit(".", 1)[1]}.html' if not m.endswith('.all') else f'index.html#module-{m}'   # which has no page of its own
    builds = ', '.join(f'<a href="reference/{page(m)}"><code>{m}</code></a>' for m in modules)
    return f'<p class="chapter-facts">{times.in_words(times.minutes(nb))} to read' + f' · builds {builds}'*bool(modules) + f' · <a href="{docname}.md">plain text</a></p>'

def stage(app, config):
    "Write the source of every page to docs/_build, and make that Sphinx's source folder"
    root, build = Path(app.confdir).parent, Path(app.confdir)/'_build'
    rmtree(build, ignore_errors=True)   # from nothing each time: Sphinx does not repeat warnings of pages it need not read again
    app.srcdir, app.doctreedir = build/'pages', build/'doctrees'
    app.srcdir.mkdir(parents=True)

    chapters = {p.stem: staged(p) for p in notebooks(root/'nbs')}
    if 'index' not in chapters: raise ConfigError('there is no home page: nbs/index.ipynb')
    for docname, nb in chapters.items():
        modules = [f'{config.project}.{p.stem}' for p in sorted((root/config.project).glob('*.py')) if p.stem[0] != '_' and docname in reference.source_notebooks(p)]
        if docname != 'index': nb.cells.insert(1, mk_cell(facts(docname, nb, modules), 'markdown', metadata=dict(tags=['facts'])))
    sidebar = parts(chapters) | pages.write_pages(app.srcdir, chapters, citations.add_references(chapters))
    sidebar['Reference'] += reference.write_pages(app.srcdir, root/config.project)
    chapters['index'].cells.append(mk_cell('\n\n'.join(toctree(*part) for part in sidebar.items() if part[1]), 'markdown'))
    for docname, nb in chapters.items(): write_nb(nb, app.srcdir/f'{docname}.ipynb')
    for picture in (p for p in (root/'nbs').rglob('*.*') if p.suffix in ('.png', '.jpg', '.gif', '.svg', '.webp')):
        copy = app.srcdir/picture.relative_to(root/'nbs')
        copy.parent.mkdir(parents=True, exist_ok=True)
        copyfile(picture, copy)

    sources = {path.stem: read_nb(path).cells for path in notebooks(root/'nbs') if number(path.stem)}
    at = {c.id: i for cells in sources.values() for i, c in enumerate(cells)}
    reference.EXAMPLES.update(examples.find({name: (docname, at[c.metadata['id']]) for docname, nb in chapters.items() for c in nb.cells for name in c.metadata.get('exports', ()) if docname in sources}, sources))
    homes = {name: docname for docname, nb in chapters.items() for c in nb.cells for name in c.metadata.get('exports', ())}
    config.linkcode_resolve = lambda domain, info: link_to_cell(homes, info['fullname'])

def link_to_cell(homes: dict[str, str], name: str) -> str | None:
    "From a page of the reference, the address of the cell that defines a name, or the class that the name belongs to"
    for n in (name, name.split('.')[0]):
        if n in homes: return f'../{homes[n]}.html#def-{n}'

def outputs_into_build(app):
    "Keep MyST-NB's pictures out of the project's folder"
    app.env.mystnb_config = app.env.mystnb_config.copy(output_folder=str(app.srcdir/'outputs'))


# The page

def finish_page(app, doctree):
    "Give cells their addresses, only pictures captions, and insist on pictures that everyone can see, offline too"
    for cell in doctree.findall(nodes.container):
        meta = cell.get('cell_metadata', {})
        cell['ids'] += [f'def-{name}' for name in meta.get('exports', ())] + ([f"cell-{meta['id']}"] if 'id' in meta else [])
        public = [nodes.literal('', name) for name in meta.get('exports', ()) if not re.search(r'\b_', name)]
        if public: cell += nodes.paragraph('', 'Reference: ', *[n for name in public for n in (name, nodes.Text(', '))][:-1], classes=['in-reference'])   # reference.py makes links of them
    for figure in list(doctree.findall(nodes.figure)):   # MyST-NB makes one of each output of a cell with a caption
        if not next(figure.findall(nodes.image), None): figure.replace_self(figure[0])
    for image in list(doctree.findall(nodes.image)): captioned(image)
    for image in doctree.findall(nodes.image):
        if image.line and not image.get('alt'): log.warning('a picture without alt text', location=image)
        if '://' in image['uri']: log.warning('a picture from the network: %s', image['uri'], location=image)

def captioned(image):
    "Make a figure of a picture that is a paragraph of its own, if the next one is in italics, and nothing else: that is its caption"
    lone = isinstance(image.parent, nodes.paragraph) and len(image.parent) == 1
    below = image.parent.next_node(descend=False, siblings=True) if lone else None
    if not isinstance(below, nodes.paragraph) or len(below) != 1 or not isinstance(below[0], nodes.emphasis): return
    below.parent.remove(below)
    figure = nodes.figure('', image.deepcopy(), nodes.caption('', '', *below[0].children))
    image.document.set_id(figure)
    image.parent.replace_self(figure)

def lighter_pictures(app, doctree):
    "Pictures as WebP, which loses nothing and has half the bytes"
    for image in doctree.findall(nodes.image):
        if not image['uri'].endswith('.png') or '://' in image['uri']: continue
        path = Path(app.env.relfn2path(image['uri'])[1])
        lighter = path.with_suffix('.webp')
        if not lighter.exists(): Image.open(path).save(lighter, lossless=True)
        if lighter.stat().st_size < path.stat().st_size: image['uri'] = image['uri'].removesuffix('.png') + '.webp'

def live_figures(app, pagename, templatename, context, doctree):
    "Give the pages with live figures what draws them"
    if doctree is None or not any(c.startswith('tag_live-') for cell in doctree.findall(nodes.container) for c in cell['classes']): return
    app.add_css_file('live.css')
    app.add_js_file('live.js', defer='defer')

def no_download_of_generated_pages(app, pagename, templatename, context, doctree):
    "Offer the source of notebooks only"
    if context.get('page_source_suffix') != '.ipynb': context['page_source_suffix'] = ''

def add_files(app, exception):
    "Serve the notebooks as they are in the repository, of MathJax what pages can need, and nothing heavy that they do not"
    if exception or app.builder.format != 'html': return
    for nb in notebooks(Path(app.confdir).parent/'nbs'): copyfile(nb, app.outdir/'_sources'/nb.name)
    mathjax, dest = Path(find_spec('sphinx-mathjax-offline').origin).parent/'static/mathjax', app.outdir/'_static/mathjax'
    for part in ('output/chtml/fonts', 'input/tex/extensions'): copytree(mathjax/part, dest/part, dirs_exist_ok=True)
    copyfile(mathjax/'tex-chtml.js', dest/'tex-chtml.js')
    # The theme draws its icons with a font; its script of 1.5 MB, for icons that one adds, is a third of what a page would load
    (app.outdir/'_static/scripts/fontawesome.js').write_text('// the icons come from a font\n')

def setup(app):
    app.connect('config-inited', stage)
    app.connect('builder-inited', outputs_into_build, priority=600)   # after MyST-NB has made its configuration
    app.connect('doctree-read', lighter_pictures, priority=400)       # before Sphinx collects the pictures
    app.connect('doctree-read', finish_page)
    app.connect('html-page-context', no_download_of_generated_pages, priority=400)   # before the theme makes its buttons
    app.connect('html-page-context', live_figures)
    app.connect('build-finished', add_files)
    return dict(parallel_read_safe=True, parallel_write_safe=True)
