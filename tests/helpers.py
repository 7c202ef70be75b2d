"What several tests use: a tiny learner, and callbacks that note or raise."
import os
import tempfile
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn, optim

from minifastai.data import DataBunch
from minifastai.callbacks import Callback, EVENTS
from minifastai.learner import Learner


def heeds_permissions() -> bool:
    "Do permissions of files bind this process? They do not bind root, unless its capabilities were dropped"
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o500)
        try: os.mkdir(os.path.join(folder, 'below'))
        except PermissionError: return True
        os.rmdir(os.path.join(folder, 'below'))
        return False


def tiny_learner(n_train=3, n_valid=2, model=None, opt_func=None, loss_func=F.cross_entropy):
    "A learner of a linear model on a few batches of random numbers"
    model = nn.Linear(4, 3) if model is None else model
    g = torch.Generator().manual_seed(0)
    batches = [(torch.randn(5, 4, generator=g), torch.randint(3, (5,), generator=g)) for _ in range(n_train + n_valid)]
    return Learner(model, (opt_func or partial(optim.SGD, lr=0.1))(model.parameters()), loss_func, DataBunch(batches[:n_train], batches[n_train:]))


class Tracer(Callback):
    "Notes all events in a list, which several tracers may share"
    def __init__(self, trace=None, name='tracer', order=0):
        self.trace, self.name, self._order = [] if trace is None else trace, name, order
        for event in EVENTS: setattr(self, event, partial(self.note, event))

    def note(self, event): self.trace.append((self.name, event) if self.name != 'tracer' else event)


class Raiser(Callback):
    "Raises `exc` at the `nth` time that `event` happens, and notes an '!' in the tracer's list; `first`, if given, is raised once at after_loss"
    def __init__(self, event, exc, nth=1, first=None, trace=None, name='raiser', order=0):
        self.exc, self.nth, self.count, self.first, self.trace, self.name, self._order = exc, nth, 0, first, trace, name, order
        setattr(self, event, self._raise)
        if first is not None: self.after_loss = self._raise_first

    def _raise_first(self):
        if self.first is not None:
            first, self.first = self.first, None
            raise first

    def _raise(self):
        self.count += 1
        if self.count != self.nth: return
        if self.trace is not None: self.trace.append('!')
        raise self.exc


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
