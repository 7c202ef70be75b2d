"Callbacks, learner and runner: state between fits, copies, devices, loaders, statistics."
import copy
import pickle
from collections import Counter, OrderedDict, defaultdict, namedtuple
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import Tracer, make_callback, quiet_runner, tiny_learner
from torch import nn, optim
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from minifastai.data import DataBunch, Dataset, get_dls
from minifastai.callbacks import Callback, CancelEpochException
from minifastai.learner import create_learner, get_model, Learner, Runner, TrainEvalCallback
from minifastai.metrics import accuracy, AvgStats, AvgStatsCallback
from minifastai.utils import map_tensors


class Plain(Callback):
    def __init__(self, value=1): self.value = value


# --- callbacks of a runner


def test_the_callers_list_stays_as_it_is():
    cbs = [Plain()]
    run = Runner(cbs, cb_funcs=AvgStatsCallback)
    run.fit(1, tiny_learner())
    assert len(cbs) == 1
    assert len(run.cbs) == 3


def test_callbacks_are_attributes_however_they_come():
    run = Runner(Plain(), cb_funcs=[partial(AvgStatsCallback, accuracy)])
    assert run.plain.value == 1
    assert run.avg_stats.train_stats.metrics == [accuracy]
    assert isinstance(run.train_eval, TrainEvalCallback)
    run.cbs.append(Tracer())  # found at the next fit
    run.fit(1, tiny_learner())
    assert run.tracer.trace[0] == 'begin_fit'


def test_momentum_survives_from_fit_to_fit():
    "Two fits of one epoch equal one fit of two"
    def trained(*epochs):
        torch.manual_seed(0)
        learn = tiny_learner(opt_func=partial(optim.SGD, lr=0.1, momentum=0.9))
        for n in epochs: Runner().fit(n, learn)
        return learn.model.weight
    assert torch.equal(trained(2), trained(1, 1))


def test_one_runner_many_learners():
    run = Runner(TrainEvalCallback())
    for _ in range(2):
        run.fit(2, tiny_learner())
        assert run.n_iter == 6
        assert run.n_epochs == pytest.approx(2)
    assert len(run.cbs) == 1


@pytest.mark.parametrize('attached', [False, True])
def test_callbacks_can_be_copied_and_pickled(attached):
    cb = Plain(3)
    if attached: Runner(cb).fit(1, tiny_learner())
    for other in (copy.copy(cb), copy.deepcopy(cb), pickle.loads(pickle.dumps(cb))):
        assert other.value == 3
        assert other.run is None
    assert (cb.run is not None) == attached
    assert not hasattr(Plain(), 'nothing_of_this_name')


def test_attribute_errors():
    class Buggy(Callback):
        value = 1
        @property
        def ratio(self): return self.value.missing

    def raises(match): return pytest.raises(AttributeError, match=match)

    cb = Buggy()
    with raises("'int' object has no attribute 'missing'"): cb.ratio
    Runner(cb).fit(1, tiny_learner())
    with raises("'int' object has no attribute 'missing'"): cb.ratio
    with raises("Neither Buggy nor its Runner has an attribute 'n_itre'. Did you mean 'n_iter'"):
        cb.n_itre
    with raises("can't read 'loss' yet: `fit` attaches a callback to its runner"): Plain().loss
    with raises('no model yet'): Runner().model
    assert not hasattr(Runner(), 'model')


STATE = """
    xb yb pred loss opt model loss_func data learn epoch epochs iters n_epochs n_iter in_train cbs
""".split()


@pytest.mark.parametrize('k', STATE)
def test_shadowing_is_refused(k):
    message = f"write `self.run.{k} = ...`"
    with pytest.raises(AttributeError, match=message): setattr(Plain(), k, 1)
    with pytest.raises(AttributeError, match=message): Runner(make_callback('Shadow', **{k: 1}))


