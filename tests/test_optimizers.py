"Optimizers: equal to PyTorch's, usable wherever those are, errors before anything has changed."
import copy
import io
import pickle
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn, optim

from minifastai.checkpoint import CheckpointCallback, find_checkpoint
from minifastai.data import DataBunch
from minifastai.learner import Learner, Runner
from minifastai.lr_finder import LR_Find
from minifastai.optimizers import (
    adam_opt, adam_step, AverageGrad, AverageSqrGrad, debias, l2_reg, lamb, lamb_step, lars,
    lars_step, momentum_step, Optimizer, sgd_mom_opt, sgd_opt, sgd_step, Stat, StatefulOptimizer,
    StepCount, weight_decay)
from minifastai.recorder import Recorder
from minifastai.schedules import combine_scheds, LRSchedulerCallback, ParamScheduler, sched_cos


def adam_stats(): return [AverageGrad(dampening=True), AverageSqrGrad(), StepCount()]


LIKE_OURS = dict(betas=(0.9, 0.99), eps=1e-5)
l2_adam = partial(StatefulOptimizer, steppers=[l2_reg, adam_step], stats=adam_stats())
l2_momentum = partial(StatefulOptimizer, steppers=[l2_reg, momentum_step], stats=AverageGrad())
damped = partial(StatefulOptimizer, steppers=[l2_reg, momentum_step],
                 stats=AverageGrad(0.3, first_grad=True), wd=0.1)
PAIRS = {
    'sgd': (sgd_opt, optim.SGD),
    'sgd l2': (partial(Optimizer, steppers=[l2_reg, sgd_step], wd=0.1),
               partial(optim.SGD, weight_decay=0.1)),
    'sgd decay': (partial(sgd_opt, wd=0.1), partial(optim.SGD, weight_decay=0.1)),
    'momentum': (partial(sgd_mom_opt, wd=0), partial(optim.SGD, momentum=0.9)),
    'momentum l2': (partial(l2_momentum, wd=0.1, mom=0.8),
                    partial(optim.SGD, weight_decay=0.1, momentum=0.8)),
    'dampening': (damped, partial(optim.SGD, momentum=0.9, dampening=0.3, weight_decay=0.1)),
    'adam': (adam_opt(), partial(optim.Adam, **LIKE_OURS)),
    'adam l2': (partial(l2_adam, wd=0.1), partial(optim.Adam, weight_decay=0.1, **LIKE_OURS)),
    'adamw': (adam_opt(wd=0.1), partial(optim.AdamW, weight_decay=0.1, **LIKE_OURS)),
    'pytorch defaults': (adam_opt(sqr_mom=0.999, eps=1e-8, wd=0.01), optim.AdamW),
}


def problem(make_opt, dtype=torch.float32, n=100, seed=0, sched=None):
    "Take `n` steps with random gradients; return the parameters, in one tensor."
    g = torch.Generator().manual_seed(seed)
    def draw(shape): return torch.randn(shape, generator=g).to(dtype)
    shapes = (3, 4), (5,), (), (0,), (2, 3, 3, 3), (7,)
    ps = [draw(shape).requires_grad_() for shape in shapes]
    with torch.no_grad(): ps[-1].zero_()
    opt = make_opt([dict(params=ps[:3]), dict(params=ps[3:], lr=0.02)])
    lr_sched = sched(opt) if sched else None
    for i in range(n):
        for p in ps: p.grad = draw(p.shape)
        if i%3: ps[1].grad = None
        opt.step()
        if lr_sched: lr_sched.step()
    return torch.cat([p.detach().flatten() for p in ps])


def close(a, b, eps=1e-6): assert (a - b).abs().max() <= eps


# Equal to PyTorch's

@pytest.mark.parametrize('foreach', [True, False])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('name', PAIRS)
def test_equal_to_pytorch_over_100_steps(name, dtype, foreach):
    ours, theirs = PAIRS[name]
    sched = partial(optim.lr_scheduler.CyclicLR, base_lr=0.001, max_lr=0.02, step_size_up=15,
                    cycle_momentum=False)
    for seed in range(3):
        a, b = (problem(partial(make, lr=0.01), dtype, seed=seed, sched=sched)
                for make in (ours, partial(theirs, foreach=foreach)))
        # weight decay and L2 are the same for SGD, but not rounded alike
        close(a, b, 1e-5 if name == 'sgd decay' and dtype == torch.float32 else 1e-6)


