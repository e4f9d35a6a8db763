"""Generators and feature networks: the embedded ones, and how a user's own are found."""

from mpsearch.zoo.embedded import WEIGHTS, classifier, cyclegan, fashion_features, reference_path, sagan
from mpsearch.zoo.loading import load_generator, resolve

__all__ = [
    "WEIGHTS",
    "classifier",
    "cyclegan",
    "fashion_features",
    "load_generator",
    "reference_path",
    "resolve",
    "sagan",
]
