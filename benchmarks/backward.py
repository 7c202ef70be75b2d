"""What chapter 02's tape costs: its backward pass against autograd's.

The network is the chapter's, 784-50-1 with the mean squared error, in float32. The lesson measures
it on all 50,000 training images at once. We also time batches of 512 and 64, and all images with
the gradient of the pixels, which a training run doesn't need. Our tape and autograd take turns, and
each ratio compares two passes that come right after each other. The tape's code comes from the
notebook, because the chapter exports nothing.

Run it with nothing else going on: python benchmarks/backward.py [--threads 1]
"""
import ast
import itertools
import json
import math
import statistics
import time
from functools import partial
from pathlib import Path

import torch
from common import claim, options, ratios, spread, synchronize, where
from fastcore.basics import patch
from torch import Tensor

from minifastai.device import default_device

NOTEBOOK = Path(__file__).parent.parent/'nbs'/'02_fully_connected.ipynb'
WARM_UP = 3
CASES = [
    # images, rounds, gradient of the pixels
    (50_000, 21, False),
    (50_000, 11, True),
    (512, 400, False),
    (64, 1000, False),
]


def defines(source:str, name:str) -> bool:
    "Does this cell define a class or function of this name at its top level?"
    if source.startswith(('#|', '!')): return False
    return any(getattr(node, 'name', '') == name for node in ast.parse(source).body)


def is_setting(node) -> bool:
    "Is it an assignment to `OPS`, to one of its items, or to an attribute of `Var`?"
    if not isinstance(node, ast.Assign): return False
    return ast.unparse(node.targets[0]).startswith(('OPS', 'Var.'))


def definitions(source:str) -> list:
    "Return what a cell of the tape defines and registers, without the examples below it"
    if source.startswith(('#|', '!')): return []
    body = ast.parse(source).body
    defined = [n for n in body if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    registers = [n for n in body if is_setting(n) or (defined and isinstance(n, ast.For))]
    return [n for n in body if n in defined + registers]


def the_tape():
    "Run the notebook's cells from the class `Var` to its last method, and return `Var`"
    cells = json.loads(NOTEBOOK.read_text(encoding='utf-8'))['cells']
    sources = [''.join(c['source']) for c in cells if c['cell_type'] == 'code']
    names = dict(itertools=itertools, torch=torch, Tensor=Tensor, patch=patch, partial=partial)
    first = next(i for i, s in enumerate(sources) if defines(s, 'Var'))
    last = next(i for i, s in enumerate(sources) if defines(s, 'torch_function'))
    for source in sources[first:last + 1]:
        module = ast.Module(definitions(source), [])
        exec(compile(module, str(NOTEBOOK), 'exec'), names)
    return names['Var']


def loss(x, y, w1, b1, w2, b2):
    "The chapter's network with its loss"
    out = (x@w1 + b1).relu()@w2 + b2
    return (out.squeeze(-1) - y).pow(2).mean()


def seconds(result) -> float:
    synchronize()
    start = time.perf_counter()
    result.backward()
    synchronize()
    return time.perf_counter() - start


def clock(Var, n:int, rounds:int, pixels:bool) -> tuple[list[float], list[float]]:
    "Return the seconds of our backward passes and of autograd's, which take turns"
    torch.manual_seed(0)
    x, y = torch.randn(n, 784), torch.randint(0, 10, (n,)).float()
    params = [torch.randn(784, 50)*math.sqrt(2/784), torch.zeros(50),
              torch.randn(50, 1)/math.sqrt(50), torch.zeros(1)]
    x, y, *params = (t.to(default_device()) for t in (x, y, *params))
    ours, theirs = [], []
    for _ in range(WARM_UP + rounds):
        tensors = [p.clone().requires_grad_() for p in params]
        theirs.append(seconds(loss(x.detach().requires_grad_(pixels), y, *tensors)))
        inputs = [Var(p) for p in params]
        ours.append(seconds(loss(Var(x) if pixels else x, y, *inputs)))
    for v, t in zip(inputs, tensors):
        torch.testing.assert_close(v.grad, t.grad, rtol=1e-3, atol=1e-4)
    return ours[WARM_UP:], theirs[WARM_UP:]


def main():
    Var = the_tape()
    print(f"{where()}; a backward pass of the 784-50-1 network, median (quartiles)")
    for n, rounds, pixels in CASES:
        ours, theirs = clock(Var, n, rounds, pixels)
        name = f"{n:,} images" + ', and the gradient of their pixels'*pixels
        times = ratios(ours, theirs)
        print(f"{name:46} autograd {statistics.median(theirs)*1e3:8.2f} ms, "
              f"the tape {spread(times)} times that", flush=True)
        if pixels: continue
        name = f"a backward pass of chapter 02's tape on {n:,} images, times autograd's"
        claim(name, 1.2, statistics.median(times))


if __name__ == '__main__':
    options(__doc__)
    main()
