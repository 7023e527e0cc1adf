// SPDX-License-Identifier: GPL-2.0-or-later
import { Unusable } from "./image_header.ts";

/** What a file may be instead of a disk image. */
interface Kind {
  readonly what: string;
  /** Bytes as text in Latin-1, in capitals for a text. */
  readonly magic: string;
  readonly at?: number;
  readonly isText?: boolean;
  /** Whether it may have a partition table all the same. */
  readonly isPartitioned?: boolean;
  readonly advice: string;
}

const CONVERT = "Run qemu-img convert -O qcow2 IMAGE IMAGE.qcow2, and add IMAGE.qcow2";
const unpack = (program: string): string => `Run ${program} on it, and add what it gives`;
const DISK = "Use an image of a whole disk that boots by itself, such as a cloud image";
const URL = "Check the URL: it may be that of a page about the image, or need a login";

const KINDS: readonly Kind[] = [
  { what: "packed by gzip", magic: "\x1f\x8b", advice: unpack("gunzip") },
  { what: "packed by zstd", magic: "\x28\xb5\x2f\xfd", advice: unpack("unzstd") },
  { what: "packed by xz", magic: "\xfd7zXZ\0", advice: unpack("unxz") },
  { what: "packed by bzip2", magic: "BZh", advice: unpack("bunzip2") },
  { what: "packed by lz4", magic: "\x04\x22\x4d\x18", advice: unpack("unlz4") },
  { what: "a ZIP archive", magic: "PK\x03\x04", advice: unpack("unzip") },
  { what: "a 7z archive", magic: "7z\xbc\xaf\x27\x1c", advice: unpack("7z x") },
  { what: "a tar archive", magic: "ustar", at: 257, advice: unpack("tar -x -f") },
  { what: "a VMDK image", magic: "KDMV", advice: CONVERT },
  { what: "a VMDK image", magic: "COWD", advice: CONVERT },
  { what: "the description of a VMDK image", magic: "# Disk DescriptorFile", advice: CONVERT },
  { what: "a VDI image", magic: "\x7f\x10\xda\xbe", at: 64, advice: CONVERT },
  { what: "a VHDX image", magic: "vhdxfile", advice: CONVERT },
  { what: "a VHD image", magic: "conectix", advice: CONVERT },
  { what: "a QED image", magic: "QED\0", advice: CONVERT },
  { what: "a Parallels image", magic: "WithoutFreeSpace", advice: CONVERT },
  { what: "a Parallels image", magic: "WithouFreSpacExt", advice: CONVERT },
  { what: "encrypted by LUKS", magic: "LUKS\xba\xbe", advice: DISK },
  { what: "an ISO image", magic: "CD001", at: 32769, isPartitioned: true, advice: DISK },
  { what: "a file system without a partition table", magic: "\x53\xef", at: 1080, advice: DISK },
  { what: "a file system without a partition table", magic: "XFSB", advice: DISK },
  { what: "a file system without a partition table", magic: "hsqs", advice: DISK },
  { what: "a file system without a partition table", magic: "_BHRfS_M", at: 65600, advice: DISK },
  { what: "a program", magic: "\x7fELF", advice: DISK },
  { what: "a pointer of Git LFS", magic: "version https://git-lfs", advice: "Run git lfs pull" },
  { what: "a web page", magic: "<!DOCTYPE HTML", isText: true, advice: URL },
  { what: "a web page", magic: "<HTML", isText: true, advice: URL },
  { what: "an XML document", magic: "<?XML", isText: true, advice: URL },
  { what: "a JSON document", magic: "{", isText: true, advice: URL },
];

const MOST_TEXT = 200;

/**
 * Says what the file is instead of a raw disk, by its first bytes; null if that is unknown. One with a
 * partition table is a raw disk, but for a few kinds.
 */
export function lookAlike(
  start: Uint8Array<ArrayBuffer>,
  { hasPartitions }: { readonly hasPartitions: boolean },
): Unusable | null {
  if (start.length === 0) return new Unusable("is empty", "Fetch it again");
  const latin1 = new TextDecoder("latin1");
  const text = latin1.decode(start.subarray(0, MOST_TEXT)).replace(/^(ï»¿)?\s+/, "").toUpperCase();
  const kind = KINDS.find(({ magic, at = 0, isText = false, isPartitioned = false }) =>
    (isPartitioned || !hasPartitions) &&
    (isText
      ? text.startsWith(magic)
      : [...magic].every((character, i) => start[at + i] === character.charCodeAt(0)))
  );
  return kind === undefined ? null : new Unusable(`is ${kind.what}`, kind.advice);
}
