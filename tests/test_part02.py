"The tape of chapter 02: its gradients against autograd's, and what it refuses."
import ast
import gc
import itertools
import json
import weakref
from functools import partial
from pathlib import Path

import pytest
import torch
from fastcore.basics import patch
from torch import Tensor

notebook = Path(__file__).parent.parent/'nbs'/'02_fully_connected.ipynb'
# The notebook exports nothing, so we run the cells that define these names. The last wins.
PARTS = {'Var', 'OPS', 'rule', 'operator', 'unbroadcast', 'history', 'check_unchanged', 'store',
         'first_gradient', 'backward', 'find_op', 'torch_function', '__getattr__', 'add_rule',
         'sub_rule', 'exp_rule', 'relu_rule', 'matmul_rule', 'sum_rule', 'reshape_rule'}


def defined(source):
    "The names that a cell defines"
    if source.startswith(('#| hide', '#| solution', '!')): return set()
    names = set()
    for node in ast.parse(source).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)): names.add(node.name)
        if isinstance(node, ast.Assign): names |= {ast.unparse(t) for t in node.targets}
    return names


@pytest.fixture(scope='module')
def tape():
    "The names of the chapter's tape"
    space = dict(itertools=itertools, torch=torch, Tensor=Tensor, patch=patch, partial=partial)
    for cell in json.loads(notebook.read_text(encoding='utf-8'))['cells']:
        source = ''.join(cell['source'])
        if cell['cell_type'] == 'code' and defined(source) & PARTS: exec(source, space)
    return space


SHAPES = [(2, 3, 4), (3, 4), (1, 4), (2, 1, 1), (4,), (3, 1), ()]


UNARY = {
    'neg': lambda a: -a,
    'exp': lambda a: torch.exp(torch.tanh(a)),
    'log': lambda a: (a*a + 0.5).log(),
    'tanh': torch.tanh,
    'relu': torch.relu,
    'square': lambda a: a**2,
    'cube': lambda a: a.pow(3)*0.1,
    'root': lambda a: (a*a + 1)**0.5,
    'reciprocal': lambda a: 1/(a*a + 1),
    'sum': lambda a: a.sum(),
    'mean of last': lambda a: a.mean(-1, keepdim=True) if a.shape else a.mean(),
    'sum of first': lambda a: a.sum(0)*0.3 if a.shape else a.sum(),
    'mean of two': lambda a: a.mean((0, -1)) if len(a.shape) > 1 else a.mean(),
    'flat': lambda a: a.reshape(-1).sum(0, keepdim=True),
    'there and back': lambda a: a.reshape(-1)[:].reshape(a.shape),
    'transposed twice': lambda a: a.transpose(0, -1).transpose(-1, 0) if a.shape else a,
    'first': lambda a: a[0] if a.shape else a,
    'repeated': lambda a: a[[0, 0, -1]].sum(0, keepdim=True) if a.shape else a,
    'backwards': lambda a: a[..., [-1, 0]].sum(-1, keepdim=True) if a.shape else a,
    'every second': lambda a: a[torch.arange(a.shape[0]) % 2 == 0].sum(0) if a.shape else a,
}
BINARY = {
    'add': torch.add,
    'sub': lambda a, b: a - b,
    'mul': lambda a, b: a*b,
    'div': lambda a, b: a/(b*b + 1),
    'maximum': torch.maximum,
    'number left': lambda a, b: (2 - a)*(0.5 + b),
    'batched matmul': lambda a, b: (a + WIDE)@(b + WIDE).transpose(-2, -1)[..., :1],
}
WIDE = torch.zeros(2, 3, 4, dtype=torch.float64)


def expression(seed, steps=14):
    "A function of tensors that applies random operations, and uses results again"
    def f(*tensors):
        gen = torch.Generator().manual_seed(seed)
        def pick(options):
            options = list(options)
            return options[torch.randint(len(options), (), generator=gen)]
        pool = list(tensors)
        while len(pool) < len(tensors) + steps:
            if pick([True, False]): pool.append(UNARY[pick(UNARY)](pick(pool)))
            else:
                a, b = pick(pool), pick(pool)
                try: torch.broadcast_shapes(a.shape, b.shape, WIDE.shape)
                except RuntimeError: continue
                pool.append(BINARY[pick(BINARY)](a, b))
        return sum((v*v*0.01 + v).mean() for v in pool)
    return f


