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
  let isFiltered = false;
  let isEarly = false; // whether SSH was faster than the filter
  const [reached] = await together(
    context.signal,
    async (signal: AbortSignal) => {
      const found = await reachBySsh(domain, machine, mostSeconds, withSignal(context, signal));
      isEarly = !isFiltered;
      return found;
    },
    async (signal: AbortSignal) => {
      if (await setFilter(domain, machine, context.host)) context.report.steps.end("filter");
      isFiltered = true;
      await finish?.(signal);
    },
  );
  const ready = { ...machine.metadata, ...reached };
  // The filter may let nothing pass of a connection that is older.
  if (isEarly && machine.master !== null) {
    await waitForCommand(domain, { ...machine, metadata: ready }, mostSeconds, context);
  }
  await writeMetadata(domain, ready);
  return ready;
}

/** Waits until a command runs in the machine. Gives its address and its host key. */
async function reachBySsh(
  domain: Domain,
  machine: NewMachine,
  mostSeconds: number,
  context: Context,
): Promise<Pick<MachineMetadata, "address" | "hostKey">> {
  const { metadata, settings, card } = machine;
  const { host: { connection }, report: { log, progress, steps }, signal } = context;
  const limits = { log, progress, signal };
  const { mac } = metadata;
  const { name: network, hostAddresses } = settings.network;
  const watch = watchKvm({ settings, connection });
  const address = network === "none"
    ? CHANNEL_ADDRESS
    : await waitForAddress(domain, { mac, network, hostAddresses, card, connection, watch }, {
      ...limits,
      timeoutSeconds: Math.min(settings.timeouts.addressSeconds, mostSeconds),
    });
  steps.end("address");
  const hostKey = await waitForCommand(
    domain,
    { ...machine, metadata: { ...metadata, address } },
    mostSeconds,
    context,
  );
  steps.end("ssh");
  return { address, hostKey };
}

/** Waits until a command runs over SSH, in the machine's master if there is one. Gives the host key. */
async function waitForCommand(
  domain: Domain,
  { metadata, settings, login, master }: NewMachine,
  mostSeconds: number,
  { host: { connection }, report: { log, progress }, signal }: Context,
): Promise<string> {
  const { timeouts } = settings;
  const sshSeconds = Math.min(timeouts.sshSeconds, mostSeconds);
  const watch = watchKvm({ settings, connection });
  const target = await loginTo(domain, metadata, login.key);
  return await waitForSsh(
    target,
    async () => {
      await refuseEnded(domain);
      if (target.channel !== null) await watch(); // an address shows that KVM works
    },
    {
      log,
      progress,
      signal,
      // Without a network, this waits for the boot too.
      timeoutSeconds: target.channel === null
        ? sshSeconds
        : sshSeconds + Math.min(timeouts.addressSeconds, mostSeconds),
    },
    master?.tryCommand,
  );
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
