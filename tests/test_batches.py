"Batches of any shape: what is input and target, how a model is called, and predictions."
import copy
import types
from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import quiet_runner, tiny_learner
from torch import nn, optim
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from minifastai.batches import as_loss, call_model, moved, own_loss, predict, split_batch
from minifastai.data import DataBunch, Dataset, get_dls
from minifastai.learner import Learner, Runner
from minifastai.metrics import accuracy, AvgStatsCallback
from minifastai.recorder import Recorder

a, b = torch.randn(6, 4), torch.randn(6, 4)
y = torch.tensor([0, 1, 2, 0, 1, 2])


class Graph:
    "Behaves like a batch of graphs"
    num_graphs = 6
    def __init__(self, x, y=None): self.x, self.y = x, y
    def to(self, device): return Graph(self.x.to(device), self.y.to(device))


@dataclass
class Record:
    image: torch.Tensor
    label: torch.Tensor


Named = namedtuple('Named', 'y left right')
Frozen = types.MappingProxyType


def same(one, other):
    if isinstance(one, torch.Tensor): return one is other
    if isinstance(one, tuple): return all(map(same, one, other)) and len(one) == len(other)
    return one is other


@pytest.mark.parametrize('batch, xb, yb', [
    ((a, y), a, y),
    ([a, y], a, y),
    ((a, None), a, None),
    (((a, b), y), (a, b), y),
    ((a, b, y), (a, b), y),
    ([a, b, y], (a, b), y),
    ((a,), a, a),
    ([(a, y)], a, y),
    (a, a, a),
    (Named(y, a, b), (a, b), y),
])
def test_what_is_input_and_what_is_target(batch, xb, yb):
    inputs, targets = split_batch(batch)
    assert same(inputs, xb) or all(map(same, inputs, xb))
    assert same(targets, yb)


@pytest.mark.parametrize('kind', [dict, UserDict, OrderedDict, Frozen])
@pytest.mark.parametrize('name', ['labels', 'label', 'targets', 'target', 'y'])
def test_a_mapping_has_its_target_by_name(kind, name):
    batch = kind({'a': a, name: y})
    xb, yb = split_batch(batch)
    assert xb is batch
    assert yb is y
    without = kind({'a': a})
    assert split_batch(without) == (without, without)


def test_objects():
    for batch, target in ((Graph(a, y), y), (Record(a, y), y)):
        xb, yb = split_batch(batch)
        assert xb is batch
        assert yb is target
    packed = pack_sequence([a[:3], a[:2]])
    assert split_batch(packed) == (packed, packed)
    assert split_batch((packed, y)) == (packed, y)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(8, 3)
    def forward(self, a, b): return self.lin(torch.cat([a, b], 1))


class TwoInOne(Two):
    def forward(self, xs): return super().forward(*(xs.values() if hasattr(xs, 'values') else xs))


class Optional(Two):
    def forward(self, a, b=None): return super().forward(a, a if b is None else b)


class Any(Two):
    def forward(self, *xs): return super().forward(*xs)


class OwnLoss(Two):
    def forward(self, a, b, labels=None):
        scores = super().forward(a, b)
        loss = None if labels is None else F.cross_entropy(scores, labels)
        return types.SimpleNamespace(loss=loss, logits=scores)


class OwnLossInDict(OwnLoss):
    def forward(self, a, b, labels=None): return vars(super().forward(a, b, labels))


class OfGraph(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 3)
    def forward(self, graph): return self.lin(graph.x)


class OfRecord(OfGraph):
    def forward(self, record): return self.lin(record.image)


class Wrapper(nn.Module):
    "As DistributedDataParallel: takes anything, and passes it on"
    def __init__(self, module):
        super().__init__()
        self.module = module
    def forward(self, *args, **kwargs): return self.module(*args, **kwargs)


def uniformity(pred): return (-2*torch.pdist(F.normalize(pred, dim=1))**2).exp().mean().log()


class Uniformity(nn.Module):
    def forward(self, pred): return uniformity(pred)


