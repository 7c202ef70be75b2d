"The README's code runs, its links lead somewhere, its table of contents is complete."
import os
import re
import subprocess
import sys
from pathlib import Path

root = Path(__file__).parent.parent
readme = (root/'README.md').read_text(encoding='utf-8')


def test_code_runs(tmp_path):
    """On the embedded digits, which have MNIST's size and are trained on in a few seconds.

    `MINIFASTAI_STORMS=1` takes MNIST where it is.
    """
    env = dict(os.environ)
    if env.get('MINIFASTAI_STORMS') != '1': env['MINIFASTAI_DATASET'] = 'digits'
    code, = re.findall(r'```python\n(.*?)```', readme, re.S)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, env=env,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('\n') == 4
    assert 'valid_accuracy' in done.stdout


def test_links_lead_somewhere():
    for text in (readme, (root/'CONTRIBUTING.md').read_text(encoding='utf-8')):
        for target in re.findall(r'\]\((?!https?:)([^)#]+)', text):
            assert (root/target).exists(), target


def test_contents_are_complete():
    chapters = {p.name for p in (root/'nbs').glob('[0-9]*.ipynb')}
    home = (root/'nbs'/'index.ipynb').read_text(encoding='utf-8')
    for name in chapters:
        assert f'(nbs/{name})' in readme, f'README does not list {name}'
        assert f'({name})' in home, f'the home page does not list {name}'


def test_commands_are_those_of_the_makefile():
    targets = set(re.findall(r'^([a-z]+):', (root/'Makefile').read_text(), re.M))
    assert set(re.findall(r'make ([a-z]+)', readme)) <= targets
