// SPDX-License-Identifier: GPL-2.0-or-later
import { DEFAULT_OVERLAY_POOL, type MachineSettings } from "../config.ts";
import { explain, SystemFailure } from "../errors.ts";
import { readKey, type SshKey } from "../guest/key.ts";
import { waitForSsh } from "../guest/ready.ts";
import { type Job, makeUpMachineName } from "../job.ts";
import type { Connection } from "../libvirt/connection.ts";
import type { Domain } from "../libvirt/domain.ts";
import type { StoragePool } from "../libvirt/storage_pool.ts";
import { refuseEnded, waitForAddress } from "../machine/address.ts";
import { consoleEnd } from "../machine/console.ts";
import { randomMac } from "../machine/domain_xml.ts";
import { chooseDomainType } from "../machine/domain_type.ts";
import { type MachineRecord, writeRecord } from "../machine/record.ts";
import { cloudInitSeed } from "../machine/seed.ts";
import { createDisk, createVolumes, startMachine } from "../machine/start.ts";
import { createDirPool, findTemplate, lookupActivePool } from "../machine/template.ts";
import { readConsole, volumeName } from "../machine/volumes.ts";
import { chooseTemplate } from "../template_choice.ts";
import { cleanup } from "./cleanup.ts";
import type { Stage } from "./stage.ts";
import { StepTimer } from "./step_timer.ts";

const CONSOLE_LINES = 30;

/** What the command line says to prepare. */
export interface PrepareOptions {
  /** `--ssh-key-file`: the private key to log in with, instead of the one in the settings. */
  readonly keyFile?: string | undefined;
}

/** A machine that is ready, and how to reach it. */
export interface PreparedMachine {
  readonly name: string;
  readonly record: MachineRecord;
}

/**
 * Makes a machine for the job and waits until a command runs in it over SSH. If that fails, or the
 * signal aborts, it undoes what it did. Throws BuildFailure if the job asks for a template that does
 * not exist, else SystemFailure.
 */
export async function prepare(
  job: Job,
  { keyFile }: PrepareOptions,
  stage: Stage,
): Promise<PreparedMachine> {
  const { config, connection, log, signal } = stage;
  const choice = chooseTemplate(config, job.template);
  const { settings } = choice;
  const key = await readKey(keyFile ?? settings.key, stage.home);
  const name = job.machine ?? makeUpMachineName(choice.name);

  const template = await findTemplate(connection, { ...choice, pool: config.templatePool });
  const record = newRecord(job, { template: choice.name, key, settings });
  await requireNetwork(connection, settings.network);
  const domainType = await chooseDomainType(connection, settings.domainType, log);
  using pool = await lookupOverlayPool(connection, config.overlayPool);
  await refuseTakenName(name, connection, pool);

  signal.throwIfAborted();

  const timer = new StepTimer();
  const overlayPath = await createDisk(pool, name, { template, diskGib: settings.diskGib });
  await using undo = new AsyncDisposableStack(); // only now is the name ours
  undo.defer(() => undoPrepare(name, stage));
  const volumes = await createVolumes(pool, name, {
    seed: settings.cloudInit ? seedFor(name, record, key) : null,
    efi: settings.firmware === "efi",
  });
  timer.end("overlay");

  signal.throwIfAborted();
  const { vcpus, memoryMib, network } = settings;
  using domain = await startMachine(connection, {
    ...{ name, record, domainType, vcpus, memoryMib, network, overlayPath, ...volumes },
    machineType: settings.machineType ?? (Deno.build.arch === "x86_64" ? "q35" : null),
    cpuMode: settings.cpuMode ?? (domainType === "kvm" ? "host-passthrough" : "maximum"),
  });
  timer.end("start");
  log(`Started the machine "${name}" from the template "${choice.name}" (${domainType})`);

  const ready = await explainedByConsole(name, stage, async () => {
    const address = await waitForAddress(domain, { mac: record.mac, network }, {
      ...{ log, signal, timeoutSeconds: settings.addressSeconds },
    });
    timer.end("address");
    const hostKey = await waitUntilReady(domain, { address, key, settings }, stage);
    timer.end("ssh");
    return { ...record, address, hostKey };
  });
  await writeRecord(domain, ready);

  undo.move(); // The machine now lives until cleanup.
  log(`The machine "${name}" is ready at ${ready.address}: ${timer.summary()}`);
  return { name, record: ready };
}

