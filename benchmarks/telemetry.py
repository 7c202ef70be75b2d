"""What watching every layer costs: steps of chapter 06's network that `ActivationStats` watches against steps of the same fit that it does not.

Every other batch is watched, so that both kinds see the same machine; the hooks are attached throughout. As a check, a fit without any hook is timed as well.
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


class Clock(Callback):
    "Seconds of each batch"
    _order = 100
    def __init__(self): self.seconds = []

    def _now(self):
        if self.xb.device.type == 'cuda': torch.cuda.synchronize()   # waits for the device: here on purpose
        return time.perf_counter()

    def begin_batch(self): self.start = self._now()
    def after_batch(self): self.seconds.append(self._now() - self.start)


def main(steps:int):
    device = default_device()
    data = DataBunch([(torch.randn(512, 1, 28, 28, device=device), torch.randint(10, (512,), device=device)) for _ in range(4)]*(steps//4), c=10)
    print(f'{where()}; batches of 512, {steps} steps')
    for name, layer, kwargs in (('ReLU', conv2d, {}), ('GeneralRelu', conv_layer, dict(bn=False, leak=0.1, sub=0.4, maxv=6.))):
        seconds = {}
        for what, cbs in (('none', []), ('stats', [ActivationStats(every=2)])):
            torch.manual_seed(0)
            model = get_cnn_model(data, [8, 16, 32, 32], layer, n_in=1, **kwargs).to(device)
            run = Runner([Clock(), *cbs])
            run.fit(1, Learner(model, optim.SGD(model.parameters(), lr=0.01), F.cross_entropy, data))
            seconds[what] = run.clock.seconds[20:]
        watched, unwatched = seconds['stats'][::2], seconds['stats'][1::2]
        ratios = sorted(a/b for a, b in zip(watched, unwatched))
        q = len(ratios)//4
        print(f"{name:12} {statistics.median(unwatched)*1e3:6.2f} ms, watched {statistics.median(watched)*1e3:6.2f} ms: {statistics.median(ratios):.3f}x "
              f"(quartiles {ratios[q]:.3f} to {ratios[-q]:.3f}); without hooks {statistics.median(seconds['none'])*1e3:.2f} ms")
        claim(f'a step with telemetry of every layer ({name}), times one without', 1.1, statistics.median(ratios))


if __name__ == '__main__': main(options(__doc__, steps=400).steps)
