"Norms on shapes, types and histories that the chapters lack, against PyTorch and running sums."
import copy
import io
import math
import pickle
import random
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import LESSON_DATA
from torch import nn, optim
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from minifastai.data import DataBunch, Dataset, get_dls
from minifastai.learner import Learner, Runner
from minifastai.lr_finder import lr_find
from minifastai.init import GeneralRelu, init_cnn
from minifastai.norms import (
    BatchNorm, conv_layer, get_norm, GroupNorm, InstanceNorm, LayerNorm, plot_norms,
    RunningBatchNorm)

LESSON = LESSON_DATA + '''
mnist_view = view_tfm(1,28,28)
cbfs = [Recorder, partial(AvgStatsCallback, accuracy), CudaCallback,
        partial(BatchTransformXCallback, mnist_view)]
nfs = [8,16,32,64,64]
learn,run = get_learn_run(nfs, data, 0.9, conv_layer, cbs=cbfs)
with Hooks(learn.model, append_stats) as hooks:
    run.fit(1, learn)
    for h in hooks[:-1]:
        ms,ss = h.stats
        plt.plot(ms[:10])
        plt.plot(ss[:10])
init_cnn(learn.model, uniform=True)
init_cnn_(learn.model, nn.init.kaiming_normal_)
learn,run = get_learn_run(nfs, data, 1.0, conv_layer, cbs=cbfs)
run.fit(1, learn)
learn,run = get_learn_run(nfs, data, 1.0, conv_layer, cbs=cbfs, bn=False)
sched = combine_scheds([0.3, 0.7], [sched_lin(0.6, 2.), sched_lin(2., 0.1)])
learn,run = get_learn_run(nfs, data, 0.9, conv_layer,
                          cbs=cbfs+[partial(ParamScheduler,'lr', sched)])
run.fit(2, learn)
def conv_ln(ni, nf, ks=3, stride=2, bn=True, **kwargs):
    layers = [nn.Conv2d(ni, nf, ks, padding=ks//2, stride=stride, bias=True),
              GeneralRelu(**kwargs)]
    if bn: layers.append(LayerNorm())
    return nn.Sequential(*layers)
learn,run = get_learn_run(nfs, data, 0.1, conv_ln, cbs=cbfs)
run.fit(1, learn)
def conv_in(ni, nf, ks=3, stride=2, bn=True, **kwargs):
    return nn.Sequential(nn.Conv2d(ni, nf, ks, padding=ks//2, stride=stride, bias=True),
                         GeneralRelu(**kwargs), InstanceNorm(nf))
learn,run = get_learn_run(nfs[:4], data, 0.1, conv_in, cbs=cbfs)
run.fit(1, learn)
data = DataBunch(*get_dls(train_ds, valid_ds, 32), c)
def conv_rbn(ni, nf, ks=3, stride=2, bn=True, **kwargs):
    layers = [nn.Conv2d(ni, nf, ks, padding=ks//2, stride=stride, bias=not bn),
              GeneralRelu(**kwargs)]
    if bn: layers.append(RunningBatchNorm(nf))
    return nn.Sequential(*layers)
learn,run = get_learn_run(nfs, data, 0.9, conv_rbn,
                          cbs=cbfs+[partial(ParamScheduler,'lr', sched_lin(1., 0.2))])
run.fit(1, learn)
'''


def test_the_lessons_lines():
    pytest.importorskip('sklearn')
    names = {}
    exec(LESSON, names)
    assert names['run'].avg_stats.valid_stats.avg_stats[1] > 0.5


def close(a, b, tol): torch.testing.assert_close(a.reshape(b.shape), b, rtol=tol, atol=tol)


def same_random_parameters(ours, theirs):
    "Draw the parameters of `ours` anew, and copy them to `theirs`"
    for p, q in zip(ours.parameters(), theirs.parameters()):
        p.data.normal_()
        q.data.copy_(p.data)


def unchanged(norm, state) -> bool:
    "Is each parameter and buffer of `norm` what the copy `state` has?"
    return all(torch.equal(v, state[k]) for k, v in norm.state_dict().items())


