"""A picture of what a request costs, as bars: each operation, each server."""

_WIDTH, _LABEL, _BAR, _GAP = 640, 110, 14, 26
_COLORS = {"taskctl": "#2563eb", "Starlette": "#94a3b8", "Fastify": "#65a30d", "SQLModel": "#d97706"}


def svg(costs: dict[str, dict[str, float]]) -> str:
    """CPU microseconds by operation and server, as bars."""
    servers = [name for name in _COLORS if name in next(iter(costs.values()))]
    longest = max(cost[name] for cost in costs.values() for name in servers)
    scale = (_WIDTH - _LABEL - 90) / longest
    parts, y = [], 30
    for operation, cost in costs.items():
        parts.append(f'<text x="0" y="{y + 12}" font-weight="bold">{operation}</text>')
        for name in servers:
            length = cost[name] * scale
            parts.append(
                f'<rect x="{_LABEL}" y="{y}" width="{length:.0f}" height="{_BAR}" fill="{_COLORS[name]}"/>'
            )
            text = f"{cost[name]:.0f} ({cost[name] / cost['taskctl']:.1f} x)"
            parts.append(f'<text x="{_LABEL + length + 6:.0f}" y="{y + 11}">{text}</text>')
            y += _BAR + 2
        y += _GAP - _BAR
    legend, x = [], _LABEL
    for name in servers:
        legend.append(f'<rect x="{x}" y="4" width="12" height="12" fill="{_COLORS[name]}"/>')
        legend.append(f'<text x="{x + 17}" y="14">{name}</text>')
        x += 110
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y}" width="{_WIDTH}" height="{y}"'
        ' font-family="sans-serif" font-size="12" fill="#64748b">'
    )
    title = "<title>Microseconds of server CPU for one request</title>"
    return "\n".join([head, title, *legend, *parts, "</svg>", ""])
