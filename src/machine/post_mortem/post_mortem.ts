// SPDX-License-Identifier: GPL-2.0-or-later
import { StoragePool } from "../../libvirt/storage_pool.ts";
import { virsh } from "../../shell.ts";
import { explain, reasonOf, SystemFailure } from "../../errors.ts";
import type { Connection } from "../../libvirt/connection.ts";
import { consoleEnd, consoleLines } from "../../guest/console_text.ts";
import { unpluggedCards } from "../network/network_info.ts";
import { lookupActivePool } from "../storage/pools.ts";
import { toPng } from "./screenshot.ts";
import type { Owner } from "../owner.ts";
import { readConsole } from "../storage/guest_files.ts";
import { toVisible } from "../../quoted.ts";
import { within } from "../../wait.ts";
import { lookupNeed, type Need } from "../inventory.ts";
import {
  findPostMortem,
  type KeptFile,
  projectFile,
  prunePostMortems,
  writePostMortem,
} from "./post_mortem_directory.ts";
import { lookupMachine } from "../ready_machine.ts";
import type { Stage } from "../context.ts";

/** What a post-mortem needs of a stage. */
export type PostMortemStage = Pick<
  Stage,
  "config" | "connect" | "postMortemDirectory" | "signal" | "warn"
>;

// Ten seconds in all, whatever hangs.
const LOOKUP_MS = 2000;
const PARTS_MS = 6000;
const WRITE_MS = 2000;
/** For each call, on a connection of its own: what hangs there holds up nothing else. */
const CALL_SECONDS = 5;

const CONSOLE_LINES = 30;

/**
 * The failure of a machine, with the end of its serial console and the directory in which all that
 * could be known of it is kept. Each machine has one such directory, of the first time. It never
 * throws: what it cannot do is a warning.
 */
export async function withPostMortem(
  machine: string,
  failure: SystemFailure,
  stage: PostMortemStage,
): Promise<SystemFailure> {
  const { message: what, cause, advice, fault } = failure;
  const details = await examine(machine, failure, stage).catch((error) => {
    stage.warn(`Could not examine the machine "${machine}": ${explain(error)}`);
    return [];
  });
  const all = failure.details === undefined ? details : [failure.details, ...details];
  return new SystemFailure({ what, cause, advice, fault, details: all.join("\n") });
}

async function examine(
  machine: string,
  failure: SystemFailure,
  stage: PostMortemStage,
): Promise<string[]> {
  const { config, signal, warn } = stage;
  const need = await within(lookup(machine, stage), LOOKUP_MS, signal);
  if (need === null) throw new Error(`libvirt did not answer within ${LOOKUP_MS / 1000} s`);
  if (need.record === null && need.owner === null && need.why !== null) return []; // none of ours
  const earlier = need.owner && await findEarlier(machine, need.owner, stage);
  if (earlier !== null) return [whereMore(earlier)]; // the log has the rest from that time
  const isNew = config.postMortems > 0;
  const [console, { files, missing }] = await Promise.all([
    inPart(stage, async (connection) => {
      using pool = await StoragePool.lookup(connection, config.overlayPool);
      const end = await readConsole({ connection, pool, machine }, CONSOLE_END_BYTES);
      return end && new TextDecoder().decode(end);
    }),
    collect(machine, stage, isNew ? null : [DOMAIN_XML]),
  ]);
  const details = [
    ...whyEnded(files),
    ...unpluggedIn(files, { machine, uri: config.uri }),
    ...panicOf(console.value ?? ""),
    consoleEnd(console.value ?? null, CONSOLE_LINES),
  ];
  if (!isNew || signal.aborted) return details;
  const reason = reasonFile(machine, { failure, details, missing, need });
  const whose = need.owner === null ? [] : [projectFile(need.owner.project)];
  try {
    const bounds = { count: config.postMortems, bytes: mostBytesOf(config) };
    const kept = writePostMortem(
      stage.postMortemDirectory,
      machine,
      fit([reason, ...whose, ...files], bounds.bytes),
    );
    const path = await within(kept, WRITE_MS, signal);
    if (path === null) throw new Error(`it took longer than ${WRITE_MS / 1000} s`);
    details.push(whereMore(path));
    const pruned = prunePostMortems(stage.postMortemDirectory, bounds);
    const removed = await within(pruned, WRITE_MS, signal) ?? [];
    if (removed.includes(path)) {
      details.pop();
      throw new Error("post_mortem_mib leaves no room for it");
    }
  } catch (error) {
    const what = `Could not keep what is known of the machine "${machine}" in ` +
      `"${stage.postMortemDirectory}"`;
    warn(explain(new SystemFailure({ what, cause: error, advice: DIRECTORY_ADVICE })));
  }
  return details;
}

