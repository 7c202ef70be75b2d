"The site's live figures (docs/_static/live.js) compute what the package computes, and have the notebooks' controls."
import ast
import json
import re
import shutil
import subprocess
from pathlib import Path

import ipywidgets
import pytest
import torch

from minifastai.schedules import combine_scheds, cos_1cycle_anneal, sched_cos
from minifastai.norms import BatchNorm, GroupNorm, InstanceNorm, LayerNorm
from test_site import launched

root = Path(__file__).parent.parent
script = root/'docs'/'_static'/'live.js'
NODE = "const { readFileSync } = require('fs'), { runInThisContext } = require('vm'); runInThisContext(readFileSync(process.argv[1], 'utf8')); console.log(JSON.stringify(runInThisContext(readFileSync(0, 'utf8'))))"


@pytest.fixture(scope='module')
def js():
    "Evaluates an expression about `live`: by node where it is, else in the browser of the site's tests, which skips if there is none"
    if node := shutil.which('node'):
        yield lambda expression: json.loads(subprocess.run([node, '-e', NODE, str(script)], input=expression, capture_output=True, text=True, check=True).stdout)
        return
    with launched() as browser:
        page = browser.new_page()
        page.add_script_tag(path=script)
        yield page.evaluate


def cells(): return [(p, c) for p in sorted((root/'nbs').glob('*.ipynb')) for c in json.loads(p.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code']


def live_cells():
    "By name, the function that draws a live figure, and the cell behind it, which has the notebook's controls"
    code = cells()
    found = [(i, m[1]) for i, (_, c) in enumerate(code) if (m := re.search(r'^#\| *live: *(\w+)', ''.join(c['source']), re.M))]
    return {name: ([f for f in ast.parse(''.join(code[i][1]['source'])).body if isinstance(f, ast.FunctionDef)][-1], code[i+1][1]) for i, name in found}


def test_schedules(js):
    at = [i/200 for i in range(201)]
    for pcts, ends in (([0.3, 0.7], [0.3, 0.6, 0.2]), ([0.7, 0.2, 0.1], [0, 1, 2, 3]), ([0., 1.], [1, 2, 3]), ([0.5, 0., 0.5], [1, 2, 3, 4]), ([1.], [2, 1])):
        ours = combine_scheds(pcts, [sched_cos(a, b) for a, b in zip(ends, ends[1:])])
        theirs = js(f'{at}.map(live.combineScheds({pcts}, {ends}.slice(1).map((end, i) => live.schedCos({ends}[i], end))))')
        assert theirs == pytest.approx([ours(o) for o in at], abs=1e-12)
    warms = [i*0.05 for i in range(1, 20)]
    theirs = js(f'{warms}.map(w => live.upDown(w, 0.3, 2, 0.1)).map(f => [live.mean(f), {at}.map(f)])')
    for warm, (mean, curve) in zip(warms, theirs):
        ours = combine_scheds([warm, 1-warm], cos_1cycle_anneal(0.3, 2., 0.1))
        assert curve == pytest.approx([ours(o) for o in at], abs=1e-12)
        assert mean == pytest.approx(sum(ours((j+0.5)/100) for j in range(100))/100)


def test_averages(js):
    numbers = torch.cat([torch.full((80,), 5.), torch.full((80,), 8.)]) + torch.randn(160, generator=torch.Generator().manual_seed(0))   # as in chapter 07
    assert js('live.numbers') == pytest.approx(numbers.tolist(), abs=0.005001)
    moms = [i/100 for i in range(1, 101)]
    theirs = js(f'{moms}.map(m => [live.noiseLeft(m), ...[false, true].map(debiased => live.movingAverage({numbers.tolist()}, m, debiased)), ...[false, true].map(debiased => live.stepsToHalf(live.movingAverage(live.numbers, m, debiased)))])')
    for mom, (noise, plain, debiased, *steps) in zip(moms, theirs):
        assert noise == pytest.approx((mom*(1 - mom)**torch.arange(5000, dtype=torch.float64)).square().sum().sqrt().item())
        avg, curves = torch.tensor(0., dtype=torch.float64), ([], [])
        for i, n in enumerate(numbers.double()):
            avg.lerp_(n, mom)
            for curve, weight in zip(curves, (1, 1 - (1 - mom)**(i+1))): curve.append(avg.item()/weight)
        for ours, curve, k in zip(curves, (plain, debiased), steps):
            assert curve == pytest.approx(ours)
            assert k == next((i - 79 for i in range(80, 160) if ours[i] > 6.5), 0)


def test_read_outs(js):
    image1 = next(ast.literal_eval(m[1]) for _, c in cells() if (m := re.search(r'^image1 = tensor\((.*)\)', ''.join(c['source']), re.M)))
    assert js('live.image') == image1
    for x in (image1, [v/0.1 + 400 for v in image1], [-800., 0., 800.], [0.]*5):
        t = torch.tensor(x, dtype=torch.float64)
        assert js(f'live.softmax({x})') == pytest.approx(t.softmax(0).tolist(), abs=1e-12)
        assert js(f'live.binomial({x})') == pytest.approx(t.sigmoid().tolist(), abs=1e-12)


@pytest.mark.parametrize('norm, groups, layer', [('batch', 2, BatchNorm), ('layer', 2, LayerNorm), ('instance', 2, InstanceNorm), *(('group', g, lambda c, g=g: GroupNorm(g, c)) for g in (1, 2, 3, 6))],
                         ids=['batch', 'layer', 'instance', 'group1', 'group2', 'group3', 'group6'])
def test_partners(js, norm, groups, layer):
    "What lights up is what the layer's output depends on, by its gradient"
    x = torch.randn(4, 6, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    out = layer(6).double()(x)
    ours = []
    for n in range(4):
        for c in range(6):
            grad = torch.autograd.grad(out[n, c, 1, 1], x, retain_graph=True)[0].abs()
            on = grad > 1e-9*grad.max()
            assert (on.flatten(2).all(2) == on.flatten(2).any(2)).all()   # all pixels of a map, or none
            ours.append(on[..., 0, 0].tolist())
    every = '[...Array(4).keys()].flatMap(n => [...Array(6).keys()].map(c => [...Array(4).keys()].map(i => [...Array(6).keys()].map(j => live.partners(NORM, GROUPS, 6, n, c)(i, j)))))'
    assert js(every.replace('NORM', repr(norm)).replace('GROUPS', str(groups))) == ours


def test_controls(js):
    "The site's sliders go where the notebooks' go, and start where the function that draws starts"
    figures, live = js('Object.fromEntries(Object.entries(live.figures).map(([k, f]) => [k, f.controls]))'), live_cells()
    assert figures.keys() == live.keys()
    def defaults(f): return dict(zip((a.arg for a in f.args.args), map(ast.literal_eval, f.args.defaults)))
    for name, (f, behind) in live.items():
        assert ''.join(behind['source']).startswith('#| hide\n#| eval: false\n@interact(') and not behind['outputs'], f"the cell behind `#| live: {name}` makes the controls, is hidden on the site, and stores no widget"
        moved, = ast.parse(''.join(behind['source'])).body
        ranges = {k.arg: ast.literal_eval(k.value) for k in moved.decorator_list[0].keywords}
        assert ast.unparse(moved.body) == f"{f.name}({', '.join(defaults(f))})\nplt.show()"   # without it, the figure stays as it is
        assert defaults(f) == defaults(moved) and ranges.keys() == defaults(f).keys() == figures[name].keys()
        for k, control in figures[name].items():
            assert control['value'] == defaults(f)[k]
            if isinstance(ranges[k], tuple): assert [control['min'], control['max'], control['step']] == pytest.approx([*ranges[k], 1][:3])
            elif isinstance(ranges[k], list): assert control['values'] == ranges[k]
            else: assert control['value'] is ranges[k]
        moved.body, moved.decorator_list, scope = [ast.Pass()], [], {}
        exec(compile(ast.fix_missing_locations(ast.Module([moved], [])), name, 'exec'), scope)
        box = ipywidgets.interactive(scope['_'], **ranges)
        assert {w.description: w.value for w in box.children[:-1]} == defaults(f)


def test_the_script_is_small_and_our_own():
    text = script.read_text(encoding='utf-8')
    assert len(text.encode()) < 12_000
    assert set(re.findall(r'https?://[^\s\'"]+', text)) == {'http://www.w3.org/2000/svg'}   # a namespace, which nobody fetches
    assert not re.search(r'\b(import|fetch|XMLHttpRequest|eval)\b', text)
