"Chapter 03: parts that agree with PyTorch's, exact averages, and chapter 04's first loop."
import ast
import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn

root = Path(__file__).parent.parent
PARTS = {
    'softmax', 'log_softmax', 'logsumexp', 'nll', 'cross_entropy', 'accuracy', 'Module',
    'named_parameters', 'parameters', 'train', 'eval', 'Linear', 'Model', 'ModuleList', 'Dropout',
    'Optimizer', 'Dataset', 'Sampler', 'collate', 'DataLoader', 'get_dls', 'fit',
}


def cells(number) -> list[dict]:
    path, = (root/'nbs').glob(f'{number}_*.ipynb')
    return json.loads(path.read_text(encoding='utf-8'))['cells']


def sources(number) -> list[str]:
    return [''.join(cell['source']) for cell in cells(number) if cell['cell_type'] == 'code']


def printed(begin) -> str:
    "What the cell that begins so has printed, when its output was stored."
    cell, = [c for c in cells('03') if re.search(begin, ''.join(c['source']), re.M)]
    return ''.join(''.join(out.get('text', '')) for out in cell['outputs'])


@pytest.fixture(scope='module')
def part():
    "The chapter's definitions, the last of each name, without its training runs."
    names = dict(__name__='chapter03')
    code = 'import copy, math, torch\nfrom fastcore.basics import patch\n' \
           'from torch import nn, optim, tensor, Tensor\nimport torch.nn.functional as F\n'
    exec(code, names)
    for source in sources('03'):
        if source.startswith(('#| hide', '#| solution', '#| slow', '#| fig')): continue
        for node in ast.parse(source).body:
            if getattr(node, 'name', None) in PARTS:
                exec(compile(ast.Module([node], []), 'chapter 03', 'exec'), names)
    return type('Part', (), {name: staticmethod(names[name]) for name in PARTS if name in names})


def test_the_last_loop_is_the_one_that_chapter_04_starts_from():
    ours, theirs = sources('03'), sources('04')
    for begin in ('x_train, y_train', 'def get_model(data', 'def fit('):
        cell = next(s for s in theirs if s.startswith(begin))
        assert cell in ours, f'chapter 03 has no cell like the one in chapter 04: {begin}'
    run = next(s for s in theirs if 'fit(2, model, loss_func, opt' in s)
    assert run in ours


@pytest.mark.parametrize('scale', [1., 100., 1e4])
def test_log_softmax_and_its_gradient(part, scale):
    g = torch.Generator().manual_seed(0)
    x = (torch.randn(32, 10, generator=g, dtype=torch.float64)*scale).requires_grad_()
    y = torch.randint(10, (32,), generator=g)
    ours, theirs = part.cross_entropy(x, y), nn.functional.cross_entropy(x, y)
    assert ours.isfinite()
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(loss, x)[0] for loss in (ours, theirs)))


def test_modules_in_modules_have_the_names_of_pytorch(part):
    def tree(base, linear, module_list):
        class Tree(base):
            def __init__(self):
                super().__init__()
                self.stem = linear(3, 4)
                self.blocks = module_list([linear(4, 4), linear(4, 4)])
                self.scale = nn.Parameter(torch.ones(1))
                self.size = 3
        return [name for name, p in Tree().named_parameters()]
    ours = tree(part.Module, part.Linear, part.ModuleList)
    assert ours == tree(nn.Module, nn.Linear, nn.ModuleList)


def test_evaluation_mode_reaches_all_parts(part):
    inner, outer = part.Dropout(), part.Module()
    outer.inner = inner
    x = torch.ones(1000)
    outer.train()
    assert set(inner(x).tolist()) == {0., 2.}
    outer.eval()
    assert inner(x).equal(x)


@pytest.mark.parametrize('n, bs', [(10, 3), (10, 5), (1, 4), (64, 64), (65, 64)])
def test_samplers_and_loaders(part, n, bs):
    ds = part.Dataset(torch.arange(n), torch.arange(n)*10)
    for shuffle in (False, True):
        sampler = part.Sampler(n, bs, shuffle=shuffle)
        assert len(sampler) == len(list(sampler)) == -(-n//bs)
        assert sorted(torch.cat(list(sampler)).tolist()) == list(range(n))
        full = list(part.Sampler(n, bs, shuffle=shuffle, drop_last=True))
        assert [len(idx) for idx in full] == [bs]*(n//bs)
    for collate_fn in (None, part.collate):
        dl = part.DataLoader(ds, part.Sampler(n, bs, shuffle=True), collate_fn)
        for xb, yb in dl: assert yb.equal(xb*10)


def test_a_seeded_sampler_repeats_and_goes_on(part):
    def sampler(): return part.Sampler(100, 7, shuffle=True, generator=g())
    def g(): return torch.Generator().manual_seed(3)
    one, other = sampler(), sampler()
    first, second = torch.cat(list(one)), torch.cat(list(one))
    assert first.equal(torch.cat(list(other))) and not first.equal(second)


@pytest.mark.parametrize('bs', [1, 7, 16, 33, 100])
def test_averages_are_exact_when_the_last_batch_is_short(part, capsys, bs):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(100, 5, generator=g), torch.randint(3, (100,), generator=g)
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    opt = torch.optim.SGD(model.parameters(), lr=0.)
    ds = part.Dataset(x, y)
    dl = part.DataLoader(ds, part.Sampler(100, bs))
    part.fit(1, model, part.cross_entropy, opt, dl, dl)
    loss, acc = part.cross_entropy(model(x), y), part.accuracy(model(x), y)
    assert capsys.readouterr().out == f'epoch 0: loss {loss:.4f}, accuracy {acc:.4f}\n'


def test_the_claims_are_in_the_stored_outputs():
    mean = re.search(r'mean (\S+)%', printed(r'^runs = \[train_run'))[1]
    assert float(mean) >= 97.5
    ratio = re.search(r'takes (\S+) times', printed(r'^ratio = times_as_long\(lambda: train_dl'))[1]
    assert float(ratio) <= 1.1
    stored = [''.join(''.join(out.get('text', '')) for out in c['outputs']) for n in ('03', '04')
              for c in cells(n) if 'fit(2, model, loss_func, opt' in ''.join(c['source'])]
    assert stored[0] == stored[1]
