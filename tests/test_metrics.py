"Metrics: names, several numbers, validation only, labels that do not count, and one channel."
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import make_callback, quiet_runner, tiny_learner
from torch import nn, optim
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix
from torchmetrics.classification import MulticlassF1Score

from minifastai.callbacks import Callback
from minifastai.data import DataBunch, Dataset, get_dls
from minifastai.learner import Learner, Runner
from minifastai.metrics import (
    accuracy, AvgStats, AvgStatsCallback, find_metric, metric_mode, numbers_only)
from minifastai.progress import ProgressCallback
from minifastai.recorder import Recorder
from minifastai.schedules import LRSchedulerCallback

plateau = partial(optim.lr_scheduler.ReduceLROnPlateau, patience=0, factor=0.1)


class Same(nn.Module):
    "Predicts its input"
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(()))
    def forward(self, x): return x + self.w


def measured(x, y, metrics=(), bs=3, loss_func=F.cross_entropy, **kwargs):
    "What is in `run.metrics` after a fit of a model that predicts `x`"
    model = Same()
    batches = list(zip(x.split(bs), y.split(bs)))
    run = quiet_runner([AvgStatsCallback(metrics, **kwargs), Recorder()])
    opt = optim.SGD(model.parameters(), lr=0.)
    run.fit(1, Learner(model, opt, loss_func, DataBunch(batches, batches)))
    return run.metrics, run.recorder


x = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
y = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 0])


# --- labels

def test_labels_that_do_not_count_never_count():
    labels = y.clone()
    labels[2:7] = -100
    counts = labels != -100
    row, _ = measured(x, labels, accuracy)
    expected = (x.argmax(1) == labels)[counts].float().mean().item()
    assert row['valid_accuracy'] == pytest.approx(expected)
    assert row['valid_loss'] == pytest.approx(F.cross_entropy(x, labels).item(), abs=1e-6)

    pixels = torch.randn(5, 3, 4, 4)
    masks = torch.randint(-1, 3, (5, 4, 4))
    masks[masks == -1] = -100
    masks[:2] = -100   # a batch in which nothing counts
    row, _ = measured(pixels, masks, accuracy, bs=2)
    right = (pixels.argmax(1) == masks)[masks != -100].float().mean().item()
    assert row['valid_accuracy'] == pytest.approx(right)


@pytest.mark.parametrize('shape', [(4,), (4, 1), (4, 1, 2)])
def test_accuracy_of_one_score_says_what_to_use(shape):
    scores = torch.randn(shape)
    with pytest.raises(ValueError, match='exact_match'): accuracy(scores, torch.ones(4))


def test_an_ignored_label_is_not_blamed_for_a_wrong_one():
    learn = tiny_learner()
    bad = torch.tensor([-100, 0, 7, 1, 2])
    learn.data.train_dl = [(torch.randn(5, 4), bad)]
    with pytest.raises(ValueError, match='Item 2 of this batch has the label 7'):
        Runner().fit(1, learn)


# --- names

def test_names_of_metrics():
    collection = MetricCollection({'acc': MulticlassAccuracy(3), 'f1': MulticlassF1Score(3)},
                                  prefix='my_')
    for metrics, names in (
        ({'top': accuracy}, ['top']),
        ([{'top': accuracy}, accuracy], ['top', 'accuracy']),
        (collection, ['my_acc', 'my_f1']),
        (lambda p, y: p.mean(), ['metric']),
        ([lambda p, y: p.mean(), lambda p, y: p.std()], ['metric', 'metric_2']),
        (partial(accuracy), ['accuracy']),
        ({'loss': accuracy}, ['loss_2']),
        ((), []),
    ):
        row, _ = measured(x, y, metrics)
        assert list(row) == [f'{part}_{n}' for part in ('train', 'valid') for n in ('loss', *names)]
    for bad in ('accuracy', 3, [None]):
        with pytest.raises(TypeError, match='A metric has to be'): AvgStatsCallback(bad)


