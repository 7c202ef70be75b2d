"The site's live figures (docs/_static/live.js) compute what the package computes."
import ast
import copy
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import ipywidgets
import pytest
import torch

from minifastai.schedules import combine_scheds, cos_1cycle_anneal, sched_cos
from minifastai.norms import BatchNorm, GroupNorm, InstanceNorm, LayerNorm
from test_site import launched

root = Path(__file__).parent.parent
script = root/'docs'/'_static'/'live.js'
NODE = '''
const { readFileSync } = require('fs'), { runInThisContext } = require('vm');
runInThisContext(readFileSync(process.argv[1], 'utf8'));
console.log(JSON.stringify(runInThisContext(readFileSync(0, 'utf8'))));
'''


@pytest.fixture(scope='module')
def js():
    """Evaluates an expression about `live`.

    By node where it is, else in the browser of the site's tests; without that, the tests skip.
    """
    if node := shutil.which('node'):
        def evaluate(expression):
            done = subprocess.run([node, '-e', NODE, str(script)], input=expression,
                                  capture_output=True, text=True, check=True)
            return json.loads(done.stdout)
        yield evaluate
        return
    with launched() as browser:
        page = browser.new_page()
        page.add_script_tag(path=script)
        yield page.evaluate


def code_cells() -> list[dict]:
    "The code cells of all chapters, one after the other"
    texts = [p.read_text(encoding='utf-8') for p in sorted((root/'nbs').glob('*.ipynb'))]
    cells = [cell for text in texts for cell in json.loads(text)['cells']]
    return [cell for cell in cells if cell['cell_type'] == 'code']


def source(cell): return ''.join(cell['source'])


def found(pattern, cell): return re.search(pattern, source(cell), re.M)


class Live(NamedTuple):
    "The function that draws a live figure, and the cell after it with the notebook's controls"
    draws: ast.FunctionDef
    controls: dict


def live_cells() -> dict[str, Live]:
    "The live figures of the chapters by name"
    cells, res = code_cells(), {}
    for before, cell, after in zip(cells, cells[1:], cells[2:]):
        if not (m := found(r'^#\| *live: *(\w+)', cell)): continue
        # a long function has the cell before to itself
        code = source(cell) if found(r'^def ', cell) else source(before)
        functions = [f for f in ast.parse(code).body if isinstance(f, ast.FunctionDef)]
        res[m[1]] = Live(functions[-1], after)
    return res


# Numbers

@pytest.mark.parametrize('pcts, ends', [
    ([0.3, 0.7], [0.3, 0.6, 0.2]),
    ([0.7, 0.2, 0.1], [0, 1, 2, 3]),
    ([0., 1.], [1, 2, 3]),
    ([0.5, 0., 0.5], [1, 2, 3, 4]),
    ([1.], [2, 1]),
])
def test_schedules(js, pcts, ends):
    at = [i/200 for i in range(201)]
    ours = combine_scheds(pcts, [sched_cos(a, b) for a, b in zip(ends, ends[1:])])
    scheds = f'{ends}.slice(1).map((end, i) => live.schedCos({ends}[i], end))'
    theirs = js(f'{at}.map(live.combineScheds({pcts}, {scheds}))')
    assert theirs == pytest.approx([ours(o) for o in at], abs=1e-12)


def test_schedules_up_and_down(js):
    at = [i/200 for i in range(201)]
    warms = [i*0.05 for i in range(1, 20)]
    scheds = f'{warms}.map(w => live.upDown(w, 0.3, 2, 0.1))'
    theirs = js(f'{scheds}.map(f => [live.mean(f), {at}.map(f)])')
    for warm, (mean, curve) in zip(warms, theirs):
        ours = combine_scheds([warm, 1-warm], cos_1cycle_anneal(0.3, 2., 0.1))
        assert curve == pytest.approx([ours(o) for o in at], abs=1e-12)
        assert mean == pytest.approx(sum(ours((j+0.5)/100) for j in range(100))/100)


AVERAGES = '''MOMS.map(m => {
  const ours = [false, true].map(debiased => live.movingAverage(NUMBERS, m, debiased));
  const rounded = [false, true].map(debiased => live.movingAverage(live.numbers, m, debiased));
  return [live.noiseLeft(m), ...ours, ...rounded.map(live.stepsToHalf)];
})'''


def moving_averages(numbers, mom) -> tuple[list[float], list[float]]:
    "The moving average of `numbers` after each of them, as it is and debiased"
    avg, plain, debiased = torch.tensor(0., dtype=torch.float64), [], []
    for i, n in enumerate(numbers.double()):
        avg.lerp_(n, mom)
        plain.append(avg.item())
        debiased.append(avg.item()/(1 - (1 - mom)**(i+1)))
    return plain, debiased


def steps_to_half(curve) -> int:
    "The number of steps, after the jump from 5 to 8 at 80, until `curve` is beyond 6.5; 0 if never"
    return next((i - 79 for i in range(80, 160) if curve[i] > 6.5), 0)


