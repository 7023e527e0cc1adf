// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { loadLibvirt } from "../../ffi/libvirt.ts";
import { Connection } from "../../src/libvirt/connection.ts";
import { Domain } from "../../src/libvirt/domain.ts";
import { readMetadata } from "../../src/machine/metadata.ts";
import { leasedAddress, withCurrentLease } from "../../src/machine/network/card.ts";
import { allOf } from "../../src/wait.ts";
import {
  assertVerdict,
  call,
  type Called,
  command,
  e2eTest,
  job,
  machineOf,
  PROGRAM,
  runOnBed,
  type Settings,
  settingsFile,
  TESTBED,
  virsh,
} from "./bed.ts";
import { readOpenMetrics } from "../fakes/open_metrics.ts";

loadLibvirt(); // here, so that no test is blamed for it

const TEMPLATE = "gci-e2e-random";
const VOLUME = `${TEMPLATE}.qcow2`;

/** A template whose guest has a process that writes random numbers into /run/random, without end. */
const WARM: Settings = { start: "warm", templates: { [TEMPLATE]: { ssh: { login: "template" } } } };

/** It runs before the RAM is saved, and goes on in each machine: 16 bytes of getrandom(2) a line. */
const WRITER = `
use strict; $| = 1;
open(my $out, ">>", "/run/random") or die; select $out; $| = 1;
while (1) { my $bytes = "\\0" x 16; syscall(318, $bytes, 16, 0) == 16 or die; print unpack("H*", $bytes), "\\n"; select undef, undef, undef, 0.02; }
`;

async function done(called: Promise<Called>): Promise<string> {
  const { status, stdout, stderr } = await called;
  assert.equal(status, 0, stderr);
  return stdout + stderr;
}

const inMachine = (machine: string, script: string): Promise<string> =>
  done(call(["run", "-m", machine, "--", "sh", "-c", script], { settings: WARM }));

/** Makes the template of a machine on which that process has been set up. */
async function makeTemplate(): Promise<AsyncDisposable> {
  const machine = "gci-e2e-template";
  await done(call(["prepare", "-d", "lite", "-m", machine]));
  const line = "::respawn:/usr/bin/perl /usr/local/sbin/random_writer";
  await inMachine(
    machine,
    `printf %s '${btoa(WRITER)}' | base64 -d | sudo tee /usr/local/sbin/random_writer >/dev/null
    echo '${line}' | sudo tee -a /etc/inittab >/dev/null
    sudo rm /etc/ssh/ssh_host_*; sync`,
  );
  const overlay = `/var/lib/libvirt-gci-testbed/overlays/${machine}.overlay.libvirt-gci`;
  const path = `/var/lib/libvirt-gci-testbed/templates/${VOLUME}`;
  await virsh("destroy", machine);
  const copied = await command(["qemu-img", "convert", "-O", "qcow2", overlay, path]);
  await done(call(["cleanup", "-m", machine]));
  assert.equal(copied.status, 0, copied.stderr);
  await virsh("pool-refresh", TESTBED.templatePool);
  return {
    async [Symbol.asyncDispose]() {
      await call(["warm", "--remove", TEMPLATE], { settings: WARM });
      await virsh("vol-delete", VOLUME, TESTBED.templatePool);
    },
  };
}

/**
 * Prepares the machines at once. The last one's prepare has numbers of its own for processes, as in a
 * container: libvirt cannot read the RAM through it, and gets a copy, as all do where AppArmor or
 * SELinux confines machines. The metrics have the steps of each.
 */
async function prepareBothWays(machines: readonly string[]): Promise<string[]> {
  const container = ["unshare", "--pid", "--fork", "--mount-proc"];
  const isConfined = /<model>(apparmor|selinux)</.test(await virsh("capabilities"));
  const directory = await Deno.makeTempDir({ prefix: "libvirt-gci-e2e-" });
  const metricsFile = `${directory}/gci.prom`;
  const settings: Settings = { ...WARM, metrics_file: metricsFile };
  const logs = await allOf(machines.map((machine, i) => {
    const wrapper = i === machines.length - 1 ? container : [];
    const args = ["--debug", "prepare", "-d", TEMPLATE, "-m", machine];
    return done(call(args, { settings, wrapper }));
  }));
  const samples = readOpenMetrics(await Deno.readTextFile(metricsFile));
  await Deno.remove(directory, { recursive: true });
  const hasCopied = logs.map((log) => log.includes("debug: virStorageVolCreateXMLFrom"));
  assert.deepEqual(hasCopied, [isConfined, true]);
  const counts = ["overlay", "RAM", "resume", "identity", "start", "ssh"].map((phase) =>
    samples.get(`libvirt_gci_prepare_phase_seconds_count{phase="${phase}"}`)
  );
  assert.deepEqual(counts, [2, isConfined ? 2 : 1, 2, 2, 0, 2]);
  return logs;
}

