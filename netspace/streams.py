"""Random streams: one generator for each (seed, stream...), independent and the same on every machine."""

from __future__ import annotations

from enum import IntEnum

import torch


class Stream(IntEnum):
    """The uses of a seed's random numbers. The integers never change: equal seeds give equal results.

    A training run of a zoo draws from (seed, epoch), and a zoo's plan from (seed, hash of the architecture, run).
    """

    MEMBERS = 1  # order in which a space's networks are trained on; also over all architectures together
    INPUTS = 2  # order of training inputs
    AUGMENTATION = 3  # by step
    LINES = 5  # gamma of points between pairs, by step
    SETUP = 7  # example networks and probes of a new model
    BASELINE_NOISE = 11
    IMPORTED_SPLITS = 13  # of networks imported into a zoo
    START_NOISE = 13  # of latents that an optimisation starts from, by start; shares its integer
    SAMPLES = 17  # latents
    SAMPLE_NOISE = 19  # of the baseline of samples
    FRESH_NETWORKS = 23  # of architectures without trained ones, by ClassId and number
    SAMPLE_ENDS = 29  # pairs of ends whose latents are known
    FIT_KERNELS = 31  # by stage and step
    FIT_NOISE = 37  # inputs of noise, by stage and step
    FIT_PREDICTOR = 41  # initial weights, by stage
    POOL = 43  # training inputs that a fit makes batches of
    DISTURBANCE = 47  # of PReps, by step
    ANALYSED_IMAGES = 53
    ANALYSED_NETWORK = 59  # initial weights of an untrained network
    SURFACE_POINTS = 61  # on which two surfaces are compared, by surface
    SHAPE_LINES = 67  # members between which lines are measured
    CORRECTION_IMAGES = 71
    CORRECTION_NOISE = 73
    SIZES = 79  # architecture as which networks are decoded too, by step and part
    SAME_ACCURACY = 83  # ties between training networks
    DISTILLED_NETWORK = 89  # initial weights, by ClassId
    VARIETY = 97  # classes, images and labels that a run of a zoo learns from
    CLASS_MEMBERS = 100  # plus the ClassId: order of an architecture's networks; fewer than 900 architectures
    AUTO_DECODER = 1009  # initial weights
    AUTO_DECODED_SHAPES = 1013  # order of its training shapes
    AUTO_DECODED_POINTS = 1019  # of theirs, by step
    AUTO_DECODED_FIT = 1021  # inputs on which latents are found by descent, by step
    COMPLETION_POINTS = 1031  # on surfaces, by shape
    COMPLETION_STARTS = 1033  # random latents
    SCRATCH_NETWORKS = 1039  # initial weights, by number
    SCRATCH_POINTS = 1049  # off surfaces, by step
    DRAWN_WIDTHS = 1063  # of networks that share weights, by step
    RANDOM_CHANNELS = 1069  # that are kept, by group
    MORPH_TENSORS = 1087  # that get gradients, by stage and step
    MORPH_DRAWS = 1091  # of disturbed coordinates
    MORPH_FUNCTION = 1093  # initial weights
    LATENT_NOISE = 1051  # of variational autoencoders, by split
    IMPORTANCE_NOISE = 1061  # of their likelihoods, by split and sample
    LATENT_SAMPLES = 1097  # that they generate pictures from, by split
    SENSITIVITY = 1109  # signs of outputs
    CHANNEL_ORDERS = 1103  # pieces of paths that are exchanged, by group
    PROBE_MEMBERS = 1213  # whose properties are predicted, if there are too many
    SKETCHES = 1217  # of weights, for search
    BUDGET_INPUTS = 1301  # pictures or noise that a size is looked for with, by part
    STUDENT = 1303  # initial weights of a smaller network
    MEASURED_INPUTS = 1307  # noise on which an inference is timed
    PROBE_BOOTSTRAP = 1321  # training runs and splits of samples behind intervals
    TRANSFER = 1319  # initial weights of networks and of last layers, by seed


def generator(seed: int, *stream: int, device: str | torch.device = "cpu") -> torch.Generator:
    """Return the random generator of (seed, stream...): independent of others, and the same on every machine.

    The numbers are mixed by SplitMix64, so neighbouring seeds give unrelated streams.
    """
    state = 0
    for number in (seed, *stream):
        state = _splitmix(state ^ (number & _MASK))
    return torch.Generator(device=device).manual_seed(state >> 1)


_MASK = (1 << 64) - 1


def _splitmix(state: int) -> int:
    state = (state + 0x9E3779B97F4A7C15) & _MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
    return state ^ (state >> 31)
