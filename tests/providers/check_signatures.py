"""Verifies what the sidecar signs with the reference library of Standard Webhooks.

usage: check_signatures.py SIGNATURES.json
"""

import datetime
import json
import sys
from unittest import mock

from standardwebhooks import webhooks


def verifies(signed, secret, body):
    """At the moment of the signature, as a receiver would."""
    headers = {
        "webhook-id": signed["id"],
        "webhook-timestamp": str(signed["timestamp"]),
        "webhook-signature": signed["signature"],
    }
    now = datetime.datetime.fromtimestamp(signed["timestamp"] + 1, tz=datetime.timezone.utc)
    with mock.patch.object(webhooks, "datetime", wraps=datetime.datetime) as clock:
        clock.now.return_value = now
        try:
            webhooks.Webhook(secret).verify(body, headers)
        except webhooks.WebhookVerificationError:
            return False
        except json.JSONDecodeError:
            # Verified; the body holds a number that Python's own parser does not take.
            return True
    return True


def main(path):
    with open(path, encoding="utf-8") as file:
        all_signed = json.load(file)
    for signed in all_signed:
        for secret in signed["secrets"]:
            if not verifies(signed, secret, signed["body"]):
                sys.exit(f"standardwebhooks (PyPI) rejects the signature of {signed['id']}")
            if verifies(signed, secret, signed["body"] + " "):
                sys.exit("standardwebhooks (PyPI) accepts a body that was changed: this check proves nothing")
    print(f"standardwebhooks (PyPI): {len(all_signed)} signatures verified, changed bodies rejected")


main(sys.argv[1])
