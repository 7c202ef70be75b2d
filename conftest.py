"""Makes each notebook of nbs/ one test, run as `nbdev-test` runs it.

Cells that need MNIST, Imagenette or a GPU are run on machines that have them.
"""
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

root = Path(__file__).parent


def pytest_configure(config):
    """Decide once what this machine has. Nothing is ever downloaded.

    Without MNIST, `get_data()` gives the embedded digits.
    """
    import torch

    from minifastai.datasets import find_data, find_mnist
    wants_mnist = os.environ.get('MINIFASTAI_DATASET', 'mnist') == 'mnist'
    has_mnist = wants_mnist and bool(find_mnist())
    if not has_mnist: os.environ['MINIFASTAI_DATASET'] = 'digits'
    has = dict(mnist=has_mnist, imagenette=bool(find_data('imagenette')),
               cuda=torch.cuda.is_available())
    config.nb_flags = [flag for flag in has if has[flag]]
    # a shell has programs in the background ignore Ctrl-C, of which several tests are
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # and `nohup` has them ignore the end of their terminal
    if hasattr(signal, 'SIGHUP') and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_report_header(config):
    data = 'MNIST' if 'mnist' in config.nb_flags else 'embedded digits'
    flags = ('mnist', 'imagenette', 'cuda', 'slow')
    skipped = [flag for flag in flags if flag not in config.nb_flags]
    return f"data: {data}; cells left out: those flagged {', '.join(skipped)}"


def pytest_collect_file(file_path, parent):
    is_notebook = file_path.suffix == '.ipynb' and file_path.parent == root/'nbs'
    if is_notebook and not file_path.name.startswith(('_', '.')):
        return NotebookFile.from_parent(parent, path=file_path)


def pytest_collection_modifyitems(items):
    """Put half of the notebooks first, and half in the middle, the largest first.

    Two processes begin at these places. So the longest notebooks run side by side, and the short
    tests fill what is left.
    """
    notebooks = [item for item in items if isinstance(item, Notebook)]
    notebooks.sort(key=lambda item: item.path.stat().st_size, reverse=True)
    others = [item for item in items if not isinstance(item, Notebook)]
    half = len(others)//2
    items[:] = notebooks[::2] + others[:half] + notebooks[1::2] + others[half:]


class NotebookFile(pytest.File):
    def collect(self): yield Notebook.from_parent(self, name=self.path.stem)


class NotebookFailed(Exception): pass


class Notebook(pytest.Item):
    def runtest(self):
        nbdev_test = Path(sys.executable).with_name('nbdev-test')
        flags = ' '.join(self.config.nb_flags)
        command = [nbdev_test, self.path, '--n-workers', '0', '--flags', flags]
        # stdin is closed so that a cell that asks for input fails instead of waiting for ever
        done = subprocess.run(command, cwd=root, stdin=subprocess.DEVNULL,
                              capture_output=True, text=True)
        if done.returncode: raise NotebookFailed(done.stdout + done.stderr)

    def repr_failure(self, excinfo, style=None):
        if isinstance(excinfo.value, NotebookFailed): return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self): return self.path, 0, self.name
