// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import type { ListedMachine } from "../../src/commands/list.ts";
import { sleep } from "../../src/wait.ts";
import { type Called, command, PROGRAM, type Settings, settingsFile } from "./bed.ts";

/**
 * Gives the test settings by which machines of `lite` wait, and its warm image. The guest gets its
 * keys by the agent, so that only a resumed one lets a job in. The file of the settings stays until
 * the last process in the background has ended.
 */
export async function withStandbys(
  count: number,
  test: (settings: Settings, file: string) => Promise<void>,
  more: Settings = {},
): Promise<void> {
  const settings = {
    ...more,
    start: "warm",
    templates: { lite: { ssh: { login: "cloud-init" }, standby: count } },
  };
  using file = settingsFile(settings);
  try {
    await done(file.path, ["warm", "lite"]);
    await test(settings, file.path);
  } finally {
    await untilNobodyFills();
    await by(file.path, ["standby", "--remove"]);
    await by(file.path, ["warm", "--remove", "lite"]);
  }
}

/** Calls the program with these settings. */
export function by(file: string, args: readonly string[]): Promise<Called> {
  return command([...PROGRAM, "--config", file, ...args]);
}

/** As {@linkcode by}, which has to succeed. Gives all that it printed. */
export async function done(file: string, args: readonly string[]): Promise<string> {
  const { status, stdout, stderr } = await by(file, args);
  assert.equal(status, 0, stderr);
  return stdout + stderr;
}

/** The processes in the background that make machines wait. */
function fillers(): Promise<Called> {
  return command(["pgrep", "-f", "libvirt-gci-e2e-.* standby$"]);
}

/** The variables of each process in the background that makes machines wait. */
export async function environmentsOfFillers(): Promise<string[]> {
  const pids = (await fillers()).stdout.split("\n").filter((pid) => pid !== "");
  return await Promise.all(pids.map((pid) => Deno.readTextFile(`/proc/${pid}/environ`)));
}

/** Resolves when no process in the background makes machines wait. */
export async function untilNobodyFills(): Promise<void> {
  while ((await fillers()).status === 0) await sleep(200);
}

/** All machines of which anything is left, as the program lists them. */
export async function list(file: string): Promise<ListedMachine[]> {
  return JSON.parse(await done(file, ["list", "--json"]));
}

/** The names of those that wait. */
export async function waiting(file: string): Promise<string[]> {
  return (await list(file)).filter(({ state }) => state === "standby").map(({ domain }) => domain);
}
