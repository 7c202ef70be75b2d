"A thousand fits leave everything as it was: memory, threads, files, hooks, callbacks; and the same seed gives the same bits."
import gc
import os
import threading
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import tiny_learner
from torch import nn, optim
from torch.utils.data import DataLoader

from minifastai.data import DataBunch, Dataset, get_dls
from minifastai.callbacks import Callback, CancelTrainException
from minifastai.learner import Learner, Runner
from minifastai.metrics import accuracy, AvgStatsCallback
from minifastai.progress import ProgressCallback
from minifastai.schedules import ParamScheduler, sched_cos
from minifastai.recorder import Recorder
from minifastai.lr_finder import lr_find
from minifastai.activations import ActivationStats
from minifastai.augment import AugmentCallback, random_affine
from minifastai.recipes import AverageWeightsCallback
from minifastai.checkpoint import CheckpointCallback
from minifastai.terminate import TerminateOnNaNCallback


def resident() -> int:
    "Bytes of memory that this process has"
    with open('/proc/self/statm') as f: return int(f.read().split()[1])*os.sysconf('SC_PAGE_SIZE')


class EndsSomehow(Callback):
    "Every other fit ends by an exception, of one kind or another"
    fits = 0
    def begin_fit(self): self.fits += 1
    def after_loss(self):
        if self.fits % 4 == 1: raise CancelTrainException
        if self.fits % 4 == 3: raise ZeroDivisionError


@pytest.mark.skipif(not os.path.exists('/proc/self/statm'), reason='needs /proc')
def test_a_thousand_fits(tmp_path, capsys):
    learn = tiny_learner(3, 2, nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)))
    cbs = [EndsSomehow(), Recorder(), AvgStatsCallback(accuracy), ProgressCallback(), ActivationStats(), ParamScheduler('lr', sched_cos(0.1, 0.01)), AverageWeightsCallback(), TerminateOnNaNCallback(layers=True, gradients=True)]
    run, given = Runner(cbs), list(cbs)
    run.show_stats = lambda *stats: None
    def fits(n):
        for i in range(n):
            try: run.fit(1, learn)
            except ZeroDivisionError: pass
            if i % 50 == 0: lr_find(learn, 4)
        gc.collect()
        return dict(memory=resident(), objects=len(gc.get_objects()), threads=threading.active_count(), files=len(os.listdir('/proc/self/fd')))
    before = fits(200)
    after = fits(1000)
    assert after['memory'] - before['memory'] < 8*2**20, (before, after)
    assert after['objects'] - before['objects'] < 500, (before, after)
    assert after['threads'] == before['threads'] and after['files'] == before['files'], (before, after)
    assert cbs == given and len(run.cbs) == len(given) + 1       # and its own
    assert all(not m._forward_hooks and not m._forward_pre_hooks and not m._backward_hooks for m in learn.model.modules())
    assert all(p.grad is None for p in learn.model.parameters())


@pytest.mark.skipif(not os.path.exists('/proc/self/fd'), reason='needs /proc')
def test_a_hundred_fits_with_checkpoints(tmp_path):
    learn, run = tiny_learner(2), Runner([CheckpointCallback(tmp_path, every=1)])
    run.fit(1, learn)
    files = len(os.listdir('/proc/self/fd'))
    for _ in range(100): run.fit(1, learn)
    assert len(os.listdir('/proc/self/fd')) == files and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('own', [False, True])
def test_the_same_seed_gives_the_same_bits(workers, own):
    x, y = torch.randn(60, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3
    def trained(seed):
        torch.manual_seed(seed)
        kwargs = dict(num_workers=workers)
        dl = get_dls(Dataset(x, y), Dataset(x, y), 16, **kwargs)[0] if own else DataLoader(Dataset(x, y), batch_size=16, shuffle=True, **kwargs)
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(144, 3))
        learn = Learner(model, optim.SGD(model.parameters(), lr=0.1, momentum=0.9), F.cross_entropy, DataBunch(dl, None, 3))
        Runner([AugmentCallback(partial(random_affine, degrees=20.))]).fit(2, learn)
        return torch.cat([v.flatten().double() for v in model.state_dict().values()])
    a, b, c = trained(0), trained(0), trained(1)
    assert torch.equal(a, b) and not torch.equal(a, c)
