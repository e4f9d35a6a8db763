"""Generators and feature networks: the embedded ones, and how a user's own are found."""

from mpsearch.zoo.embedded import WEIGHTS, classifier, fashion_features, reference_path, sagan, stylegan2
from mpsearch.zoo.loading import load_generator, resolve

__all__ = [
    "WEIGHTS",
    "classifier",
    "fashion_features",
    "load_generator",
    "reference_path",
    "resolve",
    "sagan",
    "stylegan2",
]
