"""All use of Ray: the schedule of packs, the Tune searcher, the Ray Train trainable, the cluster's resources, progress.

Ray's private interface is used in `ray_internals.py` alone.
"""
