"""completion: what a shell needs to complete benchfleet's commands and options."""

from __future__ import annotations

import argparse
import sys


def completion(options: argparse.Namespace) -> int:
    """Print the shell's registration of this program."""
    from argcomplete.shell_integration import shellcode

    sys.stdout.write(shellcode(["benchfleet"], shell=options.shell) + "\n")
    return 0
