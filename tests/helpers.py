"What several tests use: how often to try, a tiny learner, and callbacks that note or raise."
import os
import tempfile
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn, optim

from minifastai.data import DataBunch
from minifastai.callbacks import Callback, EVENTS
from minifastai.learner import Learner, Runner


def storm(few, many, variable=None) -> int:
    """How often to repeat what is slow: `many` times if MINIFASTAI_STORMS=1, as in CI, else `few`.

    An environment variable of its own, if there is one, takes precedence.
    """
    own = os.environ.get(variable) if variable is not None else None
    if own is not None: return int(own)
    return many if os.environ.get('MINIFASTAI_STORMS', '0') != '0' else few


def heeds_permissions() -> bool:
    """Whether a file's permissions restrict this process.

    They do not restrict root, unless its capabilities were dropped.
    """
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o500)
        below = os.path.join(folder, 'below')
        try: os.mkdir(below)
        except PermissionError: return True
        os.rmdir(below)
        return False


def tiny_learner(n_train=3, n_valid=2, model=None, opt_func=None, loss_func=F.cross_entropy):
    "A learner of a linear model on a few batches of random numbers"
    if model is None: model = nn.Linear(4, 3)
    if opt_func is None: opt_func = partial(optim.SGD, lr=0.1)
    g = torch.Generator().manual_seed(0)
    batches = [(torch.randn(5, 4, generator=g), torch.randint(3, (5,), generator=g))
               for _ in range(n_train + n_valid)]
    data = DataBunch(batches[:n_train], batches[n_train:])
    return Learner(model, opt_func(model.parameters()), loss_func, data)


def quiet_runner(cbs=None, **kwargs):
    "A runner that prints no statistics"
    run = Runner(cbs, **kwargs)
    run.show_stats = lambda *stats: None
    return run


def make_callback(class_name='Made', **attributes):
    "A callback of a class with these methods and values"
    return type(class_name, (Callback,), attributes)()


class Tracer(Callback):
    "Notes all events in a list, which several tracers may share"
    def __init__(self, trace=None, name='tracer', order=0):
        self.trace = [] if trace is None else trace
        self.name = name
        self._order = order
        for event in EVENTS: setattr(self, event, partial(self.note, event))

    def note(self, event):
        self.trace.append((self.name, event) if self.name != 'tracer' else event)


class Raiser(Callback):
    """Raises `exc` the `nth` time that `event` happens, and notes a '!' in the tracer's list.

    `first`, if given, is raised once at after_loss.
    """
    def __init__(self, event, exc, nth=1, first=None, trace=None, name='raiser', order=0):
        self.exc = exc
        self.nth = nth
        self.count = 0
        self.first = first
        self.trace = trace
        self.name = name
        self._order = order
        setattr(self, event, self._raise)
        if first is not None: self.after_loss = self._raise_first

    def _raise_first(self):
        if self.first is None: return
        first = self.first
        self.first = None
        raise first

    def _raise(self):
        self.count += 1
        if self.count != self.nth: return
        if self.trace is not None: self.trace.append('!')
        raise self.exc


def exported_is_the_same(model, shape):
    "Export `model`, trained a little, for any number of items, and compare some results"
    for _ in range(2): model.train()(torch.randn(6, *shape))
    model.eval()
    batches = ({0: torch.export.Dim('n')},)
    exported = torch.export.export(model, (torch.randn(2, *shape),), dynamic_shapes=batches)
    for n in (1, 2, 7):
        x = torch.randn(n, *shape)
        torch.testing.assert_close(exported.module()(x), model(x))


# how a lesson begins, on data that every machine has
LESSON_DATA = '''
from minifastai.all import *
x_train, y_train, x_valid, y_valid = get_data('digits')
x_train, x_valid = normalize_to(x_train, x_valid)
train_ds, valid_ds = Dataset(x_train, y_train), Dataset(x_valid, y_valid)
nh, bs = 50, 512
c = y_train.max().item()+1
loss_func = F.cross_entropy
data = DataBunch(*get_dls(train_ds, valid_ds, bs), c)
'''
