"""Polars and Altair over a study's tables: PGR with intervals, scaling fits, charts, the report.

Reads only `results.parquet` and `predictions.parquet`; knows neither Ray nor torch. Each script runs alone:
`python -m analysis.pgr OUT`, `python -m analysis.report OUT`.
"""
