"""What a training step costs beside its arithmetic: our loop, skorch, pytorch-ignite, Lightning and fastai against a loop written by hand.

A 784-50-10 network, batches of 64, one thread, the same batches for all. Everybody keeps the same books: mean loss and accuracy of the epoch, and (we and the loop by hand) loss and learning rate of each step. Ours is timed with no callback and with ten as well, against a loop without books.
Trainers take turns, an epoch each, and each ratio is that of two neighbours in time. Peers that are not installed (pip install 'minifastai[bench]') are left out.
Run it with nothing else going on: python benchmarks/steps.py
"""
import logging
import os
import statistics
import warnings
from functools import partial

import torch
import torch.nn.functional as F
from common import Batches, by_hand, claim, options, ratios, spread, where
from torch import nn, optim

from minifastai.data import DataBunch
from minifastai.callbacks import Callback
from minifastai.learner import Learner, Runner
from minifastai.metrics import accuracy, AvgStatsCallback
from minifastai.recorder import Recorder


def new(): return nn.Sequential(nn.Linear(784, 50), nn.ReLU(), nn.Linear(50, 10))


def hand(batches, books:bool=True):
    model = new(); opt = optim.SGD(model.parameters(), lr=0.1)
    return lambda: by_hand(model, opt, batches, books)


class Idle(Callback):
    "Listens to every event of a step, and does nothing"
    def __init__(self, i): self.name = f'idle_{i}'
    def begin_batch(self): pass
    def after_pred(self): pass
    def after_loss(self): pass
    def after_backward(self): pass
    def after_step(self): pass
    def after_batch(self): pass


def ours(batches, cbs):
    model = new()
    learn, run = Learner(model, optim.SGD(model.parameters(), lr=0.1), F.cross_entropy, DataBunch(batches, c=10)), Runner(cbs)
    run.show_stats = lambda *stats: None
    return lambda: run.fit(1, learn)


def skorch(batches):
    from skorch import NeuralNetClassifier
    from skorch.callbacks import EpochScoring
    class Loader:   # skorch makes its own
        def __init__(self, dataset, **kwargs): pass
        def __iter__(self): return iter(batches)
        def __len__(self): return len(batches)
    net = NeuralNetClassifier(new(), criterion=nn.CrossEntropyLoss, optimizer=optim.SGD, lr=0.1, iterator_train=Loader, train_split=None, verbose=0,
                              callbacks=[('train_acc', EpochScoring('accuracy', on_train=True, name='train_acc', lower_is_better=False))])
    net.initialize()
    x, y = (torch.cat([b[i] for b in batches.batches]) for i in (0, 1))
    return lambda: net.partial_fit(x, y)


def ignite(batches):
    from ignite.engine import create_supervised_trainer
    from ignite.metrics import Accuracy, Loss
    model = new()
    trainer = create_supervised_trainer(model, optim.SGD(model.parameters(), lr=0.1), F.cross_entropy, output_transform=lambda x, y, y_pred, loss: (y_pred, y))
    Accuracy().attach(trainer, 'accuracy'); Loss(F.cross_entropy).attach(trainer, 'loss')
    return lambda: trainer.run(batches, max_epochs=1)


def lightning(batches):
    import lightning as L
    import torchmetrics
    class Net(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.model, self.accuracy = new(), torchmetrics.classification.MulticlassAccuracy(10, average='micro')
        def training_step(self, batch, i):
            xb, yb = batch
            pred = self.model(xb)
            loss = F.cross_entropy(pred, yb)
            self.accuracy(pred, yb)
            self.log('loss', loss, on_step=False, on_epoch=True); self.log('accuracy', self.accuracy, on_step=False, on_epoch=True)
            return loss
        def configure_optimizers(self): return optim.SGD(self.parameters(), lr=0.1)
    net = Net()
    return lambda: L.Trainer(max_epochs=1, accelerator='cpu', logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False).fit(net, batches)


def fastai(batches):
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner as FastaiLearner
    from fastai.metrics import accuracy as fastai_accuracy
    from fastai.optimizer import OptimWrapper
    batches.device, batches.to = torch.device('cpu'), lambda device: batches   # what it asks of a loader
    learn = FastaiLearner(DataLoaders(batches, Batches([])), new(), loss_func=F.cross_entropy, opt_func=partial(OptimWrapper, opt=optim.SGD), lr=0.1,
                          metrics=fastai_accuracy, cbs=[], default_cbs=True)
    learn.recorder.train_metrics = True
    learn.logger = lambda *args: None
    return lambda: learn.fit(1)   # without fastai.callback.progress there is no progress bar


PAIRS = [('no callback', lambda b: ours(b, []), partial(hand, books=False)), ('ten callbacks that do nothing', lambda b: ours(b, [Idle(i) for i in range(10)]), partial(hand, books=False)),
         ('recorder and metrics', lambda b: ours(b, [Recorder(), AvgStatsCallback(accuracy)]), hand),
         ('skorch', skorch, hand), ('ignite', ignite, hand), ('Lightning', lightning, hand), ('fastai', fastai, hand)]


def main(rounds:int, steps:int):
    torch.manual_seed(0)
    batches = [(torch.randn(64, 784), torch.randint(10, (64,))) for _ in range(steps)]
    print(where('skorch', 'pytorch-ignite', 'lightning', 'fastai'))
    print(f'{rounds} rounds of {steps} steps')
    fits = {}
    for name, *makers in PAIRS:
        loaders = [Batches(batches), Batches(batches)]
        try: fits[name] = [(make(loader), loader) for make, loader in zip(makers, loaders)]
        except (ImportError, RuntimeError) as e: print(f'{name}: left out ({e})')
    seconds = {name: ([], []) for name in fits}
    for i in range(rounds + 2):
        for name, pair in fits.items():
            for (fit, loader), s in zip(pair, seconds[name]):
                fit()
                if i >= 2: s.append(loader.per_step)   # the first two rounds warm up
    print(f"{'':30}{'us a step':>10}{'by hand':>10}   times that by hand, median (quartiles)")
    for name, (a, b) in seconds.items():
        print(f'{name:30}{statistics.median(a)*1e6:10.0f}{statistics.median(b)*1e6:10.0f}   {spread(ratios(a, b))}')
        if name in ('no callback', 'recorder and metrics'): claim(f'a step, {name}, times that of a loop by hand', 1.05, statistics.median(ratios(a, b)))


if __name__ == '__main__':
    args = options(__doc__, threads=1, rounds=13, steps=200)
    warnings.simplefilter('ignore'); logging.disable(logging.WARNING); os.environ['PYTHONWARNINGS'] = 'ignore'
    main(args.rounds, args.steps)
