"Checkpoints under everything that can happen to a training: killed at any moment, a full disk, a folder that is read-only, damaged or hostile files, other loaders, metrics and schedulers."
import copy
import errno
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
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import heeds_permissions, tiny_learner
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

TRAIN = [str(Path(sys.executable).with_name('minifastai-train'))]


class Stop(Exception): pass


def weights(learn): return torch.cat([v.flatten().double() for v in learn.model.state_dict().values()])


class Noisy(Callback):
    "Draws from all generators, at many events, and remembers"
    def begin_fit(self): self.drawn = []
    def begin_epoch(self): self._draw()
    def begin_batch(self):
        if self.in_train: self._draw(); self.run.xb = self.run.xb + 0.1*torch.randn(self.run.xb.shape)
    def after_epoch(self): self._draw()
    def _draw(self): self.drawn.append((random.random(), np.random.rand(), torch.rand(()).item()))


def noisy(learner, cbs, seed):
    random.seed(seed); np.random.seed(seed); torch.manual_seed(seed)
    learn = learner()
    run = Runner([Noisy(), Recorder(), AvgStatsCallback(accuracy), *cbs])
    run.show_stats = lambda *stats: None
    return learn, run


class Reader(torch.utils.data.Dataset):
    "Items that are different at each reading, from the generators of whichever process reads them"
    def __init__(self): self.x, self.y = torch.randn(40, 4, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 3
    def __len__(self): return len(self.x)
    def __getitem__(self, i): return self.x[i] + torch.randn(4) + random.random(), self.y[i]


def with_loader(opt=partial(optim.SGD, lr=0.1, momentum=0.9), **kwargs):
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 3))
    return Learner(model, opt(model.parameters()), F.cross_entropy, DataBunch(DataLoader(Reader(), batch_size=8, shuffle=True, **kwargs), DataLoader(Reader(), batch_size=8), 3))


LEARNERS = {'the loader of PyTorch': with_loader, 'workers': partial(with_loader, num_workers=2), 'Adam': partial(with_loader, partial(optim.AdamW, lr=0.01)),
            'a generator of its own': lambda: with_loader(generator=torch.Generator().manual_seed(3)), 'no momentum': partial(with_loader, partial(optim.SGD, lr=0.1))}
CALLBACKS = {'schedule': lambda: ParamScheduler('lr', sched_cos(0.2, 0.01)), "PyTorch's, each batch": lambda: LRSchedulerCallback(partial(optim.lr_scheduler.OneCycleLR, max_lr=0.2, total_steps=15)),
             "PyTorch's, each epoch": lambda: LRSchedulerCallback(partial(optim.lr_scheduler.MultiStepLR, milestones=[1, 2]), per_batch=False), 'nothing': Noisy}


def same(run, other):
    assert torch.equal(torch.stack(run.recorder.losses), torch.stack(other.recorder.losses)) and run.recorder.lrs == other.recorder.lrs
    for a, b in zip(run.recorder.history, other.recorder.history, strict=True): assert {**a, 'seconds': 0} == {**b, 'seconds': 0}
    assert run.noisy.drawn == other.noisy.drawn


@pytest.mark.parametrize('learner, callback', [(l, c) for l in LEARNERS for c in CALLBACKS if l != 'workers' or c == 'schedule'])   # worker processes are slow to start
@pytest.mark.parametrize('after', [1, 5, 8, 14])
def test_goes_on_bit_for_bit(tmp_path, learner, callback, after):
    "Five batches an epoch, three epochs; the steps after which it stops are within and at the end of one"
    make = lambda: [CALLBACKS[callback]()] if callback != 'nothing' else []
    learn, run = noisy(LEARNERS[learner], make(), 0)
    run.fit(3, learn)
    broken, first = noisy(LEARNERS[learner], [*make(), CheckpointCallback(tmp_path, every=1), _stop_after(after)], 0)
    with pytest.raises(Stop): first.fit(3, broken)
    again, second = noisy(LEARNERS[learner], [*make(), CheckpointCallback(tmp_path, every=1, resume=True)], 7)
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'stop_after is not among')
        second.fit(3, again)
    assert torch.equal(weights(again), weights(learn))
    same(second, run)


def _stop_after(n):
    class StopAfter(Callback):
        _order = 2000
        def after_batch(self):
            if self.in_train and self.run.n_iter == n: raise Stop
    return StopAfter()


