"""Runs the installed commands, each in a process of its own.

Such a process spends most of its time on imports. A forked one takes them over from a process that
has done them before, and then runs the command's script as a fresh one does.
"""
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# what the commands import, and what PyTorch and scikit-learn import when they are first used
IMPORTS = [
    'minifastai.cli',
    'torch._dynamo',
    'sklearn.datasets',
    'safetensors.torch',
    'matplotlib.figure',
    'matplotlib.backends.backend_agg',
]


def script(name): return str(Path(sys.executable).with_name(name))


def start(command, *args, cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **env):
    "A fresh process of `command`; a variable given as None is unset"
    env = _environment(env)
    # a process that was started in the background ignores Ctrl-C, and so would those that it starts
    def heed_ctrl_c(): signal.signal(signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen([command, *args], cwd=cwd, env=env, preexec_fn=heed_ctrl_c,
                            stdout=stdout, stderr=stderr, text=True)


def fork(command, *args, cwd, stderr=subprocess.PIPE, **env):
    "A forked process of `command`, a script in Python; where forking is not safe, a fresh one"
    if sys.platform != 'linux': return start(command, *args, cwd=cwd, stderr=stderr, **env)
    return Forked(command, *args, cwd=cwd, stderr=stderr, env=_environment(env))


def _environment(changes):
    return {k: v for k, v in {**os.environ, **changes}.items() if v is not None}


def finish(process, timeout=300):
    "Wait until a process has ended, and return its status, output and errors"
    out, err = process.communicate(timeout=timeout)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def read_epochs(process, n):
    "Read what a training process prints until `n` epochs are done"
    for line in process.stdout:
        if line.split()[:1] == [str(n - 1)]: return


class Forked:
    "A command in a forked process, which computes on one thread: a `Popen`, as far as we need it"
    forks = multiprocessing.get_context('forkserver')
    forks.set_forkserver_preload(IMPORTS)

    def __init__(self, *args, cwd, stderr, env):
        self.stdout, out = self._pipe()
        if stderr == subprocess.STDOUT: self.stderr, err = None, out
        else: self.stderr, err = self._pipe()
        self.args = args
        # a daemon, so that a test that fails leaves nothing running
        self._process = self.forks.Process(target=_run_script, daemon=True,
                                           args=(args, str(cwd), env, out, err))
        self._process.start()
        out.close()
        err.close()

    def _pipe(self):
        reader, writer = self.forks.Pipe(duplex=False)
        file = open(os.dup(reader.fileno()))
        reader.close()
        return file, writer

    @property
    def returncode(self): return self._process.exitcode

    def send_signal(self, number): os.kill(self._process.pid, number)

    def kill(self): self._process.kill()

    def wait(self, timeout=None):
        self._process.join(timeout)
        return self.returncode

    def communicate(self, timeout=300):
        "What is left to read of output and errors; after `timeout` seconds the process is killed"
        timer = threading.Timer(timeout, self.kill)
        timer.start()
        with ThreadPoolExecutor(2) as pool: out, err = pool.map(_rest, (self.stdout, self.stderr))
        self.wait()
        timer.cancel()
        return out, err


def _rest(file):
    if file is None: return None
    with file: return file.read()


def _run_script(args, cwd, env, out, err):
    "In the forked process: what a fresh one does after its imports"
    import torch
    torch.set_num_threads(1)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    out.close()
    err.close()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = list(args)
    runpy.run_path(args[0], run_name='__main__')