# Against PyTorch and against the definition

PAIRS = {
    'batch': (lambda c: BatchNorm(c, 0.3, 1e-3), lambda c: nn.BatchNorm2d(c, 1e-3, 0.3)),
    'batch, plain': (
        lambda c: BatchNorm(c, affine=False),
        lambda c: nn.BatchNorm2d(c, affine=False),
    ),
    'layer': (LayerNorm, lambda c: nn.GroupNorm(1, c)),
    'instance': (InstanceNorm, lambda c: nn.InstanceNorm2d(c, affine=True)),
    'group': (
        lambda c: GroupNorm(math.gcd(3, c), c, 0.01),
        lambda c: nn.GroupNorm(math.gcd(3, c), c, 0.01),
    ),
}


def drawn(shape, dtype, layout, rnd):
    "A random batch in some memory layout"
    x = torch.randn(shape, dtype=dtype)*rnd.uniform(0.1, 9) + rnd.uniform(-5, 5)
    if layout == 'channels last': return x.contiguous(memory_format=torch.channels_last)
    if layout == 'strided': return torch.randn(shape[::-1], dtype=dtype).permute(3, 2, 1, 0)
    return x


@pytest.mark.parametrize('name', PAIRS)
@pytest.mark.parametrize('dtype,tol', [(torch.float32, 2e-4), (torch.float64, 1e-10)])
@pytest.mark.parametrize('layout', ['contiguous', 'channels last', 'strided'])
def test_equal_to_pytorch(name, dtype, tol, layout):
    for seed in range(8):
        rnd = random.Random(seed)
        torch.manual_seed(seed)
        shape = (rnd.randint(2, 9), rnd.randint(1, 12), rnd.randint(2, 9), rnd.randint(1, 9))
        ours, theirs = pair = [make(shape[1]).to(dtype) for make in PAIRS[name]]
        same_random_parameters(ours, theirs)
        for step in range(4):
            x = drawn(shape, dtype, layout, rnd)
            inputs = [x.detach().requires_grad_() for _ in pair]
            outputs = [m.train(step < 3)(xi) for m, xi in zip(pair, inputs)]
            close(*outputs, tol*5)
            g = torch.randn(shape, dtype=dtype)
            grads = [torch.autograd.grad(y, [xi, *m.parameters()], g)
                     for m, xi, y in zip(pair, inputs, outputs)]
            for a, b in zip(*grads): close(a, b, tol*max(1, b.abs().max().item()))
        if name.startswith('batch'):
            close(ours.means, theirs.running_mean, tol)
            close(ours.vars, theirs.running_var, tol)


class Sums(nn.Module):
    "The running norm as it is defined, by sums, in any precision, however slow that may be"
    def __init__(self, nf, mom=0.1, eps=1e-5, scaled=True):
        super().__init__()
        self.mom, self.eps, self.scaled = mom, eps, scaled
        self.sums, self.squares, self.count = 0., 0., 0.
        self.mults = nn.Parameter(torch.ones(nf))
        self.adds = nn.Parameter(torch.zeros(nf))

    def update(self, x, dims):
        "The running averages of sum, sum of squares and count, with the gradients of this batch"
        weight = self.mom
        if self.scaled: weight = 1 - (1 - self.mom)/math.sqrt(max(len(x) - 1, 1))
        sums = (1-weight)*self.sums + weight*x.sum(dims)
        squares = (1-weight)*self.squares + weight*(x**2).sum(dims)
        self.count = (1-weight)*self.count + weight*(x.numel()/x.shape[1])
        self.sums, self.squares = sums.detach(), squares.detach()
        return sums, squares

    def forward(self, x):
        dims = [d for d in range(x.dim()) if d != 1]
        view = lambda t: t.view(-1, *[1]*(x.dim()-2))
        sums, squares = self.sums, self.squares
        if self.training: sums, squares = self.update(x, dims)
        m = sums/self.count
        v = squares/self.count - m**2
        return (x - view(m))/(view(v) + self.eps).sqrt()*view(self.mults) + view(self.adds)