def test_cancelled_batches_are_counted(tmp_path):
    "They came from the loader; whoever goes on has to pass over them, too"
    class Picky(Callback):
        def begin_batch(self):
            if self.in_train and self.xb.mean() > 0.5: raise CancelBatchException
    def make(folder, cbs, seed):
        torch.manual_seed(seed); random.seed(seed)
        learn = with_loader()
        return learn, Runner([Picky(), Recorder(), CheckpointCallback(tmp_path/folder, every=1, resume=True), *cbs])
    whole, run = make('whole', [], 0); run.fit(4, whole)
    assert 4 < run.n_iter < 16
    for after in range(1, run.n_iter):
        broken, first = make(f'{after}', [_stop_after(after)], 0)
        with pytest.raises(Stop): first.fit(4, broken)
        again, second = make(f'{after}', [], 1)
        with warnings.catch_warnings(): warnings.simplefilter('ignore'); second.fit(4, again)
        assert torch.equal(weights(again), weights(whole))


def test_a_metric_that_collects(tmp_path):
    class Collects:
        def __init__(self): self.reset()
        def reset(self): self.right, self.seen = torch.tensor(0.), 0
        def update(self, pred, yb): self.right = self.right + (pred.argmax(1) == yb).sum(); self.seen += len(yb)
        def compute(self): return self.right/self.seen
    def make(cbs):
        torch.manual_seed(0)
        run = Runner([AvgStatsCallback([Collects(), accuracy]), Recorder(), CheckpointCallback(tmp_path, every=1, resume=True), *cbs])
        run.show_stats = lambda *stats: None
        return tiny_learner(6), run
    learn, run = make([_stop_after(4)])
    with pytest.raises(Stop): run.fit(1, learn)
    learn, run = make([])
    with warnings.catch_warnings(): warnings.simplefilter('ignore'); run.fit(1, learn)
    row = run.recorder.history[0]
    assert row['train_collects'] == pytest.approx(row['train_accuracy'], abs=1e-6)
    assert run.avg_stats.train_stats.metrics[0].seen == 30


def test_keeps_the_last_and_the_best(tmp_path):
    class Falls(Callback):   # accuracies as if they were these
        def __init__(self, values): self.values = values
        def after_epoch(self): self.run.avg_stats.row = lambda: {'valid_accuracy': self.values[self.epoch], 'valid_loss': -self.values[self.epoch]}
    for best in ('valid_accuracy', 'valid_loss'):
        values = [float('nan'), 0.9, 0.7, float('nan'), 0.6, 0.8]
        run = Runner([AvgStatsCallback(), Falls(values), CheckpointCallback(tmp_path/best, keep=2, best=best)])
        run.show_stats = lambda *stats: None
        run.fit(6, tiny_learner())
        kept = [Checkpoint.at(p).epoch for p in sorted((tmp_path/best).iterdir())]
        assert kept == [2, 5, 6]
        assert find_checkpoint(tmp_path/best).epoch == 6 and find_checkpoint(tmp_path/best, best=best).epoch == 2


