"""HTTP to models and back, one module a subject; no SQL here."""