/** Two machines at once, from one image, and what must differ between them. */
async function sharesNothing(): Promise<void> {
  const machines = ["gci-e2e-first", "gci-e2e-second"];
  await using undo = new AsyncDisposableStack();
  undo.defer(async () => {
    for (const machine of machines) await call(["cleanup", "-m", machine]);
  });
  const logs = await prepareBothWays(machines);
  for (const log of logs) assert.match(log, /Resumed the machine .* from the warm image of/);
  const addresses = logs.map((log) => /is ready at ([\d.]+)/.exec(log)?.[1]);

  const facts = await allOf(machines.map((machine) =>
    inMachine(
      machine,
      "cat /etc/machine-id /etc/ssh/*.pub /sys/class/net/eth0/address; cat /run/random",
    )
  ));
  const [first = [], second = []] = facts.map((text) => text.trim().split("\n"));
  assert.notEqual(addresses[0], addresses[1]);
  for (const line of [0, 1, 2]) assert.notEqual(first[line], second[line]);
  assert.match(first[0] ?? "", /^[0-9a-f]{32}$/);
  assert.match(first[1] ?? "", /^ssh-ed25519 \S+ libvirt-gci$/);

  // What was written before the RAM was saved is the same; from then on, nothing is.
  const [a, b] = [first.slice(3), second.slice(3)];
  const common = a.filter((line) => b.includes(line));
  assert(common.length > 20, "the writer did not run before the RAM was saved");
  assert.deepEqual(common, a.slice(0, common.length));
  assert.deepEqual(common, b.slice(0, common.length));
  assert(a.length > common.length + 20 && b.length > common.length + 20, "the writer stopped");

  await Promise.all(machines.map(leasesAnew));
  const generations = await allOf(machines.map(generationId));
  assert.notEqual(generations[0], generations[1]);

  for (const machine of machines) {
    const seconds = Number(await inMachine(machine, "date +%s"));
    assert(Math.abs(seconds - Date.now() / 1000) < 5, `the clock is wrong: ${seconds}`);
    const files = (await virsh("vol-list", TESTBED.overlayPool)).split("\n");
    assert.deepEqual(files.filter((line) => line.includes(`${machine}.ram.`)), []);
  }
  await dropsUnder(machines);
}

/** The address that a guest has leased is not taken for that of another guest with its card. */
async function leasesAnew(machine: string): Promise<void> {
  await using connection = await Connection.open("qemu:///system");
  using domain = await Domain.lookup(connection, machine);
  const metadata = await readMetadata(domain);
  assert(metadata);
  const card = { mac: metadata.mac, address: metadata.address, leasedUntil: null };
  const { network } = TESTBED;
  assert.equal(await leasedAddress(connection, network, card), metadata.address);
  const another = await withCurrentLease(connection, network, card);
  assert.equal(await leasedAddress(connection, network, another), null);
}

/** What QEMU shows its guest for the VM generation id: that of the domain's XML. */
async function generationId(machine: string): Promise<string> {
  const query = JSON.stringify({ execute: "query-vm-generation-id" });
  const { return: { guid } } = JSON.parse(await virsh("qemu-monitor-command", machine, query));
  assert((await virsh("dumpxml", machine)).includes(`<genid>${guid}</genid>`), guid);
  return guid;
}

/** The disk on which machines stand outlives its image, until gc. */
async function dropsUnder(machines: readonly string[]): Promise<void> {
  const listed = await done(call(["list"], { settings: WARM }));
  assert.match(listed, new RegExp(`\\n${TEMPLATE} +\\d+ \\w+ +2 +\\d+ MiB\\n`));
  const dropped = await done(call(["warm", "--remove", TEMPLATE], { settings: WARM }));
  assert.match(dropped, /except for its disk, .*: gci-e2e-first, gci-e2e-second/);
  assert.doesNotMatch(await done(call(["gc", "--dry-run"])), /warm image/);
  await inMachine(machines[0] ?? "", "cat /usr/bin/perl /bin/bash | sha256sum; sudo sync");
  for (const machine of machines) await done(call(["cleanup", "-m", machine]));
  assert.match(await done(call(["gc"])), /Removed a warm image of "gci-e2e-random"/);
  assert.doesNotMatch(await virsh("vol-list", TESTBED.overlayPool), /gci-e2e-/);
}

