// SPDX-License-Identifier: GPL-2.0-or-later
import * as v from "valibot";
import { type Document, LineCounter, parseDocument } from "yaml";
import {
  type Mistake,
  mistakeOfPools,
  mistakesOfAliases,
  mistakesOfValues,
  mistakesOfYaml,
} from "./mistakes.ts";
import { type RawConfig, schema } from "./schema.ts";
import { SystemFailure } from "../errors.ts";
import { DEFAULT_MACHINE, type MachineSettings, toMachine } from "./machine_settings.ts";
import { mistakesOfRules, mistakesOfSizes } from "./policy_mistakes.ts";
import { readSettingsFile } from "./settings_file.ts";

/** What can be set for one template. */
export interface TemplateSettings {
  /** The volume in the template pool; null is the template's name, with or without `.qcow2`. */
  readonly volume: string | null;
  /** Other names by which a job may ask for it, in DISTRO or `image:`. */
  readonly aliases: readonly string[];
  readonly machine: MachineSettings;
  /** The keys that its entry itself sets, as the file spells them; the rest is inherited. */
  readonly ownKeys: ReadonlySet<string>;
}

/** What the jobs that it fits may have. What it does not set (null) is as without the rule. */
export interface Rule {
  /** What messages call it, such as `rule 1 (rules[0])`. */
  readonly name: string;
  /** Patterns of full paths, one of which fits the job's project; null fits all. */
  readonly projects: readonly string[] | null;
  /** Whether it is for jobs of protected refs, or for the others; null is for both. */
  readonly isProtected: boolean | null;
  /** Patterns of the names of the only templates that the job may have. */
  readonly templates: readonly string[] | null;
  readonly maxVcpus: number | null;
  readonly maxMemoryMib: number | null;
  readonly maxDiskGib: number | null;
  readonly maxKeepMinutes: number | null;
  readonly allowNested: boolean | null;
  /** How many machines each project may have at once. */
  readonly maxMachines: number | null;
}

/** The settings, complete. */
export interface Config {
  /** The file that they are from; null are the defaults. */
  readonly file: string | null;
  readonly uri: string;
  /** How long libvirt may take for one call. */
  readonly callSeconds: number;
  /** Where post-mortems are kept; null is below /var/lib, or below the user's own state. */
  readonly postMortemDir: string | null;
  /** How many are kept at most, and how large they are together. */
  readonly postMortems: number;
  readonly postMortemMib: number;
  readonly templatePool: string;
  readonly overlayPool: string;
  /** Where stages are counted, for node_exporter; null is nowhere. */
  readonly metricsFile: string | null;
  /** How much machines may take of the host, see QueueSettings. */
  readonly maxMachines: number | null;
  readonly overcommitMemory: boolean;
  readonly reserveMemoryMib: number;
  readonly reserveDiskGib: number;
  /** How long a machine may wait for that. */
  readonly admissionSeconds: number;
  /** The template of a job that asks for none; null refuses such a job. */
  readonly defaultTemplate: string | null;
  /** Patterns of the names that a job may ask for besides those of `templates`. */
  readonly allowedTemplates: readonly string[];
  /** How many machines may be kept at once after jobs that failed. */
  readonly maxKeptMachines: number;
  readonly machine: MachineSettings;
  readonly templates: ReadonlyMap<string, TemplateSettings>;
  /** The first that fits a job holds for it. */
  readonly rules: readonly Rule[];
}

/** The overlay pool that prepare makes by itself, where its name is left as it is. */
export const DEFAULT_OVERLAY_POOL = "libvirt-gci";

const DEFAULT_SIZES = { vcpus: DEFAULT_MACHINE.vcpus, memory_mib: DEFAULT_MACHINE.memoryMib };

/** The settings without any file. */
export const DEFAULT_CONFIG: Config = toConfig({});

/** Where the settings are read from. */
export interface ConfigPlaces {
  /** `--config`: this file and no other. */
  readonly file?: string | undefined;
  readonly home: string | undefined;
  readonly xdgConfigHome: string | undefined;
}

/**
 * Reads the first file that exists of `--config`, `/etc/libvirt-gci/config.yaml` and
 * `$XDG_CONFIG_HOME/libvirt-gci/config.yaml`; without any, the defaults hold. Throws SystemFailure
 * with all mistakes of the file at once, or if others may write it.
 */
export async function loadConfig({ file, home, xdgConfigHome }: ConfigPlaces): Promise<Config> {
  const user = xdgConfigHome || (home && `${home}/.config`);
  const places = file !== undefined
    ? [file]
    : ["/etc/libvirt-gci/config.yaml", ...(user ? [`${user}/libvirt-gci/config.yaml`] : [])];
  for (const place of places) {
    try {
      return parseConfig(await readSettingsFile(place), place);
    } catch (cause) {
      if (cause instanceof SystemFailure) throw cause;
      if (file === undefined && isNoFile(cause)) continue;
      throw new SystemFailure({
        what: `Cannot read the settings in "${place}"`,
        cause,
        advice: "Check that the file exists and that this user may read it",
      });
    }
  }
  return DEFAULT_CONFIG;
}

