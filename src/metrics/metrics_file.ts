// SPDX-License-Identifier: GPL-2.0-or-later
import { SystemFailure } from "../errors.ts";
import { directoryOf, orMissing, refuseUntrusted } from "../files.ts";
import {
  addObservation,
  isOurs,
  metricsText,
  type Observation,
  parseMetrics,
  type Samples,
} from "./metrics.ts";
import { sleep } from "../wait.ts";

const PATIENCE_MS = 1000;
const MOST_BYTES = 1024 * 1024;

/**
 * Adds a stage's counts to the file, which readers always see whole. Throws SystemFailure if the file is
 * not ours, or if others may write to its directory.
 */
export async function addToMetricsFile(
  file: string,
  observation: Observation,
  { warn, patienceMs = PATIENCE_MS }: {
    /** Called if counts were lost. */
    readonly warn: (line: string) => void;
    readonly patienceMs?: number;
  },
): Promise<void> {
  // Users who may create files there, sticky bit or not, can create ours first.
  const directory = directoryOf(file);
  refuseUntrusted(directory, await Deno.stat(directory), "the metrics");
  const [lock, next] = [`${file}.lock`, `${file}.tmp`]; // node_exporter reads what ends in .prom
  using _ = await openLocked(lock, patienceMs);
  try {
    const samples = await readMetricsFile(file, warn);
    addObservation(samples, observation);
    await orMissing(Deno.remove(next)); // a process that was killed left it
    const text = metricsText(samples, observation.version);
    // For node_exporter, which is another user: the mode does not depend on the umask.
    await Deno.writeTextFile(next, text, { createNew: true, mode: 0o644 });
    await Deno.rename(next, file);
  } finally {
    await orMissing(Deno.remove(next));
    await orMissing(Deno.remove(lock));
  }
}

/** Opens a file that locks out other writers. The kernel unlocks it if its process is killed. */
async function openLocked(path: string, patienceMs: number): Promise<Deno.FsFile> {
  const end = performance.now() + patienceMs;
  for (;;) {
    const file = await openOwn(path);
    if (file !== null) {
      if (await file.tryLock(true) && await isAt(path, file)) return file;
      file.close();
    }
    if (performance.now() > end) {
      throw new SystemFailure({
        what: `Another process has kept "${path}" locked for ${patienceMs / 1000} s`,
        advice: `Check which process it is: fuser -v ${path}`,
      });
    }
    await sleep(5 + 20 * Math.random());
  }
}

/** The file, made if it is not there; null if there is something else, or it is changing just now. */
async function openOwn(path: string): Promise<Deno.FsFile | null> {
  try {
    return await Deno.open(path, { read: true, write: true, createNew: true, mode: 0o600 });
  } catch (error) {
    if (!(error instanceof Deno.errors.AlreadyExists)) throw error;
  }
  const there = await orMissing(Deno.lstat(path));
  if (there === null || !there.isFile || there.uid !== Deno.uid()) return null;
  return await orMissing(Deno.open(path, { read: true, write: true }));
}

/**
 * Whether the path still leads to this file and is no link: the lock's last owner has removed it.
 */
async function isAt(path: string, file: Deno.FsFile): Promise<boolean> {
  const [there, here] = await Promise.all([orMissing(Deno.lstat(path)), file.stat()]);
  return there?.ino === here.ino && there.dev === here.dev;
}

async function readMetricsFile(file: string, warn: (line: string) => void): Promise<Samples> {
  const text = await readText(file);
  if (text === "") return new Map(); // an empty file was made for us, or the power failed
  const samples = text === null || !isOurs(text) ? null : parseMetrics(text);
  if (samples !== null) return samples;
  if (text === null || !isOurs(text)) {
    throw new SystemFailure({
      what: `The file "${file}" was not written by libvirt-gci, so it is not changed`,
      advice: `Remove it, or set "metrics_file" to another file`,
    });
  }
  warn(`The metrics in "${file}" were damaged, so they start again from zero`);
  return new Map();
}

/** The file's text: empty if it does not exist, null if we cannot have written it. */
async function readText(file: string): Promise<string | null> {
  const there = await orMissing(Deno.stat(file));
  if (there === null) return "";
  return there.isFile && there.size <= MOST_BYTES ? await Deno.readTextFile(file) : null;
}
