// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { runJob, runnerFor } from "../harness/runner.ts";
import {
  assertVerdict,
  command,
  e2eTest,
  job,
  machineOf,
  PROGRAM,
  settingsFile,
  TESTBED,
} from "./bed.ts";

/** Takes the place of a GitLab Runner that runs as this user, to whom then its files belong. */
const AS_USER = `
chown -R ${TESTBED.user} "$TMPDIR" &&
exec setpriv --reuid=${TESTBED.user} --regid=${TESTBED.user} --init-groups "$@"
`;

/** The compiled program, where everybody may run it. */
function publicProgram(): Disposable & { readonly path: string } {
  const directory = Deno.makeTempDirSync({ prefix: "libvirt-gci-e2e-" });
  const path = `${directory}/libvirt-gci`;
  Deno.chmodSync(directory, 0o755);
  Deno.copyFileSync(PROGRAM[0] ?? "", path);
  Deno.chmodSync(path, 0o755);
  return { path, [Symbol.dispose]: () => Deno.removeSync(directory, { recursive: true }) };
}

async function filesOfUser(): Promise<string> {
  const places = ["/", "/tmp", "/run", "/dev/shm", "/var/tmp"];
  return (await command(["find", ...places, "-xdev", "-user", TESTBED.user])).stdout;
}

// main.ts needs Deno and its cache, which are root's; the compiled program needs nothing.
const ignore = !Deno.env.has("LIBVIRT_GCI");

e2eTest("a member of the group libvirt runs a job, and no file of it stays anywhere", async () => {
  const before = await filesOfUser();
  using program = publicProgram();
  using settings = settingsFile({ key: "/nonexistent/key" });
  Deno.chmodSync(settings.path, 0o644);
  const runner = runnerFor(["sh", "-c", AS_USER, "sh", program.path], ["--config", settings.path], {
    environment: { PATH: "/usr/bin:/bin", HOME: "/nonexistent" },
  });
  const result = await runJob(
    runner,
    job({
      variables: [],
      image: "example.org/cloud:1", // an alias
      script: ["echo I am $(id -un), and can be $(sudo -n id -un) on $(hostname)"],
    }),
  );
  assertVerdict(result, "success");
  assert.match(result.logText, /I am gitlab-runner, and can be root on gitlab-proj-4242-/);
  assert.equal(await filesOfUser(), before);
  assert.doesNotMatch(
    (await command(["virsh", "nwfilter-list"])).stdout,
    RegExp(machineOf(result)),
  );
}, { ignore });
