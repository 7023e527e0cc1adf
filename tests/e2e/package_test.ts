// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { bundle } from "../../packaging/bundle.ts";
import { installNfpm, makePackages } from "../../packaging/nfpm.ts";
import { writeFiles } from "../../packaging/package_files.ts";
import { orMissing } from "../../src/files.ts";
import { assertVerdict, command, e2eTest, job, PROGRAM, settingsFile } from "./bed.ts";
import { runJob, runnerFor } from "../harness/runner.ts";

const INSTALLED = "/usr/bin/libvirt-gci";
const SETTINGS = "/etc/libvirt-gci/config.yaml";
const TIMER = "/etc/systemd/system/timers.target.wants/libvirt-gci-gc.timer";
const DROP_IN = "/etc/systemd/system/gitlab-runner.service.d";

async function exists(path: string): Promise<boolean> {
  return await orMissing(Deno.lstat(path)) !== null;
}

/** Runs a program of this host, which must succeed, and gives what it prints. */
async function ok(...words: readonly string[]): Promise<string> {
  const { status, stdout, stderr } = await command(words, { DEBIAN_FRONTEND: "noninteractive" });
  assert.equal(status, 0, `${words.join(" ")}: ${stdout}${stderr}`);
  return stdout;
}

/** A package of the program under test, in this directory. */
async function makeDeb(directory: string): Promise<string> {
  const [files, time, version] = [`${directory}/files`, new Date("2020-01-02Z"), "0.0.1"];
  const nfpm = await installNfpm();
  await bundle(`${directory}/bundle`);
  await writeFiles(files, { bundle: `${directory}/bundle`, time, version });
  await Deno.copyFile(PROGRAM[0] ?? "", `${files}/libvirt-gci`);
  const { arch } = Deno.build;
  await makePackages(nfpm, { arch, files, output: directory, time, version });
  const found = [...Deno.readDirSync(directory)].find(({ name }) => name.endsWith(".deb"));
  assert(found, "there is no package");
  return `${directory}/${found.name}`;
}

/** The package as its next version, with other settings. */
async function nextVersion(deb: string, directory: string): Promise<string> {
  const [tree, next] = [`${directory}/next`, `${directory}/next.deb`];
  await ok("dpkg-deb", "--raw-extract", deb, tree);
  await ok("sed", "-i", "s/^Version: .*/Version: 0.0.2-1/", `${tree}/DEBIAN/control`);
  await Deno.writeTextFile(`${tree}${SETTINGS}`, "# new in 0.0.2\n", { append: true });
  await ok("dpkg-deb", "--build", "-Zgzip", "-z1", tree, next);
  return next;
}

/** What belongs to dpkg, libvirt, the kernel or the test bed. */
const OTHERS = [
  "/var/lib/dpkg",
  "/var/lib/apt",
  "/var/lib/libvirt",
  "/var/lib/libvirt-gci-testbed",
  "/etc/libvirt",
  "/run/libvirt",
  "/run/lock",
  "/run/systemd",
];

/** All files and links of the host where a package may put some, and all that is named for us. */
async function filesOfHost(): Promise<Set<string>> {
  const pruned = OTHERS.flatMap((path) => ["-path", path, "-prune", "-o"]);
  const { stdout } = await command([
    "find",
    "/etc",
    "/usr",
    "/opt",
    "/run",
    "/var/lib",
    "-xdev",
    ...pruned,
    "(",
    "-type",
    "f",
    "-o",
    "-type",
    "l",
    "-o",
    "-name",
    "*libvirt-gci*",
    ")",
    "-print",
  ]);
  return new Set(stdout.trimEnd().split("\n"));
}

/** What the program and an administrator leave beside the package's own files. */
async function leaveTraces(): Promise<void> {
  for (const home of ["/var/lib", "/var/lib/gitlab-runner"]) {
    await Deno.mkdir(`${home}/libvirt-gci/post-mortem/gci-e2e`, { recursive: true });
    await Deno.writeTextFile(`${home}/libvirt-gci/post-mortem/gci-e2e/console.log`, "panic\n");
  }
  await Deno.mkdir("/run/libvirt-gci", { recursive: true });
  await Deno.writeTextFile("/run/libvirt-gci/gci-e2e", "key\n");
  await Deno.mkdir(DROP_IN, { recursive: true });
  const dropIn = "/usr/share/libvirt-gci/gitlab-runner.service.d/libvirt-gci.conf";
  await Deno.symlink(dropIn, `${DROP_IN}/libvirt-gci.conf`);
}

