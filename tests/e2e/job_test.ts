// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { allOf } from "../../src/wait.ts";
import {
  assertVerdict,
  atMost,
  call,
  DOMAIN_TYPE,
  e2eTest,
  IS_CORE_ONLY,
  job,
  letGo,
  machineOf,
  prepared,
  runningMachine,
  runOnBed,
  runOnMachine,
  TESTBED,
  UNTIL_LET_GO,
  virsh,
} from "./bed.ts";
import { PROCEDURE, StallingProxy } from "./faults/stalling_proxy.ts";

const RAN = ["prepare_script", "get_sources", "build_script", "after_script"];

e2eTest("a job passes, and its stages share the disk of one machine", async () => {
  const result = await runOnBed(job({
    variables: [
      { key: "DISTRO", value: "lite" },
      { key: "GREETING", value: 'it\'s\n"two" lines' },
      { key: "SECRET_FILE", value: "in a file", file: true },
    ],
    script: ['echo "$GREETING" > kept', 'cat "$SECRET_FILE"', "hostname", "exec 3>&1; id -un"],
    afterScript: ["cat kept"],
  }));
  assertVerdict(result, "success");
  assert.match(result.logText, /it's\n"two" lines/);
  assert.match(result.logText, /in a file/);
  assert.match(result.logText, /\ngitlab-runner\n/);
  assert.match(
    result.logText,
    /is ready at \S+ in [\d.]+ s \(queue .*, disk .*, start .*, IP address .*, SSH .*\)/,
  );
  const names = result.stages.map(({ name }) => name);
  assert.deepEqual(RAN.filter((name) => !names.includes(name)), []);
  assert.match(machineOf(result), /^gitlab-proj-4242-[0-9a-f]{10}$/);
});

e2eTest("scripts end as they should, one after the other in a machine", async (t) => {
  const machine = "gci-e2e-scripts";
  await using _ = await prepared(machine);
  await t.step(
    "a failing script is the job's fault, with its status, and after_script runs",
    async () => {
      const result = await runOnMachine(
        machine,
        job({
          script: ["echo before", "(exit 42)", "echo not this"],
          afterScript: ["echo afterwards"],
        }),
      );
      assertVerdict(result, "script_failure");
      assert.equal(result.exitCode, 42);
      assert.match(result.logText, /\nafterwards\n/);
      assert.doesNotMatch(result.logText, /\nnot this\n/);
    },
  );

  await t.step("a script's exit 255 is the job's fault, not a lost connection", async () => {
    const { status, stderr } = await call(["run", "-m", machine, "--", "sh", "-c", "exit 255"]);
    assert.deepEqual([status, stderr], [255, ""]); // by hand, it has no other words than its own
  });

  await t.step("a cancelled script ends, and after_script runs in the same machine", async () => {
    const result = await runOnMachine(
      machine,
      job({
        script: [
          "echo here > mark",
          "setsid sleep 5000 &",
          "echo running; while :; do sleep 1; done",
        ],
        afterScript: ["cat mark; echo sleepers: $(pgrep -cx -f 'sleep 5000' || true)"],
      }),
      {
        events: [{
          stage: "build_script",
          whenOutput: "\nrunning",
          afterMs: 500,
          action: "soft_cancel",
        }],
      },
    );
    assertVerdict(result, "canceled");
    assert.match(result.logText, /\nhere\n/);
    assert.match(result.logText, /\nsleepers: 0\n/);
    const cancelled = result.stages.find(({ name }) => name === "build_script");
    assert.equal(cancelled?.exitStatus, 2);
  });

  await t.step("ten megabytes of any bytes come through as they are", async () => {
    const result = await runOnMachine(
      machine,
      job({
        script: [
          "head -c 10000000 /dev/urandom > bytes; sha256sum bytes",
          "echo begin; cat bytes; echo; echo end",
        ],
      }),
    );
    assertVerdict(result, "success");
    const { stdout } = result.stages.find(({ name }) => name === "build_script") ?? {};
    assert(stdout);
    const latin1 = new TextDecoder("latin1").decode(stdout);
    const sum = /\n([0-9a-f]{64}) {2}bytes\n/.exec(latin1)?.[1];
    const start = latin1.indexOf("\nbegin\n") + "\nbegin\n".length;
    const bytes = stdout.slice(start, start + 10_000_000);
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)).toHex();
    assert.equal(digest, sum);
    assert.match(latin1.slice(start + 10_000_000), /^\nend\n/);
  });

  await t.step({
    name: "a script that fills the disk is the job's fault, and those after it run",
    ignore: IS_CORE_ONLY, // hostile_job_test.ts has a job that fills its disk
    fn: async () => {
      const result = await runOnMachine(
        machine,
        job({
          script: [
            "fallocate -l $(($(stat -fc '%a * %S' .) - 50000000)) most-of-the-disk",
            "dd if=/dev/zero of=rest bs=1M",
            "echo not this",
          ],
          afterScript: ["df . /tmp | grep -c 100%; echo afterwards"],
        }),
      );
      assertVerdict(result, "script_failure", 1);
      assert.match(result.logText, /No space left on device/);
      assert.match(result.logText, /\n2\nafterwards\n/);
      assert.doesNotMatch(result.logText, /\nnot this\n/);
      for (const name of ["after_script", "cleanup_file_variables"]) {
        assert.equal(result.stages.find((stage) => stage.name === name)?.exitStatus, 0, name);
      }
    },
  });
});

