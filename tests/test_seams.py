"Techniques that do a part of the step in their own way, with books that stay right."
import copy
import pickle
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import make_callback, quiet_runner, tiny_learner
from torch import nn, optim

from minifastai.callbacks import SEAMS, Callback, CancelBatchException
from minifastai.checkpoint import CheckpointCallback
from minifastai.data import DataBunch, Dataset, get_dls
from minifastai.gradients import AccumulateCallback, ClipGradientsCallback
from minifastai.learner import Learner, Runner
from minifastai.metrics import AvgStatsCallback
from minifastai.norms import RunningBatchNorm
from minifastai.progress import ProgressCallback
from minifastai.recipes import AverageWeightsCallback
from minifastai.recorder import Recorder
from minifastai.schedules import LRSchedulerCallback, ParamScheduler, sched_lin


def a_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def a_learner(batches, model=None, loss_func=F.cross_entropy, opt_func=None, valid=None):
    model = a_model() if model is None else model
    opt_func = partial(optim.SGD, lr=0.1, momentum=0.9) if opt_func is None else opt_func
    return Learner(model, opt_func(model.parameters()), loss_func, DataBunch(batches, valid, 3))


def some_batches(sizes, seed=1):
    g = torch.Generator().manual_seed(seed)
    return [(torch.randn(n, 4, generator=g), torch.randint(3, (n,), generator=g)) for n in sizes]


def joined(batches): return tuple(torch.cat(parts) for parts in zip(*batches))


# --- the seams themselves

@pytest.mark.parametrize('seam', SEAMS)
def test_each_seam_can_be_taken_over_once(seam):
    calls = []
    def ordinary(self):
        calls.append(seam)
        return getattr(self.run, seam)()
    first, second = (make_callback(name, **{seam: ordinary}) for name in ('First', 'Second'))
    ours, theirs = tiny_learner(), tiny_learner(model=nn.Linear(4, 3))
    theirs.model.load_state_dict(ours.model.state_dict())
    Runner(first).fit(2, ours)
    Runner().fit(2, theirs)
    assert torch.equal(ours.model.weight, theirs.model.weight)
    assert len(calls) == (2*5 if seam in ('get_pred', 'get_loss') else 2*3)
    with pytest.raises(ValueError, match=f"Both First and Second have a method '{seam}'"):
        Runner([first, second])


def test_a_seam_takes_no_argument_and_a_number_of_that_name_is_none():
    with pytest.raises(TypeError, match='take no argument but self'):
        Runner(make_callback(step=lambda self, opt: None))
    counts = make_callback('Counts', step=0)
    Runner([counts, make_callback('Other', step=0)]).fit(1, tiny_learner())


def test_a_skipped_step_stops_schedules_and_is_not_announced():
    class SkipFirst(Callback):
        def begin_fit(self): self.made = 0
        def step(self):
            if self.run.n_iter < 2: return False
            self.run.step()
        def after_step(self): self.made += 1
    lr = partial(optim.lr_scheduler.LinearLR, start_factor=1., end_factor=0.1, total_iters=8)
    skip, rec = SkipFirst(), Recorder()
    learn = a_learner(some_batches([4]*8))
    Runner([skip, rec, ParamScheduler('lr', sched_lin(8., 0.))]).fit(1, learn)
    assert skip.made == 6
    assert rec.lrs[0] == pytest.approx([8., 8., 8., 7., 6., 5., 4., 3.])
    learn = a_learner(some_batches([4]*8))
    Runner([skip, rec, LRSchedulerCallback(lr)]).fit(1, learn)
    assert rec.lrs[0][:4] == pytest.approx([0.1, 0.1, 0.1, 0.1*(1 - 0.9/8)])
    assert len(rec.losses) == 8


# --- accumulated gradients

LOSSES = {
    'mean': F.cross_entropy,
    'sum': partial(F.cross_entropy, reduction='sum'),
    'ignored labels': partial(F.cross_entropy, ignore_index=1),
    'weights': nn.CrossEntropyLoss(weight=torch.tensor([1., 2., 5.])),
    'smoothing': partial(F.cross_entropy, label_smoothing=0.1),
}


