"An example for each name of the reference, taken from the chapters, and the errors that it raises, taken from its source."
import ast
import inspect
import re
import textwrap
from typing import NamedTuple

LONGEST = 12   # lines of an example
SKIP = {'slow', 'cuda', 'solution', 'hide', 'export', 'exports', 'exporti', 'eval'}

class Example(NamedTuple):
    "A cell that uses a name, and what it printed"
    docname: str
    cell: str
    source: str
    output: str

def used(source: str) -> set[str]:
    "The names that a piece of code uses, attributes too; none if it cannot be parsed"
    try: tree = ast.parse(source)
    except SyntaxError: return set()
    return {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)} | {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}

def without_directives(source: str) -> str:
    "A cell's code without the lines that are for nbdev and for the site"
    return re.sub(r'^#\|.*\n', '', source, flags=re.M).strip()

def printed(cell) -> str:
    "What a cell printed, or the text of its value"
    text = ''.join(''.join(out.get('text', '')) or ''.join(out.get('data', {}).get('text/plain', '')) for out in cell['outputs'] if not any(k.startswith(('image/', 'text/html')) for k in out.get('data', {})))
    return text.rstrip()

def find(names: dict[str, tuple[str, int]], notebooks: dict[str, list]) -> dict[str, Example]:
    "For each name, given the notebook and the cell that define it, the first short cell behind that which uses it; in a later chapter, if its own has none; a longer one, if there is no short one"
    order, res = list(notebooks), {}
    cells = {docname: [(c, without_directives(''.join(c['source'])), set(re.findall(r'^#\| *(\w+)', ''.join(c['source']), re.M))) for c in nb] for docname, nb in notebooks.items()}
    uses = {docname: [used(source) if c['cell_type'] == 'code' else set() for c, source, _ in entries] for docname, entries in cells.items()}
    for name, (home, at) in names.items():
        using = [(docname, *cells[docname][i][:2]) for docname in order[order.index(home):] for i, names_used in enumerate(uses[docname])
                 if name in names_used and (docname, i) > (home, at) and not cells[docname][i][2] & SKIP]
        if using:
            docname, c, source = next((u for u in using if u[2].count('\n') < LONGEST), using[0])
            res[name] = Example(docname, c['id'], source, printed(c))
    return res

def message(node: ast.expr) -> str:
    "The text that an error is raised with, an ellipsis for what is put in"
    if isinstance(node, ast.Constant): return str(node.value)
    if isinstance(node, ast.JoinedStr): return ''.join(str(v.value) if isinstance(v, ast.Constant) else '…' for v in node.values)
    if isinstance(node, ast.BinOp): return message(node.left) + message(node.right)
    return ''

def raised(obj) -> list[tuple[str, str]]:
    "Kind and message of each error that the source of a function, or of a class's `__init__`, raises"
    f = obj.__dict__.get('__init__') if inspect.isclass(obj) else obj
    try: tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(f))))
    except (OSError, TypeError, SyntaxError): return []
    calls = [n.exc for n in ast.walk(tree) if isinstance(n, ast.Raise) and isinstance(n.exc, ast.Call) and isinstance(n.exc.func, ast.Name)]
    return list(dict.fromkeys((c.func.id, text) for c in calls if c.args and (text := message(c.args[-1])).strip('… ')))
