// SPDX-License-Identifier: GPL-2.0-or-later
import { done, undo } from "./program.ts";
import { command, DOMAIN_TYPE, TESTBED, virsh } from "../e2e/bed.ts";
import { type Runner, runnerFor } from "../harness/runner.ts";

/** Where the Python tool comes from, and Debian's packages that it needs. */
const SOURCE = "https://gitlab.com/libvirt/libvirt-gitlab-executor";
const PACKAGES = "virtinst python3-paramiko python3-yaml libnss-libvirt";

/** How to have the Python tool measured too. */
export const PYTHON_ADVICE = `--python DIR names a checkout of ${SOURCE}, ` +
  `which needs: apt-get install --no-install-recommends ${PACKAGES}`;

/** What a machine has, as the settings name it. */
type Size = { readonly memory_mib: number; readonly vcpus: number };
type Replacements = readonly (readonly [from: string, to: string])[];

/** What the Python tool has fixed in its source, and what it is on the test bed. */
function replacementsFor({ memory_mib, vcpus }: Size): Readonly<Record<string, Replacements>> {
  const { templatePool, overlayPool, network } = TESTBED;
  return {
    "src/provisioner/machine.py": [
      ['"--vcpus", "4"', `"--vcpus", "${vcpus}"`],
      ['"--ram", "8192"', `"--ram", "${memory_mib}"`],
      ['"--machine", "q35"', `"--machine", "q35", "--virt-type", "${DOMAIN_TYPE}"`],
      ['"--disk", f"vol=default/', `"--disk", f"vol=${overlayPool}/`],
      ['"--network", "network=default,', `"--network", "network=${network},`],
    ],
    "src/provisioner/libvirt_handle.py": [
      ['distro, poolname="default")', `distro, poolname="${overlayPool}")`],
      [
        '_get_base_image(base_img_name, "default")',
        `_get_base_image(base_img_name, "${templatePool}")`,
      ],
      ['storagePoolLookupByName("default")', `storagePoolLookupByName("${overlayPool}")`],
    ],
  };
}

/** The text with all of these replaced. Throws an Error if one of them is not there exactly once. */
export function patched(file: string, text: string, replacements: Replacements): string {
  return replacements.reduce((result, [from, to]) => {
    const count = result.split(from).length - 1;
    if (count === 1) return result.replace(from, () => to);
    throw new Error(
      `Cannot adapt the Python tool: "${file}" has ${from} ${count} times instead of once. ` +
        "Use another version, or adapt tests/bench/python_tool.ts",
    );
  }, text);
}

/** It finds a machine by its domain's name, without a name server. */
const NSSWITCH = "passwd: files\ngroup: files\nhosts: files libvirt_guest\n";

/** Fails where something is missing that the tool loads or calls. */
const CHECK = `
import ctypes, shutil, libvirt, paramiko, yaml
ctypes.CDLL("libnss_libvirt_guest.so.2")
assert shutil.which("virt-install"), "there is no virt-install"
`;

/**
 * A copy of the Python tool that makes machines of this size on the test bed, as GitLab Runner calls it.
 * It has a home with the test bed's key, and alone sees another nsswitch.conf. Disposed of, the copy
 * goes, and the pools that virt-install made.
 */
export async function pythonTool(
  checkout: string,
  size: Size,
): Promise<AsyncDisposable & { readonly runner: Runner }> {
  await using stack = new AsyncDisposableStack();
  const dir = await Deno.makeTempDir({ prefix: "libvirt-gci-bench-" });
  stack.defer(() => Deno.remove(dir, { recursive: true }));
  await done(["cp", "--recursive", `${checkout}/bin`, `${checkout}/src`, dir]);
  for (const [file, replacements] of Object.entries(replacementsFor(size))) {
    const text = await Deno.readTextFile(`${dir}/${file}`);
    await Deno.writeTextFile(`${dir}/${file}`, patched(file, text, replacements));
  }
  await done(["install", "-D", "--mode=600", TESTBED.key, `${dir}/.ssh/id_ed25519`]);
  await done(["cp", `${TESTBED.key}.pub`, `${dir}/.ssh/id_ed25519.pub`]);
  await Deno.writeTextFile(`${dir}/nsswitch.conf`, NSSWITCH);
  const PATH = Deno.env.get("PATH") ?? "/usr/bin:/bin";
  const inNamespace = ["unshare", "--mount", "sh", "-c"];
  const mount = 'mount --bind "$0" /etc/nsswitch.conf && exec "$@"';
  const python = [...inNamespace, mount, `${dir}/nsswitch.conf`, "/usr/bin/python3"];
  const { status, stderr } = await command([...python, "-c", CHECK]);
  if (status !== 0) {
    const why = stderr.trim().split("\n").at(-1);
    throw new Error(`The Python tool does not run here: ${why}. ${PYTHON_ADVICE}`);
  }
  const before = await pools();
  stack.defer(async () => {
    for (const pool of (await pools()).difference(before)) {
      for (const verb of ["pool-destroy", "pool-undefine"]) { // which keep its directory
        await undo(["virsh", "--quiet", "-c", "qemu:///system", verb, pool]);
      }
    }
  });
  const runner = runnerFor([...python, `${dir}/bin/libvirt-gci`], [], {
    configExec: null,
    attempts: 1,
    buildsDir: "/root/builds",
    cacheDir: "/root/cache",
    environment: { PATH, HOME: dir, PYTHONPATH: `${dir}/src` },
  });
  const all = stack.move();
  return { runner, [Symbol.asyncDispose]: () => all.disposeAsync() };
}

/** The pools that are named as virt-install names those it makes for cloud-init's images. */
async function pools(): Promise<Set<string>> {
  const names = (await virsh("pool-list", "--all", "--name")).split("\n").map((it) => it.trim());
  return new Set(names.filter((name) => /^boot(-scratch)?(-\d+)?$/.test(name)));
}
