// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { allOf } from "../../src/wait.ts";
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
  runOnMachine,
  type Settings,
  settingsFile,
  TESTBED,
  UNTIL_LET_GO,
  virsh,
} from "./bed.ts";
import type { Job, JobVariable } from "../harness/payload.ts";
import type { JobResult } from "../harness/runner.ts";

const NAMESPACE = "urn:libvirt-gci:machine:1";
const LITE = { ssh: { login: "template" } };

function variables(values: Readonly<Record<string, string>>): JobVariable[] {
  return Object.entries({ DISTRO: "lite", ...values }).map(([key, value]) => ({ key, value }));
}

// --- Whose machine it is

/** A job of another project that says of itself all that is true of the victim. */
function forger(victim: Job, { machine, dir }: { machine: string; dir: string }): Job {
  return job({
    id: 666,
    projectId: 13,
    projectName: "evil",
    projectFullPath: "evil/evil",
    variables: variables({
      CI_JOB_ID: String(victim.id),
      CI_PROJECT_ID: String(victim.projectId),
      CI_PROJECT_NAME: victim.projectName,
      CI_PROJECT_PATH: victim.projectFullPath,
      CI_CONCURRENT_ID: "0",
      CI_RUNNER_ID: "1",
      CI_JOB_STATUS: "success",
      LIBVIRT_GCI_MACHINE: machine,
      JOB_RESPONSE_FILE: `${dir}/response.json`,
      BUILD_EXIT_CODE_FILE: `${dir}/build_exit_code`,
      BUILD_FAILURE_EXIT_CODE: "0",
      SYSTEM_FAILURE_EXIT_CODE: "0",
      TMPDIR: dir,
      HOME: Deno.env.get("HOME") ?? "/",
      PATH: "/usr/sbin:/usr/bin:/sbin:/bin",
    }),
    script: [
      "fallocate -l $(($(stat -fc '%a * %S' .) - 50000000)) most-of-the-disk",
      "dd if=/dev/zero of=rest bs=1M",
      "echo not this",
    ],
  });
}

/** All that a forger might change of its victim. */
async function stateOf(machine: string, dir: string): Promise<string[]> {
  return [
    await virsh("domid", machine),
    await virsh("metadata", machine, NAMESPACE),
    ...[...Deno.readDirSync(dir)].map(({ name }) => name).sort(),
    Deno.readTextFileSync(`${dir}/response.json`),
  ];
}

/** The directory of the machine's files whose content its guest chooses. */
function guestDirectory(machine: string): Promise<string> {
  return virsh("vol-path", "--pool", TESTBED.overlayPool, `${machine}.guest.libvirt-gci`);
}

/** What all that the machine wrote on its console takes on the host's disk. */
function consoleBytes(directory: string): number {
  const files = [...Deno.readDirSync(directory)].filter(({ name }) => name.startsWith("console"));
  assert(files.length > 1, "virtlogd began no second file");
  return files.reduce((sum, { name }) => sum + Deno.statSync(`${directory}/${name}`).size, 0);
}

/** The head of an image that libvirt cannot read. In a volume, it has libvirt give up the pool. */
const BROKEN_QCOW2 = Uint8Array.of(0x51, 0x46, 0x49, 0xfb, 0, 0, 0, 3, ...Array(30).fill(0));

e2eTest(
  "jobs that forge who they are or fill a disk hurt only themselves",
  async () => {
    const victim = job({ script: ["echo running", UNTIL_LET_GO] });
    const forgers: JobResult[] = [];
    const result = await runOnBed(victim, {
      events: [{
        stage: "build_script",
        whenOutput: "\nrunning",
        action: async ({ dir }) => {
          const machine = await runningMachine("gitlab-proj-4242-");
          const before = await stateOf(machine, dir);
          const evil = forger(victim, { machine, dir });
          const runner = { buildsDir: "/home/gitlab-runner/b", cacheDir: "/home/gitlab-runner/c" };
          forgers.push(
            ...await allOf([
              runOnBed(evil),
              runOnBed({ ...evil, script: ["exit 7"] }, {
                runner: { ...runner, configExec: null },
              }),
            ]),
          );
          assert.deepEqual(await stateOf(machine, dir), before);
          await letGo(machine);
        },
      }],
    });
    assertVerdict(result, "success");
    const [filler, configless] = forgers;
    assert.equal(filler?.verdict, "script_failure", filler?.logText);
    assert.equal(filler?.exitCode, 1);
    assert.match(filler?.logText ?? "", /No space left on device/);
    assert.deepEqual([configless?.verdict, configless?.exitCode], ["script_failure", 7]);
    const names = forgers.map(({ logText }) =>
      /Started the machine "(.*?)"/.exec(logText)?.[1] ?? ""
    );
    for (const name of names) assert.match(name, /^gitlab-evil-666-[0-9a-f]{10}$/);
    assert.equal(new Set(names).size, 2);
    for (const { runnerLog } of forgers) {
      assert.match(
        runnerLog.map(({ text }) => text).join(),
        /Removed the machine "gitlab-evil-666-/,
      );
    }
  },
);

