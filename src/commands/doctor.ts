// SPDX-License-Identifier: GPL-2.0-or-later
import { jsonFlag, option } from "../cli/arguments.ts";
import { defineCommand, type Program } from "../cli/command.ts";
import { prepare } from "./prepare.ts";
import { run } from "./run.ts";
import { bootTemplate } from "../doctor/boot.ts";
import { type GroupedFinding, runChecks } from "../doctor/checks.ts";
import { failureOf, findingsJson, findingsText } from "../doctor/report.ts";
import type { Outputs } from "../guest/command_streams.ts";
import { type Job, makeUpMachineName } from "../job/job.ts";
import { Connection } from "../libvirt/connection.ts";
import type { Context } from "../machine/context.ts";
import { kvmRunsGuests } from "../machine/kvm/kvm_probe.ts";
import { readHostNetwork } from "../machine/network/host_addresses.ts";
import { removeMachine } from "../machine/remove.ts";
import { type Config, DEFAULT_CONFIG } from "../settings/settings.ts";

export const command = defineCommand("doctor", {
  description: "Check whether this host can run jobs, and how to fix what is wrong.",
  footer: "The exit status is 2 if there is a problem, and 0 if there are only warnings.",
  fields: {
    boot: option("--boot", "TEMPLATE", "Also run a whole job on this template."),
    json: jsonFlag,
  },
  run: (options, program) => examineHost(options, program),
});

/** Prints what is right and wrong with this host. Throws SystemFailure if there is a problem. */
async function examineHost(
  { boot, json }: { readonly boot?: string | undefined; readonly json: boolean },
  { env, path: program, signal, printer, output, settings, onHost }: Program,
): Promise<void> {
  let config = DEFAULT_CONFIG;
  let configError: unknown = null;
  try {
    config = await settings();
  } catch (error) {
    configError = error; // a finding, like all others
  }
  const home = env["HOME"];
  const findings = await findingsOfHost({ config, configError, home, program, signal });
  if (boot !== undefined) {
    await onHost(async (context) => {
      findings.push(...await findingsOfJob(boot, output, context));
    }, config);
  }
  if (json) printer.print(findingsJson(findings));
  else printer.printVisible(findingsText(findings, printer.paint));
  const failure = failureOf(findings);
  if (failure !== null) throw failure;
}

const CHECK_SECONDS = 20;
const CALL_SECONDS = 10;

/** What the host is like for jobs. It never throws: that libvirt does not answer is a finding. */
export async function findingsOfHost(
  { config, configError, home, program, signal }: {
    readonly config: Config;
    /** Why the settings cannot be read, and `config` are the defaults; null if they can. */
    readonly configError: unknown;
    readonly home: string | undefined;
    /** Where this program is, for GitLab Runner to call it. */
    readonly program: string;
    readonly signal: AbortSignal;
  },
): Promise<GroupedFinding[]> {
  await using stack = new AsyncDisposableStack();
  let connection: Connection | Error;
  try {
    connection = await Connection.open(config.libvirt.uri, { callSeconds: CALL_SECONDS, signal });
    stack.use(connection);
  } catch (error) {
    connection = error instanceof Error ? error : new Error(String(error));
  }
  return await runChecks({
    config,
    configError,
    connection,
    kvm: kvmRunsGuests,
    hostNetwork: readHostNetwork,
    home,
    program,
    root: "",
    checkSeconds: CHECK_SECONDS,
  });
}

/** How a whole job goes on a machine with this template. Progress goes where warnings go. */
export function findingsOfJob(
  template: string,
  { stderr }: Outputs,
  context: Context,
): Promise<GroupedFinding[]> {
  const machine = makeUpMachineName(template);
  const { report } = context;
  const quiet: Context = { ...context, report: { ...report, log: report.warn } };
  return bootTemplate(template, {
    prepare: async () => void await prepare(jobByHand(machine, template), {}, quiet),
    run: async (script) => {
      let written = "";
      const decoder = new TextDecoder();
      const stdout = (bytes: Uint8Array): Promise<void> => {
        written += decoder.decode(bytes, { stream: true });
        return Promise.resolve();
      };
      await run(machine, new TextEncoder().encode(script), { ...quiet, stdout, stderr });
      return written;
    },
    cleanup: async () => void await removeMachine(machine, quiet),
  });
}

function jobByHand(machine: string, template: string): Job {
  return {
    machine,
    template,
    isTemplateFromOperator: true,
    byHand: true,
    id: null,
    project: null,
    isProtected: null,
    timeoutSeconds: null,
    attemptDir: null,
    services: [],
    configCaller: null,
    requests: { vcpus: null, memoryMib: null, diskGib: null, keepMinutes: null, nested: null },
  };
}
