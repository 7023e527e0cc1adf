// SPDX-License-Identifier: GPL-2.0-or-later

/**
 * A picture of a machine's screen as PNG, from what libvirt gives: PNG or, with an older QEMU, PPM
 * (https://netpbm.sourceforge.net/doc/ppm.html). Throws Error on anything else.
 */
export async function toPng(mimeType: string, bytes: Uint8Array): Promise<Uint8Array> {
  if (mimeType === "image/png") return bytes;
  const { encode } = await import("fast-png"); // which a newer QEMU makes unneeded
  const start = new TextDecoder("latin1").decode(bytes.subarray(0, 64));
  const [header, width, height] = /^P6\s+(\d{1,5})\s+(\d{1,5})\s+255\s/.exec(start) ?? [];
  if (header === undefined) throw new Error(`a screenshot of an unknown kind, ${mimeType}`);
  const size = { width: Number(width), height: Number(height) };
  const data = bytes.subarray(header.length, header.length + size.width * size.height * 3);
  return encode({ ...size, data, channels: 3 }); // which throws if there are too few
}
