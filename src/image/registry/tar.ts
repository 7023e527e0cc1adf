// SPDX-License-Identifier: GPL-2.0-or-later
import { ByteCutter } from "./byte_cutter.ts";

type Bytes = Uint8Array<ArrayBuffer>;

/** What stands before the content of an archive's member. */
export interface TarMember {
  /** Its path, without "./" or "/" at its start. */
  readonly name: string;
  readonly bytes: number;
  /** What it is: a file's content follows as it is, but for a sparse one. */
  readonly kind: "file" | "sparse file" | "link" | "other";
}

const BLOCK_BYTES = 512;
const MOST_RECORD_BYTES = 1024 ** 2;
const LINE_FEED = 10;

/** The archive is not one, or was cut off. */
export class BrokenTar extends Error {}

/**
 * Reads an archive as tar(1) of GNU, of BSD and Go's library write it: POSIX.1-2001 (pax), ustar, and GNU's
 * long names. `visit` may read the member's content, and nothing else does. This is less than a package
 * would need, and one member of an archive is all that we want. Throws {@linkcode BrokenTar}.
 */
export async function readTar(
  chunks: AsyncIterable<Bytes>,
  visit: (member: TarMember, content: AsyncIterable<Bytes>) => Promise<void>,
): Promise<void> {
  const cutter = new ByteCutter(chunks);
  try {
    let records: Records = new Map();
    for (;;) {
      const header = await cutter.gather(BLOCK_BYTES);
      if (header.length === 0 || header.every((byte) => byte === 0)) break;
      const { type, bytes } = readHeader(header);
      const extended = await readRecords(type, bytes, cutter);
      if (extended !== null) {
        records = new Map([...records, ...extended]);
        continue;
      }
      const member = memberOf(header, records);
      records = new Map();
      if (type === "S") await passMap(header, cutter);
      await passMember(member, cutter, visit);
    }
    while (await cutter.skip(BLOCK_BYTES ** 2) > 0); // so that the end of what is packed is checked
  } finally {
    await cutter.close();
  }
}

/** Passes over the blocks that say where the rest of a sparse file's content belongs. */
async function passMap(header: Bytes, cutter: ByteCutter): Promise<void> {
  for (let more = header[482]; more;) more = (await cutter.gather(BLOCK_BYTES))[504];
}

type Records = ReadonlyMap<string, string>;

/** Has the member visited, and passes over what of its content was not read. */
async function passMember(
  member: TarMember,
  cutter: ByteCutter,
  visit: (member: TarMember, content: AsyncIterable<Bytes>) => Promise<void>,
): Promise<void> {
  let left = member.bytes;
  const content = async function* (): AsyncGenerator<Bytes> {
    for await (const chunk of cutter.take(left)) {
      left -= chunk.length;
      yield chunk;
    }
    if (left > 0) throw new BrokenTar("it ends amid a file");
  };
  await visit(member, content());
  const padding = (BLOCK_BYTES - member.bytes % BLOCK_BYTES) % BLOCK_BYTES;
  if (await cutter.skip(left + padding) < left + padding) {
    throw new BrokenTar("it ends amid a file");
  }
}

/** What comes before a member, for it, in the place of a member: null if it is a member. */
async function readRecords(
  type: string,
  bytes: number,
  cutter: ByteCutter,
): Promise<Records | null> {
  if (!/^[xgLK]$/.test(type)) return null;
  if (bytes > MOST_RECORD_BYTES) throw new BrokenTar("it has a name of more than 1 MiB");
  const content = await cutter.gather(Math.ceil(bytes / BLOCK_BYTES) * BLOCK_BYTES);
  if (content.length < bytes) throw new BrokenTar("it ends amid a name");
  const text = content.subarray(0, bytes);
  if (type === "x") return paxRecords(text);
  return type === "L" ? new Map([["path", textOf(text)]]) : new Map();
}

/** Records of the form `LENGTH NAME=VALUE\n`, whose length counts itself. */
function paxRecords(bytes: Bytes): Records {
  const records = new Map<string, string>();
  for (let at = 0; at < bytes.length;) {
    const [, digits = ""] = /^(\d{1,8}) /.exec(textOf(bytes.subarray(at, at + 10))) ?? [];
    const end = at + Number(digits);
    if (digits === "" || end > bytes.length || bytes[end - 1] !== LINE_FEED) {
      throw new BrokenTar("it has malformed pax records");
    }
    const [name = "", ...value] = new TextDecoder().decode(
      bytes.subarray(at + digits.length + 1, end - 1),
    ).split("=");
    records.set(name, value.join("="));
    at = end;
  }
  return records;
}

function readHeader(header: Bytes): { readonly type: string; readonly bytes: number } {
  if (header.length < BLOCK_BYTES) throw new BrokenTar("it ends amid a header");
  const sum = header.reduce((sum, byte, i) => sum + (i >= 148 && i < 156 ? 32 : byte), 0);
  if (sum !== numberAt(header, 148, 8)) throw new BrokenTar("a header has a wrong checksum");
  return { type: String.fromCharCode(header[156] ?? 0), bytes: numberAt(header, 124, 12) };
}

function memberOf(header: Bytes, records: Records): TarMember {
  const { type, bytes } = readHeader(header);
  const isSparse = type === "S" || [...records.keys()].some((it) => it.startsWith("GNU.sparse."));
  const isPosix = textOf(header.subarray(257, 263)) === "ustar";
  const prefix = isPosix ? textOf(header.subarray(345, 500)) : "";
  const short = textOf(header.subarray(0, 100));
  const name = records.get("GNU.sparse.name") ?? records.get("path") ??
    (prefix === "" ? short : `${prefix}/${short}`);
  const size = records.get("size");
  return {
    name: name.replace(/^(?:\.?\/)+/, ""),
    bytes: size === undefined ? bytes : wholeNumber(size, 10),
    kind: isSparse ? "sparse file" : KINDS[type] ?? "other",
  };
}

const KINDS: Readonly<Record<string, TarMember["kind"]>> = {
  "\0": "file",
  "0": "file",
  "7": "file",
  "1": "link",
  "2": "link",
};

/** Text up to the first NUL. */
function textOf(bytes: Bytes): string {
  const end = bytes.indexOf(0);
  return new TextDecoder().decode(end < 0 ? bytes : bytes.subarray(0, end));
}

/** A number in octal digits, or where its first bit is set in binary, as GNU has it. */
function numberAt(header: Bytes, at: number, length: number): number {
  const field = header.subarray(at, at + length);
  if (((field[0] ?? 0) & 0x80) === 0) return wholeNumber(textOf(field).trim() || "0", 8);
  const number = field.reduce(
    (number, byte, i) => number * 256 + (i === 0 ? byte & 0x7f : byte),
    0,
  );
  if (!Number.isSafeInteger(number)) throw new BrokenTar("it has a malformed number");
  return number;
}

function wholeNumber(text: string, radix: 8 | 10): number {
  const isNumber = (radix === 8 ? /^[0-7]{1,12}$/ : /^\d{1,15}$/).test(text);
  if (!isNumber) throw new BrokenTar("it has a malformed number");
  return Number.parseInt(text, radix);
}
