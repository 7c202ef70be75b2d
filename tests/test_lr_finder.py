"The finder leaves no trace; schedules and recorder in odd cases."
import copy
import math
import pickle
import random
import warnings
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import make_callback, quiet_runner, tiny_learner, Tracer
from torch import nn, optim

from minifastai.data import DataBunch, Dataset, get_dls
from minifastai.callbacks import Callback, CancelBatchException, CancelTrainException
from minifastai.learner import Learner, Runner
from minifastai.metrics import accuracy, AvgStatsCallback
from minifastai.schedules import (
    combine_scheds, cos_1cycle_anneal, LRSchedulerCallback, ParamScheduler, sched_cos, sched_exp,
    sched_lin, sched_no)
from minifastai.recorder import Recorder
from minifastai.lr_finder import LR_Find, lr_find, LRFindResult

# these sweeps are about other things than the suggestion
pytestmark = pytest.mark.filterwarnings('ignore:lr_find. no suggestion')

# --- the finder leaves no trace


class Noisy(nn.Module):
    "Uses every source of random numbers and every kind of state there is"
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 8)
        self.bn = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.3)
        self.frozen = nn.Linear(8, 8).eval()
        self.out = nn.Linear(8, 3)
        self.register_buffer('seen', torch.zeros(()), persistent=False)

    def forward(self, x):
        self.seen += len(x)
        x = self.drop(self.bn(self.lin(x))) + random.random()*0.1 + np.random.rand()*0.1
        return self.out(x + self.frozen(x))


def seed_all(seed):
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def noisy_learner(opt_func, own_generator=False):
    seed_all(0)
    ds = Dataset(torch.randn(60, 4), torch.randint(3, (60,)))
    model = Noisy()
    groups = [
        {'params': [*model.lin.parameters(), *model.bn.parameters()], 'lr': 0.01},
        {'params': model.out.parameters(), 'lr': 0.02},
    ]
    generator = torch.Generator().manual_seed(1) if own_generator else None
    data = DataBunch(*get_dls(ds, ds, 20, generator=generator), 3)
    learn = Learner(model, opt_func(groups), F.cross_entropy, data)
    Runner().fit(1, learn)
    return learn


def everything(learn):
    "All state, as comparable values"
    model, opt = learn.model, learn.opt
    tensors = {k: v.clone() for k, v in model.state_dict().items()}
    tensors['seen'] = model.seen.clone()
    tensors['rng'] = torch.get_rng_state()
    for i, state in enumerate(opt.state.values()):
        for k, v in state.items():
            if v is not None: tensors[f'{i} {k}'] = torch.as_tensor(v).clone()

    generator = learn.data.train_dl.sampler.generator
    rest = {
        'modes': [m.training for m in model.modules()],
        'groups': [{k: v for k, v in pg.items() if k != 'params'} for pg in opt.param_groups],
        'gradients': [None if p.grad is None else p.grad.tolist() for p in model.parameters()],
        'random': random.getstate(),
        'numpy': np.random.get_state()[1].tolist(),
        'generator': None if generator is None else generator.get_state().tolist(),
    }
    return tensors, rest


def same(a, b):
    (tensors, rest), (other_tensors, other_rest) = a, b
    if tensors.keys() != other_tensors.keys() or rest != other_rest: return False
    return all(torch.equal(tensors[k], other_tensors[k]) for k in tensors)


OPTS = [
    partial(optim.SGD, lr=0.01, momentum=0.9),
    optim.AdamW,
    partial(optim.Adam, amsgrad=True),
    partial(optim.RMSprop, centered=True),
]


@pytest.mark.parametrize('generator', [False, True])
@pytest.mark.parametrize('opt_func', OPTS)
def test_no_trace(opt_func, generator):
    learn = noisy_learner(opt_func, generator)
    for p in learn.model.frozen.parameters(): p.grad = torch.ones_like(p)
    def objects(): return [id(t) for t in [*learn.model.parameters(), *learn.model.buffers()]]
    objects_before = objects()
    before = everything(learn)
    found = lr_find(learn, max_iter=20, max_lr=1.)
    assert same(before, everything(learn))
    assert objects() == objects_before
    again = lr_find(learn, max_iter=20, max_lr=1.)
    assert found.losses == again.losses
    assert found.lrs == again.lrs


