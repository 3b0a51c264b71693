// Writes rendered bodies as TypeScript literals, so that tsc compares them with the providers' published types.
//
// Usage: write_types.mjs BODIES_DIRECTORY MODELS_DIRECTORY; tsc then compiles MODELS_DIRECTORY/tsconfig.json.
// Types hold no lengths, so one body of each type and a few hostile ones are enough.

import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const [bodies, models] = process.argv.slice(2);

const slack = {
  imports: [
    'import type { KnownBlock } from "@slack/types";',
    'import type { IncomingWebhookSendArguments } from "@slack/webhook";',
    // The webhook's own union of blocks lets any block through.
    'type Body = Omit<IncomingWebhookSendArguments, "blocks"> & { blocks: KnownBlock[] };',
  ],
  wrong: [
    { text: "x", blocks: [{ type: "header", text: { type: "mrkdwn", text: "*x*" } }] },
    { text: "x", blocks: [{ type: "section", text: { type: "mrkdwn" } }] },
    { text: "x", blocks: [{ type: "sektion" }] },
    { text: "x", blocks: [], orbhook: true },
  ],
};

const upsert = {
  imports: [
    'import type { UpsertContactDto } from "@gohighlevel/api-client/dist/lib/code/contacts/models/contacts";',
    "type Body = UpsertContactDto;",
  ],
  wrong: [
    { locationId: "l", contact: { email: "a@b.c" } },
    { locationId: "l", customFields: { user_id: "5" } },
    { locationId: "l", email: null },
    { email: "a@b.c" },
  ],
};

write("slack", slack, 43);
// Types without a user have no upsert.
write("gohighlevel_api", upsert, 30);
writeFileSync(
  join(models, "tsconfig.json"),
  JSON.stringify({
    compilerOptions: { noEmit: true, strict: true, skipLibCheck: true, module: "nodenext", moduleResolution: "nodenext", types: [] },
    files: ["slack.ts", "gohighlevel_api.ts"],
  }),
);

function write(kind, { imports, wrong }, fullCountMin) {
  const directory = join(bodies, kind);
  const names = readdirSync(directory).filter((name) => /\.full\.json$|^(USER|PAYMENT)_.*\.(hostile_text|deep_and_many)\.json$/.test(name));
  const fullCount = names.filter((name) => name.endsWith(".full.json")).length;
  if (fullCount < fullCountMin) {
    throw new Error(`${directory} holds ${fullCount} full bodies, at least ${fullCountMin} expected`);
  }
  const lines = [...imports];
  for (const name of names) {
    lines.push(`// ${name}`, literal(JSON.parse(readFileSync(join(directory, name), "utf8"))));
  }
  for (const body of wrong) {
    // tsc fails when the next line has no error.
    lines.push("// @ts-expect-error", literal(body));
  }
  writeFileSync(join(models, `${kind}.ts`), lines.map((line) => `${line}\n`).join("") + "export {};\n");
}

// On one line, since an expected error covers the next line alone. JSON is valid TypeScript.
function literal(body) {
  return `((_: Body) => {})(${JSON.stringify(body)});`;
}
