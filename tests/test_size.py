"What counts as a line of code, and when the package is over its budget."
import size

SOURCE = '''\
"""A module

of three lines"""
__all__ = ['f', 'C']

# a comment
def f(x,
      y=1):   # two lines
    "A docstring"
    return f"{x} and {y}"   # an f-string is one token

class C:
    """A class.

    Documented in two paragraphs.
    """
    text = """not a
    docstring"""

    def g(self):
        def inner():
            a = 1
            return a
        return inner
'''


def test_what_counts():
    m = size.measure('m', SOURCE)
    assert m.lines == 3 + 3 + 5              # f; C with its text; g with inner
    assert (m.longest, m.function) == (5, 'C.g')
    assert m.widest == max(map(len, SOURCE.splitlines()))
    assert m.tokens == 10 + 2 + 3 + 3 + 6 + 5 + 3 + 2 + 2


def test_what_nbdev_writes_does_not_count():
    assert size.measure('m', f"__all__ = [{'0, '*99}]\n# %% ../nbs/m.ipynb #1\n").lines == 0
    assert size.measure('m', f"__all__ = [{'0, '*99}]\n").widest == 0
    assert '_modidx' not in [m.name for m in size.sizes()]


def test_report():
    modules = [size.measure('one', SOURCE), size.measure('two', 'x = 1\n')]
    assert size.report(modules, budget=20).endswith('\n8 lines of headroom.')
    assert '\n2 lines over budget' in size.report(modules, budget=10)


def test_exit_status(capsys):
    total = sum(m.lines for m in size.sizes())
    assert (size.main(total), size.main(total - 1)) == (0, 1)
    assert 'headroom' in capsys.readouterr().out
