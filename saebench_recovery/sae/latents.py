"""A SAELens sparse autoencoder read statelessly in float32, and the few latents under defense.

Every supported architecture is brought to one form when it is loaded (`sae_files`): with N the
SAE's input normalisation,

    p = N(x) @ encoder + bias                                       pre-activation
    z = [p > threshold] * relu(gain * p + offset)                   standard, jumprelu, gated
    z = relu(p) or p where p (or |p|) is among the k largest        topk, abstopk

`bias` already holds -b_dec @ W_enc where the SAE subtracts b_dec from its input. For a gated SAE
p is the gate's pre-activation; the magnitude reads the same direction, so gain = exp(r_mag) and
offset = b_mag - b_gate * gain. Checked against `sae_lens` 6.54 for every combination in the
tests. `sae_lens` itself keeps normalisation statistics on the module between encode and decode;
nothing here has state.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import add
from typing import Literal

import torch
from torch import Tensor

from saebench_recovery.base.sites import Site
from saebench_recovery.sae.activations import Chosen, Threshold, TopK

Architecture = Literal["standard", "jumprelu", "gated", "topk", "abstopk"]
Normalisation = Literal["none", "layer_norm", "constant_norm_rescale"]

LAYER_NORM_EPS = 1e-5  # sae_lens adds it to the (unbiased) standard deviation
SMALLEST_NORM = 1e-12  # only keeps an all-zero residual row from becoming NaN
PIECE_BYTES = 2**30  # of a dictionary that a device holds at once, where latents are independent
FLOAT_BYTES = 4


@dataclass(frozen=True, eq=False)
class Dictionary:
    """A whole SAE at a site, of which a device holds only what is read.

    `encoder_DM` [d_model, width] and `decoder_MD` [width, d_model] have a latent per column and
    per row, as the SAE's file has them: in main memory, mapped to the file where it is
    safetensors, and in its precision. `columns` and `rows` bring some of them to `device` in
    float32. `centred`: the SAE sees the residual less its mean over D, because it normalises so
    (layer_norm) or because its model was loaded with centred writing weights. `norm_M`: norms of
    the decoder rows, where a topk SAE rescales by them. `forced`: its metadata name another model
    or hook point, and the user said to read it here all the same.
    """

    site: Site
    architecture: Architecture
    normalisation: Normalisation
    centred: bool
    activation: Threshold | TopK
    encoder_DM: Tensor
    bias_M: Tensor
    decoder_MD: Tensor
    decoder_bias_D: Tensor
    norm_M: Tensor | None = None
    device: torch.device | str = "cpu"
    forced: bool = False

    @property
    def d_model(self) -> int:
        """Width of the residual that it reads."""
        return self.encoder_DM.shape[0]

    @property
    def width(self) -> int:
        """How many latents it has."""
        return self.encoder_DM.shape[1]

    def columns(self, chosen: Chosen) -> Tensor:
        """Encoder directions [D, S] of some latents in raw residual coordinates."""
        columns_DS = self.encoder_DM[:, chosen].to(self.device, torch.float32)
        if self.centred:
            columns_DS = columns_DS - columns_DS.mean(0)
        return columns_DS if self.norm_M is None else columns_DS * self._norms(chosen)

    def rows(self, chosen: Chosen) -> Tensor:
        """Decoder rows [S, D] of some latents, in the SAE's output coordinates."""
        rows_SD = self.decoder_MD[chosen].to(self.device, torch.float32)
        if self.norm_M is None:
            return rows_SD
        return rows_SD / self._norms(chosen).clamp_min(SMALLEST_NORM)[:, None]

    def _norms(self, chosen: Chosen) -> Tensor:
        assert self.norm_M is not None
        return self.norm_M[chosen].to(self.device)

    def defended(self, features: Tensor) -> Latents:
        """The given latents [S] of this dictionary."""
        return Latents(self, features.long().cpu())

    @cached_property
    def whole(self) -> Latents:
        """All latents at once: the device then holds the whole dictionary in float32."""
        return Latents(self, slice(0, self.width))

    def pieces(self) -> Iterator[Latents]:
        """All latents, as many at a time as `PIECE_BYTES` hold.

        What fits one piece is kept on the device. So are topk SAEs, whose latents cannot be read
        one without the others.
        """
        size = max(1, PIECE_BYTES // (2 * FLOAT_BYTES * self.d_model))
        if size >= self.width or isinstance(self.activation, TopK):
            yield self.whole
            return
        for begin in range(0, self.width, size):
            yield Latents(self, slice(begin, min(begin + size, self.width)))

    @property
    def kept_bytes(self) -> int:
        """What the whole dictionary takes on the device, as far as it is kept there."""
        return self.whole.kept_bytes if "whole" in vars(self) else 0

    def preactivation(self, resid: Tensor) -> Tensor:
        """All pre-activations [..., M] of a raw residual [..., D], float32."""
        return self.whole.preactivation(resid)

    def encode(self, resid: Tensor) -> Tensor:
        """All activations [..., M] of a raw residual [..., D], float32, differentiable."""
        return self.activation(self.preactivation(resid))

    def decode(self, z_M: Tensor, resid: Tensor) -> Tensor:
        """Reconstruction [..., D] from all activations [..., M]; see `restored`."""
        return self.restored(self.whole.decoded(z_M), resid)

    def reconstruct(self, resid: Tensor) -> Tensor:
        """`decode(encode(resid), resid)`, in pieces."""
        each = (latents.decoded(latents.read(resid)) for latents in self.pieces())
        return self.restored(reduce(add, each), resid)

    def restored(self, decoded_D: Tensor, resid: Tensor) -> Tensor:
        """A sum of decoder rows [..., D] in raw residual coordinates, float32.

        The normalisation is undone with the statistics of `resid`, and a centred SAE gets back
        the mean of `resid`, so that `resid - decode(encode(resid), resid)` is the SAE's error.
        """
        recon = (decoded_D + self.decoder_bias_D) * self.scale(resid)
        return recon + resid.float().mean(-1, keepdim=True) if self.centred else recon

    def normalise(self, resid: Tensor) -> Tensor:
        """What the encoder columns read: the residual in float32, normalised."""
        x = resid.float()
        if self.normalisation == "none":
            return x  # centring, if any, is in the columns
        if self.centred:
            x = x - x.mean(-1, keepdim=True)
        if self.normalisation == "layer_norm":
            return x / (x.std(-1, keepdim=True) + LAYER_NORM_EPS)
        return x / self.scale(resid)

    def scale(self, resid: Tensor) -> Tensor:
        """Factor [..., 1] from the SAE's output coordinates back to residual coordinates."""
        x = resid.float()
        if self.normalisation == "none":
            return torch.ones_like(x[..., :1])
        if self.normalisation == "layer_norm":
            return x.std(-1, keepdim=True)
        if self.centred:
            x = x - x.mean(-1, keepdim=True)
        norm: Tensor = x.norm(dim=-1, keepdim=True).clamp_min(SMALLEST_NORM)
        return norm / math.sqrt(self.d_model)


@dataclass(frozen=True, eq=False)
class Latents:
    """Some latents of a dictionary: what a defense touches, and all that drift is read from.

    Only their own encoder columns and decoder rows are read from the dictionary, each when it is
    first needed, except for topk and abstopk SAEs, where the whole dictionary competes and must
    be encoded.
    """

    dictionary: Dictionary
    chosen: Chosen

    @cached_property
    def features(self) -> Tensor:
        """Their indices [S]."""
        return torch.arange(self.dictionary.width)[self.chosen].to(self.dictionary.device)

    @cached_property
    def columns_DS(self) -> Tensor:
        """Encoder directions [D, S] in raw residual coordinates.

        Centring and decoder-norm rescaling are folded in. Without normalisation, a residual
        moved orthogonally to them keeps its pre-activations.
        """
        return self.dictionary.columns(self.chosen)

    @cached_property
    def decoder_SD(self) -> Tensor:
        """Decoder rows [S, D], in the SAE's output coordinates (see `write`)."""
        return self.dictionary.rows(self.chosen)

    @cached_property
    def bias_S(self) -> Tensor:
        """What their pre-activations [S] are where the encoder directions read zero."""
        return self.dictionary.bias_M[self.chosen]

    @cached_property
    def _activation_S(self) -> Threshold | None:
        activation = self.dictionary.activation
        return activation.of(self.chosen) if isinstance(activation, Threshold) else None

    @property
    def kept_bytes(self) -> int:
        """Columns and rows that have been read so far."""
        read = (vars(self).get(name) for name in ("columns_DS", "decoder_SD"))
        return sum(weights.nbytes for weights in read if weights is not None)

    @property
    def normalisation(self) -> Normalisation:
        """What the SAE does to its input before the encoder reads it."""
        return self.dictionary.normalisation

    @property
    def centred(self) -> bool:
        """The latents read the residual less its mean over D."""
        return self.dictionary.centred

    @property
    def affine(self) -> bool:
        """Whether the pre-activation is an affine function of the raw residual."""
        return self.normalisation == "none"

    @property
    def exactness(self) -> Literal["exact", "first-order"]:
        """Whether fixed pre-activations of these latents fix their activations."""
        return "first-order" if self._activation_S is None else "exact"

    @property
    def note(self) -> str:
        """Why the constraint is not exact; empty where it is."""
        if self.exactness == "exact":
            return ""
        return (
            f"{self.dictionary.architecture}: pre-activations are held exactly, but latents "
            "compete for the k slots, so activations can still switch"
        )

    def preactivation(self, resid_BTD: Tensor) -> Tensor:
        """Pre-activations [B, T, S], float32, differentiable."""
        return self.dictionary.normalise(resid_BTD) @ self.columns_DS + self.bias_S

    def read(self, resid_BTD: Tensor) -> Tensor:
        """Activations [B, T, S], float32, differentiable."""
        if self._activation_S is None:
            return self.dictionary.encode(resid_BTD)[..., self.features]
        return self._activation_S(self.preactivation(resid_BTD))

    def inverse(self, z_BTS: Tensor) -> Tensor:
        """Pre-activations at which these latents, once on, have the given activations.

        A latent cannot show an activation below its threshold: it then reads 0.
        """
        if self._activation_S is None:
            return z_BTS
        return (z_BTS - self._activation_S.offset_M) / self._activation_S.gain_M

    def write(self, resid_BTD: Tensor, change_BTS: Tensor) -> Tensor:
        """The residual after a change of activations, the SAE's error kept; dtype kept.

        Adds `change @ decoder_SD`, scaled back by the residual's own statistics where the SAE
        normalises its input: the same as `x + decode(z + change) - decode(z)`.
        """
        edit = self.decoded(change_BTS)
        if not self.affine:
            edit = edit * self.dictionary.scale(resid_BTD)
        return (resid_BTD.float() + edit).to(resid_BTD.dtype)

    def decoded(self, z_BTS: Tensor) -> Tensor:
        """Contribution `z @ decoder_SD` [B, T, D] of activations, in the SAE's output space."""
        return z_BTS.float() @ self.decoder_SD
