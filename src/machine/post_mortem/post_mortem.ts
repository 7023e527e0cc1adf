// SPDX-License-Identifier: GPL-2.0-or-later
import { explain, SystemFailure } from "../../errors.ts";
import { consoleEnd, consoleLines } from "../../guest/console_text.ts";
import { StoragePool } from "../../libvirt/storage_pool.ts";
import type { Context, Host } from "../context.ts";
import type { Owner } from "../metadata.ts";
import { unpluggedCards } from "../network/network_info.ts";
import {
  CALL_SECONDS,
  collect,
  CONSOLE,
  DOMAIN_XML,
  inPart,
  mostBytesOf,
  QEMU_LOG,
} from "./evidence.ts";
import {
  findPostMortem,
  type KeptFile,
  projectFile,
  prunePostMortems,
  writePostMortem,
} from "./post_mortem_directory.ts";
import { readConsole } from "../storage/guest_files.ts";
import { lookupNeed, type Need } from "../unneeded.ts";
import { toVisible } from "../../quoted.ts";
import { virsh } from "../../shell.ts";
import { within } from "../../wait.ts";

// Ten seconds in total, whatever hangs.
const LOOKUP_MS = 2000;
const WRITE_MS = 2000;
const CONSOLE_LINES = 30;
const CONSOLE_END_BYTES = 64 * 1024;

/**
 * Adds to a machine's failure the end of its serial console, and the directory of its post-mortem. A
 * machine has one post-mortem, of its first failure. It never throws, but warns.
 */
export async function withPostMortem(
  machine: string,
  failure: SystemFailure,
  context: Context,
): Promise<SystemFailure> {
  const { message: what, cause, advice, fault } = failure;
  const details = await examine(machine, failure, context).catch((error) => {
    context.report.warn(`Could not examine the machine "${machine}": ${explain(error)}`);
    return [];
  });
  const all = failure.details === undefined ? details : [failure.details, ...details];
  return new SystemFailure({ what, cause, advice, fault, details: all.join("\n") });
}

async function examine(
  machine: string,
  failure: SystemFailure,
  context: Context,
): Promise<string[]> {
  const { host: { config, directories }, report: { warn }, signal } = context;
  const need = await within(lookup(machine, context.host), LOOKUP_MS, signal);
  if (need === null) throw new Error(`libvirt did not answer within ${LOOKUP_MS / 1000} s`);
  if (need.metadata === null && need.owner === null && need.why !== null) return []; // not ours
  const earlier = need.owner && await findEarlier(machine, need.owner, context);
  if (earlier !== null) return [whereMore(earlier)]; // the log has the rest
  const isNew = config.postMortem.count > 0;
  const [console, { files, missing }] = await Promise.all([
    inPart(context, async (connection) => {
      using pool = await StoragePool.lookup(connection, config.pools.overlays);
      const end = await readConsole({ connection, pool, machine }, CONSOLE_END_BYTES);
      return end && new TextDecoder().decode(end);
    }),
    collect(machine, context, isNew ? null : [DOMAIN_XML]),
  ]);
  const details = [
    ...whyEnded(files),
    ...unpluggedIn(files, { machine, uri: config.libvirt.uri }),
    ...panicOf(console.value ?? ""),
    consoleEnd(console.value ?? null, CONSOLE_LINES),
  ];
  if (!isNew || signal.aborted) return details;
  const reason = reasonFile(machine, { failure, details, missing, need });
  const whose = need.owner === null ? [] : [projectFile(need.owner.project)];
  try {
    const path = await keepFiles(machine, [reason, ...whose, ...files], context);
    details.push(whereMore(path));
    if (await hasNoRoom(path, context)) {
      details.pop();
      throw new Error('"post_mortem.total_mib" leaves no room for it');
    }
  } catch (error) {
    const what = `Could not write the post-mortem of the machine "${machine}" to ` +
      `"${directories.postMortems}"`;
    warn(explain(new SystemFailure({ what, cause: error, advice: DIRECTORY_ADVICE })));
  }
  return details;
}

/** Writes the files, and gives their directory. */
async function keepFiles(
  machine: string,
  files: readonly KeptFile[],
  { host: { config, directories: { postMortems: directory } }, signal }: Context,
): Promise<string> {
  const kept = writePostMortem(directory, machine, fit(files, mostBytesOf(config)));
  const path = await within(kept, WRITE_MS, signal);
  if (path === null) throw new Error(`it took longer than ${WRITE_MS / 1000} s`);
  return path;
}

