"""Clean the notebooks and export the package.

nbdev-clean and nbdev-export do the work. This script does two more things. It folds the solutions
of exercises, so that JupyterLab hides them until you click. And it wraps each module's `__all__`
at 100 columns, like all other lines, because nbdev writes lines of up to 160.
"""
import ast
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

WIDTH = 100
FOLDED = dict(jupyter=dict(source_hidden=True, outputs_hidden=True))


def is_solution(cell: dict) -> bool:
    "Is it a code cell marked `#| solution`?"
    marked = re.search(r'^#\| *solution$', ''.join(cell['source']), re.M)
    return cell['cell_type'] == 'code' and bool(marked)


def fold_solutions(path: Path):
    "Hide the code and outputs of a notebook's solutions, in its metadata for Jupyter."
    nb = json.loads(path.read_text(encoding='utf-8'))
    for cell in nb['cells']:
        if cell['cell_type'] == 'code': cell['metadata'].pop('jupyter', None)
        if is_solution(cell): cell['metadata'] |= FOLDED
    path.write_text(json.dumps(nb, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')


def wrap_all(path: Path):
    "Wrap the module's `__all__`, wherever nbdev has put it."
    text = path.read_text(encoding='utf-8')
    for node in ast.parse(text).body:
        if not isinstance(node, ast.Assign) or ast.unparse(node.targets[0]) != '__all__': continue
        names = ', '.join(map(repr, ast.literal_eval(node.value)))
        lines = textwrap.wrap(f'__all__ = [{names}]', WIDTH, subsequent_indent=' '*11)
        source = text.splitlines()
        source[node.lineno-1:node.end_lineno] = lines
        path.write_text('\n'.join(source) + '\n', encoding='utf-8')


def main():
    for command in ('nbdev-clean', 'nbdev-export'):
        subprocess.run([Path(sys.executable).with_name(command)], check=True,
                       stdin=subprocess.DEVNULL)
    for path in sorted(Path('nbs').glob('*.ipynb')): fold_solutions(path)
    for path in sorted(Path('minifastai').glob('[!_]*.py')): wrap_all(path)


if __name__ == '__main__': main()
