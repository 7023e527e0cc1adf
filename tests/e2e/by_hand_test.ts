// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { atMost, call, command, e2eTest, PROGRAM, settingsFile, TESTBED, virsh } from "./bed.ts";

e2eTest(
  "by hand, a machine is prepared, used and cleaned up by the commands that it prints",
  async (t) => {
    const prepared = await call(["prepare", "--distro", "lite"]);
    assert.equal(prepared.status, 0, prepared.stderr);
    const machine = /Remove: +libvirt-gci cleanup --machine (\S+)/.exec(prepared.stdout)?.[1] ??
      "";
    try {
      assert.match(machine, /^gci-lite-[0-9a-f]{8}$/);
      const login = /Log in: .*, or (ssh .*)/.exec(prepared.stdout)?.[1]?.split(" ") ?? [];
      const options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"];
      const ssh = await command([...login.slice(0, 1), ...options, ...login.slice(1), "id", "-un"]);
      assert.equal(ssh.stdout, "gitlab-runner\n", ssh.stderr);

      const ran = await call([
        "run",
        "--machine",
        machine,
        "--",
        "printf",
        "<%s>",
        "a b",
        "'c'",
        "",
      ]);
      assert.deepEqual([ran.status, ran.stdout], [0, "<a b><'c'><>"], ran.stderr);
      const failed = await call(["run", "-m", machine, "--", "sh", "-c", "exit 7"]);
      assert.deepEqual([failed.status, failed.stderr], [7, ""]);
      using file = settingsFile();
      const line = [...PROGRAM, "--config", file.path, "ssh", machine, "--", "sh -c 'exit 8'"];
      const typed = await command(["script", "-qec", line.join(" "), "/dev/null"]);
      assert.equal(typed.status, 8, typed.stdout);

      await t.step("logs prints the serial console of a machine", async () => {
        const { stdout } = await call(["logs", machine]);
        assert.match(stdout, /^.*Linux version .*$/m);
        // deno-lint-ignore no-control-regex
        assert.doesNotMatch(stdout, /[\x00-\x09\x0b-\x1f]/);
      });
    } finally {
      const cleaned = await call(["cleanup", "--machine", machine]);
      assert.deepEqual([cleaned.status, cleaned.stderr], [0, ""]);
    }
    assert.equal((await call(["logs", machine])).status, 2);
  },
);

e2eTest("by hand, GitLab's variables name the machine for all three commands", async () => {
  const env = {
    CUSTOM_ENV_CI_PROJECT_NAME: "libvirt",
    CUSTOM_ENV_CI_JOB_ID: "12345",
    CUSTOM_ENV_DISTRO: "lite",
  };
  const prepared = await call(["prepare"], { env });
  try {
    assert.equal(prepared.status, 0, prepared.stderr);
    assert.match(prepared.stdout, /"gitlab-libvirt-lite-12345"/);
    const script = Deno.makeTempFileSync({ prefix: "libvirt-gci-e2e-" });
    Deno.writeTextFileSync(script, "hostname; exit 3");
    const ran = await call(["run", "--script", script], { env });
    Deno.removeSync(script);
    assert.equal(ran.status, 3, ran.stderr);
    const again = await call(["prepare"], { env });
    assert.equal(again.status, 2);
    assert.match(again.stderr, /There is a domain "gitlab-libvirt-lite-12345" already/);
  } finally {
    assert.equal((await call(["cleanup"], { env })).status, 0);
    assert.equal((await call(["cleanup"], { env })).status, 0);
  }
}, { thorough: true });

e2eTest("cleanup refuses a domain that is not ours, whatever --machine says", async () => {
  const xml = Deno.makeTempFileSync({ prefix: "libvirt-gci-e2e-" });
  Deno.writeTextFileSync(
    xml,
    `<domain type="qemu"><name>gci-e2e-theirs</name><memory unit="MiB">64</memory>
      <os><type>hvm</type></os></domain>`,
  );
  await virsh("define", xml);
  Deno.removeSync(xml);
  try {
    const cleaned = await call(["cleanup", "--machine", "gci-e2e-theirs"]);
    assert.equal(cleaned.status, 2);
    assert.match(cleaned.stderr, /was not created by libvirt-gci/);
    assert.match(await virsh("list", "--all", "--name"), /gci-e2e-theirs/);
    for (const machine of ["lite", "lite.qcow2"]) {
      assert.equal((await call(["cleanup", "--machine", machine])).status, 0);
    }
    assert.match(await virsh("vol-list", TESTBED.templatePool), /lite\.qcow2/);
  } finally {
    await virsh("undefine", "gci-e2e-theirs");
  }
});

