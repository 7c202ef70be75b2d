"""The reference: a page for each module of the package, and links to it.

Every name in prose links to the reference, or to the manual of PyTorch, NumPy or Python.
"""
import ast
import builtins
import re
from collections.abc import Mapping
from importlib import import_module
from inspect import Parameter, getdoc, isclass, isroutine, signature
from pathlib import Path
from pydoc import locate

from docutils import nodes
from docutils.utils import new_document
from fastcore.basics import listify
from fastcore.docments import docments
from myst_parser.parsers.sphinx_ import MystParser
from nbdev.doclinks import patch_name
from sphinx import addnodes
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import make_refnode
from sphinx.util.typing import restify

from . import examples
from .citations import listed


# The pages

def title(text: str) -> str:
    "Return a page's title in reStructuredText"
    return f'{text}\n{"=" * len(text)}\n'

def source_notebooks(module: Path) -> list[str]:
    """Return the chapters that a module is exported from, by nbdev's comments in it.

    The first one builds the module, the others continue it. A notebook in nbs/modules only begins
    a module, so it doesn't count.
    """
    text = module.read_text(encoding='utf-8')
    return list(dict.fromkeys(re.findall(r'^# %% (?!\S*/modules/)\S*?(\w+)\.ipynb', text, re.M)))

def patched(module: Path) -> list[str]:
    "Return the methods that a module patches into classes, as Class.method"
    nodes = ast.parse(module.read_text(encoding='utf-8')).body
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef)]
    names = [name for f in functions for name in listify(patch_name(f))]
    return [name for name in names if '.' in name and not re.search(r'\b_', name)]

def kind_of(obj) -> str:
    "Return the kind of autodoc directive that documents an object"
    if isclass(obj): return 'exception' if issubclass(obj, BaseException) else 'class'
    return 'function' if isroutine(obj) else 'data'

def entry(obj, name: str) -> str:
    "Return the directive that documents an exported name"
    for method in vars(obj).values() if isclass(obj) else ():
        # fastcore's @patch needs this annotation, but readers don't
        getattr(method, '__annotations__', {}).pop('self', None)
    option = '\n   :no-value:' if len(repr(obj)) > 80 else ''
    return f'.. auto{kind_of(obj)}:: {name}{option}'

def built_in(chapters: list[str]) -> str:
    "Return a sentence that links to the chapters that a module comes from"
    if not chapters: return ''
    first, *others = chapters
    res = f'Built in :doc:`/{first}`.'
    if not others: return res
    # numbers, because a list of titles with commas in them is hard to read
    numbers = [f":doc:`{chapter.split('_')[0]} </{chapter}>`" for chapter in others]
    return f"{res} Continued in chapter{'s'*bool(others[1:])} {listed(numbers)}."

def literals(names: list[str]) -> str:
    "Return names as code, so that LinkNames turns them into links"
    return ', '.join(f'``{name}``' for name in names)

def write_pages(pages: Path, package: Path, defined: list[str]) -> list[str]:
    """Write the sources of the reference; return their names, in the order of the course.

    `defined` has the names that the course exports, in the order of its cells.
    """
    # import all before documenting any, because a later module may patch classes of an earlier one
    modules = {path: import_module(f'{package.name}.{path.stem}')
               for path in sorted(package.glob('[!_]*.py')) if path.stem != 'all'}
    place = {name: i for i, name in enumerate(defined)}
    def first(path):
        return min((place.get(n, len(place)) for n in names_of(modules[path])), default=len(place))

    res, overview = ['index'], [title('The package'), OVERVIEW.format(package=package.name)]
    (pages/'reference').mkdir()
    for path in sorted(modules, key=first):
        stem, module, built = path.stem, modules[path], built_in(source_notebooks(path))
        text = '\n'.join(page(module, built, patched(path)))
        (pages/f'reference/{stem}.rst').write_text(text + '\n', encoding='utf-8')
        names = literals(names_of(module))
        overview.append(f':doc:`{module.__name__} <{stem}>`\n   {built}\n\n   {names}\n')
        res.append(stem)
    (pages/'reference/index.rst').write_text('\n'.join(overview), encoding='utf-8')
    return [f'reference/{name}' for name in res]

def names_of(module) -> list[str]:
    "Return the names that a module exports"
    return getattr(module, '__all__', [])

def page(module, built: str, methods: list[str]) -> list[str]:
    "Return the lines of a module's page, given the methods that it patches into classes"
    names = names_of(module)
    lines = [title(module.__name__), f'.. py:module:: {module.__name__}\n', f'{built}\n']
    others = [method for method in methods if method.split('.')[0] not in names]
    if others: lines.append(f'Adds to classes of other modules: {literals(others)}.\n')
    return lines + [entry(getattr(module, name), name) for name in names]