const DIRECTORY_ADVICE = "Let this user alone write to that directory, or have the settings set " +
  "post_mortem_dir to another, or post_mortem_mib to more";

function mostBytesOf({ postMortemMib }: PostMortemStage["config"]): number {
  return postMortemMib * 1024 ** 2;
}

/** What is kept of it already; null where that cannot be seen, which is a warning. */
async function findEarlier(
  machine: string,
  { created }: Pick<Owner, "created">,
  { postMortemDirectory, warn }: Pick<PostMortemStage, "postMortemDirectory" | "warn">,
): Promise<string | null> {
  try {
    return await findPostMortem(postMortemDirectory, machine, new Date(created));
  } catch (error) {
    const what = `Cannot read the post-mortems in "${postMortemDirectory}"`;
    warn(explain(new SystemFailure({ what, cause: error, advice: DIRECTORY_ADVICE })));
    return null;
  }
}

function whereMore(path: string): string {
  return `What else is known of it is on its host, in ${toVisible(JSON.stringify(path))}`;
}

async function lookup(machine: string, { config, connect }: PostMortemStage): Promise<Need> {
  await using connection = await connect(CALL_SECONDS);
  return await lookupNeed({ name: machine, volumes: [] }, { connection, config });
}

/** What a part gave, or why it gave nothing. */
interface Part<T> {
  readonly value?: T;
  readonly why?: string;
}

async function inPart<T>(
  { connect, signal }: PostMortemStage,
  read: (connection: Connection) => Promise<T>,
): Promise<Part<T>> {
  const part = async (): Promise<Part<T>> => {
    try {
      await using connection = await connect(CALL_SECONDS);
      return { value: await read(connection) };
    } catch (error) {
      return { why: reasonOf(error) };
    }
  };
  return await within(part(), PARTS_MS, signal) ??
    { why: `it did not come within ${PARTS_MS / 1000} s` };
}

/** Asks for these files, or all, at once. What does not come is missing, and why. */
async function collect(
  machine: string,
  stage: PostMortemStage,
  names: readonly string[] | null,
): Promise<{ readonly files: KeptFile[]; readonly missing: string[] }> {
  const { config } = stage;
  const mostBytes = mostBytesOf(config) / 4; // each, so that none leaves no room for the others
  const text = (words: string): Uint8Array => new TextEncoder().encode(words);
  const ofDomain = async (connection: Connection, read: (found: Found) => Promise<Uint8Array>) => {
    using found = await lookupMachine(machine, { connection, config });
    return await read(found);
  };
  const parts: Readonly<Record<string, (connection: Connection) => Promise<Uint8Array>>> = {
    [CONSOLE]: async (connection) => {
      using pool = await lookupActivePool(connection, config.overlayPool, "overlay_pool");
      const end = Math.min(mostBytes, MOST_CONSOLE_BYTES);
      const bytes = await readConsole({ connection, pool, machine }, end);
      if (bytes === null) throw new Error("there is no serial console");
      if (bytes.length === 0) throw new Error("it is empty");
      return bytes;
    },
    [DOMAIN_XML]: (connection) =>
      ofDomain(connection, async ({ domain }) => text(await domain.xml())),
    "screenshot.png": (connection) =>
      ofDomain(connection, async ({ domain }) => {
        const { mimeType, bytes } = await domain.screenshot(MOST_SCREENSHOT_BYTES);
        return await toPng(mimeType, bytes);
      }),
    "agent.json": (connection) =>
      ofDomain(connection, async (found) => text(toVisible(await askAgent(found)))),
    [QEMU_LOG]: (connection) => readQemuLog(machine, connection),
  };
  const files: KeptFile[] = [];
  const missing: string[] = [];
  await Promise.all(
    Object.entries(parts).map(async ([name, read]) => {
      if (names?.includes(name) === false) return;
      const { value, why } = await inPart(stage, read);
      if (value === undefined) missing.push(`${name}: ${why}`);
      else if (value.length > mostBytes) missing.push(`${name}: ${TOO_LARGE}`);
      else files.push({ name, bytes: value });
    }),
  );
  return { files, missing: missing.sort() };
}

type Found = Awaited<ReturnType<typeof lookupMachine>>;

const CONSOLE = "console.log";
const MOST_CONSOLE_BYTES = 64 * 1024 ** 2; // it is in memory once
const CONSOLE_END_BYTES = 64 * 1024;
const MOST_SCREENSHOT_BYTES = 64 * 1024 ** 2; // likewise
const DOMAIN_XML = "domain.xml";
const TOO_LARGE = "it has more than a quarter of post_mortem_mib";
const QEMU_LOG = "qemu.log";
const QEMU_LOG_BYTES = 256 * 1024;