@pytest.mark.parametrize('loss', LOSSES)
@pytest.mark.parametrize('sizes, groups', [
    ([4]*8, [4, 4]),
    ([5, 3, 4, 2, 5, 1, 4], [4, 3]),   # unequal batches, and three are left at the end
])
def test_accumulated_gradients_equal_those_of_the_large_batch(loss, sizes, groups):
    small = some_batches(sizes)
    large = []
    for n in groups: large.append(joined(small[len(large)*4:len(large)*4 + n]))
    lr = 0.01 if loss == 'sum' else 0.1
    learners = [a_learner(b, loss_func=LOSSES[loss], opt_func=partial(optim.Adam, lr=lr))
                for b in (small, large)]
    Runner(AccumulateCallback(4)).fit(3, learners[0])
    Runner().fit(3, learners[1])
    for ours, theirs in zip(*(learn.model.parameters() for learn in learners)):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_accumulation_leaves_the_books_right():
    batches = some_batches([4]*8)
    stats, rec, progress = AvgStatsCallback(), Recorder(), ProgressCallback()
    steps = make_callback('Steps', after_step=lambda self: seen.append(self.n_iter))
    seen = []
    run = quiet_runner([ParamScheduler('lr', sched_lin(8., 0.)), AccumulateCallback(4), stats, rec,
                        progress, steps])
    learn = a_learner(batches, opt_func=partial(optim.SGD, lr=0.))
    run.fit(1, learn)
    assert rec.lrs[0] == pytest.approx([8., 7., 6., 5., 4., 3., 2., 1.])
    assert (run.n_iter, run.n_epochs, len(rec.losses)) == (8, 1., 8)
    assert seen == [3, 7]
    assert rec.history[0]['batches'] == 8
    assert stats.train_stats.n_batches == 8


def test_the_position_counts_batches_that_were_cancelled():
    class CancelThreeOfFour(Callback):
        def after_backward(self):
            self.seen = getattr(self, 'seen', 0) + 1
            if self.seen % 4: raise CancelBatchException()
    rec = Recorder()
    cbs = [CancelThreeOfFour(), rec, ParamScheduler('lr', sched_lin(1., 0.))]
    Runner(cbs).fit(2, a_learner(some_batches([4]*8)))
    assert rec.lrs[0] == pytest.approx([1 - i/16 for i in (3, 7, 11, 15)])
    assert cbs[0].run.n_iter == 4


def test_a_cancelled_batch_adds_nothing_to_the_sum():
    batches = some_batches([4]*5)
    class Cancel(Callback):
        def after_backward(self):
            if self.xb is batches[2][0]: raise CancelBatchException()
    ours, theirs = a_learner(batches), a_learner(batches[:2] + batches[3:])
    Runner([AccumulateCallback(4), Cancel()]).fit(1, ours)
    Runner(AccumulateCallback(4)).fit(1, theirs)
    assert torch.equal(ours.model[0].weight, theirs.model[0].weight)


def test_clipping_limits_the_norm_of_the_mean():
    norms = []
    def note(self):
        grads = [p.grad for p in self.model.parameters()]
        norms.append(torch.nn.utils.get_total_norm(grads).item())
    clip = ClipGradientsCallback(1e-3)
    cbs = [clip, make_callback('Note', after_step=note), AccumulateCallback(4)]
    Runner(cbs).fit(1, a_learner(some_batches([4]*8)))
    assert norms == pytest.approx([1e-3]*2, rel=1e-3)
    assert clip.norm > 1e-3
    for bad in (0, -1., float('nan')):
        with pytest.raises(ValueError, match='max_norm has to be above'): ClipGradientsCallback(bad)
    with pytest.raises(ValueError, match='AccumulateCallback: n'): AccumulateCallback(0)


# --- techniques of the chapters

class SAM(Callback):
    def step(self):
        params = [p for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in params])
        climb = [0.05*p.grad/norm for p in params]
        with torch.no_grad():
            for p, c in zip(params, climb): p.add_(c)
        self.run.closure()
        with torch.no_grad():
            for p, c in zip(params, climb): p.sub_(c)
        self.run.step()


class Scaled(Callback):
    def begin_fit(self): self.scaler = torch.amp.GradScaler('cpu', init_scale=2.**127)
    def backward(self): self.scaler.scale(self.loss).backward()
    def begin_step(self): self.scaler.unscale_(self.opt)
    def step(self):
        scale = self.scaler.get_scale()
        self.scaler.step(self.opt)
        self.scaler.update()
        return self.scaler.get_scale() >= scale
    def state_dict(self): return self.scaler.state_dict()
    def load_state_dict(self, state): self.scaler.load_state_dict(state)


