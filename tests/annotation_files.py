"""Small look-alikes of annotation files, and what an adapter makes of them in comparable form."""

import json


def put(root, name, content):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return root


def videos(root, *paths):
    for path in paths:
        put(root, path, "x")
    return root


def listed(adapter):
    return {clip.clip_id: clip for clip in adapter.clips()}


def told(clip):
    """(text, source, start, end) of its captions; without the span where there is none."""
    values = ((c.text, c.source, c.start_seconds, c.end_seconds) for c in clip.captions)
    return [value if value[2] is not None else value[:2] for value in values]


def parts(adapter):
    """{"protocol part": clips}."""
    found = {}
    for protocol, clip_id, part in adapter.splits(adapter.clips()):
        found.setdefault(f"{protocol} {part}", []).append(clip_id)
    return found