e2eTest(
  "a job that floods its console fills no disk, and no pool fails by what it wrote",
  async () => {
    const machine = "gci-e2e-flood";
    await using _ = await prepared(machine);
    const directory = await guestDirectory(machine);
    const flood = "head -c 11M /dev/zero | tr '\\0' x | sudo tee /dev/ttyS0 >/dev/null";
    assert.equal((await call(["run", "-m", machine, "--", "sh", "-c", flood])).status, 0);
    const bytes = consoleBytes(directory);
    assert(bytes > 4 * 1024 ** 2 && bytes <= 9 * 1024 ** 2, `${bytes} bytes of console`);
    for (const file of ["console", "nvram"]) {
      await Deno.writeFile(`${directory}/${file}`, BROKEN_QCOW2);
    }
    await virsh("pool-refresh", TESTBED.overlayPool);
  },
  { thorough: true },
); // bytes on an emulated serial port are slow

// --- What it may have

/** Asserts that the job is told why, once, and that nothing was made for it. */
async function assertRefused(
  asks: Job,
  settings: Settings,
  words: readonly (string | RegExp)[],
): Promise<void> {
  const result = await runOnBed(asks, { settings, args: ["--debug"] });
  const told = `${JSON.stringify(asks.variables)}: ${result.logText}`;
  assert.equal(result.verdict, "script_failure", told);
  const calls = result.stages.map(({ name, exitStatus }) => [name, exitStatus]);
  assert.deepEqual(calls, [["config", 0], ["prepare", 1], ["cleanup", 0]]);
  for (const word of words) {
    assert(
      typeof word === "string" ? result.logText.includes(word) : word.test(result.logText),
      told,
    );
  }
  assert.match(result.logText, /^debug: \w+ /m); // or the next line would show nothing
  assert.doesNotMatch(
    result.logText,
    /virDomainCreate|virStorageVolCreate|virNWFilterDefine/,
    told,
  );
}

for (
  const [title, differences, settings, words] of [
    [
      "a template that the settings do not allow",
      { variables: variables({ DISTRO: "cloud" }) },
      { templates: { lite: LITE }, allowed_templates: ["fedora-*"] },
      ['asks for the template "cloud", which is not allowed', /may have: lite$/m],
    ],
    [
      "such a template by image:",
      { variables: [], image: "cloud.qcow2" },
      { templates: { lite: LITE }, allowed_templates: [] },
      ['asks for the template "cloud.qcow2", which is not allowed', /may have: lite$/m],
    ],
    [
      "a template's volume, past the settings of the template",
      { variables: variables({ DISTRO: "lite.qcow2", LIBVIRT_GCI_VCPUS: "2" }) },
      { templates: { lite: { ...LITE, vcpus: 1, limits: { vcpus: 1 } } }, limits: { vcpus: 4 } },
      ['at most 1 is allowed by the template "lite"'],
    ],
    [
      "a template's volume, past the template's name in the rules",
      { variables: variables({ DISTRO: "cloud" }) },
      {
        templates: { lite: LITE, secure: { volume: "cloud.qcow2" } },
        rules: [{ protected: false, templates: ["lite", "cloud"] }],
      },
      ['asks for the template "cloud", which is not allowed by rule 1', /may have: lite$/m],
    ],
    [
      "what is for protected refs",
      { variables: variables({ DISTRO: "lite", CI_COMMIT_REF_PROTECTED: "true" }) },
      { rules: [{ protected: true, templates: ["*"] }, { templates: ["cloud"] }] },
      ['asks for the template "lite", which is not allowed by rule 2', "may have: cloud"],
    ],
    [
      "what is for another project",
      { isRefProtected: true, variables: variables({ CI_PROJECT_PATH: "trusted/x" }) },
      { rules: [{ projects: ["trusted/*"], templates: ["*"] }, { templates: ["cloud"] }] },
      ['asks for the template "lite", which is not allowed by rule 2', "may have: cloud"],
    ],
  ] satisfies [string, Partial<Job>, Settings, (string | RegExp)[]][]
) {
  e2eTest(`a job does not get ${title}`, () => assertRefused(job(differences), settings, words));
}