def test_tied_weights_and_other_orders_of_memory(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight = self.a.weight
            self.conv = nn.Conv2d(1, 3, 2).to(memory_format=torch.channels_last)
            self.out = nn.Linear(4, 3)
        def forward(self, x): return self.out(self.b(self.a(x)))
    learn = tiny_learner(model=Tied())
    Runner([CheckpointCallback(tmp_path)]).fit(1, learn)
    other = tiny_learner(model=Tied())
    run = Runner([CheckpointCallback(tmp_path, resume=True)])
    run.fit(1, other)
    assert torch.equal(weights(learn), weights(other)) and other.model.a.weight is other.model.b.weight


def test_a_second_fit_of_the_same_runner_goes_on_counting(tmp_path):
    learn, run = tiny_learner(), Runner([CheckpointCallback(tmp_path, keep=9)])
    run.fit(2, learn); run.fit(1, learn)
    assert [p.name[:14] for p in sorted(tmp_path.iterdir())] == ['000000-epoch-1', '000001-epoch-2', '000002-epoch-1']


@pytest.mark.parametrize('error', [errno.ENOSPC, errno.EIO, errno.EROFS])
@pytest.mark.parametrize('where', ['open', 'fsync', 'rename', 'mkdir'])
def test_a_disk_that_refuses(tmp_path, monkeypatch, error, where):
    "Whatever fails while a checkpoint is written: a clear error, the last good one is kept, weights in memory are those after the step, and when there is room again it goes on"
    torch.manual_seed(0)
    learn = tiny_learner(6)
    whole = copy.deepcopy(learn)
    run = Runner([CheckpointCallback(tmp_path, every=2), Recorder()])
    real, calls = dict(open=open, fsync=os.fsync, rename=os.rename, mkdir=Path.mkdir)[where], []
    def refuse(*args, **kwargs):
        if run.n_iter >= 4: calls.append(args); raise OSError(error, os.strerror(error))
        return real(*args, **kwargs)
    target = dict(open=(checkpoint, 'open'), fsync=(os, 'fsync'), rename=(os, 'rename'), mkdir=(Path, 'mkdir'))[where]
    monkeypatch.setattr(*target, refuse, raising=False)
    with pytest.raises(CheckpointError, match='could not be written.*last good one is') as e: run.fit(1, learn)
    assert e.value.errno == error and calls and len(run.recorder.losses) == 4
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ['000000-epoch-0-batch-2']
    again = tiny_learner(6)
    Runner([CheckpointCallback(tmp_path, every=2, resume=True), Recorder()]).fit(1, again)
    Runner().fit(1, whole)
    assert torch.equal(weights(again), weights(whole))


@pytest.mark.skipif(not os.path.exists('/proc/self/fd'), reason='needs /proc')
def test_written_synced_renamed_synced(tmp_path, monkeypatch):
    "Before the name is there every file is on the disk, and the list of them; after it, the name"
    log, sync, rename = [], os.fsync, os.rename
    def noted_sync(fd): log.append(os.path.relpath(os.readlink(f'/proc/self/fd/{fd}'), tmp_path)); sync(fd)
    def noted_rename(a, b): log.append((Path(a).name, Path(b).name)); rename(a, b)
    monkeypatch.setattr(os, 'fsync', noted_sync); monkeypatch.setattr(os, 'rename', noted_rename)
    Runner([CheckpointCallback(tmp_path)]).fit(1, tiny_learner())
    name = '000000-epoch-1-batch-0'
    assert log == [*(f'.{name}.part/{file}' for file in ('model.safetensors', 'training.pt', 'callbacks.pt', 'manifest.json')), f'.{name}.part', (f'.{name}.part', name), '.']


@pytest.fixture
def as_in_a_terminal():
    "Ctrl-C as Python sets it up; tests that were started in the background ignore it"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_signals_mean_afterwards_what_they_meant_before(tmp_path, as_in_a_terminal):
    "After a fit that ends well, by an error, or by the signal itself; and a handler of somebody else's is left alone"
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    class Ends(Callback):
        def __init__(self, how): self.how = how
        def after_pred(self):
            if self.how == 'signal': signal.raise_signal(signal.SIGINT)
            if self.how == 'error': raise ZeroDivisionError
    for how, error in (('well', None), ('error', ZeroDivisionError), ('signal', KeyboardInterrupt)):
        run = Runner([CheckpointCallback(tmp_path/how), Ends(how)])
        try: run.fit(1, tiny_learner())
        except BaseException as e: assert type(e) is error
        else: assert error is None
        assert {s: signal.getsignal(s) for s in before} == before
    class AtTheEnd(Callback):
        def __init__(self, event, cancel): setattr(self, event, self._ask); self.cancel = cancel
        def _ask(self):
            signal.raise_signal(signal.SIGTERM)
            if self.cancel: raise CancelTrainException
    for event, cancel in (('after_pred', True), ('cleanup_epoch', False)):    # asked when the training comes to its end in another way: that is not lost
        with pytest.raises(SystemExit) as e: Runner([CheckpointCallback(tmp_path/f'end{event}'), AtTheEnd(event, cancel)]).fit(1, tiny_learner())
        assert e.value.code == 143 and {s: signal.getsignal(s) for s in before} == before and not getattr(e.value, '__notes__', None)
    heard = []
    signal.signal(signal.SIGTERM, lambda *args: heard.append(args))
    try:
        class Asks(Callback):
            def after_pred(self): signal.raise_signal(signal.SIGTERM)
        Runner([CheckpointCallback(tmp_path/'others'), Asks()]).fit(1, tiny_learner(2))
        assert len(heard) > 2
    finally: signal.signal(signal.SIGTERM, before[signal.SIGTERM])


def test_a_full_disk(tmp_path):
    "A real one: a small file system in memory"
    disk = tmp_path/'disk'; disk.mkdir()
    if os.name == 'nt' or subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=400k', 'tmpfs', str(disk)], capture_output=True).returncode: pytest.skip('a file system cannot be mounted here')
    try:
        learn = tiny_learner(8, model=nn.Sequential(nn.Linear(4, 5000), nn.Linear(5000, 3)))   # 160 kB a checkpoint
        run = Runner([CheckpointCallback(disk/'checkpoints', every=1, keep=9)])
        with pytest.raises(CheckpointError, match='No space left on device.*last good one is'): run.fit(1, learn)
        assert 0 < run.n_iter < 8
        last = find_checkpoint(disk/'checkpoints')
        assert last.batch == run.n_iter - 1 and last.weights() and not list((disk/'checkpoints').glob('.*'))
    finally: subprocess.run(['umount', str(disk)])


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path/'file').write_text('')
    for folder, message in ((tmp_path/'file', 'File exists'), (tmp_path/'file'/'below', 'Not a directory'), (Path('/proc/here'), 'No such file')):
        learn = tiny_learner()
        before = weights(learn)
        with pytest.raises(CheckpointError, match=f'cannot be written.*{message}'): Runner([CheckpointCallback(folder)]).fit(1, learn)
        assert torch.equal(weights(learn), before)


