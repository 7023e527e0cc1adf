// SPDX-License-Identifier: GPL-2.0-or-later
import denoJson from "./deno.json" with { type: "json" };

declare global {
  /** What the program was compiled from; the bundle sets it. */
  var libvirtGciCommit: string | undefined;
}

const { version } = denoJson;
const about = `libvirt-gci ${version} (${globalThis.libvirtGciCommit ?? "from source"})`;
const parent = Deno.ppid; // as early as can be

if (Deno.args.length === 1 && Deno.args[0] === "--version") {
  console.log(about);
  Deno.exit(0); // before the rest is even loaded
}
if (Deno.args.length === 1 && Deno.args[0] === "connection-master") {
  // Only what it needs is loaded: it stays as long as the machine.
  const { runMaster } = await import("./src/guest/master/first_login.ts");
  const ended = new AbortController();
  for (const signal of ["SIGTERM", "SIGINT"] as const) {
    Deno.addSignalListener(signal, () => ended.abort());
  }
  await runMaster({ input: Deno.stdin, output: Deno.stdout }, ended.signal).catch(() => {}); // there is no one to tell
  Deno.exit(0);
}

/** How soon a stage notices that its runner is gone. */
const LOOK_MS = 1000;
const BY_RUNNER = "GitLab Runner cancelled the stage: the job was cancelled or timed out, " +
  "or the runner is shutting down";

const { runProgram } = await import("./src/program.ts");
const { ownPrinter, sinkTo } = await import("./src/cli/terminal.ts");
const env = Deno.env.toObject(); // without variables that are not UTF-8
// systemd sets none for its services, such as GitLab Runner.
if (!env["HOME"]) env["HOME"] = (await import("node:os")).homedir();

// Deno itself would exit with 1, by which GitLab blames the job.
const uncaught = Promise.withResolvers<never>();
globalThis.addEventListener("unhandledrejection", (event) => {
  event.preventDefault();
  uncaught.reject(event.reason);
});
globalThis.addEventListener("error", (event) => {
  event.preventDefault();
  uncaught.reject(event.error);
});

const status = await runProgram({
  args: Deno.args,
  env,
  version,
  about,
  exit: Deno.exit,
  signal: await cancellation(),
  printer: ownPrinter(env),
  uncaught: uncaught.promise,
  startInBackground,
  startWithPipes,
  path: Deno.build.standalone ? Deno.execPath() : "/usr/local/bin/libvirt-gci",
  output: {
    stdout: sinkTo(Deno.stdout, "standard output"),
    stderr: sinkTo(Deno.stderr, "standard error"),
  },
});
// Without it, Deno ends its threads first, and some thread that has called libvirt ends while the C
// libraries clean up after themselves: one process in a thousand then dies of a signal.
Deno.exit(status);

/**
 * Aborts, with the error to end with, when GitLab Runner or a person cancels the stage, or when GitLab
 * Runner is gone: then it sends no signal and calls no cleanup. By hand, the caller may leave.
 */
async function cancellation(): Promise<AbortSignal> {
  const { SystemFailure } = await import("./src/errors.ts");
  const { isByHand } = await import("./src/job/job.ts");
  const controller = new AbortController();
  const cancel = (what: string): void => {
    controller.abort(new SystemFailure({ what, fault: "cancelled" }));
  };
  const byHand = isByHand(env);
  Deno.addSignalListener("SIGINT", () => cancel("Cancelled by SIGINT"));
  Deno.addSignalListener("SIGTERM", () => cancel(byHand ? "Cancelled by SIGTERM" : BY_RUNNER));
  if (byHand) return controller.signal;
  const look = (): void => {
    if (Deno.ppid !== parent) cancel("GitLab Runner has ended, so this stage is cancelled");
  };
  // prctl(PR_SET_PDEATHSIG) reports the end of the parent's thread, and GitLab Runner's threads
  // come and go.
  Deno.unrefTimer(setInterval(look, LOOK_MS));
  return controller.signal;
}

/**
 * Starts this program again, in a session of its own, so that the end of a stage does not end it. It gets
 * no other variables than these, and works in "/", since GitLab Runner removes the attempt's directory.
 */
function spawn(
  args: readonly string[],
  env: Record<string, string>,
  pipes: "null" | "piped",
): Deno.ChildProcess {
  const program = Deno.build.standalone ? [] : ["run", "--allow-all", import.meta.filename ?? ""];
  const child = new Deno.Command(Deno.execPath(), {
    args: [...program, ...args],
    clearEnv: true,
    env,
    detached: true,
    cwd: "/",
    stdin: pipes,
    stdout: pipes,
    stderr: "null",
  }).spawn();
  child.unref();
  return child;
}

function startInBackground(args: readonly string[], env: Record<string, string>): void {
  spawn(args, env, "null");
}

function startWithPipes(args: readonly string[], env: Record<string, string>): Deno.ChildProcess {
  return spawn(args, env, "piped");
}
