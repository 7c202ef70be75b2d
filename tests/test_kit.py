"What contributors and GitHub read says the same as the project: versions, addresses, targets."
import re
from configparser import ConfigParser
from pathlib import Path

import pytest

root = Path(__file__).parent.parent
github = root/'.github'
forms = sorted(p for p in (github/'ISSUE_TEMPLATE').glob('*.yml') if p.stem != 'config')


def loaded(path):
    yaml = pytest.importorskip('yaml')
    return yaml.safe_load(path.read_text(encoding='utf-8'))


def config():
    cfg = ConfigParser(delimiters=['='])
    cfg.read(root/'settings.ini', encoding='utf-8')
    return cfg['DEFAULT']


def test_the_citation_agrees_with_the_metadata():
    cfg, cff = config(), loaded(root/'CITATION.cff')
    assert (cff['version'], cff['license']) == (cfg['version'], cfg['license'])
    assert (cff['repository-code'], cff['url']) == (cfg['git_url'], cfg['doc_url'])
    assert cff['authors'] == [dict(name=cfg['author'])]
    assert {'cff-version', 'message', 'title'} <= set(cff)
    for reference in cff['references']: assert {'type', 'title', 'authors'} <= set(reference)


@pytest.mark.parametrize('path', forms, ids=lambda p: p.stem)
def test_an_issue_form_is_one(path):
    "GitHub refuses a form without name, description and body, and ids that occur twice"
    form = loaded(path)
    assert form['name'] and form['description'] and form['body']
    ids = [field['id'] for field in form['body']]
    assert len(ids) == len(set(ids))
    for field in form['body']:
        assert field['type'] in ('textarea', 'input', 'dropdown') and field['attributes']['label']
        assert all(isinstance(o, str) for o in field['attributes'].get('options', []))


def test_there_are_issue_forms(): assert {p.stem for p in forms} == {'bug', 'idea', 'chapter'}


def test_every_target_has_a_line_in_make_help():
    text = (root/'Makefile').read_text(encoding='utf-8')
    targets = re.search(r'^\.PHONY: (.*)$', text, re.M)[1].split()
    assert set(re.findall(r'^\t@echo "make ([\w-]+) ', text, re.M)) == set(targets) - {'help'}
    for target in targets: assert re.search(rf'^{target}:', text, re.M)


def test_what_is_told_to_run_is_there():
    "The targets that workflows, the pull request template and the hooks name exist"
    makefile = (root/'Makefile').read_text(encoding='utf-8')
    names = ['.ci/run', '.pre-commit-config.yaml', 'CONTRIBUTING.md', 'README.md',
             '.github/pull_request_template.md']
    for path in [*(github/'workflows').glob('*.yml'), *(root/name for name in names)]:
        text = path.read_text(encoding='utf-8')
        named = re.findall(r'(?:^ *|run: |`|&& )make ([a-z-]+)', text, re.M)
        for target in named: assert re.search(rf'^{target}:', makefile, re.M), (path.name, target)


def test_hooks_use_the_projects_own_tools():
    hooks = loaded(root/'.pre-commit-config.yaml')['repos'][0]['hooks']
    assert [hook['id'] for hook in hooks] == ['nbdev-clean', 'nbdev-export', 'ruff', 'mypy']
    for hook in hooks:
        assert hook['language'] == 'system' and hook['entry'].startswith('.venv/bin/')


def test_contributing_has_each_module():
    "The map of modules has a row for each module of the package, and no other"
    text = (root/'CONTRIBUTING.md').read_text(encoding='utf-8')
    table = text[text.index('## The modules'):].split('\n## ')[0]
    listed = {name for row in re.findall(r'^\| (`.*?) \|', table, re.M)
              for name in re.findall(r'`(\w+)`', row)}
    modules = {p.stem for p in (root/'minifastai').glob('*.py') if p.stem[0] != '_'}
    assert listed == modules
