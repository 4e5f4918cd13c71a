"""From channels to the 25 NTU joints in the room: forward kinematics of the trunk, inverse of the limbs.

World axes: y up from the floor, and for a performer who faces camera 1 (heading 0) x to their left and z
forward. All functions work on all frames at once.
"""

import numpy as np

from extract.datasets.synthetic.motion import Motion
from extract.datasets.synthetic.performer import Performer

# The order of NTU RGB+D (Kinect v2), where joint k of the papers is index k - 1 here.
JOINTS = (
    "spine_base",
    "spine_mid",
    "neck",
    "head",
    "left_shoulder",
    "left_elbow",
    "left_wrist",
    "left_hand",
    "right_shoulder",
    "right_elbow",
    "right_wrist",
    "right_hand",
    "left_hip",
    "left_knee",
    "left_ankle",
    "left_foot",
    "right_hip",
    "right_knee",
    "right_ankle",
    "right_foot",
    "spine_shoulder",
    "left_hand_tip",
    "left_thumb",
    "right_hand_tip",
    "right_thumb",
)
INDEX = {name: k for k, name in enumerate(JOINTS)}
# Parent of each joint; the root is its own.
PARENTS = (0, 0, 20, 2, 20, 4, 5, 6, 20, 8, 9, 10, 0, 12, 13, 14, 0, 16, 17, 18, 1, 7, 7, 11, 11)

_ELBOW_POLE = np.array([0.55, -0.6, -0.6])  # outward, up, forward in the chest's frame
_KNEE_POLE = np.array([0.18, 0.25, 1.0])  # outward, up, forward in the heading's frame


def _rotation(yaw: np.ndarray, pitch: np.ndarray, roll: np.ndarray) -> np.ndarray:
    """(T,) angles -> (T, 3, 3): roll about z, then pitch (forward) about x, then yaw (leftward) about y."""
    zero, one = np.zeros_like(yaw), np.ones_like(yaw)

    def matrix(*rows: list[np.ndarray]) -> np.ndarray:
        return np.stack([np.stack(row, -1) for row in rows], -2)

    cy, sy, cp, sp, cr, sr = (f(a) for a in (yaw, pitch, roll) for f in (np.cos, np.sin))
    about_y = matrix([cy, zero, sy], [zero, one, zero], [-sy, zero, cy])
    about_x = matrix([one, zero, zero], [zero, cp, -sp], [zero, sp, cp])
    about_z = matrix([cr, -sr, zero], [sr, cr, zero], [zero, zero, one])
    return about_y @ about_x @ about_z


