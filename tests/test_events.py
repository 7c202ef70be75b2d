"The table event x exception, cell by cell, written out by hand; and what holds in every cell."
import copy
import itertools
import signal
import traceback

import pytest
import torch
from helpers import Raiser, Tracer, make_callback, tiny_learner
from torch import nn

from minifastai.callbacks import (
    Callback, CancelBatchException, CancelEpochException, CancelTrainException, EVENTS)
from minifastai.learner import Runner

TRAIN = ['begin_batch', 'after_pred', 'after_loss', 'after_backward', 'begin_step', 'after_step',
         'after_batch', 'cleanup_batch']
VALID = ['begin_batch', 'after_pred', 'after_loss', 'after_batch', 'cleanup_batch']
EPOCH = ['begin_epoch', *TRAIN*3, 'begin_validate', *VALID*2, 'after_validate',
         'cleanup_validate', 'after_epoch', 'cleanup_epoch']
CANCELS = {
    'after_cancel_batch': CancelBatchException,
    'after_cancel_epoch': CancelEpochException,
    'after_cancel_train': CancelTrainException,
}


def test_plain_fit():
    tracer = Tracer()
    Runner(tracer).fit(2, tiny_learner())
    assert tracer.trace == ['begin_fit', *EPOCH, *EPOCH, 'after_fit']


# What is heard after the exception, up to and including the first event of what the loop does next.
# Events by which the batch, pass or epoch is left are written out, so each cell is exact.
# B, E, T stand for the three cancels.
B, E, T = CANCELS
OVER = 'is running'    # the error: there is no such phase to cancel
LEAVE_FIT = [T, 'after_fit']
LEAVE_EPOCH = ['cleanup_epoch', *LEAVE_FIT]

IN_BATCH = {
    CancelBatchException: [B, 'cleanup_batch', 'begin_batch'],
    CancelEpochException: ['cleanup_batch', E, 'begin_validate'],
    CancelTrainException: ['cleanup_batch', *LEAVE_EPOCH],
}
BATCH_IS_DONE = {**IN_BATCH, CancelBatchException: ['cleanup_batch', 'begin_batch']}

EXPECTED = {
    'begin_fit': {
        CancelBatchException: OVER,
        CancelEpochException: OVER,
        CancelTrainException: LEAVE_FIT,
    },
    'begin_epoch': {
        CancelBatchException: OVER,
        CancelEpochException: [E, 'cleanup_epoch', 'begin_epoch'],
        CancelTrainException: LEAVE_EPOCH,
    },
    'begin_batch': IN_BATCH,
    'after_pred': IN_BATCH,
    'after_loss': IN_BATCH,
    'after_backward': IN_BATCH,
    'begin_step': IN_BATCH,
    'after_step': IN_BATCH,
    'after_batch': BATCH_IS_DONE,
    'after_cancel_batch': BATCH_IS_DONE,
    'cleanup_batch': {
        CancelBatchException: ['begin_batch'],
        CancelEpochException: [E, 'begin_validate'],
        CancelTrainException: LEAVE_EPOCH,
    },
    'begin_validate': {
        CancelBatchException: OVER,
        CancelEpochException: [E, 'cleanup_validate', 'after_epoch'],
        CancelTrainException: ['cleanup_validate', *LEAVE_EPOCH],
    },
    'after_validate': {
        CancelBatchException: OVER,
        CancelEpochException: ['cleanup_validate', 'after_epoch'],
        CancelTrainException: ['cleanup_validate', *LEAVE_EPOCH],
    },
    'cleanup_validate': {
        CancelBatchException: OVER,
        CancelEpochException: ['after_epoch'],
        CancelTrainException: LEAVE_EPOCH,
    },
    'after_cancel_epoch': {
        CancelBatchException: OVER,
        CancelEpochException: ['begin_validate'],
        CancelTrainException: LEAVE_EPOCH,
    },
    'after_epoch': {
        CancelBatchException: OVER,
        CancelEpochException: ['cleanup_epoch', 'begin_epoch'],
        CancelTrainException: LEAVE_EPOCH,
    },
    'cleanup_epoch': {
        CancelBatchException: OVER,
        CancelEpochException: ['begin_epoch'],
        CancelTrainException: LEAVE_FIT,
    },
    'after_cancel_train': {
        CancelBatchException: OVER,
        CancelEpochException: OVER,
        CancelTrainException: ['after_fit'],
    },
    'after_fit': {
        CancelBatchException: OVER,
        CancelEpochException: OVER,
        CancelTrainException: [],
    },
}


