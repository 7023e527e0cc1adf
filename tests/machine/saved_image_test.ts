// SPDX-License-Identifier: GPL-2.0-or-later
import fc from "fast-check";
import assert from "node:assert/strict";
import {
  bytesBeforeRam,
  HEADER_BYTES,
  isSparse,
  savedXml,
  withSavedXml,
} from "../../src/machine/warm/saved_image.ts";

interface Saved {
  readonly xml: string;
  /** Null is none. */
  readonly cookie: string | null;
  /** How much larger the area is than it needs to be. */
  readonly room?: number;
  readonly version?: number;
  readonly format?: number;
  readonly magic?: string;
}

/** What stands before the RAM in a file of libvirt's. */
function saved(
  { xml, cookie, room = 0, version = 2, format = 0, magic = "LibvirtQemudSave" }: Saved,
): Uint8Array<ArrayBuffer> {
  const encoder = new TextEncoder();
  const xmlBytes = encoder.encode(`${xml}\0`);
  const cookieBytes = encoder.encode(cookie === null ? "" : `${cookie}\0`);
  const areaBytes = xmlBytes.length + cookieBytes.length + room;
  const bytes = new Uint8Array(HEADER_BYTES + areaBytes);
  bytes.set(encoder.encode(magic));
  const view = new DataView(bytes.buffer);
  const cookieAt = cookie === null ? 0 : xmlBytes.length;
  for (const [i, number] of [version, areaBytes, 1, format, cookieAt].entries()) {
    view.setUint32(16 + i * 4, number, true);
  }
  bytes.set(xmlBytes, HEADER_BYTES);
  bytes.set(cookieBytes, HEADER_BYTES + xmlBytes.length);
  return bytes;
}

/** The cookie, as libvirt would find it. */
function cookieOf(bytes: Uint8Array<ArrayBuffer>): string | null {
  const at = new DataView(bytes.buffer).getUint32(32, true);
  if (at === 0) return null;
  const start = HEADER_BYTES + at;
  return new TextDecoder("utf-8", { ignoreBOM: true }).decode(
    bytes.subarray(start, bytes.indexOf(0, start)),
  );
}

const TEXT = fc.string({ unit: "binary" }).map((text) => text.replaceAll("\0", ""));

Deno.test("whatever XML takes the place of another, libvirt finds it, the cookie and the RAM", () => {
  fc.assert(
    fc.property(TEXT, fc.option(TEXT), TEXT, fc.nat(600), (xml, cookie, other, room) => {
      const before = saved({ xml, cookie, room });
      assert.equal(bytesBeforeRam(before.subarray(0, HEADER_BYTES)), before.length);
      assert.equal(savedXml(before), xml);
      const size = (text: string): number => new TextEncoder().encode(text).length;
      if (size(other) > size(xml) + room) {
        assert.throws(() => withSavedXml(before, other), /has room for/);
        return;
      }
      const after = withSavedXml(before, other);
      assert.equal(after.length, before.length);
      assert.equal(savedXml(after), other);
      assert.equal(cookieOf(after), cookie);
      assert.deepEqual(after.subarray(0, 32), before.subarray(0, 32));
    }),
  );
});

Deno.test("a file that is not libvirt's, not whole or of an unknown version is refused", () => {
  const xml = "<domain/>";
  for (
    const [bytes, words] of [
      [saved({ xml, cookie: null, magic: "LibvirtQemudPart" }), /does not begin like one/],
      [saved({ xml, cookie: null }).subarray(0, 40), /does not begin like one/],
      [saved({ xml, cookie: null, version: 4 }), /unknown version 4/],
    ] as const
  ) {
    assert.throws(() => bytesBeforeRam(bytes), words);
    assert.throws(() => savedXml(bytes), words);
  }
  const broken = saved({ xml, cookie: "c" });
  new DataView(broken.buffer).setUint32(32, 5000, true);
  assert.throws(() => savedXml(broken), /broken header/);
});

Deno.test("RAM in the format sparse is told from other, compressed or not", () => {
  for (const format of [0, 2, 6]) {
    assert.equal(isSparse(saved({ xml: "<domain/>", cookie: null, format })), format === 6);
  }
});