@pytest.mark.parametrize('k', [k for k in STATE if k not in ('learn', 'cbs')])
def test_the_suggested_spelling_works(k):
    class Writer(Callback):
        _order = -1
        def begin_fit(self): setattr(self.run, k, getattr(self, k))
    Runner(Writer()).fit(1, tiny_learner())


def test_mixins_handlers_count():
    class Mixin:
        def after_fit(self): self.done = True
    class Mixed(Callback, Mixin): pass
    run = Runner(Mixed())
    run.fit(1, tiny_learner())
    assert run.mixed.done

    class BadMixin:
        def after_fti(self): pass
    bad = type('Mixed', (Callback, BadMixin), {})()
    with pytest.raises(ValueError, match="Did you mean 'after_fit'"): Runner(bad)


@pytest.mark.parametrize('typo, seam', [('get_los', 'get_loss'), ('zero_grads', 'zero_grad'),
                                        ('backwards', 'backward'), ('get_preds', 'get_pred')])
def test_misspelled_seams(typo, seam):
    with pytest.raises(ValueError, match=f"Did you mean '{seam}'"):
        Runner(make_callback('Typo', **{typo: lambda self: None}))


def test_misspelled_event_on_the_object():
    cb = Plain()
    cb.after_los = lambda: None
    with pytest.raises(ValueError, match="Did you mean 'after_loss'"): Runner(cb)


def test_what_a_runner_refuses():
    def refuses(error, match): return pytest.raises(error, match=match)

    with refuses(TypeError, r'pass an object, cbs=\[Plain\(\)\]'): Runner(Plain)
    with refuses(TypeError, r'pass an object'): Runner([Plain(), AvgStatsCallback])
    with refuses(TypeError, 'not a Callback'): Runner([print])
    with refuses(TypeError, 'not a Callback'): Runner('progress')
    with refuses(TypeError, "doesn't make a callback"): Runner(cb_funcs=[Plain()])
    with refuses(TypeError, 'not a Callback'): Runner(cb_funcs=lambda: None)

    with refuses(ValueError, "Two callbacks are named 'plain'"): Runner([Plain(), Plain()])
    with refuses(ValueError, "would be named 'fit'"): Runner(make_callback('FitCallback'))
    with refuses(ValueError, "would be named 'loss'"): Runner(make_callback('Loss'))

    def generator(self): yield
    with refuses(TypeError, '_order has to be a number'): Runner(make_callback(_order='last'))
    with refuses(TypeError, 'generator'): Runner(make_callback(after_fit=generator))
    with refuses(TypeError, 'has to be a method'): Runner(make_callback(after_fit=3))


def test_a_name_of_the_runners_own_objects_is_refused():
    with pytest.raises(ValueError, match="would be named 'show_stats'"):
        Runner(make_callback('ShowStats'))


HELPERS = """
    filter_batch per_batch in_epoch at_epoch master_batch scatter_pred plot_loss save_epoch
    one_batch set_param log_step to_csv send_batch losses fit_model batch_loss show
    summary best_epoch
""".split()


@pytest.mark.parametrize('helper', HELPERS)
def test_helpers_may_have_names_of_their_own(helper):
    Runner(make_callback('Helpful', **{helper: lambda self: None}))


TYPOS = """
    after_bacth aftr_batch after_batchs befor_batch before_fit on_batch_end on_epoch_begin
    on_train_begin pre_batch start_epoch end_epoch beginfit begin_batches afterLoss epoch_end
    cleanup_fit clean_up_batch after_validation after_backwards begn_epoch after_cancel
    before_backward
""".split()


@pytest.mark.parametrize('typo', TYPOS)
def test_names_that_look_like_events(typo):
    with pytest.raises(ValueError, match=f"{typo} is never called.*Did you mean '[a-z_]+'"):
        Runner(make_callback('Typo', **{typo: lambda self: None}))