function newRecord(
  job: Job,
  { template, key, settings }: {
    readonly template: string;
    readonly key: SshKey;
    readonly settings: MachineSettings;
  },
): MachineRecord {
  const now = Date.now();
  return {
    job: job.id ?? "",
    project: job.project ?? "",
    template,
    created: new Date(now).toISOString(),
    deadline: job.timeoutSeconds === null
      ? ""
      : new Date(now + job.timeoutSeconds * 1000).toISOString(),
    mac: randomMac(),
    user: settings.user,
    port: String(settings.port),
    key: key.file,
    shell: settings.shell,
    address: "",
    hostKey: "",
  };
}

function seedFor(machine: string, { user }: MachineRecord, key: SshKey): Uint8Array<ArrayBuffer> {
  const hostName = machine.replace(/[._]/g, "-"); // cloud-init would cut it at the first dot
  return cloudInitSeed({ machine: hostName, user, publicKeys: [key.publicKey] });
}

async function requireNetwork(connection: Connection, name: string): Promise<void> {
  using network = await connection.findNetwork(name);
  if (network !== null && await network.isActive()) return;
  throw new SystemFailure({
    what: network === null
      ? `The host has no network "${name}"`
      : `The network "${name}" is not active`,
    advice: network === null
      ? 'See what it has: virsh net-list --all; "network" is a setting'
      : `Start it: virsh net-start ${name} && virsh net-autostart ${name}`,
  });
}

/** The pool for overlays. The one that nobody chose is made at its first use. */
async function lookupOverlayPool(connection: Connection, name: string): Promise<StoragePool> {
  if (name === DEFAULT_OVERLAY_POOL) await createDirPool(connection, name);
  return await lookupActivePool(connection, name, "overlay_pool");
}

/** Says early and clearly what {@linkcode createDisk} would refuse. */
async function refuseTakenName(
  machine: string,
  connection: Connection,
  pool: StoragePool,
): Promise<void> {
  using domain = await connection.findDomain(machine);
  using overlay = await pool.findVolume(volumeName(machine, "overlay"));
  if (domain === null && overlay === null) return;
  throw new SystemFailure({
    what: domain !== null
      ? `There is a domain "${machine}" already`
      : `There is a disk of an earlier machine "${machine}" already`,
    advice: `Remove the machine if nobody needs it: libvirt-gci cleanup --machine ${machine}; ` +
      "or choose another name",
  });
}

/** Removes what a failed prepare made. The failure is what the caller hears of, not this. */
async function undoPrepare(machine: string, stage: Stage): Promise<void> {
  try {
    await cleanup(machine, stage).catch(async () => {
      await using fresh = await stage.connect(); // the daemon may have been started anew
      await cleanup(machine, { ...stage, connection: fresh });
    });
  } catch (error) {
    stage.warn(`Could not remove the machine "${machine}" again: ${explain(error)}`);
  }
}

function waitUntilReady(
  domain: Domain,
  { address, key, settings }: {
    readonly address: string;
    readonly key: SshKey;
    readonly settings: MachineSettings;
  },
  { log, signal }: Stage,
): Promise<string> {
  const { user, port, sshSeconds } = settings;
  const login = { address, port, user, privateKey: key.privateKey, hostKey: null };
  const limits = { log, signal, timeoutSeconds: sshSeconds };
  return waitForSsh(login, () => refuseEnded(domain), limits);
}

/** Adds the end of the machine's serial console to a failure, before undo removes it. */
async function explainedByConsole<T>(
  machine: string,
  { connection, config, signal }: Stage,
  wait: () => Promise<T>,
): Promise<T> {
  try {
    return await wait();
  } catch (cause) {
    if (signal.aborted) throw cause;
    const console = await readConsole(connection, config.overlayPool, machine);
    throw new SystemFailure({
      what: `The machine "${machine}" did not come up`,
      cause,
      details: consoleEnd(console, CONSOLE_LINES),
    });
  }
}
