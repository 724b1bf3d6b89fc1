/** The files of godwit that are started or read by their path, from the folder of the sources on. */
export const PROGRAM_FILES = [
  'cli/main.ts',
  'worker/main.ts',
  'machine/shim.ts',
  'jail/jail-init.sh',
  'volume/server.ts',
  'attach/hot-thread.ts',
] as const;
export type ProgramFile = (typeof PROGRAM_FILES)[number];

/**
 * Where a process or a thread of its own begins. Sources are TypeScript in a checkout, JavaScript in the
 * package (Node runs no TypeScript below node_modules), and one file a program in dist/ (scripts/bundle):
 * that file is where this module is then, and it is one folder below the root as well.
 */
export function entryPoint(file: ProgramFile): URL {
  const name = import.meta.url.endsWith('.ts') ? file : file.replace(/\.ts$/, '.js');
  return new URL(`../${name}`, import.meta.url);
}
