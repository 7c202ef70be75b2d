"What the benchmarks share: options, the machine, medians with their spread, a loop by hand."
import argparse
import platform
import statistics
import time
from importlib.metadata import PackageNotFoundError, version

import torch
import torch.nn.functional as F

from minifastai.device import default_device
from minifastai.cli import keep_freed_memory


def options(doc:str, threads:int|None=None, **numbers:int) -> argparse.Namespace:
    """Parse a script's options: `--threads`, and one for each of `numbers`, which has the defaults.

    Also sets the number of PyTorch's threads, and makes the C library keep its memory.
    """
    p = argparse.ArgumentParser(description=doc.split('\n')[0])
    threads = threads or torch.get_num_threads()
    p.add_argument('--threads', type=int, default=threads, help="PyTorch's threads (%(default)s)")
    for name, default in numbers.items():
        p.add_argument(f'--{name}', type=int, default=default, help='(%(default)s)')
    args = p.parse_args()
    # else glibc returns memory to the system in some steps and not in others, which costs more
    # than what is measured
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    return args


def synchronize():
    "Wait until the GPU, if there is one, has finished its work"
    if torch.cuda.is_available(): torch.cuda.synchronize()


def where(*packages:str) -> str:
    "Versions, device and threads, for the first line of a result"
    def of(package):
        try: return f'{package} {version(package)}'
        except PackageNotFoundError: return f'{package}: not installed'

    device, threads = default_device(), torch.get_num_threads()
    name = f'{device}, {platform.machine()}'
    if device.type == 'cuda': name = torch.cuda.get_device_name()
    processors = f"{threads} thread{'s'*(threads != 1)}"
    return ', '.join([f'PyTorch {torch.__version__}', *map(of, packages), name, processors])


def spread(values:list[float], form:str='.3f') -> str:
    "Return the median, with the quartiles after it"
    quartiles = [values[0]]*3
    if len(values) > 1: quartiles = statistics.quantiles(values, n=4, method='inclusive')
    q1, q2, q3 = quartiles
    return f'{q2:{form}} ({q1:{form}} to {q3:{form}})'


def claim(name:str, target:float, value:float, how:str='<='):
    "Print a line for the report's table: is `value` at most (or at least) the target?"
    print(f'=> {name} | {how} | {target:g} | {value:.4g}')


def ratios(ours:list[float], theirs:list[float]) -> list[float]:
    "Divide round by round, because both sides of a round saw the same machine"
    return [a/b for a, b in zip(ours, theirs)]


def by_hand(model, opt, batches, books:bool=True) -> list[float]|None:
    """Train on each of `batches`; the loop that all others are compared with.

    With `books`, it records the loss, accuracy and learning rate of each step, and returns the
    mean loss and accuracy.
    """
    lrs, losses, accuracies, sizes = [], [], [], []
    for xb, yb in batches:
        pred = model(xb)
        loss = F.cross_entropy(pred, yb)
        loss.backward()
        opt.step()
        opt.zero_grad()
        if not books: continue
        lrs.append(opt.param_groups[0]['lr'])
        losses.append(loss.detach())
        accuracies.append((pred.detach().argmax(1) == yb).float().mean())
        sizes.append(len(yb))
    if not books: return
    n = torch.tensor(sizes, dtype=torch.float64)
    return [(torch.stack(v).cpu().double() @ n/n.sum()).item() for v in (losses, accuracies)]


class Batches:
    "A list of batches that records when each one was requested"
    def __init__(self, batches:list):
        self.batches = batches
        self.asked = []

    def __len__(self): return len(self.batches)

    def __iter__(self):
        self.asked = []
        for b in self.batches:
            self.asked.append(time.perf_counter())
            yield b

    @property
    def per_step(self) -> float:
        """Return the mean seconds from one batch to the next in the last pass.

        A trainer need not ask for more batches than there are, so the end of the last step is
        not known.
        """
        return (self.asked[-1] - self.asked[0])/(len(self.asked) - 1)
