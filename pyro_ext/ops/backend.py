"""ArviZ, imported when it is needed."""

import warnings


def import_arviz():
    """Imports ArviZ, which takes seconds and announces its own refactoring once a day.

    Raises:
        ImportError: if it is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            import arviz
    except ImportError as error:
        raise ImportError("This needs ArviZ: pip install 'pyro-ext[arviz]'.") from error
    return arviz
