"""Turns the course's notebooks into pages, in the order of their file names.

The notebooks go through nbdev's processors, with their stored outputs. Chapters are written for
Jupyter and nbdev. A few directives at the top of a code cell are for the site alone:

    #| fig-alt: what the picture shows, in words
        every picture needs one
    #| fig-cap: a caption, in Markdown
        for a cell that shows exactly one picture
    #| solution
        folds the cell and its output under "Show solution"
    #| code-fold: true
        the same, under "Show code"
    #| live: schedule
        a cell with one picture, which _static/live.js replaces by a figure of that name with
        controls; without JavaScript, the picture stays. The notebook's own controls are in a
        hidden cell after it
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
from nbdev.processors import (
    clean_magics, filter_stream_, hide_, hide_line, rm_header_dash, strip_ansi,
)
from PIL import Image
from sphinx.errors import ConfigError
from sphinx.util import logging

from . import citations, examples, pages, reference, times

log = logging.getLogger(__name__)
WIDGET = 'application/vnd.jupyter.widget-view+json'
PICTURES = {'image/png', 'image/jpeg', 'image/gif', 'image/svg+xml'}
PICTURE_FILES = ('.png', '.jpg', '.gif', '.svg', '.webp')


# The order of the chapters

def notebooks(nbs: Path) -> list[Path]:
    "Return the notebooks in reading order: home page, introduction, chapters"
    found = [p for p in nbs.glob('*.ipynb') if p.name[0] not in '._']
    return sorted(found, key=lambda p: (p.stem != 'index', p.stem != 'introduction', p.stem))

def number(docname: str) -> str:
    "Return a chapter's number, such as 04a for 04a_statistics, or '' for other pages"
    return m[1] if (m := re.match(r'(\d+[a-z]*)_', docname)) else ''

PARTS = {   # the number of each part's first chapter
    'I From the foundations': 0,
    'II The training loop and the CNN': 4,
    'III To the state of the art': 10,
    'IV Outlook': 17,
    'Applications': 90,
}

def part(docname: str) -> str:
    "Return the part of the sidebar that a page of the course belongs to"
    if not (digits := re.match(r'\d*', number(docname))[0]): return 'The course'
    return [name for name, first in PARTS.items() if first <= int(digits)][-1]

def parts(docnames: list[str]) -> dict[str, list[str]]:
    "Return the parts of the sidebar, with the notebooks of each"
    res = {name: [] for name in ('The course', *PARTS)}
    for docname in docnames:
        if docname != 'index': res[part(docname)].append(docname)
    return res

def toctree(caption: str, docnames: list[str]) -> str:
    "Return the directive for one part of the sidebar"
    return '\n'.join(['```{toctree}', ':hidden:', f':caption: {caption}', '', *docnames, '```'])


# A cell, from nbdev's form to MyST-NB's

def default_exp_(cell, *_):
    "Drop the cell that names the module"
    del cell['source']

def exported(cell) -> list[str]:
    "Return the names that an exported cell adds to the package; Class.method if patched"
    names = []
    for node in cell.parsed_() or ():
        if hasattr(node, 'name'): names += listify(patch_name(node))
        names += [target.id for target in getattr(node, 'targets', ()) if hasattr(target, 'id')]
    return names

def unquoted(text: str) -> str:
    "Return a directive's value without quotes around it"
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in '"\'' else text

def metadata_for_myst(cell):
    "Copy the site's directives to the metadata that MyST-NB reads"
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
    names = exported(cell) if exports else []
    cell['metadata'] = dict(tags=tags, mystnb=mystnb, exports=names, id=cell.id)

def outputs_for_a_page(cell):
    "Drop outputs that need a kernel, and fold long ones"
    outputs = cell.get('outputs', [])
    for out in outputs:
        if 'text' in out:   # keep only the last state of a progress bar
            out['text'] = re.sub(r'[^\n]*\r(?!\n)', '', out['text'])
        if 'data' in out: out['data'].pop(WIDGET, None)
    lines = sum(out.get('text', '').count('\n') for out in outputs)
    if lines > 30 and 'hide-cell' not in cell.metadata['tags']:
        show = f'Show all {lines} lines'
        cell.metadata['tags'].append('hide-output')
        cell.metadata['mystnb'] |= dict(code_prompt_show=show, code_prompt_hide='Hide the output')

def links_as_slugs(cell):
    "Spell links to headings as MyST does: (04_callbacks.ipynb#The-Runner) ends in #the-runner"
    if cell.cell_type != 'markdown': return
    def slug(m): return f']({m[1]}#' + re.sub(r'[^\w-]', '', m[2].lower()) + ')'
    cell.source = re.sub(r'\]\(([\w./-]*)#([^)\s]+)\)', slug, cell.source)

def complaints(cell) -> list[str]:
    "Return complaints about what a reader of the page would miss"
    mystnb, res = cell.metadata['mystnb'], []
    outputs = [out['data'] for out in cell.get('outputs', []) if 'data' in out]
    pictures = sum(not PICTURES.isdisjoint(data) for data in outputs)
    is_live = any(tag.startswith('live-') for tag in cell.metadata['tags'])
    has_alt = bool(mystnb.get('image', {}).get('alt'))
    if is_live and 'figure' not in mystnb:
        res.append('a live figure needs a picture with a fig-cap, for readers without JavaScript')
    if re.search(r'^#\|', cell.source, re.M):
        res.append('a directive has to be at the top of its cell')
    if 'figure' in mystnb and pictures != 1:
        res.append(f'a cell with a fig-cap needs one picture, but this one has {pictures}')
    for data in outputs: res += complaints_of_output(data, has_alt)
    return res

def complaints_of_output(data, has_alt: bool) -> list[str]:
    "Return complaints about what a reader would miss in an output"
    html, res = data.get('text/html', ''), []
    if not data: res.append('a widget needs another output to show in its place')
    if PICTURES & data.keys() and not has_alt:
        res.append('a picture needs alt text (#| fig-alt: ...)')
    if re.search(r'<img(?![^>]*\balt=)', html):
        res.append('a picture in an HTML output needs alt text')
    if 'application/javascript' in data or re.search(r'<script|\bsrc="?https?:', html):
        res.append('an output must not need a script or the network')
    return res


# The notebook

PROCESSORS = [hide_, default_exp_, hide_line, filter_stream_, strip_ansi, clean_magics,
              rm_header_dash, metadata_for_myst, outputs_for_a_page, links_as_slugs]

def staged(path: Path):
    "Return a notebook as the site shows it"
    nb = NBProcessor(path, process=True, procs=PROCESSORS).nb
    for cell in nb.cells:
        for complaint in complaints(cell): log.warning(complaint, location=f'{path}:{cell.id}')
    if n := number(path.stem):
        title = next(cell for cell in nb.cells if cell.cell_type == 'markdown')
        title.source = re.sub(rf'^# (?:{n}\b\W*)?', f'# {n} ', title.source, count=1, flags=re.M)
    nb['metadata'] = dict(language_info=dict(name='python', pygments_lexer='ipython3'),
                          kernelspec=nb.metadata.get('kernelspec', {}))
    return nb

def facts(docname: str, nb, builds: list[str], continues: list[str]) -> str:
    "Return the line below a title: time to read, modules, link to the plain text"
    said = [f'{times.in_words(times.minutes(nb))} to read']
    if builds: said.append('builds ' + ', '.join(map(link_to_module, builds)))
    if continues: said.append('adds to ' + ', '.join(map(link_to_module, continues)))
    said.append(f'<a href="{docname}.md">plain text</a>')
    return f'<p class="chapter-facts">{" · ".join(said)}</p>'

def link_to_module(module: str) -> str:
    "Return a link from a chapter to a module's reference page"
    # minifastai.all has no page of its own
    page = f'{module.rsplit(".", 1)[1]}.html'
    if module.endswith('.all'): page = f'index.html#module-{module}'
    return f'<a href="reference/{page}"><code>{module}</code></a>'

def stage(app, config):
    "Write the source of every page to docs/_build, and make that Sphinx's source folder"
    root, build = Path(app.confdir).parent, Path(app.confdir)/'_build'
    # start empty each time, because Sphinx doesn't repeat warnings about unchanged pages
    rmtree(build, ignore_errors=True)
    app.srcdir, app.doctreedir = build/'pages', build/'doctrees'
    app.srcdir.mkdir(parents=True)

    chapters = {path.stem: staged(path) for path in notebooks(root/'nbs')}
    if 'index' not in chapters: raise ConfigError('nbs/index.ipynb, the home page, is missing')
    add_facts(chapters, root/config.project)
    cited, homes = citations.add_references(chapters), definitions(chapters)
    sidebar = parts(chapters) | pages.write_pages(app.srcdir, chapters, cited)
    sidebar['Reference'] += reference.write_pages(app.srcdir, root/config.project, list(homes))
    contents = [toctree(caption, docnames) for caption, docnames in sidebar.items() if docnames]
    chapters['index'].cells.append(mk_cell('\n\n'.join(contents), 'markdown'))
    for docname, nb in chapters.items(): write_nb(nb, app.srcdir/f'{docname}.ipynb')
    copy_pictures(root/'nbs', app.srcdir)
    reference.EXAMPLES.update(find_examples(homes, root/'nbs'))
    config.linkcode_resolve = lambda domain, info: link_to_cell(homes, info['fullname'])

def add_facts(chapters: dict, package: Path):
    "Add the line of facts below each chapter's title"
    sources = {f'{package.name}.{path.stem}': reference.source_notebooks(path)
               for path in sorted(package.glob('[!_]*.py'))}
    for docname, nb in chapters.items():
        if docname == 'index': continue
        builds = [module for module, docnames in sources.items() if docname in docnames[:1]]
        continues = [module for module, docnames in sources.items() if docname in docnames[1:]]
        text = facts(docname, nb, builds, continues)
        cell = mk_cell(text, 'markdown', metadata=dict(tags=['facts']))
        nb.cells.insert(1, cell)

def copy_pictures(nbs: Path, dest: Path):
    "Copy the notebooks' pictures next to their staged pages"
    for picture in nbs.rglob('*.*'):
        if picture.suffix not in PICTURE_FILES: continue
        copy = dest/picture.relative_to(nbs)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copyfile(picture, copy)

def definitions(chapters: dict) -> dict[str, tuple[str, str]]:
    "Map each exported name to the chapter and the id of the cell that define it"
    res = {}
    for docname, nb in chapters.items():
        for cell in nb.cells:
            meta = cell.metadata
            res |= {name: (docname, meta['id']) for name in meta.get('exports', ())}
    return res

def find_examples(homes: dict[str, tuple[str, str]], nbs: Path) -> dict[str, examples.Example]:
    "Find an example of each exported name in the chapters"
    sources = {path.stem: read_nb(path).cells for path in notebooks(nbs) if number(path.stem)}
    at = {cell.id: i for cells in sources.values() for i, cell in enumerate(cells)}
    names = {name: (docname, at[i]) for name, (docname, i) in homes.items() if docname in sources}
    return examples.find(names, sources)

def link_to_cell(homes: dict[str, tuple[str, str]], name: str) -> str | None:
    "Return the address of the cell that defines a name or its class, for the reference"
    for n in (name, name.split('.')[0]):
        if n in homes: return f'../{homes[n][0]}.html#def-{n}'

def outputs_into_build(app):
    "Keep MyST-NB's pictures out of the project's folder"
    app.env.mystnb_config = app.env.mystnb_config.copy(output_folder=str(app.srcdir/'outputs'))


# The page

def finish_page(app, doctree):
    "Give cells anchors and pictures captions, and warn of pictures that some can't see"
    for cell in doctree.findall(nodes.container): finish_cell(cell)
    for figure in list(doctree.findall(nodes.figure)):
        # with a caption, MyST-NB makes a figure of each output; only pictures should be one
        if not next(figure.findall(nodes.image), None): figure.replace_self(figure[0])
    for image in list(doctree.findall(nodes.image)): captioned(image)
    for image in doctree.findall(nodes.image):
        if image.line and not image.get('alt'):
            log.warning('a picture needs alt text', location=image)
        if '://' in image['uri']:
            log.warning('a picture comes from the network: %s', image['uri'], location=image)

def finish_cell(cell):
    "Give a cell its anchors, and list below it the names that it defines"
    meta = cell.get('cell_metadata', {})
    names = meta.get('exports', ())
    cell['ids'] += [f'def-{name}' for name in names]
    if 'id' in meta: cell['ids'].append(f"cell-{meta['id']}")
    public = [name for name in names if not re.search(r'\b_', name)]
    if not public: return
    below = nodes.paragraph('', 'Reference: ', classes=['in-reference'])
    for i, name in enumerate(public):
        if i: below += nodes.Text(', ')
        below += nodes.literal('', name)   # reference.py makes a link of it
    cell += below

def captioned(image):
    "Make a figure of a lone picture, if the paragraph after it is all in italics"
    lone = isinstance(image.parent, nodes.paragraph) and len(image.parent) == 1
    below = image.parent.next_node(descend=False, siblings=True) if lone else None
    if not isinstance(below, nodes.paragraph) or len(below) != 1: return
    if not isinstance(below[0], nodes.emphasis): return
    below.parent.remove(below)
    figure = nodes.figure('', image.deepcopy(), nodes.caption('', '', *below[0].children))
    image.document.set_id(figure)
    image.parent.replace_self(figure)

def lighter_pictures(app, doctree):
    "Convert pictures to lossless WebP, which takes half the bytes"
    for image in doctree.findall(nodes.image):
        if not image['uri'].endswith('.png') or '://' in image['uri']: continue
        path = Path(app.env.relfn2path(image['uri'])[1])
        lighter = path.with_suffix('.webp')
        if not lighter.exists(): Image.open(path).save(lighter, lossless=True)
        if lighter.stat().st_size < path.stat().st_size:
            image['uri'] = image['uri'].removesuffix('.png') + '.webp'

def live_figures(app, pagename, templatename, context, doctree):
    "Add the script and the style to pages with live figures"
    if doctree is None: return
    classes = {c for cell in doctree.findall(nodes.container) for c in cell['classes']}
    if not any(c.startswith('tag_live-') for c in classes): return
    app.add_css_file('live.css')
    app.add_js_file('live.js', defer='defer')

def no_download_of_generated_pages(app, pagename, templatename, context, doctree):
    "Offer a download of the source for notebooks only"
    if context.get('page_source_suffix') != '.ipynb': context['page_source_suffix'] = ''

def add_files(app, exception):
    "Copy the original notebooks, and the parts of MathJax that pages may need"
    if exception or app.builder.format != 'html': return
    for nb in notebooks(Path(app.confdir).parent/'nbs'):
        copyfile(nb, app.outdir/'_sources'/nb.name)
    mathjax = Path(find_spec('sphinx-mathjax-offline').origin).parent/'static/mathjax'
    dest = app.outdir/'_static/mathjax'
    for part in ('output/chtml/fonts', 'input/tex/extensions'):
        copytree(mathjax/part, dest/part, dirs_exist_ok=True)
    copyfile(mathjax/'tex-chtml.js', dest/'tex-chtml.js')
    # The theme draws its icons with a font. Its script for additional icons has 1.5 MB, which is a
    # third of what a page would load
    icons = app.outdir/'_static/scripts/fontawesome.js'
    icons.write_text('// the icons come from a font\n')


def setup(app):
    app.connect('config-inited', stage)
    # after MyST-NB has made its configuration
    app.connect('builder-inited', outputs_into_build, priority=600)
    # before Sphinx collects the pictures
    app.connect('doctree-read', lighter_pictures, priority=400)
    app.connect('doctree-read', finish_page)
    # before the theme makes its buttons
    app.connect('html-page-context', no_download_of_generated_pages, priority=400)
    app.connect('html-page-context', live_figures)
    app.connect('build-finished', add_files)
    return dict(parallel_read_safe=True, parallel_write_safe=True)
