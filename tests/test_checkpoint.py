"""Checkpoints under everything that can happen to a run.

Killed at any moment, a full disk, a folder that is read-only, damaged or hostile files,
other loaders, metrics and schedulers.
"""
import copy
import errno
import functools
import io
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
import zipfile
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from commands import finish, fork, read_epochs, script
from helpers import heeds_permissions, quiet_runner, storm, tiny_learner
from safetensors.torch import load_file
from torch import nn, optim
from torch.utils.data import DataLoader

from minifastai import checkpoint, utils
from minifastai.activations import ActivationStats
from minifastai.data import DataBunch, Dataset, get_dls
from minifastai.callbacks import (
    Callback, CancelBatchException, CancelEpochException, CancelTrainException)
from minifastai.learner import Learner, Runner
from minifastai.metrics import accuracy, AvgStatsCallback
from minifastai.schedules import LRSchedulerCallback, ParamScheduler, sched_cos
from minifastai.device import CudaCallback
from minifastai.progress import ProgressCallback
from minifastai.recipes import AverageWeightsCallback
from minifastai.recorder import Recorder
from minifastai.checkpoint import (
    Checkpoint, CheckpointCallback, CheckpointError, FolderInUseError, find_checkpoint)
from minifastai.terminate import (
    EarlyStoppingCallback, TerminateOnNaNCallback, first_not_finite)

# --- a run that is resumed goes on bit for bit


class Stop(Exception): pass


class StopAfter(Callback):
    "Raises `Stop` after `n` steps"
    _order = 2000
    def __init__(self, n): self.n = n
    def after_batch(self):
        if self.in_train and self.run.n_iter == self.n: raise Stop


class Noisy(Callback):
    "Draws from all generators, at many events, and remembers"
    def begin_fit(self): self.drawn = []
    def begin_epoch(self): self._draw()
    def begin_batch(self):
        if not self.in_train: return
        self._draw()
        self.run.xb = self.run.xb + 0.1*torch.randn(self.run.xb.shape)
    def after_epoch(self): self._draw()
    def _draw(self):
        self.drawn.append((random.random(), np.random.rand(), torch.rand(()).item()))


class Reader(torch.utils.data.Dataset):
    "Items that differ at each reading, by the generators of the process that reads them"
    def __init__(self):
        self.x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
        self.y = torch.arange(40) % 3
    def __len__(self): return len(self.x)
    def __getitem__(self, i): return self.x[i] + torch.randn(4) + random.random(), self.y[i]


def seed_all(seed):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def noisy(learner, cbs, seed):
    seed_all(seed)
    return learner(), quiet_runner([Noisy(), Recorder(), AvgStatsCallback(accuracy), *cbs])


def with_loader(opt=partial(optim.SGD, lr=0.1, momentum=0.9), **kwargs):
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.ReLU(),
                          nn.Linear(8, 3))
    train = DataLoader(Reader(), batch_size=8, shuffle=True, **kwargs)
    valid = DataLoader(Reader(), batch_size=8)
    return Learner(model, opt(model.parameters()), F.cross_entropy, DataBunch(train, valid, 3))


def with_own_generator(): return with_loader(generator=torch.Generator().manual_seed(3))


def weights(learn):
    return torch.cat([v.flatten().double() for v in learn.model.state_dict().values()])


def assert_same_records(run, other):
    assert torch.equal(torch.stack(run.recorder.losses), torch.stack(other.recorder.losses))
    assert run.recorder.lrs == other.recorder.lrs
    for a, b in zip(run.recorder.history, other.recorder.history, strict=True):
        assert {**a, 'seconds': 0} == {**b, 'seconds': 0}
    assert run.noisy.drawn == other.noisy.drawn


def resume_quietly(run, epochs, learn):
    "`run.fit`, without the warning that `StopAfter` is no longer among the callbacks"
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'stop_after is no longer among')
        run.fit(epochs, learn)


LEARNERS = {
    'the loader of PyTorch': with_loader,
    'workers': partial(with_loader, num_workers=2),
    'Adam': partial(with_loader, partial(optim.AdamW, lr=0.01)),
    'a generator of its own': with_own_generator,
    'no momentum': partial(with_loader, partial(optim.SGD, lr=0.1)),
}
one_cycle = partial(optim.lr_scheduler.OneCycleLR, max_lr=0.2, total_steps=15)
steps = partial(optim.lr_scheduler.MultiStepLR, milestones=[1, 2])
CALLBACKS = {
    'schedule': lambda: [ParamScheduler('lr', sched_cos(0.2, 0.01))],
    "PyTorch's, each batch": lambda: [LRSchedulerCallback(one_cycle)],
    "PyTorch's, each epoch": lambda: [LRSchedulerCallback(steps, per_batch=False)],
    'nothing': lambda: [],
}
# worker processes are slow to start
COMBINATIONS = [(learner, callback) for learner in LEARNERS for callback in CALLBACKS
                if learner != 'workers' or callback == 'schedule']


@pytest.fixture
def no_fsync(monkeypatch):
    "No wait for the disk: what a checkpoint holds does not depend on it"
    monkeypatch.setattr(os, 'fsync', lambda fd: None)


def make(learner, callback, seed, *others):
    return noisy(LEARNERS[learner], [*CALLBACKS[callback](), *others], seed)


@functools.cache
def undisturbed(learner, callback):
    "Learner and runner of a run without checkpoints"
    learn, run = make(learner, callback, 0)
    run.fit(3, learn)
    return learn, run


@pytest.mark.parametrize('learner, callback', COMBINATIONS)
@pytest.mark.parametrize('after', [1, 5, 8, 14])
def test_goes_on_bit_for_bit(tmp_path, no_fsync, learner, callback, after):
    """Five batches an epoch, three epochs.

    The steps after which it stops are within an epoch and at the end of one.
    """
    checkpoints = CheckpointCallback(tmp_path, every=1)
    broken, first = make(learner, callback, 0, checkpoints, StopAfter(after))
    with pytest.raises(Stop): first.fit(3, broken)
    again, second = make(learner, callback, 7, CheckpointCallback(tmp_path, resume=True))
    resume_quietly(second, 3, again)
    learn, run = undisturbed(learner, callback)
    assert torch.equal(weights(again), weights(learn))
    assert_same_records(second, run)


def test_cancelled_batches_are_counted(tmp_path, no_fsync):
    "They came from the loader, so a run that is resumed has to skip them, too"
    class Picky(Callback):
        def begin_batch(self):
            if self.in_train and self.xb.mean() > 0.5: raise CancelBatchException

    def make(folder, seed, *others):
        torch.manual_seed(seed)
        random.seed(seed)
        checkpoints = CheckpointCallback(tmp_path/folder, every=1, resume=True)
        return with_loader(), Runner([Picky(), Recorder(), checkpoints, *others])

    whole, run = make('whole', 0)
    run.fit(4, whole)
    assert 4 < run.n_iter < 16
    for after in range(1, run.n_iter):
        broken, first = make(f'{after}', 0, StopAfter(after))
        with pytest.raises(Stop): first.fit(4, broken)
        again, second = make(f'{after}', 1)
        resume_quietly(second, 4, again)
        assert torch.equal(weights(again), weights(whole))


def test_a_metric_that_collects(tmp_path):
    class Collects:
        def __init__(self): self.reset()
        def reset(self):
            self.right = torch.tensor(0.)
            self.seen = 0
        def update(self, pred, yb):
            self.right = self.right + (pred.argmax(1) == yb).sum()
            self.seen += len(yb)
        def compute(self): return self.right/self.seen

    def make(*others):
        torch.manual_seed(0)
        checkpoints = CheckpointCallback(tmp_path, every=1, resume=True)
        run = quiet_runner([AvgStatsCallback([Collects(), accuracy]), Recorder(), checkpoints,
                            *others])
        return tiny_learner(6), run

    learn, run = make(StopAfter(4))
    with pytest.raises(Stop): run.fit(1, learn)
    learn, run = make()
    resume_quietly(run, 1, learn)
    row = run.recorder.history[0]
    assert row['train_collects'] == pytest.approx(row['train_accuracy'], abs=1e-6)
    assert run.avg_stats.train_stats.metrics[0].seen == 30


def test_goes_on_from_the_one_that_is_chosen(tmp_path):
    learn, run = noisy(with_loader, [CheckpointCallback(tmp_path, keep=9)], 0)
    run.fit(3, learn)
    first = Checkpoint.at(min(tmp_path.iterdir()))
    again, second = noisy(with_loader, [CheckpointCallback(tmp_path, keep=9, resume=first)], 5)
    second.fit(3, again)
    assert first.epoch == 1
    assert torch.equal(weights(again), weights(learn))
    assert_same_records(second, run)
    assert [p.name[:14] for p in sorted(tmp_path.iterdir())] == [
        '000000-epoch-1', '000001-epoch-2', '000002-epoch-3', '000003-epoch-2', '000004-epoch-3']


