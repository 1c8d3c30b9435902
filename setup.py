"""What pyproject.toml can't say: the folder studies/ stays at the top of the repository and is installed inside the package.

The folder analysis/ stays there too. The link w2s_ray/analysis makes it `w2s_ray.analysis`, in a checkout as in a wheel.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["w2s_ray*"]), "w2s_ray.studies"],  # find_packages follows the link
    package_dir={"w2s_ray.studies": "studies"},
)
