"""w2s_ray: weak-to-strong generalization, measured at scale."""

__version__ = "0.1.0"