@pytest.mark.skipif(not heeds_permissions(), reason='root may write everywhere')
def test_a_folder_without_permission(tmp_path):
    "Locked from the beginning, and locked in the middle of a training; and the command says so in one line"
    locked = tmp_path/'locked'; locked.mkdir(mode=0o500)
    learn = tiny_learner()
    before = weights(learn)
    for folder in (locked, locked/'below'):
        with pytest.raises(CheckpointError, match='cannot be written to .*Permission denied'): Runner([CheckpointCallback(folder)]).fit(1, learn)
    assert torch.equal(weights(learn), before)
    class Locks(Callback):
        def after_step(self):
            if self.run.n_iter == 3: (tmp_path/'later').chmod(0o500)
    with pytest.raises(CheckpointError, match='Permission denied.*last good one is .*batch-2'): Runner([CheckpointCallback(tmp_path/'later', every=2), Locks()]).fit(1, tiny_learner(6))
    assert [p.name for p in (tmp_path/'later').iterdir()] == ['000000-epoch-0-batch-2']
    process = start('--dataset', 'digits', '--recipe', 'lesson', '--out', str(locked/'run'), cwd=tmp_path)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and 'Permission denied' in out and 'Traceback' not in out, out
    locked.chmod(0o700); (tmp_path/'later').chmod(0o700)


def test_what_is_left_of_a_killed_write_is_removed(tmp_path):
    (tmp_path/'.000007-epoch-1-batch-2.part').mkdir(parents=True)
    (tmp_path/'.000007-epoch-1-batch-2.part'/'model.safetensors').write_bytes(b'half')
    Runner([CheckpointCallback(tmp_path)]).fit(1, tiny_learner())
    assert [p.name for p in tmp_path.iterdir()] == ['000000-epoch-1-batch-0']


class Hostile:
    def __init__(self, path): self.path = path
    def __reduce__(self): return Path.touch, (self.path,)


@pytest.mark.parametrize('file', ['training.pt', 'callbacks.pt'])
@pytest.mark.parametrize('make', [lambda o: (torch.save(o, out := io.BytesIO()), out.getvalue())[1], pickle.dumps, lambda o: b'\x80\x04' + pickle.dumps(o)[2:-1]])
def test_a_hostile_file_is_not_run(tmp_path, file, make):
    "With the right hash, since who can write the file can write the manifest"
    learn = tiny_learner()
    Runner([CheckpointCallback(tmp_path/'good'), Recorder()]).fit(1, learn)
    good = find_checkpoint(tmp_path/'good')
    files = {name: good.read(name) for name in good.files} | {file: make({'opt': Hostile(tmp_path/'run!')})}
    (tmp_path/'bad').mkdir()
    checkpoint._write_folder(tmp_path/'bad'/good.path.name, dict(epoch=1, batch=0, metrics={}), files)
    again = tiny_learner()
    before = weights(again)
    with pytest.raises(ValueError, match='holds more than plain data, and was not loaded'): Runner([CheckpointCallback(tmp_path/'bad', resume=True), Recorder()]).fit(2, again)
    assert not (tmp_path/'run!').exists() and torch.equal(weights(again), before)


