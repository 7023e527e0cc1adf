// SPDX-License-Identifier: GPL-2.0-or-later
import { decode } from "fast-png";
import assert from "node:assert/strict";
import { rootOf } from "../../src/read_xml.ts";
import { atMost, call, type Called, e2eTest, type Settings, until, virsh } from "./bed.ts";

/** Gives the test a machine's name, settings with a directory for post-mortems, and cleans up. */
function postMortemTest(
  name: string,
  test: (bed: { readonly machine: string; readonly settings: Settings }) => Promise<void>,
  options: { readonly thorough?: boolean } = {},
): void {
  e2eTest(name, async () => {
    const directory = await Deno.makeTempDir({ prefix: "libvirt-gci-e2e-pm-" });
    const machine = "gci-e2e-post-mortem";
    const settings = { post_mortem: { dir: directory, count: 3 } };
    try {
      await test({ machine, settings });
      const { mode } = await Deno.stat(directory);
      assert.equal((mode ?? 0) & 0o777, 0o700);
    } finally {
      await call(["cleanup", "-m", machine], { settings });
      await Deno.remove(directory, { recursive: true });
    }
  }, options);
}

/** The files of every post-mortem; a guest that answers adds `agent.json`. */
const FILES = [
  "console.log",
  "domain.xml",
  "project",
  "qemu.log",
  "reason.txt",
  "screenshot.png",
];

/** The files of the post-mortem that the call names. */
async function filesOf({ stderr }: Called): Promise<Map<string, Uint8Array>> {
  const path = /on its host, in "(.*)"$/m.exec(stderr)?.[1];
  assert(path, stderr);
  const names = (await Array.fromAsync(Deno.readDir(path), ({ name }) => name)).sort();
  const contents = await Promise.all(names.map((name) => Deno.readFile(`${path}/${name}`)));
  return new Map(names.map((name, i) => [name, contents[i] ?? new Uint8Array()]));
}

function text(files: Map<string, Uint8Array>, name: string): string {
  return new TextDecoder().decode(files.get(name));
}

/** Whether the picture shows more than one colour. */
function showsSomething(png: Uint8Array | undefined): boolean {
  assert(png);
  const { data, channels } = decode(png);
  const first = data.slice(0, channels).join();
  return data.some((_, i) => i % channels === 0 && data.slice(i, i + channels).join() !== first);
}

postMortemTest(
  "a kernel that panics is noticed within seconds, and all is kept of it but its agent's words",
  async ({ machine, settings }) => {
    const options = { settings };
    assert.equal((await call(["prepare", "-d", "lite", "-m", machine], options)).status, 0);
    const start = performance.now();
    // The sleep lets the last words out: a kernel that panics drops what the port has not sent.
    const panic = "echo last words >/dev/ttyS0; sleep 1; echo c >/proc/sysrq-trigger";
    const ran = await call(["run", "-m", machine, "--", "sudo", "sh", "-c", panic], options);
    const seconds = (performance.now() - start) / 1000;
    assert(seconds < atMost(5), `it took ${seconds} s`);
    assert.equal(ran.status, 255);
    assert.match(ran.stderr, /^libvirt-gci: The machine ".*" crashed: its kernel panicked$/m);
    assert.match(ran.stderr, /^Its kernel says: .*Kernel panic - not syncing: sysrq triggered/m);
    assert.match(ran.stderr, /^ {2}\| .* entry_SYSCALL_64/m);

    const files = await filesOf(ran);
    assert.deepEqual([...files.keys()], FILES);
    assert.match(text(files, "console.log"), /Linux version [^]*last words[^]*Kernel panic/);
    assert.equal(rootOf(text(files, "domain.xml"))?.name, "domain");
    assert(showsSomething(files.get("screenshot.png")));
    assert.match(text(files, "reason.txt"), /kernel panicked[^]*- agent\.json: .*not running/);

    const listed = await call(["list", "--json"], options);
    const ours = JSON.parse(listed.stdout).find((it: { machine: string }) =>
      it.machine === machine
    );
    assert.equal(ours.state, "crashed");
    const again = await call(["run", "-m", machine, "--", "true"], options);
    assert.equal(again.status, 255);
    assert.match(again.stderr, /its kernel panicked/);
    assert.deepEqual(await filesOf(again), files);
  },
  { thorough: true },
);

