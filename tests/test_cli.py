"""The command as a user runs it.

Files, fall-back, refusals, Ctrl-C; progress in a terminal and in a notebook; the wheel.
What needs a terminal, a pipe, a signal or an installation of its own is a fresh process; the other
runs are forks of a process that has done the imports.
"""
import csv
import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import stat
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import finish, fork, read_epochs, script, start
from fastcore.script import CliError
from helpers import make_callback
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from minifastai import cli
from minifastai.checkpoint import find_checkpoint
from minifastai.cli import load_run, minifastai_train
from minifastai.data import DataBunch
from minifastai.datasets import get_data
from minifastai.recipes import RECIPES

root = Path(__file__).parent.parent
FILES = {
    'settings.json',
    'checkpoints',
    'history.csv',
    'batches.csv',
    'model.safetensors',
    'losses.png',
    'learning_rate.png',
    'accuracy.png',
}
TRAIN = script('minifastai-train')
LR_FIND = script('minifastai-lr-find')
LESSON = ['--dataset', 'digits', '--recipe', 'lesson', '--bs', '128']   # 12 batches an epoch


def train_fresh(*args, cwd, **env): return finish(start(TRAIN, *args, cwd=cwd, **env))
def train(*args, cwd, **env): return finish(fork(TRAIN, *args, cwd=cwd, **env))


def assert_succeeded(done): assert done.returncode == 0, done.stderr


def assert_refused(done, message):
    assert done.returncode != 0, done.stderr
    assert message in done.stderr, done.stderr
    assert 'Traceback' not in done.stderr, done.stderr


def names(folder): return {p.name for p in folder.iterdir()}


def table(path):
    with open(path) as f: return list(csv.DictReader(f))


def validation_accuracy(done):
    found = re.search(r'Validation accuracy ([\d.]+)', done.stdout)
    assert found, done.stdout + done.stderr
    return float(found[1])


def assert_loads(folder, done, **kwargs):
    "What a run left behind predicts as well as the run has printed"
    _, _, x, y = get_data('digits')
    predicted = load_run(folder).predict(x, **kwargs)
    accuracy = (predicted.labels == y).float().mean().item()
    assert accuracy == pytest.approx(validation_accuracy(done), abs=6e-5)
    assert torch.equal(predicted.probs.argmax(1), predicted.labels)
    assert predicted.probs.sum(1) == pytest.approx(torch.ones(len(y)))


def change_settings(folder, **changes):
    path = folder/'settings.json'
    settings = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))


def state(folder):
    "Content and time of change of every file below a folder"
    files = [p for p in folder.rglob('*') if p.is_file()]
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in files}


@pytest.fixture(scope='module')
def two_epochs(tmp_path_factory):
    "A fresh process that trained for two epochs, and its folder"
    folder = tmp_path_factory.mktemp('two_epochs')
    # on one thread, as a fork
    done = train_fresh(*LESSON, '--epochs', '2', '--every', '7', '--out', 'run', cwd=folder,
                       OMP_NUM_THREADS='1')
    assert_succeeded(done)
    return done, folder/'run'


@pytest.fixture
def complete(two_epochs, tmp_path):
    "A copy of the run of two epochs"
    return Path(shutil.copytree(two_epochs[1], tmp_path/'run'))


@pytest.fixture
def stopped(complete):
    "The run of two epochs as it was after nine batches of the second one"
    shutil.rmtree(find_checkpoint(complete/'checkpoints').path)
    last = find_checkpoint(complete/'checkpoints')
    assert (last.epoch, last.batch) == (1, 9)
    return complete


def test_files_and_table(two_epochs):
    done, folder = two_epochs
    assert names(folder) == FILES
    assert [row['epoch'] for row in table(folder/'history.csv')] == ['0', '1']
    assert len(table(folder/'batches.csv')) == 2*12
    header = r'epoch +train_loss +train_accuracy +valid_loss +valid_accuracy +seconds\n'
    assert re.search(header + r' +0( +[\d.]+){5}\n +1( +[\d.]+){5}\n', done.stdout)
    for name in FILES:
        if name.endswith('png'): assert (folder/name).read_bytes().startswith(b'\x89PNG')


