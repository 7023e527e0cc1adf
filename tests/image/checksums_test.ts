// SPDX-License-Identifier: GPL-2.0-or-later
import fc from "fast-check";
import assert from "node:assert/strict";
import { type Checksum, findChecksum } from "../../src/image/checksums.ts";

const A = "a".repeat(64);
const B = "b".repeat(64);
const LONG = "c".repeat(128);
const sha256 = (hex: string): Checksum => ({ algorithm: "sha256", hex });

for (
  const [what, text, expected] of [
    ["sha256sum", `${B}  other.img\n${A}  disk.img\n`, sha256(A)],
    ["sha256sum of binary files", `${B} *other.img\n${A} *disk.img\n`, sha256(A)],
    ["sha256sum in another directory", `${A}  ./images/disk.img\n`, sha256(A)],
    ["sha256sum with capitals", `${A.toUpperCase()}  disk.img\r\n`, sha256(A)],
    ["sha256sum --tag", `SHA256 (other.img) = ${B}\nSHA256 (disk.img) = ${A}\n`, sha256(A)],
    ["Fedora", `# disk.img: 7 bytes\nSHA256 (disk.img) = ${A}\n`, sha256(A)],
    ["sha512sum", `${LONG}  disk.img\n`, { algorithm: "sha512", hex: LONG }],
    ["both", `SHA512 (disk.img) = ${LONG}\nSHA256 (disk.img) = ${A}\n`, sha256(A)],
    ["nothing but a checksum", `${A}\n`, sha256(A)],
    ["one line twice", `${A}  disk.img\n${A}  disk.img\n`, sha256(A)],
    ["several bare checksums", `${A}\n${B}\n`, null],
    ["md5sum", `${"d".repeat(32)}  disk.img\n`, null],
    ["a wrong length", `SHA512 (disk.img) = ${A}\n`, null],
    ["names that only end so", `${A}  my-disk.img\n${B}  disk.img.gz\n`, null],
    ["a web page", "<html>\ndisk.img\n", null],
    ["nothing", "", null],
  ] as const
) {
  Deno.test(`a checksum is found in the file of ${what}, or none`, () => {
    assert.deepEqual(findChecksum(text, "disk.img"), expected);
  });
}

Deno.test("two different checksums of one name are refused", () => {
  assert.throws(
    () => findChecksum(`${A}  a/disk.img\n${B}  b/disk.img\n`, "disk.img"),
    /several checksums of "disk\.img"/,
  );
});

Deno.test("no text breaks the reading of checksums", () => {
  const part = fc.constantFrom(A, LONG, " ", "  ", " *", "disk.img", "SHA256 (", ") = ", "\n", "/");
  fc.assert(fc.property(fc.array(part, { maxLength: 30 }), (parts) => {
    try {
      const found = findChecksum(parts.join(""), "disk.img");
      assert(found === null || found.hex.length === (found.algorithm === "sha256" ? 64 : 128));
    } catch (error) {
      assert.match(String(error), /several checksums/);
    }
  }));
});
