"""Options of `benchfleet completion`."""

from __future__ import annotations

import argparse

SHELLS = ("bash", "zsh", "fish", "powershell")


def completion(completion: argparse.ArgumentParser) -> None:
    """`benchfleet completion`."""
    completion.epilog = (
        "examples:\n"
        '  eval "$(benchfleet completion bash)"                       in ~/.bashrc\n'
        '  eval "$(benchfleet completion zsh)"                        in ~/.zshrc, after compinit\n'
        "  benchfleet completion fish | source                         in ~/.config/fish/config.fish\n"
        "  benchfleet completion powershell | Out-String | Invoke-Expression      in $PROFILE"
    )
    completion.formatter_class = argparse.RawDescriptionHelpFormatter
    completion.add_argument("shell", choices=SHELLS, help="the shell")