/** The files, the console cut to its end so that all are within the bound. */
export function fit(files: readonly KeptFile[], mostBytes: number): KeptFile[] {
  const others = files.filter(({ name }) => name !== CONSOLE);
  const left = mostBytes - others.reduce((sum, { bytes }) => sum + bytes.length, 0);
  return files.map(({ name, bytes }) => ({
    name,
    bytes: name === CONSOLE ? bytes.subarray(Math.max(0, bytes.length - left)) : bytes,
  }));
}

const AGENT_COMMANDS = [
  "guest-info",
  "guest-get-osinfo",
  "guest-get-time",
  "guest-network-get-interfaces",
  "guest-get-fsinfo",
  "guest-get-users",
];
const AGENT_COMMAND_SECONDS = 1;
const AGENT_MS = 4000;

/** What the guest agent can still tell, as JSON by command. Throws if it does not even greet. */
async function askAgent({ domain }: Found): Promise<string> {
  const end = performance.now() + AGENT_MS;
  const answers: string[] = [];
  const keep = (execute: string, answer: unknown): void => {
    // Not indented, which would make megabytes of what is nested.
    answers.push(`${JSON.stringify(execute)}: ${JSON.stringify(answer ?? null)}`);
  };
  for (const [i, execute] of AGENT_COMMANDS.entries()) {
    if (performance.now() > end) break;
    try {
      keep(execute, await domain.agentCommand({ execute }, AGENT_COMMAND_SECONDS));
    } catch (error) {
      if (i === 0) throw error;
      keep(execute, { error: explain(error) });
    }
  }
  return `{${answers.join(",\n")}}\n`;
}

/** The end of what libvirt and QEMU log of the machine. */
async function readQemuLog(machine: string, { isLocal }: Connection): Promise<Uint8Array> {
  if (!isLocal) throw new Error("the hypervisor is on another host");
  using file = await Deno.open(`/var/log/libvirt/qemu/${machine}.log`);
  const { size } = await file.stat();
  await file.seek(Math.max(0, size - QEMU_LOG_BYTES), Deno.SeekMode.Start);
  return new Uint8Array(await new Response(file.readable).arrayBuffer());
}

const REASONS = new Map([
  ["shutdown", "it powered off"],
  ["crashed", "its QEMU died"],
  ["destroyed", "somebody destroyed it"],
]);

/** Why the machine ended, if QEMU's log says so in its last line. */
function whyEnded(files: readonly KeptFile[]): string[] {
  const log = files.find(({ name }) => name === QEMU_LOG);
  const last = new TextDecoder().decode(log?.bytes).trimEnd().split("\n").at(-1) ?? "";
  const reason = /: shutting down, reason=(\w{1,40})$/.exec(last)?.[1];
  return reason === undefined
    ? []
    : [`libvirt's log of it says: ${REASONS.get(reason) ?? reason}.`];
}

/** The cards of the machine whose link libvirt has down, and what plugs them in. */
export function unpluggedIn(
  files: readonly KeptFile[],
  { machine, uri }: { readonly machine: string; readonly uri: string },
): string[] {
  const domainXml = files.find(({ name }) => name === DOMAIN_XML)?.bytes;
  if (domainXml === undefined) return [];
  return unpluggedCards(new TextDecoder().decode(domainXml)).map((mac) => {
    const plugIn = virsh({ uri }, "domif-setlink", machine, mac, "up");
    return `The link of its network card is down in libvirt, by somebody's command: ${plugIn}`;
  });
}

/** Why the kernel panicked, which it says far above the end of its words. */
function panicOf(console: string): string[] {
  const line = consoleLines(console).findLast((line) => line.includes("Kernel panic"));
  return line === undefined ? [] : [`Its kernel says: ${line}`];
}

/** What failed, and what is missing beside it. */
function reasonFile(
  machine: string,
  { failure, details, missing, need: { owner, record } }: {
    readonly failure: SystemFailure;
    readonly details: readonly string[];
    readonly missing: readonly string[];
    readonly need: Need;
  },
): KeptFile {
  const lines = [
    `Machine:  ${machine}`,
    `Template: ${record?.template ?? "unknown"}`,
    `Job:      ${owner?.job ? `${owner.job} of ${owner.project}` : "by hand, or unknown"}`,
    `Failed:   ${new Date().toISOString()}`,
    "",
    explain(failure),
    ...details,
    ...missing.length === 0 ? [] : ["", "What is missing here, and why:"],
    ...missing.map((line) => `- ${line.replaceAll("\n", "\n  ")}`),
    "",
  ];
  return { name: "reason.txt", bytes: new TextEncoder().encode(toVisible(lines.join("\n"))) };
}
