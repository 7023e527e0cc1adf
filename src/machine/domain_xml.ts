// SPDX-License-Identifier: GPL-2.0-or-later
import { type MachineMetadata, metadataXml } from "./metadata.ts";
import type { Card } from "./network/card.ts";
import type { MachineSettings } from "../settings/settings.ts";
import { type Xml, xml } from "../xml.ts";

/** The name of the channel over which a machine without a network card is reached. */
export const SSH_CHANNEL = "org.libvirt-gci.ssh.0";

/** All that the domain XML of a machine is made of, but for its disk. */
export interface MachineDomain {
  readonly name: string;
  readonly metadata: MachineMetadata;
  readonly settings: MachineSettings;
  /** The network filter of its card; null where the machine is not isolated. */
  readonly filter: string | null;
  /** The card of the network that the filter is for; null where it learns the address from DHCP. */
  readonly card: Card | null;
  /** Paths on the hypervisor's host. */
  readonly consolePath: string;
  /** The image for cloud-init; null where the guest gets none. */
  readonly seedPath: string | null;
  /** The systemd credential with files for the guest; null where it gets none. */
  readonly credentialPath: string | null;
  /** Where the UEFI firmware keeps its variables; null is a BIOS. */
  readonly nvramPath: string | null;
}

/** The same, with its disk. */
export interface DomainOnDisk extends MachineDomain {
  readonly overlayPath: string;
  /** Whether its RAM is to be saved and resumed: its card is plugged in only after that. */
  readonly isWarm?: boolean;
}

/**
 * The machine as domain XML (https://libvirt.org/formatdomain.html).
 *
 * The overlay's cache mode is `unsafe`, since nobody reads it after a crash of the host: the job is
 * lost with it. Nothing keeps a machine that powers off: with its domain it is gone. One whose kernel
 * panics is kept as it is, to be looked at until cleanup.
 */
export function domainXml(machine: DomainOnDisk): Xml {
  const { metadata, settings } = machine;
  return xml`
    <domain type="${settings.domainType}">
      <name>${machine.name}</name>
      ${machine.isWarm === true && genidXml()}
      <title>${titleOf(metadata)}</title>
      <metadata>${metadataXml(metadata)}</metadata>
      <memory unit="MiB">${settings.memoryMib}</memory>
      <vcpu>${settings.vcpus}</vcpu>
      ${cpuSharesXml(settings)}
      ${credentialXml(machine.credentialPath)}
      ${osXml(machine)}
      <features>
        <acpi/>
      </features>
      ${cpuXml(machine)}
      <clock offset="utc"/>
      <on_poweroff>destroy</on_poweroff>
      <on_reboot>restart</on_reboot>
      <on_crash>preserve</on_crash>
      <devices>
        <disk type="file" device="disk">
          <driver name="qemu" type="qcow2" cache="unsafe" discard="unmap"/>
          <source file="${machine.overlayPath}"/>
          <target dev="vda" bus="virtio"/>
          ${iotuneXml(settings)}
        </disk>
        ${seedXml(machine.seedPath)}
        ${accessXml(machine)}
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
        ${rngXml()}
        <memballoon model="none"/>
        ${Deno.build.arch === "x86_64" && postMortemXml()}
      </devices>
    </domain>
  `;
}

/** What the title of the domain says. */
export function titleOf({ job, project, template }: MachineMetadata): string {
  const what = job === "" ? template : `job ${job} of ${project} on ${template}`;
  return `libvirt-gci: ${what}`.replace(/\s+/g, " "); // libvirt refuses a line feed in a title
}

function cpuSharesXml({ cpu: { shares: cpuShares } }: MachineSettings): Xml | null {
  return cpuShares === null ? null : xml`
    <cputune>
      <shares>${cpuShares}</shares>
    </cputune>
  `;
}

/**
 * libvirt chooses the firmware; without a word of secure boot, one that boots only what others signed
 * (https://libvirt.org/formatdomain.html#bios-bootloader).
 */
function osXml({ settings, nvramPath }: MachineDomain): Xml {
  const machine = settings.machineType ?? (Deno.build.arch === "x86_64" ? "q35" : null);
  const type = machine === null
    ? xml`<type>hvm</type>`
    : xml`<type machine="${machine}">hvm</type>`;
  return nvramPath === null ? xml`<os>${type}</os>` : xml`
    <os firmware="efi">
      ${type}
      <firmware>
        <feature enabled="no" name="secure-boot" />
      </firmware>
      <nvram>${nvramPath}</nvram>
    </os>
  `;
}

/**
 * Without vmx (Intel) and svm (AMD), the guest runs no virtual machines of its own. Emulated, a guest
 * without svm crashes (seen with QEMU 7.2), and its own machines are nothing of the host's.
 */
