"The binomial loss against PyTorch's, its decoder and its metric, on input that chapter 04b lacks."
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import tiny_learner
from torchmetrics.functional.classification import multilabel_exact_match

from minifastai.learner import Runner
from minifastai.metrics import AvgStatsCallback
from minifastai.losses import binomial_decode, binomial_loss, exact_match

BCE = F.binary_cross_entropy_with_logits


def one_hot(labels, c, dtype):
    "A row for each label, with a single 1, or with none where the label is -1"
    rows = torch.zeros(len(labels), c, dtype=dtype)
    for row, label in zip(rows, labels):
        if label >= 0: row[label] = 1
    return rows


@pytest.mark.parametrize('n,c', [(1, 1), (7, 1), (1, 12), (33, 10), (0, 4)])
@pytest.mark.parametrize('reduction', ['mean', 'sum', 'none'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
def test_equal_to_pytorch(n, c, reduction, dtype):
    g = torch.Generator().manual_seed(n*100 + c)
    logits = (torch.randn(n, c, generator=g)*30).to(dtype)
    labels = torch.randint(-1, c, (n,), generator=g)
    binary = one_hot(labels, c, dtype)
    theirs = logits.clone().requires_grad_()
    their_loss = BCE(theirs, binary, reduction=reduction)
    their_loss.sum().backward()
    for targets in (labels, labels.int(), binary, binary.bool()):
        ours = logits.clone().requires_grad_()
        loss = binomial_loss(ours, targets, reduction=reduction)
        loss.sum().backward()
        assert loss.dtype == their_loss.dtype
        assert torch.equal(loss.nan_to_num(), their_loss.nan_to_num())
        assert torch.equal(ours.grad, theirs.grad)


def test_soft_targets_and_small_label_types():
    logits = torch.randn(5, 4)
    soft = torch.full((5, 4), 0.25)
    assert torch.equal(binomial_loss(logits, soft), BCE(logits, soft))
    labels = torch.tensor([0, 1, 2, 3, 3])
    assert torch.equal(binomial_loss(logits, labels.to(torch.uint8)), binomial_loss(logits, labels))


def test_extreme_logits_have_a_finite_loss_and_gradient():
    logits = torch.tensor([[1e4, -1e4, 0.]], requires_grad=True)
    loss = binomial_loss(logits, torch.tensor([1]))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize('targets,says', [
    (torch.tensor([0, 10]), '0 to 9'),
    (torch.tensor([-2, 0]), '-1 for none'),
    (torch.tensor([0.5, 1.]), 'must be integers'),
    (torch.tensor([True, False]), 'must be integers'),
    (torch.zeros(3, dtype=torch.long), r'not \(3,\)'),
    (torch.zeros(2, 9), r'not \(2, 9\)'),
    (torch.zeros(2, 1, dtype=torch.long), r'not \(2, 1\)'),
    (torch.full((2, 10), 2), 'from 0 to 1'),
    (torch.full((2, 10), -0.1), 'from 0 to 1'),
    (torch.full((2, 10), torch.nan), 'from 0 to 1'),
])
def test_wrong_targets_are_refused_by_loss_and_metric(targets, says):
    for f in (binomial_loss, exact_match):
        with pytest.raises(ValueError, match=says): f(torch.zeros(2, 10), targets)


def test_wrong_logits_are_refused():
    labels = torch.tensor([0, 1])
    for shape in ((10,), (2, 10, 1), ()):
        logits = torch.zeros(shape)
        with pytest.raises(ValueError, match='row for each item'): binomial_loss(logits, labels)
        with pytest.raises(ValueError, match='row for each item'): binomial_decode(logits)


def test_decoder_agrees_with_a_plain_loop():
    logits = torch.randn(50, 6, generator=torch.Generator().manual_seed(3))
    for threshold in (0.5, 0.9, torch.linspace(0.1, 0.9, 6)):
        t = torch.as_tensor(threshold).expand(6)
        expected = [[j for j in range(6) if 1/(1 + (-x[j]).exp()) > t[j]] for x in logits]
        assert binomial_decode(logits, threshold=threshold) == expected
    numbers_of_labels = {min(len(decoded), 2) for decoded in binomial_decode(logits, threshold=0.7)}
    assert numbers_of_labels == {0, 1, 2}


def test_decoder_takes_what_a_model_returns():
    logits = torch.nn.Linear(4, 3)(torch.randn(2, 4))   # with a gradient
    assert len(binomial_decode(logits, names=('a', 'b', 'c'))) == 2
    assert binomial_decode(torch.tensor([[torch.inf, -torch.inf]])) == [[0]]
    for threshold in (0, 1, -0.5, torch.nan):
        with pytest.raises(ValueError, match='between 0 and 1'):
            binomial_decode(logits, threshold=threshold)


def test_metric_equals_torchmetrics():
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 3, generator=g)*3
    targets = torch.randint(2, (40, 3), generator=g)
    all_right = (targets*2 - 1)*logits.abs()
    logits = torch.where(torch.rand(40, 1, generator=g) < 0.5, all_right, logits)
    for threshold in (0.3, 0.5):
        theirs = multilabel_exact_match(logits, targets, 3, threshold=threshold)
        assert exact_match(logits, targets, threshold=threshold) == theirs


def test_in_a_learner_with_unequal_batches():
    "The mean over batches is the loss of the whole set, for targets that are labels, and as a sum"
    learn = tiny_learner(loss_func=binomial_loss)
    learn.data.valid_dl[-1] = tuple(t[:2] for t in learn.data.valid_dl[-1])
    xb, yb = (torch.cat(t) for t in zip(*learn.data.valid_dl))
    stats = AvgStatsCallback(exact_match)

    def row_and_predictions():
        run = Runner(stats)
        run.fit(1, learn)
        with torch.no_grad(): return run.metrics, learn.model(xb)

    row, pred = row_and_predictions()
    assert row['valid_loss'] == pytest.approx(binomial_loss(pred, yb).item(), abs=1e-6)
    assert row['valid_exact_match'] == pytest.approx(exact_match(pred, yb).item())

    learn.loss_func = partial(binomial_loss, reduction='sum')
    row, pred = row_and_predictions()
    total = binomial_loss(pred, yb, reduction='sum').item()
    assert row['valid_loss'] == pytest.approx(total/7, rel=1e-5)
