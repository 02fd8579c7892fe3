"""A picture of what requests cost, as bars: each operation and server, and a page as the data grows."""

_WIDTH, _LABEL, _BAR, _GAP = 640, 170, 14, 26
_COLORS = {"taskctl": "#2563eb", "Starlette": "#94a3b8", "Fastify": "#65a30d", "SQLModel": "#d97706"}


def svg(costs: dict[str, dict[str, float]], *growth: dict[str, float]) -> str:
    """CPU microseconds as bars.

    Args:
        costs: the server's, by operation and server.
        growth: server and PostgreSQL together, by what has grown; each compared with the first of its own.
    """
    servers = [name for name in _COLORS if name in next(iter(costs.values()))]
    parts, x = [], _LABEL
    for name in servers:
        parts += [_bar(x, 3, _BAR, name), _text(x + _BAR + 5, 14, name)]
        x += 110
    longest = max(cost[name] for cost in costs.values() for name in servers)
    y = 30
    for operation, cost in costs.items():
        parts.append(_text(0, y + 11, operation, bold=True))
        for name in servers:
            parts += _measured(y, cost[name], longest, cost["taskctl"], name)
            y += _BAR + 2
        y += _GAP - _BAR
    parts.append(_text(0, y + 11, "A page of one user, with PostgreSQL", bold=True))
    y += _GAP
    longest = max(cost for pages in growth for cost in pages.values())
    for pages in growth:
        first = next(iter(pages.values()))
        for label, cost in pages.items():
            parts += [_text(0, y + 11, label), *_measured(y, cost, longest, first, "taskctl")]
            y += _BAR + 2
        y += _GAP - _BAR
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y}" width="{_WIDTH}" height="{y}"'
        ' font-family="sans-serif" font-size="12" fill="#64748b">'
    )
    title = "<title>Microseconds of CPU for one request</title>"
    return "\n".join([head, title, *parts, "</svg>", ""])


def _measured(y: int, cost: float, longest: float, of: float, name: str) -> list[str]:
    length = cost / longest * (_WIDTH - _LABEL - 90)
    return [
        _bar(_LABEL, y, length, name),
        _text(_LABEL + length + 6, y + 11, f"{cost:.0f} ({cost / of:.1f} x)"),
    ]


def _bar(x: float, y: int, length: float, name: str) -> str:
    return f'<rect x="{x:.0f}" y="{y}" width="{length:.0f}" height="{_BAR}" fill="{_COLORS[name]}"/>'


def _text(x: float, y: int, text: str, *, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.0f}" y="{y}"{weight}>{text}</text>'
