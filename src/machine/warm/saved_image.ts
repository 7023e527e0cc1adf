// SPDX-License-Identifier: GPL-2.0-or-later
import { SystemFailure } from "../../errors.ts";

/**
 * The start of a file by virDomainSave (libvirt's src/qemu/qemu_saveimage.h): a magic word, numbers of 32
 * bits, then an area with the domain's XML and a cookie of libvirt's, each with a zero byte at its end. The
 * RAM follows. libvirt makes the area 64 KiB larger than it needs.
 */
const MAGIC = "LibvirtQemudSave";
/** 3 is for RAM in the format `sparse` (libvirt 11.2). */
const VERSIONS: readonly number[] = [2, 3];
const VERSION_AT = 16;
const AREA_BYTES_AT = 20;
const FORMAT_AT = 28;
const COOKIE_AT = 32;
/** RAM that QEMU does not read in order (libvirt 11.2). */
const SPARSE = 6;

/** The bytes before the area. */
export const HEADER_BYTES = 92;
/** More than any domain's XML needs. */
const MOST_AREA_BYTES = 4 * 1024 ** 2;

/** The number of bytes before the RAM, by the header. Throws SystemFailure. */
export function bytesBeforeRam(header: Uint8Array<ArrayBuffer>): number {
  return HEADER_BYTES + readHeader(header).areaBytes;
}

/** Whether QEMU does not read the RAM in order, by the bytes before it. Throws SystemFailure. */
export function isSparse(beforeRam: Uint8Array<ArrayBuffer>): boolean {
  return readHeader(beforeRam).format === SPARSE;
}

/** The domain's XML, from the bytes before the RAM. Throws SystemFailure. */
export function savedXml(beforeRam: Uint8Array<ArrayBuffer>): string {
  const { xmlBytes } = readHeader(beforeRam);
  return textAt(beforeRam, HEADER_BYTES, HEADER_BYTES + xmlBytes);
}

/**
 * The bytes before the RAM with another domain XML, of the same length. libvirt has no other way to
 * change a saved domain's name. Throws SystemFailure if the XML does not fit.
 */
export function withSavedXml(
  beforeRam: Uint8Array<ArrayBuffer>,
  domainXml: string,
): Uint8Array<ArrayBuffer> {
  const { areaBytes, xmlBytes, hasCookie } = readHeader(beforeRam);
  const encoder = new TextEncoder();
  const xml = encoder.encode(`${domainXml}\0`);
  const cookie = hasCookie
    ? encoder.encode(`${textAt(beforeRam, HEADER_BYTES + xmlBytes, HEADER_BYTES + areaBytes)}\0`)
    : new Uint8Array();
  if (xml.length + cookie.length > areaBytes) {
    throw unusable(`has room for ${areaBytes} bytes of XML, and this domain's has ${xml.length}`);
  }
  const changed = new Uint8Array(HEADER_BYTES + areaBytes);
  changed.set(beforeRam.subarray(0, HEADER_BYTES));
  if (hasCookie) new DataView(changed.buffer).setUint32(COOKIE_AT, xml.length, true);
  changed.set(xml, HEADER_BYTES);
  changed.set(cookie, HEADER_BYTES + xml.length);
  return changed;
}

interface Header {
  readonly areaBytes: number;
  readonly xmlBytes: number;
  readonly hasCookie: boolean;
  readonly format: number;
}

function readHeader(bytes: Uint8Array<ArrayBuffer>): Header {
  const magic = new TextDecoder("latin1").decode(bytes.subarray(0, VERSION_AT));
  if (bytes.length < HEADER_BYTES || magic !== MAGIC) throw unusable("does not begin like one");
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const version = view.getUint32(VERSION_AT, true);
  if (!VERSIONS.includes(version)) throw unusable(`has the unknown version ${version}`);
  const areaBytes = view.getUint32(AREA_BYTES_AT, true);
  const cookieAt = view.getUint32(COOKIE_AT, true);
  if (areaBytes > MOST_AREA_BYTES || cookieAt > areaBytes) throw unusable("has a broken header");
  return {
    areaBytes,
    xmlBytes: cookieAt || areaBytes,
    hasCookie: cookieAt !== 0,
    format: view.getUint32(FORMAT_AT, true),
  };
}

/** The text until a zero byte, or until `end`. */
function textAt(bytes: Uint8Array<ArrayBuffer>, start: number, end: number): string {
  const part = bytes.subarray(start, end);
  const zero = part.indexOf(0);
  return new TextDecoder("utf-8", { ignoreBOM: true }).decode(
    zero < 0 ? part : part.subarray(0, zero),
  );
}

function unusable(why: string): SystemFailure {
  return new SystemFailure({ what: `The RAM that libvirt saved ${why}` });
}