@pytest.mark.parametrize('name', [k for k in PAIRS if k != 'sgd decay'])
def test_bfloat16_is_rounded_as_in_pytorchs_foreach(name):
    ours, theirs = PAIRS[name]
    a, b = (problem(partial(make, lr=0.01), torch.bfloat16)
            for make in (ours, partial(theirs, foreach=True)))
    assert torch.equal(a, b)


def one_by_one(stepper):
    "The same stepper without its form for many parameters"
    def f(p, **kwargs): return stepper(p, **kwargs)
    f._defaults = stepper._defaults if hasattr(stepper, '_defaults') else {}
    if hasattr(stepper, '_before_stats'): f._before_stats = True
    return f


class OneByOne(AverageGrad):
    def update(self, p, state, mom, **kwargs): return super().update(p, state, mom, **kwargs)


@pytest.mark.parametrize('steppers, stats', [
    ([sgd_step], []), ([weight_decay, sgd_step], []), ([l2_reg, sgd_step], []),
    ([l2_reg, momentum_step], [AverageGrad()]), ([lars_step, momentum_step], [AverageGrad(True)]),
    ([momentum_step], [AverageGrad(0.3, first_grad=True)]),
    ([l2_reg, adam_step], adam_stats()), ([lamb_step], adam_stats()),
    ([adam_step], [AverageGrad(), AverageSqrGrad(dampening=False), StepCount()])])
@pytest.mark.parametrize('which', ['steppers', 'stats', 'both'])
def test_one_by_one_or_all_at_once(steppers, stats, which):
    at_once = partial(StatefulOptimizer, steppers=steppers, stats=stats, lr=0.01)
    if 'wd' in at_once([torch.ones(1)]).defaults: at_once = partial(at_once, wd=0.1)
    slow_steppers, slow_stats = list(steppers), list(stats)
    if which != 'stats': slow_steppers = [one_by_one(f) for f in steppers]
    if which != 'steppers':
        slow_stats = [OneByOne(s.dampening, first_grad=s.first_grad)
                      if isinstance(s, AverageGrad) else s for s in stats]
    slowly = partial(at_once, steppers=slow_steppers, stats=slow_stats)
    kw = dict(mom=0.9, sqr_mom=0.99) if len(stats) > 1 and which != 'stats' else {}
    close(problem(at_once, torch.float64), problem(partial(slowly, **kw), torch.float64))


def test_dampening_and_debiasing():
    a, b = (problem(partial(StatefulOptimizer, steppers=adam_step, lr=0.01, stats=[
        AverageGrad(damp), AverageSqrGrad(damp), StepCount()])) for damp in (True, False))
    close(a, b, 1e-5)   # debiasing undoes it
    assert debias(0.9, 0.1, 2) == pytest.approx(1 - 0.81)
    assert debias(0.9, 1., 2) == pytest.approx(1.9)


# LARS and LAMB, against other implementations

def lamb_by_the_paper(ps, grads, m, v, t, lr, wd, beta1=0.9, beta2=0.99, eps=1e-6):
    "arXiv 1904.00962, version 5, algorithm 2, in NumPy's way: no optimizer, no foreach, no debias"
    for i, (x, g) in enumerate(zip(ps, grads)):
        m[i] = beta1*m[i] + (1 - beta1)*g
        v[i] = beta2*v[i] + (1 - beta2)*g*g
        r = m[i]/(1 - beta1**t)/((v[i]/(1 - beta2**t))**0.5 + eps) + wd*x
        norm, r_norm = (x*x).sum()**0.5, (r*r).sum()**0.5
        ratio = norm/r_norm if norm > 0 and r_norm > 0 else 1.
        ps[i] = x - lr*ratio*r


def test_lamb_is_the_papers():
    g = torch.Generator().manual_seed(0)
    ps = [torch.randn(shape, generator=g, dtype=torch.float64) for shape in ((4, 3), (5,), ())]
    ps.append(torch.zeros(6, dtype=torch.float64))   # a bias
    ours = [p.clone().requires_grad_() for p in ps]
    opt = lamb(ours, lr=0.01, wd=0.1)
    m, v = ([torch.zeros_like(p) for p in ps] for _ in range(2))
    for t in range(1, 101):
        grads = [torch.randn(p.shape, generator=g, dtype=torch.float64) for p in ps]
        for p, grad in zip(ours, grads): p.grad = grad
        opt.step()
        lamb_by_the_paper(ps, grads, m, v, t, 0.01, 0.1)
        for p, q in zip(ours, ps): close(p, q, 1e-12)
    assert ps[-1].abs().min() > 0


