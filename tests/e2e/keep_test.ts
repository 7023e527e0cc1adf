// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import type { ListedMachine } from "../../src/commands/list.ts";
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
  virsh,
} from "./bed.ts";

const NAMESPACE = "urn:libvirt-gci:machine:1";

const SETTINGS: Settings = {
  limits: { keep_minutes: 60 },
  templates: {
    lite: { ssh: { login: "template" } },
    systemd: { volume: "cloud.qcow2", ssh: { login: "systemd", user: "root" } },
  },
};

/** The variables of a job that asks for this template, and to be kept for so long. */
function asking(template: string, minutes: number): { key: string; value: string }[] {
  return [
    { key: "DISTRO", value: template },
    { key: "LIBVIRT_GCI_KEEP_MINUTES", value: String(minutes) },
  ];
}

async function succeed(...args: string[]): Promise<Called> {
  const called = await call(args);
  assert.equal(called.status, 0, called.stderr);
  return called;
}

/** The machine as `list` shows it, if there is anything of it. */
async function listed(machine: string): Promise<ListedMachine | undefined> {
  const machines: ListedMachine[] = JSON.parse((await succeed("list", "--json")).stdout);
  return machines.find((it) => it.machine === machine);
}

/** Has a kept machine's time be over. */
async function endTime(machine: string): Promise<void> {
  const element = await virsh("metadata", machine, NAMESPACE);
  const over = element.replace(/(keptUntil|deadline)="[^"]*"/g, '$1="2026-01-02T03:04:05.678Z"');
  await virsh("metadata", machine, NAMESPACE, "--key", "gci", "--set", over, "--live");
}

/** What a command prints in the machine, at a terminal. */
async function atTerminal(machine: string, line: string): Promise<string> {
  using file = settingsFile();
  const program = [...PROGRAM, "--config", file.path, "ssh", machine, "--"].join(" ");
  const { status, stdout, stderr } = await command([
    "script",
    "-qec",
    `${program} ${line}`,
    "/dev/null",
  ]);
  assert.equal(status, 0, stdout + stderr);
  return stdout;
}