def test_tied_weights_and_other_orders_of_memory(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight = self.a.weight
            self.conv = nn.Conv2d(1, 3, 2).to(memory_format=torch.channels_last)
            self.out = nn.Linear(4, 3)
        def forward(self, x): return self.out(self.b(self.a(x)))
    learn, other = tiny_learner(model=Tied()), tiny_learner(model=Tied())
    Runner([CheckpointCallback(tmp_path)]).fit(1, learn)
    Runner([CheckpointCallback(tmp_path, resume=True)]).fit(1, other)
    assert torch.equal(weights(learn), weights(other))
    assert other.model.a.weight is other.model.b.weight


# --- which checkpoints are kept


def test_keeps_the_last_and_the_best(tmp_path):
    class Falls(Callback):   # accuracies as if they were these
        def __init__(self, values): self.values = values
        def after_epoch(self):
            value = self.values[self.epoch]
            self.run.metrics |= {'valid_accuracy': value, 'valid_loss': -value}
    nan = float('nan')
    for best in ('valid_accuracy', 'valid_loss'):
        folder = tmp_path/best
        falls = Falls([nan, 0.9, 0.7, nan, 0.6, 0.8])
        checkpoints = CheckpointCallback(folder, keep=2, best=best)
        run = quiet_runner([AvgStatsCallback(), falls, checkpoints])
        run.fit(6, tiny_learner())
        assert [Checkpoint.at(p).epoch for p in sorted(folder.iterdir())] == [2, 5, 6]
        assert find_checkpoint(folder).epoch == 6
        assert find_checkpoint(folder, best=best).epoch == 2


def test_a_second_fit_of_the_same_runner_goes_on_counting(tmp_path):
    learn = tiny_learner()
    run = Runner([CheckpointCallback(tmp_path, keep=9)])
    run.fit(2, learn)
    run.fit(1, learn)
    assert [p.name[:14] for p in sorted(tmp_path.iterdir())] == [
        '000000-epoch-1', '000001-epoch-2', '000002-epoch-1']


# --- disks and folders


@pytest.mark.parametrize('error', [errno.ENOSPC, errno.EIO, errno.EROFS])
@pytest.mark.parametrize('where', ['open', 'fsync', 'rename', 'mkdir'])
def test_a_disk_that_refuses(tmp_path, monkeypatch, error, where):
    """Whatever fails while a checkpoint is written, there is a clear error.

    The last good checkpoint is kept, weights in memory are those after the step, and when there
    is room again the run goes on.
    """
    torch.manual_seed(0)
    learn = tiny_learner(6)
    whole = copy.deepcopy(learn)
    run = Runner([CheckpointCallback(tmp_path, every=2), Recorder()])
    owner, real = {
        'open': (utils, open),
        'fsync': (os, os.fsync),
        'rename': (os, os.rename),
        'mkdir': (Path, Path.mkdir),
    }[where]
    calls = []
    def refuse(*args, **kwargs):
        if run.n_iter < 4: return real(*args, **kwargs)
        calls.append(args)
        raise OSError(error, os.strerror(error))
    monkeypatch.setattr(owner, where, refuse, raising=False)
    with pytest.raises(CheckpointError, match='could not be written.*last good one is') as e:
        run.fit(1, learn)
    assert e.value.errno == error
    assert calls
    assert len(run.recorder.losses) == 4
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ['000000-epoch-0-batch-2']

    again = tiny_learner(6)
    Runner([CheckpointCallback(tmp_path, every=2, resume=True), Recorder()]).fit(1, again)
    Runner().fit(1, whole)
    assert torch.equal(weights(again), weights(whole))


@pytest.mark.skipif(not os.path.exists('/proc/self/fd'), reason='needs /proc')
def test_written_synced_renamed_synced(tmp_path, monkeypatch):
    """Before the name is there, every file is on the disk, and the list of them.

    After it, the name is.
    """
    log = []
    sync, rename = os.fsync, os.rename
    def noted_sync(fd):
        log.append(os.path.relpath(os.readlink(f'/proc/self/fd/{fd}'), tmp_path))
        sync(fd)
    def noted_rename(a, b):
        log.append((Path(a).name, Path(b).name))
        rename(a, b)
    monkeypatch.setattr(os, 'fsync', noted_sync)
    monkeypatch.setattr(os, 'rename', noted_rename)
    Runner([CheckpointCallback(tmp_path)]).fit(1, tiny_learner())
    name = '000000-epoch-1-batch-0'
    assert log == [
        f'.{name}.part/model.safetensors',
        f'.{name}.part/training.pt',
        f'.{name}.part/callbacks.pt',
        f'.{name}.part/manifest.json',
        f'.{name}.part',
        (f'.{name}.part', name),
        '.',
    ]


def test_a_full_disk(tmp_path):
    "A real one: a small file system in memory"
    disk = tmp_path/'disk'
    disk.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=400k', 'tmpfs', str(disk)]
    if os.name == 'nt' or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip('a file system cannot be mounted here')
    try:
        # 160 kB a checkpoint
        learn = tiny_learner(8, model=nn.Sequential(nn.Linear(4, 5000), nn.Linear(5000, 3)))
        run = Runner([CheckpointCallback(disk/'checkpoints', every=1, keep=9)])
        message = 'No space left on device.*last good one is'
        with pytest.raises(CheckpointError, match=message): run.fit(1, learn)
        assert 0 < run.n_iter < 8
        last = find_checkpoint(disk/'checkpoints')
        assert last.batch == run.n_iter - 1
        assert last.weights()
        assert not list((disk/'checkpoints').glob('.*'))
    finally: subprocess.run(['umount', str(disk)])


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path/'file').write_text('')
    for folder, message in (
        (tmp_path/'file', 'File exists'),
        (tmp_path/'file'/'below', 'Not a directory'),
        (Path('/proc/here'), 'No such file'),
    ):
        learn = tiny_learner()
        before = weights(learn)
        with pytest.raises(CheckpointError, match=f"can't be written.*{message}"):
            Runner([CheckpointCallback(folder)]).fit(1, learn)
        assert torch.equal(weights(learn), before)


@pytest.mark.skipif(not heeds_permissions(), reason='root may write everywhere')
def test_a_folder_without_permission(tmp_path):
    """Locked from the beginning, and locked in the middle of a run.

    The command says so in one line.
    """
    locked, later = tmp_path/'locked', tmp_path/'later'
    locked.mkdir(mode=0o500)
    learn = tiny_learner()
    before = weights(learn)
    for folder in (locked, locked/'below'):
        with pytest.raises(CheckpointError, match="can't be written to .*Permission denied"):
            Runner([CheckpointCallback(folder)]).fit(1, learn)
    assert torch.equal(weights(learn), before)

    class Locks(Callback):
        def after_step(self):
            if self.run.n_iter == 3: later.chmod(0o500)
    message = 'Permission denied.*last good one is .*batch-2'
    with pytest.raises(CheckpointError, match=message):
        Runner([CheckpointCallback(later, every=2), Locks()]).fit(1, tiny_learner(6))
    assert [p.name for p in later.iterdir()] == ['000000-epoch-0-batch-2']

    status, out = train(*LESSON, '--out', str(locked/'run'), cwd=tmp_path)
    assert status == 1, out
    assert 'Permission denied' in out, out
    locked.chmod(0o700)
    later.chmod(0o700)


def test_what_is_left_of_a_killed_write_is_removed(tmp_path):
    part = tmp_path/'.000007-epoch-1-batch-2.part'
    part.mkdir(parents=True)
    (part/'model.safetensors').write_bytes(b'half')
    Runner([CheckpointCallback(tmp_path)]).fit(1, tiny_learner())
    assert [p.name for p in tmp_path.iterdir()] == ['000000-epoch-1-batch-0']


# --- signals


@pytest.fixture
def as_in_a_terminal():
    "Ctrl-C as Python sets it up; a process that was started in the background ignores it"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def signal_handlers(): return {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}


class AsksToEnd(Callback):
    "At `event` asks for an end by SIGTERM, and cancels the fit if `cancel`"
    def __init__(self, event, cancel=False):
        setattr(self, event, self._ask)
        self.cancel = cancel
    def _ask(self):
        signal.raise_signal(signal.SIGTERM)
        if self.cancel: raise CancelTrainException


