"""The list of packages, which setup.cfg cannot say: all that stand below `rebalance/`, and the recipes beside it."""

from setuptools import find_namespace_packages, setup

setup(packages=[*find_namespace_packages(include=["rebalance", "rebalance.*"]), "rebalance.recipes"])