def test_averages(js):
    noise = torch.randn(160, generator=torch.Generator().manual_seed(0))
    numbers = torch.cat([torch.full((80,), 5.), torch.full((80,), 8.)]) + noise   # as in chapter 07
    assert js('live.numbers') == pytest.approx(numbers.tolist(), abs=0.005001)
    moms = [i/100 for i in range(1, 101)]
    theirs = js(AVERAGES.replace('MOMS', str(moms)).replace('NUMBERS', str(numbers.tolist())))
    assert len(theirs) == len(moms)
    for mom, (noise_left, plain, debiased, *steps) in zip(moms, theirs):
        weights = mom*(1 - mom)**torch.arange(5000, dtype=torch.float64)
        assert noise_left == pytest.approx(weights.square().sum().sqrt().item())
        ours = moving_averages(numbers, mom)
        assert plain == pytest.approx(ours[0])
        assert debiased == pytest.approx(ours[1])
        assert steps == [steps_to_half(curve) for curve in ours]


def test_read_outs(js):
    image1 = next(ast.literal_eval(m[1]) for cell in code_cells()
                  if (m := found(r'^image1 = tensor\((.*)\)', cell)))
    assert js('live.image') == image1
    for x in (image1, [v/0.1 + 400 for v in image1], [-800., 0., 800.], [0.]*5):
        t = torch.tensor(x, dtype=torch.float64)
        assert js(f'live.softmax({x})') == pytest.approx(t.softmax(0).tolist(), abs=1e-12)
        assert js(f'live.binomial({x})') == pytest.approx(t.sigmoid().tolist(), abs=1e-12)


PARTNERS = '''[...Array(4).keys()].flatMap(n => [...Array(6).keys()].map(c => {
  const partner = live.partners(NORM, GROUPS, 6, n, c);
  return [...Array(4).keys()].map(i => [...Array(6).keys()].map(j => partner(i, j)));
}))'''


@pytest.mark.parametrize('norm, groups, layer', [
    ('batch', 2, BatchNorm),
    ('layer', 2, LayerNorm),
    ('instance', 2, InstanceNorm),
    ('group', 1, lambda c: GroupNorm(1, c)),
    ('group', 2, lambda c: GroupNorm(2, c)),
    ('group', 3, lambda c: GroupNorm(3, c)),
    ('group', 6, lambda c: GroupNorm(6, c)),
], ids=['batch', 'layer', 'instance', 'group1', 'group2', 'group3', 'group6'])
def test_partners(js, norm, groups, layer):
    "What lights up is what the layer's output depends on, by its gradient"
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4, 6, 3, 3, dtype=torch.float64, generator=g).requires_grad_()
    out = layer(6).double()(x)
    ours = []
    for n in range(4):
        for c in range(6):
            grad = torch.autograd.grad(out[n, c, 1, 1], x, retain_graph=True)[0].abs()
            on = grad > 1e-9*grad.max()
            pixels = on.flatten(2)
            assert (pixels.all(2) == pixels.any(2)).all()   # all pixels of a map, or none
            ours.append(on[..., 0, 0].tolist())
    assert js(PARTNERS.replace('NORM', repr(norm)).replace('GROUPS', str(groups))) == ours


# Controls

def defaults(f: ast.FunctionDef) -> dict:
    "The parameters of `f` with their defaults"
    return dict(zip([a.arg for a in f.args.args], map(ast.literal_eval, f.args.defaults)))


def same_control(control: dict, values) -> bool:
    "Does a slider, a list or a box of the site offer what `interact` is given?"
    if isinstance(values, tuple):
        lowest_highest_step = [*values, 1][:3]
        return [control[k] for k in ('min', 'max', 'step')] == pytest.approx(lowest_highest_step)
    if isinstance(values, list): return control['values'] == values
    return control['value'] is values


def widgets(f: ast.FunctionDef, ranges: dict) -> dict:
    "The values at which ipywidgets starts for a function with the parameters of `f`"
    empty = copy.deepcopy(f)
    empty.body = [ast.Pass()]
    empty.decorator_list = []
    scope = {}
    exec(compile(ast.fix_missing_locations(ast.Module([empty], [])), f.name, 'exec'), scope)
    *made, output = ipywidgets.interactive(scope[f.name], **ranges).children
    return {w.description: w.value for w in made}


CONTROLS = 'Object.fromEntries(Object.entries(live.figures).map(([k, f]) => [k, f.controls]))'


def test_controls(js):
    "The site's sliders go where the notebooks' go, and start where the function that draws starts"
    figures = js(CONTROLS)
    live = live_cells()
    assert figures.keys() == live.keys()
    for name, (draws, cell) in live.items():
        says = (f"the cell after `#| live: {name}` makes the controls, "
                "is hidden on the site, and stores no widget")
        assert source(cell).startswith('#| hide\n#| eval: false\n@interact('), says
        assert not cell['outputs'], says
        moved, = ast.parse(source(cell)).body
        ranges = {k.arg: ast.literal_eval(k.value) for k in moved.decorator_list[0].keywords}
        start = defaults(draws)
        # without plt.show(), the figure stays as it is
        assert ast.unparse(moved.body) == f"{draws.name}({', '.join(start)})\nplt.show()"
        assert start == defaults(moved) == widgets(moved, ranges)
        assert ranges.keys() == start.keys() == figures[name].keys()
        for k, control in figures[name].items():
            assert control['value'] == start[k]
            assert same_control(control, ranges[k]), (name, k)


def test_the_script_is_small_and_our_own():
    text = script.read_text(encoding='utf-8')
    assert len(text.encode()) < 12_000
    # the one address names a namespace, and is not fetched
    assert set(re.findall(r'https?://[^\s\'"]+', text)) == {'http://www.w3.org/2000/svg'}
    assert not re.search(r'\b(import|fetch|XMLHttpRequest|eval)\b', text)
