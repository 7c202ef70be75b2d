"The command as a user runs it: files, fall-back, refusals, Ctrl-C; progress in a terminal and in a notebook; the wheel."
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
from safetensors import safe_open

from minifastai.data import DataBunch
from minifastai.recipes import RECIPES

root = Path(__file__).parent.parent
COMMAND = str(Path(sys.executable).with_name('minifastai-train'))
FILES = {'settings.json', 'checkpoints', 'history.csv', 'batches.csv', 'model.safetensors', 'losses.png', 'learning_rate.png', 'accuracy.png'}


def train(*args, cwd, **env):
    "Run the command; a variable given as None is unset"
    env = {k: v for k, v in {**os.environ, **env}.items() if v is not None}
    return subprocess.run([COMMAND, *args], cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


def test_files_and_table(tmp_path):
    done = train('--dataset', 'digits', '--recipe', 'lesson', '--bs', '128', '--epochs', '2', '--out', 'run', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {p.name for p in (tmp_path/'run').iterdir()} == FILES
    rows = list(csv.DictReader(open(tmp_path/'run'/'history.csv')))
    assert [r['epoch'] for r in rows] == ['0', '1'] and len(list(csv.DictReader(open(tmp_path/'run'/'batches.csv')))) == 2*12
    assert re.search(r'epoch +train_loss +train_accuracy +valid_loss +valid_accuracy +seconds\n +0( +[\d.]+){5}\n +1( +[\d.]+){5}\n', done.stdout)
    assert all((tmp_path/'run'/f).read_bytes().startswith(b'\x89PNG') for f in FILES if f.endswith('png'))


def test_same_seed_same_weights(tmp_path):
    for out, seed in (('a', '1'), ('b', '1'), ('c', '2')): train('--dataset', 'digits', '--recipe', 'lesson', '--bs', '128', '--epochs', '1', '--seed', seed, '--out', out, cwd=tmp_path)
    a, b, c = ((tmp_path/out/'model.safetensors').read_bytes() for out in 'abc')
    assert a == b != c


@pytest.mark.parametrize('norm', ['running', 'layer', 'instance', 'group', 'none'])
def test_any_norm(tmp_path, norm):
    done = train('--recipe', 'lesson', '--dataset', 'digits', '--bs', '64', '--epochs', '6', '--norm', norm, '--out', 'run', cwd=tmp_path)
    assert float(re.search(r'Validation accuracy ([\d.]+)', done.stdout)[1]) > 0.35, done.stdout + done.stderr
    with safe_open(tmp_path/'run'/'model.safetensors', 'pt') as f:
        assert json.loads(f.metadata()['minifastai'])['norm'] == norm
        one = DataBunch([(torch.zeros(1, 1, 28, 28), torch.zeros(1))], c=10)
        RECIPES['lesson'].learn_run(one, norm=norm)[0].model.load_state_dict({k: f.get_tensor(k) for k in f.keys()})


@pytest.mark.parametrize('recipe', ['one-epoch', None, 'lesson'])
def test_recipes(tmp_path, recipe):
    done = train(*(['--recipe', recipe] if recipe else []), '--dataset', 'digits', '--out', 'run', cwd=tmp_path)
    recipe = recipe or 'eight-epochs'       # what it is for the digits if nothing is said
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(open(tmp_path/'run'/'history.csv')))
    assert len(rows) == RECIPES[recipe].epochs
    looks = re.search(r'and ([\d.]+) by (\d+) looks', done.stdout)
    assert bool(looks) == (len(RECIPES[recipe].views) > 1), done.stdout
    with safe_open(tmp_path/'run'/'model.safetensors', 'pt') as f: assert json.loads(f.metadata()['minifastai'])['recipe'] == recipe
    if recipe == 'eight-epochs': assert float(looks[1]) > 0.97 and float(re.search(r'Validation accuracy ([\d.]+)', done.stdout)[1]) > 0.95


def test_a_recipe_with_other_settings(tmp_path):
    done = train('--recipe', 'one-epoch', '--epochs', '2', '--bs', '128', '--lr', '0.2', '--momentum', '0.8', '--norm', 'group', '--dataset', 'digits', '--out', 'run', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(open(tmp_path/'run'/'batches.csv')))
    assert len(rows) == 2*12 and 0.15 < max(float(r['lr']) for r in rows) <= 0.2


def test_falls_back_once_and_says_so(tmp_path):
    "No MNIST, and no network: requests are sent to a port where nobody listens"
    none = dict(MINIFASTAI_DATA=None, MINIFASTAI_DATASET=None, HOME=str(tmp_path), XDG_CACHE_HOME=str(tmp_path), HTTPS_PROXY='http://127.0.0.1:9', https_proxy='http://127.0.0.1:9')
    done = train('--epochs', '1', cwd=tmp_path, **none)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('embedded digits') == 1 and done.stdout.startswith('MNIST is not on this machine')
    out, = (tmp_path/'runs').iterdir()
    assert out.name.startswith('digits-') and {p.name for p in out.iterdir()} == FILES
    done = train('--epochs', '1', '--dataset', 'mnist', cwd=tmp_path, **none)
    assert done.returncode != 0 and 'Three ways to fix it' in done.stderr and 'Traceback' not in done.stderr


@pytest.mark.parametrize('args, message', [
    (['--epochs', '0'], '--epochs has to be at least 1'), (['--bs', '-3'], '--bs has to be at least 1'), (['--lr', '0'], '--lr has to be above 0'), (['--recipe', 'two-epochs'], "no recipe called 'two-epochs': choose one of one-epoch"), (['--norm', 'bach'], "--norm: There is no norm called 'bach': choose one of batch, running"),
    (['--momentum', '-1'], '--momentum has to be'), (['--seed', str(2**80)], '--seed has to be'), (['--device', 'meta'], 'computes nothing'),
    (['--dataset', 'mnits'], "no data set 'mnits'"), (['--device', 'gpu'], 'gpu'), (['--data', 'nowhere'], 'MNIST is not in nowhere'),
    (['--dataset', 'digits', '--out', 'taken'], 'holds another run')])
def test_refusals(tmp_path, args, message):
    (tmp_path/'taken').mkdir()
    (tmp_path/'taken'/'history.csv').write_text('precious')
    done = train(*args, cwd=tmp_path)
    assert done.returncode != 0 and message in done.stderr and 'Traceback' not in done.stderr, done.stderr
    assert (tmp_path/'taken'/'history.csv').read_text() == 'precious' and not (tmp_path/'runs').exists()


def test_ctrl_c_keeps_what_there_is(tmp_path):
    process = subprocess.Popen([COMMAND, '--dataset', 'digits', '--recipe', 'lesson', '--bs', '128', '--epochs', '10000', '--out', 'run'], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))   # tests started in the background ignore it
    for line in process.stdout:
        if line.split()[:1] == ['1']: break      # the second epoch is done
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and 'Traceback' not in err, err
    assert {p.name for p in (tmp_path/'run').iterdir()} == FILES
    assert len(list(csv.DictReader(open(tmp_path/'run'/'history.csv')))) >= 2


