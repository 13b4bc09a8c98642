"""Command lines whose mistakes are one line and exit 1, like every other error."""

import argparse
from typing import NoReturn

from services.errors import InputError


class Parser(argparse.ArgumentParser):
    """An argument parser that raises `InputError` instead of printing its usage and leaving."""

    def error(self, message: str) -> NoReturn:
        """Raise what is wrong."""
        raise InputError(f"{message}; see `{self.prog} --help`.")
