"A course that compiles to a library: modern CNN training, rebuilt from the foundations"
__version__ = '0.2.0'