e2eTest("a fault of the host is tried three times, and said", async () => {
  const result = await runOnBed(job({}), { settings: { network: { name: "no-such-network" } } });
  assertVerdict(result, "runner_system_failure");
  const prepares = result.stages.filter(({ name }) => name === "prepare");
  assert.deepEqual(prepares.map(({ exitStatus }) => exitStatus), [2, 2, 2]);
  assert.match(result.logText, /The host has no network "no-such-network"/);
  assert.match(
    result.logText,
    /What to do: Set "network.name" to a network of the host: virsh -c \S+ net-list --all/,
  );
});

e2eTest("a job's next attempt removes what cleanup could not, among many others", async () => {
  const { overlayPool } = TESTBED;
  // Each may be in the making.
  const others = Array.from({ length: 50 }, (_, i) => `gci-e2e-crowd-${i}.owner.libvirt-gci`);
  await using undo = new AsyncDisposableStack();
  undo.defer(async () => {
    for (const name of others) await virsh("vol-delete", "--pool", overlayPool, name);
  });
  for (const name of others) await virsh("vol-create-as", overlayPool, name, "400");
  await using proxy = new StallingProxy(PROCEDURE.DOMAIN_CREATE_XML);
  const result = await runOnBed(job({ id: 79, script: ["echo running", UNTIL_LET_GO] }), {
    settings: { libvirt: { uri: proxy.uri, call_seconds: 6 } },
    runner: { onStage: ({ name }) => void (name === "cleanup" && proxy.recover()) },
    events: [{
      stage: "build_script",
      whenOutput: "\nrunning",
      action: async () => {
        const running = (await virsh("list", "--name")).split("\n");
        const [machine = "", ...more] = running.filter((it) => it.startsWith("gitlab-proj-79-"));
        assert.deepEqual(more, []);
        await letGo(machine);
      },
    }],
  });
  assertVerdict(result, "success");
  for (const stage of ["prepare", "cleanup"]) {
    const calls = result.stages.filter(({ name }) => name === stage);
    assert.deepEqual(calls.map(({ exitStatus }) => exitStatus), [2, 0], stage);
  }
  assert.match(result.logText, /\nRemoved a machine no longer needed\n/);
}, { thorough: true });

const TEMPLATES = /may have: cloud \(or example\.org\/cloud:1\), lite(;|$)/m;

e2eTest("an unknown template is the job's fault, tried once, with the ones there are", async () => {
  const result = await runOnBed(job({ variables: [{ key: "DISTRO", value: "no-such" }] }));
  assertVerdict(result, "script_failure");
  assert.equal(result.stages.filter(({ name }) => name === "prepare").length, 1);
  assert.match(result.logText, /Cannot find the template "no-such"/);
  assert.match(result.logText, TEMPLATES);
});

e2eTest(
  "an image that is no template, and none, are refused with the templates there are",
  async () => {
    for (const differences of [{ image: "no-such:latest" }, {}]) {
      const result = await runOnBed(job({ variables: [], ...differences }));
      assertVerdict(result, "script_failure");
      assert.match(result.logText, /asks for (no template|the template "no-such:latest"), /);
      assert.match(result.logText, TEMPLATES);
    }
  },
  { thorough: true },
);

