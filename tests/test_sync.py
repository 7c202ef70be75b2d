"Notebooks, package, metadata and documentation agree; importing the package changes nothing."
import ast
import importlib
import inspect
import io
import json
import re
import shutil
import subprocess
import sys
import tokenize
from configparser import ConfigParser
from pathlib import Path

import pytest
from fastcore.docments import docments

import minifastai

root = Path(__file__).parent.parent
package = root/'minifastai'


def notebooks_in(folder): return [p for p in (root/folder).glob('*.ipynb') if p.name[0] not in '._']


notebooks = sorted(notebooks_in('nbs') + notebooks_in('nbs/modules'))
each_notebook = pytest.mark.parametrize('nb', notebooks, ids=lambda p: p.stem)
modules = sorted(p for p in package.glob('*.py') if not p.name.startswith('_'))
# imports go from right to left
CHAPTERS = ['utils', 'datasets', 'data', 'callbacks', 'batches', 'checks', 'learner', 'metrics',
            'progress', 'gradients', 'losses', 'schedules', 'recorder', 'lr_finder', 'device',
            'cnn', 'init', 'hooks', 'activations', 'norms', 'augment', 'resnet', 'data_block',
            'optimizers', 'transforms', 'recipes', 'checkpoint', 'terminate', 'cli', 'all']
SITE_WIDE = ('all',)


def read(path): return path.read_text(encoding='utf-8')


def parsed(module): return ast.parse(read(package/f'{module}.py'))


def exported(module):
    "What the source of `module` lists in `__all__`, without running it"
    assigned = [node for node in parsed(module).body if isinstance(node, ast.Assign)]
    return next(ast.literal_eval(n.value) for n in assigned if n.targets[0].id == '__all__')


def exports():
    "Module and name of all that is exported, `minifastai.all` excepted"
    names = [p.stem for p in modules if p.stem not in SITE_WIDE]
    return [(module, name) for module in names for name in exported(module)]


# The notebooks and what is made of them

@pytest.fixture(scope='module')
def twin(tmp_path_factory):
    "A copy of the project, cleaned and exported anew"
    twin = tmp_path_factory.mktemp('twin')
    for name in ('settings.ini', 'setup.py', 'pyproject.toml', 'README.md'):
        shutil.copy(root/name, twin)
    left_out = shutil.ignore_patterns('__pycache__', '.*')
    for name in ('nbs', 'minifastai'): shutil.copytree(root/name, twin/name, ignore=left_out)
    for p in (twin/'minifastai').glob('*.py'):
        if p.name != '__init__.py': p.unlink()
    subprocess.run([sys.executable, root/'tools'/'export.py'], cwd=twin, check=True,
                   capture_output=True, stdin=subprocess.DEVNULL)
    return twin


def test_the_package_is_what_the_notebooks_export(twin):
    ours = {p.name: read(p) for p in package.glob('*.py')}
    exported_anew = {p.name: read(p) for p in (twin/'minifastai').glob('*.py')}
    assert ours and exported_anew
    for name in sorted({*ours, *exported_anew}):
        assert name in ours, f"minifastai/{name} is missing: run make export"
        assert name in exported_anew, f"minifastai/{name} is exported by no notebook"
        same = ours[name] == exported_anew[name]
        assert same, f"minifastai/{name} differs from what the notebooks export: run make export"


@each_notebook
def test_notebooks_are_clean(nb, twin):
    assert read(nb) == read(twin/nb.relative_to(root)), f"run nbdev-clean on {nb.name}"


@each_notebook
def test_notebooks_are_sound(nb):
    """Figures have alt text and a caption, and no cell ended in an error.

    No path of a particular machine is stored.
    """
    for i, cell in enumerate(json.loads(read(nb))['cells']):
        source = ''.join(cell['source'])
        outputs = cell.get('outputs', [])
        failed = any(out['output_type'] == 'error' for out in outputs)
        assert not failed, f"cell {i} ends in an error"
        if any('image/png' in out.get('data', {}) for out in outputs):
            for directive in ('fig-alt', 'fig-cap'):
                has = re.search(rf'^#\| *{directive}: *\S', source, re.M)
                assert has, f"cell {i} shows a figure without {directive}"
        own_paths = re.search(r'/tmp/|/root/|/home/|site-packages', json.dumps(outputs))
        assert not own_paths, f"cell {i} stores a path of one machine"


