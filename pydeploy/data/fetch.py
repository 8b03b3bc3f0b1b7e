"""``python -m pydeploy.data.fetch``: find Fashion-MNIST, or get it in one of the ways that this machine allows."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from pydeploy.data.image_sets import find_fashion_mnist
from pydeploy.errors import DataError

PACKAGE = "dataset-fashion-mnist"


def fetch() -> str:
    """Where the data lies. Tried in turn: what is there, Debian's package (as root or with sudo), torchvision's download."""
    try:
        return str(find_fashion_mnist(download=False))
    except DataError:
        _install_package()
    return str(find_fashion_mnist())


def _install_package() -> None:
    """Install Debian's package where apt-get exists and may be used without asking for a password."""
    apt, sudo = shutil.which("apt-get"), shutil.which("sudo")
    if apt is None or (os.geteuid() != 0 and sudo is None):
        return
    prefix = [] if os.geteuid() == 0 else [str(sudo), "-n"]
    sys.stderr.write(f"data: installing Debian's package {PACKAGE}\n")
    for arguments in (["update"], ["install", "-y", "--no-install-recommends", PACKAGE]):
        done = subprocess.run([*prefix, apt, "-q", *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            sys.stderr.write(f"data: apt-get {arguments[0]} failed: {done.stderr.strip().splitlines()[-1:]}\n")


if __name__ == "__main__":
    try:
        sys.stdout.write(f"data: Fashion-MNIST in {fetch()}\n")
    except DataError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
