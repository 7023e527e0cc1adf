// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { SMALL_JOB } from "./harness/payload.ts";
import { denoVariables, runJob, runnerFor } from "./harness/runner.ts";

const MAIN = new URL("../main.ts", import.meta.url).pathname;
const JOB = { ...SMALL_JOB, variables: [{ key: "DISTRO", value: "debian-12" }] };

/** The program with settings of its own. */
interface Program extends AsyncDisposable {
  readonly directory: string;
  /** It takes the place of a shell, which has its stderr be a file. */
  readonly argv: readonly string[];
  /** Its options for all commands. */
  readonly options: readonly string[];
  /** What it wrote on stderr so far, with its calls of libvirt. */
  readonly said: () => Promise<string>;
}

async function program(settings: (directory: string) => string): Promise<Program> {
  const directory = await Deno.makeTempDir({ prefix: "libvirt-gci-test-" });
  const config = `${directory}/config.yaml`;
  await Deno.writeTextFile(config, settings(directory));
  const errors = `${directory}/errors`;
  const deno = [Deno.execPath(), "run", "--quiet", "--allow-all", MAIN];
  const pids = async (): Promise<number[]> => {
    const { stdout } = await new Deno.Command("pgrep", { args: ["-f", config] }).output();
    return (new TextDecoder().decode(stdout).match(/\d+/g) ?? []).map(Number);
  };
  return {
    directory,
    argv: ["bash", "-c", 'exec "$@" 2>>"$0"', errors, ...deno],
    options: ["--debug", "--config", config],
    said: () => Deno.readTextFile(errors),
    [Symbol.asyncDispose]: async () => {
      for (const pid of await pids()) Deno.kill(pid, "SIGKILL");
      await Deno.remove(directory, { recursive: true });
    },
  };
}

/** The program on a host of libvirt's test driver whose one machine that may run is somebody's. */
async function onFullHost(): Promise<Program> {
  const host = await Deno.readTextFile(new URL("data/host.xml", import.meta.url));
  const full = host.replaceAll("somebody.qcow2", "somebody.overlay.libvirt-gci");
  return await program((directory) => {
    Deno.writeTextFileSync(`${directory}/host.xml`, full);
    return `uri: test://${directory}/host.xml\nmax_machines: 1\nisolate: false\n`;
  });
}

const WAITS = /^Waiting for a machine to end \(1 of 1 machine run\)$/m;
/** The volume by which it waits goes, and the one by which the name is its own. */
const UNDONE = /(debug: virStorageVolDelete [^]*){2}/;

Deno.test("under GitLab Runner, a cancelled stage says who cancelled it, and why that may be", async () => {
  await using host = await onFullHost();
  const result = await runJob(runnerFor(host.argv, host.options), JOB, {
    events: [{ stage: "prepare", whenOutput: "Waiting for", action: "hard_cancel" }],
  });
  assert.equal(result.verdict, "canceled");
  assert.equal(result.stages[1]?.exitStatus, 2);
  assert.match(await host.said(), UNDONE);
  assert.match(
    await host.said(),
    /^libvirt-gci: GitLab Runner cancelled the stage: the job was cancelled or timed out, or the runner is shutting down$/m,
  );
});

/** Starts prepare by hand, as the child of a shell, and waits until it waits. */
async function prepareByHand(
  { argv, options }: Program,
): Promise<{ readonly shell: Deno.ChildProcess; readonly pid: number }> {
  const args = ["prepare", "--machine", "mine", "--distro", "debian-12"];
  const shell = new Deno.Command("bash", {
    args: ["-c", '"$@" & echo "$!"; wait "$!"', "shell", ...argv, ...options, ...args],
    clearEnv: true,
    env: { ...denoVariables(), PATH: Deno.env.get("PATH") ?? "", HOME: "/nonexistent" },
    ...{ stdin: "null", stdout: "piped" },
  }).spawn();
  let printed = "";
  for await (const part of shell.stdout.pipeThrough(new TextDecoderStream())) {
    printed += part;
    if (WAITS.test(printed)) break;
  }
  return { shell, pid: Number.parseInt(printed) };
}

Deno.test("by hand, a stage that is cancelled names the signal", async () => {
  await using host = await onFullHost();
  const { shell, pid } = await prepareByHand(host);
  Deno.kill(pid, "SIGTERM");
  assert.equal((await shell.status).code, 2);
  assert.match(await host.said(), /^libvirt-gci: Cancelled by SIGTERM$/m);
});
