"""Captions in several phrasings per action, and the prompts that stand for a class."""

from dataclasses import astuple

import numpy as np

from extract.datasets.ntu_names import NTUName
from extract.datasets.synthetic.actions import ACTIONS

_STREAM = 5
PER_CLIP = 3  # captions of each clip

_SUBJECTS = ("a person", "someone", "the performer", "a figure")

# Predicates by class name, third person singular; the first one is the plainest.
PHRASES: dict[str, tuple[str, ...]] = {
    "sit down": (
        "sits down",
        "sits down on a stool",
        "lowers themselves onto a stool",
        "takes a seat",
        "goes from standing to sitting",
    ),
    "stand up": (
        "stands up",
        "gets up from a stool",
        "rises to their feet",
        "gets out of the seat",
        "goes from sitting to standing",
    ),
    "pick up": (
        "picks something up",
        "bends down and picks something up from the floor",
        "reaches to the ground and lifts something",
        "takes something off the floor",
        "collects an object from the ground",
    ),
    "put down": (
        "puts something down",
        "bends down and puts something on the floor",
        "sets an object down on the ground",
        "places what they hold on the floor",
        "lays something down by their feet",
    ),
    "raise arms": (
        "raises the arms",
        "lifts the arms over the head",
        "brings the arms up and keeps them there",
        "puts the hands up in the air",
        "moves the arms from the sides to above the head",
    ),
    "lower arms": (
        "lowers the arms",
        "lets raised arms down",
        "brings the arms down from above the head",
        "drops the hands back to the sides",
        "moves the arms from above the head to the sides",
    ),
    "drink": (
        "drinks",
        "drinks from a cup",
        "lifts a hand to the mouth and drinks",
        "takes a sip of water",
        "has a drink",
    ),
    "wave": (
        "waves",
        "waves a hand",
        "waves hello",
        "swings a raised hand from side to side",
        "greets somebody by waving",
    ),
    "clap": (
        "claps",
        "claps the hands",
        "applauds",
        "strikes the palms together again and again",
        "gives a round of applause",
    ),
    "throw": (
        "throws something",
        "throws a ball",
        "draws the arm back and hurls something forward",
        "tosses an object away overarm",
        "pitches something ahead",
    ),
    "kick": (
        "kicks",
        "kicks into the air",
        "kicks something with one foot",
        "swings a leg forward",
        "lifts a leg and kicks out",
    ),
    "punch": (
        "punches",
        "throws a punch",
        "boxes into the air",
        "strikes out with a fist",
        "jabs straight ahead",
    ),
    "bow": (
        "bows",
        "takes a bow",
        "bends forward politely",
        "bows from the waist",
        "leans the upper body forward and straightens again",
    ),
    "jump": (
        "jumps",
        "jumps up",
        "leaps off the ground",
        "hops with both feet",
        "springs into the air and lands again",
    ),
    "walk in place": (
        "walks in place",
        "walks on the spot",
        "marches in place",
        "steps from foot to foot without moving away",
        "lifts one knee after the other",
    ),
    "crouch": (
        "crouches",
        "squats and comes up again",
        "crouches down for a moment",
        "does a squat",
        "ducks down low and straightens the knees again",
    ),
}


def captions(seed: int, name: NTUName) -> list[str]:
    """What the clip shows, in ``PER_CLIP`` different phrasings.

    Args:
        seed: Seed of the corpus.
        name: The clip.

    Returns:
        Sentences in lower case without a full stop, the same for the same arguments.
    """
    random = np.random.default_rng([seed, _STREAM, *astuple(name)])
    phrases = PHRASES[ACTIONS[name.action - 1].name]
    chosen = random.choice(len(phrases), PER_CLIP, replace=False)
    subjects = random.choice(len(_SUBJECTS), PER_CLIP)
    return [f"{_SUBJECTS[who]} {phrases[what]}" for who, what in zip(subjects, chosen, strict=True)]