def fit_raising(event, exc, *cbs, epochs=2):
    """A fit in which `exc` is raised once at `event`. Returns learner, trace, error and runner.

    The tracer comes before the raiser in order, so it is told of everything.
    """
    trace = []
    learn = tiny_learner()
    first = CANCELS[event]() if event in CANCELS else None
    raiser = Raiser(event, exc, first=first, trace=trace, order=1)
    run = Runner([Tracer(trace), raiser, *cbs])
    try: run.fit(epochs, learn)
    except BaseException as e: return learn, trace, e, run
    return learn, trace, None, run


def after_mark(trace): return trace[trace.index('!')+1:]


def check_invariants(trace, learn):
    """What holds however a fit ended.

    What began was cleaned up, innermost first; no gradient is left; grad mode is as before.
    """
    cleanups = {'begin_batch': 'cleanup_batch', 'begin_validate': 'cleanup_validate',
                'begin_epoch': 'cleanup_epoch', 'begin_fit': 'after_fit'}
    stack = []
    for event in trace:
        if event in cleanups: stack.append(cleanups[event])
        elif event in cleanups.values(): assert stack.pop() == event
    assert not stack
    assert all(p.grad is None for p in learn.model.parameters())
    assert torch.is_grad_enabled()


def class_name(cls): return cls.__name__


@pytest.mark.parametrize('cancel', CANCELS.values(), ids=class_name)
@pytest.mark.parametrize('event', EVENTS)
def test_cancel_at_event(event, cancel):
    learn, trace, error, run = fit_raising(event, cancel())
    expected = EXPECTED[event][cancel]
    if expected == OVER:
        assert isinstance(error, RuntimeError)
        assert OVER in str(error)
        assert cancel.__name__ in str(error)
        assert isinstance(error.__cause__, cancel)
    else:
        assert error is None
        # A clean-up goes from last to first: the raiser, of order 1, comes before the tracer,
        # which hears it after the '!'
        if event.startswith('cleanup') or event == 'after_fit': expected = [event, *expected]
        assert after_mark(trace)[:len(expected)] == expected
    check_invariants(trace, learn)


ERRORS = [ValueError('it fails'), KeyboardInterrupt(), SystemExit(3), RuntimeError('so does this'),
          StopIteration('not a loop')]


def type_name(e): return type(e).__name__


@pytest.mark.parametrize('exc', ERRORS, ids=type_name)
@pytest.mark.parametrize('event', EVENTS)
def test_error_at_event(event, exc):
    learn, trace, error, run = fit_raising(event, exc)
    assert error is exc
    is_open = {
        'cleanup_batch': event in (*TRAIN, 'after_cancel_batch'),
        'cleanup_validate': event in ('begin_validate', 'after_validate', 'cleanup_validate'),
        'cleanup_epoch': event not in ('begin_fit', 'after_cancel_train', 'after_fit'),
    }
    cleanups = [cleanup for cleanup, needed in is_open.items() if needed]
    assert after_mark(trace) == [*cleanups, 'after_fit']
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


@pytest.mark.parametrize('exc', ERRORS[:2], ids=type_name)
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


@pytest.mark.parametrize('event', EVENTS)
def test_learner_trains_on_after_any_exception(event):
    "Nothing is left in a state in which the next fit would differ"
    for exc in (CancelTrainException(), ValueError()):
        learn, trace, error, run = fit_raising(event, exc)
        tracer = Tracer()
        train_eval = [cb for cb in run.cbs if type(cb).__name__ == 'TrainEvalCallback']
        run.cbs = [*train_eval, tracer]
        run.fit(1, learn)
        assert tracer.trace == ['begin_fit', *EPOCH, 'after_fit']


