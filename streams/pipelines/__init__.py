"""The shipped pipelines: how stages are wired to topics."""
