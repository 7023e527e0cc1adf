// SPDX-License-Identifier: GPL-2.0-or-later
import { explain, reasonOf } from "../../errors.ts";
import type { Connection } from "../../libvirt/connection.ts";
import type { Context } from "../context.ts";
import type { KeptFile } from "./post_mortem_directory.ts";
import { lookupMachine } from "../ready_machine.ts";
import { readConsole } from "../storage/guest_files.ts";
import { lookupActivePool } from "../storage/pools.ts";
import { toVisible } from "../../quoted.ts";
import type { Config } from "../../settings/settings.ts";
import { within } from "../../wait.ts";

const PARTS_MS = 6000;
/** For each call. Each part has its own connection, so that none holds up another. */
export const CALL_SECONDS = 5;

/** Files of a post-mortem. */
export const CONSOLE = "console.log";
export const DOMAIN_XML = "domain.xml";
export const QEMU_LOG = "qemu.log";

const MOST_CONSOLE_BYTES = 64 * 1024 ** 2; // it is in memory once
const MOST_SCREENSHOT_BYTES = 64 * 1024 ** 2; // likewise
const QEMU_LOG_BYTES = 256 * 1024;
const TOO_LARGE = 'it has more than a quarter of "post_mortem.total_mib"';

/** The limit for all files of a machine together. */
export function mostBytesOf({ postMortem: { totalMib } }: Config): number {
  return totalMib * 1024 ** 2;
}

/** Reads a part on its own connection, for some seconds. Gives its value, or why there is none. */
export async function inPart<T>(
  { host: { connect }, signal }: Context,
  read: (connection: Connection) => Promise<T>,
): Promise<{ readonly value?: T; readonly why?: string }> {
  const part = async () => {
    try {
      await using connection = await connect(CALL_SECONDS);
      return { value: await read(connection) };
    } catch (error) {
      return { why: reasonOf(error) };
    }
  };
  return await within(part(), PARTS_MS, signal) ??
    { why: `it was not available within ${PARTS_MS / 1000} s` };
}

/** Reads these files, or all, at once. Gives what it could read, and why others are missing. */
export async function collect(
  machine: string,
  context: Context,
  names: readonly string[] | null,
): Promise<{ readonly files: KeptFile[]; readonly missing: string[] }> {
  const { host } = context;
  const { config } = host;
  const mostBytes = mostBytesOf(config) / 4; // for each, so that none takes the others' room
  const text = (words: string): Uint8Array => new TextEncoder().encode(words);
  const ofDomain =
    (read: (found: Found) => Promise<Uint8Array>) => async (connection: Connection) => {
      using found = await lookupMachine(machine, { ...host, connection });
      return await read(found);
    };
  const parts: Readonly<Record<string, (connection: Connection) => Promise<Uint8Array>>> = {
    [CONSOLE]: async (connection) => {
      using pool = await lookupActivePool(connection, config.pools.overlays, "pools.overlays");
      const end = Math.min(mostBytes, MOST_CONSOLE_BYTES);
      const bytes = await readConsole({ connection, pool, machine }, end);
      if (bytes === null) throw new Error("there is no serial console");
      if (bytes.length === 0) throw new Error("it is empty");
      return bytes;
    },
    [DOMAIN_XML]: ofDomain(async ({ domain }) => text(await domain.xml())),
    "screenshot.png": ofDomain(async ({ domain }) => {
      const { mimeType, bytes } = await domain.screenshot(MOST_SCREENSHOT_BYTES);
      return await toPng(mimeType, bytes);
    }),
    "agent.json": ofDomain(async (found) => text(toVisible(await askAgent(found)))),
    [QEMU_LOG]: (connection) => readQemuLog(machine, connection),
  };
  const files: KeptFile[] = [];
  const missing: string[] = [];
  const wanted = Object.entries(parts).filter(([name]) => names?.includes(name) !== false);
  await Promise.all(wanted.map(async ([name, read]) => {
    const { value, why } = await inPart(context, read);
    if (value === undefined) missing.push(`${name}: ${why}`);
    else if (value.length > mostBytes) missing.push(`${name}: ${TOO_LARGE}`);
    else files.push({ name, bytes: value });
  }));
  return { files, missing: missing.sort() };
}

type Found = Awaited<ReturnType<typeof lookupMachine>>;

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

/** The guest agent's answers as JSON, by command. Throws if it does not answer the first. */
async function askAgent({ domain }: Found): Promise<string> {
  const end = performance.now() + AGENT_MS;
  const answers: string[] = [];
  const keep = (execute: string, answer: unknown): void => {
    // Not indented, or nested answers become megabytes.
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

/** The end of libvirt's and QEMU's log of the machine. */
async function readQemuLog(machine: string, { isLocal }: Connection): Promise<Uint8Array> {
  if (!isLocal) throw new Error("the hypervisor is on another host");
  using file = await Deno.open(`/var/log/libvirt/qemu/${machine}.log`);
  const { size } = await file.stat();
  await file.seek(Math.max(0, size - QEMU_LOG_BYTES), Deno.SeekMode.Start);
  return new Uint8Array(await new Response(file.readable).arrayBuffer());
}

/**
 * A screenshot as PNG. libvirt gives PNG or, with an older QEMU, PPM
 * (https://netpbm.sourceforge.net/doc/ppm.html). Throws Error on anything else.
 */
export async function toPng(mimeType: string, bytes: Uint8Array): Promise<Uint8Array> {
  if (mimeType === "image/png") return bytes;
  const { encode } = await import("fast-png"); // a newer QEMU needs no conversion
  const start = new TextDecoder("latin1").decode(bytes.subarray(0, 64));
  const [header, width, height] = /^P6\s+(\d{1,5})\s+(\d{1,5})\s+255\s/.exec(start) ?? [];
  if (header === undefined) throw new Error(`a screenshot of an unknown kind, ${mimeType}`);
  const size = { width: Number(width), height: Number(height) };
  const data = bytes.subarray(header.length, header.length + size.width * size.height * 3);
  return encode({ ...size, data, channels: 3 }); // throws if bytes are missing
}