def test_lars_is_the_papers():
    g = torch.Generator().manual_seed(0)
    ps = [torch.randn(shape, generator=g, dtype=torch.float64) for shape in ((4, 3), (5,))]
    ours = [p.clone().requires_grad_() for p in ps]
    opt = lars(ours, lr=3., wd=0.1, eta=0.01)
    velocity = [torch.zeros_like(p) for p in ps]
    for _ in range(100):
        for i, w in enumerate(ps):
            ours[i].grad = grad = torch.randn(w.shape, generator=g, dtype=torch.float64)
            local = 0.01*w.norm()/(grad.norm() + 0.1*w.norm())
            velocity[i] = 0.9*velocity[i] + 3.*local*(grad + 0.1*w)
            ps[i] = w - velocity[i]
        opt.step()
        for p, q in zip(ours, ps): close(p, q, 1e-12)


@pytest.mark.parametrize('make', [partial(lars, lr=0.1), partial(lamb, lr=0.1)])
def test_what_has_no_norm_moves_all_the_same(make):
    p = torch.zeros(3, requires_grad=True)
    q = torch.ones(3, requires_grad=True)   # with a gradient of 0
    opt = make([p, q])
    p.grad, q.grad = torch.ones(3), torch.zeros(3)
    opt.step()
    close(p, torch.full((3,), -0.1), 1e-5)
    assert torch.equal(q, torch.ones(3))


# The lesson's lines

def test_the_lessons_lines():
    model = nn.Linear(3, 2)
    sgd_opt = partial(Optimizer, steppers=[weight_decay, sgd_step])
    opt = sgd_opt(model.parameters(), lr=0.1)
    assert opt.hypers[0]['wd'] == 0. and opt.hypers[0]['lr'] == 0.1
    opt = sgd_opt(model.parameters(), lr=0.1, wd=1e-4)
    assert opt.hypers[0]['wd'] == 1e-4
    sgd_mom_opt = partial(StatefulOptimizer, steppers=[momentum_step, weight_decay],
                          stats=AverageGrad(), wd=0.01)
    lesson_lamb = partial(StatefulOptimizer, steppers=lamb_step,
                          stats=[AverageGrad(dampening=True), AverageSqrGrad(), StepCount()])
    for opt_func in (sgd_mom_opt, adam_opt(), adam_opt(xtra_step=weight_decay), lesson_lamb):
        opt = opt_func([[model.weight], [model.bias]], lr=0.1)   # two groups
        assert len(opt.param_groups) == len(opt.hypers) == 2
        model(torch.randn(4, 3)).sum().backward()
        before = model.weight.detach().clone()
        opt.step()
        opt.zero_grad()
        assert not torch.equal(before, model.weight)


def lesson_sgd_step(p, lr, **kwargs):
    p.data.add_(-lr, p.grad.data)
    return p


class LessonAverage(Stat):
    _defaults = dict(mom=0.9)
    def init_state(self, p): return {'grad_avg': torch.zeros_like(p.grad.data)}
    def update(self, p, state, mom, **kwargs):
        state['grad_avg'].mul_(mom).add_(p.grad.data)
        return state


def lesson_momentum_step(p, lr, grad_avg, **kwargs):
    p.data.add_(-lr, grad_avg)
    return p


@pytest.mark.filterwarnings('ignore:This overload of add_ is deprecated')
def test_parts_as_the_lesson_writes_them():
    close(problem(partial(Optimizer, steppers=[lesson_sgd_step], lr=0.01)),
          problem(partial(sgd_opt, lr=0.01)))
    lesson = partial(StatefulOptimizer, steppers=lesson_momentum_step, stats=LessonAverage())
    for opt_func in (lesson, partial(lesson, steppers=momentum_step)):
        close(problem(partial(opt_func, lr=0.01)), problem(partial(sgd_mom_opt, wd=0, lr=0.01)))


