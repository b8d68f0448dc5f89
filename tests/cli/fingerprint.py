"""Random projections of tensors: a few numbers by which two tensors can be compared without storing either.

For a random vector r with independent entries of variance 1, <r, a - b> has the variance |a - b|^2, so the root mean
square of a few such differences estimates |a - b|."""

import zlib

import torch

COUNT = 4


def projections(name: str, tensor: torch.Tensor) -> list:
    """<r_k, tensor> for k < COUNT, in fp64; r_k is drawn from `name`."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    r = torch.randn(COUNT, tensor.numel(), generator=generator, dtype=torch.float64)
    return (r @ tensor.detach().double().flatten()).tolist()


def of(name: str, tensor: torch.Tensor) -> list:
    """The norm, then the projections, to eight digits."""
    values = [tensor.detach().double().norm().item(), *projections(name, tensor)]
    return [float(f"{value:.8g}") for value in values]


def distance(name: str, tensor: torch.Tensor, stored: list) -> float:
    """An estimate of |tensor - the stored one|."""
    ours = torch.tensor(projections(name, tensor), dtype=torch.float64)
    return (ours - torch.tensor(stored[1:], dtype=torch.float64)).square().mean().sqrt().item()