@pytest.mark.parametrize('kw', [
    {},
    dict(mom=0.4, eps=0.01),
    dict(mom=1.),
    dict(scaled=False),
    dict(mom=0.02, scaled=False),
])
@pytest.mark.parametrize('seed', range(6))
def test_running_norm_is_its_definition(kw, seed):
    rnd = random.Random(seed)
    torch.manual_seed(seed)
    c = rnd.randint(1, 9)
    rest = rnd.choice([(), (5,), (1, 1), (4, 3), (2, 3, 2)])
    ours, theirs = pair = [make(c, **kw).double() for make in (RunningBatchNorm, Sums)]
    same_random_parameters(ours, theirs)
    for step in range(12):
        n = rnd.choice([1, 1, 2, 2, 3, 8, 50])
        if step == 0 and n*math.prod(rest) < 2: continue    # a variance of 0 amplifies rounding
        shape = n, c, *rest
        x = torch.randn(shape, dtype=torch.float64)*rnd.uniform(0.5, 3) + rnd.uniform(-2, 2)
        x.requires_grad_()
        weight = torch.randn(shape, dtype=torch.float64)
        outputs = [m.train()(x) for m in pair]
        close(*outputs, 1e-7)
        grads = [torch.autograd.grad((y.sigmoid()*weight).sum(), [x, *m.parameters()])
                 for m, y in zip(pair, outputs)]
        for a, b in zip(*grads): close(a, b, 1e-6)
        close(*[m.eval()(x) for m in pair], 1e-7)


def test_gradient_by_differences():
    norm = RunningBatchNorm(3).double()
    norm(torch.randn(6, 3, 2, 4, dtype=torch.float64) + 1)
    x = torch.randn(2, 3, 2, 4, dtype=torch.float64, requires_grad=True)

    def f(x, mults, adds):
        fresh = copy.deepcopy(norm)   # each call from the same past
        return torch.func.functional_call(fresh, dict(mults=mults, adds=adds), (x,))

    parameters = [p.detach().requires_grad_() for p in (norm.mults, norm.adds)]
    assert torch.autograd.gradcheck(f, (x, *parameters))


# Precision

@pytest.mark.parametrize('bs', [2, 8, 64])
def test_far_from_zero(bs):
    torch.manual_seed(0)
    norm, exact = RunningBatchNorm(4), Sums(4).double()
    for _ in range(100):
        x = 1000 + 0.1*torch.randn(bs, 4, 6, 6)
        y, z = norm(x), exact(x.double())
    assert y.isfinite().all()
    assert (norm.vars > 0.005).all()
    assert (norm.vars < 0.02).all()
    assert (y.double() - z).abs().max() < 0.01
    assert (norm.eval()(x).double() - exact.eval()(x.double())).abs().max() < 0.01


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    torch.manual_seed(0)
    norm, full = RunningBatchNorm(4), RunningBatchNorm(4)
    for module in (norm, copy.deepcopy(norm).to(dtype)):
        reference = copy.deepcopy(full)
        for _ in range(5):
            # the sum of its squares is beyond the range of half precision
            x = (torch.randn(64, 4, 32, 32)*300).to(dtype).requires_grad_()
            y, z = module(x), reference(x.detach().float())
            assert y.dtype == dtype
            assert (y.float() - z).abs().max() < 0.05
            assert torch.autograd.grad(y.float().pow(2).sum(), x)[0].dtype == dtype
        assert module.means.dtype == module.vars.dtype == torch.float32
        close(module.vars, reference.vars, 1e-5)
        assert module.eval()(x).dtype == dtype


def test_autocast():
    torch.manual_seed(0)
    model = nn.Sequential(
        conv_layer(1, 4, norm='running'),
        conv_layer(4, 4, norm='running'),
        nn.Flatten(),
        nn.Linear(16, 3),
    )
    opt = optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(9, 1, 8, 8), torch.randint(3, (9,))
    for _ in range(30):
        with torch.autocast('cpu', dtype=torch.bfloat16): loss = F.cross_entropy(model(x), y)
        loss.backward()
        opt.step()
        opt.zero_grad()
    assert loss < 0.5
    assert model[0][2].means.dtype == torch.float32


