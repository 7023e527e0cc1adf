// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import {
  assertVerdict,
  call,
  type Called,
  command,
  createOverlay,
  e2eTest,
  job,
  letGo,
  runningMachine,
  runOnBed,
  TESTBED,
  UNTIL_LET_GO,
  virsh,
} from "./bed.ts";

const VM = "gci-e2e-vm";
const TEMPLATES = "/var/lib/libvirt-gci-testbed/templates";
const DISK = `/var/lib/libvirt-gci-testbed/overlays/${VM}-disk`;
const TEMPLATE = `${TEMPLATES}/${VM}.qcow2`;
const MAKE_BASE_IMAGE = new URL("../../make_base_image/make_base_image.sh", import.meta.url);

/** Defines a machine with this disk, which boots nothing, so that it never writes. */
async function defineVm(name: string, disk: string): Promise<void> {
  const xml = await Deno.makeTempFile({ prefix: "libvirt-gci-e2e-" });
  await Deno.writeTextFile(
    xml,
    `<domain type="qemu"><name>${name}</name><memory unit="MiB">64</memory>
      <os><type>hvm</type><boot dev="network"/></os>
      <devices><disk type="file" device="disk"><driver name="qemu" type="qcow2"/>
        <source file="${disk}"/><target dev="vda" bus="virtio"/></disk></devices></domain>`,
  );
  await virsh("define", xml);
  await Deno.remove(xml);
}

e2eTest("a template is the disk of a started domain or of machines, never of both", async () => {
  const owner = "gci-e2e-owner";
  const machine = "gci-e2e-locked";
  await using undo = new AsyncDisposableStack();
  undo.defer(async () => void await virsh("undefine", owner));
  undo.defer(async () => void await call(["cleanup", "-m", machine]));
  await defineVm(owner, `${TEMPLATES}/lite.qcow2`);

  await virsh("start", owner);
  const refused = await call(["prepare", "-d", "lite", "-m", machine]);
  const { stdout } = await call(["doctor", "--json"]);
  await virsh("destroy", owner);
  assert.equal(refused.status, 2);
  assert.match(
    refused.stderr,
    /The domain "gci-e2e-owner" has the disk \S+lite\.qcow2 of the template .* open for writing/,
  );
  assert.match(refused.stderr, /What to do: Shut it down: virsh -c \S+ shutdown gci-e2e-owner,/);
  assert.match(
    stdout,
    /\\"lite.qcow2\\" is the disk of the domain \\"gci-e2e-owner\\", which is running/,
  );

  const prepared = await call(["prepare", "-d", "lite", "-m", machine]);
  assert.equal(prepared.status, 0, prepared.stderr);
  const started = await command(["virsh", "-c", "qemu:///system", "start", owner]);
  assert.match(started.stderr, /Failed to get "write" lock/);
});

