// SPDX-License-Identifier: GPL-2.0-or-later
import * as v from "valibot";
import { LineCounter, parseDocument } from "yaml";
import {
  isKeys,
  mistakeOfPools,
  mistakesOfAliases,
  mistakesOfValues,
  mistakesOfYaml,
} from "./config_mistakes.ts";
import { SystemFailure } from "./errors.ts";

/** What can be set for all machines, and for those of one template. */
export interface MachineSettings {
  /** The hypervisor; `auto` is kvm where KVM really runs guests, and qemu elsewhere. */
  readonly domainType: string;
  /** The libvirt network that the machine's card is in. */
  readonly network: string;
  readonly vcpus: number;
  readonly memoryMib: number;
  /** The size of the machine's disk; null is the template's own. */
  readonly diskGib: number | null;
  /** A machine type of QEMU; null is q35 on x86-64, and elsewhere libvirt's choice. */
  readonly machineType: string | null;
  readonly firmware: "bios" | "efi";
  /** A CPU mode of libvirt; null is host-passthrough with KVM, and maximum without. */
  readonly cpuMode: string | null;
  /** Whether the key, the user and the host name reach the guest through cloud-init. */
  readonly cloudInit: boolean;
  readonly user: string;
  readonly port: number;
  /** The file of the private key; null is the first of the caller's own. */
  readonly key: string | null;
  readonly shell: "bash" | "sh";
  /** Directories in the guest; null is below the home of the user. */
  readonly buildsDir: string | null;
  readonly cacheDir: string | null;
  readonly addressSeconds: number;
  readonly sshSeconds: number;
}

/** What can be set for one template. */
export interface TemplateSettings {
  /** The volume in the template pool; null is the template's name, with or without `.qcow2`. */
  readonly volume: string | null;
  /** Other names by which a job may ask for it, in DISTRO or `image:`. */
  readonly aliases: readonly string[];
  readonly machine: MachineSettings;
}

/** The settings, complete. */
export interface Config {
  readonly uri: string;
  /** How long libvirt may take for one call. */
  readonly callSeconds: number;
  readonly templatePool: string;
  readonly overlayPool: string;
  /** The template of a job that asks for none; null refuses such a job. */
  readonly defaultTemplate: string | null;
  readonly machine: MachineSettings;
  readonly templates: ReadonlyMap<string, TemplateSettings>;
}

/** The name of a template that the settings need not name: what a job may write in DISTRO. */
export const TEMPLATE_NAME = /^[A-Za-z0-9][A-Za-z0-9._+-]{0,127}$/;

/** The overlay pool that prepare makes by itself, where its name is left as it is. */
export const DEFAULT_OVERLAY_POOL = "libvirt-gci";

const DEFAULT_MACHINE: MachineSettings = {
  domainType: "auto",
  network: "default",
  vcpus: 2,
  memoryMib: 2048,
  diskGib: null,
  machineType: null,
  firmware: "bios",
  cpuMode: null,
  cloudInit: true,
  user: "gitlab-runner",
  port: 22,
  key: null,
  shell: "bash",
  buildsDir: null,
  cacheDir: null,
  addressSeconds: 180,
  sshSeconds: 120,
};

const wholeNumber = (min: number, max: number) =>
  v.custom<number>(
    (value) => Number.isInteger(value) && Number(value) >= min && Number(value) <= max,
    `a whole number from ${min} to ${max}`,
  );

const oneOf = <const T extends readonly string[]>(values: T) =>
  v.picklist(values, `one of ${values.join(", ")}`);

const text = (pattern: RegExp, allowed: string) =>
  v.pipe(v.string(allowed), v.regex(pattern, allowed));

const name = text(/^[^\s/\p{C}][^/\p{C}]*$/u, "a name without slashes or control characters");
const directory = text(/^\/[^\p{C}]*$/u, "an absolute path");
const seconds = wholeNumber(1, 86_400);

const machineEntries = {
  domain_type: v.optional(oneOf(["auto", "kvm", "qemu"])),
  network: v.optional(name),
  vcpus: v.optional(wholeNumber(1, 1024)),
  memory_mib: v.optional(wholeNumber(64, 16_777_216)),
  disk_gib: v.optional(wholeNumber(1, 65_536)),
  machine_type: v.optional(text(/^[\w.+-]+$/, "a machine type of QEMU, such as q35")),
  firmware: v.optional(oneOf(["bios", "efi"])),
  cpu_mode: v.optional(oneOf(["host-passthrough", "host-model", "maximum"])),
  cloud_init: v.optional(v.boolean("true or false")),
  user: v.optional(
    text(/^[a-z_][a-z0-9_-]{0,31}$/, "a user name: lower case letters, digits, _ and -"),
  ),
  port: v.optional(wholeNumber(1, 65_535)),
  key: v.optional(text(/^(\/|~\/)[^\p{C}]+$/u, "a path that begins with / or ~/")),
  shell: v.optional(oneOf(["bash", "sh"])),
  builds_dir: v.optional(directory),
  cache_dir: v.optional(directory),
  address_seconds: v.optional(seconds),
  ssh_seconds: v.optional(seconds),
};