@pytest.mark.parametrize('text', [b'', b'{}', b'[]', b'null', b'{"sha256": 1, "about": 2}', b'\xff\xfe', b'{"sha256": "", "about": ""}'])
def test_a_manifest_of_anything(tmp_path, text):
    Runner([CheckpointCallback(tmp_path, every=1)]).fit(1, tiny_learner())
    *_, before, last = sorted(tmp_path.iterdir())
    (last/'manifest.json').write_bytes(text)
    with pytest.warns(UserWarning, match='manifest.json is damaged'): assert find_checkpoint(tmp_path).path == before


def _remake(path, about=None, **files):
    "The checkpoint at `path` with other content, and the hashes that belong to it"
    old = Checkpoint.at(path)
    files = {name: files.get(Path(name).stem) or old.read(name) for name in old.files}
    shutil.rmtree(path)
    checkpoint._write_folder(path, dict(epoch=old.epoch, batch=old.batch, metrics=old.metrics), files)
    if about is None: return
    manifest = json.loads((path/'manifest.json').read_bytes())
    text = json.dumps(about(json.loads(manifest['about'])))
    (path/'manifest.json').write_text(json.dumps(dict(sha256=checkpoint._digest(text.encode()), about=text)))


@pytest.mark.parametrize('about', [
    lambda a: a | dict(epoch=-1), lambda a: a | dict(batch='2'), lambda a: a | dict(batch=True), lambda a: {k: v for k, v in a.items() if k != 'epoch'}, lambda a: [a], lambda a: None,
    lambda a: a | dict(metrics=3), lambda a: a | dict(files={}), lambda a: a | dict(files=list(a['files'])), lambda a: a | dict(files={k: 3 for k in a['files']}),
    lambda a: a | dict(files=a['files'] | {'../../outside': dict(bytes=0, sha256='')}),
])
def test_a_manifest_of_anything_with_the_right_hash(tmp_path, about):
    Runner([CheckpointCallback(tmp_path, every=1)]).fit(1, tiny_learner())
    *_, before, last = sorted(tmp_path.iterdir())
    _remake(last, about)
    with pytest.warns(UserWarning, match='manifest.json is damaged'): assert find_checkpoint(tmp_path).path == before


def _saved(o):
    torch.save(o, out := io.BytesIO())
    return out.getvalue()


@pytest.mark.parametrize('files, message', [
    (dict(model=b'no weights at all'), 'model.safetensors is no file of weights'), (dict(model=b'\xff'*8 + b'{}'), 'model.safetensors is no file of weights'),
    (dict(training=b'x'), 'training.pt (holds more than plain data|is not what)'), (dict(training=_saved([1])), 'training.pt holds a list'), (dict(training=_saved({'opt': 1})), "training.pt has no 'n_iter'"),
    (dict(callbacks=b'abc'), 'callbacks.pt (holds more than plain data|is not what)'), (dict(callbacks=_saved(7)), 'callbacks.pt holds a int'),
], ids=str)
def test_files_of_anything_with_the_right_hash(tmp_path, files, message):
    Runner([CheckpointCallback(tmp_path)]).fit(1, tiny_learner())
    _remake(next(tmp_path.iterdir()), **files)
    learn = tiny_learner()
    before = weights(learn)
    with pytest.raises(ValueError, match=message): Runner([CheckpointCallback(tmp_path, resume=True)]).fit(2, learn)
    assert torch.equal(weights(learn), before)


def test_goes_on_from_the_one_that_is_chosen(tmp_path):
    learn, run = noisy(with_loader, [CheckpointCallback(tmp_path, keep=9)], 0)
    run.fit(3, learn)
    first = Checkpoint.at(min(tmp_path.iterdir()))
    again, second = noisy(with_loader, [CheckpointCallback(tmp_path, keep=9, resume=first)], 5)
    second.fit(3, again)
    assert first.epoch == 1 and torch.equal(weights(again), weights(learn))
    same(second, run)
    assert [p.name[:14] for p in sorted(tmp_path.iterdir())] == [f'00000{i}-epoch-{n}' for i, n in enumerate((1, 2, 3, 2, 3))]