def test_same_seed_same_weights(two_epochs, tmp_path):
    "In another process, and whether or not the seed is the default"
    for seed in ('42', '1'):
        args = [*LESSON, '--epochs', '2', '--every', '7', '--seed', seed, '--out', seed]
        assert_succeeded(train(*args, cwd=tmp_path))
    _, folder = two_epochs
    files = [out/'model.safetensors' for out in (folder, tmp_path/'42', tmp_path/'1')]
    same, again, other = (file.read_bytes() for file in files)
    assert same == again != other
    # the file holds the seed as well: the weights have to differ, too
    weights, _, other_weights = (load_file(file) for file in files)
    assert any(not torch.equal(weights[k], other_weights[k]) for k in weights)


@pytest.mark.parametrize('norm', ['running', 'layer', 'instance', 'group', 'none'])
def test_any_norm(tmp_path, norm):
    done = train('--recipe', 'one-epoch', '--dataset', 'digits', '--epochs', '6', '--lr', '0.1',
                 '--norm', norm, '--out', 'run', cwd=tmp_path)
    assert validation_accuracy(done) > 0.35, done.stdout + done.stderr
    assert_loads(tmp_path/'run', done)
    with safe_open(tmp_path/'run'/'model.safetensors', 'pt') as f:
        settings = json.loads(f.metadata()['minifastai'])
        state = {k: f.get_tensor(k) for k in f.keys()}
    assert settings['norm'] == norm
    one_image = DataBunch([(torch.zeros(1, 1, 28, 28), torch.zeros(1))], c=10)
    learn, _ = RECIPES['one-epoch'].learn_run(one_image, norm=norm)
    learn.model.load_state_dict(state)


@pytest.mark.parametrize('recipe', ['one-epoch', None, 'lesson'])
def test_recipes(tmp_path, recipe):
    args = ['--recipe', recipe] if recipe else []
    done = train(*args, '--dataset', 'digits', '--out', 'run', cwd=tmp_path)
    assert_succeeded(done)
    if recipe is None: recipe = 'eight-epochs'       # the default for the digits
    assert len(table(tmp_path/'run'/'history.csv')) == RECIPES[recipe].epochs
    assert_loads(tmp_path/'run', done)
    views = re.search(r'and ([\d.]+) by (\d+) augmentation views', done.stdout)
    assert bool(views) == (len(RECIPES[recipe].tta_tfms) > 1), done.stdout
    with safe_open(tmp_path/'run'/'model.safetensors', 'pt') as f:
        assert json.loads(f.metadata()['minifastai'])['recipe'] == recipe
    if recipe == 'eight-epochs':
        assert float(views[1]) > 0.97
        assert validation_accuracy(done) > 0.95


def test_a_recipe_with_other_settings(tmp_path):
    done = train('--recipe', 'one-epoch', '--epochs', '2', '--bs', '128', '--lr', '0.2',
                 '--momentum', '0.8', '--norm', 'group', '--dataset', 'digits', '--out', 'run',
                 cwd=tmp_path)
    assert_succeeded(done)
    rows = table(tmp_path/'run'/'batches.csv')
    assert len(rows) == 2*12
    assert 0.15 < max(float(row['lr']) for row in rows) <= 0.2


def test_falls_back_once_and_says_so(tmp_path):
    "No MNIST, and no network: requests are sent to a port where nobody listens"
    nobody = 'http://127.0.0.1:9'
    no_mnist = dict(MINIFASTAI_DATA=None, MINIFASTAI_DATASET=None, HOME=str(tmp_path),
                    XDG_CACHE_HOME=str(tmp_path), HTTPS_PROXY=nobody, https_proxy=nobody)
    done = train_fresh('--epochs', '1', cwd=tmp_path, **no_mnist)
    assert_succeeded(done)
    assert done.stdout.count('embedded digits') == 1
    assert done.stdout.startswith('MNIST is not on this machine')
    out, = (tmp_path/'runs').iterdir()
    assert out.name.startswith('digits-')
    assert names(out) == FILES
    done = train('--epochs', '1', '--dataset', 'mnist', cwd=tmp_path, **no_mnist)
    assert_refused(done, 'MNIST is not on this machine, and was not downloaded: give the folder of')
    assert 'could not be downloaded' in done.stderr.splitlines()[1]   # and why
    assert_speaks_of_options(done)


def assert_speaks_of_options(done):
    "An error says what to type, and not what to call in Python"
    assert 'with --data FOLDER or in MINIFASTAI_DATA' in done.stderr
    assert '--dataset digits' in done.stderr
    assert not re.search(r'path=|get_data|Python', done.stderr)