def test_signals_mean_afterwards_what_they_meant_before(tmp_path, as_in_a_terminal):
    """After a fit that ends well, by an error, or by the signal itself.

    And a handler of somebody else's is left alone.
    """
    before = signal_handlers()

    class Ends(Callback):
        def __init__(self, how): self.how = how
        def after_pred(self):
            if self.how == 'signal': signal.raise_signal(signal.SIGINT)
            if self.how == 'error': raise ZeroDivisionError
    for how, error in (
        ('well', None),
        ('error', ZeroDivisionError),
        ('signal', KeyboardInterrupt),
    ):
        run = Runner([CheckpointCallback(tmp_path/how), Ends(how)])
        try: run.fit(1, tiny_learner())
        except BaseException as e: assert type(e) is error
        else: assert error is None
        assert signal_handlers() == before

    # asked when the run comes to its end in another way: that is not lost
    for event, cancel in (('after_pred', True), ('cleanup_epoch', False)):
        checkpoints = CheckpointCallback(tmp_path/f'end{event}')
        with pytest.raises(SystemExit) as e:
            Runner([checkpoints, AsksToEnd(event, cancel)]).fit(1, tiny_learner())
        assert e.value.code == 143
        assert not getattr(e.value, '__notes__', None)
        assert signal_handlers() == before

    heard = []
    signal.signal(signal.SIGTERM, lambda *args: heard.append(args))
    try:
        checkpoints = CheckpointCallback(tmp_path/'others')
        Runner([checkpoints, AsksToEnd('after_pred')]).fit(1, tiny_learner(2))
        assert len(heard) > 2
    finally: signal.signal(signal.SIGTERM, before[signal.SIGTERM])


# --- files that are damaged or hostile


def torch_saved(o):
    torch.save(o, out := io.BytesIO())
    return out.getvalue()


def pickled_without_end(o): return b'\x80\x04' + pickle.dumps(o)[2:-1]


class Hostile:
    def __init__(self, path): self.path = path
    def __reduce__(self): return Path.touch, (self.path,)


@pytest.mark.parametrize('file', ['training.pt', 'callbacks.pt'])
@pytest.mark.parametrize('make', [torch_saved, pickle.dumps, pickled_without_end])
def test_a_hostile_file_is_not_run(tmp_path, file, make):
    "With the right hash, since who can write the file can write the manifest"
    learn = tiny_learner()
    Runner([CheckpointCallback(tmp_path/'good'), Recorder()]).fit(1, learn)
    good = find_checkpoint(tmp_path/'good')
    files = {name: good.read(name) for name in good.files}
    files[file] = make({'opt': Hostile(tmp_path/'run!')})
    (tmp_path/'bad').mkdir()
    about = dict(epoch=1, batch=0, metrics={})
    checkpoint._write_folder(tmp_path/'bad'/good.path.name, about, files)

    again = tiny_learner()
    before = weights(again)
    run = Runner([CheckpointCallback(tmp_path/'bad', resume=True), Recorder()])
    message = "holds more than plain data, so it wasn't loaded"
    with pytest.raises(ValueError, match=message): run.fit(2, again)
    assert not (tmp_path/'run!').exists()
    assert torch.equal(weights(again), before)


def checkpoints_of_a_fit(folder):
    "The last two checkpoints of a fit, in order"
    Runner([CheckpointCallback(folder, every=1)]).fit(1, tiny_learner())
    *_, before, last = sorted(folder.iterdir())
    return before, last


def assert_falls_back_to(before, folder):
    with pytest.warns(UserWarning, match='manifest.json is damaged'):
        assert find_checkpoint(folder).path == before


@pytest.mark.parametrize('text', [
    b'',
    b'{}',
    b'[]',
    b'null',
    b'{"sha256": 1, "about": 2}',
    b'\xff\xfe',
    b'{"sha256": "", "about": ""}',
])
def test_a_manifest_of_anything(tmp_path, text):
    before, last = checkpoints_of_a_fit(tmp_path)
    (last/'manifest.json').write_bytes(text)
    assert_falls_back_to(before, tmp_path)


def remake(path, about=None, **files):
    "The checkpoint at `path` with other content, and the hashes that belong to it"
    old = Checkpoint.at(path)
    contents = {name: files.get(Path(name).stem) or old.read(name) for name in old.files}
    shutil.rmtree(path)
    checkpoint._write_folder(path, dict(epoch=old.epoch, batch=old.batch, metrics=old.metrics),
                             contents)
    if about is None: return
    manifest = json.loads((path/'manifest.json').read_bytes())
    text = json.dumps(about(json.loads(manifest['about'])))
    manifest = dict(sha256=checkpoint._digest(text.encode()), about=text)
    (path/'manifest.json').write_text(json.dumps(manifest))


@pytest.mark.parametrize('about', [
    lambda a: a | dict(epoch=-1),
    lambda a: a | dict(batch='2'),
    lambda a: a | dict(batch=True),
    lambda a: {k: v for k, v in a.items() if k != 'epoch'},
    lambda a: [a],
    lambda a: None,
    lambda a: a | dict(metrics=3),
    lambda a: a | dict(files={}),
    lambda a: a | dict(files=list(a['files'])),
    lambda a: a | dict(files={k: 3 for k in a['files']}),
    lambda a: a | dict(files=a['files'] | {'../../outside': dict(bytes=0, sha256='')}),
])
def test_a_manifest_of_anything_with_the_right_hash(tmp_path, about):
    before, last = checkpoints_of_a_fit(tmp_path)
    remake(last, about)
    assert_falls_back_to(before, tmp_path)


@pytest.mark.parametrize('files, message', [
    (dict(model=b'no weights at all'), "model.safetensors isn't a file of weights"),
    (dict(model=b'\xff'*8 + b'{}'), "model.safetensors isn't a file of weights"),
    (dict(training=b'x'), 'training.pt (holds more than plain data|is not what)'),
    (dict(training=torch_saved([1])), 'training.pt holds a list'),
    (dict(training=torch_saved({'opt': 1})), "training.pt has no 'n_iter'"),
    (dict(callbacks=b'abc'), 'callbacks.pt (holds more than plain data|is not what)'),
    (dict(callbacks=torch_saved(7)), 'callbacks.pt holds a int'),
], ids=str)
def test_files_of_anything_with_the_right_hash(tmp_path, files, message):
    Runner([CheckpointCallback(tmp_path)]).fit(1, tiny_learner())
    remake(next(tmp_path.iterdir()), **files)
    learn = tiny_learner()
    before = weights(learn)
    with pytest.raises(ValueError, match=message):
        Runner([CheckpointCallback(tmp_path, resume=True)]).fit(2, learn)
    assert torch.equal(weights(learn), before)


def test_state_that_is_no_plain_data(tmp_path):
    class Keeps(Callback):
        def state_dict(self): return {'model': nn.Linear(1, 1)}
    message = "state of Keeps can't be saved: Linear isn't plain data"
    with pytest.raises(TypeError, match=message):
        Runner([Keeps(), CheckpointCallback(tmp_path)]).fit(1, tiny_learner())


# --- a run that goes on is the same run


def fit_until(after, folder, learn, *cbs, epochs=3, **kwargs):
    "A fit that is interrupted after so many steps, with checkpoints of each"
    run = quiet_runner([CheckpointCallback(folder, every=1, **kwargs), StopAfter(after), *cbs])
    with pytest.raises(Stop): run.fit(epochs, learn)
    return run


def go_on(folder, learn, *cbs, epochs=3, **kwargs):
    run = quiet_runner([CheckpointCallback(folder, resume=True, **kwargs), *cbs])
    resume_quietly(run, epochs, learn)
    return run


def assert_refused(learn, message, fit, error=ValueError):
    before = copy.deepcopy(learn.model.state_dict())
    with pytest.raises(error, match=message): fit()
    for k, v in learn.model.state_dict().items(): assert torch.equal(v, before[k])


def test_fewer_epochs_than_are_begun(tmp_path):
    "In the middle of the second epoch, one epoch is too few, and so would nothing be put back"
    fit_until(4, tmp_path, tiny_learner())
    learn = tiny_learner()
    assert_refused(learn, 'begun epoch 2, more than the 1 that you asked',
                   lambda: go_on(tmp_path, learn, epochs=1))
    assert go_on(tmp_path, learn, epochs=2).n_iter == 6


def test_training_is_skipped_in_the_resumed_epoch(tmp_path):
    class ValidateOnly(Callback):
        def begin_epoch(self): return True
    first = tiny_learner()
    run = fit_until(4, tmp_path, first, AvgStatsCallback())
    learn = tiny_learner(5, 4)
    learn.data = first.data
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        again = go_on(tmp_path, learn, AvgStatsCallback(), Recorder(), ValidateOnly(), epochs=2)
    assert torch.equal(weights(learn), weights(first))
    assert again.n_iter == 4 == run.n_iter
    assert again.recorder.history[0]['valid_loss'] == pytest.approx(
        quiet_runner([AvgStatsCallback()]).validate(first)['valid_loss'])