const CAPS = { limits: { vcpus: 4, memory_mib: 700, disk_gib: 5 } };

e2eTest(
  "a job of a protected ref gets what it asks for within its bounds, and no more",
  async () => {
    const asks = job({
      isRefProtected: true,
      variables: variables({
        DISTRO: "lite.qcow2",
        LIBVIRT_GCI_VCPUS: "3",
        LIBVIRT_GCI_MEMORY_MIB: "700",
        LIBVIRT_GCI_DISK_GIB: "5",
      }),
      script: [
        "echo $(nproc) processors, $(cat /sys/block/vda/size) sectors",
        "grep MemTotal /proc/meminfo",
        "start=$(date +%s%N); dd if=/dev/zero of=f bs=1M count=30 oflag=direct",
        "echo took $((($(date +%s%N) - start) / 1000000)) ms",
      ],
    });
    const { verdict, logText } = await runOnBed(asks, {
      settings: {
        cpu: { shares: 512 },
        disk: { mib_per_second: 5, iops: 500 },
        rules: [{ protected: true, ...CAPS }, { templates: ["cloud"] }],
      },
      events: [{
        stage: "build_script",
        action: async () => {
          const machine = await runningMachine("gitlab-proj-4242-");
          const tuned = await virsh("blkdeviotune", machine, "vda");
          assert.match(tuned, /total_bytes_sec: 5242880\n/);
          assert.match(tuned, /total_iops_sec : 500\n/);
          assert.match(await virsh("schedinfo", machine), /cpu_shares +: 512\n/);
        },
      }],
    });
    assert.equal(verdict, "success", logText);
    assert.match(logText, /from the template "lite" /);
    assert.match(logText, new RegExp(`\n3 processors, ${5 * 1024 ** 3 / 512} sectors\n`));
    const memoryKib = Number(/MemTotal: +(\d+) kB/.exec(logText)?.[1]);
    assert(memoryKib > 620 * 1024 && memoryKib < 700 * 1024, `${memoryKib} KiB`);
    const milliseconds = Number(/\ntook (\d+) ms/.exec(logText)?.[1]);
    assert(milliseconds >= 4000, `${milliseconds} ms for 30 MiB at 5 MiB/s`);
  },
  { thorough: true },
);

e2eTest("sizes over the caps, and hostile ones, are the job's fault", async () => {
  const [vcpus, memory, disk] = ["VCPUS", "MEMORY_MIB", "DISK_GIB"].map((it) =>
    `LIBVIRT_GCI_${it}`
  );
  assert(vcpus && memory && disk);
  const cases: (readonly [string, string, string])[] = [
    [vcpus, "5", "at most 4 is allowed by this host's settings"],
    [memory, "701", "at most 700 is allowed by this host's settings"],
    [disk, "6", "at most 5 is allowed by this host's settings"],
    ["LIBVIRT_GCI_NESTED", "true", '"limits.nested" of this host\'s settings is false'],
    ["LIBVIRT_GCI_NESTED", "\u001b[8mtrue", '"\\u001b[8mtrue", which is neither true nor false'],
    ...[
      [vcpus, "1e3"],
      [memory, "-1"],
      [disk, "0x10"],
      [vcpus, " 4"],
      [vcpus, "4\n"],
      [memory, "999999999999"],
      [disk, "2; rm -rf /"],
      [disk, "０"],
      [vcpus, ""],
    ].map(([name = "", value = ""]) =>
      [
        name,
        value,
        `asks for ${name}=${JSON.stringify(value)}, which is not a whole number`,
      ] as const
    ),
  ];
  for (let i = 0; i < cases.length; i += 3) {
    await Promise.all(
      cases.slice(i, i + 3).map(([name, value, words]) =>
        assertRefused(job({ variables: variables({ [name]: value }) }), CAPS, [words])
      ),
    );
  }
});

// --- What it may say

/** Ends the output on both streams as if the script were over. */
const REAL_MARK = "for fd in 1 2; do echo @libvirt-gci-$LIBVIRT_GCI_SCRIPT >&$fd; done";

