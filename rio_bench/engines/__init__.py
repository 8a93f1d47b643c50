"""Engines: where workers run. One contract, see local.py: slots(), start(...) -> a job with poll, terminate, kill."""