def test_each_name_is_exported_once():
    seen = {}
    for module, name in exports():
        assert name not in seen, f"{name} is exported by both {seen[name]} and {module}"
        seen[name] = module


def is_machinery(module, name) -> bool:
    "Is it for the package's own modules, so that `minifastai.all` leaves it out?"
    for_readers = dict(utils=('listify', 'camel2snake'), checks=(),
                       batches=('call_model', 'predict', 'split_batch'))
    if module in for_readers: return name not in for_readers[module]
    return name in ('RUN_ATTRS', 'shadows', 'cancel_rank', 'frozen_modules', 'counted',
                    'LossWeight', 'numbers_only', 'find_metric', 'set_setting', 'ratios_to_last',
                    'check_settings', 'group_keys', 'check_batch', 'in_order', 'name_of',
                    'Rows', 'made_like')


def test_all_has_every_name():
    names = {name for module, name in exports() if not is_machinery(module, name)}
    lesson = {'torch', 'nn', 'F', 'optim', 'init', 'tensor', 'partial', 'math', 're', 'plt', 'np',
              'os', 'mimetypes', 'OrderedDict', 'Path', 'Any', 'PIL', 'datasets', 'test_eq'}
    listed = exported('all')
    assert len(listed) == len(set(listed)), "a name stands twice in minifastai.all"
    missing = names - set(listed)
    too_many = set(listed) - lesson - names
    assert not missing | too_many, f"minifastai.all: missing {missing}, too many {too_many}"
    assert set(listed) - lesson == names
    assert lesson < set(listed)
    module = importlib.import_module('minifastai.all')
    for name in listed: assert hasattr(module, name)


# Imports