def test_training_goes_on_bit_by_bit():
    def trained(meddle):
        learn = noisy_learner(OPTS[0])
        meddle(learn)
        Runner().fit(2, learn)
        return everything(learn)
    without = trained(lambda learn: None)
    assert same(without, trained(lr_find))
    assert same(without, trained(lambda learn: Runner(LR_Find()).fit(1, learn)))
    assert not same(without, trained(lambda learn: Runner(LR_Find(restore=False)).fit(1, learn)))


@pytest.mark.parametrize('exc', [
    ValueError(), KeyboardInterrupt(), CancelTrainException(), CancelBatchException(),
])
@pytest.mark.parametrize('event', [
    'begin_fit', 'begin_batch', 'after_backward', 'after_step', 'after_batch', 'after_fit',
])
def test_no_trace_after_trouble(event, exc):
    class Trouble(Callback):
        _order = 2
        def _raise(self):
            if event.endswith('fit') or self.n_iter == 5: raise exc
    cb = Trouble()
    setattr(cb, event, cb._raise)
    learn = noisy_learner(OPTS[0])
    before = everything(learn)
    try: lr_find(learn, max_iter=10, cbs=cb)
    except (ValueError, KeyboardInterrupt, RuntimeError): pass
    assert same(before, everything(learn))


def test_restores_what_is_not_the_models_alone():
    "Parameters that only the optimizer knows, a loss with state, memory that is shared"
    temperature = nn.Parameter(torch.ones(()))

    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer('seen', torch.zeros(()))
        def forward(self, p, y):
            self.seen += 1
            return F.cross_entropy(p*temperature, y)

    model = nn.Linear(4, 3, bias=False)
    model.weight.data = torch.randn(12).view(3, 4)
    model.register_buffer('same', model.weight.detach())
    model.share_memory()
    before = model.weight.detach().clone()
    learn = tiny_learner(model=model, loss_func=Loss())
    learn.opt = optim.SGD([*model.parameters(), temperature], lr=0.1)
    first = lr_find(learn).losses
    assert temperature == 1
    assert learn.loss_func.seen == 0
    assert torch.equal(model.weight, before)
    assert model.same.data_ptr() == model.weight.data_ptr()
    assert model.weight.is_shared()
    assert lr_find(learn).losses == first


def test_with_workers_that_stay():
    "A loader that keeps its workers starts them anew after the finder"
    ds = torch.utils.data.TensorDataset(torch.randn(24, 4), torch.randint(3, (24,)))
    def after(meddle):
        torch.manual_seed(5)
        dl = torch.utils.data.DataLoader(ds, 8, shuffle=True, num_workers=1,
                                         persistent_workers=True)
        learn = tiny_learner()
        learn.data = DataBunch(dl)
        meddle(learn)
        Runner().fit(1, learn)
        dl._iterator = None   # ends the workers; the garbage collector would wait 5 s for each
        return learn.model.weight.detach()
    assert torch.equal(after(lambda learn: None), after(lambda learn: lr_find(learn, max_iter=5)))


def test_random_numbers_of_a_gpu_that_is_first_used_by_the_finder(monkeypatch):
    "As if it had not been used: seeded with the seed that it would have been seeded with"
    seeded = []
    learn = tiny_learner()
    class Uses(Callback):
        def begin_fit(self): monkeypatch.setattr(torch.cuda, 'is_initialized', lambda: True)
    monkeypatch.setattr(torch.cuda, 'is_initialized', lambda: False)
    monkeypatch.setattr(torch.cuda, 'manual_seed_all', seeded.append)
    torch.manual_seed(77)
    seeded.clear()
    lr_find(learn, cbs=Uses(), max_iter=5)
    assert seeded == [77]


