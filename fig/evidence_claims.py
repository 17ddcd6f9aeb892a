"""The paper's claims as differences of recorded accuracies, and what the intervals say of them."""

from __future__ import annotations

from dataclasses import dataclass

from fig.evidence_records import Evidence, Interval
from fig.record import MISSING

Term = tuple[float, str, str, str]  # weight, kind, name, arm
SEEN, NOT_SEEN, OPEN = "seen", "not seen", "not decidable at this size"

RETRAINED = ("brief", "re-trained"), ("trained", "re-trained longer")


@dataclass(frozen=True)
class Claim:
    """What the paper says or builds on, as a difference of accuracies.

    Args:
        text: the claim.
        what: is compared.
        terms: their sum is above 0 where the claim holds.
        within: instead: their sum is less than this many points where the claim holds.
    """

    text: str
    what: str
    terms: tuple[Term, ...]
    within: float | None = None

    def verdict(self, found: Interval | None) -> str:
        """Seen or not seen where the whole interval says so."""
        if found is None:
            return MISSING
        if self.within is None:
            return SEEN if found.low > 0 else NOT_SEEN if found.high < 0 else OPEN
        return SEEN if found.high < self.within else NOT_SEEN if found.low > self.within else OPEN

    def row(self, evidence: Evidence) -> list[str]:
        """The claim's line of the table."""
        found = evidence.sum(*self.terms)
        wanted = "> 0" if self.within is None else f"< {self.within:g}"
        shown = MISSING if found is None else f"{found.mean:+.2f} ± {found.high - found.mean:.2f}"
        return [self.text, f"{self.what} {wanted}", shown, f"{len(evidence.seeds(*self.terms))}", self.verdict(found)]


def more(kind: str, arm: str, a: str, b: str) -> tuple[Term, ...]:
    """Row a minus row b."""
    return (1, kind, a, arm), (-1, kind, b, arm)


def _loss(kind: str, r: int, weight: float) -> tuple[Term, ...]:
    return (weight, kind, "r0", "free"), (-weight, kind, f"r{r}", "free")


def _chosen(what: str, prefix: str, others: str, words: str = "") -> list[Claim]:
    """That the paper's choice is better than the others of its table; a row's name is r11-, prefix, and one of them."""
    return [
        Claim(
            f"the paper's choice is best: {what}",
            f"Vim, re-trained, r = 11: {what} minus {words}{name}",
            more("vim", "brief", "r11", f"r11-{prefix}{name}"),
        )
        for name in others.split()
    ]


CLAIMS = {
    "Ratio": [
        *(
            Claim(
                "Mamba loses more by merging than a Transformer",
                f"training-free, r = {r}: what Vim loses minus what DeiT loses",
                (*_loss("vim", r, 1), *_loss("deit", r, -1)),
            )
            for r in (11, 20)
        ),
        *(
            Claim("merging keeps more than pruning", f"{name}, {words}, r = {r}: merged minus pruned",
                  more(kind, arm, f"r{r}", f"r{r}-prune"))
            for kind, name in (("vim", "Vim"), ("deit", "DeiT"))
            for arm, words in (("free", "training-free"), ("brief", "re-trained"))
            for r in (11, 20)
        ),
        *(
            Claim("a short re-training recovers accuracy", f"Vim, r = {r}: {words} minus training-free",
                  ((1, "vim", f"r{r}", arm), (-1, "vim", f"r{r}", "free")))
            for arm, words in RETRAINED
            for r in (11, 20)
        ),
        *(
            Claim("re-trained, a merged Vim is within 1.3 points of the dense one",
                  f"r = 11: dense trained as long (the control) minus {words}", more("vim", arm, "r0", "r11"), 1.3)
            for arm, words in RETRAINED
        ),
    ],
    "Order": [
        *(
            Claim("Mamba needs its tokens in order", f"Vim, {words}, r = 11: in order minus not",
                  more("vim", arm, "r11", "r11-noorder"))
            for arm, words in (("free", "training-free"), *RETRAINED)
        ),
        *(
            Claim("a Transformer does not", f"DeiT, {words}, r = 11: in order minus not",
                  more("deit", arm, "r11", "r11-noorder"), 0.5)
            for arm, words in (("free", "training-free"), *RETRAINED)
        ),
        *(
            Claim("a Transformer does not", f"DeiT, {words}, r = 11: in order minus shuffled at 0.7",
                  more("deit", arm, "r11", "r11-shuffle0.7"), 0.5)
            for arm, words in (("free", "training-free"), ("brief", "re-trained"))
        ),
        *(
            Claim("the more is shuffled, the more is lost", f"Vim, {words}, r = 11: shuffled at 0.1 minus at 0.7",
                  more("vim", arm, "r11-shuffle0.1", "r11-shuffle0.7"))
            for arm, words in (("free", "training-free"), ("brief", "re-trained"))
        ),
    ],
    "Ablations": [
        *_chosen("metric X", "metric", "B C delta"),
        *_chosen("distance cosine", "", "l1 l2"),
        *_chosen("size-weighted average", "", "mean amax amin"),
        *_chosen("nearest token", "neighbour", "3 5 7 14", "neighbour "),
        Claim("the first epoch of re-training brings most", "Vim, r = 11: what 1 epoch brings minus what 14 more do",
              ((2, "vim", "r11-epochs1", "brief"), (-1, "vim", "r11", "free"),
               (-1, "vim", "r11-epochs15", "brief"))),
        Claim("(ours) the dense teacher helps", "Vim, r = 11: with minus without",
              more("vim", "brief", "r11", "r11-noteacher")),
        Claim("(ours) a tenth of the images costs", "Vim, r = 11: all data minus a tenth, at equal steps",
              more("vim", "brief", "r11", "r11-share10")),
    ],
    "Blocks": [
        Claim("(ours) late blocks bear merging better", "r = 30 before block 7 alone minus before block 1 alone",
              more("vim", "free", "block7", "block1")),
    ],
    "Elastic": [
        Claim("(ours) one set of weights does what one for each r does", f"r = {r}: of its own minus elastic",
              ((1, "vim", f"r{r}", "brief"), (-1, "vim", f"r{r}", "elastic")), 1.0)
        for r in (0, 5, 11, 16)
    ],
}  # fmt: skip
