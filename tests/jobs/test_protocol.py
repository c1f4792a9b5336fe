"""The protocol of writers as a model, small enough to look at every state that there can be.

Two writers overwrite a dataset of one chunk, each with chunks of its own, or the second resumes.
Every step is one request of the store, as `lock`, `writer`, `state` and `blocks` in `xpatches.jobs`
make it. Between any two steps a writer may sleep for as long as the other takes, or be killed;
whoever finds a claim may take its holder for dead, for it may have slept for a lease.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

# What a store holds, by name: "claim 1" its run, "home a", "root" and the run that says complete or
# None, "ready" and "mark" the runs they count for, "chunk" the image it was made from. Objects of
# a bucket have versions, the number of the step that wrote them.
Objects = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Writer:
    """How far a writer is."""

    name: str
    step: str = "list"
    seen: tuple[tuple[int, str], ...] = ()
    claim: int = 0
    runs: tuple[str, ...] = ()
    known: Any = None
    """The version that a bucket told of."""


@dataclass(frozen=True)
class State:
    """A store and its writers."""

    objects: Objects
    writers: tuple[Writer, ...]

    def get(self, name: str) -> Any:
        return dict(self.objects).get(name)

    def claims(self) -> tuple[tuple[int, str], ...]:
        found = [(int(n.split()[1]), of) for n, of in self.objects if n.startswith("claim ")]
        return tuple(sorted(found))

    def with_(self, writer: Writer, **objects: Any) -> "State":
        """Give the state after a step; what is set to GONE is removed."""
        held = dict(self.objects) | {n.replace("_", " "): of for n, of in objects.items()}
        held = {name: of for name, of in held.items() if of is not GONE}
        writers = tuple(writer if w.name == writer.name else w for w in self.writers)
        return State(tuple(sorted(held.items(), key=repr)), writers)


GONE = object()
WEAKER = ("disk without homes", "bucket without conditions")
"""What the protocol is not."""
ENDED = ("done", "lost", "refused", "killed")
PLAN = ["demote", "unready", "arrays", "ready", "chunk", "mark", "finish"]
"""What an overwrite publishes or removes; each of it takes a check first."""
RESUMED = ["ready", "chunk", "mark", "finish"]


def is_mine(state: State, me: Writer) -> bool:
    """The check before every write."""
    claims = dict(state.claims())
    return claims.get(me.claim) == me.name and me.claim + 1 not in claims


def effect(state: State, me: Writer, what: str) -> dict[str, Any]:
    """Tell what a write changes; the chunk is made from the writer's image."""
    effects: dict[str, dict[str, Any]] = {
        "demote": {"root": None},
        "unready": {"ready": GONE},
        "arrays": {"root": None},
        "ready": {"ready": me.runs},
        "chunk": {"chunk": image_of(me)},
        "mark": {"mark": me.name},
        "finish": {"root": image_of(me)},
    }
    return effects[what]


def image_of(me: Writer) -> str:
    return me.name if me.runs[:1] in ((me.name,), ()) else me.runs[0]


