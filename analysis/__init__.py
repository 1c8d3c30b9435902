"""Statistics, figures and the report of a study, made with Polars and Altair.

This package starts from the tables that `w2s report` writes, `results.parquet` and `predictions.parquet` first of all. It
imports neither Ray nor torch nor `w2s_ray`. `pgr`, `scaling`, `compare` and `report` also run as scripts, for example
`python -m w2s_ray.analysis.pgr OUT`, where OUT is the folder of those tables.
"""