TRAININGS = {
    'two inputs in a tuple': (Two, ((a, b), y), F.cross_entropy),
    'two inputs beside each other': (Two, (a, b, y), F.cross_entropy),
    'a list of two inputs': (Two, ([a, b], y), F.cross_entropy),
    'both in one argument': (TwoInOne, ((a, b), y), F.cross_entropy),
    'both in one argument, beside each other': (TwoInOne, (a, b, y), F.cross_entropy),
    'a mapping in one argument': (TwoInOne, ({'a': a, 'b': b}, y), F.cross_entropy),
    'an input with a default': (Optional, (a, b, y), F.cross_entropy),
    'any number of inputs': (Any, (a, b, y), F.cross_entropy),
    'names of parameters': (Two, {'b': b, 'a': a, 'y': y}, F.cross_entropy),
    'names in any mapping': (Two, UserDict(a=a, b=b, labels=y), F.cross_entropy),
    'in a wrapper': (lambda: Wrapper(Two()), {'a': a, 'b': b, 'labels': y}, F.cross_entropy),
    'its own loss': (OwnLoss, {'a': a, 'b': b, 'labels': y}, None),
    'its own loss in a dictionary': (OwnLossInDict, UserDict(a=a, b=b, labels=y), None),
    'its own loss in a wrapper': (lambda: Wrapper(OwnLoss()), {'a': a, 'b': b, 'labels': y}, None),
    'a graph': (OfGraph, Graph(a, y), F.cross_entropy),
    'a record': (OfRecord, Record(a, y), F.cross_entropy),
    'an autoencoder': (lambda: nn.Linear(4, 4), a, F.mse_loss),
    'an autoencoder of tuples': (lambda: nn.Linear(4, 4), (a,), F.mse_loss),
    'a contrastive loss': (lambda: nn.Linear(4, 2), a, uniformity),
    'a contrastive loss, target None': (lambda: nn.Linear(4, 2), (a, None), uniformity),
    'a loss module of predictions': (lambda: nn.Linear(4, 2), a, Uniformity()),
}


@pytest.mark.parametrize('name', TRAININGS)
def test_trainings_without_a_wrapper(name):
    make, batch, loss_func = TRAININGS[name]
    torch.manual_seed(0)
    model = make()
    opt = optim.Adam(model.parameters(), 0.05)
    learn = Learner(model, opt, loss_func, DataBunch([batch], [batch]))
    rec = Recorder()
    run = quiet_runner([rec, AvgStatsCallback()])
    run.fit(15, learn)
    assert rec.losses[-1] < rec.losses[0]
    assert run.metrics['valid_loss'] < rec.losses[0]
    preds, _ = learn.get_preds()
    scores = preds['logits'] if isinstance(preds, dict) else preds
    if isinstance(scores, torch.Tensor): assert len(scores) == 6 and scores.grad_fn is None


def test_metrics_see_predictions_and_targets_of_any_batch():
    model = OwnLoss()
    data = DataBunch([{'a': a, 'b': b, 'labels': y}], [{'a': a, 'b': b, 'labels': y}])
    run = quiet_runner(AvgStatsCallback(accuracy))
    run.fit(1, Learner(model, optim.SGD(model.parameters(), 0.1), None, data))
    with torch.no_grad(): expected = accuracy(model(a, b).logits, y).item()
    assert run.metrics['valid_accuracy'] == pytest.approx(expected)


def test_a_model_that_cannot_take_the_batch_says_how_it_was_called():
    model = nn.Linear(4, 3)
    opt = optim.SGD(model.parameters(), 0.1)
    for batch, message in (((a, b, y), 'of type tuple, of length 2'),
                           ({'pixels': a, 'label': y}, 'entries pixels, label')):
        learn = Learner(model, opt, F.cross_entropy, DataBunch([batch]))
        with pytest.raises(TypeError, match=message): Runner().fit(1, learn)


def test_losses_of_one_and_two_arguments():
    assert as_loss(F.cross_entropy) is F.cross_entropy
    module = nn.MSELoss()
    assert as_loss(module) is module
    assert as_loss(None) is own_loss
    def both(pred, yb=None): return pred.mean()
    assert as_loss(both) is both
    copy.deepcopy(as_loss(uniformity))
    for pred in (torch.zeros(2), {'logits': a}, types.SimpleNamespace(logits=a), []):
        with pytest.raises(ValueError, match='has no loss function'): own_loss(pred)
    for pred in (torch.tensor(1.), {'loss': torch.tensor(1.)}, (torch.tensor(1.), a)):
        assert own_loss(pred) == 1


# --- predictions

@pytest.mark.parametrize('kind', [tuple, list, dict, UserDict, np.asarray, 'loader', 'dls'])
def test_predictions_of_any_inputs(kind):
    model = (TwoInOne() if kind in (dict, UserDict, list) else Two()).train()
    model.lin.eval()
    expected = model((a, b)) if isinstance(model, TwoInOne) else model(a, b)
    if kind is np.asarray:
        model = nn.Linear(4, 3).train()
        expected, x = model(a), a.numpy()
    elif kind in (dict, UserDict): x = kind(a=a, b=b)
    elif kind == 'loader': x = iter([(a[:4], b[:4], y[:4]), (a[4:], b[4:], y[4:])])
    elif kind == 'dls':
        model = nn.Linear(4, 3).train()
        expected, x = model(a), get_dls(Dataset(a, y), Dataset(a, y), 2)[1]
    else: x = kind([a, b])
    out = predict(model, x, bs=4)
    torch.testing.assert_close(out, expected)
    assert not out.requires_grad
    assert model.training and (not hasattr(model, 'lin') or not model.lin.training)