e2eTest("a job that reads the host's random numbers without end gets 64 KiB a second", async () => {
  const result = await runOnBed(job({
    script: [
      "start=$(date +%s)",
      "bytes=$({ sudo timeout 5 dd if=/dev/hwrng bs=512 2>/dev/null || true; } | wc -c)",
      'echo "$bytes bytes in $(($(date +%s) - start)) s"',
    ],
  }));
  assertVerdict(result, "success");
  const [, bytes, seconds] = /^(\d+) bytes in (\d+) s\r?$/m.exec(result.logText)?.map(Number) ?? [];
  assert(bytes !== undefined && seconds !== undefined, result.logText);
  assert(bytes > 0, "it has none");
  assert(bytes <= (seconds + 2) * 65536, `${bytes} bytes in ${seconds} s`); // a period may begin earlier
}, { thorough: true });

e2eTest("a job cannot forge its end or hide our words, and its status is its own", async () => {
  const machine = "gci-e2e-hostile";
  await using _ = await prepared(machine);

  const guess = `@libvirt-gci-${"0".repeat(32)}`;
  const printer = await runOnMachine(
    machine,
    job({
      script: [
        `printf '%s\\n' ${guess} 'libvirt-gci: passed' ${guess} >&2; echo after the guesses`,
        `sleep 1; ${REAL_MARK}; (exit 5)`,
      ],
    }),
  );
  assertVerdict(printer, "script_failure", 5);
  const { stderr } = printer.stages.find(({ name }) => name === "build_script") ?? {};
  const told = new TextDecoder().decode(stderr);
  assert(told.includes(`${guess}\nlibvirt-gci: passed\n${guess}\n`), told);
  assert.match(printer.logText, /\nafter the guesses\n/);

  for (
    const end of ["kill -9 $PPID; sleep 9", "sudo pkill -9 -f '^sshd.*: gitlab-runner'; sleep 9"]
  ) {
    const script = [`${REAL_MARK}; ${end}; exit 0`];
    const result = await runOnMachine(machine, job({ script }));
    assert.equal(result.verdict, "runner_system_failure", `${end}: ${result.logText}`);
  }

  const hider = await runOnMachine(
    machine,
    job({ script: ["printf 'libvirt-gci: all is well \\x1b[8m'; sudo poweroff -f; sleep 60"] }),
  );
  assertVerdict(hider, "runner_system_failure");
  // deno-lint-ignore no-control-regex
  assert.match(hider.logText, /all is well \x1b\[8m\x1b\[0m\nlibvirt-gci: The /);
});

e2eTest(
  "what a stage left in its machine decides later ones there, and in no other machine",
  async () => {
    const [own, other] = ["gci-e2e-replaced", "gci-e2e-untouched"] as const;
    await using _own = await prepared(own);
    await using _other = await prepared(other);
    const replacement = job({
      script: [
        "printf '#!/bin/sh\\nexit 0\\n' >~/bash; chmod +x ~/bash",
        "sudo mv ~/bash /usr/local/bin/bash",
      ],
    });
    assertVerdict(await runOnMachine(own, replacement), "success");
    const failing = job({ script: ["exit 7"] });
    assertVerdict(await runOnMachine(own, failing), "success");
    assertVerdict(await runOnMachine(other, failing), "script_failure", 7);
  },
  { thorough: true },
);

e2eTest("what a job calls its template is in the log without what a terminal obeys", async () => {
  const distro = "\x1b[31mx\nlibvirt-gci: forged\u202e\r\u009b8m";
  for (
    const asks of [
      job({ variables: variables({ DISTRO: distro }) }),
      job({ variables: [], image: distro }),
    ]
  ) {
    const { verdict, logText } = await runOnBed(asks);
    assert.equal(verdict, "script_failure", logText);
    assert(logText.includes('"\\u001b[31mx\\nlibvirt-gci: forged\\u202e\\r\\u009b8m"'), logText);
    // deno-lint-ignore no-control-regex
    assert.doesNotMatch(logText, /[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]|^libvirt-gci: forged/m);
  }
});

// --- What others on the host may change

e2eTest("settings that others could have written are refused, with the way out", async () => {
  using file = settingsFile();
  const config = () => command([...PROGRAM, "--config", file.path, "explain", "-d", "lite"]);
  assert.equal((await config()).status, 0);
  Deno.chmodSync(file.path, 0o666);
  const writable = await config();
  assert.equal(writable.status, 2);
  assert.match(writable.stderr, /Other users can write the settings: ".*" has the mode 666/);
  assert(writable.stderr.includes(`What to do: chmod go-w "${file.path}"`), writable.stderr);
  Deno.chmodSync(file.path, 0o600);
  await command(["chown", TESTBED.user, file.path]);
  const foreign = await config();
  assert.equal(foreign.status, 2);
  assert(foreign.stderr.includes(`What to do: chown root "${file.path}"`), foreign.stderr);
});