def test_other_forms_of_parts():
    def plain(p, lr): p.data.sub_(p.grad, alpha=lr)   # no `**kwargs`, and returns nothing
    close(problem(partial(Optimizer, steppers=[plain, weight_decay], lr=0.01)),
          problem(partial(sgd_opt, lr=0.01)))
    close(problem(partial(Optimizer, steppers=[partial(l2_reg, wd=0.1), sgd_step], lr=0.01)),
          problem(partial(Optimizer, steppers=[l2_reg, sgd_step], wd=0.1, lr=0.01)))

    class New(Stat):   # returns a new state
        def init_state(self, p): return dict(n=0)
        def update(self, p, state, **kwargs): return dict(n=state['n'] + 1)
    p = torch.ones(2, requires_grad=True)
    opt = StatefulOptimizer([p], sgd_step, New(), lr=0.1)
    for _ in range(3):
        p.grad = torch.ones(2)
        opt.step()
    assert opt.state[p] == dict(n=3)

    def late(p, **kwargs): order.append('late')
    def soon(p, **kwargs): order.append('soon')
    late._order, order = 1, []
    p.grad = torch.ones(2)
    Optimizer([p], [late, soon], lr=0.1).step()
    assert order == ['soon', 'late']


def test_gradients_stay_as_they_are():
    p = torch.ones(2, requires_grad=True)
    p.grad = grad = torch.ones(2)
    for steppers in ([l2_reg, sgd_step], [one_by_one(l2_reg), sgd_step]):
        Optimizer([p], steppers, lr=0.1, wd=1.).step()
        assert p.grad is grad and torch.equal(grad, torch.ones(2))

    def broken(p, **kwargs): raise OSError('broken')
    broken._before_stats = True
    with pytest.raises(OSError): Optimizer([p], [broken, sgd_step], lr=0.1).step()
    assert p.grad is grad


def test_hypers_are_a_view():
    p, q = (torch.ones(2, requires_grad=True) for _ in range(2))
    opt = Optimizer([dict(params=[p], lr=1.), dict(params=[q])], [weight_decay, sgd_step], lr=0.1)
    assert opt.hypers == [dict(lr=1., wd=0.), dict(lr=0.1, wd=0.)]
    assert [dict(**h)['lr'] for h in opt.hypers] == [1., 0.1]
    opt.hypers[0]['lr'] = 2.
    opt.param_groups[1]['wd'] = 3.
    assert (opt.param_groups[0]['lr'], opt.hypers[1]['wd']) == (2., 3.)
    assert 'params' not in opt.hypers[0] and len(opt.hypers[0]) == 2
    with pytest.raises(KeyError, match="Did you mean 'lr'"): opt.hypers[0]['lrr'] = 1
    with pytest.raises(TypeError, match="can't be deleted"): del opt.hypers[0]['lr']
    p.grad = torch.ones(2)
    assert [(id(a), h['lr']) for a, h in opt.grad_params()] == [(id(p), 2.)]


# A real PyTorch optimizer

def learner(opt_func, seed=0, **kwargs):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    batches = [(torch.randn(6, 4), torch.randint(3, (6,))) for _ in range(5)]
    return Learner(model, opt_func(model.parameters(), **kwargs), F.cross_entropy,
                   DataBunch(batches, batches[:1], 3))


MAKERS = {'sgd': sgd_opt, 'momentum': sgd_mom_opt, 'adam': adam_opt(wd=0.1), 'lars': lars,
          'lamb': lamb}


def weights(learn): return torch.cat([p.detach().flatten() for p in learn.model.parameters()])


@pytest.mark.parametrize('name', MAKERS)
def test_a_checkpoint_goes_on_bit_for_bit(name, tmp_path):
    sched = combine_scheds([0.3, 0.7], [sched_cos(0.01, 0.1), sched_cos(0.1, 0.01)])
    def cbs(*more): return Runner([ParamScheduler('lr', sched), *more])
    whole = learner(MAKERS[name], lr=0.1)
    cbs().fit(4, whole)

    class Stop(ParamScheduler):
        def begin_batch(self):
            if self.n_iter == 13: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        cbs(CheckpointCallback(tmp_path), Stop('wd', sched_cos(0, 0))).fit(
            4, learner(MAKERS[name], lr=0.1))
    assert find_checkpoint(tmp_path)
    resumed = learner(MAKERS[name], seed=1, lr=0.5)
    resumed.data = whole.data
    cbs(CheckpointCallback(tmp_path, resume=True)).fit(4, resumed)
    assert torch.equal(weights(whole), weights(resumed))