def test_predictions_keep_their_structure():
    class Out(nn.Module):
        def __init__(self, wrap):
            super().__init__()
            self.lin, self.wrap = nn.Linear(4, 3), wrap
        def forward(self, x): return self.wrap(self.lin(x))
    Pair = namedtuple('Pair', 'scores mean')
    for wrap in (lambda o: {'logits': o}, lambda o: (o, o.mean()), lambda o: Pair(o, o.mean()),
                 lambda o: [o]):
        out = predict(Out(wrap), a, bs=4)
        assert type(out) is type(wrap(a))
        first = next(iter(out.values())) if isinstance(out, dict) else out[0]
        assert first.shape == (6, 3)
        if len(out) == 2: assert out[1].shape == (2,)
    with pytest.raises(ValueError, match='no item'): predict(nn.Linear(4, 3), a[:0])
    with pytest.raises(ValueError, match='no batch'): predict(nn.Linear(4, 3), iter([]))
    with pytest.raises(TypeError, match='inputs or a loader'): predict(nn.Linear(4, 3), 3)


def test_a_learner_predicts():
    learn = tiny_learner()
    torch.testing.assert_close(learn.predict(a), learn.model(a).detach())
    preds, targets = learn.get_preds()
    assert torch.equal(targets, torch.cat([yb for _, yb in learn.data.valid_dl]))
    with torch.no_grad():
        assert torch.equal(preds, torch.cat([learn.model(xb) for xb, _ in learn.data.valid_dl]))
    train_preds, _ = learn.get_preds(learn.data.train_dl)
    assert len(train_preds) == 15
    learn.data.valid_dl = None
    with pytest.raises(ValueError, match='no validation batches'): learn.get_preds()


def test_batches_are_moved_by_their_own_method():
    graph, named = moved([Graph(a, y), {'a': a, 'names': ['x']}], 'meta')
    assert graph.x.is_meta and named['a'].is_meta
    assert named['names'] == ['x']
    assert isinstance(moved(pack_sequence([a]), 'cpu'), PackedSequence)


def test_calls_of_functions_that_have_no_signature():
    assert torch.equal(call_model(torch.neg, a), -a)
    assert torch.equal(call_model(lambda x, z: x + z, (a, b)), a + b)
    compiled = torch.compile(Two(), backend='eager')
    assert call_model(compiled, {'a': a, 'b': b, 'labels': y}).shape == (6, 3)


def test_lists_of_items_are_joined_and_cut():
    class Names(nn.Module):
        def forward(self, texts): return torch.tensor([float(len(t)) for t in texts])[:, None]
    assert predict(Names(), ['a', 'bb', 'ccc'], bs=2).flatten().tolist() == [1, 2, 3]
    data = DataBunch([(a, y)], [(['a', 'bb'], y[:2]), (['ccc'], y[2:3])])
    model = Names()
    opt = optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)
    learn = Learner(model, opt, F.mse_loss, data)
    learn.data.valid_dl = [(['a', 'bb'], ['x', 'y']), (['ccc'], ['z'])]
    preds, targets = learn.get_preds()
    assert targets == ['x', 'y', 'z'] and len(preds) == 3
    learn.data.valid_dl = [(['a'], [{'boxes': a}]), (['b'], [{'boxes': b}])]
    assert len(learn.get_preds()[1]) == 2


def test_predictions_of_different_lengths_and_packed_inputs():
    class Grow(nn.Module):
        def forward(self, x): return x
    out = predict(Grow(), [(torch.zeros(2, 3), y), (torch.zeros(2, 5), y)])
    assert [tuple(o.shape) for o in out] == [(2, 3), (2, 5)]
    packed = pack_sequence([torch.zeros(3, 2), torch.zeros(2, 2), torch.zeros(1, 2)])
    out = predict(lambda p: p.data, packed, bs=2)
    assert out.shape == (6, 2)


def test_sizes_of_odd_batches():
    from minifastai.utils import batch_size
    assert batch_size({'scale': torch.tensor(1.), 'a': a}) == 6
    assert batch_size([torch.zeros(3), torch.zeros(5)]) == 2     # items of different lengths
    assert batch_size((torch.zeros(3, 2), torch.zeros(3))) == 3  # several inputs
    assert same(split_batch(namedtuple('Two', 'u v')(a, b))[0], a)


def test_errors_say_whether_model_or_loss_failed():
    model = OwnLoss()
    batch = {'a': a, 'b': b, 'labels': y}
    opt = optim.SGD(model.parameters(), 0.1)
    learn = Learner(model, opt, F.cross_entropy, DataBunch([batch]))
    with pytest.raises(TypeError, match='pass None as the loss function'): Runner().fit(1, learn)
    model = nn.Linear(4, 3)
    opt = optim.SGD(model.parameters(), 0.1)
    learn = Learner(model, opt, F.cross_entropy, DataBunch([(np.zeros((2, 4)), y[:2])]))
    with pytest.raises(TypeError, match='torch.as_tensor'): Runner().fit(1, learn)
