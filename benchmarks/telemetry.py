"""What watching every layer costs: steps that `ActivationStats` watches against other steps.

In a fit of chapter 06's network, `ActivationStats` watches every other batch, so that both kinds
of steps see the same machine. The hooks stay attached all the time. As a check, we also time a fit
without any hook.

Run it with nothing else going on: python benchmarks/telemetry.py [--threads 1]
"""
import statistics
import time

import torch
import torch.nn.functional as F
from common import claim, options, where
from torch import optim

from minifastai.data import DataBunch
from minifastai.callbacks import Callback
from minifastai.learner import Learner, Runner
from minifastai.device import default_device
from minifastai.cnn import conv2d, get_cnn_model
from minifastai.activations import ActivationStats
from minifastai.norms import conv_layer

LAYERS = {
    'ReLU': (conv2d, {}),
    'GeneralRelu': (conv_layer, dict(bn=False, leak=0.1, sub=0.4, maxv=6.)),
}
WARM_UP = 20   # steps


class Clock(Callback):
    "Measures the seconds of each batch"
    _order = 100
    def __init__(self): self.seconds = []

    def _now(self):
        # waits for the device: here on purpose
        if self.xb.device.type == 'cuda': torch.cuda.synchronize()
        return time.perf_counter()

    def begin_batch(self): self.start = self._now()
    def after_batch(self): self.seconds.append(self._now() - self.start)


def fit(data, layer, kwargs, cbs) -> list[float]:
    "Return the seconds of each step of a fit, after the warm-up"
    torch.manual_seed(0)
    model = get_cnn_model(data, [8, 16, 32, 32], layer, n_in=1, **kwargs).to(default_device())
    opt = optim.SGD(model.parameters(), lr=0.01)
    run = Runner([Clock(), *cbs])
    run.fit(1, Learner(model, opt, F.cross_entropy, data))
    return run.clock.seconds[WARM_UP:]


def ms(seconds:list[float]) -> float: return statistics.median(seconds)*1e3


def main(steps:int):
    device = default_device()
    def batch():
        xb = torch.randn(512, 1, 28, 28, device=device)
        return xb, torch.randint(10, (512,), device=device)
    data = DataBunch([batch() for _ in range(4)]*(steps//4), c=10)
    print(f'{where()}; batches of 512, {steps} steps')
    for name, (layer, kwargs) in LAYERS.items():
        without_hooks = fit(data, layer, kwargs, [])
        with_hooks = fit(data, layer, kwargs, [ActivationStats(every=2)])
        watched, unwatched = with_hooks[::2], with_hooks[1::2]
        ratios = sorted(a/b for a, b in zip(watched, unwatched))
        median = statistics.median(ratios)
        q = len(ratios)//4
        print(f"{name:12} {ms(unwatched):6.2f} ms, watched {ms(watched):6.2f} ms: {median:.3f}x "
              f"(quartiles {ratios[q]:.3f} to {ratios[-q]:.3f}); "
              f"without hooks {ms(without_hooks):.2f} ms")
        claim(f'a step with telemetry of every layer ({name}), times one without', 1.1, median)


if __name__ == '__main__': main(options(__doc__, steps=400).steps)
