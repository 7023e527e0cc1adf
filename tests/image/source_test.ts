// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { UsageError } from "../../src/errors.ts";
import { fileNameOf, parseSource } from "../../src/image/source.ts";

Deno.test("a source is a file, a URL or an image in a registry", () => {
  for (const path of ["disk.qcow2", "/a/b c.img", "./oci:x", "http:/x"]) {
    assert.deepEqual(parseSource(path), { kind: "file", path });
  }
  assert.deepEqual(parseSource("file:///a/b%20c.img"), { kind: "file", path: "/a/b c.img" });
  for (const text of ["https://example.org/a.img", "HTTP://user:x@[::1]:8080/a?b"]) {
    assert.deepEqual(parseSource(text), { kind: "http", url: new URL(text) });
  }
  const reference = "oci://registry.example.org/ci/fedora:40";
  assert.deepEqual(parseSource(reference), { kind: "oci", reference });
});

Deno.test("what is no source is refused, without its password", () => {
  const others = [
    "",
    "ftp://user:secret@example.org/a",
    "docker://a",
    "https://",
    "https://[secret",
    "file://host/a",
    "s3://b",
  ];
  for (const text of others) {
    assert.throws(() => parseSource(text), (error) => {
      assert(error instanceof UsageError, text);
      assert.doesNotMatch(error.message, /secret/);
      return true;
    });
  }
});

Deno.test("checksum files call an image by the last part of its path", () => {
  const nameOf = (text: string) => {
    const source = parseSource(text);
    return source.kind === "oci" ? assert.fail() : fileNameOf(source);
  };
  assert.equal(nameOf("https://example.org/a/b%20c.img?x=/y"), "b c.img");
  assert.equal(nameOf("https://example.org/100%.img"), "100%.img");
  assert.equal(nameOf("/a/100%25.img"), "100%25.img");
});
