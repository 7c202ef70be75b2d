"What must hold for any input, tried on inputs that nobody thought of. MINIFASTAI_FUZZ=10000 tries so many for each test, others each time."
import math
import os

import numpy as np
import pytest
import torch
from helpers import tiny_learner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minifastai.datasets import parse_idx
from minifastai.callbacks import (
    Callback, CancelBatchException, CancelEpochException, CancelTrainException, EVENTS)
from minifastai.learner import Runner
from minifastai.schedules import combine_scheds, sched_cos, sched_exp, sched_lin, sched_no
from minifastai.hooks import ListContainer
from minifastai.activations import ActivationStats

settings.register_profile('minifastai', max_examples=int(os.environ.get('MINIFASTAI_FUZZ', 200)), deadline=None, database=None, derandomize='MINIFASTAI_FUZZ' not in os.environ, suppress_health_check=list(HealthCheck))
settings.load_profile('minifastai')

values = st.floats(-1e3, 1e3)
positives = st.floats(1e-6, 1e3)
positions = st.floats(0, 1)


@given(st.sampled_from([sched_lin, sched_cos, sched_no, sched_exp]), positives, positives, positions, positions)
def test_a_schedule_goes_from_one_value_to_the_other(make, a, b, p, q):
    f = make(a, b)
    near = lambda x, y: math.isclose(x, y, rel_tol=1e-9, abs_tol=1e-9)
    assert near(f(0), a) and near(f(1), a if make is sched_no else b)
    p, q = sorted((p, q))
    lo, hi = sorted((a, b))
    assert all(lo - 1e-9*hi <= f(v) <= hi + 1e-9*hi for v in (p, q))
    assert f(p) <= f(q) + 1e-9*hi if a <= b else f(p) >= f(q) - 1e-9*hi      # never back


@given(st.lists(st.tuples(st.floats(0, 1), values, values), min_size=1, max_size=6).filter(lambda parts: sum(p for p, _, _ in parts) > 1e-3), positions)
def test_combined_schedules(parts, pos):
    total = math.fsum(p for p, _, _ in parts)
    shares = [p/total for p, _, _ in parts]
    f = combine_scheds(shares, [sched_lin(a, b) for _, a, b in parts])
    start = 0.
    for i, (share, (_, a, b)) in enumerate(zip(shares, parts)):     # the same by hand
        if share == 0: continue
        last = not any(shares[i+1:])
        if pos < start + share or last:
            width = 1 - start if last else share
            u = min(max((pos - start)/width, 0.), 1.) if width > 0 else 1.
            at_edge = min(abs(pos - start), abs(pos - start - share)) < 1e-9 or width < 1e-6      # there, rounding may decide otherwise
            assert at_edge or math.isclose(f(pos), a + u*(b - a), rel_tol=1e-5, abs_tol=1e-5*(1 + abs(a) + abs(b)))
            break
        start += share
    used = [(a, b) for s, (_, a, b) in zip(shares, parts) if s > 0]
    assert math.isclose(f(0.), used[0][0], abs_tol=1e-6) and math.isclose(f(1.), used[-1][1], abs_tol=1e-3*(1 + abs(used[-1][0] - used[-1][1])))


@given(st.lists(st.floats(-1, 2), max_size=4), st.integers(0, 5))
def test_shares_that_do_not_add_up(shares, n):
    good = len(shares) == n and n > 0 and all(s >= 0 for s in shares) and abs(sum(shares) - 1) < 1e-6
    if good: combine_scheds(shares, [sched_no(1.)]*n)(0.5)
    else:
        with pytest.raises(ValueError, match='combine_scheds'): combine_scheds(shares, [sched_no(1.)]*n)


indices = st.one_of(st.integers(-8, 8), st.slices(8), st.lists(st.integers(-8, 8), max_size=5), st.lists(st.booleans(), max_size=8))


@given(st.lists(st.integers(), max_size=8), st.lists(st.tuples(st.sampled_from(['get', 'tensor', 'array', 'set', 'del']), indices, st.integers()), max_size=8))
def test_list_container_is_a_list(items, steps):
    ours, theirs = ListContainer(items), list(items)
    assert ours.items is not items
    for what, i, v in steps:
        mask = isinstance(i, list) and i and all(isinstance(k, bool) for k in i)
        if what in ('get', 'tensor', 'array'):
            if isinstance(i, list):
                given_ = torch.tensor(i, dtype=torch.bool if mask else torch.long) if what == 'tensor' else np.array(i, dtype=bool if mask else int) if what == 'array' else i
                expected = (lambda: [x for k, x in zip(i, theirs) if k] if len(i) == len(theirs) else [][0]) if mask else (lambda: [theirs[k] for k in i])
            else:
                given_, expected = (torch.tensor(i) if what == 'tensor' and isinstance(i, int) else i), lambda: theirs[i]
            try: right = expected()
            except IndexError:
                with pytest.raises(IndexError): ours[given_]
            else: assert ours[given_] == right
        elif not isinstance(i, list):
            change = (lambda o: o.__setitem__(i, [v]*len(theirs[i]) if isinstance(i, slice) else v)) if what == 'set' else (lambda o: o.__delitem__(i))
            try: change(theirs)
            except IndexError:
                with pytest.raises(IndexError): change(ours)
            else: change(ours)
        assert list(ours) == theirs and len(ours) == len(theirs) and str(len(theirs)) in repr(ours)


