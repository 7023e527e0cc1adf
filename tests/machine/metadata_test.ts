// SPDX-License-Identifier: GPL-2.0-or-later
import fc from "fast-check";
import assert from "node:assert/strict";
import {
  EMPTY_METADATA,
  type MachineMetadata,
  metadataXml,
  type Owner,
  ownerJson,
  parseMetadata,
  parseOwner,
} from "../../src/machine/metadata.ts";

const CREATED = Date.UTC(2024, 4, 6, 7, 8, 9);

const OWNER: Owner = {
  job: "1",
  project: "p",
  created: CREATED,
  deadline: CREATED + 3600_000,
  attemptDir: "/nonexistent/attempt",
  runner: "812 1043 boot",
  host: "h",
  isRunner: true,
};

/** Any value of a field, by what it is when it is missing. */
function anyLike(key: keyof MachineMetadata): fc.Arbitrary<unknown> {
  const missing = EMPTY_METADATA[key];
  if (typeof missing === "boolean") return fc.boolean();
  if (typeof missing === "string") return fc.string({ unit: "grapheme-ascii" });
  return fc.option(fc.nat());
}

const KEYS = Object.keys(EMPTY_METADATA) as (keyof MachineMetadata)[];
const ANY = fc.record(
  Object.fromEntries(KEYS.map((key) => [key, anyLike(key)])),
  { noNullPrototype: true },
) as unknown as fc.Arbitrary<MachineMetadata>;

Deno.test("what is written of a machine is read again", () => {
  fc.assert(fc.property(ANY, (metadata) => {
    assert.deepEqual(parseMetadata(metadataXml(metadata).toString()), metadata);
  }));
  assert.deepEqual(parseOwner(ownerJson(OWNER)), OWNER);
});

Deno.test("what is missing or makes no sense is missing", () => {
  assert.deepEqual(parseMetadata("<machine/>"), EMPTY_METADATA);
  const nonsense = KEYS.filter((key) => typeof EMPTY_METADATA[key] !== "string")
    .map((key) => `${key}="no-such"`);
  assert.deepEqual(parseMetadata(`<machine ${nonsense.join(" ")}/>`), EMPTY_METADATA);
  assert.equal(nonsense.length, 8);
  for (const value of Object.values(EMPTY_METADATA)) assert(!value);
  assert(!/="[^"]/.test(metadataXml(EMPTY_METADATA).toString().replace(/xmlns:gci="[^"]*"/, "")));
});

Deno.test("an owner's volume of an older program is read", () => {
  const written =
    '{"job":"1","project":"p","attemptDir":"/nonexistent/attempt","runner":"812 1043 boot",' +
    '"isRunner":"yes","created":"2024-05-06T07:08:09.000Z","deadline":"2024-05-06T08:08:09.000Z",' +
    '"host":"h"}\n';
  assert.deepEqual(parseOwner(written), OWNER);
  const { isRunner: _, ...older } = JSON.parse(written);
  assert.deepEqual(parseOwner(JSON.stringify(older)), { ...OWNER, isRunner: false });
  assert.deepEqual(JSON.parse(ownerJson(OWNER)), JSON.parse(written)); // which reads ours too
});

Deno.test("an owner's volume without its contents, or with half of them, says nothing", () => {
  const json = ownerJson(OWNER);
  for (
    const text of ["", "\0\0\0", json.slice(0, 40), json.slice(0, 40) + "\0", "null", "7", "{}"]
  ) {
    assert.equal(parseOwner(text), null);
  }
});
