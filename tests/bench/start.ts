// SPDX-License-Identifier: GPL-2.0-or-later
import { median, report, table, time } from "./measure.ts";
import { done, interrupted } from "./program.ts";
import { emptyProgram } from "./version.ts";

const STAGES: Readonly<Record<string, readonly string[]>> = {
  config: ["config"],
  prepare: ["prepare"],
  run: ["run", "--script", "/dev/null", "build_script"],
  cleanup: ["cleanup"],
};
const GOAL_MS = 80;

/**
 * From the start of each stage until it connects to libvirt, or of `config` until it ends, beside an empty
 * compiled program. In place of libvirt's daemon there is a socket that nothing else connects to.
 */
export async function measureStart(program: readonly string[], runs: number): Promise<void> {
  const directory = await Deno.makeTempDir({ prefix: "libvirt-gci-bench-" });
  const path = `${directory}/socket`;
  using daemon = Deno.listen({ transport: "unix", path });
  try {
    const deno = await emptyProgram(directory);
    if (deno === null) return;
    const env = await environment(directory);
    await Deno.writeTextFile(
      `${directory}/config.yaml`,
      `libvirt: { uri: "qemu+unix:///system?socket=${path}" }\n`,
    );
    const call = [...program, "--config", `${directory}/config.yaml`];
    const found = new Map<string, number[]>();
    for (let i = 0; i < runs; i++) {
      add(found, "Deno", await time(() => done([deno])));
      for (const [stage, args] of Object.entries(STAGES)) {
        add(found, stage, await startOf([...call, ...args], { env, daemon }));
      }
    }
    const own = median(found.get("Deno") ?? []);
    const rows = [...found].map(([name, all]) => [
      name,
      ...[median(all), median(all) - own, Math.min(...all)].map((ms) => ms.toFixed(0)),
    ]);
    console.log(table([["ms", "median", "without Deno", "least"], ...rows]));
    const most = Math.max(...Object.keys(STAGES).map((stage) => median(found.get(stage) ?? [])));
    const measured = `${most.toFixed(0)} ms, of which Deno ${own.toFixed(0)} ms`;
    report("start of a stage", measured, { goal: `${GOAL_MS} ms`, met: most <= GOAL_MS });
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

function add(all: Map<string, number[]>, name: string, value: number): void {
  all.set(name, [...all.get(name) ?? [], value]);
}

/** Milliseconds until the stage connects, which then is killed, or until `config` ends. */
async function startOf(
  [program = "", ...args]: readonly string[],
  { env, daemon }: { readonly env: Record<string, string>; readonly daemon: Deno.UnixListener },
): Promise<number> {
  interrupted.throwIfAborted();
  const start = performance.now();
  const child = new Deno.Command(program, {
    args,
    env,
    clearEnv: true,
    stdin: "null",
    stdout: "null",
    stderr: "null",
  }).spawn();
  if (args.at(-1) === "config") {
    const { code } = await child.status;
    if (code !== 0) throw new Error(`config ended with ${code}`);
    return performance.now() - start;
  }
  const ended = child.status.then(({ code }) => {
    throw new Error(`${args.join(" ")} ended with ${code} and did not connect`);
  });
  ended.catch(() => {}); // as it does in the end
  const connection = await Promise.race([daemon.accept(), ended]);
  const milliseconds = performance.now() - start;
  child.kill("SIGKILL");
  connection.close();
  await child.status;
  return milliseconds;
}

/** What GitLab Runner says of a job. */
async function environment(directory: string): Promise<Record<string, string>> {
  const job = { id: 1, job_info: { project_id: 1, project_name: "b", project_full_path: "a/b" } };
  const file = `${directory}/response.json`;
  await Deno.writeTextFile(file, JSON.stringify(job));
  const denos = Object.entries(Deno.env.toObject()).filter(([name]) => name.startsWith("DENO_"));
  return {
    ...Object.fromEntries(denos),
    PATH: Deno.env.get("PATH") ?? "",
    HOME: Deno.env.get("HOME") ?? "/",
    JOB_RESPONSE_FILE: file,
    LIBVIRT_GCI_MACHINE: "gci-bench",
    BUILD_FAILURE_EXIT_CODE: "1",
    SYSTEM_FAILURE_EXIT_CODE: "2",
  };
}