e2eTest("the machine of a failed job is there to log in to until its time is over", async () => {
  const failing = job({
    id: 81,
    variables: asking("systemd", 60),
    script: ["echo of the job > /root/left", "printf 'half a line'; exit 7"],
    afterScript: ["echo afterwards"],
  });
  const result = await runOnBed(failing, { settings: SETTINGS });
  const { logText } = result;
  assertVerdict(result, "script_failure", 7);
  const machine = machineOf(result);
  try {
    assert.match(
      logText,
      /\nhalf a line.*\nlibvirt-gci: The stage "build_script" failed, so .* is kept for 60 min/,
    );
    const least = /until (\S+ \S+) UTC or later/.exec(logText)?.[1] ?? "";
    assert.match(logText, /\nafterwards\n/);
    const login = /^Log in: +libvirt-gci ssh (\S+), on the host "(.*)" \(/m.exec(logText);
    const hostname = (await Deno.readTextFile("/proc/sys/kernel/hostname")).trim();
    assert.deepEqual(login?.slice(1), [machine, hostname]);
    const kept = result.runnerLog.map(({ text }) => text).join("\n");
    assert.match(kept, new RegExp(`Kept the machine "${machine}" until .*: the stage "build_sc`));
    for (const dir of result.dirs) await assert.rejects(Deno.stat(dir), Deno.errors.NotFound);

    const { state, keptUntil } = await listed(machine) ?? {};
    assert.equal(state, "kept");
    assert((keptUntil ?? "") >= `${least.replace(" ", "T")}:00`, `${keptUntil} is before ${least}`);
    assert.match((await succeed("list")).stdout, new RegExp(`${machine}.* kept (59|60) min more`));
    assert.equal(
      (await succeed("run", "-m", machine, "--", "cat", "/root/left")).stdout,
      "of the job\n",
    );
    assert.match(await atTerminal(machine, "cat /root/left"), /of the job\r*$/m);

    assert.doesNotMatch((await succeed("gc")).stdout, new RegExp(machine));
    assert.match((await succeed("keep", machine, "--extend", "2h")).stdout, /is kept until 20/);
    const extended = (await listed(machine))?.keptUntil ?? "";
    assert.equal(Date.parse(extended) - Date.parse(keptUntil ?? ""), 7_200_000);

    await endTime(machine);
    assert.equal((await listed(machine))?.state, "orphan");
    const { stdout } = await succeed("gc");
    const what = `Removed "${machine}" \\(domain, \\d volumes, network filter, key\\)`;
    assert.match(stdout, new RegExp(`^${what}: it was kept until 2026-01-02 03:04 UTC$`, "m"));
    assert.equal(await listed(machine), undefined);
    const { status, stderr } = await call(["keep", machine]);
    assert.equal(status, 2);
    assert.match(stderr, /does not exist, or has ended/);
  } finally {
    await call(["cleanup", "-m", machine]);
  }
}, { thorough: true });

e2eTest("a job that passes keeps no machine, whatever its after_script does", async () => {
  const passing = job({
    id: 82,
    variables: asking("lite", 60),
    afterScript: ["exit 1"],
  });
  const result = await runOnBed(passing, { settings: SETTINGS });
  assertVerdict(result, "success");
  assert.doesNotMatch(result.logText, / kept /);
  assert.equal(await listed(machineOf(result)), undefined);
}, { thorough: true });

e2eTest(
  "a job that asks to be kept longer than it may, or by no number, gets no machine",
  async () => {
    for (const value of ["61", "-1", "1h", "60; reboot", "\x1b[2J"]) {
      const variables = [...asking("lite", 0), { key: "LIBVIRT_GCI_KEEP_MINUTES", value }];
      const result = await runOnBed(job({ id: 83, variables }), { settings: SETTINGS });
      assertVerdict(result, "script_failure", 1);
      assert.match(result.logText, /The job asks for LIBVIRT_GCI_KEEP_MINUTES=/);
      // deno-lint-ignore no-control-regex
      assert.doesNotMatch(result.logText, /\x1b\[2J/);
    }
  },
);

e2eTest("a machine whose connection is lost is kept, and cleanup by hand removes it", async () => {
  const lost = job({ id: 84, script: ["kill -9 $PPID; sleep 9"] });
  const settings = { ...SETTINGS, keep_minutes: 5 };
  const result = await runOnBed(lost, { settings });
  assertVerdict(result, "runner_system_failure");
  const machine = machineOf(result);
  try {
    assert.match(result.logText, /The stage "build_script" failed, so .* for 5 min after the job/);
    assert.equal((await listed(machine))?.state, "kept");
    assert.equal((await succeed("run", "-m", machine, "--", "echo", "here")).stdout, "here\n");
  } finally {
    assert.match((await succeed("cleanup", "-m", machine)).stdout, /^Removed the machine/);
  }
}, { thorough: true });

e2eTest("an operator keeps the machine of a running job, which then passes", async () => {
  let kept = "";
  const result = await runOnBed(job({ id: 85, script: ["echo here", "sleep 3"] }), {
    settings: SETTINGS,
    events: [{
      stage: "build_script",
      whenOutput: "\nhere",
      action: async () => {
        const machine = (await virsh("list", "--name")).split("\n")
          .find((name) => name.startsWith("gitlab-proj-85-")) ?? "";
        kept = (await succeed("keep", machine, "--extend", "30m")).stdout;
      },
    }],
  });
  assertVerdict(result, "success");
  const machine = machineOf(result);
  try {
    assert.match(kept, /is kept until .* UTC$/m);
    assert.equal((await listed(machine))?.state, "kept");
  } finally {
    await succeed("cleanup", "-m", machine);
  }
}, { thorough: true });

e2eTest("keep refuses a machine by hand, which stays anyway", async () => {
  const machine = "gci-e2e-keep";
  try {
    await succeed("prepare", "-d", "lite", "-m", machine);
    const { status, stderr } = await call(["keep", machine]);
    assert.equal(status, 2);
    assert.match(stderr, /was created by hand, so it stays until you remove it/);
  } finally {
    await call(["cleanup", "-m", machine]);
  }
}, { thorough: true });