const templateEntries = {
  volume: v.optional(name),
  aliases: v.optional(v.array(text(/^[^\p{C}]+$/u, "a name"), "a list of names")),
  ...machineEntries,
};

const configEntries = {
  uri: v.optional(text(/^[a-z][\w.+-]*:\S+$/i, "a libvirt URI, such as qemu:///system")),
  call_seconds: v.optional(seconds),
  template_pool: v.optional(name),
  overlay_pool: v.optional(name),
  default_template: v.optional(
    text(TEMPLATE_NAME, "the name of a template"),
  ),
  ...machineEntries,
  templates: v.optional(
    v.pipe(
      v.unknown(),
      v.check(isKeys, "the names of templates, each with settings below it"),
      v.record(name, v.nullable(closed(templateEntries))),
    ),
  ),
};

const schema = closed(configEntries);

type RawMachine = v.InferOutput<ReturnType<typeof closed<typeof machineEntries>>>;

/** An object that has these keys and no others. */
function closed<const Entries extends v.ObjectEntries>(entries: Entries) {
  return v.pipe(
    v.unknown(),
    v.check(isKeys, "keys with values"),
    v.objectWithRest(entries, v.never(Object.keys(entries).join(", "))),
  );
}

/** The settings of a machine without any file. */
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
 * with all mistakes of the file at once.
 */
export async function loadConfig({ file, home, xdgConfigHome }: ConfigPlaces): Promise<Config> {
  const user = xdgConfigHome || (home && `${home}/.config`);
  const places = file !== undefined
    ? [file]
    : ["/etc/libvirt-gci/config.yaml", ...(user ? [`${user}/libvirt-gci/config.yaml`] : [])];
  for (const place of places) {
    try {
      return parseConfig(await Deno.readTextFile(place), place);
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
  const document = parseDocument(yamlText, {
    lineCounter,
    prettyErrors: false,
    logLevel: "error",
    uniqueKeys: false, // mistakesOfYaml() knows their names and places better
  });
  const mistakes = mistakesOfYaml(document);
  let config = DEFAULT_CONFIG;
  if (mistakes.every(({ hidesOthers }) => !hidesOthers)) {
    const settings: unknown = document.toJS() ?? {};
    const result = v.safeParse(schema, settings);
    if (result.success) config = toConfig(result.output);
    mistakes.push(...mistakesOfValues(result.issues ?? [], document));
    mistakes.push(...mistakesOfAliases(settings, document));
    if (config.templatePool === config.overlayPool) mistakes.push(mistakeOfPools(document));
  }
  if (mistakes.length === 0) return config;
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

function toConfig(raw: v.InferOutput<typeof schema>): Config {
  const machine = toMachine(raw, DEFAULT_MACHINE);
  const templates = Object.entries(raw.templates ?? {}).map(([template, settings]) => {
    return [template, {
      volume: settings?.volume ?? null,
      aliases: settings?.aliases ?? [],
      machine: toMachine(settings ?? {}, machine),
    }] as const;
  });
  return {
    uri: raw.uri ?? "qemu:///system",
    callSeconds: raw.call_seconds ?? 60,
    templatePool: raw.template_pool ?? "base_imgs",
    overlayPool: raw.overlay_pool ?? DEFAULT_OVERLAY_POOL,
    defaultTemplate: raw.default_template ?? null,
    machine,
    templates: new Map(templates),
  };
}

function toMachine(raw: RawMachine, otherwise: MachineSettings): MachineSettings {
  return {
    domainType: raw.domain_type ?? otherwise.domainType,
    network: raw.network ?? otherwise.network,
    vcpus: raw.vcpus ?? otherwise.vcpus,
    memoryMib: raw.memory_mib ?? otherwise.memoryMib,
    diskGib: raw.disk_gib ?? otherwise.diskGib,
    machineType: raw.machine_type ?? otherwise.machineType,
    firmware: raw.firmware ?? otherwise.firmware,
    cpuMode: raw.cpu_mode ?? otherwise.cpuMode,
    cloudInit: raw.cloud_init ?? otherwise.cloudInit,
    user: raw.user ?? otherwise.user,
    port: raw.port ?? otherwise.port,
    key: raw.key ?? otherwise.key,
    shell: raw.shell ?? otherwise.shell,
    buildsDir: raw.builds_dir ?? otherwise.buildsDir,
    cacheDir: raw.cache_dir ?? otherwise.cacheDir,
    addressSeconds: raw.address_seconds ?? otherwise.addressSeconds,
    sshSeconds: raw.ssh_seconds ?? otherwise.sshSeconds,
  };
}
