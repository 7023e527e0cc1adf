// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { poolPath } from "../src/shell.ts";

const SCRIPT = new URL("../make_base_image/make_base_image.sh", import.meta.url).pathname;

Deno.test("make_base_image.sh makes the pool where doctor would have it", async () => {
  const text = await Deno.readTextFile(SCRIPT);
  assert.equal(/ DEFAULT_POOL_PATH=(\S+)/.exec(text)?.[1], poolPath("base_imgs"));
});

/** Says of a host with the machine `vm`, the machine `other` and the pool `templates` what virsh would. */
const VIRSH = `#!/bin/sh
shift 3 # --quiet --connect URI
echo "$*" >>"$HOST/calls"
case "$*" in
  pool-info*) echo "State: running" ;;
  pool-dumpxml*) echo "<pool type='dir'><target><path>$HOST/pool</path></target></pool>" ;;
  pool-list*) echo templates ;;
  dominfo*) printf 'Name: vm\\nPersistent: %s\\nManaged save: no\\n' "\${PERSISTENT:-yes}" ;;
  "list --all"*) printf 'vm\\nother\\n' ;;
  "list --transient"*) ;;
  list*) echo vm ;;
  "domblklist --details other") [ -z "$DISK" ] || echo "$DISK" ;;
  dumpxml*)
    echo "<domain><devices><disk type='file' device='disk'><driver type='qcow2'/>"
    echo "<source file='$HOST/vm.qcow2'/><target dev='vda'/></disk></devices></domain>"
    ;;
  vol-path*) exit 1 ;;
esac
`;

/** A host without libvirt: its directory, and what the script does there. */
interface Host extends AsyncDisposable {
  readonly directory: string;
  readonly image: (...args: string[]) => Promise<void>;
  readonly replace: (env?: Record<string, string>) => Promise<{ status: number; text: string }>;
}

async function openHost(): Promise<Host> {
  const directory = await Deno.makeTempDir({ prefix: "libvirt-gci-test-" });
  for (const name of ["bin", "pool"]) await Deno.mkdir(`${directory}/${name}`);
  for (const [name, text] of [["virsh", VIRSH], ["virt-sysprep", "#!/bin/sh\n"]] as const) {
    await Deno.writeTextFile(`${directory}/bin/${name}`, text, { mode: 0o755 });
  }
  const run = async (words: readonly string[], env: Record<string, string> = {}) => {
    const [program = "", ...args] = words;
    const PATH = `${directory}/bin:${Deno.env.get("PATH")}`;
    const { code, stdout, stderr } = await new Deno.Command(program, {
      args,
      env: { ...env, PATH, HOST: directory, SUPERMIN_KERNEL: "any" },
    }).output();
    const decoder = new TextDecoder();
    return { status: code, text: decoder.decode(stdout) + decoder.decode(stderr) };
  };
  const image = async (...args: string[]): Promise<void> => {
    const { status, text } = await run(["qemu-img", "create", "-q", "-f", "qcow2", ...args]);
    assert.equal(status, 0, text);
  };
  await image(`${directory}/vm.qcow2`, "1M");
  await image(`${directory}/pool/vm.qcow2`, "1M"); // the template that there is
  const options = ["--connect", "test:///default", "--pool", "templates", "--timeout", "1"];
  const words = [SCRIPT, ...options, "--log", `${directory}/log`, "--replace", "vm"];
  return {
    directory,
    image,
    replace: (env) => run(words, env),
    [Symbol.asyncDispose]: () => Deno.remove(directory, { recursive: true }),
  };
}

const isMissing = (program: string): boolean =>
  (Deno.env.get("PATH") ?? "").split(":").every((directory) => {
    try {
      return !Deno.statSync(`${directory}/${program}`).isFile;
    } catch {
      return true;
    }
  });
const ignore = ["qemu-img", "xmllint"].some(isMissing);

/** The head of an image that QEMU cannot read. */
const BROKEN_QCOW2 = Uint8Array.of(0x51, 0x46, 0x49, 0xfb, 0, 0, 0, 99, ...Array(96).fill(0));

Deno.test("make_base_image does not replace a template while a disk cannot be read", {
  ignore,
}, async () => {
  await using host = await openHost();
  await Deno.writeFile(`${host.directory}/pool/broken.qcow2`, BROKEN_QCOW2);
  const { status, text } = await host.replace();
  assert.equal(status, 1);
  assert.match(text, /template is in use: .*\n +volume, which cannot be read: .*broken.qcow2\n/);
});

Deno.test("make_base_image does not replace a template of whose user libvirt does not know", {
  ignore,
}, async () => {
  await using host = await openHost();
  const template = `${host.directory}/pool/vm.qcow2`;
  await host.image("-b", template, "-F", "qcow2", `${host.directory}/pool/above.qcow2`);
  const { status, text } = await host.replace();
  assert.equal(status, 1);
  assert.match(text, /template is in use: .*\n +volume .*above.qcow2\n/);
});

Deno.test("make_base_image does not replace a template while a machine's disk cannot be found", {
  ignore,
}, async () => {
  await using host = await openHost();
  const { status, text } = await host.replace({ DISK: "volume disk vda lost.qcow2" });
  assert.equal(status, 1);
  assert.match(text, /in use: .*\n +domain other, by its disk, which cannot be read: lost.qcow2\n/);
});

Deno.test("make_base_image does not shut down a machine that is gone then", {
  ignore,
}, async () => {
  await using host = await openHost();
  const { status, text } = await host.replace({ PERSISTENT: "no" });
  assert.equal(status, 1);
  assert.match(text, /vm: is transient/);
  assert.doesNotMatch(await Deno.readTextFile(`${host.directory}/calls`), /^shutdown/m);
});

Deno.test("make_base_image goes on where nothing stands on the template", { ignore }, async () => {
  await using host = await openHost();
  const { text } = await host.replace();
  assert.doesNotMatch(text, /in use/);
  assert.match(text, /vm: still .* after virsh shutdown/); // as the guest goes on
});

Deno.test("make_base_image makes no template that an added one of its name would hide", {
  ignore,
}, async () => {
  await using host = await openHost();
  const info = (name: string) => `${host.directory}/pool/${name}.template-info.libvirt-gci`;
  await Deno.writeTextFile(info("vm.old.0123456789"), "{}"); // of the template vm.old
  assert.match((await host.replace()).text, /vm: still .* after virsh shutdown/);
  await Deno.writeTextFile(info("vm.0123456789"), "{}");
  const { status, text } = await host.replace();
  assert.equal(status, 1);
  assert.match(text, /vm: "libvirt-gci template add" has made a template of this name/);
  assert.match(text, /\n?Remove that one first: libvirt-gci template remove vm\n/);
});
