// SPDX-License-Identifier: GPL-2.0-or-later
import { createHash } from "node:crypto";
import { orMissing } from "../files.ts";
import { openDownloadDirectory } from "./download_directory.ts";
import { sleep } from "../wait.ts";

const ENDING = ".download";
const OLD_MS = 7 * 24 * 3600 * 1000;
const LOOK_MS = 200;
const BUFFER_BYTES = 1024 ** 2;

/** How to open a {@linkcode PartialFile}. */
export interface PartialFileOptions {
  readonly directory: string;
  readonly signal: AbortSignal;
  /** Told once if another process, or another download of this one, has the file. */
  readonly onWait?: () => void;
}

/**
 * The file that a download goes to. One that did not come to its end stays there to be continued, also by
 * a later process. Only one at a time has it: the others wait. Whoever gets it closes or removes it.
 */
export class PartialFile {
  readonly path: string;
  readonly #file: Deno.FsFile;
  #hash = createHash("sha256");
  #bytes = 0;
  #version: string | null = null;

  private constructor(path: string, file: Deno.FsFile) {
    this.path = path;
    this.#file = file;
  }

  /** Opens the file with this name, or makes it, in a directory that only this user may write to. */
  static async open(
    name: string,
    { directory, signal, onWait }: PartialFileOptions,
  ): Promise<PartialFile> {
    await openDownloadDirectory(directory);
    await PartialFile.#removeOld(directory);
    const path = `${directory}/${name}${ENDING}`;
    for (let waited = false;; waited = true) {
      signal.throwIfAborted();
      const file = await openLocked(path);
      if (file !== null) {
        const partial = new PartialFile(path, file);
        await partial.#readLeft(signal);
        return partial;
      }
      if (!waited) onWait?.();
      await sleep(LOOK_MS, signal);
    }
  }

  /** Removes what nobody has continued for a week. */
  static async #removeOld(directory: string): Promise<void> {
    for await (const { name } of Deno.readDir(directory)) {
      if (!name.endsWith(ENDING)) continue;
      const path = `${directory}/${name}`;
      const { mtime = null } = await orMissing(Deno.stat(path)) ?? {};
      if (mtime === null || Date.now() - mtime.getTime() < OLD_MS) continue;
      const file = await openLocked(path);
      if (file !== null) await new PartialFile(path, file).remove();
    }
  }

  /** How many bytes it has. */
  get bytes(): number {
    return this.#bytes;
  }

  /** What the server called the version that these bytes are of; null if it did not. */
  get version(): string | null {
    return this.#version;
  }

  /** The SHA-256 of its bytes, in hexadecimal. */
  sha256(): string {
    return this.#hash.copy().digest("hex");
  }

  /** Takes up what an earlier download left. */
  async #readLeft(signal: AbortSignal): Promise<void> {
    this.#version = await orMissing(Deno.readTextFile(versionFile(this.path)));
    const buffer = new Uint8Array(BUFFER_BYTES);
    for (;;) {
      signal.throwIfAborted();
      const length = await this.#file.read(buffer);
      if (length === null) return;
      this.#hash.update(buffer.subarray(0, length));
      this.#bytes += length;
    }
  }

  /** Begins again, with this version. */
  async restart(version: string | null): Promise<void> {
    await this.#file.truncate(0);
    await this.#file.seek(0, Deno.SeekMode.Start);
    this.#hash = createHash("sha256");
    this.#bytes = 0;
    this.#version = version;
    if (version === null) await orMissing(Deno.remove(versionFile(this.path)));
    else await Deno.writeTextFile(versionFile(this.path), version, { mode: 0o600 });
  }

  async append(bytes: Uint8Array<ArrayBuffer>): Promise<void> {
    const writing = writeAll(this.#file, bytes);
    writing.catch(() => {}); // it is told below
    this.#hash.update(bytes); // while a thread writes
    await writing;
    this.#bytes += bytes.length;
  }

  /** Leaves it, to be continued. */
  close(): void {
    this.#file.close();
  }

  async remove(): Promise<void> {
    await orMissing(Deno.remove(versionFile(this.path)));
    await orMissing(Deno.remove(this.path));
    this.#file.close(); // only now may another have it
  }
}

function versionFile(path: string): string {
  return `${path}.version`;
}

async function writeAll(file: Deno.FsFile, bytes: Uint8Array<ArrayBuffer>): Promise<void> {
  for (let written = 0; written < bytes.length;) {
    written += await file.write(bytes.subarray(written));
  }
}

/** Opens the file as its only user; null if it has one. */
async function openLocked(path: string): Promise<Deno.FsFile | null> {
  const file = await Deno.open(path, { read: true, write: true, create: true, mode: 0o600 });
  try {
    if (await file.tryLock(true)) {
      const there = await orMissing(Deno.stat(path));
      if (there?.ino === (await file.stat()).ino) return file; // else its last user removed it
    }
  } catch (error) {
    file.close();
    throw error;
  }
  file.close();
  return null;
}
