"""What a step may cost, counted instead of timed.

Counted are calls of Python functions, operations of PyTorch, and reads of a device's numbers.
Counts are the same on a busy machine.
"""
import gc
import sys
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from helpers import quiet_runner
from torch import nn, optim
from torch.utils.data import TensorDataset
from torch.utils._python_dispatch import TorchDispatchMode

from minifastai.data import DataBunch, Dataset, get_dls
from minifastai.callbacks import Callback
from minifastai.learner import Learner
from minifastai.metrics import accuracy, AvgStatsCallback
from minifastai.schedules import ParamScheduler, sched_lin
from minifastai.recorder import Recorder
from minifastai.activations import ActivationStats
from minifastai.norms import RunningBatchNorm

# steps: the difference of two fits has no set-up in it
FEW, MANY = 10, 30


@pytest.fixture(scope='module', autouse=True)
def quick_collections():
    """Hide all that was imported from the garbage collector, which runs before each count.

    A collection would take 150 ms, 48 times.
    """
    fit(nothing, 1)()   # the first optimizer imports much
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


class Operations(TorchDispatchMode):
    "Counts PyTorch's operations by name"
    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        is_mark = name.startswith('_record_function')   # a profiler's marks
        if not is_mark: self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def calls(f) -> int:
    """How often functions are called while `f` runs.

    Functions written in C count, and those within PyTorch's Python code.
    """
    n = 0
    def count(frame, event, arg):
        nonlocal n
        if event in ('call', 'c_call'): n += 1
    # what is thrown away may call something, too
    gc.collect()
    gc.disable()
    sys.setprofile(count)
    try: f()
    finally:
        sys.setprofile(None)
        gc.enable()
    return n


def operations(f) -> Counter:
    with Operations() as ops: f()
    return ops.counts


def model(): return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def batches(n): return [(torch.randn(4, 6), torch.randint(3, (4,))) for _ in range(n)]


def fit(cbs, n):
    "A function that trains on `n` batches by a runner with `cbs()`"
    m = model()
    run = quiet_runner(cbs())
    opt = optim.SGD(m.parameters(), lr=0.1)
    learn = Learner(m, opt, F.cross_entropy, DataBunch(batches(n), c=3))
    return lambda: run.fit(1, learn)


def by_hand(cbs, n):
    "The same by a loop written out, which keeps records if there are `cbs()` that do"
    m = model()
    dl = batches(n)
    opt = optim.SGD(m.parameters(), lr=0.1)
    keeps_records = bool(cbs())

    def f():
        lrs, losses, accuracies = [], [], []
        for xb, yb in dl:
            pred = m(xb)
            loss = F.cross_entropy(pred, yb)
            loss.backward()
            opt.step()
            opt.zero_grad()
            if not keeps_records: continue
            lrs.append(opt.param_groups[0]['lr'])
            losses.append(loss.detach())
            accuracies.append((pred.detach().argmax(1) == yb).float().mean())
    return f


def total(counted) -> int: return counted.total() if isinstance(counted, Counter) else counted


def a_step(count, make, cbs):
    "What one more step costs"
    make(cbs, 1)()   # what is done only once in a program

    def fewest(n):
        "The least of three counts: what happens now and then is left out"
        return min((count(make(cbs, n)) for _ in range(3)), key=total)

    few, many = fewest(FEW), fewest(MANY)
    steps = MANY - FEW
    if not isinstance(few, Counter): return (many - few)/steps
    return {k: (many[k] - few[k])/steps for k in many if many[k] != few[k]}


def nothing(): return []
def books(): return [Recorder(), AvgStatsCallback(accuracy)]
def books_and_schedule(): return [*books(), ParamScheduler('lr', sched_lin(0.1, 0.01))]


# more than by hand: measured on Python 3.11, and a tenth for other versions
@pytest.mark.parametrize('cbs, most', [
    (nothing, 26),
    (books, 67),
    (books_and_schedule, 97),
])
def test_calls_of_functions_a_step(cbs, most):
    ours = a_step(calls, fit, cbs)
    hand = a_step(calls, by_hand, cbs)
    assert 0 < ours - hand <= most, (ours, hand)


class Listens(Callback):
    def __init__(self, i): self.name = f'listens_{i}'
    def begin_batch(self): pass
    def after_batch(self): pass


def test_a_callback_costs_a_call_for_each_event_it_listens_to():
    def cost(n): return a_step(calls, fit, lambda: [Listens(i) for i in range(n)])
    assert cost(11) - cost(1) == 10*2


def test_a_step_without_callbacks_is_the_same_operations_as_by_hand():
    assert a_step(operations, fit, nothing) == a_step(operations, by_hand, nothing)


def test_books_add_six_operations_and_never_look():
    "Four to count labels that are not ignored, and two `detach`, which take next to nothing"
    ours = a_step(operations, fit, books)
    hand = a_step(operations, by_hand, books)
    different = {k: (ours.get(k), hand.get(k)) for k in ours | hand if ours.get(k) != hand.get(k)}
    assert sum(ours.values()) - sum(hand.values()) <= 6, different
    assert '_local_scalar_dense' not in ours   # .item(), a wait for the device


def test_watching_layers_never_looks():
    for grads in (False, True):
        ours = a_step(operations, fit, lambda: [ActivationStats(grads=grads)])
        assert '_local_scalar_dense' not in ours


@pytest.mark.parametrize('cls', [Dataset, TensorDataset])
def test_a_batch_of_data_is_two_operations(cls):
    ds = cls(torch.randn(64, 6), torch.randint(3, (64,)))
    dl, _ = get_dls(ds, ds, 2)
    def through():
        for _ in dl: pass
    counts = operations(through)
    assert counts['index'] == 2*32
    # indices become a tensor, which takes next to nothing; and the permutation, once
    assert counts.total() - counts['lift_fresh'] <= 2*32 + 6, counts


@pytest.mark.parametrize('shape', [(2, 16, 7, 7), (64, 3, 5)])
def test_operations_of_the_running_norm(shape):
    def once(layer):
        x = torch.randn(shape, requires_grad=True)
        return operations(lambda: layer(x).sum().backward())
    nf = shape[1]
    batch_norm = nn.BatchNorm2d(nf) if len(shape) == 4 else nn.BatchNorm1d(nf)
    ours = once(RunningBatchNorm(nf))
    theirs = once(batch_norm)
    assert ours.total() - theirs.total() <= 22, ours
    assert ours['native_batch_norm_backward'] == 1
    assert '_local_scalar_dense' not in ours