class Alternate(Callback):
    "A second optimizer, for the first layer"
    def begin_fit(self): self.second = optim.Adam(self.model[0].parameters(), lr=0.01)
    def state_dict(self): return self.second.state_dict()
    def load_state_dict(self, state): self.second.load_state_dict(state)
    def step(self):
        self.second.step() if self.n_iter % 2 else self.run.step()
    def zero_grad(self):
        self.run.zero_grad()
        self.second.zero_grad()


def lbfgs(params): return optim.LBFGS(params, lr=0.01, max_iter=3)


TECHNIQUES = {
    'SAM': ([SAM], None),
    'scaled': ([Scaled], None),
    'accumulated, clipped': (
        [partial(AccumulateCallback, 3), partial(ClipGradientsCallback, 0.5)], None),
    'accumulated, scaled, averaged': (
        [partial(AccumulateCallback, 3), Scaled, partial(AverageWeightsCallback, 0.8)], None),
    'LBFGS': ([], lbfgs),
    'two optimizers': ([Alternate], None),
}


@pytest.mark.parametrize('name', TECHNIQUES)
def test_techniques_learn_and_go_on_bit_for_bit(name, tmp_path):
    makers, opt_func = TECHNIQUES[name]
    factor = 50 if 'scaled' in name else 1
    batches = [(x*factor, y) for x, y in some_batches([4]*7)]
    def new(): return a_learner(batches, opt_func=opt_func, valid=some_batches([9], seed=3))
    def cbs(*more): return [AvgStatsCallback(), Recorder(), *(make() for make in makers), *more]
    whole = new()
    run = quiet_runner(cbs())
    run.fit(3, whole)
    losses = run.recorder.losses
    assert losses[-1].isfinite()

    class Killed(Callback):
        def after_batch(self):
            if self.in_train and self.run.n_iter == 12: raise KeyboardInterrupt
        def state_dict(self): return {}
    with pytest.raises(KeyboardInterrupt):
        quiet_runner(cbs(Killed(), CheckpointCallback(tmp_path, every=1))).fit(3, new())
    resumed = new()
    torch.manual_seed(99)
    again = quiet_runner(cbs(Killed(), CheckpointCallback(tmp_path, every=1, resume=True)))
    again.cbs = [cb for cb in again.cbs if not isinstance(cb, Killed)]
    with pytest.warns(UserWarning, match='killed is no longer among'): again.fit(3, resumed)
    for ours, theirs in zip(resumed.model.parameters(), whole.model.parameters()):
        assert torch.equal(ours, theirs)
    assert [l.item() for l in again.recorder.losses] == [l.item() for l in losses]


def test_an_optimizer_with_a_closure_is_shown_the_first_loss():
    x, y = joined(some_batches([32]))
    learn = a_learner([(x, y)], opt_func=optim.LBFGS)
    with torch.no_grad(): first = F.cross_entropy(learn.model(x), y)
    rec = Recorder()
    Runner(rec).fit(2, learn)
    assert rec.losses[0] == first
    assert rec.losses[1] < 0.2*first
    assert all(p.grad is None for p in learn.model.parameters())


def test_skipped_steps_do_not_advance_the_schedule():
    learn = a_learner([(x*10_000, y) for x, y in some_batches([4]*20)],
                      opt_func=partial(optim.SGD, lr=1e-12))
    steps, rec = [], Recorder()
    made = make_callback('Made', after_step=lambda self: steps.append(self.n_iter))
    Runner([Scaled(), made, rec, ParamScheduler('lr', sched_lin(20., 0.))]).fit(1, learn)
    assert 10 < len(steps) < 20
    assert rec.lrs[0] == pytest.approx([20. - sum(step < i for step in steps) for i in range(20)])


@pytest.mark.parametrize('make', [partial(AccumulateCallback, 2),
                                  partial(ClipGradientsCallback, 1.)])
def test_steps_that_compute_gradients_anew_refuse_what_would_be_undone(make):
    learn = a_learner(some_batches([4]*4), opt_func=optim.LBFGS)
    before = learn.model[0].weight.clone()
    name = type(make()).__name__
    with pytest.raises(RuntimeError, match=f'{name} listens to begin_step'):
        Runner(make()).fit(1, learn)
    assert torch.equal(learn.model[0].weight, before)
    with pytest.raises(RuntimeError, match='or change the step'):
        Runner([SAM(), make()]).fit(1, a_learner(some_batches([4]*4)))


