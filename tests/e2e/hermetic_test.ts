// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { SERVER } from "../../src/guest/channel.ts";
import { SSH_CHANNEL } from "../../src/machine/domain_xml.ts";
import { allOf } from "../../src/wait.ts";
import {
  assertVerdict,
  atMost,
  e2eTest,
  job,
  prepared,
  runOnBed,
  runOnMachine,
  TESTBED,
  virsh,
} from "./bed.ts";

/** Templates whose machines have no network. */
const HERMETIC = {
  templates: {
    cloud: { network: { name: "none" } },
    lite: { network: { name: "none" }, ssh: { login: "template" } },
  },
};

/** With a megabyte of output, and after_script in the same machine. */
async function passes(): Promise<void> {
  const result = await runOnBed(
    job({
      variables: [{ key: "DISTRO", value: "cloud" }],
      script: [
        "echo cards: $(ls /sys/class/net); id -un; hostname",
        "head -c 1000000 /dev/urandom > bytes; sha256sum bytes",
        "echo begin; cat bytes; echo; echo end",
      ],
      afterScript: ["sha256sum bytes; echo $CI_JOB_STATUS"],
    }),
    { settings: HERMETIC },
  );
  assertVerdict(result, "success");
  assert.match(result.logText, /is ready without a network in [\d.]+ s \(/);
  assert.match(result.logText, /\ncards: lo\ngitlab-runner\ngitlab-proj-4242-[0-9a-f]{10}\n/);
  const { stdout } = result.stages.find(({ name }) => name === "build_script") ?? {};
  const latin1 = new TextDecoder("latin1").decode(stdout);
  const sum = /\n([0-9a-f]{64}) {2}bytes\n/.exec(latin1)?.[1];
  const start = latin1.indexOf("\nbegin\n") + "\nbegin\n".length;
  const bytes = stdout?.slice(start, start + 1_000_000) ?? new Uint8Array();
  assert.equal(new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)).toHex(), sum);
  assert.match(latin1.slice(start + 1_000_000), /^\nend\n/);
  assert.match(result.logText, new RegExp(`${sum}  bytes\nsuccess\n`));
}

/** A failing script keeps its status; a machine that powers off is the host's fault. */
async function failsOrIsLost(): Promise<void> {
  const machine = "gci-e2e-hermetic";
  await using _ = await prepared(machine, HERMETIC);
  assert.doesNotMatch(await virsh("dumpxml", machine), /<interface/);

  const failed = await runOnMachine(
    machine,
    job({ script: ["ls /sys/class/net", "exit 7"], afterScript: ["echo bye"] }),
  );
  assertVerdict(failed, "script_failure", 7);
  assert.match(failed.logText, /\nlo\n/);
  assert.match(failed.logText, /\nbye\n/);

  const passed = await runOnMachine(machine, job({ script: ["echo still here"] }));
  assertVerdict(passed, "success");
  assert.match(passed.logText, /\nstill here\n/);

  const lost = await runOnMachine(machine, job({ script: ["sudo poweroff -f; sleep 60"] }));
  assertVerdict(lost, "runner_system_failure");
  assert.match(lost.logText, /libvirt-gci: The (connection to the guest broke|machine .* ended)/);
}

/** A script outlives that. */
async function isHeld(): Promise<void> {
  const machine = "gci-e2e-held";
  await using _ = await prepared(machine, HERMETIC);
  await startServerLate(machine, 6);
  const held = await runOnMachine(machine, job({ script: ["sleep 12; echo still here"] }));
  assertVerdict(held, "success");
  assert.match(held.logText, /\nstill here\n/);
}

/** A slow guest's SSH server of an attempt long given up, which looks for the port only now. */
async function startServerLate(machine: string, seconds: number): Promise<void> {
  const late = `sleep ${seconds}; exec sh -s ${SSH_CHANNEL} ${"0".repeat(32)}`;
  const exec = { path: "/bin/sh", arg: ["-c", late], "input-data": btoa(SERVER) };
  const command = JSON.stringify({ execute: "guest-exec", arguments: exec });
  await virsh("qemu-agent-command", machine, command);
}

/** A template that cannot serve such a machine ends in time, with what it needs. */
async function isToldWhatItNeeds(): Promise<void> {
  await virsh("vol-create-as", TESTBED.templatePool, "empty.qcow2", "64M", "--format", "qcow2");
  await using undo = new AsyncDisposableStack();
  undo.defer(async () => {
    await virsh("vol-delete", "--pool", TESTBED.templatePool, "empty.qcow2");
  });
  const result = await runOnBed(job({ variables: [{ key: "DISTRO", value: "empty" }] }), {
    settings: { network: { name: "none" }, timeouts: { address_seconds: 3, ssh_seconds: 3 } },
    runner: { attempts: 1 },
  });
  assertVerdict(result, "runner_system_failure");
  assert.match(result.logText, /did not accept an SSH connection through its channel within 6 s/);
  assert.match(result.logText, /What to do: Install sshd and a qemu-guest-agent /);
  const { seconds = 99 } = result.stages.find(({ name }) => name === "prepare") ?? {};
  assert(seconds < atMost(10), `${seconds} s`);
}

e2eTest("without a network, a job fails, passes and loses its machine as with it", failsOrIsLost, {
  thorough: true,
});

// At once, since a machine waits more than it works.
e2eTest(
  "without a network, cloud-init's user gets in, none is held up, and what is missing is said",
  async () => {
    await allOf([passes(), isHeld(), isToldWhatItNeeds()]);
  },
  { thorough: true },
);
