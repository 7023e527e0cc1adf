// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { allOf } from "../../src/wait.ts";
import {
  assertVerdict,
  command,
  e2eTest,
  job,
  letGo,
  machineOf,
  runningMachine,
  runOnBed,
  TESTBED,
  UNTIL_LET_GO,
  virsh,
} from "./bed.ts";
import type { JobResult, Runner } from "../harness/runner.ts";

const NAMESPACE = "urn:libvirt-gci:machine:1";
const PRIVATE_KEY = /-----BEGIN OPENSSH PRIVATE KEY-----(?:\\n|\n)([^-]*)-----END/;

const TEMPLATES = {
  cloud: {},
  systemd: { volume: "cloud.qcow2", ssh: { login: "systemd", user: "root" } },
};

/** A job whose variables and script no other user may read, also with --debug. */
function secretJob(template: string, id: number) {
  const secrets = ["variable", "file", "script"].map((it) => `secret-${it}-${crypto.randomUUID()}`);
  const [variable = "", file = "", script = ""] = secrets;
  const secretive = job({
    id,
    variables: [
      { key: "DISTRO", value: template },
      { key: "SECRET", value: variable },
      { key: "SECRET_FILE", value: file, file: true },
    ],
    // GitLab shows the first line of a command only.
    script: [
      `echo running $(cat "$SECRET_FILE" | wc -c) $(printenv SECRET | wc -c)
      : ${script}
      ${UNTIL_LET_GO}`,
    ],
  });
  return { secretive, secrets: [...secrets, "job-token"] };
}

/** What was found out about a machine while its job ran. */
interface Sight {
  readonly secrets: readonly string[];
  readonly clientKey: string;
  readonly hostKey: string;
  readonly record: string;
}

/** Reads the keys of a running machine, where only root can, and looks where everybody can. */
async function look(machine: string, dir: string, secrets: readonly string[]): Promise<Sight> {
  const keyFile = `${dir}/${machine}.libvirt-gci-key`;
  assert.equal((Deno.statSync(keyFile).mode ?? 0) & 0o777, 0o600);
  const clientKey = linesOf(Deno.readTextFileSync(keyFile));

  const pool = /<path>(.*)<\/path>/.exec(await virsh("pool-dumpxml", TESTBED.overlayPool))?.[1];
  const ours = [...Deno.readDirSync(pool ?? "")].map(({ name }) => name)
    .filter((name) => name.startsWith(`${machine}.`));
  const carrier = ours.find((name) => /\.(seed|credential)\./.test(name));
  assert(carrier, `no volume among ${ours} brings the host key`);
  const guest = `${machine}.guest.libvirt-gci`;
  const written = [...Deno.readDirSync(`${pool}/${guest}`)].map(({ name }) => `${guest}/${name}`);
  assert(written.length > 0, "nothing is in the directory of what the guest wrote");
  for (const name of [...ours, ...written]) {
    const mode = (Deno.statSync(`${pool}/${name}`).mode ?? 0) & 0o777;
    // QEMU's user goes through the directory to its firmware's variables.
    const right = name === guest ? 0o711 : 0o600;
    assert.equal(mode, right, `${name} has the mode ${mode.toString(8)}`);
  }
  const carried = new TextDecoder("latin1").decode(Deno.readFileSync(`${pool}/${carrier}`));
  const encoded = / \/etc\/ssh\/ssh_host_ed25519_key 0600 root root - (\S+)/.exec(carried)?.[1];
  const hostKey = linesOf(encoded === undefined ? carried : atob(encoded));

  const all = [...secrets, ...clientKey, ...hostKey, ...(encoded?.match(/.{40}/g) ?? [])];
  const xml = await virsh("dumpxml", "--security-info", machine);
  assertWithout(all, xml, "the domain's XML");
  assertWithout(all, Deno.readTextFileSync(`/var/log/libvirt/qemu/${machine}.log`), "QEMU's log");
  const record = await virsh("metadata", machine, NAMESPACE);
  return { secrets: all, clientKey: clientKey.join(), hostKey: hostKey.join(), record };
}

/** The lines of a private key, without the first, which all keys of its kind share. */
function linesOf(text: string): string[] {
  const lines = PRIVATE_KEY.exec(text)?.[1]?.split(/\\n|\n/).filter((line) => line.length > 8) ??
    [];
  assert(lines.length > 2, "no private key where one must be");
  return lines.slice(1);
}

function assertWithout(secrets: readonly string[], text: string, where: string): void {
  for (const secret of secrets) {
    assert(!text.includes(secret), `${where} has ${JSON.stringify(secret)}`);
  }
}

/** Collects the arguments of all processes of this host until it is disposed of. */
function watchArguments(): Disposable & { readonly seen: ReadonlySet<string> } {
  const seen = new Set<string>();
  const timer = setInterval(() => {
    for (const { name } of Deno.readDirSync("/proc")) {
      if (!/^\d+$/.test(name)) continue;
      try {
        seen.add(Deno.readTextFileSync(`/proc/${name}/cmdline`));
      } catch { /* it ended */ }
    }
  }, 20);
  return { seen, [Symbol.dispose]: () => clearInterval(timer) };
}

