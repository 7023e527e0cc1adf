// SPDX-License-Identifier: GPL-2.0-or-later

/** The rows as a table for people, a line each. `paint` gets each cell at its column's width. */
export function toTable(
  rows: readonly (readonly string[])[],
  paint: (padded: string, row: number, column: number) => string = (padded) => padded,
): string {
  const widths = (rows[0] ?? []).map((_, column) =>
    Math.max(...rows.map((row) => (row[column] ?? "").length))
  );
  return rows.map((cells, row) =>
    cells.map((text, column) => paint(text.padEnd(widths[column] ?? 0), row, column))
      .join("  ").trimEnd()
  ).join("\n");
}
