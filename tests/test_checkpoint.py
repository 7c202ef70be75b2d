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
import time
import warnings
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

from minifastai import checkpoint
from minifastai.data import DataBunch
from minifastai.callbacks import Callback, CancelBatchException, CancelTrainException
from minifastai.learner import Learner, Runner
from minifastai.metrics import accuracy, AvgStatsCallback
from minifastai.schedules import LRSchedulerCallback, ParamScheduler, sched_cos
from minifastai.recorder import Recorder
from minifastai.checkpoint import Checkpoint, CheckpointCallback, CheckpointError, find_checkpoint

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
    "`run.fit`, without the warning that `StopAfter` is not among the callbacks any more"
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'stop_after is not among')
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
        'open': (checkpoint, open),
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
        with pytest.raises(CheckpointError, match=f'cannot be written.*{message}'):
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
        with pytest.raises(CheckpointError, match='cannot be written to .*Permission denied'):
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
    message = 'holds more than plain data, and was not loaded'
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
    (dict(model=b'no weights at all'), 'model.safetensors is no file of weights'),
    (dict(model=b'\xff'*8 + b'{}'), 'model.safetensors is no file of weights'),
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
    message = 'state of Keeps cannot be kept: Linear is no plain data'
    with pytest.raises(TypeError, match=message):
        Runner([Keeps(), CheckpointCallback(tmp_path)]).fit(1, tiny_learner())


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
    assert 'To go on: minifastai-train --resume run' in done.stdout, done.stdout
    assert find_checkpoint(tmp_path/'run'/'checkpoints').epoch >= 2
    assert load_file(tmp_path/'run'/'model.safetensors')


def test_what_cannot_be_resumed(tmp_path):
    for args, message in (
        (['--resume', 'nothing'], 'is not a run of this command'),
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
    assert 'which is complete' in out, out
    assert 'Validation accuracy' in out, out

    kept = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    settings = json.loads(kept.pop('settings.json'))
    for text, message in (
        ('{', 'is damaged'),
        ('[]', 'it has no recipe'),
        (json.dumps(settings | dict(epochs='x')), 'not of type int'),
        (json.dumps(settings | dict(bs=32)), 'batches an epoch; here there are'),
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
    with pytest.raises(ValueError, match='its hash is not that'): checkpoint.read(name)
