// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { stringify } from "yaml";
import { kvmRunsGuests } from "../../src/machine/kvm/kvm_probe.ts";
import { readHostNetwork } from "../../src/machine/network/host_addresses.ts";
import { machineOfVolume } from "../../src/machine/storage/volume_names.ts";
import { isKeys } from "../../src/settings/kinds.ts";
import { sleep } from "../../src/wait.ts";
import { type Job, SMALL_JOB } from "../harness/payload.ts";
import {
  type JobResult,
  runJob,
  type Runner,
  runnerFor,
  type RunOptions,
  type Verdict,
} from "../harness/runner.ts";

/** What `tests/testbed/testbed.sh up` makes. */
export const TESTBED = {
  network: "gci-testbed",
  templatePool: "gci-testbed-templates",
  overlayPool: "gci-testbed-overlays",
  key: "/var/lib/libvirt-gci-testbed/id_ed25519",
  user: "gci-testbed",
} as const;

const MAIN = new URL("../../main.ts", import.meta.url).pathname;

/** The program under test: the compiled one that LIBVIRT_GCI names, or main.ts. */
export const PROGRAM: readonly string[] = Deno.env.has("LIBVIRT_GCI")
  ? [Deno.env.get("LIBVIRT_GCI") ?? ""]
  : [Deno.execPath(), "run", "--quiet", "--allow-all", MAIN];

/** Settings, as the file has them. */
export type Settings = Readonly<Record<string, unknown>>;

/**
 * How much longer anything may take than on a host that does nothing else: guests are emulated, and one
 * stands still at times.
 */
const BUSY_HOST_FACTOR = 5;

/** The most seconds that something may take which takes so many on a quiet host. */
export function atMost(quietSeconds: number): number {
  return quietSeconds * BUSY_HOST_FACTOR;
}

/** Whether KVM runs guests here. Where it does not, the test bed has its machines emulated. */
export const KVM = await kvmRunsGuests();

/** What `domain_type` is on the test bed. */
export const DOMAIN_TYPE = KVM.works === true ? "kvm" : "qemu";

/** A container does not see the addresses of its host, and these tests use none. */
const IN_CONTAINER = !readHostNetwork().isInitial;

const SETTINGS: Settings = {
  domain_type: DOMAIN_TYPE,
  pools: { templates: TESTBED.templatePool, overlays: TESTBED.overlayPool },
  network: { name: TESTBED.network, ...(IN_CONTAINER && { host_addresses: ["192.0.2.1"] }) },
  ssh: { key: TESTBED.key },
  memory_mib: 512,
  vcpus: 1, // emulated, a second one gains nothing; with two, a guest has stood still in its kernel
  timeouts: { address_seconds: atMost(18) }, // what "cloud" needs
  post_mortem: { count: 0 }, // but for the tests of them, nothing is to stay
  templates: { lite: { ssh: { login: "template" } }, cloud: { aliases: ["example.org/cloud:1"] } },
};

/** A file with the test bed's settings and these, removed when it is disposed of. */
export function settingsFile(settings: Settings = {}): Disposable & { readonly path: string } {
  const path = Deno.makeTempFileSync({ prefix: "libvirt-gci-e2e-", suffix: ".yaml" });
  Deno.writeTextFileSync(path, stringify(withOwn(settings)));
  return { path, [Symbol.dispose]: () => Deno.removeSync(path) };
}

/** The test bed's settings with these in their place: key by key in each group, `templates` as a whole. */
function withOwn(settings: Settings): Settings {
  const groups = Object.entries(settings).map(([key, value]) => {
    const usual = SETTINGS[key];
    return [
      key,
      key !== "templates" && isKeys(usual) && isKeys(value) ? { ...usual, ...value } : value,
    ];
  });
  return { ...SETTINGS, ...Object.fromEntries(groups) };
}

/** A job for the template `lite`. */
export function job(differences: Partial<Job>): Job {
  return { ...SMALL_JOB, variables: [{ key: "DISTRO", value: "lite" }], ...differences };
}

/** Has the runner run this job with the program under test. */
export async function runOnBed(
  job: Job,
  { settings = {}, args = [], runner = {}, ...options }: RunOptions & {
    readonly settings?: Settings;
    /** Further arguments for all stages. */
    readonly args?: readonly string[];
    readonly runner?: Partial<Runner>;
  } = {},
): Promise<JobResult> {
  using file = settingsFile(settings);
  return await runJob(runnerFor(PROGRAM, [...args, "--config", file.path], runner), job, options);
}