def test_metrics_for_validation_only():
    seen = []
    def note(pred, yb):
        seen.append(len(yb))
        return pred.mean()
    row, _ = measured(x, y, accuracy, valid_metrics={'note': note})
    assert list(row) == ['train_loss', 'train_accuracy', 'valid_loss', 'valid_accuracy',
                         'valid_note']
    assert sum(seen) == 10


# --- several numbers

def test_several_numbers_are_in_the_history_and_not_in_the_table(tmp_path, capsys):
    def mean_scores(pred, yb): return pred.mean(0)
    metrics = [mean_scores, MulticlassF1Score(3, average=None), MulticlassConfusionMatrix(3)]
    row, recorder = measured(x, y, metrics)
    torch.testing.assert_close(row['valid_mean_scores'], x.mean(0))
    matrix = row['valid_multiclass_confusion_matrix']
    assert matrix.sum() == 10 and matrix.shape == (3, 3)
    torch.testing.assert_close(row['valid_multiclass_f1_score'],
                               MulticlassF1Score(3, average=None)(x, y))
    assert recorder.history[0]['valid_mean_scores'] is row['valid_mean_scores']
    recorder.to_csv(tmp_path/'history.csv')
    head = (tmp_path/'history.csv').read_text().splitlines()[0].split(',')
    assert head == ['epoch', 'batches', 'lr', 'train_loss', 'valid_loss', 'seconds']

    learn = tiny_learner()
    run = Runner([AvgStatsCallback(metrics), ProgressCallback()])
    run.fit(1, learn)
    assert run.progress.table.columns == ['epoch', 'train_loss', 'valid_loss', 'seconds']
    assert numbers_only(dict(a=torch.tensor([2.]), b=torch.zeros(2), c=1)) == dict(a=2., c=1)
    assert repr(AvgStats(metrics, True)) == ''


def test_a_metric_that_computes_a_dictionary():
    class Both:
        def reset(self): self.n = 0
        def update(self, pred, yb): self.n += len(yb)
        def compute(self): return {'n': torch.tensor(self.n), 'each': torch.ones(3)}
    row, _ = measured(x, y, Both())
    assert row['valid_both_n'] == 10
    assert row['valid_both_each'].tolist() == [1., 1., 1.]


# --- one channel

def test_metrics_of_an_epoch_begin_empty_and_are_seen_by_everybody():
    seen = []
    class Own(Callback):
        def begin_epoch(self): seen.append(dict(self.run.metrics))
        def after_epoch(self): self.run.metrics['own'] = self.epoch
    class Reader(Callback):
        def after_epoch(self): seen.append(self.run.metrics['valid_loss'])
    rec = Recorder()
    run = quiet_runner([rec, Reader(), Own(), AvgStatsCallback(), ProgressCallback()])
    run.fit(2, tiny_learner())
    assert seen[0] == seen[2] == {}
    assert [row['own'] for row in rec.history] == [0, 1]
    assert [row['valid_loss'] for row in rec.history] == [seen[1], seen[3]]
    assert 'own' in run.progress.table.columns


def test_a_callback_that_has_left_leaves_nothing_behind():
    stats, rec = AvgStatsCallback(accuracy), Recorder()
    run = quiet_runner([stats, rec])
    run.fit(1, tiny_learner())
    run.cbs.remove(stats)
    run.fit(1, tiny_learner())
    assert not hasattr(run, 'avg_stats')
    assert list(rec.history[0]) == ['epoch', 'batches', 'lr', 'mean_batch_loss', 'seconds']
    assert run.recorder is rec


def test_nobody_is_found_by_name():
    class MyStats(AvgStatsCallback): pass
    stats = AvgStatsCallback(accuracy)
    stats.name = 'numbers'
    for s in (MyStats(accuracy), stats):
        rec = Recorder()
        sched = LRSchedulerCallback(plateau, per_batch=False)
        run = quiet_runner([sched, rec, ProgressCallback(), s])
        run.fit(2, tiny_learner())
        assert rec.history[-1]['valid_accuracy'] == run.progress.table.rows[-1]['valid_accuracy']