def test_a_missing_attribute_is_cheap():
    "The search for the name that was meant starts when somebody reads the message"
    import difflib
    cb = Plain()
    was = difflib.get_close_matches
    difflib.get_close_matches = None
    try:
        assert getattr(cb, 'valeu', None) is None
        assert not hasattr(cb, 'valeu')
    finally: difflib.get_close_matches = was
    message = "Plain has no attribute 'valeu'. Did you mean 'value'"
    with pytest.raises(AttributeError, match=message): cb.valeu


def test_handlers_are_bound_once_per_fit(monkeypatch):
    calls = []
    was = Runner._bind
    monkeypatch.setattr(Runner, '_bind', lambda self: (calls.append(1), was(self)))
    run = Runner(Tracer())
    run.fit(3, tiny_learner())
    assert len(calls) == 2   # when the runner was made, and for the fit


def test_a_runner_survives_a_failing_attachment():
    class Frozen(Callback):
        def set_runner(self, run): raise ValueError('frozen')
    run = Runner(Frozen())
    with pytest.raises(ValueError, match='frozen'): run.fit(1, tiny_learner())
    run.cbs = []
    run.fit(1, tiny_learner())      # and TrainEvalCallback is there again
    assert run.n_iter == 3
    assert run.n_epochs == 1.


# --- a fit


def test_fit_checks_before_it_changes_anything():
    learn = tiny_learner()
    tracer = Tracer()
    run = Runner(tracer)
    before = copy.deepcopy(learn.model.state_dict())
    for args, message in (
        ((learn, 1), 'comes first'),
        ((1.0, learn), 'whole number'),
        ((-1, learn), 'is -1'),
        ((1, learn.model), "without 'model'"),
    ):
        with pytest.raises((TypeError, ValueError), match=message): run.fit(*args)
    learn.data.valid_dl = []
    with pytest.raises(ValueError, match='valid_dl yields no batch'): run.fit(1, learn)
    assert tracer.trace == []
    assert run.learn is None
    for k, v in learn.model.state_dict().items(): assert torch.equal(v, before[k])
    learn.data.valid_dl = None
    run.fit(np.int64(1), learn)


def test_fit_within_a_fit():
    class Nested(Callback):
        def after_fit(self): self.run.fit(1, self.learn)
    with pytest.raises(RuntimeError, match='use another Runner'):
        Runner(Nested()).fit(1, tiny_learner())

    class Other(Callback):
        def after_epoch(self): Runner().fit(1, tiny_learner())
    Runner(Other()).fit(1, tiny_learner())


class Stream(IterableDataset):
    def __iter__(self):
        for _ in range(4): yield torch.randn(4), torch.tensor(1)


def _ten_items(): return torch.randn(10, 4), torch.randint(3, (10,))


LOADERS = {
    'DataLoader': DataLoader(TensorDataset(*_ten_items()), 4),
    'stream': DataLoader(Stream(), batch_size=2),
    'list': [[torch.randn(2, 4), torch.tensor([0, 1])]],
    'workers': get_dls(*[Dataset(*_ten_items())]*2, bs=3, num_workers=1)[0],
}


@pytest.mark.parametrize('dl', LOADERS.values(), ids=LOADERS)
def test_any_iterable_of_pairs(dl):
    learn = tiny_learner()
    learn.data = DataBunch(dl, dl, 3)
    run = quiet_runner(AvgStatsCallback(accuracy))
    run.fit(2, learn)
    assert run.n_iter == 2*sum(1 for _ in dl)
    assert run.avg_stats.valid_stats.avg_stats[0] > 0


def test_used_up_iterators_and_bad_batches():
    learn = tiny_learner()
    learn.data.train_dl = iter(list(learn.data.train_dl))
    with pytest.raises(ValueError, match='train_dl yields no batch.*used up'):
        Runner().fit(2, learn)
    for batch, what in (
        (torch.tensor(3.), r'a tensor of shape \(\)'),
        ({}, 'type dict, of length 0'),
        ((), 'type tuple, of length 0'),
        ('ab', 'type str'),
        (7, 'type int'),
        (None, 'type NoneType'),
    ):
        learn.data.train_dl = [batch]
        with pytest.raises(TypeError, match=f'train_dl has to yield batches.*{what}'):
            Runner().fit(1, learn)