def _turn(rotation: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Apply (T, 3, 3) rotations to a (3,) or (T, 3) vector -> (T, 3)."""
    return np.einsum("tij,...tj->ti", rotation, np.broadcast_to(vector, (len(rotation), 3)))


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.maximum(np.linalg.norm(vector, axis=-1, keepdims=True), 1e-9)


def two_bones(
    root: np.ndarray, target: np.ndarray, upper: float, lower: float, pole: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where the middle joint and the end of a two-bone limb are when it reaches for a target.

    Args:
        root: (T, 3) shoulder or hip.
        target: (T, 3) where the end should be; out of reach, the limb points at it, stretched.
        upper: Length of the first bone.
        lower: Length of the second bone.
        pole: (T, 3) direction in which the middle joint bends.

    Returns:
        (T, 3) elbow or knee, (T, 3) wrist or ankle.
    """
    reach = target - root
    distance = np.clip(
        np.linalg.norm(reach, axis=1, keepdims=True), abs(upper - lower) + 0.02, (upper + lower) * 0.998
    )
    along = _unit(reach)
    forward = (upper**2 - lower**2 + distance**2) / (2 * distance)
    aside = np.sqrt(np.maximum(upper**2 - forward**2, 0.0))
    bend = _unit(pole - (pole * along).sum(1, keepdims=True) * along)
    return root + forward * along + aside * bend, root + distance * along


def pose_joints(motion: Motion, performer: Performer) -> np.ndarray:
    """Give a motion its body.

    Args:
        motion: Channels over time.
        performer: Whose measures to use.

    Returns:
        (T, 25, 3) float64 joint positions in metres, in world axes, order ``JOINTS``.
    """
    out = np.empty((motion.frames, len(JOINTS), 3))
    chest = _trunk(motion, performer, out)
    for side, sign in (("left", 1.0), ("right", -1.0)):
        which = "main" if (side == "right") == motion.right_handed else "other"
        _arm(motion.channels[f"hand_{which}"], performer, chest, side, sign, out)
        _leg(motion, motion.channels[f"foot_{which}"], performer, side, sign, out)
    return out


def _trunk(motion: Motion, performer: Performer, out: np.ndarray) -> np.ndarray:
    """Fill in pelvis, spine, head, shoulders and hips; returns the chest's (T, 3, 3) rotation."""
    channel, length = motion.channels, performer.lengths
    side = -1.0 if motion.right_handed else 1.0  # leaning and turning to the main side
    heading = np.full(motion.frames, motion.heading)
    facing = _rotation(heading, 0 * heading, 0 * heading)
    pelvis = _rotation(heading, 0.35 * channel["pitch"], side * -0.5 * channel["roll"])
    chest = _rotation(heading - side * channel["twist"], channel["pitch"], side * -channel["roll"])
    gaze = heading - side * (channel["twist"] - channel["look"])
    head = _rotation(gaze, 0.7 * channel["pitch"] + channel["nod"], 0 * heading)
    offset = channel["pelvis"] * performer.leg
    offset[:, 2] -= 0.1 * performer.leg * np.sin(channel["pitch"])  # counterweight of a bent trunk
    standing = performer.leg + length["ankle_height"] + 0.3 * length["hip_half_width"]
    ground = np.array([motion.place[0], standing - 0.015, motion.place[1]])
    base = ground + _turn(facing, offset)
    spine = base + _turn(pelvis, np.array([0, length["lower_spine"], 0]))
    top = spine + _turn(chest, np.array([0, length["upper_spine"], 0]))
    neck = top + _turn(chest, np.array([0, length["neck"], 0.005]))
    for name, value in {
        "spine_base": base,
        "spine_mid": spine,
        "spine_shoulder": top,
        "neck": neck,
        "head": neck + _turn(head, np.array([0, length["head"], 0.03])),
    }.items():
        out[:, INDEX[name]] = value
    for name, sign in (("left", 1.0), ("right", -1.0)):
        shoulder = np.array([sign * length["shoulder_half_width"], -0.03, 0])
        hip = np.array([sign * length["hip_half_width"], -0.3 * length["hip_half_width"], 0])
        out[:, INDEX[f"{name}_shoulder"]] = top + _turn(chest, shoulder)
        out[:, INDEX[f"{name}_hip"]] = base + _turn(pelvis, hip)
    return chest


def _arm(
    hand: np.ndarray, performer: Performer, chest: np.ndarray, side: str, sign: float, out: np.ndarray
) -> None:
    length = performer.lengths
    outward = np.array([sign, 1.0, 1.0])
    shoulder = out[:, INDEX[f"{side}_shoulder"]]
    target = shoulder + _turn(chest, hand * outward * performer.arm)
    pole = _turn(chest, _ELBOW_POLE * outward)
    elbow, wrist = two_bones(shoulder, target, length["upper_arm"], length["forearm"], pole)
    along = _unit(wrist - elbow)
    inward = _unit(np.cross(along, _turn(chest, np.array([0.0, 0.0, 1.0]))) + 1e-6)
    palm = wrist + 0.45 * length["hand"] * along
    out[:, INDEX[f"{side}_elbow"]], out[:, INDEX[f"{side}_wrist"]] = elbow, wrist
    out[:, INDEX[f"{side}_hand"]] = palm
    out[:, INDEX[f"{side}_hand_tip"]] = wrist + length["hand"] * along
    out[:, INDEX[f"{side}_thumb"]] = palm + 0.3 * length["hand"] * (along + sign * inward)


def _leg(
    motion: Motion, foot: np.ndarray, performer: Performer, side: str, sign: float, out: np.ndarray
) -> None:
    length = performer.lengths
    heading = np.full(motion.frames, motion.heading)
    facing = _rotation(heading, 0 * heading, 0 * heading)
    outward = np.array([sign, 1.0, 1.0])
    stance = np.array([sign * performer.stance, length["ankle_height"], 0.0])
    ground = np.array([motion.place[0], 0.0, motion.place[1]])
    target = ground + _turn(facing, stance + foot * outward * performer.leg)
    hip = out[:, INDEX[f"{side}_hip"]]
    knee, ankle = two_bones(hip, target, length["thigh"], length["shin"], _turn(facing, _KNEE_POLE * outward))
    down, ahead = _unit(ankle - knee), _turn(facing, np.array([0.12 * sign, 0.0, 1.0]))
    # A foot stands at right angles to its shin; where the shin itself points ahead, the toes point up.
    level = (down * ahead).sum(1, keepdims=True)
    flat = ahead - np.array([0.0, 0.5 * length["ankle_height"] / length["foot"], 0.0])
    hanging = ahead - level * down + np.maximum(level, 0) * np.array([0, 0.5, 0])
    lifted = np.clip(np.linalg.norm(foot, axis=1, keepdims=True) / 0.1, 0, 1)
    toes = 0.8 * length["foot"] * _unit(_unit(flat) + lifted * (_unit(hanging) - _unit(flat)))
    out[:, INDEX[f"{side}_knee"]], out[:, INDEX[f"{side}_ankle"]] = knee, ankle
    out[:, INDEX[f"{side}_foot"]] = ankle + toes