# --- the plateau scheduler

def test_the_plateau_scheduler_waits_for_new_numbers():
    class EveryOther(Callback):
        def begin_validate(self): return self.epoch % 2 == 0
    learn = tiny_learner()
    sched = LRSchedulerCallback(plateau, per_batch=False)
    run = quiet_runner([AvgStatsCallback(), EveryOther(), sched])
    run.fit(6, learn)
    assert sched.sched.last_epoch == 3   # PyTorch counts its steps there


class Improves(nn.Module):
    "Right about two more items in each epoch"
    def __init__(self):
        super().__init__()
        self.w, self.right = nn.Parameter(torch.zeros(1)), 0
    def forward(self, x):
        self.right += self.training*2
        first = torch.where(torch.arange(len(x)) < self.right, 3., -3.)
        return torch.stack([first, torch.zeros(len(x))], 1) + self.w


def test_the_plateau_scheduler_looks_at_any_metric():
    def lr_after(metric, mode, metrics=accuracy):
        model = Improves()
        batch = [(torch.zeros(20, 1), torch.zeros(20, dtype=torch.long))]
        opt = optim.SGD(model.parameters(), .1)
        learn = Learner(model, opt, F.cross_entropy, DataBunch(batch, batch))
        sched = LRSchedulerCallback(partial(plateau, mode=mode), per_batch=False, metric=metric)
        quiet_runner([AvgStatsCallback(metrics), sched]).fit(5, learn)
        return learn.opt.param_groups[0]['lr']
    assert lr_after('valid_accuracy', 'max') == 0.1
    def quality(p, y): return accuracy(p, y)
    assert lr_after('valid_quality', 'max', quality) == 0.1
    assert lr_after('valid_quality', 'min', quality) < 0.01
    for metric, mode in (('valid_loss', 'max'), ('valid_accuracy', 'min')):
        with pytest.raises(ValueError, match=f'has mode={mode!r}'): lr_after(metric, mode)
    with pytest.raises(ValueError, match="no metric 'valid_acc'; there are .*Did you mean"):
        lr_after('valid_acc', 'max')


def test_directions_of_metrics():
    for name in ('valid_loss', 'error', 'valid_rmse', 'mean_absolute_error', 'valid_perplexity'):
        assert metric_mode(name) == 'min'
    for name in ('valid_accuracy', 'multiclass_f1_score', 'valid_binary_auroc', 'exact_match'):
        assert metric_mode(name) == 'max'
    assert metric_mode('valid_quality', 'max') == metric_mode('valid_loss', 'max') == 'max'
    for name in ('valid_quality', 'score', 'loss_accuracy'):
        with pytest.raises(ValueError, match="pass mode='min' or mode='max'"): metric_mode(name)
    with pytest.raises(ValueError, match="not 'up'"): metric_mode('loss', 'up')


def test_finding_a_metric():
    row = dict(train_loss=1., valid_loss=2., valid_matrix=torch.zeros(2, 2))
    assert find_metric(row, 'valid_loss') == 2.
    assert find_metric(dict(train_loss=1.), 'valid_loss') is None
    for name in ('valid_acc', 'valid_matrix', 'own'):
        with pytest.raises(ValueError, match=f'no metric {name!r}; there are train_loss'):
            find_metric(row, name)
    with pytest.raises(ValueError, match='there are none: add an AvgStatsCallback'):
        find_metric({}, 'valid_loss')


# --- validation at any time

