// Verifies what the sidecar signs with the reference library of Standard Webhooks.
//
// usage: check_signatures.cjs SIGNATURES.json

const { readFileSync } = require("node:fs");
const { Webhook, WebhookVerificationError } = require("standardwebhooks");

// At the moment of the signature, as a receiver would.
function verifies(signed, secret, body) {
  const headers = {
    "webhook-id": signed.id,
    "webhook-timestamp": String(signed.timestamp),
    "webhook-signature": signed.signature,
  };
  Date.now = () => (signed.timestamp + 1) * 1000;
  try {
    new Webhook(secret).verify(body, headers);
    return true;
  } catch (error) {
    if (error instanceof WebhookVerificationError) return false;
    throw error;
  }
}

const allSigned = JSON.parse(readFileSync(process.argv[2], "utf8"));
for (const signed of allSigned) {
  for (const secret of signed.secrets) {
    if (!verifies(signed, secret, signed.body)) {
      throw new Error(`standardwebhooks (npm) rejects the signature of ${signed.id}`);
    }
    if (verifies(signed, secret, `${signed.body} `)) {
      throw new Error("standardwebhooks (npm) accepts a body that was changed: this check proves nothing");
    }
  }
}
console.log(`standardwebhooks (npm): ${allSigned.length} signatures verified, changed bodies rejected`);
