"What users of a learner and a runner meet: frozen layers, silent mistakes, reprs, hints."
import copy
import pickle
import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import quiet_runner, tiny_learner
from torch import nn, optim

from minifastai.callbacks import Callback
from minifastai.checkpoint import CheckpointCallback
from minifastai.data import DataBunch, Dataset, get_dls
from minifastai.learner import frozen_modules, Runner
from minifastai.metrics import accuracy, AvgStatsCallback
from minifastai.recorder import Recorder
from minifastai.schedules import ParamScheduler, sched_lin


# --- frozen modules

class Trained(nn.Module):
    "A body with a norm and dropout, and a head"
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5))
        self.head = nn.Linear(5, 3)
    def forward(self, x): return self.head(self.body(x))


def modes_in_training(model, fits=1, learn=None):
    seen = []
    class Look(Callback):
        def after_pred(self):
            if self.in_train: seen.append([m.training for m in model.modules()])
    params = [p for p in model.parameters() if p.requires_grad]
    for _ in range(fits):
        learn = tiny_learner(model=model, opt_func=lambda _: optim.SGD(params, lr=0.1))
        Runner(Look()).fit(1, learn)
    assert all(modes == seen[0] for modes in seen)
    return seen[0]


def test_a_frozen_batch_norm_stays_frozen_in_each_fit():
    model = Trained()
    model.body[1].eval().requires_grad_(False)
    modes = modes_in_training(model, fits=2)
    assert modes == [True, True, True, False, True, True]
    assert model.body[1].running_mean.eq(0).all()
    # thawed
    model.body[1].train().requires_grad_(True)
    assert all(modes_in_training(model))
    assert model.body[1].running_mean.ne(0).any()


def test_a_frozen_body_stays_frozen_with_its_dropout():
    model = Trained()
    model.body.eval().requires_grad_(False)
    assert modes_in_training(model, fits=2) == [True, False, False, False, False, True]


def test_evaluation_mode_without_freezing_is_left_from_an_evaluation():
    model = Trained().eval()           # as after a validation
    assert all(modes_in_training(model))
    model = Trained()
    model.body.eval()                  # as a pretrained body comes, and it is to be trained
    assert all(modes_in_training(model))
    assert frozen_modules(lambda x: x) == []


def test_freezing_after_a_fit_and_in_a_pretrained_model():
    for model in (Trained(), Trained().eval()):   # as it is loaded
        if model.training: modes_in_training(model)
        model.body.requires_grad_(False)
        before = model.body[1].running_mean.clone()
        modes_in_training(model, fits=2)
        assert torch.equal(model.body[1].running_mean, before)


def test_statistics_of_a_frozen_norm_may_move_in_each_fit():
    model = Trained()
    model.body[1].requires_grad_(False)   # in training mode
    assert all(modes_in_training(model, fits=2))


def test_a_frozen_norm_without_parameters():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, affine=False))
    model[1].eval()
    modes_in_training(model)
    assert model[1].running_mean.eq(0).all()


# --- silent mistakes

@pytest.mark.parametrize('loss_func', [F.mse_loss, nn.L1Loss(), partial(F.huber_loss, delta=2.),
                                       nn.SmoothL1Loss(), partial(F.mse_loss, reduction='sum')])
def test_targets_that_would_be_broadcast_are_refused(loss_func):
    x, y = torch.randn(6, 4), torch.randn(6)
    learn = tiny_learner(model=nn.Linear(4, 1), loss_func=loss_func)
    learn.data = DataBunch([(x, y)])
    before = learn.model.weight.clone()
    message = r'the predictions have the shape \(6, 1\) and the targets \(6,\)'
    with pytest.raises(ValueError, match=message): Runner().fit(1, learn)
    assert torch.equal(learn.model.weight, before)
    for good in ((x, y[:, None]),):
        learn.data = DataBunch([good], [good])
        Runner().fit(1, learn)


def test_parameters_that_nobody_trains_are_named():
    model = Trained()
    opt = optim.SGD(model.parameters(), lr=0.1)
    model.head = nn.Linear(5, 3)
    learn = tiny_learner(model=model, opt_func=lambda _: opt)
    with pytest.warns(UserWarning, match=r'2 parameters get gradients.*head.weight, head.bias'):
        Runner().fit(1, learn)
    opt.add_param_group(dict(params=model.head.parameters()))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        Runner().fit(1, learn)
        model.head.requires_grad_(False)
        opt.param_groups.pop()
        Runner().fit(1, learn)

    class Second(Callback):
        def begin_fit(self): self.opt_b = optim.SGD(self.model.head.parameters(), lr=0.1)
    model.head.requires_grad_(True)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        Runner(Second()).fit(1, learn)


def test_a_last_batch_of_one_says_what_to_do():
    x, y = torch.randn(9, 4), torch.randint(3, (9,))
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    learn = tiny_learner(model=model)
    learn.data = DataBunch(*get_dls(Dataset(x, y), Dataset(x, y), 4))
    with pytest.raises(ValueError, match=r'get_dls\(..., drop_last=True\)'): Runner().fit(1, learn)


def test_weights_of_the_loss_on_another_device():
    learn = tiny_learner(loss_func=nn.CrossEntropyLoss(weight=torch.ones(3, device='meta')))
    with pytest.raises(RuntimeError, match="the loss function's weights are on meta"):
        Runner().fit(1, learn)


# --- parameter groups

def groups_of(lrs, momentum=0.):
    def make(params):
        return optim.SGD([dict(params=[p], lr=lr) for p, lr in zip(params, lrs)], momentum=momentum)
    return make


