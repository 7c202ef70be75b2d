"""How large the package is, against a budget: `make size`.

A line of code has at least one token. Empty lines, comments and docstrings do not count, and
neither does what nbdev writes: minifastai/_modidx.py and the lists called `__all__`. An f-string is
one token, whatever the version of Python.
"""
import ast
import io
import sys
import token
import tokenize
from dataclasses import dataclass
from pathlib import Path

BUDGET = 7_970   # lines of code, of at most 100 columns
PACKAGE = Path(__file__).resolve().parents[1]/'minifastai'
NO_CODE = {token.COMMENT, token.NL, token.NEWLINE, token.INDENT, token.DEDENT, token.ENCODING,
           token.ENDMARKER}
FSTRING_START, FSTRING_END = (getattr(token, f'FSTRING_{end}', -1) for end in ('START', 'END'))
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass
class Size:
    "What a module amounts to"
    name: str
    lines: int
    tokens: int
    widest: int           # columns of its widest line
    longest: int          # lines of code of its longest function
    function: str = ''    # the name of that function

    def density(self) -> float: return self.tokens/max(self.lines, 1)


def skipped(tree: ast.Module) -> set[int]:
    "The rows of docstrings and of `__all__`"
    nodes = []
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            nodes.append(node.body[0])
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == '__all__':
            nodes.append(node)
    return {row for node in nodes for row in range(node.lineno, node.end_lineno + 1)}

def code_tokens(source: str) -> list[tuple[int, int]]:
    "First and last row of each token that is code"
    res, depth, start = [], 0, 0
    for tok in tokenize.generate_tokens(io.StringIO(source).readline):
        if depth == 0: start = tok.start[0]
        # from Python 3.12 on, an f-string comes in pieces
        depth += (tok.type == FSTRING_START) - (tok.type == FSTRING_END)
        if depth == 0 and tok.type not in NO_CODE: res.append((start, tok.end[0]))
    return res

def functions(tree: ast.AST, prefix: str = ''):
    "Name and node of each function, a method as Class.method"
    for node in ast.iter_child_nodes(tree):
        name = f"{prefix}{getattr(node, 'name', '')}"
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)): yield name, node
        inner = f'{name}.' if isinstance(node, (ast.ClassDef, ast.FunctionDef)) else prefix
        yield from functions(node, inner)

def measure(name: str, source: str) -> Size:
    "The size of a module"
    tree = ast.parse(source)
    skip = skipped(tree)
    tokens = [(first, last) for first, last in code_tokens(source) if first not in skip]
    rows = {row for first, last in tokens for row in range(first, last + 1)}
    lengths = {'': 0}
    for function, node in functions(tree):
        lengths[function] = len(rows & set(range(node.lineno, node.end_lineno + 1)))
    longest = max(lengths, key=lengths.get)
    widest = max((len(line) for line in source.splitlines() if not line.startswith('__all__')),
                 default=0)
    return Size(name, len(rows), len(tokens), widest, lengths[longest], longest)

def sizes(package: Path = PACKAGE) -> list[Size]:
    "The size of each module"
    paths = sorted(path for path in package.glob('*.py') if path.name != '_modidx.py')
    return [measure(path.stem, path.read_text(encoding='utf-8')) for path in paths]

def report(modules: list[Size], budget: int = BUDGET) -> str:
    "A row for each module, and the total against the budget"
    row = '{:<14}{:>7}{:>13}{:>8}  {:>7} {}'.format
    res = [row('module', 'lines', 'tokens/line', 'widest', 'longest', 'function')]
    for m in modules:
        density = f'{m.density():.1f}'
        res.append(row(m.name, f'{m.lines:,}', density, m.widest, m.longest, m.function))
    lines, tokens = sum(m.lines for m in modules), sum(m.tokens for m in modules)
    res.append(row('total', f'{lines:,}', f'{tokens/max(lines, 1):.1f}',
                   max(m.widest for m in modules), max(m.longest for m in modules), ''))
    res += [row('budget', f'{budget:,}', '', '', '', ''), '']
    if lines > budget: res.append(f'{lines - budget:,} lines over budget: CONTRIBUTING.md says how '
                                  'to make room.')
    else: res.append(f'{budget - lines:,} lines of headroom.')
    return '\n'.join(line.rstrip() for line in res)


def main(budget: int = BUDGET) -> int:
    "Print the report; the exit status is 1 if the package is over its budget"
    modules = sizes()
    print(report(modules, budget))
    return int(sum(m.lines for m in modules) > budget)


if __name__ == '__main__': sys.exit(main())
