"""Runs in MLflow: a projection of what they have on disk, sent live or by a command later.

A run never talks to MLflow itself. It describes itself in a small file beside its tables
(`record`, kept by `session`), and a second process reads description and tables and sends what the
store does not have yet (`follow`, or `jaxtrader upload-runs`; both are `upload`). So a slow, dead
or absent server costs training nothing, and what is sent twice is there once.
"""
