"""Finds an example for each name of the reference in the chapters.

Also finds the errors that a function raises, in its source.
"""
import ast
import inspect
import textwrap
from typing import NamedTuple

from .cells import directives, joined, printed, without_directives

LONGEST = 12   # lines of an example
SKIP = {'slow', 'cuda', 'solution', 'hide', 'export', 'exports', 'exporti', 'eval'}


class Example(NamedTuple):
    "A cell that uses a name, and what it printed"
    docname: str
    cell: str
    source: str
    output: str

class Use(NamedTuple):
    "A cell that may become an example, and the names that it uses"
    docname: str
    at: int
    cell: dict
    source: str
    names: set[str]


def used(source: str) -> set[str]:
    "Return the names and attributes that some code uses; none if it can't be parsed"
    try: tree = ast.parse(source)
    except SyntaxError: return set()
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return names | {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}

def uses(docname: str, cells: list) -> list[Use]:
    "Return the cells of a notebook that may become examples"
    res = []
    for at, cell in enumerate(cells):
        source = joined(cell['source'])
        if cell['cell_type'] != 'code' or directives(source) & SKIP: continue
        source = without_directives(source)
        res.append(Use(docname, at, cell, source, used(source)))
    return res

def find(names: dict[str, tuple[str, int]], notebooks: dict[str, list]) -> dict[str, Example]:
    """Find a cell that uses each name, given the notebook and the cell that define it.

    Takes the first short cell after the definition, or else the first longer one. It may be in a
    later chapter.
    """
    order, res = list(notebooks), {}
    candidates = {docname: uses(docname, cells) for docname, cells in notebooks.items()}
    for name, home in names.items():
        later = [use for docname in order[order.index(home[0]):] for use in candidates[docname]]
        later = [use for use in later if name in use.names and (use.docname, use.at) > home]
        if not later: continue
        best = next((use for use in later if use.source.count('\n') < LONGEST), later[0])
        output = printed(best.cell, drawn=False).rstrip()
        res[name] = Example(best.docname, best.cell['id'], best.source, output)
    return res


def message(node: ast.expr) -> str:
    "Return an error's message, with an ellipsis for each value that is inserted"
    if isinstance(node, ast.Constant): return str(node.value)
    if isinstance(node, ast.BinOp): return message(node.left) + message(node.right)
    if not isinstance(node, ast.JoinedStr): return ''
    return ''.join(str(v.value) if isinstance(v, ast.Constant) else '…' for v in node.values)

def raised(obj) -> list[tuple[str, str]]:
    "Return type and message of each error that a function, or a class's `__init__`, raises"
    f = obj.__dict__.get('__init__') if inspect.isclass(obj) else obj
    try: tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(f))))
    except (OSError, TypeError, SyntaxError): return []
    errors = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise)]
    calls = [e for e in errors if isinstance(e, ast.Call) and isinstance(e.func, ast.Name)]
    found = [(call.func.id, message(call.args[-1])) for call in calls if call.args]
    return list(dict.fromkeys(error for error in found if error[1].strip('… ')))
