// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";

const UNITS = new URL("../systemd/", import.meta.url);

/** What systemd.service(5) lets a command of the unit take, in seconds; null where the unit does not say. */
async function secondsIn(unit: string, key: string): Promise<number | null> {
  const text = await Deno.readTextFile(new URL(`../systemd/${unit}`, import.meta.url));
  const [, number, of = ""] = new RegExp(`^${key}=(\\d+)(min|h)$`, "m").exec(text) ?? [];
  const seconds: Readonly<Record<string, number>> = { min: 60, h: 3600 };
  return number === undefined ? null : Number(number) * (seconds[of] ?? NaN);
}

// Without a word, what comes after the start has 90 s, and the start itself has no end.
Deno.test("systemd lets warm images and waiting machines be made in their time, and ends what hangs", async () => {
  for (const key of ["TimeoutStartSec", "TimeoutStopSec"]) {
    const seconds = await secondsIn("libvirt-gci-warm.service", key);
    assert(seconds !== null && seconds > 3600, `${key} is ${seconds} s`);
  }
  const seconds = await secondsIn("libvirt-gci-gc.service", "TimeoutStartSec");
  assert(seconds !== null && seconds >= 60, `${seconds} s for gc`);
});

Deno.test("gc is given none of the host's devices, not even KVM", async () => {
  const unit = new URL("../systemd/libvirt-gci-gc.service", import.meta.url);
  const lines = (await Deno.readTextFile(unit)).split("\n").filter((line) => /^Device/.test(line));
  assert.deepEqual(lines, ["DevicePolicy=closed"]);
});

// systemd looks in /usr/local/bin first, then in /usr/bin: systemd.service(5).
Deno.test("our units start the program where it is installed, by hand or from a package", async () => {
  const commands: string[] = [];
  for (const { name } of Deno.readDirSync(UNITS)) {
    if (!name.endsWith(".service")) continue;
    const text = await Deno.readTextFile(new URL(name, UNITS));
    commands.push(...[...text.matchAll(/^Exec\w+=-?(.*)$/gm)].map(([, command = ""]) => command));
  }
  const verbs = ["gc", "gc", "standby", "warm"].map((verb) => `libvirt-gci ${verb}`);
  assert.deepEqual(commands.sort(), verbs);
});

const DROP_IN = "gitlab-runner.service.d/libvirt-gci.conf";

/** As GitLab's package has it, as far as the drop-in goes. */
const RUNNER_UNIT = `
[Unit]
Description=GitLab Runner
After=network.target

[Service]
ExecStart=/bin/true "run" "--working-directory" "/home/gitlab-runner" "--user" "gitlab-runner"
Restart=always
`;

async function systemdAnalyze(
  args: readonly string[],
  unitPath = "",
): Promise<{ readonly success: boolean; readonly text: string }> {
  const { success, stdout, stderr } = await new Deno.Command("systemd-analyze", {
    args: [...args],
    env: { SYSTEMD_UNIT_PATH: `${unitPath}:`, SYSTEMD_COLORS: "0" },
  }).output();
  const [out, err] = [stdout, stderr].map((bytes) => new TextDecoder().decode(bytes));
  return { success, text: `${out}${err}` };
}

/** 0 where there is no systemd. */
const VERSION = await systemdAnalyze(["--version"])
  .then(({ text }) => Number(/^systemd (\d+)/.exec(text)?.[1] ?? 0), () => 0);

/** Our units, which start a program that is there, and GitLab Runner's with the drop-in. */
async function installedUnits(): Promise<AsyncDisposable & { readonly path: string }> {
  const path = await Deno.makeTempDir({ prefix: "libvirt-gci-test-" });
  await Deno.mkdir(`${path}/gitlab-runner.service.d`);
  await Deno.writeTextFile(`${path}/gitlab-runner.service`, RUNNER_UNIT);
  const ours = Deno.readDirSync(UNITS).filter(({ isFile }) => isFile).map(({ name }) => name);
  for (const file of [...ours, DROP_IN]) {
    const text = await Deno.readTextFile(new URL(file, UNITS));
    await Deno.writeTextFile(
      `${path}/${file}`,
      text.replaceAll(/^(Exec\w+=-?)libvirt-gci /gm, "$1/bin/true "),
    );
  }
  return { path, [Symbol.asyncDispose]: () => Deno.remove(path, { recursive: true }) };
}