@pytest.mark.parametrize('other, message', [
    (dict(bs=33), 'with 32 items in a batch; here there are 33'),
    (dict(n=195), 'with 200 items; here there are 195'),
    (dict(seed=1), 'other data'),
])
def test_other_data(tmp_path, other, message):
    def learner(n=200, bs=32, seed=0):
        g = torch.Generator().manual_seed(seed)
        ds = Dataset(torch.randn(n, 4, generator=g), torch.arange(n) % 3)
        learn = tiny_learner()
        learn.data = DataBunch(*get_dls(ds, ds, bs))
        return learn
    Runner(CheckpointCallback(tmp_path)).fit(1, learner())
    learn = learner(**other)
    assert_refused(learn, message, lambda: go_on(tmp_path, learn))


def test_other_optimizers_and_threads(tmp_path):
    fit_until(2, tmp_path, tiny_learner(opt_func=partial(optim.SGD, lr=0.1, momentum=0.9)))
    learn = tiny_learner(opt_func=optim.Adam)
    message = 'run with SGD: use that optimizer, not Adam'
    assert_refused(learn, message, lambda: go_on(tmp_path, learn))
    learn = tiny_learner(opt_func=partial(optim.SGD, lr=0.1))
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter('always')
            go_on(tmp_path, learn)
    finally: torch.set_num_threads(threads)
    said = ' '.join(str(w.message) for w in said)
    assert 'began with momentum=0.9' in said
    assert f'had {threads} threads, and has {threads + 1} now' in said


def test_an_optimizer_without_groups(tmp_path):
    class Wrapped:
        def __init__(self, opt): self.opt = opt
        def step(self): self.opt.step()
        def zero_grad(self): self.opt.zero_grad()
        def state_dict(self): return dict(inner=self.opt.state_dict())
        def load_state_dict(self, state): self.opt.load_state_dict(state['inner'])
    def opt(params): return Wrapped(optim.SGD(params, lr=0.1, momentum=0.9))
    learn = tiny_learner(opt_func=opt)
    fit_until(4, tmp_path, learn)
    again = tiny_learner(opt_func=opt)
    assert go_on(tmp_path, again).n_iter == 9


@pytest.mark.parametrize('which', ['train', 'valid'])
def test_workers_that_live_on(tmp_path, no_fsync, which):
    "Starting them takes a random number, in the first epoch only"
    def make(seed):
        torch.manual_seed(seed)
        x = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
        ds, kwargs = Dataset(x, torch.arange(24) % 3), dict(num_workers=1, persistent_workers=True)
        train = DataLoader(ds, 8, shuffle=True, **kwargs if which == 'train' else {})
        valid = DataLoader(ds, 8, **kwargs if which == 'valid' else {})
        learn = tiny_learner()
        learn.data = DataBunch(train, valid)
        return learn
    whole, broken, again = make(0), make(0), make(0)
    again.model.load_state_dict(broken.model.state_dict())
    whole.model.load_state_dict(broken.model.state_dict())
    torch.manual_seed(0)
    Runner().fit(3, whole)
    torch.manual_seed(0)
    fit_until(4, tmp_path, broken)
    torch.manual_seed(7)
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'Workers with persistent_workers')
        go_on(tmp_path, again)
    assert torch.equal(weights(whole), weights(again))


def test_the_fit_of_a_notebook_that_was_interrupted(tmp_path):
    "The cell is run again, with the same runner"
    for resume in (True, False):
        learn, stop = tiny_learner(), StopAfter(4)
        checkpoints = CheckpointCallback(tmp_path/f'{resume}', every=1, keep=99, resume=resume)
        run = Runner([checkpoints, stop, Recorder()])
        with pytest.raises(Stop): run.fit(3, learn)
        stop.n = None
        if resume: run.fit(3, learn)
        else:
            with pytest.warns(UserWarning, match='interrupted, and this one begins at epoch 0'):
                run.fit(3, learn)
        assert run.n_iter == 9
        begun = list((tmp_path/f'{resume}').glob('*epoch-0-batch-1'))
        assert len(begun) == 1 + (not resume)


def test_a_complete_run_says_so(tmp_path):
    learn = tiny_learner()
    Runner(CheckpointCallback(tmp_path)).fit(2, learn)
    again = tiny_learner()
    with pytest.warns(UserWarning, match='run of 2 epochs is complete'): go_on(tmp_path, again,
                                                                               epochs=2)
    assert torch.equal(weights(learn), weights(again))
    last = find_checkpoint(tmp_path)
    assert last.is_complete(2) and not last.is_complete(3)


def test_a_run_that_a_callback_ended_stays_ended(tmp_path):
    class Enough(Callback):
        def after_epoch(self):
            if self.epoch == 1: raise CancelTrainException
    Runner([Enough(), CheckpointCallback(tmp_path)]).fit(5, tiny_learner())
    learn = tiny_learner()
    with pytest.warns(UserWarning, match='ended this run after 2 of 5 epochs'):
        assert go_on(tmp_path, learn, Enough(), epochs=5).n_iter == 6
    chosen = find_checkpoint(tmp_path)
    run = Runner(CheckpointCallback(tmp_path, resume=chosen))
    with pytest.warns(UserWarning, match='enough is no longer among'): run.fit(5, learn)
    assert run.n_iter == 15


class Cuts(Callback):
    "Raises a cancel after so many steps, and may ask the program to end just before"
    def __init__(self, cancel, at, ask=False): self.cancel, self.at, self._ask = cancel, at, ask
    def after_batch(self):
        if not self.in_train or self.run.n_iter != self.at: return
        if self._ask: os.kill(os.getpid(), signal.SIGTERM)
        raise self.cancel


@pytest.mark.parametrize('same', [True, False])
def test_an_epoch_that_was_cut_short_in_the_batch_of_a_checkpoint(tmp_path, no_fsync, same):
    "Also with the same runner, which must not hold the cancel of the interrupted fit"
    cut = Cuts(CancelEpochException, 2, ask=True)
    run = quiet_runner([cut, CheckpointCallback(tmp_path, resume=True, every=1, keep=99)])
    with pytest.raises(SystemExit): run.fit(2, tiny_learner())
    cut._ask = False
    if not same: run = quiet_runner([cut, CheckpointCallback(tmp_path, resume=True, every=1)])
    run.cbs.append(heard := Heard())
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'heard is new')
        run.fit(2, tiny_learner())
    assert (run.n_iter, heard.cancels) == (5, 1)


class Heard(Callback):
    def begin_fit(self): self.cancels = 0
    def after_cancel_epoch(self): self.cancels += 1


@pytest.mark.parametrize('order', [0, 2000])
@pytest.mark.parametrize('every', [None, 1])
def test_a_run_that_was_ended_in_mid_epoch_stays_ended(tmp_path, order, every):
    for fit in range(2):
        cut = Cuts(CancelTrainException, 2)
        cut._order = order
        run = quiet_runner([cut, CheckpointCallback(tmp_path, every=every, resume=True)])
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter('always')
            run.fit(1, tiny_learner())
        assert run.n_iter == 2
        assert ('ended this run after 0.667 of 1' in ' '.join(str(w.message) for w in said)) == fit


def test_a_batch_that_was_cut_short_is_no_end(tmp_path):
    "What it did to the model must not be in a checkpoint"
    class Ends(Callback):
        def after_pred(self):
            if self.in_train and self.run.n_iter == 2: raise CancelTrainException
    Runner([Ends(), CheckpointCallback(tmp_path, every=1, keep=99)]).fit(1, tiny_learner())
    assert sorted(p.name for p in tmp_path.iterdir())[1:] == ['000001-epoch-0-batch-2']


def assert_goes_on(folder, make, state):
    "A fit that is interrupted and goes on, from other random numbers, ends as one that is not"
    def fit(seed, learn_to_run):
        torch.manual_seed(seed)
        learn = make()
        learn_to_run(learn)
        return state(learn)
    whole = fit(0, lambda learn: quiet_runner().fit(3, learn))
    fit(0, lambda learn: fit_until(4, folder, learn))
    again = fit(1, lambda learn: go_on(folder, learn))
    assert torch.equal(whole, again)


def of_function(wrap, **kwargs):
    "A learner whose model is no module"
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    learn = tiny_learner(model=net, opt_func=partial(optim.SGD, lr=0.1, momentum=0.9), **kwargs)
    learn.model, learn.net = wrap(net), net
    return learn


@pytest.mark.parametrize('wrap', [
    lambda net: partial(net), lambda net: net.forward, lambda net: lambda x: net(x)])
def test_a_model_that_is_a_function(tmp_path, no_fsync, wrap):
    "Its modules have a state"
    def state(learn): return torch.cat([t.flatten() for t in learn.net.state_dict().values()])
    assert_goes_on(tmp_path, lambda: of_function(wrap), state)