def test_one_schedule_keeps_the_ratio_of_the_groups():
    for lrs in ((0.001, 0.1), (torch.tensor(0.001), torch.tensor(0.1))):
        rec = Recorder()
        learn = tiny_learner(opt_func=groups_of(lrs))
        tensors = [pg['lr'] for pg in learn.opt.param_groups]
        Runner([rec, ParamScheduler('lr', sched_lin(0.6, 0.))]).fit(1, learn)
        assert rec.lrs[1] == pytest.approx([0.6, 0.4, 0.2])
        assert rec.lrs[0] == pytest.approx([0.006, 0.004, 0.002])
        if isinstance(lrs[0], torch.Tensor):
            assert all(pg['lr'] is t for pg, t in zip(learn.opt.param_groups, tensors))
    with pytest.raises(ValueError, match='lr is 0, so the other groups have no ratio'):
        learn = tiny_learner(opt_func=groups_of((0.1, 0.)))
        Runner(ParamScheduler('lr', sched_lin(1., 0.))).fit(1, learn)


def test_a_group_that_is_added_follows_the_schedule():
    class Thaw(Callback):
        def begin_epoch(self):
            if self.epoch != 1: return
            self.opt.add_param_group(dict(params=self.model[0].parameters(), lr=.5))
    def fit(schedule):
        model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3))
        opt = optim.SGD(model[1].parameters(), 1.)
        learn = tiny_learner(model=model, n_train=2, opt_func=lambda _: opt)
        rec = Recorder()
        with pytest.warns(UserWarning, match='in no group'):
            Runner([Thaw(), rec, ParamScheduler('lr', schedule)]).fit(2, learn)
        return rec.lrs
    old, new = fit(sched_lin(1., 0.))
    assert old == pytest.approx([1., .75, .5, .25])
    assert new[2:] == pytest.approx([.5, .25])
    assert all(lr != lr for lr in new[:2])   # nan: it wasn't there yet
    with pytest.raises(ValueError, match='1 schedules for an optimizer with 2'):
        fit([sched_lin(1., 0.)])


# --- what they show, and hints

def test_reprs():
    learn = tiny_learner()
    assert 'Learner(Linear of 15 parameters, SGD lr 0.1, cross_entropy, DataBunch' in repr(learn)
    run = quiet_runner([AvgStatsCallback()])
    assert repr(run) == 'Runner(TrainEvalCallback, AvgStatsCallback)'
    run.fit(1, learn)
    assert 'Learner(Linear' in repr(run)
    learn = tiny_learner(loss_func=partial(F.cross_entropy, label_smoothing=0.1))
    assert 'cross_entropy' in repr(learn)


def test_reprs_of_odd_parts():
    model = nn.Sequential(nn.LazyLinear(3))
    opt = optim.SGD(model.parameters(), lr=0.1)
    opt.param_groups[0]['lr'] = None   # as of an optimizer that finds its own
    learn = tiny_learner(model=model, opt_func=lambda _: opt)
    assert 'Sequential of 0 parameters' in repr(learn)


@pytest.mark.parametrize('name, hint', [
    ('fit', r'Runner\(cbs\).fit\(epochs, learn\)'), ('lr_find', r'lr_find\(learn\)'),
    ('freeze', 'requires_grad_'), ('validate', r'\.validate\(learn\)'), ('dls', 'learn.data'),
    ('modle', "Did you mean 'model'"), ('fit_one_cicle', "Did you mean 'fit_one_cycle'"),
    ('xyz', "no attribute 'xyz'"),
])
def test_a_learner_says_where_things_are(name, hint):
    learn = tiny_learner()
    with pytest.raises(AttributeError, match=hint): getattr(learn, name)
    assert not hasattr(learn, name)


def test_learners_can_be_copied_and_pickled():
    learn = tiny_learner()
    for other in (copy.deepcopy(learn), pickle.loads(pickle.dumps(learn))):
        assert torch.equal(other.model.weight, learn.model.weight)


def test_what_makes_no_callback():
    for bad in (accuracy, AvgStatsCallback(), 3, lambda needed: None):
        with pytest.raises(TypeError, match="doesn't make a callback"): Runner(cb_funcs=[bad])
    Runner(cb_funcs=[partial(AvgStatsCallback, accuracy), Recorder])


def test_a_bool_is_no_number_of_epochs():
    with pytest.raises(TypeError, match='whole number'): Runner().fit(True, tiny_learner())


def test_a_skipped_epoch_of_a_resumed_run_puts_the_state_back(tmp_path):
    class Cut(Callback):
        _order = CheckpointCallback._order + 1
        def after_batch(self):
            if self.in_train and self.run.n_iter == 5: raise KeyboardInterrupt
        def state_dict(self): return {}
    class SkipRest(Cut):
        def begin_epoch(self): return self.epoch == 1
        def after_batch(self): pass
    SkipRest.__name__ = 'Cut'
    first = tiny_learner()
    with pytest.raises(KeyboardInterrupt):
        run = quiet_runner([Cut(), AvgStatsCallback(), CheckpointCallback(tmp_path, every=1)])
        run.fit(2, first)
    again = tiny_learner()
    skip = SkipRest()
    skip.name = 'cut'
    stats = AvgStatsCallback()
    run = quiet_runner([skip, stats, CheckpointCallback(tmp_path, every=1, resume=True)])
    run.fit(2, again)
    assert torch.equal(again.model.weight, first.model.weight)
    assert run.n_iter == 5
    assert stats.valid_stats.n_batches == 2
