#!/usr/bin/env bash
# Shows every rendered body to the providers' own published models:
#   Slack      slack_sdk (PyPI) for all bodies, @slack/types and @slack/webhook (npm) through tsc
#   HighLevel  UpsertContactDto of @gohighlevel/api-client (npm) through tsc
# and what the sidecar signs to the reference libraries of Standard Webhooks (standardwebhooks, PyPI and npm),
# and checks that each of them rejects what is wrong.
#
# Needs cargo, python3 with pip, node and npm. The models are installed once, in the versions pinned in package.json and
# below, into ORBHOOK_MODELS_DIR (default: target/provider-models). Exits non-zero on any violation.
set -euo pipefail

slack_sdk_version=3.47.0
standardwebhooks_version=1.1.0

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
models=${ORBHOOK_MODELS_DIR:-$target/provider-models}
bodies=$target/tmp/provider-bodies

for tool in cargo python3 node npm; do
  command -v "$tool" >/dev/null || { echo "check.sh: $tool is missing; install it and run this again" >&2; exit 1; }
done

# A stamp names the versions, so that a changed pin installs again.
stamp="slack_sdk $slack_sdk_version standardwebhooks $standardwebhooks_version $(cksum <"$here/package.json")"
if [[ ! -f $models/installed || $(<"$models/installed") != "$stamp" ]]; then
  rm -rf "$models"
  mkdir -p "$models"
  python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore \
    --target "$models/python" "slack_sdk==$slack_sdk_version" "standardwebhooks==$standardwebhooks_version"
  cp "$here/package.json" "$models/"
  npm install --prefix "$models" --no-package-lock --ignore-scripts --no-audit --no-fund --loglevel=error
  echo "$stamp" >"$models/installed"
fi

rm -rf "$bodies"
(cd "$root" && cargo test --quiet -p orbhook-providers --test it bodies:: >/dev/null)

PYTHONPATH="$models/python" python3 "$here/check_slack.py" "$bodies/slack"
node "$here/write_types.mjs" "$bodies" "$models"
"$models/node_modules/.bin/tsc" --project "$models/tsconfig.json"
PYTHONPATH="$models/python" python3 "$here/check_signatures.py" "$here/signatures.json"
NODE_PATH="$models/node_modules" node "$here/check_signatures.cjs" "$here/signatures.json"
echo "provider models: all rendered bodies and signatures are valid, all wrong ones were rejected"