def test_devices():
    learn = tiny_learner()
    learn.model.to('meta')
    message = r"model is on meta, but xb is on cpu.*learn.model.to\('cpu'\)"
    with pytest.raises(RuntimeError, match=message): Runner().fit(1, learn)

    learn = tiny_learner()
    learn.data.train_dl = [(x, y.to('meta')) for x, y in learn.data.train_dl]
    with pytest.raises(RuntimeError, match='yb is on meta'): Runner().fit(1, learn)

    class Mover(Callback):
        def begin_batch(self): self.run.yb = torch.zeros_like(self.yb, device='cpu')
    Runner(Mover()).fit(1, learn)


def test_a_model_may_move_its_own_input():
    class Moving(nn.Linear):
        def forward(self, x):
            if x.device.type == 'meta': x = torch.zeros(x.shape)
            return super().forward(x)
    learn = tiny_learner(model=Moving(4, 3))
    learn.data.train_dl = [(x.to('meta'), y) for x, y in learn.data.train_dl]
    Runner().fit(1, learn)


@pytest.mark.parametrize('loss_func, message', [
    (partial(F.cross_entropy, reduction='none'), r'shape \(5,\): reduce it'),
    (lambda p, y: p.mean()[None], r'shape \(1,\)'),
    (lambda p, y: 1., 'type float'),
    (lambda p, y: p.mean().detach(), 'has no gradient'),
])
def test_losses_that_are_none(loss_func, message):
    with pytest.raises(ValueError, match=message):
        Runner().fit(1, tiny_learner(loss_func=loss_func))


def test_a_callback_may_reduce_the_loss():
    class Reduce(Callback):
        def after_loss(self): self.run.loss = self.loss.mean()
    torch.manual_seed(0)
    a = tiny_learner(loss_func=partial(F.cross_entropy, reduction='none'))
    Runner(Reduce()).fit(1, a)
    torch.manual_seed(0)
    b = tiny_learner()
    Runner().fit(1, b)
    assert torch.equal(a.model.weight, b.model.weight)


def test_learner_refuses_what_does_not_belong():
    model = nn.Linear(4, 3)
    data = DataBunch([1], [1])
    opt = optim.SGD(model.parameters(), lr=.1)
    loss_func = F.cross_entropy
    for args, message in (
        ((model, loss_func, opt, data), 'not an optimizer'),
        ((None, opt, loss_func, data), 'model is a NoneType'),
        ((model, opt, 'mse', data), 'loss_func is a str'),
        ((model, optim.SGD, loss_func, data), r'opt is a type: pass an object, such as SGD\(...\)'),
        ((model, opt, loss_func, [1]), 'DataBunch'),
    ):
        with pytest.raises(TypeError, match=message): Learner(*args)
    with pytest.raises(ValueError, match="none of the optimizer's parameters"):
        Learner(nn.Linear(4, 3), opt, loss_func, data)


def test_functions_as_models_and_closures_of_optimizers():
    w = torch.zeros(4, 3, requires_grad=True)
    data = tiny_learner().data
    learn = Learner(lambda x: x @ w, optim.SGD([w], lr=0.1), F.cross_entropy, data)
    Runner().fit(1, learn)
    assert w.abs().sum() > 0
    class Odd(optim.SGD):
        def step(self, one, two): pass
    model = nn.Linear(4, 3)
    with pytest.raises(TypeError, match=r'Odd.step\(self, one, two\) can be called neither'):
        Learner(model, Odd(model.parameters()), F.cross_entropy, data)


def test_get_model_uses_the_data():
    ds = Dataset(torch.randn(20, 12), torch.randint(4, (20,)))
    data = DataBunch(*get_dls(ds, ds, bs=5), 4)
    learn = create_learner(partial(get_model, nh=7), F.cross_entropy, data)
    assert [tuple(p.shape) for p in learn.model.parameters()] == [(7, 12), (7,), (4, 7), (4,)]
    assert learn.opt.param_groups[0]['lr'] == 0.5


