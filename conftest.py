"Makes each notebook of nbs/ one test, run as `nbdev-test` runs it, with the cells that need MNIST or a GPU where these are there."
import os
import subprocess
import sys
from pathlib import Path

import pytest

root = Path(__file__).parent


def pytest_configure(config):
    "Decide once what this machine has; where MNIST is not, `get_data()` gives the embedded digits. Nothing is ever downloaded."
    import torch

    from minifastai.datasets import find_mnist
    has_mnist = os.environ.get('MINIFASTAI_DATASET', 'mnist') == 'mnist' and bool(find_mnist())
    if not has_mnist: os.environ['MINIFASTAI_DATASET'] = 'digits'
    config.nb_flags = ['mnist']*has_mnist + ['cuda']*torch.cuda.is_available()


def pytest_report_header(config):
    left_out = [f for f in ('mnist', 'cuda', 'slow') if f not in config.nb_flags]
    return f"data: {'MNIST' if 'mnist' in config.nb_flags else 'embedded digits'}; cells left out: those flagged {', '.join(left_out)}"


def pytest_collect_file(file_path, parent):
    if file_path.suffix == '.ipynb' and file_path.parent == root/'nbs' and not file_path.name.startswith(('_', '.')):
        return NotebookFile.from_parent(parent, path=file_path)


class NotebookFile(pytest.File):
    def collect(self): yield Notebook.from_parent(self, name=self.path.stem)


class NotebookFailed(Exception): pass


class Notebook(pytest.Item):
    def runtest(self):
        command = [Path(sys.executable).with_name('nbdev-test'), self.path, '--n-workers', '0', '--flags', ' '.join(self.config.nb_flags)]
        # stdin is closed so that a cell that asks for input fails instead of waiting for ever
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode: raise NotebookFailed(done.stdout + done.stderr)

    def repr_failure(self, excinfo, style=None):
        return str(excinfo.value) if isinstance(excinfo.value, NotebookFailed) else super().repr_failure(excinfo, style)

    def reportinfo(self): return self.path, 0, self.name