/** What is half-made goes, what holds stays, and one maker works at a time. */
async function isMadeOnce(): Promise<void> {
  const half = `${TEMPLATE}.0123456789.warm-disk.libvirt-gci`;
  await virsh("vol-create-as", TESTBED.overlayPool, half, "1M", "--format", "qcow2");
  assert.match(await done(call(["gc"])), /Removed a warm image of .*: it is incomplete/);
  const full = { ...WARM, host: { reserve_memory_mib: 16_000_000 } };
  const refused = await call(["warm", TEMPLATE], { settings: full });
  assert.match(refused.stderr, /The machine "warm-.*" can never start, because the host lacks /);
  const two = [1, 2].map(() => call(["warm", TEMPLATE], { settings: WARM }));
  const ends = (await Promise.all(two)).sort((a, b) => a.status - b.status);
  assert.deepEqual(ends.map(({ status }) => status), [0, 2], ends.map((end) => end.stderr).join());
  assert.match(
    ends[0]?.stdout ?? "",
    /warm image of .* is ready in .* \(queue .* start .* boot .* rehearsal .* save /,
  );
  assert.match(ends[1]?.stderr ?? "", /Another process is already creating a warm image/);
  assert.match(
    await done(call(["warm", TEMPLATE], { settings: WARM })),
    /already has a valid warm image, created /,
  );
  assert.match(
    await done(call(["warm"], { settings: WARM })),
    /already has a valid warm image, created /,
  );
  assert.doesNotMatch(await done(call(["gc"])), /warm image/);
  const { stdout } = await call(["doctor"], { settings: WARM });
  assert.match(stdout, new RegExp(`The warm image of "${TEMPLATE}" is up to date`));
}

/** A job runs in a resumed machine; in one that boots after a change, with a warning. */
async function servesJobs(): Promise<void> {
  const variables = [{ key: "DISTRO", value: TEMPLATE }];
  const script = ["id -un; cat /proc/uptime; echo $CI_JOB_ID"];
  const warm = await runOnBed(job({ variables, script }), { settings: WARM });
  assertVerdict(warm, "success");
  assert.match(warm.logText, /Resumed the machine/);
  assert.match(warm.logText, /\ngitlab-runner\n[\d. ]+\n4242\n/);
  assert.doesNotMatch(await virsh("list", "--name"), new RegExp(machineOf(warm)));

  const more = { ...WARM, memory_mib: 640 };
  const cold = await runOnBed(job({ variables, script }), { settings: more });
  assertVerdict(cold, "success");
  assert.match(cold.logText, /does not match the machine's settings/);
  assert.match(cold.logText, /Started the machine/);
}

/** Of a prepare that is killed while libvirt reads the RAM from it, nothing stays that cannot go. */
async function survivesAKill(): Promise<void> {
  const machine = "gci-e2e-killed";
  using file = settingsFile(WARM);
  const [program = "", ...args] = [...PROGRAM, "--config", file.path];
  const prepare = new Deno.Command(program, {
    args: [...args, "prepare", "-d", TEMPLATE, "-m", machine],
    stdin: "null",
    stdout: "null",
    stderr: "null",
  }).spawn();
  for (let i = 0; i < 1000 && !(await virsh("list", "--name")).includes(machine); i++);
  prepare.kill("SIGKILL");
  assert.equal((await prepare.status).signal, "SIGKILL");
  await done(call(["cleanup", "-m", machine]));
  assert.doesNotMatch(await virsh("list", "--name"), new RegExp(machine));
}

/** An image that cannot be resumed costs a job time, and nothing else. */
async function survivesABrokenImage(): Promise<void> {
  const files = (await virsh("vol-list", TESTBED.overlayPool)).split(/\s+/);
  const ram = files.find((name) => name.startsWith(TEMPLATE) && name.includes(".warm-ram."));
  const path = `/var/lib/libvirt-gci-testbed/overlays/${ram}`;
  const end = await Deno.open(path, { write: true });
  await end.truncate((await end.stat()).size / 2);
  end.close();
  const result = await runOnBed(
    job({ variables: [{ key: "DISTRO", value: TEMPLATE }], script: ["echo it runs"] }),
    { settings: WARM },
  );
  assertVerdict(result, "success");
  assert.match(result.logText, /Cannot resume the machine .*, so it boots/);
  assert.match(result.logText, /\nit runs\n/);
}

e2eTest(
  "machines resumed from one image share no secret, and jobs pass with and without it",
  async () => {
    await using _ = await makeTemplate();
    await isMadeOnce();
    await servesJobs();
    await sharesNothing();
    await done(call(["warm", TEMPLATE], { settings: WARM }));
    await survivesAKill();
    await survivesABrokenImage();
  },
  { thorough: true },
);
