"What the benchmarks share: a steady allocator, a line that says where they ran, medians with their spread."
import argparse
import platform
import statistics
import time
from importlib.metadata import PackageNotFoundError, version

import torch
import torch.nn.functional as F

from minifastai.device import default_device
from minifastai.cli import _steady_memory


def options(doc:str, threads:int|None=None, **numbers:int) -> argparse.Namespace:
    "The options of a script: `--threads`, and one for each of `numbers`, which are the defaults. Sets PyTorch's threads, and has the C library keep its memory"
    p = argparse.ArgumentParser(description=doc.split('\n')[0])
    p.add_argument('--threads', type=int, default=threads or torch.get_num_threads(), help="PyTorch's threads (%(default)s)")
    for name, default in numbers.items(): p.add_argument(f'--{name}', type=int, default=default, help='(%(default)s)')
    args = p.parse_args()
    _steady_memory()   # else glibc returns memory to the system in some steps and not in others, which costs more than what is measured
    torch.set_num_threads(args.threads)
    return args


def where(*packages:str) -> str:
    "Versions, device and threads, for the first line of a result"
    def of(p):
        try: return f'{p} {version(p)}'
        except PackageNotFoundError: return f'{p}: not installed'
    device = default_device()
    name = torch.cuda.get_device_name() if device.type == 'cuda' else f'{device}, {platform.machine()}'
    return ', '.join([f'PyTorch {torch.__version__}', *map(of, packages), name, f"{torch.get_num_threads()} thread{'s'*(torch.get_num_threads() != 1)}"])


def spread(values:list[float], form:str='.3f') -> str:
    "The median, with the quartiles behind it"
    q1, q2, q3 = statistics.quantiles(values, n=4, method='inclusive') if len(values) > 1 else [values[0]]*3
    return f'{q2:{form}} ({q1:{form}} to {q3:{form}})'


def claim(name:str, target:float, value:float, how:str='<='):
    "A line for the report's table: is `value` at most (at least) the target?"
    print(f'=> {name} | {how} | {target:g} | {value:.4g}')


def ratios(ours:list[float], theirs:list[float]) -> list[float]:
    "Round by round, as both saw the same machine then"
    return [a/b for a, b in zip(ours, theirs)]


def by_hand(model, opt, batches, books:bool=True) -> list[float]|None:
    "The loop that everybody is compared with: a pass over `batches`; with `books` it keeps each step's loss, accuracy and learning rate, and gives the means of the first two"
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
    "A list of batches that notes when each was asked for"
    def __init__(self, batches:list): self.batches, self.asked = batches, []

    def __len__(self): return len(self.batches)

    def __iter__(self):
        self.asked = []
        for b in self.batches:
            self.asked.append(time.perf_counter())
            yield b

    @property
    def per_step(self) -> float:
        "Seconds from one batch to the next, on average over the last pass. (Who trains need not ask for more than there are, so the last step's end is not known)"
        return (self.asked[-1] - self.asked[0])/(len(self.asked) - 1)