def test_no_graph_is_kept_alive():
    learn = tiny_learner()
    run = Runner()
    run.fit(1, learn)
    assert not run.loss.requires_grad
    assert not run.pred.requires_grad


def test_modes():
    class Modes(Callback):
        def begin_fit(self): self.seen = []
        def after_pred(self):
            self.seen.append((self.in_train, self.model.training, torch.is_grad_enabled()))
    run = Runner(Modes())
    run.fit(2, tiny_learner())
    epoch = [(True, True, True)]*3 + [(False, False, False)]*2
    assert run.modes.seen == epoch*2


def test_ctrl_c_while_tidying_up(monkeypatch):
    """Interrupted within zero_grad or within no_grad's own exit.

    Nothing is left that would spoil the next fit.
    """
    learn = tiny_learner()
    calls = []
    def zero_grad(was=learn.opt.zero_grad):
        calls.append(1)
        if len(calls) == 2: raise KeyboardInterrupt
        was()
    learn.opt.zero_grad = zero_grad
    with pytest.raises(KeyboardInterrupt): Runner().fit(1, learn)
    assert all(p.grad is None for p in learn.model.parameters())

    learn = tiny_learner()
    leave = torch.no_grad.__exit__
    def interrupted(self, *args):
        monkeypatch.setattr(torch.no_grad, '__exit__', leave)
        raise KeyboardInterrupt
    monkeypatch.setattr(torch.no_grad, '__exit__', interrupted)
    with pytest.raises(KeyboardInterrupt): Runner().fit(1, learn)
    assert torch.is_grad_enabled()


def test_n_epochs_ends_at_a_whole_number():
    run = Runner()
    run.fit(2, tiny_learner(n_train=98))
    assert run.n_epochs == 2.


# --- statistics


def test_average_over_uneven_batches():
    torch.manual_seed(0)
    x, y = torch.randn(103, 4), torch.randint(3, (103,))
    model = nn.Linear(4, 3)
    opt = optim.SGD(model.parameters(), lr=0.)
    data = DataBunch(*get_dls(Dataset(x, y), Dataset(x, y), 10), 3)
    run = quiet_runner(AvgStatsCallback([accuracy, lambda p, y: p.mean().item()]))
    run.fit(1, Learner(model, opt, F.cross_entropy, data))
    with torch.no_grad(): pred = model(x)
    expected = [F.cross_entropy(pred, y).item(), accuracy(pred, y).item(), pred.mean().item()]
    for stats in (run.avg_stats.train_stats, run.avg_stats.valid_stats):
        assert stats.avg_stats == pytest.approx(expected, abs=1e-5)


def test_statistics_of_a_batch_in_which_nothing_counts():
    "Its mean loss is 0/0, which must not make the epoch's nan"
    x = torch.randn(5, 4)
    zeros, ones, ignored = (torch.full((5,), label) for label in (0, 1, -100))
    learn = tiny_learner()
    learn.data = DataBunch([(x, zeros)], [(x, ignored), (x, ones)])
    run = quiet_runner(AvgStatsCallback())
    run.fit(1, learn)
    with torch.no_grad(): expected = F.cross_entropy(learn.model(x), ones).item()
    assert run.avg_stats.valid_stats.avg_stats == [pytest.approx(expected)]


def test_statistics_without_batches():
    stats = AvgStats(accuracy, True)
    assert repr(stats) == ''
    assert len(stats.avg_stats) == 2
    assert all(v != v for v in stats.avg_stats)
    with pytest.raises(TypeError, match='A metric has to be'): AvgStats(['accuracy'], True)


def test_metric_objects_are_not_shared():
    from torchmetrics.classification import MulticlassAccuracy
    metric = MulticlassAccuracy(3, average='micro')
    run = quiet_runner(AvgStatsCallback([metric, accuracy]))
    run.fit(2, tiny_learner())
    assert metric.update_count == 0
    for stats in (run.avg_stats.train_stats, run.avg_stats.valid_stats):
        _, theirs, ours = stats.avg_stats
        assert theirs == pytest.approx(ours)


