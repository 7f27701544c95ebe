# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

r"""
Drawing without replacement by stochastic beam search (Kool, van Hoof and Welling,
2019, arXiv 1903.06059).

Perturb the log-probability of every warmup c by independent Gumbel noise:
:math:`G_c = \log P(c|x) + g_c`. The K warmups with the largest :math:`G_c`, in that
order, are drawn one after the other from P(c|x) without replacement. To find them not
all warmups need be listed: the largest :math:`G_c` of all that begin alike has itself a
Gumbel distribution, about the log-probability of what they begin with. So a beam search
draws it first, and then those of the extensions, given their maximum.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from warmup_plugin.errors import WarmupError
from warmup_plugin.layout import DecoderLayout
from warmup_plugin.models.conditional import ConditionalModel, EncodedSource
from warmup_plugin.sampling.candidates import CandidatePast, Candidates
from warmup_plugin.sampling.tokens import check_finite


@torch.no_grad()
def draw_distinct_candidates(
    model: ConditionalModel,
    source: EncodedSource,
    layout: DecoderLayout,
    prefixes: Tensor,
    *,
    num_warmups: int,
    max_warmup_len: int,
) -> Candidates:
    r"""
    Draws K different warmups of each source from the model itself.

    The candidates of a source are in the order in which they are drawn without
    replacement. Only the first follows P(c|x), so ``proposal_log_probs`` is not the
    log-probability of a draw, but what keeps weighted sums right:

    .. math:: q_k = \log P(G_{c_k} > \kappa) - \log K

    where the threshold :math:`\kappa` is the :math:`(K+1)`-th largest :math:`G_c`. Then
    :math:`\frac{1}{K} \sum_k \exp(a_k - q_k) f(c_k)` is the estimate of
    :math:`\sum_c P(c|x) f(c)` that Kool et al. show to be unbiased; it is exact if
    there are only K warmups. With K = 1 its variance is infinite:
    :func:`~warmup_plugin.sampling.draw.draw_candidates` draws the same and needs no
    weight.

    Uses the default random generator of the device. The model must be in evaluation
    mode.

    :param prefixes: The tokens before a warmup. *Shape:* :math:`(N,P)`.
    :param max_warmup_len: The most tokens of a warmup; then the separator is forced.

    :raises WarmupError: If there are fewer than K warmups, or if the model gives a
        probability that is not a number.
    """
    num_sources, prefix_len = prefixes.shape

    device = prefixes.device

    allowed = layout.warmup_tokens(model.num_logits, device)

    # One more than asked for: its G is the threshold.
    num_beams = num_warmups + 1

    # All beams of a source begin alike: before the first step one stands for all.
    # (N, G), G beams; in fp64, since differences of large numbers decide
    log_probs = torch.zeros((num_sources, 1), dtype=torch.float64, device=device)

    perturbed = _perturb(log_probs)

    # (N, G, C)
    seqs = torch.full((num_sources, 1, max_warmup_len), layout.pad_idx, device=device)

    sources = torch.arange(num_sources, device=device)

    decoder = model.start(source, sources, prefix_len + max_warmup_len)

    # (A), A beams that still write, ``n * G + g``
    rows = sources

    tokens = prefixes

    for step_nr in range(max_warmup_len):
        logits = decoder.step(tokens, rows).float()

        # (A, E) each, E extensions a beam
        next_log_probs, next_perturbed, next_tokens = _extend(
            log_probs.flatten()[rows],
            perturbed.flatten()[rows],
            allowed.restrict(logits),
            num_beams,
        )

        # A beam that has ended competes, as it is, with the extensions of the others.
        # (N, G x E)
        pool = _pool(perturbed, rows, next_perturbed, fill=-torch.inf)

        begins = perturbed.size(1) * sources.unsqueeze(1)

        separators = torch.full_like(seqs[:, :, 0], layout.separator_idx)

        # (N, G)
        perturbed, best = pool.topk(min(num_beams, pool.size(1)), dim=1)

        log_probs = _pool(log_probs, rows, next_log_probs, fill=0.0).gather(1, best)

        last_tokens = _pool(separators, rows, next_tokens, fill=0).gather(1, best)

        parents = best // next_tokens.size(1)

        decoder.select((begins + parents).flatten())

        # An extension by a banned token only fills a place.
        writing = (last_tokens != layout.separator_idx) & perturbed.isfinite()

        seqs = seqs.gather(1, parents.unsqueeze(2).expand(-1, -1, max_warmup_len))

        seqs[:, :, step_nr] = last_tokens.masked_fill(~writing, layout.pad_idx)

        rows = writing.flatten().nonzero().squeeze(1)

        if rows.size(0) == 0:
            break

        # (A, 1)
        tokens = last_tokens.flatten()[rows].unsqueeze(1)

    found = perturbed != -torch.inf

    check_finite(log_probs[found])

    num_found = int(found.sum(dim=1).min())

    if num_found < num_warmups:
        raise WarmupError(
            f"`warmup.num_warmups` is {num_warmups}, but there are only {num_found} different warmups of at most {max_warmup_len} tokens; lower it or raise `warmup.max_warmup_len`."
        )

    # Without a warmup beyond the K, all of them are certain to be drawn.
    # (N, 1)
    threshold = pad(perturbed, (0, 1), value=-torch.inf)[:, num_warmups:num_beams]

    log_probs, writing, seqs = (x[:, :num_warmups] for x in (log_probs, writing, seqs))

    # P(G > threshold) = 1 - exp(-exp(a - threshold))
    proposal_log_probs = _log1mexp(-(log_probs - threshold).exp())

    proposal_log_probs = proposal_log_probs - math.log(num_warmups)

    kept = torch.arange(perturbed.numel(), device=device).view_as(perturbed)

    decoder.select(kept[:, :num_warmups].flatten())

    # (N, K, C) -> (B, C)
    seqs = seqs.flatten(0, 1)

    seq_lens = (seqs != layout.pad_idx).sum(dim=1)

    # A warmup has been read but for its last token if it was cut.
    past_lens = prefix_len + seq_lens.clamp(max=max_warmup_len - 1)

    return Candidates(
        seqs=seqs[:, : max(int(seq_lens.max()), 1)],
        seq_lens=seq_lens,
        cut=writing.flatten(),
        proposal_log_probs=proposal_log_probs.float(),
        warmup_log_probs=log_probs.float(),
        past=CandidatePast(decoder, past_lens),
    )


def _extend(
    log_probs: Tensor, perturbed: Tensor, logits: Tensor, max_num_extensions: int
) -> tuple[Tensor, Tensor, Tensor]:
    """
    Extends what has been written by one token, given the largest G among all that
    begins with it.

    :param log_probs: Its log-probability. *Shape:* :math:`(A)`.
    :param perturbed: The largest G. *Shape:* :math:`(A)`.
    :param logits: *Shape:* :math:`(A,V)`.

    :returns: The log-probabilities, the largest G and the tokens of the extensions
        with the largest G. *Shape:* :math:`(A,E)` each.
    """
    log_probs, perturbed = log_probs.unsqueeze(1), perturbed.unsqueeze(1)

    # (A, V)
    probs = logits.softmax(dim=1)

    # log p plus Gumbel noise is -log(e / p) with exponential noise e; the outer logarithm
    # is taken of the few that are kept. Never zero, for what is drawn is below one.
    noise = torch.rand_like(probs, dtype=torch.float64).log_().neg_()

    # (A, E)
    ratios, tokens = noise.div_(probs).topk(
        min(max_num_extensions, logits.size(1)), dim=1, largest=False
    )

    free = log_probs - ratios.log()

    # The condition that the largest is as large as `perturbed` shifts all of them
    # without changing their order. As it stands, -log(exp(-perturbed) - exp(-largest)
    # + exp(-free)), it overflows; this is Kool et al.'s stable form.
    shift = perturbed - free + _log1mexp(free - free[:, :1])

    given = perturbed - shift.clamp(min=0.0) - (-shift.abs()).exp().log1p()

    return log_probs + probs.gather(1, tokens).double().log(), given, tokens


def _pool(ended: Tensor, rows: Tensor, extensions: Tensor, *, fill: float) -> Tensor:
    """
    Lists, for each source, what its beams may go on as.

    :param ended: What a beam goes on as that has ended. *Shape:* :math:`(N,G)`.
    :param rows: The beams that have not, ``n * G + g``. *Shape:* :math:`(A)`.
    :param extensions: Theirs. *Shape:* :math:`(A,E)`.
    :param fill: Stands where there are fewer than E.

    :returns: *Shape:* :math:`(N,G \\times E)`.
    """
    columns = pad(ended.view(-1, 1), (0, extensions.size(1) - 1), value=fill)

    columns[rows] = extensions

    return columns.view(ended.size(0), -1)


def _perturb(log_probs: Tensor) -> Tensor:
    """Adds independent Gumbel noise."""
    # A third of the time of `exponential_()`. Never one, so the noise is never infinite;
    # should it be zero, that is one in 2^53 which is never drawn.
    return log_probs - torch.rand_like(log_probs).log_().neg_().log_()


def _log1mexp(x: Tensor) -> Tensor:
    """Computes log(1 - exp(x)) for x <= 0 without cancellation."""
    return torch.where(x > -math.log(2.0), (-x.expm1()).log(), (-x.exp()).log1p())
