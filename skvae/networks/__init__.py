"""Networks that encode rows and decode latents: maps from a parameter dictionary and a tensor to a tensor."""

from skvae._settings import register
from skvae.networks._base import Network, affine, matmul
from skvae.networks._conv import Conv, ConvTranspose
from skvae.networks._mlp import MLP
from skvae.networks._module import Module, build_module
from skvae.networks._variational import VariationalMLP

__all__ = ["MLP", "Conv", "ConvTranspose", "Module", "Network", "VariationalMLP", "affine", "build_module", "matmul"]

register("network", mlp=MLP, variational_mlp=VariationalMLP, module=Module)
register("encoder", conv=Conv)
register("decoder", conv=ConvTranspose)
