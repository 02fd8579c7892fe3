"""taskctl: multi-user tasks, a server and a command line in one package.

The map, from what imports nothing to what imports everything:

- `vocabulary`, `errors`: the words and outcomes that all parts share; standard library only.
- `quantities`, `signing_secret`, `strict_json`: durations and sizes; weak secrets and the kept one; JSON
  from strangers (standard library).
- `models`: what goes over the wire (pydantic).
- `setting`, `config`: the server's settings (pydantic); `contexts`: the client's (standard library).
- `tokens`: mint, verify and explain JWTs (PyJWT).
- `answers`, `transport`, `client`: what an answer means, how a request is sent and repeated, and one method
  per API operation (standard library).
- `server`: the HTTP API, its statements, tables, migrations and the embedded PostgreSQL.
- `cli`: the `taskctl` command, which reaches all of the above.
"""

__all__ = ["__version__"]


def __getattr__(name: str) -> str:
    """Look up `__version__` in the installed metadata when it is first asked for (PEP 562)."""
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415 - costs 10 ms that most commands save

        return version("taskctl")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
