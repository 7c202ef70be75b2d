"The site's own Sphinx extension. Each module has one subject, and can be loaded separately."

MODULES = ('course', 'citations', 'pages', 'plain', 'reference')


def setup(app):
    for module in MODULES: app.setup_extension(f'{__name__}.{module}')
    return dict(parallel_read_safe=True, parallel_write_safe=True)
