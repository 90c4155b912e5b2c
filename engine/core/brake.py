"""The sanity brake: refusals that rest on nothing must not pile up unquestioned (design: hard rule 5).

1. It counts *unbacked* refusals only (`rcpt_rejected`): no provider row, no word about the recipient.
2. An acceptance starts the count of its lane anew; a backed refusal neither counts nor clears.
3. Tripped, it wants one positive control; only that control's reply releases it.
4. The identity's brake adds up what is too little for each lane: a short list meets few sites, and asks little at each.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from enum import StrEnum

IN_A_ROW = 20  # unbacked refusals in a row over at least MANY_DOMAINS domains of a lane, or TWO_DOMAINS of all lanes
MANY_DOMAINS = 3
TWO_DOMAINS = 2
ONE_DOMAIN = 30  # or this many in a row, all of them at one domain
SITES = 25  # the identity looks at the last answers of this many sites
SUSPECT_SITES = 20  # and trips when this many of them are unbacked refusals
UNCLEAR_TWICE = 2  # a positive control without a clear answer is asked again once
AGAIN_S = 15 * 60.0  # after this long


class Doubt(StrEnum):
    """How a brake stands: untripped, waiting for its positive control, or sure that the refusals prove nothing."""

    NONE = "none"
    ASKING = "asking"
    SUSPECT = "suspect"


class Brake:
    """The brake of one lane."""

    __slots__ = ("_recent", "_unclear", "again_s", "ask_at", "asked", "distrusts", "doubt", "everywhere", "words")

    def __init__(self, again_s: float = AGAIN_S) -> None:
        self._recent: tuple[str, ...] = ()  # the newest ONE_DOMAIN domains of the unbacked refusals since an acceptance
        self._unclear = 0
        self.again_s = again_s
        self.ask_at = 0.0
        self.doubt = Doubt.NONE
        self.distrusts = False  # its unbacked refusals prove nothing, until somebody is accepted
        self.asked = False  # this doubt has had its first positive control
        self.everywhere = False  # the identity's brake tripped, at this lane's last refusal
        self.words = ""  # of the last unbacked refusal: the positive control is compared with them

    def accepted(self) -> None:
        """Somebody was accepted: the refusals so far stand."""
        self.distrusts = False
        self.release()

    def refused(self, domain: str, words: str, now: float) -> bool:
        """An unbacked refusal; True when it trips the brake."""
        self._recent = (*self._recent, domain)[-ONE_DOMAIN:]
        self.words = words
        if self.doubt is not Doubt.NONE or not self._tripped():
            return False
        self.trip(now)
        return True

    def trip(self, now: float, *, everywhere: bool = False) -> None:
        """Ask for a positive control from `now` on; `everywhere` when the doubt is about the identity."""
        self.doubt = Doubt.ASKING
        self.asked = False
        self.everywhere = everywhere
        self.ask_at = now

    def answered(self, *, accepted: bool, refused_alike: bool, now: float) -> Doubt:
        """The positive control came back; says how the brake stands after it."""
        if accepted:
            self.accepted()
        elif refused_alike:
            self.doubt = Doubt.SUSPECT
        else:
            self._unclear += 1
            self.doubt = Doubt.SUSPECT if self._unclear >= UNCLEAR_TWICE else Doubt.ASKING
            self.ask_at = now + self.again_s
        self.distrusts = self.doubt is Doubt.SUSPECT
        return self.doubt

    def release(self) -> None:
        """Count anew: the doubt is answered or has been acted on."""
        self._recent = ()
        self._unclear = 0
        self.doubt = Doubt.NONE
        self.asked = False
        self.everywhere = False

    @property
    def domains(self) -> frozenset[str]:
        """The domains that the doubt concerns."""
        return frozenset(self._recent)

    @property
    def most_refused(self) -> str:
        """The domain with most of the refusals: its postmaster is the positive control where nobody was accepted."""
        return max(self._recent, key=self._recent.count, default="")

    def _tripped(self) -> bool:
        recent = self._recent
        last = recent[-IN_A_ROW:]
        if len(last) == IN_A_ROW and len(set(last)) >= MANY_DOMAINS:
            return True
        return len(recent) == ONE_DOMAIN and len(set(recent)) == 1

    def __repr__(self) -> str:
        return f"<Brake {self.doubt} after {len(self._recent)} unbacked>"


class IdentityBrake:
    """The brake above all lanes of one identity: one answer a site, the last 25 sites that answered; and the last row.

    In the row stand unbacked refusals, one after the other, without anybody accepted or refused as a recipient between.
    """

    __slots__ = ("_row", "_sites", "_suspect")

    def __init__(self) -> None:
        self._sites: OrderedDict[str, bool] = OrderedDict()  # whether its last answer was unbacked; the newest last
        self._suspect = 0  # how many of these were
        self._row: deque[str] = deque(maxlen=IN_A_ROW)

    def answered(self, site: str, domain: str, *, unbacked: bool, heard: bool = True) -> bool:
        """A site's last answer; True when this one trips the brake. It then counts anew.

        `heard`: if it is no unbacked refusal it shows that we are heard there, as a put-off does not.
        """
        self._suspect += unbacked - self._sites.pop(site, False)
        self._sites[site] = unbacked
        if len(self._sites) > SITES:
            self._suspect -= self._sites.popitem(last=False)[1]
        if not unbacked:
            if heard:
                self._row.clear()
            return False
        self._row.append(domain)
        in_a_row = len(self._row) == IN_A_ROW and len(set(self._row)) >= TWO_DOMAINS
        if not in_a_row and self._suspect < SUSPECT_SITES:
            return False
        self._sites.clear()
        self._suspect = 0
        self._row.clear()
        return True

    def __repr__(self) -> str:
        return f"<IdentityBrake {self._suspect} of {len(self._sites)} sites unbacked>"
