"""Write the package anew from the notebooks, after cleaning them.

nbdev-clean and nbdev-export do the work. nbdev writes each module's `__all__` in lines of up to
160 columns; this script wraps them at 100, like all other lines.
"""
import ast
import subprocess
import sys
import textwrap
from pathlib import Path

WIDTH = 100


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
    for path in sorted(Path('minifastai').glob('[!_]*.py')): wrap_all(path)


if __name__ == '__main__': main()