def by_autograd(f, tensors, grad=None):
    copies = [t.clone().requires_grad_() for t in tensors]
    out = f(*copies)
    out.backward(grad)
    return out.detach(), [t.grad for t in copies]


def by_tape(tape, f, tensors, grad=None):
    inputs = [tape['Var'](t.clone()) for t in tensors]
    out = f(*inputs)
    out.backward(grad)
    return out.data, [v.grad for v in inputs]


def agree(ours, theirs):
    (out, grads), (expected, rights) = ours, theirs
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)
    for g, right in zip(grads, rights):
        # neither has a gradient for an input that the expression doesn't use
        if right is None: assert g is None
        else: torch.testing.assert_close(g, right, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('first', range(0, 400, 50))
def test_random_expressions(tape, first):
    for seed in range(first, first + 50):
        gen = torch.Generator().manual_seed(seed)
        tensors = [torch.randn(SHAPES[i], generator=gen, dtype=torch.float64)
                   for i in torch.randperm(len(SHAPES), generator=gen)[:4]]
        f = expression(seed)
        agree(by_tape(tape, f, tensors), by_autograd(f, tensors))


@pytest.mark.parametrize('name', [*UNARY, *BINARY])
def test_each_operation(tape, name):
    for seed, shape in enumerate(SHAPES):
        gen = torch.Generator().manual_seed(seed)
        shapes = [shape] if name in UNARY else [shape, SHAPES[seed - 3]]
        f = UNARY.get(name) or BINARY[name]
        tensors = [torch.randn(s, generator=gen, dtype=torch.float64) for s in shapes]
        grad = torch.randn(f(*tensors).shape, generator=gen, dtype=torch.float64)
        agree(by_tape(tape, f, tensors, grad), by_autograd(f, tensors, grad))


@pytest.mark.parametrize('f', [
    torch.relu,
    lambda x: torch.maximum(x, x*x),
    lambda x: torch.maximum(x, x.relu()),
    lambda x: x.relu().relu(),
    lambda x: x**0,
    lambda x: x**1,
    lambda x: x**2,
], ids=['relu', 'ties', 'more ties', 'relu of relu', '**0', '**1', '**2'])
def test_special_points(tape, f):
    x = [torch.tensor([-1., 0., 1., 2.], dtype=torch.float64)]
    grad = torch.ones(4, dtype=torch.float64)
    agree(by_tape(tape, f, x, grad), by_autograd(f, x, grad))


@pytest.mark.parametrize('shapes', [
    ((5, 2, 3), (3, 4)),
    ((2, 3), (5, 3, 4)),
    ((5, 1, 2, 3), (6, 3, 4)),
])
def test_batches_of_matrices(tape, shapes):
    tensors = [torch.randn(s, dtype=torch.float64) for s in shapes]
    grad = torch.randn((tensors[0]@tensors[1]).shape, dtype=torch.float64)
    agree(by_tape(tape, torch.matmul, tensors, grad), by_autograd(torch.matmul, tensors, grad))


def test_numbers_and_tensors_on_either_side(tape):
    x = [torch.rand(3, dtype=torch.float64) + 1]
    t = torch.rand(2, 3, dtype=torch.float64) + 1
    for f in (lambda v: (t + v)*(t - v)/(t/v) + (t*v - 3)/(3 - v),
              lambda v: t@(v*torch.ones(3, 3).double())):
        grad = torch.ones_like(f(*x))
        agree(by_tape(tape, f, x, grad), by_autograd(f, x, grad))


def test_a_gradient_has_its_tensors_type(tape):
    a = tape['Var'](torch.ones(3))
    b = tape['Var'](torch.ones(3, dtype=torch.float64))
    (a*b).sum().backward()
    assert (a.grad.dtype, b.grad.dtype) == (torch.float32, torch.float64)


def test_long_and_wide_tapes(tape):
    start = tape['Var'](torch.tensor(1.))
    v = start
    for _ in range(100_000): v = v + 1.
    v.backward()
    assert start.grad == 1
    start.grad = None
    v = start
    for _ in range(40): v = v + v   # 2**40 ways from the end to the start
    v.backward()
    assert start.grad == 2.**40


def test_gradients_add_up_until_they_are_cleared(tape):
    a = tape['Var'](torch.tensor([2., 3.]))
    for times in (1, 2, 3):
        (a*a).sum().backward()
        assert torch.equal(a.grad, times*2*a.data)


def test_no_two_gradients_share_memory(tape):
    a, b = (tape['Var'](torch.zeros(2, 3)) for _ in range(2))
    (a + b).mean().backward()
    a.grad.zero_()
    assert torch.equal(b.grad, torch.full((2, 3), 1/6))
    grad = torch.ones(2, 3)
    c = tape['Var'](torch.zeros(2, 3))
    (c + 0.).backward(grad)
    c.grad.zero_()
    assert grad.all()


def test_a_used_tape(tape):
    a = tape['Var'](torch.tensor([2., 3.]))
    h = a*a
    loss = h.sum()
    loss.backward()
    for used in (loss, h.sum()):
        with pytest.raises(RuntimeError, match='already used'): used.backward()
    assert torch.equal(a.grad, torch.tensor([4., 6.]))   # nothing was added
    loss = (a*a).sum()
    for times in (2, 3):
        loss.backward(keep=True)
        assert torch.equal(a.grad, times*torch.tensor([4., 6.]))


def test_a_used_tape_is_freed(tape):
    a = tape['Var'](torch.ones(3))
    h = a.exp()
    inner = weakref.ref(h)
    loss = h.sum()
    del h
    loss.backward()
    gc.collect()
    assert inner() is None


@pytest.mark.parametrize('change', [
    lambda a, c: a.data.add_(1),
    lambda a, c: a.data[0].zero_(),
    lambda a, c: c.data.mul_(2),
    lambda a, c: CONSTANT.mul_(1),
], ids=['an input', 'a view of it', 'a result', 'a constant'])
def test_changes_in_place_are_refused(tape, change):
    a = tape['Var'](torch.tensor([2., 3.]))
    c = (a*CONSTANT).exp()
    change(a, c)
    with pytest.raises(RuntimeError, match='changed in place'): c.sum().backward()
    assert a.grad is None


CONSTANT = torch.tensor([1., 2.])


def test_a_step_between_two_passes_is_fine(tape):
    a = tape['Var'](torch.tensor([2., 3.]))
    for _ in range(3):
        (a*a).sum().backward()
        a.data -= 0.1*a.grad
        a.grad = None
    assert torch.allclose(a.data, torch.tensor([2., 3.])*0.8**3)


@pytest.mark.parametrize('attempt, said', [
    (lambda v: torch.sin(v), "no rule for 'sin'"),
    (lambda v: v.cumsum(0), "no rule for 'cumsum'"),
    (lambda v: torch.stack([v, v]), "no rule for 'stack'"),
    (lambda v: torch.nn.functional.linear(v, torch.ones(2, 2)), "no rule for 'linear'"),
    (lambda v: torch.ones(2) > v, "no rule for 'gt'"),
    (lambda v: v.add_(1), "'add_' changes a tensor in place"),
    (lambda v: torch.ones(2).add_(v), "'add_' changes a tensor in place"),
    (lambda v: torch.relu_(v), "'relu_' changes a tensor in place"),
    (lambda v: v.__setitem__(0, 1.), 'changes a tensor in place'),
])
def test_an_operation_without_a_rule_is_refused_by_name(tape, attempt, said):
    with pytest.raises(NotImplementedError, match=said): attempt(tape['Var'](torch.ones(2)))


def test_what_else_is_refused(tape):
    Var = tape['Var']
    v = Var(torch.ones(2))
    for wrong in (1., [1.], torch.tensor([1])):
        with pytest.raises(TypeError, match='floats'): Var(wrong)
    with pytest.raises(TypeError, match='no gradient'): v**v
    with pytest.raises(TypeError, match='unsupported operand'): torch.ones(2)**v
    with pytest.raises(ValueError, match='matrices'): v@torch.ones(2)
    with pytest.raises(RuntimeError, match='single number'): (v + v).backward()
    with pytest.raises(ValueError, match='shape'): (v + v).backward(torch.ones(3))
    assert not hasattr(v, 'cumsum')
    assert not hasattr(v, '_repr_html_')


def test_a_parameter_gets_no_gradient_of_autograd(tape):
    p = torch.nn.Parameter(torch.ones(2))
    v = tape['Var'](p)
    (v*torch.nn.Parameter(torch.ones(2))).sum().backward()
    assert p.grad is None
    assert torch.equal(v.grad, torch.ones(2))
