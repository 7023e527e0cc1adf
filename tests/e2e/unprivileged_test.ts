// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
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
import { FRAME, hear } from "./packets.ts";
import { type JobResult, runJob, runnerFor } from "../harness/runner.ts";

/** As the drop-in of GitLab Runner's unit has it. */
const WITH_CAPABILITY = "--inh-caps=-all,+net_admin --ambient-caps=-all,+net_admin " +
  "--bounding-set=-all,+net_admin --no-new-privs";

/** Takes the place of a GitLab Runner that runs as this user, to whom then its files belong. */
function asUser(rights = ""): string {
  return `
    chown -R ${TESTBED.user} "$TMPDIR" &&
    exec setpriv --reuid=${TESTBED.user} --regid=${TESTBED.user} --init-groups ${rights} "$@"
  `;
}

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

/** Has this user run a job of `cloud` with this script; what of it stays on the host fails the test. */
async function runAsUser(script: string, rights = ""): Promise<JobResult> {
  const before = await filesOfUser();
  using program = publicProgram();
  using settings = settingsFile({ ssh: { key: "/nonexistent/key" } });
  Deno.chmodSync(settings.path, 0o644);
  const runner = runnerFor(
    ["sh", "-c", asUser(rights), "sh", program.path],
    ["--config", settings.path],
    { environment: { PATH: "/usr/bin:/bin", HOME: "/nonexistent" } },
  );
  const image = "example.org/cloud:1"; // an alias
  const result = await runJob(runner, job({ variables: [], image, script: [script] }));
  assertVerdict(result, "success");
  assert.equal(await filesOfUser(), before);
  const filters = (await command(["virsh", "nwfilter-list"])).stdout;
  assert.doesNotMatch(filters, RegExp(machineOf(result)));
  return result;
}

e2eTest("a member of the group libvirt runs a job, and no file of it stays anywhere", async () => {
  const script = "echo I am $(id -un), and can be $(sudo -n id -un) on $(hostname)";
  const { logText } = await runAsUser(script);
  assert.match(logText, /I am gitlab-runner, and can be root on gitlab-proj-4242-/);
}, { ignore });

const GATEWAY = "192.168.213.1"; // of the test bed's network
const FRAMES_PORT = 28082;

/** Root in the guest sends a link-local frame, three times. */
const ATTEMPT = `
set -- $(ip -4 -o route get ${GATEWAY} | sed 's/.* dev \\([^ ]*\\).* src \\([^ ]*\\).*/\\1 \\2/')
mac=$(cat "/sys/class/net/$1/address")
for i in 1 2 3; do
  sudo -n perl -e '${FRAME}' "$1" "$mac" 01:80:c2:00:00:0e "$2" ${GATEWAY} ${FRAMES_PORT} link_local
  sleep 1
done
`;

// The second shows that the first could fail.
for (
  const [words, rights, isHeard] of [
    ["isolates machines from link-local frames by CAP_NET_ADMIN", WITH_CAPABILITY, false],
    ["lets link-local frames through without a capability", "", true],
  ] as const
) {
  e2eTest(`a member of the group libvirt ${words}`, async () => {
    using heard = await hear(FRAMES_PORT);
    await runAsUser(ATTEMPT, rights);
    assert.equal(heard.words.has("link_local"), isHeard);
  }, { ignore, thorough: true });
}