function cpuXml({ settings }: MachineDomain): Xml {
  const { domainType } = settings;
  const mode = settings.cpu.mode ?? (domainType === "kvm" ? "host-passthrough" : "maximum");
  if (settings.nested || domainType !== "kvm" || Deno.build.arch !== "x86_64") {
    return xml`
      <cpu mode="${mode}" />
    `;
  }
  return xml`
    <cpu mode="${mode}">
      <feature policy="disable" name="vmx" />
      <feature policy="disable" name="svm" />
    </cpu>
  `;
}

/**
 * A file for systemd in the guest (https://systemd.io/CREDENTIALS), 252 or newer. As a string of
 * SMBIOS, which systemd reads too, it would be an argument of QEMU, for all of the host to see.
 */
function credentialXml(path: string | null): Xml | null {
  return path === null ? null : xml`
    <sysinfo type="fwcfg">
      <entry name="opt/io.systemd.credentials/tmpfiles.extra" file="${path}" />
    </sysinfo>
  `;
}

function iotuneXml({ disk }: MachineSettings): Xml | null {
  if (disk.mibPerSecond === null && disk.iops === null) return null;
  const bytes = disk.mibPerSecond && disk.mibPerSecond * 1024 ** 2;
  return xml`
    <iotune>
      ${bytes && xml`<total_bytes_sec>${bytes}</total_bytes_sec>`}
      ${disk.iops && xml`<total_iops_sec>${disk.iops}</total_iops_sec>`}
    </iotune>
  `;
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

/** By which the guest's kernel learns that it is another machine; QEMU has it where it has ACPI. */
function genidXml(): Xml | null {
  return Deno.build.arch !== "x86_64" ? null : xml`
    <genid />
  `;
}

/** The way into the machine: its card or, without a network, a channel. */
function accessXml(machine: DomainOnDisk): Xml | null {
  if (machine.settings.network.name === "none") return sshChannelXml();
  return machine.isWarm === true ? null : interfaceXml(withFilterLater(machine));
}

/**
 * The machine, as its card is at first: without the filter, if that can come later. libvirt needs a second
 * to set it, in which the guest goes on. It cannot where libvirt learns the address from the packets of
 * DHCP, which it must see.
 */
export function withFilterLater(machine: MachineDomain): MachineDomain {
  return machine.card === null ? machine : { ...machine, filter: null };
}

/**
 * The machine's card. An isolated card's port of the bridge passes nothing to other isolated ports
 * (libvirt 6.1).
 */
export function interfaceXml({ metadata, settings, filter, card }: MachineDomain): Xml {
  const kibPerSecond = settings.network.mibPerSecond && settings.network.mibPerSecond * 1024;
  return xml`
    <interface type="network">
      <mac address="${metadata.mac}"/>
      <source network="${settings.network.name}"/>
      <model type="virtio"/>
      ${settings.network.isolate && xml`
        <port isolated="yes" />
      `}
      ${filter === null ? null : filterrefXml(filter, card)}
      ${kibPerSecond &&
        xml`
          <bandwidth>
            <inbound average="${kibPerSecond}" />
            <outbound average="${kibPerSecond}" />
          </bandwidth>
        `}
    </interface>
  `;
}

/**
 * The one address that passes. Where none is known it is the one that DHCP gives, for which libvirt
 * opens the filter a second later; until then, only DHCP passes.
 */
function filterrefXml(filter: string, card: Card | null): Xml {
  const [name, value] = card === null ? ["CTRL_IP_LEARNING", "dhcp"] : ["IP", card.address];
  return xml`
    <filterref filter="${filter}">
      <parameter name="${name}" value="${value}" />
    </filterref>
  `;
}

/**
 * What tells of a machine that fails: a screen to take a picture of, the cheapest that one can be
 * taken of while the guest has no driver for it, and a device by which a kernel says that it panics.
 */
function postMortemXml(): Xml {
  return xml`
    <video>
      <model type="vga" />
    </video>
    <panic model="isa" />
  `;
}

/**
 * Random numbers of the host's, which a guest that boots needs some hundred bytes of: its own generator
 * goes on from there. A guest that asks for more and more gets 64 KiB a second, or QEMU would read them
 * for it by the host's processors, beside those that the machine has.
 */
function rngXml(): Xml {
  return xml`
    <rng model="virtio">
      <rate bytes="65536" period="1000" />
      <backend model="random">/dev/urandom</backend>
    </rng>
  `;
}

function sshChannelXml(): Xml {
  return xml`
    <channel type="unix">
      <target type="virtio" name="${SSH_CHANNEL}" />
    </channel>
  `;
}
