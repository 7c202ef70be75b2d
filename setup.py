"""Reads the package's metadata from settings.ini, where people keep it.

It sets the fields that pyproject.toml declares dynamic.
"""
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup

here = Path(__file__).parent
cfg = ConfigParser(delimiters=['='])
cfg.read(here/'settings.ini', encoding='utf-8')
cfg = cfg['DEFAULT']
names = ('digits', 'dev', 'docs', 'browser', 'bench')
extras = {name: cfg[f'{name}_requirements'].split() for name in names}
extras['dev'] += extras['digits']
statuses = {'1': 'Planning', '2': 'Pre-Alpha', '3': 'Alpha', '4': 'Beta',
            '5': 'Production/Stable'}
commands = cfg['console_scripts'].split()
index = f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"

setup(
    version=cfg['version'],
    description=cfg['description'],
    long_description=(here/'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author=cfg['author'],
    license=cfg['license'],
    keywords=cfg['keywords'].split(),
    install_requires=cfg['requirements'].split(),
    extras_require=extras,
    packages=[cfg['lib_name']],
    package_data={cfg['lib_name']: ['py.typed']},
    entry_points={'console_scripts': commands, 'nbdev': [index]},
    classifiers=[
        f"Development Status :: {cfg['status']} - {statuses[cfg['status']]}",
        'Intended Audience :: Education',
        'Intended Audience :: Science/Research',
        'Programming Language :: Python :: 3 :: Only',
        *(f'Programming Language :: Python :: 3.{minor}' for minor in range(10, 14)),
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
)
