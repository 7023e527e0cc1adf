// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import {
  choosePlatform,
  hostPlatform,
  isIndex,
  parseManifest,
} from "../../src/image/registry/manifest.ts";
import { digestOf } from "../fakes/hostile_registry.ts";

const OCI = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX = "application/vnd.oci.image.index.v1+json";
const DOCKER = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json";
const BLOB = { mediaType: "application/octet-stream", digest: digestOf("x"), size: 1 };
const IMAGE = { schemaVersion: 2, config: BLOB, layers: [BLOB] };

function parse(content: unknown, mediaType = OCI) {
  const text = typeof content === "string" ? content : JSON.stringify(content);
  const bytes = new TextEncoder().encode(text);
  return parseManifest({ bytes, mediaType, digest: digestOf(bytes) }, "host/image:40");
}

for (const type of [OCI, DOCKER]) {
  Deno.test(`an image's manifest of the type ${type} is read`, () => {
    for (const content of [IMAGE, { ...IMAGE, mediaType: type, other: 5, annotations: null }]) {
      const manifest = parse(content, type);
      assert(!isIndex(manifest));
      assert.equal(manifest.layers[0]?.digest, BLOB.digest);
    }
  });
}

for (
  const [said, content, why, type] of [
    ["no JSON", "<html>", /is no JSON object/],
    ["no UTF-8", "\ufffd{", /is no JSON object/],
    ["a list", [], /is no JSON object/],
    ["null", "null", /is no JSON object/],
    [
      "docker's schema 1",
      { schemaVersion: 1, fsLayers: [] },
      /schema 1/,
      "application/vnd.docker.distribution.manifest.v1+prettyjws",
    ],
    ["docker's schema 1 as another", { schemaVersion: 1, fsLayers: [] }, /schema 1/],
    ["another type than it says", { ...IMAGE, mediaType: DOCKER }, /calls itself .*v2\+json.*says/],
    ["an unknown type", IMAGE, /unknown type "text\/html"/, "text/html"],
    ["no type", IMAGE, /unknown type ""/, ""],
    ["both", { ...IMAGE, manifests: [BLOB] }, /at once/],
    ["both as an index", { ...IMAGE, manifests: [BLOB] }, /at once/, OCI_INDEX],
    ["no layers", { schemaVersion: 2, config: BLOB }, /malformed at "layers"/],
    ["no config", { schemaVersion: 2, layers: [] }, /malformed at "config"/],
    ["another schema", { ...IMAGE, schemaVersion: 3 }, /malformed at "schemaVersion"/],
    ...([
      ["sha512", { ...BLOB, digest: `sha512:${"0".repeat(128)}` }, /digest.*no sha256/],
      ["a path for a digest", { ...BLOB, digest: "sha256:../../x" }, /digest.*no sha256/],
      ["a negative size", { ...BLOB, size: -1 }, /layers\.0\.size/],
      ["a size of half a byte", { ...BLOB, size: 0.5 }, /layers\.0\.size/],
      ["a huge size", { ...BLOB, size: 1e300 }, /layers\.0\.size/],
      ["a size in words", { ...BLOB, size: "1" }, /layers\.0\.size/],
      ["an annotation that is a number", { ...BLOB, annotations: { a: 1 } }, /annotations/],
    ] as const).map(([said, layer, why]) => [said, { ...IMAGE, layers: [layer] }, why] as const),
  ] as const satisfies readonly (readonly [string, unknown, RegExp, string?])[]
) {
  Deno.test(`a manifest with ${said} is refused`, () => {
    assert.throws(() => parse(content, type), (error) => {
      assert(error instanceof Error);
      assert.match(error.message, /^Cannot use the image "host\/image:40": /);
      assert.match(error.message, why);
      return true;
    });
  });
}

/** An index of images for these, each with its own digest. */
function indexOf(...platforms: readonly (string | undefined)[]) {
  const manifests = platforms.map((name, i) => {
    const [os, architecture, variant] = name?.split("/") ?? [];
    const digest = digestOf(String(i));
    const platform = name === undefined ? {} : { platform: { os, architecture, variant } };
    return { mediaType: OCI, digest, size: 10, ...platform };
  });
  return { schemaVersion: 2, manifests };
}

for (
  const [platforms, chosen] of [
    [["linux/arm64", "linux/amd64"], 1],
    [["linux/amd64/v3", "linux/amd64"], 1],
    [["linux/amd64/v3", "linux/arm64"], 0],
    [["windows/amd64", "unknown/unknown", "linux/amd64"], 2],
    [[undefined], 0],
    [["linux/amd64", "linux/amd64"], 0],
  ] as const
) {
  Deno.test(`of an index for ${platforms}, the image for linux/amd64 is number ${chosen}`, () => {
    for (const type of [OCI_INDEX, DOCKER_LIST]) {
      const index = parse(indexOf(...platforms), type);
      assert(isIndex(index));
      const { digest } = choosePlatform(index, hostPlatform("x86_64"), "host/image:40");
      assert.equal(digest, digestOf(String(chosen)));
    }
  });
}

for (const platforms of [["linux/arm64", "windows/amd64"], [undefined, undefined], []]) {
  Deno.test(`an index for ${platforms.join(" and ") || "nothing"} has no image for linux/amd64`, () => {
    const index = parse(indexOf(...platforms), OCI_INDEX);
    assert(isIndex(index));
    const choose = () => choosePlatform(index, hostPlatform("x86_64"), "host/image:40");
    assert.throws(choose, /no image for linux\/amd64, but for "/);
  });
}

Deno.test("an index of indexes has no image", () => {
  const manifests = [{
    ...BLOB,
    mediaType: OCI_INDEX,
    platform: { os: "linux", architecture: "amd64" },
  }];
  const index = parse({ schemaVersion: 2, manifests }, OCI_INDEX);
  assert(isIndex(index));
  assert.throws(() => choosePlatform(index, hostPlatform("x86_64"), "x"), /no image for/);
});

Deno.test("this host's platform is called as registries call it", () => {
  assert.deepEqual(hostPlatform("aarch64"), { os: "linux", architecture: "arm64" });
  assert.deepEqual(hostPlatform("riscv64"), { os: "linux", architecture: "riscv64" });
});
