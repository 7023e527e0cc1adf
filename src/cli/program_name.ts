// SPDX-License-Identifier: GPL-2.0-or-later

/** The program's name in messages, whatever the file is called. */
export const PROGRAM = "libvirt-gci";
