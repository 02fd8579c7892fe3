"""Where the server's time goes while it answers reads, sampled by py-spy, as a flame graph."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from bench.load import OPERATIONS, load

_WIDTH, _ROW, _CHARACTER = 1200, 17, 6.2
_NARROWEST, _LABELLED = 2.0, 25.0
"""Pixels; what is narrower is left out, or has no label."""

_COLORS = {"taskctl": "#93c5fd", "uvicorn": "#d9f99d", "starlette": "#fde68a", "prometheus_client": "#fecaca"}
_OTHER = "#e2e8f0"


@dataclass
class _Frame:
    """A function, called from those below it: samples in it and above, and what it called."""

    samples: int = 0
    called: dict[str, "_Frame"] = field(default_factory=dict)


def flame(
    server: tuple[int, int], postmaster: int, place: Path, users: list[str], seconds: int
) -> str | None:
    """The graph as SVG; None, with the reason on stderr, where there is no py-spy."""
    spy = shutil.which("py-spy") or shutil.which("py-spy", path=str(Path(sys.executable).parent))
    if spy is None:
        print("There is no py-spy: going on without the flame graph.", file=sys.stderr)
        return None
    raw = place / "stacks"
    options = ("-p", str(server[0]), "-d", str(seconds), "-r", "250", "-f", "raw", "-o", str(raw))
    with subprocess.Popen([spy, "record", *options], stdout=subprocess.DEVNULL) as sampling:
        load(OPERATIONS["read"], server, postmaster, place, users=users, seconds=seconds, connections=16)
        if sampling.wait():
            sys.exit("py-spy failed: it has to be allowed to look into another process")
    return _svg(_tree(raw.read_text()))


def _tree(stacks: str) -> _Frame:
    """From py-spy's lines, `outer;inner count`; what is below the event loop is the same for all."""
    root = _Frame()
    for line in stacks.splitlines():
        stack, _, count = line.rpartition(" ")
        names = [re.sub(r":[0-9]+\)$", ")", name) for name in stack.split(";")]
        loop = next((place for place, name in enumerate(names) if name.startswith("Runner.run ")), None)
        if loop is None:
            continue
        frame = root
        frame.samples += int(count)
        for name in names[loop + 1 :]:
            frame = frame.called.setdefault(name, _Frame())
            frame.samples += int(count)
    return root


def _svg(root: _Frame) -> str:
    boxes = list(_boxes(root, "event loop", 0.0, 0))
    height = (max(depth for *_, depth in boxes) + 1) * _ROW
    size = f'viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="monospace" font-size="10">',
        "<title>Where the time of reads goes: width is time, each function stands on its caller</title>",
    ]
    for name, x, samples, depth in boxes:
        function, _, module = name.partition(" (")
        package = module.partition("/")[0]
        width, y = samples / root.samples * _WIDTH, height - (depth + 1) * _ROW
        share = samples / root.samples * 100
        label = f"{function} {share:.0f} %"[: int(width / _CHARACTER)] if width > _LABELLED else ""
        parts.append(
            f'<g><title>{escape(name)} {share:.1f} %</title><rect x="{x:.1f}" y="{y}" width="{width:.1f}"'
            f' height="{_ROW - 1}" fill="{_COLORS.get(package, _OTHER)}" stroke="#ffffff"/>'
            f'<text x="{x + 2:.1f}" y="{y + 12}">{escape(label)}</text></g>'
        )
    return "\n".join([*parts, "</svg>", ""])


def _boxes(
    frame: _Frame, name: str, x: float, depth: int, scale: float = 0
) -> Iterator[tuple[str, float, int, int]]:
    scale = scale or _WIDTH / frame.samples
    yield name, x, frame.samples, depth
    for each, inner in sorted(frame.called.items()):
        if inner.samples * scale >= _NARROWEST:
            yield from _boxes(inner, each, x, depth + 1, scale)
        x += inner.samples * scale
