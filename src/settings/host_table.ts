// SPDX-License-Identifier: GPL-2.0-or-later
import { DIRECTORY, FLAG, NAME, PATTERNS, SECONDS, TEMPLATE_NAME, text, whole } from "./kinds.ts";
import { group, setting } from "./setting.ts";

export const HOST = {
  libvirt: group("The connection to libvirt.", {
    uri: setting(
      text(/^[a-z][\w.+-]*:\S+$/i, "a libvirt URI, such as qemu:///system"),
      "qemu:///system",
      "The hypervisor to connect to, as in `virsh --connect`.",
    ),
    call_seconds: setting(SECONDS, 60, "How long libvirt may take to answer one call."),
  }),
  pools: group("The storage pools. They must be two.", {
    templates: setting(
      NAME,
      "base_imgs",
      "The storage pool with the templates. `make_base_image.sh` creates it; libvirt-gci never " +
        "writes to it.",
      { guess: "template_pool" },
    ),
    overlays: setting(
      NAME,
      "libvirt-gci",
      "The storage pool for machines' disks. The default pool is created on first use, in " +
        "`/var/lib/libvirt/images`; any other must exist.",
      { guess: "overlay_pool" },
    ),
  }),
  default_template: setting(
    text(TEMPLATE_NAME, "the name of a template"),
    null,
    "The template of a job that names none, neither in `DISTRO` nor in `image:`.",
    { unset: "such a job fails", basic: true, example: "debian-12" },
  ),
  allowed_templates: setting(
    PATTERNS,
    ["*"],
    "The templates that jobs may use besides the default and those under `templates`. `*` " +
      "stands for any characters; `[]` allows no other.",
    { basic: true },
  ),
  metrics_file: setting(
    text(/^\/([^\p{C}]*\/)?[^\p{C}/]+\.prom$/u, "an absolute path that ends in .prom"),
    null,
    "The file for node_exporter's textfile collector.",
    { unset: "no metrics" },
  ),
  host: group(
    "How much of the host machines may use. A job whose machine does not fit waits in a queue.",
    {
      max_machines: setting(whole(1, 10_000), null, "How many machines may run at once.", {
        unset: "no limit",
        basic: true,
        example: 8,
      }),
      max_kept_machines: setting(
        whole(0, 10_000),
        4,
        "How many machines of failed jobs may be kept at once. Further ones are removed as usual.",
      ),
      overcommit_memory: setting(
        FLAG,
        false,
        "Start machines even if their memory adds up to more than the host has.",
      ),
      reserve_memory_mib: setting(
        whole(0, 16_777_216),
        512,
        "Memory that stays free for the host and QEMU.",
      ),
      reserve_disk_gib: setting(
        whole(0, 65_536),
        1,
        "Space that stays free in the overlay pool, because disks grow while their machines run. " +
          "0 turns the check off.",
      ),
      queue_seconds: setting(
        whole(0, 86_400),
        1800,
        "How long a job waits for room before prepare fails and GitLab Runner retries.",
        { guess: "admission_seconds" },
      ),
    },
  ),
  post_mortem: group(
    "Post-mortems: the console, the screen and more of machines that failed to start or were lost.",
    {
      dir: setting(DIRECTORY, null, "Where post-mortems are kept.", {
        unset: "`/var/lib/libvirt-gci/post-mortem` for root, else `libvirt-gci/post-mortem` in " +
          "`$XDG_STATE_HOME` or `~/.local/state`",
      }),
      count: setting(
        whole(0, 10_000),
        20,
        "How many post-mortems are kept. 0 keeps none. Beyond that, the project with the most " +
          "post-mortems loses its oldest.",
        { guess: "post_mortems" },
      ),
      total_mib: setting(
        whole(1, 1_000_000),
        100,
        "How large all post-mortems together may be. One file has at most a quarter of that.",
        { guess: "post_mortem_mib" },
      ),
    },
  ),
};