/** Makes a machine by hand, of `lite`, and removes it in the end. */
export async function prepared(
  machine: string,
  settings: Settings = {},
): Promise<AsyncDisposable> {
  const cleanUp = async () => void await call(["cleanup", "-m", machine]);
  const { status, stderr } = await call(["prepare", "-d", "lite", "-m", machine], { settings });
  if (status !== 0) await cleanUp();
  assert.equal(status, 0, stderr);
  return { [Symbol.asyncDispose]: cleanUp };
}

/** Has the runner run the scripts of this job in a machine that is there and stays. */
export async function runOnMachine(
  machine: string,
  job: Job,
  options: RunOptions = {},
): Promise<JobResult> {
  using file = settingsFile();
  return await runJob(
    runnerFor(PROGRAM, [], {
      configExec: null,
      prepareExec: null,
      runExec: [...PROGRAM, "--config", file.path, "run", "--machine", machine, "--script"],
      cleanupExec: null,
      buildsDir: "/home/gitlab-runner/builds",
      cacheDir: "/home/gitlab-runner/cache",
    }),
    job,
    options,
  );
}

/** Asserts how the job ended. Of a long log the end is what people see: there is what went wrong. */
export function assertVerdict(
  { verdict, exitCode, reason, logText, stages }: JobResult,
  wanted: Verdict,
  wantedExitCode: number | null = exitCode,
): void {
  if (verdict === wanted && exitCode === wantedExitCode) return;
  const failed = stages.filter(({ exitStatus }) => exitStatus !== 0).map((stage) => {
    const told = new TextDecoder().decode(stage.stderr);
    const start = Math.max(told.lastIndexOf("libvirt-gci: "), 0);
    const why = told.slice(start, start + FAILURE_CHARACTERS);
    return `${stage.name}, ${stage.seconds.toFixed(1)} s, status ${stage.exitStatus}: ${why}`;
  });
  const ended = `The job ended with ${verdict} (${exitCode}), not ${wanted} (${wantedExitCode})`;
  assert.fail([logText, ...failed, `${ended}: ${reason}`].join("\n"));
}

const FAILURE_CHARACTERS = 500;

/** Prints how often the SSH server of a machine with a journal has let somebody in. */
export const LOGINS = "echo logins:$(sudo -n journalctl -o cat | grep -c '^Accepted publickey'):";

/** What {@linkcode LOGINS} printed, each time. */
export function loginsIn(logText: string): number[] {
  return [...logText.matchAll(/logins:(\d+):/g)].map(([, count]) => Number(count));
}

/** Has a script wait for {@linkcode letGo}. */
export const UNTIL_LET_GO = "until [ -e /tmp/go ]; do sleep 0.2; done";

/** Lets the script in this machine go on. */
export async function letGo(machine: string): Promise<void> {
  const { status, stderr } = await call(["run", "-m", machine, "--", "touch", "/tmp/go"]);
  assert.equal(status, 0, stderr);
}

/** The machine whose name begins like this and runs now. */
export async function runningMachine(start: string): Promise<string> {
  const machine = (await virsh("list", "--name")).split("\n").find((it) => it.startsWith(start));
  assert(machine, `no machine ${start}... runs`);
  return machine;
}