e2eTest("a job's services are not started, which its log says, and the job runs", async () => {
  const services = [{ name: "postgres:16", alias: "db" }, { name: "x\n\x1b[31m" }];
  const result = await runOnBed(job({ services }));
  assertVerdict(result, "success");
  const names = String.raw`"postgres:16", "x\n\u001b[31m"`;
  const line = "The job's services are not started, because libvirt-gci starts no containers: " +
    `${names}. Start them `;
  assert(result.logText.split("\n").some((it) => it.startsWith(line)), result.logText);
  assert(!result.logText.includes("\x1b[31m"), "a terminal obeys it");
}, { thorough: true });

e2eTest("what is no template's name is refused as the job's fault", async () => {
  const names = ["../lite", "", "li'te", "lite;reboot", "li\nte", "lite\u0007"];
  const results = await allOf(
    names.map((value, i) => runOnBed(job({ id: 90 + i, variables: [{ key: "DISTRO", value }] }))),
  );
  for (const result of results) {
    assertVerdict(result, "script_failure");
    assert.match(result.logText, /asks for (a|the) template/);
  }
});

e2eTest("a job that is cancelled while its machine boots leaves nothing", async () => {
  const result = await runOnBed(job({}), {
    events: [{ stage: "prepare", whenOutput: "Started", afterMs: 1000, action: "hard_cancel" }],
  });
  assertVerdict(result, "canceled");
  const prepare = result.stages.find(({ name }) => name === "prepare");
  assert.equal(prepare?.exitStatus, 2);
  assert((prepare?.seconds ?? 99) < atMost(4));
});

/** Has a job's guest suspended and then the job stopped, and gives the seconds from that to its end. */
async function secondsToEnd(id: number, action: "soft_cancel" | "hard_cancel"): Promise<number> {
  let start = 0;
  const at = { stage: "build_script", whenOutput: "\nrunning" };
  const script = ["echo running", "sleep 5000"];
  const result = await runOnBed(job({ id, script, afterScript: ["echo afterwards"] }), {
    runner: { pollSeconds: 3 },
    events: [
      {
        ...at,
        action: async () => void await virsh("suspend", await runningMachine(`gitlab-proj-${id}-`)),
      },
      { ...at, action },
      { ...at, afterMs: 3000, action: () => void (start = performance.now()) },
    ],
  });
  assertVerdict(result, "canceled");
  return (performance.now() - start) / 1000;
}

e2eTest("a job that is aborted ends soon though its guest is suspended", async () => {
  const seconds = await secondsToEnd(84, "hard_cancel");
  assert(seconds < atMost(5), `it took ${seconds} s, cleanup included`);
}, { thorough: true });

e2eTest("a job that is cancelled ends soon though its guest is suspended", async () => {
  const seconds = await secondsToEnd(85, "soft_cancel");
  assert(seconds < atMost(10), `it took ${seconds} s, with the job's last scripts and cleanup`);
}, { thorough: true });

e2eTest("a guest that is destroyed in the middle of a script is the host's fault", async () => {
  const result = await runOnBed(
    job({ script: ["echo running; while :; do sleep 1; done"] }),
    {
      events: [{
        stage: "build_script",
        whenOutput: "\nrunning",
        action: async () => {
          const machines = (await virsh("list", "--name")).split("\n");
          const ours = machines.find((machine) => machine.startsWith("gitlab-proj-4242-"));
          await virsh("destroy", ours ?? "");
        },
      }],
    },
  );
  assertVerdict(result, "runner_system_failure");
  assert.match(result.logText, /ended: it powered off|connection to the guest broke/);
}, { thorough: true });

e2eTest("a script that powers its machine off is the host's fault, not a success", async () => {
  const result = await runOnBed(job({ script: ["poweroff -f; sleep 60"] }), {
    settings: { templates: { lite: { ssh: { login: "template", user: "root" } } } },
  });
  assertVerdict(result, "runner_system_failure");
}, { thorough: true });

