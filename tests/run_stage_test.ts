// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import type { MasterTask } from "../src/guest/master/master.ts";
import { sleep } from "../src/wait.ts";
import { TestGuest } from "./fakes/test_guest.ts";
import { isThere, makeAttemptDir, MasterProcess, masterTask } from "./fakes/test_master.ts";

const MAIN = new URL("../main.ts", import.meta.url).pathname;
const JOB_JSON = JSON.stringify({ id: 1, job_info: { project_name: "p" }, git_info: {} });

/** How a script ended that GitLab Runner had the program run. */
interface Ended {
  readonly status: number;
  readonly stdout: string;
  readonly stderr: string;
  /** What is in BUILD_EXIT_CODE_FILE. */
  readonly told: string | null;
}

interface Bed {
  readonly guest: TestGuest;
  readonly master: MasterProcess;
  readonly directory: string;
  /** The program on this script; it needs no settings, since there are none. */
  readonly command: (text: string) => Deno.Command;
  readonly runStage: (text: string) => Promise<Ended>;
}

async function withMaster(
  test: (bed: Bed) => Promise<void>,
  task: Partial<MasterTask> = {},
): Promise<void> {
  const directory = makeAttemptDir();
  const told = `${directory}/status`;
  await Deno.writeTextFile(`${directory}/response.json`, JOB_JSON);
  const command = (text: string): Deno.Command => {
    Deno.writeTextFileSync(`${directory}/script`, text);
    const call = ["--config", "/nonexistent/settings", "run", `${directory}/script`, "step_script"];
    return new Deno.Command(Deno.execPath(), {
      args: ["run", "--quiet", "--allow-all", MAIN, ...call],
      env: {
        JOB_RESPONSE_FILE: `${directory}/response.json`,
        LIBVIRT_GCI_MACHINE: "m",
        BUILD_EXIT_CODE_FILE: told,
        BUILD_FAILURE_EXIT_CODE: "11",
        SYSTEM_FAILURE_EXIT_CODE: "22",
      },
      stdin: "null",
      stdout: "piped",
      stderr: "piped",
    });
  };
  const runStage = async (text: string): Promise<Ended> => {
    const { code: status, stdout, stderr } = await command(text).output();
    const decoder = new TextDecoder();
    return {
      status,
      stdout: decoder.decode(stdout),
      stderr: decoder.decode(stderr),
      told: await Deno.readTextFile(told).catch(() => null),
    };
  };
  {
    await using guest = await TestGuest.start();
    await using master = await MasterProcess.start(guest, masterTask(directory, task));
    await test({ guest, master, directory, command, runStage });
  }
  await Deno.remove(directory, { recursive: true });
}

Deno.test("run through a connection master ends with the runner's status, and adds nothing", () =>
  withMaster(async ({ runStage }) => {
    const passed = await runStage("echo out; echo err >&2");
    assert.deepEqual(passed, { status: 0, stdout: "out\n", stderr: "err\n", told: null });
    const failed = await runStage("printf out; exit 7");
    assert.deepEqual(failed, { status: 11, stdout: "out", stderr: "", told: "7\n" });
  }));

Deno.test("run through a connection master is counted in the metrics file of its settings", async () => {
  const directory = await Deno.makeTempDir({ prefix: "libvirt-gci-test-" });
  const metricsFile = `${directory}/gci.prom`;
  await withMaster(async ({ runStage }) => {
    await runStage("true");
    await runStage("exit 1");
    const text = await Deno.readTextFile(metricsFile);
    assert.match(text, /stage="run",result="success"\S* 1$/m);
    assert.match(text, /stage="run",result="job"\S* 1$/m);
  }, { metricsFile });
  await Deno.remove(directory, { recursive: true });
});

Deno.test("run whose master is killed amid the script fails as the host's, never passes", () =>
  withMaster(async ({ master, command }) => {
    const child = command("echo begun; sleep 30").spawn();
    const output = child.output();
    while (!await runs("^sleep 30$")) await sleep(20);
    master.child.kill("SIGKILL");
    const { code, stderr } = await output;
    assert.equal(code, 22);
    const said = new TextDecoder().decode(stderr);
    assert.match(said, /libvirt-gci: The connection to the guest broke while the script ran\n/);
    assert.equal(said.match(/libvirt-gci:/g)?.length, 1, said);
  }));

Deno.test("a script ends in the guest with all its processes when its run is killed", () =>
  withMaster(async ({ master, command }) => {
    const mark = `sleep 99.${crypto.getRandomValues(new Uint32Array(1))[0]}`;
    const child = command(`setsid ${mark} & trap '' TERM; ${mark}; ${mark}`).spawn();
    while (!await runs(`^${mark}$`)) await sleep(20);
    child.kill("SIGKILL");
    await child.output();
    for (let i = 0; i < 200 && await runs(`^${mark}$`); i++) await sleep(50);
    assert(!await runs(`^${mark}$`), "it left a process of the script");
    assert(await isThere(master.task.socket), "the next script has no master");
  }));

Deno.test("run without a fitting master tells it to end, and says nothing of it", () =>
  withMaster(async ({ master, runStage }) => {
    const { status, stderr } = await runStage("true");
    assert.equal(status, 22);
    assert.match(stderr, /^libvirt-gci: Cannot read the settings in "\/nonexistent\/settings"\n/);
    assert.equal(stderr.match(/libvirt-gci:/g)?.length, 1, stderr);
    assert.equal((await master.child.status).code, 0);
    assert(!await isThere(master.task.socket));
  }, { machine: "other", domain: "m" }));

async function runs(commandLine: string): Promise<boolean> {
  return (await new Deno.Command("pgrep", { args: ["-f", commandLine] }).output()).success;
}