def test_ctrl_c_while_restoring_waits(monkeypatch):
    from minifastai import lr_finder
    learn = tiny_learner(opt_func=partial(optim.SGD, lr=0.1, momentum=0.9))
    before = copy.deepcopy(learn.model.state_dict())
    restore = lr_finder._Snapshot._restore
    calls = []
    def interrupted(self):
        calls.append(1)
        if len(calls) == 1: raise KeyboardInterrupt
        restore(self)
    monkeypatch.setattr(lr_finder._Snapshot, '_restore', interrupted)
    with pytest.raises(KeyboardInterrupt): lr_find(learn)
    assert len(calls) == 2
    for k, v in learn.model.state_dict().items(): assert torch.equal(v, before[k])


# --- the sweep and its suggestions


def test_a_callback_that_cancels_every_batch():
    "The data are cycled, but not for ever"
    class Never(Callback):
        def after_loss(self): raise CancelBatchException()
    with pytest.raises(ValueError, match='without a completed batch'):
        lr_find(tiny_learner(), cbs=Never())


def test_the_finder_cancels_the_run_and_skips_validation():
    "Not the epoch: the sweep goes through the data as often as it needs"
    tracer = Tracer()
    Runner([LR_Find(max_iter=8, max_lr=1e-3), tracer]).fit(1, tiny_learner(n_train=3))
    assert tracer.trace.count('begin_epoch') == 3
    assert tracer.trace.count('begin_batch') == 8   # none in validation
    assert tracer.trace.count('after_cancel_train') == 1
    assert 'after_cancel_epoch' not in tracer.trace


def test_exactly_max_iter_steps():
    for n in (2, 7, 100):
        learn = tiny_learner(n_train=3)
        found = lr_find(learn, max_iter=n, max_lr=1e-3)
        assert len(found.lrs) == n
        assert found.lrs[0] == pytest.approx(1e-6)
        assert found.lrs[-1] == pytest.approx(1e-3)
        assert found.stopped == 'the sweep is complete'
        ratios = [b/a for a, b in zip(found.lrs, found.lrs[1:])]
        assert max(ratios) == pytest.approx(min(ratios))


def test_losses_that_go_bad():
    def nan_from(step):
        n = 0
        def loss(p, y):
            nonlocal n
            n += 1
            factor = float('nan') if n >= step else 1.
            return F.cross_entropy(p, y)*factor
        return loss

    def sweep(loss_func, **kwargs): return lr_find(tiny_learner(loss_func=loss_func), **kwargs)

    with pytest.raises(ValueError, match='the loss is nan at step 1'): sweep(nan_from(1))
    found = sweep(nan_from(11))
    assert len(found.lrs) == 10
    assert found.stopped == 'the loss is nan'
    below_zero = sweep(lambda p, y: F.cross_entropy(p, y) - 5, max_lr=0.1)
    assert len(below_zero.lrs) == 100
    explodes = sweep(lambda p, y: (p**2).sum()*100)
    assert len(explodes.lrs) < 100


def result(lrs, losses): return LRFindResult(lrs, losses, '', beta=0.)


def test_no_suggestion_without_a_descent():
    torch.manual_seed(0)
    lrs = [1e-6*1.17**i for i in range(100)]
    flat = (2.3 + 0.01*torch.randn(100)).tolist()
    rising = [2. + i/50 for i in range(100)]
    assert set(result(lrs, flat).suggestions.values()) == {None}
    assert 'because the loss fell by less than three times' in repr(result(lrs, flat))
    assert result(lrs, rising).suggestion is None
    result(lrs, flat).plot()


def test_suggestions_on_a_known_curve():
    "A logistic descent around 1e-2, then an explosion: all suggestions lie on the descent"
    lrs = [10**(-6 + 7*i/199) for i in range(200)]
    losses = [2.3 - 2/(1 + (1e-2/lr)**2) + max(0., lr - 0.5)*10 for lr in lrs]
    suggestions = result(lrs, losses).suggestions
    assert suggestions['steepest'] == pytest.approx(1e-2, rel=0.1)
    assert 5e-3 < suggestions['valley'] < 0.5
    bottom = lrs[losses.index(min(losses))]
    assert result(lrs, losses).suggestion == suggestions['minimum'] == pytest.approx(bottom*2/3)


