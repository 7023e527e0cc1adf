// SPDX-License-Identifier: GPL-2.0-or-later
import { download, type Downloaded, type DownloadOptions } from "../download.ts";
import type { Descriptor } from "./manifest.ts";
import { inParallel } from "./parallel.ts";
import type { RegistryClient } from "./registry_client.ts";

/** How blobs are downloaded. */
export interface BlobOptions extends Omit<DownloadOptions, "signal"> {
  /** Aborted if one fails, so that the others end. */
  readonly stop: AbortController;
  readonly signal: AbortSignal;
}

const MOST_AT_ONCE = 3;

/** Blobs as local files. They are removed, or left for a later download, as {@linkcode release} is told. */
export class BlobDownloads {
  readonly #files = new Map<string, Downloaded>();

  /**
   * Downloads these, three at once. If that fails, what is there of them is left, so that the next time begins
   * where it ended. Throws SystemFailure.
   */
  static async fetch(
    client: RegistryClient,
    blobs: readonly Descriptor[],
    options: BlobOptions,
  ): Promise<BlobDownloads> {
    const downloads = new BlobDownloads();
    const unique = new Map(blobs.map((blob) => [blob.digest, blob]));
    const total = [...unique.values()].reduce((sum, { size }) => sum + size, 0);
    const done = new Map<string, number>();
    try {
      await inParallel(
        unique.values(),
        { most: MOST_AT_ONCE, stop: options.stop },
        async (blob) => {
          const onBytes = (bytes: number): void => {
            done.set(blob.digest, bytes);
            options.onBytes?.(done.values().reduce((sum, bytes) => sum + bytes, 0), total);
          };
          downloads.#files.set(blob.digest, await fetchBlob(client, blob, { ...options, onBytes }));
        },
      );
      return downloads;
    } catch (error) {
      await downloads.release("leave");
      throw error;
    }
  }

  /** Where the bytes of a blob are. */
  path({ digest }: Descriptor): string {
    const file = this.#files.get(digest);
    if (file === undefined) throw new Error(`${digest} was not downloaded`);
    return file.path;
  }

  async release(how: "remove" | "leave"): Promise<void> {
    for (const file of this.#files.values()) {
      if (how === "leave") await leave(file);
      else await file[Symbol.asyncDispose]();
    }
    this.#files.clear();
  }
}

/** Downloads a blob, with a new login each time that the one before is over: it may hold for minutes only. */
async function fetchBlob(
  client: RegistryClient,
  { digest, size }: Descriptor,
  options: DownloadOptions,
): Promise<Downloaded> {
  const sha256 = digest.replace("sha256:", "");
  for (;;) {
    const source = await client.blob(digest);
    try {
      return await download({ ...source, sha256, bytes: size, mostBytes: size }, options);
    } catch (error) {
      options.signal.throwIfAborted();
      if (!client.hasExpired) throw error;
    }
  }
}

/** Leaves a download where it is, for the next one, which disposing of it would remove. */
async function leave(file: Downloaded): Promise<void> {
  const other = `${file.path}.left`;
  await Deno.link(file.path, other);
  await file[Symbol.asyncDispose]();
  await Deno.rename(other, file.path);
}