@pytest.mark.parametrize('args, message', [
    (['--epochs', '0'], '--epochs has to be at least 1'),
    (['--bs', '-3'], '--bs has to be at least 1'),
    (['--lr', '0'], '--lr has to be above 0'),
    (['--recipe', 'two-epochs'], "no recipe called 'two-epochs': choose one of one-epoch"),
    (['--norm', 'bach'], "--norm: There is no norm called 'bach': choose one of batch, running"),
    (['--momentum', '-1'], '--momentum has to be'),
    (['--seed', str(2**80)], '--seed has to be'),
    (['--device', 'meta'], 'computes nothing'),
    (['--dataset', 'mnits'], "no data set 'mnits'"),
    (['--device', 'gpu'], 'gpu'),
    (['--data', 'nowhere', '--out', 'new'], 'MNIST is not in nowhere: give the folder of'),
    (['--data', 'mine'], 'mine holds pictures, and this command trains on MNIST'),
    (['--dataset', 'digits', '--data', 'mine'], "don't use it with --dataset digits"),
    (['--dataset', 'digits', '--out', 'taken'], "holds another run's history.csv"),
    (['--dataset', 'digits', '--out', 'begun'], "holds another run's checkpoints"),
    (['--dataset', 'digits', '--out', 'file'], "file isn't a folder"),
    (['--resume', 'taken'], 'taken is not a run of minifastai-train'),
])
def test_refusals(tmp_path, args, message):
    files = [tmp_path/name for name in ('taken/history.csv',
                                        'begun/checkpoints/000000-epoch-1-batch-0',
                                        'mine/train/cats/1.JPG', 'file')]
    for path in files:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('precious')
    before = set(tmp_path.rglob('*'))
    done = train(*args, cwd=tmp_path)
    assert done.returncode == 1
    assert_refused(done, message)
    assert len(done.stderr.strip().splitlines()) == 1
    assert set(tmp_path.rglob('*')) == before
    assert {path.read_text() for path in files} == {'precious'}
    if 'nowhere' in args: assert_speaks_of_options(done)


@pytest.mark.parametrize('args', [['--lr', 'high'], ['--epoch', '2', '--learning-rate', '1']])
def test_wrong_usage(tmp_path, args):
    done = train(*args, cwd=tmp_path)
    assert done.returncode == 2
    assert 'usage' in done.stderr


def test_a_data_set_of_the_environment(tmp_path):
    done = train('--epochs', '1', cwd=tmp_path, MINIFASTAI_DATASET='mnits')
    assert_refused(done, "MINIFASTAI_DATASET: there is no data set 'mnits'")


# Going on

def resume(folder, *args): return train('--resume', folder.name, *args, cwd=folder.parent)


def test_a_complete_run_stays_as_it_is(complete):
    before = state(complete)
    done = resume(complete)
    assert_succeeded(done)
    line, = done.stdout.splitlines()
    assert line.startswith('run is complete, with 2 epochs')
    assert not done.stderr
    assert state(complete) == before


def test_results_that_a_killed_process_did_not_write(complete):
    "The last checkpoint is there, but not every file; or a file is of an earlier epoch"
    whole = state(complete)
    weights = complete/'model.safetensors'
    def no_figure(): (complete/'accuracy.png').unlink()
    def earlier_weights():
        about = json.dumps(dict(epochs=1, batches=12))
        save_file(load_file(weights), weights, metadata=dict(minifastai=about))
    def no_weights(): weights.write_bytes(b'')
    for damage in (no_figure, earlier_weights, no_weights):
        damage()
        assert_succeeded(resume(complete))
        assert state(complete).keys() == whole.keys()
        assert weights.read_bytes() == whole[weights][0]
    assert 'complete' in resume(complete).stdout


def test_the_middle_of_an_epoch_is_no_end(stopped, two_epochs):
    "With fewer epochs than are done, by settings.json or by option, nothing is written"
    change_settings(stopped, epochs=1)
    before = state(stopped)
    done = resume(stopped)
    assert done.returncode == 1
    assert_refused(done, 'says 1 epoch, but the run has done 1 epoch and 9 batches of the next')
    for n in (1, 0): assert resume(stopped, '--epochs', str(n)).returncode == 1
    assert state(stopped) == before
    change_settings(stopped, epochs=2)
    assert_refused(resume(stopped, '--epochs', '1'), 'ask for more than 1, not 1')

    done = resume(stopped)
    assert_succeeded(done)
    assert 'epoch 2, of which 9 batches are done' in done.stdout
    _, whole = two_epochs
    for name in ('batches.csv', 'model.safetensors'):
        assert (stopped/name).read_bytes() == (whole/name).read_bytes()