def test_validation_without_training():
    learn = tiny_learner()
    learn.model.train()
    before = learn.model.weight.clone()
    x, y = (torch.cat(t) for t in zip(*learn.data.valid_dl))
    with torch.no_grad(): loss = F.cross_entropy(learn.model(x), y).item()
    run = quiet_runner([AvgStatsCallback(accuracy), Recorder(), ProgressCallback()])
    numbers = run.validate(learn)
    assert numbers['valid_loss'] == pytest.approx(loss, abs=1e-6)
    assert list(numbers) == ['valid_loss', 'valid_accuracy']
    assert torch.equal(learn.model.weight, before) and learn.model.training
    run.fit(1, learn)
    history = list(run.recorder.history)
    assert run.validate() == run.validate(learn)
    assert run.recorder.history == history
    on_train = run.validate(learn, dl=learn.data.train_dl)
    assert on_train['valid_loss'] != run.validate()['valid_loss']


def test_what_validation_refuses():
    learn = tiny_learner()
    with pytest.raises(ValueError, match='AvgStatsCallback'): Runner().validate(learn)
    run = quiet_runner(AvgStatsCallback())
    with pytest.raises(ValueError, match='no learner yet'): run.validate()
    with pytest.raises(TypeError, match='has to be a Learner'): run.validate(learn.model)
    learn.data.valid_dl = None
    with pytest.raises(ValueError, match='pass some as dl='): run.validate(learn)


def test_validation_in_the_middle_of_an_epoch_puts_everything_back():
    states = []
    class Often(Callback):
        def after_loss(self):
            if not self.in_train: return
            def state():
                run = self.run
                return (run.in_train, run.xb, run.yb, run.pred, run.loss, run.iters, run.n_iter,
                        run.n_epochs, dict(run.metrics), self.model.training,
                        torch.is_grad_enabled())
            before = state()
            numbers = self.run.validate()
            assert all(old is new or old == new for old, new in zip(before, state()))
            states.append(numbers['valid_loss'])
    def trained(*cbs):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
        learn = tiny_learner(model=model)
        x, y = (torch.cat(t) for t in zip(*learn.data.train_dl))
        learn.data = DataBunch(*get_dls(Dataset(x, y), Dataset(x, y), 5), 3)
        rec = Recorder()
        quiet_runner([AvgStatsCallback(accuracy), rec, ProgressCallback(), *cbs]).fit(2, learn)
        rows = [{k: v for k, v in row.items() if k != 'seconds'} for row in rec.history]
        return model.state_dict(), rows
    (weights, rows), (others, other_rows) = trained(), trained(Often())
    for k in weights: assert torch.equal(weights[k], others[k])
    assert rows == other_rows
    assert len(states) == 6 and all(map(math.isfinite, states))


def test_a_nested_validation_of_an_interrupted_pass_still_restores():
    class Fails(Callback):
        def after_loss(self):
            if not self.in_train: raise OSError('in validation')
    class Try(Callback):
        def after_batch(self):
            if not self.in_train: return
            with pytest.raises(OSError): self.run.validate()
            assert self.in_train and self.model.training
    learn = tiny_learner(n_valid=1)
    run = quiet_runner([AvgStatsCallback(), Fails(), Try()])
    with pytest.raises(OSError, match='in validation'): run.fit(1, learn)


def test_averages_of_data_loaders_by_hand():
    g = torch.Generator().manual_seed(5)
    x, y = torch.randn(53, 4, generator=g), torch.randint(3, (53,), generator=g)
    weight = torch.tensor([1., 3., .5])
    loss_func = nn.CrossEntropyLoss(weight=weight)
    learn = tiny_learner(loss_func=loss_func)
    learn.data = DataBunch(*get_dls(Dataset(x, y), Dataset(x, y), 10), 3)
    numbers = quiet_runner(AvgStatsCallback(accuracy)).validate(learn)
    with torch.no_grad(): pred = learn.model(x)
    assert numbers['valid_loss'] == pytest.approx(loss_func(pred, y).item(), abs=1e-6)
    assert numbers['valid_accuracy'] == pytest.approx((pred.argmax(1) == y).double().mean().item())