def test_a_model_of_tensors_alone(tmp_path, no_fsync):
    def make(n=3):
        w = nn.Parameter(torch.randn(4, n))
        learn = tiny_learner()
        learn.model, learn.opt = (lambda x: x@w), optim.SGD([w], lr=0.1, momentum=0.9)
        return learn
    def made(learn): return learn.opt.param_groups[0]['params'][0].detach()
    assert_goes_on(tmp_path, make, made)
    learn = make(4)
    assert_refused(tiny_learner(), r'opt.0 is \(4, 3\) in the file, \(4, 4\) in the model',
                   lambda: go_on(tmp_path, learn))


class Remembers(nn.Module):
    "A loss with a state, which is in its `state_dict` or not"
    def __init__(self, persistent=True):
        super().__init__()
        self.register_buffer('mean', torch.zeros(()), persistent=persistent)

    def forward(self, pred, yb):
        self.mean = self.mean/2 + pred.detach().pow(2).mean()
        return F.cross_entropy(pred, yb)*(1 + self.mean)


class RemembersAlone(Remembers):
    def forward(self, pred): return super().forward(pred, torch.zeros(5, dtype=torch.long))


remembers = Remembers()
def by_global_module(pred, yb): return remembers(pred, yb)


def new_global():
    global remembers
    remembers = Remembers()
    return by_global_module


@pytest.mark.parametrize('loss', [
    RemembersAlone, lambda: partial(Remembers()), lambda: Remembers().forward,
    lambda: (lambda loss: lambda pred, yb: loss(pred, yb))(Remembers()), new_global,
    lambda: Remembers(persistent=False), lambda: torch.compile(Remembers(), backend='eager')])
def test_a_loss_that_remembers(tmp_path, no_fsync, loss):
    def make():
        torch.manual_seed(0)
        return tiny_learner(loss_func=loss())
    assert_goes_on(tmp_path, make, weights)


class Counts(nn.Module):
    "A layer whose buffers are in no `state_dict`"
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 3)
        self.register_buffer('count', torch.zeros(()), persistent=False)
        self.register_buffer('later', None, persistent=False)
        self.register_buffer('grows', torch.zeros(0), persistent=False)

    def forward(self, x):
        if self.training:
            self.count += 1
            self.later = x.detach().mean()/self.count
            self.grows = torch.cat([self.grows, self.later[None]])
        return self.lin(x)/(1 + self.count) + self.grows.sum()


@pytest.mark.parametrize('wrap', [lambda m: m, partial(torch.compile, backend='eager')])
def test_buffers_that_are_not_persistent(tmp_path, no_fsync, wrap):
    def make():
        model = Counts()
        learn = tiny_learner(model=wrap(model))
        learn.counts = model
        return learn
    def state(learn):
        counts = learn.counts
        return torch.cat([counts.grows, counts.count[None], counts.later[None], weights(learn)])
    assert_goes_on(tmp_path, make, state)


def test_a_group_that_is_added_in_mid_run(tmp_path):
    class Adds(Callback):
        def begin_epoch(self):
            if self.epoch: self.opt.add_param_group(dict(params=[self.model.bias]))
    def first_group(params): return optim.SGD([next(iter(params))], lr=0.1)
    fit_until(4, tmp_path, tiny_learner(opt_func=first_group), Adds())
    learn = tiny_learner(opt_func=first_group)
    assert_refused(learn, 'has to be added before this fit', lambda: go_on(tmp_path, learn, Adds()))


def test_what_is_no_checkpoint_and_what_no_validation(tmp_path):
    with pytest.raises(TypeError, match=r'Checkpoint.at\(path\)'):
        CheckpointCallback(tmp_path, resume=str(tmp_path))
    cbs = [CheckpointCallback(tmp_path, best='valid_loss'), EarlyStoppingCallback('valid_loss')]
    for cb in cbs:
        learn = tiny_learner()
        learn.data.valid_dl = None
        assert_refused(learn, 'needs validation, so pass DataBunch a valid_dl',
                       lambda: quiet_runner(cb).fit(1, learn))


def test_layers_that_learn_their_size_from_the_first_batch(tmp_path):
    def learner(): return tiny_learner(model=nn.Sequential(nn.LazyLinear(5), nn.Linear(5, 3)))
    first, again = learner(), learner()
    fit_until(4, tmp_path, first)
    go_on(tmp_path, again)
    Runner(CheckpointCallback(tmp_path/'whole')).fit(1, first)
    assert again.model[0].weight.shape == (5, 4)


# --- state keeps its type, and settings hold


Point = namedtuple('Point', 'x y')
class Colour(Enum): RED = 1

@dataclass
class Record:
    name: str
    values: np.ndarray


def equal(a, b) -> bool:
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    if isinstance(a, torch.Tensor): return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, Record): return a.name == b.name and equal(a.values, b.values)
    if isinstance(a, (list, tuple)): return all(map(equal, a, b))
    return a == b


@pytest.mark.parametrize('o', [
    np.arange(6).reshape(2, 3), np.array([1.5, np.pi], np.float32), np.array(['a', None], object),
    np.array(['2026-01-01'], 'datetime64[D]'), np.zeros(2, [('a', int), ('b', 'f4')]),
    np.float32(0.5), np.int64(3), np.bool_(True), np.datetime64('2026-01-01'), np.array(3),
    Counter('abca'), OrderedDict(b=1, a=2), defaultdict(int, a=3), deque([1, 2], maxlen=3),
    defaultdict(list, {('a', 1): [2]}), frozenset({1, 2}), {1, 'a'}, {frozenset({1}), (2, 3)},
    {1: {'a': (2,)}}, {'__kind__': 'set', 'parts': []}, Point(1, [2]), Colour.RED,
    Record('a', np.zeros(2)), nn.Parameter(torch.ones(2), requires_grad=False),
    torch.ones(2).to_sparse(),
    torch.ones(1, dtype=torch.complex128), torch.float16, torch.Size([2]), bytearray(b'a'),
    range(3), slice(1, None), datetime(2026, 1, 2, 3), date(2026, 1, 2), timedelta(1, 2, 3),
    Decimal('0.1'), Fraction(1, 3), Path('a/b'), 1j, float('inf'), None,
], ids=lambda o: f'{type(o).__name__}')
def test_state_keeps_its_type(tmp_path, o):
    class Keeps(Callback):
        def begin_fit(self): self.kept = None
        def after_batch(self): self.kept = [o]
    fit_until(2, tmp_path, tiny_learner(), Keeps())
    keeps, seen = Keeps(), []
    keeps.begin_batch = lambda: seen.append(keeps.kept)
    go_on(tmp_path, tiny_learner(), keeps)
    found = seen[0][0]
    assert type(found) is type(o)
    assert equal(found.to_dense(), o.to_dense()) if getattr(o, 'is_sparse', False) \
        else equal(found, o)
    assert getattr(found, 'maxlen', None) == getattr(o, 'maxlen', None)
    assert getattr(found, 'default_factory', None) == getattr(o, 'default_factory', None)


def test_what_cannot_be_kept_is_named_before_the_first_step(tmp_path):
    class Holds(Callback):
        def __init__(self, o): self.kept = o
    circle = []
    circle.append(circle)
    Local = namedtuple('Local', 'x')
    for o, message in ((circle, 'Holds.kept: it holds itself'),
                       (defaultdict(lambda: 1), "Holds.kept: a defaultdict's factory can be int"),
                       (Local(1), 'There is no class .* in a module')):
        learn = tiny_learner()
        assert_refused(learn, message, lambda: Runner(
            [Holds(o), CheckpointCallback(tmp_path)]).fit(1, learn), (TypeError, ValueError))
        assert not list(tmp_path.iterdir())
    class Odd(torch.Tensor): pass
    model = nn.Linear(4, 3)
    model.register_buffer('odd', torch.ones(2).as_subclass(Odd))
    with pytest.raises(TypeError, match="the model can't be saved: odd is a Odd"):
        Runner(CheckpointCallback(tmp_path)).fit(1, tiny_learner(model=model))


@pytest.mark.parametrize('make', [
    lambda: torch.ones(2, dtype=torch.complex128), lambda: torch.eye(2).to_sparse(),
    lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
], ids=['complex128', 'sparse', 'quantised'])
def test_tensors_that_safetensors_has_no_type_for(tmp_path, make):
    def learner(factor):
        model = nn.Linear(4, 3)
        buffer = make()
        if not buffer.is_quantized: buffer = buffer*factor
        model.register_buffer('odd', buffer)
        return tiny_learner(model=model)
    fit_until(2, tmp_path, learner(1))
    learn = learner(3)
    go_on(tmp_path, learn)
    odd, expected = learn.model.odd, make()
    if odd.is_quantized: odd, expected = odd.dequantize(), expected.dequantize()
    assert torch.equal(odd.to_dense(), expected.to_dense())


