// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { EMPTY_METADATA, metadataXml } from "../src/machine/metadata.ts";
import { sleep } from "../src/wait.ts";
import { TestGuest } from "./fakes/test_guest.ts";
import { TestLibvirtd, xdr } from "./fakes/test_libvirtd.ts";
import { SMALL_JOB } from "./harness/payload.ts";
import { denoVariables, runJob, runnerFor } from "./harness/runner.ts";
import { startRunnerProcess } from "./harness/runner_process.ts";

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
  /** Resolves when no process of it is left. Fails if that takes much longer than a cancel may. */
  readonly untilEnded: () => Promise<void>;
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
    untilEnded: async () => {
      const end = performance.now() + MOST_MS;
      while ((await pids()).length > 0) {
        assert(performance.now() < end, "the program goes on");
        await sleep(50);
      }
    },
    [Symbol.asyncDispose]: async () => {
      for (const pid of await pids()) Deno.kill(pid, "SIGKILL");
      await Deno.remove(directory, { recursive: true });
    },
  };
}

const MOST_MS = 15_000;

/** The program on a host of libvirt's test driver where a foreign machine takes the only place. */
async function onFullHost(admissionSeconds = 600): Promise<Program> {
  const host = await Deno.readTextFile(new URL("data/host.xml", import.meta.url));
  const full = host.replaceAll("somebody.qcow2", "somebody.overlay.libvirt-gci");
  return await program((directory) => {
    Deno.writeTextFileSync(`${directory}/host.xml`, full);
    return `libvirt: {uri: test://${directory}/host.xml}\nnetwork: {isolate: false}\n` +
      `host: {max_machines: 1, queue_seconds: ${admissionSeconds}}\n`;
  });
}

const WAITS = /^Waiting for a machine to end \(1 of 1 machine run\)$/m;
/** The volume by which it waits goes, and the one by which the name is its own. */
const UNDONE = /(debug: virStorageVolDelete [^]*){2}/;
const GONE = /^libvirt-gci: GitLab Runner has ended, so this stage is cancelled$/m;

for (const signal of ["SIGTERM", "SIGKILL"] as const) {
  Deno.test(`a prepare that waits ends and undoes when its runner has ended by ${signal}`, async () => {
    await using host = await onFullHost();
    const differences = { tmpdir: host.directory, shutdownSeconds: 0.5 };
    const gitlabRunner = runnerFor(host.argv, host.options, differences);
    await using runner = startRunnerProcess(gitlabRunner, JOB);
    await runner.printed(WAITS);
    await runner.end(signal); // and with it the reader of what prepare prints
    await host.untilEnded();
    assert.match(await host.said(), UNDONE);
    assert.match(await host.said(), GONE);
  });
}

Deno.test("a script ends when its runner is gone, whether or not it writes", async () => {
  await Promise.all(
    ["sleep 100", "while :; do echo more; sleep 0.01; done"].map(async (more) => {
      await using guest = await TestGuest.start();
      const metadata = { ...EMPTY_METADATA, user: "root", port: guest.port };
      await using libvirtd = new TestLibvirtd({
        DOMAIN_GET_METADATA: () =>
          xdr(
            `${
              metadataXml({ ...metadata, address: "127.0.0.1", key: `${machine.directory}/key` })
            }`,
          ),
      });
      await using machine = await program((directory) => {
        Deno.writeTextFileSync(`${directory}/key`, guest.privateKey);
        return `libvirt: {uri: ${libvirtd.uri}}\n`;
      });
      const mark = `sleep 99.${crypto.getRandomValues(new Uint32Array(1))[0]}`;
      const { argv, options, directory } = machine;
      await using runner = startRunnerProcess(
        runnerFor(argv, options, {
          configExec: null,
          prepareExec: null,
          cleanupExec: null,
          tmpdir: directory,
          runExec: [...argv, ...options, "run", "--machine", "m", "--script"],
          buildsDir: `${directory}/builds`,
          cacheDir: `${directory}/cache`,
        }),
        { ...JOB, script: [`setsid ${mark} & echo up`, more] },
      );
      await runner.printed(/^up$/m);
      while (!await isRunning(mark)) await sleep(20);
      await runner.end("SIGKILL");
      await machine.untilEnded();
      assert(!await isRunning(mark), `it left a process of the script that goes on with ${more}`);
    }),
  );
});

Deno.test("a cleanup whose runner is gone still waits for a daemon that is started anew", async () => {
  const called = Promise.withResolvers<void>();
  const isGone = Promise.withResolvers<void>();
  let opens = 0;
  await using libvirtd = new TestLibvirtd({
    CONNECT_OPEN: () => {
      if (++opens === 2) throw new Error("not yet");
      return xdr();
    },
    DOMAIN_LOOKUP_BY_NAME: async () => {
      called.resolve();
      await isGone.promise;
      throw new Error("the daemon ends");
    },
  });
  await using machine = await program(() => `libvirt: {uri: ${libvirtd.uri}}\n`);
  const { argv, options, directory } = machine;
  const differences = {
    configExec: null,
    prepareExec: null,
    runExec: ["true"],
    tmpdir: directory,
    cleanupExec: [...argv, ...options, "cleanup", "--machine", "m"],
    buildsDir: directory,
    cacheDir: directory,
  };
  await using runner = startRunnerProcess(runnerFor(argv, options, differences), JOB);
  await called.promise;
  await runner.end("SIGKILL");
  await sleep(1500); // for it to notice
  isGone.resolve();
  await machine.untilEnded();
  assert.equal(opens, 3);
});

async function isRunning(commandLine: string): Promise<boolean> {
  return (await new Deno.Command("pgrep", { args: ["-xf", commandLine] }).output()).success;
}

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
    env: {
      ...denoVariables(),
      PATH: Deno.env.get("PATH") ?? "",
      HOME: Deno.env.get("HOME") ?? "/",
    },
    stdin: "null",
    stdout: "piped",
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

Deno.test("by hand, prepare goes on without the shell that it came from", async () => {
  await using host = await onFullHost(4);
  const { shell } = await prepareByHand(host);
  shell.kill("SIGKILL");
  await shell.status;
  await host.untilEnded();
  assert.match(await host.said(), /did not leave the queue within 4 s/);
});