/** Removes post-mortems beyond the limits. Resolves to whether this directory was one of them. */
async function hasNoRoom(
  path: string,
  { host: { config, directories: { postMortems: directory } }, signal }: Context,
): Promise<boolean> {
  const bounds = { count: config.postMortem.count, bytes: mostBytesOf(config) };
  const removed = await within(prunePostMortems(directory, bounds), WRITE_MS, signal);
  return removed?.includes(path) ?? false;
}

const DIRECTORY_ADVICE = "Remove other users' write permission on that directory, set " +
  '"post_mortem.dir" to another, or raise "post_mortem.total_mib"';

/** The machine's post-mortem, if it has one. If that is unknown, it warns. */
async function findEarlier(
  machine: string,
  { created }: Owner,
  { host: { directories: { postMortems: directory } }, report: { warn } }: Context,
): Promise<string | null> {
  try {
    return await findPostMortem(directory, machine, new Date(created ?? 0));
  } catch (error) {
    const what = `Cannot read the post-mortems in "${directory}"`;
    warn(explain(new SystemFailure({ what, cause: error, advice: DIRECTORY_ADVICE })));
    return null;
  }
}

function whereMore(path: string): string {
  return `Its post-mortem is on its host, in ${toVisible(JSON.stringify(path))}`;
}

async function lookup(machine: string, host: Host): Promise<Need> {
  await using connection = await host.connect(CALL_SECONDS);
  return await lookupNeed({ name: machine, volumes: [] }, { ...host, connection });
}

/** The files, with the console cut to its end so that they fit. */
export function fit(files: readonly KeptFile[], mostBytes: number): KeptFile[] {
  const others = files.filter(({ name }) => name !== CONSOLE);
  const left = mostBytes - others.reduce((sum, { bytes }) => sum + bytes.length, 0);
  return files.map(({ name, bytes }) => ({
    name,
    bytes: name === CONSOLE ? bytes.subarray(Math.max(0, bytes.length - left)) : bytes,
  }));
}

const REASONS = new Map([
  ["shutdown", "it powered off"],
  ["crashed", "its QEMU crashed"],
  ["destroyed", "it was destroyed"],
]);

/** Why the machine ended, by the last line of QEMU's log. */
function whyEnded(files: readonly KeptFile[]): string[] {
  const log = files.find(({ name }) => name === QEMU_LOG);
  const last = new TextDecoder().decode(log?.bytes).trimEnd().split("\n").at(-1) ?? "";
  const reason = /: shutting down, reason=(\w{1,40})$/.exec(last)?.[1];
  return reason === undefined ? [] : [`libvirt logged for it: ${REASONS.get(reason) ?? reason}.`];
}

/** The machine's unplugged cards, and how to plug them in. */
export function unpluggedIn(
  files: readonly KeptFile[],
  { machine, uri }: { readonly machine: string; readonly uri: string },
): string[] {
  const domainXml = files.find(({ name }) => name === DOMAIN_XML)?.bytes;
  if (domainXml === undefined) return [];
  return unpluggedCards(new TextDecoder().decode(domainXml)).map((mac) => {
    const plugIn = virsh({ uri }, "domif-setlink", machine, mac, "up");
    return `The link of its network card is down in libvirt. Set it up again: ${plugIn}`;
  });
}

/** Why the kernel panicked, which the end of the console no longer shows. */
function panicOf(console: string): string[] {
  const line = consoleLines(console).findLast((line) => line.includes("Kernel panic"));
  return line === undefined ? [] : [`Its kernel says: ${line}`];
}

/** The file that says what failed, and which files are missing. */
function reasonFile(
  machine: string,
  { failure, details, missing, need: { owner, metadata } }: {
    readonly failure: SystemFailure;
    readonly details: readonly string[];
    readonly missing: readonly string[];
    readonly need: Need;
  },
): KeptFile {
  const lines = [
    `Machine:  ${machine}`,
    `Template: ${metadata?.template ?? "unknown"}`,
    `Job:      ${owner?.job ? `${owner.job} of ${owner.project}` : "by hand, or unknown"}`,
    `Failed:   ${new Date().toISOString()}`,
    "",
    explain(failure),
    ...details,
    ...missing.length === 0 ? [] : ["", "Missing, with the reasons:"],
    ...missing.map((line) => `- ${line.replaceAll("\n", "\n  ")}`),
    "",
  ];
  return { name: "reason.txt", bytes: new TextEncoder().encode(toVisible(lines.join("\n"))) };
}
