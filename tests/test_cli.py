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
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
import torch
from commands import finish, fork, read_epochs, script, start
from safetensors import safe_open
from safetensors.torch import load_file

from minifastai.data import DataBunch
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


@pytest.fixture(scope='module')
def two_epochs(tmp_path_factory):
    "A fresh process that trained for two epochs, and its folder"
    folder = tmp_path_factory.mktemp('two_epochs')
    # on one thread, as a fork
    done = train_fresh(*LESSON, '--epochs', '2', '--out', 'run', cwd=folder, OMP_NUM_THREADS='1')
    assert_succeeded(done)
    return done, folder/'run'


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
        args = [*LESSON, '--epochs', '2', '--seed', seed, '--out', seed]
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
    done = train('--recipe', 'lesson', '--dataset', 'digits', '--bs', '64', '--epochs', '6',
                 '--norm', norm, '--out', 'run', cwd=tmp_path)
    assert validation_accuracy(done) > 0.35, done.stdout + done.stderr
    with safe_open(tmp_path/'run'/'model.safetensors', 'pt') as f:
        settings = json.loads(f.metadata()['minifastai'])
        state = {k: f.get_tensor(k) for k in f.keys()}
    assert settings['norm'] == norm
    one_image = DataBunch([(torch.zeros(1, 1, 28, 28), torch.zeros(1))], c=10)
    learn, _ = RECIPES['lesson'].learn_run(one_image, norm=norm)
    learn.model.load_state_dict(state)


@pytest.mark.parametrize('recipe', ['one-epoch', None, 'lesson'])
def test_recipes(tmp_path, recipe):
    args = ['--recipe', recipe] if recipe else []
    done = train(*args, '--dataset', 'digits', '--out', 'run', cwd=tmp_path)
    assert_succeeded(done)
    if recipe is None: recipe = 'eight-epochs'       # the default for the digits
    assert len(table(tmp_path/'run'/'history.csv')) == RECIPES[recipe].epochs
    looks = re.search(r'and ([\d.]+) by (\d+) looks', done.stdout)
    assert bool(looks) == (len(RECIPES[recipe].tta_tfms) > 1), done.stdout
    with safe_open(tmp_path/'run'/'model.safetensors', 'pt') as f:
        assert json.loads(f.metadata()['minifastai'])['recipe'] == recipe
    if recipe == 'eight-epochs':
        assert float(looks[1]) > 0.97
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
    assert_refused(done, 'Three ways to fix it')


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
    (['--data', 'nowhere'], 'MNIST is not in nowhere'),
    (['--dataset', 'digits', '--out', 'taken'], 'holds another run'),
])
def test_refusals(tmp_path, args, message):
    precious = tmp_path/'taken'/'history.csv'
    precious.parent.mkdir()
    precious.write_text('precious')
    assert_refused(train(*args, cwd=tmp_path), message)
    assert precious.read_text() == 'precious'
    assert not (tmp_path/'runs').exists()


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


def test_nobody_reads_the_output(tmp_path):
    "`minifastai-train | head -1`: the run is not lost"
    process = start(TRAIN, *LESSON, '--epochs', '3', '--out', 'run', cwd=tmp_path)
    process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=120) == 141, err
    assert 'Traceback' not in err, err
    assert names(tmp_path/'run') == FILES


def test_half_a_pair_is_no_reason_to_fall_back(tmp_path):
    (tmp_path/'train-labels-idx1-ubyte.gz').write_bytes(b'')
    done = train(cwd=tmp_path, MINIFASTAI_DATA=str(tmp_path), MINIFASTAI_DATASET=None)
    assert_refused(done, 'but not train-images-idx3-ubyte')


def test_lr_find(tmp_path):
    args = ['--dataset', 'digits', '--bs', '8', '--out', 'sweep']   # small batches take less time
    def find(): return finish(fork(LR_FIND, *args, cwd=tmp_path))
    done = find()
    assert_succeeded(done)
    assert 'valley' in done.stdout
    assert 'steepest' in done.stdout
    rows = table(tmp_path/'sweep'/'lr_find.csv')
    assert list(rows[0]) == ['step', 'lr', 'loss', 'smoothed']
    assert 2 < len(rows) <= 100
    assert (tmp_path/'sweep'/'lr_find.png').exists()
    assert_refused(find(), 'holds another run')


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