def test_a_longer_run(complete):
    assert_refused(resume(complete, '--epochs', '1'), 'ask for more than 2, not 1')
    done = resume(complete, '--epochs', '3', '--every', '5', '--device', 'cpu')
    assert_succeeded(done)
    assert 'epoch 3, of which 0 batches are done' in done.stdout
    assert [row['epoch'] for row in table(complete/'history.csv')] == ['0', '1', '2']
    settings = json.loads((complete/'settings.json').read_text())
    assert (settings['epochs'], settings['every']) == (3, 5)
    last = [p.name[6:] for p in sorted((complete/'checkpoints').iterdir()) if p.name[0] != '.']
    assert last == ['-epoch-2-batch-11', '-epoch-3-batch-0']
    assert 'is complete, with 3 epochs' in resume(complete).stdout


def test_what_happens_to_the_schedule_of_a_longer_run(stopped):
    "It is planned anew, and said, if the recipe has one"
    last = find_checkpoint(stopped/'checkpoints')
    recipe = cli.replace(RECIPES['one-epoch'], epochs=5)
    said = cli._position(last, 12, recipe, before=2)
    assert said.endswith('are now planned for 5: the schedule jumps from 88% to 35% '
                         'of its way')
    for recipe, before in ((recipe, 5), (cli.replace(recipe, warm_up=None), 2)):
        assert 'schedule' not in cli._position(last, 12, recipe, before)


def test_other_conditions_are_said(stopped):
    change_settings(stopped, threads=99, torch='1.0', device='meta')
    done = resume(stopped)
    assert_succeeded(done)
    assert '(The run was begun with PyTorch 1.0, device meta, threads: 99; here it is PyTorch ' \
        in done.stdout
    assert 'OMP_NUM_THREADS=99 sets them' in done.stdout
    done = resume(stopped, '--epochs', '3', '--device', 'meta')
    assert_refused(done, '--device meta computes nothing')


def test_other_images_are_refused(stopped):
    change_settings(stopped, mean=0.2)
    before = state(stopped)
    assert_refused(resume(stopped), 'these are not the images that the run was trained on')
    assert state(stopped) == before


def test_newer_results_stay(stopped):
    "Another process has done more in the meantime, although there is no checkpoint that says so"
    path = stopped/'model.safetensors'
    save_file(load_file(path), path, metadata=dict(minifastai=json.dumps(dict(batches=25))))
    before = state(stopped)
    done = resume(stopped)
    assert done.returncode == 1
    assert_refused(done, 'results or checkpoints of 25 batches, and this process has done 24')
    assert 'Written to' not in done.stdout
    after = state(stopped)
    for name in FILES - {'checkpoints'}: assert after[stopped/name] == before[stopped/name]


def assert_as_if_alone(folder, whole, *processes):
    "Whatever becomes of several processes in one folder, the whole run's results are there"
    for done in processes:
        assert done.returncode in (0, 1), done.stderr
        assert 'Traceback' not in done.stderr, done.stderr
        last = done.stderr.splitlines()[-1:]
        if done.returncode: assert last[0].startswith('minifastai-train: '), done.stderr
    assert 0 in [done.returncode for done in processes]
    for name in ('batches.csv', 'model.safetensors'):
        assert (folder/name).read_bytes() == (whole/name).read_bytes()


def test_two_processes_go_on_with_one_run(stopped, two_epochs):
    both = [fork(TRAIN, '--resume', 'run', '--every', '1', cwd=stopped.parent) for _ in range(2)]
    assert_as_if_alone(stopped, two_epochs[1], *map(finish, both))


def test_a_run_goes_on_while_its_process_is_stopped(two_epochs, tmp_path):
    "Ctrl-Z, `--resume` elsewhere, `fg`"
    first = fork(TRAIN, *LESSON, '--epochs', '2', '--every', '1', '--out', 'run', cwd=tmp_path)
    read_epochs(first, 1)
    first.send_signal(signal.SIGSTOP)
    second = resume(tmp_path/'run')
    first.send_signal(signal.SIGCONT)
    assert_as_if_alone(tmp_path/'run', two_epochs[1], finish(first), second)


