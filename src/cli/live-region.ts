const ESC = String.fromCharCode(27);

/**
 * Lines at the bottom of a terminal that are drawn over again (ECMA-48 cursor up, erase in line, erase in
 * page).
 */
export class LiveRegion {
  readonly #output: { write(text: string): unknown };
  #lines = 0;

  constructor(output: { write(text: string): unknown }) {
    this.#output = output;
  }

  /**
   * Replaces what was drawn before. No line may be wider than the terminal, nor the lines more than its
   * height.
   */
  draw(lines: readonly string[]): void {
    const up = this.#lines > 0 ? `${ESC}[${this.#lines}A` : '';
    const body = lines.map((line) => `${ESC}[2K${line}\n`).join('');
    this.#output.write(`${up}\r${body}${ESC}[0J`);
    this.#lines = lines.length;
  }

  /** Takes the drawn lines away. */
  clear(): void {
    this.draw([]);
  }

  /** Leaves what is drawn and starts anew below it. */
  keep(): void {
    this.#lines = 0;
  }
}