postMortemTest(
  "a machine that powers off in run says so, and its console is kept",
  async ({ machine, settings }) => {
    const options = { settings };
    assert.equal((await call(["prepare", "-d", "lite", "-m", machine], options)).status, 0);
    const ran = await call(
      ["run", "-m", machine, "--", "sudo", "sh", "-c", "poweroff -f; sleep 60"],
      options,
    );
    assert.equal(ran.status, 255);
    assert.match(ran.stderr, /The machine ".*" ended: it powered off/);
    assert.match(ran.stderr, /^libvirt logged for it: it powered off\.$/m);
    assert.match(ran.stderr, /^ {2}\| .*reboot: Power down$/m);
    const files = await filesOf(ran);
    assert.deepEqual([...files.keys()], ["console.log", "project", "qemu.log", "reason.txt"]);
    assert.match(text(files, "console.log"), /Linux version [^]*reboot: Power down/);
    assert.match(
      text(files, "reason.txt"),
      /^- domain\.xml: The machine ".*" does not exist, or has ended$/m,
    );
  },
  { thorough: true },
);

postMortemTest(
  "a machine whose SSH never comes is kept whole, before prepare removes it",
  async ({ machine, settings }) => {
    const options = {
      settings: { ...settings, ssh: { port: 2222 }, timeouts: { ssh_seconds: 3 } },
    };
    const prepared = await call(["prepare", "-d", "lite", "-m", machine], options);
    assert.equal(prepared.status, 2);
    assert.match(prepared.stderr, /did not start\nbecause: .* did not accept an SSH connection/);
    const files = await filesOf(prepared);
    assert.deepEqual([...files.keys()], ["agent.json", ...FILES]);
    const answers = JSON.parse(text(files, "agent.json"));
    assert.equal(answers["guest-get-osinfo"].id, "debian");
    assert.match(JSON.stringify(answers["guest-network-get-interfaces"]), /192\.168\.213\./);
    assert.match(text(files, "console.log"), /Linux version /);
    assert.match(text(files, "qemu.log"), /qemu-system/);
    assert(showsSomething(files.get("screenshot.png")));
    assert.doesNotMatch(text(files, "reason.txt"), /^Missing, with the reasons/m);
    assert.doesNotMatch(
      [...files.values()].map((it) => new TextDecoder().decode(it)).join(),
      /PRIVATE KEY/,
    );
  },
  { thorough: true },
);

/** Puts another in the guest agent's place, which greets as it does and then gives 120 kB of arrays. */
const FAKE_AGENT = `
sudo sed -i /qemu_ga/d /etc/inittab; sudo kill -HUP 1; sudo pkill qemu-ga; sleep 1
name=$(grep -l org.qemu.guest_agent.0 /sys/class/virtio-ports/*/name)
port=\${name%/name} port=/dev/\${port##*/}
sudo setsid perl -e '
  open(my $port, "+<", $ARGV[0]) or die;
  my $arrays = "{\\"return\\":[" . ("[]," x 40000) . "[]]}\\n";
  my $asked = "";
  for (;;) {
    if (!sysread($port, $asked, 4096, length($asked))) { sleep(1); next }
    while ($asked =~ s/^([^\\n]*)\\n//) {
      my $answer = $1 =~ /guest-sync.*"id" *: *(\\d+)/ ? "{\\"return\\":$1}\\n" : $arrays;
      for (my $at = 0; $at < length($answer);) { $at += syswrite($port, $answer, 65536, $at) || 0 }
    }
  }
' "$port" </dev/null >/dev/null 2>&1 &
`;

postMortemTest(
  "what a fake guest agent says is not kept, and loses nothing else",
  async ({ machine, settings }) => {
    const options = { settings };
    assert.equal((await call(["prepare", "-d", "lite", "-m", machine], options)).status, 0);
    const faked = await call(["run", "-m", machine, "--", "sh", "-c", FAKE_AGENT], options);
    assert.equal(faked.status, 0, faked.stderr);
    const asked = ["qemu-agent-command", machine, '{"execute":"guest-info"}'];
    await until(async () => (await virsh(...asked).catch(() => "")).includes("[],[],[]"), {
      what: "the fake agent answers",
    });
    const lost = ["run", "-m", machine, "--", "sh", "-c", "kill -KILL $PPID; sleep 5"];
    const ran = await call(lost, options);
    assert.equal(ran.status, 255, ran.stderr);
    const files = await filesOf(ran);
    assert.deepEqual([...files.keys()], FILES);
    assert.match(text(files, "reason.txt"), /^- agent\.json: .*more than 65536 bytes/m);
  },
  { thorough: true },
);
