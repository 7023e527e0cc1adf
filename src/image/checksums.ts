// SPDX-License-Identifier: GPL-2.0-or-later

/** What a file is promised to have. */
export interface Checksum {
  readonly algorithm: "sha256" | "sha512";
  readonly hex: string;
}

/** A line of a checksum file. */
interface Line extends Checksum {
  /** Null in a file that has nothing but one checksum. */
  readonly name: string | null;
}

/** `HEX  NAME` and `HEX *NAME`, as sha256sum writes them. */
const COREUTILS = /^([\da-f]+) [ *](.+)$/i;
/** `SHA256 (NAME) = HEX`, as BSD's tools and sha256sum --tag write them. */
const BSD = /^(SHA256|SHA512) ?\((.+)\) ?= ?([\da-f]+)$/i;
const BARE = /^([\da-f]+)$/i;
const ALGORITHMS: Readonly<Record<number, Checksum["algorithm"]>> = { 64: "sha256", 128: "sha512" };

/**
 * The checksum of the file with this name, SHA-256 if there is one, by the text of SHA256SUMS, SHA512SUMS,
 * CHECKSUM and the like; null if it has none. Throws Error if it has several for the name.
 */
export function findChecksum(text: string, fileName: string): Checksum | null {
  const lines = text.split(/\r?\n/).map((line) => line.trim()).filter((line) => line !== "");
  const all = lines.map(parseLine).filter((line) => line !== null);
  const ofFile = all.filter(({ name }) =>
    name === null ? lines.length === 1 : name.slice(name.lastIndexOf("/") + 1) === fileName
  );
  for (const algorithm of ["sha256", "sha512"] as const) {
    const found = new Set(
      ofFile.filter((one) => one.algorithm === algorithm).map(({ hex }) => hex),
    );
    if (found.size > 1) throw new Error(`it has several checksums of "${fileName}"`);
    const [hex] = found;
    if (hex !== undefined) return { algorithm, hex };
  }
  return null;
}

function parseLine(line: string): Line | null {
  const [, hex = BARE.exec(line)?.[1], name = null] = COREUTILS.exec(line) ?? [];
  if (hex !== undefined) return lineOf(hex, name);
  const [, algorithm, ofFile = null, digits = ""] = BSD.exec(line) ?? [];
  const parsed = lineOf(digits, ofFile);
  return parsed?.algorithm === algorithm?.toLowerCase() ? parsed : null;
}

function lineOf(hex: string, name: string | null): Line | null {
  const algorithm = ALGORITHMS[hex.length];
  return algorithm === undefined ? null : { algorithm, hex: hex.toLowerCase(), name };
}
