// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import {
  assertVerdict,
  command,
  createOverlay,
  e2eTest,
  job,
  runOnBed,
  TESTBED,
  virsh,
} from "./bed.ts";

const VM = "gci-e2e-vm";
const MAKE_BASE_IMAGE = new URL("../../make_base_image/make_base_image.sh", import.meta.url);

async function makeBaseImage(...args: string[]): Promise<Awaited<ReturnType<typeof command>>> {
  const log = await Deno.makeTempFile({ prefix: "libvirt-gci-e2e-" });
  const options = ["--pool", TESTBED.templatePool, "--log", log];
  try {
    return await command([MAKE_BASE_IMAGE.pathname, ...options, ...args], {
      LIBGUESTFS_BACKEND_SETTINGS: "force_tcg", // libguestfs takes any /dev/kvm for one that works
    });
  } finally {
    await Deno.remove(log);
  }
}

/** An installed machine that runs, as lcitool or virt-install leave it, on a disk of its own. */
async function startVm(): Promise<void> {
  await createOverlay(VM, "/var/lib/libvirt-gci-testbed/templates/lite.qcow2", "4G");
  const xml = await Deno.makeTempFile({ prefix: "libvirt-gci-e2e-" });
  await Deno.writeTextFile(
    xml,
    `<domain type="qemu"><name>${VM}</name><memory unit="MiB">512</memory>
      <os><type machine="q35">hvm</type></os><features><acpi/></features><cpu mode="maximum"/>
      <devices>
        <disk type="volume" device="disk"><driver name="qemu" type="qcow2"/>
          <source pool="${TESTBED.overlayPool}" volume="${VM}"/><target dev="vda" bus="virtio"/>
        </disk>
        <interface type="network"><source network="${TESTBED.network}"/><model type="virtio"/>
        </interface>
        <serial type="pty"/>
      </devices></domain>`,
  );
  await virsh("define", xml);
  await Deno.remove(xml);
  await virsh("start", VM);
}

e2eTest("make_base_image makes a template of a machine, and a job runs on it", async () => {
  await startVm();
  try {
    const made = await makeBaseImage(VM);
    assert.equal(made.status, 0, made.stdout + made.stderr);
    assert.match(made.stdout, /^\[OK\] gci-e2e-vm/m);
    const image = `/var/lib/libvirt-gci-testbed/templates/${VM}.qcow2`;
    const { stdout } = await command(["qemu-img", "info", image]);
    assert.doesNotMatch(stdout, /backing file/);

    const script = [
      "test ! -s /etc/machine-id && echo it has no machine-id",
      "test -L /etc/systemd/system/multi-user.target.wants/make-ssh-host-keys.service",
      "test /etc/ssh/ssh_host_ed25519_key -nt /etc/machine-id && echo its host key is new",
    ];
    const result = await runOnBed(job({ variables: [{ key: "DISTRO", value: VM }], script }), {
      settings: { ssh: { login: "template" } },
    });
    assert.match(result.logText, /\nit has no machine-id\n[^]*\nits host key is new\n/);
    assertVerdict(result, "success");

    const again = await makeBaseImage(VM);
    assert.equal(again.status, 1);
    assert.match(again.stdout, /^\[FAILED\] gci-e2e-vm/m);
  } finally {
    await command(["virsh", "-c", "qemu:///system", "destroy", VM]);
    await virsh("undefine", VM);
    await virsh("vol-delete", "--pool", TESTBED.overlayPool, VM);
    const { templatePool } = TESTBED;
    await command(["virsh", "-c", "qemu:///system", "vol-delete", `${VM}.qcow2`, templatePool]);
  }
}, { thorough: true });

e2eTest("make_base_image says which machine failed, and fails", async () => {
  const made = await makeBaseImage("no-such-vm");
  assert.equal(made.status, 1);
  assert.match(made.stdout, /^\[FAILED\] no-such-vm/m);
  assert.equal((await makeBaseImage()).status, 2);
}, { thorough: true });