def test_any_batch_size_in_any_mode():
    norm = RunningBatchNorm(2)
    x = torch.randn(3, 2, 4, 4)
    # before any training, next to nothing changes
    close(norm.eval()(x), x/math.sqrt(1 + norm.eps), 1e-6)
    norm.train()
    # the first number ever is its own mean
    assert (norm(torch.ones(1, 2, 1, 1)) == 0).all()
    # a count of 0.1, and then of 0.9*0.1 + 0.1: the second number has the weight 0.1/0.19
    y = norm(torch.full((1, 2, 1, 1), 3.))
    close(norm.means, torch.full((2,), 1 + 2*0.1/0.19), 1e-5)
    assert y.isfinite().all()
    before = copy.deepcopy(norm.state_dict())
    assert norm(torch.empty(0, 2, 4, 4)).shape == (0, 2, 4, 4)
    assert unchanged(norm, before)
    for bs in (1, 2, 1000, 1): assert norm(torch.randn(bs, 2)).isfinite().all()


# State

def small_model(norm='running'):
    torch.manual_seed(1)
    return nn.Sequential(
        conv_layer(1, 4, norm=norm),
        nn.Dropout(0.1),
        conv_layer(4, 6, norm=norm),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )


def sgd(model): return optim.SGD(model.parameters(), lr=0.2, momentum=0.9)


def steps(model, opt, batches):
    for x, y in batches:
        F.cross_entropy(model(x), y).backward()
        opt.step()
        opt.zero_grad()


def sent(state, how):
    "A copy of the state `state` of a model, that was saved and loaded in the way `how`"
    if how == 'state_dict': return copy.deepcopy(state)
    if how == 'safetensors':
        from safetensors.torch import load, save
        return load(save(state))
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def resumed(model, opt, how):
    "A model and an optimizer that go on where these are"
    if how == 'deepcopy': return copy.deepcopy((model, opt))
    other = small_model()
    other.load_state_dict(sent(model.state_dict(), how))
    other_opt = sgd(other)
    other_opt.load_state_dict(copy.deepcopy(opt.state_dict()))
    return other, other_opt


@pytest.mark.parametrize('how', ['state_dict', 'deepcopy', 'file', 'safetensors'])
def test_resume_bit_by_bit(how):
    g = torch.Generator().manual_seed(0)
    batches = [(torch.randn(n, 1, 9, 9, generator=g), torch.randint(3, (n,), generator=g))
               for n in (2, 7, 1, 32, 2, 2, 5, 1, 16, 3)]
    model = small_model()
    opt = sgd(model)
    steps(model, opt, batches[:5])
    other, other_opt = resumed(model, opt, how)
    for m, o in ((model, opt), (other, other_opt)):
        torch.manual_seed(7)
        steps(m, o, batches[5:])
    for (k, a), b in zip(model.state_dict().items(), other.state_dict().values()):
        assert torch.equal(a, b), k


def test_finder_puts_back_what_is_no_tensor():
    g = torch.Generator().manual_seed(0)
    ds = Dataset(torch.randn(20, 1, 9, 9, generator=g), torch.randint(3, (20,), generator=g))
    results = []
    for look in (False, True):
        model = small_model()
        torch.manual_seed(5)
        data = DataBunch(*get_dls(ds, ds, 3), 3)
        learn = Learner(model, optim.SGD(model.parameters(), lr=0.1), F.cross_entropy, data)
        if look: lr_find(learn, 30)
        Runner().fit(1, learn)
        results.append(model.state_dict())
    for k in results[0]: assert torch.equal(results[0][k], results[1][k]), k


