// SPDX-License-Identifier: GPL-2.0-or-later
import { allOf, sleep } from "../../src/wait.ts";
import { done, undo } from "./program.ts";
import { command, TESTBED, virsh } from "../e2e/bed.ts";

/** Has prepare make these machines, all at once, and gives what it prints of each. */
export async function prepareAll(
  ours: readonly string[],
  template: string,
  machines: readonly string[],
): Promise<string[]> {
  return await allOf(
    machines.map((machine) =>
      done([...ours, "prepare", "--distro", template, "--machine", machine])
    ),
  );
}

/** Removes these machines, or what there is of them. */
export async function cleanUpAll(
  ours: readonly string[],
  machines: readonly string[],
): Promise<void> {
  await Promise.all(machines.map((machine) => undo([...ours, "cleanup", "--machine", machine])));
}

/** Makes a warm image of the template, which goes when it is disposed of. */
export async function makeWarm(
  ours: readonly string[],
  template: string,
): Promise<AsyncDisposable> {
  await done([...ours, "warm", template]);
  return { [Symbol.asyncDispose]: () => undo([...ours, "warm", "--remove", template]) };
}

/** Why prepare booted a machine that was to be resumed; null if it did not. */
export function whyBooted(output: string): string | null {
  if (!/^Started the machine /m.test(output)) return null;
  return /^.*Cannot resume the machine "[^"]+", so it boots: (.*)$/m.exec(output)?.[1] ?? "unknown";
}

/**
 * Has machines wait as the settings say. Disposed of, none waits any more, nor is another made, as
 * prepare with these settings would have it done in the background.
 */
export async function haveWait(ours: readonly string[]): Promise<AsyncDisposable> {
  const words = [...ours, "standby"];
  await done(words);
  return {
    async [Symbol.asyncDispose]() {
      const fill = ["-f", "--", `${ours.at(-1)} standby$`]; // with our own file
      await command(["pkill", "-TERM", ...fill]);
      while ((await command(["pgrep", ...fill])).status === 0) await sleep(100);
      await undo([...words, "--remove"]);
    },
  };
}

/** OpenSSH's client to this machine of `lite`, with its key. Each call is a connection of its own. */
export async function openSshTo(machine: string): Promise<string[]> {
  const address = / address="([^"]+)"/.exec(await virsh("dumpxml", machine))?.[1] ?? "";
  const options = [
    "IdentitiesOnly=yes",
    "StrictHostKeyChecking=no",
    "UserKnownHostsFile=/dev/null",
    "LogLevel=ERROR",
  ];
  return [
    "ssh",
    "-F/dev/null",
    `-i${TESTBED.key}`,
    ...options.map((option) => `-o${option}`),
    `gitlab-runner@${address}`,
  ];
}
