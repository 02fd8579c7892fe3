"""taskctl: multi-user tasks, a server and a command line in one package.

The map, from what imports nothing to what imports everything:

- `vocabulary`, `errors`: the words and outcomes that all parts share; standard library only.
- `quantities`, `signing_secret`, `strict_json`: durations and sizes; weak secrets and the kept one; JSON
  from strangers (standard library).
- `recurrence`, `dates`, `entry`: recurrence rules; due dates as people write and read them; a task in one
  line of text (standard library).
- `models`: what goes over the wire (pydantic).
- `setting`, `trust`, `config`: the server's settings, whose tokens it trusts among them (pydantic).
- `jws`, `jwks`, `tokens`, `signing_keys`: a token taken apart; key sets that an issuer publishes; mint,
  verify and explain tokens; private keys in files (PyJWT, cryptography, httpx).
- `addresses`, `claims`, `contexts`, `vault`: the client's: where a server is, what a token says of itself,
  which server and as whom, secrets in the system's keyring (standard library).
- `answers`, `transport`, `client`, `better_auth`: what an answer means, how a request is sent and repeated,
  and one method per operation of the API and of an auth server (standard library).
- `formats`: tasks to and from the files of other programs (standard library).
- `tool_models`, `assistant`: what an assistant's tools take and return (pydantic); the tools, over the Model
  Context Protocol (the extra `mcp`).
- `server`: the HTTP API, its processes, statements, tables, migrations and the embedded PostgreSQL.
- `cli`: the `taskctl` command, which reaches all of the above.
"""

__all__ = ["__version__"]


def __getattr__(name: str) -> str:
    """Look up `__version__` in the installed metadata when it is first asked for (PEP 562)."""
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415 - costs 10 ms that most commands save

        return version("taskctl")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
