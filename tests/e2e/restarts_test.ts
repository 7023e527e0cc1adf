// SPDX-License-Identifier: GPL-2.0-or-later

/**
 * What becomes of jobs when a part of their host starts again: docs/restarts.md says it. The faults in
 * `faults/` kill libvirtd and QEMU at each moment of a stage; `orphan_test.ts` ends GitLab Runner.
 */
import assert from "node:assert/strict";
import { sleep } from "../../src/wait.ts";
import {
  assertVerdict,
  call,
  command,
  e2eTest,
  job,
  letGo,
  prepared,
  PROGRAM,
  runningMachine,
  runOnBed,
  settingsFile,
  TESTBED,
  until,
  UNTIL_LET_GO,
  virsh,
} from "./bed.ts";
import { startNetwork } from "./faults/network.ts";
import { must, NAME } from "./faults/pool.ts";
import { killDaemon, untilLibvirtAnswers } from "./faults/strikes.ts";
import { FLOOD, FRAME, hear } from "./packets.ts";
import { type JobResult, runJob, runnerFor } from "../harness/runner.ts";

async function restartDaemon(): Promise<void> {
  await killDaemon();
  await untilLibvirtAnswers();
}

/** The exit statuses of each call of this stage. */
function statusesOf(result: JobResult, stage: string): (number | null)[] {
  return result.stages.filter(({ name }) => name === stage).map(({ exitStatus }) => exitStatus);
}

e2eTest(
  "a job whose libvirtd is killed while its machine boots passes on its next attempt",
  async () => {
    const result = await runOnBed(job({ id: 111 }), {
      settings: { domain_type: "qemu" }, // with KVM, the guest is there before libvirtd is gone
      events: [{ stage: "prepare", whenOutput: "Started the machine", action: restartDaemon }],
    });
    assertVerdict(result, "success");
    assert.deepEqual(statusesOf(result, "prepare"), [2, 0]);
    assert.deepEqual(statusesOf(result, "cleanup"), [0, 0]);
  },
  { thorough: true },
);

e2eTest(
  "a job that waits for room when libvirtd is killed passes on its next attempt",
  async () => {
    const first = await prepared("gci-e2e-first");
    try {
      const result = await runOnBed(job({ id: 112 }), {
        settings: { host: { max_machines: 1 } },
        events: [{
          stage: "prepare",
          whenOutput: "Waiting for a machine to end",
          action: async () => {
            await restartDaemon();
            await first[Symbol.asyncDispose]();
          },
        }],
      });
      assertVerdict(result, "success");
      assert.deepEqual(statusesOf(result, "prepare"), [2, 0]);
    } finally {
      await first[Symbol.asyncDispose]();
    }
  },
  { thorough: true },
);

const GATEWAY = "192.168.213.1"; // of the test bed's network
const PORT = 28086;

/** Has the guest send to the host, until it ends, what its filter and its port drop. */
async function sendForbidden(machine: string): Promise<void> {
  const script = `
    set -e
    mac=$(cat /sys/class/net/eth0/address)
    own=$(ip -4 -o addr show eth0 | sed 's/.*inet \\([0-9.]*\\).*/\\1/')
    perl -e '${FLOOD}' ${GATEWAY} ${PORT}
    send="perl -e \\"\\$FRAME\\" eth0 $mac 01:80:c2:00:00:0e $own ${GATEWAY} ${PORT} link_local"
    FRAME='${FRAME}'
    export FRAME
    sudo -E setsid sh -c "while :; do $send; sleep 0.5; done" </dev/null >/dev/null 2>&1 &
  `;
  const { status, stderr } = await call(["run", "-m", machine, "--", "bash", "-c", script]);
  assert.equal(status, 0, stderr);
}

/** The addresses that the network keeps. */
async function keptAddresses(): Promise<string[]> {
  return (await virsh("net-dumpxml", TESTBED.network)).match(/<host .*>/g) ?? [];
}

for (const isolate of [true, false]) {
  e2eTest(
    `a machine sends ${isolate ? "nothing past its filter" : "all it can"} while libvirtd restarts`,
    async () => {
      const machine = "gci-e2e-restart";
      await using _ = await prepared(machine, { network: { isolate } });
      using heard = await hear(PORT);
      const kept = await keptAddresses();
      await sendForbidden(machine);
      await restartDaemon();
      await sleep(3000); // libvirt sets the rules of its networks and filters anew
      assert.deepEqual([...heard.words].sort(), isolate ? [] : ["flood", "link_local"]);
      assert.deepEqual(await keptAddresses(), kept);
      const dns = ["run", "-m", machine, "--", "bash", "-c", `: </dev/tcp/${GATEWAY}/53`];
      const { status, stderr } = await call(dns);
      assert.equal(status, 0, stderr);
    },
    { thorough: true },
  );
}

