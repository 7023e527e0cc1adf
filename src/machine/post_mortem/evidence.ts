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
/** For each call, on a connection of its own: what hangs there holds up nothing else. */
export const CALL_SECONDS = 5;

/** What all files of a machine may have together. */
export function mostBytesOf({ postMortem: { totalMib: postMortemMib } }: Config): number {
  return postMortemMib * 1024 ** 2;
}

/** What a part gave, or why it gave nothing. */
interface Part<T> {
  readonly value?: T;
  readonly why?: string;
}

/** Asks for a part on a connection of its own, for some seconds. */
export async function inPart<T>(
  { host: { connect }, signal }: Context,
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
export async function collect(
  machine: string,
  context: Context,
  names: readonly string[] | null,
): Promise<{ readonly files: KeptFile[]; readonly missing: string[] }> {
  const { host } = context;
  const { config } = host;
  const mostBytes = mostBytesOf(config) / 4; // each, so that none leaves no room for the others
  const text = (words: string): Uint8Array => new TextEncoder().encode(words);
  const ofDomain = async (connection: Connection, read: (found: Found) => Promise<Uint8Array>) => {
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
      const { value, why } = await inPart(context, read);
      if (value === undefined) missing.push(`${name}: ${why}`);
      else if (value.length > mostBytes) missing.push(`${name}: ${TOO_LARGE}`);
      else files.push({ name, bytes: value });
    }),
  );
  return { files, missing: missing.sort() };
}

type Found = Awaited<ReturnType<typeof lookupMachine>>;

/** A file of a post-mortem. */
export const CONSOLE = "console.log";
const MOST_CONSOLE_BYTES = 64 * 1024 ** 2; // it is in memory once
const MOST_SCREENSHOT_BYTES = 64 * 1024 ** 2; // likewise
/** A file of a post-mortem. */
export const DOMAIN_XML = "domain.xml";
const TOO_LARGE = 'it has more than a quarter of "post_mortem.total_mib"';
/** A file of a post-mortem. */
export const QEMU_LOG = "qemu.log";
const QEMU_LOG_BYTES = 256 * 1024;

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

/**
 * A picture of a machine's screen as PNG, from what libvirt gives: PNG or, with an older QEMU, PPM
 * (https://netpbm.sourceforge.net/doc/ppm.html). Throws Error on anything else.
 */
export async function toPng(mimeType: string, bytes: Uint8Array): Promise<Uint8Array> {
  if (mimeType === "image/png") return bytes;
  const { encode } = await import("fast-png"); // which a newer QEMU makes unneeded
  const start = new TextDecoder("latin1").decode(bytes.subarray(0, 64));
  const [header, width, height] = /^P6\s+(\d{1,5})\s+(\d{1,5})\s+255\s/.exec(start) ?? [];
  if (header === undefined) throw new Error(`a screenshot of an unknown kind, ${mimeType}`);
  const size = { width: Number(width), height: Number(height) };
  const data = bytes.subarray(header.length, header.length + size.width * size.height * 3);
  return encode({ ...size, data, channels: 3 }); // which throws if there are too few
}
