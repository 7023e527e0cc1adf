// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import type { Outputs } from "../../src/guest/command_streams.ts";
import type { Job } from "../../src/job/job.ts";
import type { Connection } from "../../src/libvirt/connection.ts";
import { Domain } from "../../src/libvirt/domain.ts";
import type { Context, Directories, Host, Reporter } from "../../src/machine/context.ts";
import { type MachineMetadata, readMetadata, writeMetadata } from "../../src/machine/metadata.ts";
import { type OnStep, StepTimer } from "../../src/machine/steps.ts";
import { type Config, DEFAULT_CONFIG, type MachineSettings } from "../../src/settings/settings.ts";
import { type Differences, merged } from "./merged.ts";
import type { TestGuest } from "./test_guest.ts";

/** A job as GitLab Runner gives it. */
export const JOB: Job & { readonly machine: string } = {
  machine: "gitlab-proj-debian-12-4242-0123456789",
  id: "4242",
  project: "grp/proj",
  isProtected: false,
  template: "debian-12",
  isTemplateFromOperator: false,
  requests: { vcpus: null, memoryMib: null, diskGib: null, keepMinutes: null, nested: null },
  services: [],
  timeoutSeconds: 3600,
  attemptDir: null,
  configCaller: null,
  byHand: false,
};

/** The parts of a {@linkcode Stage}, which a test can change one by one. */
export interface StageParts extends Outputs, Pick<Host, "config" | "connection" | "connect"> {
  readonly signal: AbortSignal;
  readonly directories: Directories;
  readonly log: Reporter["log"];
  readonly warn: Reporter["warn"];
  readonly onStep: OnStep | null;
}

/** What a command gets, and the parts of that. */
export interface Stage extends Context, StageParts {}

/** The stage of these parts, which may be those of another stage and its own things; no key is another. */
export function toStage<T extends StageParts>(
  parts: T & Record<Exclude<keyof T, keyof TestStage>, never>,
): T & Stage {
  const { config, connection, connect, directories, log, warn, onStep } = parts;
  return {
    ...parts,
    host: { config, connection, connect, directories },
    report: { log, warn, progress: null, steps: new StepTimer(onStep) },
  };
}

/** A stage on libvirt's test driver, and what it printed. */
export interface TestStage extends Stage, Disposable {
  readonly lines: string[];
  readonly warnings: string[];
  /** What the scripts wrote. */
  readonly output: { stdout: string; stderr: string };
  readonly abort: (reason: Error) => void;
}

/** What a {@linkcode testStage} differs in from the defaults. */
export interface TestStageOptions {
  readonly machine?: Differences<MachineSettings>;
  readonly config?: Differences<Config>;
}

/** A stage on any connection that prints nothing, with these parts. */
export function bareStage(connection: Connection, parts: Partial<StageParts> = {}): Stage {
  const nowhere = "/nonexistent";
  return toStage({
    connection,
    config: DEFAULT_CONFIG,
    connect: () => Promise.resolve(unclosed(connection)),
    signal: new AbortController().signal,
    directories: { home: nowhere, keys: nowhere, lastingKeys: nowhere, postMortems: nowhere },
    log: () => {},
    warn: () => {},
    onStep: null,
    stdout: () => Promise.resolve(),
    stderr: () => Promise.resolve(),
    ...parts,
  });
}

/** A stage whose machines have the test guest's SSH server. */
export function testStage(
  connection: Connection,
  guest: TestGuest,
  { machine = {}, config = {} }: TestStageOptions = {},
): TestStage {
  const key = Deno.makeTempFileSync({ prefix: "libvirt-gci-test-" });
  Deno.writeTextFileSync(key, guest.privateKey);
  const keys = Deno.makeTempDirSync({ prefix: "libvirt-gci-test-" });
  const postMortems = Deno.makeTempDirSync({ prefix: "libvirt-gci-test-" });
  const controller = new AbortController();
  const lines: string[] = [];
  const warnings: string[] = [];
  const output = { stdout: "", stderr: "" };
  const decoders = { stdout: new TextDecoder(), stderr: new TextDecoder() };
  const take = (stream: "stdout" | "stderr") => (bytes: Uint8Array): Promise<void> => {
    output[stream] += decoders[stream].decode(bytes, { stream: true });
    return Promise.resolve();
  };
  const stage = toStage({
    config: {
      ...merged(DEFAULT_CONFIG, config),
      machine: merged(
        merged(DEFAULT_CONFIG.machine, {
          domainType: "test",
          machineType: null,
          network: { isolate: false },
          ssh: { login: "template", key, port: guest.port },
          timeouts: { addressSeconds: 2, sshSeconds: 2 },
        }),
        machine,
      ),
    },
    connection,
    connect: () => Promise.resolve(unclosed(connection)),
    signal: controller.signal,
    directories: { home: "/nonexistent", keys, lastingKeys: keys, postMortems },
    log: (line) => void lines.push(line),
    onStep: null,
    warn: (line) => void warnings.push(line),
    stdout: take("stdout"),
    stderr: take("stderr"),
  });
  return {
    ...stage,
    lines,
    warnings,
    output,
    abort: (reason) => controller.abort(reason),
    [Symbol.dispose]: () => {
      Deno.removeSync(key);
      Deno.removeSync(postMortems, { recursive: true });
      Deno.removeSync(keys); // which fails if a machine's key is left in it
    },
  };
}

/** The same connection, which stays open when it is disposed of: another would see another host. */
function unclosed(connection: Connection): Connection {
  return new Proxy(connection, {
    get: (target, name) => {
      if (name === Symbol.asyncDispose) return () => Promise.resolve();
      const value = Reflect.get(target, name, target);
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
}

/** A script as its bytes. */
export function script(text: string): Uint8Array {
  return new TextEncoder().encode(text);
}

/** Changes what the metadata of a running machine says. */
export async function changeMetadata(
  connection: Connection,
  machine: string,
  differences: Partial<MachineMetadata>,
): Promise<void> {
  using domain = await Domain.lookup(connection, machine);
  const metadata = await readMetadata(domain);
  assert(metadata);
  await writeMetadata(domain, { ...metadata, ...differences });
}