def test_the_lag_of_the_smoothing_is_corrected():
    "On a straight line, over the logarithm of the rate, smoothed losses stay on that line"
    lrs = [1e-4*1.2**i for i in range(60)]
    found = LRFindResult(lrs, [10. - 0.1*i for i in range(60)], '', beta=0.9)
    steps = [math.log(lr/1e-4)/math.log(1.2) for lr in found.smoothed_lrs]
    for step, loss in zip(steps, found.smoothed): assert loss == pytest.approx(10. - 0.1*step)
    assert steps[-1] < 59 - 7   # there is a lag to correct


def test_any_curve_gives_rates_of_the_sweep_or_nothing():
    rng = random.Random(2)
    for _ in range(2000):
        n = rng.randrange(2, 30)
        lrs = [1e-4*1.5**i for i in range(n)]
        start, spread = rng.choice([0.01, 1., 100.]), rng.choice([0., 0.1, 1., 10.])
        losses = [start + rng.gauss(0, spread) for _ in range(n)]
        if rng.random() < 0.3: losses.sort(reverse=rng.random() < 0.7)
        found = LRFindResult(lrs, losses, '', beta=rng.choice([0., 0.8, 0.98]))
        for lr in found.suggestions.values():
            assert (lr is None) == bool(found.advice)
            assert lr is None or lrs[0]/2 < lr < lrs[-1]*1.001
        assert repr(found)


@pytest.mark.parametrize('fall, trusted', [(0.02, False), (0.04, False), (0.06, True), (0.5, True)])
def test_a_curve_that_only_dips_is_not_trusted(fall, trusted):
    lrs = [1e-6*1.17**i for i in range(100)]
    losses = [2.3 - fall*2.3/(1 + (1/lr)**2) for lr in lrs] + [20., 40.]
    found = result([*lrs, 20., 24.], losses)
    assert (found.suggestion is not None) == trusted
    assert bool(found.advice) != trusted
    if not trusted: assert 'Try more steps, for example max_iter=1020' in found.advice
    # a loss that can be negative has no meaningful fraction: only its noise counts
    shifted = [loss - 2.3 for loss in losses]
    assert result([*lrs, 20., 24.], shifted).suggestion is not None


def test_a_warning_when_there_is_no_suggestion():
    learn = tiny_learner(loss_func=lambda p, y: F.cross_entropy(p, y)*1e-3 + 5)
    before = copy.deepcopy(learn.model.state_dict())
    with pytest.warns(UserWarning, match='lr_find: no suggestion, because') as caught:
        found = lr_find(learn, max_iter=30, max_lr=1.)
    assert caught[0].filename == __file__   # the warning names the caller's line
    assert found.suggestion is None
    for k, v in learn.model.state_dict().items(): assert torch.equal(v, before[k])


def test_what_comes_down_from_an_explosion_is_no_suggestion():
    rng = random.Random(1)
    for _ in range(50):
        n, peak = rng.randrange(10, 40), rng.uniform(4, 30)
        level = [2.3 + rng.gauss(0, 0.002) for _ in range(n)]
        fall = [2.3 - 0.05*i for i in range(1, 12)]
        up = [2 + peak*i/8 for i in range(8)]
        smoothed = level + fall + up + up[::-1]
        lrs = [1e-4*1.15**i for i in range(len(smoothed))]
        for lr in result(lrs, smoothed).suggestions.values():
            assert lrs[n-2] < lr < lrs[n + 11]


@pytest.mark.parametrize('kw, message', [
    (dict(max_iter=1), 'at least 2'),
    (dict(min_lr=0.), 'has to grow'),
    (dict(min_lr=1., max_lr=1.), 'has to grow'),
    (dict(beta=1.), 'at least 0 and below 1'),
])
def test_refusals(kw, message):
    with pytest.raises(ValueError, match=message): lr_find(tiny_learner(), **kw)


# --- schedules


