"Reads the package's metadata from settings.ini into the fields that pyproject.toml calls dynamic."
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=['='])
parser.read(here/'settings.ini', encoding='utf-8')
cfg = parser['DEFAULT']

kinds = ('digits', 'vision', 'dev', 'docs', 'browser', 'bench')
extras = {kind: cfg[f'{kind}_requirements'].split() for kind in kinds}
extras['dev'] += extras['digits'] + extras['vision']

statuses = {
    '1': 'Planning',
    '2': 'Pre-Alpha',
    '3': 'Alpha',
    '4': 'Beta',
    '5': 'Production/Stable',
}
status = cfg['status']

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
    entry_points={
        'console_scripts': cfg['console_scripts'].split(),
        'nbdev': ['minifastai=minifastai._modidx:d'],
    },
    classifiers=[
        f'Development Status :: {status} - {statuses[status]}',
        'Intended Audience :: Education',
        'Intended Audience :: Science/Research',
        'Programming Language :: Python :: 3 :: Only',
        *(f'Programming Language :: Python :: 3.{minor}' for minor in range(10, 14)),
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
)