def own_imports(tree):
    """Module and name of each import from the package itself.

    The name is empty for a whole module, and the module for a name of `minifastai/__init__.py`.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top, _, module = alias.name.partition('.')
                if top == 'minifastai': yield module, ''
        if isinstance(node, ast.ImportFrom):
            top, _, module = (node.module or '').partition('.')
            if node.level: module = node.module
            elif top != 'minifastai': continue
            for alias in node.names:
                if module: yield module, alias.name
                elif (package/f'{alias.name}.py').exists(): yield alias.name, ''
                else: yield '', alias.name


def test_imports_go_one_way():
    for p in modules:
        assert p.stem in CHAPTERS, f"{p.name} is new: give it its place in CHAPTERS"
        for target, _ in own_imports(parsed(p.stem)):
            if not target: continue
            earlier = CHAPTERS.index(target) < CHAPTERS.index(p.stem)
            assert earlier, f"{p.name} imports from the later {target}"


def test_there_is_no_star_import():
    for p in modules:
        froms = [n for n in ast.walk(parsed(p.stem)) if isinstance(n, ast.ImportFrom)]
        assert '*' not in [alias.name for node in froms for alias in node.names], p.name


def is_private(name): return name.startswith('_') and not name.startswith('__')


@pytest.mark.parametrize('module', [p.stem for p in modules])
def test_no_private_name_is_imported_from_another_module(module):
    tree = parsed(module)
    imports = list(own_imports(tree))
    private = [f'{target}.{name}' for target, name in imports if is_private(name or target)]
    # nor is it reached through a module that is imported as a whole
    whole = {target for target, name in imports if not name}
    private += [ast.unparse(node) for node in ast.walk(tree)
                if isinstance(node, ast.Attribute) and is_private(node.attr)
                and ast.unparse(node.value).removeprefix('minifastai.') in whole]
    assert not private, f"{module} imports {', '.join(private)}: make it public, or move it"


PROBE = '''
import json, os, random, sys, threading, warnings
import matplotlib as mpl, numpy as np, torch

def state():
    return dict(
        threads=(torch.get_num_threads(), torch.get_num_interop_threads(),
                 threading.active_count()),
        dtype=torch.get_default_dtype(),
        grad=torch.is_grad_enabled(),
        rng=(torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())),
        env=dict(os.environ),
        printing=str(torch._tensor_str.PRINT_OPTS),
        hooks=(sys.excepthook, sys.displayhook),
        warnings=len(warnings.filters),
        backend=dict.__getitem__(mpl.rcParams, 'backend'),
        rc={k: v for k, v in mpl.rcParams.copy().items() if 'backend' not in k},
        tensor=sorted(dir(torch.Tensor)),
        path=list(sys.path),
    )

def changed():
    after = state()
    return {k: [str(v), str(after[k])] for k, v in before.items() if v != after[k]}

mpl.use('svg')
before = state()
import minifastai
MODULES
modules = changed()
heavy = [m for m in ('matplotlib.pyplot', 'sklearn', 'IPython') if m in sys.modules]
import minifastai.all
print(json.dumps(dict(modules=modules, heavy=heavy, all=changed())))
'''


@pytest.fixture(scope='module')
def probe(tmp_path_factory):
    "What a fresh process says of its own state after importing every module, and then `all`"
    folder = tmp_path_factory.mktemp('probe')
    imports = [f'import minifastai.{p.stem}' for p in modules if p.stem not in SITE_WIDE]
    code = PROBE.replace('MODULES', '\n'.join(imports))
    done = subprocess.run([sys.executable, '-c', code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *printed, report = done.stdout.splitlines()
    return json.loads(report) | dict(printed=printed, written=list(folder.iterdir()))


@pytest.mark.parametrize('what', ['modules', 'all'])
def test_importing_changes_nothing(probe, what):
    assert not probe[what]
    assert not probe['printed']
    assert not probe['written']


def test_the_modules_import_nothing_heavy(probe): assert not probe['heavy']


# Metadata

def config():
    cfg = ConfigParser(delimiters=['='])
    cfg.read(root/'settings.ini', encoding='utf-8')
    return cfg['DEFAULT']


def test_metadata_agrees():
    cfg = config()
    pyproject = read(root/'pyproject.toml')
    assert minifastai.__version__ == cfg['version']
    assert f'name = "{cfg["lib_name"]}"' in pyproject
    assert f'requires-python = ">={cfg["min_python"]}"' in pyproject
    assert f'Repository = "{cfg["git_url"]}"' in pyproject
    assert f'Homepage = "{cfg["doc_url"]}"' in pyproject
    assert f'## {cfg["version"]}' in read(root/'CHANGELOG.md')


def test_setup_py_sets_every_dynamic_field():
    from importlib.metadata import distribution, entry_points
    meta = distribution('minifastai').metadata
    cfg = config()
    assert meta['Version'] == cfg['version']
    assert meta['Summary'] == cfg['description']
    assert meta['Author'] == cfg['author']
    assert {'digits', 'dev', 'docs', 'bench'} <= set(meta.get_all('Provides-Extra'))
    assert any(r.startswith('torch') for r in meta.get_all('Requires-Dist'))
    assert 'minifastai-train' in entry_points(group='console_scripts').names
    assert 'minifastai' in entry_points(group='nbdev').names


# Documentation

def public_objects():
    for module, name in exports():
        yield f'{module}.{name}', getattr(importlib.import_module(f'minifastai.{module}'), name)


def check_docstring(name, doc):
    "The first line is one sentence of at most 100 characters; paragraphs may follow a blank line"
    assert doc, f"{name} has no docstring"
    first, *rest = doc.splitlines()
    assert len(first) > 10, f"{name}: the first line of the docstring says nothing: {first}"
    assert len(first) <= 100, f"{name}: the first line of the docstring is too long: {first}"
    two_sentences = re.search(r'(?<!\bal)(?<!\bvs)[.?!][\'")`]* +[A-Z]', first)
    assert not two_sentences, f"{name}: the first line of the docstring is one sentence: {first}"
    if rest: assert not rest[0], f"{name}: the second line of the docstring is empty: {rest[0]}"


@pytest.mark.parametrize('doc', [
    None,
    'Short.',
    'A sentence that goes on' + ' and on'*12,
    'One sentence. Another one',
    'A sentence that is broken\ninto two lines',
], ids=['none', 'short', 'long', 'two sentences', 'two lines'])
def test_what_is_no_docstring(doc):
    with pytest.raises(AssertionError): check_docstring('f', doc)
    check_docstring('f', 'Rectify, as Nair and Hinton do (2010; see He et al. 2015).\n\nA. B.')


def documented_functions(name, o):
    "A function, or of a class its `__init__` and the public methods that have a docstring"
    if not isinstance(o, type): return [(name, o)]
    methods = [(f'{name}.{k}', f) for k, f in vars(o).items()
               if inspect.isfunction(f) and not k.startswith('_') and f.__doc__]
    has_parameters = '__init__' in vars(o) and not issubclass(o, Exception)
    return [(name, o)]*has_parameters + methods


@pytest.mark.parametrize('name, o', list(public_objects()),
                         ids=lambda o: o if isinstance(o, str) else '')
def test_exported_names_are_documented(name, o):
    "A docstring, and a comment for each parameter"
    if not callable(o): return
    o = inspect.unwrap(o)
    check_docstring(name, inspect.getdoc(o))
    for what, f in documented_functions(name, o):
        for param, d in docments(f, full=True, returns=False).items():
            # docments does not see comments beside **kwargs
            without_comment = d.get('kind') == inspect.Parameter.VAR_KEYWORD
            if param in ('self', 'cls') or without_comment: continue
            assert d.docment, f"{what}: parameter {param} has no comment"


# Style

def run(*module):
    command = [sys.executable, '-m', *module]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_finds_nothing(): run('ruff', 'check', str(root))


def test_types():
    "mypy finds nothing, and the users of the package get its types"
    run('mypy')
    assert (package/'py.typed').exists()


def code_cells(nb):
    "Each code cell of a notebook: what to call it, and its lines without directives"
    for i, cell in enumerate(json.loads(read(nb))['cells']):
        if cell['cell_type'] != 'code': continue
        lines = ''.join(cell['source']).splitlines()
        yield f"cell {i} ({cell['id']})", [line for line in lines if not line.startswith('#|')]


@each_notebook
def test_no_line_of_a_notebooks_code_is_too_long(nb):
    wide = [f'{cell}: {len(line)} columns: {line}'
            for cell, lines in code_cells(nb) for line in lines if len(line) > 100]
    assert not wide, f'{len(wide)} lines have more than 100 columns:\n' + '\n'.join(wide)


def tokens(source):
    "The tokens of a piece of Python, comments and ends of lines excepted"
    passed_over = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT,
                   tokenize.DEDENT, tokenize.ENDMARKER)
    found = tokenize.generate_tokens(io.StringIO(source).readline)
    return [token for token in found if token.type not in passed_over]


def joined_statements(lines):
    "The lines of a cell on which `;` joins two statements; as its last character it hides a value"
    if lines and lines[0].startswith('%%'): return []   # another language
    python = ['' if line.startswith(('!', '%')) else line for line in lines]
    source = '\n'.join(python).rstrip().removesuffix(';')
    return [lines[token.start[0] - 1] for token in tokens(source) if token.string == ';']


def test_what_joins_statements():
    assert joined_statements(['a = 1; b = 2', 'if a: b; c', 'b;']) == ['a = 1; b = 2', 'if a: b; c']
    assert joined_statements(['a = ";"  # ;', "'''", ';', "'''", '! a; b', 'a;', '']) == []


@each_notebook
def test_no_statements_of_a_notebooks_code_are_joined(nb):
    joined = [f'{cell}: {line}' for cell, lines in code_cells(nb)
              for line in joined_statements(lines)]
    assert not joined, f'{len(joined)} times `;` joins statements:\n' + '\n'.join(joined)


LONGEST = 25   # lines of code of a function


class Rows:
    "Which rows of a module's source hold code, and which a comment"
    def __init__(self, source):
        found = tokenize.generate_tokens(io.StringIO(source).readline)
        self.comments = {token.start[0] for token in found if token.type == tokenize.COMMENT}
        self.code = {row for token in tokens(source)
                     for row in range(token.start[0], token.end[0] + 1)}


def rows_of(node): return set(range(node.lineno, node.end_lineno + 1))


def parameters(f):
    a = f.args
    variadic = [arg for arg in (a.vararg, a.kwarg) if arg]
    return [*a.posonlyargs, *a.args, *a.kwonlyargs, *variadic]


def lines_of_code(f, rows):
    """The number of lines of the function `f`, without docstring, blank lines and comments.

    A line of the signature that holds a commented parameter does not count.
    """
    commented_parameters = {arg.lineno for arg in parameters(f)} & rows.comments
    doc = set() if ast.get_docstring(f) is None else rows_of(f.body[0])
    return len((rows_of(f) & rows.code) - commented_parameters - doc)


def says_why_it_is_long(f, lines):
    "Has the function `f` a comment right above it that begins with `# long:`?"
    row = min([f.lineno, *(decorator.lineno for decorator in f.decorator_list)]) - 1
    above = []
    while row and lines[row - 1].lstrip().startswith('#'):
        row -= 1
        above.append(lines[row].strip())
    return any(re.match(r'# long: .{10}', line) for line in above)


def long_functions(source):
    "The number of lines of each function that is too long, by name and line"
    rows, lines = Rows(source), source.splitlines()
    sizes = {}
    for f in ast.walk(ast.parse(source)):
        is_function = isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef))
        if not is_function or says_why_it_is_long(f, lines): continue
        sizes[f'{f.name}:{f.lineno}'] = lines_of_code(f, rows)
    return {name: size for name, size in sizes.items() if size > LONGEST}


def test_what_is_a_long_function():
    signature = ['def f(', '    a, # One thing', '    b, # Another', '): # What comes of both']
    doc = ['    """Adds.', '', '    Twice.', '    """']
    lines = ['    # a comment', '', '    a = (b +', '         a)']
    body = ['    a += b']*(LONGEST - 4)
    just_short = '\n'.join([*signature, *doc, *lines, *body])
    long = just_short + '\n    a -= b'
    assert long_functions(just_short) == {}
    assert long_functions(long) == {'f:1': LONGEST + 1}
    assert long_functions('# long: one branch for each event\n# of many\n@g\n' + long) == {}
    assert long_functions('# long:\n' + long) == {'f:2': LONGEST + 1}
    assert long_functions('# long: one branch for each event\n\n' + long) == {'f:3': LONGEST + 1}


@pytest.mark.parametrize('module', [p.stem for p in modules])
def test_functions_are_short(module):
    "At most 25 lines, or a comment `# long: ...` right above says why it is longer"
    long = long_functions(read(package/f'{module}.py'))
    assert not long, f"{module}: split these, or say `# long: why` right above: {long}"


# The public surface

PUBLIC = root/'tests'/'public.txt'


def test_the_public_surface_is_what_is_written_down():
    """Each exported name with its signature is in public.txt.

    So a change to a name shows in a review. `python tests/test_sync.py` writes the file anew.
    """
    assert surface() == read(PUBLIC).splitlines()


def signature(prefix, f):
    returns = f' -> {ast.unparse(f.returns)}' if f.returns else ''
    return f'{prefix}{f.name}({ast.unparse(f.args)}){returns}'


def is_public_method(node):
    if not isinstance(node, ast.FunctionDef): return False
    return node.name == '__init__' or not node.name.startswith('_')


def is_patch(node):
    "Is it a method that fastcore's `@patch` adds to a class with a public name?"
    if not isinstance(node, ast.FunctionDef): return False
    patches = [d for d in node.decorator_list if ast.unparse(d) == 'patch']
    return bool(patches) and not node.args.args[0].annotation.id.startswith('_')


def surface_of_class(module, node):
    "A line for a class, and one for each of its public methods"
    name = f'{module}.{node.name}'
    bases = ', '.join(map(ast.unparse, node.bases))
    methods = [signature(f'{name}.', f) for f in node.body if is_public_method(f)]
    return [f'{name}({bases})', *methods]


def surface() -> list[str]:
    """A line for each exported name, and for each public method of a class, as the source has it.

    Methods that are patched into an exported class have a line as well.
    """
    lines = []
    for module in CHAPTERS:
        if module in SITE_WIDE: continue
        names = exported(module)
        for node in parsed(module).body:
            if isinstance(node, ast.FunctionDef) and node.name in names:
                lines.append(signature(f'{module}.', node))
            if is_patch(node) and is_public_method(node):
                lines.append(signature(f'{module}.{node.args.args[0].annotation.id}.', node))
            if isinstance(node, ast.ClassDef) and node.name in names:
                lines += surface_of_class(module, node)
            if isinstance(node, ast.Assign):
                assigned = [t.id for t in node.targets if isinstance(t, ast.Name)]
                if set(assigned) & set(names): lines.append(f'{module}.{assigned[0]}')
    return lines


if __name__ == '__main__': PUBLIC.write_text('\n'.join(surface()) + '\n', encoding='utf-8')