e2eTest("the pool that nobody chose is made at its first use, also by two at once", async () => {
  const pools = async () => (await virsh("pool-list", "--all", "--name")).split("\n");
  assert(!(await pools()).includes("libvirt-gci"), "this test needs a host without our pool");
  const settings = { pools: { overlays: "libvirt-gci" } };
  const machines = ["gci-e2e-a", "gci-e2e-b"];
  await using undo = new AsyncDisposableStack(); // unlike finally, it hides no failure
  for (const action of ["undefine", "delete", "destroy"]) {
    undo.defer(async () => void await virsh(`pool-${action}`, "libvirt-gci"));
  }
  undo.defer(async () => {
    for (const machine of machines) await call(["cleanup", "-m", machine], { settings });
  });
  const prepared = await Promise.all(
    machines.map((machine) => call(["prepare", "-d", "lite", "-m", machine], { settings })),
  );
  assert.deepEqual(
    prepared.map(({ status }) => status),
    [0, 0],
    prepared.map((p) => p.stderr).join(),
  );
  for (const machine of machines) await call(["cleanup", "-m", machine], { settings });
  await virsh("pool-refresh", "libvirt-gci");
  assert.doesNotMatch(await virsh("vol-list", "libvirt-gci"), /gci-e2e/);
}, { thorough: true });

e2eTest(
  "doctor --boot runs a whole job, and finds nothing wrong with libvirt and the test bed",
  async () => {
    const { stdout, stderr } = await call(["doctor", "--boot", "lite", "--json"]);
    const findings: { group: string; level: string; subject: string }[] =
      JSON.parse(stdout).findings;
    const wrong = findings.filter(({ group, level }) =>
      level === "problem" && !["KVM", "security modules", "GitLab Runner"].includes(group)
    );
    assert.deepEqual(wrong, [], stderr);
    const job = findings.filter(({ group }) => group === 'a job on "lite"');
    for (const stage of ["prepare", "run", "cleanup"]) {
      assert(job.some(({ subject }) => subject.startsWith(`${stage}: `)), stdout);
    }
    const lacks = job.filter(({ level }) => level !== "ok").map(({ subject }) => subject);
    assert.deepEqual(lacks, ['The template "lite" has no working gitlab-runner'], stdout);
  },
);

e2eTest(
  "at a terminal, prepare shows in one line what it waits for, and elsewhere it does not",
  async () => {
    using file = settingsFile();
    const machine = "gci-e2e-terminal";
    const line = [...PROGRAM, "--config", file.path, "prepare", "-d", "lite", "-m", machine];
    try {
      const { status, stdout } = await command(["script", "-qec", line.join(" "), "/dev/null"], {
        TERM: "xterm",
      });
      assert.equal(status, 0, stdout);
      // deno-lint-ignore no-control-regex
      assert.match(stdout, /\r\x1b\[KWaiting for an IP address, 1 of \d+ s: no DHCP lease/);
      // deno-lint-ignore no-control-regex
      assert.match(stdout, /Waiting [^\n]*\r\x1b\[KThe machine "gci-e2e-terminal" is ready/);
      const piped = await call(["prepare", "-d", "lite", "-m", `${machine}-2`]);
      assert.equal(piped.status, 0, piped.stderr);
      assert(!/Waiting/.test(piped.stdout) && !piped.stdout.includes("\x1b"), piped.stdout);
    } finally {
      for (const name of [machine, `${machine}-2`]) await call(["cleanup", "-m", name]);
    }
  },
  { thorough: true },
);

e2eTest("without libvirt's daemon, the message says how to start it", async () => {
  const uri = "qemu+unix:///system?socket=/nonexistent/libvirt-sock";
  const called = await call(["cleanup", "--machine", "x"], { settings: { libvirt: { uri } } });
  assert.equal(called.status, 2);
  assert.match(called.stderr, /Cannot connect to "qemu\+unix/);
  assert.match(called.stderr, /What to do: Start libvirt/);
});

e2eTest("cleanup removes a machine whose QEMU hangs", async () => {
  const machine = "gci-e2e-hangs";
  assert.equal((await call(["prepare", "-d", "lite", "-m", machine])).status, 0);
  const { stdout } = await command(["pgrep", "-f", `guest=${machine},`]);
  Deno.kill(Number(stdout), "SIGSTOP");
  const start = performance.now();
  const { status, stderr } = await call(["cleanup", "-m", machine]);
  assert.equal(status, 0, stderr);
  // Five for the guest to stand still, ten until libvirt kills QEMU.
  assert(performance.now() - start < atMost(16) * 1000);
}, { thorough: true });