@pytest.mark.parametrize('name', MAKERS)
def test_state_dict_copies_and_pickles(name):
    learn = learner(MAKERS[name], lr=0.1)
    Runner().fit(1, learn)
    saved = io.BytesIO()
    torch.save(learn.opt.state_dict(), saved)
    saved.seek(0)
    loaded = copy.deepcopy(learn)
    fresh = MAKERS[name](loaded.model.parameters(), lr=3.)
    fresh.load_state_dict(torch.load(saved, weights_only=True))
    loaded.opt = fresh
    copied = copy.deepcopy(learn)
    pickled = pickle.loads(pickle.dumps(learn))
    for o in (learn, loaded, copied, pickled): Runner().fit(1, o)
    for o in (loaded, copied, pickled): assert torch.equal(weights(o), weights(learn))
    pickled.opt.add_param_group(dict(params=[torch.ones(1, requires_grad=True)]))
    assert 'differentiable' not in pickled.opt.hypers[-1]
    assert repr(pickled.opt).startswith(repr(learn.opt))


@pytest.mark.parametrize('sched', [
    partial(optim.lr_scheduler.StepLR, step_size=2), partial(optim.lr_scheduler.LinearLR),
    partial(optim.lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=10, cycle_momentum=False),
    partial(optim.lr_scheduler.LambdaLR, lr_lambda=lambda i: 0.9**i),
    partial(optim.lr_scheduler.CosineAnnealingWarmRestarts, T_0=3)])
def test_pytorchs_schedulers(sched):
    learns = [learner(opt_func, lr=0.1) for opt_func in (sgd_opt, optim.SGD)]
    for learn in learns: Runner([LRSchedulerCallback(sched)]).fit(2, learn)
    close(*map(weights, learns))


def test_our_callbacks():
    learn = learner(adam_opt(), lr=0.1)
    run = Runner([Recorder(), ParamScheduler('mom', sched_cos(0.8, 0.9))])
    run.fit(1, learn)
    assert 0.8 < learn.opt.hypers[0]['mom'] < 0.9
    assert run.recorder.lrs == [[0.1]*5]
    before = weights(learn)
    Runner([LR_Find(max_iter=5)]).fit(1, learn)
    assert torch.equal(before, weights(learn))


def test_closures_hooks_and_zero_grad():
    p = torch.ones(2, requires_grad=True)
    opt = sgd_opt([p], lr=0.1)
    called = []
    opt.register_step_pre_hook(lambda *args: called.append('before'))
    opt.register_step_post_hook(lambda *args: called.append('after'))

    def closure():
        opt.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss
    assert opt.step(closure).item() == 2 and called == ['before', 'after']
    close(p, torch.full((2,), 0.8))
    opt.zero_grad(set_to_none=False)
    assert torch.equal(p.grad, torch.zeros(2))
    opt.zero_grad()
    assert p.grad is None
    assert opt.step() is None   # no gradients, nothing to do


def test_gradient_scaler():
    found = []
    for opt_func in (adam_opt(), partial(optim.Adam, **LIKE_OURS)):
        p = torch.ones(3, requires_grad=True)
        opt = opt_func([p], lr=0.1)
        scaler = torch.amp.GradScaler('cpu', init_scale=2.**8)
        for i in range(4):
            opt.zero_grad()
            scaler.scale((p**2).sum()*(float('inf') if i == 1 else 1)).backward()
            scaler.step(opt)
            scaler.update()
        found.append(p.detach())
    close(*found)


def test_param_groups():
    lin = nn.Linear(2, 2)
    opt = adam_opt()(lin.named_parameters(), lr=0.1)
    assert opt.param_groups[0]['param_names'] == ['weight', 'bias']
    assert set(opt.hypers[0]) == {'lr', 'mom', 'sqr_mom', 'eps', 'wd'}
    more = [torch.ones(1, requires_grad=True)]
    with pytest.raises(ValueError, match='with/without names'):
        opt.add_param_group(dict(params=more))
    opt = adam_opt()([dict(params=lin.parameters(), lr=torch.tensor(0.1), name='body')], lr=0.2)
    opt.add_param_group(dict(params=more[0], wd=0.5))
    lin(torch.ones(1, 2)).sum().backward()
    more[0].grad = torch.ones(1)
    opt.step()
    assert [pg['lr'] for pg in opt.param_groups] == [torch.tensor(0.1), 0.2]
    opt.hypers[0]['lr'] = 0.3   # fills the tensor
    assert opt.param_groups[0]['lr'] == torch.tensor(0.3)
    assert opt.param_groups[0]['name'] == 'body'


# Errors

P = [torch.ones(3, requires_grad=True)]


