"""What a training step costs besides its arithmetic, against a loop written by hand.

We compare our loop, skorch, pytorch-ignite, Lightning and fastai. All train a 784-50-10 network in
batches of 64, with one thread and the same batches. All compute the epoch's mean loss and accuracy.
Our loop and the loop by hand also record the loss and the learning rate of each step. We also time
our loop with no callback and with ten, against a loop that records nothing. Trainers take turns, an
epoch each, and each ratio compares two epochs that come right after each other. Trainers that
aren't installed (pip install 'minifastai[bench]') are skipped.

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


def sgd(model): return optim.SGD(model.parameters(), lr=0.1)


def hand(batches, books:bool=True):
    model = new()
    opt = sgd(model)
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
    learn = Learner(model, sgd(model), F.cross_entropy, DataBunch(batches, c=10))
    run = Runner(cbs)
    run.show_stats = lambda *stats: None
    return lambda: run.fit(1, learn)


def skorch(batches):
    from skorch import NeuralNetClassifier
    from skorch.callbacks import EpochScoring

    class Loader:   # skorch makes its own
        def __init__(self, dataset, **kwargs): pass
        def __iter__(self): return iter(batches)
        def __len__(self): return len(batches)

    score = EpochScoring('accuracy', on_train=True, name='train_acc', lower_is_better=False)
    net = NeuralNetClassifier(
        new(),
        criterion=nn.CrossEntropyLoss,
        optimizer=optim.SGD,
        lr=0.1,
        iterator_train=Loader,
        train_split=None,
        verbose=0,
        callbacks=[('train_acc', score)],
    )
    net.initialize()
    x, y = (torch.cat([b[i] for b in batches.batches]) for i in (0, 1))
    return lambda: net.partial_fit(x, y)


def ignite(batches):
    from ignite.engine import create_supervised_trainer
    from ignite.metrics import Accuracy, Loss
    model = new()
    trainer = create_supervised_trainer(model, sgd(model), F.cross_entropy,
                                        output_transform=lambda x, y, y_pred, loss: (y_pred, y))
    Accuracy().attach(trainer, 'accuracy')
    Loss(F.cross_entropy).attach(trainer, 'loss')
    return lambda: trainer.run(batches, max_epochs=1)


def lightning_module():
    "Make the network in the form that Lightning needs"
    import lightning as L
    import torchmetrics

    class Net(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = new()
            self.accuracy = torchmetrics.classification.MulticlassAccuracy(10, average='micro')

        def training_step(self, batch, i):
            xb, yb = batch
            pred = self.model(xb)
            loss = F.cross_entropy(pred, yb)
            self.accuracy(pred, yb)
            self.log('loss', loss, on_step=False, on_epoch=True)
            self.log('accuracy', self.accuracy, on_step=False, on_epoch=True)
            return loss

        def configure_optimizers(self): return sgd(self)

    return Net()


def lightning(batches):
    import lightning as L
    net = lightning_module()
    quiet = dict(
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    return lambda: L.Trainer(max_epochs=1, accelerator='cpu', **quiet).fit(net, batches)


def fastai(batches):
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner as FastaiLearner
    from fastai.metrics import accuracy as fastai_accuracy
    from fastai.optimizer import OptimWrapper
    # what it asks of a loader
    batches.device = torch.device('cpu')
    batches.to = lambda device: batches
    learn = FastaiLearner(
        DataLoaders(batches, Batches([])),
        new(),
        loss_func=F.cross_entropy,
        opt_func=partial(OptimWrapper, opt=optim.SGD),
        lr=0.1,
        metrics=fastai_accuracy,
        cbs=[],
        default_cbs=True,
    )
    learn.recorder.train_metrics = True
    learn.logger = lambda *args: None
    return lambda: learn.fit(1)   # without fastai.callback.progress there is no progress bar


without_books = partial(hand, books=False)
PAIRS = {
    'no callback': (lambda b: ours(b, []), without_books),
    'ten callbacks that do nothing': (
        lambda b: ours(b, [Idle(i) for i in range(10)]),
        without_books,
    ),
    'recorder and metrics': (lambda b: ours(b, [Recorder(), AvgStatsCallback(accuracy)]), hand),
    'skorch': (skorch, hand),
    'ignite': (ignite, hand),
    'Lightning': (lightning, hand),
    'fastai': (fastai, hand),
}
CLAIMED = ('no callback', 'recorder and metrics')
WARM_UP = 2   # rounds


def trainers(batches) -> dict[str, list[tuple]]:
    "Return, for each installed pair, two functions that train an epoch, and their loaders"
    fits = {}
    for name, makers in PAIRS.items():
        loaders = [Batches(batches), Batches(batches)]
        try: fits[name] = [(make(loader), loader) for make, loader in zip(makers, loaders)]
        except (ImportError, RuntimeError) as e: print(f'{name}: left out ({e})')
    return fits


def measure(fits, rounds:int) -> dict[str, tuple[list[float], list[float]]]:
    "Return the seconds of a step for both trainers of each pair, round by round"
    seconds = {name: ([], []) for name in fits}
    for i in range(WARM_UP + rounds):
        for name, pair in fits.items():
            for (fit, loader), s in zip(pair, seconds[name]):
                fit()
                if i >= WARM_UP: s.append(loader.per_step)
    return seconds


def us(seconds:list[float]) -> str: return f'{statistics.median(seconds)*1e6:10.0f}'


def main(rounds:int, steps:int):
    torch.manual_seed(0)
    batches = [(torch.randn(64, 784), torch.randint(10, (64,))) for _ in range(steps)]
    print(where('skorch', 'pytorch-ignite', 'lightning', 'fastai'))
    print(f'{rounds} rounds of {steps} steps')
    seconds = measure(trainers(batches), rounds)
    header = f"{'':30}{'us a step':>10}{'by hand':>10}"
    print(f'{header}   times that by hand, median (quartiles)')
    for name, (a, b) in seconds.items():
        print(f'{name:30}{us(a)}{us(b)}   {spread(ratios(a, b))}')
        if name not in CLAIMED: continue
        median = statistics.median(ratios(a, b))
        claim(f'a step, {name}, times that of a loop by hand', 1.05, median)


if __name__ == '__main__':
    args = options(__doc__, threads=1, rounds=31, steps=200)
    warnings.simplefilter('ignore')
    logging.disable(logging.WARNING)
    os.environ['PYTHONWARNINGS'] = 'ignore'
    main(args.rounds, args.steps)