CLEANUPS = dict(
    begin_fit='after_fit',
    begin_epoch='cleanup_epoch',
    begin_validate='cleanup_validate',
    begin_batch='cleanup_batch')


def noting(cleanup, heard, name, order):
    "A callback that appends its name to `heard` at `cleanup`"
    return make_callback('C', **{cleanup: lambda self: heard.append(name)}, _order=order, name=name)


def test_cleanup_reaches_exactly_the_callbacks_that_were_told():
    "By place in order, whether or not they listen to the beginning; last one first"
    for phase, cleanup in CLEANUPS.items():
        heard = []
        cbs = [noting(cleanup, heard, 'last', 3),
               noting(cleanup, heard, 'first', 1),
               Raiser(phase, ValueError(), order=2),
               noting(cleanup, heard, 'zeroth', 0)]
        with pytest.raises(ValueError): Runner(cbs).fit(1, tiny_learner())
        assert heard[-2:] == ['first', 'zeroth'], phase
        assert heard.count('last') == 0, phase


def test_a_canceller_is_cleaned_up_itself():
    class Stop(Callback):
        def begin_fit(self):
            self.opened = True
            raise CancelTrainException()
        def after_fit(self): self.opened = False
    run = Runner(Stop())
    run.fit(1, tiny_learner())
    assert run.stop.opened is False


def test_a_wider_cancel_while_cancelling_cleans_up_no_more():
    """`last` never began, so it is not cleaned up.

    Neither the cancel at the beginning nor the one raised while announcing it may count it in.
    """
    heard = []
    cbs = [Raiser('after_cancel_batch', CancelTrainException(), name='widen', order=-1),
           Raiser('begin_batch', CancelBatchException(), order=0),
           noting('cleanup_batch', heard, 'last', 1),
           noting('cleanup_batch', heard, 'first', -2)]
    Runner(cbs).fit(1, tiny_learner())
    assert heard == ['first']


def test_everyone_hears_of_a_cancel():
    "Also callbacks that come later in order than the one that cancelled"
    for event, cancel, announced in (
        ('begin_batch', CancelBatchException(), B),
        ('begin_epoch', CancelEpochException(), E),
        ('begin_fit', CancelTrainException(), T),
    ):
        before = Tracer(name='before')
        after = Tracer(name='after', order=2)
        Runner([before, after, Raiser(event, cancel, order=1)]).fit(1, tiny_learner())
        assert ('before', announced) in before.trace
        assert ('after', announced) in after.trace


END_OF_VALIDATION = ['cleanup_batch', E, 'cleanup_validate', 'after_epoch', 'cleanup_epoch',
                     'begin_epoch']
BATCH_CANCELLED_IN_VALIDATION = {
    'begin_batch': [B, 'cleanup_batch', 'begin_batch'],
    'after_pred': [B, 'cleanup_batch', 'begin_batch'],
    'after_loss': [B, 'cleanup_batch', 'begin_batch'],
    'after_batch': ['cleanup_batch', 'begin_batch'],
    'cleanup_batch': ['cleanup_batch', 'begin_batch'],
}


@pytest.mark.parametrize('cancel', CANCELS.values(), ids=class_name)
@pytest.mark.parametrize('event', BATCH_CANCELLED_IN_VALIDATION)
def test_cancel_in_a_validation_batch(event, cancel):
    trace = []
    learn = tiny_learner()
    # the fourth batch is the first of validation
    run = Runner([Tracer(trace), Raiser(event, cancel(), nth=4, trace=trace, order=1)])
    run.fit(2, learn)
    expected = {
        CancelBatchException: BATCH_CANCELLED_IN_VALIDATION[event],
        CancelEpochException: END_OF_VALIDATION,
        CancelTrainException: ['cleanup_batch', 'cleanup_validate', *LEAVE_EPOCH],
    }[cancel]
    assert after_mark(trace)[:len(expected)] == expected
    check_invariants(trace, learn)