def test_cancelled_batches_are_not_in_the_statistics():
    class Two(Callback):
        def begin_batch(self):
            if self.in_train and self.n_iter == 2: raise CancelEpochException()
    run = quiet_runner([Two(), AvgStatsCallback(accuracy)])
    run.fit(1, tiny_learner())
    assert len(run.avg_stats.train_stats._means[0].values) == 2
    assert len(run.avg_stats.valid_stats._means[0].values) == 2


def test_nothing_is_read_from_the_device_per_batch(monkeypatch):
    """How often a number is read does not grow with the number of batches.

    A number read from a GPU costs a wait.
    """
    reads = []
    def counted(name, was):
        def read(self, *args, **kwargs):
            reads.append(name)
            return was(self, *args, **kwargs)
        return read
    for k in ('item', 'cpu', 'tolist', '__bool__', '__float__', '__int__', 'numpy'):
        monkeypatch.setattr(torch.Tensor, k, counted(k, getattr(torch.Tensor, k)))
    counts = []
    for n in (5, 50):
        reads.clear()
        quiet_runner([AvgStatsCallback(accuracy)]).fit(2, tiny_learner(n_train=n, n_valid=n))
        counts.append(len(reads))
    assert counts[0] == counts[1]


def test_losses_that_say_what_they_were_divided_by():
    class Wrapped(nn.Module):
        def forward(self, p, y): return F.cross_entropy(p, y, ignore_index=0)
        def denominator(self, y): return (y != 0).sum()
    learn = tiny_learner(loss_func=Wrapped())
    x = torch.randn(6, 4)
    y = torch.tensor([1, 0, 0, 1, 1, 2])
    learn.data.valid_dl = [(x[:3], y[:3]), (x[3:], y[3:])]
    run = quiet_runner(AvgStatsCallback())
    run.fit(1, learn)
    with torch.no_grad(): expected = F.cross_entropy(learn.model(x), y, ignore_index=0).item()
    assert run.avg_stats.valid_stats.avg_stats[0] == pytest.approx(expected)


def test_a_sum_is_shown_as_the_mean_of_its_items():
    module = nn.CrossEntropyLoss(reduction='sum')
    function = partial(F.cross_entropy, reduction='sum')
    for loss_func in (module, function):
        learn = tiny_learner(loss_func=loss_func, opt_func=partial(optim.SGD, lr=0.))
        x, y = (torch.cat(ts) for ts in zip(*learn.data.valid_dl))
        run = quiet_runner(AvgStatsCallback())
        run.fit(1, learn)
        with torch.no_grad(): mean = F.cross_entropy(learn.model(x), y).item()
        assert run.avg_stats.valid_stats.avg_stats == [pytest.approx(mean)]


def test_structured_targets_are_counted_by_items():
    from minifastai.utils import batch_size
    t = torch.zeros(5, 3)
    for targets, n in (
        (t, 5),
        ((t, t), 5),
        ({'a': t}, 5),
        ([{'a': t}]*4, 4),
        (['cat', 'dog'], 2),
        ([1, 2, 3], 3),
        ((({'b': t},),), 1),
        (torch.tensor(1.), 1),
        (None, None),
    ):
        assert batch_size(targets) == n