def test_a_loss_that_explodes(tmp_path):
    done = train('--dataset', 'digits', '--recipe', 'one-epoch', '--lr', '1e9', '--out', 'run', cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.count('the loss is nan') == 1 and 'learning rate' in done.stderr and 'Traceback' not in done.stderr, done.stderr
    assert (tmp_path/'run'/'batches.csv').exists()


def test_runs_started_in_the_same_second(tmp_path):
    runs = [subprocess.Popen([COMMAND, '--dataset', 'digits', '--recipe', 'lesson', '--bs', '128', '--epochs', '1', '--seed', str(i)], cwd=tmp_path, stdout=subprocess.DEVNULL) for i in range(3)]
    assert [run.wait(timeout=300) for run in runs] == [0, 0, 0]
    assert [{p.name for p in folder.iterdir()} for folder in (tmp_path/'runs').iterdir()] == [FILES]*3


def test_nobody_reads_the_output(tmp_path):
    "`minifastai-train | head -1`: the training is not lost"
    process = subprocess.Popen([COMMAND, '--dataset', 'digits', '--recipe', 'lesson', '--bs', '128', '--epochs', '3', '--out', 'run'], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=120) == 141 and 'Traceback' not in err, err
    assert {p.name for p in (tmp_path/'run').iterdir()} == FILES


def test_half_a_pair_is_no_reason_to_fall_back(tmp_path):
    (tmp_path/'train-labels-idx1-ubyte.gz').write_bytes(b'')
    done = train(cwd=tmp_path, MINIFASTAI_DATA=str(tmp_path), MINIFASTAI_DATASET=None)
    assert done.returncode != 0 and 'but not train-images-idx3-ubyte' in done.stderr and 'Traceback' not in done.stderr


def test_lr_find(tmp_path):
    command = str(Path(sys.executable).with_name('minifastai-lr-find'))
    done = subprocess.run([command, '--dataset', 'digits', '--out', 'sweep'], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and 'valley' in done.stdout and 'steepest' in done.stdout, done.stderr
    rows = list(csv.DictReader(open(tmp_path/'sweep'/'lr_find.csv')))
    assert list(rows[0]) == ['step', 'lr', 'loss', 'smoothed'] and 2 < len(rows) <= 100 and (tmp_path/'sweep'/'lr_find.png').exists()
    done = subprocess.run([command, '--dataset', 'digits', '--out', 'sweep'], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0 and 'holds another run' in done.stderr


def test_help():
    done = subprocess.run([COMMAND, '--help'], capture_output=True, text=True)
    assert done.returncode == 0 and '--epochs' in done.stdout and 'Batch size' in done.stdout


def test_progress_in_a_terminal(tmp_path):
    "A pseudo-terminal gets a bar that is redrawn, and rows above it"
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 100, 0, 0))
    process = subprocess.Popen([COMMAND, '--dataset', 'digits', '--epochs', '2', '--out', 'run'], cwd=tmp_path, stdout=side, stderr=side, close_fds=True, env={**os.environ, 'TERM': 'xterm'})
    os.close(side)
    seen, start = b'', time.time()
    while time.time() - start < 120:
        if not select.select([main], [], [], 1)[0]: continue
        try: chunk = os.read(main, 65536)
        except OSError: break
        if not chunk: break
        seen += chunk
    process.wait(timeout=60)
    text = seen.decode()
    assert process.returncode == 0 and 'epoch 1/2' in text and 'epoch 2/2' in text and '\r' in text, text
    assert re.search(r'\n? +1( +[\d.]+){5}', text)


NOTEBOOK = '''
import torch, torch.nn.functional as F
from minifastai.all import *
x, y = torch.randn(64, 784), torch.randint(10, (64,))
data = DataBunch(*get_dls(Dataset(x, y), Dataset(x, y), 16), 10)
Runner([AvgStatsCallback(accuracy), ProgressCallback()]).fit(2, create_learner(get_model, F.cross_entropy, data))
'''


def test_progress_in_a_live_notebook(tmp_path):
    "What a Jupyter kernel leaves in the notebook is one table, as HTML and as text, without a bar"
    import nbformat
    from nbclient import NotebookClient
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(NOTEBOOK)])
    NotebookClient(nb, timeout=120, kernel_name='python3', resources={'metadata': {'path': str(tmp_path)}}).execute()
    output, = nb.cells[0].outputs
    assert set(output.data) == {'text/html', 'text/plain'}
    assert output.data['text/html'].count('<tr>') == 3 and '<progress' not in output.data['text/html']
    assert output.data['text/plain'].split()[:3] == ['epoch', 'train_loss', 'train_accuracy']


def test_wheel(tmp_path):
    "What pip makes of the project works away from it: imports, trains, and brings its command"
    subprocess.run([sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--no-build-isolation', '--wheel-dir', tmp_path, root], check=True, capture_output=True)
    wheel, = tmp_path.glob('minifastai-*.whl')
    subprocess.run([sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--target', tmp_path/'site', wheel], check=True, capture_output=True)
    code = ("import json, minifastai, minifastai.cli as cli, pathlib; cli.minifastai_train(dataset='digits', epochs=1, out='run');"
            "print(json.dumps([minifastai.__file__, sorted(p.name for p in pathlib.Path('run').iterdir())]))")
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, env={**os.environ, 'PYTHONPATH': str(tmp_path/'site')}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    where, files = json.loads(done.stdout.splitlines()[-1])
    assert where.startswith(str(tmp_path/'site')) and set(files) == FILES and (tmp_path/'site'/'minifastai'/'py.typed').exists()
    entry_points = next((tmp_path/'site').glob('minifastai-*.dist-info/entry_points.txt')).read_text()
    assert 'minifastai-train' in entry_points