def steps(state: State, me: Writer, kind: str) -> Iterator[State]:
    """Give what may become of a state by the next request of a writer."""
    if me.step in ENDED:
        return
    yield state.with_(replace(me, step="killed"))
    go, _, rest = me.step.partition(":")
    if go == "list":
        yield state.with_(replace(me, step="home", seen=state.claims()))
    elif go == "home":
        yield state.with_(replace(me, step="claim"), **{f"home_{me.name}": True})
    elif go == "claim":
        number = max((n for n, _ in me.seen), default=0) + 1
        if state.get(f"claim {number}") is None:
            claimed = replace(me, step="look", claim=number)
            yield state.with_(claimed, **{f"claim_{number}": me.name})
        else:
            yield state.with_(replace(me, step="refused"), **{f"home_{me.name}": GONE})
    elif go == "look":
        others = {of for of in state.claims() if of[0] != me.claim}
        if others <= set(me.seen) and state.get(f"home {me.name}"):
            yield state.with_(replace(me, step="end"))
        else:
            yield state.with_(replace(me, step="leave"))
    elif go == "end":  # the claims before, the first one first, and then their homes
        before = [n for n, _ in state.claims() if n < me.claim]
        homes = [r for _, r in me.seen if state.get(f"home {r}") or state.get(f"ended {r}")]
        if before and kind.startswith("bucket") and not is_mine(state, me):
            yield state.with_(replace(me, step="lost"))
        elif before and kind.startswith("bucket"):
            yield state.with_(replace(me, step=f"remove claim:{before[0]}"))
        elif before and not state.get(f"home {me.name}"):
            yield state.with_(replace(me, step="lost"))
        elif before:
            yield state.with_(me, **{f"claim_{before[0]}": GONE})
        elif homes:
            gone = {f"home_{homes[0]}": GONE, f"ended_{homes[0]}": GONE}
            yield state.with_(me, **gone)
        else:
            yield state.with_(replace(me, step="begin"))
    elif go == "remove claim":
        yield state.with_(replace(me, step="end"), **{f"claim_{rest}": GONE})
    elif go == "begin":
        resumes = me.name == "resumer" and state.get("ready") and state.get("root") is None
        if resumes:
            runs = (*state.get("ready"), me.name)
            plan = [
                w for w in RESUMED if w not in ("chunk", "mark") or state.get("mark") not in runs
            ]
            yield state.with_(replace(me, step=f"check:{plan[0]}", runs=runs))
        elif me.name == "resumer" and state.get("root"):
            yield state.with_(replace(me, step="leave"))
        else:
            yield state.with_(replace(me, step=f"check:{PLAN[0]}", runs=(me.name,)))
    elif go in ("check", "check again"):
        if not is_mine(state, me) or (
            rest == "finish" and not (state.get("mark") in me.runs and state.get("chunk"))
        ):
            yield state.with_(replace(me, step="lost"))
        else:
            yield state.with_(replace(me, step=f"{'replace' if 'again' in go else 'write'}:{rest}"))
    elif go == "write":
        objects = effect(state, me, rest)
        after = replace(me, step=following(state, me, rest), known=None)
        if kind in WEAKER or (kind == "disk" and state.get(f"home {me.name}")):
            yield state.with_(after, **objects)
        elif kind == "disk":
            yield state.with_(replace(me, step="lost"))
        elif GONE in objects.values():
            yield state.with_(after, **objects)  # a bucket removes without conditions
        elif any(state.get(name) is not None or is_there(state, name) for name in objects):
            yield state.with_(replace(me, step=f"version:{rest}"))
        else:
            yield state.with_(after, **objects, **versions(state, objects))
    elif go == "version":
        (name,) = effect(state, me, rest)
        yield state.with_(replace(me, step=f"check again:{rest}", known=state.get(f"v {name}")))
    elif go == "replace":
        objects = effect(state, me, rest)
        (name,) = objects
        if state.get(f"v {name}") == me.known and is_there(state, name):
            after = replace(me, step=following(state, me, rest), known=None)
            yield state.with_(after, **objects, **versions(state, objects))
        else:
            yield state.with_(replace(me, step=f"check:{rest}"))
    elif go == "leave" and kind.startswith("bucket"):
        mine = state.get(f"claim {me.claim}") == me.name
        yield state.with_(replace(me, step="unclaim" if mine else "done"))
    elif go == "unclaim":
        yield state.with_(replace(me, step="done"), **{f"claim_{me.claim}": GONE})
    elif go == "leave":  # the home is moved away at once, and then the claim to where it is
        moved = {f"home_{me.name}": GONE, f"ended_{me.name}": True}
        there = state.get(f"home {me.name}")
        yield state.with_(replace(me, step="move claim"), **(moved if there else {}))
    elif go == "move claim":
        moved = {f"claim_{me.claim}": GONE, f"ended_{me.name}": GONE}
        there = state.get(f"ended {me.name}")
        yield state.with_(replace(me, step="done"), **(moved if there else {}))


def is_there(state: State, name: str) -> bool:
    return name in dict(state.objects)


def versions(state: State, objects: dict[str, Any]) -> dict[str, Any]:
    """Number the versions of what a bucket holds."""
    return {f"v_{name}": (state.get(f"v {name}") or 0) + 1 for name in objects}


def following(state: State, me: Writer, what: str) -> str:
    if what == "finish":
        return "leave"
    plan = PLAN if me.runs == (me.name,) else RESUMED
    left = plan[plan.index(what) + 1 :]
    if plan is RESUMED and what == "ready" and state.get("mark") in me.runs:
        left = ["finish"]  # a run that counts has marked the block
    return f"check:{left[0]}"


START = {
    "nothing": (),
    "complete": (("chunk", "old"), ("root", "old"), ("v chunk", 1), ("v root", 1)),
    "killed": (
        *(("claim 1", "dead"), ("home dead", True), ("chunk", "dead"), ("root", None)),
        *(("ready", ("dead",)), ("mark", "dead"), ("v chunk", 1), ("v root", 1), ("v ready", 1)),
        ("v mark", 1),
    ),
}


def explore(start: State, kind: str) -> set[State]:
    """Find all states that can be reached."""
    found, left = {start}, [start]
    while left:
        state = left.pop()
        for writer in state.writers:
            for after in steps(state, writer, kind):
                if after not in found:
                    found.add(after)
                    left.append(after)
    return found


def is_sound(state: State) -> bool:
    """Whether what says complete is complete."""
    root = state.get("root")
    return root is None or state.get("chunk") == root


@pytest.mark.parametrize("kind", WEAKER)
def test_the_model_sees_what_checks_alone_let_through(kind: str) -> None:
    start = State(START["complete"], (Writer("first"), Writer("second")))
    assert not all(map(is_sound, explore(start, kind)))


@pytest.mark.parametrize("kind", ["disk", "bucket"])
@pytest.mark.parametrize("holds", [*START])
@pytest.mark.parametrize("second", ["second", "resumer"])
def test_what_says_complete_is_complete_whoever_sleeps_or_dies(
    kind: str, holds: str, second: str
) -> None:
    start = State(tuple(sorted(START[holds], key=repr)), (Writer("first"), Writer(second)))
    states = explore(start, kind)
    assert len(states) > 1000
    for state in states:
        assert is_sound(state), state
    ends = [s for s in states if all(writer.step in ENDED for writer in s.writers)]
    # After any end a third one goes on alone, and succeeds.
    for end in {replace(end, writers=(Writer("third"),)) for end in ends}:
        for after in explore(end, kind):
            (third,) = after.writers
            assert third.step not in ("lost", "refused"), after
            if third.step == "done":
                assert (after.get("root"), after.get("chunk")) == ("third", "third")
