// SPDX-License-Identifier: GPL-2.0-or-later
import { type Xml, xml } from "../xml.ts";
import { type MachineRecord, recordXml } from "./record.ts";

/** All that the domain XML of a machine is made of. */
export interface MachineDomain {
  readonly name: string;
  readonly record: MachineRecord;
  /** `kvm`, `qemu`, or `test` for libvirt's test driver. */
  readonly domainType: string;
  readonly vcpus: number;
  readonly memoryMib: number;
  /** Null is libvirt's own choice. */
  readonly machineType: string | null;
  readonly cpuMode: string;
  readonly network: string;
  /** Paths on the hypervisor's host. */
  readonly overlayPath: string;
  readonly consolePath: string;
  /** Null without cloud-init. */
  readonly seedPath: string | null;
  /** Where the UEFI firmware keeps its variables; null is a BIOS. */
  readonly nvramPath: string | null;
}

/**
 * The machine as domain XML (https://libvirt.org/formatdomain.html).
 *
 * The overlay's cache mode is `unsafe`, since nobody reads it after a crash of the host: the job is
 * lost with it. Nothing keeps a machine that panics or powers off: with its domain it is gone.
 */
export function domainXml(machine: MachineDomain): Xml {
  const { record } = machine;
  return xml`
    <domain type="${machine.domainType}">
      <name>${machine.name}</name>
      <title>${title(record)}</title>
      <metadata>${recordXml(record)}</metadata>
      <memory unit="MiB">${machine.memoryMib}</memory>
      <vcpu>${machine.vcpus}</vcpu>
      ${osXml(machine)}
      <features>
        <acpi/>
      </features>
      <cpu mode="${machine.cpuMode}"/>
      <clock offset="utc"/>
      <on_poweroff>destroy</on_poweroff>
      <on_reboot>restart</on_reboot>
      <on_crash>destroy</on_crash>
      <devices>
        <disk type="file" device="disk">
          <driver name="qemu" type="qcow2" cache="unsafe" discard="unmap"/>
          <source file="${machine.overlayPath}"/>
          <target dev="vda" bus="virtio"/>
        </disk>
        ${seedXml(machine.seedPath)}
        <interface type="network">
          <mac address="${record.mac}"/>
          <source network="${machine.network}"/>
          <model type="virtio"/>
        </interface>
        <serial type="pty">
          <log file="${machine.consolePath}" append="off"/>
          <target port="0"/>
        </serial>
        <console type="pty">
          <target type="serial" port="0"/>
        </console>
        <channel type="unix">
          <target type="virtio" name="org.qemu.guest_agent.0"/>
        </channel>
        <rng model="virtio">
          <backend model="random">/dev/urandom</backend>
        </rng>
        <memballoon model="none"/>
      </devices>
    </domain>
  `;
}

/** A network card's address of QEMU's own range (52:54:00), which libvirt uses too. */
export function randomMac(): string {
  const [a, b, c] = crypto.getRandomValues(new Uint8Array(3));
  return [0x52, 0x54, 0x00, a, b, c].map((byte) => (byte ?? 0).toString(16).padStart(2, "0"))
    .join(":");
}

function title({ job, project, template }: MachineRecord): string {
  const what = job === "" ? template : `job ${job} of ${project} on ${template}`;
  return `libvirt-gci: ${what}`.replace(/\s+/g, " "); // libvirt refuses a line feed in a title
}

function osXml({ machineType, nvramPath }: MachineDomain): Xml {
  const type = machineType === null
    ? xml`<type>hvm</type>`
    : xml`<type machine="${machineType}">hvm</type>`;
  return nvramPath === null
    ? xml`<os>${type}</os>`
    : xml`<os firmware="efi">${type}<nvram>${nvramPath}</nvram></os>`;
}

/** As a virtio disk, not a CD-ROM: the kernels of cloud images may have no driver for SATA. */
function seedXml(path: string | null): Xml | null {
  return path === null ? null : xml`
    <disk type="file" device="disk">
      <driver name="qemu" type="raw" />
      <source file="${path}" />
      <target dev="vdb" bus="virtio" />
      <readonly />
    </disk>
  `;
}
