// SPDX-License-Identifier: GPL-2.0-or-later
import type { Transform } from "node:stream";
import * as zlib from "node:zlib";

/** What Node has had since 22.15. The types that come with those of ssh2 are older. */
const { createZstdCompress, constants } = zlib as unknown as {
  readonly createZstdCompress: (
    options: { readonly params: Readonly<Record<number, number>> },
  ) => Transform;
  readonly constants: Readonly<Record<"ZSTD_c_compressionLevel" | "ZSTD_c_checksumFlag", number>>;
};

const LEVEL = 3; // zstd's own default

/** Compresses what is written to it into one zstd frame, with a checksum. */
export function createCompressor(): Transform {
  const { ZSTD_c_compressionLevel, ZSTD_c_checksumFlag } = constants;
  const params = { [ZSTD_c_compressionLevel]: LEVEL, [ZSTD_c_checksumFlag]: 1 };
  return createZstdCompress({ params });
}
