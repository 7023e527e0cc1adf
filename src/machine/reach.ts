// SPDX-License-Identifier: GPL-2.0-or-later
import { requireBooted } from "../guest/identity.ts";
import { waitForSsh } from "../guest/ready.ts";
import type { Domain } from "../libvirt/domain.ts";
import { type Context, withSignal } from "./context.ts";
import { watchKvm } from "./kvm/kvm_fault.ts";
import { loginTo } from "./login.ts";
import type { NewMachine } from "./machine.ts";
import { type MachineMetadata, writeMetadata } from "./metadata.ts";
import { refuseEnded, waitForAddress } from "./network/address.ts";
import { setFilter } from "./network/set_filter.ts";
import { agentOf, CHANNEL_ADDRESS } from "./ssh_channel.ts";
import type { MachineSettings } from "../settings/settings.ts";
import { NotYet, together, waitFor } from "../wait.ts";

/**
 * Waits until a command runs in the machine. Meanwhile, sets its network filter and then calls `finish`.
 * `mostSeconds` limits each wait. Gives the metadata that say that it is ready. Throws SystemFailure.
 */
export async function reach(
  domain: Domain,
  machine: NewMachine,
  { mostSeconds = Infinity, finish }: {
    readonly mostSeconds?: number;
    readonly finish?: (signal: AbortSignal) => Promise<void>;
  },
  context: Context,
): Promise<MachineMetadata> {
  const [reached] = await together(
    context.signal,
    (signal) => reachBySsh(domain, machine, mostSeconds, withSignal(context, signal)),
    async (signal: AbortSignal) => {
      if (await setFilter(domain, machine, context.host)) context.report.steps.end("filter");
      await finish?.(signal);
    },
  );
  const ready = { ...machine.metadata, ...reached };
  await writeMetadata(domain, ready);
  return ready;
}

/** Waits until a command runs in the machine. Gives its address and its host key. */
async function reachBySsh(
  domain: Domain,
  { metadata, settings, login, card }: NewMachine,
  mostSeconds: number,
  { host: { connection }, report: { log, progress, steps }, signal }: Context,
): Promise<Pick<MachineMetadata, "address" | "hostKey">> {
  const limits = { log, progress, signal };
  const { mac } = metadata;
  const { name: network, hostAddresses } = settings.network;
  const addressSeconds = Math.min(settings.timeouts.addressSeconds, mostSeconds);
  const sshSeconds = Math.min(settings.timeouts.sshSeconds, mostSeconds);
  const watch = watchKvm({ settings, connection });
  const address = network === "none"
    ? CHANNEL_ADDRESS
    : await waitForAddress(domain, { mac, network, hostAddresses, card, connection, watch }, {
      ...limits,
      timeoutSeconds: addressSeconds,
    });
  steps.end("address");
  const target = await loginTo(domain, { ...metadata, address }, login.key);
  const hostKey = await waitForSsh(target, async () => {
    await refuseEnded(domain);
    if (target.channel !== null) await watch(); // an address shows that KVM works
  }, {
    ...limits,
    // Without a network, this waits for the boot too.
    timeoutSeconds: sshSeconds + (target.channel === null ? 0 : addressSeconds),
  });
  steps.end("ssh");
  return { address, hostKey };
}

/** Waits until the guest has booted, as its guest agent sees it. Throws SystemFailure. */
export async function waitForBoot(
  domain: Domain,
  settings: MachineSettings,
  { host: { connection }, report: { log, progress, steps }, signal }: Context,
): Promise<void> {
  const watch = watchKvm({ settings, connection });
  const agent = agentOf(domain);
  await waitFor({
    goal: "finish its boot",
    awaited: "its boot",
    advice:
      "Install an SSH server in the template, and a qemu-guest-agent that allows guest-exec " +
      "(Fedora and RHEL forbid it in /etc/sysconfig/qemu-ga)",
    fault: "template",
    probe: async () => {
      await refuseEnded(domain);
      await watch();
      try {
        await requireBooted(agent, settings.ssh.port);
        return true;
      } catch (error) {
        return new NotYet(error instanceof Error ? error.message : String(error));
      }
    },
  }, { log, progress, signal, timeoutSeconds: bootSeconds(settings) });
  steps.end("boot");
}

/** How long a boot may take. */
export function bootSeconds({ timeouts: { addressSeconds, sshSeconds } }: MachineSettings): number {
  return addressSeconds + sshSeconds;
}
