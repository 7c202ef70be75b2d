"""What must hold for any input, tried on inputs that nobody thought of.

MINIFASTAI_STORMS=1 tries ten times as many. MINIFASTAI_FUZZ=10000 tries so many for each test,
others each time.
"""
import math
import os

import numpy as np
import pytest
import torch
from helpers import storm, tiny_learner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minifastai.datasets import parse_idx
from minifastai.callbacks import (
    Callback, CancelBatchException, CancelEpochException, CancelTrainException, EVENTS)
from minifastai.learner import Runner
from minifastai.schedules import combine_scheds, sched_cos, sched_exp, sched_lin, sched_no
from minifastai.hooks import ListContainer
from minifastai.activations import ActivationStats

settings.register_profile(
    'minifastai',
    max_examples=storm(50, 500, 'MINIFASTAI_FUZZ'),
    derandomize='MINIFASTAI_FUZZ' not in os.environ,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile('minifastai')

# --- schedules

values = st.floats(-1e3, 1e3)
positives = st.floats(1e-6, 1e3)
positions = st.floats(0, 1)
schedules = st.sampled_from([sched_lin, sched_cos, sched_no, sched_exp])


@given(schedules, positives, positives, positions, positions)
def test_a_schedule_goes_from_one_value_to_the_other(make, a, b, p, q):
    f = make(a, b)
    def near(x, y): return math.isclose(x, y, rel_tol=1e-9, abs_tol=1e-9)
    assert near(f(0), a)
    assert near(f(1), a if make is sched_no else b)
    p, q = sorted((p, q))
    lo, hi = sorted((a, b))
    rounding = 1e-9*hi
    assert all(lo - rounding <= f(v) <= hi + rounding for v in (p, q))
    # never back
    if a <= b: assert f(p) <= f(q) + rounding
    else: assert f(p) >= f(q) - rounding


def can_be_scaled(parts): return sum(fraction for fraction, _, _ in parts) > 1e-3


lists_of_parts = st.lists(st.tuples(st.floats(0, 1), values, values), min_size=1, max_size=6)


@given(lists_of_parts.filter(can_be_scaled), positions)
def test_combined_schedules(parts, pos):
    total = math.fsum(p for p, _, _ in parts)
    fractions = [p/total for p, _, _ in parts]
    f = combine_scheds(fractions, [sched_lin(a, b) for _, a, b in parts])

    # the same by hand
    start = 0.
    for i, (fraction, (_, a, b)) in enumerate(zip(fractions, parts)):
        if fraction == 0: continue
        is_last = not any(fractions[i+1:])
        end = start + fraction
        if pos < end or is_last:
            width = 1 - start if is_last else fraction
            u = min(max((pos - start)/width, 0.), 1.) if width > 0 else 1.
            expected = a + u*(b - a)
            # at an edge, rounding may decide otherwise
            at_edge = min(abs(pos - start), abs(pos - start - fraction)) < 1e-9 or width < 1e-6
            scale = 1 + abs(a) + abs(b)
            assert at_edge or math.isclose(f(pos), expected, rel_tol=1e-5, abs_tol=1e-5*scale)
            break
        start = end

    used = [(a, b) for fraction, (_, a, b) in zip(fractions, parts) if fraction > 0]
    first, _ = used[0]
    before_last, last = used[-1]
    assert math.isclose(f(0.), first, abs_tol=1e-6)
    assert math.isclose(f(1.), last, abs_tol=1e-3*(1 + abs(before_last - last)))


@given(st.lists(st.floats(-1, 2), max_size=4), st.integers(0, 5))
def test_fractions_that_do_not_add_up(fractions, n):
    adds_up = all(s >= 0 for s in fractions) and abs(sum(fractions) - 1) < 1e-6
    scheds = [sched_no(1.)]*n
    if n > 0 and len(fractions) == n and adds_up:
        combine_scheds(fractions, scheds)(0.5)
    else:
        with pytest.raises(ValueError, match='combine_scheds'): combine_scheds(fractions, scheds)


# --- lists

indices = st.one_of(
    st.integers(-8, 8),
    st.slices(8),
    st.lists(st.integers(-8, 8), max_size=5),
    st.lists(st.booleans(), max_size=8),
)
actions = st.sampled_from(['get', 'tensor', 'array', 'set', 'del'])
lists_of_steps = st.lists(st.tuples(actions, indices, st.integers()), max_size=8)


def is_mask(i): return isinstance(i, list) and bool(i) and all(isinstance(k, bool) for k in i)


def index_as(what, i):
    "The index `i` in the form `what`: as it is, a tensor, or an array"
    if what == 'tensor' and isinstance(i, list):
        return torch.tensor(i, dtype=torch.bool if is_mask(i) else torch.long)
    if what == 'tensor' and isinstance(i, int): return torch.tensor(i)
    if what == 'array' and isinstance(i, list):
        return np.array(i, dtype=bool if is_mask(i) else int)
    return i


def items_at(items, i):
    "What a list of `items` that takes lists and masks as well gives for `i`"
    if not isinstance(i, list): return items[i]
    if not is_mask(i): return [items[k] for k in i]
    if len(i) != len(items): raise IndexError
    return [x for k, x in zip(i, items) if k]


def outcome(f):
    "What `f()` returns, or that it raised an IndexError"
    try: return f()
    except IndexError: return IndexError


@given(st.lists(st.integers(), max_size=8), lists_of_steps)
def test_list_container_is_a_list(items, steps):
    ours, theirs = ListContainer(items), list(items)
    assert ours.items is not items
    for what, i, v in steps:
        if what in ('get', 'tensor', 'array'):
            assert outcome(lambda: ours[index_as(what, i)]) == outcome(lambda: items_at(theirs, i))
        elif not isinstance(i, list):
            value = [v]*len(theirs[i]) if isinstance(i, slice) else v
            def change(o):
                if what == 'set': o.__setitem__(i, value)
                else: o.__delitem__(i)
            assert outcome(lambda: change(ours)) == outcome(lambda: change(theirs))
        assert list(ours) == theirs
        assert len(ours) == len(theirs)
        assert str(len(theirs)) in repr(ours)


# --- MNIST's file format

TYPES = {8: 'u1', 9: 'i1', 11: '>i2', 12: '>i4', 13: '>f4', 14: '>f8'}


def n_bytes(array):
    "Of an idx file with this array"
    return 4 + 4*array.dim() + array.numel()*array.element_size()


@given(st.sampled_from(list(TYPES)), st.lists(st.integers(0, 5), max_size=4),
       st.integers(0, 2**32 - 1), st.data())
def test_idx(kind, shape, seed, data):
    """What is written is read.

    Whatever is changed about header or length, there is an error, not another array.
    """
    n = math.prod(shape)
    numbers = np.random.default_rng(seed).integers(0, 100, n)
    array = numbers.astype(TYPES[kind]).reshape(shape)
    header = bytes([0, 0, kind, len(shape)]) + np.array(shape, '>u4').tobytes()
    content = header + array.tobytes()
    read = parse_idx(content)
    assert tuple(read.shape) == tuple(shape)
    assert np.array_equal(read.numpy(), array.astype(array.dtype.newbyteorder('=')))

    cut = data.draw(st.integers(0, len(content) - 1))
    with pytest.raises(ValueError): parse_idx(content[:cut])
    more = data.draw(st.binary(min_size=1, max_size=9))
    with pytest.raises(ValueError): parse_idx(content + more)

    at = data.draw(st.integers(0, len(header) - 1))
    value = data.draw(st.integers(0, 255))
    changed = content[:at] + bytes([value]) + content[at+1:]
    if changed == content: return
    try: other = parse_idx(changed, source='the file')
    except ValueError as e: assert str(e).startswith('the file')
    else:   # another header that fits as well
        assert at >= 2
        assert n_bytes(other) == len(content)


@given(st.binary(max_size=40))
def test_idx_of_anything(content):
    try: array = parse_idx(content)
    except ValueError: return
    assert n_bytes(array) == len(content)


# --- callbacks that raise

CANCELS = [CancelBatchException, CancelEpochException, CancelTrainException]
CLEANUPS = {
    'begin_fit': 'after_fit',
    'begin_epoch': 'cleanup_epoch',
    'begin_validate': 'cleanup_validate',
    'begin_batch': 'cleanup_batch',
}
ERRORS = [ValueError, ZeroDivisionError, KeyboardInterrupt]
doings = st.sampled_from([*CANCELS, *CANCELS, *ERRORS, True])
plans = st.lists(st.tuples(st.sampled_from(list(EVENTS)), st.integers(1, 4), doings), max_size=3)


class Wild(Callback):
    """Raises, or returns True, as planned, and notes what it hears in a list that all share.

    A plan is a list of (event, the time that it happens, what to do then).
    """
    def __init__(self, i, order, plan, log):
        self.name = f'wild_{i}'
        self._order = order
        self.plan = plan
        self.log = log
        self.place = i
        self.heard = {}
        for event in EVENTS: setattr(self, event, self.hear(event))

    def hear(self, event):
        def f():
            n = self.heard[event] = self.heard.get(event, 0) + 1
            what = next((e for k, nth, e in self.plan if k == event and nth == n), None)
            self.log.append((self.place, event, what))
            if what is True: return True
            if what is not None: raise what(f'{self.name} at the {n}. {event}')
        return f


def check_what_is_raised(log, raised):
    "The first error wins; without one, a fit may only fail by a cancel of what is not running"
    errors = [what for _, _, what in log if isinstance(what, type) and what not in CANCELS]
    if errors: assert type(raised) is errors[0], (raised, errors)
    elif raised is not None:
        assert isinstance(raised, RuntimeError), raised
        assert 'nothing to cancel' in str(raised), raised


def check_cleanups(log, place):
    "What the callback at `place` began is cleaned up, the inner before the outer"
    open_ = []
    for event, what in ((event, what) for i, event, what in log if i == place):
        has_begun = what is None or what is True or what in CANCELS
        if event in CLEANUPS and has_begun: open_.append(CLEANUPS[event])
        elif event in CLEANUPS.values(): assert open_ and open_.pop() == event, (event, open_)
    assert not open_, open_


def check_order(log, cbs):
    "Events go in order, clean-ups in reverse"
    in_order = sorted(cbs, key=lambda cb: cb._order)
    rank = {cb.place: p for p, cb in enumerate(in_order)}
    for (a, event, what), (b, following, _) in zip(log, log[1:]):
        if event != following or a == b or what is not None: continue
        if event in CLEANUPS.values(): assert rank[a] > rank[b]
        elif rank[a] > rank[b]:   # the same event again, announced to all before
            assert rank[a] == max(rank.values())


@given(st.lists(st.tuples(st.integers(-2, 2), plans), min_size=1, max_size=4))
def test_a_storm_of_exceptions(callbacks):
    log = []
    cbs = [Wild(i, order, plan, log) for i, (order, plan) in enumerate(callbacks)]
    learn = tiny_learner(3, 2)
    stats = ActivationStats(layers=torch.nn.Linear)
    stats.layers = [learn.model]
    run = Runner([*cbs, stats])
    raised = None
    try: run.fit(2, learn)
    except BaseException as e: raised = e

    check_what_is_raised(log, raised)
    for place in range(len(cbs)): check_cleanups(log, place)
    check_order(log, cbs)
    for p in learn.model.parameters(): assert p.grad is None or not p.grad.any()
    assert not learn.model._forward_hooks
    assert torch.is_grad_enabled()

    # and the runner can be used again
    for cb in cbs: cb.plan = []
    run.fit(1, learn)
    assert run.epoch == 0
    assert run.n_iter == 3
