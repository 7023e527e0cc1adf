// SPDX-License-Identifier: GPL-2.0-or-later

import fc from "fast-check";
import assert from "node:assert/strict";
import { parse } from "yaml";

import { cloudInitSeed } from "../../src/machine/storage/seed.ts";

const KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGtleQ job@host";
const HOST_KEY = { privateKey: "-----BEGIN\nkey\n-----END\n", publicKey: "ssh-ed25519 AAAA host" };
const SEED = {
  machine: "gci-42",
  user: "gitlab-runner",
  shell: "bash" as const,
  publicKeys: [KEY],
  hostKey: HOST_KEY,
};

Deno.test("a seed names the machine after itself, as an instance of its own", () => {
  assert.deepEqual(read(cloudInitSeed(SEED)).metaData, {
    "instance-id": "gci-42",
    "local-hostname": "gci-42",
  });
});

Deno.test("a seed makes one user who logs in with the keys only and has sudo", () => {
  const { users, ...others } = read(cloudInitSeed(SEED)).userData;

  assert.deepEqual(users, [{
    name: "gitlab-runner",
    lock_passwd: true,
    shell: "/bin/bash",
    sudo: "ALL=(ALL) NOPASSWD:ALL",
    ssh_authorized_keys: [KEY],
  }]);
  assert.equal(others.ssh_pwauth, false);
  assert.ok(!("disable_root" in others));
  assert.ok(!("ssh_authorized_keys" in others));
});

Deno.test("a seed gives its user the shell of scripts, since a guest may have no other", () => {
  const shellOf = (shell: "bash" | "sh"): string =>
    read(cloudInitSeed({ ...SEED, shell })).userData.users[0].shell;
  assert.equal(shellOf("sh"), "/bin/sh");
  assert.equal(shellOf("bash"), "/bin/bash");
});

Deno.test("a seed for root lets root in and makes no user", () => {
  const { userData } = read(cloudInitSeed({ ...SEED, user: "root" }));

  assert.deepEqual(userData.users, []);
  assert.equal(userData.disable_root, false);
  assert.deepEqual(userData.ssh_authorized_keys, [KEY]);
  assert.equal(userData.ssh_pwauth, false);
});

Deno.test("a seed leaves the packages and the network to the template", () => {
  const image = cloudInitSeed(SEED);

  assert.equal(read(image).userData.package_update, false);
  assert.equal(read(image).userData.package_upgrade, false);
  assert.equal(readFile(image, "network-config"), null);
});

Deno.test("a seed gives the guest its host key, and the template's own are deleted", () => {
  const { userData } = read(cloudInitSeed(SEED));

  assert.deepEqual(userData.ssh_keys, {
    ed25519_private: HOST_KEY.privateKey,
    ed25519_public: HOST_KEY.publicKey,
  });
  assert.equal(userData.ssh_deletekeys, true);
});

Deno.test("the user-data of a seed begins with the line that cloud-init asks for", () => {
  assert.ok(readFile(cloudInitSeed(SEED), "user-data")!.startsWith("#cloud-config\n"));
});

Deno.test("the same seed gives the same image", () => {
  assert.deepEqual(cloudInitSeed(SEED), cloudInitSeed({ ...SEED, publicKeys: [KEY] }));
});

Deno.test("a seed keeps each value as it is, whatever YAML would make of it", () => {
  const values = [
    'a "quoted" word',
    "an 'other'",
    "a\nusers: []",
    "key: value",
    "# comment",
    "a #b",
    "- item",
    "{a: b}",
    "[a]",
    "&anchor",
    "*alias",
    "!!binary x",
    "%TAG",
    "@",
    "`",
    "| x",
    "> x",
    "---",
    "...",
    "yes",
    "No",
    "on",
    "~",
    "null",
    "true",
    "0x10",
    "017",
    "1_000",
    "12:30:45",
    "1e3",
    ".inf",
    "=",
    "<<",
    "2026-01-01",
    "",
    " ",
    " padded ",
    "tab\there",
    "back\\slash",
    "Zoë 日本語 🦊",
    "x ".repeat(200),
  ];
  for (const value of values) assertKept(value);
});

Deno.test("a seed keeps any text", () => {
  fc.assert(fc.property(fc.string({ unit: "binary" }), assertKept), { numRuns: 300 });
});

function assertKept(value: string): void {
  if (value === "root") return;
  const expected = {
    ...read(cloudInitSeed(SEED)).userData.users[0],
    name: value,
    ssh_authorized_keys: [value, KEY],
  };
  const image = cloudInitSeed({
    machine: value,
    user: value,
    shell: SEED.shell,
    publicKeys: [value, KEY],
    hostKey: { privateKey: value, publicKey: value },
  });
  // The yaml library reads YAML 1.2 if not told otherwise, cloud-init reads 1.1.
  for (const version of ["1.1", "1.2"] as const) {
    const { metaData, userData } = read(image, version);
    assert.deepEqual(userData.users, [expected]);
    assert.deepEqual(userData.ssh_keys, { ed25519_private: value, ed25519_public: value });
    assert.equal(
      Object.keys(userData).length,
      Object.keys(read(cloudInitSeed(SEED)).userData).length,
    );
    assert.deepEqual(metaData, { "instance-id": value, "local-hostname": value });
  }
}

function read(image: Uint8Array, version: "1.1" | "1.2" = "1.1") {
  return {
    metaData: parse(readFile(image, "meta-data")!, { version }),
    userData: parse(readFile(image, "user-data")!, { version }),
  };
}

/** A file by its Joliet name, see iso9660_test.ts for what else is in an image. */
function readFile(image: Uint8Array, name: string): string | null {
  const view = new DataView(image.buffer);
  const number = (offset: number) => view.getUint32(offset, true);
  let offset = number(17 * 2048 + 156 + 2) * 2048;
  for (; image[offset] > 0; offset += image[offset]) {
    const id = image.subarray(offset + 33, offset + 33 + image[offset + 32]);
    if (new TextDecoder("utf-16be").decode(id) !== name) continue;
    const start = number(offset + 2) * 2048;
    return new TextDecoder().decode(image.subarray(start, start + number(offset + 10)));
  }
  return null;
}
