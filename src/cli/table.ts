/** Columns padded to their widest cell, two spaces between, no line longer than it must be. */
export function table(header: readonly string[], rows: readonly (readonly string[])[]): string {
  const lines = [header, ...rows];
  const widths = header.map((_, column) =>
    Math.max(...lines.map((line) => displayWidth(line[column] ?? ''))),
  );
  return lines
    .map((line) =>
      line
        .map((cell, column) => cell + ' '.repeat(widths[column]! - displayWidth(cell)))
        .join('  ')
        .trimEnd(),
    )
    .join('\n');
}

/** Columns on a terminal, not counting escape sequences. */
export function displayWidth(text: string): number {
  return [...stripEscapes(text)].length;
}

/** Cuts to `width` columns with an ellipsis; text with escape sequences must fit already. */
export function truncate(text: string, width: number): string {
  const characters = [...text];
  if (characters.length <= width) return text;
  return width <= 0 ? '' : `${characters.slice(0, width - 1).join('')}…`;
}

const ESCAPES = new RegExp(`${String.fromCharCode(27)}\\[[0-9;]*m`, 'g');

function stripEscapes(text: string): string {
  return text.replace(ESCAPES, '');
}

/**
 * Foreign text (names, reasons, log lines in tables) without control characters: it cannot move the cursor or
 * recolour.
 */
export function printable(text: string): string {
  return text.replace(/\p{Cc}+/gu, ' ');
}