@pytest.mark.parametrize('to,dtype', [
    (lambda m: m.half(), torch.float32),
    (lambda m: m.bfloat16(), torch.float32),
    (lambda m: m.double(), torch.float64),
    (lambda m: m.to('meta'), torch.float32),
], ids=['half', 'bfloat16', 'double', 'meta'])
def test_moving_and_casting(to, dtype):
    norm = RunningBatchNorm(3)
    norm(torch.randn(4, 3) + 5)
    moved = to(copy.deepcopy(norm))
    assert moved.means.dtype == moved.vars.dtype == dtype
    assert set(dict(moved.named_buffers())) == {'means', 'vars', 'counts'}
    assert moved.count == norm.count
    if moved.means.device.type == 'cpu': assert torch.equal(moved.means, norm.means.to(dtype))


# Gradients

def test_passes_in_any_order():
    torch.manual_seed(0)
    xs = [torch.randn(n, 3, 4, requires_grad=True) for n in (2, 5, 3)]

    def grads_in(order):
        norm = RunningBatchNorm(3)
        ys = [norm(x).pow(3).sum() for x in xs]
        grads = {i: torch.autograd.grad(ys[i], [xs[i], norm.mults]) for i in order}
        return [grads[i] for i in range(3)]

    norm = RunningBatchNorm(3)
    at_once = [torch.autograd.grad(norm(x).pow(3).sum(), [x, norm.mults]) for x in xs]
    for order in ([0, 1, 2], [2, 0, 1]):
        for later, sooner in zip(grads_in(order), at_once):
            for p, q in zip(later, sooner): assert torch.equal(p, q)


def test_one_graph_twice_gives_the_same_twice():
    x = torch.randn(2, 3, 4, requires_grad=True)
    y = RunningBatchNorm(3)(x).exp().sum()
    first, second = (torch.autograd.grad(y, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_only_what_is_asked_for_has_a_gradient():
    norm = RunningBatchNorm(3)
    x = torch.randn(4, 3, 5, 5)
    norm(x).sum().backward()
    assert norm.mults.grad is not None
    norm.requires_grad_(False)
    x.requires_grad_()
    norm(x).pow(3).sum().backward()
    assert x.grad.abs().sum() > 0
    with torch.no_grad(): assert not norm(x).requires_grad
    assert not norm(x.detach()).requires_grad
    y = RunningBatchNorm(3)(x).pow(3).sum()
    with pytest.raises(RuntimeError, match='no second derivative'):
        torch.autograd.grad(y, x, create_graph=True)


def as_is(t): return t


def channels_last(t): return t.contiguous(memory_format=torch.channels_last)


def reversed_strides(t): return t.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)


def transposed_maps(t): return t.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2)


def test_gradients_of_odd_layouts():
    torch.manual_seed(0)
    base = RunningBatchNorm(5)
    base(torch.randn(8, 5, 6, 6)*2)
    x, g = torch.randn(4, 5, 6, 6), torch.randn(4, 5, 6, 6)

    def grad(x, g):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(copy.deepcopy(base)(x), x, g)[0]

    plain = grad(x, g)
    for layout in (as_is, channels_last, reversed_strides):
        for layout_g in (as_is, channels_last, transposed_maps):
            close(grad(layout(x.clone()), layout_g(g)), plain, 1e-5)

    expanded = x.clone().requires_grad_()
    copy.deepcopy(base)(expanded).sum().backward()   # the gradient is one number, expanded
    close(expanded.grad, grad(x, torch.ones_like(x)), 1e-6)


class Ops(TorchDispatchMode):
    "Notes the names of the operations that are carried out"
    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


def test_nothing_waits_for_the_device():
    norm = RunningBatchNorm(3)
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    with Ops() as ops:
        for _ in range(3): norm(x).sum().backward()
        norm.eval()(x)
    assert any('batch_norm' in name for name in ops.names)
    waits = ('_local_scalar_dense', 'item', 'nonzero', 'is_nonzero', 'equal')
    assert not [name for name in ops.names if any(wait in name for wait in waits)], ops.names
    # a tensor on `meta` has no numbers that could be looked at
    x = torch.randn(2, 3, 4, 4, device='meta', requires_grad=True)
    RunningBatchNorm(3).to('meta')(x).sum().backward()


# Computed again, compiled

