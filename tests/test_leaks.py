"""Many fits leave everything as it was: memory, threads, files, hooks, callbacks.

And the same seed gives the same bits.
"""
import gc
import os
import threading
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import quiet_runner, storm, tiny_learner
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

needs_proc = pytest.mark.skipif(not os.path.exists('/proc/self/statm'), reason='needs /proc')


def resident() -> int:
    "Bytes of memory that this process has"
    with open('/proc/self/statm') as f: pages = int(f.read().split()[1])
    return pages*os.sysconf('SC_PAGE_SIZE')


def n_open_files() -> int: return len(os.listdir('/proc/self/fd'))


class EndsSomehow(Callback):
    "Every other fit ends by an exception, of one kind or another"
    fits = 0
    def begin_fit(self): self.fits += 1
    def after_loss(self):
        if self.fits % 4 == 1: raise CancelTrainException
        if self.fits % 4 == 3: raise ZeroDivisionError


@needs_proc
def test_many_fits(tmp_path, capsys):
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    learn = tiny_learner(3, 2, model)
    cbs = [
        EndsSomehow(),
        Recorder(),
        AvgStatsCallback(accuracy),
        ProgressCallback(),
        ActivationStats(),
        ParamScheduler('lr', sched_cos(0.1, 0.01)),
        AverageWeightsCallback(),
        TerminateOnNaNCallback(layers=True, gradients=True),
    ]
    given = list(cbs)
    run = quiet_runner(cbs)

    def fits(n):
        for i in range(n):
            try: run.fit(1, learn)
            except ZeroDivisionError: pass
            if i % 50 == 0: lr_find(learn, 4)
        gc.collect()
        return dict(memory=resident(), objects=len(gc.get_objects()),
                    threads=threading.active_count(), files=n_open_files())

    before = fits(100)
    n = storm(250, 1000)
    after = fits(n)
    # 8 kB a fit is what the captured output and the allocator may take
    assert after['memory'] - before['memory'] < 8_000*n, (before, after)
    assert after['objects'] - before['objects'] < n/2, (before, after)
    assert after['threads'] == before['threads'], (before, after)
    assert after['files'] == before['files'], (before, after)
    assert cbs == given
    assert len(run.cbs) == len(given) + 1       # and its own
    for m in model.modules():
        assert not m._forward_hooks
        assert not m._forward_pre_hooks
        assert not m._backward_hooks
    assert all(p.grad is None for p in model.parameters())


@needs_proc
def test_many_fits_with_checkpoints(tmp_path):
    learn = tiny_learner(2)
    run = Runner([CheckpointCallback(tmp_path, every=1)])
    run.fit(1, learn)
    files = n_open_files()
    for _ in range(storm(10, 100)): run.fit(1, learn)
    assert n_open_files() == files
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('own', [False, True])
def test_the_same_seed_gives_the_same_bits(workers, own):
    x = torch.randn(60, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    ds = Dataset(x, torch.arange(60) % 3)

    def loader():
        if own: return get_dls(ds, ds, 16, num_workers=workers)[0]
        return DataLoader(ds, batch_size=16, shuffle=True, num_workers=workers)

    def trained(seed):
        torch.manual_seed(seed)
        dl = loader()
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
                              nn.Flatten(), nn.Dropout(0.2), nn.Linear(144, 3))
        opt = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        learn = Learner(model, opt, F.cross_entropy, DataBunch(dl, None, 3))
        Runner([AugmentCallback(partial(random_affine, degrees=20.))]).fit(2, learn)
        return torch.cat([v.flatten().double() for v in model.state_dict().values()])

    weights = trained(0)
    assert torch.equal(trained(0), weights)
    assert not torch.equal(trained(1), weights)
