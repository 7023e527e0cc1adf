// SPDX-License-Identifier: GPL-2.0-or-later
import type { DiskLayers } from "./disk_layers.ts";
import { unusable } from "./manifest.ts";
import { BrokenTar, readTar, type TarMember } from "./tar.ts";
import { packingOf, unpack } from "../unpack.ts";
import { quoted } from "../../quoted.ts";

type Bytes = Uint8Array<ArrayBuffer>;

/** Takes the disk's bytes in order. */
type Write = (bytes: Bytes) => Promise<void>;

/** What messages call the image, and the most that may come out of a blob. */
interface UnpackBounds {
  readonly name: string;
  readonly mostBytes: number;
}

const BUFFER_BYTES = 1024 ** 2;
/** A disk of KubeVirt's, which hides no other layer's file. */
const DISK_MEMBER = /^disk\/(?!\.wh\.)[^/]+$/;

/** Unpacks the disk out of its layers, which are in these files. Throws SystemFailure. */
export async function unpackDisk(
  { kind }: DiskLayers,
  paths: readonly string[],
  bounds: UnpackBounds,
  write: Write,
): Promise<void> {
  if (kind !== "archives") {
    for await (const bytes of contentOf(paths, bounds)) await write(bytes);
    return;
  }
  for (const path of paths.toReversed()) { // a later layer is above those before
    if (await unpackArchive(path, bounds, write)) return;
  }
  throw unusable(bounds.name, 'it has no file "disk/NAME", as a containerDisk of KubeVirt has it');
}

/** The bytes of the files in a row, unpacked if they are packed. */
async function* contentOf(
  paths: readonly string[],
  { name, mostBytes }: UnpackBounds,
): AsyncGenerator<Bytes> {
  const packing = packingOf(await startOf(paths[0] ?? ""));
  if (packing === null) yield* readAll(paths);
  else yield* unpack(readAll(paths), { packing, name: `"${name}"`, mostBytes });
}

async function startOf(path: string): Promise<Bytes> {
  using file = await Deno.open(path);
  const start = new Uint8Array(4);
  return start.subarray(0, await file.read(start) ?? 0);
}

async function* readAll(paths: readonly string[]): AsyncGenerator<Bytes> {
  for (const path of paths) {
    using file = await Deno.open(path);
    for (;;) {
      const buffer = new Uint8Array(BUFFER_BYTES);
      const length = await file.read(buffer);
      if (length === null) break;
      yield buffer.subarray(0, length);
    }
  }
}

/** Unpacks the disk of an archive, and says whether it has one. */
async function unpackArchive(path: string, bounds: UnpackBounds, write: Write): Promise<boolean> {
  const disks: TarMember[] = [];
  try {
    await readTar(contentOf([path], bounds), async (member, content) => {
      if (!DISK_MEMBER.test(member.name)) return;
      disks.push(member);
      const names = disks.map(({ name }) => name).join(", ");
      if (disks.length > 1) throw unusable(bounds.name, `it has several disks: ${quoted(names)}`);
      if (member.kind !== "file") {
        throw unusable(bounds.name, `its ${quoted(member.name)} is no plain file: ${member.kind}`);
      }
      for await (const bytes of content) await write(bytes);
    });
  } catch (error) {
    if (!(error instanceof BrokenTar)) throw error;
    throw unusable(bounds.name, `its layer is no tar archive that is whole: ${error.message}`);
  }
  return disks.length > 0;
}