def block(norm):
    "Convolutions around `norm`, which has seen a batch"
    torch.manual_seed(0)
    norm(torch.randn(4, 3, 2, 2)*3 + 1)
    return nn.Sequential(nn.Conv2d(3, 3, 1), norm, nn.ReLU(), nn.Conv2d(3, 3, 1))


def once(f, x): return f(x)


def gradients(norm, compute, order):
    """The gradients of three batches and of a block with `norm`, and the norm's state after them.

    All forward passes come before the backward passes, which go in an order of their own.
    """
    f = block(norm)
    xs = [torch.randn(n, 3, 2, 2, requires_grad=True) for n in (4, 2, 7)]
    losses = [compute(f, x).square().sum() for x in xs]
    for i in order: losses[i].backward()
    grads = [t.grad for t in (*xs, *f.parameters())]
    return [*grads, *[b for b in norm.state_dict().values() if isinstance(b, torch.Tensor)]]


@pytest.mark.parametrize('make', [BatchNorm, RunningBatchNorm])
@pytest.mark.parametrize('reentrant', [True, False])
@pytest.mark.parametrize('order', [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_a_pass_that_is_computed_again(make, reentrant, order):
    "The same gradients, and statistics that have moved once"
    again = partial(checkpoint, use_reentrant=reentrant)
    plain, twice = (gradients(make(3), compute, order) for compute in (once, again))
    for a, b in zip(plain, twice): torch.testing.assert_close(a, b)


@pytest.mark.parametrize('equal', [True, False])
def test_passes_that_are_computed_again(equal):
    "Of two equal batches, whose passes had different statistics; each of two others twice"
    def grads(compute):
        f = block(RunningBatchNorm(3))
        xs = [torch.randn(4, 3, 2, 2, requires_grad=True) for _ in range(2)]
        losses = [compute(f, xs[0 if equal else i]).square().sum() for i in range(2)]
        inputs = [xs[0], *f.parameters()]
        found = [torch.autograd.grad(losses[i], inputs, retain_graph=True, allow_unused=True)
                 for i in ((1, 0) if equal else (1, 0, 0, 1))]
        return [g for gs in found for g in gs if g is not None]
    again = partial(checkpoint, use_reentrant=False)
    for a, b in zip(grads(once), grads(again)): torch.testing.assert_close(a, b)


def test_a_pass_too_long_ago_to_be_computed_again():
    f = block(RunningBatchNorm(3))
    x = torch.randn(2, 3, 2, 2, requires_grad=True)
    y = checkpoint(f, x, use_reentrant=False)
    for _ in range(8): f(torch.randn(2, 3, 2, 2))
    with pytest.raises(RuntimeError, match='cannot compute this batch again.*Call backward sooner'):
        y.sum().backward()


@pytest.mark.parametrize('transform, match', [
    (lambda f, x: torch.func.grad(lambda x: f(x).sum())(x), 'torch.func and torch.jit'),
    (lambda f, x: torch.func.vmap(f)(x[None]), 'torch.func and torch.jit'),
    (lambda f, x: torch.jit.trace(f, x), 'torch.func and torch.jit'),
    (lambda f, x: checkpoint(f, x, use_reentrant=False, context_fn=selective).sum().backward(),
     'leave out context_fn'),
], ids=['grad', 'vmap', 'trace', 'selective'])
def test_a_transform_that_cannot_be_followed(transform, match):
    "It is refused by name in training, and works in evaluation mode"
    norm = RunningBatchNorm(3)
    x = torch.randn(4, 3, 2, 2, requires_grad=match != 'torch.func and torch.jit')
    with pytest.raises(RuntimeError, match=f'RunningBatchNorm .*{match}'): transform(norm, x)
    transform(norm.eval(), x)


def selective():
    keep = [torch.ops.aten.convolution.default]
    return create_selective_checkpoint_contexts(keep)


@pytest.mark.parametrize('shape', [(16, 4), (16, 4, 3, 3)])
def test_compiled_once(shape):
    "In training, and once in evaluation"
    torch._dynamo.reset()
    counters.clear()
    norm = torch.compile(RunningBatchNorm(4), backend='aot_eager', fullgraph=True)
    for _ in range(12): norm(torch.randn(shape)).sum().backward()
    for _ in range(3): norm.eval()(torch.randn(shape))
    assert counters['stats']['unique_graphs'] == 2


def test_compiled_for_any_batch_size():
    "Twice, as PyTorch's batch norm: once for the first size, and once for all others"
    def n_graphs(norm):
        torch._dynamo.reset()
        counters.clear()
        compiled = torch.compile(norm, backend='aot_eager', fullgraph=True)
        for n in (8, 8, 5, 3, 16, 2): compiled(torch.randn(n, 4, 3, 3)).sum().backward()
        return counters['stats']['unique_graphs']
    assert n_graphs(RunningBatchNorm(4)) == n_graphs(nn.BatchNorm2d(4)) == 2


def test_compiled_numbers_are_the_same():
    "Also of half precision, of other batch sizes, and of a model that is compiled now and then"
    torch.manual_seed(0)
    torch._dynamo.reset()
    norm = RunningBatchNorm(3)
    twin = copy.deepcopy(norm)
    compiled = torch.compile(twin, backend='aot_eager')
    for i, n in enumerate((4, 2, 7, 1, 4, 4)):
        x = torch.randn(n, 3, 4)*2 + 1
        if i == 5: x = x.half()
        inputs = [x.clone().requires_grad_() for _ in range(2)]
        outputs = [norm(inputs[0]), (twin if i == 3 else compiled)(inputs[1])]
        torch.testing.assert_close(*outputs)
        for y in outputs: y.pow(3).sum().backward()
        torch.testing.assert_close(*[xi.grad for xi in inputs], rtol=1e-3, atol=1e-4)
        assert twin.count == pytest.approx(norm.count, rel=1e-6)
    torch.testing.assert_close(twin.state_dict(), norm.state_dict(), rtol=1e-5, atol=1e-5)


class Checkpointed(nn.Module):
    "A block with a norm, computed again in the backward pass"
    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, x): return checkpoint(self.f, x, use_reentrant=False)


@pytest.mark.parametrize('make', [
    lambda f: torch.compile(Checkpointed(f), backend='aot_eager'),
    lambda f: Checkpointed(torch.compile(f, backend='aot_eager')),
], ids=['compiled outside', 'compiled inside'])
def test_compiled_and_computed_again(make):
    "It says that it cannot, where a gradient would be wrong"
    torch._dynamo.reset()
    y = make(block(RunningBatchNorm(3)))(torch.randn(4, 3, 2, 2, requires_grad=True))
    with pytest.raises(RuntimeError, match='leave out torch.compile, or torch.utils.checkpoint'):
        y.sum().backward()


def test_a_state_from_before_the_count_was_a_buffer():
    norm = RunningBatchNorm(3)
    for n in (2, 5): norm(torch.randn(n, 3))
    state = norm.state_dict()
    assert set(state) == {'mults', 'adds', 'means', 'vars', '_extra_state'}
    state['_extra_state'] = torch.tensor(2.5, dtype=torch.float64)
    norm.load_state_dict(state)
    assert norm.count == norm.counts.item() == 2.5
    assert pickle.loads(pickle.dumps(norm)).count == 2.5
    norm.counts.mul_(2)   # by somebody else, such as an average of buffers
    assert norm.count == 5
    assert norm.half().count == 5
    assert norm.counts.dtype == torch.float32
    with torch.inference_mode(): assert copy.deepcopy(norm).count == 5


def test_a_copy_does_not_keep_what_passes_have_used():
    norm = RunningBatchNorm(3)
    size = len(pickle.dumps(norm))
    for _ in range(5): norm(torch.randn(4, 3))
    assert len(pickle.dumps(norm)) < size + 200
    y = copy.deepcopy(norm)(torch.randn(4, 3))
    assert y.isfinite().all()


# Choosing, refusing, drawing

@pytest.mark.parametrize('name,kind', [
    ('batch', nn.BatchNorm2d),
    ('running', RunningBatchNorm),
    ('layer', nn.GroupNorm),
    ('instance', nn.InstanceNorm2d),
    ('group', nn.GroupNorm),
])
def test_layers_with_a_norm(name, kind):
    for norm_first, kinds in (
        (False, [nn.Conv2d, GeneralRelu, kind]),
        (True, [nn.Conv2d, kind, GeneralRelu]),
    ):
        layer = conv_layer(3, 6, 5, 1, norm=name, norm_first=norm_first, sub=0.4)
        assert [type(m) for m in layer] == kinds
        assert layer[0].bias is None
        assert layer(torch.randn(2, 3, 7, 7)).shape == (2, 6, 7, 7)


def test_choosing_a_norm():
    assert isinstance(conv_layer(1, 2)[2], nn.BatchNorm2d)
    for none in (dict(bn=False), dict(norm=None), dict(norm='none'), dict(bn=False, norm='group')):
        layer = conv_layer(1, 2, **none)
        assert len(layer) == 2
        assert layer[0].bias is not None
    assert get_norm(lambda nf: LayerNorm(), 3).nf is None
    assert get_norm('group', 7).num_groups == 1
    says = "no norm called 'Batch': choose one of batch, running, layer, instance, group, none"
    with pytest.raises(ValueError, match=says): conv_layer(1, 2, norm='Batch')
    with pytest.raises(TypeError, match='not 7'): get_norm(7, 3)


@pytest.mark.parametrize('make,message', [
    (lambda: BatchNorm(0), 'BatchNorm: nf is a number of channels'),
    (lambda: RunningBatchNorm(2.5), 'RunningBatchNorm: nf is a number of channels'),
    (lambda: GroupNorm(0, 4), 'num_groups'),
    (lambda: GroupNorm(3, 4), "4 channels can't be divided into 3 groups"),
    (lambda: LayerNorm(0), 'nf is a number'),
    (lambda: RunningBatchNorm(4, mom=1.5), 'mom has to be above 0 and at most 1'),
    (lambda: BatchNorm(3)(torch.randn(4, 2, 5)),
     r'takes a batch of shape \(N, 3, ...\), but got \(4, 2, 5\)'),
    (lambda: RunningBatchNorm(3)(torch.randn(3)), r'\(N, 3, ...\)'),
    (lambda: BatchNorm(3)(torch.randn(1, 3)),
     r'a variance over 1 number means nothing.*get_dls\(\.\.\., drop_last=True\)'),
    (lambda: InstanceNorm(3)(torch.randn(9, 3, 1)), 'a single number there'),
])
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message): make()


