"The house: chapters begin small, stubs say where their code is, orders are written down."
import ast
import importlib
import json
import re
from pathlib import Path

import pytest

from minifastai.callbacks import Callback

root = Path(__file__).parent.parent
stubs = sorted((root/'nbs'/'modules').glob('*.ipynb'))


def sources(path, kind='code') -> list[str]:
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    return [''.join(cell['source']) for cell in cells if cell['cell_type'] == kind]


def chapter(number) -> Path:
    path, = (root/'nbs').glob(f'{number}_*.ipynb')
    return path


@pytest.mark.parametrize('number, call', [('04', r'^fit\('), ('04d', r'^run\.fit\(')])
def test_a_chapter_trains_within_fifteen_code_cells(number, call):
    calls = [i for i, s in enumerate(sources(chapter(number)), 1) if re.search(call, s, re.M)]
    assert calls and calls[0] <= 15


def test_the_small_runner_is_the_same_in_both_chapters():
    "Chapter 04c breaks the runner that chapter 04 has built, and no other one."
    def classes(number, *names):
        found = {}
        for s in sources(chapter(number)):
            if s.startswith(('#|', '%', '!')): continue
            for node in ast.parse(s).body:
                if isinstance(node, ast.ClassDef) and node.name in names: found[node.name] = s
        return [found[name] for name in names]
    small = classes('04c', 'SmallRunner', 'SmallTrainEval')
    renamed = [s.replace('SmallRunner', 'Runner').replace('SmallTrainEval', 'TrainEvalCallback')
               for s in small]
    assert renamed == classes('04', 'Runner', 'TrainEvalCallback')
    lines = [line for line in small[0].splitlines() if line.strip()]
    assert len(lines) <= 40   # small enough for one look


@pytest.mark.parametrize('path', stubs, ids=lambda p: p.stem)
def test_stubs_are_named_after_their_chapter_and_say_where_the_code_is(path):
    number, name = path.stem.split('-')
    assert f'#| default_exp {name}' in sources(path)
    begun = chapter(number)
    assert any(s.startswith(f'#| export {name}\n') for s in sources(begun))
    linked = set(re.findall(r'\(\.\./([\w.]+)\)', '\n'.join(sources(path, 'markdown'))))
    goes_on = {p.name for p in (root/'nbs').glob('*.ipynb')
               if any(s.startswith(f'#| export {name}\n') for s in sources(p))}
    assert linked == goes_on


def orders() -> dict[str, float]:
    "`_order` of each exported callback of the package, by name."
    found = {}
    for path in (root/'minifastai').glob('[!_]*.py'):
        module = importlib.import_module(f'minifastai.{path.stem}')
        for name in module.__all__:
            o = getattr(module, name)
            if isinstance(o, type) and issubclass(o, Callback) and o is not Callback:
                found[name] = o._order
    return found


def written(text) -> dict[str, float]:
    "The orders in a table whose rows are `| 1 | \\`NameOfACallback\\` | ... |`."
    table = re.search(r'\| `_order` \|.*\n\|[-|]+\n((?:\|.*\n?)+)', text)
    rows = [row.strip('|').split('|') for row in table[1].strip().splitlines()]
    return {name: float(cells[0]) for cells in rows for name in re.findall(r'`(\w+)`', cells[1])}


def test_the_table_of_orders_is_complete():
    for text in ('\n'.join(sources(chapter('04c'), 'markdown')),
                 (root/'CONTRIBUTING.md').read_text(encoding='utf-8')):
        assert written(text) == orders()


def test_orders_are_relative_to_the_callback_that_comes_before():
    for path in (root/'minifastai').glob('[!_]*.py'):
        for line in path.read_text(encoding='utf-8').splitlines():
            if path.stem == 'callbacks': continue   # where the numbers of callbacks begin
            if (path.stem, line) == ('data_block', '    _order = 0'): continue   # and of transforms
            if re.match(r' +_order(:float)? *=', line):
                assert re.search(r'= *\w+\._order [+-] \d+', line), f'{path.stem}: {line.strip()}'