def test_schedules_can_be_pickled_and_are_exact_at_the_ends():
    parts = [*cos_1cycle_anneal(0.1, 1., 0.5), sched_exp(0.5, 1e-4)]
    sched = combine_scheds([.3, .5, .2], parts)
    for f in (sched, sched_lin(1, 2), sched_no(3)):
        g = pickle.loads(pickle.dumps(f))
        assert all(f(i/100) == g(i/100) for i in range(101))
    assert sched(0.) == pytest.approx(0.1)
    assert sched(1.) == pytest.approx(1e-4)
    assert sched(torch.tensor(0.3)) == pytest.approx(1.)
    for pos in (-0.1, 1.1, float('nan')):
        with pytest.raises(ValueError, match='between 0 and 1'): sched(pos)
    for pcts in ([.5], [.5, .4], [], [.5, .5, 0.1]):
        with pytest.raises(ValueError, match='combine_scheds'):
            combine_scheds(pcts, [sched_cos(0, 1)]*2)


def test_any_setting_and_any_group():
    def a_group_each(params): return optim.Adam([{'params': [p]} for p in params], lr=0.1)
    seen = []
    class Look(Callback):
        def after_step(self):
            seen.append([dict(lr=pg['lr'], beta=pg['betas'][0]) for pg in self.opt.param_groups])
    cbs = [ParamScheduler('lr', [sched_lin(0, 3), sched_no(1)]),
           ParamScheduler('betas', lambda pos: (0.9 - pos/10, 0.99)),
           Look()]
    Runner(cbs).fit(1, tiny_learner(opt_func=a_group_each))
    assert [first['lr'] for first, _ in seen] == pytest.approx([0., 1., 2.])
    assert all(second['lr'] == 1 for _, second in seen)
    first, _ = seen[2]
    assert first['beta'] == pytest.approx(0.9 - 2/30)


def test_schedulers_of_other_optimizers_are_refused():
    other = optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    of_other = LRSchedulerCallback(optim.lr_scheduler.StepLR(other, 1))
    with pytest.raises(ValueError, match="belongs to another optimizer"):
        Runner(of_other).fit(1, tiny_learner())
    plateau = LRSchedulerCallback(optim.lr_scheduler.ReduceLROnPlateau, per_batch=False)
    with pytest.raises(ValueError, match='add an AvgStatsCallback'):
        Runner(plateau).fit(1, tiny_learner())


def test_no_scheduler_disturbs_the_sweep():
    exponential = partial(optim.lr_scheduler.ExponentialLR, gamma=0.5)
    for other in (ParamScheduler('lr', sched_no(0.1)), LRSchedulerCallback(exponential)):
        for cbs in ([LR_Find(), other], [other, LR_Find()]):
            run = Runner([*cbs, Recorder()])
            run.fit(3, tiny_learner())
            sweep_lrs = run.lr_find.sweep_lrs
            assert sweep_lrs == run.recorder.lrs[-1]
            assert sweep_lrs[1] > sweep_lrs[0]
            assert run.epochs == 3


def test_plateau_needs_a_validation_loss_once_an_epoch():
    plateau = optim.lr_scheduler.ReduceLROnPlateau
    with pytest.raises(ValueError, match='per_batch=False'):
        Runner([AvgStatsCallback(), LRSchedulerCallback(plateau)]).fit(1, tiny_learner())
    learn = tiny_learner()
    learn.data.valid_dl = None
    with pytest.raises(ValueError, match='validation batches'):
        Runner([AvgStatsCallback(), LRSchedulerCallback(plateau, per_batch=False)]).fit(1, learn)


def test_a_scheduler_takes_functions_from_any_iterable():
    with pytest.raises(TypeError, match=r'sched_no\(0.1\)'):
        Runner(ParamScheduler('lr', 0.1)).fit(1, tiny_learner())
    learn = tiny_learner()
    from_a_generator = ParamScheduler('lr', (f for f in [sched_no(0.3)]))
    run = Runner([Recorder(), from_a_generator])
    for _ in range(2):
        run.fit(1, learn)
        assert run.recorder.lrs == [[0.3]*3]