@pytest.mark.parametrize('kind', ['fifo', 'huge', 'folder', 'nested', 'bool', 'std', 'epochs'])
def test_damaged_settings(stopped, kind):
    path = stopped/'settings.json'
    text = path.read_text()
    path.unlink()
    if kind == 'fifo': os.mkfifo(path)
    elif kind == 'huge':
        with open(path, 'w') as f: f.truncate(10**12)   # takes no room on the disk
    elif kind == 'folder': path.mkdir()
    elif kind == 'nested': path.write_text('['*200_000)
    else:
        path.write_text(text)
        changes = dict(bool=dict(epochs=True), std=dict(std=0.), epochs=dict(epochs=0))
        change_settings(stopped, **changes[kind])
    done = finish(fork(TRAIN, '--resume', 'run', cwd=stopped.parent), timeout=60)
    assert done.returncode == 1
    assert_refused(done, f'--resume: {Path("run/settings.json")} is damaged')
    with pytest.raises(ValueError, match='settings.json is damaged'): load_run(stopped)


# Called from Python

@pytest.fixture
def in_python(tmp_path, monkeypatch):
    "Trains in this process, by a call"
    monkeypatch.chdir(tmp_path)
    def call(**options):
        return minifastai_train(**dict(recipe='lesson', dataset='digits', bs=128) | options)
    return call


def test_an_int_is_a_float_but_a_bool_is_no_number(in_python, tmp_path):
    for options, message in (
        (dict(lr=True), '--lr has to be of type float, not True'),
        (dict(epochs=True), '--epochs has to be of type int'),
        (dict(epochs=2.), '--epochs has to be of type int, not 2.0'),
        (dict(seed=None), '--seed has to be of type int'),
        (dict(lr='0.1'), "--lr has to be of type float, not '0.1'"),
    ):
        with pytest.raises(CliError, match=message): in_python(**options)
    in_python(lr=1, momentum=0, epochs=1, out=tmp_path/'run')
    settings = json.loads((tmp_path/'run'/'settings.json').read_text())
    assert repr([settings[k] for k in ('lr', 'momentum')]) == '[1.0, 0.0]'
    change_settings(tmp_path/'run', lr=1)   # as an earlier version wrote it
    minifastai_train(resume=tmp_path/'run', epochs=2)
    assert len(table(tmp_path/'run'/'history.csv')) == 2


def send_signals(monkeypatch, *numbers):
    "Stop the run by a signal after three batches, and send more while its files are written"
    first, *more = numbers
    callbacks, write = cli._callbacks, cli._write_results
    def after_batch(self):
        if self.run.n_iter == 3: signal.raise_signal(first)
    def interrupted_write(training):
        for number in more: signal.raise_signal(number)
        write(training)
    monkeypatch.setattr(cli, '_callbacks',
                        lambda: [*callbacks(), make_callback(after_batch=after_batch, _order=60)])
    monkeypatch.setattr(cli, '_write_results', interrupted_write)