@pytest.mark.parametrize('cancel', CANCELS.values(), ids=class_name)
@pytest.mark.parametrize('event', ['after_batch', 'after_epoch'])
def test_everyone_hears_of_an_end(event, cancel):
    """Whatever a callback before in order cancels, callbacks hear that the work is done.

    A callback that keeps count has to.
    """
    if (event, cancel) == ('after_epoch', CancelBatchException): return
    after = Tracer(order=2)
    Runner([after, Raiser(event, cancel(), order=1)]).fit(1, tiny_learner())
    assert event in after.trace
    ends_epoch = not (event == 'after_batch' and cancel is CancelTrainException)
    assert after.trace.count('after_epoch') == int(ends_epoch)


def test_wider_cancel_prevails():
    "Of two cancels under way at once, the one that ends more"
    trace = []
    cbs = [Tracer(trace),
           Raiser('after_loss', CancelEpochException(), name='a'),
           Raiser('cleanup_batch', CancelTrainException(), name='b')]
    Runner(cbs).fit(2, tiny_learner())
    assert trace[-2:] == [T, 'after_fit']
    assert E not in trace


@pytest.mark.parametrize('first, second', [
    (CancelEpochException, CancelTrainException),
    (CancelTrainException, CancelEpochException),
])
def test_of_two_cancels_at_one_event_the_wider_prevails(first, second):
    trace = []
    cbs = [Tracer(trace),
           Raiser('after_batch', first(), name='first', order=1),
           Raiser('after_batch', second(), name='second', order=2)]
    Runner(cbs).fit(2, tiny_learner())
    assert trace[-2:] == [T, 'after_fit']
    assert E not in trace


def test_lost_error_is_noted():
    class Bad(Callback):
        def after_fit(self): raise AttributeError('hidden?')
    raiser = Raiser('after_loss', ValueError('first'))
    with pytest.raises(ValueError) as info: Runner([Bad(), raiser]).fit(1, tiny_learner())
    if not hasattr(info.value, 'add_note'): return   # Python 3.10
    assert any('hidden?' in note and 'after_fit' in note for note in info.value.__notes__)


def test_a_traceback_ends_with_the_first_error_and_its_note():
    class Bad(Callback):
        def after_fit(self): raise AttributeError('hidden?')
    raiser = Raiser('after_loss', ValueError('first'))
    with pytest.raises(ValueError) as info: Runner([Bad(), raiser]).fit(1, tiny_learner())
    text = ''.join(traceback.format_exception(info.value))
    assert 'During handling' not in text
    *_, last = [line for line in text.splitlines() if not line.startswith('While cleaning up')]
    assert last == 'ValueError: first'


# --- the model's mode

@pytest.mark.parametrize('exc', [*CANCELS.values(), ValueError, KeyboardInterrupt])
@pytest.mark.parametrize('event', EVENTS)
def test_the_model_is_in_evaluation_mode_however_a_fit_ends(event, exc):
    "Unless no epoch has begun: then the mode is what it was"
    for order, not_begun in ((-5, ('begin_fit', 'begin_epoch')), (0, ('begin_fit',))):
        learn = tiny_learner(model=nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.1)))
        if event in not_begun and exc is CancelEpochException: continue   # the next one begins
        try: Runner(Raiser(event, exc(), order=order)).fit(2, learn)
        except BaseException as e: assert isinstance(e, (exc, RuntimeError))
        modes = [m.training for m in learn.model.modules()]
        assert modes == [event in not_begun]*3


def test_the_mode_after_a_fit_without_validation():
    learn = tiny_learner()
    learn.data.valid_dl = None
    Runner().fit(1, learn)
    assert not learn.model.training


def test_only_completed_batches_count_as_iterations():
    class Count(Callback):
        def begin_fit(self): self.n = 0
        def after_batch(self): self.n += self.in_train
    for event in TRAIN[:-2]:
        run = Runner([Count(), Raiser(event, CancelBatchException(), nth=2, order=-1)])
        run.fit(1, tiny_learner())
        assert run.count.n == run.n_iter == 2
        assert run.n_epochs == pytest.approx(1.)