Deno.test({
  name: "systemd finds nothing wrong in our units, and in GitLab Runner's with the drop-in",
  ignore: VERSION === 0,
  fn: async () => {
    await using units = await installedUnits();
    const verify = async () => {
      const files = Deno.readDirSync(units.path).filter(({ isFile }) => isFile)
        .map(({ name }) => `${units.path}/${name}`);
      const { text } = await systemdAnalyze(["verify", ...files], units.path);
      return text.split("\n").filter((line) => line.includes(units.path)).join("\n");
    };
    assert.equal(await verify(), "");
    await Deno.writeTextFile(`${units.path}/${DROP_IN}`, "[Service]\nNoSuchKey=yes\n");
    assert.match(await verify(), /libvirt-gci\.conf:2: Unknown key.*NoSuchKey/);
  },
});

/** The drop-in that the manual has an operator write so that a stop waits for jobs. */
async function drainDropIn(): Promise<string> {
  const page = await Deno.readTextFile(new URL("../docs/runner.md", import.meta.url));
  const [, text = ""] =
    /gitlab-runner\.service\.d\/drain\.conf <<'EOF'\n([^]*?)^EOF$/m.exec(page) ?? [];
  return text;
}

Deno.test({
  name:
    "systemd finds nothing wrong in the manual's drop-in for draining, which signals the runner alone",
  ignore: VERSION === 0,
  fn: async () => {
    const text = await drainDropIn();
    // Else each stage would get SIGQUIT too, and end by it.
    assert.match(text, /^KillSignal=SIGQUIT$/m);
    assert.match(text, /^KillMode=mixed$/m);
    await using units = await installedUnits();
    const unit = `${units.path}/gitlab-runner.service`;
    const file = `${unit}.d/drain.conf`;
    const verify = async () => (await systemdAnalyze(["verify", unit], units.path)).text;
    await Deno.writeTextFile(file, text);
    assert.doesNotMatch(await verify(), /drain\.conf/);
    await Deno.writeTextFile(file, text.replace("mixed", "no-such-mode"));
    assert.match(await verify(), /drain\.conf/);
  },
});

// Of 10, where 10 is no protection at all: with the unit alone it is 9.6.
Deno.test({
  name: "systemd finds GitLab Runner with the drop-in exposed at 3 at most, and without it above 9",
  ignore: VERSION < 250, // which rates files
  fn: async () => {
    await using units = await installedUnits();
    const rate = async (threshold: number): Promise<boolean> => {
      const unit = `${units.path}/gitlab-runner.service`;
      const args = ["security", "--offline=true", `--threshold=${threshold * 10}`, unit];
      return (await systemdAnalyze(args, units.path)).success;
    };
    assert(await rate(3));
    await Deno.remove(`${units.path}/${DROP_IN}`);
    assert(!await rate(9));
  },
});

/** What closes or opens files to who writes them; with `strict`, only /dev, /proc and /sys are open. */
const WRITABLE =
  /^(ProtectSystem|ProtectHome|ReadWrite\w+|BindPaths|TemporaryFileSystem|PrivateTmp|\w+Directory)=/;

Deno.test("the drop-in lets GitLab Runner write its settings, its state, its own /tmp and its directory in /run", async () => {
  const text = await Deno.readTextFile(new URL(DROP_IN, UNITS));
  assert.deepEqual(text.split("\n").filter((line) => WRITABLE.test(line)), [
    "RuntimeDirectory=gitlab-runner",
    "StateDirectory=gitlab-runner",
    "ProtectSystem=strict",
    "ReadWritePaths=/etc/gitlab-runner",
    "ProtectHome=tmpfs",
    "PrivateTmp=yes",
  ]);
  for (const closed of ["ProtectKernelTunables=yes", "ProtectControlGroups=yes"]) { // /proc, /sys
    assert(text.includes(`\n${closed}\n`), closed);
  }
});

Deno.test("the drop-in leaves GitLab Runner's processes what libvirt-gci needs", async () => {
  const text = await Deno.readTextFile(new URL(DROP_IN, UNITS));
  const keys = new Map([...text.matchAll(/^(\w+)=(.*)$/gm)].map(([, key, value]) => [key, value]));
  for (const key of ["AmbientCapabilities", "CapabilityBoundingSet"]) {
    assert.equal(keys.get(key), "CAP_NET_ADMIN");
  }
  assert.match(keys.get("RestrictAddressFamilies") ?? "", /\bAF_NETLINK\b/);
  // JavaScript is compiled while it runs; others' processes say whether they need a machine; and in a
  // user namespace no capability is one of the host's.
  for (const key of ["MemoryDenyWriteExecute", "ProtectProc", "ProcSubset", "PrivateUsers"]) {
    assert(!keys.has(key), key);
  }
});
