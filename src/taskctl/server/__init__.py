"""The HTTP API and all that stands behind it. Never imports the client or the command line."""