def test_metrics_of_one_name_and_metrics_that_are_no_numbers():
    from torchmetrics import MetricCollection
    from torchmetrics.classification import MulticlassAccuracy
    top_1, top_2 = (MulticlassAccuracy(3, top_k=k) for k in (1, 2))
    run = quiet_runner(AvgStatsCallback([top_1, top_2]))
    run.fit(1, tiny_learner())
    names = ('loss', 'multiclass_accuracy', 'multiclass_accuracy_2')
    columns = [f'{p}_{n}' for p in ('train', 'valid') for n in names]
    assert list(run.metrics) == columns

    run = quiet_runner(AvgStatsCallback(MetricCollection([MulticlassAccuracy(3)])))
    run.fit(1, tiny_learner())
    assert 'valid_MulticlassAccuracy' in run.metrics

    for metric, message in ((lambda p, y: None, 'metric has to return numbers, but returned'),
                            (lambda p, y: 'much', 'has to return numbers, but returned')):
        run = Runner(AvgStatsCallback([metric]))
        with pytest.raises(TypeError, match=message): run.fit(1, tiny_learner())
        assert run.n_iter == 0   # and not after the whole epoch


def test_metrics_of_tuple_predictions_keep_no_graph():
    class Two(nn.Linear):
        def forward(self, x): return super().forward(x), x
    def loss_of_first(p, y): return F.cross_entropy(p[0], y)
    learn = tiny_learner(model=Two(4, 3), loss_func=loss_of_first)
    run = quiet_runner(AvgStatsCallback([lambda p, y: F.cross_entropy(p[0], y)]))
    run.fit(1, learn)
    assert not any(v.requires_grad for m in run.avg_stats.train_stats._means for v in m.values)
    assert not run.pred[0].requires_grad


def test_averages_can_be_pickled_after_a_fit_with_any_loss():
    x, y = torch.randn(6, 3), torch.randint(2, (6,))
    model = nn.Linear(3, 2)
    opt = optim.SGD(model.parameters(), lr=0.1)
    learn = Learner(model, opt, F.cross_entropy, DataBunch([(x, y)]))
    learn.loss_func = lambda pred, yb: F.cross_entropy(pred, yb)
    stats = AvgStatsCallback(accuracy)
    quiet_runner([stats]).fit(1, learn)
    again = pickle.loads(pickle.dumps(stats))
    assert again.train_stats.avg_stats == stats.train_stats.avg_stats

    # another loss, the same callback: weighted anew
    learn.loss_func = nn.CrossEntropyLoss(ignore_index=1)
    one_counts = torch.tensor([0, 1, 1, 1, 1, 1])
    all_count = torch.zeros(6, dtype=torch.int64)
    learn.data = DataBunch([(x, one_counts), (x, all_count)])
    learn.opt.param_groups[0]['lr'] = 0.
    for s in (stats, again):
        quiet_runner([s]).fit(1, learn)
        pred = model(torch.cat([x[:1], x]))
        expected = F.cross_entropy(pred, torch.zeros(7, dtype=torch.int64)).item()
        assert s.train_stats.avg_stats[0] == pytest.approx(expected)


def test_no_graph_is_kept_alive_after_training_batches():
    "Validation has no graph: without it, the last batch is one of training"
    learn = tiny_learner()
    learn = Learner(learn.model, learn.opt, F.cross_entropy, DataBunch(learn.data.train_dl, None))
    run = Runner()
    run.fit(1, learn)
    assert not run.loss.requires_grad
    assert not run.pred.requires_grad


def test_handlers_take_no_argument():
    greedy = make_callback(after_loss=lambda self, loss: None)
    with pytest.raises(TypeError, match='take no argument but self'): Runner(greedy)


@pytest.mark.parametrize('kind', [OrderedDict, Counter, partial(defaultdict, list)])
def test_batches_keep_their_structure(kind):
    "Named tuples and dictionaries, also subclasses, come back as what they were"
    Pair = namedtuple('Pair', 'a b')
    batch = kind()
    batch.update(pair=Pair(torch.ones(2), 'x'), many=[torch.ones(1), (torch.ones(1),)])
    new = map_tensors(lambda t: t + 1, batch)
    assert type(new) is type(batch)
    assert type(new['pair']) is Pair
    assert new['pair'].a.tolist() == [2., 2.]
    assert new['pair'].b == 'x'
    assert new['many'] == [torch.full((1,), 2.), (torch.full((1,), 2.),)]
    assert batch['pair'].a.tolist() == [1., 1.]