def test_a_made_up_callback_is_not_asked_for_averages():
    own = make_callback('AvgStats', after_epoch=lambda self: None)   # has the name avg_stats
    rec = Recorder()
    quiet_runner([own, rec]).fit(1, tiny_learner())
    assert 'mean_batch_loss' in rec.history[0]


def test_a_validation_within_a_validation_is_refused():
    for event in ('after_validate', 'cleanup_validate', 'after_batch'):
        class Nested(Callback):
            def _ask(self):
                if not self.in_train: self.run.validate()
        setattr(Nested, event, Nested._ask)
        with pytest.raises(RuntimeError, match='validating already'):
            quiet_runner([AvgStatsCallback(), Nested()]).fit(1, tiny_learner())
    seen = []
    class After(Callback):
        def after_epoch(self): seen.append(self.run.validate(dl=self.data.train_dl))
    rec = Recorder()
    quiet_runner([AvgStatsCallback(accuracy), After(), rec]).fit(1, tiny_learner())
    assert rec.history[0]['valid_loss'] != seen[0]['valid_loss']
    assert 'valid_accuracy' in rec.history[0]


def test_a_models_own_loss_is_weighted_by_its_labels():
    class Own(Same):
        def forward(self, x, labels):
            x = super().forward(x)
            return dict(loss=F.cross_entropy(x, labels), logits=x)
    labels = y.clone()
    labels[3:8] = -100
    model = Own()
    batches = [dict(x=a, labels=b) for a, b in zip(x.split(3), labels.split(3))]
    learn = Learner(model, optim.SGD(model.parameters(), 0.), None, DataBunch(batches, batches))
    run = quiet_runner(AvgStatsCallback())
    run.fit(1, learn)
    assert run.metrics['valid_loss'] == pytest.approx(F.cross_entropy(x, labels).item(), abs=1e-6)


def test_another_ignored_label():
    labels = y.clone()
    labels[2:7] = 255
    loss = nn.CrossEntropyLoss(ignore_index=255)
    row, _ = measured(x, labels, partial(accuracy, ignore=255), loss_func=loss)
    right = (x.argmax(1) == labels)[labels != 255].float().mean().item()
    assert row['valid_accuracy'] == pytest.approx(right)


def test_logits_with_the_classes_last():
    class Out: pass
    out = Out()
    out.logits = torch.randn(2, 4, 4)   # (N, T, C), T == C
    labels = torch.randint(4, (2, 4))
    assert accuracy(out, labels) == (out.logits.argmax(-1) == labels).float().mean()


@pytest.mark.parametrize('wrap', [
    lambda loss: loss, lambda loss: loss.forward, lambda loss: loss.__call__,
    lambda loss: torch.compile(loss, backend='eager'), lambda loss: partial(loss),
    lambda loss: torch.compile(loss.forward, backend='eager'),
    lambda loss: partial(F.cross_entropy, weight=loss.weight)])
def test_class_weights_in_any_spelling_of_the_loss(wrap):
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1., 5., 0.2]))
    row, _ = measured(x, y, loss_func=wrap(loss))
    assert row['valid_loss'] == pytest.approx(loss(x, y).item(), abs=1e-6)


def test_class_weights_for_labels_in_eight_bits():
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1., 5., 0.2]))
    row, _ = measured(x, y.to(torch.uint8), loss_func=loss)
    assert row['valid_loss'] == pytest.approx(loss(x, y).item(), abs=1e-6)


def test_numbers_of_numpy_are_numbers():
    import numpy as np
    assert numbers_only(dict(a=np.float32(2), b=np.int64(3), c=np.ones(1), d=np.ones(2))) == \
        dict(a=2., b=3, c=1.)
    class Array:
        def reset(self): pass
        def update(self, pred, yb): pass
        def compute(self): return np.array([1., 2.])
    row, _ = measured(x, y, Array())
    assert row['valid_array'].tolist() == [1., 2.]
    with pytest.raises(TypeError, match='A metric has to be'): AvgStatsCallback(Array)
