"""Checks rendered Slack messages against slack_sdk's models and the limits those models do not know.

Usage: check_slack.py DIRECTORY with one message per *.json file.
"""

import json
import re
import sys
from pathlib import Path

from slack_sdk.errors import SlackObjectFormationError
from slack_sdk.models.blocks import Block
from slack_sdk.models.metadata import Metadata

BLOCKS_MAX = 50
SECTION_UNITS_MAX = 3_000
MESSAGE_UNITS_MAX = 12_000
TYPES = 43
VARIANTS = 7


def faults(message):
    """What is wrong with a message, one sentence each."""
    found = []
    blocks = message.get("blocks", [])
    if not 1 <= len(blocks) <= BLOCKS_MAX:
        found.append(f"{len(blocks)} blocks")
    if not message.get("text"):
        found.append("no fallback text")
    for index, block in enumerate(blocks):
        found += [f"block {index}: {fault}" for fault in block_faults(block)]
    if sum(units(block["text"]["text"]) for block in blocks if "text" in block) > MESSAGE_UNITS_MAX:
        found.append("too long over all blocks")
    metadata = message.get("metadata")
    if metadata and Metadata(**metadata).to_dict() != metadata:
        found.append("metadata does not survive slack_sdk")
    return found


def block_faults(block):
    try:
        parsed = Block.parse(block)
        if parsed is None:
            return [f"unknown type {block.get('type')}"]
        if parsed.to_dict() != block:
            return ["does not survive slack_sdk"]
    except (SlackObjectFormationError, TypeError) as error:
        return [f"slack_sdk: {error}"]
    if block["type"] == "header" and block["text"]["type"] != "plain_text":
        return ["a header takes plain text only"]
    text = block["text"]["text"]
    if not 1 <= units(text) <= SECTION_UNITS_MAX:
        return [f"{units(text)} characters"]
    if re.search(r"[<>]|&(?!(amp|lt|gt);)", text):
        return ["an unescaped character"]
    return []


def units(text):
    return len(text.encode("utf-16-le")) // 2


def section(text, **more):
    return {"type": "section", "text": {"type": "mrkdwn", "text": text, **more}}


def wrong_messages():
    """Each has one fault; all must be rejected."""
    good = {"text": "x", "blocks": [section("x")]}
    yield {**good, "blocks": [section("x" * 3_001)]}
    yield {**good, "blocks": [section("")]}
    yield {**good, "blocks": [section("x", emoji=True)]}
    yield {**good, "blocks": [section("<!channel>")]}
    yield {**good, "blocks": [section("a & b")]}
    yield {**good, "blocks": [section("x")] * 51}
    yield {**good, "blocks": [section("x" * 2_500)] * 5}
    yield {**good, "blocks": [{"type": "section"}]}
    yield {**good, "blocks": [{"type": "sektion", "text": {"type": "mrkdwn", "text": "x"}}]}
    yield {**good, "blocks": [{"type": "header", "text": {"type": "mrkdwn", "text": "x"}}]}
    yield {**good, "text": ""}


def main(directory):
    paths = sorted(Path(directory).glob("*.json"))
    if len(paths) != TYPES * VARIANTS:
        sys.exit(f"check_slack.py: {len(paths)} messages in {directory}, {TYPES * VARIANTS} expected")
    violations = [f"{path.name}: {fault}" for path in paths for fault in faults(json.loads(path.read_text("utf-8")))]
    for wrong in wrong_messages():
        if not faults(wrong):
            violations.append(f"a wrong message was accepted: {json.dumps(wrong)[:120]}")
    if violations:
        sys.exit("\n".join(violations))


main(*sys.argv[1:])
