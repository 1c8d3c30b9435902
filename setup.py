"""What pyproject.toml can't say: the folder studies/ stays at the top of the repository and is installed inside the package."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["w2s_ray*", "analysis*"]), "w2s_ray.studies"],
    package_dir={"w2s_ray.studies": "studies"},
)
