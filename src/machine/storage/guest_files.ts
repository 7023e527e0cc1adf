// SPDX-License-Identifier: GPL-2.0-or-later
import { orFailure } from "../../errors.ts";
import { orMissing } from "../../files.ts";
import type { Connection } from "../../libvirt/connection.ts";
import { isLibvirtError, orNull, VIR_ERR } from "../../libvirt/error.ts";
import { StoragePool } from "../../libvirt/storage_pool.ts";
import type { Volume } from "../../libvirt/volume.ts";
import { dirPoolXml } from "./pools.ts";
import { volumeName } from "./volume_names.ts";
import { removeVolume } from "./volumes.ts";
import { retry } from "../../wait.ts";
import { xml } from "../../xml.ts";

/**
 * The guest chooses the content of two files: its serial console and its firmware's variables. They are not
 * volumes, but in a directory of the machine below the pool's. libvirt reads the head of each volume when
 * it refreshes a pool: it gives up on a broken image, and hangs on one with a FIFO as its backing file
 * (virStorageBackendRefreshLocal).
 */
export function guestPaths(
  directory: string,
): { readonly console: string; readonly nvram: string } {
  return { console: `${directory}/console`, nvram: `${directory}/nvram` };
}

/** Creates the directory, where libvirt and virtlogd create the files. The caller disposes of the handle. */
export function createGuestDirectory(pool: StoragePool, machine: string): Promise<Volume> {
  const name = volumeName(machine, "guest");
  const directoryXml = xml`
    <volume type="dir">
      <name>${name}</name>
      <capacity unit="bytes">0</capacity>
      <target>
        <format type="dir" />
        <permissions>
          <mode>0711</mode>
        </permissions>
      </target>
    </volume>
  `;
  return pool.createVolume(name, directoryXml.toString());
}

/** The machine of the files. */
interface GuestFilesOf {
  readonly connection: Connection;
  readonly pool: StoragePool;
  readonly machine: string;
}

interface GuestFile {
  readonly name: string;
  /** Reads its last bytes; null if it is gone. */
  readonly read: (mostBytes: number) => Promise<Uint8Array | null>;
  readonly delete: () => Promise<void>;
}

/** Removes the directory and its files. Resolves to whether there was one. */
export async function removeGuestFiles(of: GuestFilesOf): Promise<boolean> {
  const removed = await withGuestFiles(of, async (files) => {
    for (const file of files) await file.delete();
    return true;
  });
  return removed !== null && await removeVolume(of.pool, volumeName(of.machine, "guest"));
}

/**
 * The last bytes of a machine's serial console; null if there is no such machine. virtlogd begins a new file
 * after 2 MiB and renames the old one to end in .0 (max_size and max_backups in virtlogd.conf). Throws
 * LibvirtError if it cannot be read.
 */
export async function readConsole(
  of: GuestFilesOf,
  mostBytes: number,
): Promise<Uint8Array<ArrayBuffer> | null> {
  return await withGuestFiles(of, async (files) => {
    const age = ({ name }: GuestFile): number => Number(/\.(\d+)$/.exec(name)?.[1] ?? -1);
    const ofConsole = files.filter(({ name }) => /^console(\.\d+)?$/.test(name));
    const parts: Uint8Array<ArrayBuffer>[] = [];
    let left = mostBytes;
    for (const file of ofConsole.sort((a, b) => age(a) - age(b))) {
      const part = await file.read(left);
      if (part === null) continue; // just renamed or removed
      parts.unshift(new Uint8Array(part));
      left -= part.length;
      if (left <= 0) break;
    }
    return new Uint8Array(await new Blob(parts).arrayBuffer());
  });
}

/** Null if there is no such directory, or if another process removes it meanwhile. */
async function withGuestFiles<T>(
  { connection, pool, machine }: GuestFilesOf,
  use: (files: readonly GuestFile[]) => Promise<T>,
): Promise<T | null> {
  const name = volumeName(machine, "guest");
  const findPath = async (): Promise<string | null> => {
    using directory = await pool.findVolume(name);
    return directory && await orNull(VIR_ERR.NO_STORAGE_VOL, directory.path());
  };
  const path = await findPath();
  if (path === null) return null;
  try {
    const own = connection.isLocal ? await ownFiles(path) : null;
    if (own !== null) return await use(own);
    await using files = await openPool(connection, { name, path });
    return await use((await files.pool.volumeNames()).map((file) => fileOfPool(files.pool, file)));
  } catch (error) {
    if (await findPath() === null) return null;
    throw error;
  }
}

/** The files, if this user may read the directory; else null. */
async function ownFiles(directory: string): Promise<GuestFile[] | null> {
  try {
    const entries = await Array.fromAsync(Deno.readDir(directory));
    return entries.map(({ name }) => fileIn(directory, name));
  } catch {
    return null;
  }
}

function fileIn(directory: string, name: string): GuestFile {
  const path = `${directory}/${name}`;
  const advice = `Check its owner and its file system: ls -ld ${path}`;
  return {
    name,
    read: (mostBytes) => {
      const read = orMissing(readEnd(path, mostBytes));
      return orFailure(read, { what: `Cannot read "${path}"`, advice, fault: "storage" });
    },
    delete: async () => {
      const removed = orMissing(Deno.remove(path));
      await orFailure(removed, { what: `Cannot remove "${path}"`, advice, fault: "storage" });
    },
  };
}

async function readEnd(path: string, mostBytes: number): Promise<Uint8Array> {
  using file = await Deno.open(path);
  const { size } = await file.stat();
  const bytes = new Uint8Array(Math.min(size, mostBytes));
  await file.seek(size - bytes.length, Deno.SeekMode.Start);
  let length = 0;
  while (length < bytes.length) {
    const read = await file.read(bytes.subarray(length));
    if (read === null) break;
    length += read;
  }
  return bytes.subarray(0, length);
}

/** Lets libvirt read the directory, as a temporary pool whose failure harms no other. */
async function openPool(
  connection: Connection,
  { name, path }: { readonly name: string; readonly path: string },
): Promise<AsyncDisposable & { readonly pool: StoragePool }> {
  const create = () => StoragePool.create(connection, name, dirPoolXml(name, path));
  const isTransient = (error: unknown) => isLibvirtError(error, VIR_ERR.OPERATION_FAILED);
  const pool = await retry(create, { tries: 10, isTransient }).catch(async (error) => {
    if (!isTransient(error)) throw error;
    using leftover = await StoragePool.find(connection, name); // of a process that was killed
    await leftover?.stop();
    return await create();
  });
  const close = async (): Promise<void> => {
    using _ = pool;
    await pool.stop();
  };
  return { pool, [Symbol.asyncDispose]: close };
}

function fileOfPool(pool: StoragePool, name: string): GuestFile {
  return {
    name,
    read: async (mostBytes) => {
      using volume = await pool.findVolume(name);
      if (volume === null) return null;
      return await volume.download(Math.max(0, await volume.capacityBytes() - mostBytes));
    },
    delete: async () => void await removeVolume(pool, name),
  };
}
