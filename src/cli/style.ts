/** Colours of a terminal; without colour every function gives its text back as it is. */
export type Style = {
  bold(text: string): string;
  dim(text: string): string;
  red(text: string): string;
  green(text: string): string;
  yellow(text: string): string;
};

const ESC = String.fromCharCode(27);

/** SGR sequences (ECMA-48, 8.3.117). */
export function style(colour: boolean): Style {
  const wrap = (open: number, close: number) =>
    colour
      ? (text: string) => (text === '' ? '' : `${ESC}[${open}m${text}${ESC}[${close}m`)
      : (text: string) => text;
  return {
    bold: wrap(1, 22),
    dim: wrap(2, 22),
    red: wrap(31, 39),
    green: wrap(32, 39),
    yellow: wrap(33, 39),
  };
}

/** Colour on a terminal unless NO_COLOR (no-color.org) is set or the terminal is dumb. */
export function wantsColour(stream: { isTTY?: boolean }, env: NodeJS.ProcessEnv): boolean {
  return stream.isTTY === true && !env.NO_COLOR && env.TERM !== 'dumb';
}
