// SPDX-License-Identifier: GPL-2.0-or-later
import { jsonFlag, option } from "../cli/arguments.ts";
import { defineCommand, type Program } from "../cli/command.ts";
import { bootTemplate } from "../doctor/boot.ts";
import type { DoctorContext } from "../doctor/check.ts";
import { type GroupedFinding, runChecks } from "../doctor/checks.ts";
import { failureOf, findingsJson, findingsText } from "../doctor/report.ts";
import type { Outputs } from "../guest/command_streams.ts";
import { jobFromEnv, makeUpMachineName } from "../job/job.ts";
import { Connection } from "../libvirt/connection.ts";
import type { Context } from "../machine/context.ts";
import { kvmRunsGuests } from "../machine/kvm/kvm_probe.ts";
import { readHostNetwork } from "../machine/network/host_addresses.ts";
import { prepare } from "../machine/prepare_machine.ts";
import { removeMachine } from "../machine/remove.ts";
import { run } from "../machine/run_script.ts";
import { DEFAULT_CONFIG } from "../settings/settings.ts";

export const command = defineCommand("doctor", {
  description: "Check whether this host can run jobs, and show how to fix each problem.",
  footer: "The exit status is 2 if there is a problem, and 0 if there are only warnings.",
  fields: {
    boot: option("--boot", "TEMPLATE", "Also run a whole job on this template."),
    json: jsonFlag,
  },
  run: examineHost,
});

/** Prints the findings about this host. Throws SystemFailure if there is a problem. */
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
  const findings = await findingsOfHost(
    { config, configError, home: env["HOME"], program },
    signal,
  );
  if (boot !== undefined) {
    await onHost(async (context) => {
      findings.push(...await findingsOfJob(boot, output, context));
    }, { config });
  }
  if (json) printer.print(findingsJson(findings));
  else printer.printVisible(findingsText(findings, printer.paint));
  const failure = failureOf(findings);
  if (failure !== null) throw failure;
}

const CHECK_SECONDS = 20;
const CALL_SECONDS = 10;

/** The findings about this host. It never throws: a libvirt that does not answer is a finding. */
async function findingsOfHost(
  known: Pick<DoctorContext, "config" | "configError" | "home" | "program">,
  signal: AbortSignal,
): Promise<GroupedFinding[]> {
  const { uri } = known.config.libvirt;
  await using stack = new AsyncDisposableStack();
  let connection: Connection | Error;
  try {
    connection = await Connection.open(uri, { callSeconds: CALL_SECONDS, signal });
    stack.use(connection);
  } catch (error) {
    connection = error instanceof Error ? error : new Error(String(error));
  }
  return await runChecks({
    ...known,
    connection,
    kvm: kvmRunsGuests,
    hostNetwork: readHostNetwork,
    root: "",
    checkSeconds: CHECK_SECONDS,
  });
}

/** Runs a whole job on a machine with this template. Its progress goes where warnings go. */
function findingsOfJob(
  template: string,
  { stderr }: Outputs,
  context: Context,
): Promise<GroupedFinding[]> {
  const machine = makeUpMachineName(template);
  const { report } = context;
  const quiet: Context = { ...context, report: { ...report, log: report.warn } };
  return bootTemplate(template, {
    prepare: async () => {
      await prepare(await jobFromEnv({}, { machine, distro: template }), {}, quiet);
    },
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
