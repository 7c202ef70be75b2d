"Notebooks, package, metadata and documentation say the same; importing the package changes nothing."
import ast
import importlib
import inspect
import json
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
from fastcore.docments import docments

import minifastai

root = Path(__file__).parent.parent
notebooks = sorted(p for folder in ('nbs', 'nbs/modules') for p in (root/folder).glob('*.ipynb') if not p.name.startswith(('_', '.')))
modules = sorted(p for p in (root/'minifastai').glob('*.py') if not p.name.startswith('_'))
CHAPTERS = ['data', 'callbacks', 'losses', 'lr_finder', 'cnn', 'hooks', 'norms', 'augment', 'recipes', 'checkpoint', 'cli', 'all']   # imports go from right to left
SITE_WIDE = ('all',)


def exported(module):
    "What the source of `module` lists in `__all__`, without running it"
    tree = ast.parse((root/'minifastai'/f'{module}.py').read_text(encoding='utf-8'))
    return next(ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == '__all__')


@pytest.fixture(scope='module')
def twin(tmp_path_factory):
    "A copy of the project, cleaned and exported anew"
    twin = tmp_path_factory.mktemp('twin')
    for name in ('settings.ini', 'setup.py', 'pyproject.toml', 'README.md'): shutil.copy(root/name, twin)
    for name in ('nbs', 'minifastai'): shutil.copytree(root/name, twin/name, ignore=shutil.ignore_patterns('__pycache__', '.*'))
    for p in (twin/'minifastai').glob('*.py'):
        if p.name != '__init__.py': p.unlink()
    for command in ('nbdev-clean', 'nbdev-export'):
        subprocess.run([Path(sys.executable).with_name(command)], cwd=twin, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    return twin


def test_the_package_is_what_the_notebooks_export(twin):
    for folder in (root/'minifastai', twin/'minifastai'): assert list(folder.glob('*.py'))
    names = {p.name for folder in (root, twin) for p in (folder/'minifastai').glob('*.py')}
    for name in sorted(names):
        ours, new = root/'minifastai'/name, twin/'minifastai'/name
        assert ours.exists() and new.exists(), f"minifastai/{name} is {'missing' if new.exists() else 'exported by no notebook'}: run make export"
        assert ours.read_text(encoding='utf-8') == new.read_text(encoding='utf-8'), f"minifastai/{name} differs from what the notebooks export: run make export"


@pytest.mark.parametrize('nb', notebooks, ids=lambda p: p.stem)
def test_notebooks_are_clean(nb, twin):
    assert nb.read_text(encoding='utf-8') == (twin/nb.relative_to(root)).read_text(encoding='utf-8'), f"run nbdev-clean on {nb.name}"


@pytest.mark.parametrize('nb', notebooks, ids=lambda p: p.stem)
def test_notebooks_are_sound(nb):
    "Figures have alt text and a caption, nothing ended in an error, no path of a particular machine is stored"
    cells = json.loads(nb.read_text(encoding='utf-8'))['cells']
    for i, cell in enumerate(cells):
        source = ''.join(cell['source'])
        outputs = cell.get('outputs', [])
        assert not any(o['output_type'] == 'error' for o in outputs), f"cell {i} ends in an error"
        if any('image/png' in o.get('data', {}) for o in outputs):
            for directive in ('fig-alt', 'fig-cap'): assert re.search(rf'^#\| *{directive}: *\S', source, re.M), f"cell {i} shows a figure without {directive}"
        assert not re.search(r'/tmp/|/root/|/home/|site-packages', json.dumps(outputs)), f"cell {i} stores a path of one machine"


def test_each_name_is_exported_once():
    seen = {}
    for p in modules:
        if p.stem in SITE_WIDE: continue
        for name in exported(p.stem):
            assert name not in seen, f"{name} is exported by both {seen[name]} and {p.stem}"
            seen[name] = p.stem


def test_all_has_every_name():
    names = {name for p in modules if p.stem not in SITE_WIDE for name in exported(p.stem)}
    lesson = {'torch', 'nn', 'F', 'optim', 'init', 'tensor', 'partial', 'math', 're', 'plt'}
    listed = exported('all')
    assert len(listed) == len(set(listed)), "a name stands twice in minifastai.all"
    assert set(listed) - lesson == names and lesson < set(listed), f"minifastai.all: missing {names - set(listed)}, too many {set(listed) - lesson - names}"
    module = importlib.import_module('minifastai.all')
    for name in listed: assert hasattr(module, name)


def test_imports_go_one_way():
    for p in modules:
        assert p.stem in CHAPTERS, f"{p.name} is new: give it its place in CHAPTERS"
        tree = ast.parse(p.read_text(encoding='utf-8'))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                assert not any(a.name == '*' for a in node.names), f"{p.name}: star import"
                target = (node.module or '').removeprefix('minifastai.') if (node.module or '').startswith('minifastai') or node.level else None
                if target: assert CHAPTERS.index(target) < CHAPTERS.index(p.stem), f"{p.name} imports from the later {target}"


def config():
    cfg = ConfigParser(delimiters=['='])
    cfg.read(root/'settings.ini', encoding='utf-8')
    return cfg['DEFAULT']


def test_metadata_agrees():
    cfg = config()
    pyproject = (root/'pyproject.toml').read_text(encoding='utf-8')
    assert minifastai.__version__ == cfg['version']
    assert f'name = "{cfg["lib_name"]}"' in pyproject and f'requires-python = ">={cfg["min_python"]}"' in pyproject
    assert f'Repository = "{cfg["git_url"]}"' in pyproject and f'Homepage = "{cfg["doc_url"]}"' in pyproject
    assert f'## {cfg["version"]}' in (root/'CHANGELOG.md').read_text(encoding='utf-8')


def test_setup_py_sets_every_dynamic_field():
    from importlib.metadata import distribution, entry_points
    meta = distribution('minifastai').metadata
    cfg = config()
    assert meta['Version'] == cfg['version'] and meta['Summary'] == cfg['description'] and meta['Author'] == cfg['author']
    assert {'digits', 'dev', 'docs', 'bench'} <= set(meta.get_all('Provides-Extra'))
    assert any(r.startswith('torch') for r in meta.get_all('Requires-Dist'))
    assert any(ep.name == 'minifastai-train' for ep in entry_points(group='console_scripts')) and any(ep.name == 'minifastai' for ep in entry_points(group='nbdev'))


def public_objects():
    for p in modules:
        if p.stem in SITE_WIDE: continue
        module = importlib.import_module(f'minifastai.{p.stem}')
        for name in exported(p.stem): yield f'{p.stem}.{name}', getattr(module, name)


@pytest.mark.parametrize('name, o', list(public_objects()), ids=lambda o: o if isinstance(o, str) else '')
def test_exported_names_are_documented(name, o):
    "A one-line docstring, and a comment for each parameter"
    if not callable(o): return
    o = inspect.unwrap(o)
    doc = inspect.getdoc(o)
    assert doc and '\n' not in doc and len(doc) > 10, f"{name} has no one-line docstring"
    if isinstance(o, type) and (issubclass(o, Exception) or '__init__' not in vars(o)): functions = []
    else: functions = [(name, o)]
    if isinstance(o, type): functions += [(f'{name}.{k}', f) for k, f in vars(o).items() if inspect.isfunction(f) and not k.startswith('_') and f.__doc__]
    for what, f in functions:
        for param, d in docments(f, full=True, returns=False).items():
            if param in ('self', 'cls') or d.get('kind') == inspect.Parameter.VAR_KEYWORD: continue  # docments does not see comments beside **kwargs
            assert d.docment, f"{what}: parameter {param} has no comment"


PROBE = '''
import os, random, sys, threading
import numpy as np, torch, matplotlib as mpl
def state(): return dict(threads=(torch.get_num_threads(), torch.get_num_interop_threads(), threading.active_count()), dtype=torch.get_default_dtype(),
    grad=torch.is_grad_enabled(), rng=(torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())), env=dict(os.environ),
    printing=str(torch._tensor_str.PRINT_OPTS), hooks=(sys.excepthook, sys.displayhook), warnings=len(__import__('warnings').filters),
    backend=dict.__getitem__(mpl.rcParams, 'backend'), rc={k: v for k, v in mpl.rcParams.copy().items() if 'backend' not in k}, tensor=sorted(dir(torch.Tensor)), path=list(sys.path))
mpl.use('svg')
before = state()
import minifastai
MODULES
after = state()
changed = [k for k in before if before[k] != after[k]]
assert not changed, {k: (before[k], after[k]) for k in changed}
CHECK
'''


@pytest.mark.parametrize('names', [[p.stem for p in modules if p.stem not in SITE_WIDE], ['all']], ids=['modules', 'all'])
def test_importing_changes_nothing(names, tmp_path):
    check = "assert 'matplotlib.pyplot' not in sys.modules and 'sklearn' not in sys.modules and 'IPython' not in sys.modules" if 'all' not in names else ''
    code = PROBE.replace('MODULES', '\n'.join(f'import minifastai.{n}' for n in names)).replace('CHECK', check)
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stdout and not list(tmp_path.iterdir())


def test_lint_and_types():
    "ruff and mypy find nothing; who uses the package gets its types"
    for command in (['ruff', 'check', str(root)], ['mypy']):
        done = subprocess.run([sys.executable, '-m', *command], cwd=root, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert (root/'minifastai'/'py.typed').exists()


PUBLIC = root/'tests'/'public.txt'


def test_the_public_surface_is_what_is_written_down():
    "Each exported name with its signature: a change to it is a change to public.txt, which a reader of the change sees. `python tests/test_sync.py` writes it anew"
    assert surface() == PUBLIC.read_text(encoding='utf-8').splitlines()


def surface() -> list[str]:
    "A line for each exported name, and for each public method of a class, as the source has it"
    def line(prefix, f):
        returns = f' -> {ast.unparse(f.returns)}' if f.returns else ''
        return f'{prefix}{f.name}({ast.unparse(f.args)}){returns}'
    lines = []
    for module in CHAPTERS:
        if module in SITE_WIDE: continue
        names = exported(module)
        for node in ast.parse((root/'minifastai'/f'{module}.py').read_text(encoding='utf-8')).body:
            if isinstance(node, ast.FunctionDef) and node.name in names: lines.append(line(f'{module}.', node))
            if isinstance(node, ast.ClassDef) and node.name in names:
                lines.append(f"{module}.{node.name}({', '.join(map(ast.unparse, node.bases))})")
                lines += [line(f'{module}.{node.name}.', f) for f in node.body if isinstance(f, ast.FunctionDef) and (not f.name.startswith('_') or f.name == '__init__')]
            if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id in names for t in node.targets): lines.append(f'{module}.{node.targets[0].id}')
    return lines


if __name__ == '__main__': PUBLIC.write_text('\n'.join(surface()) + '\n', encoding='utf-8')