e2eTest("jobs at once have a machine each, and the failure of one is its own", async () => {
  const script = (id: number): string[] => [
    `echo job ${id} > mine; sleep 1; cat mine`,
    ...id === 2 ? ["exit 42"] : [],
  ];
  const results = await Promise.all(
    [1, 2].map((id) =>
      runOnBed(job({ id, script: script(id), afterScript: [`echo after $(cat mine)`] }))
    ),
  );
  for (const [i, result] of results.entries()) {
    if (i === 1) assertVerdict(result, "script_failure", 42);
    else assertVerdict(result, "success");
    assert.match(result.logText, new RegExp(`\\njob ${i + 1}\\n[^]*\\nafter job ${i + 1}\\n`));
  }
  assert.equal(new Set(results.map(machineOf)).size, 2);
});

e2eTest("image: chooses a template by its alias, and cloud-init makes the user", async () => {
  const result = await runOnBed(job({
    variables: [],
    image: "example.org/cloud:1",
    script: ["id -un", "sudo -n id -u", "hostname", "cloud-init status --long || true"],
  }));
  assertVerdict(result, "success");
  assert.match(result.logText, /\ngitlab-runner\n/);
  assert.match(result.logText, /\n0\n/);
  assert(result.logText.includes(`\n${machineOf(result)}\n`), result.logText);
}, { thorough: true });

e2eTest("a key that the guest does not know fails at once, and is said", async () => {
  const directory = Deno.makeTempDirSync({ prefix: "libvirt-gci-e2e-key-" });
  const key = `${directory}/key`;
  await new Deno.Command("ssh-keygen", { args: ["-q", "-t", "ed25519", "-N", "", "-f", key] })
    .output();
  const result = await runOnBed(job({}), {
    settings: { ssh: { key } },
    runner: { attempts: 1 },
  });
  Deno.removeSync(directory, { recursive: true });
  assertVerdict(result, "runner_system_failure");
  assert.match(result.logText, /refuses the key for the user "gitlab-runner"/);
  const [prepare] = result.stages.filter(({ name }) => name === "prepare");
  assert((prepare?.seconds ?? 999) < atMost(20));
});

e2eTest("with shell: sh, cloud-init makes a user who needs no bash", async () => {
  const machine = "gci-e2e-sh";
  const settings = { guest: { shell: "sh" } };
  await using undo = new AsyncDisposableStack();
  undo.defer(async () => void await call(["cleanup", "-m", machine], { settings }));
  const booted = await call(["prepare", "-d", "cloud", "-m", machine], { settings });
  assert.equal(booted.status, 0, booted.stderr);
  const script = 'getent passwd $(id -un); echo "bash is [$BASH_VERSION]"';
  const { status, stdout, stderr } = await call(["run", "-m", machine, "--", "sh", "-c", script], {
    settings,
  });
  assert.equal(status, 0, stderr);
  assert.match(stdout, /^gitlab-runner:.*:\/bin\/sh$/m);
  assert.match(stdout, /bash is \[\]/);
}, { thorough: true });

e2eTest(
  "where KVM runs no guests, a job that is to use it fails soon, and is told why",
  async () => {
    const result = await runOnBed(job({}), {
      settings: { domain_type: "kvm", timeouts: { address_seconds: 300 } },
      runner: { attempts: 1 },
    });
    assertVerdict(result, "runner_system_failure");
    assert.match(result.logText, /KVM does not run guests on this host|libvirt cannot use KVM/);
    assert.match(
      result.logText,
      /set "domain_type: qemu", but emulation is slow and, .* no security/,
    );
    const [prepare] = result.stages.filter(({ name }) => name === "prepare");
    assert((prepare?.seconds ?? 999) < atMost(20), "it waited for an address");
  },
  { ignore: DOMAIN_TYPE === "kvm", thorough: true },
);

e2eTest("a machine that does not boot is explained by its console", async () => {
  await virsh("vol-create-as", TESTBED.templatePool, "empty.qcow2", "64M", "--format", "qcow2");
  try {
    const result = await runOnBed(job({ variables: [{ key: "DISTRO", value: "empty" }] }), {
      settings: { timeouts: { address_seconds: 8 } },
      runner: { attempts: 1 },
    });
    assertVerdict(result, "runner_system_failure");
    assert.match(
      result.logText,
      /did not get an IP address in the network "gci-testbed" within 8 s/,
    );
    assert.match(result.logText, /no DHCP lease/);
    assert.match(result.logText, /serial console/);
  } finally {
    await virsh("vol-delete", "--pool", TESTBED.templatePool, "empty.qcow2");
  }
});