OVERVIEW = '''\
.. py:module:: {package}

The chapters export their code to these modules. They are listed in the order of the chapters.
The :ref:`index <genindex>` has all their names.

.. py:module:: {package}.all

``from {package}.all import *`` imports everything that a lesson needs: every name below, and also
``torch``, ``nn``, ``F`` and a few more.
'''


# What a name's entry says

class Markdown(SphinxDirective):
    "A directive with Markdown as its content, because docstrings are written in it"
    has_content = True

    def run(self):
        path = self.env.doc2path(self.env.docname)
        doc = new_document(str(path), self.state.document.settings)
        MystParser().parse('\n'.join(self.content), doc)
        return doc.children

def markdown(text: str, indent: str = '') -> list[str]:
    "Return the directive's lines, with a docstring's examples as code"
    text = re.sub(r'^>>> .*(?:\n.+)*', r'```pycon\n\g<0>\n```', text, flags=re.M)
    return [f'{indent}.. markdown::', '', *(f'{indent}   {line}' for line in text.splitlines()), '']

def add_docments(app, what, name, obj, options, lines):
    "Read a docstring as Markdown, and parameter comments as their descriptions"
    text = '\n'.join(lines).strip()
    if what == 'data' and text == getdoc(type(obj)): text = ''   # not its type's docstring
    lines[:] = bases(obj) if isclass(obj) else []
    if text: lines += markdown(text)
    if what in ('method', 'property'): lines += patched_by(obj, name)
    if isinstance(obj, Mapping): lines += markdown(table(obj))
    if what not in ('function', 'method', 'class', 'exception'): return
    for param, said in described(obj).items():
        field = ':returns:' if param == 'return' else f':param {param}:'
        lines += [field, *markdown(said, '   ')]
    for error, message in examples.raised(obj):
        lines += [f':raises {error}:', *markdown(re.sub(r'([\\`*_<\[])', r'\\\1', message), '   ')]
    example = EXAMPLES.get(name.rsplit('.', 1)[1]) if name.count('.') == 2 else None
    if example: lines += shown(example)

EXAMPLES: dict[str, examples.Example] = {}   # by name; course.py fills it

def bases(cls: type) -> list[str]:
    "Return the lines that name a class's public bases"
    public = [base for base in cls.__bases__ if base is not object and base.__name__[0] != '_']
    if not public: return []
    return [f"Bases: {', '.join(restify(base, 'smart') for base in public)}", '']

def patched_by(obj, name: str) -> list[str]:
    "Return the lines that say which module adds a method to another module's class"
    function = getattr(obj, 'fget', obj)
    module = getattr(function, '__module__', None) or ''
    package, own = name.split('.')[0], name.rsplit('.', 2)[0]
    if module == own or not module.startswith(f'{package}.'): return []
    return [f'Added by :py:mod:`{module}`.', '']

def table(mapping: Mapping) -> str:
    "Return a mapping as a table in Markdown"
    # an address in memory differs from build to build
    shown = {key: re.sub(r' at 0x[0-9a-f]+', '', str(value)) for key, value in mapping.items()}
    rows = [f'| `{key}` | {value} |' for key, value in shown.items()]
    return '\n'.join(['| key | value |', '|---|---|', *rows])

def code_block(language: str, text: str, *options: str) -> list[str]:
    "Return the lines of the directive that shows a literal text"
    content = [*options, '', *text.splitlines()]
    return [f'.. code-block:: {language}', *(f'   {line}' for line in content), '']

def shown(example: examples.Example) -> list[str]:
    "Return the directives that show an example"
    number = example.docname.split('_')[0]
    cell = f'../{example.docname}.html#cell-{example.cell}'
    lines = ['', f'**Example,** from `chapter {number} <{cell}>`__:', '']
    lines += code_block('python', example.source)
    if example.output: lines += code_block('text', example.output, ':class: example-output')
    return lines

STARS = {Parameter.VAR_POSITIONAL: r'\*', Parameter.VAR_KEYWORD: r'\*\*'}

def described(obj) -> dict[str, str]:
    "Return all parameters with their comments; nothing if no parameter has a comment"
    try: params = docments(obj, full=True, args_kwargs=True)
    except (OSError, TypeError, ValueError): return {}   # no source or no signature
    if not any(param.docment for param in params.values()): return {}
    if not params['return'].docment: del params['return']
    params.pop('self', None)
    return {STARS.get(p.get('kind'), '') + name: p.docment or '' for name, p in params.items()}


# Names that link

ALIASES = dict(nn='torch.nn', F='torch.nn.functional', optim='torch.optim', init='torch.nn.init',
               np='numpy')
