"""What deploy/Dockerfile says, and a place like its container that needs no engine: a root of its own, for nobody.

The root has this machine's system and Python, the image's tree, and nothing else; all of it is read-only. That takes
the rights to mount, which root has; without them `missing()` says so.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.gateway import ROOT

TEXT = re.sub(r"\\\n\s*", "", (ROOT / "deploy" / "Dockerfile").read_text())
TREE = "/opt/ringcast"  # what the image has beside its base
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc", "/proc")
DEVICES = ("/dev/null", "/dev/urandom")

Step = tuple[str, str]


def stages() -> dict[str, list[Step]]:
    """The steps of each stage, and of those that it stands on, by its name; the last one's name is `image`."""
    found: dict[str, list[Step]] = {}
    steps: list[Step] = []
    for line in TEXT.splitlines():
        if not line or line.startswith("#"):
            continue
        verb, _, rest = line.partition(" ")
        if verb == "FROM":
            base, _, name = rest.partition(" AS ")
            steps = found[name or "image"] = [*found.get(base, [("FROM", base)])]
        else:
            steps.append((verb, rest))
    return found


def said(verb: str, stage: str = "image") -> list[str]:
    return [rest for found, rest in stages()[stage] if found == verb]


def variables(stage: str = "image") -> dict[str, str]:
    """What a container's processes find in their environment, but for the base's own."""
    pairs = [word.partition("=") for rest in said("ENV", stage) for word in shlex.split(rest)]
    return {name: value.replace("$PATH", "/usr/local/bin:/usr/bin:/bin") for name, _, value in pairs}


def started(stage: str = "image") -> list[str]:
    """The command of a container."""
    words = [said(verb, stage) for verb in ("ENTRYPOINT", "CMD")]
    return [word for found in words if found for word in json.loads(found[-1])]


def health(stage: str = "image") -> list[str]:
    command: list[str] = json.loads(said("HEALTHCHECK", stage)[0].partition(" CMD ")[2])
    return command


def missing() -> str | None:
    """Why no such root can be made here, or None."""
    if shutil.which("unshare") is None or shutil.which("setpriv") is None:
        return "unshare and setpriv are missing: install Debian's package util-linux"
    tried = subprocess.run(["unshare", "--mount", "true"], capture_output=True, text=True)
    return None if tried.returncode == 0 else f"this takes root, who may mount: {tried.stderr.strip()}"


class Container:
    """Runs commands as a container of the image would: its user, its environment, its tree, and nothing to write to."""

    def __init__(self, folder: Path, tree: Path) -> None:
        """`tree` is an environment that was made where it is; `folder` becomes the root."""
        user, _, group = said("USER")[0].partition(":")
        self._folder = folder
        self._who = ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", "--no-new-privs",
                     "--bounding-set=-all", "--inh-caps=-all"]  # fmt: skip
        # An environment's scripts name its own place, so it is there as well as where the image has it.
        self._mounts = [(path, path) for path in (*SYSTEM, *DEVICES, sys.base_prefix, str(tree)) if Path(path).exists()]
        self._mounts.append((str(tree), TREE))

    def command(self, words: Sequence[str], env: Mapping[str, str]) -> list[str]:
        """What to run for these words; the process that is started becomes theirs."""
        script = ["set -e", f"mount --bind {self._folder} {self._folder}"]
        for source, target in self._mounts:
            where = shlex.quote(f"{self._folder}{target}")
            script.append(
                f"mkdir -p $(dirname {where}) && touch {where}" if Path(source).is_file() or source in DEVICES
                else f"mkdir -p {where}"
            )  # fmt: skip
            script.append(f"mount --rbind {shlex.quote(source)} {where}")
            if source not in DEVICES and source != "/proc":
                script.append(f"mount -o remount,bind,ro {where}")
        script.append(f"mount -o remount,bind,ro {self._folder}")
        given = [f"{name}={value}" for name, value in {**variables(), **env}.items()]
        script.append(shlex.join(["exec", "chroot", str(self._folder), *self._who, "env", "-i", *given, *words]))
        return ["unshare", "--mount", "--propagation", "private", "sh", "-c", "\n".join(script)]

    def run(self, words: Sequence[str], env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(words, env or {}), capture_output=True, text=True, timeout=60, env={"PATH": os.environ["PATH"]}
        )