/** How a call of the program by hand ended. */
export interface Called {
  readonly status: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Calls the program by hand. */
export async function call(
  args: readonly string[],
  { settings = {}, env = {}, wrapper = [] }: {
    readonly settings?: Settings;
    readonly env?: Record<string, string>;
    /** A command that runs the program. */
    readonly wrapper?: readonly string[];
  } = {},
): Promise<Called> {
  using file = settingsFile(settings);
  return await command([...wrapper, ...PROGRAM, "--config", file.path, ...args], env);
}

/** Runs a program of this host. */
export async function command(
  [program, ...args]: readonly string[],
  env: Record<string, string> = {},
): Promise<Called> {
  const output = await new Deno.Command(program ?? "", { args, env, stdin: "null" }).output();
  const decoder = new TextDecoder();
  return {
    status: output.code,
    stdout: decoder.decode(output.stdout),
    stderr: decoder.decode(output.stderr),
  };
}

/** As {@linkcode command} for virsh. Throws if it fails. */
export async function virsh(...args: string[]): Promise<string> {
  const { status, stdout, stderr } = await command(["virsh", "-c", "qemu:///system", ...args]);
  assert.equal(status, 0, `virsh ${args.join(" ")}: ${stderr}`);
  return stdout.trim();
}

/** Creates a qcow2 volume in the overlay pool on top of an image. */
export async function createOverlay(name: string, image: string, size: string): Promise<void> {
  const formats = ["--format=qcow2", "--backing-vol-format=qcow2"];
  const backing = `--backing-vol=${image}`;
  await virsh("vol-create-as", TESTBED.overlayPool, name, size, backing, ...formats);
}

/** As {@linkcode virsh}, for a command whose last argument is a file with this XML. */
export async function virshXml(args: readonly string[], xml: string): Promise<void> {
  const file = await Deno.makeTempFile({ prefix: "libvirt-gci-e2e-" });
  try {
    await Deno.writeTextFile(file, xml);
    await virsh(...args, file);
  } finally {
    await Deno.remove(file);
  }
}

/** The machine of a job that runs: config said its name. */
export function machineOf(result: JobResult): string {
  const machine = result.config.job_env?.["LIBVIRT_GCI_MACHINE"];
  assert(machine, "config named no machine");
  return machine;
}

/** Waits until it is so. Throws, with what there is instead, if that takes much too long. */
export async function until(
  isSo: () => boolean | Promise<boolean>,
  { what, quietSeconds = 10, instead = () => "" }: {
    readonly what: string;
    readonly quietSeconds?: number;
    readonly instead?: () => string;
  },
): Promise<void> {
  const end = performance.now() + atMost(quietSeconds) * 1000;
  while (!await isSo()) {
    assert(performance.now() < end, `It did not come to this: ${what}\n${instead()}`);
    await sleep(50);
  }
}

/** Whether only that is tested on which a user's job rests, as `deno task core` has it. */
export const IS_CORE_ONLY = Deno.env.get("LIBVIRT_GCI_E2E") === "core";

/**
 * A test that must leave all domains, volumes and processes as they were. The machines that one leaves
 * which fails are removed, so that no other fails of them. One that is `thorough` proves little that others
 * do not, or takes long: `deno task core` leaves it out.
 */
export function e2eTest(
  name: string,
  test: (t: Deno.TestContext) => Promise<void>,
  { ignore = false, thorough = false }: {
    readonly ignore?: boolean;
    readonly thorough?: boolean;
  } = {},
): void {
  Deno.test(name, { ignore: ignore || thorough && IS_CORE_ONLY }, async (t) => {
    const before = await inventory();
    try {
      await test(t);
      assert.deepEqual(await inventory(), before, "something is left, or missing");
    } catch (error) {
      await removeSince(before).catch(console.error); // the first failure counts
      throw error;
    }
  });
}

/** Removes the machines that had no volume then. */
async function removeSince(before: Readonly<Record<string, string>>): Promise<void> {
  const machinesIn = ({ overlays = "" }: typeof before) =>
    new Set(overlays.match(/\S+/g)?.map(machineOfVolume).filter((machine) => machine !== null));
  const machines = machinesIn(await inventory()).difference(machinesIn(before));
  for (const machine of machines) await call(["cleanup", "--machine", machine]);
}

/** All that a test could leave or take away. */
export async function inventory(): Promise<Record<string, string>> {
  const { stdout: qemu } = await command(["pgrep", "-cf", "qemu.*libvirt-gci-testbed/overlays"]);
  return {
    domains: await virsh("list", "--all", "--name"),
    templates: await volumes(TESTBED.templatePool),
    overlays: await volumes(TESTBED.overlayPool),
    filters: await virsh("nwfilter-list"),
    keys: (await command(["find", "/run/libvirt-gci", "-type", "f"])).stdout,
    qemu,
    program: (await command(["pgrep", "-cf", "libvirt-gci-e2e-"])).stdout,
    masters: await connectionMasters(Number(qemu)),
  };
}

/** How many connection masters there are. One whose machine has gone ends soon. */
async function connectionMasters(machines: number): Promise<string> {
  for (let attempt = 1;; attempt++) {
    const { stdout } = await command(["pgrep", "-cf", "connection-master$"]);
    if (Number(stdout) <= machines || attempt === 100) return stdout;
    await sleep(100);
  }
}

async function volumes(pool: string): Promise<string> {
  for (let attempt = 1;; attempt++) {
    try {
      await virsh("pool-refresh", pool);
      return await virsh("vol-list", pool);
    } catch (error) {
      if (attempt === 50) throw error; // libvirt refuses while a volume is being made there
      await sleep(100);
    }
  }
}