def test_state_that_is_no_plain_data(tmp_path):
    class Keeps(Callback):
        def state_dict(self): return {'model': nn.Linear(1, 1)}
    with pytest.raises(TypeError, match='state of Keeps cannot be kept: Linear is no plain data'): Runner([Keeps(), CheckpointCallback(tmp_path)]).fit(1, tiny_learner())


def start(*args, cwd):
    return subprocess.Popen([*TRAIN, *args], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'},
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))   # tests started in the background ignore it


def test_killed_at_random_moments(tmp_path):
    "SIGKILL, again and again, also while a checkpoint is written: at the end weights and history are those of a training that nobody disturbed"
    kills = int(os.environ.get('MINIFASTAI_KILLS', 4))
    settings = ('--dataset', 'digits', '--recipe', 'lesson', '--epochs', '40', '--bs', '64', '--every', '1', '--norm', 'running')
    whole = start(*settings, '--out', 'whole', cwd=tmp_path)
    out, _ = whole.communicate(timeout=300)
    assert whole.returncode == 0, out
    args = [*settings, '--out', 'killed']
    for _ in range(kills):
        process = start(*args, cwd=tmp_path)
        for line in process.stdout:
            if line.split()[:1] == ['epoch'] or 'Validation accuracy' in line: break    # imports are over, it trains
        time.sleep(random.uniform(0, 0.7))
        process.kill(); process.communicate()
        args = ['--resume', 'killed']
    process = start(*args, cwd=tmp_path)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and 'Traceback' not in out, out
    for name in ('model.safetensors', 'batches.csv'): assert (tmp_path/'killed'/name).read_bytes() == (tmp_path/'whole'/name).read_bytes()


@pytest.mark.parametrize('number, status', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_asked_to_stop(tmp_path, number, status):
    process = start('--dataset', 'digits', '--recipe', 'lesson', '--epochs', '10000', '--out', 'run', cwd=tmp_path)
    for line in process.stdout:
        if line.split()[:1] == ['1']: break      # the second epoch is done
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == status and 'Traceback' not in out and 'To go on: minifastai-train --resume run' in out, out
    assert find_checkpoint(tmp_path/'run'/'checkpoints').epoch >= 2 and load_file(tmp_path/'run'/'model.safetensors')


def test_what_cannot_be_resumed(tmp_path):
    for args, message in ((['--resume', 'nothing'], 'is not a run of this command'), (['--every', '0'], '--every has to be at least 1')):
        process = start(*args, cwd=tmp_path)
        out, _ = process.communicate(timeout=60)
        assert process.returncode != 0 and message in out and 'Traceback' not in out and not list(tmp_path.iterdir()), out
    process = start('--dataset', 'digits', '--recipe', 'lesson', '--epochs', '1', '--out', 'run', cwd=tmp_path)
    assert process.wait(60) == 0
    for args, message in ((['--lr', '3'], 'leave out --lr'), (['--out', 'other'], 'leave out --out'), (['--seed', '1'], 'leave out --seed')):
        out, _ = start('--resume', 'run', *args, cwd=tmp_path).communicate(timeout=60)
        assert message in out and 'Traceback' not in out
    out, _ = start('--resume', 'run', cwd=tmp_path).communicate(timeout=60)
    assert 'which is complete' in out and 'Validation accuracy' in out
    kept = {p.name: p.read_bytes() for p in (tmp_path/'run').iterdir() if p.is_file()}
    settings = json.loads(kept['settings.json'])
    for changed, message in (('{', 'is damaged'), ('[]', 'it has no recipe'), (json.dumps(settings | dict(epochs='x')), 'not of type int'), (json.dumps(settings | dict(bs=32)), 'batches an epoch; here there are')):
        (tmp_path/'run'/'settings.json').write_text(changed)
        process = start('--resume', 'run', cwd=tmp_path)
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 1 and message in out and 'Traceback' not in out, out
        for name in kept.keys() - {'settings.json'}: assert (tmp_path/'run'/name).read_bytes() == kept[name]    # what there was stays
