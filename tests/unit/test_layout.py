"""The shape of the project: who may import whom, how long a file may be, and what no committed file says."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OWN = {"gateway", "publisher", "client_demo", "tests"}
FREE = ("message", "errors", "settings", "metrics", "ring")  # import nothing of ours
WIRING = {"gateway.app", "gateway.server", "gateway.cli"}  # know everything, and nothing else knows them
CLIENT_SIDE = {"gateway.client", "gateway.message", "gateway.errors"}  # all that the base install may use
OUTSIDE = CLIENT_SIDE | {"gateway.verify", "gateway.settings", "publisher"}  # what may judge a gateway from outside
MAX_LINES = 400


def committed() -> list[Path]:
    """The files under version control, and those that are about to be."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=True, text=True,
    ).stdout  # fmt: skip
    return [path for name in listing.split("\0") if name and (path := ROOT / name).is_file()]


def modules(package: str) -> dict[str, Path]:
    found = {}
    for path in (ROOT / package).rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path) -> Iterator[str]:
    """Every module of ours that a file imports, wherever in it, also for type checking alone."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno} imports relatively; write the whole name"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.partition(".")[0] in OWN)


def uses(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


@pytest.mark.parametrize("module", FREE)
def test_the_words_import_nothing_of_ours(module: str) -> None:
    path = ROOT / "gateway" / f"{module}.py"
    if path.exists():
        assert not list(imports(path))


def test_the_publisher_never_imports_the_gateway() -> None:
    for name, path in modules("publisher").items():
        assert not [used for used in imports(path) if not uses(used, "publisher")], name


def test_of_the_queues_each_is_known_to_its_integration_alone() -> None:
    """And a client of Redis to none: which version there is, is the application's affair."""
    queues = {"redis", "celery", "kombu", "billiard", "rq", "arq", "dramatiq", "taskiq"}
    for name, path in modules("publisher").items():
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            known = queues.intersection(used.partition(".")[0] for used in names)
            assert known <= {name.removeprefix("publisher.")}, name


def test_brokers_know_neither_sessions_nor_sockets() -> None:
    above = ("gateway.hub", "gateway.session", "gateway.node", "gateway.transports", "gateway.api")
    for name, path in modules("gateway/brokers").items():
        assert not [used for used in imports(path) if any(uses(used, module) for module in above)], name


def test_transports_know_nothing_of_the_http_interface_beside_them() -> None:
    for name, path in modules("gateway/transports").items():
        assert not [used for used in imports(path) if uses(used, "gateway.api")], name


def test_only_the_wiring_knows_the_wiring() -> None:
    for name, path in modules("gateway").items():
        if name not in WIRING and name != "gateway.__main__":
            assert not [used for used in imports(path) if any(uses(used, module) for module in WIRING)], name


def test_the_subscriber_client_needs_only_the_base_install() -> None:
    for name, path in modules("gateway/client").items():
        assert not [used for used in imports(path) if not any(uses(used, module) for module in CLIENT_SIDE)], name


def test_who_verifies_a_deployment_knows_it_from_outside_alone() -> None:
    for name, path in modules("gateway/verify").items():
        assert not [used for used in imports(path) if not any(uses(used, module) for module in OUTSIDE)], name


def test_the_packages_never_import_the_tests_or_the_demo() -> None:
    for package in ("gateway", "publisher"):
        for name, path in modules(package).items():
            assert not [used for used in imports(path) if uses(used, "tests") or uses(used, "client_demo")], name


def test_no_file_is_too_long_to_read() -> None:
    for path in committed():
        if path.suffix == ".py":
            assert len(path.read_text().splitlines()) <= MAX_LINES, path


def test_files_speak_of_the_project_alone() -> None:
    strange = ["/wo" + "rk/", "sha" + "red/DESIGN", "ST" + "YLE.md", "DES" + "IGN.md", "/tmp" + "/wt"]
    for path in committed():
        text = path.read_bytes().decode(errors="replace")
        assert not [word for word in strange if word in text], path
