"""Generators and feature networks: the embedded ones, published ones, and how a user's own are found."""

from mpsearch.zoo.diffusion import Denoiser, Sampler, sampler
from mpsearch.zoo.embedded import (
    WEIGHTS,
    classifier,
    cyclegan,
    diffusion,
    diffusion_step,
    fashion_features,
    reference_path,
    sagan,
    stylegan2,
    stylegan2_mapping,
)
from mpsearch.zoo.image_features import EfficientNetFeatures
from mpsearch.zoo.inception import InceptionFeatures
from mpsearch.zoo.loading import is_published, load_generator, resolve
from mpsearch.zoo.pretrained import load_diffusers
from mpsearch.zoo.published import PUBLISHED, Note, fetch_published, load_published, unheard

__all__ = [
    "PUBLISHED",
    "WEIGHTS",
    "Denoiser",
    "EfficientNetFeatures",
    "InceptionFeatures",
    "Note",
    "Sampler",
    "classifier",
    "cyclegan",
    "diffusion",
    "diffusion_step",
    "fashion_features",
    "fetch_published",
    "is_published",
    "load_diffusers",
    "load_generator",
    "load_published",
    "reference_path",
    "resolve",
    "sagan",
    "sampler",
    "stylegan2",
    "stylegan2_mapping",
    "unheard",
]