types = {8: 'u1', 9: 'i1', 11: '>i2', 12: '>i4', 13: '>f4', 14: '>f8'}


@given(st.sampled_from(list(types)), st.lists(st.integers(0, 5), max_size=4), st.integers(0, 2**32 - 1), st.data())
def test_idx(kind, shape, seed, data):
    "What is written is read; and whatever is changed about header or length, there is an error, not another array"
    n = math.prod(shape)
    array = np.random.default_rng(seed).integers(0, 100, n).astype(types[kind]).reshape(shape)
    content = bytes([0, 0, kind, len(shape)]) + np.array(shape, '>u4').tobytes() + array.tobytes()
    read = parse_idx(content)
    assert tuple(read.shape) == tuple(shape) and np.array_equal(read.numpy(), array.astype(array.dtype.newbyteorder('=')))
    cut = data.draw(st.integers(0, len(content) - 1))
    with pytest.raises(ValueError): parse_idx(content[:cut])
    with pytest.raises(ValueError): parse_idx(content + data.draw(st.binary(min_size=1, max_size=9)))
    at, value = data.draw(st.integers(0, 3 + 4*len(shape))), data.draw(st.integers(0, 255))
    changed = content[:at] + bytes([value]) + content[at+1:]
    if changed != content:
        try: other = parse_idx(changed, 'the file')
        except ValueError as e: assert str(e).startswith('the file')
        else: assert at >= 2 and other.numel()*other.element_size() + 4 + 4*other.dim() == len(content)    # another header that fits as well


@given(st.binary(max_size=40))
def test_idx_of_anything(content):
    try: array = parse_idx(content)
    except ValueError: return
    assert array.numel()*array.element_size() == len(content) - 4 - 4*array.dim()


cancels = [CancelBatchException, CancelEpochException, CancelTrainException]
plans = st.lists(st.tuples(st.sampled_from(list(EVENTS)), st.integers(1, 4), st.sampled_from([*cancels, *cancels, ValueError, ZeroDivisionError, KeyboardInterrupt, True])), max_size=3)
nesting = {'begin_fit': 'after_fit', 'begin_epoch': 'cleanup_epoch', 'begin_validate': 'cleanup_validate', 'begin_batch': 'cleanup_batch'}


class Wild(Callback):
    "Notes what it hears in a list that all share, and raises, or returns True, as planned"
    def __init__(self, i, order, plan, log):
        self.name, self._order, self.plan, self.log, self.place = f'wild_{i}', order, plan, log, i
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


@given(st.lists(st.tuples(st.integers(-2, 2), plans), min_size=1, max_size=4))
def test_a_storm_of_exceptions(callbacks):
    log = []
    cbs = [Wild(i, order, plan, log) for i, (order, plan) in enumerate(callbacks)]
    learn, stats = tiny_learner(3, 2), ActivationStats(layers=torch.nn.Linear)
    stats.layers = [learn.model]
    run, left = Runner([*cbs, stats]), None
    try: run.fit(2, learn)
    except BaseException as e: left = e

    errors = [w for _, _, w in log if isinstance(w, type) and w not in cancels]
    if errors: assert type(left) is errors[0], (left, errors)                            # the first error wins
    else: assert left is None or (isinstance(left, RuntimeError) and 'none to cancel' in str(left)), left

    for i in range(len(cbs)):                                                             # what was begun is cleaned up, the inner before the outer
        open_ = []
        for _, event, what in (entry for entry in log if entry[0] == i):
            if event in nesting and (what is None or what is True or what in cancels): open_.append(nesting[event])
            elif event in nesting.values(): assert open_ and open_.pop() == event, (event, open_)
        assert not open_, open_

    places = {cb.place: p for p, cb in enumerate(sorted(cbs, key=lambda cb: cb._order))}   # in order; cleaning up in reverse
    for (a, event, what), (b, following, _) in zip(log, log[1:]):
        if event == following and places[a] != places[b] and what is None:
            down = event in nesting.values()
            if down: assert places[a] > places[b]
            elif places[a] > places[b]: assert places[a] == max(p for c, p in places.items())   # the same event again, announced to all before
    for p in learn.model.parameters(): assert p.grad is None or not p.grad.any()
    assert not learn.model._forward_hooks and torch.is_grad_enabled()
    for cb in cbs: cb.plan = []
    run.fit(1, learn)                                                                     # and the runner can be used again
    assert run.epoch == 0 and run.n_iter == 3