def test_a_second_fit_goes_on_from_where_the_first_one_ended():
    halves = partial(optim.lr_scheduler.LambdaLR, lr_lambda=lambda i: 0.5**i)
    learn = tiny_learner()
    for start in (0.1, 0.025):
        run = Runner([Recorder(), LRSchedulerCallback(halves, per_batch=False)])
        run.fit(2, learn)
        assert run.recorder.lrs[0][0] == pytest.approx(start)


class Adaptive(optim.SGD):
    "Finds its learning rate by itself"
    def __init__(self, params):
        super().__init__(params)
        for pg in self.param_groups: pg['lr'] = None
    def step(self): pass


def two_groups(params):
    first, second = params
    return optim.SGD([dict(params=[first], lr=0.01), dict(params=[second], lr=0.1)])


def without_the_first(self):
    if self.epoch == 1: del self.opt.param_groups[0]


@pytest.mark.parametrize('scheds', [sched_no(0.1), [sched_no(0.01), sched_no(0.1)]])
def test_a_group_that_is_taken_out_leaves_the_others_their_schedules(scheds):
    learn, rec = tiny_learner(opt_func=two_groups), Recorder()
    gone = make_callback(begin_epoch=without_the_first)
    Runner([rec, ParamScheduler('lr', scheds), gone]).fit(2, learn)
    first, second = rec.lrs
    assert first[:3] == pytest.approx([0.01]*3)
    assert all(math.isnan(lr) for lr in first[3:])
    assert second == [0.1]*6


def test_groups_in_another_order_keep_their_ratios():
    def swap(self):
        if self.epoch: self.opt.param_groups.reverse()
    learn, rec = tiny_learner(opt_func=two_groups), Recorder()
    Runner([rec, ParamScheduler('lr', sched_no(1.)), make_callback(begin_epoch=swap)]).fit(2, learn)
    assert [pg['lr'] for pg in learn.opt.param_groups] == pytest.approx([1., 0.1])
    assert rec.lrs == [pytest.approx([0.1]*6), pytest.approx([1.]*6)]


def test_a_group_with_other_parameters_takes_the_place_of_one():
    def replace(self):
        if self.epoch: self.opt.param_groups[0] |= dict(params=[torch.ones(1, requires_grad=True)])
    learn = tiny_learner(opt_func=two_groups)
    scheds = ParamScheduler('lr', [sched_no(0.3), sched_no(0.4)])
    Runner([scheds, make_callback(begin_epoch=replace)]).fit(2, learn)
    assert [pg['lr'] for pg in learn.opt.param_groups] == [0.3, 0.4]


def test_a_rate_that_the_optimizer_finds_by_itself():
    run = Runner(Recorder())
    run.fit(1, tiny_learner(opt_func=Adaptive))
    assert all(math.isnan(lr) for lr in run.recorder.lrs[0])


class Wrapper:
    "An optimizer that hides its groups"
    def __init__(self, params): self.opt = optim.SGD(params, lr=0.1)
    def step(self): self.opt.step()
    def zero_grad(self): self.opt.zero_grad()


def exponential(opt): return optim.lr_scheduler.ExponentialLR(opt, 0.5)


@pytest.mark.parametrize('use', [
    lambda learn: Runner(ParamScheduler('lr', sched_no(1.))).fit(1, learn),
    lambda learn: Runner(LRSchedulerCallback(exponential)).fit(1, learn),
    lambda learn: Runner(LR_Find()).fit(1, learn),
    lr_find,
])
def test_an_optimizer_without_groups(use):
    with pytest.raises(TypeError, match=r"opt.param_groups.*, which Wrapper doesn't have"):
        use(tiny_learner(opt_func=Wrapper))