@pytest.mark.parametrize('sched', [optim.lr_scheduler.ExponentialLR, optim.lr_scheduler.LambdaLR])
def test_a_scheduler_does_not_make_the_optimizer_want_a_closure(sched):
    "PyTorch's schedulers replace `opt.step` by a wrapper"
    exponential = sched is optim.lr_scheduler.ExponentialLR
    kwargs = dict(gamma=0.9) if exponential else dict(lr_lambda=lambda i: 1)
    calls = []
    model = a_model()
    model.register_forward_hook(lambda *args: calls.append(1))
    run = Runner([LRSchedulerCallback(partial(sched, **kwargs)), AccumulateCallback(2)])
    for _ in range(2): run.fit(1, a_learner(some_batches([4]*4), model))
    assert not run.wants_closure
    assert len(calls) == 2*4


def test_gradients_that_no_step_followed_are_told_of():
    batches = some_batches([4]*3)
    learn = a_learner(iter(batches))   # no length
    with pytest.warns(UserWarning, match='batches since the last step: 1'):
        Runner(AccumulateCallback(2)).fit(1, learn)


def test_optimizers_without_groups_and_sparse_gradients():
    class Wrapped:
        def __init__(self, params): self.opt = optim.SGD(params, lr=0.1)
        def step(self): self.opt.step()
        def zero_grad(self): self.opt.zero_grad()
    learn = a_learner(some_batches([4]*4), opt_func=Wrapped)
    Runner([AccumulateCallback(2), ClipGradientsCallback(1.), Recorder()]).fit(1, learn)
    model = nn.Sequential(nn.EmbeddingBag(5, 3, sparse=True))
    zeros = torch.zeros(2, 3, dtype=torch.long)
    learn = a_learner([(zeros, zeros[:, 0])], model, opt_func=partial(optim.SGD, lr=0.1))
    with pytest.raises(ValueError, match='sparse gradients'):
        Runner(ClipGradientsCallback(1.)).fit(1, learn)


# --- averaged weights

def test_the_model_has_the_measured_weights_when_the_epoch_ends():
    seen = []
    class Measured(Callback):
        def after_epoch(self):
            x, y = self.data.valid_dl[0]
            with torch.no_grad(): loss = F.cross_entropy(self.model(x), y).item()
            seen.append((loss, self.run.metrics['valid_loss']))
    learn = a_learner(some_batches([4]*6), valid=some_batches([9], seed=3))
    quiet_runner([AvgStatsCallback(), AverageWeightsCallback(0.9), Measured()]).fit(3, learn)
    assert all(loss == pytest.approx(valid) for loss, valid in seen)


def test_averages_leave_counters_alone_and_can_be_pickled():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    learn = a_learner(some_batches([4]*5), model=model)
    averaging = AverageWeightsCallback(0.5)
    Runner(averaging).fit(1, learn)
    assert model[1].num_batches_tracked == 5
    pickle.loads(pickle.dumps(averaging))
    copy.deepcopy(averaging)


def test_averages_leave_alone_what_a_module_only_remembers():
    "Its number of the running norm's counts would go stale, and a resumed run would differ"
    model = nn.Sequential(nn.Linear(4, 3), RunningBatchNorm(3))
    averaging = AverageWeightsCallback(0.5)
    Runner(averaging).fit(2, a_learner(some_batches([4]*3), model=model, valid=some_batches([5])))
    assert not any('counts' in k for k in averaging.average)
    assert any('means' in k for k in averaging.average)


def test_a_validation_on_the_side_does_not_disturb_the_averages():
    class Often(Callback):
        def after_batch(self):
            if self.in_train and self.n_iter % 2 == 0: self.run.validate()
    def weights(*cbs):
        learn = a_learner(some_batches([4]*6), valid=some_batches([9], seed=3))
        quiet_runner([AvgStatsCallback(), AverageWeightsCallback(0.9), *cbs]).fit(2, learn)
        return learn.model[0].weight
    assert torch.equal(weights(), weights(Often()))


def test_large_batches_of_get_dls_and_accumulated_small_ones():
    x, y = joined(some_batches([64]))
    def weights(bs, *cbs):
        torch.manual_seed(3)
        learn = a_learner(get_dls(Dataset(x, y), Dataset(x, y), bs)[0])
        Runner(cbs).fit(2, learn)
        return learn.model[0].weight
    torch.testing.assert_close(weights(4, AccumulateCallback(4)), weights(16), rtol=1e-5, atol=1e-6)