# A single word links out of the site only if it can't mean anything else here.
WORDS = dict(
    Tensor='torch.Tensor', DataLoader='torch.utils.data.DataLoader', partial='functools.partial',
    wraps='functools.wraps', namedtuple='collections.namedtuple',
    OrderedDict='collections.OrderedDict', defaultdict='collections.defaultdict',
    dataclass='dataclasses.dataclass', contextmanager='contextlib.contextmanager',
    Path='pathlib.Path', perf_counter='time.perf_counter')
VAGUE = set('abs all any bin compile dir filter format hash help hex id input iter map max min '
            'next object pow range round set slice sum type vars'.split())

def indexed() -> dict[str, str]:
    "Map the documented names of PyTorch, NumPy and Python to their addresses"
    urls = {}
    for index in ('pytorch', 'numpy', 'stdlib'):
        for names in import_module(f'nbdev_{index}._modidx').d['syms'].values(): urls |= names
    for name, obj in vars(builtins).items():
        if isinstance(obj, type) and issubclass(obj, BaseException):
            page = 'https://docs.python.org/3/library/exceptions.html'
            urls[f'builtins.{name}'] = f'{page}#{name}'
    urls['torch.nn.Parameter'] = urls['torch.nn.parameter.Parameter']
    old, new = '//pytorch.org/', '//docs.pytorch.org/'
    return {name: url.replace(old, new) for name, url in urls.items()}

URLS = indexed()

def outside_url(name: str) -> str | None:
    "Return where a name of PyTorch, NumPy or Python is documented, spelled as in lessons"
    head, _, rest = name.partition('.')
    if rest:
        name = f'{ALIASES.get(head, WORDS.get(head, head))}.{rest}'
        return URLS.get(name) or URLS.get(f'builtins.{name}')
    if re.fullmatch('__[a-z]+__', name): return URLS.get(f'builtins.object.{name}')
    if name in WORDS: return URLS.get(WORDS[name])
    return None if name in VAGUE else URLS.get(f'builtins.{name}')

def resolve_annotation(app, env, node, contnode):
    "Link a type in a signature: torch.nn.modules.module.Module is documented as torch.nn.Module"
    if node.get('refdomain') != 'py': return
    *modules, name = node['reftarget'].split('.')
    shorter = ['.'.join([*modules[:n], name]) for n in range(len(modules)-1, 0, -1)]
    url = next(filter(None, map(outside_url, [node['reftarget'], *shorter])), None)
    if url: return nodes.reference('', '', contnode, refuri=url, internal=False)

def own_names(env) -> dict:
    """Map each unambiguous spelling to its object in the reference.

    Two spellings of one object are `minifastai.callbacks.Runner.fit` and `Runner.fit`.
    """
    names = {}
    for full, obj in env.get_domain('py').objects.items():
        spellings = {full} if obj.objtype == 'module' else {full, full.split('.', 2)[2]}
        for name in spellings: names.setdefault(name, []).append((full, obj))
    return {name: found[0] for name, found in names.items() if len(found) == 1}

def find_own(names: dict, name: str):
    "Find the object of that name, or the class whose signature describes it (Learner.opt)"
    if name in names: return names[name][1]
    owner, _, attr = name.rpartition('.')
    full, obj = names.get(owner, (None, None))
    if obj and obj.objtype == 'class' and attr in signature(locate(full)).parameters: return obj

class LinkNames(SphinxPostTransform):
    "Turns inline code that is exactly a documented name into a link to its documentation"
    default_priority = 50   # after cross-references have been resolved

    def run(self, **kwargs):
        names = own_names(self.env)
        for code in list(self.document.findall(nodes.literal)):
            name = code.astext().removesuffix('()')
            if not re.fullmatch(r'[A-Za-z_][\w.]*', name) or not may_link(code, name): continue
            link = self.link(code, find_own(names, name), outside_url(name))
            if link: code.replace_self(link)

    def link(self, code, own, url: str | None) -> nodes.Node | None:
        "Make a link to an object of the reference, or else to an address"
        if own:
            here = self.env.docname
            return make_refnode(self.app.builder, here, own.docname, own.node_id, code.deepcopy())
        return nodes.reference('', '', code.deepcopy(), refuri=url, internal=False) if url else None

def may_link(node, name: str) -> bool:
    "Tell whether a name is in running text, and isn't a parameter of the function described"
    no_links = (nodes.reference, nodes.title, addnodes.desc_signature, addnodes.pending_xref)
    while node := node.parent:
        if isinstance(node, no_links): return False
        if isinstance(node, addnodes.desc):
            params = node[0].findall(addnodes.desc_parameter)
            if any(re.match(rf'\W*{name}\b', param.astext()) for param in params): return False
    return True


def setup(app):
    app.add_directive('markdown', Markdown)
    app.add_post_transform(LinkNames)
    app.connect('autodoc-process-docstring', add_docments)
    app.connect('missing-reference', resolve_annotation)
    return dict(parallel_read_safe=True, parallel_write_safe=True)
