"""Sphinx settings of the site.

The pages come from nbs/ and the package (see _ext/), the project's facts from settings.ini.
"""
import logging
import sys
from configparser import ConfigParser
from pathlib import Path

docs = Path(__file__).resolve().parent
root = docs.parent
sys.path[:0] = [str(docs/'_ext'), str(root)]

_settings = ConfigParser(delimiters=['='])
_settings.read(root/'settings.ini', encoding='utf-8')
_settings = _settings['DEFAULT']

project = _settings['lib_name']
author = _settings['author']
project_copyright = author
release = version = _settings['version']
language = 'en'

extensions = [
    'myst_nb', 'sphinx.ext.autodoc', 'sphinx.ext.linkcode', 'sphinx.ext.mathjax',
    'sphinx_copybutton', 'minifastai_docs', 'sphinxext.opengraph']
exclude_patterns = ['outputs']

# Notebooks: shown with their stored outputs, never executed
nb_execution_mode = 'off'
nb_render_markdown_format = 'myst'   # an output in Markdown may be a table
myst_enable_extensions = ['amsmath', 'dollarmath', 'html_image']
myst_heading_anchors = 4
mathjax_path = 'mathjax/tex-chtml.js'
copybutton_selector = '.highlight pre:not(.cell_output pre)'
copybutton_prompt_text = r'>>> |\.\.\. |\$ '
copybutton_prompt_is_regexp = True

# Reference: made from the package's docstrings
autodoc_member_order = 'bysource'
autodoc_inherit_docstrings = False   # otherwise every `forward` repeats nn.Module's docstring
autodoc_preserve_defaults = True
autodoc_typehints = 'description'    # types next to the descriptions, so that signatures stay short
autoclass_content = 'both'           # ... for classes too
autodoc_typehints_format = 'short'
autodoc_default_options = {'members': True, 'undoc-members': True}
add_module_names = False
toc_object_entries_show_parents = 'hide'

# Pages
html_theme = 'sphinx_book_theme'
html_title = project
html_baseurl = _settings['doc_url']
html_favicon = '_static/favicon.svg'
html_static_path = ['_static']
html_css_files = ['site.css']
html_js_files = ['site.js']
html_domain_indices = False
html_context = dict(default_mode='auto')
html_theme_options = dict(
    repository_url=_settings['git_url'],
    repository_branch=_settings['branch'],
    path_to_docs='nbs',
    use_repository_button=True,
    launch_buttons=dict(
        colab_url='https://colab.research.google.com',
        binderhub_url='https://mybinder.org',
        notebook_interface='jupyterlab'),
    # accessible, and comments don't outshine the code
    pygments_dark_style='github-dark-high-contrast',
    home_page_in_toc=True,
    show_toc_level=2,
    navbar_persistent=[])   # the sidebar has the search already

# Previews of links to a page, in other places
ogp_site_url = html_baseurl
ogp_site_name = project
ogp_social_cards = dict(line_color='#0072b2', image_mini=str(docs/'_static'/'logo.png'))
# The cards' font has only one weight: ignore the warning
logging.getLogger('matplotlib.font_manager').setLevel(logging.ERROR)