def test_refused_input_changes_nothing():
    for norm in (BatchNorm(3), RunningBatchNorm(3)):
        before = copy.deepcopy(norm.state_dict())
        with pytest.raises(ValueError): norm(torch.randn(4, 2, 5, 5))
        assert unchanged(norm, before)


def test_drawing_any_norm():
    import matplotlib.pyplot as plt
    norms = {'mine': lambda nf: nn.GroupNorm(2, nf), 'running': RunningBatchNorm}
    earlier = plt.figure()
    axs = plot_norms(norms, shape=(2, 4, 2, 2))
    assert axs[0].figure is not earlier
    assert not earlier.axes
    assert [ax.get_title() for ax in axs] == ['mine', 'running']
    plt.close('all')


def test_init_cnn_reaches_every_convolution():
    torch.manual_seed(0)
    deep_inside = nn.Sequential(nn.Sequential(conv_layer(32, 64, norm='running')), nn.Identity())
    in_a_list = nn.ModuleList([conv_layer(64, 64, bn=False)])
    model = nn.ModuleDict(dict(a=deep_inside, b=in_a_list))
    for p in model.parameters(): p.data.fill_(7.)
    init_cnn(model)
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    gains = [conv.weight.std().item()*math.sqrt(conv.weight[0].numel()) for conv in convs]
    assert gains == pytest.approx([1, math.sqrt(2)], rel=0.03)
    assert (convs[1].bias == 0).all()