/** The files that others may read, or could, and that changed since this one did. */
async function readableFiles(since: string): Promise<string[]> {
  const places = ["/tmp", "/run", "/var/log", "/var/tmp", "/dev/shm"];
  const pools = [...Deno.readDirSync("/var/lib")].map(({ name }) => `/var/lib/${name}`)
    .filter((path) => path.startsWith("/var/lib/libvirt"));
  const tests = ["-xdev", "-type", "f", "-newer", since, "-perm", "/044"];
  const { stdout } = await command(["find", ...places, ...pools, ...tests]);
  // They tell the harness's token, and so does what Deno makes of them.
  const sources = [new URL("../../", import.meta.url).pathname, Deno.env.get("DENO_DIR") ?? ""];
  const isSource = (path: string) => sources.some((it) => it !== "" && path.startsWith(it));
  return stdout.split("\n").filter((path) => path !== "" && !isSource(path));
}

e2eTest(
  "no secret of a job is anywhere that others can read, and its keys are its own",
  async () => {
    const since = Deno.makeTempFileSync({ prefix: "libvirt-gci-e2e-since-" });
    Deno.utimeSync(since, Date.now() / 1000 - 1, Date.now() / 1000 - 1);
    await using undo = new AsyncDisposableStack();
    undo.defer(() => Deno.removeSync(since));
    using watch = watchArguments();
    const sights: Sight[] = [];
    const leftKeys: string[] = [];

    const runSecretJob = async (template: string, id: number): Promise<JobResult> => {
      const { secretive, secrets } = secretJob(template, id);
      let keyFile = "";
      const runner: Partial<Runner> = {
        onStage: ({ name }) => {
          if (name === "cleanup" && existsFile(keyFile)) leftKeys.push(keyFile);
        },
      };
      const replaceHostKey = "rm /etc/ssh/ssh_host_*; ssh-keygen -q -t ed25519 -N '' " +
        "-f /etc/ssh/ssh_host_ed25519_key; systemctl restart ssh";
      const script = template === "systemd"
        ? [...secretive.script, replaceHostKey]
        : secretive.script;
      const result = await runOnBed({ ...secretive, script, steps: { more: ["echo went on"] } }, {
        args: ["--debug"],
        settings: { templates: TEMPLATES },
        runner,
        events: [{
          stage: "build_script",
          whenOutput: "\nrunning",
          action: async ({ dir }) => {
            const machine = await runningMachine(`gitlab-proj-${id}-`);
            keyFile = `${dir}/${machine}.libvirt-gci-key`;
            const sight = await look(machine, dir, secrets);
            sights.push(sight);
            const files = await readableFiles(since);
            assert(files.includes(`/tmp/${canary}`), "find does not find what others can read");
            for (const file of files) {
              assertWithout(sight.secrets, latin1Of(file), `${file}, which others can read,`);
            }
            await letGo(machine);
          },
        }],
      });
      assertWithout(secrets, result.logText, "the job's log");
      assertWithout(
        secrets,
        result.runnerLog.map(({ text }) => text).join("\n"),
        "the runner's log",
      );
      assert.match(result.logText, /^debug: virDomainCreateXML /m);
      return result;
    };
    const canary = `libvirt-gci-e2e-canary-${crypto.randomUUID()}`;
    Deno.writeTextFileSync(`/tmp/${canary}`, "for all to read", { mode: 0o644 });
    undo.defer(() => Deno.removeSync(`/tmp/${canary}`));

    const [cloud, systemd] = await allOf([
      runSecretJob("cloud", 1),
      runSecretJob("systemd", 2),
    ]);
    assertVerdict(cloud, "success");
    assert.match(cloud.logText, /\nwent on\n/);
    // That the guest shows another host key than the one that we gave it ends the job.
    assertVerdict(systemd, "runner_system_failure");
    assert.match(systemd.logText, /libvirt-gci: .*does not show the machine's host key/);
    assert.doesNotMatch(systemd.logText, /\nwent on\n/);

    const all = [...watch.seen];
    for (const machine of [machineOf(cloud), machineOf(systemd)]) {
      assert(all.some((it) => it.includes(`guest=${machine}`)), `QEMU was never seen`);
    }
    const secrets = sights.flatMap((sight) => sight.secrets);
    for (const it of all) {
      assertWithout(secrets, it, `the process ${JSON.stringify(it.slice(0, 99))}`);
    }
    for (const { logText } of [cloud, systemd]) assertWithout(secrets, logText, "the job's log");
    assert.deepEqual(leftKeys, []);
    for (const what of ["clientKey", "hostKey", "record"] as const) {
      assert.equal(new Set(sights.map((sight) => sight[what])).size, 2, `two jobs share a ${what}`);
    }
  },
  { thorough: true },
);

function existsFile(path: string): boolean {
  try {
    return Deno.statSync(path).isFile;
  } catch {
    return false;
  }
}

function latin1Of(file: string): string {
  try {
    return new TextDecoder("latin1").decode(Deno.readFileSync(file));
  } catch {
    return ""; // it is gone
  }
}