@pytest.mark.parametrize('name, sched', [
    ('lr', lambda pos: None),
    ('lr', lambda pos: '0.1'),
    ('lr', lambda pos: (0.1,)),
    ('betas', sched_lin(0.9, 0.99)),
    ('betas', lambda pos: (0.9,)),
])
def test_a_schedule_has_to_return_what_the_setting_is(name, sched):
    learn = tiny_learner(opt_func=optim.Adam)
    with pytest.raises(TypeError, match=f'this optimizer has {name}='):
        Runner(ParamScheduler(name, sched)).fit(1, learn)
    assert learn.opt.param_groups[0]['betas'] == (0.9, 0.999)


class OfEpochs:
    def __init__(self, opt): pass
    def step(self, epoch): pass


def test_what_is_no_scheduler():
    with pytest.raises(TypeError, match='function of the optimizer'): LRSchedulerCallback(None)
    for f in (OfEpochs, lambda opt: None):
        with pytest.raises(TypeError, match=r'whose step\(\) works without arguments'):
            Runner(LRSchedulerCallback(f)).fit(1, tiny_learner())


class Around:
    "A scheduler around another one, as accelerate has it"
    def __init__(self, scheduler): self.scheduler = scheduler
    def step(self, *args): self.scheduler.step(*args)


class Halves:
    "A scheduler that knows nothing of PyTorch's"
    def __init__(self, opt): self.groups = opt.param_groups
    def step(self): self.groups[0]['lr'] /= 2


def plateau(opt): return optim.lr_scheduler.ReduceLROnPlateau(opt, factor=0.5, patience=0)


@pytest.mark.parametrize('sched_func', [Halves, lambda opt: Around(exponential(opt))])
def test_other_schedulers(sched_func):
    run = Runner([Recorder(), LRSchedulerCallback(sched_func)])
    run.fit(1, tiny_learner())
    assert run.recorder.lrs[0] == pytest.approx([0.1, 0.05, 0.025])


def test_a_plateau_in_another_scheduler():
    of_plateau = LRSchedulerCallback(lambda opt: Around(plateau(opt)), per_batch=False)
    quiet_runner([AvgStatsCallback(), of_plateau]).fit(2, tiny_learner())
    assert of_plateau.sched.scheduler.last_epoch == 2


def test_no_warning_when_the_first_step_of_the_optimizer_comes_later():
    later = make_callback(step=lambda self: None)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        Runner([later, LRSchedulerCallback(exponential)]).fit(1, tiny_learner())


# --- the recorder


def n_points(ax): return len(ax.lines[-1].get_xdata())


def test_recorder_counts_completed_batches_only(tmp_path):
    class Skip(Callback):
        done = False
        def after_loss(self):
            if self.done or not self.in_train or self.n_iter != 1: return
            self.done = True
            raise CancelBatchException()
    run = quiet_runner([Skip(), Recorder(), AvgStatsCallback(accuracy)])
    run.fit(2, tiny_learner())
    rec = run.recorder
    assert len(rec.losses) == len(rec.lrs[0]) == len(rec.batch_rows()) == run.n_iter == 5
    assert [r['batches'] for r in rec.history] == [2, 5]

    rec.to_csv(tmp_path/'h.csv')
    start = ('epoch,batches,lr,train_loss,train_accuracy,valid_loss,valid_accuracy,seconds\n'
             '0,2,')
    assert (tmp_path/'h.csv').read_text().startswith(start)

    import matplotlib.pyplot as plt
    for skip, n in ((0, 5), (2, 3)):
        plt.figure()
        assert n_points(rec.plot(skip_last=skip)) == n
        assert n_points(rec.plot_loss(skip_last=skip)) == n
        plt.close()
    copy.deepcopy(rec)


def test_records_in_odd_cases():
    run = Runner(Recorder())
    rec = run.recorder
    with pytest.raises(ValueError, match='has recorded nothing yet'): rec.plot()
    assert rec.batch_rows() == []
    assert rec.losses == []
    run.fit(1, tiny_learner())
    for skip, n in ((0, 3), (2, 1), (3, 0), (4, 0), (100, 0)):
        assert n_points(rec.plot(skip)) == n_points(rec.plot_loss(skip)) == n
    assert 'mean_batch_loss' in rec.history[0]
    assert 'train_loss' not in rec.history[0]