def test_generators_of_any_kind_anywhere(tmp_path, no_fsync):
    class Draws(torch.utils.data.Dataset):
        def __init__(self, seed): self.rng = np.random.default_rng(seed)
        def __len__(self): return 12
        def __getitem__(self, i): return torch.full((4,), self.rng.random()), i % 3

    def learner(seed):
        torch.manual_seed(0)
        learn = tiny_learner()
        learn.data = DataBunch(DataLoader(Draws(seed), 4))
        return learn

    class Several(Callback):
        def __init__(self, seed):
            g, python = torch.Generator().manual_seed(seed), random.Random(seed)
            old = dict(a=[np.random.RandomState(seed)])
            def draw():
                return torch.rand((), generator=g).item(), python.random(), old['a'][0].rand()
            self.draw = draw
        def begin_fit(self): self.drawn = []
        def after_batch(self): self.drawn.append(self.draw())

    whole, first, several = learner(0), learner(0), Several(0)
    Runner([several]).fit(2, whole)
    fit_until(4, tmp_path, first, Several(0), epochs=2)
    again, other = learner(5), Several(5)
    go_on(tmp_path, again, other, epochs=2)
    assert other.drawn == several.drawn
    assert torch.equal(weights(whole), weights(again))


def test_settings_are_those_that_are_passed_now(tmp_path):
    class Patience(Callback):
        def __init__(self, patience, path):
            self.patience, self.path, self.count = patience, path, 0
            self.sums = torch.zeros(2)
        def begin_fit(self): self.best = 9
        def after_batch(self):
            self.count += 1
            self.sums += 1
    def learner():
        learn = tiny_learner()
        learn.data.valid_dl = None
        return learn
    fit_until(4, tmp_path, learner(), Patience(3, Path('old')))
    class Look(Patience):
        name = 'patience'
        def begin_batch(self): self.seen = vars(self).setdefault('seen', (self.count, self.best))
    now = Look(10, Path('new'))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        go_on(tmp_path, learner(), now)
    assert (now.patience, now.path) == (10, Path('new'))
    assert now.seen == (4, 9)
    assert now.count == 9
    assert now.sums.tolist() == [9, 9]


def test_metrics_made_of_metrics(tmp_path):
    class Right:
        def __init__(self): self.reset()
        def reset(self): self.counts = Counter()
        def update(self, pred, yb): self.counts.update((pred.argmax(1) == yb).tolist())
        def compute(self): return self.counts[True]/self.counts.total()

    class Halved:
        "Holds another one, in a list"
        def __init__(self): self.parts = [Right()]
        def update(self, pred, yb): self.parts[0].update(pred, yb)
        def compute(self): return self.parts[0].compute()/2
        def reset(self): self.parts[0].reset()

    def stats(): return AvgStatsCallback([Halved(), Right()])
    whole = quiet_runner([stats(), Recorder()])
    torch.manual_seed(0)
    whole.fit(1, tiny_learner(4))
    torch.manual_seed(0)
    fit_until(2, tmp_path, tiny_learner(4), stats(), Recorder(), epochs=1)
    again = go_on(tmp_path, tiny_learner(4), stats(), Recorder(), epochs=1)
    a, b = whole.recorder.history[0], again.recorder.history[0]
    assert {**a, 'seconds': 0} == {**b, 'seconds': 0}


# --- the best is the best


def test_the_best_of_a_metric_whose_name_does_not_tell(tmp_path):
    with pytest.raises(ValueError, match="pass mode='min' or mode='max'"):
        CheckpointCallback(tmp_path, best='valid_thing')
    class Thing(Callback):
        def after_epoch(self): self.run.metrics['valid_thing'] = (3., 1., 2.)[self.epoch]
    for mode, epoch in (('min', 2), ('max', 1)):
        checkpoints = CheckpointCallback(tmp_path/mode, best='valid_thing', mode=mode, keep=1)
        quiet_runner([Thing(), checkpoints]).fit(3, tiny_learner())
        assert find_checkpoint(tmp_path/mode, best='valid_thing', mode=mode).epoch == epoch


@pytest.mark.parametrize('cbs, there', [
    (lambda: [AvgStatsCallback(accuracy)], "there are .*valid_loss.*Did you mean 'valid_accuracy'"),
    (lambda: [], 'there are none'),
])
def test_the_best_of_no_such_metric(tmp_path, cbs, there):
    "Said after the first epoch, whose checkpoint is written"
    run = quiet_runner([*cbs(), CheckpointCallback(tmp_path, best='val_acc')])
    with pytest.raises(ValueError, match=f"no metric 'val_acc'.*{there}"):
        run.fit(3, tiny_learner())
    assert find_checkpoint(tmp_path).epoch == 1
    if cbs():
        with pytest.raises(ValueError, match=there): find_checkpoint(tmp_path, best='val_acc')


# --- folders


def test_one_writer_at_a_time(tmp_path):
    "A second one is refused, and leaves what the first one is writing alone"
    class Second(Callback):
        def after_step(self):
            part = tmp_path/'.000009-epoch-0-batch-9.part'
            part.mkdir(exist_ok=True)
            other = Runner(CheckpointCallback(tmp_path, resume=True))
            with pytest.raises(FolderInUseError, match='Another process is writing to'):
                other.fit(1, tiny_learner())
            assert part.exists()
    Runner([Second(), CheckpointCallback(tmp_path)]).fit(1, tiny_learner())
    Runner(CheckpointCallback(tmp_path, resume=True)).fit(2, tiny_learner())   # it is free again
    with pytest.raises(FileExistsError):
        Runner(CheckpointCallback(tmp_path)).fit(1, tiny_learner())
    Runner(CheckpointCallback(tmp_path, resume=True)).fit(3, tiny_learner())


def test_only_its_own_folders_are_removed(tmp_path):
    run = Runner(CheckpointCallback(tmp_path, every=1, keep=1))
    run.fit(1, tiny_learner())
    last, = tmp_path.iterdir()
    others = [f'{last.name}-precious', '1-epoch-a-batch-b', '9xx-epoch-0-batch-0', '.x.part',
              '000000-epoch-0-batch-0', '000001-epoch-0-batch-0']
    for name in others[:3] + others[4:5]: shutil.copytree(last, tmp_path/name)
    (tmp_path/others[4]/'manifest.json').unlink()
    for name in (others[3], others[5]): (tmp_path/name).write_text('a file')
    run.fit(1, tiny_learner())
    assert {p.name for p in tmp_path.iterdir()} >= set(others)
    assert find_checkpoint(tmp_path).path.name == '000007-epoch-1-batch-0'


@pytest.mark.parametrize('damage', ['fifo', 'folder', 'loop', 'missing', 'error', 'huge'])
@pytest.mark.parametrize('name', ['manifest.json', 'training.pt'])
def test_a_file_that_cannot_be_read(tmp_path, monkeypatch, name, damage):
    before, last = checkpoints_of_a_fit(tmp_path)
    path = last/name
    if damage != 'error': path.unlink()
    if damage == 'fifo': os.mkfifo(path)
    if damage == 'folder': path.mkdir()
    if damage == 'loop': path.symlink_to(path)
    if damage == 'huge':
        with open(path, 'wb') as f: f.truncate(2**40)
    read = Path.read_bytes
    def fails(p):
        if p == path: raise OSError(errno.EIO, 'Input/output error')
        return read(p)
    if damage == 'error': monkeypatch.setattr(Path, 'read_bytes', fails)
    with pytest.warns(UserWarning, match=f'{before.name} is used instead'):
        assert find_checkpoint(tmp_path).path == before


@pytest.mark.parametrize('about', [
    lambda a: a | dict(files={k: v | dict(bytes=float('inf')) for k, v in a['files'].items()}),
    lambda a: a | dict(metrics={'valid_loss': 'x'}),
    lambda a: a | dict(more=functools.reduce(lambda o, _: [o], range(500), [])),
])
def test_manifests_that_are_hostile(tmp_path, about):
    before, last = checkpoints_of_a_fit(tmp_path)
    remake(last, about)
    if 'more' in json.loads(json.loads((last/'manifest.json').read_text())['about']):
        deep = '['*200_000 + ']'*200_000
        text = json.dumps(dict(sha256=checkpoint._digest(deep.encode()), about=deep))
        (last/'manifest.json').write_text(text)
    assert_falls_back_to(before, tmp_path)


