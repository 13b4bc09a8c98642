"""What the command lines share: mistakes are one line and exit 1, like every other error."""

import argparse
from typing import NoReturn

from services.errors import InputError

DEFAULT_LINEAGE = "default"


class Parser(argparse.ArgumentParser):
    """An argument parser that raises `InputError` instead of printing its usage and leaving."""

    def error(self, message: str) -> NoReturn:
        """Raise what is wrong."""
        raise InputError(f"{message}; see `{self.prog} --help`.")


def lineage_flag(lineage: str) -> str:
    """What a command that we suggest needs at its end to be about a lineage."""
    return "" if lineage == DEFAULT_LINEAGE else f" --lineage {lineage}"