@pytest.mark.parametrize('number, status', [
    (signal.SIGHUP, 129), (signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_while_files_are_written(in_python, tmp_path, monkeypatch, capsys, number, status):
    handlers = [signal.getsignal(s) for s in cli._SIGNALS]
    send_signals(monkeypatch, number, number, signal.SIGTERM)
    with pytest.raises(SystemExit) as e: in_python(out='a run', epochs=1)
    assert e.value.code == status
    assert names(tmp_path/'a run') == FILES
    written, how = capsys.readouterr().out.splitlines()[-2:]
    assert written.startswith('Written to a run: settings.json, history.csv')
    assert how == "To continue: minifastai-train --resume 'a run'"
    assert find_checkpoint(tmp_path/'a run'/'checkpoints').batch == 3
    assert [signal.getsignal(s) for s in cli._SIGNALS] == handlers


def test_ctrl_c_while_views_are_computed(in_python, monkeypatch, capsys):
    def interrupt(*args): signal.raise_signal(signal.SIGINT)
    monkeypatch.setattr(cli, '_views_accuracy', interrupt)
    with pytest.raises(SystemExit) as e: in_python(out='run', epochs=1)
    assert e.value.code == 130
    last = capsys.readouterr().out.splitlines()[-1]   # there is nothing to go on with
    assert last.startswith('Written to run') and last.endswith('model.safetensors')


def test_a_fit_that_fails_before_its_first_batch_writes_nothing(in_python, tmp_path, monkeypatch,
                                                                capsys):
    def refuse(self): raise OSError(11, 'another process is writing here')
    callbacks = cli._callbacks
    monkeypatch.setattr(cli, '_callbacks', lambda: [*callbacks(), make_callback(begin_fit=refuse)])
    with pytest.raises(SystemExit) as e: in_python(out='run', epochs=1)
    assert e.value.code == 1
    assert capsys.readouterr().err == 'minifastai-train: another process is writing here\n'
    assert not list((tmp_path/'run').glob('*.*'))


def test_file_modes(two_epochs):
    _, folder = two_epochs
    mask = os.umask(0)
    os.umask(mask)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in folder.iterdir() if p.is_file()}
    assert modes == dict.fromkeys(FILES - {'checkpoints'}, 0o666 & ~mask)


# What was trained, ready to use

def test_images_of_any_form(two_epochs):
    _, folder = two_epochs
    run = load_run(folder)
    assert not run.model.training
    assert run.settings['minifastai'] == cli.__version__
    _, _, x, _ = get_data('digits')
    expected = run.predict(x).probs
    for same in (x.view(-1, 28, 28), x.view(-1, 1, 28, 28), x.numpy(), x.double(),
                 x.clone().requires_grad_()):
        assert torch.equal(run.predict(same).probs, expected)
    pixels = (x*256).to(torch.uint8)
    expected = run.predict(pixels/256).probs
    for same in (pixels, pixels.view(-1, 28, 28).numpy()):
        assert torch.equal(run.predict(same).probs, expected)
    assert run.predict(x[:1]).labels.shape == (1,)
    run.model.train()
    assert torch.equal(run.predict(pixels).probs, expected)


@pytest.mark.parametrize('images, message', [
    (torch.zeros(28, 28), r'\(N, 784\) or \(N, 28, 28\) or \(N, 1, 28, 28\), not \(28, 28\)'),
    (torch.zeros(784), 'a batch of one'),
    (torch.zeros(2, 3, 28, 28), r'not \(2, 3, 28, 28\)'),
    (torch.zeros(2, 784) - 0.4, 'normalizes itself; these go from -0.4 to -0.4'),
    (torch.full((2, 784), 255.), 'from 0 to 1'),
    (torch.full((2, 784), torch.nan), 'from 0 to 1'),
    (torch.zeros(2, 784, dtype=torch.int64), r'bytes \(uint8\) or of floats, not torch.int64'),
    (np.zeros((0, 784), dtype='float32'), 'no item'),
])
def test_what_is_no_image(two_epochs, images, message):
    _, folder = two_epochs
    with pytest.raises(ValueError, match=message): load_run(folder).predict(images)


def test_loading_leaves_random_numbers_alone(two_epochs):
    _, folder = two_epochs
    before = torch.get_rng_state()
    load_run(str(folder))
    assert torch.equal(torch.get_rng_state(), before)


def test_views_when_predicting(tmp_path):
    done = train('--recipe', 'one-epoch', '--dataset', 'digits', '--bs', '256', '--out', 'run',
                 cwd=tmp_path)
    by_views = re.search(r'and ([\d.]+) by 5 augmentation views', done.stdout)[1]
    done.stdout = f'Validation accuracy {by_views}'
    assert_loads(tmp_path/'run', done, tta=True)


def test_a_run_of_an_older_version(complete):
    "Its settings are fewer, and it can be loaded, and trained longer"
    change_settings(complete, every=None, classes=None, channels=None, size=None, threads=None,
                    device=None, minifastai=None)
    x = get_data('digits')[2]
    load_run(complete).predict(x)
    done = resume(complete, '--epochs', '3')
    assert_succeeded(done)
    assert not done.stderr
    settings = json.loads((complete/'settings.json').read_text())
    assert (settings['every'], settings['classes'], settings['epochs']) == (200, 10, 3)


def test_what_cannot_be_loaded(complete, tmp_path):
    with pytest.raises(ValueError, match='is not a run of minifastai-train'): load_run(tmp_path)
    with pytest.raises(ValueError, match='is not a run'): load_run(tmp_path/'nowhere')
    change_settings(complete, norm='layer')
    with pytest.raises(ValueError, match='does not fit recipe lesson with norm layer'):
        load_run(complete)
    change_settings(complete, norm='batch', mean=None)
    with pytest.raises(ValueError, match='it has no mean'): load_run(complete)
    change_settings(complete, mean=0.1, recipe='other')
    with pytest.raises(ValueError, match='no recipe called'): load_run(complete)
    change_settings(complete, recipe='lesson')
    (complete/'model.safetensors').write_bytes(b'no weights')
    with pytest.raises(ValueError, match='model.safetensors is damaged'): load_run(complete)
    (complete/'model.safetensors').unlink()
    with pytest.raises(ValueError, match='continue it with minifastai-train'): load_run(complete)


# How it ends


def test_ctrl_c_keeps_what_there_is(tmp_path):
    process = start(TRAIN, *LESSON, '--epochs', '10000', '--out', 'run', cwd=tmp_path)
    read_epochs(process, 2)
    process.send_signal(signal.SIGINT)
    done = finish(process)
    assert done.returncode == 130, done.stderr
    assert 'Traceback' not in done.stderr, done.stderr
    assert names(tmp_path/'run') == FILES
    assert len(table(tmp_path/'run'/'history.csv')) >= 2


def test_a_loss_that_explodes(tmp_path):
    done = train('--dataset', 'digits', '--recipe', 'one-epoch', '--lr', '1e9', '--out', 'run',
                 cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert done.stderr.count('the loss is nan') == 1, done.stderr
    assert_refused(done, 'learning rate')
    assert (tmp_path/'run'/'batches.csv').exists()


def test_runs_started_in_the_same_second(tmp_path):
    args = [*LESSON, '--epochs', '1', '--seed']
    runs = [fork(TRAIN, *args, str(seed), cwd=tmp_path) for seed in range(3)]
    for run in runs: assert_succeeded(finish(run))
    assert [names(folder) for folder in (tmp_path/'runs').iterdir()] == [FILES]*3


@pytest.mark.parametrize('kind', ['pipe', 'terminal'])
def test_nobody_reads_the_output(tmp_path, kind):
    "`minifastai-train | head -1`, or a terminal that is closed: the run is not lost"
    main, side = os.pipe() if kind == 'pipe' else pty.openpty()
    process = start(TRAIN, *LESSON, '--epochs', '3', '--out', 'run', cwd=tmp_path, stdout=side)
    os.close(side)
    with open(main) as file: file.readline()
    err = process.stderr.read()
    assert process.wait(timeout=120) == 141, err
    assert err == 'To continue: minifastai-train --resume run\n'
    assert names(tmp_path/'run') == FILES
    last = find_checkpoint(tmp_path/'run'/'checkpoints')
    assert (last.epoch, last.batch) == (len(table(tmp_path/'run'/'history.csv')), 0)


def test_nobody_reads_the_first_or_the_last_lines(tmp_path):
    "`| true`, and `| head` that ends after the table"
    args = [*LESSON, '--epochs', '1', '--out', 'run']
    main, side = os.pipe()
    os.close(main)
    done = finish(start(TRAIN, *args, cwd=tmp_path, stdout=side))
    os.close(side)
    assert (done.returncode, done.stderr, list(tmp_path.iterdir())) == (141, '', [])

    process = start(TRAIN, *args, cwd=tmp_path)
    read_epochs(process, 1)
    process.stdout.close()
    err = process.stderr.read()
    assert (process.wait(timeout=120), err) == (141, '')
    assert names(tmp_path/'run') == FILES


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason="there is no device that is full")
def test_output_to_a_full_disk(tmp_path):
    with open('/dev/full', 'w') as full:
        done = finish(start(TRAIN, *LESSON, '--out', 'run', cwd=tmp_path, stdout=full))
    assert done.returncode == 141
    assert done.stderr == 'Output cannot be written: no space left on the device\n'
    assert not list(tmp_path.iterdir())


def test_there_is_no_output(tmp_path):
    "Standard output and error are closed when the command begins"
    command = f'"{TRAIN}" {" ".join(LESSON)} --epochs 1 --out run >&- 2>&-'
    done = finish(start('/bin/sh', '-c', command, cwd=tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')
    assert names(tmp_path/'run') == FILES


def test_a_terminal_that_is_closed(tmp_path):
    process = start(TRAIN, *LESSON, '--epochs', '10000', '--out', 'run', cwd=tmp_path)
    read_epochs(process, 1)
    process.send_signal(signal.SIGHUP)
    done = finish(process)
    assert done.returncode == 129, done.stderr
    assert done.stdout.endswith('To continue: minifastai-train --resume run\n')
    assert not done.stderr
    assert names(tmp_path/'run') == FILES


def test_half_a_pair_is_no_reason_to_fall_back(tmp_path):
    (tmp_path/'train-labels-idx1-ubyte.gz').write_bytes(b'')
    done = train(cwd=tmp_path, MINIFASTAI_DATA=str(tmp_path), MINIFASTAI_DATASET=None)
    assert_refused(done, 'but not train-images-idx3-ubyte')


def test_lr_find(tmp_path):
    def find(bs): return finish(fork(LR_FIND, '--dataset', 'digits', '--bs', bs, '--out', 'sweep',
                                     cwd=tmp_path))
    done = find('32')
    assert_succeeded(done)
    for name in ('minimum', 'steepest', 'valley'): assert f'{name}: 0.' in done.stdout
    rows = table(tmp_path/'sweep'/'lr_find.csv')
    assert list(rows[0]) == ['step', 'lr', 'loss', 'smoothed_lr', 'smoothed']
    assert 2 < len(rows) <= 100
    assert (tmp_path/'sweep'/'lr_find.png').exists()
    assert_refused(find('32'), 'holds another run')


def test_lr_find_says_why_there_is_no_suggestion(tmp_path):
    done = finish(fork(LR_FIND, '--dataset', 'digits', '--bs', '8', cwd=tmp_path))
    assert_succeeded(done)
    assert 'Try more steps, larger batches, or another range of rates' in done.stdout
    assert 'minimum' not in done.stdout


def test_help(tmp_path):
    done = train('--help', cwd=tmp_path)
    assert_succeeded(done)
    assert '--epochs' in done.stdout
    assert 'Batch size' in done.stdout


def read_terminal(main, seconds=120) -> bytes:
    "What arrives at a pseudo-terminal until its other side is closed"
    seen = b''
    deadline = time.time() + seconds
    while time.time() < deadline:
        ready, _, _ = select.select([main], [], [], 1)
        if not ready: continue
        try: chunk = os.read(main, 65536)
        except OSError: break
        if not chunk: break
        seen += chunk
    return seen


def test_progress_in_a_terminal(tmp_path):
    "A pseudo-terminal gets a bar that is redrawn, and rows above it"
    main, side = pty.openpty()
    rows, columns = 24, 100
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack('HHHH', rows, columns, 0, 0))
    process = start(TRAIN, *LESSON, '--epochs', '2', '--out', 'run', cwd=tmp_path,
                    stdout=side, stderr=side, TERM='xterm')
    os.close(side)
    text = read_terminal(main).decode()
    assert process.wait(timeout=60) == 0, text
    assert 'epoch 1/2' in text, text
    assert 'epoch 2/2' in text, text
    assert '\r' in text, text
    assert re.search(r'\n? +1( +[\d.]+){5}', text), text


NOTEBOOK = '''
import torch, torch.nn.functional as F
from minifastai.all import *
x, y = torch.randn(64, 784), torch.randint(10, (64,))
data = DataBunch(*get_dls(Dataset(x, y), Dataset(x, y), 16), 10)
learn = create_learner(get_model, F.cross_entropy, data)
Runner([AvgStatsCallback(accuracy), ProgressCallback()]).fit(2, learn)
'''


def test_progress_in_a_live_notebook(tmp_path):
    "A Jupyter kernel leaves one table in the notebook, as HTML and as text, without a bar"
    import nbformat
    from nbclient import NotebookClient
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(NOTEBOOK)])
    here = {'metadata': {'path': str(tmp_path)}}
    NotebookClient(nb, timeout=120, kernel_name='python3', resources=here).execute()
    output, = nb.cells[0].outputs
    assert set(output.data) == {'text/html', 'text/plain'}
    assert output.data['text/html'].count('<tr>') == 3
    assert '<progress' not in output.data['text/html']
    assert output.data['text/plain'].split()[:3] == ['epoch', 'train_loss', 'train_accuracy']


TRAIN_IN_PYTHON = '''
import json, pathlib
import minifastai, minifastai.cli as cli
cli.minifastai_train(dataset='digits', recipe='lesson', epochs=1, out='run')
files = sorted(p.name for p in pathlib.Path('run').iterdir())
print(json.dumps([minifastai.__file__, files]))
'''


def test_wheel(tmp_path):
    "What pip makes of the project works away from it: imports, trains, and brings its command"
    def pip(command, *args):
        subprocess.run([sys.executable, '-m', 'pip', command, '--quiet', '--no-deps', *args],
                       check=True, capture_output=True)

    pip('wheel', '--no-build-isolation', '--wheel-dir', tmp_path, root)
    wheel, = tmp_path.glob('minifastai-*.whl')
    site = tmp_path/'site'
    pip('install', '--target', site, wheel)
    done = finish(start(sys.executable, '-c', TRAIN_IN_PYTHON, cwd=tmp_path, PYTHONPATH=str(site)))
    assert_succeeded(done)
    where, files = json.loads(done.stdout.splitlines()[-1])
    assert where.startswith(str(site))
    assert set(files) == FILES
    assert (site/'minifastai'/'py.typed').exists()
    entry_points = next(site.glob('minifastai-*.dist-info/entry_points.txt')).read_text()
    assert 'minifastai-train' in entry_points