/** The home of a user that has none is often /dev/null. */
function isNoFile(error: unknown): boolean {
  return error instanceof Deno.errors.NotFound || error instanceof Deno.errors.NotADirectory;
}

/** Reads settings from YAML. `file` is for messages. Throws SystemFailure with all mistakes. */
export function parseConfig(yamlText: string, file: string): Config {
  const lineCounter = new LineCounter();
  const { config, mistakes } = readYaml(yamlText, { file, lineCounter });
  if (mistakes.length === 0) return { ...config, file };
  const lines = mistakes.sort((a, b) => a.offset - b.offset).map(({ offset, words }) => {
    const { line, col } = lineCounter.linePos(offset);
    return `${file}:${line}:${col}: ${words}`;
  });
  throw new SystemFailure({
    what: [`The settings have ${lines.length === 1 ? "a mistake" : "mistakes"}:`, ...lines].join(
      "\n",
    ),
    advice: `Edit "${file}"; config.example.yaml has every setting with its default`,
  });
}

function readYaml(
  yamlText: string,
  { file, lineCounter }: { readonly file: string; readonly lineCounter: LineCounter },
): { readonly config: Config; readonly mistakes: Mistake[] } {
  try {
    const document = parseDocument(yamlText, {
      lineCounter,
      prettyErrors: false,
      logLevel: "error",
      uniqueKeys: false, // mistakesOfYaml() knows their names and places better
    });
    const mistakes = mistakesOfYaml(document);
    if (mistakes.some(({ hidesOthers }) => hidesOthers)) {
      return { config: DEFAULT_CONFIG, mistakes };
    }
    return readDocument(document, mistakes);
  } catch (cause) {
    // The parser gives up on what is nested too deep, and on anchors that multiply.
    throw new SystemFailure({
      what: `Cannot make sense of the settings in "${file}"`,
      cause,
      advice: `Edit "${file}"; config.example.yaml has every setting with its default`,
    });
  }
}

function readDocument(
  document: Document,
  mistakes: Mistake[],
): { readonly config: Config; readonly mistakes: Mistake[] } {
  const settings: unknown = document.toJS() ?? {};
  const result = v.safeParse(schema, settings);
  const config = result.success ? toConfig(result.output) : DEFAULT_CONFIG;
  mistakes.push(...mistakesOfValues(result.issues ?? [], document));
  mistakes.push(...mistakesOfAliases(settings, document));
  if (config.templatePool === config.overlayPool) mistakes.push(mistakeOfPools(document));
  if (result.success) {
    mistakes.push(...mistakesOfSizes(result.output, DEFAULT_SIZES, document));
    mistakes.push(...mistakesOfRules(result.output.rules ?? [], document));
  }
  return { config, mistakes };
}

function toConfig(raw: RawConfig): Config {
  const machine = toMachine(raw, DEFAULT_MACHINE);
  const templates = Object.entries(raw.templates ?? {}).map(([template, settings]) => {
    return [template, {
      volume: settings?.volume ?? null,
      aliases: settings?.aliases ?? [],
      machine: toMachine(settings ?? {}, machine),
      ownKeys: new Set(Object.keys(settings ?? {})),
    }] as const;
  });
  const rules = (raw.rules ?? []).map((rule, i) => ({
    name: `rule ${i + 1} (rules[${i}])`,
    projects: rule.projects ?? null,
    isProtected: rule.protected ?? null,
    templates: rule.templates ?? null,
    maxVcpus: rule.max_vcpus ?? null,
    maxMemoryMib: rule.max_memory_mib ?? null,
    maxDiskGib: rule.max_disk_gib ?? null,
    maxKeepMinutes: rule.max_keep_minutes ?? null,
    allowNested: rule.allow_nested ?? null,
    maxMachines: rule.max_machines ?? null,
  }));
  return {
    file: null,
    uri: raw.uri ?? "qemu:///system",
    callSeconds: raw.call_seconds ?? 60,
    postMortemDir: raw.post_mortem_dir ?? null,
    postMortems: raw.post_mortems ?? 20,
    postMortemMib: raw.post_mortem_mib ?? 100,
    templatePool: raw.template_pool ?? "base_imgs",
    overlayPool: raw.overlay_pool ?? DEFAULT_OVERLAY_POOL,
    metricsFile: raw.metrics_file ?? null,
    maxMachines: raw.max_machines ?? null,
    overcommitMemory: raw.overcommit_memory ?? false,
    reserveMemoryMib: raw.reserve_memory_mib ?? 512,
    reserveDiskGib: raw.reserve_disk_gib ?? 1,
    admissionSeconds: raw.admission_seconds ?? 1800,
    defaultTemplate: raw.default_template ?? null,
    allowedTemplates: raw.allowed_templates ?? ["*"],
    maxKeptMachines: raw.max_kept_machines ?? 4,
    machine,
    templates: new Map(templates),
    rules,
  };
}