e2eTest(
  "a machine whose filter's rules were flushed is isolated again once libvirtd restarts",
  async () => {
    const machine = "gci-e2e-restart";
    await using _ = await prepared(machine);
    using heard = await hear(PORT);
    await sendForbidden(machine);
    await sleep(1000);
    assert.deepEqual([...heard.words], []);
    await must("ebtables", "-t", "nat", "-F");
    await until(() => heard.words.has("flood"), { what: "the machine is not isolated any more" });
    await restartDaemon();
    const isSilent = async (): Promise<boolean> => {
      heard.words.clear();
      await sleep(1000);
      return heard.words.size === 0;
    };
    await until(isSilent, { what: "the machine is isolated again" });
  },
  { thorough: true },
);

const ADDRESSES = '<range start="192.168.214.2" end="192.168.214.20"/>';

async function restartNetwork(): Promise<void> {
  await virsh("net-destroy", NAME);
  await virsh("net-start", NAME);
}

e2eTest(
  "a restart of its network fails a running job as the host's fault, and no new one",
  async () => {
    await using _ = await startNetwork({ dhcp: ADDRESSES });
    const settings = { network: { name: NAME } };
    const { promise: restarted, resolve } = Promise.withResolvers<void>();
    const running = runOnBed(job({ id: 113, script: ["echo running", "sleep 300"] }), {
      settings,
      events: [{
        stage: "build_script",
        whenOutput: "\nrunning",
        action: async () => {
          await restartNetwork();
          resolve();
        },
      }],
    });
    await Promise.race([restarted, running]);
    const next = await runOnBed(job({ id: 114 }), { settings });
    const result = await running;
    assertVerdict(next, "success");
    assertVerdict(result, "runner_system_failure");
    assert.match(result.logText, /The connection to the guest broke while the script ran/);
    assert.deepEqual(statusesOf(result, "cleanup"), [0]);
  },
  { thorough: true },
);

e2eTest("a job goes on if libvirtd restarts soon after the network", async () => {
  await using _ = await startNetwork({ dhcp: ADDRESSES });
  const result = await runOnBed(job({ id: 115, script: ["echo running", UNTIL_LET_GO] }), {
    settings: { network: { name: NAME } },
    events: [{
      stage: "build_script",
      whenOutput: "\nrunning",
      action: async () => {
        await restartNetwork();
        await restartDaemon();
        await letGo(await runningMachine("gitlab-proj-115-"));
      },
    }],
  });
  assertVerdict(result, "success");
}, { thorough: true });

e2eTest(
  "a job whose runner is stopped fails as the host's, and cleanup removes its machine",
  async () => {
    const stop = new AbortController();
    const result = await runOnBed(job({ id: 116, script: ["echo running", "sleep 5006"] }), {
      runnerStop: stop.signal,
      events: [{ stage: "build_script", whenOutput: "\nrunning", action: () => stop.abort() }],
    });
    assertVerdict(result, "runner_system_failure");
    assert.match(result.reason, /the runner stops/);
    assert.deepEqual(statusesOf(result, "build_script"), [2]);
    assert.deepEqual(statusesOf(result, "cleanup"), [0]);
  },
  { thorough: true },
);

e2eTest("a job passes though the program is installed anew while its script runs", async () => {
  const directory = await Deno.makeTempDir({ prefix: "libvirt-gci-e2e-" });
  const program = `${directory}/libvirt-gci`;
  const install = (): Promise<void> => must("install", PROGRAM[0] ?? "", program);
  using file = settingsFile();
  try {
    await install();
    const { ino } = await Deno.stat(program);
    const script = ["echo running", UNTIL_LET_GO];
    const result = await runJob(
      runnerFor([program], ["--config", file.path]),
      job({ id: 117, script, afterScript: ["echo after it"] }),
      {
        events: [{
          stage: "build_script",
          whenOutput: "\nrunning",
          action: async () => {
            await install();
            await letGo(await runningMachine("gitlab-proj-117-"));
          },
        }],
      },
    );
    assertVerdict(result, "success");
    assert.match(result.logText, /\nafter it\n/);
    assert.notEqual((await Deno.stat(program)).ino, ino);
    const left = await command(["pgrep", "-f", `${program} connection-master$`]);
    assert.equal(left.stdout, "");
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}, { ignore: !Deno.env.has("LIBVIRT_GCI"), thorough: true }); // main.ts is no single file