/** Runs a job with the installed program and its settings. */
async function runInstalled(): Promise<void> {
  const result = await runJob(runnerFor([INSTALLED], []), job({ script: ["echo in a machine"] }));
  assertVerdict(result, "success");
  assert.match(result.logText, /in a machine/);
}

/** Takes the package off again if the test did not come so far. */
function purgeAtTheEnd(): AsyncDisposable {
  return {
    [Symbol.asyncDispose]: async () => void await command(["dpkg", "--purge", "libvirt-gci"]),
  };
}

// main.ts is no program to install. A host that has the program is not the test's to change.
const ignore = !Deno.env.has("LIBVIRT_GCI") || !await exists("/var/lib/dpkg") ||
  await exists(INSTALLED) || await exists("/etc/libvirt-gci");

e2eTest("the package installs, runs a job, is upgraded, and is gone after a purge", async (t) => {
  const directory = await Deno.makeTempDir({ prefix: "libvirt-gci-e2e-" });
  await using stack = new AsyncDisposableStack();
  stack.defer(() => Deno.remove(directory, { recursive: true }));
  const deb = await makeDeb(directory);
  const before = await filesOfHost();
  stack.use(purgeAtTheEnd());
  const metrics = `${directory}/libvirt_gci.prom`;
  using bed = settingsFile({ metrics_file: metrics });
  const settings = await Deno.readTextFile(bed.path);

  await t.step("installation switches the gc timer on, and its settings are valid", async () => {
    await ok("dpkg", "--install", deb);
    assert.match(await ok(INSTALLED, "--version"), /^libvirt-gci \S+ \(.*commit.*\)\n$/);
    assert.equal((await Deno.lstat(TIMER)).isSymlink, true);
    assert.equal((await Deno.stat(SETTINGS)).mode, 0o100644);
    await ok(INSTALLED, "explain", "--distro", "lite");
    const completions = "/usr/share/bash-completion/completions/libvirt-gci";
    assert.match(await ok("bash", "-c", `. ${completions}; complete -p libvirt-gci`), /-F /);
  });

  await t.step("doctor connects, and a whole job passes with the installed settings", async () => {
    await Deno.writeTextFile(SETTINGS, settings);
    const { status, stdout, stderr } = await command([INSTALLED, "doctor"]);
    assert([0, 2].includes(status), stderr); // it finds fault with the test bed
    assert.match(stdout, /Connected to libvirt/);
    await runInstalled();
    assert.match(await Deno.readTextFile(metrics), /stage="prepare",result="success"\} 1$/m);
  });

  await t.step("an upgrade keeps the settings and brings its own beside them", async () => {
    await ok(
      "dpkg",
      "--force-confdef",
      "--force-confold",
      "--install",
      await nextVersion(deb, directory),
    );
    assert.match(await ok("dpkg-query", "--show", "libvirt-gci"), /\t0\.0\.2-1$/m);
    assert.equal(await Deno.readTextFile(SETTINGS), settings);
    assert.match(await Deno.readTextFile(`${SETTINGS}.dpkg-dist`), /^# new in 0\.0\.2$/m);
    assert.equal((await Deno.lstat(TIMER)).isSymlink, true);
    await runInstalled();
  });

  await t.step("remove leaves the settings and what was recorded, but no metrics", async () => {
    await leaveTraces();
    await ok("dpkg", "--remove", "libvirt-gci");
    assert.equal(await exists(INSTALLED), false);
    assert.equal(await exists(metrics), false);
    assert.equal(await Deno.readTextFile(SETTINGS), settings);
    assert.equal(await exists("/var/lib/libvirt-gci/post-mortem/gci-e2e/console.log"), true);
  });

  await t.step("purge leaves nothing", async () => {
    await ok("dpkg", "--purge", "libvirt-gci");
    assert.deepEqual([...(await filesOfHost()).difference(before)], []);
  });
}, { ignore, thorough: true });