@pytest.mark.parametrize('make, message', [
    (lambda: adam_opt(mom_sqr=0.9)(P, lr=0.1), "takes 'mom_sqr'. Did you mean 'sqr_mom'"),
    (lambda: sgd_opt(P, lr=0.1, weight_decay=0.1), "takes 'weight_decay'"),
    (lambda: sgd_opt([dict(params=P, lrr=1.)], lr=0.1), "Did you mean 'lr'"),
    (lambda: sgd_opt(P), "weight_decay needs lr: pass a value"),
    (lambda: sgd_opt(P, lr=-0.1), "lr has to be at least 0, not -0.1"),
    (lambda: sgd_opt(P, lr=float('nan')), "lr has to be at least 0, not nan"),
    (lambda: sgd_opt(P, lr=torch.tensor(float('inf'))), "lr has to be at least 0"),
    (lambda: sgd_opt(P, lr='0.1a'), "lr has to be a number, not '0.1a'"),
    (lambda: sgd_opt(P, lr=None), "lr has to be a number, not None"),
    (lambda: sgd_mom_opt(P, lr=0.1, mom=1.), "mom has to be at least 0 and below 1"),
    (lambda: Optimizer(P, adam_step, lr=0.1), "use a StatefulOptimizer, with AverageGrad()"),
    (lambda: StatefulOptimizer(P, adam_step, [AverageGrad(), StepCount()], lr=0.1),
     "adam_step needs sqr_mom, sqr_damp, sqr_avg: add AverageSqrGrad() to stats"),
    (lambda: StatefulOptimizer(P, lamb_step, adam_stats()[:2], lr=0.1),
     "lamb_step needs step: add StepCount() to stats"),
    (lambda: StatefulOptimizer(P, sgd_step, [AverageGrad(), AverageGrad(True)], lr=0.1),
     "both keep grad_avg"),
    (lambda: StatefulOptimizer(P, sgd_step, StepCount, lr=0.1), "an object such as StepCount()"),
    (lambda: Optimizer(P, StepCount(), lr=0.1), "a stepper is a function"),
    (lambda: Optimizer(P, Optimizer, lr=0.1), "a stepper is a function"),
    (lambda: Optimizer(P, [], lr=0.1), "no steppers"),
    (lambda: sgd_opt([], lr=0.1), "no parameters"),
    (lambda: sgd_opt(P[0], lr=0.1), "takes a list of parameters, not a tensor"),
    (lambda: sgd_opt(P*2, lr=0.1), "the same parameter twice"),
    (lambda: sgd_opt([P, P], lr=0.1), "more than one parameter group"),
    (lambda: sgd_opt(set(P), lr=0.1), "not a set"),
    (lambda: sgd_opt([3], lr=0.1), "can only optimize Tensors"),
    (lambda: sgd_opt([torch.ones(2, dtype=torch.cfloat)], lr=0.1), "complex numbers"),
])
def test_errors_when_it_is_made(make, message):
    with pytest.raises((TypeError, ValueError)) as e: make()
    assert message in str(e.value)


def test_an_error_leaves_everything_as_it_was():
    p, q = (torch.ones(2, requires_grad=True) for _ in range(2))
    opt = adam_opt()([p], lr=0.1)
    for group in (dict(params=[p]), dict(params=[q, q]), dict(params=[q], lr=-1)):
        with pytest.raises(ValueError): opt.add_param_group(group)
    assert len(opt.param_groups) == 1

    opt.add_param_group(dict(params=[q]))
    p.grad, q.grad = torch.ones(2), torch.ones(2).to_sparse()
    with pytest.raises(RuntimeError, match=r'\(2,\) in group 1 is sparse'): opt.step()
    assert torch.equal(p, torch.ones(2)) and not opt.state


def test_a_state_of_another_optimizer():
    p = torch.ones(2, requires_grad=True)
    p.grad = torch.ones(2)
    opts = optim.SGD([p], lr=0.1), sgd_opt([p], lr=0.1), sgd_mom_opt([p], lr=0.1)
    for opt in opts: opt.step()
    adam = adam_opt()([p], lr=0.1)
    for opt in opts:
        with pytest.raises(ValueError, match='another kind of optimizer'):
            adam.load_state_dict(opt.state_dict())
    assert not adam.state and adam.hypers[0]['mom'] == 0.9
    lacking = adam_opt()([p], lr=0.1)
    lacking.step()
    labelled = adam_opt()([dict(params=[p], label='all')], lr=0.2)
    labelled.load_state_dict(lacking.state_dict())   # a label isn't needed
    assert labelled.hypers[0]['lr'] == 0.1
    state = lacking.state_dict()
    del state['state'][0]['sqr_avg']
    with pytest.raises(ValueError, match='no entry sqr_avg'): adam.load_state_dict(state)