@pytest.mark.parametrize('change', [
    lambda t: t | dict(n_iter='x', random={}),
    lambda t: t | dict(data=3),
    lambda t: t | dict(random=t['random'] | dict(torch=torch.zeros(3))),
    lambda t: t | dict(opt=dict(param_groups=t['opt']['param_groups'], state=7)),
    lambda t: t | dict(opt=[]),
    lambda t: t | dict(n_iter={'__kind__': 'Enum', 'parts': ['os', 'system', 'x']}),
])
def test_hostile_states_put_nothing_back(tmp_path, change):
    Runner(CheckpointCallback(tmp_path)).fit(1, tiny_learner())
    path, = tmp_path.iterdir()
    state = torch.load(path/'training.pt', weights_only=True)
    remake(path, training=torch_saved(change(state)))
    learn = tiny_learner(opt_func=partial(optim.SGD, lr=0.1, momentum=0.9))
    opt = copy.deepcopy(learn.opt.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert_refused(learn, path.name, lambda: go_on(tmp_path, learn))
    assert learn.opt.state_dict() == opt


def test_a_file_that_unpacks_to_much_more(tmp_path):
    Runner(CheckpointCallback(tmp_path)).fit(1, tiny_learner())
    path, = tmp_path.iterdir()
    with zipfile.ZipFile(bomb := io.BytesIO(), 'w', zipfile.ZIP_DEFLATED) as z:
        z.writestr('archive/data.pkl', bytes(10**7))
    remake(path, training=bomb.getvalue())
    with pytest.raises(ValueError, match='training.pt is not what'):
        find_checkpoint(tmp_path).state()


# --- signals and workers


WITH_WORKERS = '''
import sys, time
sys.path.insert(0, {tests!r})
from helpers import *
from minifastai.checkpoint import CheckpointCallback
from torch.utils.data import DataLoader, Dataset
class Slow(Dataset):
    def __len__(self): return 400
    def __getitem__(self, i):
        time.sleep(0.02)
        return torch.ones(4), 1
class Say(Callback):
    def after_batch(self): print(self.run.n_iter, flush=True)
if __name__ == '__main__':
    learn = tiny_learner()
    learn.data = DataBunch(DataLoader(Slow(), 5, num_workers=1, multiprocessing_context={how!r}))
    Runner([Say(), CheckpointCallback({folder!r})]).fit(1, learn)
'''


@pytest.mark.skipif(os.name == 'nt', reason='signals')
@pytest.mark.parametrize('how, number', [('spawn', 2), ('spawn', 15), ('fork', 1)][:storm(1, 3)])
def test_a_signal_to_the_workers_too(tmp_path, how, number):
    "As Ctrl-C in a terminal, and as a system ends a group of processes"
    folder, file = tmp_path/'checkpoints', tmp_path/'child.py'
    tests = str(Path(__file__).parent)
    file.write_text(WITH_WORKERS.format(tests=tests, how=how, folder=str(folder)))
    process = subprocess.Popen([sys.executable, str(file)], stdout=subprocess.PIPE, text=True,
                               stderr=subprocess.PIPE, start_new_session=True)
    next(line for line in process.stdout if line.startswith('2'))
    os.killpg(process.pid, number)
    error = process.communicate()[1]
    if number == 2: assert error.rstrip().endswith('KeyboardInterrupt'), error
    else: assert process.returncode == 128 + number, error
    assert find_checkpoint(folder).batch >= 2
    assert 'exited unexpectedly' not in error


def test_workers_that_live_on_can_be_ended_after_the_fit(tmp_path):
    "By SIGTERM, as Python does at the end of a program"
    learn = tiny_learner()
    ds = Dataset(torch.randn(10, 4), torch.arange(10) % 3)
    dl = learn.data.train_dl = DataLoader(ds, 5, num_workers=1, persistent_workers=True)
    Runner(CheckpointCallback(tmp_path)).fit(1, learn)
    assert dl.worker_init_fn is None
    worker, = dl._iterator._workers
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)   # PyTorch's would report a death
    worker.terminate()
    worker.join(10)
    signal.signal(signal.SIGCHLD, before)
    assert not worker.is_alive()
    dl._iterator._workers_status = [False]


# --- weights alone, and models in wrappers


def test_a_compiled_run_goes_on_without_and_the_other_way_round(tmp_path):
    def learner(compiled):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
        if compiled: model[0] = torch.compile(model[0], backend='eager')
        return tiny_learner(model=torch.compile(model, backend='eager') if compiled else model)
    whole = learner(False)
    Runner().fit(3, whole)
    for compiled in (True, False):
        folder = tmp_path/f'{compiled}'
        fit_until(4, folder, learner(compiled))
        names = ['0.weight', '0.bias', '1.weight', '1.bias', '1.running_mean', '1.running_var',
                 '1.num_batches_tracked', '2.weight', '2.bias']
        assert sorted(find_checkpoint(folder).weights()) == sorted(names)
        again = learner(not compiled)
        go_on(folder, again)
        for v, w in zip(again.model.state_dict().values(), whole.model.state_dict().values()):
            assert torch.allclose(v, w, atol=1e-6)
    parallel = nn.DataParallel(nn.Sequential(nn.Linear(4, 3)))
    assert list(utils.plain_state(parallel)) == ['0.weight', '0.bias']


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match='There is no folder .*nowhere for x: make it'):
        tiny_learner().save(tmp_path/'nowhere'/'x')


def test_a_learners_weights(tmp_path):
    learn, other = tiny_learner(), tiny_learner()
    path = tmp_path/'model.safetensors'
    old = os.umask(0o022)
    try: learn.save(path, metadata=dict(a='b'))
    finally: os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o644
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert load_file(path).keys() == learn.model.state_dict().keys()
    other.load(path)
    assert torch.equal(weights(other), weights(learn))
    Runner(CheckpointCallback(tmp_path/'run')).fit(1, learn)
    other.load(find_checkpoint(tmp_path/'run').path)
    assert torch.equal(weights(other), weights(learn))
    wrapped = tiny_learner(model=torch.compile(nn.Linear(4, 3), backend='eager'))
    wrapped.load(path)
    wrapped.save(tmp_path/'wrapped')
    other.load(tmp_path/'wrapped')

    larger = tiny_learner(model=nn.Linear(4, 3, bias=False))
    assert_refused(larger, "bias isn't in the model", lambda: larger.load(path))
    larger = tiny_learner(model=nn.Linear(4, 5))
    assert_refused(larger, r'weight is \(3, 4\) in the file, \(5, 4\) in the model',
                   lambda: larger.load(path))
    larger = tiny_learner(model=nn.Sequential(nn.Linear(4, 3)))
    assert_refused(larger, "is missing from the file.*isn't in the model",
                   lambda: larger.load(path))
    for content, message in ((b'no', "isn't a file of weights"), (None, 'is missing')):
        path.unlink()
        if content: path.write_bytes(content)
        assert_refused(learn, message, lambda: learn.load(path))
        path.touch()


def test_pickled_after_a_fit(tmp_path):
    "All callbacks of the package, for a worker process or for torch.save"
    cbs = [AvgStatsCallback(accuracy), Recorder(), ActivationStats(), ProgressCallback(),
           AverageWeightsCallback(), CudaCallback('cpu'),
           ParamScheduler('lr', sched_cos(0.1, 0.01)),
           LRSchedulerCallback(partial(optim.lr_scheduler.ExponentialLR, gamma=0.9)),
           TerminateOnNaNCallback(), EarlyStoppingCallback(), CheckpointCallback(tmp_path)]
    quiet_runner(cbs).fit(1, tiny_learner())
    for cb in cbs: assert type(pickle.loads(pickle.dumps(cb))) is type(cb)


# --- early stopping


class Losses(Callback):
    "Validation losses as if they were these; None stands for no validation"
    _order = AvgStatsCallback._order + 1
    def __init__(self, *values): self.values = values
    def after_epoch(self):
        value = self.values[self.epoch]
        if value is None: self.run.metrics = {'train_loss': 1.}
        else: self.run.metrics['valid_loss'] = value
    def state_dict(self): return {}


@pytest.mark.parametrize('values, kwargs, epochs, best', [
    ([3, 2, 1, 2, 3, 4, 5], dict(patience=2), 5, 2),
    ([3, None, None, 2, None, 3, 4, 5], dict(patience=2), 7, 3),
    ([3, 2.95, 2.9, 2], dict(patience=2, min_delta=0.2), 3, 0),
    ([1, 2, 1, 0, 0, 3], dict(patience=3, mode='max'), 5, 1),
    ([float('nan')]*4, dict(patience=3), 3, None),
    ([3, 2, 1, 1], dict(patience=3), 4, 2),
])
def test_early_stopping(capsys, values, kwargs, epochs, best):
    stopping, recorder = EarlyStoppingCallback(**kwargs), Recorder()
    run = quiet_runner([Losses(*values), stopping, recorder])
    run.fit(len(values), tiny_learner())
    assert len(recorder.history) == epochs
    assert stopping.best_epoch == best
    ended = epochs < len(values)
    assert (stopping.message is not None) == ended
    assert ('valid_loss has not improved' in capsys.readouterr().out) == ended


