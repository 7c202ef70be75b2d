"The table event x exception, cell by cell, against expectations written out by hand; and what holds in every cell."
import itertools
import signal

import pytest
import torch
from helpers import Raiser, Tracer, tiny_learner
from torch import nn

from minifastai.callbacks import (
    Callback, CancelBatchException, CancelEpochException, CancelTrainException, EVENTS)
from minifastai.learner import Runner

TRAIN = 'begin_batch after_pred after_loss after_backward after_step after_batch cleanup_batch'.split()
VALID = 'begin_batch after_pred after_loss after_batch cleanup_batch'.split()
EPOCH = ['begin_epoch', *TRAIN*3, 'begin_validate', *VALID*2, 'cleanup_validate', 'after_epoch', 'cleanup_epoch']
CANCELS = dict(after_cancel_batch=CancelBatchException, after_cancel_epoch=CancelEpochException, after_cancel_train=CancelTrainException)


def test_plain_fit():
    tracer = Tracer()
    Runner(tracer).fit(2, tiny_learner())
    assert tracer.trace == ['begin_fit', *EPOCH, *EPOCH, 'after_fit']


# What is heard after the exception, up to and including the first event of what the loop does next. Events by which the batch, pass or epoch
# is left are written out, so each cell is exact. B, E, T stand for the three cancels.
B, E, T = 'after_cancel_batch', 'after_cancel_epoch', 'after_cancel_train'
OVER = 'is running'    # the error: there is no such phase to cancel
leave_fit = [T, 'after_fit']
in_batch = {
    CancelBatchException: [B, 'cleanup_batch', 'begin_batch'],
    CancelEpochException: ['cleanup_batch', E, 'begin_validate'],
    CancelTrainException: ['cleanup_batch', 'cleanup_epoch', *leave_fit]}
EXPECTED = {
    'begin_fit': {CancelBatchException: OVER, CancelEpochException: OVER, CancelTrainException: leave_fit},
    'begin_epoch': {CancelBatchException: OVER, CancelEpochException: [E, 'cleanup_epoch', 'begin_epoch'], CancelTrainException: ['cleanup_epoch', *leave_fit]},
    **dict.fromkeys('begin_batch after_pred after_loss after_backward after_step'.split(), in_batch),
    'after_batch': {**in_batch, CancelBatchException: ['cleanup_batch', 'begin_batch']},
    'after_cancel_batch': {**in_batch, CancelBatchException: ['cleanup_batch', 'begin_batch']},
    'cleanup_batch': {CancelBatchException: ['begin_batch'], CancelEpochException: [E, 'begin_validate'], CancelTrainException: ['cleanup_epoch', *leave_fit]},
    'begin_validate': {CancelBatchException: OVER, CancelEpochException: [E, 'cleanup_validate', 'after_epoch'],
                       CancelTrainException: ['cleanup_validate', 'cleanup_epoch', *leave_fit]},
    'cleanup_validate': {CancelBatchException: OVER, CancelEpochException: ['after_epoch'], CancelTrainException: ['cleanup_epoch', *leave_fit]},
    'after_cancel_epoch': {CancelBatchException: OVER, CancelEpochException: ['begin_validate'], CancelTrainException: ['cleanup_epoch', *leave_fit]},
    'after_epoch': {CancelBatchException: OVER, CancelEpochException: ['cleanup_epoch', 'begin_epoch'], CancelTrainException: ['cleanup_epoch', *leave_fit]},
    'cleanup_epoch': {CancelBatchException: OVER, CancelEpochException: ['begin_epoch'], CancelTrainException: leave_fit},
    'after_cancel_train': {CancelBatchException: OVER, CancelEpochException: OVER, CancelTrainException: ['after_fit']},
    'after_fit': {CancelBatchException: OVER, CancelEpochException: OVER, CancelTrainException: []},
}


def fit_raising(event, exc, *cbs, epochs=2):
    "A fit in which `exc` is raised once at `event`; a tracer before the raiser in order, so it is told of everything. Returns learner, trace, error"
    trace, learn = [], tiny_learner()
    run = Runner([Tracer(trace), Raiser(event, exc, first=CANCELS[event]() if event in CANCELS else None, trace=trace, order=1), *cbs])
    try: run.fit(epochs, learn)
    except BaseException as e: return learn, trace, e, run
    return learn, trace, None, run


