// SPDX-License-Identifier: GPL-2.0-or-later
import { type MachineMetadata, metadataXml } from "./metadata.ts";
import type { Card } from "./network/card.ts";
import type { MachineSettings } from "../settings/settings.ts";
import { type Xml, xml } from "../xml.ts";

/** The channel through which a machine without a network card is reached. */
export const SSH_CHANNEL = "org.libvirt-gci.ssh.0";

/** A machine as its domain XML needs it, without its disk. Paths are on the hypervisor's host. */
export interface MachineDomain {
  readonly name: string;
  readonly metadata: MachineMetadata;
  readonly settings: MachineSettings;
  /** The network filter of its card; null if the machine is not isolated. */
  readonly filter: string | null;
  /** The card that the filter is for; null if libvirt learns the address from DHCP. */
  readonly card: Card | null;
  readonly consolePath: string;
  /** The image for cloud-init, if the guest gets one. */
  readonly seedPath: string | null;
  /** The systemd credential, if the guest gets one. */
  readonly credentialPath: string | null;
  /** The UEFI firmware's variables; null for a BIOS. */
  readonly nvramPath: string | null;
}

/** A machine with its disk. */
export interface DomainOnDisk extends MachineDomain {
  readonly overlayPath: string;
  /** Whether its RAM will be saved. A resumed machine gets its card later. */
  readonly isWarm?: boolean;
}

const IS_X86 = Deno.build.arch === "x86_64";

/**
 * The machine as domain XML (https://libvirt.org/formatdomain.html). The overlay's cache mode is
 * `unsafe`, because no one reads it after a crash of the host. A machine that powers off is gone. One
 * whose kernel panics stays as it is until cleanup, so that it can be examined.
 */
export function domainXml(machine: DomainOnDisk): Xml {
  const { metadata, settings } = machine;
  // By the generation id, the guest's kernel learns that it was cloned. QEMU has one only with ACPI.
  return xml`
    <domain type="${settings.domainType}">
      <name>${machine.name}</name>
      ${machine.isWarm === true && IS_X86 && xml`<genid />`}
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
      ${cpuXml(settings)}
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
        ${RNG}
        <memballoon model="none"/>
        ${IS_X86 && POST_MORTEM}
      </devices>
    </domain>
  `;
}

/** The domain's title. */
export function titleOf({ job, project, template }: MachineMetadata): string {
  const what = job === "" ? template : `job ${job} of ${project} on ${template}`;
  return `libvirt-gci: ${what}`.replace(/\s+/g, " "); // libvirt refuses a line feed in a title
}

function cpuSharesXml({ cpu: { shares } }: MachineSettings): Xml | null {
  return shares === null ? null : xml`
    <cputune>
      <shares>${shares}</shares>
    </cputune>
  `;
}

/**
 * libvirt chooses the firmware. Secure boot is switched off, or libvirt may choose a firmware that
 * boots only signed systems (https://libvirt.org/formatdomain.html#bios-bootloader).
 */
function osXml({ settings, nvramPath }: MachineDomain): Xml {
  const machine = settings.machineType ?? (IS_X86 ? "q35" : null);
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
 * Without vmx (Intel) and svm (AMD), the guest cannot run VMs itself. An emulated guest keeps them: it
 * crashes without svm (QEMU 7.2), and its VMs do not reach the host's KVM.
 */
function cpuXml({ domainType, nested, cpu }: MachineSettings): Xml {
  const mode = cpu.mode ?? (domainType === "kvm" ? "host-passthrough" : "maximum");
  if (nested || domainType !== "kvm" || !IS_X86) return xml`<cpu mode="${mode}" />`;
  return xml`
    <cpu mode="${mode}">
      <feature policy="disable" name="vmx" />
      <feature policy="disable" name="svm" />
    </cpu>
  `;
}

/**
 * A file for systemd in the guest (https://systemd.io/CREDENTIALS). systemd also reads SMBIOS strings,
 * but those would be arguments of QEMU, which every process of the host sees.
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

/** A virtio disk, not a CD-ROM: kernels of cloud images may lack a driver for SATA. */
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

/** The machine's card or, without a network, the channel for SSH. */
function accessXml(machine: DomainOnDisk): Xml | null {
  if (machine.settings.network.name === "none") {
    return xml`
      <channel type="unix">
        <target type="virtio" name="${SSH_CHANNEL}" />
      </channel>
    `;
  }
  return machine.isWarm === true ? null : interfaceXml(withFilterLater(machine));
}

/**
 * The machine with a card without its filter, if the filter can be set later. libvirt needs a second to
 * set one, during which the guest can boot. If libvirt learns the address from DHCP, the filter must be
 * there first, or libvirt does not see the packets.
 */
export function withFilterLater(machine: MachineDomain): MachineDomain {
  return machine.card === null ? machine : { ...machine, filter: null };
}

/** The machine's card. Isolated ports of a bridge exchange no frames (libvirt 6.1). */
export function interfaceXml({ metadata, settings, filter, card }: MachineDomain): Xml {
  const kibPerSecond = settings.network.mibPerSecond && settings.network.mibPerSecond * 1024;
  return xml`
    <interface type="network">
      <mac address="${metadata.mac}"/>
      <source network="${settings.network.name}"/>
      <model type="virtio"/>
      ${settings.network.isolate && xml`<port isolated="yes" />`}
      ${filter === null ? null : filterrefXml(filter, card)}
      ${kibPerSecond && xml`
        <bandwidth>
          <inbound average="${kibPerSecond}" />
          <outbound average="${kibPerSecond}" />
        </bandwidth>
      `}
    </interface>
  `;
}

/** The filter lets one address pass: the card's, or the one that libvirt learns from DHCP. */
function filterrefXml(filter: string, card: Card | null): Xml {
  const [name, value] = card === null ? ["CTRL_IP_LEARNING", "dhcp"] : ["IP", card.address];
  return xml`
    <filterref filter="${filter}">
      <parameter name="${name}" value="${value}" />
    </filterref>
  `;
}

/** For post-mortems: the cheapest screen of which libvirt takes pictures, and a report of panics. */
const POST_MORTEM = xml`
  <video>
    <model type="vga" />
  </video>
  <panic model="isa" />
`;

/** Random numbers for the boot, limited to 64 KiB/s because the host's CPUs produce them. */
const RNG = xml`
  <rng model="virtio">
    <rate bytes="65536" period="1000" />
    <backend model="random">/dev/urandom</backend>
  </rng>
`;