/** make_base_image without libguestfs, which takes minutes: the template is a mere copy. */
async function makeBaseImage(...args: string[]): Promise<Called> {
  const directory = await Deno.makeTempDir({ prefix: "libvirt-gci-e2e-" });
  try {
    for (const program of ["virt-filesystems", "virt-sysprep", "virt-sparsify"]) {
      await Deno.symlink("/bin/true", `${directory}/${program}`);
    }
    const options = ["--pool", TESTBED.templatePool, "--log", `${directory}/log`];
    return await command([MAKE_BASE_IMAGE.pathname, ...options, ...args], {
      PATH: `${directory}:${Deno.env.get("PATH")}`,
    });
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

/** Removes the machine of which templates are made, its disk and its template. */
function undoVm(): AsyncDisposable {
  return {
    [Symbol.asyncDispose]: async () => {
      await command(["virsh", "-c", "qemu:///system", "undefine", VM]);
      for (const file of [DISK, TEMPLATE]) await Deno.remove(file).catch(() => {});
      await virsh("pool-refresh", TESTBED.overlayPool);
      await virsh("pool-refresh", TESTBED.templatePool);
    },
  };
}

/** The template's files that a QEMU has open although no other process can open them. */
async function deletedFiles(): Promise<string[]> {
  const links =
    `find /proc/[0-9]*/fd -lname '${TEMPLATE} (deleted)' -printf '%l\\n' 2>/dev/null | sort -u`;
  return (await command(["sh", "-c", links])).stdout.split("\n").filter((line) => line !== "");
}

/** Reads the largest programs of the guest from its disk, whatever is cached. */
const READ = "ls -S /usr/bin/* | sed -n 1,8p | " +
  "while read -r file; do dd if=$file iflag=direct bs=1M status=none; done | md5sum";

e2eTest("a new version of a template takes its place while a job runs on the old one", async () => {
  const settings = { ssh: { login: "template" } };
  const variables = [{ key: "DISTRO", value: VM }];
  const sizeOf = "echo size $(cat /sys/block/vda/size)";
  await using _ = undoVm();
  await command(["cp", "--reflink=auto", `${TEMPLATES}/lite.qcow2`, DISK]);
  await defineVm(VM, DISK);
  const made = await makeBaseImage(VM);
  assert.equal(made.status, 0, made.stdout + made.stderr);
  assert.equal(((await Deno.stat(TEMPLATE)).mode ?? 0) & 0o777, 0o400);
  await command(["qemu-img", "resize", DISK, "5G"]);

  const result = await runOnBed(
    job({
      variables,
      script: [
        sizeOf,
        `A=$(${READ}); echo "read $A"`,
        `echo; echo running\n${UNTIL_LET_GO}`,
        `B=$(${READ}); echo "again $B"; test "$A" = "$B"`,
        sizeOf,
      ],
    }),
    {
      settings,
      events: [{
        stage: "build_script",
        whenOutput: "\nrunning",
        action: async () => {
          const machine = await runningMachine("gitlab-proj-");
          const refused = await makeBaseImage(VM);
          assert.match(refused.stderr, /with --replace/);
          const replaced = await makeBaseImage("--replace", VM);
          assert.equal(replaced.status, 0, replaced.stdout + replaced.stderr);
          assert.deepEqual(await deletedFiles(), [`${TEMPLATE} (deleted)`]);
          const next = await runOnBed(job({ id: 4343, variables, script: [sizeOf] }), { settings });
          assert.match(next.logText, /^size 10485760$/m);
          assert.deepEqual(await deletedFiles(), [`${TEMPLATE} (deleted)`]);
          await letGo(machine);
        },
      }],
    },
  );
  assertVerdict(result, "success");
  assert.match(result.logText, /^read ([0-9a-f]{32}) [^]*^again \1 /m);
  assert.equal(result.logText.match(/^size 8388608$/gm)?.length, 2, result.logText);
  assert.deepEqual(await deletedFiles(), []);
}, { thorough: true });

e2eTest(
  "no new version takes the place of a template that anything else stands on but a warm image",
  async () => {
    await using _ = undoVm();
    await command(["qemu-img", "create", "-f", "qcow2", DISK, "1M"]);
    await virsh("pool-refresh", TESTBED.overlayPool);
    await defineVm(VM, DISK);
    assert.equal((await makeBaseImage(VM)).status, 0);

    for (const name of ["gci-e2e-other.qcow2", "gci-e2e-gone.overlay.libvirt-gci"]) {
      await createOverlay(name, TEMPLATE, "1M");
      const { status, stderr } = await makeBaseImage("--replace", VM);
      await virsh("vol-delete", "--pool", TESTBED.overlayPool, name);
      assert.equal(status, 1);
      assert.match(stderr, new RegExp(`in use: ${TEMPLATE}\n +volume \\S+/${name}\n`));
    }
    const lost = "/nonexistent/gci-e2e-lost.qcow2";
    await defineVm("gci-e2e-owner", lost);
    const blind = await makeBaseImage("--replace", VM);
    await virsh("undefine", "gci-e2e-owner");
    assert.equal(blind.status, 1);
    assert.match(
      blind.stderr,
      /\n +domain gci-e2e-owner, by its disk, which cannot be read: .*lost/,
    );

    const hidden = DISK.replace(VM, "gci-e2e-hidden"); // libvirt has not seen it yet
    await command(["qemu-img", "create", "-f", "qcow2", "-F", "qcow2", "-b", TEMPLATE, hidden]);
    const seen = await makeBaseImage("--replace", VM);
    await Deno.remove(hidden);
    assert.match(seen.stderr, /\n +volume \S+gci-e2e-hidden/);

    await defineVm("gci-e2e-owner", TEMPLATE);
    const { status, stderr } = await makeBaseImage("--replace", VM);
    await virsh("undefine", "gci-e2e-owner");
    assert.equal(status, 1);
    assert.match(stderr, /\n +domain gci-e2e-owner, by its disk \S+gci-e2e-vm.qcow2\n/);

    const warmDisk = `${VM}.0123456789.warm-disk.libvirt-gci`;
    await createOverlay(warmDisk, TEMPLATE, "1M");
    const replaced = await makeBaseImage("--replace", VM);
    await virsh("vol-delete", "--pool", TESTBED.overlayPool, warmDisk);
    assert.equal(replaced.status, 0, replaced.stderr);
  },
  { thorough: true },
);
