"""w2s_ray: weak-to-strong generalization, measured at scale.

In a notebook, `import w2s_ray as w2s`: `w2s.load` reads what a study found, `w2s.plan` and `w2s.run` do what the command line
does. `w2s_ray/notebook.py` says more.
"""

__version__ = "0.1.0"

from w2s_ray.errors import InputError
from w2s_ray.notebook import Report, RunStopped, load, plan, run

__all__ = ["InputError", "Report", "RunStopped", "__version__", "load", "plan", "run"]