def test_early_stopping_restores_the_best_also_after_going_on(tmp_path, no_fsync):
    values = [3, 1, 2, 3, 4, 5]
    def make(*cbs):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
        return tiny_learner(model=model), [
            Losses(*values), AverageWeightsCallback(0.5),
            EarlyStoppingCallback(patience=3, restore=True), *cbs]

    class Note(Callback):
        _order = 999
        def begin_fit(self): self.at = []
        def after_epoch(self): self.at.append(weights(self))
    learn, cbs = make(note := Note())
    run = Runner(cbs)
    run.fit(6, learn)
    assert run.n_iter == 15
    assert torch.equal(weights(learn), note.at[1])
    for after in (2, 4, 7, 14):
        broken, cbs = make()
        fit_until(after, tmp_path/f'{after}', broken, *cbs, epochs=6)
        again, cbs = make()
        assert go_on(tmp_path/f'{after}', again, *cbs, epochs=6).n_iter == 15
        assert torch.equal(weights(again), note.at[1])
    again, cbs = make()   # it was ended, and so it stays
    with pytest.warns(UserWarning, match='ended this run after 5 of 6'):
        assert go_on(tmp_path/'7', again, *cbs, epochs=6).n_iter == 15
    assert torch.equal(weights(again), note.at[1])
    last = find_checkpoint(tmp_path/'7')   # and by its own state, if this one is chosen
    run = Runner([CheckpointCallback(tmp_path/'7', resume=last), *make()[1]])
    run.fit(6, again)
    assert run.n_iter == 15


def test_early_stopping_by_no_such_metric():
    with pytest.raises(ValueError, match="no metric 'valid_acc'.*Did you mean 'valid_accuracy'"):
        quiet_runner([AvgStatsCallback(accuracy), EarlyStoppingCallback('valid_acc')]).fit(
            3, tiny_learner())
    wrong = ((dict(patience=0), 'patience has to be'), (dict(mode='up'), 'mode has to be'))
    for kwargs, message in wrong:
        with pytest.raises(ValueError, match=message): EarlyStoppingCallback(**kwargs)


def test_a_nan_raises_if_asked():
    learn = tiny_learner()
    nn.init.constant_(learn.model.weight, float('nan'))
    with pytest.raises(FloatingPointError, match='Stopped in training, epoch 0.*the loss is nan'):
        Runner(TerminateOnNaNCallback(raise_error=True)).fit(9, learn)


@pytest.mark.parametrize('bad', [True, False])
def test_sparse_gradients(bad):
    class Spoils(Callback):
        def after_backward(self):
            if bad: self.model[0].weight.grad._values()[3] = float('nan')
    model = nn.Sequential(nn.Embedding(9, 4, sparse=True), nn.Flatten(), nn.Linear(8, 3))
    learn = tiny_learner(model=model)
    learn.data = DataBunch([(torch.arange(10).view(5, 2) % 9, torch.arange(5) % 3)], None)
    run = Runner([Spoils(), terminate := TerminateOnNaNCallback(gradients=True)])
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'Stopped in training')
        run.fit(1, learn)
    assert bool(terminate.message and 'first that of 0.weight' in terminate.message) == bad


def test_a_nan_in_a_sparse_input():
    x = torch.tensor([[1., 0], [0, float('nan')]])
    for sparse in (x.to_sparse(), x.to_sparse_csr()):
        assert first_not_finite(nn.Linear(2, 1), sparse) == 'item 1 of the batch'


@pytest.mark.parametrize('kind', [tuple, list, lambda ab: dict(zip('ab', ab))])
def test_a_nan_in_the_second_input_of_a_model(kind):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(8, 3)
        def forward(self, a, b): return self.lin(torch.cat([a, b], 1))
    a, b = torch.randn(5, 4), torch.randn(5, 4)
    b[3, 1] = float('nan')
    learn = tiny_learner(model=Two())
    learn.data = DataBunch([(kind([a, b]), torch.zeros(5, dtype=torch.long))])
    with pytest.warns(UserWarning, match='item 3 of the batch, input 1 of 2'):
        Runner(TerminateOnNaNCallback(layers=True)).fit(1, learn)
    assert first_not_finite(learn.model, (a, a)) == ''
    assert first_not_finite(learn.model, dict(a=a, b=a)) == ''


# --- the command

LESSON = ['--dataset', 'digits', '--recipe', 'lesson']


def start_training(*args, cwd):
    return fork(script('minifastai-train'), *args, cwd=cwd, stderr=subprocess.STDOUT)


def train(*args, cwd):
    "Status and output of the command; whatever happens to it, there is no traceback"
    done = finish(start_training(*args, cwd=cwd))
    assert 'Traceback' not in done.stdout, done.stdout
    return done.returncode, done.stdout


def test_killed_at_random_moments(tmp_path):
    """SIGKILL, again and again, also while a checkpoint is written.

    At the end weights and history are those of a run that nobody disturbed.
    """
    kills = storm(3, 12, 'MINIFASTAI_KILLS')
    epochs = 4 + 2*kills   # so many that it is not complete before the last kill
    settings = [*LESSON, '--epochs', str(epochs), '--bs', '64', '--norm', 'running']
    status, out = train(*settings, '--out', 'whole', cwd=tmp_path)
    assert status == 0, out

    args = [*settings, '--out', 'killed']
    for _ in range(kills):
        process = start_training(*args, '--every', '1', cwd=tmp_path)
        for line in process.stdout:   # it trains, or has done so
            if line.split()[:1] == ['epoch'] or 'Validation accuracy' in line: break
        time.sleep(random.uniform(0, 0.7))
        process.kill()
        process.communicate()
        args = ['--resume', 'killed']
    status, out = train(*args, cwd=tmp_path)
    assert status == 0, out
    for name in ('model.safetensors', 'batches.csv'):
        assert (tmp_path/'killed'/name).read_bytes() == (tmp_path/'whole'/name).read_bytes()


@pytest.mark.parametrize('number, status', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_asked_to_stop(tmp_path, number, status):
    process = start_training(*LESSON, '--epochs', '10000', '--out', 'run', cwd=tmp_path)
    read_epochs(process, 2)
    process.send_signal(number)
    done = finish(process)
    assert done.returncode == status, done.stdout
    assert 'Traceback' not in done.stdout, done.stdout
    assert 'To continue: minifastai-train --resume run' in done.stdout, done.stdout
    assert find_checkpoint(tmp_path/'run'/'checkpoints').epoch >= 2
    assert load_file(tmp_path/'run'/'model.safetensors')


def test_what_cannot_be_resumed(tmp_path):
    for args, message in (
        (['--resume', 'nothing'], 'is not a run of minifastai-train'),
        (['--every', '0'], '--every has to be at least 1'),
    ):
        status, out = train(*args, cwd=tmp_path)
        assert status != 0, out
        assert message in out, out
        assert not list(tmp_path.iterdir()), out

    folder = tmp_path/'run'
    status, out = train(*LESSON, '--epochs', '1', '--out', 'run', cwd=tmp_path)
    assert status == 0, out
    for args, message in (
        (['--lr', '3'], 'leave out --lr'),
        (['--out', 'other'], 'leave out --out'),
        (['--seed', '1'], 'leave out --seed'),
    ):
        status, out = train('--resume', 'run', *args, cwd=tmp_path)
        assert message in out, out
    status, out = train('--resume', 'run', cwd=tmp_path)
    assert 'run is complete, with 1 epoch' in out, out

    kept = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    settings = json.loads(kept.pop('settings.json'))
    for text, message in (
        ('{', 'is damaged'),
        ('[]', 'it has no recipe'),
        (json.dumps(settings | dict(epochs='x')), 'not of type int'),
        (json.dumps(settings | dict(bs=32, epochs=2)), 'batches an epoch; here there are'),
    ):
        (folder/'settings.json').write_text(text)
        status, out = train('--resume', 'run', cwd=tmp_path)
        assert status == 1, out
        assert message in out, out
        for name, content in kept.items():    # what there was stays
            assert (folder/name).read_bytes() == content


@pytest.mark.parametrize('name', ['model.safetensors', 'training.pt', 'callbacks.pt'])
def test_one_changed_byte_is_noticed(tmp_path, name):
    "The size is right, and only the hash can tell"
    Runner(CheckpointCallback(tmp_path)).fit(1, tiny_learner())
    checkpoint = find_checkpoint(tmp_path)
    data = bytearray((checkpoint.path/name).read_bytes())
    data[-1] ^= 1
    (checkpoint.path/name).write_bytes(data)
    with pytest.raises(ValueError, match='its hash has changed'): checkpoint.read(name)