def test_cancelled_gradients_do_not_reach_the_next_batch():
    "Cancelling the second batch after its backward is the same as never having had it"
    torch.manual_seed(0)
    weights = nn.Linear(4, 3).state_dict()
    def trained(without_second, cbs=None):
        learn = tiny_learner()
        learn.model.load_state_dict(weights)
        if without_second: del learn.data.train_dl[1]
        Runner(cbs).fit(1, learn)
        return learn.model.weight
    cancel_second = Raiser('after_backward', CancelBatchException(), nth=2)
    assert torch.equal(trained(True), trained(False, cancel_second))


def test_true_skips_exactly_its_phase():
    def trace_of_skipping(event):
        tracer = Tracer()
        skip = make_callback('Skip', **{event: lambda self: True})
        Runner([skip, tracer]).fit(1, tiny_learner())
        return tracer.trace

    assert trace_of_skipping('begin_epoch') == [
        'begin_fit', 'begin_epoch', 'begin_validate', *VALID*2, 'after_validate',
        'cleanup_validate', 'after_epoch', 'cleanup_epoch', 'after_fit']
    assert trace_of_skipping('begin_validate') == [
        'begin_fit', 'begin_epoch', *TRAIN*3, 'begin_validate', 'after_validate',
        'cleanup_validate', 'after_epoch', 'cleanup_epoch', 'after_fit']
    without = [event for event in EPOCH if event not in ('begin_step', 'after_step')]
    assert trace_of_skipping('begin_step') == ['begin_fit', *without, 'after_fit']
    for event in set(EVENTS) - {'begin_epoch', 'begin_validate', 'begin_step'}:
        # nowhere else does a result mean anything
        assert trace_of_skipping(event) == ['begin_fit', *EPOCH, 'after_fit']


def test_a_real_ctrl_c_removes_hooks():
    class Hooked(Callback):
        def begin_fit(self):
            self.handle = self.model.register_forward_hook(lambda *args: None)
        def after_loss(self):
            if self.n_iter == 1: signal.raise_signal(signal.SIGINT)
        def after_fit(self): self.handle.remove()

    learn = tiny_learner()
    # as Python sets it up: a process that was started in the background ignores it
    was = signal.signal(signal.SIGINT, signal.default_int_handler)
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

    learners = [tiny_learner(model=Failing(4, 3)), tiny_learner(loss_func=bad_loss), tiny_learner()]
    learners[-1].data.train_dl = bad_data()
    for learn in learners:
        tracer = Tracer()
        with pytest.raises(ArithmeticError): Runner(tracer).fit(1, learn)
        check_invariants(tracer.trace, learn)


def test_order_and_ties():
    trace = []
    places = [('c', 1), ('a', -1), ('d', 1), ('b', 0)]
    Runner([Tracer(trace, name, order) for name, order in places]).fit(1, tiny_learner())
    for event, heard in itertools.groupby(trace, key=lambda entry: entry[1]):
        in_reverse = event.startswith('cleanup') or event == 'after_fit'
        expected = 'dcba' if in_reverse else 'abcd'
        assert ''.join(name for name, _ in heard) == expected


def test_unknown_event():
    with pytest.raises(ValueError, match="no event 'after_bacth'. Did you mean 'after_batch'"):
        Runner()('after_bacth')


def test_who_fails_to_begin_is_not_cleaned_up():
    "An error at the beginning says that nothing was opened; a cancel is raised on purpose"
    for phase, cleanup in CLEANUPS.items():
        heard = []
        def fail(self): raise ZeroDivisionError
        handlers = {phase: fail, cleanup: lambda self: heard.append(cleanup)}
        cb = make_callback(**handlers)
        with pytest.raises(ZeroDivisionError): Runner(cb).fit(1, tiny_learner())
        assert heard == [], phase


def test_gradients_from_before_the_fit_do_not_count():
    "The first step is made with the gradient of the first batch alone"
    learn = tiny_learner(n_train=1)
    again = copy.deepcopy(learn.model)
    for p in learn.model.parameters(): p.grad = torch.ones_like(p)
    Runner().fit(1, learn)
    Runner().fit(1, tiny_learner(n_train=1, model=again))
    for p, q in zip(learn.model.parameters(), again.parameters()): assert torch.equal(p, q)