@pytest.mark.parametrize('cancel', CANCELS.values(), ids=lambda c: c.__name__)
@pytest.mark.parametrize('event', EVENTS)
def test_cancel_at_event(event, cancel):
    learn, trace, error, run = fit_raising(event, cancel())
    expected = EXPECTED[event][cancel]
    if expected == OVER:
        assert isinstance(error, RuntimeError) and OVER in str(error) and cancel.__name__ in str(error) and isinstance(error.__cause__, cancel)
    else:
        assert error is None
        then = trace[trace.index('!')+1:]
        # a clean-up goes from last to first: the raiser, of order 1, comes before the tracer, which hears it after the '!'
        if event.startswith('cleanup') or event == 'after_fit': expected = [event, *expected]
        assert then[:len(expected)] == expected
    check_invariants(trace, learn)


ERRORS = [ValueError('it fails'), KeyboardInterrupt(), SystemExit(3), RuntimeError('so does this'), StopIteration('not a loop')]
@pytest.mark.parametrize('exc', ERRORS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize('event', EVENTS)
def test_error_at_event(event, exc):
    learn, trace, error, run = fit_raising(event, exc)
    assert error is exc
    open_ones = {'cleanup_batch': event in (*TRAIN, 'after_cancel_batch'), 'cleanup_epoch': event not in ('begin_fit', 'after_cancel_train', 'after_fit'),
                 'cleanup_validate': event in ('begin_validate', 'cleanup_validate')}
    then = trace[trace.index('!')+1:]
    assert then == [e for e in ('cleanup_batch', 'cleanup_validate', 'cleanup_epoch') if open_ones[e]] + ['after_fit']
    check_invariants(trace, learn)


class BadCleanups(Callback):
    "Fails in every clean-up, once something has happened that is to be cleaned up"
    _order = -1
    def cleanup_batch(self): self._fail()
    def cleanup_validate(self): self._fail()
    def cleanup_epoch(self): self._fail()
    def after_fit(self): self._fail()
    def _fail(self):
        if '!' in self.raiser.trace: raise AttributeError('while cleaning up')


@pytest.mark.parametrize('exc', ERRORS[:2], ids=lambda e: type(e).__name__)
@pytest.mark.parametrize('event', EVENTS)
def test_first_error_wins_over_cleanup(event, exc):
    learn, trace, error, run = fit_raising(event, exc, BadCleanups())
    assert error is exc
    check_invariants(trace, learn)


@pytest.mark.parametrize('event', EVENTS)
def test_error_in_cleanup_is_not_lost_to_a_cancel(event):
    learn, trace, error, run = fit_raising(event, CancelTrainException(), BadCleanups())
    assert isinstance(error, AttributeError)
    check_invariants(trace, learn)


def check_invariants(trace, learn):
    "What holds however a fit ended: what began was cleaned up, innermost first; no gradient is left; grad mode is as before"
    cleanups = dict(begin_batch='cleanup_batch', begin_validate='cleanup_validate', begin_epoch='cleanup_epoch', begin_fit='after_fit')
    stack = []
    for event in trace:
        if event in cleanups: stack.append(cleanups[event])
        elif event in cleanups.values(): assert stack.pop() == event
    assert not stack
    assert all(p.grad is None for p in learn.model.parameters())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize('event', EVENTS)
def test_learner_trains_on_after_any_exception(event):
    "Nothing is left in a state in which the next fit would differ"
    for exc in (CancelTrainException(), ValueError()):
        learn, trace, error, run = fit_raising(event, exc)
        tracer = Tracer()
        run.cbs = [cb for cb in run.cbs if type(cb).__name__ == 'TrainEvalCallback'] + [tracer]
        run.fit(1, learn)
        assert tracer.trace == ['begin_fit', *EPOCH, 'after_fit']


def test_cleanup_reaches_exactly_the_callbacks_that_were_told():
    "By place in order, whether or not they listen to the beginning; last one first"
    for phase, cleanup in dict(begin_fit='after_fit', begin_epoch='cleanup_epoch', begin_validate='cleanup_validate', begin_batch='cleanup_batch').items():
        heard = []
        def closer(name, order): return type('C', (Callback,), {cleanup: lambda self: heard.append(name), '_order': order, 'name': name})()
        with pytest.raises(ValueError): Runner([closer('last', 3), closer('first', 1), Raiser(phase, ValueError(), order=2), closer('zeroth', 0)]).fit(1, tiny_learner())
        assert heard[-2:] == ['first', 'zeroth'] and heard.count('last') == 0, phase


def test_a_canceller_is_cleaned_up_itself():
    class Stop(Callback):
        def begin_fit(self): self.opened = True; raise CancelTrainException()
        def after_fit(self): self.opened = False
    run = Runner(Stop())
    run.fit(1, tiny_learner())
    assert run.stop.opened is False


def test_a_wider_cancel_while_cancelling_cleans_up_no_more():
    "`last` never began: neither the cancel at the beginning nor the one raised while announcing it may count it in"
    heard = []
    def note(name, order): return type('C', (Callback,), {'cleanup_batch': lambda self: heard.append(name), '_order': order, 'name': name})()
    widen = Raiser('after_cancel_batch', CancelTrainException(), name='widen', order=-1)
    Runner([widen, Raiser('begin_batch', CancelBatchException(), order=0), note('last', 1), note('first', -2)]).fit(1, tiny_learner())
    assert heard == ['first']


def test_everyone_hears_of_a_cancel():
    "Also those who come later in order than whoever cancelled"
    for event, cancel, announced in (('begin_batch', CancelBatchException(), B), ('begin_epoch', CancelEpochException(), E), ('begin_fit', CancelTrainException(), T)):
        before, after = Tracer(name='before'), Tracer(name='after', order=2)
        Runner([before, after, Raiser(event, cancel, order=1)]).fit(1, tiny_learner())
        assert ('before', announced) in before.trace and ('after', announced) in after.trace


IN_VALIDATION = {
    **dict.fromkeys('begin_batch after_pred after_loss'.split(), {CancelBatchException: [B, 'cleanup_batch', 'begin_batch']}),
    'after_batch': {CancelBatchException: ['cleanup_batch', 'begin_batch']},
    'cleanup_batch': {CancelBatchException: ['cleanup_batch', 'begin_batch'], CancelEpochException: ['cleanup_batch', E, 'cleanup_validate', 'after_epoch', 'cleanup_epoch', 'begin_epoch']}}


@pytest.mark.parametrize('cancel', CANCELS.values(), ids=lambda c: c.__name__)
@pytest.mark.parametrize('event', IN_VALIDATION)
def test_cancel_in_a_validation_batch(event, cancel):
    trace, learn = [], tiny_learner()
    run = Runner([Tracer(trace), Raiser(event, cancel(), nth=4, trace=trace, order=1)])   # the fourth batch is the first of validation
    run.fit(2, learn)
    expected = IN_VALIDATION[event].get(cancel) or {
        CancelEpochException: ['cleanup_batch', E, 'cleanup_validate', 'after_epoch', 'cleanup_epoch', 'begin_epoch'],
        CancelTrainException: ['cleanup_batch', 'cleanup_validate', 'cleanup_epoch', *leave_fit]}[cancel]
    assert trace[trace.index('!')+1:][:len(expected)] == expected
    check_invariants(trace, learn)


@pytest.mark.parametrize('cancel', CANCELS.values(), ids=lambda c: c.__name__)
@pytest.mark.parametrize('event', ['after_batch', 'after_epoch'])
def test_everyone_hears_of_an_end(event, cancel):
    "The work is done, whatever a callback before in order cancels: who keeps count has to hear of it"
    if (event, cancel) == ('after_epoch', CancelBatchException): return
    after = Tracer()
    after._order = 2
    Runner([after, Raiser(event, cancel(), order=1)]).fit(1, tiny_learner())
    assert event in after.trace and after.trace.count('after_epoch') == 1 - (event == 'after_batch' and cancel is CancelTrainException)


def test_wider_cancel_prevails():
    "Of two cancels under way at once, the one that ends more"
    trace = []
    Runner([Tracer(trace), Raiser('after_loss', CancelEpochException(), name='a'), Raiser('cleanup_batch', CancelTrainException(), name='b')]).fit(2, tiny_learner())
    assert trace[-2:] == [T, 'after_fit'] and E not in trace


def test_lost_error_is_noted():
    class Bad(Callback):
        def after_fit(self): raise AttributeError('hidden?')
    with pytest.raises(ValueError) as info: Runner([Bad(), Raiser('after_loss', ValueError('first'))]).fit(1, tiny_learner())
    if hasattr(info.value, 'add_note'): assert any('hidden?' in note and 'after_fit' in note for note in info.value.__notes__)


def test_only_completed_batches_count():
    class Count(Callback):
        def begin_fit(self): self.n = 0
        def after_batch(self): self.n += self.in_train
    for event in TRAIN[:-2]:
        run = Runner([Count(), Raiser(event, CancelBatchException(), nth=2, order=-1)])
        run.fit(1, tiny_learner())
        assert run.count.n == run.n_iter == 2
        assert run.n_epochs == pytest.approx(2/3)


def test_cancelled_gradients_do_not_reach_the_next_batch():
    "Leaving out the second batch after its backward is the same as never having had it"
    torch.manual_seed(0)
    weights = nn.Linear(4, 3).state_dict()
    def trained(skip):
        learn = tiny_learner()
        learn.model.load_state_dict(weights)
        if skip: del learn.data.train_dl[1]
        Runner(None if skip else Raiser('after_backward', CancelBatchException(), nth=2)).fit(1, learn)
        return learn.model.weight
    assert torch.equal(trained(True), trained(False))


def test_true_skips_exactly_its_phase():
    def skipper(event): return type('Skip', (Callback,), {event: lambda self: True})()
    tracer = Tracer()
    Runner([skipper('begin_epoch'), tracer]).fit(1, tiny_learner())
    assert tracer.trace == ['begin_fit', 'begin_epoch', 'begin_validate', *VALID*2, 'cleanup_validate', 'after_epoch', 'cleanup_epoch', 'after_fit']
    tracer = Tracer()
    Runner([skipper('begin_validate'), tracer]).fit(1, tiny_learner())
    assert tracer.trace == ['begin_fit', 'begin_epoch', *TRAIN*3, 'begin_validate', 'cleanup_validate', 'after_epoch', 'cleanup_epoch', 'after_fit']
    for event in set(EVENTS) - {'begin_epoch', 'begin_validate'}:  # nowhere else does a result mean anything
        tracer = Tracer()
        Runner([skipper(event), tracer]).fit(1, tiny_learner())
        assert tracer.trace == ['begin_fit', *EPOCH, 'after_fit']


def test_a_real_ctrl_c_removes_hooks():
    was = signal.signal(signal.SIGINT, signal.default_int_handler)   # tests started in the background ignore it
    class Hooked(Callback):
        def begin_fit(self): self.handle = self.model.register_forward_hook(lambda *a: None)
        def after_loss(self):
            if self.n_iter == 1: signal.raise_signal(signal.SIGINT)
        def after_fit(self): self.handle.remove()
    learn = tiny_learner()
    try:
        with pytest.raises(KeyboardInterrupt): Runner(Hooked()).fit(1, learn)
    finally: signal.signal(signal.SIGINT, was)
    assert not learn.model._forward_hooks


def test_errors_of_model_loss_optimizer_and_data_clean_up_as_well():
    class Failing(nn.Linear):
        def forward(self, x): raise ArithmeticError('model')
    def bad_loss(pred, yb): raise ArithmeticError('loss')
    def bad_data():
        yield torch.randn(5, 4), torch.randint(3, (5,))
        raise ArithmeticError('data')
    for learn in (tiny_learner(model=Failing(4, 3)), tiny_learner(loss_func=bad_loss), tiny_learner()):
        if learn.loss_func is not bad_loss and type(learn.model) is nn.Linear: learn.data.train_dl = bad_data()
        tracer = Tracer()
        with pytest.raises(ArithmeticError): Runner(tracer).fit(1, learn)
        check_invariants(tracer.trace, learn)


def test_order_and_ties():
    trace = []
    cbs = [Tracer(trace, name, order) for name, order in (('c', 1), ('a', -1), ('d', 1), ('b', 0))]
    Runner(cbs).fit(1, tiny_learner())
    for _, heard in itertools.groupby(trace, key=lambda o: o[1]):
        heard = list(heard)
        expected = 'dcba' if heard[0][1].startswith('cleanup') or heard[0][1] == 'after_fit' else 'abcd'
        assert ''.join(name for name, _ in heard) == expected


def test_unknown_event():
    with pytest.raises(ValueError, match="no event 'after_bacth'. Did you mean 'after_batch'"): Runner()('after_bacth')
